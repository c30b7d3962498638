//! Splitting a large page into the next smaller size.

use crate::error::MmError;
use crate::physical::below;
use crate::space::{AddressSpace, Flush, Memory, Observer, Spot, out_of_memory, size_index};
use nestwalk_tables::{Entry, entry};
use nestwalk_types::{Address, PageSize};

impl<I: Address, O: Address> AddressSpace<I, O> {
    /// Replaces a large leaf by a table of smaller leaves of the same frames and permissions.
    ///
    /// As Linux's `__split_huge_pmd_locked`: the leaf is made not present and invalidated, so that no
    /// TLB holds both sizes; the table is filled; then it is linked. Linux took the table when it
    /// mapped the page (a deposit); here it is allocated when it is needed.
    pub(super) fn split_leaf(
        &self,
        memory: &mut Memory<O>,
        address: u64,
        spot: Spot<O>,
        observer: &mut impl Observer<I, O>,
    ) -> Result<(), MmError> {
        let mode = self.config.mode;
        let (size, part) = (mode.span(spot.level), mode.span(spot.level - 1));
        debug_assert_eq!(part, below(size));
        let table =
            memory.new_table().ok_or_else(|| out_of_memory::<I>(self.typed(address).value()))?;
        observer.table_new(table, spot.level - 1);
        self.store(memory, spot.at, spot.entry.without(entry::PRESENT), observer);
        let page = address & !size.mask();
        let start = self.typed(page);
        observer.invalidate(Flush::Pages { start, stride: size, count: 1, tables: false });
        let flags = spot.entry.0 & !entry::FRAME;
        let flags = if spot.level == 2 { flags & !entry::LARGE } else { flags };
        let frame: O = spot.entry.frame(size);
        for i in 0..mode.entries(spot.level - 1) {
            let at = mode.entry_at(table, page + (i << part.shift()), spot.level - 1);
            let leaf = Entry(frame.offset_by(i << part.shift()).value() | flags);
            self.store(memory, at, leaf, observer);
        }
        self.store(memory, spot.at, Entry::table(table), observer);
        memory.physical.split(frame, size.order(), part.order());
        memory.counters.leaves[size_index(size)] -= 1;
        memory.counters.leaves[size_index(part)] += mode.entries(spot.level - 1);
        memory.counters.splits += 1;
        Ok(())
    }

    /// Splits large pages that reach over `border`, so that a change may end there.
    pub(super) fn split_at(
        &self,
        memory: &mut Memory<O>,
        border: u64,
        observer: &mut impl Observer<I, O>,
    ) -> Result<(), MmError> {
        if border > self.config.mode.address_mask() {
            return Ok(());
        }
        loop {
            let spot = self.spot(memory, border, 1);
            let size: PageSize = self.config.mode.span(spot.level);
            if !spot.entry.is_present() || spot.level == 1 || border & size.mask() == 0 {
                return Ok(());
            }
            self.split_leaf(memory, border, spot, observer)?;
        }
    }
}
