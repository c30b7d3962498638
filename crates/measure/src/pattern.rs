//! What is timed, and what comes of it: the interface between estimators and whoever has the time.

use nestwalk_timing::Pages;
use serde::Serialize;

/// Page numbers to load from in turn, over and over; each load waits for the one before. Numbers count
/// from an address that is aligned to more than their highest bit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pattern {
    /// What pages they are.
    pub size: Pages,
    /// In order; a page may come several times.
    pub pages: Vec<u64>,
}

impl Pattern {
    /// Pages in an order that no prefetcher foresees, the same for the same pages.
    pub fn shuffled(size: Pages, mut pages: Vec<u64>) -> Self {
        let mut random = nestwalk_types::SplitMix64::new(pages.len() as u64);
        for i in (1..pages.len()).rev() {
            pages.swap(i, random.below(i as u64 + 1) as usize);
        }
        Self { size, pages }
    }
    /// The first pages, shuffled.
    pub fn block(size: Pages, pages: u64) -> Self {
        Self::shuffled(size, (0..pages).collect())
    }
}

/// Nanoseconds of one load of a pattern, after it went round at least once.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
pub struct Sample {
    /// The lower end of what was seen: what a load takes while nobody disturbs.
    pub ns: f64,
    /// How far the quarter of the fastest rounds lies apart.
    pub spread_ns: f64,
}

impl Sample {
    /// Of repeated timings. Whatever disturbs makes a loop slower, so the fastest rounds count: the
    /// second fastest of few, which one lucky round does not decide.
    pub fn of(mut times: Vec<f64>) -> Self {
        times.retain(|time| time.is_finite());
        times.sort_by(f64::total_cmp);
        let quarter = times.get(times.len() / 4).copied();
        let lowest = times.get((times.len() / 16).max(usize::from(times.len() > 7)));
        let (Some(&ns), Some(quarter)) = (lowest, quarter) else { return Self::default() };
        Self { ns, spread_ns: (quarter - ns).max(0.0) }
    }
}

/// Who has the time.
pub trait Clock {
    /// Times patterns, in turn and repeatedly, so that a disturbance meets all of them alike. As many
    /// samples as patterns.
    fn time(&mut self, patterns: &[Pattern]) -> Vec<Sample>;
    /// Nanoseconds of a cycle of the core.
    fn cycle_ns(&self) -> f64;
}
