//! Faults of the hardware on shadow tables: the guest's own, or the shadow's.

use super::observe::ShadowEvent;
use super::protect::GUEST_WRITE;
use super::{Access, FULL, PREFETCH, PageId, ShadowMmu};
use crate::hardware::Request;
use crate::hardware::walk::agile::SWITCH;
use crate::hypervisor::largest_leaf;
use crate::measure::counters::ExitReason;
use crate::scheme::{Handled, MachineError, Platform};
use nestwalk_tables::entry::{ACCESSED, DIRTY, LARGE, NO_EXECUTE, PRESENT, USER, WRITE};
use nestwalk_tables::{Entry, Level, MAX_LEVELS, Permissions};
use nestwalk_types::{Address, Gpa, Hpa, PageSize};

/// The guest's entries for an address, as the VMM reads them.
pub(super) struct GuestWalk {
    pub(super) entries: [Entry; MAX_LEVELS + 1],
    pub(super) leaf: Level,
    permissions: Permissions,
    /// The leaf was dirty before this access.
    was_dirty: bool,
}

impl GuestWalk {
    /// Before the first entry is read.
    pub(super) const fn new() -> Self {
        Self {
            entries: [Entry(0); MAX_LEVELS + 1],
            leaf: 0,
            permissions: Permissions::ALL,
            was_dirty: false,
        }
    }
}

/// A shadow leaf with the permissions that a guest leaf gives: a clean guest page is mapped read-only,
/// so that the first store exits and the guest's dirty bit can be set. A writable entry is dirty from
/// the start (`set_spte`).
///
/// With `hardware_ad` the entry permits what the guest's does and has its A and D bits, which the
/// hardware sets in both.
pub(super) fn with_permissions(spte: Entry, guest: Entry, hardware_ad: bool) -> Entry {
    let rest = spte.0 & !(WRITE | USER | NO_EXECUTE | GUEST_WRITE);
    if hardware_ad {
        let writable = if guest.has(WRITE) { GUEST_WRITE } else { 0 };
        let bits = guest.0 & (WRITE | USER | NO_EXECUTE | ACCESSED | DIRTY);
        return Entry(rest & !(ACCESSED | DIRTY) | bits | writable);
    }
    let bits = permission_bits(guest);
    let writable = if bits & WRITE == 0 { 0 } else { DIRTY | GUEST_WRITE };
    Entry(rest | bits | writable)
}

pub(super) fn permission_bits(guest: Entry) -> Access {
    let write = if guest.has(WRITE | DIRTY) { WRITE } else { 0 };
    guest.0 & (USER | NO_EXECUTE) | write
}

impl ShadowMmu {
    /// Answers a fault of the hardware (`FNAME(page_fault)`).
    ///
    /// # Errors
    /// Host memory is exhausted, or the guest maps an address that is no guest memory.
    pub fn page_fault(
        &mut self,
        platform: &mut Platform,
        request: &Request,
    ) -> Result<Handled, MachineError> {
        self.tell_fault(request);
        if self.fill_switch(platform, request)? {
            return Ok(Handled::Retry);
        }
        let walk = match self.guest_walk(platform, request) {
            Ok(walk) => walk,
            Err(present) => return Ok(self.true_fault(platform, request, present)),
        };
        let size = self.guest_mode.span(walk.leaf);
        let frame: Gpa = walk.entries[walk.leaf as usize].frame(size);
        let gpa = frame.offset_by(request.gva.offset_in(size));
        let (host_frame, host_size) = platform.host_page(gpa)?;
        let largest = self.largest_plain(gpa, size.min(host_size));
        self.hardware_root(platform, request.core())?;
        let (target, target_size) = self.executable(request, largest);
        let emulated = request.write && self.emulates(gpa.page_number());
        if emulated
            && self.rules.kvm.is_newer()
            && let Some(spte) = self.tracked_store(request)
        {
            self.begin_emulation(spte);
            return Ok(Handled::RetryOnce);
        }
        self.make_room(platform);
        let page = self.fetch(platform, request, &walk, target)?;
        let index = self.mode.index(request.gva.value(), target);
        let spte = self.spte_at(page, index);
        let old = Entry(self.memory.read(spte, 8).unwrap_or(0));
        let frame = host_frame.offset_by(gpa.offset_in(host_size)).align_down(target_size);
        let mut leaf = self.leaf_entry(frame, target, &walk);
        let mut unsynced = false;
        let gfn = gpa.align_down(target_size).page_number();
        let same = self.same_leaf(old, leaf, target);
        if target == 1 {
            (leaf, unsynced) = self.limited(gfn, leaf, same.has(WRITE), true);
        }
        self.set_leaf(page, index, gfn, self.finished(leaf, same, false));
        if emulated {
            if self.rules.kvm.is_newer() {
                self.prefetch(platform, page, index, &walk);
            }
            // The store's own event counts the exit.
            self.begin_emulation(spte);
            self.settle(platform);
            return Ok(Handled::RetryOnce);
        }
        let reason = if old.is_present() && request.write && !walk.was_dirty {
            ExitReason::DirtyFault
        } else if unsynced && old.has(PRESENT | GUEST_WRITE) && !old.has(LARGE) {
            ExitReason::TableUnsync
        } else {
            ExitReason::HiddenFault
        };
        platform.locked_exit(reason);
        platform.cpu.counters.shadow_fills += u64::from(reason != ExitReason::TableUnsync);
        if old.is_present() {
            // The hardware may hold the read-only translation on any core.
            for core in &mut platform.cpu.hardware.cores {
                core.drop_page(request.gva, core.asid, true);
            }
        }
        self.prefetch(platform, page, index, &walk);
        self.settle(platform);
        Ok(Handled::Retry)
    }

    /// The fault is the guest's own; `present` says whether it has the page.
    fn true_fault(&mut self, platform: &mut Platform, request: &Request, present: bool) -> Handled {
        platform.cpu.counters.exit(ExitReason::TrueFault);
        if present {
            self.fault_invalidates(platform, request);
        }
        self.tell(ShadowEvent::Injected);
        Handled::GuestFault
    }

    /// The largest leaf of at most `size` in which no guest table is shadowed.
    fn largest_plain(&self, gpa: Gpa, size: PageSize) -> (Level, PageSize) {
        let (mut target, mut size) = largest_leaf(self.mode, size);
        while target > 1 && self.is_shadowed_within(gpa.align_down(size).page_number(), size) {
            let smaller = PageSize::from_shift(size.shift() as u8 - 1);
            (target, size) = largest_leaf(self.mode, smaller);
        }
        (target, size)
    }

    /// A leaf as small as `nx_huge_pages` asks for (`lpage_disallowed`, `disallowed_hugepage_adjust`).
    fn executable(
        &self,
        request: &Request,
        (mut target, mut size): (Level, PageSize),
    ) -> (Level, PageSize) {
        while self.rules.nx_huge_pages
            && target > 1
            && (request.fetch || self.has_table(request, target))
        {
            let smaller = PageSize::from_shift(size.shift() as u8 - 1);
            (target, size) = largest_leaf(self.mode, smaller);
        }
        (target, size)
    }

    /// Whether the shadow's entry of `level` for the address points to a table.
    fn has_table(&self, request: &Request, level: Level) -> bool {
        let mut table = self.walk_root(request.core());
        for l in (level..=self.mode.levels).rev() {
            let at = self.mode.entry_at(table, request.gva.value(), l);
            let entry = Entry(self.memory.read(at, 8).unwrap_or(0));
            if !entry.is_present() || entry.has(LARGE) || entry.has(SWITCH) {
                return false;
            }
            table = entry.target();
        }
        true
    }

    /// Walks the guest's tables. If they do not allow the access, the error says whether they have the
    /// page. Sets the guest's accessed bits, and the dirty bit for a store, as the hardware would have.
    fn guest_walk(
        &mut self,
        platform: &mut Platform,
        request: &Request,
    ) -> Result<GuestWalk, bool> {
        let mode = self.guest_mode;
        let guest = &mut platform.cpu.world.guest;
        let mut table = platform.cpu.world.roots[request.core()];
        let mut walk = GuestWalk::new();
        let mut at = [Gpa::new(0); MAX_LEVELS + 1];
        for level in (1..=mode.levels).rev() {
            let here = mode.entry_at(table, request.gva.value(), level);
            let entry = Entry(guest.read(here, mode.entry_bytes).unwrap_or(0));
            if !entry.is_present() {
                return Err(false);
            }
            at[level as usize] = here;
            walk.entries[level as usize] = entry;
            walk.permissions = walk.permissions.and(entry);
            if level == 1 || (mode.may_be_leaf(level) && entry.has(LARGE)) {
                walk.leaf = level;
                break;
            }
            table = entry.target();
        }
        if !walk.permissions.allow(request.write, request.fetch, request.user) {
            return Err(true);
        }
        for level in (walk.leaf..=mode.levels).rev() {
            if !walk.entries[level as usize].has(ACCESSED) {
                self.tell(ShadowEvent::Accessed(at[level as usize]));
            }
            guest.set_bits(at[level as usize], ACCESSED);
        }
        let leaf = &mut walk.entries[walk.leaf as usize];
        walk.was_dirty = leaf.has(DIRTY);
        if request.write {
            if !walk.was_dirty {
                self.tell(ShadowEvent::Dirty(at[walk.leaf as usize]));
            }
            guest.set_bits(at[walk.leaf as usize], DIRTY);
            *leaf = leaf.with(DIRTY);
        }
        Ok(walk)
    }

    /// Goes down the shadow tables to the level of the leaf, making what is missing (`FNAME(fetch)`).
    pub(super) fn fetch(
        &mut self,
        platform: &mut Platform,
        request: &Request,
        walk: &GuestWalk,
        target: Level,
    ) -> Result<PageId, MachineError> {
        let root = self.walk_root(request.core());
        let mut page = self.by_table[&root.page_number()];
        for level in (target + 1..=self.mode.levels).rev() {
            self.pages[page as usize].flood = 0;
            let gva = request.gva.value();
            let guest = self.guest_entry(platform, request, walk, level);
            // Below a large guest leaf there is no guest table: the page is split.
            let direct = level <= walk.leaf;
            let role = if direct {
                let size = self.guest_mode.span(walk.leaf);
                let piece = self.mode.span(level);
                let base = guest.frame::<Gpa>(size).offset_by(request.gva.offset_in(size));
                let gfn = base.align_down(piece).page_number();
                (gfn, level - 1, Some(permission_bits(self.permitted(walk))), 0, FULL)
            } else {
                let gfn = guest.target::<Gpa>().page_number();
                let inherited = self.inherited(walk, level - 1);
                (gfn, level - 1, None, self.quadrant(gva, level - 1), inherited)
            };
            let spte = self.spte_at(page, self.mode.index(request.gva.value(), level));
            // A page that is linked already is neither got nor compared: an out-of-sync one stays so
            // until the guest flushes (`kvm_mmu_get_child_sp` returns `-EEXIST`).
            if let Some(child) =
                self.linked(spte).filter(|c| self.pages[*c as usize].role() == role)
                && self.may_stay(spte, direct, guest)
            {
                page = child;
                continue;
            }
            let child = self.page(platform, role)?;
            if self.rules.kvm.is_newer() && role.1 > 1 {
                self.sync_below(platform, child);
            }
            // Making room for the child may have dropped the page that we stand on.
            if !self.pages[page as usize].live || self.pages[page as usize].obsolete {
                self.hardware_root(platform, request.core())?;
                return self.fetch(platform, request, walk, target);
            }
            let table = self.pages[child as usize].table;
            self.drop_entry(spte);
            let mut pointer = Entry::table(table);
            if !direct && !self.rules.kvm.is_newer() {
                pointer =
                    Entry(pointer.0 & !(WRITE | USER) | guest.0 & (WRITE | USER | NO_EXECUTE));
            }
            self.link(spte, child, pointer);
            page = child;
        }
        self.pages[page as usize].flood = 0;
        Ok(page)
    }

    /// The guest's entry that an entry of the shadow page of `level` stands for.
    fn guest_entry(
        &self,
        platform: &Platform,
        request: &Request,
        walk: &GuestWalk,
        level: Level,
    ) -> Entry {
        if level > self.guest_mode.levels {
            // The root of a 32-bit guest's shadow points to parts of its page directory.
            return Entry::table(platform.cpu.world.roots[request.core()]);
        }
        walk.entries[level.max(walk.leaf) as usize]
    }

    fn leaf_entry(&self, frame: Hpa, level: Level, walk: &GuestWalk) -> Entry {
        let mut leaf = frame.value() | PRESENT | ACCESSED;
        if level > 1 {
            leaf |= LARGE;
        }
        // A piece of a large page is found by the permissions of the whole; a clear D bit is one.
        let hardware_ad = self.rules.hardware_ad && level >= walk.leaf;
        let leaf = with_permissions(Entry(leaf), self.permitted(walk), hardware_ad);
        let forbidden = self.rules.nx_huge_pages && level > 1;
        leaf.with(if forbidden { NO_EXECUTE } else { 0 })
    }

    /// What a guest's entry must have for a shadow of it to be made ahead of a fault.
    pub(super) const fn fillable(&self) -> u64 {
        if self.rules.hardware_ad { PRESENT } else { PRESENT | ACCESSED }
    }

    /// Fills the neighbours of a fresh leaf entry, in their aligned group of 8, up to the first whose
    /// guest entry is not used yet or whose page the host does not have (`FNAME(pte_prefetch)`,
    /// `direct_pte_prefetch`).
    fn prefetch(&mut self, platform: &mut Platform, page: PageId, index: u64, walk: &GuestWalk) {
        if self.pages[page as usize].level > 1 {
            return;
        }
        let direct = self.pages[page as usize].split.is_some();
        let first = index & !(PREFETCH - 1);
        for i in first..first + PREFETCH {
            let spte = self.spte_at(page, i);
            if i == index || self.memory.read(spte, 8).unwrap_or(0) & PRESENT != 0 {
                continue;
            }
            let (gfn, guest) = if direct {
                (self.pages[page as usize].gfn + i, self.permitted(walk))
            } else {
                let at = self.guest_entry_at(page, i);
                let raw =
                    platform.cpu.world.guest.read(at, self.guest_mode.entry_bytes).unwrap_or(0);
                (Entry(raw).target::<Gpa>().page_number(), Entry(raw))
            };
            let fillable =
                if direct && self.rules.kvm.is_newer() { PRESENT } else { self.fillable() };
            if !guest.has(fillable) || !self.prefill(platform, page, i, gfn, guest) {
                break;
            }
            platform.cpu.counters.shadow_prefetches += 1;
        }
    }

    /// Fills a leaf entry if the host has the page already.
    pub(super) fn prefill(
        &mut self,
        platform: &mut Platform,
        page: PageId,
        index: u64,
        gfn: u64,
        guest: Entry,
    ) -> bool {
        let gpa = Gpa::new(gfn << 12);
        let Some(host) = platform.host.as_ref().and_then(|h| h.look_up(gpa)) else {
            return false;
        };
        let frame = host.frame.offset_by(gpa.offset_in(host.size));
        let guest = self.inherits(page, guest);
        let hardware_ad = self.rules.hardware_ad && self.pages[page as usize].split.is_none();
        let leaf = Entry(frame.value() | PRESENT | ACCESSED);
        let leaf = with_permissions(leaf, guest, hardware_ad);
        let read_only = self.rules.kvm.is_newer() && self.is_in_step(gfn);
        let (leaf, _) = self.limited(gfn, leaf, false, !read_only);
        self.set_leaf(page, index, gfn, self.finished(leaf, Entry(0), true));
        true
    }
}
