//! Pages of one set, as patterns.

use crate::pattern::{Clock, Pattern};
use nestwalk_timing::Pages;

/// One set of a level, and how it is reached.
#[derive(Clone, Debug)]
pub struct Set {
    /// The pages.
    pub size: Pages,
    /// Base-2 logarithm of the distance of pages that share a set.
    pub stride: u32,
    /// How many of them it holds.
    pub ways: u32,
    /// Pages of other sets that are loaded from between, so that the first level has none of the set's.
    pub filler: u32,
    /// Its pages, if they are not just `stride` apart.
    pub members: Vec<u64>,
}

impl Set {
    /// A pattern of pages of a set, by their number in it, with the pages between that fill the first
    /// level.
    pub fn pattern(&self, pages: impl Iterator<Item = u64>) -> Pattern {
        self.pattern_of(pages.map(|k| self.page(k)).collect())
    }

    /// A page of the set.
    pub fn page(&self, k: u64) -> u64 {
        self.members.get(k as usize).copied().unwrap_or(k << self.stride)
    }

    /// As many pages of it as fit whatever is in the set beside, and twice as many do not.
    pub fn group(&self) -> u64 {
        u64::from(
            (self.ways - (self.filler.div_ceil(63)).min(self.ways / 2 - self.ways / 4)).max(1),
        )
    }

    /// The same of pages by their page number, shuffled.
    pub fn shuffled(&self, pages: Vec<u64>) -> Pattern {
        self.pattern_of(Pattern::shuffled(self.size, pages).pages)
    }

    fn pattern_of(&self, pages: Vec<u64>) -> Pattern {
        if self.filler == 0 {
            return Pattern { size: self.size, pages };
        }
        // All filler between two loads of the set would take a long time: a share of it is enough, as
        // each page of the set waits for a whole turn.
        let (n, filler) = (pages.len().max(1), self.filler as usize);
        let mut all = Vec::with_capacity(n + filler);
        let mut next = 0;
        for (i, page) in pages.iter().enumerate() {
            all.push(*page);
            while next < filler * (i + 1) / n {
                // Sets 1 to 63 of the level, a few pages in each.
                all.push(1 + next as u64 % 63 + ((next as u64 / 63) << self.stride));
                next += 1;
            }
        }
        Pattern { size: self.size, pages: all }
    }

    /// Nanoseconds of a load of the set, those of the filler taken off, which hit the second level.
    pub fn time(&self, clock: &mut dyn Clock, patterns: &[Pattern], second: f64) -> Vec<f64> {
        let samples = clock.time(patterns);
        let of = |(pattern, sample): (&Pattern, crate::pattern::Sample)| {
            let (all, filler) = (pattern.pages.len() as f64, f64::from(self.filler));
            (sample.ns * all - second * filler) / (all - filler).max(1.0)
        };
        patterns.iter().zip(samples).map(of).collect()
    }
}
