//! The order in which Linux hands free blocks out: free lists per order, last in, first out, and
//! lists of single pages per processor in front of them (Linux 4.19, `mm/page_alloc.c`).
//!
//! ```text
//! list of an order    head | blocks freed or split off since | blocks free from the beginning | tail
//!                            a stack, newest first             highest address first            a queue
//! ```
//!
//! - At boot, `__free_pages_memory` frees memory upwards in blocks of 4 MiB, each to the head of
//!   its list, so the list begins with the highest address. (Kernels since 5.10 free to the tail
//!   at boot.)
//! - `__free_one_page` puts what was freed, after merging, to the head; to the tail if the buddy
//!   of the block one order up is free, so that both soon merge. `expand` puts the upper halves
//!   of what it splits to the head.
//! - Single pages go through a list per processor (`rmqueue_pcplist`, `free_unref_page_commit`):
//!   filled by a batch from the free lists when it is empty, in the order in which they come;
//!   freed pages to its head; a batch from its tail goes back when it holds six batches.
//!
//! Blocks that were free from the beginning are listed nowhere: they are the free blocks below a
//! position in the allocator's bitmap. The stacks and queues are checked when they are read: a
//! block that was merged or taken meanwhile is passed over. So memory is needed for what has
//! changed only. One inexactness follows: a block that goes to the tail while an older mention of
//! it stands in the stack is found there.

use crate::physical::buddy::{Buddy, FreeError, LINUX_MAX_ORDER};
use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;

const LISTS: usize = LINUX_MAX_ORDER as usize + 1;

/// Pages that move between a processor's list and the free lists at a time (`zone_batchsize`,
/// Linux 4.19): a quarter of a thousandth of the zone, or of 1 MiB if that is less, times 1.5,
/// rounded down to a power of two, less one: 63 from 1 GiB on.
pub(crate) fn batch(zone_frames: u64) -> u64 {
    let quarter = ((zone_frames / 1024).min(256) / 4).max(1);
    (1 << (quarter + quarter / 2).ilog2()) - 1
}

/// A processor's list holds so many batches before one goes back (`pageset_set_batch`).
pub(crate) const BATCHES: u64 = 6;

/// What of the lists of one zone cannot be read from the allocator's bitmaps. Frames count from the
/// allocator's base; those of the highest order are blocks of 4 MiB, merged further or not.
#[derive(Clone, Debug, Default)]
pub(crate) struct FreeLists {
    heads: [Vec<u32>; LISTS],
    /// Free blocks below this number have been free from the beginning, or are listed.
    untouched: [u64; LISTS],
    tails: [VecDeque<u32>; LISTS],
    processors: Vec<VecDeque<u32>>,
    /// Frames on the processors' lists.
    pub held: u64,
    batch: u64,
}

impl FreeLists {
    /// A block was split off: it goes to the head.
    #[inline]
    pub fn push(&mut self, order: u32, frame: u64) {
        self.heads[order as usize].push(frame as u32);
    }

    fn processor(&mut self, cpu: usize) -> &mut VecDeque<u32> {
        if cpu >= self.processors.len() {
            self.processors.resize_with(cpu + 1, VecDeque::new);
        }
        &mut self.processors[cpu]
    }
}

impl Buddy {
    /// Keeps Linux's lists from now on.
    pub(crate) fn keep_free_lists(&mut self) {
        if self.lists.is_none() {
            let frames = self.range().end - self.base();
            let mut lists = FreeLists { batch: batch(frames).max(1), ..FreeLists::default() };
            lists.untouched = std::array::from_fn(|o| (frames >> o) + 1);
            self.lists = Some(Box::new(lists));
        }
    }

    /// Frames on processors' lists.
    pub(crate) fn held_frames(&self) -> u64 {
        self.lists.as_ref().map_or(0, |l| l.held)
    }

    /// A block was freed and merged from order `from` to this: `blocks` are those of the highest
    /// order that it is, is made of, or lies in.
    pub(crate) fn list_freed(
        &mut self,
        frame: u64,
        (from, order): (u32, u32),
        blocks: &Range<u64>,
    ) {
        let (base, largest) = (self.base(), LINUX_MAX_ORDER);
        let above = frame >> (order + 1) << (order + 1);
        let neighbour = above ^ (1 << (order + 1));
        let soon = order + 1 < largest && neighbour >= base && self.has(neighbour, order + 1);
        let Some(lists) = &mut self.lists else { return };
        if order >= largest {
            let step = 1usize << largest;
            let all = blocks.clone().step_by(step).map(|f| (f - base) as u32);
            lists.heads[largest as usize].extend(all);
        } else if soon {
            lists.tails[order as usize].push_back((frame - base) as u32);
        } else {
            lists.push(order, frame - base);
        }
        (from..=order).take_while(|o| *o <= largest).for_each(|o| self.shorten(o));
    }

    /// Whether a block that a list names is on it.
    fn is_listed(&self, frame: u32, order: u32) -> bool {
        let frame = self.base() + u64::from(frame);
        if order == LINUX_MAX_ORDER {
            self.holder(frame, order).is_some()
        } else {
            self.has(frame, order)
        }
    }

    /// Drops old mentions once most of a list is such.
    fn shorten(&mut self, order: u32) {
        let i = order as usize;
        let live: u64 = match order {
            LINUX_MAX_ORDER => self.free_frames() >> order,
            _ => self.free_blocks()[i],
        };
        let Some(lists) = &mut self.lists else { return };
        let length = lists.heads[i].len() + lists.tails[i].len();
        if (length as u64) < 4096 + 4 * live {
            return;
        }
        let (head, tail) =
            (std::mem::take(&mut lists.heads[i]), std::mem::take(&mut lists.tails[i]));
        let mut seen = BTreeSet::new();
        let mut keep = |f: &u32| self.is_listed(*f, order) && seen.insert(*f);
        // The newest mention counts: the last one of the stack.
        let mut head: Vec<u32> = head.into_iter().rev().filter(&mut keep).collect();
        head.reverse();
        let tail = tail.into_iter().filter(&mut keep).collect();
        if let Some(lists) = &mut self.lists {
            (lists.heads[i], lists.tails[i]) = (head, tail);
        }
    }

    /// The first block on a list.
    fn first_listed(&mut self, order: u32) -> Option<u64> {
        let (base, i) = (self.base(), order as usize);
        while let Some(frame) = self.lists.as_mut()?.heads[i].pop() {
            if self.is_listed(frame, order) {
                return Some(base + u64::from(frame));
            }
        }
        let end = self.lists.as_ref()?.untouched[i];
        let found = self.last_free_block(order, end);
        self.lists.as_mut()?.untouched[i] = found.unwrap_or(0);
        if let Some(block) = found {
            return Some(base + (block << order));
        }
        while let Some(frame) = self.lists.as_mut()?.tails[i].pop_front() {
            if self.is_listed(frame, order) {
                return Some(base + u64::from(frame));
            }
        }
        None
    }

    /// The highest block of a list's order that is free and has a number below `end`. Those of
    /// the highest order may be parts of larger ones.
    fn last_free_block(&self, order: u32, end: u64) -> Option<u64> {
        if order < LINUX_MAX_ORDER {
            return self.free_of(order).last_below(end);
        }
        let last = |o: u32| {
            let more = o - order;
            // The block of that order which holds the last number, and what follows it, count.
            let block = self.free_of(o).last_below(end.div_ceil(1 << more))?;
            Some(((block + 1) << more).min(end) - 1)
        };
        (order..=crate::MAX_ORDER).filter_map(last).max()
    }

    /// A block as `__rmqueue_smallest` takes it: the first of the shortest list that has one.
    pub(crate) fn alloc_listed(&mut self, order: u32) -> Option<u64> {
        if order > LINUX_MAX_ORDER {
            return self.alloc(order);
        }
        for from in order..=LINUX_MAX_ORDER {
            if from < LINUX_MAX_ORDER && self.free_blocks()[from as usize] == 0 {
                continue;
            }
            if let Some(frame) = self.first_listed(from)
                && let Some((block, whole)) = self.holder(frame, from)
            {
                self.carve(block, whole, frame, order);
                return Some(frame);
            }
        }
        None
    }

    /// A single page from a processor's list, which is filled first if it is empty.
    pub(crate) fn alloc_on(&mut self, cpu: usize) -> Option<u64> {
        let (base, batch) = (self.base(), self.lists.as_ref()?.batch);
        if self.lists.as_mut()?.processor(cpu).is_empty() {
            for _ in 0..batch {
                let Some(frame) = self.alloc_listed(0) else { break };
                let lists = self.lists.as_mut()?;
                lists.processor(cpu).push_back((frame - base) as u32);
                lists.held += 1;
            }
        }
        let lists = self.lists.as_mut()?;
        let frame = lists.processor(cpu).pop_front()?;
        lists.held -= 1;
        Some(base + u64::from(frame))
    }

    /// Frees a single page to a processor's list.
    ///
    /// # Errors
    /// The page, or one that makes room for it, is free already or none of the zone's.
    pub(crate) fn free_on(&mut self, cpu: usize, frame: u64) -> Result<(), FreeError> {
        let (base, known) = (self.base(), self.range().contains(&frame));
        let Some(lists) = self.lists.as_mut().filter(|_| known) else {
            return self.free(frame, 0);
        };
        let (batch, list) = (lists.batch, lists.processor(cpu));
        list.push_front((frame - base) as u32);
        let back = if list.len() as u64 >= BATCHES * batch { batch } else { 0 };
        let back: Vec<u32> = (0..back).filter_map(|_| list.pop_back()).collect();
        lists.held += 1;
        lists.held -= back.len() as u64;
        back.into_iter().try_for_each(|f| self.free(base + u64::from(f), 0))
    }

    /// Everything on processors' lists goes back (`drain_all_pages`).
    ///
    /// # Errors
    /// As [`Buddy::free_on`].
    pub(crate) fn drain(&mut self) -> Result<(), FreeError> {
        let base = self.base();
        let Some(lists) = &mut self.lists else { return Ok(()) };
        lists.held = 0;
        let all: Vec<u32> = lists.processors.iter_mut().flat_map(|p| p.drain(..).rev()).collect();
        all.into_iter().try_for_each(|f| self.free(base + u64::from(f), 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nestwalk_types::SplitMix64;

    const BLOCK: u64 = 1 << LINUX_MAX_ORDER;

    /// Lists as they are: doubly linked in the kernel, vectors here; the head is at the end. Blocks
    /// merge up to 4 MiB.
    struct Naive {
        lists: [Vec<u64>; LISTS],
    }

    impl Naive {
        fn boot(frames: u64) -> Self {
            let mut lists: [Vec<u64>; LISTS] = Default::default();
            lists[LISTS - 1] = (0..frames / BLOCK).map(|b| b * BLOCK).collect();
            Self { lists }
        }
        fn alloc(&mut self, order: usize) -> Option<u64> {
            let mut from = (order..LISTS).find(|o| !self.lists[*o].is_empty())?;
            let block = self.lists[from].pop()?;
            while from > order {
                from -= 1;
                self.lists[from].push(block + (1 << from));
            }
            Some(block)
        }
        fn free(&mut self, mut frame: u64, mut order: usize) {
            while order + 1 < LISTS {
                let buddy = frame ^ (1 << order);
                let Some(i) = self.lists[order].iter().position(|f| *f == buddy) else { break };
                self.lists[order].remove(i);
                frame &= buddy;
                order += 1;
            }
            let above = frame >> (order + 1) << (order + 1);
            let neighbour = above ^ (1 << (order + 1));
            if order + 2 < LISTS && self.lists[order + 1].contains(&neighbour) {
                self.lists[order].insert(0, frame);
            } else {
                self.lists[order].push(frame);
            }
        }
    }

    #[test]
    fn blocks_come_as_from_linked_lists() {
        let mut differences = (0, 0);
        for seed in 0..40 {
            let mut r = SplitMix64::new(seed);
            let frames = 24 * BLOCK;
            let mut buddy = Buddy::new(0..frames);
            buddy.keep_free_lists();
            let mut naive = Naive::boot(frames);
            let mut held: Vec<(u64, u32)> = Vec::new();
            for _ in 0..600 {
                let order = [0, 0, 0, 1, 4, 9, 10][r.below(7) as usize];
                if r.below(5) < 3 || held.is_empty() {
                    let got = buddy.alloc_listed(order);
                    let wanted = naive.alloc(order as usize);
                    assert_eq!(got.is_some(), wanted.is_some());
                    differences.1 += 1;
                    if got != wanted {
                        // An old mention was found. From here on the two have different states.
                        differences.0 += 1;
                        break;
                    }
                    held.extend(got.map(|f| (f, order)));
                } else {
                    let (frame, order) = held.swap_remove(r.below(held.len() as u64) as usize);
                    buddy.free(frame, order).unwrap();
                    naive.free(frame, order as usize);
                }
            }
        }
        assert!(differences.0 <= 4 && differences.1 > 8000, "{differences:?}");
    }

    #[test]
    fn the_first_blocks_are_the_highest_and_are_used_upwards() {
        let mut b = Buddy::new(0..300 * BLOCK);
        b.keep_free_lists();
        let pages: Vec<u64> = (0..3 * BLOCK).filter_map(|_| b.alloc_listed(0)).collect();
        for (i, page) in (0u64..).zip(pages) {
            assert_eq!(page, (299 - i / BLOCK) * BLOCK + i % BLOCK);
        }
    }

    #[test]
    fn processors_take_batches_in_turn_and_get_their_own_back() {
        let mut b = Buddy::new(0..300 * BLOCK);
        b.keep_free_lists();
        let first = 299 * BLOCK;
        assert_eq!(b.alloc_on(0), Some(first));
        assert_eq!(b.alloc_on(1), Some(first + 63));
        assert_eq!(b.alloc_on(0), Some(first + 1));
        assert_eq!(b.held_frames(), 61 + 62);
        b.free_on(1, first).unwrap();
        assert_eq!(b.alloc_on(1), Some(first));
        b.drain().unwrap();
        assert_eq!((b.held_frames(), b.free_frames()), (0, 300 * BLOCK - 3));
        // At six batches, one goes back.
        let pages: Vec<u64> = (0..6 * 63).filter_map(|_| b.alloc_listed(0)).collect();
        let free = b.free_frames();
        for (i, page) in pages.into_iter().enumerate() {
            b.free_on(3, page).unwrap();
            assert_eq!(b.free_frames() - free, if i < 377 { 0 } else { 63 });
        }
    }

    #[test]
    fn batches_are_linux_s() {
        for (mib, pages) in [(64, 3), (128, 7), (256, 15), (512, 31), (1024, 63), (65536, 63)] {
            assert_eq!(batch(mib << 8), pages, "{mib} MiB");
        }
    }

    #[test]
    fn stacks_stay_short() {
        let mut b = Buddy::new(0..4 * BLOCK);
        b.keep_free_lists();
        for _ in 0..100_000 {
            let page = b.alloc_listed(0).unwrap();
            b.free(page, 0).unwrap();
        }
        let lists = b.lists.as_ref().unwrap();
        assert!(lists.heads.iter().all(|h| h.len() < 5000));
    }
}
