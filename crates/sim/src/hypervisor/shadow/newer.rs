//! What KVM's shadow MMU does otherwise since Linux 4.19, seen on Linux 6.1.192 and 6.12.117
//! (`mmu.c`, `paging_tmpl.h`, `spte.c`; `docs/conformance.md` has the comparison, event by event):
//!
//! - A shadow page is also found by what the entries above it permit (`role.access`), its leaves permit
//!   no more, and the entries that lead to it permit everything.
//! - An entry that is filled ahead puts no leaf table out of step: it is read-only (6.1).
//! - A store to a write-tracked frame by an entry that is there is emulated at once, without a look at
//!   the shadow tables; if the entry was not there, it is filled, and its neighbours with it.
//! - An emulated store fills no leaf entry anew.
//! - A page that becomes shadowed above the leaf level drops its leaf shadows that are out of step.
//! - Dropping a page drops the leaf tables out of step below it.
//! - A page that is linked has all tables below it brought in step first, in order of their addresses.
//! - Room is made ahead of a fault, 25 pages at a time, if fewer than 5 are left.
//! - A root that was dropped is loaded anew before the guest goes on.
//! - A fault that goes to the guest although it has the page acts as INVLPG on the current root (5.8).
//! - Pieces of a large page are filled ahead whatever its accessed bit was.
//! - An entry that was writable and is stored again loses its dirty bit, which the hardware sets again.
//! - INVLPG compares the entry (6.12), and fills it no more; comparing leaves an entry as it is whose
//!   permissions are the same (6.12).

use super::fault::GuestWalk;
use super::observe::ShadowEvent;
use super::protect::GUEST_WRITE;
use super::{Access, FLOOD, FULL, NONE, PageId, Role, ShadowMmu};
use crate::hardware::Request;
use crate::scheme::Platform;
use crate::scheme::vmm_options::KvmVersion;
use nestwalk_tables::entry::{ACCESSED, DIRTY, LARGE, NO_EXECUTE, PRESENT, USER, WRITE};
use nestwalk_tables::{Entry, Level};
use nestwalk_types::{Address, Hpa};

/// Shadow pages that must be left before a fault (`KVM_MIN_FREE_MMU_PAGES`).
const LEFT_FREE: u64 = 5;
/// How many are left after room was made (`KVM_REFILL_PAGES`).
const REFILL: u64 = 25;

/// Whether INVLPG fills the entry of a table that is out of step.
pub(super) const fn invlpg_fills(kvm: KvmVersion) -> bool {
    !matches!(kvm, KvmVersion::V6_12)
}

/// Whether comparing leaves an entry whose permissions are still the guest's as it is, even if it is
/// read-only for a table that is none any more.
pub(super) const fn leaves_same_permissions(kvm: KvmVersion, old: Entry, wanted: Entry) -> bool {
    const TOLD: u64 = GUEST_WRITE | USER | NO_EXECUTE;
    matches!(kvm, KvmVersion::V6_12) && old.0 & TOLD == wanted.0 & TOLD
}

/// A guest's entry with no more permissions than these.
fn restricted(entry: Entry, access: Access) -> Entry {
    entry.without(!access & FULL).with(access & NO_EXECUTE)
}

impl ShadowMmu {
    /// What the guest's entries above `level` permit.
    pub(super) fn inherited(&self, walk: &GuestWalk, level: Level) -> Access {
        if !self.rules.kvm.is_newer() {
            return FULL;
        }
        // Entries in registers have no permissions.
        let top = self.guest_mode.levels - u8::from(self.guest_mode.root_in_registers);
        (level + 1..=top).fold(FULL, |access, above| {
            let entry = walk.entries[usize::from(above)].0;
            access & (entry | NO_EXECUTE) | entry & NO_EXECUTE
        })
    }

    /// The entry that a leaf takes the place of, if it maps the same frame; otherwise that goes first.
    pub(super) fn same_leaf(&self, old: Entry, leaf: Entry, level: Level) -> Entry {
        let is_leaf = level == 1 || old.has(LARGE);
        let same = is_leaf && old.target::<Hpa>() == leaf.target::<Hpa>();
        if same || !self.rules.kvm.is_newer() { old } else { Entry(0) }
    }

    /// A leaf as it is stored: what is filled ahead was not accessed yet, and a store by an entry that
    /// was writable already sets the dirty bit again (`make_spte`).
    pub(super) fn finished(&self, leaf: Entry, old: Entry, ahead: bool) -> Entry {
        if !self.rules.kvm.is_newer() || self.rules.hardware_ad {
            return leaf;
        }
        let leaf = if ahead { leaf.without(ACCESSED) } else { leaf.with(ACCESSED) };
        let dirty = leaf.has(WRITE) && !old.has(PRESENT | WRITE);
        if dirty { leaf.with(DIRTY) } else { leaf.without(DIRTY) }
    }

    /// The guest's leaf with the permissions of the whole walk.
    pub(super) fn permitted(&self, walk: &GuestWalk) -> Entry {
        restricted(walk.entries[usize::from(walk.leaf)], self.inherited(walk, walk.leaf))
    }

    /// A guest's entry with what the tables above its table permit.
    pub(super) fn inherits(&self, page: PageId, guest: Entry) -> Entry {
        restricted(guest, self.pages[page as usize].inherited)
    }

    fn shadows_of(&self, gfn: u64) -> Vec<PageId> {
        let mut all = Vec::new();
        let mut page = self.by_guest.get(&gfn).copied().unwrap_or(NONE);
        while page != NONE {
            all.push(page);
            page = self.pages[page as usize].next_same;
        }
        all
    }

    /// Whether an entry that maps the frame must be read-only unless a table goes out of step for it.
    pub(super) fn is_in_step(&self, gfn: u64) -> bool {
        self.shadows_of(gfn).iter().any(|p| !self.pages[*p as usize].unsync)
    }

    /// A frame becomes shadowed in this role: above the leaf level, its shadows that are out of step go
    /// (`kvm_mmu_find_shadow_page`).
    pub(super) fn drop_out_of_step(&mut self, platform: &mut Platform, role: Role) {
        let (gfn, level, split, ..) = role;
        if level == 1 || split.is_some() {
            return;
        }
        for page in self.shadows_of(gfn) {
            if self.pages[page as usize].unsync {
                self.zap(platform, page);
            }
        }
    }

    /// Numbers of the entries that lead from `root` to a page, from above; the first way of several.
    fn way_to(&self, page: PageId, root: PageId) -> Option<Vec<u16>> {
        if page == root {
            return Some(Vec::new());
        }
        let parents = self.pages[page as usize].parents.iter();
        let ways = parents.filter_map(|spte| {
            let mut way = self.way_to(*self.by_table.get(&spte.page_number())?, root)?;
            way.push((spte.value() >> 3 & 511) as u16);
            Some(way)
        });
        ways.min()
    }

    /// Leaf tables out of step below a page, in order of their addresses (`mmu_unsync_walk`).
    fn unsync_below(&self, root: PageId) -> Vec<PageId> {
        let live = self.unsync.iter().filter(|p| {
            let p = &self.pages[**p as usize];
            p.live && p.unsync
        });
        let mut found: Vec<(Vec<u16>, PageId)> =
            live.filter_map(|p| Some((self.way_to(*p, root)?, *p))).collect();
        found.sort();
        found.dedup();
        found.into_iter().map(|(_, page)| page).collect()
    }

    /// Leaf tables out of step below a page that is dropped go with it (`mmu_zap_unsync_children`).
    pub(super) fn zap_unsync_below(&mut self, platform: &mut Platform, page: PageId) {
        if self.pages[page as usize].level == 1 || self.unsync.is_empty() {
            return;
        }
        for below in self.unsync_below(page) {
            if self.pages[below as usize].live && self.pages[below as usize].unsync {
                self.zap(platform, below);
            }
        }
    }

    /// Brings the leaf tables below a page in step: all are protected first (`mmu_sync_children`).
    pub(super) fn sync_below(&mut self, platform: &mut Platform, root: PageId) {
        if self.unsync.is_empty() {
            return;
        }
        let found = self.unsync_below(root);
        if found.is_empty() {
            return;
        }
        platform.lock();
        for page in &found {
            self.write_protect(self.pages[*page as usize].gfn);
        }
        for page in found {
            self.tell_page(page, ShadowEvent::Sync);
            self.pages[page as usize].unsync = false;
            self.compare(platform, page);
        }
        let pages = &self.pages;
        self.unsync.retain(|p| pages[*p as usize].live && pages[*p as usize].unsync);
    }

    /// An emulated store (`kvm_mmu_pte_write`).
    pub(super) fn emulate_newer(
        &mut self,
        platform: &mut Platform,
        first: PageId,
        guest_index: u64,
    ) {
        let gfn = self.pages[first as usize].gfn;
        for page in self.shadows_of(gfn) {
            let p = &mut self.pages[page as usize];
            if !p.live || p.obsolete || p.gfn != gfn {
                continue;
            }
            if p.level > 1 {
                p.flood += 1;
                if p.flood >= FLOOD {
                    platform.cpu.counters.flood_zaps += 1;
                    self.zap(platform, page);
                    continue;
                }
            }
            for index in self.entries_of(page, guest_index) {
                self.drop_entry(self.spte_at(page, index));
            }
        }
    }

    /// A root that was dropped while a vCPU holds it is loaded anew before the guest goes on
    /// (`KVM_REQ_MMU_FREE_OBSOLETE_ROOTS`).
    ///
    /// Without a frame for it, the next fault says so.
    pub(super) fn reload_obsolete(&mut self, platform: &mut Platform) {
        if !self.rules.kvm.is_newer() {
            return;
        }
        for vcpu in 0..self.roots.len() {
            let all = std::mem::take(&mut self.roots[vcpu].previous);
            for root in all {
                if self.pages[root.page as usize].obsolete {
                    self.release(platform, root.page);
                } else {
                    self.roots[vcpu].previous.push_back(root);
                }
            }
            let current = self.roots[vcpu].current;
            if current.is_some_and(|r| self.pages[r.page as usize].obsolete)
                && self.hardware_root(platform, vcpu).is_err()
            {
                self.roots[vcpu].current = None;
            }
        }
    }

    /// A fault on a page that the guest has goes to the guest, and acts as INVLPG on the current root
    /// (`kvm_inject_emulated_page_fault`, Linux 5.8 on).
    pub(super) fn fault_invalidates(&mut self, platform: &mut Platform, request: &Request) {
        let current = self.roots[request.core()].current;
        if let Some(root) = current.filter(|_| self.rules.kvm.is_newer()) {
            self.invalidate_page(platform, root.page, request.gva);
            self.settle(platform);
        }
    }

    /// Drops the oldest pages, if few are left (`make_mmu_pages_available`).
    pub(super) fn make_room(&mut self, platform: &mut Platform) {
        let left = self.quota.saturating_sub(self.live);
        if !self.rules.kvm.is_newer() || left >= LEFT_FREE {
            return;
        }
        let aim = self.live.saturating_sub(REFILL - left);
        let ages: Vec<_> = self.by_age.iter().copied().collect();
        for (page, generation) in ages {
            if self.live <= aim {
                break;
            }
            let p = &self.pages[page as usize];
            if p.live && p.generation == generation && p.holders == 0 {
                self.zap(platform, page);
            }
        }
        let pages = &self.pages;
        self.by_age.retain(|(page, generation)| {
            let p = &pages[*page as usize];
            p.live && p.generation == *generation
        });
    }

    /// The shadow's leaf entry by which a store to a write-tracked frame came, if it is there. The pages
    /// on the way to it are used (`page_fault_handle_page_track`, `shadow_page_table_clear_flood`).
    pub(super) fn tracked_store(&mut self, request: &Request) -> Option<Hpa> {
        let mut table = self.walk_root(request.core());
        let mut way = Vec::new();
        for level in (1..=self.mode.levels).rev() {
            let page = *self.by_table.get(&table.page_number())?;
            way.push(page);
            let at = self.mode.entry_at(table, request.gva.value(), level);
            let entry = Entry(self.memory.read(at, 8)?);
            if !entry.is_present() {
                return None;
            }
            if level == 1 || entry.has(LARGE) {
                way.iter().for_each(|p| self.pages[*p as usize].flood = 0);
                return Some(at);
            }
            table = entry.target();
        }
        None
    }
}
