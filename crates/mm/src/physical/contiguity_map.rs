//! The contiguity map of CA paging: where free memory is contiguous beyond the largest block of the
//! buddy allocator (Alverti et al., ISCA 2020; the released kernel's `mm/page_alloc.c`).
//!
//! ```text
//! blocks of 4 MiB   | f | f | . | f | f | f | . |        f = free as a whole
//! ranges            [ 2     ]   [ 3         ]
//! first-block tag     2           3
//! last-block tag          2               3
//! ```
//!
//! A range is a maximal row of free blocks. The lengths at both ends are boundary tags, so a
//! block that becomes free finds its neighbours' ranges at once. The tags of first blocks are the
//! leaves of a maximum tree: the range around any block, the next range, the first one that is
//! long enough and the longest are each found in a number of steps that grows with the logarithm
//! of memory, where the kernel walks a list.

use crate::physical::buddy::LINUX_MAX_ORDER;
use std::ops::Range;

/// The map of one zone, with the rover of next-fit placement. Blocks are numbered from the zone's
/// beginning.
#[derive(Clone, Debug)]
pub(crate) struct ContiguityMap {
    /// First frame of block 0.
    base: u64,
    /// Leaves of `tree`, a power of two.
    leaves: usize,
    /// Maximum tree over the lengths of ranges, each at its first block; 0 elsewhere.
    tree: Vec<u32>,
    /// Lengths of ranges, each at its last block; 0 elsewhere.
    last: Vec<u32>,
    /// Block at which the next search begins.
    rover: usize,
}

impl ContiguityMap {
    /// Nothing free, for `frames` frames from `base` on, which is a multiple of a block.
    pub fn new(base: u64, frames: u64) -> Self {
        let leaves = ((frames >> LINUX_MAX_ORDER) as usize + 1).next_power_of_two();
        Self { base, leaves, tree: vec![0; 2 * leaves], last: vec![0; leaves], rover: 0 }
    }

    fn block(&self, frame: u64) -> usize {
        ((frame - self.base) >> LINUX_MAX_ORDER) as usize
    }
    const fn frame(&self, block: usize) -> u64 {
        self.base + ((block as u64) << LINUX_MAX_ORDER)
    }
    fn length(&self, first: usize) -> u32 {
        self.tree.get(self.leaves + first).copied().unwrap_or(0)
    }

    fn set(&mut self, first: usize, length: u32) {
        let mut i = self.leaves + first;
        self.tree[i] = length;
        while i > 1 {
            let most = self.tree[i].max(self.tree[i ^ 1]);
            i >>= 1;
            if self.tree[i] == most {
                return;
            }
            self.tree[i] = most;
        }
    }

    /// The first range that begins at `from` or later and has at least `least` blocks, which is
    /// not 0.
    fn next(&self, from: usize, least: u32) -> Option<usize> {
        if from >= self.leaves {
            return None;
        }
        let mut i = self.leaves + from;
        while self.tree[i] < least {
            // Up until there is a right sibling that has one.
            while i & 1 == 1 {
                i >>= 1;
            }
            if i == 0 {
                return None;
            }
            i += 1;
        }
        while i < self.leaves {
            i *= 2;
            i += usize::from(self.tree[i] < least);
        }
        Some(i - self.leaves)
    }

    /// The last range that begins at `block` or earlier.
    fn previous(&self, block: usize) -> Option<usize> {
        let mut i = self.leaves + block.min(self.leaves - 1);
        while self.tree[i] == 0 {
            while i & 1 == 0 {
                i >>= 1;
            }
            if i == 1 {
                return None;
            }
            i -= 1;
        }
        while i < self.leaves {
            i = 2 * i + usize::from(self.tree[2 * i + 1] > 0);
        }
        Some(i - self.leaves)
    }

    /// The longest range that begins in `blocks`.
    fn most(&self, blocks: Range<usize>) -> u32 {
        let (mut from, mut to) = (self.leaves + blocks.start, self.leaves + blocks.end);
        let mut most = 0;
        while from < to {
            if from & 1 == 1 {
                most = most.max(self.tree[from]);
                from += 1;
            }
            if to & 1 == 1 {
                to -= 1;
                most = most.max(self.tree[to]);
            }
            from >>= 1;
            to >>= 1;
        }
        most
    }

    /// The range around a block that is free.
    fn around(&self, block: usize) -> Option<Range<usize>> {
        let first = self.previous(block)?;
        let end = first + self.length(first) as usize;
        (block < end).then_some(first..end)
    }

    /// The blocks of `frames`, which begin and end with blocks, are free now.
    pub fn add(&mut self, frames: Range<u64>) {
        let (block, end) = (self.block(frames.start), self.block(frames.end));
        let mut first = block;
        let mut length = (end - block) as u32;
        if block > 0 && self.last[block - 1] > 0 {
            first -= self.last[block - 1] as usize;
            length += self.last[block - 1];
            self.last[block - 1] = 0;
        }
        let after = self.length(end);
        if after > 0 {
            length += after;
            self.set(end, 0);
            // As the released kernel does: a rover at the beginning of a range stays there.
            if self.rover == end {
                self.rover = block;
            }
        }
        self.set(first, length);
        self.last[first + length as usize - 1] = length;
    }

    /// The blocks of `frames`, which were free, are not.
    pub fn remove(&mut self, frames: Range<u64>) {
        let (block, end) = (self.block(frames.start), self.block(frames.end));
        let Some(range) = self.around(block) else { return };
        let (before, after) = (block - range.start, range.end.saturating_sub(end));
        self.set(range.start, before as u32);
        self.last[range.end - 1] = after as u32;
        if before > 0 {
            self.last[block - 1] = before as u32;
        }
        if after > 0 {
            self.set(end, after as u32);
        }
    }

    /// Next-fit placement of `pages` pages (`capaging_next_fit_placement`): from the rover on,
    /// the first range with as many, rounded up to blocks; of the range that the rover is in,
    /// what follows the rover counts. If none is long enough, the longest. Returns the first
    /// frame; the rover is then behind what was placed, or at the next range if that used all of
    /// it. Nothing is allocated.
    ///
    /// The released kernel's walk never looks at the range before the rover's, since it uses that
    /// as the head of the circular list; here every range counts.
    pub fn next_fit(&mut self, pages: u64) -> Option<u64> {
        let wanted = pages.div_ceil(1 << LINUX_MAX_ORDER).min(u64::from(u32::MAX)) as u32;
        if wanted == 0 {
            return None;
        }
        let here = match self.around(self.rover) {
            Some(range) => range,
            None => {
                let first = self.next(self.rover, 1).or_else(|| self.next(0, 1))?;
                self.rover = first;
                first..first + self.length(first) as usize
            }
        };
        let rest = (here.end - self.rover) as u32;
        let others = |least: u32| {
            let before = || self.next(0, least).filter(|first| *first < here.start);
            self.next(here.end, least).or_else(before)
        };
        let (chosen, size) = if rest >= wanted {
            (self.rover, rest)
        } else if let Some(first) = others(wanted) {
            (first, self.length(first))
        } else {
            let most = self.most(here.end..self.leaves).max(self.most(0..here.start));
            match others(most.max(1)) {
                Some(first) if most > rest => (first, most),
                _ => (self.rover, rest),
            }
        };
        self.rover = if size > wanted {
            chosen + wanted as usize
        } else {
            self.next(chosen + 1, 1).or_else(|| self.next(0, 1)).unwrap_or(0)
        };
        Some(self.frame(chosen))
    }

    /// The ranges, as frames, ascending.
    #[cfg(test)]
    pub fn ranges(&self) -> Vec<Range<u64>> {
        let mut ranges = Vec::new();
        let mut at = 0;
        while let Some(first) = self.next(at, 1) {
            at = first + self.length(first) as usize;
            ranges.push(self.frame(first)..self.frame(at));
        }
        ranges
    }
    /// First frame of the block at which the next search begins.
    #[cfg(test)]
    pub fn rover(&self) -> u64 {
        self.frame(self.rover)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::physical::buddy::Buddy;
    use nestwalk_types::SplitMix64;

    const BLOCK: u64 = 1 << LINUX_MAX_ORDER;

    /// What the map must hold, from the buddy allocator's free blocks alone.
    fn recount(buddy: &Buddy) -> Vec<Range<u64>> {
        let mut blocks: Vec<_> = buddy.free_ranges().filter(|r| r.end - r.start >= BLOCK).collect();
        blocks.sort_unstable_by_key(|b| b.start);
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for block in blocks {
            match ranges.last_mut() {
                Some(last) if last.end == block.start => last.end = block.end,
                _ => ranges.push(block),
            }
        }
        ranges
    }

    /// Next fit by walking a list, as the kernel does (but for the range that it forgets).
    fn walk(ranges: &[Range<u64>], rover: u64, pages: u64) -> Option<(u64, u64)> {
        let wanted = pages.next_multiple_of(BLOCK);
        let inside = ranges.iter().position(|r| r.contains(&rover));
        let at = inside.or_else(|| ranges.iter().position(|r| r.start >= rover)).unwrap_or(0);
        let rover = if inside.is_some() { rover } else { ranges.get(at)?.start };
        let mut best: Option<(u64, u64, usize)> = None;
        for i in 0..ranges.len() {
            let index = (at + i) % ranges.len();
            let start = if i == 0 { rover } else { ranges[index].start };
            let size = ranges[index].end - start;
            if best.is_none_or(|b| size > b.1) {
                best = Some((start, size, index));
            }
            if size >= wanted {
                break;
            }
        }
        let (start, size, index) = best?;
        let next = ranges[(index + 1) % ranges.len()].start;
        Some((start, if size > wanted { start + wanted } else { next }))
    }

    #[test]
    fn equals_a_recount_after_any_sequence() {
        for seed in 0..60 {
            let mut r = SplitMix64::new(seed);
            let start = r.below(3000);
            let frames = 1 + r.below(40 * BLOCK);
            let mut buddy = Buddy::new(start..start + frames);
            buddy.keep_contiguity_map();
            let mut held: Vec<(u64, u32)> = Vec::new();
            for _ in 0..400 {
                let order = [0, 3, 9, 10, 11, 12][r.below(6) as usize];
                match r.below(5) {
                    0 | 1 => held.extend(buddy.alloc(order).map(|f| (f, order))),
                    2 => {
                        let frame = (start + r.below(frames)) >> order << order;
                        if buddy.alloc_at(frame, order) {
                            held.push((frame, order));
                        }
                    }
                    3 if !held.is_empty() => {
                        let (frame, order) = held.swap_remove(r.below(held.len() as u64) as usize);
                        buddy.free(frame, order).unwrap();
                    }
                    _ => {
                        let pages = 1 + r.below(6 * BLOCK);
                        let map = buddy.contiguity_map().unwrap();
                        let expected = walk(&map.ranges(), map.rover(), pages);
                        let got = buddy.next_fit(pages);
                        let rover = buddy.contiguity_map().unwrap().rover();
                        assert_eq!(got.map(|f| (f, rover)), expected, "seed {seed}");
                    }
                }
                assert_eq!(buddy.contiguity_map().unwrap().ranges(), recount(&buddy), "{seed}");
            }
        }
    }

    /// Blocks 0..16 are free but for those given.
    fn without(used: &[u64]) -> Buddy {
        let mut buddy = Buddy::new(0..16 * BLOCK);
        buddy.keep_contiguity_map();
        used.iter().for_each(|b| assert!(buddy.alloc_at(b * BLOCK, LINUX_MAX_ORDER)));
        buddy
    }
    fn blocks(buddy: &Buddy) -> Vec<(u64, u64)> {
        let ranges = buddy.contiguity_map().unwrap().ranges();
        ranges.into_iter().map(|r| (r.start / BLOCK, r.end / BLOCK)).collect()
    }

    #[test]
    fn ranges_merge_and_split() {
        let mut b = without(&[4, 8]);
        assert_eq!(blocks(&b), [(0, 4), (5, 8), (9, 16)]);
        // One frame of a block is enough to take it out, and the last one back merges both sides.
        assert!(b.alloc_at(6 * BLOCK + 7, 0));
        assert_eq!(blocks(&b), [(0, 4), (5, 6), (7, 8), (9, 16)]);
        b.free(6 * BLOCK + 7, 0).unwrap();
        assert_eq!(blocks(&b), [(0, 4), (5, 8), (9, 16)]);
        b.free(4 * BLOCK, LINUX_MAX_ORDER).unwrap();
        assert_eq!(blocks(&b), [(0, 8), (9, 16)]);
        b.free(8 * BLOCK, LINUX_MAX_ORDER).unwrap();
        assert_eq!(blocks(&b), [(0, 16)]);
    }

    #[test]
    fn the_rover_goes_round_and_only_the_rest_of_its_range_counts() {
        let mut b = without(&[4, 8]);
        let fit = |b: &mut Buddy, blocks: u64| b.next_fit(blocks * BLOCK - 5).unwrap() / BLOCK;
        assert_eq!(fit(&mut b, 2), 0);
        // Blocks 2 and 3 are the rest of the first range: three are found in the next one.
        assert_eq!(fit(&mut b, 3), 5);
        // It was used up, so the rover is at 9; two from there.
        assert_eq!(fit(&mut b, 2), 9);
        assert_eq!(fit(&mut b, 5), 11);
        // The end: round to the beginning.
        assert_eq!(fit(&mut b, 4), 0);
        assert_eq!(b.contiguity_map().unwrap().rover(), 5 * BLOCK);
        // Nothing has eight blocks: the longest.
        assert_eq!(fit(&mut b, 8), 9);
        assert_eq!(b.contiguity_map().unwrap().rover(), 0);
    }

    #[test]
    fn nothing_free_and_nothing_wanted_are_no_place() {
        let mut b = Buddy::new_empty(0..4 * BLOCK);
        b.keep_contiguity_map();
        assert_eq!(b.next_fit(1), None);
        b.add(0..4 * BLOCK);
        assert_eq!(b.next_fit(0), None);
        assert_eq!(b.next_fit(1), Some(0));
    }
}
