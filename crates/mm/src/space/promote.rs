//! Joining small pages that lie side by side to a large one, where they are.

use crate::space::{AddressSpace, Mapped, Memory, Observer, Spot, size_index};
use nestwalk_tables::{Entry, entry};
use nestwalk_types::{Address, PageSize};

impl<I: Address, O: Address> AddressSpace<I, O> {
    /// A page was just mapped. If the placement says that the pages around it are all in their places,
    /// they are joined; the page then is the large one.
    pub(super) fn joined(
        &mut self,
        memory: &mut Memory<O>,
        address: u64,
        mapped: Mapped<O>,
        observer: &mut impl Observer<I, O>,
    ) -> Mapped<O> {
        if mapped.size != PageSize::SIZE_4K {
            return mapped;
        }
        match self.placement.complete(&memory.physical, address) {
            Some(size) => self.promote(memory, address, size, observer).unwrap_or(mapped),
            None => mapped,
        }
    }

    /// Replaces a full leaf table by a leaf of the same frames, if these are in order and have the same
    /// permissions (FreeBSD's `pmap_promote_pde`). The entry of the table is cleared and everything is
    /// invalidated before the leaf is stored, so that no TLB holds both sizes; the table is free then.
    /// The leaf is dirty if any page was; all were accessed when they were placed.
    pub(crate) fn promote(
        &mut self,
        memory: &mut Memory<O>,
        address: u64,
        size: PageSize,
        observer: &mut impl Observer<I, O>,
    ) -> Option<Mapped<O>> {
        let mode = self.config.mode;
        let level = mode.leaf_level(size)?;
        let spot = self.spot(memory, address, level);
        if level != 2 || spot.level != 2 || !spot.entry.is_present() || self.is_leaf(spot.entry, 2)
        {
            return None;
        }
        let (table, first) = (spot.entry.target::<O>(), address & !size.mask());
        let use_bits = entry::ACCESSED | entry::DIRTY;
        let frame = self.read(memory, table).frame::<O>(PageSize::SIZE_4K);
        let flags = self.read(memory, table).0 & !entry::FRAME & !use_bits;
        let mut used = 0;
        for i in 0..mode.entries(1) {
            let leaf = self.read(memory, mode.entry_at(table, first + (i << 12), 1));
            let at = leaf.frame::<O>(PageSize::SIZE_4K);
            let same = leaf.is_present()
                && leaf.0 & !entry::FRAME & !use_bits == flags
                && at.value() == frame.value() + (i << 12)
                && !memory.is_shared(at, PageSize::SIZE_4K);
            if !same {
                return None;
            }
            used |= leaf.0 & use_bits;
        }
        if frame.offset_in(size) != 0 || Entry(flags).has(entry::SOFT_COW) {
            return None;
        }
        self.store(memory, spot.at, Entry(0), observer);
        // All pages of the table: more than are invalidated one by one.
        [first, first + size.bytes() - 4096]
            .into_iter()
            .for_each(|page| self.gather.change(page, PageSize::SIZE_4K));
        self.gather.table(first, table);
        self.flush(memory, observer);
        let leaf = Entry(frame.value() | flags | used | entry::LARGE);
        self.store(memory, spot.at, leaf, observer);
        let counters = &mut memory.counters;
        counters.leaves[size_index(PageSize::SIZE_4K)] -= mode.entries(1);
        counters.leaves[size_index(size)] += 1;
        counters.promotions += 1;
        Some(self.mapped(Spot { entry: leaf, ..spot }, true))
    }
}
