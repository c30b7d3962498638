//! What the entries of a technique cover.

use std::collections::BTreeMap;

/// The shares of a footprint, in percent, that the literature of the field tells entries for.
pub const SHARES: [u8; 4] = [80, 90, 99, 100];

/// Entries of one technique, by how many pages each covers.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Pieces {
    /// How many entries of which size in pages.
    by_size: BTreeMap<u64, u64>,
}

impl Pieces {
    /// None.
    pub const fn new() -> Self {
        Self { by_size: BTreeMap::new() }
    }

    /// Adds `count` entries that cover `pages` pages each.
    pub fn add(&mut self, pages: u64, count: u64) {
        if pages > 0 && count > 0 {
            *self.by_size.entry(pages).or_default() += count;
        }
    }

    /// How many entries there are.
    pub fn entries(&self) -> u64 {
        self.by_size.values().sum()
    }

    /// How many pages they cover, all together.
    pub fn pages(&self) -> u64 {
        self.by_size.iter().map(|(size, count)| size * count).sum()
    }

    /// How many of the entries, the largest first, cover `percent` of all the pages that they cover
    /// together. A part of a page counts as a whole one; 100 are all entries.
    pub fn to_cover(&self, percent: u8) -> u64 {
        let pages = u128::from(self.pages()) * u128::from(percent.min(100));
        self.to_cover_pages(u64::try_from(pages.div_ceil(100)).unwrap_or(u64::MAX))
    }

    /// How many of the entries, the largest first, cover this many pages; all, if that is too much.
    pub fn to_cover_pages(&self, pages: u64) -> u64 {
        let mut left = pages;
        let mut entries = 0;
        for (&size, &count) in self.by_size.iter().rev() {
            let needed = left.div_ceil(size).min(count);
            entries += needed;
            left = left.saturating_sub(needed * size);
            if left == 0 {
                break;
            }
        }
        entries
    }

    /// What [`to_cover`](Self::to_cover) says for each of [`SHARES`].
    pub fn shares(&self) -> [u64; SHARES.len()] {
        SHARES.map(|percent| self.to_cover(percent))
    }

    /// Sizes in pages and how many entries have them, the largest first.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.by_size.iter().rev().map(|(&size, &count)| (size, count))
    }
}
