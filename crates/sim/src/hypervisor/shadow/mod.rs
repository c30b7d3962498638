//! Shadow tables with the rules of KVM's shadow MMU (Linux 4.19 `mmu.c`, `paging_tmpl.h`, and
//! Documentation/virtual/kvm/mmu.txt). What newer kernels do otherwise is in `newer`.
//!
//! One *shadow page* per guest table page and level holds entries that map guest-virtual to
//! host-physical addresses. The protocol:
//!
//! - A guest table above the leaf level that is shadowed is write-protected: each store exits, is
//!   emulated, and drops the shadow entry. Three stores without a use in between (write flooding) drop
//!   the shadow page.
//! - A leaf table goes *out of sync* on its first store, which exits; later stores are free. It is
//!   compared and protected again when its address space is loaded or flushed, and single entries at
//!   INVLPG.
//! - A fault of the hardware on shadow tables exits. If the guest's tables do not allow the access it
//!   is a *true fault* and injected; otherwise it was *hidden*: the entry is filled, with its
//!   neighbours where that needs no host fault.
//! - Shadow pages are kept when CR3 moves on, so that a root can be taken up again; their number is
//!   bounded and the oldest go first.
//!
//! The exits of stores to tables are counted by the guest's table events, once for each store. A
//! recorded guest's stream shows the kernel's own mapping, by which it stores, too: shadow entries of
//! that are read-only and small where they map a protected table (`protect`), and a run that meets
//! one counts no exit of its own. The stream of a modelled guest does not show that mapping; the first
//! store through it to what no shadow entry maps counts as a hidden fault (`direct_map`).

mod before;
mod direct_map;
mod events;
mod fault;
mod newer;
pub mod observe;
mod pages;
mod partial;
mod protect;
mod swift;
#[cfg(test)]
pub(super) mod tests;
mod unload;

use super::rmap::Rmap;
use crate::scheme::vmm_options::KvmVersion;
use crate::scheme::{MachineError, Platform};
use nestwalk_tables::entry::{USER, WRITE};
use nestwalk_tables::{Level, Mode, PAE, TableMemory};
use nestwalk_types::{Address, Gpa, Hpa};
use rustc_hash::FxHashMap;
use std::collections::VecDeque;

/// Entries that a fill looks at ahead of time, in an aligned group (`PTE_PREFETCH_NUM`).
pub const PREFETCH: u64 = 8;
/// Stores to a table above the leaf level, without a use in between, that drop its shadow
/// (`detect_write_flooding`).
pub const FLOOD: u8 = 3;
/// Roots remembered besides the current one (`KVM_MMU_NUM_PREV_ROOTS`).
pub const PREVIOUS_ROOTS: usize = 3;
/// Shadow pages per thousand guest pages at most (`KVM_PERMILLE_MMU_PAGES`).
pub const QUOTA_PERMILLE: u64 = 20;
/// Shadow pages allowed at least (`KVM_MIN_ALLOC_MMU_PAGES`).
pub const QUOTA_MIN: u64 = 64;

/// Index of a shadow page.
type PageId = u32;
const NONE: PageId = PageId::MAX;
/// Permissions that take nothing away.
const FULL: Access = WRITE | USER;

/// What a large guest page permits, as the bits W, U and NX of its entry. Pieces of it with other
/// permissions (another process's mapping, a page still clean) are other shadow pages, as in KVM's
/// `role.access`.
type Access = u64;
/// In place of permissions: the root that a 32-bit guest's tables need, behind which there is no guest
/// table (KVM's `pae_root`).
const PAE_ROOT: Access = u64::MAX;

/// What a shadow page is found by: guest frame, level, permissions if it is a piece of a large page,
/// which part of the guest's table it shadows, and what the tables above permit.
type Role = (u64, Level, Option<Access>, u8, Access);

/// One shadow table page.
struct ShadowPage {
    /// Guest frame of the table that it shadows; for a direct page the first frame that it maps.
    gfn: u64,
    level: Level,
    /// It splits a large guest page: there is no guest table behind it.
    split: Option<Access>,
    /// Which part of the guest's table: a table of 1,024 entries of 32-bit paging is shadowed by two
    /// leaf tables or four directories of 512. Otherwise 0.
    quadrant: u8,
    /// What the guest's entries above it permit ([`FULL`] unless the kernel tells such pages apart).
    inherited: Access,
    /// Where it is in host memory.
    table: Hpa,
    unsync: bool,
    flood: u8,
    /// vCPUs' current and previous roots that hold it.
    holders: u32,
    /// Entries that point to it.
    parents: Vec<Hpa>,
    /// Guest frame that each leaf entry maps, plus one; allocated with the first leaf.
    gfns: Option<Box<[u32; 512]>>,
    /// Next shadow page of the same guest frame.
    next_same: PageId,
    /// Counts reuses of the index, so that the age queue can tell.
    generation: u32,
    live: bool,
    /// Zapped while a vCPU still holds it as root.
    obsolete: bool,
}

impl ShadowPage {
    const fn role(&self) -> Role {
        (self.gfn, self.level, self.split, self.quadrant, self.inherited)
    }
}

/// A root that a vCPU holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Root {
    page: PageId,
    gfn: u64,
    pcid: u16,
}

/// Roots of one vCPU.
#[derive(Clone, Default)]
struct Roots {
    current: Option<Root>,
    previous: VecDeque<Root>,
}

/// What the VMM may leave to others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rules {
    /// A leaf table goes out of sync on its first store. Otherwise each store to it exits and is
    /// emulated, so that shadows are always in step.
    pub out_of_sync: bool,
    /// The hardware sets A and D in the guest's tables beside the shadow's. Otherwise the VMM does, and
    /// the first store to a page exits.
    pub hardware_ad: bool,
    /// Stores to shadowed tables are met. Otherwise no table is protected, and each may be out of step
    /// until the guest flushes (`swift`).
    pub write_protect: bool,
    /// Roots remembered besides the current one.
    pub previous_roots: usize,
    /// Large entries forbid fetches, and what is executed is mapped by 4 KiB (`nx_huge_pages`).
    pub nx_huge_pages: bool,
    /// Whose rules they are.
    pub kvm: KvmVersion,
}

impl Default for Rules {
    /// KVM's.
    fn default() -> Self {
        Self {
            out_of_sync: true,
            hardware_ad: false,
            write_protect: true,
            previous_roots: PREVIOUS_ROOTS,
            nx_huge_pages: false,
            kvm: KvmVersion::default(),
        }
    }
}

/// The shadow tables of one VM.
pub struct ShadowMmu {
    /// Paging mode of the shadow tables: the guest's, but PAE for 32-bit guests, whose entries could not
    /// hold a host frame.
    mode: &'static Mode,
    /// Paging mode of the guest.
    guest_mode: &'static Mode,
    memory: TableMemory<Hpa>,
    pages: Vec<ShadowPage>,
    free: Vec<PageId>,
    live: u64,
    quota: u64,
    by_role: FxHashMap<Role, PageId>,
    /// First shadow page of each shadowed guest table frame.
    by_guest: FxHashMap<u64, PageId>,
    /// Page by the host frame number of its table.
    by_table: FxHashMap<u64, PageId>,
    /// Shadowed guest frames in each 2 MiB: no large entry may cover them.
    shadowed_in_2m: FxHashMap<u64, u32>,
    /// Pages in order of creation, with the generation at that time.
    by_age: VecDeque<(PageId, u32)>,
    /// Pages that may be out of sync.
    unsync: Vec<PageId>,
    roots: Vec<Roots>,
    rmap: Rmap,
    /// What of the guest kernel's own mapping has a shadow entry.
    direct_map: direct_map::DirectMap,
    /// Leaf entries dropped since this was last counted.
    dropped: u64,
    /// Entries were dropped or narrowed that hardware may still hold.
    flush_owed: bool,
    /// An entry that allows stores for the next walk only, and what it is otherwise.
    emulated: Option<(Hpa, u64)>,
    rules: Rules,
    /// Guest tables that are not shadowed but walked.
    partial: partial::Partial,
    /// What happens, if anybody wants to know.
    observed: Option<Vec<observe::ShadowEvent>>,
}

impl ShadowMmu {
    /// No shadow pages yet. `guest_pages` is the size of guest memory in 4 KiB pages.
    pub fn new(guest_mode: &'static Mode, vcpus: usize, guest_pages: u64) -> Self {
        Self {
            mode: if guest_mode.entry_bytes == 4 { &PAE } else { guest_mode },
            guest_mode,
            memory: TableMemory::new(),
            pages: Vec::new(),
            free: Vec::new(),
            live: 0,
            quota: (guest_pages * QUOTA_PERMILLE / 1000).max(QUOTA_MIN),
            by_role: FxHashMap::default(),
            by_guest: FxHashMap::default(),
            by_table: FxHashMap::default(),
            shadowed_in_2m: FxHashMap::default(),
            by_age: VecDeque::new(),
            unsync: Vec::new(),
            roots: vec![Roots::default(); vcpus],
            rmap: Rmap::default(),
            direct_map: direct_map::DirectMap::default(),
            dropped: 0,
            flush_owed: false,
            emulated: None,
            rules: Rules::default(),
            partial: partial::Partial::default(),
            observed: None,
        }
    }

    /// With other rules than KVM's.
    #[must_use]
    pub const fn with_rules(mut self, rules: Rules) -> Self {
        self.rules = rules;
        self
    }

    /// Bytes of shadow tables.
    pub const fn bytes(&self) -> u64 {
        self.memory.len() * 4096
    }

    /// The root that the vCPU's hardware walks, made first if need be, and the tables.
    ///
    /// # Errors
    /// The host has no frame for the root.
    pub fn hardware_root(
        &mut self,
        platform: &mut Platform,
        vcpu: usize,
    ) -> Result<Hpa, MachineError> {
        let gfn = platform.cpu.world.roots[vcpu].page_number();
        if let Some(root) = self.roots[vcpu].current
            && root.gfn == gfn
            && !self.pages[root.page as usize].obsolete
        {
            return Ok(self.pages[root.page as usize].table);
        }
        let pcid = platform.cpu.hardware.cores[vcpu].pcid;
        if let Some(old) = self.roots[vcpu].current.take() {
            self.release(platform, old.page);
        }
        let root = self.take_root(platform, gfn, pcid)?;
        self.roots[vcpu].current = Some(root);
        Ok(self.pages[root.page as usize].table)
    }

    /// The root as it stands, for the walker; 0 if there is none yet.
    #[inline]
    pub fn walk_root(&self, vcpu: usize) -> Hpa {
        self.roots[vcpu].current.map_or(Hpa::new(0), |r| self.pages[r.page as usize].table)
    }

    /// Whether the guest table in this page has a shadow that is out of step with it.
    pub fn is_out_of_step(&self, table: Gpa) -> bool {
        let mut page = self.by_guest.get(&table.page_number()).copied().unwrap_or(NONE);
        while page != NONE {
            let p = &self.pages[page as usize];
            if p.unsync {
                return true;
            }
            page = p.next_same;
        }
        false
    }

    /// Paging mode of the tables that the hardware walks.
    pub const fn mode(&self) -> &'static Mode {
        self.mode
    }

    /// The tables that the hardware walks.
    #[inline]
    pub fn tables(&mut self) -> (&'static Mode, &mut TableMemory<Hpa>) {
        (self.mode, &mut self.memory)
    }

    fn take_root(
        &mut self,
        platform: &mut Platform,
        gfn: u64,
        pcid: u16,
    ) -> Result<Root, MachineError> {
        self.make_room(platform);
        let split = self.is_narrow().then_some(PAE_ROOT);
        let page = self.page(platform, (gfn, self.mode.levels, split, 0, FULL))?;
        self.pages[page as usize].holders += 1;
        if self.rules.write_protect {
            self.sync_root(platform, page);
        } else {
            platform.lock();
        }
        Ok(Root { page, gfn, pcid })
    }

    /// One holder less; an obsolete page goes with its last.
    fn release(&mut self, platform: &mut Platform, page: PageId) {
        let p = &mut self.pages[page as usize];
        p.holders -= 1;
        if p.holders == 0 && p.obsolete {
            self.free_page(platform, page);
        }
    }

    fn spte_at(&self, page: PageId, index: u64) -> Hpa {
        self.pages[page as usize].table.offset_by(index * 8)
    }

    /// Whether the guest has 4-byte entries, 1,024 to a table.
    const fn is_narrow(&self) -> bool {
        self.guest_mode.entry_bytes == 4
    }

    /// Which part of its guest table the shadow page of `level` for this address shadows.
    fn quadrant(&self, gva: u64, level: Level) -> u8 {
        match (self.is_narrow(), level) {
            (true, 1) => (gva >> 21 & 1) as u8,
            (true, 2) => (gva >> 30 & 3) as u8,
            _ => 0,
        }
    }

    /// The guest's entry behind an entry of an indirect page.
    fn guest_entry_at(&self, page: PageId, index: u64) -> Gpa {
        let p = &self.pages[page as usize];
        let part = u64::from(p.quadrant);
        let guest_index = match (self.is_narrow(), p.level) {
            (false, _) => index,
            (true, 1) => part * 512 + index,
            // An entry of a directory maps 4 MiB in the guest and 2 MiB in the shadow.
            (true, _) => part * 256 + index / 2,
        };
        Gpa::new((p.gfn << 12) + guest_index * u64::from(self.guest_mode.entry_bytes))
    }

    /// The entries of an indirect page that shadow the guest's entry `guest_index`.
    fn entries_of(&self, page: PageId, guest_index: u64) -> std::ops::Range<u64> {
        let p = &self.pages[page as usize];
        let part = u64::from(p.quadrant);
        match (self.is_narrow(), p.level) {
            (false, _) => guest_index..guest_index + 1,
            (true, 1) if guest_index / 512 == part => guest_index % 512..guest_index % 512 + 1,
            (true, 2) if guest_index / 256 == part => {
                let first = guest_index % 256 * 2;
                first..first + 2
            }
            (true, _) => 0..0,
        }
    }
}
