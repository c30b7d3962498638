//! What placements need of physical memory beside a free block: a certain block, contiguous room,
//! the order in which Linux hands blocks out, and memory when there is none.

use crate::physical::PhysicalMemory;
use nestwalk_types::Address;

/// Above this order nothing is given up for a request (Linux, `PAGE_ALLOC_COSTLY_ORDER`).
const COSTLY_ORDER: u32 = 3;

impl<O: Address> PhysicalMemory<O> {
    /// The processor on which the kernel runs from now on: single pages come from and go to its
    /// list, if the memory has such lists.
    pub fn set_cpu(&mut self, cpu: u8) {
        self.cpu = usize::from(cpu);
    }

    /// Keeps a contiguity map of each zone from now on.
    pub(crate) fn keep_contiguity_maps(&mut self) {
        self.zones.iter_mut().for_each(|z| z.buddy.keep_contiguity_map());
    }
    /// Hands blocks out as Linux does, for those who ask with [`PhysicalMemory::alloc_as_linux`].
    pub(crate) fn keep_free_lists(&mut self) {
        self.zones.iter_mut().for_each(|z| z.buddy.keep_free_lists());
    }

    /// Zones, which are numbered in the order of allocation.
    pub(crate) fn zone_count(&self) -> usize {
        self.zones.len()
    }
    /// Next-fit placement in a zone: see `ContiguityMap::next_fit`.
    pub(crate) fn next_fit(&mut self, zone: usize, pages: u64) -> Option<u64> {
        self.zones.get_mut(zone)?.buddy.next_fit(pages)
    }
    /// As [`PhysicalMemory::alloc`], in one zone.
    pub(crate) fn alloc_in(&mut self, zone: usize, order: u32) -> Option<u64> {
        self.zones.get_mut(zone)?.buddy.alloc(order)
    }
    /// Takes the block at `frame` if it lies in the zone, is free as a whole, and is part of no
    /// free block above the order `limit`.
    pub(crate) fn take_in(&mut self, zone: usize, frame: u64, order: u32, limit: u32) -> bool {
        let Some(zone) = self.zones.get_mut(zone) else { return false };
        let buddy = &mut zone.buddy;
        let range = buddy.range();
        if frame & ((1 << order) - 1) != 0 || !range.contains(&frame) {
            return false;
        }
        buddy.holder(frame, order).is_some_and(|(_, whole)| whole <= limit)
            && buddy.alloc_at(frame, order)
    }

    /// A block in the order of Linux's lists; single pages from the processor's own. What other
    /// processors' lists hold is used before a single page is refused (`drain_all_pages`).
    pub(crate) fn alloc_as_linux(&mut self, order: u32) -> Option<O> {
        let cpu = self.cpu;
        let take = |memory: &mut Self| {
            memory.zones.iter_mut().find_map(|z| match order {
                0 => z.buddy.alloc_on(cpu),
                _ => z.buddy.alloc_listed(order),
            })
        };
        let frame = take(self)
            .or_else(|| (order <= COSTLY_ORDER && self.drain()).then(|| take(self)).flatten());
        frame.map(|f| O::new(f << 12))
    }

    /// Empties processors' lists; false if they hold nothing.
    pub(crate) fn drain(&mut self) -> bool {
        let held: u64 = self.zones.iter().map(|z| z.buddy.held_frames()).sum();
        for zone in &mut self.zones {
            let drained = zone.buddy.drain();
            debug_assert_eq!(drained, Ok(()));
        }
        held > 0
    }

    /// No block is free: lists of processors are emptied, then reservations are broken, until
    /// there is one.
    #[cold]
    pub(crate) fn alloc_in_need(&mut self, order: u32) -> Option<u64> {
        if order > COSTLY_ORDER {
            return None;
        }
        let find = |memory: &mut Self| memory.zones.iter_mut().find_map(|z| z.buddy.alloc(order));
        if self.drain()
            && let Some(frame) = find(self)
        {
            return Some(frame);
        }
        while self.break_reservation() {
            if let Some(frame) = find(self) {
                return Some(frame);
            }
        }
        None
    }
}
