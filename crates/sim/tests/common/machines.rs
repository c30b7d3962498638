//! Machines whose parts a test can reach, and profiles made to measure.

use super::GIB;
use nestwalk_hw::Profile;
use nestwalk_hw::profile::{ArrayProfile, PcidProfile, TlbProfile, WalkCacheProfile};
use nestwalk_mm::{HostConfig, HostMemory, KERNEL_BYTES, PagePolicy, PlacementKind};
use nestwalk_sim::assist::segments::{DUAL, GUEST, SegmentedVm, VMM};
use nestwalk_sim::hypervisor::agile::OPTIONS;
use nestwalk_sim::hypervisor::bare_metal::Native;
use nestwalk_sim::hypervisor::nested::Nested;
use nestwalk_sim::hypervisor::vm_in_vm::{EPT_OPTIONS, Kind, PVM_OPTIONS, SHADOW_OPTIONS, VmInVm};
use nestwalk_sim::scheme::MachineConfig;
use nestwalk_sim::scheme::vmm_options::VmmOptions;
use nestwalk_sim::schemes::agile::Agile;
use nestwalk_sim::schemes::ds::DirectSegment;
use nestwalk_sim::schemes::shadow::Shadow;
use nestwalk_sim::schemes::soft_tlb::SoftTlb;
use nestwalk_sim::schemes::xen_pv::XenPv;
use nestwalk_sim::{Counters, DynMachine, ExitReason, Machine};
use nestwalk_tables::{LONG4, Mode};
use nestwalk_types::{Gpa, GuestBatch};

/// What a machine is made from, with everything open to change.
#[derive(Clone)]
pub struct Setup {
    pub profile: Profile,
    pub vmm: VmmOptions,
    pub guest_mode: &'static Mode,
    pub host_mode: &'static Mode,
    pub host_pages: &'static str,
    pub host_placement: PlacementKind,
    pub vcpus: usize,
    pub guest_bytes: u64,
    pub host_bytes: u64,
    pub verify: bool,
}

impl Setup {
    /// 3 GiB of guest memory in one slot from 0, 4-level tables, 4 KiB host pages, one vCPU, watched.
    pub fn new(profile: Profile) -> Self {
        Self {
            profile,
            vmm: VmmOptions::default(),
            guest_mode: &LONG4,
            host_mode: &LONG4,
            host_pages: "4k",
            host_placement: PlacementKind::default(),
            vcpus: 1,
            guest_bytes: 3 * GIB,
            host_bytes: 8 * GIB,
            verify: true,
        }
    }

    pub fn host(&self) -> HostMemory {
        let config = HostConfig {
            // As in `machine_with`.
            bytes: if self.guest_mode.entry_bytes == 8 { self.host_bytes } else { 4 * GIB },
            mode: self.host_mode.own(),
            policy: PagePolicy::by_name(self.host_pages).unwrap(),
            placement: self.host_placement,
            fragmentation: 0.0.into(),
            seed: 1,
            kernel_bytes: KERNEL_BYTES,
            daemons: nestwalk_mm::DaemonConfig::default(),
        };
        HostMemory::with_config(&config, &[(Gpa::new(0), self.guest_bytes)]).unwrap()
    }

    pub fn build(&self, name: &str, virtualized: bool) -> MachineConfig {
        MachineConfig {
            name: name.into(),
            variant: String::new(),
            vmm: self.vmm,
            profile: self.profile.clone(),
            guest_mode: self.guest_mode,
            nested_mode: self.host_mode,
            vcpus: self.vcpus,
            guest_bytes: self.guest_bytes,
            host: virtualized.then(|| self.host()),
            verify: self.verify,
        }
    }

    pub fn native(&self) -> Machine<Native> {
        Machine::new(Native::default(), self.build("native", false)).unwrap()
    }
    pub fn nested(&self) -> Machine<Nested> {
        let mut build = self.build("nested", true);
        Machine::new(Nested::new(&mut build).unwrap(), build).unwrap()
    }
    pub fn xen_pv(&self, variant: &str) -> Machine<XenPv> {
        let build = MachineConfig { variant: variant.into(), ..self.build("xen-pv", true) };
        Machine::new(XenPv::new(&build).unwrap(), build).unwrap()
    }
    pub fn soft_tlb(&self, variant: &str) -> Machine<SoftTlb> {
        let build = MachineConfig { variant: variant.into(), ..self.build("soft-tlb", true) };
        SoftTlb::machine(build).unwrap()
    }
    pub fn ds(&self, variant: &str) -> Machine<DirectSegment> {
        let build = MachineConfig { variant: variant.into(), ..self.build("ds", false) };
        Machine::new(DirectSegment::new(&build).unwrap(), build).unwrap()
    }
    /// A machine with segments, by the name of its scheme.
    pub fn segmented(&self, scheme: &str, variant: &str) -> Machine<SegmentedVm> {
        let build = MachineConfig { variant: variant.into(), ..self.build(scheme, true) };
        let registers = (scheme != "vmm-direct", scheme != "guest-direct");
        let options = match scheme {
            "vmm-direct" => &VMM,
            "guest-direct" => &GUEST,
            _ => &DUAL,
        };
        SegmentedVm::machine(build, options, registers).unwrap()
    }
    /// An agile machine, by its keys.
    pub fn agile(&self, variant: &str) -> Machine<Agile> {
        let mut build = MachineConfig { variant: variant.into(), ..self.build("agile", true) };
        let config = OPTIONS.parse(variant).unwrap();
        Machine::new(Agile::new(config, &mut build).unwrap(), build).unwrap()
    }
    /// A VM in a VM, by its keys.
    pub fn vm_in_vm(&self, kind: Kind, variant: &str) -> (VmInVm, MachineConfig) {
        let (name, table) = match kind {
            Kind::EptOnEpt => ("ept-on-ept", &EPT_OPTIONS),
            Kind::ShadowOnEpt => ("spt-on-ept", &SHADOW_OPTIONS),
            Kind::Pvm => ("pvm", &PVM_OPTIONS),
        };
        let mut build = MachineConfig { variant: variant.into(), ..self.build(name, true) };
        let options = table.parse(variant).unwrap();
        (VmInVm::new(kind, &options, &mut build).unwrap(), build)
    }
    pub fn shadow(&self) -> Machine<Shadow> {
        let build = self.build("shadow", true);
        Machine::new(Shadow::new(&build).unwrap(), build).unwrap()
    }
}

/// What every concrete machine can be asked in a test.
pub trait Probe: DynMachine {
    fn platform(&mut self) -> &mut nestwalk_sim::scheme::Platform;

    /// Runs the events and returns what they added to the counters.
    fn count(&mut self, events: &GuestBatch) -> Counters {
        self.platform().cpu.counters = Counters::default();
        self.run(events).unwrap();
        self.counters().clone()
    }
    /// Empties every structure of every core, guest-physical ones too.
    fn forget(&mut self) {
        for core in &mut self.platform().cpu.hardware.cores {
            core.l1d.flush();
            core.l1i.flush();
            core.l2.flush();
            if let Some(l2i) = &mut core.l2i {
                l2i.flush();
            }
            core.walk_cache.flush();
            core.nested_walk_cache.flush();
            if let Some(cache) = &mut core.entry_cache {
                cache.flush();
            }
            if let Some(tlb) = &mut core.nested_tlb {
                tlb.flush();
            }
        }
    }
    /// Empties the TLBs alone: the next access of each page walks.
    fn forget_translations(&mut self) {
        for core in &mut self.platform().cpu.hardware.cores {
            core.l1d.flush();
            core.l1i.flush();
            core.l2.flush();
        }
    }
}

impl<S: nestwalk_sim::scheme::Scheme, T: nestwalk_sim::hardware::tlbs::TlbFamily> Probe
    for Machine<S, T>
{
    fn platform(&mut self) -> &mut nestwalk_sim::scheme::Platform {
        &mut self.platform
    }
}

/// Exits of one reason.
pub fn exits(c: &Counters, reason: ExitReason) -> u64 {
    c.exits[reason as usize]
}

/// Exits that happened, by name.
pub fn exits_by_name(c: &Counters) -> Vec<(&'static str, u64)> {
    let all = ExitReason::ALL.iter().map(|r| (r.name(), exits(c, *r)));
    all.filter(|e| e.1 > 0).collect()
}

pub fn tlb(sizes: &[&str], entries: u32, ways: u32) -> TlbProfile {
    let sizes = sizes.iter().map(|s| (*s).to_owned()).collect();
    TlbProfile { sizes, entries, ways, source: "test".into(), ..Default::default() }
}

pub fn array(entries: u32, ways: u32) -> ArrayProfile {
    ArrayProfile { entries, ways, source: "test".into() }
}

pub const ALL_SIZES: [&str; 3] = ["4k", "2m", "1g"];

/// The profile as a naive model has it: sizes and ways are its own, but it is indexed by the lowest bits
/// with true LRU, holds any number of PCIDs, has the walk caches of the default profile, and nothing is
/// coalesced or smashed.
pub fn plain(mut profile: Profile) -> Profile {
    let default = Profile::load("cascade-lake-6252").unwrap();
    for level in [&mut profile.l1d_tlb, &mut profile.l1i_tlb, &mut profile.l2_tlb] {
        for array in level {
            array.sizes.retain(|size| size != "16k");
            *array = TlbProfile {
                sizes: array.sizes.clone(),
                source: array.source.clone(),
                ..tlb(&[], array.entries, array.ways)
            };
        }
    }
    profile.l2i_tlb.clear();
    profile.pcid = PcidProfile::default();
    if profile.entry_cache.take().is_some() {
        profile.walk_cache = default.walk_cache;
        profile.nested_walk_cache = default.nested_walk_cache;
    }
    profile
}

/// TLBs of one entry for all sizes: every change of page misses.
pub fn with_tiny_tlbs(mut profile: Profile) -> Profile {
    for level in [&mut profile.l1d_tlb, &mut profile.l1i_tlb, &mut profile.l2_tlb] {
        *level = vec![tlb(&ALL_SIZES, 1, 1)];
    }
    profile
}

/// TLBs that hold every size and evict nothing that a short test uses.
pub fn with_roomy_tlbs(mut profile: Profile) -> Profile {
    for level in [&mut profile.l1d_tlb, &mut profile.l1i_tlb, &mut profile.l2_tlb] {
        *level = vec![tlb(&ALL_SIZES, 4096, 64)];
    }
    profile
}

/// Walk caches that evict nothing that a short test uses.
pub fn roomy_walk_cache() -> WalkCacheProfile {
    let all = Some(array(64, 64));
    WalkCacheProfile { pde: all.clone(), pdpte: all.clone(), pml4e: all.clone(), pml5e: all }
}

/// A walk cache that takes walks to tables of `level` alone.
pub fn only_to_level(level: u8, array: ArrayProfile) -> WalkCacheProfile {
    let mut cache = WalkCacheProfile::default();
    match level {
        1 => cache.pde = Some(array),
        2 => cache.pdpte = Some(array),
        3 => cache.pml4e = Some(array),
        _ => cache.pml5e = Some(array),
    }
    cache
}
