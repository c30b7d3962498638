//! What placement came to: how pages were placed, what is held and not used, how fragmented
//! memory is.

use crate::physical::PhysicalMemory;
use crate::space::{AddressSpace, Memory};
use nestwalk_tables::{Entry, Level, entry};
use nestwalk_types::{Address, PageSize};

/// What the placement of one dimension did, and the state of its memory.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct PlacementStats {
    /// Pages that were placed where the policy wanted them; 0 for policies that want no place.
    pub at_target: u64,
    /// Pages for which it chose a new place, because the one it wanted could not be had.
    pub placed_again: u64,
    /// Pages that got any frame instead.
    pub placed_elsewhere: u64,
    /// Rows of small pages that were joined to large ones.
    pub promotions: u64,
    /// Times that frames which were set aside were given to others.
    pub reservations_broken: u64,
    /// Bytes that are set aside now: reservations, pools, primary regions.
    pub set_aside_bytes: u64,
    /// Bytes of pages that were never used since they were mapped: their leaves' accessed bits are
    /// clear. Pages shared since a fork are not counted, and of a large page no part.
    pub untouched_bytes: u64,
    /// Most 4 KiB pages that one fault, or one mapping of memory, allocated and cleared.
    pub most_at_once: u64,
    /// Share of free memory that no 2 MiB page could use at the start, 0 to 1:
    /// [`PhysicalMemory::fmfi`] of order 9.
    pub fmfi_start: f64,
    /// The same now.
    pub fmfi_end: f64,
}

/// Order of a 2 MiB block.
const LARGE: u32 = 9;

/// See [`PlacementStats::fmfi_start`].
pub(crate) fn fmfi<O: Address>(physical: &PhysicalMemory<O>) -> f64 {
    physical.fmfi(LARGE)
}

impl<O: Address> Memory<O> {
    /// What the placement did; `untouched` are frames by [`AddressSpace::untouched_frames`].
    pub(crate) fn placement_stats(&self, untouched: u64) -> PlacementStats {
        let c = &self.counters;
        PlacementStats {
            at_target: c.at_target,
            placed_again: c.placed_again,
            placed_elsewhere: c.placed_elsewhere,
            promotions: c.promotions,
            reservations_broken: self.physical.reservations_broken(),
            set_aside_bytes: (self.physical.set_aside_frames() + c.reserved_frames) << 12,
            untouched_bytes: untouched << 12,
            most_at_once: c.most_at_once,
            fmfi_start: self.fmfi_start,
            fmfi_end: fmfi(&self.physical),
        }
    }
}

impl<I: Address, O: Address> AddressSpace<I, O> {
    /// Frames of leaves that were never used: see [`PlacementStats::untouched_bytes`]. Looks at
    /// every leaf.
    pub(crate) fn untouched_frames(&self, memory: &Memory<O>) -> u64 {
        self.untouched_below(memory, self.root(), self.config().mode.levels)
    }

    fn untouched_below(&self, memory: &Memory<O>, table: O, level: Level) -> u64 {
        let mode = self.config().mode;
        let mut frames = 0;
        for i in 0..mode.entries(level) {
            let at = table.offset_by(i * u64::from(mode.entry_bytes));
            let here = Entry(memory.tables.read(at, mode.entry_bytes).unwrap_or(0));
            if !here.is_present() {
                continue;
            }
            let leaf = level == 1 || (mode.may_be_leaf(level) && here.has(entry::LARGE));
            let size: PageSize = mode.span(level);
            if !leaf {
                frames += self.untouched_below(memory, here.target(), level - 1);
            } else if !here.has(entry::ACCESSED) && !memory.is_shared(here.frame(size), size) {
                frames += size.base_pages();
            }
        }
        frames
    }
}
