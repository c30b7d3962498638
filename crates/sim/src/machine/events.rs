//! What happens to a machine beside accesses: controls of the stream, faults, timers, daemons of the
//! host. It knows the scheme's software, and nothing of its hardware.

use super::pace::ATTEMPTS;
use crate::hardware::Request;
use crate::hardware::walk::Fault;
use crate::machine::coverage::{CoverageResult, Snapshots};
use crate::machine::referee::Referee;
use crate::measure::counters::{Counters, ExitReason};
use crate::measure::series::Series;
use crate::scheme::placing::Use;
use crate::scheme::{Event, Handled, MachineError, Platform, Processor, Software};
use crate::switching::sampler::{Cut, Recorded, Recorder};
use nestwalk_hw::{Profile, Translation};
use nestwalk_mm::{HostDaemonRun, HostMemory};
use nestwalk_types::{Address, Control, FaultCode, Gpa, Gva, Hpa, OsWork, PageSize, Run, VcpuId};

/// What a machine keeps beside platform and scheme.
pub(super) struct Drive {
    /// The referee, if it watches.
    pub(super) referee: Option<Referee>,
    /// By vCPU: the guest ran before the stream began, and the vCPU has loaded no root yet. Empty for
    /// guests that begin with it.
    pub(super) fresh: Vec<bool>,
    series: Series,
    looks: Snapshots,
    recorder: Option<Box<Recorder>>,
    /// What was counted before the region of interest.
    pub(super) before: Option<Box<Counters>>,
}

impl Drive {
    /// Nothing is recorded; the referee watches the machine of this name, if one is given.
    pub(super) fn new(watched: Option<&str>) -> Self {
        Self {
            referee: watched.map(Referee::new),
            fresh: Vec::new(),
            series: Series::default(),
            looks: Snapshots::default(),
            recorder: None,
            before: None,
        }
    }

    /// When something of this is due next, by the machine's clock.
    #[inline]
    pub(super) fn due(&self, platform: &Platform) -> u64 {
        self.series.due().min(self.samples_due()).min(self.looks.due()).min(host_due(platform))
    }

    #[inline]
    fn samples_due(&self) -> u64 {
        self.recorder.as_ref().map_or(u64::MAX, |r| r.due())
    }

    pub(super) fn before(&self) -> Option<&Counters> {
        // A guest that ran before its stream began sets nothing up in it.
        self.before.as_deref().filter(|_| self.fresh.is_empty())
    }

    pub(super) fn look_at_coverage(&mut self, every: u64) {
        self.looks = Snapshots::new(every);
    }

    pub(super) fn record_series(&mut self, every: u64) {
        self.series = Series::new(every);
    }

    pub(super) fn series(&self, platform: &Platform) -> Vec<Counters> {
        self.series.ends(&platform.cpu.counters)
    }

    pub(super) fn record_samples(&mut self, cut: Cut, profile: &Profile, vcpus: usize) {
        self.recorder = Some(Box::new(Recorder::new(cut, profile, vcpus)));
    }

    pub(super) fn samples(&self) -> Option<&Recorded> {
        self.recorder.as_ref()?.recorded()
    }

    pub(super) fn coverage(&self, platform: &Platform) -> CoverageResult {
        let over_time = self.looks.points().to_vec();
        CoverageResult { over_time, ..CoverageResult::of(platform) }
    }
}

#[inline]
fn host_due(platform: &Platform) -> u64 {
    platform.host.as_ref().map_or(u64::MAX, HostMemory::daemons_due)
}

/// A machine without its hardware.
pub(super) struct Events<'a> {
    pub(super) name: &'a str,
    pub(super) software: &'a mut dyn Software,
    pub(super) platform: &'a mut Platform,
    pub(super) drive: &'a mut Drive,
}

impl Events<'_> {
    pub(super) fn tell(&mut self, event: Event<'_>) -> Result<(), MachineError> {
        self.software.on(self.platform, event)
    }

    /// An event before the guest's life begins: nothing of it is counted.
    fn tell_uncounted(&mut self, event: Event<'_>) -> Result<(), MachineError> {
        let counted = self.platform.cpu.counters.clone();
        let done = self.tell(event);
        self.platform.cpu.counters = counted;
        done
    }

    /// Software handles a fault of a walk, on the processor that runs the vCPU; what the walk has cost
    /// is counted as that makes of it.
    pub(super) fn fault(
        &mut self,
        request: &Request,
        fault: Fault,
        delivered: bool,
    ) -> Result<Handled, MachineError> {
        // As it is now, whatever software does to the structures meanwhile.
        let tally = self.platform.cpu.hardware.tally;
        if let Some(host) = &mut self.platform.host {
            host.set_cpu(request.vcpu.0);
        }
        self.platform.vcpu = request.vcpu;
        let handled = self.software.handle_fault(self.platform, request, fault)?;
        let Processor { hardware, counters, .. } = &mut self.platform.cpu;
        hardware.tally = tally;
        match handled {
            Handled::RetryUncounted => {}
            Handled::Emulated(_) => hardware.end_walk(counters, delivered),
            Handled::Retry | Handled::RetryOnce | Handled::GuestFault => {
                hardware.end_walk(counters, true);
            }
        }
        self.host_promoted()?;
        Ok(handled)
    }

    /// Whatever is due.
    #[cold]
    pub(super) fn timers(&mut self) -> Result<(), MachineError> {
        let clock = self.platform.instructions;
        if clock >= host_due(self.platform) {
            self.host_daemons()?;
        }
        if clock >= self.drive.series.due() {
            self.drive.series.look(clock, &self.platform.cpu.counters);
        }
        if clock >= self.drive.looks.due() {
            self.drive.looks.look(clock, self.platform);
        }
        // Before the scheme, which may end the mode that the sample is of.
        if clock >= self.drive.samples_due()
            && let Some(recorder) = &mut self.drive.recorder
        {
            recorder.look(clock, &self.platform.cpu.counters, self.software.paging_mode());
        }
        if clock >= self.software.next_timer() {
            self.software.timer(self.platform)?;
            if let Some(recorder) = &mut self.drive.recorder {
                recorder.mode_is(clock, self.software.paging_mode());
            }
        }
        Ok(())
    }
    /// The host's daemons work. For each page that they move the VMM is told, and calls every vCPU
    /// out of the guest (KVM: `kvm_mmu_notifier_invalidate_range_start`, `kvm_flush_remote_tlbs`).
    #[cold]
    fn host_daemons(&mut self) -> Result<(), MachineError> {
        let clock = self.platform.instructions;
        let Some(host) = &mut self.platform.host else { return Ok(()) };
        let HostDaemonRun { changed, did } = host.run_daemons(clock);
        let vcpus = self.platform.cpu.hardware.cores.len() as u64;
        let counters = &mut self.platform.cpu.counters;
        counters.exits[ExitReason::HostMigration as usize] += vcpus * changed.len() as u64;
        counters.pages_moved += did.copied;
        counters.host_pages_cleared += did.bloat;
        counters.host_pages_scanned += did.scanned;
        counters.host_pages_unmapped += did.unmapped;
        counters.host_pages_migrated += did.migrated;
        counters.host_pages_exchanged += did.exchanged;
        counters.host_collapses += did.collapsed;
        counters.host_joins += did.joined;
        if let Some(referee) = &mut self.drive.referee {
            changed.iter().for_each(|(first, bytes)| referee.exchanged(*first, *bytes));
        }
        for (first, bytes) in changed {
            let mut at = first;
            while at < first.offset_by(bytes) {
                let left = first.value() + bytes - at.value();
                let fits = |s: &PageSize| at.offset_in(*s) == 0 && s.bytes() <= left;
                let sizes = [PageSize::SIZE_1G, PageSize::SIZE_2M];
                let size = sizes.into_iter().find(fits).unwrap_or(PageSize::SIZE_4K);
                self.tell(Event::HostChanged { at, size, promoted: false })?;
                at = at.offset_by(size.bytes());
            }
        }
        Ok(())
    }

    /// The host takes the page behind `gpa` back. Returns whether there was one.
    ///
    /// # Errors
    /// The host is out of memory, or the machine cannot go on.
    pub(super) fn discard(&mut self, gpa: Gpa) -> Result<bool, MachineError> {
        let Some(host) = &mut self.platform.host else { return Ok(false) };
        let Some(page) = host.discard(gpa)? else { return Ok(false) };
        let first = gpa.align_down(page.size);
        if let Some(referee) = &mut self.drive.referee {
            referee.discarded(first, page.size);
        }
        self.tell(Event::HostChanged { at: first, size: page.size, promoted: false })?;
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
        self.platform.cpu.counters.balloon_pages += pages.iter().map(|p| p.1).sum::<u64>();
        if self.platform.host.is_none() {
            return Ok(());
        }
        self.tell(Event::Ballooning)?;
        for &(first, count) in pages {
            let end = first.offset_by(count << 12);
            let mut at = first;
            while at < end {
                let page = self.platform.host.as_ref().and_then(|h| h.whole_page(at));
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
        if let Some(host) = &mut self.platform.host {
            host.hot_add(start, bytes)?;
        }
        self.tell(Event::MemoryAdded { start, bytes })
    }

    /// Host pages that were promoted in place leave the tables of the hypervisor.
    #[inline]
    pub(super) fn host_promoted(&mut self) -> Result<(), MachineError> {
        match &mut self.platform.host {
            Some(host) if host.has_promoted() => self.tell_promoted(),
            _ => Ok(()),
        }
    }

    #[cold]
    fn tell_promoted(&mut self) -> Result<(), MachineError> {
        let host = self.platform.host.as_mut();
        for (at, size) in host.map_or(Vec::new(), HostMemory::take_promoted) {
            self.tell(Event::HostChanged { at, size, promoted: true })?;
        }
        Ok(())
    }

    /// The machine has no such vCPU.
    #[cold]
    pub(super) fn no_such_vcpu(&self, vcpu: VcpuId) -> MachineError {
        MachineError::NoSuchVcpu {
            machine: self.name.to_owned(),
            vcpu: vcpu.0,
            vcpus: self.platform.cpu.hardware.cores.len(),
            needed: usize::from(vcpu.0) + 1,
        }
    }

    /// The guest has nothing there, and its kernel did not fault.
    #[cold]
    pub(super) fn not_mapped(&self, request: &Request) -> MachineError {
        let (machine, gva, vcpu) = (self.name.to_owned(), request.gva, request.vcpu.0);
        MachineError::NotMapped { machine, gva, vcpu }
    }

    #[cold]
    pub(super) fn stuck(&self, request: &Request) -> MachineError {
        let (machine, gva) = (self.name.to_owned(), request.gva);
        MachineError::Stuck { machine, gva, attempts: ATTEMPTS }
    }

    /// The event is of this vCPU.
    pub(super) fn known(&mut self, vcpu: VcpuId) -> Result<(), MachineError> {
        if usize::from(vcpu.0) < self.platform.cpu.hardware.cores.len() {
            self.platform.vcpu = vcpu;
            Ok(())
        } else {
            Err(self.no_such_vcpu(vcpu))
        }
    }

    /// Deals with controls, up to one that is a fault of the guest: the access that faults, which the
    /// hardware must walk for. `None` once there are no more.
    pub(super) fn until_fault(
        &mut self,
        controls: &mut std::slice::Iter<'_, (u32, Control)>,
    ) -> Result<Option<Request>, MachineError> {
        for (_, control) in controls {
            if self.platform.instructions
                >= self.software.next_timer().min(self.drive.due(self.platform))
            {
                self.timers()?;
            }
            if let Control::Fault { vcpu, gva, code } = *control {
                self.known(vcpu)?;
                self.platform.cpu.counters.guest_faults += 1;
                let FaultCode { write, fetch, user, .. } = code;
                return Ok(Some(Request { vcpu, gva, write, fetch, user, pc: Gva::new(0) }));
            }
            self.control(control)?;
            self.host_promoted()?;
        }
        Ok(None)
    }

    /// The hardware has walked and failed; the guest's kernel answers with the events that follow. If
    /// something was found the fault is spurious: another vCPU's kernel has mapped the page.
    pub(super) fn fault_ends(&mut self, request: &Request) -> Result<(), MachineError> {
        // A page fault removes what the TLBs hold for the address (SDM vol. 3A, "Invalidation of TLBs
        // and Paging-Structure Caches").
        let mode = self.software.walk_mode(&self.platform.cpu.world);
        let core = &mut self.platform.cpu.hardware.cores[request.core()];
        core.drop_translation(mode, request.gva);
        self.host_promoted()
    }

    /// The referee looks at the translation that an access was given.
    pub(super) fn check(&mut self, run: &Run, gpa: Gpa, hpa: Hpa, hit: Translation) {
        let Some(referee) = &mut self.drive.referee else { return };
        for (first, bytes) in self.platform.moved.drain(..) {
            referee.exchanged(first, bytes);
        }
        referee.check(self.platform, run, gpa, hpa, hit);
    }

    fn control(&mut self, control: &Control) -> Result<(), MachineError> {
        if self.platform.guard.is_some() {
            self.kernel_stores(control)?;
        }
        match *control {
            Control::RegionOfInterest => self.region_of_interest(),
            Control::OsWork { work, count } => {
                self.os_work(work, u64::from(count));
                Ok(())
            }
            Control::Prefault { start, bytes } => {
                self.drive.fresh.resize(self.platform.cpu.hardware.cores.len(), true);
                self.tell_uncounted(Event::Prefault { start, bytes })
            }
            Control::Process { .. } => Ok(()),
            // The device reads it through the VMM process.
            Control::WrittenOut { gpa, .. } => {
                if self.platform.host.is_some() {
                    self.platform.host_page(gpa)?;
                }
                self.host_promoted()
            }
            Control::SelfBallooned { ref pages, start, bytes } => {
                self.self_ballooned(pages, start, bytes)
            }
            Control::TableWrite { vcpu, gpa, value } => {
                self.known(vcpu)?;
                self.table_write(vcpu, gpa, value)
            }
            Control::PageCleared { vcpu, gpa, size } => {
                self.known(vcpu)?;
                self.page_cleared(vcpu, gpa, size)
            }
            Control::TableAdded { vcpu, gpa, ref entries } => {
                self.known(vcpu)?;
                self.table_added(vcpu, gpa, entries.as_deref())
            }
            Control::TableRetired { vcpu, gpa } => {
                self.known(vcpu)?;
                self.platform.cpu.world.guest.remove(gpa);
                self.platform.cpu.world.known_roots.remove(gpa.value());
                self.platform.place_guest_page(gpa, 4096, Use::Data);
                self.tell(Event::TableRetired { vcpu, at: gpa })
            }
            Control::LoadCr3 { vcpu, root, pcid, keep } => {
                self.known(vcpu)?;
                self.load_cr3(vcpu, root, (pcid, keep))
            }
            Control::LoadSegment { vcpu, ref segment } => {
                self.known(vcpu)?;
                self.tell(Event::LoadSegment { vcpu, segment: segment.as_deref() })
            }
            Control::Invalidate { vcpu, what } => {
                self.known(vcpu)?;
                self.platform.cpu.counters.invalidations += 1;
                self.tell(Event::Invalidate { vcpu, what })
            }
            _ => Err(MachineError::NotArchitectural { machine: self.name.to_owned() }),
        }
    }

    fn region_of_interest(&mut self) -> Result<(), MachineError> {
        let clock = self.platform.instructions;
        let counted = std::mem::take(&mut self.platform.cpu.counters);
        self.drive.before = Some(Box::new(counted));
        self.platform.cpu.hardware.region_begins();
        self.drive.series.region_begins(clock);
        self.tell(Event::RegionOfInterest)?;
        if let Some(recorder) = &mut self.drive.recorder {
            recorder.region_begins(clock, self.software.paging_mode());
        }
        Ok(())
    }

    fn os_work(&mut self, work: OsWork, count: u64) {
        self.platform.cpu.counters.os_work[work.index()] += count;
        let virtual_machine = self.platform.host.is_some();
        if work == OsWork::Shootdown && virtual_machine && self.software.emulates_interrupts() {
            self.platform.interrupted(count);
        }
    }

    fn load_cr3(
        &mut self,
        vcpu: VcpuId,
        root: Gpa,
        (pcid, keep): (u16, bool),
    ) -> Result<(), MachineError> {
        let cpu = &mut self.platform.cpu;
        cpu.counters.cr3_loads += 1;
        let kept = keep && cpu.hardware.cores[usize::from(vcpu.0)].has_pcids();
        cpu.counters.cr3_flushes += u64::from(!kept);
        cpu.world.roots[usize::from(vcpu.0)] = root;
        cpu.world.known_roots.insert(root.value());
        self.tell(Event::LoadCr3 { vcpu, pcid, keep })?;
        if let Some(fresh) = self.drive.fresh.get_mut(usize::from(vcpu.0))
            && std::mem::take(fresh)
        {
            self.tell_uncounted(Event::WarmStart { vcpu })?;
        }
        Ok(())
    }

    fn table_added(
        &mut self,
        vcpu: VcpuId,
        at: Gpa,
        entries: Option<&[u64; 512]>,
    ) -> Result<(), MachineError> {
        if entries.is_none() {
            self.tell(Event::PageWritten { vcpu, at, size: PageSize::SIZE_4K })?;
        }
        self.platform.cpu.world.guest.insert(at, entries);
        // A root is loaded after this; what was one before is another table now.
        self.platform.cpu.world.known_roots.remove(at.value());
        self.platform.place_guest_page(at, 4096, Use::GuestTable);
        self.tell(Event::TableAdded { vcpu, at })
    }

    fn table_write(&mut self, vcpu: VcpuId, gpa: Gpa, value: u64) -> Result<(), MachineError> {
        let world = &mut self.platform.cpu.world;
        let bytes = world.mode.entry_bytes;
        if let Some(old) = world.guest.write(gpa, bytes, value) {
            self.platform.cpu.counters.table_writes += 1;
            self.tell(Event::TableStore { vcpu, at: gpa, old, new: value })?;
        }
        Ok(())
    }

    fn page_cleared(&mut self, vcpu: VcpuId, gpa: Gpa, size: PageSize) -> Result<(), MachineError> {
        self.platform.cpu.counters.pages_cleared += size.base_pages();
        for i in 0..size.base_pages() {
            self.platform.cleared(gpa.offset_by(i << 12));
        }
        self.tell(Event::PageWritten { vcpu, at: gpa, size })
    }
}
