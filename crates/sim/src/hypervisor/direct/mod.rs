//! Direct paging (Xen's paravirtual guests, Barham et al., SOSP 2003, section 3.3.3): hardware
//! walks the guest's own tables. They hold machine addresses, and nothing changes them but the
//! hypervisor, which validates each entry that the guest asks for.
//!
//! The guest here was not ported, so what a ported Linux does is read from its stores
//! (`arch/x86/xen/mmu_pv.c`):
//!
//! - A page is a table from when it is linked below a pinned root or is the root that is loaded.
//!   What was stored before is plain memory, and is validated as a whole then.
//! - Stores to leaf tables are queued on their vCPU and go in hypercalls of up to `batch` updates;
//!   whatever shows that the kernel has left lazy MMU mode sends the queue. Stores to upper tables
//!   go at once.
//! - A table that is linked or unlinked changes its type in a hypercall of its own: the kernel's
//!   mapping of it becomes read-only or writable, and leaf tables are pinned or unpinned.
//! - CR3 loads, invalidations are hypercalls; page faults come through the hypervisor.

mod audit;
mod batch;
pub mod config;
mod entries;
mod frames;
mod moved;
mod stopped;

use crate::hypervisor::rmap::Rmap;
use crate::measure::counters::ExitReason;
use crate::scheme::{MachineError, Platform};
use batch::Queue;
use entries::Changed;
use frames::Chunked;
pub use frames::PageInfo;
use nestwalk_tables::{Entry, Level, Mode, TableMemory};
use nestwalk_types::{Address, Gpa, Gva, Hpa, Invalidation, PageSize, VcpuId};
use rustc_hash::{FxHashMap, FxHashSet};

/// A table that stands for those which a guest without large pages has.
#[derive(Clone, Copy)]
struct Piece {
    /// Guest-physical address that its first entry maps.
    first: u64,
    level: Level,
    /// Flags of the large entry.
    flags: u64,
    /// The large entry.
    owner: Hpa,
}

/// Tables with machine addresses, and what their validation needs to know.
pub struct DirectMmu {
    mode: &'static Mode,
    batch: usize,
    memory: TableMemory<Hpa>,
    /// By guest frame.
    info: Chunked<PageInfo>,
    /// Guest frame and 1 by machine frame (Xen, M2P).
    guest_frames: Chunked<u64>,
    /// Leaf entries by the first guest frame that they map.
    mappings: Rmap,
    /// Entries that point to tables, by the table's guest frame.
    links: Rmap,
    /// Entries that the guest has large and hardware has split, and the tables they point to.
    splits: FxHashMap<Hpa, Hpa>,
    /// Tables of split entries by machine frame.
    pieces: FxHashMap<u64, Piece>,
    /// Sizes and page numbers of large pages of the guest's address spaces that are split: what is
    /// invalidated there is more than one page.
    split_pages: FxHashSet<(PageSize, u64)>,
    /// Large entries that hardware has as such.
    large_leaves: u64,
    /// Tables in each 2 MiB of guest memory.
    tables_by_region: Chunked<u32>,
    /// Entries that are read-only because they map a table; the guest has them writable.
    aliases: FxHashSet<Hpa>,
    /// Entries that were refused.
    refused: FxHashSet<Hpa>,
    /// Entries that point to pages whose contents are not known yet, by guest frame.
    waiting: FxHashMap<u64, Vec<Hpa>>,
    queues: Vec<Queue>,
    /// Updates in all queues.
    queued: usize,
    /// Machine address of the root of each vCPU.
    roots: Vec<Option<Hpa>>,
    /// The address space that each vCPU has loaded.
    loaded: Vec<(Gpa, u16)>,
    /// Why the machine cannot go on, met where no error can be returned.
    failed: Option<MachineError>,
}

impl DirectMmu {
    /// Without tables yet; `batch` leaf updates go into one hypercall.
    pub fn new(mode: &'static Mode, vcpus: usize, batch: usize) -> Self {
        Self {
            mode,
            batch,
            memory: TableMemory::new(),
            info: Chunked::default(),
            guest_frames: Chunked::default(),
            mappings: Rmap::default(),
            links: Rmap::default(),
            splits: FxHashMap::default(),
            pieces: FxHashMap::default(),
            split_pages: FxHashSet::default(),
            large_leaves: 0,
            tables_by_region: Chunked::default(),
            aliases: FxHashSet::default(),
            refused: FxHashSet::default(),
            waiting: FxHashMap::default(),
            queues: (0..vcpus).map(|_| Queue::default()).collect(),
            queued: 0,
            roots: vec![None; vcpus],
            loaded: vec![(Gpa::new(u64::MAX), 0); vcpus],
            failed: None,
        }
    }

    /// Tables that hardware walks on a vCPU, with their root, and the guest frames behind machine
    /// frames.
    #[inline]
    pub fn tables(
        &mut self,
        core: usize,
    ) -> (&mut TableMemory<Hpa>, Option<Hpa>, MachineToGuest<'_>) {
        let to_guest = MachineToGuest { frames: &self.guest_frames, pieces: &self.pieces };
        (&mut self.memory, self.roots[core], to_guest)
    }

    /// What the hypervisor knows of a guest page.
    pub fn page(&self, gpa: Gpa) -> PageInfo {
        self.info.get(gpa.page_number())
    }

    /// Entry of hardware's tables at the place of the guest's entry at `gpa`, if that page is a
    /// table.
    pub fn machine_entry(&self, gpa: Gpa) -> Option<Entry> {
        let info = self.page(gpa);
        let frame = Hpa::new(info.machine.checked_sub(1)? << 12 | gpa.value() & 0xfff);
        self.memory.read(frame, self.mode.entry_bytes).map(Entry)
    }

    /// Updates that the kernel has queued and not sent.
    pub const fn queued(&self) -> usize {
        self.queued
    }

    /// Bytes of tables that stand for the small tables of a guest without large pages.
    pub fn split_bytes(&self) -> u64 {
        self.pieces.len() as u64 * 4096
    }

    fn checked(&mut self) -> Result<(), MachineError> {
        self.failed.take().map_or(Ok(()), Err)
    }

    // ---- hypercalls ----

    fn hypercall(platform: &mut Platform, reason: ExitReason, operations: u64) {
        platform.cpu.counters.exit(reason);
        platform.cpu.counters.hypercall_operations += operations;
    }

    /// A vCPU's kernel has left lazy MMU mode: its queue is sent.
    fn send(&mut self, platform: &mut Platform, vcpu: usize) {
        if self.queues[vcpu].is_empty() {
            return;
        }
        let updates = self.queues[vcpu].take();
        self.queued -= updates.len();
        platform.deferred = self.queued > 0;
        Self::hypercall(platform, ExitReason::MmuUpdate, updates.len() as u64);
        for (at, value) in updates {
            // A page that is a table no more by now takes the store as memory does.
            if self.page(at).table > 0 {
                self.update(platform, at, value);
            }
        }
    }

    /// Sends every queue: what follows depends on none that another vCPU has.
    ///
    /// # Errors
    /// Host memory is exhausted.
    pub fn send_all(&mut self, platform: &mut Platform) -> Result<(), MachineError> {
        self.send_queues(platform);
        self.checked()
    }

    fn send_queues(&mut self, platform: &mut Platform) {
        if self.queued > 0 {
            (0..self.queues.len()).for_each(|vcpu| self.send(platform, vcpu));
        }
    }

    /// Validates and stores one entry of a table, and has the tables that it links and unlinks
    /// change their types, each in a hypercall of its own (`xen_alloc_ptpage`,
    /// `xen_release_ptpage`).
    fn update(&mut self, platform: &mut Platform, at: Gpa, value: u64) {
        let PageInfo { table: level, machine, .. } = self.page(at);
        let here = Hpa::new((machine - 1) << 12 | at.value() & 0xfff);
        let mut changed = Changed::default();
        self.set_entry(platform, (here, level), Entry(value), &mut changed);
        for _ in 0..changed.pages {
            platform.cpu.counters.exit(ExitReason::Pin);
        }
        platform.cpu.counters.hypercall_operations += changed.pages + changed.leaf_tables;
    }

    /// The whole tree below a root changes its type, in as few hypercalls as it takes
    /// (`xen_pgd_pin`, `xen_pgd_unpin`): each page's mapping, each leaf table's pin, and the
    /// root's.
    fn count_tree(&self, platform: &mut Platform, changed: Changed) {
        let operations = changed.pages + changed.leaf_tables + 1;
        for _ in 0..operations.div_ceil(self.batch as u64) {
            platform.cpu.counters.exit(ExitReason::Pin);
        }
        platform.cpu.counters.hypercall_operations += operations;
    }

    // ---- events of the guest ----

    /// The guest stored to one of its tables.
    ///
    /// # Errors
    /// Host memory is exhausted.
    pub fn table_write(
        &mut self,
        platform: &mut Platform,
        vcpu: VcpuId,
        at: Gpa,
        new: u64,
    ) -> Result<(), MachineError> {
        match self.page(at).table {
            // Not linked anywhere: memory like any other.
            0 => return Ok(()),
            1 => self.queue(platform, usize::from(vcpu.0), at, new),
            _ => {
                self.send_queues(platform);
                Self::hypercall(platform, ExitReason::MmuUpdate, 1);
                self.update(platform, at, new);
            }
        }
        self.checked()
    }

    fn queue(&mut self, platform: &mut Platform, vcpu: usize, at: Gpa, new: u64) {
        // The table's lock can only be had when its last holder has left lazy mode.
        for other in 0..self.queues.len() {
            if other != vcpu && self.queues[other].concerns(at) {
                self.send(platform, other);
            }
        }
        if !self.queues[vcpu].takes(at) {
            self.send(platform, vcpu);
        }
        self.queues[vcpu].push(at, new);
        self.queued += 1;
        platform.deferred = true;
        if self.queues[vcpu].len() >= self.batch {
            self.send(platform, vcpu);
        }
    }

    /// CR3 is loaded: a new base pointer, after the tables below it were pinned if they never were.
    /// Xen's guests have no PCIDs (`xen_init_capabilities`), so every load drops all translations.
    ///
    /// # Errors
    /// Host memory is exhausted.
    pub fn load_cr3(
        &mut self,
        platform: &mut Platform,
        vcpu: VcpuId,
        pcid: u16,
        keep: bool,
    ) -> Result<(), MachineError> {
        self.send_queues(platform);
        let (core, root) = (usize::from(vcpu.0), platform.cpu.world.root(vcpu));
        if self.loaded[core] == (root, pcid) && !keep && self.roots[core].is_some() {
            Self::hypercall(platform, ExitReason::TlbFlush, 1);
        } else {
            self.loaded[core] = (root, pcid);
            self.roots[core] = self.pin(platform, root);
            Self::hypercall(platform, ExitReason::BasePointer, 1);
        }
        platform.cpu.hardware.load_cr3(vcpu, 0, false);
        self.checked()
    }

    /// Pins the tables below a root, if they are not. Returns where the root is.
    fn pin(&mut self, platform: &mut Platform, root: Gpa) -> Option<Hpa> {
        let gfn = root.page_number();
        let offset = root.value() & 0xfff;
        let info = self.info.get(gfn);
        let levels = self.mode.levels;
        if info.pinned && info.table == levels {
            return Some(Hpa::new((info.machine - 1) << 12 | offset));
        }
        if !platform.cpu.world.guest.contains(root) {
            return None;
        }
        if info.table > 0 && info.table != levels {
            // What still points to it as another table is left over from an address space that has
            // gone, as modelled PAE guests leave their roots.
            self.drop_table(platform, gfn);
        }
        let mut changed = Changed::default();
        let machine = self.promote(platform, root, levels, &mut changed)?;
        self.info.at(gfn).pinned = true;
        self.count_tree(platform, changed);
        Some(Hpa::new(machine.value() | offset))
    }

    /// The guest invalidates. Nothing is cached for address spaces that are not loaded.
    pub fn invalidate(&mut self, platform: &mut Platform, vcpu: VcpuId, what: Invalidation) {
        self.send_queues(platform);
        let pcid = self.loaded[usize::from(vcpu.0)].1;
        let what = match what {
            Invalidation::Page(gva) => self.invalidation_of(gva),
            Invalidation::PageInPcid(gva, p) if p == pcid => self.invalidation_of(gva),
            Invalidation::Pcid(p) if p == pcid => Invalidation::All,
            Invalidation::AllButGlobal | Invalidation::All => Invalidation::All,
            Invalidation::PageInPcid(..) | Invalidation::Pcid(_) => return,
        };
        Self::hypercall(platform, ExitReason::TlbFlush, 1);
        platform.cpu.hardware.invalidate(vcpu, what);
    }

    /// Of one page; of everything if it is a large one that is split: 512 pages are more than Linux
    /// invalidates one by one (`tlb_single_page_flush_ceiling`).
    fn invalidation_of(&self, gva: Gva) -> Invalidation {
        let sizes = self.mode.page_sizes().skip(1);
        let split =
            |size: PageSize| self.split_pages.contains(&(size, gva.value() >> size.shift()));
        if sizes.into_iter().any(split) { Invalidation::All } else { Invalidation::Page(gva) }
    }

    /// The guest wrote whole pages through its own mapping: what was a table there is none any
    /// more.
    pub fn page_written(&mut self, platform: &mut Platform, at: Gpa, size: PageSize) {
        for gfn in at.page_number()..at.page_number() + size.base_pages() {
            if self.info.get(gfn).table > 0 {
                self.send_queues(platform);
                self.drop_table(platform, gfn);
            }
        }
    }

    /// A page that is a table is used for something else. The kernel has unpinned it before;
    /// entries that still point to it point to nothing that Xen would let be walked.
    fn drop_table(&mut self, platform: &mut Platform, gfn: u64) {
        let mut changed = Changed::default();
        let pinned = self.info.get(gfn).pinned;
        for at in self.links.entries(gfn) {
            if let Some((level, _)) = self.source(&platform.cpu.world, at) {
                self.clear_entry(platform, (at, level), &mut changed);
                self.refused.insert(at);
                platform.cpu.counters.updates_refused += 1;
            }
        }
        if self.info.get(gfn).table > 0 {
            self.demote(platform, gfn, &mut changed);
        }
        if pinned {
            self.count_tree(platform, changed);
        }
    }

    /// A page is a table from now on, with the contents that the guest's tables show.
    ///
    /// # Errors
    /// Host memory is exhausted.
    pub fn table_new(&mut self, platform: &mut Platform, at: Gpa) -> Result<(), MachineError> {
        let gfn = at.page_number();
        self.send_queues(platform);
        if let PageInfo { table: level @ 1.., machine, .. } = self.info.get(gfn) {
            // Told again: whatever differs is an update.
            let bytes = u64::from(self.mode.entry_bytes);
            for offset in (0..4096 / bytes).map(|i| i * bytes) {
                let here = Hpa::new((machine - 1) << 12 | offset);
                if self.info.get(gfn).table == level
                    && let Some((_, entry)) = self.source(&platform.cpu.world, here)
                {
                    self.set_entry(platform, (here, level), entry, &mut Changed::default());
                }
            }
        }
        for at in self.waiting.remove(&gfn).unwrap_or_default() {
            if let Some((level, entry)) = self.source(&platform.cpu.world, at)
                && level > 1
                && entry.is_present()
                && entry.target::<Gpa>().page_number() == gfn
            {
                let mut changed = Changed::default();
                self.set_entry(platform, (at, level), entry, &mut changed);
                for _ in 0..changed.pages {
                    platform.cpu.counters.exit(ExitReason::Pin);
                }
                platform.cpu.counters.hypercall_operations += changed.pages + changed.leaf_tables;
            }
        }
        self.checked()
    }
}

/// Where the guest's own entries are, for those who set bits in hardware's.
pub struct MachineToGuest<'a> {
    frames: &'a Chunked<u64>,
    pieces: &'a FxHashMap<u64, Piece>,
}

impl MachineToGuest<'_> {
    /// The guest's entry behind the one at `at`; for a part of a large page the large entry.
    pub fn entry(&self, at: Hpa) -> Option<Gpa> {
        let mut at = at;
        // A 1 GiB page is split twice.
        for _ in 0..2 {
            match self.pieces.get(&at.page_number()) {
                Some(piece) => at = piece.owner,
                None => break,
            }
        }
        let gfn = self.frames.get(at.page_number()).checked_sub(1)?;
        Some(Gpa::new(gfn << 12 | at.value() & 0xfff))
    }
}
