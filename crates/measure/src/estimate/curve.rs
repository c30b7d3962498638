//! Time against pages in a row.

use crate::pattern::{Clock, Pattern};
use nestwalk_timing::Pages;
use serde::Serialize;

/// Pages of the points.
const COUNTS: [u64; 53] = [
    2, 4, 6, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 56, 64, 68, 72, 80, 88, 96, 104, 112, 128,
    144, 160, 192, 224, 256, 320, 384, 448, 512, 576, 640, 768, 896, 1024, 1152, 1280, 1536, 1664,
    1792, 2048, 2304, 2560, 3072, 3584, 4096, 4608, 5120, 6144, 8192,
];
/// A rise that is one, as a share.
const RISE: f64 = 0.08;

/// A point of a curve.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Point {
    /// Pages that loads go round.
    pub pages: u64,
    /// Cycles of a load.
    pub cycles: f64,
    /// How far the quarter of the fastest timings lies apart.
    pub spread_cycles: f64,
}

/// Time against pages in a row.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(transparent)]
pub struct Curve {
    /// By pages.
    pub points: Vec<Point>,
}

/// What a curve says: nanoseconds of a load.
pub struct Times {
    /// In the first level.
    pub first: f64,
    /// In the second level; where there is none, after a walk.
    pub second: Option<f64>,
    /// After a walk.
    pub third: Option<f64>,
    /// The last pages that fit into the first level.
    pub first_full: Option<u64>,
    /// The same of the second level.
    pub second_full: Option<u64>,
    /// Why a level is not seen.
    pub problem: String,
}

impl Curve {
    /// Times pages in a row. Until [`Curve::ns_to_cycles`] the numbers are nanoseconds.
    pub fn measure(clock: &mut dyn Clock, size: Pages) -> Self {
        let patterns: Vec<_> = COUNTS.iter().map(|n| Pattern::block(size, *n)).collect();
        let samples = clock.time(&patterns);
        let points = COUNTS.iter().zip(samples);
        let point = |(pages, sample): (&u64, crate::pattern::Sample)| Point {
            pages: *pages,
            cycles: sample.ns,
            spread_cycles: sample.spread_ns,
        };
        Self { points: points.map(point).collect() }
    }

    /// Makes cycles of nanoseconds.
    pub fn ns_to_cycles(&mut self, cycle_ns: f64) {
        for point in &mut self.points {
            point.cycles /= cycle_ns;
            point.spread_cycles /= cycle_ns;
        }
    }

    /// The point from which on all are above a time.
    fn leaves(&self, time: f64) -> Option<usize> {
        let last_below = self.points.iter().rposition(|p| p.cycles <= time);
        let first = last_below.map_or(0, |i| i + 1);
        (first < self.points.len()).then_some(first)
    }

    /// Median of points whose pages lie in a range.
    fn median(&self, from: u64, to: u64) -> Option<f64> {
        let inside = self.points.iter().filter(|p| (from..=to).contains(&p.pages));
        let mut times: Vec<f64> = inside.map(|p| p.cycles).collect();
        times.sort_by(f64::total_cmp);
        times.get(times.len() / 2).copied()
    }

    /// Levels of time.
    pub fn times(&self) -> Times {
        let first = self.points.iter().take(3).map(|p| p.cycles).fold(f64::INFINITY, f64::min);
        let mut times = Times {
            first,
            second: None,
            third: None,
            first_full: None,
            second_full: None,
            problem: "the time of a load does not rise with the number of pages".into(),
        };
        let Some(rise) = self.leaves(first * (1.0 + RISE)) else { return times };
        let full = self.points[rise.saturating_sub(1)].pages;
        times.first_full = Some(full);
        times.second = self.median(3 * full, 6 * full);
        let Some(second) = times.second else {
            times.problem = "too many pages fit into the first level".into();
            return times;
        };
        // A walk takes at least as long again as the second level's hit, or it is none.
        let walk = (second - first).max(second * RISE);
        let end = self.points.last().map_or(0.0, |p| p.cycles);
        if end > second + 0.5 * walk
            && let Some(rise) = self.leaves(second * (1.0 + RISE))
        {
            let full = self.points[rise.saturating_sub(1)].pages;
            times.second_full = Some(full);
            let beyond = self.median(2 * full, 3 * full);
            times.third = beyond.or(Some(end)).filter(|t| *t > second);
        }
        times
    }
}
