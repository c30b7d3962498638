//! `ideal`: translation costs nothing. The same accesses, to the same guest-physical addresses, through
//! the same data caches, with the same guest kernel; no TLB, no walk, no exit.
//!
//! What every overhead is a percentage of (the papers' E_ideal).

use super::{Definition, Facts};
use crate::hardware::Step;
use crate::hardware::prefetch::{GROUP, WORTHWHILE};
use crate::machine::referee::Verdict;
use crate::hardware::{count_program, program_references};
use crate::machine::{DynMachine, Sums};
use crate::measure::counters::Counters;
use crate::scheme::MachineConfig;
use crate::scheme::options::NO_OPTIONS;
use crate::scheme::vmm_options::VmmKind;
use crate::scheme::{MachineError, Report};
use nestwalk_hw::{Caches, ServedBy};
use nestwalk_types::{Control, Gpa, GuestBatch, Hpa, Run};

/// The catalogue's entry.
pub const DEFINITION: Definition = Definition {
    name: "ideal",
    summary: "translation costs nothing: what overheads are relative to",
    virtualized: false,
    facts: Facts::NONE,
    vmm: VmmKind::Other,
    options: &NO_OPTIONS,
    build,
};

fn build(request: MachineConfig) -> Result<Box<dyn DynMachine>, MachineError> {
    Ok(Box::new(Ideal {
        caches: Caches::new(&request.profile.caches, request.vcpus),
        cores: request.vcpus,
        counters: Counters::default(),
        recent_misses: 0,
        name: request.name,
    }))
}

struct Ideal {
    name: String,
    caches: Caches,
    cores: usize,
    counters: Counters,
    /// References of the last group of runs, as far as is known, that went to memory.
    recent_misses: u64,
}

impl Ideal {
    fn run_slice(&mut self, runs: &[Run], gpas: &[Gpa]) -> Result<(), MachineError> {
        for (runs, gpas) in runs.chunks(GROUP).zip(gpas.chunks(GROUP)) {
            if self.recent_misses >= WORTHWHILE && !self.caches.is_deferring() {
                self.caches.set_deferring(true);
            }
            self.run_group(runs, gpas)?;
        }
        Ok(())
    }

    /// Counts the references of so many runs that waited.
    fn settle(&mut self, runs: u64) {
        if self.caches.is_deferring() {
            self.caches.set_deferring(false);
            let before = self.counters.data[ServedBy::Memory as usize];
            count_program(&self.caches.take_settled().before, &mut self.counters);
            let missed = self.counters.data[ServedBy::Memory as usize] - before;
            self.recent_misses = missed * GROUP as u64 / runs.max(1);
        }
    }

    fn run_group(&mut self, runs: &[Run], gpas: &[Gpa]) -> Result<(), MachineError> {
        let before = self.counters.data[ServedBy::Memory as usize];
        let known = runs.iter().position(|run| usize::from(run.vcpu.0) >= self.cores);
        let known = &runs[..known.unwrap_or(runs.len())];
        for (run, gpa) in known.iter().zip(gpas) {
            // As on bare metal: a gPA is an hPA.
            program_references(&mut self.caches, &mut self.counters, run, Hpa::new(gpa.value()));
        }
        Sums::of(known).count(&mut self.counters);
        if let Some(run) = runs.get(known.len()) {
            return Err(MachineError::NoSuchVcpu {
                machine: self.name.clone(),
                vcpu: run.vcpu.0,
                vcpus: self.cores,
                needed: usize::from(run.vcpu.0) + 1,
            });
        }
        if !self.caches.is_deferring() {
            self.recent_misses = self.counters.data[ServedBy::Memory as usize] - before;
        }
        Ok(())
    }
}

impl DynMachine for Ideal {
    fn name(&self) -> &str {
        &self.name
    }

    fn run(&mut self, batch: &GuestBatch) -> Result<(), MachineError> {
        for (controls, runs) in batch.batch.segments() {
            for (_, control) in controls {
                match control {
                    Control::RegionOfInterest => self.counters = Counters::default(),
                    Control::OsWork { work, count } => {
                        self.counters.os_work[work.index()] += u64::from(*count);
                    }
                    Control::Fault { .. } => self.counters.guest_faults += 1,
                    Control::LoadCr3 { .. } => self.counters.cr3_loads += 1,
                    Control::PageCleared { size, .. } => {
                        self.counters.pages_cleared += size.base_pages();
                    }
                    _ => {}
                }
            }
            let (runs, gpas) = (&batch.batch.runs[runs.clone()], &batch.gpas[runs]);
            let done = self.run_slice(runs, gpas);
            self.settle(runs.len() as u64);
            done?;
        }
        Ok(())
    }

    fn counters(&self) -> &Counters {
        &self.counters
    }

    fn have_helper(&mut self) {
        self.caches.have_helper();
    }

    fn report(&self) -> Report {
        Report::default()
    }

    fn verdict(&self) -> Option<Verdict> {
        None
    }

    fn watch(&mut self, _run: &Run) -> Result<Vec<Step>, MachineError> {
        Ok(Vec::new())
    }
}
