//! The pace of a machine: batches in groups of runs, what is due between them, and accesses that meet
//! faults. Nothing of this is done once per access, so it is compiled once for all schemes.

use super::events::Events;
use crate::hardware::Request;
use crate::hardware::prefetch::{GROUP, WORTHWHILE};
use crate::hardware::walk::Fault;
use crate::scheme::{Event, Handled, MachineError, Platform};
use nestwalk_hw::Translation;
use nestwalk_types::{Address, Gpa, GuestBatch, Run, VcpuId};

/// Walks that one access may need: each handled fault maps one more page, and a nested walk meets at
/// most one fault for each of 5 guest tables and the page, each with a few more for the VMM's own
/// progress.
pub(super) const ATTEMPTS: u32 = 64;

/// What is kept from one group of runs to the next.
pub(super) struct Pace {
    /// Second-level misses, and accesses that segments served, in the last group of runs.
    pub(super) recent_misses: u64,
    /// vCPU and page of the last run, kept where something is due.
    last: (VcpuId, u64),
}

impl Default for Pace {
    fn default() -> Self {
        Self { recent_misses: 0, last: (VcpuId(0), u64::MAX) }
    }
}

/// A machine whatever its scheme and its family of TLBs, to its pace.
pub(super) trait Engine {
    /// The part that knows no hardware of the scheme.
    fn events(&mut self) -> Events<'_>;
    /// Everything but the scheme.
    fn platform(&mut self) -> &mut Platform;
    /// What is kept from one group to the next.
    fn pace(&mut self) -> &mut Pace;
    /// When something is due next, by the machine's clock.
    fn due(&self) -> u64;
    /// As [`crate::scheme::Scheme::may_wait`].
    fn may_wait(&self) -> bool;
    /// As [`crate::scheme::Scheme::prefetch`].
    fn read_ahead(&mut self, runs: &[Run], gpas: &[Gpa]);
    /// Runs a group, in the middle of which nothing is due.
    fn run_group(&mut self, runs: &[Run], gpas: &[Gpa]) -> Result<(), MachineError>;
    /// Updates that the guest's kernel has deferred are sent, if the access shows that it would have.
    fn before_walk(&mut self, request: &Request) -> Result<(), MachineError>;
    /// One walk, whose costs are counted if it comes to its end. `delivered`: the guest is told of a
    /// fault, whatever the walk finds by now.
    fn walk(&mut self, request: &Request, delivered: bool) -> Result<Translation, Fault>;
}

impl dyn Engine + '_ {
    /// Runs a batch.
    pub(super) fn run_batch(&mut self, batch: &GuestBatch) -> Result<(), MachineError> {
        for (controls, runs) in batch.batch.segments() {
            let mut controls = controls.iter();
            while let Some(request) = self.events().until_fault(&mut controls)? {
                self.access(&request, true)?;
                self.events().fault_ends(&request)?;
            }
            self.run_slice(&batch.batch.runs[runs.clone()], &batch.gpas[runs])?;
        }
        Ok(())
    }

    fn run_slice(&mut self, runs: &[Run], gpas: &[Gpa]) -> Result<(), MachineError> {
        let done = self.run_groups(runs, gpas);
        self.platform().cpu.settle();
        done
    }

    /// While misses are frequent references wait: there is nothing to gain where they hit.
    fn run_groups(&mut self, runs: &[Run], gpas: &[Gpa]) -> Result<(), MachineError> {
        for (runs, gpas) in runs.chunks(GROUP).zip(gpas.chunks(GROUP)) {
            let far = self.pace().recent_misses >= WORTHWHILE;
            let wait = far && self.may_wait();
            self.platform().cpu.set_deferring(wait);
            if far {
                self.read_ahead(runs, gpas);
            }
            let before = self.platform().cpu.counters.far_accesses();
            self.run_on_time(runs, gpas)?;
            let now = self.platform().cpu.counters.far_accesses();
            self.pace().recent_misses = now.saturating_sub(before);
        }
        Ok(())
    }

    /// Runs a group, with what is due in the middle of it.
    fn run_on_time(&mut self, runs: &[Run], gpas: &[Gpa]) -> Result<(), MachineError> {
        let due = self.due();
        if due == u64::MAX {
            return self.run_group(runs, gpas);
        }
        let instructions: u64 = runs.iter().map(|r| u64::from(r.instructions)).sum();
        if self.platform().instructions + instructions >= due {
            return self.run_watched(runs, gpas);
        }
        if let Some(run) = runs.last() {
            self.pace().last = (run.vcpu, run.gva.page_number());
        }
        self.run_group(runs, gpas)
    }

    /// Runs one by one. What becomes due within a page waits for its last run.
    #[cold]
    fn run_watched(&mut self, runs: &[Run], gpas: &[Gpa]) -> Result<(), MachineError> {
        for (run, gpa) in runs.iter().zip(gpas) {
            let page = (run.vcpu, run.gva.page_number());
            if page != self.pace().last {
                self.timers()?;
            }
            self.pace().last = page;
            self.run_group(std::slice::from_ref(run), std::slice::from_ref(gpa))?;
        }
        Ok(())
    }

    fn timers(&mut self) -> Result<(), MachineError> {
        let due = self.due();
        if self.platform().instructions >= due { self.events().timers() } else { Ok(()) }
    }

    /// As a miss of the TLBs, but nothing is put there. `None`: the access
    /// faults in the guest, which is told (`delivered`), whatever is found by then.
    #[cold]
    pub(super) fn access(
        &mut self,
        request: &Request,
        delivered: bool,
    ) -> Result<Option<Translation>, MachineError> {
        self.before_walk(request)?;
        match self.walk(request, delivered) {
            Ok(translation) => Ok(Some(translation)),
            Err(fault) => self.after_fault(request, fault, delivered),
        }
    }

    /// Software handles the fault of a walk, and the access walks again, until one comes to its end.
    /// `None`: the fault is the guest's.
    #[cold]
    pub(super) fn after_fault(
        &mut self,
        request: &Request,
        fault: Fault,
        delivered: bool,
    ) -> Result<Option<Translation>, MachineError> {
        let mut fault = fault;
        for _ in 0..ATTEMPTS {
            let handled = self.events().fault(request, fault, delivered)?;
            match handled {
                Handled::Emulated(translation) => return Ok(Some(translation)),
                Handled::GuestFault => return Ok(None),
                Handled::Retry | Handled::RetryOnce | Handled::RetryUncounted => {}
            }
            self.before_walk(request)?;
            let walked = self.walk(request, delivered);
            if handled == Handled::RetryOnce {
                self.events().tell(Event::RetryEnded)?;
            }
            match walked {
                Ok(translation) => return Ok(Some(translation)),
                Err(next) => fault = next,
            }
        }
        Err(self.events().stuck(request))
    }
}
