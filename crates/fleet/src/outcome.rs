//! What came of a fleet.

use super::memory::SwapCounts;
use super::merging::{MergedCounts, MergingOutcome};
use super::migration::MigrationOutcome;
use super::stage::Stage;
use super::{FleetError, FleetPlan, Member};
use nestwalk_sim::compare::guests::GuestOutcome;
use nestwalk_sim::measure::cost::Cycles;
use nestwalk_sim::report::contiguity::ContiguityResult;
use nestwalk_sim::report::placement::PlacementResult;
use nestwalk_sim::report::results::MachineResult;
use nestwalk_sim::report::tables::TablesResult;
use serde::Serialize;

/// What a VM's overhead is made of, in percent of its ideal run alone. The parts add up to the
/// whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Interference {
    /// What it costs alone on the host.
    pub own: f64,
    /// What neighbours add by sharing TLBs and walk caches, the exits at the ends of turns
    /// included.
    pub tlbs: f64,
    /// What they add by sharing data caches.
    pub caches: f64,
    /// What a host that is short of memory adds.
    pub memory: f64,
    /// What same-page merging adds: looking at pages, and frames of their own for those that are stored
    /// to. Less if memory is scarce, since merged pages leave more of it.
    pub merging: f64,
    /// What moving VMs to other hosts adds: to log their stores, and to begin there with empty TLBs
    /// and tables.
    pub migration: f64,
    /// All together.
    pub total: f64,
}

/// What a guest's kernel swapped since counting began; pages are of 4 KiB. All stages see the same
/// guest, and the ideal run, too: what it costs the kernel is no part of overheads.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GuestSwap {
    /// Policy of page replacement.
    pub policy: &'static str,
    /// Looks whether a page was used.
    pub pages_scanned: u64,
    /// Pages that the kernel took from processes.
    pub taken_back: u64,
    /// Of these, those that the device had to write.
    pub written: u64,
    /// Pages that came back.
    pub swapped_in: u64,
    /// Pages that the balloon has given to the host.
    pub ballooned: u64,
    /// How long the device took for those that came back, one after the other, in nanoseconds.
    pub waited_ns: f64,
}

/// What came of one VM.
#[derive(Clone, Debug, Serialize)]
pub struct VmOutcome {
    /// Its name.
    pub name: String,
    /// What it ran.
    pub source: String,
    /// Turns since its region of interest began.
    pub turns: u64,
    /// What its overhead is made of; `None` where it was not told apart, but for own and total.
    pub interference: Interference,
    /// Whether TLBs and caches were told apart: otherwise `caches` has both.
    pub apart: bool,
    /// Bytes that it had touched by the end, alone.
    pub touched_bytes: u64,
    /// Bytes of these that were in memory at the end, on the shared host.
    pub resident_bytes: u64,
    /// What it and its host's swap did to each other.
    pub swap: SwapCounts,
    /// What its guest's kernel and the guest's own swap device did to each other; `None` if it swaps
    /// nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guest_swap: Option<GuestSwap>,
    /// Pages that were touched again, since the VM had lost translations through no doing of its guest
    /// and its recording does not show what it uses of them; `None` if that hides nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shown_again: Option<u64>,
    /// What same-page merging did to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub merging: Option<MergedCounts>,
    /// What came of its move to another host, if it was to move.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub migration: Option<MigrationOutcome>,
    /// How long it waited for the device with nothing of it running meanwhile, in percent of its
    /// ideal run alone. It is no part of the overhead, which is work.
    pub waited_percent: f64,
    /// Alone on the host.
    pub alone: MachineResult,
    /// On the shared host.
    pub together: MachineResult,
    /// What its guest did.
    #[serde(skip)]
    pub guest: GuestOutcome,
}

/// What came of the host.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct HostOutcome {
    /// Cores.
    pub cores: usize,
    /// Bytes of memory.
    pub bytes: u64,
    /// Bytes that the VMs touched, each alone, with all tables: what they take if there is enough.
    pub touched_bytes: u64,
    /// Turns that ended since another VM was next.
    pub preemptions: u64,
    /// Policy of page replacement; empty if nothing is ever taken back.
    pub replacement: String,
    /// Device to swap to; empty likewise.
    pub device: String,
    /// What same-page merging came to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub merging: Option<MergingOutcome>,
    /// Frames that were behind pages of two VMs, or free and behind a page. It must be 0.
    pub frames_given_twice: u64,
}

/// What came of a fleet, whether it came to its end or not.
#[derive(Debug)]
pub struct FleetOutcome {
    /// VMs in the order of the plan.
    pub vms: Vec<VmOutcome>,
    /// The host.
    pub host: HostOutcome,
    /// Why it ended early.
    pub error: Option<FleetError>,
}

/// The outcome so far.
///
/// # Errors
/// A machine is no virtual machine.
pub(super) fn outcome(
    fleet: &FleetPlan,
    members: &[Member],
    stages: &mut [Stage],
    error: Option<FleetError>,
) -> Result<FleetOutcome, FleetError> {
    let results = (0..members.len())
        .map(|vm| stages.iter_mut().map(|stage| result(&members[vm], stage, vm)).collect())
        .collect::<Result<Vec<Vec<MachineResult>>, FleetError>>()?;
    let mut host = HostOutcome {
        replacement: fleet.host_bytes.map_or("", |_| fleet.replacement.name()).into(),
        device: fleet.host_bytes.map_or("", |_| fleet.device.name).into(),
        ..HostOutcome::default()
    };
    let mut vms = Vec::new();
    for (vm, (member, results)) in members.iter().zip(&results).enumerate() {
        let made = vm_outcome(fleet, member, results, (vm, stages))?;
        host.touched_bytes += made.touched_bytes + tables(&made.alone);
        host.preemptions += made.together.vm_exits.get("preempted").copied().unwrap_or(0)
            / member.plan.vcpus as u64;
        vms.push(made);
    }
    if let Some(last) = stages.last_mut() {
        host.cores = last.places.iter().map(|p| p.cores().end).max().unwrap_or(0);
        host.cores = fleet.cores.unwrap_or(host.cores);
        host.bytes = last.host.as_ref().map_or(0, |h| h.physical.bytes());
        let merged = last.merged_pages()?;
        host.merging = last.merging.as_ref().map(|merging| merging.outcome(&merged));
        host.frames_given_twice = last.frames_given_twice()?.len() as u64;
    }
    Ok(FleetOutcome { vms, host, error })
}

/// Bytes of tables that the host holds for a VM.
const fn tables(result: &MachineResult) -> u64 {
    let t = &result.page_table_bytes;
    t.nested + t.shadow + t.host
}

fn result(member: &Member, stage: &mut Stage, vm: usize) -> Result<MachineResult, FleetError> {
    let (profile, ideal) = (&member.plan.profile, member.ideal());
    let mut made = stage.look(vm, |machine| {
        let report = machine.report();
        let names = (machine.name(), member.spec.scheme.name);
        let mut made =
            MachineResult::new(names, machine.counters(), profile, Some(ideal), report.page_tables);
        made.referee = machine.verdict();
        if let Some(before) = machine.before() {
            made.set_up(before, profile);
        }
        let placed = machine.host_placement();
        made.host_placement = placed.map(|p| PlacementResult::new(&p, profile));
        made.segments = report.segments;
        made.contiguity = report.contiguity.map(|s| ContiguityResult::new(machine.counters(), s));
        made.tables = report.tables.map(|s| TablesResult::new(machine.counters(), s));
        made.switching = report.switching;
        made
    })?;
    // The referee has watched on both hosts.
    let before = stage.migrations.as_ref().and_then(|all| all.verdict(vm));
    if let (Some(verdict), Some(before)) = (&mut made.referee, before) {
        verdict.checked += before.checked;
        verdict.violations += before.violations;
        verdict.told.splice(0..0, before.told.iter().cloned());
    }
    Ok(made)
}

fn vm_outcome(
    fleet: &FleetPlan,
    member: &Member,
    results: &[MachineResult],
    (vm, stages): (usize, &mut [Stage]),
) -> Result<VmOutcome, FleetError> {
    let percent = |stage: usize| results[stage].overhead_percent;
    let last = results.len() - 1;
    let own = percent(0);
    // The stages are: alone; TLBs, if they are told apart; caches as well; short of memory, if it
    // is; with merging; with VMs that move, if any does.
    let caches = if fleet.apart { 2 } else { 1 };
    let memory = caches + usize::from(fleet.host_bytes.is_some());
    let merging = memory + usize::from(fleet.merging.is_some());
    let tlbs = if fleet.apart { percent(1) - own } else { 0.0 };
    let neighbours = percent(caches) - own;
    let interference = Interference {
        own,
        tlbs,
        caches: neighbours - tlbs,
        memory: percent(memory) - percent(caches),
        merging: percent(merging) - percent(memory),
        migration: percent(last) - percent(merging),
        total: percent(last),
    };
    let touched = stages[0].look(vm, touched_bytes)?;
    let stage = &mut stages[last];
    let resident = stage.look(vm, touched_bytes)?;
    let memory = stage.host.as_ref().and_then(|h| h.memory.as_ref());
    let swap = memory.map_or(SwapCounts::default(), |memory| memory.counts(vm));
    let profile = &member.plan.profile;
    let ideal = Cycles::of(member.ideal(), profile).total();
    let waited = profile.core.clock().cycles(swap.halted_ns);
    Ok(VmOutcome {
        name: member.name.clone(),
        source: member.source.clone(),
        turns: member.turns,
        interference,
        apart: fleet.apart,
        touched_bytes: touched,
        resident_bytes: resident,
        swap,
        guest_swap: guest_swap(fleet, member),
        shown_again: stages[last].hidden[vm].as_ref().map(super::hidden::Hidden::count),
        merging: merged(stages, vm)?,
        migration: stages[last].migrations.as_ref().and_then(|all| all.outcome(vm)),
        waited_percent: if ideal > 0.0 { 100.0 * waited / ideal } else { 0.0 },
        alone: results[0].clone(),
        together: results[last].clone(),
        guest: member.feed.outcome(),
    })
}

/// What a guest swapped, on a device like its host's.
fn guest_swap(fleet: &FleetPlan, member: &Member) -> Option<GuestSwap> {
    let (policy, stats) = (member.plan.guest_swap?, member.feed.swap_stats()?);
    Some(GuestSwap {
        policy: policy.name(),
        pages_scanned: stats.scanned,
        taken_back: stats.taken,
        written: stats.written,
        swapped_in: stats.came_back,
        ballooned: stats.ballooned,
        waited_ns: stats.came_back as f64 * fleet.device.read(4096),
    })
}

/// What merging did to a VM, in the last stage.
fn merged(stages: &mut [Stage], vm: usize) -> Result<Option<MergedCounts>, FleetError> {
    let Some(last) = stages.last_mut().filter(|last| last.merging.is_some()) else {
        return Ok(None);
    };
    let pages = last.merged_pages()?;
    let broken = last.machines[vm].tenant().map_or(0, |tenant| tenant.broken());
    Ok(last.merging.as_ref().map(|merging| merging.counts((vm, broken), &pages)))
}

fn touched_bytes(machine: &mut Box<dyn nestwalk_sim::machine::DynMachine>) -> u64 {
    let mut bytes = 0;
    if let Some(mut tenant) = machine.tenant()
        && let Some(host) = tenant.host()
    {
        host.each_page(&mut |_, _, n| bytes += n);
    }
    bytes
}
