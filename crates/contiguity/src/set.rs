//! All runs of an address space, kept while its tables change.

use crate::run::MappedRun;
use std::collections::BTreeMap;

/// The maximal runs of an address space, ordered by page number. No two of them overlap, and no two
/// neighbours could be one.
///
/// A change costs a search in a balanced tree, and the runs that it removes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RunSet {
    runs: BTreeMap<u64, Rest>,
    pages: u64,
}

/// A run without the number of its first page, which is the key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Rest {
    to: u64,
    pages: u64,
    tag: u16,
}

const fn run((&from, &Rest { to, pages, tag }): (&u64, &Rest)) -> MappedRun {
    MappedRun { from, to, pages, tag }
}

impl RunSet {
    /// Nothing is mapped.
    pub const fn new() -> Self {
        Self { runs: BTreeMap::new(), pages: 0 }
    }

    /// Maps `pages` pages from number `from` on to frames from number `to` on, in place of what was
    /// there, and joins them with neighbours of equal offset and tag. Returns the run in which they
    /// are now. Page numbers beyond 2^64 - 1 do not exist and are left out.
    pub fn map(&mut self, from: u64, to: u64, pages: u64, tag: u16) -> MappedRun {
        let pages = pages.min(u64::MAX - from);
        let new = MappedRun { from, to, pages, tag };
        if pages == 0 {
            return new;
        }
        self.unmap(from, pages);
        self.pages += pages;
        let after = self.runs.get(&new.end()).map(|rest| run((&new.end(), rest)));
        let after = after.filter(|a| new.joins(*a));
        let longer = pages + after.map_or(0, |a| a.pages);
        if let Some(after) = after {
            self.runs.remove(&after.from);
        }
        if let Some((key, rest)) = self.runs.range_mut(..from).next_back() {
            let before = run((key, rest));
            if before.joins(new) {
                rest.pages += longer;
                return MappedRun { pages: rest.pages, ..before };
            }
        }
        self.runs.insert(from, Rest { to, pages: longer, tag });
        MappedRun { pages: longer, ..new }
    }

    /// Takes `pages` pages from number `from` on away, mapped or not. Returns how many were mapped.
    pub fn unmap(&mut self, from: u64, pages: u64) -> u64 {
        let end = from.saturating_add(pages);
        if end == from {
            return 0;
        }
        let mut removed = 0;
        if let Some((key, rest)) = self.runs.range_mut(..from).next_back() {
            let before = run((key, rest));
            if before.end() > from {
                rest.pages = from - before.from;
                removed += before.end().min(end) - from;
                self.keep_after(before, end);
            }
        }
        while let Some((key, rest)) = self.runs.range(from..end).next() {
            let inside = run((key, rest));
            self.runs.remove(&inside.from);
            removed += inside.end().min(end) - inside.from;
            self.keep_after(inside, end);
        }
        self.pages -= removed;
        removed
    }

    /// Puts back what a run has from `end` on.
    fn keep_after(&mut self, of: MappedRun, end: u64) {
        if let Some(MappedRun { from, to, pages, tag }) = of.clip(end, u64::MAX) {
            self.runs.insert(from, Rest { to, pages, tag });
        }
    }

    /// The run in which a page is.
    pub fn find(&self, page: u64) -> Option<MappedRun> {
        self.runs.range(..=page).next_back().map(run).filter(|r| r.contains(page))
    }

    /// The run in which a page is, or the next one after it.
    pub fn next_at_or_after(&self, page: u64) -> Option<MappedRun> {
        self.find(page).or_else(|| self.runs.range(page..).next().map(run))
    }

    /// The parts of runs that are in the `pages` pages from number `from` on, ascending.
    pub fn within(&self, from: u64, pages: u64) -> impl Iterator<Item = MappedRun> + '_ {
        let end = from.saturating_add(pages);
        let first = self.find(from).map_or(from, |r| r.from);
        self.runs.range(first..end.max(first)).filter_map(move |r| run(r).clip(from, end))
    }

    /// All runs, ascending.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = MappedRun> + '_ {
        self.runs.iter().map(run)
    }

    /// How many runs.
    pub fn len(&self) -> usize {
        self.runs.len()
    }

    /// Whether nothing is mapped.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// How many pages are mapped: the footprint.
    pub const fn pages(&self) -> u64 {
        self.pages
    }

    /// Takes everything away.
    pub fn clear(&mut self) {
        *self = Self::new();
    }
}

impl FromIterator<MappedRun> for RunSet {
    fn from_iter<I: IntoIterator<Item = MappedRun>>(runs: I) -> Self {
        let mut set = Self::new();
        set.extend(runs);
        set
    }
}

impl Extend<MappedRun> for RunSet {
    fn extend<I: IntoIterator<Item = MappedRun>>(&mut self, runs: I) {
        for r in runs {
            self.map(r.from, r.to, r.pages, r.tag);
        }
    }
}

/// What two mappings after another map: gVA to gPA by the first and gPA to hPA by the second give
/// the runs of both dimensions together. Tags are those of the first. Pages whose gPA is not mapped
/// by the second are not mapped.
pub fn compose(first: &RunSet, second: &RunSet) -> RunSet {
    let mut both = RunSet::new();
    for outer in first.iter() {
        for inner in second.within(outer.to, outer.pages) {
            let from = outer.from + (inner.from - outer.to);
            both.map(from, inner.to, inner.pages, outer.tag);
        }
    }
    both
}
