//! One pass: a source drives many machines at once.
//!
//! Every guest that occurs turns each batch of the source into architectural events with guest-physical
//! addresses once, and all machines with that guest read the same batch. Machines are independent of
//! each other, so the result is the same whatever the number of threads.
//!
//! A source of processes is dealt with by modelled guests. One that is a recorded guest is *observed*,
//! or *re-mapped*: what its processes did, with a modelled kernel's policies.

pub mod cold;
pub mod daemons;
pub mod guests;
mod machines;
mod progress;
pub mod sampling;
pub mod spec;
mod threads;

use crate::compare::daemons::DaemonTimes;
use crate::compare::guests::{Guest, GuestOutcome};
use crate::compare::sampling::{Phase, Sampled, Sampling, Stretches, Thinner, Totals};
use crate::compare::spec::{GuestSpec, MachineSpec};
use crate::machine::DynMachine;
use crate::measure::counters::Counters;
use crate::replacement::Kind;
use crate::report::contiguity::ContiguityResult;
use crate::report::nodes::NodesResult;
use crate::report::placement::PlacementResult;
use crate::report::results::MachineResult;
use crate::report::tables::TablesResult;
use crate::scheme::{MachineError, Report};
use crate::switching::{Cut, Recorded};
pub use machines::{configuration, host_config, machine, machine_in};
use nestwalk_hw::Profile;
use nestwalk_mm::{
    BadFrames, Fragmentation, GuestError, HostPages, Mappings, MmError, ObservedError, RemapError,
};
use nestwalk_tables::{LONG4, Mode};
use nestwalk_types::{Batch, GuestBatch, GuestInfo, Source, SourceError};
pub use progress::Progress;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use thiserror::Error;

/// Everything that decides a comparison, but for the source.
#[derive(Clone)]
pub struct Plan {
    /// The machines, controls included.
    pub machines: Vec<MachineSpec>,
    /// Hardware and costs.
    pub profile: Profile,
    /// Paging mode of the guest.
    pub guest_mode: &'static Mode,
    /// Paging mode of nested tables and of the host.
    pub host_mode: &'static Mode,
    /// vCPUs.
    pub vcpus: usize,
    /// Bytes of guest memory.
    pub guest_bytes: u64,
    /// Modelled guests that are short of memory swap pages, which this policy chooses.
    pub guest_swap: Option<Kind>,
    /// Bytes of host memory.
    pub host_bytes: u64,
    /// The gap for I/O in guest memory is reclaimed, and so many bytes stay low.
    pub low_bytes: Option<u64>,
    /// Fragmentation of guest and host memory at the start.
    pub fragmentation: (Fragmentation, Fragmentation),
    /// Faulty frames of guest memory.
    pub bad_frames: BadFrames,
    /// When daemons of guests and hosts run, where page sizes or placement ask for any.
    pub daemons: DaemonTimes,
    /// The guest uses PCIDs, where its paging mode has them.
    pub pcids: bool,
    /// Decides fragmentation.
    pub seed: u64,
    /// The referee watches.
    pub verify: bool,
    /// Worker threads: machines share them, and those beyond one for each machine work on data caches.
    pub threads: usize,
    /// What a recorded guest's processes have mapped at some time, if that is known beforehand: for
    /// machines with another guest than the observed one.
    pub mappings: Option<Arc<Mappings>>,
    /// Where every host has the pages of guest memory, in place of its placement policy.
    pub host_pages: Option<Arc<HostPages>>,
    /// Every machine but `ideal` records its counters every so many instructions of the region of
    /// interest.
    pub series: Option<u64>,
    /// Results tell what each machine's tables say of contiguity at the end, but for `ideal`'s.
    pub contiguity: bool,
    /// And what it was every so many instructions of the stream.
    pub contiguity_every: Option<u64>,
    /// Results tell which references of walks were served where, by what they read.
    pub walk_map: bool,
    /// Every machine in shadow or nested mode records samples of the region of interest, cut so.
    pub samples: Option<Cut>,
    /// Only stretches of the region of interest are measured, and results are estimates.
    pub sampling: Option<Sampling>,
}

impl Plan {
    /// One vCPU with PCIDs, 4-level paging in both dimensions, memory without holes, seed 1, one thread,
    /// and nothing recorded or watched.
    pub fn new(
        machines: Vec<MachineSpec>,
        profile: Profile,
        (guest_bytes, host_bytes): (u64, u64),
    ) -> Self {
        Self {
            machines,
            profile,
            guest_mode: &LONG4,
            guest_swap: None,
            host_mode: &LONG4,
            vcpus: 1,
            guest_bytes,
            host_bytes,
            low_bytes: None,
            fragmentation: Default::default(),
            bad_frames: BadFrames::NONE,
            daemons: DaemonTimes::default(),
            pcids: true,
            seed: 1,
            verify: false,
            threads: 1,
            mappings: None,
            host_pages: None,
            series: None,
            contiguity: false,
            contiguity_every: None,
            walk_map: false,
            samples: None,
            sampling: None,
        }
    }
}

/// Why a comparison ended early.
#[derive(Debug, Error)]
pub enum CompareError {
    /// The source failed.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The modelled guest cannot go on.
    #[error("guest {guest}: {source}")]
    Guest {
        /// Its policies.
        guest: String,
        /// Why.
        source: GuestError,
    },
    /// A guest cannot swap as it is configured.
    #[error("guest {guest}: swapping by {policy}: {reason}")]
    Swap {
        /// Its policies.
        guest: String,
        /// The policy of replacement.
        policy: &'static str,
        /// Why, and what would be right.
        reason: &'static str,
    },
    /// The recorded guest cannot be followed.
    #[error("guest observed: {0}")]
    Observed(#[from] ObservedError),
    /// The recorded guest cannot be re-mapped.
    #[error("guest {guest}: {source}")]
    Remap {
        /// Its policies.
        guest: String,
        /// Why.
        source: RemapError,
    },
    /// An observed guest is asked for, but the source has none.
    #[error(
        "{machine}: the source `{source_name}` is no recorded guest, so there is nothing observed: \
         name page sizes in place of `observed`"
    )]
    NothingObserved {
        /// The machine.
        machine: String,
        /// The source.
        source_name: String,
    },
    /// The plan has another guest than the source.
    #[error(
        "the recorded guest has {} paging, {} bytes of memory and {} vCPUs; the plan says {plan}",
        guest.paging, guest.memory_bytes, guest.vcpus
    )]
    OtherGuest {
        /// What the source says.
        guest: GuestInfo,
        /// What the plan says.
        plan: String,
    },
    /// A machine cannot go on.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// A machine's memory cannot be set up.
    #[error("{machine}: {source}")]
    Memory {
        /// The machine.
        machine: String,
        /// Why.
        source: MmError,
    },
    /// The user asked for it.
    #[error("interrupted: the results are those of the accesses up to here")]
    Interrupted,
}

/// What a comparison found, whether it came to its end or not.
pub struct Outcome {
    /// One per machine, in the order of the plan.
    pub machines: Vec<MachineResult>,
    /// By machine, what was counted, for numbers that results do not have.
    pub counters: Vec<Counters>,
    /// What each guest did, by its name ([`GuestSpec::name`]).
    pub guests: Vec<(String, GuestOutcome)>,
    /// By machine, what was counted by the end of each interval of [`Plan::series`].
    pub series: Vec<Vec<Counters>>,
    /// By machine, its samples, if [`Plan::samples`] asks for them and it has a mode that samples tell.
    pub samples: Vec<Option<Recorded>>,
    /// How machines and counters were estimated, if [`Plan::sampling`] asks for it.
    pub sampled: Option<Sampled>,
    /// Why it ended early.
    pub error: Option<CompareError>,
}

/// A machine with its place in the plan and the guest it belongs to.
struct Slot {
    index: usize,
    group: usize,
    machine: Box<dyn DynMachine>,
    /// What it counted in each stretch that is measured, if not all is.
    stretches: Option<Stretches>,
}

impl Slot {
    fn run(&mut self, batch: &GuestBatch, phase: Phase) -> Result<(), MachineError> {
        if let Some(stretches) = &mut self.stretches {
            stretches.enter(phase, self.machine.counters());
        }
        self.machine.run(batch)
    }
}

struct Group {
    spec: GuestSpec,
    guest: Guest,
    /// What of its stream machines see, if not all.
    thinner: Option<Box<Thinner>>,
}

/// Runs a source once through all machines of the plan.
///
/// # Errors
/// The machines cannot be set up. What goes wrong later is in [`Outcome::error`], beside what was
/// found before.
pub fn compare(
    plan: &Plan,
    source: &mut dyn Source,
    stop: &AtomicBool,
    progress: &mut dyn FnMut(Progress),
) -> Result<Outcome, CompareError> {
    let (mut groups, mut slots) = set_up(plan, source)?;
    help(plan, &mut slots);
    let (mut slots, error) = if plan.threads <= 1 {
        threads::run_here(&mut groups, slots, source, stop, progress)
    } else {
        threads::run_on_threads(plan.threads, &mut groups, slots, source, stop, progress)
    };
    let guests = groups.iter().map(|g| (g.spec.name(), g.guest.outcome())).collect();
    let series = slots.iter().map(|s| s.machine.series()).collect();
    let samples = slots.iter().map(|s| s.machine.samples().cloned()).collect();
    let (counters, sampled) = match &plan.sampling {
        None => (slots.iter().map(|s| s.machine.counters().clone()).collect(), None),
        Some(sampling) => {
            let (counters, sampled) = estimates(plan, sampling, &groups, slots.as_mut_slice());
            (counters, Some(sampled))
        }
    };
    let machines = results(plan, &slots, &counters);
    Ok(Outcome { machines, counters, guests, series, samples, sampled, error })
}

/// The counters of the whole stream by those of measured stretches.
fn estimates(
    plan: &Plan,
    sampling: &Sampling,
    groups: &[Group],
    slots: &mut [Slot],
) -> (Vec<Counters>, Sampled) {
    let totals = |slot: &Slot| -> Totals {
        groups[slot.group].thinner.as_ref().map_or(Totals::default(), |t| t.totals())
    };
    let taken = |slot: &mut Slot| {
        let stretches = slot.stretches.take().unwrap_or_default();
        (stretches, slot.machine.counters().clone(), totals(slot))
    };
    let mut machines: Vec<_> = slots.iter_mut().map(taken).collect();
    let slots: &[Slot] = slots;
    // What is no count is looked at once, not for every group that is left out.
    let reports: Vec<_> = slots.iter().map(|s| s.machine.report()).collect();
    let counted = |counters: &[Counters]| -> Vec<MachineResult> {
        let of_counts = |(slot, report)| of_counts(plan, slots, slot, counters, report);
        slots.iter().zip(&reports).map(of_counts).collect()
    };
    sampling::sampled(sampling, &mut machines, &counted)
}

fn set_up(plan: &Plan, source: &dyn Source) -> Result<(Vec<Group>, Vec<Slot>), CompareError> {
    let info = source.info();
    if let Some(guest) = &info.guest {
        guests::check(plan, guest)?;
    }
    let mut groups: Vec<Group> = Vec::new();
    let mut slots = Vec::new();
    for (index, spec) in plan.machines.iter().enumerate() {
        let group = match groups.iter().position(|g| g.spec == spec.guest) {
            Some(group) => group,
            None => {
                let guest = Guest::new(plan, spec, &info)?;
                let thinner = plan.sampling.as_ref().map(|s| Box::new(Thinner::new(s)));
                groups.push(Group { spec: spec.guest, guest, thinner });
                groups.len() - 1
            }
        };
        let mut machine = machine(plan, spec)?;
        if let Some(every) = plan.series {
            machine.record_series(every);
        }
        if let Some(every) = plan.contiguity_every {
            machine.look_at_coverage(every);
        }
        if plan.walk_map {
            machine.map_walks();
        }
        if let Some(cut) = plan.samples {
            machine.record_samples(cut, &plan.profile);
        }
        let stretches = plan.sampling.as_ref().map(|_| Stretches::default());
        slots.push(Slot { index, group, machine, stretches });
    }
    Ok((groups, slots))
}

/// Threads beyond one for each machine work on data caches, of `ideal` last: it has little else to do.
fn help(plan: &Plan, slots: &mut [Slot]) {
    let spare = plan.threads.saturating_sub(slots.len());
    let is_ideal = |slot: &Slot| plan.machines[slot.index].scheme.name == "ideal";
    let mut order: Vec<&mut Slot> = slots.iter_mut().collect();
    order.sort_by_key(|slot| is_ideal(slot));
    for slot in order.into_iter().take(spare) {
        slot.machine.have_helper();
    }
}

/// Takes batches from the source and gives each guest's version, in parts, to `each`, until the end.
/// What `each` leaves behind is reused.
fn drive(
    groups: &mut [Group],
    source: &mut dyn Source,
    stop: &AtomicBool,
    progress: &mut dyn FnMut(Progress),
    mut each: impl FnMut(usize, &mut GuestBatch, Phase) -> Result<(), CompareError>,
) -> Option<CompareError> {
    let error = drive_to_end(groups, source, stop, progress, &mut each);
    // What is still held back happened before whatever ended it.
    for (index, group) in groups.iter_mut().enumerate() {
        if let Some(thinner) = &mut group.thinner
            && let Err(late) = thinner.finish(&mut |part, phase| each(index, part, phase))
        {
            return error.or(Some(late));
        }
    }
    error
}

fn drive_to_end(
    groups: &mut [Group],
    source: &mut dyn Source,
    stop: &AtomicBool,
    progress: &mut dyn FnMut(Progress),
    each: &mut dyn FnMut(usize, &mut GuestBatch, Phase) -> Result<(), CompareError>,
) -> Option<CompareError> {
    let mut batch = Batch::default();
    let mut out = GuestBatch::default();
    let mut told = Progress::default();
    loop {
        if stop.load(Ordering::Relaxed) {
            return Some(CompareError::Interrupted);
        }
        match source.next_batch(&mut batch) {
            Ok(true) => {}
            Ok(false) => return None,
            Err(error) => return Some(error.into()),
        }
        for (index, group) in groups.iter_mut().enumerate() {
            let mut error = None;
            let Group { spec, guest, thinner } = group;
            let mut sink = |part: &mut GuestBatch| {
                if error.is_some() {
                    return;
                }
                error = match thinner {
                    None => each(index, part, Phase::Between).err(),
                    Some(thinner) => {
                        let part = std::mem::take(part);
                        thinner.take(part, &mut |part, phase| each(index, part, phase)).err()
                    }
                };
            };
            let guest_error = guest.process(*spec, &batch, &mut out, &mut sink).err();
            // What the guest did before it failed is simulated all the same.
            sink(&mut out);
            if error.is_some() {
                return error;
            }
            if guest_error.is_some() {
                return guest_error;
            }
        }
        told.follow(&batch, source.position());
        progress(told);
    }
}

/// What follows from counters alone.
fn of_counts(
    plan: &Plan,
    slots: &[Slot],
    slot: &Slot,
    counters: &[Counters],
    report: &Report,
) -> MachineResult {
    let spec = &plan.machines[slot.index];
    let is_ideal = |s: &&Slot| {
        let other = &plan.machines[s.index];
        other.scheme.name == "ideal" && other.guest == spec.guest
    };
    let ideal = slots.iter().find(is_ideal).map(|s| &counters[s.index]);
    let names = (slot.machine.name(), spec.scheme.name);
    let own = &counters[slot.index];
    let mut result = MachineResult::new(names, own, &plan.profile, ideal, report.page_tables);
    result.contiguity = report.contiguity.map(|s| ContiguityResult::new(own, s));
    result.tables = report.tables.map(|s| TablesResult::new(own, s));
    result.nodes = report.nodes.clone().map(|s| NodesResult::new(own, s));
    result
}

/// Results by these counters, in the order of the slots.
fn results(plan: &Plan, slots: &[Slot], counters: &[Counters]) -> Vec<MachineResult> {
    slots
        .iter()
        .map(|slot| {
            let report = slot.machine.report();
            let mut result = of_counts(plan, slots, slot, counters, &report);
            result.referee = slot.machine.verdict();
            if let Some(before) = slot.machine.before() {
                result.set_up(before, &plan.profile);
            }
            let placed = slot.machine.host_placement();
            result.host_placement = placed.map(|p| PlacementResult::new(&p, &plan.profile));
            result.segments = report.segments;
            result.switching = report.switching;
            result.walk_map = slot.machine.walk_map();
            if plan.contiguity {
                result.coverage = slot.machine.coverage();
            }
            result
        })
        .collect()
}
