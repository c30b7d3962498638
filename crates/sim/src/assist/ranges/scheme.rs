//! A scheme around nested paging or bare metal that follows the runs of both dimensions and has a
//! unit of hardware that makes use of them.

use super::guest::{GuestRuns, SpaceId, Touched};
use crate::hardware::walk::{Fault, WalkWatch};
use crate::hardware::{Hardware, Request};
use crate::hypervisor::bare_metal::Native;
use crate::hypervisor::nested::Nested;
use crate::machine::{DynMachine, Machine};
use crate::measure::counters::Counters;
use crate::scheme::MachineConfig;
use crate::scheme::{
    ContiguityState, Event, Handled, MachineError, Platform, Processor, Report, Scheme, Software,
};
use nestwalk_contiguity::{MappedRun, RunSet};
use nestwalk_hw::{Asid, HPA_LIMIT, Translation};
use nestwalk_tables::{Mode, look_up};
use nestwalk_types::{Address, Gpa, Gva, Hpa, Invalidation, PageSize, Run, VcpuId};

/// What hardware walks and software answers without the unit.
pub trait Base: Scheme {
    /// The nested leaf of a guest-physical page: its first page, the frame that it maps to, and its
    /// pages of 4 KiB. None on bare metal.
    fn host_leaf(&mut self, gpa: Gpa) -> Option<(u64, u64, u64)>;
}

/// Bytes of a group of pages that a violation may map together.
const GROUP_BYTES: u64 = 8 << 12;

impl Base for Native {
    fn host_leaf(&mut self, _gpa: Gpa) -> Option<(u64, u64, u64)> {
        None
    }
}

impl Base for Nested {
    fn host_leaf(&mut self, gpa: Gpa) -> Option<(u64, u64, u64)> {
        let tables = self.mmu.tables();
        let leaf = look_up(tables.memory, tables.mode, tables.root, gpa).ok()?;
        let first = gpa.align_down(leaf.size).page_number();
        Some((first, leaf.frame.page_number(), leaf.size.base_pages()))
    }
}

/// The runs of both dimensions.
pub struct Runs {
    /// From gVA to gPA.
    pub guest: GuestRuns,
    /// From gPA to hPA as the nested tables have it; none on bare metal, where a gPA is an hPA.
    pub host: Option<RunSet>,
    /// Address space of each vCPU.
    current: Vec<Option<SpaceId>>,
    host_touched: Vec<(u64, u64)>,
}

impl Runs {
    fn new(mode: &'static Mode, vcpus: usize, virtualized: bool) -> Self {
        Self {
            guest: GuestRuns::new(mode),
            host: virtualized.then(RunSet::new),
            current: vec![None; vcpus],
            host_touched: Vec::new(),
        }
    }

    /// Address space of a core.
    #[inline]
    pub fn space(&self, core: usize) -> Option<SpaceId> {
        self.current.get(core).copied().flatten()
    }

    /// The two-dimensional run of a page: the part of its guest run whose frames are in one run of the
    /// host. From page number to frame number of the host, with the tag of the guest's run.
    pub fn both(&self, space: SpaceId, page: u64) -> Option<MappedRun> {
        let guest = self.guest.find(space, page)?;
        let Some(host) = &self.host else { return Some(guest) };
        let behind = host.find(guest.frame(page))?;
        let first = guest.to.max(behind.from);
        let end = (guest.to + guest.pages).min(behind.end());
        let from = guest.from + (first - guest.to);
        Some(MappedRun { from, to: behind.frame(first), pages: end - first, tag: guest.tag })
    }

    /// Lengths in pages of a page's run in each dimension; bare metal has the guest's for both.
    pub fn lengths(&self, space: SpaceId, page: u64) -> Option<(u64, u64)> {
        let guest = self.guest.find(space, page)?;
        let Some(host) = &self.host else { return Some((guest.pages, guest.pages)) };
        Some((guest.pages, host.find(guest.frame(page))?.pages))
    }
}

/// Which translations are void.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// Those of an address space that meet pages from a number to before another.
    Pages(Asid, u64, u64),
    /// All of an address space.
    Space(Asid),
    /// All.
    Everything,
}

/// A unit of hardware that makes use of runs, one for each core, and what an OS and a VMM keep for it.
pub trait Unit: Send {
    /// Walks for an access: `base` makes the ordinary walk, the unit does what it does before and after.
    ///
    /// # Errors
    /// The fault that the access meets.
    fn walk<B: Base, W: WalkWatch>(
        &mut self,
        base: &mut B,
        runs: &Runs,
        access: (&mut Processor, &Request),
        watch: &mut W,
    ) -> Result<Translation, Fault>;

    /// See [`Scheme::parallel_to_l2`].
    #[inline(always)]
    fn parallel_to_l2(
        &mut self,
        _runs: &Runs,
        _cpu: &mut Processor,
        _request: &Request,
    ) -> Option<Translation> {
        None
    }

    /// See [`Scheme::on_l2_miss`].
    #[inline(always)]
    fn on_l2_miss(
        &mut self,
        _runs: &Runs,
        _cpu: &mut Processor,
        _request: &Request,
    ) -> Option<Translation> {
        None
    }

    /// See [`Scheme::fill_l2`].
    #[inline(always)]
    fn fill_l2(
        &mut self,
        _runs: &Runs,
        cpu: &mut Processor,
        request: &Request,
        found: Translation,
    ) {
        let core = &mut cpu.hardware.cores[request.core()];
        core.fill_second_level(request.gva, request.fetch, found);
    }

    /// See [`Scheme::may_wait`].
    #[inline(always)]
    fn may_wait(&self) -> bool {
        true
    }

    /// Translations of a core are void.
    fn invalidate(&mut self, _platform: &mut Platform, _core: usize, _scope: Scope) {}

    /// CR3 of a core was loaded.
    fn switched(&mut self, _runs: &Runs, _platform: &mut Platform, _core: usize) {}

    /// Runs have changed: of the guest in these places, of the host in these.
    ///
    /// # Errors
    /// No memory for what software keeps.
    fn changed(
        &mut self,
        _platform: &mut Platform,
        _runs: &Runs,
        _guest: &[Touched],
        _host: &[(u64, u64)],
    ) -> Result<(), MachineError> {
        Ok(())
    }

    /// See [`Software::next_timer`].
    #[inline]
    fn next_timer(&self) -> u64 {
        u64::MAX
    }

    /// The OS looks at the runs again.
    ///
    /// # Errors
    /// The machine cannot go on.
    fn timer(&mut self, _platform: &mut Platform, _runs: &Runs) -> Result<(), MachineError> {
        Ok(())
    }

    /// The region of interest begins.
    fn region_begins(&mut self, _platform: &mut Platform, _runs: &Runs) {}

    /// Bytes of what software keeps beside page tables.
    fn metadata_bytes(&self) -> u64 {
        0
    }

    /// Distance of the anchors of an address space in pages, if there are any.
    fn distance(&self, _space: SpaceId) -> Option<u64> {
        None
    }
}

/// A reference that nothing waits for: through the caches, counted apart.
#[inline]
pub fn background(hardware: &mut Hardware, counters: &mut Counters, core: usize, at: Hpa) {
    if at.value() < HPA_LIMIT {
        hardware.background(counters, core, at);
    }
}

/// The scheme: `base` with a unit beside its TLBs.
pub struct Contiguous<B, U> {
    /// Nested paging or bare metal.
    pub base: B,
    /// What makes use of runs.
    pub unit: U,
    /// The runs.
    pub runs: Runs,
}

/// A machine with the unit: over nested paging if there is a host, else on bare metal.
///
/// # Errors
/// There is no frame for the root of nested tables.
pub fn machine<U: Unit + 'static>(
    mut build: MachineConfig,
    unit: U,
) -> Result<Box<dyn DynMachine>, MachineError> {
    if build.host.is_some() {
        let scheme = Contiguous::nested(&mut build, unit)?;
        return Ok(Box::new(Machine::new(scheme, build)?));
    }
    Ok(Box::new(Machine::new(Contiguous::native(&build, unit), build)?))
}

impl<U: Unit> Contiguous<Nested, U> {
    /// In a VM.
    ///
    /// # Errors
    /// There is no host, or no frame for the root of nested tables.
    pub fn nested(build: &mut MachineConfig, unit: U) -> Result<Self, MachineError> {
        let runs = Runs::new(build.guest_mode, build.vcpus, true);
        Ok(Self { base: Nested::new(build)?, unit, runs })
    }
}

impl<U: Unit> Contiguous<Native, U> {
    /// On bare metal.
    pub fn native(build: &MachineConfig, unit: U) -> Self {
        let runs = Runs::new(build.guest_mode, build.vcpus, false);
        Self { base: Native::default(), unit, runs }
    }
}

impl<B: Base, U: Unit> Contiguous<B, U> {
    /// The nested tables may have new entries for a range of guest memory.
    fn follow_host(&mut self, start: Gpa, bytes: u64) {
        let Some(host) = &mut self.runs.host else { return };
        let (mut page, end) = (start.page_number(), start.value().saturating_add(bytes) >> 12);
        while page < end.max(start.page_number() + 1) {
            let Some((first, frame, pages)) = self.base.host_leaf(Gpa::new(page << 12)) else {
                page += 1;
                continue;
            };
            let known = host.find(first).filter(|run| run.frame(first) == frame);
            if known.is_none_or(|run| run.end() < first + pages) {
                host.map(first, frame, pages, 0);
                self.runs.host_touched.push((first, pages));
            }
            page = first + pages;
        }
    }

    fn tell(&mut self, platform: &mut Platform) -> Result<(), MachineError> {
        if !self.runs.guest.is_touched() && self.runs.host_touched.is_empty() {
            return Ok(());
        }
        let guest = self.runs.guest.take_touched();
        let host = std::mem::take(&mut self.runs.host_touched);
        self.unit.changed(platform, &self.runs, &guest, &host)
    }

    /// Which address spaces the vCPUs are in.
    fn look_again(&mut self, platform: &Platform) {
        for (space, root) in self.runs.current.iter_mut().zip(&platform.cpu.world.roots) {
            *space = self.runs.guest.space(*root);
        }
    }

    /// What an invalidation of an address concerns: all of the largest page that may be around it.
    fn around(&self, gva: Gva, asid: Asid) -> Scope {
        let pages = self.runs.guest.largest_page().base_pages();
        let first = gva.page_number() & !(pages - 1);
        Scope::Pages(asid, first, first + pages)
    }
}

impl<B: Base, U: Unit> Contiguous<B, U> {
    fn host_changed(&mut self, platform: &mut Platform, at: Gpa, size: PageSize) {
        let (page, pages) = (at.page_number(), size.base_pages());
        if let Some(host) = &mut self.runs.host
            && host.unmap(page, pages) > 0
        {
            self.runs.host_touched.push((page, pages));
        }
        for core in 0..platform.cpu.hardware.cores.len() {
            self.unit.invalidate(platform, core, Scope::Everything);
        }
    }

    fn loaded_cr3(&mut self, platform: &mut Platform, vcpu: VcpuId, keep: bool) {
        let core = usize::from(vcpu.0);
        self.runs.guest.load(&platform.cpu.world, platform.cpu.world.root(vcpu));
        self.look_again(platform);
        if !keep || !platform.cpu.hardware.cores[core].has_pcids() {
            let asid = platform.cpu.hardware.cores[core].asid;
            self.unit.invalidate(platform, core, Scope::Space(asid));
        }
        self.unit.switched(&self.runs, platform, core);
    }

    fn invalidated(&mut self, platform: &mut Platform, vcpu: VcpuId, what: Invalidation) {
        let core = usize::from(vcpu.0);
        let asid = platform.cpu.hardware.cores[core].asid;
        let tag = |pcid| platform.cpu.hardware.cores[core].tag(pcid);
        let scope = match what {
            Invalidation::Page(gva) => self.around(gva, asid),
            Invalidation::PageInPcid(gva, pcid) => self.around(gva, tag(pcid)),
            Invalidation::Pcid(pcid) => Scope::Space(tag(pcid)),
            Invalidation::AllButGlobal | Invalidation::All => Scope::Everything,
        };
        self.unit.invalidate(platform, core, scope);
    }
}

impl<B: Base, U: Unit> Scheme for Contiguous<B, U> {
    #[inline(always)]
    fn looks_up_first(&self) -> bool {
        true
    }

    #[inline(always)]
    fn may_wait(&self) -> bool {
        self.unit.may_wait()
    }

    #[inline]
    fn walk<W: WalkWatch>(
        &mut self,
        cpu: &mut Processor,
        request: &Request,
        watch: &mut W,
    ) -> Result<Translation, Fault> {
        self.unit.walk(&mut self.base, &self.runs, (cpu, request), watch)
    }

    #[inline(always)]
    fn parallel_to_l2(&mut self, cpu: &mut Processor, request: &Request) -> Option<Translation> {
        self.unit.parallel_to_l2(&self.runs, cpu, request)
    }

    #[inline(always)]
    fn on_l2_miss(&mut self, cpu: &mut Processor, request: &Request) -> Option<Translation> {
        self.unit.on_l2_miss(&self.runs, cpu, request)
    }

    #[inline(always)]
    fn fill_l2(&mut self, cpu: &mut Processor, request: &Request, found: Translation) {
        self.unit.fill_l2(&self.runs, cpu, request, found);
    }

    fn prefetch(&mut self, cpu: &Processor, runs: &[Run], gpas: &[Gpa]) {
        self.base.prefetch(cpu, runs, gpas);
    }
}

impl<B: Base, U: Unit> Software for Contiguous<B, U> {
    fn handle_fault(
        &mut self,
        platform: &mut Platform,
        request: &Request,
        fault: Fault,
    ) -> Result<Handled, MachineError> {
        let before = match fault {
            Fault::Nested { gpa, .. } => self.base.host_leaf(gpa),
            Fault::Linear { .. } => None,
        };
        let handled = self.base.handle_fault(platform, request, fault)?;
        if let Fault::Nested { gpa, .. } = fault {
            // A large entry over a page that is executed has gone, and a group of small ones came.
            if let Some((first, _, pages)) = before
                && let Some(host) = &mut self.runs.host
                && host.unmap(first, pages) > 0
            {
                self.runs.host_touched.push((first, pages));
                for core in 0..platform.cpu.hardware.cores.len() {
                    self.unit.invalidate(platform, core, Scope::Everything);
                }
            }
            self.follow_host(Gpa::new(gpa.value() & !(GROUP_BYTES - 1)), GROUP_BYTES);
            self.tell(platform)?;
        }
        Ok(handled)
    }

    #[inline]
    fn next_timer(&self) -> u64 {
        self.unit.next_timer()
    }

    fn timer(&mut self, platform: &mut Platform) -> Result<(), MachineError> {
        self.unit.timer(platform, &self.runs)
    }

    fn on(&mut self, platform: &mut Platform, event: Event<'_>) -> Result<(), MachineError> {
        if let Event::PageWritten { at, size, .. } = event {
            self.runs.guest.gone_in(&platform.cpu.world, at, size);
        }
        self.base.on(platform, event)?;
        match event {
            Event::RegionOfInterest => {
                self.unit.region_begins(platform, &self.runs);
                return Ok(());
            }
            Event::HostChanged { at, size, .. } => self.host_changed(platform, at, size),
            Event::LoadCr3 { vcpu, keep, .. } => self.loaded_cr3(platform, vcpu, keep),
            Event::Invalidate { vcpu, what } => {
                self.invalidated(platform, vcpu, what);
                return Ok(());
            }
            Event::TableStore { at, old, new, .. } => {
                self.runs.guest.stored(&platform.cpu.world, at, old, new);
            }
            Event::TableAdded { at, .. } => {
                self.runs.guest.told(&platform.cpu.world, at);
                self.look_again(platform);
            }
            Event::PageWritten { at, size, .. } => self.follow_host(at, size.bytes()),
            Event::TableRetired { at, .. } => {
                self.runs.guest.gone_in(&platform.cpu.world, at, PageSize::SIZE_4K);
            }
            Event::Prefault { start, bytes } => self.follow_host(start, bytes),
            Event::Ballooning
            | Event::MemoryAdded { .. }
            | Event::LoadSegment { .. }
            | Event::AccessMissed { .. }
            | Event::RetryEnded
            | Event::WarmStart { .. } => return Ok(()),
        }
        self.tell(platform)
    }

    fn report(&self, platform: &Platform, out: &mut Report) {
        self.base.report(platform, out);
        // What a VMM keeps beside nested tables has its frames from the host, too.
        let tables = &mut out.page_tables;
        tables.host = tables.host.saturating_sub(self.unit.metadata_bytes());
        let spaces = || self.runs.guest.spaces();
        let largest = spaces().max_by_key(|(id, _, runs)| (runs.pages(), std::cmp::Reverse(*id)));
        out.contiguity = Some(ContiguityState {
            guest_pages: spaces().map(|s| s.2.pages()).sum(),
            guest_runs: spaces().map(|s| s.2.len() as u64).sum(),
            host_pages: self.runs.host.as_ref().map_or(0, RunSet::pages),
            host_runs: self.runs.host.as_ref().map_or(0, |h| h.len() as u64),
            metadata_bytes: self.unit.metadata_bytes(),
            anchor_distance: largest.and_then(|l| self.unit.distance(l.0)).unwrap_or(0),
        });
    }
}
