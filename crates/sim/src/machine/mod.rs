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
mod hits;
mod pace;
pub mod referee;
mod tenant;

use crate::hardware::prefetch::WORTHWHILE;
use crate::hardware::tlbs::{Look, TlbFamily};
use crate::hardware::walk::Fault;
use crate::hardware::{Request, Step, program_references};
use crate::machine::coverage::CoverageResult;
use crate::machine::hits::{needs, run_hits};
use crate::machine::pace::{Engine, Pace};
use crate::machine::referee::Verdict;
use crate::measure::counters::Counters;
use crate::measure::walk_map::WalkPlace;
use crate::scheme::{Event, MachineError, Platform, Processor, Report, Scheme};
use crate::switching::sampler::{Cut, Recorded};
pub use assembly::Machine;
use events::Events;
use nestwalk_hw::{Profile, Translation};
use nestwalk_mm::PlacementStats;
use nestwalk_types::{Gpa, GuestBatch, Hpa, Run, RunFlags};
pub use tenant::{Life, Tenant};

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
    #[inline(never)]
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
            Err(fault) => match (self as &mut dyn Engine).after_fault(request, fault, false)? {
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
}

impl<S: Scheme, T: TlbFamily> Engine for Machine<S, T> {
    fn events(&mut self) -> Events<'_> {
        self.events()
    }

    fn platform(&mut self) -> &mut Platform {
        &mut self.platform
    }

    fn pace(&mut self) -> &mut Pace {
        &mut self.pace
    }

    fn due(&self) -> u64 {
        self.scheme.next_timer().min(self.drive.due(&self.platform))
    }

    fn may_wait(&self) -> bool {
        self.scheme.may_wait()
    }

    fn read_ahead(&mut self, runs: &[Run], gpas: &[Gpa]) {
        self.scheme.prefetch(&self.platform.cpu, runs, gpas);
    }

    fn run_group(&mut self, runs: &[Run], gpas: &[Gpa]) -> Result<(), MachineError> {
        let plain = T::PLAIN && self.scheme.looks_up_first() && self.drive.referee.is_none();
        let short = plain && self.pace.recent_misses < WORTHWHILE;
        let mut next = 0;
        while next < runs.len() {
            if short {
                next += run_hits(&mut self.platform.cpu, &runs[next..]);
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
}
