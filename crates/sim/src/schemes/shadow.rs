//! `shadow`: the hypervisor keeps tables from guest-virtual to host-physical addresses, and hardware
//! walks those, 4 references at most. Every change of the guest's tables costs exits.

use super::{Definition, Facts};
use crate::hardware::Request;
use crate::hardware::prefetch::{LeafHints, read_sets};
use crate::hardware::walk::{Fault, Tables, WalkWatch, walk_1d};
use crate::hardware::world::World;
use crate::hypervisor::shadow::{Rules, ShadowMmu};
use crate::machine::{DynMachine, Machine};
use crate::measure::counters::Dimension;
use crate::scheme::MachineConfig;
use crate::scheme::options::NO_OPTIONS;
use crate::scheme::vmm_options::{VmmKind, VmmRules};
use crate::scheme::{
    Event, Handled, MachineError, PageTableBytes, Platform, Processor, Report, Scheme, Software,
};
use nestwalk_hw::Translation;
use nestwalk_policy::Mode as PagingMode;
use nestwalk_tables::Mode;
use nestwalk_types::{Address, Gpa, Hpa, PageSize, Run};

/// The catalogue's entry.
pub const DEFINITION: Definition = Definition {
    name: "shadow",
    summary: "shadow tables kept by the hypervisor with KVM's rules; one-dimensional walks",
    virtualized: true,
    facts: Facts { flushes_by_itself: true, sampled: true, ..Facts::NONE },
    vmm: VmmKind::Shadow,
    options: &NO_OPTIONS,
    build,
};

fn build(request: MachineConfig) -> Result<Box<dyn DynMachine>, MachineError> {
    Ok(Box::new(Machine::new(Shadow::new(&request)?, request)?))
}

/// The shadow tables of the VM.
pub struct Shadow {
    /// The hypervisor's half.
    pub mmu: ShadowMmu,
    hints: LeafHints<Hpa>,
}

impl Shadow {
    /// Without shadow tables yet.
    ///
    /// # Errors
    /// The processor has not what is asked for.
    pub fn new(request: &MachineConfig) -> Result<Self, MachineError> {
        let VmmRules { nx_huge_pages, kvm, .. } = request.rules(VmmKind::Shadow)?;
        Ok(Self::with_rules(request, Rules { nx_huge_pages, kvm, ..Rules::default() }))
    }

    /// The same with rules that are no KVM's.
    pub fn with_rules(request: &MachineConfig, rules: Rules) -> Self {
        let guest_pages = request.guest_bytes >> 12;
        let mmu = ShadowMmu::new(request.guest_mode, request.vcpus, guest_pages);
        Self { mmu: mmu.with_rules(rules), hints: LeafHints::default() }
    }
}

impl Scheme for Shadow {
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
        let root = self.mmu.walk_root(request.core());
        let (mode, memory) = self.mmu.tables();
        let mut tables = Tables { mode, memory, root, dimension: Dimension::Shadow };
        walk_1d(&mut cpu.hardware, &mut cpu.counters, &mut tables, request, watch.parts().0)
    }

    fn prefetch(&mut self, cpu: &Processor, runs: &[Run], _gpas: &[Gpa]) {
        let Some(first) = runs.first() else { return };
        let root = self.mmu.walk_root(usize::from(first.vcpu.0));
        let (mode, memory) = self.mmu.tables();
        let leaves = self.hints.read(memory, mode, root, runs.iter().map(|r| r.gva));
        let pages = leaves.entries.iter().zip(runs).map(|(leaf, run)| {
            leaf.target::<Hpa>().offset_by(run.gva.offset_in(PageSize::SIZE_4K))
        });
        read_sets(cpu.hardware.caches(), pages.chain(leaves.at.into_iter().take(runs.len())));
    }
}

impl Software for Shadow {
    fn handle_fault(
        &mut self,
        platform: &mut Platform,
        request: &Request,
        _fault: Fault,
    ) -> Result<Handled, MachineError> {
        self.mmu.page_fault(platform, request)
    }

    fn on(&mut self, platform: &mut Platform, event: Event<'_>) -> Result<(), MachineError> {
        match event {
            Event::LoadCr3 { vcpu, pcid, keep } => self.mmu.load_cr3(platform, vcpu, pcid, keep),
            Event::Invalidate { vcpu, what } => {
                self.mmu.invalidate(platform, vcpu, what);
                Ok(())
            }
            Event::TableStore { at, new, .. } => {
                self.mmu.table_write(platform, at, new);
                Ok(())
            }
            Event::PageWritten { at, size, .. } => self.mmu.page_written(platform, at, size),
            Event::TableRetired { at, .. } => {
                self.mmu.table_reused(platform, at);
                Ok(())
            }
            Event::WarmStart { vcpu } => self.mmu.warm_start(platform, vcpu),
            Event::HostChanged { at, size, .. } => {
                self.mmu.host_changed(at, size);
                platform.cpu.hardware.invalidate_everywhere();
                Ok(())
            }
            Event::RetryEnded => {
                self.mmu.end_emulation();
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
        let accessed = self.mmu.take_accessed(at, size);
        if accessed {
            platform.flush_remote();
        }
        Ok(accessed)
    }

    fn walk_mode(&self, _world: &World) -> &'static Mode {
        self.mmu.mode()
    }

    fn paging_mode(&self) -> Option<PagingMode> {
        Some(PagingMode::Shadow)
    }

    fn report(&self, platform: &Platform, out: &mut Report) {
        out.page_tables = PageTableBytes::of_vm(platform, 0, self.mmu.bytes());
    }
}
