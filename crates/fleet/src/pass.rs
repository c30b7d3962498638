//! One pass over all VMs of a fleet, turn by turn.

use super::feed::{Given, Most};
use super::stage::{self, Place, Stage};
use super::{FleetError, FleetPlan, FleetProgress, Member};
use nestwalk_sim::compare::CompareError;
use nestwalk_sim::scheme::MachineError;
use nestwalk_types::GuestBatch;
use std::sync::atomic::{AtomicBool, Ordering};

/// One pass over all VMs.
pub(super) struct Pass<'a> {
    fleet: &'a FleetPlan,
    places: &'a [Place],
    slice: usize,
    told: FleetProgress,
}

impl<'a> Pass<'a> {
    pub(super) fn new(fleet: &'a FleetPlan, places: &'a [Place], slice: usize) -> Self {
        Self { fleet, places, slice, told: FleetProgress::default() }
    }

    /// All VMs come to the beginning of their regions of interest, then all go on to their ends.
    pub(super) fn run(
        &mut self,
        members: &mut [Member],
        stages: &mut [Stage],
        stop: &AtomicBool,
        progress: &mut dyn FnMut(FleetProgress),
    ) -> Result<(), FleetError> {
        for setting_up in [true, false] {
            let waits = |m: &Member| m.ended || (setting_up && m.ready);
            while !members.iter().all(waits) {
                for vm in 0..members.len() {
                    if stop.load(Ordering::Relaxed) {
                        return Err(FleetError::Interrupted);
                    }
                    if waits(&members[vm]) {
                        continue;
                    }
                    self.turn(vm, members, stages, setting_up)?;
                    self.told.ended = members.iter().filter(|m| m.ended).count();
                    progress(self.told);
                }
            }
            if setting_up {
                stages.iter_mut().for_each(Stage::counting_begins);
            }
        }
        Ok(())
    }

    /// One turn of a VM in every stage.
    fn turn(
        &mut self,
        vm: usize,
        members: &mut [Member],
        stages: &mut [Stage],
        setting_up: bool,
    ) -> Result<(), FleetError> {
        // What goes on before all have begun is not counted, whoever it is done to.
        let begun: Vec<usize> =
            (0..members.len()).filter(|m| setting_up && members[*m].begun).collect();
        let (slices, failed) = self.take(&mut members[vm], setting_up);
        let cores = self.places[vm].cores();
        let meets = |p: &Place| p.first < cores.end && cores.start < p.cores().end;
        let mut rivals: Vec<usize> = (0..members.len())
            .filter(|other| *other != vm && !members[*other].ended && meets(&self.places[*other]))
            .collect();
        let member = &mut members[vm];
        if member.ended {
            rivals.clear();
        }
        member.turns += u64::from(!setting_up);
        let name = member.name.clone();
        let wrong =
            |e: MachineError| FleetError::Vm { vm: name.clone(), source: Box::new(e.into()) };
        for (slice, _) in &slices {
            member.ideal.run(slice).map_err(&wrong)?;
        }
        each(stages, self.fleet.threads, &|stage: &mut Stage| {
            let counted = stage.counted(&begun);
            stage.begin_turn(vm)?;
            let done = slices.iter().try_for_each(|(slice, free)| {
                stage.run(vm, slice)?;
                stage.given(vm, free)
            });
            stage.end_turn(vm, &rivals)?;
            stage.restore(counted)?;
            done
        })
        .map_err(&wrong)?;
        ask_balloons(members, stages)?;
        failed.map_or(Ok(()), |source| Err(FleetError::Vm { vm: name, source: Box::new(source) }))
    }

    /// What the VM does in a turn, and what its guest gives to the host behind each slice. A turn
    /// of set-up ends where the region of interest begins.
    fn take(
        &mut self,
        member: &mut Member,
        setting_up: bool,
    ) -> (Vec<(GuestBatch, Given)>, Option<CompareError>) {
        let (mut slices, mut instructions) = (Vec::new(), 0);
        let turn = self.fleet.turn.max(1);
        while instructions < turn {
            let most = Most { items: self.slice, instructions: turn - instructions };
            let mut slice = GuestBatch::default();
            let next = match setting_up && member.begun {
                true => member.feed.before_access(most, &mut slice),
                false => member.feed.next(most, &mut slice),
            };
            match next {
                Ok(true) if setting_up && member.begun && slice.batch.is_empty() => {
                    member.ready = true;
                    break;
                }
                Ok(true) => {}
                Ok(false) => {
                    member.ended = true;
                    break;
                }
                Err(error) => return (slices, Some(error)),
            }
            instructions += slice.batch.instructions();
            self.told.accesses += slice.batch.accesses();
            let begins = stage::begins_region(&slice);
            member.begun |= begins;
            let empty = slice.batch.is_empty();
            slices.push((slice, member.feed.take_given()));
            if empty || (begins && setting_up) {
                break;
            }
        }
        (slices, None)
    }
}

/// The host that is short of memory, the first of the stages, asks the balloon of the VM that has most
/// of it, of those that have one, before it must swap. What a guest does for that all stages see: it is
/// one guest.
fn ask_balloons(members: &mut [Member], stages: &mut [Stage]) -> Result<(), FleetError> {
    if members.iter().all(|m| !m.balloon || m.ended) {
        return Ok(());
    }
    let Some(stage) = stages.iter_mut().find(|stage| stage.is_short()) else { return Ok(()) };
    let wanted = stage.wanted();
    let mut largest = None;
    for (vm, _) in members.iter().enumerate().filter(|m| m.1.balloon && !m.1.ended) {
        let frames = stage.frames(vm)?;
        if wanted > 0 && largest.is_none_or(|(most, _)| frames > most) {
            largest = Some((frames, vm));
        }
    }
    if let Some((_, vm)) = largest {
        members[vm].feed.ask(wanted);
    }
    Ok(())
}

/// Does the same to every stage, by threads if there are several. The error is that of the first
/// stage that has one, whatever the number of threads.
fn each(
    stages: &mut [Stage],
    threads: usize,
    act: &(dyn Fn(&mut Stage) -> Result<(), MachineError> + Sync),
) -> Result<(), MachineError> {
    if threads <= 1 {
        return stages.iter_mut().try_for_each(act);
    }
    let mut done = Vec::new();
    for group in stages.chunks_mut(threads) {
        done.extend(std::thread::scope(|scope| {
            let handles: Vec<_> =
                group.iter_mut().map(|stage| scope.spawn(move || act(stage))).collect();
            let results = handles.into_iter().map(|h| match h.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            });
            results.collect::<Vec<_>>()
        }));
    }
    done.into_iter().collect()
}
