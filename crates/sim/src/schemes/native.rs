//! `native`: no virtual machine. One walk over the guest's own tables, 4 references at most.
//!
//! The control that a virtual machine is compared with: the guest's placement, tables and kernel are
//! those of the virtual machines beside it, only that a guest-physical address *is* an address of RAM.

use super::{Build, Definition};
use crate::options::NO_OPTIONS;
use crate::prefetch::{LeafHints, read_sets};
use crate::engine::{AnyMachine, Machine};
use crate::hardware::Request;
use crate::scheme::{Handled, MachineError, Platform, Processor, Scheme, Software};
use crate::walk::{Fault, WalkWatch, walk_1d};
use crate::vmm::options::VmmKind;
use nestwalk_hw::Translation;
use nestwalk_types::{Gpa, Hpa, Run};

/// The catalogue's entry.
pub const DEFINITION: Definition = Definition {
    name: "native",
    summary: "bare metal: one walk over the guest's own tables",
    virtualized: false,
    flushes_by_itself: false,
    primary_region: false,
    own_l1_sets: false,
    sampled: false,
    vmm: VmmKind::Other,
    options: &NO_OPTIONS,
    build,
};

fn build(request: Build) -> Result<Box<dyn AnyMachine>, MachineError> {
    Ok(Box::new(Machine::new(Native::default(), request)?))
}

/// The scheme has no state of its own but hints for speed.
#[derive(Default)]
pub struct Native {
    hints: LeafHints<Gpa>,
}

impl Scheme for Native {
    #[inline]
    fn walk<W: WalkWatch>(
        &mut self,
        cpu: &mut Processor,
        request: &Request,
        watch: &mut W,
    ) -> Result<Translation, Fault> {
        let Processor { world, hardware, counters } = cpu;
        walk_1d(hardware, counters, &mut world.tables(request.vcpu), request, watch.parts().0)
    }

    fn prefetch(&mut self, cpu: &Processor, runs: &[Run], gpas: &[Gpa]) {
        let world = &cpu.world;
        let Some(first) = runs.first() else { return };
        let (mode, root) = (world.mode, world.root(first.vcpu));
        let leaves = self.hints.read(&world.guest, mode, root, runs.iter().map(|r| r.gva));
        let used = gpas.iter().chain(&leaves.at[..runs.len()]);
        read_sets(&cpu.hardware.caches, used.map(|g| Hpa::new(g.value())));
    }
}

impl Software for Native {
    fn handle_fault(
        &mut self,
        _platform: &mut Platform,
        _request: &Request,
        _fault: Fault,
    ) -> Result<Handled, MachineError> {
        Ok(Handled::GuestFault)
    }
}
