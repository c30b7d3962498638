//! `agile`: guest tables that rest are shadowed, those that change are walked in two dimensions; a walk
//! goes from the one to the other at a switching entry (Gandhi, Hill, Swift, ISCA 2016).
//!
//! 4 references for pages whose guest tables are all shadowed, up to 24 for those with none.

use super::{Definition, Facts};
use crate::hardware::Request;
use crate::hardware::prefetch::{LeafHints, read_sets};
use crate::hardware::walk::agile::{AgileFault, AgileTables, Start, walk_agile};
use crate::hardware::walk::{Fault, Tables, WalkWatch};
use crate::hardware::world::World;
use crate::hypervisor::agile::{AgileConfig, AgileMmu, OPTIONS, VmShape};
use crate::machine::{DynMachine, Machine};
use crate::measure::counters::Dimension;
use crate::scheme::MachineConfig;
use crate::scheme::vmm_options::VmmKind;
use crate::scheme::{
    Event, Handled, MachineError, PageTableBytes, Platform, Processor, Report, Scheme, Software,
};
use nestwalk_hw::Translation;
use nestwalk_tables::Mode;
use nestwalk_types::{Address, Gpa, Hpa, PageSize, Run};

/// The catalogue's entry.
pub const DEFINITION: Definition = Definition {
    name: "agile",
    summary: "shadow walks that go nested where the guest's tables change (agile paging)",
    virtualized: true,
    facts: Facts { flushes_by_itself: true, ..Facts::NONE },
    vmm: VmmKind::Agile,
    options: &OPTIONS,
    build,
};

fn build(request: MachineConfig) -> Result<Box<dyn DynMachine>, MachineError> {
    let mut request = request;
    let config = request.options(&OPTIONS)?;
    Ok(Box::new(Machine::new(Agile::new(config, &mut request)?, request)?))
}

/// The tables of the VM.
pub struct Agile {
    /// The hypervisor's half.
    pub mmu: AgileMmu,
    /// The last walk's fault came from the guest's own tables.
    fault_in_guest: bool,
    hints: LeafHints<Hpa>,
}

impl Agile {
    /// Without shadow tables, and with an empty root of nested tables, whose frame comes from the
    /// machine's host.
    ///
    /// # Errors
    /// There is no host, or no frame.
    pub fn new(config: AgileConfig, request: &mut MachineConfig) -> Result<Self, MachineError> {
        let shape = VmShape {
            guest_mode: request.guest_mode,
            nested_mode: request.nested_mode,
            vcpus: request.vcpus,
            guest_pages: request.guest_bytes >> 12,
            rules: request.rules(VmmKind::Agile)?,
            instructions_per_s: request.profile.instructions_in_us(1e6) as u64,
        };
        let mmu = AgileMmu::new(config, &shape, &mut request.host)?;
        Ok(Self { mmu, fault_in_guest: false, hints: LeafHints::default() })
    }
}

impl Scheme for Agile {
    #[inline(always)]
    fn looks_up_first(&self) -> bool {
        true
    }

    #[inline]
    fn walk<W: WalkWatch>(
        &mut self,
        cpu: &mut Processor,
        request: &Request,
        _watch: &mut W,
    ) -> Result<Translation, Fault> {
        let core = request.core();
        let (start, root) = (self.mmu.start(core), self.mmu.shadow_root(core));
        let hardware_ad = self.mmu.config().hardware_ad;
        let (shadow, nested) = self.mmu.tables();
        let mode = shadow.mode();
        let (memory, homes) = shadow.tables_and_homes();
        let Processor { world, hardware, counters } = cpu;
        let mut tables = AgileTables {
            shadow: Tables { mode, memory, root, dimension: Dimension::Shadow },
            homes,
            guest: world.tables(request.vcpu),
            nested,
            start,
            hardware_ad,
        };
        let found = walk_agile(hardware, counters, &mut tables, request);
        found.map_err(|AgileFault { fault, nested }| {
            self.fault_in_guest = nested;
            fault
        })
    }

    fn prefetch(&mut self, cpu: &Processor, runs: &[Run], _gpas: &[Gpa]) {
        let Some(first) = runs.first() else { return };
        let core = usize::from(first.vcpu.0);
        if self.mmu.start(core) != Start::Shadow {
            return;
        }
        let root = self.mmu.shadow_root(core);
        let (mode, memory) = self.mmu.shadow.tables();
        let leaves = self.hints.read(memory, mode, root, runs.iter().map(|r| r.gva));
        let pages = leaves.entries.iter().zip(runs).map(|(leaf, run)| {
            leaf.target::<Hpa>().offset_by(run.gva.offset_in(PageSize::SIZE_4K))
        });
        read_sets(cpu.hardware.caches(), pages.chain(leaves.at.into_iter().take(runs.len())));
    }
}

impl Software for Agile {
    fn handle_fault(
        &mut self,
        platform: &mut Platform,
        request: &Request,
        fault: Fault,
    ) -> Result<Handled, MachineError> {
        let met = AgileFault { fault, nested: self.fault_in_guest };
        self.mmu.handle_fault(platform, request, met)
    }

    #[inline]
    fn next_timer(&self) -> u64 {
        self.mmu.next_timer()
    }

    fn timer(&mut self, platform: &mut Platform) -> Result<(), MachineError> {
        self.mmu.timer(platform)
    }

    fn on(&mut self, platform: &mut Platform, event: Event<'_>) -> Result<(), MachineError> {
        match event {
            Event::RegionOfInterest => {
                self.mmu.region_begins();
                Ok(())
            }
            Event::HostChanged { at, size, .. } => self.mmu.host_changed(platform, at, size),
            Event::LoadCr3 { vcpu, pcid, keep } => self.mmu.load_cr3(platform, vcpu, pcid, keep),
            Event::Invalidate { vcpu, what } => {
                self.mmu.invalidate(platform, vcpu, what);
                Ok(())
            }
            Event::TableStore { at, new, .. } => self.mmu.table_write(platform, at, new),
            Event::TableAdded { at, .. } => {
                self.mmu.table_new(at);
                Ok(())
            }
            Event::PageWritten { vcpu, at, size } => {
                self.mmu.page_written(platform, vcpu, at, size)
            }
            Event::TableRetired { at, .. } => self.mmu.table_reused(platform, at),
            Event::Prefault { start, bytes } => self.mmu.map_range(platform, start, bytes),
            Event::WarmStart { vcpu } => {
                if self.mmu.start(usize::from(vcpu.0)) == Start::Shadow {
                    self.mmu.shadow.warm_start(platform, vcpu)?;
                }
                Ok(())
            }
            Event::RetryEnded => {
                self.mmu.shadow.end_emulation();
                Ok(())
            }
            other => platform.bare_metal(other),
        }
    }

    fn walk_mode(&self, _world: &World) -> &'static Mode {
        self.mmu.shadow.mode()
    }

    fn report(&self, platform: &Platform, out: &mut Report) {
        let (nested, shadow) = (self.mmu.nested.bytes(), self.mmu.shadow.bytes());
        out.page_tables = PageTableBytes::of_vm(platform, nested, shadow);
    }
}
