//! A machine: drives one scheme with the event stream, access by access.
//!
//! The hot loop looks the TLBs up and sends the data reference through the caches. A miss goes to the
//! scheme's walker; a fault of the walker goes to the scheme's software, after which the access walks
//! again. Hardware never calls software. What happens beside accesses is in `events`: it knows the
//! scheme's software alone, and is compiled once for all schemes.

mod assembly;
pub mod coverage;
mod events;
mod guarding;
pub mod referee;
mod tenant;

use crate::hardware::prefetch::{GROUP, WORTHWHILE};
use crate::hardware::tlbs::{Look, TlbFamily};
use crate::hardware::walk::Fault;
use crate::hardware::{Hardware, Request, Step, program_references};
use crate::machine::coverage::CoverageResult;
use crate::machine::referee::Verdict;
use crate::measure::counters::Counters;
use crate::measure::walk_map::WalkPlace;
use crate::scheme::{Event, Handled, MachineError, Processor, Report, Scheme};
use crate::switching::sampler::{Cut, Recorded};
pub use assembly::Machine;
use nestwalk_hw::{Profile, Translation};
use nestwalk_mm::PlacementStats;
use nestwalk_types::{Address, Gpa, GuestBatch, Hpa, Run, RunFlags};
pub use tenant::{Life, Tenant};

/// Walks that one access may need: each handled fault maps one more page, and a nested walk meets at
/// most one fault for each of 5 guest tables and the page, each with a few more for the VMM's own
/// progress.
const ATTEMPTS: u32 = 64;

/// A machine whatever its scheme. Called once per batch.
pub trait DynMachine: Send {
    /// The name it was asked for by.
    fn name(&self) -> &str;
    /// Runs a batch.
    ///
    /// # Errors
    /// The machine cannot go on; what was counted so far stays.
    fn run(&mut self, batch: &GuestBatch) -> Result<(), MachineError>;
    /// What was counted since the region of interest began.
    fn counters(&self) -> &Counters;
    /// What was counted before it began; `None` if nothing was.
    fn before(&self) -> Option<&Counters> {
        None
    }
    /// What the scheme reports beside counters, as it is now.
    fn report(&self) -> Report;
    /// What the referee found, if there was one.
    fn verdict(&self) -> Option<Verdict>;
    /// Records what was counted every so many instructions of the region of interest.
    fn record_series(&mut self, _every: u64) {}
    /// What was counted by the end of each interval, and by now; empty if nothing is recorded.
    fn series(&self) -> Vec<Counters> {
        Vec::new()
    }
    /// Snapshots at contiguity every so many instructions of the stream.
    fn look_at_coverage(&mut self, _every: u64) {}
    /// Records samples from the region of interest on, if the machine is in one of the paging modes
    /// between which policies choose.
    fn record_samples(&mut self, _cut: Cut, _profile: &Profile) {}
    /// The samples; none of a machine that records none or has no such mode.
    fn samples(&self) -> Option<&Recorded> {
        None
    }
    /// What the host's placement policy came to, if there is a host.
    fn host_placement(&self) -> Option<PlacementStats> {
        None
    }
    /// What its tables say now of contiguity, if it has any. Reads all of them.
    fn coverage(&self) -> Option<CoverageResult> {
        None
    }
    /// The machine as one of several on a host; `None` if it is no virtual machine.
    fn tenant(&mut self) -> Option<Tenant<'_>> {
        None
    }
    /// A thread of the machine's own works on its data caches from now on. Changes no result.
    fn have_helper(&mut self) {}
    /// References of walks are counted by what they read, from the region of interest on.
    fn map_walks(&mut self) {}
    /// These counts, if they were asked for and the machine walks.
    fn walk_map(&self) -> Option<Vec<WalkPlace>> {
        None
    }
    /// Shows the references of one walk with cold hardware structures, without changing counters.
    ///
    /// # Errors
    /// The machine cannot go on.
    fn watch(&mut self, run: &Run) -> Result<Vec<Step>, MachineError>;
}

/// The bits that a run's first access needs to find set, by its flags.
static NEEDS: [u64; 8] = {
    let mut needs = [0; 8];
    let mut flags = 0u8;
    while flags < 8 {
        let (store, fetch) =
            (flags & RunFlags::STORE.bits() != 0, flags & RunFlags::FETCH.bits() != 0);
        let user = flags & RunFlags::KERNEL.bits() == 0;
        needs[flags as usize] = Translation::needs(store, fetch, user);
        flags += 1;
    }
    needs
};

#[inline(always)]
fn needs(run: &Run) -> u64 {
    NEEDS[usize::from(run.flags.bits() & 7)]
}

/// What a group of runs adds to counters, whatever becomes of its accesses.
#[derive(Default)]
pub struct Sums {
    accesses: u64,
    instructions: u64,
    fetches: u64,
    kernel: u64,
}

impl Sums {
    /// Those of these runs.
    #[inline]
    pub fn of(runs: &[Run]) -> Self {
        let (mut sums, mut flags) = (Self::default(), RunFlags::default());
        for run in runs {
            sums.accesses += u64::from(run.count);
            sums.instructions += u64::from(run.instructions);
            flags = flags.union(run.flags);
        }
        if flags.is_fetch() || flags.is_kernel() {
            for run in runs {
                sums.fetches += u64::from(run.count) * u64::from(run.flags.is_fetch());
                sums.kernel += u64::from(run.instructions) * u64::from(run.flags.is_kernel());
            }
        }
        sums
    }

    /// Adds all of it but look-ups of TLBs.
    #[inline]
    pub const fn count(&self, counters: &mut Counters) {
        counters.accesses += self.accesses;
        counters.instructions += self.instructions;
        counters.kernel_instructions += self.kernel;
        counters.fetches += self.fetches;
    }

    /// Adds look-ups of first-level TLBs: one for each access.
    #[inline]
    const fn count_look_ups(&self, counters: &mut Counters) {
        counters.l1i_tlb_lookups += self.fetches;
        counters.l1d_tlb_lookups += self.accesses - self.fetches;
    }
}

impl<S: Scheme, T: TlbFamily> Machine<S, T> {
    fn run_batch(&mut self, batch: &GuestBatch) -> Result<(), MachineError> {
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
        self.platform.cpu.settle();
        done
    }

    /// While misses are frequent references wait: there is nothing to gain where they hit.
    fn run_groups(&mut self, runs: &[Run], gpas: &[Gpa]) -> Result<(), MachineError> {
        for (runs, gpas) in runs.chunks(GROUP).zip(gpas.chunks(GROUP)) {
            let far = self.recent_misses >= WORTHWHILE;
            self.platform.cpu.set_deferring(far && self.scheme.may_wait());
            if far {
                self.scheme.prefetch(&self.platform.cpu, runs, gpas);
            }
            let before = self.platform.cpu.counters.far_accesses();
            self.run_on_time(runs, gpas)?;
            let now = self.platform.cpu.counters.far_accesses();
            self.recent_misses = now.saturating_sub(before);
        }
        Ok(())
    }

    /// Runs a group, with what is due in the middle of it.
    #[inline]
    fn run_on_time(&mut self, runs: &[Run], gpas: &[Gpa]) -> Result<(), MachineError> {
        let due = self.scheme.next_timer().min(self.drive.due(&self.platform));
        if due == u64::MAX {
            return self.run_group(runs, gpas);
        }
        let instructions: u64 = runs.iter().map(|r| u64::from(r.instructions)).sum();
        if self.platform.instructions + instructions >= due {
            return self.run_watched(runs, gpas);
        }
        if let Some(run) = runs.last() {
            self.last = (run.vcpu, run.gva.page_number());
        }
        self.run_group(runs, gpas)
    }

    /// Runs one by one. What becomes due within a page waits for its last run.
    #[cold]
    fn run_watched(&mut self, runs: &[Run], gpas: &[Gpa]) -> Result<(), MachineError> {
        for (run, gpa) in runs.iter().zip(gpas) {
            let page = (run.vcpu, run.gva.page_number());
            if page != self.last {
                self.timers()?;
            }
            self.last = page;
            self.run_group(std::slice::from_ref(run), std::slice::from_ref(gpa))?;
        }
        Ok(())
    }

    #[inline]
    fn timers(&mut self) -> Result<(), MachineError> {
        let due = self.scheme.next_timer().min(self.drive.due(&self.platform));
        if self.platform.instructions >= due { self.events().timers() } else { Ok(()) }
    }

    fn run_group(&mut self, runs: &[Run], gpas: &[Gpa]) -> Result<(), MachineError> {
        let plain = T::PLAIN && self.scheme.looks_up_first() && self.drive.referee.is_none();
        let short = plain && self.recent_misses < WORTHWHILE;
        let mut next = 0;
        while next < runs.len() {
            if short {
                next += self.run_hits(&runs[next..]);
            }
            let (Some(run), Some(gpa)) = (runs.get(next), gpas.get(next)) else { break };
            let (hpa, hit) = self.translate(run)?;
            let Processor { hardware, counters, .. } = &mut self.platform.cpu;
            program_references(&mut hardware.caches, counters, run, hpa);
            if self.drive.referee.is_some() {
                self.events().check(run, *gpa, hpa, hit);
            }
            next += 1;
        }
        let sums = Sums::of(runs);
        self.platform.instructions += sums.instructions;
        sums.count(&mut self.platform.cpu.counters);
        sums.count_look_ups(&mut self.platform.cpu.counters);
        Ok(())
    }

    /// Runs what finds its translation the most recently used of its set in the first level, which
    /// changes nothing there, until something does not; how many did.
    #[inline]
    fn run_hits(&mut self, runs: &[Run]) -> usize {
        let Processor { hardware, counters, .. } = &mut self.platform.cpu;
        let Hardware { cores, caches, .. } = hardware;
        let mut done = 0;
        while let Some(first) = runs.get(done) {
            let half = first.gva.value() >> 63;
            let Some(core) = cores.get(usize::from(first.vcpu.0)) else { break };
            let alike = |run: &&Run| run.vcpu == first.vcpu && run.gva.value() >> 63 == half;
            let levels = [&core.l1d, &core.l1i].map(|tlb| tlb.latest(half as usize, core.asid));
            let before = done;
            while let Some(run) = runs.get(done).filter(alike) {
                let fetch = run.flags.is_fetch();
                let level = levels[usize::from(fetch)];
                let hits = |run: &&Run| alike(run) && run.flags.is_fetch() == fetch;
                let of_kind = done;
                while let Some(run) = runs.get(done).filter(hits)
                    && let Some(hit) = level.find(run.gva.value())
                    && hit.serves(needs(run))
                {
                    program_references(caches, counters, run, hit.apply(run.gva));
                    done += 1;
                }
                if done == of_kind {
                    return done;
                }
            }
            if done == before {
                break;
            }
        }
        done
    }

    /// Where a run's first access is, and the translation used.
    #[inline]
    fn translate(&mut self, run: &Run) -> Result<(Hpa, Translation), MachineError> {
        let needs = needs(run);
        if usize::from(run.vcpu.0) >= self.platform.cpu.hardware.cores.len() {
            return Err(self.events().no_such_vcpu(run.vcpu));
        }
        if let Some(found) = self.scheme.instead_of_l1(&mut self.platform.cpu, run) {
            self.platform.cpu.counters.l1_bypasses += u64::from(run.count);
            return Ok((found.apply(run.gva), found));
        }
        let Processor { hardware, counters, .. } = &mut self.platform.cpu;
        let core = &mut hardware.cores[usize::from(run.vcpu.0)];
        let translation = match T::first(core, counters, run, needs) {
            Look::Hit(hit) => hit,
            Look::Stale => self.first_level_miss(run, true, needs)?,
            Look::Miss => self.first_level_miss(run, false, needs)?,
        };
        Ok((translation.apply(run.gva), translation))
    }

    /// The first level missed, or (`upgrade`) has an entry that cannot serve this access.
    #[inline(never)]
    fn first_level_miss(
        &mut self,
        run: &Run,
        upgrade: bool,
        needs: u64,
    ) -> Result<Translation, MachineError> {
        let request = Request::of(run);
        self.platform.cpu.counters.l1_tlb_fills += 1;
        if let Some(found) = self.scheme.parallel_to_l2(&mut self.platform.cpu, &request) {
            self.platform.cpu.counters.l1_tlb_misses += 1;
            return Ok(self.served_without_walk(&request, upgrade, found));
        }
        let Processor { hardware, counters, .. } = &mut self.platform.cpu;
        let core = &mut hardware.cores[request.core()];
        let mut stale = upgrade;
        if upgrade {
            counters.rewalks += 1;
        } else {
            counters.l1_tlb_misses += 1;
            match T::second(core, counters, run, needs) {
                Look::Hit(hit) => {
                    counters.l2_tlb_hits += 1;
                    return Ok(hit);
                }
                Look::Stale => {
                    counters.l2_tlb_hits += 1;
                    counters.rewalks += 1;
                    stale = true;
                }
                Look::Miss => {
                    if let Some(found) = self.scheme.on_l2_miss(&mut self.platform.cpu, &request) {
                        return Ok(self.served_without_walk(&request, false, found));
                    }
                    self.platform.cpu.counters.l2_tlb_misses += 1;
                }
            }
        }
        if stale {
            let core = &mut self.platform.cpu.hardware.cores[request.core()];
            core.drop_page(run.gva, core.asid, true);
        }
        let translation = self.resolve(&request)?;
        let (scheme, cpu) = (&mut self.scheme, &mut self.platform.cpu);
        T::fill(cpu, &request, translation, &self.watch, |cpu| {
            scheme.fill_l2(cpu, &request, translation);
        });
        Ok(translation)
    }

    /// What was found without a walk goes to the first level.
    fn served_without_walk(
        &mut self,
        request: &Request,
        stale: bool,
        found: Translation,
    ) -> Translation {
        self.platform.cpu.counters.assist_hits += 1;
        let core = &mut self.platform.cpu.hardware.cores[request.core()];
        if stale {
            core.drop_page(request.gva, core.asid, true);
        }
        T::fill_first(core, request, found);
        found
    }

    /// Walks until the access is translated.
    #[inline]
    fn resolve(&mut self, request: &Request) -> Result<Translation, MachineError> {
        self.before_walk(request)?;
        let found = match self.walk(request, false) {
            Ok(translation) => translation,
            Err(fault) => match self.after_fault(request, fault, false)? {
                Some(translation) => translation,
                None => return Err(self.events().not_mapped(request)),
            },
        };
        Ok(if self.platform.guard.is_some() {
            self.events().guarded(request, found)
        } else {
            found
        })
    }

    /// As [`Machine::resolve`], where no time is lost: one copy for all who ask. `None`: the access
    /// faults in the guest, which is told (`delivered`), whatever is found by then.
    #[cold]
    #[inline(never)]
    fn access(
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

    /// Updates that the guest's kernel has deferred are sent, if the access shows that it would have.
    #[inline]
    fn before_walk(&mut self, request: &Request) -> Result<(), MachineError> {
        if self.platform.deferred {
            self.events().tell(Event::AccessMissed { request })?;
        }
        if request.write && self.platform.guard.is_some() {
            self.events().before_store(request)?;
        }
        Ok(())
    }

    /// One walk, whose costs are counted if it comes to its end. `delivered`: the guest is told of a
    /// fault, whatever the walk finds by now.
    #[inline]
    fn walk(&mut self, request: &Request, delivered: bool) -> Result<Translation, Fault> {
        self.platform.cpu.hardware.begin_walk();
        T::begin(&mut self.watch);
        let result = self.scheme.walk(&mut self.platform.cpu, request, &mut self.watch);
        if result.is_ok() {
            let Processor { hardware, counters, .. } = &mut self.platform.cpu;
            hardware.end_walk(counters, delivered);
        }
        result
    }

    /// Software handles the fault of a walk, and the access walks again, until one comes to its end.
    /// `None`: the fault is the guest's.
    #[cold]
    fn after_fault(
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
