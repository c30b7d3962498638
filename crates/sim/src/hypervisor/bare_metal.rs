//! No hypervisor: one walk over the guest's tables, whose faults are all its own.

use crate::hardware::Request;
use crate::hardware::prefetch::{LeafHints, read_sets};
use crate::hardware::walk::{Fault, WalkWatch, walk_1d};
use crate::scheme::{Handled, MachineError, Platform, Processor, Scheme, Software};
use nestwalk_hw::Translation;
use nestwalk_types::{Gpa, Hpa, Run};

/// The scheme has no state of its own but hints for speed.
#[derive(Default)]
pub struct Native {
    hints: LeafHints<Gpa>,
}

impl Scheme for Native {
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
        walk_1d(hardware, counters, &mut world.tables(request.vcpu), request, watch.parts().0)
    }

    fn prefetch(&mut self, cpu: &Processor, runs: &[Run], gpas: &[Gpa]) {
        let world = &cpu.world;
        let Some(first) = runs.first() else { return };
        let (mode, root) = (world.mode, world.root(first.vcpu));
        let leaves = self.hints.read(&world.guest, mode, root, runs.iter().map(|r| r.gva));
        let used = gpas.iter().chain(&leaves.at[..runs.len()]);
        read_sets(cpu.hardware.caches(), used.map(|g| Hpa::new(g.value())));
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
