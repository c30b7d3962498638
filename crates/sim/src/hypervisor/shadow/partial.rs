//! Shadows of a part of the guest's tables, for agile paging (Gandhi et al., ISCA 2016, section III).
//!
//! A guest table page is *shadowed*, as everywhere else, or *nested*: the guest stores to it as it
//! likes, and hardware walks it and all tables below it in two dimensions. The entry of the table
//! above, if that is shadowed, is then a *switching entry*: it has the bit [`SWITCH`] and the
//! host-physical address of the guest's table in place of a shadow page's.
//!
//! The hypervisor remembers the nested tables that a shadowed table points to, or that are roots; what
//! is below them is nested by that alone. It forgets one with the last switching entry that leads to it,
//! so that a table that the guest frees and makes anew begins in shadow mode.

use super::fault::GuestWalk;
use super::{NONE, PageId, ShadowMmu};
use crate::hardware::Request;
use crate::hardware::walk::agile::{Homes, SWITCH};
use crate::measure::counters::ExitReason;
use crate::scheme::{MachineError, Platform};
use nestwalk_tables::entry::{ACCESSED, LARGE, NO_EXECUTE, PRESENT, USER, WRITE};
use nestwalk_tables::{Entry, Level, TableMemory};
use nestwalk_types::{Address, ByNumber, Gpa, Hpa};
use rustc_hash::FxHashMap;

/// What is known of nested guest tables.
#[derive(Default)]
pub(super) struct Partial {
    /// Guest frame and level of the nested tables below which all is nested.
    pub(super) nested: ByNumber<Level>,
    /// Switching entries by the guest frame that they lead to.
    pub(super) switches: FxHashMap<u64, Vec<Hpa>>,
    pub(super) homes: Homes,
}

fn index_of(spte: Hpa) -> u64 {
    spte.value() >> 3 & 511
}

impl ShadowMmu {
    /// Guest tables that are nested and have no nested table above them, by guest frame.
    pub const fn nested_tables(&self) -> &ByNumber<Level> {
        &self.partial.nested
    }

    /// Whether any shadow page stands for the guest frame.
    pub fn is_shadowed(&self, gfn: u64) -> bool {
        self.by_guest.contains_key(&gfn)
    }

    /// Guest frames from `from` to before `to` that are shadowed, ascending.
    pub fn shadowed_between(&self, from: u64, to: u64) -> Vec<u64> {
        let regions = (from >> 9..=(to - 1) >> 9).filter(|r| self.shadowed_in_2m.contains_key(r));
        let frames = regions.flat_map(|r| (r << 9).max(from)..((r + 1) << 9).min(to));
        frames.filter(|gfn| self.is_shadowed(*gfn)).collect()
    }

    /// Whether a store to the guest frame exits.
    pub fn sees_store(&self, gfn: u64) -> bool {
        let Some(&first) = self.by_guest.get(&gfn) else { return false };
        let mut page = first;
        while page != NONE {
            if !self.pages[page as usize].unsync {
                return true;
            }
            page = self.pages[page as usize].next_same;
        }
        self.is_protected(first)
    }

    /// The tables that the hardware walks, and where switching entries lead.
    pub fn tables_and_homes(&mut self) -> (&mut TableMemory<Hpa>, &Homes) {
        (&mut self.memory, &self.partial.homes)
    }

    /// Whether the vCPU holds a usable shadow of this root, its current one or one before.
    pub fn holds_root(&self, vcpu: usize, gfn: u64, pcid: u16) -> bool {
        let roots = &self.roots[vcpu];
        let mut known = roots.current.iter().chain(&roots.previous);
        known.any(|r| r.gfn == gfn && r.pcid == pcid && !self.pages[r.page as usize].obsolete)
    }

    /// A nested table from now on, if it becomes reachable from a shadowed one.
    pub fn remember_nested(&mut self, gfn: u64, level: Level) {
        self.partial.nested.insert(gfn, level);
    }

    /// A nested table is a root now, unless it is known to be a table below one (a vCPU may still have
    /// the root of a process in CR3 that has ended, whose frame is another table by now).
    pub fn remember_root(&mut self, gfn: u64) {
        if !self.partial.switches.contains_key(&gfn) {
            self.partial.nested.insert(gfn, self.guest_mode.levels);
        }
    }

    /// A shadowed guest table becomes nested, and with it what is below: the shadows go, and the
    /// entries that led to them become switching entries. Returns its level, or `None` if nothing led
    /// to it and it is no root, so that it is no table any more as far as the hypervisor knows.
    ///
    /// # Errors
    /// Host memory is exhausted.
    pub fn make_nested(
        &mut self,
        platform: &mut Platform,
        gfn: u64,
    ) -> Result<Option<Level>, MachineError> {
        let mut chain = Vec::new();
        let mut page = self.by_guest.get(&gfn).copied().unwrap_or(NONE);
        while page != NONE {
            chain.push(page);
            page = self.pages[page as usize].next_same;
        }
        let level = chain.iter().map(|p| self.pages[*p as usize].level).max().unwrap_or(1);
        let mut leading: Vec<(Hpa, u64)> = Vec::new();
        for page in &chain {
            for parent in &self.pages[*page as usize].parents {
                leading.push((*parent, self.memory.read(*parent, 8).unwrap_or(0)));
            }
        }
        for page in chain {
            self.zap_all_below(platform, page);
        }
        let is_root = level == self.guest_mode.levels;
        if leading.is_empty() && !is_root {
            self.settle(platform);
            return Ok(None);
        }
        self.partial.nested.insert(gfn, level);
        for (spte, entry) in leading {
            // An entry of a table that went with the rest is in no memory any more; the root of a 32-bit
            // guest's shadow, above which is only the register, has no use for a switch.
            if self.memory.contains(spte) && !is_root {
                self.store_switch(platform, spte, Entry(entry), gfn)?;
            }
        }
        self.allow_stores(gfn);
        self.settle(platform);
        Ok(Some(level))
    }

    /// The entries by which the guest kernel stores to the table have the permission again.
    fn allow_stores(&mut self, gfn: u64) {
        if self.is_shadowed(gfn) {
            return;
        }
        for spte in self.rmap.entries(gfn) {
            let entry = Entry(self.memory.read(spte, 8).unwrap_or(0));
            if entry.has(super::protect::GUEST_WRITE) && !entry.has(LARGE) {
                self.memory.write(spte, 8, entry.with(WRITE).0);
            }
        }
    }

    /// A nested table is shadowed again, as faults come by: the entries that led to it go.
    pub fn make_shadowed(&mut self, platform: &mut Platform, gfn: u64) {
        self.partial.nested.remove(gfn);
        self.clear_switches(gfn);
        self.settle(platform);
    }

    /// A nested table is below another: it is remembered on its own only while entries lead to it.
    pub fn forget_covered(&mut self, gfn: u64) {
        if !self.partial.switches.contains_key(&gfn) {
            self.partial.nested.remove(gfn);
        }
    }

    /// Drops all shadows of a guest table, and what only they lead to.
    pub fn drop_shadows_of(&mut self, platform: &mut Platform, gfn: u64) {
        while let Some(&page) = self.by_guest.get(&gfn) {
            self.zap_all_below(platform, page);
        }
        self.settle(platform);
    }

    /// Drops the switching entries that lead to a guest frame: what a change of the host's mapping asks
    /// for. They are made anew as faults come by. The flush is owed.
    pub fn clear_switches(&mut self, gfn: u64) {
        for spte in self.partial.switches.remove(&gfn).unwrap_or_default() {
            self.memory.write(spte, 8, 0);
            self.flush_owed = true;
        }
    }

    /// Shadows a leaf table ahead of all faults: what the guest has used of it and the host has
    /// pages for. `request` is any access through the table on a vCPU in whose address space it is.
    ///
    /// # Errors
    /// The host has no frame for a shadow page.
    pub fn fill_table(
        &mut self,
        platform: &mut Platform,
        request: &Request,
    ) -> Result<(), MachineError> {
        let mode = self.guest_mode;
        let mut walk = GuestWalk::new();
        walk.leaf = 1;
        let mut table = platform.cpu.world.roots[request.core()];
        for level in (2..=mode.levels).rev() {
            let at = mode.entry_at(table, request.gva.value(), level);
            let entry = Entry(platform.cpu.world.guest.read(at, mode.entry_bytes).unwrap_or(0));
            let large = mode.may_be_leaf(level) && entry.has(LARGE);
            let used = entry.has(PRESENT) && (mode.root_in_registers || entry.has(ACCESSED));
            if !used || large || self.live + u64::from(mode.levels) >= self.quota {
                return Ok(());
            }
            walk.entries[level as usize] = entry;
            table = entry.target();
            if self.partial.nested.contains(table.page_number()) {
                return Ok(());
            }
        }
        self.hardware_root(platform, request.core())?;
        let page = self.fetch(platform, request, &walk, 1)?;
        for index in 0..512 {
            let spte = self.spte_at(page, index);
            let at = self.guest_entry_at(page, index);
            let guest = Entry(platform.cpu.world.guest.read(at, mode.entry_bytes).unwrap_or(0));
            let there = self.memory.read(spte, 8).unwrap_or(0) & PRESENT != 0;
            if there || !guest.has(PRESENT | ACCESSED) {
                continue;
            }
            let gfn = guest.target::<Gpa>().page_number();
            platform.cpu.counters.shadow_prefetches +=
                u64::from(self.prefill(platform, page, index, gfn, guest));
        }
        self.settle(platform);
        Ok(())
    }

    /// Drops a shadow page and what only it leads to.
    fn zap_all_below(&mut self, platform: &mut Platform, page: PageId) {
        let p = &self.pages[page as usize];
        if !p.live || p.obsolete {
            return;
        }
        let (table, level) = (p.table, p.level);
        let mut children = Vec::new();
        if level > 1 {
            for index in 0..512 {
                let word = self.memory.read(table.offset_by(index * 8), 8).unwrap_or(0);
                let entry = Entry(word);
                if entry.is_present() && !entry.has(LARGE) && !entry.has(SWITCH) {
                    children.push(self.by_table[&entry.target::<Hpa>().page_number()]);
                }
            }
        }
        self.zap(platform, page);
        for child in children {
            let c = &self.pages[child as usize];
            if c.live && c.parents.is_empty() && c.holders == 0 {
                self.zap_all_below(platform, child);
            }
        }
    }

    /// Makes a shadow entry a switching entry, with the permissions of `like`.
    fn store_switch(
        &mut self,
        platform: &mut Platform,
        spte: Hpa,
        like: Entry,
        gfn: u64,
    ) -> Result<(), MachineError> {
        let gpa = Gpa::new(gfn << 12);
        let (frame, size) = platform.host_page(gpa)?;
        let pointer = Entry::table(frame.offset_by(gpa.offset_in(size))).without(WRITE | USER);
        let entry = pointer.with(like.0 & (WRITE | USER | NO_EXECUTE) | SWITCH);
        self.memory.write(spte, 8, entry.0);
        let page = self.memory.open(spte);
        self.partial.homes.set(page, index_of(spte), gfn);
        self.partial.switches.entry(gfn).or_default().push(spte);
        Ok(())
    }

    /// A switching entry is no more.
    pub(super) fn forget_switch(&mut self, spte: Hpa) {
        let gfn = self.partial.homes.of(self.memory.open(spte), index_of(spte)).page_number();
        if let Some(entries) = self.partial.switches.get_mut(&gfn) {
            entries.retain(|e| *e != spte);
            if entries.is_empty() {
                self.partial.switches.remove(&gfn);
                self.partial.nested.remove(gfn);
            }
        }
    }

    /// Answers a fault whose address leads through a nested table with the switching entry to it.
    /// Whether the access is allowed is for the hardware to find, without an exit. Returns `false` if
    /// there is no such table.
    pub(super) fn fill_switch(
        &mut self,
        platform: &mut Platform,
        request: &Request,
    ) -> Result<bool, MachineError> {
        if self.partial.nested.is_empty() {
            return Ok(false);
        }
        let mode = self.guest_mode;
        let mut walk = GuestWalk::new();
        walk.leaf = 1;
        let mut table = platform.cpu.world.roots[request.core()];
        let mut passed = Vec::with_capacity(usize::from(mode.levels));
        for level in (2..=mode.levels).rev() {
            let at = mode.entry_at(table, request.gva.value(), level);
            let entry = Entry(platform.cpu.world.guest.read(at, mode.entry_bytes).unwrap_or(0));
            if !entry.is_present() || (mode.may_be_leaf(level) && entry.has(LARGE)) {
                return Ok(false);
            }
            walk.entries[level as usize] = entry;
            passed.push(at);
            table = entry.target();
            let gfn = table.page_number();
            if !self.partial.nested.contains(gfn) {
                continue;
            }
            self.partial.nested.insert(gfn, level - 1);
            for at in passed {
                platform.cpu.world.guest.set_bits(at, ACCESSED);
            }
            self.hardware_root(platform, request.core())?;
            let page = self.fetch(platform, request, &walk, level)?;
            let spte = self.spte_at(page, self.mode.index(request.gva.value(), level));
            self.drop_entry(spte);
            self.partial.nested.insert(gfn, level - 1);
            self.store_switch(platform, spte, entry, gfn)?;
            platform.locked_exit(ExitReason::HiddenFault);
            platform.cpu.counters.shadow_fills += 1;
            self.settle(platform);
            return Ok(true);
        }
        Ok(false)
    }
}
