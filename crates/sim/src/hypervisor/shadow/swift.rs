//! Shadow tables without write protection (Sha et al., "Swift shadow paging (SSP): no write-protection
//! but following TLB flushing", VEE 2021): stores to guest tables are the guest's own affair, and the
//! VMM looks at its tables when the guest flushes TLBs, which it must after each change that takes
//! something away. What gives something is found by the next fault.
//!
//! The abstract says that, and that a buffer of base addresses of shadow tables spares the exit at
//! changes of the address space. The rest is chosen:
//!
//! - *An address* that is flushed: the entries that lead to it are compared with the guest's, in each
//!   root at hand. An entry that is no shadow of the guest's any more is dropped.
//! - *An address space* that is flushed: all tables below its root are compared, at every level.
//! - *Roots.* A load of CR3 that keeps translations, of a root in the buffer, is no exit. Any other is
//!   one, and what is below the root is compared: the guest may have changed tables and relied on this
//!   load.
//! - *Tables that are found again* are compared, with all below them, before an entry points to them.
//! - *Flushes exit.* The publication's hardware has a privileged mode whose software meets them; of its
//!   costs nothing is known, so they cost what KVM's exits do.
//! - *Accessed and dirty bits* are as in KVM: a page that was not written is read-only, and an entry
//!   whose accessed bit the guest has cleared is dropped when it is compared.

use super::fault::{permission_bits, with_permissions};
use super::{PAE_ROOT, PageId, ShadowMmu};
use crate::scheme::Platform;
use nestwalk_tables::Entry;
use nestwalk_tables::entry::{ACCESSED, DIRTY, LARGE, NO_EXECUTE, PRESENT, USER, WRITE};
use nestwalk_types::{Address, Gpa, Gva, Hpa};
use rustc_hash::FxHashSet;

/// What an entry that points to a lower shadow page has of the guest's.
const POINTER: u64 = WRITE | USER | NO_EXECUTE;

/// Whether an entry permits as the guest's does, if it points to the shadow of a guest's table.
pub(super) const fn permits_alike(pointer: Entry, guest: Entry) -> bool {
    pointer.0 & POINTER == guest.0 & POINTER
}

impl ShadowMmu {
    /// Compares a shadow page and all below it with the guest's tables.
    pub(super) fn resync(&mut self, platform: &mut Platform, root: PageId) {
        let (mut seen, mut waiting) = (FxHashSet::default(), vec![root]);
        while let Some(page) = waiting.pop() {
            let p = &self.pages[page as usize];
            if !seen.insert(page) || p.split.is_some_and(|split| split != PAE_ROOT) {
                continue;
            }
            if p.level == 1 {
                self.compare(platform, page);
                continue;
            }
            platform.cpu.counters.sync_entries += 512;
            for index in 0..512 {
                self.compare_upper(platform, page, index);
                waiting.extend(self.linked(self.spte_at(page, index)));
            }
        }
    }

    /// Compares the entries of an address below a root.
    pub(super) fn resync_address(&mut self, platform: &mut Platform, root: PageId, gva: Gva) {
        let mut page = root;
        for level in (1..=self.mode.levels).rev() {
            if self.pages[page as usize].split.is_some_and(|split| split != PAE_ROOT) {
                return;
            }
            let index = self.mode.index(gva.value(), level);
            if level == 1 {
                self.compare_entry(platform, page, index);
                return;
            }
            self.compare_upper(platform, page, index);
            let Some(child) = self.linked(self.spte_at(page, index)) else { return };
            page = child;
        }
    }

    /// Drops an entry above the leaf level that is no shadow of the guest's.
    fn compare_upper(&mut self, platform: &mut Platform, page: PageId, index: u64) {
        let spte = self.spte_at(page, index);
        let old = Entry(self.memory.read(spte, 8).unwrap_or(0));
        if !old.is_present() {
            return;
        }
        platform.cpu.counters.sync_present += 1;
        // There is no guest table behind the root of a 32-bit guest's shadow.
        if self.pages[page as usize].split.is_none() && !self.shadows(platform, page, index, old) {
            self.drop_entry(spte);
        }
    }

    /// Whether an entry above the leaf level is what the guest's entry asks for.
    fn shadows(&self, platform: &Platform, page: PageId, index: u64, old: Entry) -> bool {
        let mode = self.guest_mode;
        let at = self.guest_entry_at(page, index);
        let guest = Entry(platform.cpu.world.guest.read(at, mode.entry_bytes).unwrap_or(0));
        let level = self.pages[page as usize].level;
        let in_register = mode.root_in_registers && level == mode.levels;
        if !guest.has(if in_register { PRESENT } else { self.fillable() }) {
            return false;
        }
        let large = mode.may_be_leaf(level) && guest.has(LARGE);
        // An entry of a 32-bit guest's directory maps 4 MiB, of which this is the first or second half.
        let half = if self.is_narrow() { index % 2 * 512 } else { 0 };
        let frame = guest.frame::<Gpa>(mode.span(level)).page_number() + half;
        let spte = self.spte_at(page, index);
        let Some(child) = self.linked(spte) else {
            let wanted = with_permissions(old, guest, self.rules.hardware_ad);
            let alike = wanted.without(ACCESSED | DIRTY) == old.without(ACCESSED | DIRTY);
            return large && alike && frame == self.mapped_gfn(page, spte);
        };
        let child = &self.pages[child as usize];
        match child.split {
            Some(split) => large && child.gfn == frame && split == permission_bits(guest),
            None => {
                let table = guest.target::<Gpa>().page_number();
                !large && child.gfn == table && permits_alike(old, guest)
            }
        }
    }

    /// Whether a lower shadow page that is linked may stay so: what leads to it permits what the guest's
    /// entry does. With write protection that is known.
    pub(super) fn may_stay(&self, spte: Hpa, direct: bool, guest: Entry) -> bool {
        self.rules.write_protect
            || direct
            || permits_alike(Entry(self.memory.read(spte, 8).unwrap_or(0)), guest)
    }
}
