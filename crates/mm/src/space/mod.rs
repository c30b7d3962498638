//! An address space and its page tables: mappings, faults, and what they change.
//!
//! The same code serves a guest process (gVA to gPA) and the VMM process (hVA to hPA). An
//! [`AddressSpace`] owns its root and its mappings; physical memory and the contents of tables are
//! shared by all address spaces of one dimension and travel with every call as [`Memory`]. Every
//! change is told to an [`Observer`] in the order in which Linux makes it:
//!
//! ```text
//! new page:     table new, entry that points to it, ... ; page cleared; leaf stored
//! copied page:  page cleared; page copied; leaf = 0; invalidation; leaf stored
//! munmap:       leaves = 0; entries of tables = 0; invalidation; only then are frames free
//! ```
//!
//! Memory is anonymous and private: there is no page cache and no NUMA. Pages may be swapped.

mod change;
mod collapse;
mod fault;
mod fork;
mod gather;
mod merge;
mod migrate;
mod promote;
mod region;
mod split;
mod swap;
mod vma;

pub(crate) use collapse::{Collapse, CollapseLimits};
pub(crate) use fault::size_index;
pub use gather::{FLUSH_CEILING, Flush, GATHER_PAGES};
pub(crate) use migrate::{Block, Taken as TakenOut};
pub use region::{Contiguous, PrimaryConfig};
pub use swap::SwapSpace;
pub use vma::{Vma, VmaSet};

use crate::balloon::{Ballooned, Exchange};
use crate::error::MmError;
use crate::physical::PhysicalMemory;
use crate::placement::{Outcome, PagePolicy, Placement, PlacementKind, Sizes};
use gather::Gather;
use nestwalk_tables::{Entry, Leaf, Level, Mode, NotMapped, TableMemory, entry};
use nestwalk_types::{Address, PageSize, Protection};
use region::Region;
use std::marker::PhantomData;

/// What an access needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Access {
    /// It stores.
    pub write: bool,
    /// It fetches an instruction.
    pub execute: bool,
}

impl Access {
    /// A load.
    pub const READ: Self = Self { write: false, execute: false };
    /// A store.
    pub const WRITE: Self = Self { write: true, execute: false };
    /// An instruction fetch.
    pub const EXECUTE: Self = Self { write: false, execute: true };

    /// Whether a mapping of this protection allows it.
    #[inline]
    pub const fn allowed_by(self, protection: Protection) -> bool {
        (!self.write || protection.write) && (!self.execute || protection.execute)
    }
}

impl std::fmt::Display for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match (self.write, self.execute) {
            (true, _) => "a store",
            (false, true) => "an instruction fetch",
            (false, false) => "a load",
        })
    }
}

/// Learns of every change that an address space makes, in order.
pub trait Observer<I, O> {
    /// A cleared page is a table of `level` from now on.
    #[inline]
    fn table_new(&mut self, table: O, level: Level) {
        let _ = (table, level);
    }
    /// An entry was stored.
    #[inline]
    fn stored(&mut self, at: O, entry: Entry) {
        let _ = (at, entry);
    }
    /// A fresh page was cleared, or filled with a copy.
    #[inline]
    fn page_cleared(&mut self, frame: O, size: PageSize) {
        let _ = (frame, size);
    }
    /// The contents of a page were copied, after [`Observer::page_cleared`] of `to`.
    #[inline]
    fn page_copied(&mut self, from: O, to: O, size: PageSize) {
        let _ = (from, to, size);
    }
    /// Every TLB that may hold translations of this address space is owed this invalidation, now.
    #[inline]
    fn invalidate(&mut self, flush: Flush<I>) {
        let _ = flush;
    }
    /// A page that was unmapped is given to a device, which reads it from memory and writes it down.
    #[inline]
    fn written_out(&mut self, frame: O) {
        let _ = frame;
    }
    /// Free memory was exchanged for new memory, which is there from now on.
    #[inline]
    fn exchanged(&mut self, exchange: &Exchange<O>) {
        let _ = exchange;
    }
    /// The primary region is this from now on, or there is none: what the registers of a direct segment
    /// are to be wherever the address space is in use. It comes before whatever else changes, and an
    /// invalidation of everything follows if pages have left the region.
    #[inline]
    fn segment(&mut self, region: Option<&Contiguous<I, O>>) {
        let _ = region;
    }
}

/// An observer that does not care.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unobserved;

impl<I, O> Observer<I, O> for Unobserved {}

/// Counts over all address spaces of one [`Memory`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Frames that hold tables.
    pub table_frames: u64,
    /// Frames that hold data of processes.
    pub data_frames: u64,
    /// Most frames that held tables at a time.
    pub peak_table_frames: u64,
    /// Most frames that held data at a time.
    pub peak_data_frames: u64,
    /// Leaf entries by size: 4 KiB, 2 MiB, 4 MiB, 1 GiB.
    pub leaves: [u64; 4],
    /// Faults that mapped a fresh page.
    pub first_touches: u64,
    /// Times that no block of a wanted size was free and a smaller size was used.
    pub fallbacks: u64,
    /// Pages copied because they were written while shared.
    pub copies: u64,
    /// Pages made writable because their last other mapping had gone.
    pub reuses: u64,
    /// Large pages split.
    pub splits: u64,
    /// Frames that are set aside for primary regions, and hold no page yet.
    pub reserved_frames: u64,
    /// Pages that were placed where the placement policy wanted them.
    pub at_target: u64,
    /// Pages for which it chose a new place, because the one it wanted could not be had.
    pub placed_again: u64,
    /// Pages that got any frame instead.
    pub placed_elsewhere: u64,
    /// Pages joined to large ones where they lay.
    pub promotions: u64,
    /// Most frames that one fault, or one mapping of memory, allocated for pages, and cleared.
    pub most_at_once: u64,
}

impl Counters {
    pub(crate) fn add_table(&mut self) {
        self.table_frames += 1;
        self.peak_table_frames = self.peak_table_frames.max(self.table_frames);
    }
    pub(crate) fn add_data(&mut self, size: PageSize) {
        self.data_frames += size.base_pages();
        self.peak_data_frames = self.peak_data_frames.max(self.data_frames);
        self.most_at_once = self.most_at_once.max(size.base_pages());
    }
    fn count(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Ordinary => {}
            Outcome::Target => self.at_target += 1,
            Outcome::Again => self.placed_again += 1,
            Outcome::Elsewhere => self.placed_elsewhere += 1,
        }
    }
}

/// The physical memory of one dimension and the tables in it.
pub struct Memory<O> {
    /// Frames.
    pub physical: PhysicalMemory<O>,
    /// Contents of the tables.
    pub tables: TableMemory<O>,
    /// What is in use, and what happened.
    pub counters: Counters,
    /// The frame that stands for pages that were only read, if that option is on.
    pub zero_frame: Option<O>,
    /// Memory that was exchanged.
    pub balloon: Ballooned,
    /// The swap device, if there is one.
    pub swap: Option<Box<SwapSpace>>,
    /// See [`crate::PlacementStats::fmfi_start`].
    pub(crate) fmfi_start: f64,
}

impl<O: Address> Memory<O> {
    /// Without tables yet. With `zero_page`, one frame is set aside as the shared zero page.
    pub fn new(mut physical: PhysicalMemory<O>, zero_page: bool) -> Self {
        let zero_frame = if zero_page { physical.alloc(0) } else { None };
        let tables = TableMemory::new();
        let (counters, balloon) = (Counters::default(), Ballooned::default());
        let fmfi_start = crate::placement_stats::fmfi(&physical);
        Self { physical, tables, counters, zero_frame, balloon, swap: None, fmfi_start }
    }

    /// Whether entries of the mode reach all of the memory.
    pub(crate) fn check(&self, mode: &Mode) -> Result<(), MmError> {
        let end = self.physical.ranges().last().map_or(0, |r| r.0.value() + r.1);
        if mode.entry_bytes == 4 && end > 1 << 32 {
            let reason = "4-byte entries reach 4 GiB; give less than 3.5 GiB or use another mode";
            let bytes = self.physical.bytes();
            return Err(MmError::PhysicalMemory { bytes, reason: reason.into() });
        }
        Ok(())
    }

    /// A cleared table, or `None` if no frame is free.
    pub(crate) fn new_table(&mut self) -> Option<O> {
        let table = self.physical.alloc(0)?;
        self.tables.insert(table, None);
        self.counters.add_table();
        Some(table)
    }
    pub(crate) fn free_table(&mut self, table: O) {
        self.tables.remove(table);
        self.physical.free(table, 0);
        self.counters.table_frames -= 1;
    }
    pub(crate) fn release(&mut self, frame: O, size: PageSize) {
        if self.zero_frame != Some(frame) {
            // A frame that several VMs share is counted by the one that had it first.
            let freed = self.physical.release(frame, size.order());
            self.counters.data_frames = self.counters.data_frames.saturating_sub(freed);
            if freed > 0
                && let Some(swap) = &mut self.swap
            {
                swap.frame_freed(frame.page_number());
            }
        }
    }
    fn share(&mut self, frame: O, size: PageSize) {
        if self.zero_frame != Some(frame) {
            self.physical.share(frame, size.order());
        }
    }
    /// Whether a write to the page needs a copy.
    pub(crate) fn is_shared(&self, frame: O, size: PageSize) -> bool {
        self.zero_frame == Some(frame) || self.physical.is_shared(frame, size.order())
    }
}

/// Page sizes and placement of an address space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SpaceConfig {
    /// The paging mode.
    pub mode: &'static Mode,
    /// Page sizes.
    pub policy: PagePolicy,
    /// Which frame serves a fault.
    pub placement: PlacementKind,
    /// The largest mapping becomes a primary region; `None` for no such thing.
    pub primary: Option<PrimaryConfig>,
}

/// A page that is mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mapped<O> {
    /// Where the leaf entry is.
    pub at: O,
    /// The leaf entry.
    pub entry: Entry,
    /// First address of the frame.
    pub frame: O,
    /// Size of the page.
    pub size: PageSize,
    /// The page was mapped just now.
    pub fresh: bool,
}

/// Position of an entry: where a descent ended.
#[derive(Clone, Copy)]
struct Spot<O> {
    at: O,
    level: Level,
    entry: Entry,
}

/// An address space: mappings and the tables that translate `I` to `O`.
///
/// Addresses are checked against the mode: 4- and 5-level addresses must be canonical, those of
/// 32-bit modes below 4 GiB.
#[derive(Debug)]
pub struct AddressSpace<I, O> {
    config: SpaceConfig,
    sizes: Sizes,
    root: O,
    vmas: VmaSet,
    placement: Box<dyn Placement<O>>,
    gather: Gather<O>,
    region: Option<Region>,
    /// Pages that may escape from the region.
    escapes: usize,
    /// Pages are made present because they were mapped, not because they are used.
    filling: bool,
    space: PhantomData<I>,
}

impl<I: Address, O: Address> AddressSpace<I, O> {
    /// An empty address space: a root table, and in PAE mode the four tables below it, since the
    /// processor reads PAE's root entries only when CR3 is loaded and Linux therefore fills them at
    /// once (`arch/x86/mm/pgtable.c`, `PREALLOCATED_PMDS`).
    ///
    /// # Errors
    /// No frame for a table; a page size that the mode does not have.
    pub fn new(
        config: SpaceConfig,
        memory: &mut Memory<O>,
        observer: &mut impl Observer<I, O>,
    ) -> Result<Self, MmError> {
        config.policy.check(config.mode)?;
        let placement = config.placement.build(config.policy, config.mode);
        Self::with(config, placement, memory, observer)
    }

    /// As [`AddressSpace::new`], with this object for its placement.
    pub(crate) fn with(
        config: SpaceConfig,
        mut placement: Box<dyn Placement<O>>,
        memory: &mut Memory<O>,
        observer: &mut impl Observer<I, O>,
    ) -> Result<Self, MmError> {
        let mode = config.mode;
        memory.check(mode)?;
        placement.attach(&mut memory.physical);
        let root = memory.new_table().ok_or_else(|| out_of_memory::<I>(0))?;
        observer.table_new(root, mode.levels);
        let space = Self {
            config,
            sizes: config.policy.sizes(mode),
            root,
            vmas: VmaSet::default(),
            placement,
            gather: Gather::default(),
            region: None,
            escapes: config.primary.map_or(0, |p| p.escapes),
            filling: false,
            space: PhantomData,
        };
        if mode.root_in_registers {
            for i in 0..mode.entries(mode.levels) {
                let address = i << mode.span(mode.levels).shift();
                space.descend(memory, address, mode.levels - 1, observer)?;
            }
        }
        Ok(space)
    }

    /// The root table.
    pub const fn root(&self) -> O {
        self.root
    }
    /// Mode, page sizes and placement.
    pub const fn config(&self) -> &SpaceConfig {
        &self.config
    }
    /// The mappings.
    pub const fn vmas(&self) -> &VmaSet {
        &self.vmas
    }

    /// Looks an address up in the tables.
    ///
    /// # Errors
    /// The level at which no present entry stands.
    pub fn look_up(&self, memory: &Memory<O>, address: I) -> Result<Leaf<O>, NotMapped> {
        nestwalk_tables::look_up(&memory.tables, self.config.mode, self.root, address)
    }

    /// The address without its sign extension.
    fn plain(&self, address: I) -> Result<u64, MmError> {
        let mode = self.config.mode;
        let plain = address.value() & mode.address_mask();
        if self.typed(plain) == address {
            return Ok(plain);
        }
        Err(MmError::OutOfRange { space: I::SPACE, address: address.value(), mode })
    }

    /// The address as the processor knows it: sign-extended in 4- and 5-level paging.
    fn typed(&self, plain: u64) -> I {
        I::new(canonical(self.config.mode, plain))
    }

    /// A range of whole pages, all of them in the mode's range: first address and one past the last.
    fn range(&self, start: I, bytes: u64) -> Result<(u64, u64), MmError> {
        if (start.value() | bytes) & 0xfff != 0 {
            let start = start.value();
            return Err(MmError::Unaligned { space: I::SPACE, start, bytes });
        }
        let first = self.plain(start)?;
        if bytes == 0 {
            return Ok((first, first));
        }
        let mode = self.config.mode;
        let last = start.value().checked_add(bytes - 1);
        let outside =
            MmError::OutOfRange { space: I::SPACE, address: last.unwrap_or(u64::MAX), mode };
        let last = self.plain(I::new(last.ok_or_else(|| outside.clone())?))?;
        // A range across the hole between the halves begins and ends at canonical addresses.
        let half = 1 << (mode.address_bits() - 1);
        if mode.address_bits() > 32 && (first ^ last) & half != 0 {
            return Err(outside);
        }
        Ok((first, last + 1))
    }

    #[inline]
    fn read(&self, memory: &Memory<O>, at: O) -> Entry {
        Entry(memory.tables.read(at, self.config.mode.entry_bytes).unwrap_or(0))
    }

    #[inline]
    fn store(
        &self,
        memory: &mut Memory<O>,
        at: O,
        entry: Entry,
        observer: &mut impl Observer<I, O>,
    ) {
        memory.tables.write(at, self.config.mode.entry_bytes, entry.0);
        observer.stored(at, entry);
    }

    /// Whether an entry of `level` maps a page.
    #[inline]
    fn is_leaf(&self, entry: Entry, level: Level) -> bool {
        level == 1 || (self.config.mode.may_be_leaf(level) && entry.has(entry::LARGE))
    }

    /// The entry of `stop`, or the one above it where there is no table for the next level.
    #[inline]
    fn spot(&self, memory: &Memory<O>, address: u64, stop: Level) -> Spot<O> {
        let mode = self.config.mode;
        let (mut table, mut level) = (self.root, mode.levels);
        loop {
            let at = mode.entry_at(table, address, level);
            let entry = self.read(memory, at);
            if level == stop || !entry.is_present() || self.is_leaf(entry, level) {
                return Spot { at, level, entry };
            }
            table = entry.target();
            level -= 1;
        }
    }

    /// Makes the tables down to `level`, upper ones first; the entry of `level`, or of the large
    /// page above it.
    fn descend(
        &self,
        memory: &mut Memory<O>,
        address: u64,
        level: Level,
        observer: &mut impl Observer<I, O>,
    ) -> Result<Spot<O>, MmError> {
        let mut spot = self.spot(memory, address, level);
        while spot.level > level && !spot.entry.is_present() {
            let table = memory
                .new_table()
                .ok_or_else(|| out_of_memory::<I>(self.typed(address).value()))?;
            observer.table_new(table, spot.level - 1);
            self.store(memory, spot.at, Entry::table(table), observer);
            let below = self.config.mode.entry_at(table, address, spot.level - 1);
            spot = Spot { at: below, level: spot.level - 1, entry: Entry(0) };
        }
        Ok(spot)
    }
}

/// A translated part of an address with its sign extension, if the mode has one.
#[inline]
pub(crate) const fn canonical(mode: &Mode, plain: u64) -> u64 {
    let unused = 64 - mode.address_bits();
    if unused == 32 { plain } else { ((plain << unused) as i64 >> unused) as u64 }
}

fn out_of_memory<I: Address>(address: u64) -> MmError {
    MmError::OutOfMemory { space: I::SPACE, address, size: PageSize::SIZE_4K }
}
