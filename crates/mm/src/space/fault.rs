//! Faults: first touch, copy-on-write, and populating.

use crate::error::MmError;
use crate::placement::Request;
use crate::space::region::Taken;
use crate::space::swap::is_swapped;
use crate::space::{
    Access, AddressSpace, Flush, Mapped, Memory, Observer, Spot, Vma, out_of_memory,
};
use nestwalk_tables::{Entry, entry};
use nestwalk_types::{Address, PageSize, Protection};

/// Index of a page size in [`crate::space::Counters::leaves`].
pub(crate) const fn size_index(size: PageSize) -> usize {
    match size.shift() {
        0..=12 => 0,
        13..=21 => 1,
        22 => 2,
        _ => 3,
    }
}

impl<I: Address, O: Address> AddressSpace<I, O> {
    /// Answers a fault as Linux's `handle_mm_fault` does: maps a cleared page, copies or reuses a
    /// page that was shared, or finds that there is nothing to do.
    ///
    /// The accessed bit of a new leaf is set, its dirty bit for a store. A leaf is writable if the
    /// mapping is.
    ///
    /// # Errors
    /// No mapping at the address, one that forbids the access, an address outside of the mode's
    /// range, or no free frame.
    pub fn fault(
        &mut self,
        memory: &mut Memory<O>,
        address: I,
        access: Access,
        observer: &mut impl Observer<I, O>,
    ) -> Result<Mapped<O>, MmError> {
        let plain = self.plain(address)?;
        let spot = self.spot(memory, plain, 1);
        self.fault_at(memory, plain, spot, access, observer)
    }

    /// Makes every page of the range present and writes to it once (`MADV_POPULATE_WRITE`).
    /// Returns the number of pages that were not ready before.
    ///
    /// # Errors
    /// As [`AddressSpace::fault`] for a store; pages before the address stay populated.
    pub fn populate(
        &mut self,
        memory: &mut Memory<O>,
        start: I,
        bytes: u64,
        observer: &mut impl Observer<I, O>,
    ) -> Result<u64, MmError> {
        let (mut at, end) = self.range(start, bytes)?;
        let mut count = 0;
        while at < end {
            let spot = self.spot(memory, at, 1);
            let size = if spot.entry.has(entry::PRESENT | entry::WRITE) {
                self.config.mode.span(spot.level)
            } else {
                count += 1;
                self.fault_at(memory, at, spot, Access::WRITE, observer)?.size
            };
            at = (at & !size.mask()) + size.bytes();
        }
        Ok(count)
    }

    fn fault_at(
        &mut self,
        memory: &mut Memory<O>,
        address: u64,
        spot: Spot<O>,
        access: Access,
        observer: &mut impl Observer<I, O>,
    ) -> Result<Mapped<O>, MmError> {
        let named = self.typed(address).value();
        let Some(vma) = self.vmas.find(address) else {
            return Err(MmError::NoMapping { space: I::SPACE, address: named });
        };
        if !access.allowed_by(vma.protection) {
            let (space, protection) = (I::SPACE, vma.protection);
            return Err(MmError::Protection { space, address: named, access, protection });
        }
        if !spot.entry.is_present() {
            self.first_touch(memory, address, spot, vma, access.write, observer)
        } else if access.write && !spot.entry.has(entry::WRITE) {
            self.write_protected(memory, address, spot, vma, observer)
        } else {
            // The processor, which tries again now, sets the bits; a VMM's access is like it.
            let write = if access.write { entry::DIRTY } else { 0 };
            memory.tables.set_bits(spot.at, entry::ACCESSED | write);
            Ok(self.mapped(spot, false))
        }
    }

    /// A range was mapped, which was in no mapping before: the placement learns of it, and makes
    /// its pages present if it is one that does.
    ///
    /// # Errors
    /// No frame for a page or a table.
    pub(super) fn placement_mapped(
        &mut self,
        memory: &mut Memory<O>,
        (start, end): (u64, u64),
        observer: &mut impl Observer<I, O>,
    ) -> Result<(), MmError> {
        self.placement.mapped(&mut memory.physical, start, end);
        if !self.placement.fills() {
            return Ok(());
        }
        let before = memory.counters.data_frames;
        self.filling = true;
        let filled = self.fill(memory, start, end, observer);
        self.filling = false;
        self.placement.filled(&mut memory.physical);
        let counters = &mut memory.counters;
        let frames = counters.data_frames - before;
        counters.most_at_once = counters.most_at_once.max(frames);
        filled
    }

    /// Makes the pages of a range present that the placement has frames for.
    fn fill(
        &mut self,
        memory: &mut Memory<O>,
        start: u64,
        end: u64,
        observer: &mut impl Observer<I, O>,
    ) -> Result<(), MmError> {
        let mut at = start;
        while at < end && self.placement.has_frame(at) {
            let spot = self.spot(memory, at, 1);
            let size = if spot.entry.is_present() {
                self.config.mode.span(spot.level)
            } else {
                let named = self.typed(at).value();
                let Some(vma) = self.vmas.find(at) else {
                    return Err(MmError::NoMapping { space: I::SPACE, address: named });
                };
                self.first_touch(memory, at, spot, vma, vma.protection.write, observer)?.size
            };
            at = (at & !size.mask()) + size.bytes();
        }
        Ok(())
    }

    pub(super) fn mapped(&self, spot: Spot<O>, fresh: bool) -> Mapped<O> {
        let size = self.config.mode.span(spot.level);
        let Spot { at, entry, .. } = spot;
        Mapped { at, entry, frame: entry.frame(size), size, fresh }
    }

    fn place(
        &mut self,
        memory: &mut Memory<O>,
        address: u64,
        size: PageSize,
        vma: Vma,
        copy: bool,
    ) -> Option<O> {
        let page = address & !size.mask();
        let taken = self.region.as_mut().map(|r| r.take(page >> 12, size));
        match taken {
            Some(Taken::Frame(frame)) => {
                memory.counters.add_data(size);
                memory.counters.reserved_frames -= size.base_pages();
                return Some(O::new(frame << 12));
            }
            Some(Taken::Smaller) => return None,
            Some(Taken::Elsewhere) | None => {}
        }
        let request = Request { page, size, vma_start: vma.start, vma_end: vma.end, copy };
        let placed = self.placement.place(&mut memory.physical, &request)?;
        memory.counters.add_data(size);
        memory.counters.count(placed.outcome);
        Some(placed.frame)
    }

    /// Maps a cleared page of the largest size that is allowed, fits and is free. As in Linux the
    /// tables down to the leaf's level come before the page.
    fn first_touch(
        &mut self,
        memory: &mut Memory<O>,
        address: u64,
        mut spot: Spot<O>,
        vma: Vma,
        write: bool,
        observer: &mut impl Observer<I, O>,
    ) -> Result<Mapped<O>, MmError> {
        let sizes = self.sizes;
        for &(size, level) in sizes.get() {
            let fits = level <= spot.level && vma.covers(address, size.bytes());
            if !fits || !self.placement.offers(size) {
                continue;
            }
            if spot.level > level {
                spot = self.descend(memory, address, level, observer)?;
            }
            // A page of the swap device comes back from there.
            let swapped = level == 1 && is_swapped(spot.entry);
            let shares_zero = !write && !self.filling && !swapped && !self.in_region(address);
            if let (1, true, Some(zero)) = (level, shares_zero, memory.zero_frame) {
                let protection = Protection { write: false, ..vma.protection };
                let leaf =
                    Entry::leaf(zero, protection, false).with(entry::ACCESSED | entry::SOFT_COW);
                return Ok(self.map_leaf(memory, Spot { entry: leaf, ..spot }, observer));
            }
            if let Some(frame) = self.place(memory, address, size, vma, false) {
                observer.page_cleared(frame, size);
                if let Some(swap) = memory.swap.as_mut().filter(|_| swapped) {
                    swap.read(spot.entry, frame.page_number());
                }
                let used = match (self.filling, write) {
                    (true, _) => 0,
                    (false, true) => entry::ACCESSED | entry::DIRTY,
                    (false, false) => entry::ACCESSED,
                };
                let leaf = Entry::leaf(frame, vma.protection, level > 1).with(used);
                let mapped = self.map_leaf(memory, Spot { entry: leaf, ..spot }, observer);
                return Ok(self.joined(memory, address, mapped, observer));
            }
            memory.counters.fallbacks += u64::from(level > 1);
        }
        // Frames that are set aside and hold nothing are better given to those who need one.
        if self.region.as_ref().is_some_and(|r| r.held() > 0) {
            self.drop_region(memory, observer);
            return self.first_touch(memory, address, spot, vma, write, observer);
        }
        Err(out_of_memory::<I>(self.typed(address).value()))
    }

    fn map_leaf(
        &self,
        memory: &mut Memory<O>,
        spot: Spot<O>,
        observer: &mut impl Observer<I, O>,
    ) -> Mapped<O> {
        self.store(memory, spot.at, spot.entry, observer);
        let mapped = self.mapped(spot, true);
        memory.counters.leaves[size_index(mapped.size)] += 1;
        memory.counters.first_touches += 1;
        mapped
    }

    /// A store to a read-only leaf of a writable mapping (`do_wp_page`, `do_huge_pmd_wp_page`,
    /// `hugetlb_wp`).
    fn write_protected(
        &mut self,
        memory: &mut Memory<O>,
        address: u64,
        mut spot: Spot<O>,
        vma: Vma,
        observer: &mut impl Observer<I, O>,
    ) -> Result<Mapped<O>, MmError> {
        loop {
            let size = self.config.mode.span(spot.level);
            let frame: O = spot.entry.frame(size);
            if !memory.is_shared(frame, size) {
                // No invalidation: the fault itself has removed the faulting processor's entry, and
                // another's read-only entry faults once more and finds this one
                // (`wp_page_reuse`; x86 has an empty `flush_tlb_fix_spurious_fault`).
                let used = entry::WRITE | entry::DIRTY | entry::ACCESSED;
                let leaf = spot.entry.with(used).without(entry::SOFT_COW);
                self.store(memory, spot.at, leaf, observer);
                memory.counters.reuses += 1;
                return Ok(self.mapped(Spot { entry: leaf, ..spot }, false));
            }
            let large = spot.level > 1;
            let copies = !large || matches!(self.config.policy, crate::PagePolicy::Explicit(_));
            if copies && let Some(new) = self.place(memory, address, size, vma, true) {
                return Ok(self.copy(memory, address, spot, new, vma, observer));
            }
            if !large {
                return Err(out_of_memory::<I>(self.typed(address).value()));
            }
            memory.counters.fallbacks += u64::from(copies);
            self.split_leaf(memory, address, spot, observer)?;
            spot = self.spot(memory, address, 1);
        }
    }

    /// `wp_page_copy`: the old entry is cleared and invalidated before the new one is stored.
    fn copy(
        &self,
        memory: &mut Memory<O>,
        address: u64,
        spot: Spot<O>,
        new: O,
        vma: Vma,
        observer: &mut impl Observer<I, O>,
    ) -> Mapped<O> {
        let size = self.config.mode.span(spot.level);
        let old: O = spot.entry.frame(size);
        observer.page_cleared(new, size);
        if memory.zero_frame != Some(old) {
            observer.page_copied(old, new, size);
        }
        self.store(memory, spot.at, Entry(0), observer);
        let start = self.typed(address & !size.mask());
        observer.invalidate(Flush::Pages { start, stride: size, count: 1, tables: false });
        let used = entry::ACCESSED | entry::DIRTY;
        let leaf = Entry::leaf(new, vma.protection, spot.level > 1).with(used);
        self.store(memory, spot.at, leaf, observer);
        memory.release(old, size);
        memory.counters.copies += 1;
        self.mapped(Spot { entry: leaf, ..spot }, true)
    }
}
