//! A recorded guest's stream on a machine as `compare` runs it: every access, a processor's TLBs,
//! tables that are overwritten as the recording tells it.

use crate::Events;
use crate::figures::{Counts, kinds};
use crate::model::{ModelError, machine, told};
use crate::nested;
use crate::paging::Paging;
use crate::recording::{Part, RecordingError, pieces};
use nestwalk_sim::scheme::Scheme;
use nestwalk_sim::scheme::vmm_options::KvmVersion;
use nestwalk_sim::{DynMachine, ExitReason, Machine};
use nestwalk_types::{Control, Gpa, GuestBatch, Invalidation, Source};

/// What a machine did in the part of a recording that the small guest performs, without the recording's
/// PCIDs, and from the state in which the small guest begins: with the memory, and no shadow tables.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Streamed {
    /// Exits by reason.
    pub exits: Counts,
    /// Events by kind, but for faults and emulated stores.
    pub events: Counts,
}

/// The events as the emulated processor has them, which has no PCIDs; `None`: nothing for a machine.
fn without_pcids(control: &Control, root: Gpa) -> Option<Control> {
    Some(match *control {
        Control::Prefault { .. } | Control::RegionOfInterest => return None,
        Control::LoadCr3 { vcpu, root, .. } => {
            Control::LoadCr3 { vcpu, root, pcid: 0, keep: false }
        }
        Control::Invalidate { vcpu, what } => match what {
            Invalidation::Page(gva) | Invalidation::PageInPcid(gva, _) => {
                Control::Invalidate { vcpu, what: Invalidation::Page(gva) }
            }
            _ => Control::LoadCr3 { vcpu, root, pcid: 0, keep: false },
        },
        ref other => other.clone(),
    })
}

/// Runs the part of a recording.
///
/// # Errors
/// The recording cannot be read, or the simulator cannot go on.
pub fn run(
    source: &mut dyn Source,
    part: &Part,
    paging: Paging,
    version: KvmVersion,
) -> Result<Streamed, RecordingError> {
    let program = &part.program;
    let failed = |what| ModelError { script: program.name.clone(), action: 0, what };
    match paging {
        Paging::Shadow => {
            let mut machine = machine(program, version).map_err(failed)?;
            machine.scheme.mmu.observe();
            drive(source, part, machine, |shadow| {
                shadow.mmu.take_observed().iter().map(told).collect()
            })
        }
        Paging::Nested => {
            let machine = nested::machine(program, version).map_err(failed)?;
            drive(source, part, machine, nested::Observed::take)
        }
    }
}

/// Runs the part on a machine, whose scheme has told what `take` takes.
fn drive<S: Scheme>(
    source: &mut dyn Source,
    part: &Part,
    mut machine: Machine<S>,
    take: impl Fn(&mut S) -> Events,
) -> Result<Streamed, RecordingError> {
    let (mut events, mut error) = (Events::new(), None);
    let (mut controls, mut runs) = (0, 0);
    let mut root = Gpa::new(0);
    pieces(source, |before, accesses| {
        let mut batch = GuestBatch::default();
        for (_, control) in before {
            if let Control::LoadCr3 { root: loaded, .. } = control {
                root = *loaded;
            }
            batch.batch.controls.extend(without_pcids(control, root).map(|c| (0, c)));
        }
        batch.batch.runs.extend_from_slice(accesses);
        batch.gpas.resize(accesses.len(), Gpa::new(0));
        error = machine.run(&batch).err().map(|e| e.to_string());
        events.extend(take(&mut machine.scheme));
        controls += before.len() as u64;
        runs += accesses.len() as u64;
        error.is_none() && (controls, runs) != (part.controls, part.runs)
    })?;
    if let Some(what) = error {
        return Err(ModelError { script: part.program.name.clone(), action: 0, what }.into());
    }
    let counted = machine.counters().exits;
    let reasons = ExitReason::ALL.into_iter().zip(counted).filter(|(_, n)| *n > 0);
    let mut exits: Counts = reasons.map(|(reason, n)| (reason.name().to_owned(), n)).collect();
    // The small guest begins with the first root.
    exits.entry(ExitReason::Cr3Load.name().to_owned()).and_modify(|n| *n -= 1);
    let mut events = kinds(&events);
    // Under shadow paging stores whose translation is in the TLB already walk no more; their exits are
    // counted all the same.
    events.retain(|kind, _| kind != "fault" && kind != "emulate");
    Ok(Streamed { exits, events })
}
