//! Shadow pages: found, made, linked, compared and dropped.

use super::observe::ShadowEvent;
use super::{NONE, PageId, Role, ShadowMmu, ShadowPage};
use crate::hardware::walk::agile::SWITCH;
use crate::scheme::{MachineError, Platform};
use nestwalk_mm::HostMemory;
use nestwalk_tables::Entry;
use nestwalk_tables::entry::{LARGE, WRITE};
use nestwalk_types::{Address, Hpa, PageSize};

impl ShadowMmu {
    /// The shadow page of a guest table (or of a piece of a large guest page) at a level; made if
    /// there is none.
    pub(super) fn page(
        &mut self,
        platform: &mut Platform,
        role: Role,
    ) -> Result<PageId, MachineError> {
        if let Some(&page) = self.by_role.get(&role) {
            if !self.rules.write_protect {
                self.resync(platform, page);
            } else if self.pages[page as usize].unsync {
                // KVM compares it before it is linked, and leaves it out of sync.
                self.compare(platform, page);
            }
            if self.rules.kvm.is_newer() {
                self.pages[page as usize].flood = 0;
            }
            self.tell_page(page, |p| ShadowEvent::Got(p, false));
            return Ok(page);
        }
        if self.rules.kvm.is_newer() {
            self.drop_out_of_step(platform, role);
        } else {
            self.enforce_quota(platform);
        }
        let table =
            platform.host.as_mut().and_then(HostMemory::alloc_table).ok_or(
                MachineError::NoTableFrame { machine: String::new(), what: "shadow table" },
            )?;
        self.memory.insert(table, None);
        platform.cpu.counters.shadow_pages += 1;
        let page = self.free.pop().unwrap_or(self.pages.len() as PageId);
        let generation = self.pages.get(page as usize).map_or(0, |p| p.generation + 1);
        let (gfn, level, split, quadrant, inherited) = role;
        let fresh = ShadowPage {
            gfn,
            level,
            split,
            quadrant,
            inherited,
            table,
            unsync: false,
            flood: 0,
            holders: 0,
            parents: Vec::new(),
            gfns: None,
            next_same: NONE,
            generation,
            live: true,
            obsolete: false,
        };
        if page as usize == self.pages.len() {
            self.pages.push(fresh);
        } else {
            self.pages[page as usize] = fresh;
        }
        self.live += 1;
        self.by_role.insert(role, page);
        self.by_table.insert(table.page_number(), page);
        self.by_age.push_back((page, generation));
        if split.is_none() && self.rules.write_protect {
            self.protect(platform, page);
        }
        self.tell_page(page, |p| ShadowEvent::Got(p, true));
        Ok(page)
    }

    /// Drops the oldest pages until one more is allowed.
    fn enforce_quota(&mut self, platform: &mut Platform) {
        let mut spared = 0;
        while self.live >= self.quota && spared < self.by_age.len() {
            let Some((page, generation)) = self.by_age.pop_front() else { return };
            let p = &self.pages[page as usize];
            if !p.live || p.generation != generation {
                continue;
            }
            if p.holders > 0 {
                self.by_age.push_back((page, generation));
                spared += 1;
                continue;
            }
            self.zap(platform, page);
        }
    }

    /// Drops a shadow page: its entries, the entries that point to it, and its memory, unless a vCPU
    /// holds it as root.
    pub(super) fn zap(&mut self, platform: &mut Platform, page: PageId) {
        platform.cpu.counters.shadow_zaps += 1;
        self.tell_page(page, ShadowEvent::Zapped);
        if self.rules.kvm.is_newer() {
            self.zap_unsync_below(platform, page);
        }
        let (table, role) = {
            let p = &self.pages[page as usize];
            (p.table, p.role())
        };
        for index in 0..512 {
            self.drop_entry(table.offset_by(index * 8));
        }
        for parent in std::mem::take(&mut self.pages[page as usize].parents) {
            self.memory.write(parent, 8, 0);
        }
        self.by_role.remove(&role);
        if role.2.is_none() {
            self.unprotect(page);
        }
        self.flush_owed = true;
        if self.pages[page as usize].unsync {
            self.tell_page(page, ShadowEvent::Sync);
        }
        let p = &mut self.pages[page as usize];
        p.unsync = false;
        if p.holders == 0 {
            self.free_page(platform, page);
        } else {
            p.obsolete = true;
        }
    }

    fn unprotect(&mut self, page: PageId) {
        let (gfn, next) = {
            let p = &self.pages[page as usize];
            (p.gfn, p.next_same)
        };
        if self.by_guest.get(&gfn) == Some(&page) {
            if next == NONE {
                self.by_guest.remove(&gfn);
            } else {
                self.by_guest.insert(gfn, next);
            }
        } else if let Some(&first) = self.by_guest.get(&gfn) {
            let mut at = first;
            while self.pages[at as usize].next_same != page {
                at = self.pages[at as usize].next_same;
            }
            self.pages[at as usize].next_same = next;
        }
        if let Some(count) = self.shadowed_in_2m.get_mut(&(gfn >> 9)) {
            *count -= 1;
            if *count == 0 {
                self.shadowed_in_2m.remove(&(gfn >> 9));
            }
        }
    }

    pub(super) fn free_page(&mut self, platform: &mut Platform, page: PageId) {
        let p = &mut self.pages[page as usize];
        p.live = false;
        p.gfns = None;
        let table = p.table;
        self.by_table.remove(&table.page_number());
        self.memory.remove(table);
        if let Some(host) = &mut platform.host {
            host.free_table(table);
        }
        self.free.push(page);
        self.live -= 1;
    }

    /// Clears an entry and what it implies: the reverse map of a leaf, the parent link of a table.
    /// Returns whether it was present; if so, hardware may still know it.
    pub(super) fn drop_entry(&mut self, spte: Hpa) -> bool {
        let Some(old) = self.memory.read(spte, 8).map(Entry).filter(|e| e.is_present()) else {
            return false;
        };
        self.memory.write(spte, 8, 0);
        let owner = self.by_table[&spte.page_number()];
        let level = self.pages[owner as usize].level;
        if level == 1 || old.has(LARGE) {
            let gfn = self.mapped_gfn(owner, spte);
            self.rmap.remove(gfn, spte);
            self.dropped += 1;
        } else if old.has(SWITCH) {
            self.forget_switch(spte);
        } else {
            let child = self.by_table[&old.target::<Hpa>().page_number()];
            self.pages[child as usize].parents.retain(|p| *p != spte);
        }
        self.flush_owed = true;
        true
    }

    /// Pays the flush that dropped or narrowed entries owe, before the guest runs again
    /// (`kvm_flush_remote_tlbs`).
    pub(super) fn settle(&mut self, platform: &mut Platform) {
        platform.cpu.counters.shadow_drops += std::mem::take(&mut self.dropped);
        if std::mem::take(&mut self.flush_owed) {
            platform.flush_remote();
        }
    }

    /// The guest frame that a leaf entry maps.
    pub(super) fn mapped_gfn(&self, owner: PageId, spte: Hpa) -> u64 {
        let p = &self.pages[owner as usize];
        let index = (spte.value() >> 3 & 511) as usize;
        match &p.gfns {
            Some(gfns) => u64::from(gfns[index] - 1),
            None => p.gfn + index as u64 * self.mode.span(p.level).base_pages(),
        }
    }

    /// Stores a leaf entry that maps `gfn`.
    pub(super) fn set_leaf(&mut self, page: PageId, index: u64, gfn: u64, entry: Entry) {
        let spte = self.spte_at(page, index);
        let old = Entry(self.memory.read(spte, 8).unwrap_or(0));
        if old.is_present() {
            let same =
                old.target::<Hpa>() == entry.target::<Hpa>() && old.has(LARGE) == entry.has(LARGE);
            let level = self.pages[page as usize].level;
            if same && (level == 1 || old.has(LARGE)) && self.mapped_gfn(page, spte) == gfn {
                self.memory.write(spte, 8, entry.0);
                if old != entry {
                    self.tell_leaf(page, index, gfn, entry);
                }
                return;
            }
            self.drop_entry(spte);
        }
        if self.pages[page as usize].split.is_none() {
            let gfns = self.pages[page as usize].gfns.get_or_insert_with(|| Box::new([0; 512]));
            gfns[index as usize] = gfn as u32 + 1;
        }
        self.memory.write(spte, 8, entry.0);
        self.tell_leaf(page, index, gfn, entry);
        self.rmap.add(gfn, spte);
    }

    /// The lower shadow page that an entry points to.
    pub(super) fn linked(&self, spte: Hpa) -> Option<PageId> {
        let entry = self.memory.read(spte, 8).map(Entry)?;
        let leads_down = entry.is_present() && !entry.has(LARGE) && !entry.has(SWITCH);
        leads_down.then(|| self.by_table[&entry.target::<Hpa>().page_number()])
    }

    /// Points an entry to a lower shadow page.
    pub(super) fn link(&mut self, spte: Hpa, child: PageId, entry: Entry) {
        self.memory.write(spte, 8, entry.0);
        self.pages[child as usize].parents.push(spte);
    }

    /// Compares an out-of-sync leaf page with the guest's table (`sync_page`): entries whose guest
    /// entry changed are dropped or corrected. Entries that are not there are not filled.
    pub(super) fn compare(&mut self, platform: &mut Platform, page: PageId) {
        platform.cpu.counters.sync_entries += 512;
        for index in 0..512u64 {
            self.compare_entry(platform, page, index);
        }
    }

    pub(super) fn compare_entry(&mut self, platform: &mut Platform, page: PageId, index: u64) {
        let spte = self.spte_at(page, index);
        let old = Entry(self.memory.read(spte, 8).unwrap_or(0));
        if !old.is_present() {
            return;
        }
        platform.cpu.counters.sync_present += 1;
        let at = self.guest_entry_at(page, index);
        let guest =
            Entry(platform.cpu.world.guest.read(at, self.guest_mode.entry_bytes).unwrap_or(0));
        let guest = self.inherits(page, guest);
        let frame = guest.target::<nestwalk_types::Gpa>().page_number();
        if !guest.has(self.fillable()) || frame != self.mapped_gfn(page, spte) {
            self.drop_entry(spte);
            return;
        }
        let wanted = super::fault::with_permissions(old, guest, self.rules.hardware_ad);
        if super::newer::leaves_same_permissions(self.rules.kvm, old, wanted) {
            return;
        }
        let (wanted, _) = self.limited(frame, wanted, old.has(WRITE), false);
        let wanted = self.finished(wanted, old, true);
        if wanted != old {
            self.memory.write(spte, 8, wanted.0);
            self.flush_owed = true;
        }
    }

    /// Brings a leaf page in step and protects it again.
    pub(super) fn sync_page(&mut self, platform: &mut Platform, page: PageId) {
        self.write_protect(self.pages[page as usize].gfn);
        self.tell_page(page, ShadowEvent::Sync);
        self.compare(platform, page);
        self.pages[page as usize].unsync = false;
    }

    /// Brings all leaf pages below a root in step (`mmu_sync_roots`).
    pub(super) fn sync_root(&mut self, platform: &mut Platform, root: PageId) {
        if !self.rules.write_protect {
            platform.lock();
            return self.resync(platform, root);
        }
        if self.unsync.is_empty() {
            return;
        }
        if self.rules.kvm.is_newer() {
            return self.sync_below(platform, root);
        }
        platform.lock();
        let mut waiting = std::mem::take(&mut self.unsync);
        waiting.retain(|&page| {
            let p = &self.pages[page as usize];
            if !p.live || !p.unsync {
                return false;
            }
            if !self.is_below(page, root) {
                return true;
            }
            self.sync_page(platform, page);
            false
        });
        waiting.append(&mut self.unsync);
        self.unsync = waiting;
    }

    pub(super) fn is_below(&self, page: PageId, root: PageId) -> bool {
        page == root
            || self.pages[page as usize].parents.iter().any(|p| {
                self.by_table.get(&p.page_number()).is_some_and(|&up| self.is_below(up, root))
            })
    }

    /// Whether any guest table is shadowed in the page of `size` that begins at `gfn`.
    pub(super) fn is_shadowed_within(&self, gfn: u64, size: PageSize) -> bool {
        let regions = (size.base_pages() >> 9).max(1);
        (0..regions).any(|i| self.shadowed_in_2m.contains_key(&((gfn >> 9) + i)))
    }

    /// Drops every entry that maps a guest frame: what a change of the host's mapping asks for. The
    /// flush is owed.
    pub fn drop_gfn(&mut self, gfn: u64) -> usize {
        let entries = self.rmap.entries(gfn);
        for spte in &entries {
            self.drop_entry(*spte);
        }
        entries.len()
    }
}
