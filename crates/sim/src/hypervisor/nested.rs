//! Nested paging: two-dimensional walks, and violations that fill the nested tables.

use crate::hardware::Request;
use crate::hardware::prefetch::{LeafHints, read_sets};
use crate::hardware::walk::{Fault, WalkWatch, Watched, walk_2d};
use crate::hypervisor::nested_mmu::NestedMmu;
use crate::scheme::vmm_options::VmmKind;
use crate::scheme::{
    Event, Handled, MachineConfig, MachineError, PageTableBytes, Platform, Processor, Report,
    Scheme, Software,
};
use nestwalk_hw::Translation;
use nestwalk_policy::Mode as PagingMode;
use nestwalk_types::{Address, Gpa, Hpa, PageSize, Run};

/// The nested tables of the VM.
pub struct Nested {
    /// The hypervisor's half.
    pub mmu: NestedMmu,
    guest_hints: LeafHints<Gpa>,
    nested_hints: LeafHints<Hpa>,
}

impl Nested {
    /// With an empty root table, whose frame comes from the machine's host.
    ///
    /// # Errors
    /// There is no host, or no frame.
    pub fn new(request: &mut MachineConfig) -> Result<Self, MachineError> {
        let rules = request.rules(VmmKind::Nested)?;
        Ok(Self::with(NestedMmu::new(request.nested_mode, &mut request.host, rules)?))
    }

    /// With these tables.
    pub fn with(mmu: NestedMmu) -> Self {
        Self { mmu, guest_hints: LeafHints::default(), nested_hints: LeafHints::default() }
    }
}

impl Nested {
    fn backed(
        &mut self,
        platform: &mut Platform,
        start: Gpa,
        bytes: u64,
    ) -> Result<(), MachineError> {
        let end = start.value().saturating_add(bytes);
        let mut at = start;
        while at.value() < end {
            let size = self.mmu.map(platform, at)?;
            at = at.align_down(size).offset_by(size.bytes());
        }
        Ok(())
    }
}

impl Scheme for Nested {
    #[inline(always)]
    fn looks_up_first(&self) -> bool {
        true
    }

    #[inline]
    fn walk<W: WalkWatch>(
        &mut self,
        cpu: &mut Processor,
        request: &Request,
        watch: &mut W,
    ) -> Result<Translation, Fault> {
        let Processor { world, hardware, counters } = cpu;
        let (leaves, watch) = watch.parts();
        let mut host = Watched { tables: self.mmu.tables(), watch };
        walk_2d(hardware, counters, &mut world.tables(request.vcpu), &mut host, request, leaves)
    }

    fn prefetch(&mut self, cpu: &Processor, runs: &[Run], gpas: &[Gpa]) {
        let world = &cpu.world;
        let Some(first) = runs.first() else { return };
        let (mode, root) = (world.mode, world.root(first.vcpu));
        let count = runs.len();
        let guest = self.guest_hints.read(&world.guest, mode, root, runs.iter().map(|r| r.gva));
        // Where the guest's leaf entries are, and where the pages are.
        for gpas in [&guest.at[..count], gpas] {
            let nested = self.mmu.tables();
            let (memory, mode, root) = (nested.memory, nested.mode, nested.root);
            let host = self.nested_hints.read(memory, mode, root, gpas.iter().copied());
            let targets = host.entries.iter().zip(gpas).map(|(leaf, gpa)| {
                leaf.target::<Hpa>().offset_by(gpa.offset_in(PageSize::SIZE_4K))
            });
            read_sets(cpu.hardware.caches(), targets.chain(host.at.into_iter().take(count)));
        }
    }
}

impl Software for Nested {
    fn handle_fault(
        &mut self,
        platform: &mut Platform,
        request: &Request,
        fault: Fault,
    ) -> Result<Handled, MachineError> {
        match fault {
            Fault::Linear { .. } => Ok(Handled::GuestFault),
            Fault::Nested { gpa, fetch } => {
                self.mmu.violation(platform, request.vcpu, Some(request), (gpa, fetch))?;
                Ok(Handled::Retry)
            }
        }
    }

    fn on(&mut self, platform: &mut Platform, event: Event<'_>) -> Result<(), MachineError> {
        match event {
            Event::PageWritten { vcpu, at, size } => self.mmu.back(platform, vcpu, at, size),
            Event::Prefault { start, bytes } => self.backed(platform, start, bytes),
            Event::MemoryAdded { start, bytes } => self.mmu.hot_added(start, bytes),
            Event::HostChanged { at, size, .. } => {
                self.mmu.host_changed(platform, at, size);
                platform.cpu.hardware.invalidate_nested_everywhere();
                Ok(())
            }
            other => platform.bare_metal(other),
        }
    }

    fn take_accessed(
        &mut self,
        platform: &mut Platform,
        at: Gpa,
        size: PageSize,
    ) -> Result<bool, MachineError> {
        let Some(accessed) = self.mmu.take_accessed(at, size) else {
            self.on(platform, Event::HostChanged { at, size, promoted: false })?;
            return Ok(false);
        };
        if accessed {
            platform.flush_remote_nested();
        }
        Ok(accessed)
    }

    fn paging_mode(&self) -> Option<PagingMode> {
        Some(PagingMode::Nested)
    }

    fn report(&self, platform: &Platform, out: &mut Report) {
        out.page_tables = PageTableBytes::of_vm(platform, self.mmu.bytes(), 0);
        if platform.placing.is_some() {
            out.nested_tables = self.mmu.frames().collect();
        }
    }
}
