//! What a machine is made of, and how the rest of the world sees it.

use super::DynMachine;
use super::events::{Drive, Events};
use crate::hardware::tlbs::{PlainTlbs, TlbFamily};
use crate::hardware::world::World;
use crate::hardware::{GUEST_VPID, Hardware, Request, Step, Watcher};
use crate::machine::coverage::CoverageResult;
use crate::machine::referee::Verdict;
use crate::measure::counters::Counters;
use crate::measure::walk_map::WalkPlace;
use crate::scheme::MachineConfig;
use crate::scheme::{Event, MachineError, Platform, Processor, Report, Scheme};
use crate::switching::sampler::{Cut, Recorded};
use nestwalk_hw::Profile;
use nestwalk_mm::{HostMemory, PlacementStats};
use nestwalk_types::{Gpa, GuestBatch, Run, VcpuId};

/// One machine of scheme `S` with TLBs of family `T`.
pub struct Machine<S, T: TlbFamily = PlainTlbs> {
    pub(super) name: String,
    /// Everything but the scheme.
    pub platform: Platform,
    /// The scheme.
    pub scheme: S,
    pub(super) drive: Drive,
    /// Sees the ends of walks.
    pub(super) watch: T::Watch,
    /// Second-level misses, and accesses that segments served, in the last group of runs.
    pub(super) recent_misses: u64,
    /// vCPU and page of the last run, kept where something is due.
    pub(super) last: (VcpuId, u64),
}

impl<S: Scheme> Machine<S> {
    /// A machine with a page in each TLB entry, in which nothing is mapped yet.
    ///
    /// # Errors
    /// The scheme cannot be set up.
    pub fn new(scheme: S, build: MachineConfig) -> Result<Self, MachineError> {
        Self::with_tlbs(scheme, build)
    }
}

impl<S: Scheme, T: TlbFamily> Machine<S, T> {
    /// A machine in which nothing is mapped yet.
    ///
    /// # Errors
    /// The scheme cannot be set up.
    pub fn with_tlbs(scheme: S, build: MachineConfig) -> Result<Self, MachineError> {
        let vpid = if build.host.is_some() { GUEST_VPID } else { 0 };
        Ok(Self {
            platform: Platform {
                cpu: Processor {
                    hardware: Hardware::new(&build.profile, build.vcpus, vpid),
                    world: World::new(build.guest_mode, build.vcpus),
                    counters: Counters::default(),
                },
                host: build.host,
                instructions: 0,
                moved: Vec::new(),
                vcpu: VcpuId(0),
                interrupt_exits: build.profile.interrupts.exits(),
                deferred: false,
            },
            scheme,
            drive: Drive::new(build.verify.then_some(build.name.as_str())),
            name: build.name,
            watch: T::Watch::default(),
            recent_misses: 0,
            last: (VcpuId(0), u64::MAX),
        })
    }

    /// The VM is prewarmed: the host has a page behind all of the guest's memory, and tables by
    /// guest-physical address map it. Nothing of this is counted.
    ///
    /// # Errors
    /// The host has less memory than the guest.
    pub fn prewarmed(mut self) -> Result<Self, MachineError> {
        let host = self.platform.host.as_ref();
        let slots: Vec<(Gpa, u64)> =
            host.map_or(Vec::new(), |h| h.slots().iter().map(|s| (s.gpa, s.bytes)).collect());
        for (start, bytes) in slots {
            self.scheme.on(&mut self.platform, Event::Prefault { start, bytes })?;
        }
        self.platform.cpu.counters = Counters::default();
        Ok(self)
    }

    /// The machine's part that knows no hardware of the scheme.
    pub(super) fn events(&mut self) -> Events<'_> {
        Events {
            name: &self.name,
            software: &mut self.scheme,
            platform: &mut self.platform,
            drive: &mut self.drive,
        }
    }

    /// The host takes the page behind `gpa` back. Returns whether there was one.
    ///
    /// # Errors
    /// The host is out of memory, or the machine cannot go on.
    pub fn discard(&mut self, gpa: Gpa) -> Result<bool, MachineError> {
        self.events().discard(gpa)
    }
}

impl<S: Scheme, T: TlbFamily> DynMachine for Machine<S, T> {
    fn name(&self) -> &str {
        &self.name
    }

    fn run(&mut self, batch: &GuestBatch) -> Result<(), MachineError> {
        self.run_batch(batch).map_err(|e| e.of(&self.name))
    }

    fn counters(&self) -> &Counters {
        &self.platform.cpu.counters
    }

    fn before(&self) -> Option<&Counters> {
        self.drive.before()
    }

    fn report(&self) -> Report {
        let mut report = Report::default();
        self.scheme.report(&self.platform, &mut report);
        report
    }

    fn verdict(&self) -> Option<Verdict> {
        self.drive.referee.as_ref().map(|r| r.verdict(&self.platform))
    }

    fn look_at_coverage(&mut self, every: u64) {
        self.drive.look_at_coverage(every);
    }

    fn record_series(&mut self, every: u64) {
        self.drive.record_series(every);
    }

    fn series(&self) -> Vec<Counters> {
        self.drive.series(&self.platform)
    }

    fn record_samples(&mut self, cut: Cut, profile: &Profile) {
        self.drive.record_samples(cut, profile, self.platform.cpu.hardware.cores.len());
    }

    fn samples(&self) -> Option<&Recorded> {
        self.drive.samples()
    }

    fn host_placement(&self) -> Option<PlacementStats> {
        self.platform.host.as_ref().map(HostMemory::placement_stats)
    }

    fn coverage(&self) -> Option<CoverageResult> {
        Some(self.drive.coverage(&self.platform))
    }

    fn map_walks(&mut self) {
        self.platform.cpu.hardware.watcher = Watcher::Map(Box::default());
    }

    fn walk_map(&self) -> Option<Vec<WalkPlace>> {
        match &self.platform.cpu.hardware.watcher {
            Watcher::Map(map) => Some(map.places()),
            _ => None,
        }
    }

    fn watch(&mut self, run: &Run) -> Result<Vec<Step>, MachineError> {
        self.events().known(run.vcpu)?;
        let before = self.platform.cpu.counters.clone();
        let before_watch = std::mem::take(&mut self.platform.cpu.hardware.watcher);
        let core = &mut self.platform.cpu.hardware.cores[usize::from(run.vcpu.0)];
        core.forget_walks();
        let result = self.resolve(&Request::of(run)).and_then(|_| {
            // All faults are handled: one more walk from cold is the one to show.
            let core = &mut self.platform.cpu.hardware.cores[usize::from(run.vcpu.0)];
            core.forget_walks();
            let hardware = &mut self.platform.cpu.hardware;
            hardware.watcher = Watcher::Steps(Vec::new());
            let warm = hardware.take_caches();
            let walked = self.resolve(&Request::of(run));
            self.platform.cpu.hardware.caches = warm;
            walked
        });
        let watcher = std::mem::replace(&mut self.platform.cpu.hardware.watcher, before_watch);
        let steps = if let Watcher::Steps(steps) = watcher { steps } else { Vec::new() };
        self.platform.cpu.counters = before;
        result.map(|_| steps)
    }
}
