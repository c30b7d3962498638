//! Pages that a kernel takes from an address space and writes to its swap device, and their return.
//!
//! As Linux has anonymous memory (6.1, `mm/rmap.c`, `try_to_unmap_one`; `mm/memory.c`, `do_swap_page`):
//! the entry is cleared and invalidated, then says which slot of the device has the page. A page that
//! is read again keeps its slot while nobody stores to it, so that it need not be written again
//! (the swap cache, without a limit). The device has room for everything.

use crate::space::{AddressSpace, Flush, Memory, Observer, Spot, size_index};
use nestwalk_tables::{Entry, entry};
use nestwalk_types::{Address, PageSize};
use std::collections::BTreeMap;

/// What a swap device has.
#[derive(Debug, Default)]
pub struct SwapSpace {
    /// Entries and frames that name each slot.
    named: Vec<u32>,
    free: Vec<u64>,
    /// By frame, the slot with the same contents, unless the frame was stored to since.
    copies: BTreeMap<u64, u64>,
    /// Pages that were read back.
    pub(crate) came: u64,
}

impl SwapSpace {
    fn slot(&mut self) -> u64 {
        let slot = self.free.pop().unwrap_or(self.named.len() as u64);
        if slot == self.named.len() as u64 {
            self.named.push(0);
        }
        self.named[slot as usize] = 1;
        slot
    }

    fn forget(&mut self, slot: u64) {
        let Some(named) = self.named.get_mut(slot as usize) else { return };
        *named -= 1;
        if *named == 0 {
            self.free.push(slot);
        }
    }

    /// The frame is free: its copy is nobody's.
    pub(super) fn frame_freed(&mut self, frame: u64) {
        if let Some(slot) = self.copies.remove(&frame) {
            self.forget(slot);
        }
    }

    /// An entry that named a slot is no more.
    pub(super) fn entry_cleared(&mut self, found: Entry) {
        self.forget(slot_of(found));
    }

    /// A copy of an entry that names a slot was made.
    pub(super) fn entry_copied(&mut self, found: Entry) {
        if let Some(named) = self.named.get_mut(slot_of(found) as usize) {
            *named += 1;
        }
    }

    /// The page of an entry is in the frame now; the entry is to be replaced.
    pub(super) fn read(&mut self, found: Entry, frame: u64) {
        self.came += 1;
        self.copies.insert(frame, slot_of(found));
    }

    /// Slots in use.
    pub fn slots(&self) -> usize {
        self.named.len() - self.free.len()
    }
}

/// An entry that is not present and names a slot. It is not 0.
const fn entry_of(slot: u64) -> Entry {
    Entry((slot + 1) << 12)
}

const fn slot_of(found: Entry) -> u64 {
    (found.0 >> 12) - 1
}

/// Whether an entry of a table of level 1 names a slot.
pub(super) const fn is_swapped(found: Entry) -> bool {
    !found.is_present() && found.0 != 0
}

impl<I: Address, O: Address> AddressSpace<I, O> {
    fn small_leaf(&self, memory: &Memory<O>, page: u64) -> Option<Spot<O>> {
        let spot = self.spot(memory, page, 1);
        (spot.level == 1 && spot.entry.is_present()).then_some(spot)
    }

    /// Whether the small page at an address without sign extension was used since this was last
    /// asked: its accessed bit is cleared, without an invalidation, as on x86
    /// (`ptep_test_and_clear_young`). A page that is shared cannot go and counts as used. `None` if no
    /// small page is there.
    pub(crate) fn take_accessed(
        &self,
        memory: &mut Memory<O>,
        page: u64,
        observer: &mut impl Observer<I, O>,
    ) -> Option<bool> {
        let Spot { at, entry: found, .. } = self.small_leaf(memory, page)?;
        if memory.is_shared(found.frame(PageSize::SIZE_4K), PageSize::SIZE_4K) {
            return Some(true);
        }
        let used = found.has(entry::ACCESSED);
        if used {
            self.store(memory, at, found.without(entry::ACCESSED), observer);
        }
        Some(used)
    }

    /// Takes the small page out of memory. Returns whether the device had to write it; `None`, and
    /// nothing is done, if no small page is there that is nobody else's.
    pub(crate) fn swap_out(
        &self,
        memory: &mut Memory<O>,
        page: u64,
        observer: &mut impl Observer<I, O>,
    ) -> Option<bool> {
        let size = PageSize::SIZE_4K;
        let Spot { at, entry: found, .. } = self.small_leaf(memory, page)?;
        let frame: O = found.frame(size);
        if !self.can_move(memory, page, frame, size) {
            return None;
        }
        let swap = memory.swap.as_mut()?;
        let copy = swap.copies.remove(&frame.page_number());
        let slot = match copy {
            Some(slot) if !found.has(entry::DIRTY) => slot,
            stale => {
                stale.into_iter().for_each(|slot| swap.forget(slot));
                swap.slot()
            }
        };
        let written = copy != Some(slot) || found.has(entry::DIRTY);
        self.store(memory, at, Entry(0), observer);
        let start = self.typed(page);
        observer.invalidate(Flush::Pages { start, stride: size, count: 1, tables: false });
        self.store(memory, at, entry_of(slot), observer);
        if written {
            observer.written_out(frame);
        }
        memory.counters.leaves[size_index(size)] -= 1;
        memory.release(frame, size);
        Some(written)
    }
}
