//! What an unmapping has cleared, until the invalidation is paid: Linux's `mmu_gather`.

use crate::space::{Memory, Observer};
use nestwalk_types::{Address, PageSize};

/// Most pages that are invalidated one by one; above it everything of the address space is
/// (Linux, `arch/x86/mm/tlb.c`, `tlb_single_page_flush_ceiling`).
pub const FLUSH_CEILING: u64 = 33;

/// Pages after which an unmapping invalidates and frees what it has gathered: 9,698. Linux's
/// `MAX_GATHER_BATCH_COUNT` (`include/asm-generic/tlb.h`) gives 10,000 / 510 = 19 batches of 510
/// pages behind the 8 of the on-stack batch.
pub const GATHER_PAGES: usize = 19 * 510 + 8;

/// What must be invalidated wherever the address space is or was in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flush<I> {
    /// `count` pages, one every `stride` from `start` on; at most [`FLUSH_CEILING`].
    Pages {
        /// An address in the first page.
        start: I,
        /// Distance of the pages: the smallest size that was changed.
        stride: PageSize,
        /// How many.
        count: u64,
        /// Tables were freed, so walk caches are concerned as well.
        tables: bool,
    },
    /// Everything of the address space.
    All,
}

/// Cleared pages and tables that are not yet free, and the range to invalidate.
#[derive(Debug)]
pub(super) struct Gather<O> {
    pages: Vec<(O, PageSize)>,
    tables: Vec<O>,
    start: u64,
    end: u64,
    stride: PageSize,
    /// The address space ends: whatever is owed, everything is invalidated.
    whole: bool,
}

impl<O> Default for Gather<O> {
    fn default() -> Self {
        Self {
            pages: Vec::new(),
            tables: Vec::new(),
            start: u64::MAX,
            end: 0,
            stride: PageSize::SIZE_1G,
            whole: false,
        }
    }
}

impl<O: Address> Gather<O> {
    /// The page's translation has changed; nothing is freed.
    pub fn change(&mut self, page: u64, size: PageSize) {
        self.start = self.start.min(page);
        self.end = self.end.max(page + size.bytes());
        self.stride = self.stride.min(size);
    }
    /// The page is unmapped, its frame will be released. True if it is time to flush.
    pub fn page(&mut self, page: u64, size: PageSize, frame: O) -> bool {
        self.change(page, size);
        self.pages.push((frame, size));
        self.pages.len() >= GATHER_PAGES
    }
    /// From now on everything is invalidated if anything is (Linux, `tlb_gather_mmu_fullmm`).
    pub fn everything(&mut self) {
        self.whole = true;
    }
    /// The table is linked no more; `address` is where the unmapping came upon it, rounded down to
    /// what a table of level 1 covers. Linux extends the range by one page there (`free_pgd_range`,
    /// `pmd_free_tlb`).
    pub fn table(&mut self, address: u64, table: O) {
        self.start = self.start.min(address);
        self.end = self.end.max(address + 4096);
        self.tables.push(table);
    }

    /// Has the invalidation made, if one is owed, then frees.
    pub fn flush<I: Address>(
        &mut self,
        memory: &mut Memory<O>,
        typed: impl Fn(u64) -> I,
        observer: &mut impl Observer<I, O>,
    ) {
        if self.start < self.end {
            let first = self.start & !self.stride.mask();
            let count = (self.end - first).div_ceil(self.stride.bytes());
            let (stride, tables) = (self.stride, !self.tables.is_empty());
            observer.invalidate(if count <= FLUSH_CEILING && !self.whole {
                Flush::Pages { start: typed(first), stride, count, tables }
            } else {
                Flush::All
            });
        }
        for (frame, size) in self.pages.drain(..) {
            memory.release(frame, size);
        }
        for table in self.tables.drain(..) {
            memory.free_table(table);
        }
        (self.start, self.end, self.stride) = (u64::MAX, 0, PageSize::SIZE_1G);
    }
}
