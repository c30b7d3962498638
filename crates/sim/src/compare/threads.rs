//! Who runs the machines: this thread, or several.

use super::sampling::Phase;
use super::{CompareError, Group, Slot, drive};
use crate::compare::progress::Progress;
use crate::scheme::MachineError;
use nestwalk_types::{GuestBatch, Source};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// Batches on their way to a worker at most: enough to hide that machines differ in speed.
const IN_FLIGHT: usize = 4;

/// Runs all machines on this thread; gives them back, and why it ended early.
pub(super) fn run_here(
    groups: &mut [Group],
    mut slots: Vec<Slot>,
    source: &mut dyn Source,
    stop: &AtomicBool,
    progress: &mut dyn FnMut(Progress),
) -> (Vec<Slot>, Option<CompareError>) {
    let error = drive(groups, source, stop, progress, |group, batch, phase| {
        for slot in slots.iter_mut().filter(|s| s.group == group) {
            slot.run(batch, phase)?;
        }
        Ok(())
    });
    (slots, error)
}

type Parcel = (usize, Arc<GuestBatch>, Phase);

/// As [`run_here`], with the machines dealt to so many threads.
pub(super) fn run_on_threads(
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
        let mut error = drive(groups, source, stop, progress, |group, batch, phase| {
            send(&lines, group, std::mem::take(batch), phase)
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
    phase: Phase,
) -> Result<(), CompareError> {
    let batch = Arc::new(batch);
    for (_, line) in lines.iter().filter(|(groups, _)| groups.contains(&group)) {
        if line.send((group, Arc::clone(&batch), phase)).is_err() {
            return Err(CompareError::Interrupted);
        }
    }
    Ok(())
}

fn work(mut share: Vec<Slot>, inbox: &Receiver<Parcel>) -> (Vec<Slot>, Option<MachineError>) {
    while let Ok((group, batch, phase)) = inbox.recv() {
        for slot in share.iter_mut().filter(|s| s.group == group) {
            if let Err(error) = slot.run(&batch, phase) {
                return (share, Some(error));
            }
        }
    }
    (share, None)
}
