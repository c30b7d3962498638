//! Write protection of shadowed guest tables, and how a leaf table loses it.
//!
//! A shadow entry that maps a guest table allows stores only while nobody relies on the table's
//! contents (`mmu_need_write_protect`):
//!
//! - A frame that is shadowed above the leaf level is never writable. A store to it is emulated.
//! - A leaf table that is in step becomes out of step when an entry that allows stores is made for it,
//!   by whatever fault; this needs no exit of its own.
//! - When a frame becomes shadowed, or a leaf table comes back in step, every entry that maps it,
//!   large ones included, loses its permission (`rmap_write_protect`).
//!
//! The stores themselves come as table events, which count the exit of each. Where the stream shows
//! the kernel's stores as runs, too, the run of an emulated store must not count it again: the entry
//! allows stores for the one walk that follows, as if the hardware had made the store for the VMM, and
//! the translation of that walk stays in the TLB. So later stores of the stream find it there, and
//! results do not depend on how the stream is cut into runs; a flush follows when the shadow goes.

use super::observe::ShadowEvent;
use super::{NONE, PageId, ShadowMmu};
use crate::measure::counters::ExitReason;
use crate::scheme::Platform;
use nestwalk_tables::Entry;
use nestwalk_tables::entry::{DIRTY, LARGE, WRITE};
use nestwalk_types::{Address, Gpa, Hpa, PageSize};

/// Software bit 10 of a shadow leaf: the guest's entry allows stores (`SPTE_MMU_WRITEABLE`). Without
/// the hardware's bit beside it, the frame is a protected table.
pub(super) const GUEST_WRITE: u64 = 1 << 10;

impl ShadowMmu {
    /// Whether each store to the guest frame exits: it is shadowed above the leaf level, or no table may
    /// go out of sync.
    pub(super) fn is_protected(&self, first: PageId) -> bool {
        if !self.rules.out_of_sync {
            return true;
        }
        let mut page = first;
        while page != NONE {
            if self.pages[page as usize].level > 1 {
                return true;
            }
            page = self.pages[page as usize].next_same;
        }
        false
    }

    /// Whether a store to the guest frame is emulated.
    pub(super) fn emulates(&self, gfn: u64) -> bool {
        self.by_guest.get(&gfn).is_some_and(|&first| self.is_protected(first))
    }

    /// Puts every leaf shadow of a guest frame out of step. Returns whether one was in step.
    fn mark_unsync(&mut self, first: PageId) -> bool {
        let mut marked = false;
        let mut page = first;
        while page != NONE {
            let p = &mut self.pages[page as usize];
            if !p.unsync {
                p.unsync = true;
                self.unsync.push(page);
                self.tell_page(page, ShadowEvent::Unsync);
                marked = true;
            }
            page = self.pages[page as usize].next_same;
        }
        marked
    }

    /// The first store to a leaf table since it was in step exits; from then on stores are free.
    pub(super) fn unsync(&mut self, platform: &mut Platform, first: PageId) {
        if self.mark_unsync(first) {
            platform.locked_exit(ExitReason::TableUnsync);
            // The entry by which the store came; the VMM finds it in the same exit.
            for spte in self.rmap.entries(self.pages[first as usize].gfn) {
                let entry = Entry(self.memory.read(spte, 8).unwrap_or(0));
                if entry.has(GUEST_WRITE) && !entry.has(LARGE) {
                    self.memory.write(spte, 8, entry.with(WRITE | DIRTY).0);
                }
            }
        }
    }

    /// A 4 KiB leaf for `gfn` as it may be stored: without permission to store if the frame is a
    /// protected table. `force` puts a leaf table out of step instead; otherwise an entry stays
    /// writable only if it `was`. The second value says whether a table went out of step.
    pub(super) fn limited(
        &mut self,
        gfn: u64,
        leaf: Entry,
        was: bool,
        force: bool,
    ) -> (Entry, bool) {
        if !leaf.has(WRITE) || (was && !force) {
            return (leaf, false);
        }
        let Some(&first) = self.by_guest.get(&gfn) else { return (leaf, false) };
        if !force || self.is_protected(first) {
            return (leaf.without(WRITE), false);
        }
        (leaf, self.mark_unsync(first))
    }

    /// A guest frame becomes shadowed: no entry may allow stores to it, and if its new role is above
    /// the leaf level its older leaf shadows are brought in step, since it is protected from now on.
    pub(super) fn protect(&mut self, platform: &mut Platform, page: PageId) {
        let (gfn, level) = (self.pages[page as usize].gfn, self.pages[page as usize].level);
        let older = self.by_guest.insert(gfn, page);
        self.pages[page as usize].next_same = older.unwrap_or(NONE);
        *self.shadowed_in_2m.entry(gfn >> 9).or_default() += 1;
        self.direct_map.protect(gfn);
        self.write_protect(gfn);
        if level > 1 {
            let mut other = self.pages[page as usize].next_same;
            while other != NONE {
                if self.pages[other as usize].unsync {
                    self.sync_page(platform, other);
                }
                other = self.pages[other as usize].next_same;
            }
        }
    }

    /// Takes the permission to store from every entry that maps the frame, small or large. A store by
    /// a large one finds that it must be split (`disallow_lpage`).
    pub(super) fn write_protect(&mut self, gfn: u64) {
        for size in [PageSize::SIZE_4K, PageSize::SIZE_2M, PageSize::SIZE_1G] {
            let base = gfn & !(size.base_pages() - 1);
            for spte in self.rmap.entries(base) {
                let entry = Entry(self.memory.read(spte, 8).unwrap_or(0));
                let owner = self.by_table[&spte.page_number()];
                let covers = self.mode.span(self.pages[owner as usize].level);
                if covers >= size && entry.has(WRITE) {
                    self.memory.write(spte, 8, entry.without(WRITE).0);
                    self.flush_owed = true;
                }
            }
        }
    }

    /// The walk that comes next may store by this entry.
    pub(super) fn begin_emulation(&mut self, spte: Hpa) {
        self.tell(ShadowEvent::Emulated);
        if let Some(entry) = self.memory.read(spte, 8) {
            self.emulated = Some((spte, entry));
            self.memory.write(spte, 8, entry | WRITE | DIRTY);
        }
    }

    /// The walk was made.
    #[inline]
    pub fn end_emulation(&mut self) {
        if let Some((spte, entry)) = self.emulated.take() {
            self.memory.write(spte, 8, entry);
        }
    }

    /// The guest stored to a page that was one of its tables until it was freed. The hypervisor does
    /// not know that and treats it as a table that is overwritten.
    pub fn table_reused(&mut self, platform: &mut Platform, gpa: Gpa) {
        self.overwrite(platform, gpa.page_number());
        self.settle(platform);
    }
}
