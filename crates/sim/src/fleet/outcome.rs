//! What came of a fleet.

use super::memory::SwapCounts;
use super::stage::Stage;
use super::{FleetError, FleetPlan, Member};
use crate::compare::guests::GuestOutcome;
use crate::measure::cost::Cycles;
use crate::report::contiguity::ContiguityResult;
use crate::report::placement::PlacementResult;
use crate::report::results::MachineResult;
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
    /// All together.
    pub total: f64,
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
    let made = stage.look(vm, |machine| {
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
        made.switching = report.switching;
        made
    });
    Ok(made?)
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
    // is.
    let caches = if fleet.apart { 2 } else { 1 };
    let tlbs = if fleet.apart { percent(1) - own } else { 0.0 };
    let neighbours = percent(caches) - own;
    let interference = Interference {
        own,
        tlbs,
        caches: neighbours - tlbs,
        memory: percent(last) - percent(caches),
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
        waited_percent: if ideal > 0.0 { 100.0 * waited / ideal } else { 0.0 },
        alone: results[0].clone(),
        together: results[last].clone(),
        guest: member.feed.outcome(),
    })
}

fn touched_bytes(machine: &mut Box<dyn crate::machine::DynMachine>) -> u64 {
    let mut bytes = 0;
    if let Some(mut tenant) = machine.tenant()
        && let Some(host) = tenant.host()
    {
        host.each_page(&mut |_, _, n| bytes += n);
    }
    bytes
}
