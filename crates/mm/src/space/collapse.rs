//! Making a large page of small ones, in another place: what Linux's khugepaged does.

use crate::space::{AddressSpace, Memory, Observer, size_index};
use nestwalk_tables::{Entry, entry};
use nestwalk_types::{Address, PageSize};

/// What of a block's small pages may be otherwise than present and its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct CollapseLimits {
    /// Pages that are not there, or are the shared zero page.
    pub none: u64,
    /// Pages that others map, too.
    pub shared: u64,
}

/// What came of looking at a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Collapse {
    /// It is one page now, into which so many small ones were copied.
    Done {
        /// Small pages that were copied.
        copied: u64,
    },
    /// It is none to collapse.
    Unsuitable,
    /// No block of free frames is large enough.
    NoBlock,
}

impl<I: Address, O: Address> AddressSpace<I, O> {
    /// Collapses the small pages of the large page's block around `first` (Linux,
    /// `mm/khugepaged.c`, `hpage_collapse_scan_pmd` and `collapse_huge_page`). The mapping must
    /// cover the block, at least one page must have been accessed. The entry of the table is
    /// cleared and everything invalidated, the pages are copied, then the large leaf is stored; the
    /// small pages and the table are free.
    ///
    /// Linux keeps the table for a later split; here the split allocates one.
    pub(crate) fn collapse(
        &mut self,
        memory: &mut Memory<O>,
        first: u64,
        limits: CollapseLimits,
        observer: &mut impl Observer<I, O>,
    ) -> Collapse {
        let mode = self.config.mode;
        let size = mode.span(2);
        let spot = self.spot(memory, first, 2);
        let covered = self.vmas.find(first).filter(|v| v.covers(first, size.bytes()));
        let Some(vma) = covered else { return Collapse::Unsuitable };
        let tables = spot.level == 2 && spot.entry.is_present() && !self.is_leaf(spot.entry, 2);
        if !tables || self.meets_region(first, size.bytes()) {
            return Collapse::Unsuitable;
        }
        let table = spot.entry.target::<O>();
        let small = PageSize::SIZE_4K;
        let entries: Vec<Entry> = (0..mode.entries(1))
            .map(|i| self.small_page(memory, table, first + (i << 12)))
            .collect();
        let (mut none, mut shared, mut accessed) = (0, 0, false);
        for leaf in &entries {
            let zero = leaf.is_present() && memory.zero_frame == Some(leaf.frame(small));
            if !leaf.is_present() || zero {
                none += 1;
                continue;
            }
            shared += u64::from(memory.is_shared(leaf.frame(small), small));
            accessed |= leaf.has(entry::ACCESSED);
        }
        if none > limits.none || shared > limits.shared || !accessed {
            return Collapse::Unsuitable;
        }
        let Some(frame) = memory.physical.alloc(size.order()) else { return Collapse::NoBlock };
        memory.counters.add_data(size);
        self.store(memory, spot.at, Entry(0), observer);
        // All pages of the table: more than are invalidated one by one.
        [first, first + size.bytes() - 4096]
            .into_iter()
            .for_each(|page| self.gather.change(page, small));
        self.gather.table(first, table);
        self.flush(memory, observer);
        observer.page_cleared(frame, size);
        let mut copied = 0;
        for (i, leaf) in entries.iter().enumerate().filter(|(_, leaf)| leaf.is_present()) {
            let from = leaf.frame::<O>(small);
            if memory.zero_frame != Some(from) {
                observer.page_copied(from, frame.offset_by((i as u64) << 12), small);
                copied += 1;
            }
        }
        let used = entry::ACCESSED | entry::DIRTY;
        let leaf = Entry::leaf(frame, vma.protection, true).with(used);
        self.store(memory, spot.at, leaf, observer);
        let mapped = entries.iter().filter(|leaf| leaf.is_present());
        let mapped: Vec<O> = mapped.map(|leaf| leaf.frame(small)).collect();
        memory.counters.leaves[size_index(small)] -= mapped.len() as u64;
        memory.counters.leaves[size_index(size)] += 1;
        mapped.into_iter().for_each(|page| memory.release(page, small));
        Collapse::Done { copied }
    }
}
