//! What a machine is made of, and how the rest of the world sees it.

use super::events::{Drive, Events};
use super::pace::{Engine, Pace};
use super::{DynMachine, Tenant};
use crate::hardware::tlbs::{PlainTlbs, TlbFamily};
use crate::hardware::world::World;
use crate::hardware::{GUEST_VPID, Hardware, Request, Step, Watcher};
use crate::machine::coverage::CoverageResult;
use crate::machine::referee::Verdict;
use crate::measure::counters::Counters;
use crate::measure::walk_map::WalkPlace;
use crate::scheme::MachineConfig;
use crate::scheme::{Event, MachineError, NodesState, Platform, Processor, Report, Scheme};
use crate::switching::sampler::{Cut, Recorded};
use nestwalk_hw::{Caches, Profile, Translation};
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
    pub(super) pace: Pace,
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
        let (name, platform, drive) = parts(build)?;
        Ok(Self {
            platform,
            scheme,
            drive,
            name,
            watch: T::Watch::default(),
            pace: Pace::default(),
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

    /// The machine's part that knows no hardware of the scheme. No reference waits then, since software
    /// may look at what was counted.
    pub(super) fn events(&mut self) -> Events<'_> {
        self.platform.cpu.settle();
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
        (self as &mut dyn Engine).run_batch(batch).map_err(|e| e.of(&self.name))
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
        let nested_tables = std::mem::take(&mut report.nested_tables);
        report.nodes = NodesState::of(&self.platform, nested_tables);
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

    fn tenant(&mut self) -> Option<Tenant<'_>> {
        self.platform.host.is_some().then(|| Tenant::new(self.events()))
    }

    fn have_helper(&mut self) {
        self.platform.cpu.hardware.caches.have_helper();
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
        (self as &mut dyn Engine).watch(&Request::of(run))
    }
}

impl dyn Engine + '_ {
    fn watch(&mut self, request: &Request) -> Result<Vec<Step>, MachineError> {
        let mut before = self.events().begin_watch(request)?;
        let mut result = self.access(request, false);
        if matches!(result, Ok(Some(_))) {
            // All faults are handled: one more walk from cold is the one to show.
            self.events().show_walk(request, &mut before);
            result = self.access(request, false);
        }
        self.events().end_watch(request, before, result)
    }
}

/// All of a machine that knows neither its scheme nor its family of TLBs.
fn parts(build: MachineConfig) -> Result<(String, Platform, Drive), MachineError> {
    let nodes = build.nodes()?;
    let vpid = if build.host.is_some() { GUEST_VPID } else { 0 };
    let mut hardware = Hardware::new(&build.profile, build.vcpus, vpid);
    let placing = nodes.map(|(layout, placing)| {
        hardware.set_nodes(layout);
        Box::new(placing)
    });
    let platform = Platform {
        cpu: Processor {
            hardware,
            world: World::new(build.guest_mode, build.vcpus),
            counters: Counters::default(),
        },
        host: build.host,
        instructions: 0,
        moved: Vec::new(),
        vcpu: VcpuId(0),
        interrupt_exits: build.profile.interrupts.exits(),
        deferred: false,
        guard: None,
        placing,
    };
    let drive = Drive::new(build.verify.then_some(build.name.as_str()));
    Ok((build.name, platform, drive))
}

/// What was there before an access was watched, and is there again after it.
struct Unwatched {
    counters: Counters,
    watcher: Watcher,
    caches: Option<Caches>,
}

impl Events<'_> {
    /// An access will be watched.
    fn begin_watch(&mut self, request: &Request) -> Result<Unwatched, MachineError> {
        self.known(request.vcpu)?;
        let Processor { hardware, counters, .. } = &mut self.platform.cpu;
        hardware.cores[request.core()].forget_walks();
        let watcher = std::mem::take(&mut hardware.watcher);
        Ok(Unwatched { counters: counters.clone(), watcher, caches: None })
    }

    /// The next walk is shown, and begins from cold.
    fn show_walk(&mut self, request: &Request, before: &mut Unwatched) {
        let hardware = &mut self.platform.cpu.hardware;
        hardware.cores[request.core()].forget_walks();
        hardware.watcher = Watcher::Steps(Vec::new());
        before.caches = Some(hardware.take_caches());
    }

    /// The steps of the walk that was shown.
    fn end_watch(
        &mut self,
        request: &Request,
        before: Unwatched,
        result: Result<Option<Translation>, MachineError>,
    ) -> Result<Vec<Step>, MachineError> {
        let Processor { hardware, counters, .. } = &mut self.platform.cpu;
        let watcher = std::mem::replace(&mut hardware.watcher, before.watcher);
        let steps = if let Watcher::Steps(steps) = watcher { steps } else { Vec::new() };
        if let Some(caches) = before.caches {
            hardware.caches = caches;
        }
        *counters = before.counters;
        match result? {
            Some(_) => Ok(steps),
            None => Err(self.not_mapped(request)),
        }
    }
}
