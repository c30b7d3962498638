//! Several virtual machines on one host: cores in turns, TLBs, caches and memory shared.
//!
//! Each VM has its source, its guest, and a machine of its own. All VMs run several times in one
//! pass: each alone, then with what a host shares added piece by piece (TLBs and walk caches, data
//! caches, memory of which there is not enough). What a VM's overhead grows by from one to the next
//! is what that piece of sharing costs it, so its own part and its neighbours' add up to the whole.
//!
//! While a VM runs it has what is shared to itself ([`nestwalk_sim::hardware::exchange`]): one machine's
//! hot path is that of a machine alone.

mod asynchronous;
mod feed;
mod hidden;
mod memory;
pub mod merging;
pub mod migration;
mod outcome;
mod pass;
mod reporting;
mod stage;
pub mod timeline;

use asynchronous::Asynchronous;
use device::Device;
use feed::Feed;
use hidden::Hidden;
use memory::Memory;
pub use memory::SwapCounts;
use merging::{MergePlan, Merging};
use migration::{MigrationPlan, Migrations};
use nestwalk_mm::{HostMemory, PagePolicy, PhysicalMemory, PlacementKind};
use nestwalk_sim::compare::guests::Guest;
use nestwalk_sim::compare::spec::MachineSpec;
use nestwalk_sim::compare::{self, CompareError, Plan};
use nestwalk_sim::hardware::Hardware;
use nestwalk_sim::hardware::exchange::{Shared, VPIDS};
use nestwalk_sim::machine::DynMachine;
use nestwalk_sim::measure::counters::Counters;
pub use nestwalk_sim::replacement;
pub use nestwalk_sim::replacement::device;
use nestwalk_sim::scheme::MachineError;
use nestwalk_types::{Filter, Hpa, Source};
pub use outcome::{FleetOutcome, GuestSwap, HostOutcome, Interference, VmOutcome};
use pass::Pass;
use replacement::Kind;
use stage::{Host, Place, Stage};
use std::sync::atomic::AtomicBool;
use thiserror::Error;

/// Runs and touched pages of a slice where memory is plenty: enough to hide what a slice costs.
const SLICE: usize = 4096;
/// The same where pages are taken back between slices.
const SHORT_SLICE: usize = 64;

/// One VM of a fleet.
pub struct Vm {
    /// Its name.
    pub name: String,
    /// What it is: the first machine that is no control is the VM's. The profile is that of the
    /// first VM.
    pub plan: Plan,
    /// What it runs.
    pub source: Box<dyn Source>,
    /// Its first core, if it has cores of its own; `None` to share the first ones with others.
    pub pinned: Option<usize>,
    /// Its guest asks to be told of pages that its host reads, and runs another process meanwhile.
    pub async_faults: bool,
    /// Its guest reports free memory to a host that is short of it.
    pub reporting: bool,
    /// A host that is short of memory asks its balloon first, before it swaps.
    pub balloon: bool,
}

/// How a host runs its VMs.
#[derive(Clone, Debug)]
pub struct FleetPlan {
    /// Cores; as many as VMs need by default.
    pub cores: Option<usize>,
    /// Instructions of a VM's turn.
    pub turn: u64,
    /// TLBs tell VMs apart.
    pub vpids: bool,
    /// Bytes of the host's memory; `None` for all that the VMs can ask for.
    pub host_bytes: Option<u64>,
    /// Which page goes.
    pub replacement: Kind,
    /// Where to.
    pub device: Device,
    /// Pages of the same contents are merged.
    pub merging: Option<MergePlan>,
    /// VMs that move to hosts of their own.
    pub migrations: Vec<MigrationPlan>,
    /// VMs also run with TLBs shared and caches of their own, to tell what each costs.
    pub apart: bool,
    /// Worker threads.
    pub threads: usize,
}

/// Instructions of a turn unless said: 3 ms, a slice of Linux's scheduler (6.6,
/// `sysctl_sched_base_slice` of 0.75 ms times 1 + log2 of 8 processors or more), at 2 GHz and one
/// instruction a cycle.
pub const TURN: u64 = 6_000_000;

impl Default for FleetPlan {
    fn default() -> Self {
        Self {
            cores: None,
            turn: TURN,
            vpids: true,
            host_bytes: None,
            replacement: Kind::default(),
            device: Device::default(),
            merging: None,
            migrations: Vec::new(),
            apart: true,
            threads: 1,
        }
    }
}

/// Why a fleet cannot be, or ended early.
#[derive(Debug, Error)]
pub enum FleetError {
    /// What was asked for cannot be.
    #[error("{0}")]
    Plan(String),
    /// One VM cannot go on.
    #[error("VM {vm}: {source}")]
    Vm {
        /// Which.
        vm: String,
        /// Why.
        source: Box<CompareError>,
    },
    /// The host cannot go on.
    #[error(transparent)]
    Host(#[from] MachineError),
    /// The user asked for it.
    #[error("interrupted: the results are those of the accesses up to here")]
    Interrupted,
}

/// How far a fleet is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FleetProgress {
    /// Accesses of all VMs so far.
    pub accesses: u64,
    /// VMs whose source has ended.
    pub ended: usize,
}

/// A VM's life, which every stage follows.
struct Member {
    name: String,
    plan: Plan,
    spec: MachineSpec,
    source: String,
    feed: Feed,
    ideal: Box<dyn DynMachine>,
    async_faults: bool,
    balloon: bool,
    /// What its recording does not show; `None` if it is none.
    filter: Option<Filter>,
    /// Its region of interest has begun.
    begun: bool,
    /// Its next event is an access of that.
    ready: bool,
    ended: bool,
    turns: u64,
}

/// Runs all VMs of a fleet to their ends.
///
/// # Errors
/// The fleet cannot be set up. What goes wrong later is in [`FleetOutcome::error`], beside what was
/// found before.
pub fn run(
    fleet: &FleetPlan,
    vms: Vec<Vm>,
    stop: &AtomicBool,
    progress: &mut dyn FnMut(FleetProgress),
) -> Result<FleetOutcome, FleetError> {
    let places = places(fleet, &vms)?;
    let mut members = vms.into_iter().map(member).collect::<Result<Vec<_>, _>>()?;
    check(fleet, &members)?;
    let mut stages = stages(fleet, &members, &places)?;
    let slice = if fleet.host_bytes.is_some() { SHORT_SLICE } else { SLICE };
    let mut pass = Pass::new(fleet, &places, slice);
    let ran = pass.run(&mut members, &mut stages, stop, progress);
    let finished = stages.iter_mut().try_for_each(Stage::finish).map_err(FleetError::Host);
    let error = ran.and(finished).err();
    outcome::outcome(fleet, &members, &mut stages, error)
}

/// Where each VM runs.
fn places(fleet: &FleetPlan, vms: &[Vm]) -> Result<Vec<Place>, FleetError> {
    let plan = |text: String| FleetError::Plan(text);
    let needed = vms.iter().map(|v| v.pinned.unwrap_or(0) + v.plan.vcpus).max().unwrap_or(0);
    let cores = fleet.cores.unwrap_or(needed);
    if vms.is_empty() {
        return Err(plan("a fleet of no VM: give one --vm 'NAME=SOURCE' at least".into()));
    }
    for (i, vm) in vms.iter().enumerate() {
        if vms[..i].iter().any(|other| other.name == vm.name) {
            return Err(plan(format!(
                "VM {}: two VMs have this name; each needs its own",
                vm.name
            )));
        }
        let asks = [("reporting", vm.reporting), ("balloon", vm.balloon)];
        if let Some((key, _)) = asks.into_iter().find(|a| a.1 && fleet.host_bytes.is_none()) {
            return Err(plan(format!(
                "VM {}: {key}: the host takes back what is free where it is short of memory; give it \
                 --host-memory, or leave it out",
                vm.name
            )));
        }
        let end = vm.pinned.unwrap_or(0) + vm.plan.vcpus;
        if end > cores {
            return Err(plan(format!(
                "VM {}: its {} vCPUs need cores up to number {}, but the host has {cores}; give it more \
                 cores, or the VM fewer vCPUs",
                vm.name,
                vm.plan.vcpus,
                end - 1
            )));
        }
    }
    // 0 is the host's own. With more VMs than tags some take turns with one.
    let vpid = |i: usize| 1 + (i % (usize::from(VPIDS) - 1)) as u8;
    let place = |(i, vm): (usize, &Vm)| Place {
        first: vm.pinned.unwrap_or(0),
        vcpus: vm.plan.vcpus,
        vpid: vpid(i),
    };
    Ok(vms.iter().enumerate().map(place).collect())
}

fn member(vm: Vm) -> Result<Member, FleetError> {
    let wrong = |source| FleetError::Vm { vm: vm.name.clone(), source: Box::new(source) };
    let spec = vm.plan.machines.iter().find(|m| m.scheme.virtualized).cloned();
    let Some(spec) = spec else {
        return Err(FleetError::Plan(format!(
            "VM {}: its machine is none of a virtual machine; name one such as nested or shadow",
            vm.name
        )));
    };
    let control =
        vm.plan.machines.iter().find(|m| m.scheme.name == "ideal" && m.guest == spec.guest);
    let Some(control) = control else {
        return Err(FleetError::Plan(format!(
            "VM {}: the plan has no `ideal` with the guest of {}, which its costs are held against",
            vm.name, spec.name
        )));
    };
    let info = vm.source.info();
    let guest = Guest::new(&vm.plan, &spec, &info).map_err(wrong)?;
    if vm.reporting && guest.physical().is_none() {
        return Err(FleetError::Plan(format!(
            "VM {}: reporting: a recording does not say what its kernel has free; name pages of a \
             modelled guest, as in machine={}:4k+4k, or leave it out",
            vm.name, spec.scheme.name
        )));
    }
    if vm.balloon && guest.physical().is_none() {
        return Err(FleetError::Plan(format!(
            "VM {}: balloon: a recorded kernel cannot be asked for pages, what it did is done; name pages \
             of a modelled guest, as in machine={}:4k+4k, or leave it out",
            vm.name, spec.scheme.name
        )));
    }
    let ideal = compare::machine(&vm.plan, control).map_err(wrong)?;
    Ok(Member {
        feed: Feed::new(vm.source, guest, spec.guest, vm.reporting),
        name: vm.name,
        source: info.name,
        plan: vm.plan,
        spec,
        ideal,
        async_faults: vm.async_faults,
        balloon: vm.balloon,
        filter: info.guest.map(|guest| guest.filter),
        begun: false,
        ready: false,
        ended: false,
        turns: 0,
    })
}

/// Whether these VMs can share one host.
fn check(fleet: &FleetPlan, members: &[Member]) -> Result<(), FleetError> {
    for m in members {
        let refuse =
            |why: &str| Err(FleetError::Plan(format!("VM {}: {}: {why}", m.name, m.spec.name)));
        if m.spec.scheme.facts.own_structures {
            return refuse(
                "it has structures that know no VPID, so several VMs cannot share them; take another \
                 machine",
            );
        }
        if fleet.host_bytes.is_some() && m.spec.scheme.facts.pins_memory {
            return refuse(
                "its memory stays where it is, so a host that is short of memory cannot take it back; \
                 leave --host-memory out, or take another machine",
            );
        }
        let Some(host) = m.spec.host else { continue };
        let moves = host.placement != PlacementKind::default()
            || matches!(host.pages, PagePolicy::Khugepaged);
        if moves {
            return refuse(
                "its host moves pages or sets memory aside for one VM; of several VMs on a host all have \
                 hosts with 4k, thp, 2m or 1g pages and no placement policy",
            );
        }
        if m.plan.profile != members[0].plan.profile {
            return refuse("VMs on one host have one hardware profile");
        }
    }
    Ok(())
}

/// Each VM alone, and all of them on hosts that share more and more.
fn stages(
    fleet: &FleetPlan,
    members: &[Member],
    places: &[Place],
) -> Result<Vec<Stage>, FleetError> {
    let alone = members.iter().map(|m| machine(m, None)).collect::<Result<Vec<_>, _>>()?;
    let mut stages = vec![Stage::new(alone, places.to_vec(), None)];
    let plenty: u64 = members.iter().map(|m| m.plan.host_bytes).fold(0, u64::saturating_add);
    let all = Shared { tlbs: true, caches: true };
    if fleet.apart {
        let tlbs = Shared { tlbs: true, caches: false };
        stages.push(together(fleet, members, places, (tlbs, plenty, false))?);
    }
    stages.push(together(fleet, members, places, (all, plenty, false))?);
    let (bytes, scarce) = (fleet.host_bytes.unwrap_or(plenty), fleet.host_bytes.is_some());
    if scarce {
        stages.push(together(fleet, members, places, (all, bytes, true))?);
    }
    if fleet.merging.is_some() {
        let mut last = together(fleet, members, places, (all, bytes, scarce))?;
        last.merging = merging(fleet, members, &mut last)?;
        stages.push(last);
    }
    if !fleet.migrations.is_empty() {
        let mut last = together(fleet, members, places, (all, bytes, scarce))?;
        last.merging = merging(fleet, members, &mut last)?;
        last.migrations = Some(migrations(fleet, members, &mut last)?);
        stages.push(last);
    }
    Ok(stages)
}

/// Same-page merging, if it is asked for.
fn merging(
    fleet: &FleetPlan,
    members: &[Member],
    stage: &mut Stage,
) -> Result<Option<Box<Merging>>, FleetError> {
    let Some(plan) = &fleet.merging else { return Ok(None) };
    let shares = plan.check(members, stage)?;
    Ok(Some(Box::new(Merging::new(plan.clone(), shares))))
}

/// The VMs that move, each with a machine on the host that it moves to.
fn migrations(
    fleet: &FleetPlan,
    members: &[Member],
    stage: &mut Stage,
) -> Result<Box<Migrations>, FleetError> {
    let mut all: Vec<(MigrationPlan, usize, Box<dyn DynMachine>)> = Vec::new();
    for plan in &fleet.migrations {
        let vm = plan.check(members)?;
        let refuse = |why: &str| FleetError::Plan(format!("migration of {}: {why}", plan.vm));
        if all.iter().any(|other| other.1 == vm) {
            return Err(refuse("it is asked for twice; a VM moves once"));
        }
        if !stage.knows_base_pages(vm)? {
            return Err(refuse(
                "its TLBs hold several pages in an entry, which cannot tell which of them was stored \
                 to; take another machine",
            ));
        }
        all.push((plan.clone(), vm, machine(&members[vm], None)?));
    }
    let cores = stage.places.iter().map(|p| p.cores().end).max().unwrap_or(0);
    let size = (members.len(), cores);
    Ok(Box::new(Migrations::new(all, &members[0].plan.profile, size)))
}

fn machine(
    member: &Member,
    physical: Option<PhysicalMemory<Hpa>>,
) -> Result<Box<dyn DynMachine>, FleetError> {
    compare::machine_in(&member.plan, &member.spec, physical)
        .map_err(|source| FleetError::Vm { vm: member.name.clone(), source: Box::new(source) })
}

/// All VMs on one host.
fn together(
    fleet: &FleetPlan,
    members: &[Member],
    places: &[Place],
    (shared, bytes, reclaims): (Shared, u64, bool),
) -> Result<Stage, FleetError> {
    let first = &members[0];
    let host = first.spec.host.ok_or_else(|| FleetError::Plan("a VM has no host".into()))?;
    let config = nestwalk_mm::HostConfig { bytes, ..compare::host_config(&first.plan, host) };
    let mut physical = HostMemory::physical_memory(&config)
        .map_err(|e| FleetError::Plan(format!("host memory of {bytes} bytes: {e}")))?;
    let frames = physical.free_frames();
    let mut machines = Vec::new();
    for (member, place) in members.iter().zip(places) {
        let taken = std::mem::replace(&mut physical, PhysicalMemory::none());
        let mut machine = machine(member, Some(taken))?;
        if let Some(mut tenant) = machine.tenant() {
            tenant.hardware().set_vpid(place.vpid);
            if let Some(memory) = tenant.host() {
                memory.exchange_physical(&mut physical);
                if reclaims {
                    memory.hear_touches();
                }
            }
        }
        machines.push(machine);
    }
    let cores = places.iter().map(|p| p.cores().end).max().unwrap_or(0);
    let hardware = shared_hardware(first, fleet.cores.unwrap_or(cores), &mut machines[0])?;
    let memory = reclaims.then(|| {
        // What a slice may touch, each page as large as the host has them, and its tables.
        let largest = members
            .iter()
            .filter_map(|m| m.spec.host)
            .map(|h| h.pages.largest(first.plan.host_mode.own()));
        let pages = largest.map(|size| size.base_pages()).max().unwrap_or(1);
        let slice = SHORT_SLICE as u64 * (pages + 8);
        let told: Vec<bool> = members.iter().map(|m| m.async_faults).collect();
        let waiting = Asynchronous::new(&first.plan.profile, places, &told);
        let sizes = (members.len(), frames, slice);
        Memory::new(fleet.replacement.make(fleet.turn), fleet.device, sizes, waiting)
    });
    let host = Host::new(shared, fleet.vpids, hardware, physical, memory);
    let mut stage = Stage::new(machines, places.to_vec(), Some(host));
    let hidden = |m: &Member| Hidden::new(&m.filter?, m.plan.vcpus);
    stage.hidden = members.iter().map(hidden).collect();
    Ok(stage)
}

/// The cores of a host, with structures as the VMs' machines have them.
fn shared_hardware(
    first: &Member,
    cores: usize,
    machine: &mut Box<dyn DynMachine>,
) -> Result<Hardware, FleetError> {
    let mut hardware = Hardware::new(&first.plan.profile, cores, 0);
    if let Some(mut tenant) = machine.tenant() {
        hardware.fit_out(tenant.hardware());
    }
    Ok(hardware)
}

impl Member {
    /// The ideal machine's counters.
    fn ideal(&self) -> &Counters {
        self.ideal.counters()
    }
}
