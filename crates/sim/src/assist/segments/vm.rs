//! A virtual machine with segments: the nested tables, the VMM segment, and the guest's.

use super::config::{Check, SegmentConfig};
use super::guest::GuestSegments;
use crate::assist::coalescing::{CoalescingTlbs, machine_of};
use crate::hardware::Request;
use crate::hardware::prefetch::{LeafHints, read_sets};
use crate::hardware::tlbs::TlbFamily;
use crate::hardware::walk::segments::{
    Flattened, Found, SegmentUnit, Walker, count_escape, covered, walk_flat_guest,
};
use crate::hardware::walk::{Fault, Purpose, WalkWatch, Watched, walk_2d};
use crate::hypervisor::nested_mmu::NestedMmu;
use crate::machine::{DynMachine, Machine};
use crate::measure::counters::Counters;
use crate::scheme::MachineConfig;
use crate::scheme::options::OptionTable;
use crate::scheme::vmm_options::VmmKind;
use crate::scheme::{
    Event, Handled, MachineError, PageTableBytes, Platform, Processor, Report, Scheme, SegmentInfo,
    SegmentState, Software,
};
use nestwalk_hw::Translation;
use nestwalk_types::{Address, Gpa, Gva, Hpa, PageSize, Run, VcpuId};

/// Smallest VMM segment that is worth its registers: 2 MiB, an assumption.
pub(super) const LEAST_BYTES: u64 = 2 << 20;

/// Intervals of compaction in a millisecond: fine enough for short runs, a choice.
const LOOKS: f64 = 64.0;

/// The scheme behind `vmm-direct`, `guest-direct` and `dual-direct`.
pub struct SegmentedVm {
    /// The nested tables: of everything outside of the VMM segment, and of what its filter reports.
    pub nested: NestedMmu,
    pub(super) config: SegmentConfig,
    pub(super) guest: Option<GuestSegments>,
    pub(super) vmm: Option<SegmentUnit<Gpa, Hpa>>,
    pub(super) walker: Walker,
    /// There was a segment before the guest gave pages away.
    had_segment: bool,
    /// Instructions of an interval, at the base CPI, and when the next interval of compaction ends.
    pub(super) every: u64,
    pub(super) due: u64,
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
        request: &mut MachineConfig,
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
        mut request: MachineConfig,
        options: &OptionTable<SegmentConfig>,
        registers: (bool, bool),
    ) -> Result<Machine<Self>, MachineError> {
        let vm = Self::new(&mut request, options, registers)?;
        Self::switched_on(Machine::new(vm, request)?)
    }

    /// The same, with the TLBs that its configuration asks for.
    ///
    /// # Errors
    /// As [`SegmentedVm::machine`]; TLBs that the processor's arrays cannot be.
    pub fn any_machine(
        mut request: MachineConfig,
        options: &OptionTable<SegmentConfig>,
        registers: (bool, bool),
    ) -> Result<Box<dyn DynMachine>, MachineError> {
        let tlb = request.options(options)?.tlb;
        match tlb.shape(&request.profile) {
            None => Ok(Box::new(Self::machine(request, options, registers)?)),
            Some(shape) => {
                let vm = Self::new(&mut request, options, registers)?;
                let machine = machine_of::<_, CoalescingTlbs>(vm, request, shape)?;
                Ok(Box::new(Self::switched_on(machine)?))
            }
        }
    }

    fn switched_on<T: TlbFamily>(
        mut machine: Machine<Self, T>,
    ) -> Result<Machine<Self, T>, MachineError> {
        let Machine { platform, scheme: vm, .. } = &mut machine;
        vm.switch_on(platform)?;
        // Nothing of this is counted: the machine has not run.
        platform.cpu.counters = Counters::default();
        platform.moved.clear();
        Ok(machine)
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
    fn looks_up_first(&self) -> bool {
        self.guest.as_ref().is_none_or(|guest| guest.check() == Check::L2)
    }

    #[inline]
    fn instead_of_l1(&mut self, cpu: &mut Processor, run: &Run) -> Option<Translation> {
        let guest = self.guest.as_ref()?;
        if guest.check() == Check::L2 || run.flags.is_fetch() {
            return None;
        }
        let counters = &mut cpu.counters;
        let found = self.both(counters, usize::from(run.vcpu.0), run.gva);
        counters.guest_segment_checks += u64::from(run.count).saturating_sub(1);
        counters.segment_accesses += found.map_or(0, |_| u64::from(run.count));
        found
    }

    #[inline]
    fn parallel_to_l2(&mut self, cpu: &mut Processor, request: &Request) -> Option<Translation> {
        let guest = self.guest.as_ref()?;
        if guest.check() == Check::L1 || request.fetch {
            return None;
        }
        let found = self.both(&mut cpu.counters, request.core(), request.gva);
        cpu.counters.segment_hits += u64::from(found.is_some());
        found
    }

    #[inline]
    fn walk<W: WalkWatch>(
        &mut self,
        cpu: &mut Processor,
        request: &Request,
        watch: &mut W,
    ) -> Result<Translation, Fault> {
        let Processor { world, hardware, counters } = cpu;
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
        let (leaves, watch) = watch.parts();
        let mut guest = world.tables(request.vcpu);
        let nested = self.nested.tables();
        match &self.vmm {
            Some(vmm) => {
                let mut host = Flattened { nested, vmm, walker: self.walker, watch };
                walk_2d(hardware, counters, &mut guest, &mut host, request, leaves)
            }
            None => {
                let mut host = Watched { tables: nested, watch };
                walk_2d(hardware, counters, &mut guest, &mut host, request, leaves)
            }
        }
    }

    fn prefetch(&mut self, cpu: &Processor, runs: &[Run], gpas: &[Gpa]) {
        let (Some(first), world) = (runs.first(), &cpu.world) else { return };
        let caches = cpu.hardware.caches();
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
}

impl Software for SegmentedVm {
    fn handle_fault(
        &mut self,
        platform: &mut Platform,
        request: &Request,
        fault: Fault,
    ) -> Result<Handled, MachineError> {
        match fault {
            Fault::Linear { .. } => Ok(Handled::GuestFault),
            Fault::Nested { gpa, fetch } => {
                self.nested.violation(platform, request.vcpu, Some(request), (gpa, fetch))?;
                // The entry that ends the exit restores the registers.
                platform.cpu.counters.vmm_segment_loads +=
                    u64::from(self.vmm.as_ref().is_some_and(SegmentUnit::is_on));
                Ok(Handled::Retry)
            }
        }
    }

    fn on(&mut self, platform: &mut Platform, event: Event<'_>) -> Result<(), MachineError> {
        match event {
            Event::LoadSegment { vcpu, segment } => match &mut self.guest {
                Some(guest) => guest.load(&mut platform.cpu.counters, vcpu, segment),
                None => Ok(()),
            },
            Event::PageWritten { vcpu, at, size } => self.page_written(platform, vcpu, at, size),
            Event::Prefault { start, bytes } => self.backed(platform, start, bytes),
            Event::HostChanged { at, size, .. } => {
                self.nested.host_changed(platform, at, size);
                self.reload(platform)?;
                platform.cpu.hardware.invalidate_nested_everywhere();
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
    fn next_timer(&self) -> u64 {
        self.due
    }

    /// An interval of compaction is over. Intervals that a long run has passed are made up for.
    fn timer(&mut self, platform: &mut Platform) -> Result<(), MachineError> {
        let passed = (platform.instructions - self.due) / self.every + 1;
        self.due += passed * self.every;
        let pages = self.config.compact.saturating_mul(passed) / LOOKS as u64;
        self.compact(platform, pages.max(1))
    }

    fn report(&self, platform: &Platform, out: &mut Report) {
        let slots = platform.host.as_ref().map_or(&[][..], |h| h.slots());
        let ram: u64 = slots.iter().map(|s| s.bytes).sum();
        let vmm = self.vmm.as_ref().map_or_else(SegmentInfo::default, SegmentInfo::of);
        out.page_tables = PageTableBytes::of_vm(platform, self.nested.bytes(), 0);
        out.segments = Some(SegmentState {
            guest: self.guest.as_ref().map_or_else(SegmentInfo::default, GuestSegments::info),
            vmm,
            vmm_percent: 100.0 * vmm.bytes as f64 / ram.max(1) as f64,
        });
    }
}
