//! Nested paging: two-dimensional walks, and violations that fill the nested tables.

use crate::hardware::Request;
use crate::hardware::prefetch::{LeafHints, read_sets};
use crate::hardware::walk::{Fault, WalkWatch, Watched, walk_2d};
use crate::hypervisor::guest_copies::GuestCopies;
use crate::hypervisor::guest_tables;
use crate::hypervisor::nested_mmu::NestedMmu;
use crate::scheme::node_options::{SCAN, Which};
use crate::scheme::vmm_options::VmmKind;
use crate::scheme::{
    Event, Handled, MachineConfig, MachineError, PageTableBytes, Platform, Processor, Report,
    Scheme, Software,
};
use nestwalk_hw::Translation;
use nestwalk_policy::Mode as PagingMode;
use nestwalk_types::{Address, Gpa, Hpa, PageSize, Run};

/// Why some tables have no copies.
const SMALL: &str = "copies: pages for copies of the guest's tables lie at 1 TiB, which 32-bit guests and nested \
                     tables of 40 bits do not reach; leave it out";

/// The nested tables of the VM.
pub struct Nested {
    /// The hypervisor's half.
    pub mmu: NestedMmu,
    guest_hints: LeafHints<Gpa>,
    nested_hints: LeafHints<Hpa>,
    /// Copies of the guest's tables, if its kernel keeps any.
    copies: Option<Box<GuestCopies>>,
    migrating: Which,
    /// When tables are looked at next, to move them, and how long after that again.
    scan: (u64, u64),
}

impl Nested {
    /// With an empty root table, whose frame comes from the machine's host.
    ///
    /// # Errors
    /// There is no host, or no frame.
    pub fn new(request: &mut MachineConfig) -> Result<Self, MachineError> {
        let rules = request.rules(VmmKind::Nested)?;
        let mut nested = Self::with(NestedMmu::new(request.nested_mode, &mut request.host, rules)?);
        let options = request.vmm.nodes;
        let nodes = options.nodes.unwrap_or(1);
        if options.copies.ept() {
            nested.mmu.replicate(nodes, &mut request.host)?;
        }
        if options.copies.gpt() {
            if request.guest_mode.address_bits() == 32 || request.nested_mode.address_bits() < 41 {
                let (machine, reason) = (request.name.clone(), SMALL.into());
                return Err(MachineError::Variant { machine, reason });
            }
            nested.copies = Some(Box::new(GuestCopies::new(nodes)));
        }
        if options.migrate != Which::None {
            let every = options.scan.unwrap_or(SCAN);
            (nested.migrating, nested.scan) = (options.migrate, (every, every));
        }
        Ok(nested)
    }

    /// With these tables.
    pub fn with(mmu: NestedMmu) -> Self {
        Self {
            mmu,
            guest_hints: LeafHints::default(),
            nested_hints: LeafHints::default(),
            copies: None,
            migrating: Which::None,
            scan: (u64::MAX, 0),
        }
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
        let node = || hardware.caches().nodes().map_or(0, |n| n.of_core(request.core()));
        let mut host = Watched { tables: self.mmu.tables_on(node), watch };
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
        if let Some(copies) = &mut self.copies {
            copies.on(platform, &mut self.mmu, &event)?;
        }
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

    #[inline]
    fn next_timer(&self) -> u64 {
        self.scan.0
    }

    /// Linux looks more rarely where it has found nothing to move (`update_task_scan_period`).
    fn timer(&mut self, platform: &mut Platform) -> Result<(), MachineError> {
        let mut moved = 0;
        if self.migrating.ept() {
            moved += self.mmu.migrate_tables(platform);
        }
        if self.migrating.gpt() {
            moved += guest_tables::migrate(platform);
        }
        let every = if moved > 0 { self.scan.1 } else { self.scan.1.saturating_mul(2) };
        self.scan = (platform.instructions.saturating_add(every), every);
        Ok(())
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
