//! Runs by length.

use crate::set::RunSet;

/// Runs of `2^order` pages up to before twice as many.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Bucket {
    /// Of the shortest.
    pub order: u32,
    /// How many runs.
    pub runs: u64,
    /// How many pages they have together.
    pub pages: u64,
}

/// Runs by length, in powers of two.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Histogram {
    /// From order 0 up to that of the longest run, without gaps.
    pub buckets: Vec<Bucket>,
}

impl Histogram {
    /// Of the runs of a set.
    pub fn of(set: &RunSet) -> Self {
        let mut buckets: Vec<Bucket> = Vec::new();
        for run in set.iter() {
            let order = run.pages.ilog2();
            for order in buckets.len() as u32..=order {
                buckets.push(Bucket { order, ..Bucket::default() });
            }
            let bucket = &mut buckets[order as usize];
            bucket.runs += 1;
            bucket.pages += run.pages;
        }
        Self { buckets }
    }
}
