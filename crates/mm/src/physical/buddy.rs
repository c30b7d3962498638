//! The buddy allocator (Knuth, "The Art of Computer Programming", vol. 1, 2.5; Linux `mm/page_alloc.c`).
//!
//! Free blocks of each order are the set bits of one hierarchical bitmap, so that the block with
//! the lowest address is found in a few loads, any block can be taken out of the middle, and nothing
//! is scanned. Among the orders that fit the smallest is used, as in Linux; within an order the
//! lowest address, which makes a run independent of the history of a free list.

use crate::physical::bitmap::Bitmap;
use crate::physical::contiguity_map::ContiguityMap;
use crate::physical::free_lists::FreeLists;
use std::ops::Range;

/// Largest order that is kept merged: 18, 1 GiB, so that 1 GiB pages can be had.
pub const MAX_ORDER: u32 = 18;
/// Largest order of Linux's allocator on x86-64 (`MAX_PAGE_ORDER`): 10, 4 MiB. The fragmentation
/// indices count in blocks up to this order.
pub const LINUX_MAX_ORDER: u32 = 10;

const ORDERS: usize = MAX_ORDER as usize + 1;

/// Why a block could not be freed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FreeError {
    /// All or a part of it is free already.
    #[error("frame {frame:#x}, order {order}: already free in part or in all")]
    AlreadyFree {
        /// First frame of the block.
        frame: u64,
        /// Its order.
        order: u32,
    },
    /// The block cannot have been allocated here.
    #[error("frame {frame:#x}, order {order}: not an aligned block of frames {first:#x}..{end:#x}")]
    NotABlock {
        /// First frame of the block.
        frame: u64,
        /// Its order.
        order: u32,
        /// First frame of the range.
        first: u64,
        /// One past the last.
        end: u64,
    },
}

/// A buddy allocator over a range of 4 KiB frames.
///
/// Memory: two bits per frame and 1/63 more, 65 MiB for 1 TiB if every part is used. Alignment is
/// that of the frame number itself, not of its distance to the range's beginning.
#[derive(Clone, Debug)]
pub struct Buddy {
    /// The range's first frame, aligned down to the largest block.
    base: u64,
    range: Range<u64>,
    free: Vec<Bitmap>,
    blocks: [u64; ORDERS],
    free_frames: u64,
    /// Kept for CA paging alone.
    contiguity: Option<Box<ContiguityMap>>,
    /// The order in which Linux would hand blocks out, kept for the placement that has it alone.
    pub(crate) lists: Option<Box<FreeLists>>,
}

impl Buddy {
    /// Frames `range`, all free.
    pub fn new(range: Range<u64>) -> Self {
        let mut buddy = Self::new_empty(range.clone());
        buddy.add(range);
        buddy
    }

    /// Frames `range`, none free: for a range with holes, whose parts are [`Buddy::add`]ed.
    pub fn new_empty(range: Range<u64>) -> Self {
        let base = range.start >> MAX_ORDER << MAX_ORDER;
        let frames = range.end.saturating_sub(base);
        let free = (0..=MAX_ORDER).map(|o| Bitmap::new((frames >> o) + 1)).collect();
        let (blocks, contiguity, lists) = ([0; ORDERS], None, None);
        Self { base, range, free, blocks, free_frames: 0, contiguity, lists }
    }

    /// Keeps a map of contiguous free memory from now on.
    pub(crate) fn keep_contiguity_map(&mut self) {
        if self.contiguity.is_some() {
            return;
        }
        let mut map = ContiguityMap::new(self.base, self.range.end.saturating_sub(self.base));
        for block in self.free_ranges().filter(|r| r.end - r.start >= 1 << LINUX_MAX_ORDER) {
            map.add(block);
        }
        self.contiguity = Some(Box::new(map));
    }
    /// See [`ContiguityMap::next_fit`]; `None` without a map as well.
    pub(crate) fn next_fit(&mut self, pages: u64) -> Option<u64> {
        self.contiguity.as_mut()?.next_fit(pages)
    }
    #[cfg(test)]
    pub(crate) fn contiguity_map(&self) -> Option<&ContiguityMap> {
        self.contiguity.as_deref()
    }
    /// First frame of block 0 of every order.
    pub(crate) const fn base(&self) -> u64 {
        self.base
    }
    /// The free blocks of an order.
    pub(crate) fn free_of(&self, order: u32) -> &Bitmap {
        &self.free[order as usize]
    }

    /// Frees those frames of `part` that are in the range, which are not free: memory that was
    /// added, or held back until now.
    pub fn add(&mut self, part: Range<u64>) {
        let (mut at, end) = (part.start.max(self.range.start), part.end.min(self.range.end));
        while at < end {
            let fit = (end - at).ilog2();
            let order = at.trailing_zeros().min(fit).min(MAX_ORDER);
            self.merge(at, order);
            at += 1 << order;
        }
    }

    /// Frames of the range, free or not, holes included.
    pub fn range(&self) -> Range<u64> {
        self.range.clone()
    }
    /// Free frames.
    pub const fn free_frames(&self) -> u64 {
        self.free_frames
    }
    /// Free blocks per order; larger blocks are not counted as smaller ones.
    pub const fn free_blocks(&self) -> &[u64; ORDERS] {
        &self.blocks
    }

    /// Free blocks, as ranges of frames, in no order.
    pub fn free_ranges(&self) -> impl Iterator<Item = Range<u64>> {
        (0u32..).zip(&self.free).flat_map(move |(order, bitmap)| {
            bitmap.iter().map(move |i| {
                let first = self.base + (i << order);
                first..first + (1 << order)
            })
        })
    }

    #[inline]
    fn put(&mut self, frame: u64, order: u32) {
        self.free[order as usize].set((frame - self.base) >> order);
        self.blocks[order as usize] += 1;
    }
    #[inline]
    fn take(&mut self, frame: u64, order: u32) {
        self.free[order as usize].clear((frame - self.base) >> order);
        self.blocks[order as usize] -= 1;
    }
    /// Whether a free block of exactly this order begins there.
    #[inline]
    pub(crate) fn has(&self, frame: u64, order: u32) -> bool {
        self.free[order as usize].test((frame - self.base) >> order)
    }

    fn merge(&mut self, mut frame: u64, mut order: u32) {
        self.free_frames += 1 << order;
        let (part, from) = (frame..frame + (1 << order), order);
        while order < MAX_ORDER {
            let buddy = frame ^ (1 << order);
            if buddy < self.base || !self.has(buddy, order) {
                break;
            }
            self.take(buddy, order);
            frame &= buddy;
            order += 1;
        }
        self.put(frame, order);
        if order >= LINUX_MAX_ORDER
            && let Some(map) = &mut self.contiguity
        {
            map.add(largest_blocks(&part));
        }
        if self.lists.is_some() {
            self.list_freed(frame, (from, order), &largest_blocks(&part));
        }
    }

    /// Takes `frame..frame + 2^order` out of the free block of order `from` that begins at `block`.
    pub(crate) fn carve(&mut self, mut block: u64, mut from: u32, frame: u64, order: u32) {
        self.take(block, from);
        if from >= LINUX_MAX_ORDER
            && let Some(map) = &mut self.contiguity
        {
            map.remove(largest_blocks(&(frame..frame + (1 << order))));
        }
        while from > order {
            from -= 1;
            let upper = block + (1 << from);
            let rest = if frame >= upper { block } else { upper };
            self.put(rest, from);
            if from < LINUX_MAX_ORDER
                && let Some(lists) = &mut self.lists
            {
                lists.push(from, rest - self.base);
            }
            block = if frame >= upper { upper } else { block };
        }
        self.free_frames -= 1 << order;
    }

    /// The smallest free block that fits, of these the one with the lowest address, split down to
    /// `order`; its first frame. `None` if no block is large enough or the order is above
    /// [`MAX_ORDER`].
    pub fn alloc(&mut self, order: u32) -> Option<u64> {
        let from = (order..=MAX_ORDER).find(|&o| self.blocks[o as usize] > 0)?;
        let block = self.base + (self.free[from as usize].first()? << from);
        self.carve(block, from, block, order);
        Some(block)
    }

    /// Takes exactly the block of `order` that begins at `frame`; `false`, and nothing is taken, if
    /// it is not free as a whole or no aligned block of the range.
    pub fn alloc_at(&mut self, frame: u64, order: u32) -> bool {
        if !self.is_block(frame, order) {
            return false;
        }
        match self.holder(frame, order) {
            Some((block, from)) => {
                self.carve(block, from, frame, order);
                true
            }
            None => false,
        }
    }

    /// The free block of at least `order` that holds `frame`, and its order.
    pub(crate) fn holder(&self, frame: u64, order: u32) -> Option<(u64, u32)> {
        (order..=MAX_ORDER)
            .map(|o| (frame >> o << o, o))
            .find(|&(block, o)| block >= self.base && self.has(block, o))
    }

    fn is_block(&self, frame: u64, order: u32) -> bool {
        order <= MAX_ORDER
            && frame & ((1 << order) - 1) == 0
            && frame >= self.range.start
            && frame < self.range.end
            && (1 << order) <= self.range.end - frame
    }

    /// Whether the frame is free.
    pub fn is_free(&self, frame: u64) -> bool {
        self.range.contains(&frame) && self.holder(frame, 0).is_some()
    }

    /// Gives a block back and merges it with its free buddies. A part of an allocated block may be
    /// freed alone, as Linux does with pages that it has split.
    ///
    /// # Errors
    /// The block, or a part of it, is free already, or it is no aligned block of the range.
    pub fn free(&mut self, frame: u64, order: u32) -> Result<(), FreeError> {
        if !self.is_block(frame, order) {
            let Range { start: first, end } = self.range;
            return Err(FreeError::NotABlock { frame, order, first, end });
        }
        let index = frame - self.base;
        let inside = (0..order).any(|o| self.free[o as usize].any(index >> o, order - o));
        if inside || self.holder(frame, order).is_some() {
            return Err(FreeError::AlreadyFree { frame, order });
        }
        self.merge(frame, order);
        Ok(())
    }

    /// Free blocks up to [`LINUX_MAX_ORDER`], larger ones counted as several of that order, and how
    /// many blocks of `order` could be had.
    fn linux_blocks(&self, order: u32) -> (u64, u64) {
        let (mut total, mut suitable) = (0, 0);
        for (o, &n) in (0u32..).zip(&self.blocks) {
            total += n << o.saturating_sub(LINUX_MAX_ORDER);
            if o >= order {
                suitable += n << (o - order);
            }
        }
        (total, suitable)
    }

    /// Free-memory fragmentation index as evaluations report it: the share of free memory that
    /// cannot serve a request of `order`, 0 (none) to 1. This is the "unusable free space index" of
    /// Gorman and Whitcroft, "The What, The Why and the Where To of Anti-Fragmentation", OLS 2006,
    /// and Linux's `unusable_free_index` (`mm/vmstat.c`). 1 if nothing is free.
    pub fn fmfi(&self, order: u32) -> f64 {
        if self.free_frames == 0 {
            return 1.0;
        }
        let (_, suitable) = self.linux_blocks(order);
        (self.free_frames - (suitable << order)) as f64 / self.free_frames as f64
    }

    /// Why a request of `order` would fail: towards 0 for lack of memory, towards 1 because of
    /// fragmentation; `None` if it would not fail. Linux's `fragmentation_index` (`mm/vmstat.c`),
    /// without its rounding to thousandths; 0 if nothing is free.
    pub fn fragmentation_index(&self, order: u32) -> Option<f64> {
        let (total, suitable) = self.linux_blocks(order);
        if suitable > 0 {
            return None;
        }
        if total == 0 {
            return Some(0.0);
        }
        let wanted = self.free_frames as f64 / (1u64 << order) as f64;
        Some(1.0 - (1.0 + wanted) / total as f64)
    }
}

/// The blocks of [`LINUX_MAX_ORDER`] that a block is made of, or the one that it is a part of.
const fn largest_blocks(block: &Range<u64>) -> Range<u64> {
    let mask = (1 << LINUX_MAX_ORDER) - 1;
    block.start & !mask..(block.end + mask) & !mask
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// One flag per frame; everything is found by scanning.
    struct Naive(u64, Vec<bool>);
    impl Naive {
        fn all_free(&self, frame: u64, order: u32) -> bool {
            let (first, n) = ((frame - self.0) as usize, 1usize << order);
            first + n <= self.1.len() && self.1[first..first + n].iter().all(|f| *f)
        }
        fn fill(&mut self, frame: u64, order: u32, value: bool) {
            let first = (frame - self.0) as usize;
            self.1[first..first + (1 << order)].fill(value);
        }
        /// Maximal aligned free blocks: what complete merging must leave.
        fn blocks(&self) -> Vec<(u64, u32)> {
            let (mut out, mut at) = (Vec::new(), self.0);
            while at < self.0 + self.1.len() as u64 {
                let fits = |o: &u32| at & ((1 << o) - 1) == 0 && self.all_free(at, *o);
                match (0..=MAX_ORDER).rev().find(fits) {
                    Some(o) => {
                        out.push((at, o));
                        at += 1 << o;
                    }
                    None => at += 1,
                }
            }
            out
        }
        /// Smallest block that fits, lowest address.
        fn best(&self, order: u32) -> Option<u64> {
            let fits = self.blocks().into_iter().filter(|b| b.1 >= order);
            fits.min_by_key(|&(frame, o)| (o, frame)).map(|b| b.0)
        }
    }

    fn check(buddy: &Buddy, naive: &Naive) {
        let mut counts = [0; ORDERS];
        naive.blocks().iter().for_each(|b| counts[b.1 as usize] += 1);
        assert_eq!(buddy.free_blocks(), &counts);
        assert_eq!(buddy.free_frames(), naive.1.iter().filter(|f| **f).count() as u64);
        for (i, free) in naive.1.iter().enumerate() {
            assert_eq!(buddy.is_free(naive.0 + i as u64), *free);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn does_what_the_naive_oracle_does(
            start in 0u64..700, frames in 1u64..1500,
            steps in prop::collection::vec((0u8..4, any::<u64>(), 0u32..11), 1..60),
        ) {
            let mut buddy = Buddy::new(start..start + frames);
            let mut naive = Naive(start, vec![true; frames as usize]);
            let mut held: Vec<(u64, u32)> = Vec::new();
            for (what, place, order) in steps {
                match what {
                    0 | 1 => {
                        let got = buddy.alloc(order);
                        prop_assert_eq!(got, naive.best(order));
                        held.extend(got.map(|f| (f, order)));
                        if let Some(f) = got { naive.fill(f, order, false); }
                    }
                    2 => {
                        let frame = (start + place % frames) >> order << order;
                        let ok = frame >= start && naive.all_free(frame, order);
                        prop_assert_eq!(buddy.alloc_at(frame, order), ok);
                        if ok { naive.fill(frame, order, false); held.push((frame, order)); }
                    }
                    _ if !held.is_empty() => {
                        let (frame, order) = held.swap_remove(place as usize % held.len());
                        buddy.free(frame, order).unwrap();
                        naive.fill(frame, order, true);
                        for o in 0..=order {
                            let again = buddy.free(frame, o);
                            prop_assert_eq!(again, Err(FreeError::AlreadyFree { frame, order: o }));
                        }
                    }
                    _ => {}
                }
                check(&buddy, &naive);
            }
            for (frame, order) in held { buddy.free(frame, order).unwrap(); }
            let fresh = Buddy::new(start..start + frames);
            prop_assert_eq!(buddy.free_blocks(), fresh.free_blocks());
        }
    }

    #[test]
    fn wrong_frees_are_refused() {
        let mut b = Buddy::new(0x100..0x500);
        assert!(matches!(b.free(0x100, 0), Err(FreeError::AlreadyFree { .. })));
        assert!(matches!(b.free(0xff, 0), Err(FreeError::NotABlock { .. })));
        assert!(matches!(b.free(0x500, 0), Err(FreeError::NotABlock { .. })));
        let block = b.alloc(4).unwrap();
        assert!(matches!(b.free(block + 1, 4), Err(FreeError::NotABlock { .. })));
        b.free(block + 3, 0).unwrap();
        // Partly free: the whole block must be refused, the rest not.
        assert!(matches!(b.free(block, 4), Err(FreeError::AlreadyFree { .. })));
        b.free(block, 1).unwrap();
    }

    #[test]
    fn one_tebibyte_starts_at_once_and_holds_1024_large_blocks() {
        let started = std::time::Instant::now();
        let mut b = Buddy::new(0..1 << 28);
        assert_eq!((b.free_blocks()[18], b.free_frames()), (1024, 1 << 28));
        assert_eq!(b.alloc(0), Some(0));
        assert_eq!(b.alloc(18), Some(1 << 18));
        // Measured below 1 ms; the bound only catches a scan of every frame.
        assert!(started.elapsed().as_millis() < 500);
        let words: usize = b.free.iter().flat_map(|m| m.words()).sum();
        assert!(words * 8 < 100 << 20, "{words} words");
    }

    #[test]
    fn the_indices_are_linux_s() {
        let mut b = Buddy::new(0..1024);
        assert_eq!(b.fragmentation_index(9), None);
        assert!(b.fmfi(9) < 1e-9);
        // Every second frame is free: 512 blocks of order 0.
        (0..1024).for_each(|f| assert!(b.alloc_at(f, 0)));
        assert!((b.fmfi(9) - 1.0).abs() < 1e-9);
        assert_eq!(b.fragmentation_index(9), Some(0.0));
        (0..1024).step_by(2).for_each(|f| b.free(f, 0).unwrap());
        assert!((b.fmfi(9) - 1.0).abs() < 1e-9 && b.fmfi(0) < 1e-9);
        // 1 - (1 + 512/512)/512
        let index = b.fragmentation_index(9).unwrap();
        assert!((index - (1.0 - 2.0 / 512.0)).abs() < 1e-12);
    }
}
