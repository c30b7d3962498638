//! A machine: drives one scheme with the event stream, access by access.
//!
//! The hot loop looks the TLBs up and sends the data reference through the caches. A miss goes to the
//! scheme's walker; a fault of the walker goes to the scheme's software, whose answer is followed by
//! another walk. Hardware never calls software.

use crate::ahead::{GROUP, WORTHWHILE};
pub use crate::build::Build;
use crate::counters::{Counters, ExitReason};
use crate::coverage::{CoverageResult, Looks};
use crate::hardware::{GUEST_VPID, Hardware, Request, Step};
use crate::referee::{Referee, Verdict};
use crate::scheme::{
    Answer, ContiguityState, Event, MachineError, PageTableBytes, Platform, Scheme, SegmentState,
};
use crate::series::Series;
use crate::switching::SwitchingResult;
use crate::switching::sampler::{Cut, Recorded, Recorder};
use crate::walk::Fault;
use crate::world::World;
use nestwalk_hw::{Caches, Profile, Translation};
use nestwalk_mm::{HostDaemonRun, HostMemory, PlacementStats};
use nestwalk_types::{
    Address, Control, FaultCode, Gpa, GuestBatch, Gva, Hpa, OsWork, PageSize, Run, VcpuId,
};

/// Walks that one access may need: each answered fault maps one more page, and a nested walk meets
/// at most one fault for each of 5 guest tables and the page, each with a few more for the VMM's own
/// progress.
const ATTEMPTS: u32 = 64;

/// A machine whatever its scheme. Called once per batch.
pub trait AnyMachine: Send {
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
    /// Memory that tables take now.
    fn page_table_bytes(&self) -> PageTableBytes;
    /// What the referee found, if there was one.
    fn verdict(&self) -> Option<Verdict>;
    /// Records what was counted every so many instructions of the region of interest.
    fn record_series(&mut self, _every: u64) {}
    /// What was counted by the end of each interval, and by now; empty if nothing is recorded.
    fn series(&self) -> Vec<Counters> {
        Vec::new()
    }
    /// Looks at contiguity every so many instructions of the stream.
    fn look_at_coverage(&mut self, _every: u64) {}
    /// Records samples from the region of interest on, if the machine is in one of the paging modes
    /// between which policies choose.
    fn record_samples(&mut self, _cut: Cut, _profile: &Profile) {}
    /// The samples; none of a machine that records none or has no such mode.
    fn samples(&self) -> Option<&Recorded> {
        None
    }
    /// What came of a paging mode that changes, if it does.
    fn switching(&self) -> Option<SwitchingResult> {
        None
    }
    /// What segments there are, if it has any.
    fn segments(&self) -> Option<SegmentState> {
        None
    }
    /// How contiguous memory is, if it follows that.
    fn contiguity(&self) -> Option<ContiguityState> {
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
    /// Shows the references of one walk with cold hardware structures, without changing counters.
    ///
    /// # Errors
    /// The machine cannot go on.
    fn watch(&mut self, run: &Run) -> Result<Vec<Step>, MachineError>;
}

/// Sends the program's references of a run through the caches, the line of its first access, which is
/// at `first`, before the others of the page.
#[inline(always)]
pub fn program_references(caches: &mut Caches, counters: &mut Counters, run: &Run, first: Hpa) {
    let core = usize::from(run.vcpu.0);
    let page = first.value() & !0xfff;
    let mut rest = run.lines & !(1 << (first.value() >> 6 & 63));
    let mut at = first;
    loop {
        if run.flags.is_fetch() {
            counters.fetch[caches.fetch(core, at) as usize] += 1;
        } else {
            counters.data[caches.data(core, at) as usize] += 1;
        }
        if rest == 0 {
            return;
        }
        at = Hpa::new(page | u64::from(rest.trailing_zeros()) << 6);
        rest &= rest - 1;
    }
}

/// One machine of scheme `S`.
pub struct Machine<S> {
    pub(crate) name: String,
    /// Everything but the scheme.
    pub platform: Platform,
    /// The scheme.
    pub scheme: S,
    referee: Option<Referee>,
    /// Second-level misses, and accesses that segments served, in the last group of runs.
    recent_misses: u64,
    /// By vCPU: the guest ran before the stream began, and the vCPU has loaded no root yet. Empty for
    /// guests that begin with it.
    fresh: Vec<bool>,
    /// vCPU and page of the last run, kept where the scheme has something due.
    last: (VcpuId, u64),
    series: Series,
    looks: Looks,
    recorder: Option<Box<Recorder>>,
    /// What was counted before the region of interest.
    before: Option<Box<Counters>>,
}

impl<S: Scheme> Machine<S> {
    /// A machine in which nothing is mapped yet.
    ///
    /// # Errors
    /// The scheme cannot be set up.
    pub fn new(scheme: S, build: Build) -> Result<Self, MachineError> {
        let vpid = if build.host.is_some() { GUEST_VPID } else { 0 };
        Ok(Self {
            platform: Platform {
                hardware: Hardware::new(&build.profile, build.vcpus, vpid),
                world: World::new(build.guest_mode, build.vcpus, build.host),
                counters: Counters::default(),
                clock: 0,
                moved: Vec::new(),
                vcpu: VcpuId(0),
                interrupt_exits: build.profile.interrupts.exits(),
            },
            scheme,
            referee: build.verify.then(|| Referee::new(&build.name)),
            name: build.name,
            recent_misses: 0,
            fresh: Vec::new(),
            last: (VcpuId(0), u64::MAX),
            series: Series::default(),
            looks: Looks::default(),
            recorder: None,
            before: None,
        })
    }

    /// The VM has run for long: the host has a page behind all of the guest's memory, and tables by
    /// guest-physical address map it. Nothing of this is counted.
    ///
    /// # Errors
    /// The host has less memory than the guest.
    pub fn lived_long(mut self) -> Result<Self, MachineError> {
        let host = self.platform.world.host.as_ref();
        let slots: Vec<(Gpa, u64)> =
            host.map_or(Vec::new(), |h| h.slots().iter().map(|s| (s.gpa, s.bytes)).collect());
        for (start, bytes) in slots {
            self.scheme.on(&mut self.platform, Event::Prefault { start, bytes })?;
        }
        self.platform.counters = Counters::default();
        Ok(self)
    }

    fn run_slice(&mut self, runs: &[Run], gpas: &[Gpa]) -> Result<(), MachineError> {
        for (runs, gpas) in runs.chunks(GROUP).zip(gpas.chunks(GROUP)) {
            if self.recent_misses >= WORTHWHILE {
                self.scheme.read_ahead(&self.platform, runs, gpas);
            }
            // What a segment serves is no walk, but its data lie as far away.
            let missed = |c: &Counters| {
                c.l2_tlb_misses + c.segment_hits + c.segment_accesses + c.range_hits + c.anchor_hits
            };
            let before = missed(&self.platform.counters);
            self.run_on_time(runs, gpas)?;
            self.recent_misses = missed(&self.platform.counters).saturating_sub(before);
        }
        Ok(())
    }

    /// Runs a group, with what is due in the middle of it.
    #[inline]
    fn run_on_time(&mut self, runs: &[Run], gpas: &[Gpa]) -> Result<(), MachineError> {
        let due = self.scheme.due().min(self.series.due()).min(self.samples_due());
        let due = due.min(self.looks.due());
        let due = due.min(self.host_due());
        if due == u64::MAX {
            return self.run_group(runs, gpas);
        }
        let instructions: u64 = runs.iter().map(|r| u64::from(r.instructions)).sum();
        if self.platform.clock + instructions >= due {
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
                self.tick()?;
            }
            self.last = page;
            self.run_group(std::slice::from_ref(run), std::slice::from_ref(gpa))?;
        }
        Ok(())
    }

    #[inline]
    fn samples_due(&self) -> u64 {
        self.recorder.as_ref().map_or(u64::MAX, |r| r.due())
    }

    #[inline]
    fn host_due(&self) -> u64 {
        self.platform.world.host.as_ref().map_or(u64::MAX, HostMemory::daemons_due)
    }

    #[inline]
    fn tick(&mut self) -> Result<(), MachineError> {
        let clock = self.platform.clock;
        if clock >= self.host_due() {
            self.host_daemons()?;
        }
        if clock >= self.series.due() {
            self.series.look(clock, &self.platform.counters);
        }
        if clock >= self.looks.due() {
            self.looks.look(clock, &self.platform.world);
        }
        // Before the scheme, which may end the mode that the sample is of.
        if clock >= self.samples_due()
            && let Some(recorder) = &mut self.recorder
        {
            recorder.look(clock, &self.platform.counters, self.scheme.paging_mode());
        }
        if clock >= self.scheme.due() {
            self.scheme.tick(&mut self.platform)?;
            if let Some(recorder) = &mut self.recorder {
                recorder.mode_is(clock, self.scheme.paging_mode());
            }
        }
        Ok(())
    }

    /// The host's daemons work. For each page that they move the VMM is told, and calls every vCPU
    /// out of the guest (KVM: `kvm_mmu_notifier_invalidate_range_start`, `kvm_flush_remote_tlbs`).
    #[cold]
    fn host_daemons(&mut self) -> Result<(), MachineError> {
        let clock = self.platform.clock;
        let Some(host) = &mut self.platform.world.host else { return Ok(()) };
        let HostDaemonRun { changed, did } = host.run_daemons(clock);
        let vcpus = self.platform.hardware.cores.len() as u64;
        let counters = &mut self.platform.counters;
        counters.exits[ExitReason::HostMigration as usize] += vcpus * changed.len() as u64;
        counters.pages_moved += did.copied;
        counters.host_pages_cleared += did.bloat;
        counters.host_pages_scanned += did.scanned;
        counters.host_pages_unmapped += did.unmapped;
        counters.host_pages_migrated += did.migrated;
        counters.host_pages_exchanged += did.exchanged;
        counters.host_collapses += did.collapsed;
        counters.host_joins += did.joined;
        if let Some(referee) = &mut self.referee {
            changed.iter().for_each(|(first, bytes)| referee.exchanged(*first, *bytes));
        }
        for (first, bytes) in changed {
            let mut at = first;
            while at < first.offset_by(bytes) {
                let left = first.value() + bytes - at.value();
                let fits = |s: &PageSize| at.offset_in(*s) == 0 && s.bytes() <= left;
                let sizes = [PageSize::SIZE_1G, PageSize::SIZE_2M];
                let size = sizes.into_iter().find(fits).unwrap_or(PageSize::SIZE_4K);
                self.scheme
                    .on(&mut self.platform, Event::HostChanged { at, size, promoted: false })?;
                at = at.offset_by(size.bytes());
            }
        }
        Ok(())
    }

    /// The host takes the page behind `gpa` back. Returns whether there was one.
    ///
    /// # Errors
    /// The host is out of memory, or the machine cannot go on.
    pub fn discard(&mut self, gpa: Gpa) -> Result<bool, MachineError> {
        let Some(host) = &mut self.platform.world.host else { return Ok(false) };
        let Some(page) = host.discard(gpa)? else { return Ok(false) };
        let first = gpa.align_down(page.size);
        if let Some(referee) = &mut self.referee {
            referee.discarded(first, page.size);
        }
        self.scheme.on(
            &mut self.platform,
            Event::HostChanged { at: first, size: page.size, promoted: false },
        )?;
        Ok(true)
    }

    /// The guest's balloon driver has given pages to the VMM, whose memory the host takes back, and has
    /// new memory in their place. Of a host page only a part of which was given nothing is taken.
    fn self_ballooned(
        &mut self,
        pages: &[(Gpa, u64)],
        start: Gpa,
        bytes: u64,
    ) -> Result<(), MachineError> {
        self.platform.counters.balloon_pages += pages.iter().map(|p| p.1).sum::<u64>();
        if self.platform.world.host.is_none() {
            return Ok(());
        }
        self.scheme.on(&mut self.platform, Event::Ballooning)?;
        for &(first, count) in pages {
            let end = first.offset_by(count << 12);
            let mut at = first;
            while at < end {
                let page = self.platform.world.host.as_ref().and_then(|h| h.whole_page(at));
                at = at.offset_by(4096);
                if let Some((page, size)) = page
                    && page >= first
                    && page.offset_by(size.bytes()) <= end
                {
                    self.discard(page)?;
                    at = page.offset_by(size.bytes());
                }
            }
        }
        if let Some(host) = &mut self.platform.world.host {
            host.hot_add(start, bytes)?;
        }
        self.scheme.on(&mut self.platform, Event::MemoryAdded { start, bytes })
    }

    fn run_group(&mut self, runs: &[Run], gpas: &[Gpa]) -> Result<(), MachineError> {
        let (mut accesses, mut instructions, mut fetches, mut kernel) = (0, 0, 0, 0);
        for (run, gpa) in runs.iter().zip(gpas) {
            let (hpa, hit) = self.translate(run)?;
            accesses += u64::from(run.count);
            instructions += u64::from(run.instructions);
            if run.flags.is_fetch() {
                fetches += u64::from(run.count);
            }
            if run.flags.is_kernel() {
                kernel += u64::from(run.instructions);
            }
            let Platform { hardware, counters, .. } = &mut self.platform;
            program_references(&mut hardware.caches, counters, run, hpa);
            if let Some(referee) = &mut self.referee {
                for (first, bytes) in self.platform.moved.drain(..) {
                    referee.exchanged(first, bytes);
                }
                referee.check(&self.platform, run, *gpa, hpa, hit);
            }
        }
        self.platform.clock += instructions;
        let counters = &mut self.platform.counters;
        counters.accesses += accesses;
        counters.instructions += instructions;
        counters.kernel_instructions += kernel;
        counters.fetches += fetches;
        counters.l1i_tlb_lookups += fetches;
        counters.l1d_tlb_lookups += accesses - fetches;
        Ok(())
    }

    /// Where a run's first access is, and the translation used.
    #[inline]
    fn translate(&mut self, run: &Run) -> Result<(Hpa, Translation), MachineError> {
        let flags = run.flags;
        let needs = Translation::needs(flags.is_store(), flags.is_fetch(), !flags.is_kernel());
        if usize::from(run.vcpu.0) >= self.platform.hardware.cores.len() {
            return Err(self.no_such_vcpu(run.vcpu));
        }
        if S::COALESCES {
            let found = self.coalesced(run, needs)?;
            return Ok((found.apply(run.gva), found));
        }
        if let Some(found) = self.scheme.beside_l1(&mut self.platform, run) {
            return Ok((found.apply(run.gva), found));
        }
        let core = &mut self.platform.hardware.cores[usize::from(run.vcpu.0)];
        let asid = core.asid;
        let l1 = if flags.is_fetch() { &mut core.l1i } else { &mut core.l1d };
        let translation = match l1.look_up(run.gva, asid) {
            Some(hit) if hit.serves(needs) => hit,
            found => self.first_level_miss(run, found.is_some(), needs)?,
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
        self.platform.counters.l1_tlb_fills += 1;
        if let Some(found) = self.scheme.beside_l2(&mut self.platform, &request) {
            self.platform.counters.l1_tlb_misses += 1;
            return Ok(self.served_without_walk(&request, upgrade, found));
        }
        let platform = &mut self.platform;
        let core = &mut platform.hardware.cores[request.core()];
        let asid = core.asid;
        let mut stale = upgrade;
        if upgrade {
            platform.counters.upgrades += 1;
        } else {
            platform.counters.l1_tlb_misses += 1;
            match core.second_level(request.fetch).look_up(run.gva, asid) {
                Some(hit) if hit.serves(needs) => {
                    platform.counters.l2_tlb_hits += 1;
                    let hit = hit.restored();
                    core.first_level(request.fetch).fill_splintering(run.gva, asid, hit);
                    return Ok(hit);
                }
                Some(_) => {
                    platform.counters.l2_tlb_hits += 1;
                    platform.counters.upgrades += 1;
                    stale = true;
                }
                None => {
                    if let Some(found) = self.scheme.behind_l2(&mut self.platform, &request) {
                        return Ok(self.served_without_walk(&request, false, found));
                    }
                    self.platform.counters.l2_tlb_misses += 1;
                }
            }
        }
        if stale {
            self.platform.hardware.cores[request.core()].drop_page(run.gva, asid, true);
        }
        let translation = self.resolve(&request)?;
        self.scheme.fill_l2(&mut self.platform, &request, translation);
        let core = &mut self.platform.hardware.cores[request.core()];
        let l1 = if request.fetch { &mut core.l1i } else { &mut core.l1d };
        l1.fill_splintering(run.gva, asid, translation);
        Ok(translation)
    }

    /// What was found beside or behind the second level goes to the first.
    fn served_without_walk(
        &mut self,
        request: &Request,
        stale: bool,
        found: Translation,
    ) -> Translation {
        let core = &mut self.platform.hardware.cores[request.core()];
        let asid = core.asid;
        if stale {
            core.drop_page(request.gva, asid, true);
        }
        let l1 = if request.fetch { &mut core.l1i } else { &mut core.l1d };
        l1.fill_splintering(request.gva, asid, found);
        found
    }

    /// Walks until the access is translated.
    pub(crate) fn resolve(&mut self, request: &Request) -> Result<Translation, MachineError> {
        for _ in 0..ATTEMPTS {
            match self.walk(request, false) {
                Ok(translation) => return Ok(translation),
                Err(fault) => {
                    let answer = self.answer(request, fault)?;
                    if answer == Answer::GuestFault {
                        return Err(MachineError::NotMapped {
                            machine: self.name.clone(),
                            gva: request.gva,
                            vcpu: request.vcpu.0,
                        });
                    }
                }
            }
        }
        Err(self.stuck(request))
    }

    /// The hypervisor's answer to a fault, on the processor that runs the vCPU.
    fn answer(&mut self, request: &Request, fault: Fault) -> Result<Answer, MachineError> {
        if let Some(host) = &mut self.platform.world.host {
            host.set_cpu(request.vcpu.0);
        }
        self.platform.vcpu = request.vcpu;
        let answer = self.scheme.answer(&mut self.platform, request, fault)?;
        self.host_joined()?;
        Ok(answer)
    }

    /// Host pages that have become larger where they are leave the tables of the hypervisor.
    #[inline]
    fn host_joined(&mut self) -> Result<(), MachineError> {
        let host = self.platform.world.host.as_mut().filter(|h| h.has_joined());
        for (at, size) in host.map_or(Vec::new(), HostMemory::take_joined) {
            self.scheme.on(&mut self.platform, Event::HostChanged { at, size, promoted: true })?;
        }
        Ok(())
    }

    /// `delivered`: the guest is told of a fault, whatever the walk finds by now.
    fn walk(&mut self, request: &Request, delivered: bool) -> Result<Translation, Fault> {
        self.platform.hardware.begin_walk();
        let result = self.scheme.walk(&mut self.platform, request);
        let faulted = delivered || result.is_err();
        self.platform.hardware.end_walk(&mut self.platform.counters, faulted);
        result
    }

    /// The access that faults in the guest: the hardware walks and fails; the guest's kernel answers
    /// with the events that follow.
    fn guest_fault(&mut self, vcpu: VcpuId, gva: Gva, code: FaultCode) -> Result<(), MachineError> {
        self.platform.counters.guest_faults += 1;
        let request = Request {
            vcpu,
            gva,
            write: code.write,
            fetch: code.fetch,
            user: code.user,
            pc: Gva::new(0),
        };
        for _ in 0..ATTEMPTS {
            let answer = match self.walk(&request, true) {
                // A spurious fault: another vCPU's kernel has mapped the page by now.
                Ok(_) => Answer::GuestFault,
                Err(fault) => self.answer(&request, fault)?,
            };
            if answer == Answer::GuestFault {
                // A page fault removes what the TLBs hold for the address (SDM vol. 3A,
                // "Invalidation of TLBs and Paging-Structure Caches").
                let mode = self.scheme.walk_mode(&self.platform.world);
                let core = &mut self.platform.hardware.cores[request.core()];
                core.drop_translation(mode, gva);
                return Ok(());
            }
        }
        Err(self.stuck(&request))
    }

    fn stuck(&self, request: &Request) -> MachineError {
        let (machine, gva) = (self.name.clone(), request.gva);
        MachineError::Stuck { machine, gva, attempts: ATTEMPTS }
    }

    fn no_such_vcpu(&self, vcpu: VcpuId) -> MachineError {
        MachineError::NoSuchVcpu {
            machine: self.name.clone(),
            vcpu: vcpu.0,
            vcpus: self.platform.hardware.cores.len(),
            needed: usize::from(vcpu.0) + 1,
        }
    }

    /// The event is of this vCPU.
    fn known(&mut self, vcpu: VcpuId) -> Result<(), MachineError> {
        if usize::from(vcpu.0) < self.platform.hardware.cores.len() {
            self.platform.vcpu = vcpu;
            Ok(())
        } else {
            Err(self.no_such_vcpu(vcpu))
        }
    }

    fn control(&mut self, control: &Control) -> Result<(), MachineError> {
        let platform = &mut self.platform;
        match *control {
            Control::RegionOfInterest => {
                self.before = Some(Box::new(std::mem::take(&mut platform.counters)));
                self.series.counting_begins(platform.clock);
                self.scheme.on(platform, Event::RegionOfInterest)?;
                if let Some(recorder) = &mut self.recorder {
                    recorder.counting_begins(platform.clock, self.scheme.paging_mode());
                }
            }
            Control::OsWork { work, count } => {
                platform.counters.os_work[work.index()] += u64::from(count);
                let virtual_machine = platform.world.host.is_some() && S::EMULATES_INTERRUPTS;
                if work == OsWork::Shootdown && virtual_machine {
                    platform.interrupted(u64::from(count));
                }
            }
            Control::TableWrite { vcpu, gpa, value } => {
                self.known(vcpu)?;
                self.table_write(vcpu, gpa, value)?;
            }
            Control::PageCleared { vcpu, gpa, size } => {
                self.known(vcpu)?;
                self.page_cleared(vcpu, gpa, size)?;
            }
            Control::Fault { vcpu, gva, code } => {
                self.known(vcpu)?;
                self.guest_fault(vcpu, gva, code)?;
            }
            Control::TableNew { vcpu, gpa, ref entries } => {
                self.known(vcpu)?;
                if entries.is_none() {
                    self.scheme.on(
                        &mut self.platform,
                        Event::PageWritten { vcpu, at: gpa, size: PageSize::SIZE_4K },
                    )?;
                }
                self.platform.world.guest.insert(gpa, entries.as_deref());
                // A root is loaded after this; what was one before is another table now.
                self.platform.world.known_roots.remove(&gpa);
                self.scheme.on(&mut self.platform, Event::TableAdded { vcpu, at: gpa })?;
            }
            Control::TableReused { vcpu, gpa } => {
                self.known(vcpu)?;
                self.platform.world.guest.remove(gpa);
                self.platform.world.known_roots.remove(&gpa);
                self.scheme.on(&mut self.platform, Event::TableRetired { vcpu, at: gpa })?;
            }
            Control::Backed { start, bytes } => {
                let counted = platform.counters.clone();
                self.scheme.on(&mut self.platform, Event::Prefault { start, bytes })?;
                self.platform.counters = counted;
                self.fresh.resize(self.platform.hardware.cores.len(), true);
            }
            Control::Process { .. } => {}
            Control::LoadCr3 { vcpu, root, pcid, keep } => {
                self.known(vcpu)?;
                self.platform.counters.cr3_loads += 1;
                self.platform.world.roots[usize::from(vcpu.0)] = root;
                self.platform.world.known_roots.insert(root);
                self.scheme.on(&mut self.platform, Event::LoadCr3 { vcpu, pcid, keep })?;
                if let Some(fresh) = self.fresh.get_mut(usize::from(vcpu.0))
                    && std::mem::take(fresh)
                {
                    let counted = self.platform.counters.clone();
                    self.scheme.on(&mut self.platform, Event::WarmStart { vcpu })?;
                    self.platform.counters = counted;
                }
            }
            Control::LoadSegment { vcpu, ref segment } => {
                self.known(vcpu)?;
                self.scheme.on(
                    &mut self.platform,
                    Event::LoadSegment { vcpu, segment: segment.as_deref() },
                )?;
            }
            Control::SelfBallooned { ref pages, start, bytes } => {
                self.self_ballooned(pages, start, bytes)?;
            }
            Control::Invalidate { vcpu, what } => {
                self.known(vcpu)?;
                self.platform.counters.invalidations += 1;
                self.scheme.on(&mut self.platform, Event::Invalidate { vcpu, what })?;
            }
            _ => return Err(MachineError::NotArchitectural { machine: self.name.clone() }),
        }
        Ok(())
    }

    fn table_write(&mut self, vcpu: VcpuId, gpa: Gpa, value: u64) -> Result<(), MachineError> {
        let world = &mut self.platform.world;
        let bytes = world.mode.entry_bytes;
        if let Some(old) = world.guest.write(gpa, bytes, value) {
            self.platform.counters.table_writes += 1;
            self.scheme
                .on(&mut self.platform, Event::TableStore { vcpu, at: gpa, old, new: value })?;
        }
        Ok(())
    }

    fn page_cleared(&mut self, vcpu: VcpuId, gpa: Gpa, size: PageSize) -> Result<(), MachineError> {
        self.platform.counters.pages_cleared += size.base_pages();
        for i in 0..size.base_pages() {
            self.platform.world.guest.remove(gpa.offset_by(i << 12));
        }
        self.scheme.on(&mut self.platform, Event::PageWritten { vcpu, at: gpa, size })
    }
}

impl<S: Scheme> Machine<S> {
    fn run_batch(&mut self, batch: &GuestBatch) -> Result<(), MachineError> {
        for (controls, runs) in batch.batch.segments() {
            for (_, control) in controls {
                self.tick()?;
                self.control(control)?;
                self.host_joined()?;
            }
            self.run_slice(&batch.batch.runs[runs.clone()], &batch.gpas[runs])?;
        }
        Ok(())
    }
}

impl<S: Scheme> AnyMachine for Machine<S> {
    fn name(&self) -> &str {
        &self.name
    }

    fn run(&mut self, batch: &GuestBatch) -> Result<(), MachineError> {
        self.run_batch(batch).map_err(|e| e.of(&self.name))
    }

    fn counters(&self) -> &Counters {
        &self.platform.counters
    }

    fn before(&self) -> Option<&Counters> {
        // A guest that ran before its stream began sets nothing up in it.
        self.before.as_deref().filter(|_| self.fresh.is_empty())
    }

    fn page_table_bytes(&self) -> PageTableBytes {
        self.scheme.page_table_bytes(&self.platform)
    }

    fn verdict(&self) -> Option<Verdict> {
        self.referee.as_ref().map(|r| r.verdict(&self.platform))
    }

    fn look_at_coverage(&mut self, every: u64) {
        self.looks = Looks::new(every);
    }

    fn record_series(&mut self, every: u64) {
        self.series = Series::new(every);
    }

    fn series(&self) -> Vec<Counters> {
        self.series.ends(&self.platform.counters)
    }

    fn record_samples(&mut self, cut: Cut, profile: &Profile) {
        let vcpus = self.platform.hardware.cores.len();
        self.recorder = Some(Box::new(Recorder::new(cut, profile, vcpus)));
    }

    fn samples(&self) -> Option<&Recorded> {
        self.recorder.as_ref()?.recorded()
    }

    fn switching(&self) -> Option<SwitchingResult> {
        self.scheme.switching(&self.platform)
    }

    fn segments(&self) -> Option<SegmentState> {
        self.scheme.segments(&self.platform)
    }

    fn contiguity(&self) -> Option<ContiguityState> {
        self.scheme.contiguity(&self.platform)
    }

    fn host_placement(&self) -> Option<PlacementStats> {
        self.platform.world.host.as_ref().map(HostMemory::placement_stats)
    }

    fn coverage(&self) -> Option<CoverageResult> {
        let over_time = self.looks.points().to_vec();
        Some(CoverageResult { over_time, ..CoverageResult::of(&self.platform.world) })
    }

    fn watch(&mut self, run: &Run) -> Result<Vec<Step>, MachineError> {
        self.known(run.vcpu)?;
        let before = self.platform.counters.clone();
        let core = &mut self.platform.hardware.cores[usize::from(run.vcpu.0)];
        core.forget_walks();
        let result = self.resolve(&Request::of(run)).and_then(|_| {
            // All faults are answered: one more walk from cold is the one to show.
            let core = &mut self.platform.hardware.cores[usize::from(run.vcpu.0)];
            core.forget_walks();
            self.platform.hardware.steps = Some(Vec::new());
            self.resolve(&Request::of(run))
        });
        let steps = self.platform.hardware.steps.take().unwrap_or_default();
        self.platform.counters = before;
        result.map(|_| steps)
    }
}
