//! `xen-pv`: direct paging. Hardware walks the guest's own tables, which hold machine addresses; 4
//! references at most. The kernel knows that it runs on a hypervisor, and asks it for every change.
//!
//! References count as the guest's dimension: the tables are the guest's own pages, in its own
//! memory, and there are no others.

use super::{Definition, Facts};
use crate::hardware::Request;
use crate::hardware::prefetch::{LeafHints, read_sets};
use crate::hardware::walk::{Fault, Tables, WalkWatch, walk_1d_marking};
use crate::hypervisor::direct::{DirectMmu, config};
use crate::machine::{DynMachine, Machine};
use crate::measure::counters::Dimension;
use crate::scheme::MachineConfig;
use crate::scheme::vmm_options::VmmKind;
use crate::scheme::{
    Event, Handled, MachineError, PageTableBytes, Platform, Processor, Report, Scheme, Software,
};
use nestwalk_hw::Translation;
use nestwalk_types::{Address, Gpa, Gva, Hpa, PageSize, Run};

/// The catalogue's entry.
pub const DEFINITION: Definition = Definition {
    name: "xen-pv",
    summary: "paravirtual direct paging: the guest's tables hold machine addresses (Xen)",
    virtualized: true,
    facts: Facts { flushes_by_itself: true, pins_memory: true, ..Facts::NONE },
    vmm: VmmKind::Other,
    options: &config::OPTIONS,
    build,
};

fn build(request: MachineConfig) -> Result<Box<dyn DynMachine>, MachineError> {
    Ok(Box::new(Machine::new(XenPv::new(&request)?, request)?))
}

/// The tables of the domain.
pub struct XenPv {
    /// The hypervisor's half.
    pub mmu: DirectMmu,
    hints: LeafHints<Hpa>,
}

impl XenPv {
    /// Without tables yet.
    ///
    /// # Errors
    /// What is set cannot be.
    pub fn new(request: &MachineConfig) -> Result<Self, MachineError> {
        let batch = request.options(&config::OPTIONS)?.batch;
        let mmu = DirectMmu::new(request.guest_mode, request.vcpus, batch);
        Ok(Self { mmu, hints: LeafHints::default() })
    }
}

/// Where kernels have themselves and their view of all memory.
fn is_kernel_half(gva: Gva) -> bool {
    gva.value() >> 63 == 1
}

impl Scheme for XenPv {
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
        let mode = world.mode;
        let (memory, root, to_guest) = self.mmu.tables(request.core());
        let Some(root) = root else {
            return Err(Fault::Linear { level: mode.levels, protection: false });
        };
        let mut tables = Tables { mode, memory, root, dimension: Dimension::Guest };
        let guest = &mut world.guest;
        // The entries are the guest's own: it reads the bits that hardware sets.
        let marked = |at: Hpa, bits: u64| {
            if let Some(entry) = to_guest.entry(at) {
                guest.set_bits(entry, bits);
            }
        };
        walk_1d_marking(hardware, counters, &mut tables, request, marked, watch.parts().0)
    }

    fn prefetch(&mut self, cpu: &Processor, runs: &[Run], _gpas: &[Gpa]) {
        let Some(first) = runs.first() else { return };
        let mode = cpu.world.mode;
        let (memory, root, _) = self.mmu.tables(usize::from(first.vcpu.0));
        let Some(root) = root else { return };
        let leaves = self.hints.read(memory, mode, root, runs.iter().map(|r| r.gva));
        let pages = leaves.entries.iter().zip(runs).map(|(leaf, run)| {
            leaf.target::<Hpa>().offset_by(run.gva.offset_in(PageSize::SIZE_4K))
        });
        read_sets(cpu.hardware.caches(), pages.chain(leaves.at.into_iter().take(runs.len())));
    }
}

impl Software for XenPv {
    fn emulates_interrupts(&self) -> bool {
        false
    }

    fn handle_fault(
        &mut self,
        platform: &mut Platform,
        request: &Request,
        _fault: Fault,
    ) -> Result<Handled, MachineError> {
        // The kernel has left lazy mode, or it would not use what it has queued.
        if self.mmu.queued() > 0 {
            self.mmu.send_all(platform)?;
            return Ok(Handled::RetryUncounted);
        }
        // A fault removes what the hardware remembers of the address. It may be a partial walk to small
        // tables of a large page whose entry was stored to since: that owes no invalidation where the
        // entry permits more than before, but the small tables went with it. Then the tables allow the
        // access, and the fault is spurious (Xen, `spurious_page_fault`).
        let mode = platform.cpu.world.mode;
        platform.cpu.hardware.cores[request.core()].drop_translation(mode, request.gva);
        // Or the guest has a large page there: its small tables were there all the time.
        if self.mmu.allows(request) || self.mmu.fill(platform, request)? {
            return Ok(Handled::RetryUncounted);
        }
        match self.mmu.store_to_table(platform, request) {
            Some(translation) => Ok(Handled::Emulated(translation)),
            None => self.mmu.fault(platform, request),
        }
    }

    fn on(&mut self, platform: &mut Platform, event: Event<'_>) -> Result<(), MachineError> {
        match event {
            Event::LoadCr3 { vcpu, pcid, keep } => self.mmu.load_cr3(platform, vcpu, pcid, keep),
            Event::Invalidate { vcpu, what } => {
                self.mmu.invalidate(platform, vcpu, what);
                Ok(())
            }
            Event::TableStore { vcpu, at, new, .. } => {
                self.mmu.table_write(platform, vcpu, at, new)
            }
            Event::TableAdded { at, .. } => self.mmu.table_new(platform, at),
            Event::PageWritten { at, size, .. } => {
                self.mmu.page_written(platform, at, size);
                Ok(())
            }
            Event::TableRetired { at, .. } => {
                self.mmu.page_written(platform, at, PageSize::SIZE_4K);
                Ok(())
            }
            // Machine addresses stay, and the guest's own tables map what they did.
            Event::HostChanged { promoted: true, .. } => Ok(()),
            Event::HostChanged { at, size, .. } => self.mmu.host_changed(platform, at, size),
            // The kernel works on its own memory while it is in lazy mode; any other access shows that
            // it is not.
            Event::AccessMissed { request } if !is_kernel_half(request.gva) => {
                self.mmu.send_all(platform)
            }
            other => platform.bare_metal(other),
        }
    }

    fn report(&self, platform: &Platform, out: &mut Report) {
        // No process of a host kernel has the domain's memory in tables of its own.
        out.page_tables = PageTableBytes::of_guest(platform);
        out.page_tables.guest += self.mmu.split_bytes();
    }
}
