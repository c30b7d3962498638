//! A guest written by hand: tables made entry by entry, so that tests know every address.
#![allow(dead_code, reason = "each test file uses a part")]

pub mod kernel;
pub mod lives;
pub mod machines;
pub mod oracle;
pub mod pairs;

use nestwalk_hw::Profile;
use nestwalk_hw::profile::WalkCacheProfile;
use nestwalk_mm::{HostConfig, HostMemory, KERNEL_BYTES, PagePolicy, PlacementKind};
use nestwalk_sim::machine::DynMachine;
use nestwalk_sim::scheme::MachineConfig;
use nestwalk_sim::schemes::by_name;
use nestwalk_tables::{Entry, Level, Mode, TableMemory, TableOwner, store};
use nestwalk_types::{
    BatchBuilder, Control, FaultCode, Gpa, GuestBatch, Gva, Invalidation, PageSize, Protection,
    Run, RunFlags, VcpuId,
};

pub const V0: VcpuId = VcpuId(0);
pub const GIB: u64 = 1 << 30;

/// What a hand-written guest says, in order.
pub struct Script {
    pub mode: &'static Mode,
    pub root: Gpa,
    memory: TableMemory<Gpa>,
    pub next_table: u64,
    controls: Vec<Control>,
    batch: GuestBatch,
    /// Where accesses are made from now on.
    pub vcpu: VcpuId,
    /// New tables are seen with their contents, as a captured guest's are at first: no store of the
    /// kernel has touched their pages.
    pub found_tables: bool,
}

struct Owner<'a> {
    next: &'a mut u64,
    controls: &'a mut Vec<Control>,
    found: bool,
}

impl TableOwner<Gpa> for Owner<'_> {
    fn new_table(&mut self, _level: Level) -> Option<Gpa> {
        let gpa = Gpa::new(*self.next);
        *self.next += 0x1000;
        let entries = self.found.then(|| Box::new([0; 512]));
        self.controls.push(Control::TableAdded { vcpu: V0, gpa, entries });
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
            vcpu: V0,
            found_tables: false,
        };
        script.memory.insert(root, None);
        script.controls.push(Control::TableAdded { vcpu: V0, gpa: root, entries: None });
        script.say(Control::LoadCr3 { vcpu: V0, root, pcid: 1, keep: false });
        script
    }
    /// As [`Script::new`], with tables that nobody has stored to: see `found_tables`.
    pub fn with_found_tables(mode: &'static Mode) -> Self {
        let mut script = Self::new(mode);
        script.found_tables = true;
        for (_, control) in &mut script.batch.batch.controls {
            if let Control::TableAdded { entries, .. } = control {
                *entries = Some(Box::new([0; 512]));
            }
        }
        script
    }
    /// A root table of another address space; the current one stays loaded.
    pub fn add_root(&mut self) -> Gpa {
        let root = Gpa::new(self.next_table);
        self.next_table += 0x1000;
        self.memory.insert(root, None);
        self.say(Control::TableAdded { vcpu: V0, gpa: root, entries: None });
        root
    }
    /// CR3 of the current vCPU is loaded; what follows is about that address space.
    pub fn load_cr3(&mut self, root: Gpa, pcid: u16, keep: bool) {
        self.root = root;
        self.say(Control::LoadCr3 { vcpu: self.vcpu, root, pcid, keep });
    }
    /// Stores an entry as it is; it must be in a table.
    pub fn write(&mut self, at: Gpa, value: u64) {
        assert!(self.memory.write(at, self.mode.entry_bytes, value).is_some(), "{at:?}");
        self.say(Control::TableWrite { vcpu: V0, gpa: at, value });
    }
    /// Where the entry of `level` for an address is, and its value as the guest knows it.
    pub fn entry(&self, gva: u64, level: Level) -> (Gpa, Entry) {
        let mut table = self.root;
        for l in (level + 1..=self.mode.levels).rev() {
            let at = self.mode.entry_at(table, gva, l);
            table = Entry(self.memory.read(at, self.mode.entry_bytes).unwrap()).target();
        }
        let at = self.mode.entry_at(table, gva, level);
        (at, Entry(self.memory.read(at, self.mode.entry_bytes).unwrap()))
    }
    pub fn say(&mut self, control: Control) {
        self.flush_controls();
        self.batch.batch.controls.push((self.batch.batch.runs.len() as u32, control));
    }
    fn flush_controls(&mut self) {
        let at = self.batch.batch.runs.len() as u32;
        self.batch.batch.controls.extend(self.controls.drain(..).map(|c| (at, c)));
    }
    /// The entry at an address as a machine has it, with the bits that hardware set.
    pub fn machine_entry(world: &nestwalk_sim::hardware::world::World, at: Gpa) -> Entry {
        Entry(world.guest.read(at, world.mode.entry_bytes).unwrap())
    }
    /// Maps a page; `bits` are set in the leaf beside P and U.
    pub fn map(&mut self, gva: u64, gpa: u64, size: PageSize, protection: Protection, bits: u64) {
        let level = self.mode.leaf_level(size).unwrap();
        let entry = Entry::leaf(Gpa::new(gpa), protection, level > 1).with(bits);
        let mut owner = Owner {
            next: &mut self.next_table,
            controls: &mut self.controls,
            found: self.found_tables,
        };
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
        let mut owner = Owner {
            next: &mut self.next_table,
            controls: &mut self.controls,
            found: self.found_tables,
        };
        let (mode, root) = (self.mode, self.root);
        store(&mut self.memory, mode, root, Gva::new(gva), level, Entry(0), &mut owner).unwrap();
        self.flush_controls();
    }
    pub fn invlpg(&mut self, gva: u64) {
        self.invalidate(Invalidation::Page(Gva::new(gva)));
    }
    pub fn fault(&mut self, gva: u64, write: bool) {
        let code = FaultCode { present: false, write, user: true, fetch: false };
        self.say(Control::Fault { vcpu: self.vcpu, gva: Gva::new(gva), code });
    }
    /// One access by a user program, with the guest's own idea of where it goes.
    pub fn access(&mut self, gva: u64, write: bool) {
        self.access_as(gva, if write { RunFlags::STORE } else { RunFlags::default() });
    }
    pub fn access_as(&mut self, gva: u64, flags: RunFlags) {
        let leaf =
            nestwalk_tables::look_up(&self.memory, self.mode, self.root, Gva::new(gva)).unwrap();
        self.flush_controls();
        self.batch.batch.runs.push(Run { vcpu: self.vcpu, flags, ..run(gva, false) });
        self.batch.gpas.push(leaf.apply(Gva::new(gva)));
    }
    pub fn load(&mut self, gva: u64) {
        self.access(gva, false);
    }
    pub fn store(&mut self, gva: u64) {
        self.access(gva, true);
    }
    pub fn invalidate(&mut self, what: Invalidation) {
        self.say(Control::Invalidate { vcpu: self.vcpu, what });
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
) -> Box<dyn DynMachine> {
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
) -> Box<dyn DynMachine> {
    let definition = by_name(scheme).unwrap();
    let guest_bytes = 3 * GIB;
    let host = definition.virtualized.then(|| {
        let config = HostConfig {
            // A guest with 4-byte entries can hold no higher addresses, if it holds the machine's.
            bytes: if host_mode.address_bits() > 32 && guest_mode.entry_bytes == 8 {
                8 * GIB
            } else {
                4 * GIB
            },
            mode: host_mode.own(),
            policy: PagePolicy::by_name(host_pages).unwrap(),
            placement: PlacementKind::default(),
            fragmentation: 0.0.into(),
            seed: 1,
            kernel_bytes: KERNEL_BYTES,
            daemons: nestwalk_mm::DaemonConfig::default(),
        };
        HostMemory::with_config(&config, &[(Gpa::new(0), guest_bytes)]).unwrap()
    });
    (definition.build)(MachineConfig {
        name: scheme.into(),
        variant: definition.options.normalize("").unwrap(),
        vmm: nestwalk_sim::scheme::vmm_options::VmmOptions::default(),
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
pub fn approve<M: DynMachine + ?Sized>(machine: &M) {
    let verdict = machine.verdict().unwrap();
    assert_eq!(verdict.told, Vec::<String>::new(), "{}", machine.name());
    assert!(verdict.checked > 0);
}

pub fn builder() -> BatchBuilder {
    BatchBuilder::new()
}
