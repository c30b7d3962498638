//! `vmm-direct`: guest tables are walked, and each guest-physical address on the way is translated
//! by the VMM's segment: 4 references and 5 checks (Gandhi et al., MICRO 2014). It needs nothing of
//! the guest.

use super::{Definition, Facts};
use crate::assist::segments::{SegmentedVm, VMM};
use crate::machine::DynMachine;
use crate::scheme::MachineConfig;
use crate::scheme::MachineError;
use crate::scheme::vmm_options::VmmKind;

/// The catalogue's entry.
pub const DEFINITION: Definition = Definition {
    name: "vmm-direct",
    summary: "nested paging with the host dimension as a segment (VMM Direct)",
    virtualized: true,
    facts: Facts { pins_memory: true, ..Facts::NONE },
    vmm: VmmKind::Nested,
    options: &VMM,
    build,
};

fn build(request: MachineConfig) -> Result<Box<dyn DynMachine>, MachineError> {
    SegmentedVm::any_machine(request, &VMM, (false, true))
}
