//! Sets of address ranges, and what a process has ever had mapped.

use nestwalk_types::{PageSize, Protection};

/// Disjoint ranges `start..end`, ascending, none of which touch.
#[derive(Clone, Default, Debug, PartialEq, Eq)]
pub struct Ranges(Vec<(u64, u64)>);

impl Ranges {
    /// The range that holds `at`.
    #[inline]
    pub fn find(&self, at: u64) -> Option<(u64, u64)> {
        let after = self.0.partition_point(|r| r.0 <= at);
        let range = *self.0.get(after.checked_sub(1)?)?;
        (at < range.1).then_some(range)
    }
    /// Adds a range, which may touch and overlap others.
    pub fn add(&mut self, start: u64, end: u64) {
        let from = self.0.partition_point(|r| r.1 < start);
        let to = self.0.partition_point(|r| r.0 <= end);
        let joined =
            self.0[from..to].iter().fold((start, end), |sum, r| (sum.0.min(r.0), sum.1.max(r.1)));
        self.0.splice(from..to, [joined]);
    }
    /// Takes a range away. Returns the parts of it that were there.
    pub fn remove(&mut self, start: u64, end: u64) -> Vec<(u64, u64)> {
        let from = self.0.partition_point(|r| r.1 <= start);
        let to = self.0.partition_point(|r| r.0 < end).max(from);
        let gone: Vec<(u64, u64)> =
            self.0[from..to].iter().map(|r| (r.0.max(start), r.1.min(end))).collect();
        let mut rest = Vec::new();
        for r in &self.0[from..to] {
            rest.extend([(r.0, start), (end, r.1)].into_iter().filter(|p| p.0 < p.1));
        }
        self.0.splice(from..to, rest);
        gone
    }
    /// The largest part of `range` around `at` that holds nothing of the set; `at` is in no range.
    pub fn gap(&self, at: u64, range: (u64, u64)) -> (u64, u64) {
        let after = self.0.partition_point(|r| r.0 <= at);
        let before = after.checked_sub(1).and_then(|i| self.0.get(i)).map_or(0, |r| r.1);
        let next = self.0.get(after).map_or(u64::MAX, |r| r.0);
        (range.0.max(before), range.1.min(next))
    }
}

/// A mapping as far as page tables show it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// End.
    pub end: u64,
    /// What some page of it allowed at some time.
    pub protection: Protection,
}

/// Pages that were mapped at some time, with everything that they allowed at some time.
#[derive(Clone, Default, Debug)]
pub struct Pages {
    /// Sorted and disjoint up to `sorted`; the rest as it came.
    pages: Vec<Mapping>,
    sorted: usize,
}

impl Pages {
    /// A page was mapped.
    pub fn add(&mut self, start: u64, bytes: u64, protection: Protection) {
        let end = start + bytes;
        // Kernels fill ranges in order, so most pages continue the one before.
        if let Some(last) = self.pages[self.sorted..].last_mut()
            && last.end == start
            && last.protection == protection
        {
            last.end = end;
            return;
        }
        self.pages.push(Mapping { start, end, protection });
        if self.pages.len() > 2 * self.sorted + 1024 {
            self.sort();
        }
    }

    /// Cuts what overlaps into disjoint pieces, each with all that its pages allowed.
    fn sort(&mut self) {
        let mut edges: Vec<u64> = self.pages.iter().flat_map(|m| [m.start, m.end]).collect();
        edges.sort_unstable();
        edges.dedup();
        // By piece between two edges: what it allows, as bits, and whether it is mapped.
        let mut allowed = vec![0u8; edges.len()];
        for m in &self.pages {
            let from = edges.partition_point(|e| *e < m.start);
            let to = edges.partition_point(|e| *e < m.end);
            let bits = 1 | u8::from(m.protection.write) << 1 | u8::from(m.protection.execute) << 2;
            allowed[from..to].iter_mut().for_each(|a| *a |= bits);
        }
        self.pages.clear();
        for (i, bits) in allowed.iter().enumerate().filter(|(_, bits)| **bits != 0) {
            let protection = Protection { write: bits & 2 != 0, execute: bits & 4 != 0 };
            let (start, end) = (edges[i], edges[i + 1]);
            match self.pages.last_mut() {
                Some(m) if m.end == start && m.protection == protection => m.end = end,
                _ => self.pages.push(Mapping { start, end, protection }),
            }
        }
        self.sorted = self.pages.len();
    }

    /// The mappings that the pages are taken for, ascending. Neighbours of which one is read-only and
    /// the other writable are one writable mapping, since pages that a process only reads look like
    /// that; and so are writable ones with less than 2 MiB that was never touched between them.
    pub fn mappings(mut self) -> Vec<Mapping> {
        self.sort();
        let plain = |m: &Mapping| !m.protection.execute;
        let mut out: Vec<Mapping> = Vec::new();
        for m in self.pages {
            if let Some(last) = out.last_mut()
                && plain(last)
                && plain(&m)
            {
                let gap = m.start - last.end;
                let near = gap < PageSize::SIZE_2M.bytes();
                if gap == 0 || (near && last.protection.write && m.protection.write) {
                    last.end = m.end;
                    last.protection.write |= m.protection.write;
                    continue;
                }
            }
            out.push(m);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nestwalk_types::SplitMix64;
    use std::collections::{BTreeMap, BTreeSet};

    #[test]
    fn ranges_agree_with_a_set_of_pages() {
        let (mut ranges, mut oracle) = (Ranges::default(), BTreeSet::new());
        let mut r = SplitMix64::new(1);
        for _ in 0..20_000 {
            let start = r.below(60);
            let end = start + 1 + r.below(12);
            if r.below(2) == 0 {
                ranges.add(start, end);
                oracle.extend(start..end);
            } else {
                let gone: Vec<u64> =
                    ranges.remove(start, end).into_iter().flat_map(|g| g.0..g.1).collect();
                let expected: Vec<u64> = (start..end).filter(|i| oracle.remove(i)).collect();
                assert_eq!(gone, expected);
            }
            let all: Vec<u64> = ranges.0.iter().flat_map(|r| r.0..r.1).collect();
            assert!(all.iter().eq(oracle.iter()));
            assert!(ranges.0.windows(2).all(|w| w[0].1 < w[1].0), "{ranges:?}");
            let at = r.below(80);
            match ranges.find(at) {
                Some((from, to)) => {
                    assert!((from..to).contains(&at) && (from..to).all(|i| oracle.contains(&i)));
                    assert!(!oracle.contains(&to));
                }
                None => {
                    assert!(!oracle.contains(&at));
                    let (from, to) = ranges.gap(at, (0, 100));
                    assert!((from..to).contains(&at) && !(from..to).any(|i| oracle.contains(&i)));
                    assert!(from == 0 || oracle.contains(&(from - 1)));
                    assert!(to == 100 || oracle.contains(&to));
                }
            }
        }
    }

    #[test]
    fn pages_keep_all_that_they_ever_allowed() {
        let mut r = SplitMix64::new(2);
        for _ in 0..50 {
            let (mut pages, mut oracle) = (Pages::default(), BTreeMap::new());
            for _ in 0..3000 {
                let (start, bytes) = (r.below(3000), 1 + r.below(3));
                let protection = Protection { write: r.below(2) == 0, execute: r.below(9) == 0 };
                pages.add(start, bytes, protection);
                for page in start..start + bytes {
                    let known = oracle.entry(page).or_insert(Protection::READ);
                    known.write |= protection.write;
                    known.execute |= protection.execute;
                }
            }
            pages.sort();
            let all: BTreeMap<u64, Protection> = pages
                .pages
                .iter()
                .flat_map(|m| (m.start..m.end).map(|p| (p, m.protection)))
                .collect();
            assert_eq!(all, oracle);
        }
    }

    #[test]
    fn neighbours_become_one_mapping_where_one_would_do() {
        const MIB: u64 = 1 << 20;
        let mut pages = Pages::default();
        // Text, read-only data, data that was read and data that was written.
        pages.add(0, 4096, Protection::READ_EXECUTE);
        pages.add(4096, 4096, Protection::READ);
        pages.add(8192, 4096, Protection::READ_WRITE);
        pages.add(12288, 4096, Protection::READ);
        // A heap with holes, and something far from it.
        pages.add(16 * MIB, 4096, Protection::READ_WRITE);
        pages.add(17 * MIB, 4096, Protection::READ_WRITE);
        pages.add(20 * MIB, 4096, Protection::READ_WRITE);
        // A hole beside something that is only read stays one.
        pages.add(21 * MIB, 4096, Protection::READ);
        let found: Vec<_> =
            pages.mappings().into_iter().map(|m| (m.start, m.end, m.protection)).collect();
        let (text, data) = (Protection::READ_EXECUTE, Protection::READ_WRITE);
        let expected = [
            (0, 4096, text),
            (4096, 16384, data),
            (16 * MIB, 17 * MIB + 4096, data),
            (20 * MIB, 20 * MIB + 4096, data),
            (21 * MIB, 21 * MIB + 4096, Protection::READ),
        ];
        assert_eq!(found, expected);
    }
}
