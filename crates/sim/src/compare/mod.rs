//! One pass: a source drives many machines at once.
//!
//! Every guest that occurs turns each batch of the source into architectural events with guest-physical
//! addresses once, and all machines with that guest read the same batch. Machines are independent of
//! each other, so the result is the same whatever the number of threads.
//!
//! A source of processes is dealt with by modelled guests. One that is a recorded guest is *observed*,
//! or *re-mapped*: what its processes did, with a modelled kernel's policies.

pub mod daemons;
pub mod guests;
mod machines;
mod progress;
pub mod spec;

use crate::compare::daemons::DaemonTimes;
use crate::compare::guests::{Guest, GuestOutcome};
use crate::compare::spec::{GuestSpec, MachineSpec};
use crate::machine::DynMachine;
use crate::measure::counters::Counters;
use crate::replacement::Kind;
use crate::report::contiguity::ContiguityResult;
use crate::report::placement::PlacementResult;
use crate::report::results::MachineResult;
use crate::scheme::MachineError;
use crate::switching::{Cut, Recorded};
pub use machines::{configuration, machine};
pub(crate) use machines::{host_config, machine_in};
use nestwalk_hw::Profile;
use nestwalk_mm::{
    BadFrames, Fragmentation, GuestError, HostPages, Mappings, MmError, ObservedError, RemapError,
};
use nestwalk_tables::{LONG4, Mode};
use nestwalk_types::{Batch, GuestBatch, GuestInfo, Source, SourceError};
pub use progress::Progress;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use thiserror::Error;

/// Batches on their way to a worker at most: enough to hide that machines differ in speed.
const IN_FLIGHT: usize = 4;

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
    /// Worker threads.
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
    /// Why it ended early.
    pub error: Option<CompareError>,
}

/// A machine with its place in the plan and the guest it belongs to.
struct Slot {
    index: usize,
    group: usize,
    machine: Box<dyn DynMachine>,
}

struct Group {
    spec: GuestSpec,
    guest: Guest,
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
    let (mut groups, slots) = set_up(plan, source)?;
    let (slots, error) = if plan.threads <= 1 {
        run_here(&mut groups, slots, source, stop, progress)
    } else {
        run_on_threads(plan.threads, &mut groups, slots, source, stop, progress)
    };
    let guests = groups.iter().map(|g| (g.spec.name(), g.guest.outcome())).collect();
    let series = slots.iter().map(|s| s.machine.series()).collect();
    let samples = slots.iter().map(|s| s.machine.samples().cloned()).collect();
    let counters = slots.iter().map(|s| s.machine.counters().clone()).collect();
    Ok(Outcome { machines: results(plan, &slots), counters, guests, series, samples, error })
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
                groups.push(Group { spec: spec.guest, guest });
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
        slots.push(Slot { index, group, machine });
    }
    Ok((groups, slots))
}

/// Takes batches from the source and gives each guest's version, in parts, to `each`, until the end.
/// What `each` leaves behind is reused.
fn drive(
    groups: &mut [Group],
    source: &mut dyn Source,
    stop: &AtomicBool,
    progress: &mut dyn FnMut(Progress),
    mut each: impl FnMut(usize, &mut GuestBatch) -> Result<(), CompareError>,
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
            let mut sink = |part: &mut GuestBatch| {
                if error.is_none() {
                    error = each(index, part).err();
                }
            };
            let guest_error = group.guest.process(group.spec, &batch, &mut out, &mut sink).err();
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

fn run_here(
    groups: &mut [Group],
    mut slots: Vec<Slot>,
    source: &mut dyn Source,
    stop: &AtomicBool,
    progress: &mut dyn FnMut(Progress),
) -> (Vec<Slot>, Option<CompareError>) {
    let error = drive(groups, source, stop, progress, |group, batch| {
        for slot in slots.iter_mut().filter(|s| s.group == group) {
            slot.machine.run(batch)?;
        }
        Ok(())
    });
    (slots, error)
}

type Parcel = (usize, Arc<GuestBatch>);

fn run_on_threads(
    threads: usize,
    groups: &mut [Group],
    slots: Vec<Slot>,
    source: &mut dyn Source,
    stop: &AtomicBool,
    progress: &mut dyn FnMut(Progress),
) -> (Vec<Slot>, Option<CompareError>) {
    let workers = threads.min(slots.len()).max(1);
    let mut shares: Vec<Vec<Slot>> = (0..workers).map(|_| Vec::new()).collect();
    for (i, slot) in slots.into_iter().enumerate() {
        shares[i % workers].push(slot);
    }
    std::thread::scope(|scope| {
        let mut lines = Vec::new();
        let mut handles = Vec::new();
        for share in shares {
            let groups: Vec<usize> = share.iter().map(|s| s.group).collect();
            let (line, inbox) = sync_channel::<Parcel>(IN_FLIGHT);
            lines.push((groups, line));
            handles.push(scope.spawn(move || work(share, &inbox)));
        }
        let mut error = drive(groups, source, stop, progress, |group, batch| {
            send(&lines, group, std::mem::take(batch))
        });
        drop(lines);
        let mut slots = Vec::new();
        for handle in handles {
            match handle.join() {
                Ok((share, failed)) => {
                    slots.extend(share);
                    // A worker that failed closed its line: its reason is the real one.
                    error = failed.map(CompareError::from).or(error);
                }
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        slots.sort_by_key(|s| s.index);
        (slots, error)
    })
}

fn send(
    lines: &[(Vec<usize>, SyncSender<Parcel>)],
    group: usize,
    batch: GuestBatch,
) -> Result<(), CompareError> {
    let batch = Arc::new(batch);
    for (_, line) in lines.iter().filter(|(groups, _)| groups.contains(&group)) {
        if line.send((group, Arc::clone(&batch))).is_err() {
            return Err(CompareError::Interrupted);
        }
    }
    Ok(())
}

fn work(mut share: Vec<Slot>, inbox: &Receiver<Parcel>) -> (Vec<Slot>, Option<MachineError>) {
    while let Ok((group, batch)) = inbox.recv() {
        for slot in share.iter_mut().filter(|s| s.group == group) {
            if let Err(error) = slot.machine.run(&batch) {
                return (share, Some(error));
            }
        }
    }
    (share, None)
}

fn results(plan: &Plan, slots: &[Slot]) -> Vec<MachineResult> {
    let ideal_of = |guest: GuestSpec| {
        slots
            .iter()
            .find(|s| {
                let spec = &plan.machines[s.index];
                spec.scheme.name == "ideal" && spec.guest == guest
            })
            .map(|s| s.machine.counters())
    };
    slots
        .iter()
        .map(|slot| {
            let spec = &plan.machines[slot.index];
            let report = slot.machine.report();
            let mut result = MachineResult::new(
                (slot.machine.name(), spec.scheme.name),
                slot.machine.counters(),
                &plan.profile,
                ideal_of(spec.guest),
                report.page_tables,
            );
            result.referee = slot.machine.verdict();
            if let Some(before) = slot.machine.before() {
                result.set_up(before, &plan.profile);
            }
            let placed = slot.machine.host_placement();
            result.host_placement = placed.map(|p| PlacementResult::new(&p, &plan.profile));
            result.segments = report.segments;
            let counters = slot.machine.counters();
            result.contiguity = report.contiguity.map(|s| ContiguityResult::new(counters, s));
            result.switching = report.switching;
            result.walk_map = slot.machine.walk_map();
            if plan.contiguity {
                result.coverage = slot.machine.coverage();
            }
            result
        })
        .collect()
}
