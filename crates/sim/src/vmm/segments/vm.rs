//! A virtual machine with segments: the nested tables, the VMM segment, and the guest's.

use super::config::{Check, SegmentConfig};
use super::guest::GuestSegments;
use crate::ahead::{LeafHints, read_sets};
use crate::counters::{Counters, Dimension, ExitReason};
use crate::engine::Machine;
use crate::hardware::Request;
use crate::options::OptionTable;
use crate::scheme::{
    Answer, Event, MachineError, PageTableBytes, Platform, Scheme, SegmentInfo, SegmentState,
};
use crate::schemes::Build;
use crate::vmm::nested_mmu::NestedMmu;
use crate::vmm::options::VmmKind;
use crate::walk::segments::{
    Flattened, Found, SegmentUnit, Walker, count_escape, covered, walk_flat_guest,
};
use crate::walk::{Fault, Purpose, Tables, walk_2d};
use nestwalk_hw::Translation;
use nestwalk_mm::{SegmentChange, SegmentRequest, Slot};
use nestwalk_types::{Address, Gpa, Gva, Hpa, PageSize, Run, VcpuId};

/// Smallest VMM segment that is worth its registers: 2 MiB, an assumption.
const LEAST_BYTES: u64 = 2 << 20;

/// Intervals of compaction in a millisecond: fine enough for short runs, a choice.
const LOOKS: f64 = 64.0;

/// The scheme behind `vmm-direct`, `guest-direct` and `dual-direct`.
pub struct SegmentedVm {
    /// The nested tables: of everything outside of the VMM segment, and of what its filter reports.
    pub nested: NestedMmu,
    config: SegmentConfig,
    guest: Option<GuestSegments>,
    vmm: Option<SegmentUnit<Gpa, Hpa>>,
    walker: Walker,
    /// There was a segment before the guest gave pages away.
    had_segment: bool,
    /// Instructions of an interval, at the base CPI, and when the next interval of compaction ends.
    every: u64,
    due: u64,
    guest_hints: LeafHints<Gpa>,
    nested_hints: LeafHints<Hpa>,
}

/// The places of a group of guest-physical addresses in the VMM segment.
fn in_segment<'a>(
    vmm: &'a SegmentUnit<Gpa, Hpa>,
    gpas: &'a [Gpa],
) -> impl Iterator<Item = Hpa> + 'a {
    gpas.iter().filter(|g| vmm.registers().covers(**g)).map(|g| vmm.registers().apply(*g))
}

impl SegmentedVm {
    /// Without segments. `guest` and `vmm` say which registers the hardware has.
    ///
    /// # Errors
    /// There is no host, no frame for the nested root table, or a filter that cannot be.
    pub fn new(
        request: &mut Build,
        options: &OptionTable<SegmentConfig>,
        (guest, vmm): (bool, bool),
    ) -> Result<Self, MachineError> {
        let machine = request.name.clone();
        let wrong = |reason| MachineError::Variant { machine, reason };
        let made = options.parse(&request.variant).and_then(|config| {
            let guest = guest.then(|| GuestSegments::new(&config, request.vcpus)).transpose()?;
            let unit = || SegmentUnit::new(config.filter, config.filter_seed);
            let vmm = vmm.then(unit).transpose().map_err(|e| e.to_string())?;
            Ok((config, guest, vmm))
        });
        let (config, guest, vmm) = made.map_err(wrong)?;
        let walker = Walker {
            check_cycles: request.profile.segment.check_cycles.value as u64,
            whole_pages: config.whole_pages,
        };
        let rules = request.rules(VmmKind::Nested)?;
        Ok(Self {
            nested: NestedMmu::new(request.nested_mode, &mut request.host, rules)?,
            config,
            guest,
            vmm,
            walker,
            had_segment: false,
            every: (request.profile.instructions_in_us(1e3) / LOOKS).max(1.0) as u64,
            due: u64::MAX,
            guest_hints: LeafHints::default(),
            nested_hints: LeafHints::default(),
        })
    }

    /// A machine with the VMM segment that its configuration asks for: over the largest memory
    /// slot, or as much of it as there is contiguous host memory for.
    ///
    /// # Errors
    /// As [`SegmentedVm::new`]; bad frames that cannot be; host memory is exhausted.
    pub fn machine(
        mut request: Build,
        options: &OptionTable<SegmentConfig>,
        registers: (bool, bool),
    ) -> Result<Machine<Self>, MachineError> {
        let vm = Self::new(&mut request, options, registers)?;
        let mut machine = Machine::new(vm, request)?;
        let Machine { platform, scheme: vm, .. } = &mut machine;
        vm.switch_on(platform)?;
        // Nothing of this is counted: the machine has not run.
        platform.counters = Counters::default();
        platform.moved.clear();
        Ok(machine)
    }

    fn switch_on(&mut self, platform: &mut Platform) -> Result<(), MachineError> {
        let Some(host) = platform.world.host.as_mut().filter(|_| self.vmm.is_some()) else {
            return Ok(());
        };
        host.poison(&self.config.bad_at)?;
        let largest = host.slots().iter().copied().max_by_key(|s| s.bytes);
        let Some(Slot { gpa, bytes, .. }) = largest else { return Ok(()) };
        if self.config.at_start {
            let bad = self.config.bad;
            self.create(platform, gpa, bytes & !0xfff, bad)?;
        } else if self.config.compact > 0
            && host.begin_compaction(gpa, bytes & !0xfff, self.config.escapes)?
        {
            self.due = self.every;
        }
        Ok(())
    }

    /// Makes host memory contiguous behind a range of guest memory, as far as free frames allow,
    /// and loads the VMM segment, in place of the one there is. Pages in use are moved, and
    /// counted. Returns whether there is a segment now.
    ///
    /// # Errors
    /// A range that is not whole pages of one memory slot; host memory is exhausted.
    pub fn create_vmm_segment(
        &mut self,
        platform: &mut Platform,
        start: Gpa,
        bytes: u64,
    ) -> Result<bool, MachineError> {
        self.create(platform, start, bytes, 0)
    }

    fn create(
        &mut self,
        platform: &mut Platform,
        start: Gpa,
        bytes: u64,
        bad: u64,
    ) -> Result<bool, MachineError> {
        let Some(host) = &mut platform.world.host else { return Ok(false) };
        let request = SegmentRequest {
            start,
            bytes,
            least_bytes: LEAST_BYTES,
            escapes: self.config.escapes + self.config.bad_at.len(),
            bad,
            seed: self.config.bad_seed,
        };
        let made = host.create_segment(&request);
        // Whatever came of it, the registers follow what the host has.
        let range = host.segment().map_or((start, bytes), |s| (s.gpa, s.bytes));
        self.changed(platform, range, made.clone().ok().flatten().unwrap_or_default())?;
        Ok(made?.is_some())
    }

    /// The VMM begins to make host memory contiguous behind a range. Returns whether it can.
    ///
    /// # Errors
    /// A range that is not whole pages of one memory slot.
    pub fn begin_compaction(
        &mut self,
        platform: &mut Platform,
        start: Gpa,
        bytes: u64,
    ) -> Result<bool, MachineError> {
        let Some(host) = &mut platform.world.host else { return Ok(false) };
        let begun = host.begin_compaction(start, bytes, self.config.escapes);
        self.reload(platform)?;
        Ok(begun?)
    }

    /// The VMM moves so many pages. When the last is in place the segment is loaded, and the
    /// machine
    /// runs in another mode. Each vCPU is called out of the guest when pages behind it have moved.
    ///
    /// # Errors
    /// Host memory is exhausted.
    pub fn compact(&mut self, platform: &mut Platform, pages: u64) -> Result<(), MachineError> {
        let Some(host) = &mut platform.world.host else { return Ok(()) };
        let Some(step) = host.compact(pages)? else {
            self.due = u64::MAX;
            return self.reload(platform);
        };
        let counters = &mut platform.counters;
        counters.pages_moved += step.others + step.guest.moved_pages;
        counters.host_pages_cleared += step.guest.cleared_pages;
        if step.guest.moved_pages > 0 {
            let (start, bytes) = step.range;
            self.nested.unmap_range(platform, start, bytes);
            platform.hardware.invalidate_nested_everywhere();
            platform.moved.push((start, bytes));
            let vcpus = platform.hardware.cores.len() as u64;
            platform.counters.exits[ExitReason::HostMigration as usize] += vcpus;
        }
        if step.done {
            platform.counters.mode_switches += 1;
            self.due = u64::MAX;
            self.reload(platform)?;
        }
        Ok(())
    }

    /// The VMM segment grows at its end, to `bytes` or as far as the frames behind it are free and
    /// its memory slot reaches.
    ///
    /// # Errors
    /// Host memory is exhausted.
    pub fn grow_vmm_segment(
        &mut self,
        platform: &mut Platform,
        bytes: u64,
    ) -> Result<(), MachineError> {
        let Some(host) = &mut platform.world.host else { return Ok(()) };
        let Some(before) = host.segment() else { return Ok(()) };
        let grown = host.grow_segment(bytes);
        let after = host.segment().map_or(before.bytes, |s| s.bytes);
        let range = (before.gpa.offset_by(before.bytes), after - before.bytes);
        self.changed(platform, range, grown.clone().unwrap_or_default())?;
        grown?;
        Ok(())
    }

    /// The VMM segment shrinks at its end, to `bytes`; 0 takes it away. Pages behind it are paged:
    /// the nested tables map them when they are used.
    ///
    /// # Errors
    /// Host memory is exhausted.
    pub fn shrink_vmm_segment(
        &mut self,
        platform: &mut Platform,
        bytes: u64,
    ) -> Result<(), MachineError> {
        if let Some(host) = &mut platform.world.host {
            host.shrink_segment(bytes);
        }
        self.reload(platform)
    }

    /// The host has put contiguous memory behind a range: nested entries and TLBs forget what was
    /// moved.
    fn changed(
        &mut self,
        platform: &mut Platform,
        (start, bytes): (Gpa, u64),
        change: SegmentChange,
    ) -> Result<(), MachineError> {
        platform.counters.pages_moved += change.moved_pages;
        platform.counters.host_pages_cleared += change.cleared_pages;
        if change.moved_pages > 0 {
            self.nested.unmap_range(platform, start, bytes);
            platform.hardware.invalidate_nested_everywhere();
            platform.moved.push((start, bytes));
        }
        self.reload(platform)
    }

    /// Loads registers and filter with what the host's record says, and has the nested tables map
    /// every page that the filter reports, false positives included: the walker finds them there.
    fn reload(&mut self, platform: &mut Platform) -> Result<(), MachineError> {
        let (Some(unit), Some(host)) = (&mut self.vmm, &platform.world.host) else {
            return Ok(());
        };
        platform.counters.vmm_segment_loads += 1;
        let Some(segment) = host.segment() else {
            unit.turn_off();
            return Ok(());
        };
        let registers = (segment.gpa, segment.bytes, segment.target);
        unit.load(registers, &segment.escaped)
            .map_err(|source| MachineError::Segment { machine: String::new(), source })?;
        for gfn in unit.filter().reported(unit.registers().pages()) {
            let gpa = Gpa::new(gfn << 12);
            let there = platform.world.host.as_ref().is_some_and(|h| h.look_up(gpa).is_some());
            if there && !self.nested.maps(gpa) {
                self.nested.map(platform, gpa)?;
            }
        }
        Ok(())
    }

    /// The VMM's registers and filter, if the hardware has them.
    pub const fn vmm(&self) -> Option<&SegmentUnit<Gpa, Hpa>> {
        self.vmm.as_ref()
    }
    /// The same, for tests of hardware that goes wrong.
    pub const fn vmm_mut(&mut self) -> Option<&mut SegmentUnit<Gpa, Hpa>> {
        self.vmm.as_mut()
    }
    /// The guest's registers, if the hardware has them.
    pub const fn guest_mut(&mut self) -> Option<&mut GuestSegments> {
        self.guest.as_mut()
    }

    /// Whether both segments, or what there is of them, lead from a data access to host memory.
    #[inline]
    fn both(&self, counters: &mut Counters, core: usize, gva: Gva) -> Option<Translation> {
        let guest = self.guest.as_ref()?;
        let Found::Inside(gpa) = guest.look(counters, core, gva) else { return None };
        let found = self.vmm.as_ref()?.look(gpa);
        count_escape(counters, &found);
        let Found::Inside(hpa) = found else { return None };
        Some(covered(hpa))
    }

    /// The VMM segment serves this page by itself.
    fn has_page(&self, gpa: Gpa) -> bool {
        self.vmm.as_ref().is_some_and(|v| matches!(v.look(gpa), Found::Inside(_)))
    }
}

impl SegmentedVm {
    fn page_written(
        &mut self,
        platform: &mut Platform,
        vcpu: VcpuId,
        at: Gpa,
        size: PageSize,
    ) -> Result<(), MachineError> {
        let mut done = 0;
        while done < size.bytes() {
            let gpa = at.offset_by(done);
            if !self.has_page(gpa) {
                self.nested.back(platform, vcpu, gpa, PageSize::SIZE_4K)?;
            }
            done += 4096;
        }
        Ok(())
    }

    fn backed(
        &mut self,
        platform: &mut Platform,
        start: Gpa,
        bytes: u64,
    ) -> Result<(), MachineError> {
        let end = start.value().saturating_add(bytes);
        let mut at = start;
        while at.value() < end {
            let size = if self.has_page(at) {
                PageSize::SIZE_4K
            } else {
                self.nested.map(platform, at)?
            };
            at = at.align_down(size).offset_by(size.bytes());
        }
        Ok(())
    }
}

impl Scheme for SegmentedVm {
    #[inline]
    fn beside_l1(&mut self, platform: &mut Platform, run: &Run) -> Option<Translation> {
        let guest = self.guest.as_ref()?;
        if guest.check() == Check::L2 || run.flags.is_fetch() {
            return None;
        }
        let counters = &mut platform.counters;
        let found = self.both(counters, usize::from(run.vcpu.0), run.gva);
        counters.guest_segment_checks += u64::from(run.count) - 1;
        counters.segment_accesses += found.map_or(0, |_| u64::from(run.count));
        found
    }

    #[inline]
    fn beside_l2(&mut self, platform: &mut Platform, request: &Request) -> Option<Translation> {
        let guest = self.guest.as_ref()?;
        if guest.check() == Check::L1 || request.fetch {
            return None;
        }
        let found = self.both(&mut platform.counters, request.core(), request.gva);
        platform.counters.segment_hits += u64::from(found.is_some());
        found
    }

    #[inline]
    fn walk(&mut self, platform: &mut Platform, request: &Request) -> Result<Translation, Fault> {
        let Platform { world, hardware, counters, .. } = platform;
        let (core, gva) = (request.core(), request.gva);
        if let Some(guest) = self.guest.as_ref().filter(|_| !request.fetch)
            && let Found::Inside(gpa) = guest.unit(core).look(gva)
        {
            if let Some(vmm) = &self.vmm
                && let Found::Inside(hpa) = vmm.look(gpa)
            {
                return Ok(covered(hpa));
            }
            let mut nested = self.nested.tables();
            let access = (core, gva, gpa, Purpose::page(request.write, request.fetch));
            let guest = (guest.unit(core), self.walker);
            return walk_flat_guest(hardware, counters, &mut nested, access, guest);
        }
        let root = world.root(request.vcpu);
        let (mode, memory, dimension) = (world.mode, &mut world.guest, Dimension::Guest);
        let mut guest = Tables { mode, memory, root, dimension };
        let mut nested = self.nested.tables();
        match &self.vmm {
            Some(vmm) => {
                let mut host = Flattened { nested, vmm, walker: self.walker };
                walk_2d(hardware, counters, &mut guest, &mut host, request)
            }
            None => walk_2d(hardware, counters, &mut guest, &mut nested, request),
        }
    }

    fn read_ahead(&mut self, platform: &Platform, runs: &[Run], gpas: &[Gpa]) {
        let (Some(first), world) = (runs.first(), &platform.world) else { return };
        let caches = &platform.hardware.caches;
        let Some(vmm) = &self.vmm else {
            // Guest Direct: the nested walk is about the pages themselves.
            let nested = self.nested.tables();
            let (memory, mode, root) = (nested.memory, nested.mode, nested.root);
            let host = self.nested_hints.read(memory, mode, root, gpas.iter().copied());
            let pages = host.entries.iter().zip(gpas).map(|(leaf, gpa)| {
                leaf.target::<Hpa>().offset_by(gpa.offset_in(PageSize::SIZE_4K))
            });
            return read_sets(caches, pages.chain(host.at.into_iter().take(runs.len())));
        };
        let flat = self
            .guest
            .as_ref()
            .is_some_and(|g| g.unit(usize::from(first.vcpu.0)).registers().covers(first.gva));
        if flat {
            return read_sets(caches, in_segment(vmm, gpas));
        }
        let (mode, root) = (world.mode, world.root(first.vcpu));
        let leaves = self.guest_hints.read(&world.guest, mode, root, runs.iter().map(|r| r.gva));
        let entries = in_segment(vmm, &leaves.at[..runs.len()]);
        read_sets(caches, in_segment(vmm, gpas).chain(entries));
    }

    fn answer(
        &mut self,
        platform: &mut Platform,
        request: &Request,
        fault: Fault,
    ) -> Result<Answer, MachineError> {
        match fault {
            Fault::Linear { .. } => Ok(Answer::GuestFault),
            Fault::Nested { gpa, fetch } => {
                self.nested.violation(platform, request.vcpu, Some(request), (gpa, fetch))?;
                // The entry that ends the exit restores the registers.
                platform.counters.vmm_segment_loads +=
                    u64::from(self.vmm.as_ref().is_some_and(SegmentUnit::is_on));
                Ok(Answer::Retry)
            }
        }
    }

    fn on(&mut self, platform: &mut Platform, event: Event<'_>) -> Result<(), MachineError> {
        match event {
            Event::LoadSegment { vcpu, segment } => match &mut self.guest {
                Some(guest) => guest.load(&mut platform.counters, vcpu, segment),
                None => Ok(()),
            },
            Event::PageWritten { vcpu, at, size } => self.page_written(platform, vcpu, at, size),
            Event::Prefault { start, bytes } => self.backed(platform, start, bytes),
            Event::HostChanged { at, size, .. } => {
                self.nested.host_changed(platform, at, size);
                self.reload(platform)?;
                platform.hardware.invalidate_nested_everywhere();
                Ok(())
            }
            // The segment goes: pages all over it are about to be taken back.
            Event::Ballooning => {
                self.had_segment = self.vmm.as_ref().is_some_and(SegmentUnit::is_on);
                self.shrink_vmm_segment(platform, 0)
            }
            // It comes back behind the new memory, where the guest's segments will be.
            Event::MemoryAdded { start, bytes } => {
                if std::mem::take(&mut self.had_segment) {
                    self.create_vmm_segment(platform, start, bytes)?;
                }
                Ok(())
            }
            other => platform.bare_metal(other),
        }
    }

    #[inline]
    fn due(&self) -> u64 {
        self.due
    }

    /// An interval of compaction is over. Intervals that a long run has passed are made up for.
    fn tick(&mut self, platform: &mut Platform) -> Result<(), MachineError> {
        let passed = (platform.clock - self.due) / self.every + 1;
        self.due += passed * self.every;
        let pages = self.config.compact.saturating_mul(passed) / LOOKS as u64;
        self.compact(platform, pages.max(1))
    }

    fn segments(&self, platform: &Platform) -> Option<SegmentState> {
        let slots = platform.world.host.as_ref().map_or(&[][..], |h| h.slots());
        let ram: u64 = slots.iter().map(|s| s.bytes).sum();
        let vmm = self.vmm.as_ref().map_or_else(SegmentInfo::default, SegmentInfo::of);
        Some(SegmentState {
            guest: self.guest.as_ref().map_or_else(SegmentInfo::default, GuestSegments::info),
            vmm,
            vmm_percent: 100.0 * vmm.bytes as f64 / ram.max(1) as f64,
        })
    }

    fn page_table_bytes(&self, platform: &Platform) -> PageTableBytes {
        let own = self.nested.bytes();
        PageTableBytes {
            guest: platform.world.guest.len() * 4096,
            nested: own,
            shadow: 0,
            host: platform
                .world
                .host
                .as_ref()
                .map_or(0, |h| h.counters().table_frames * 4096 - own),
        }
    }
}
