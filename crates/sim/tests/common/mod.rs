//! A guest written by hand: tables made entry by entry, so that tests know every address.
#![allow(dead_code, reason = "each test file uses a part")]

use nestwalk_hw::Profile;
use nestwalk_hw::profile::WalkCacheProfile;
use nestwalk_mm::{HostConfig, HostMemory, KERNEL_BYTES, PagePolicy, PlacementKind};
use nestwalk_sim::engine::AnyMachine;
use nestwalk_sim::schemes::{Build, by_name};
use nestwalk_tables::{Entry, Level, Mode, TableMemory, TableOwner, store};
use nestwalk_types::{
    Address, BatchBuilder, Control, FaultCode, Gpa, GuestBatch, Gva, Invalidation, PageSize,
    Protection, Run, RunFlags, VcpuId,
};

pub const V0: VcpuId = VcpuId(0);
pub const GIB: u64 = 1 << 30;

/// What a hand-written guest says, in order.
pub struct Script {
    pub mode: &'static Mode,
    pub root: Gpa,
    memory: TableMemory<Gpa>,
    next_table: u64,
    controls: Vec<Control>,
    batch: GuestBatch,
}

struct Owner<'a> {
    next: &'a mut u64,
    controls: &'a mut Vec<Control>,
}

impl TableOwner<Gpa> for Owner<'_> {
    fn new_table(&mut self, _level: Level) -> Option<Gpa> {
        let gpa = Gpa::new(*self.next);
        *self.next += 0x1000;
        self.controls.push(Control::TableNew { vcpu: V0, gpa, entries: None });
        Some(gpa)
    }
    fn stored(&mut self, at: Gpa, entry: Entry) {
        self.controls.push(Control::TableWrite { vcpu: V0, gpa: at, value: entry.0 });
    }
}

impl Script {
    /// Tables from 16 MiB on; the root is loaded with PCID 1.
    pub fn new(mode: &'static Mode) -> Self {
        let root = Gpa::new(16 << 20);
        let mut script = Self {
            mode,
            root,
            memory: TableMemory::new(),
            next_table: (16 << 20) + 0x1000,
            controls: Vec::new(),
            batch: GuestBatch::default(),
        };
        script.memory.insert(root, None);
        script.controls.push(Control::TableNew { vcpu: V0, gpa: root, entries: None });
        script.say(Control::LoadCr3 { vcpu: V0, root, pcid: 1, keep: false });
        script
    }
    pub fn say(&mut self, control: Control) {
        self.flush_controls();
        self.batch.batch.controls.push((self.batch.batch.runs.len() as u32, control));
    }
    fn flush_controls(&mut self) {
        let at = self.batch.batch.runs.len() as u32;
        self.batch.batch.controls.extend(self.controls.drain(..).map(|c| (at, c)));
    }
    /// Maps a page; `bits` are set in the leaf beside P and U.
    pub fn map(&mut self, gva: u64, gpa: u64, size: PageSize, protection: Protection, bits: u64) {
        let level = self.mode.leaf_level(size).unwrap();
        let entry = Entry::leaf(Gpa::new(gpa), protection, level > 1).with(bits);
        let mut owner = Owner { next: &mut self.next_table, controls: &mut self.controls };
        let (mode, root) = (self.mode, self.root);
        store(&mut self.memory, mode, root, Gva::new(gva), level, entry, &mut owner).unwrap();
        self.flush_controls();
    }
    /// A writable page whose A and D bits are set already.
    pub fn map_used(&mut self, gva: u64, gpa: u64, size: PageSize) {
        self.map(gva, gpa, size, Protection::ALL, 0x60);
    }
    pub fn unmap(&mut self, gva: u64, size: PageSize) {
        let level = self.mode.leaf_level(size).unwrap();
        let mut owner = Owner { next: &mut self.next_table, controls: &mut self.controls };
        let (mode, root) = (self.mode, self.root);
        store(&mut self.memory, mode, root, Gva::new(gva), level, Entry(0), &mut owner).unwrap();
        self.flush_controls();
    }
    pub fn invlpg(&mut self, gva: u64) {
        self.say(Control::Invalidate { vcpu: V0, what: Invalidation::Page(Gva::new(gva)) });
    }
    pub fn fault(&mut self, gva: u64, write: bool) {
        let code = FaultCode { present: false, write, user: true, fetch: false };
        self.say(Control::Fault { vcpu: V0, gva: Gva::new(gva), code });
    }
    /// One access by a user program, with the guest's own idea of where it goes.
    pub fn access(&mut self, gva: u64, write: bool) {
        let leaf =
            nestwalk_tables::look_up(&self.memory, self.mode, self.root, Gva::new(gva)).unwrap();
        self.flush_controls();
        self.batch.batch.runs.push(run(gva, write));
        self.batch.gpas.push(leaf.apply(Gva::new(gva)));
    }
    pub fn load(&mut self, gva: u64) {
        self.access(gva, false);
    }
    /// The events so far.
    pub fn take(&mut self) -> GuestBatch {
        self.flush_controls();
        std::mem::take(&mut self.batch)
    }
}

pub fn run(gva: u64, write: bool) -> Run {
    Run {
        gva: Gva::new(gva),
        pc: Gva::new(0),
        lines: 1 << (gva >> 6 & 63),
        count: 1,
        instructions: 1,
        vcpu: V0,
        flags: if write { RunFlags::STORE } else { RunFlags::default() },
    }
}

/// A machine of `scheme` whose host has pages of `host_pages`, watched by the referee.
pub fn machine(
    scheme: &str,
    guest_mode: &'static Mode,
    host_mode: &'static Mode,
    host_pages: &str,
) -> Box<dyn AnyMachine> {
    machine_with(
        scheme,
        guest_mode,
        host_mode,
        host_pages,
        &Profile::load("cascade-lake-6252").unwrap(),
        1,
    )
}

pub fn machine_with(
    scheme: &str,
    guest_mode: &'static Mode,
    host_mode: &'static Mode,
    host_pages: &str,
    profile: &Profile,
    vcpus: usize,
) -> Box<dyn AnyMachine> {
    let definition = by_name(scheme).unwrap();
    let guest_bytes = 3 * GIB;
    let host = definition.virtualized.then(|| {
        let config = HostConfig {
            bytes: if host_mode.address_bits() > 32 { 8 * GIB } else { 4 * GIB },
            mode: host_mode,
            policy: PagePolicy::by_name(host_pages).unwrap(),
            placement: PlacementKind::default(),
            fragmentation: 0.0,
            seed: 1,
            kernel_bytes: KERNEL_BYTES,
        };
        HostMemory::with_config(&config, &[(Gpa::new(0), guest_bytes)]).unwrap()
    });
    (definition.build)(Build {
        name: scheme.into(),
        profile: profile.clone(),
        guest_mode,
        nested_mode: host_mode,
        vcpus,
        guest_bytes,
        host,
        verify: true,
    })
    .unwrap()
}

/// A profile without paging-structure caches and nested TLB: every walk makes all its references.
pub fn bare_profile() -> Profile {
    let mut profile = Profile::load("cascade-lake-6252").unwrap();
    profile.walk_cache = WalkCacheProfile::default();
    profile.nested_walk_cache = WalkCacheProfile::default();
    profile.nested_tlb = None;
    profile
}

/// The referee found nothing wrong, and looked.
pub fn approve(machine: &dyn AnyMachine) {
    let verdict = machine.verdict().unwrap();
    assert_eq!(verdict.told, Vec::<String>::new(), "{}", machine.name());
    assert!(verdict.checked > 0);
}

pub fn builder() -> BatchBuilder {
    BatchBuilder::new()
}
