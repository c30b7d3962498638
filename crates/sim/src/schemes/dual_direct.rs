//! `dual-direct`: the guest's segment and the VMM's, one after the other, by one combined check and
//! no reference (Gandhi et al., MICRO 2014). Where only one of them covers, it is Guest Direct or
//! VMM Direct.

use super::{Definition, Facts};
use crate::assist::segments::{DUAL, SegmentedVm};
use crate::machine::DynMachine;
use crate::scheme::MachineConfig;
use crate::scheme::MachineError;
use crate::scheme::vmm_options::VmmKind;

/// The catalogue's entry.
pub const DEFINITION: Definition = Definition {
    name: "dual-direct",
    summary: "segments in both dimensions, paging outside of them (Dual Direct)",
    virtualized: true,
    facts: Facts { primary_region: true, pins_memory: true, ..Facts::NONE },
    vmm: VmmKind::Nested,
    options: &DUAL,
    build,
};

fn build(request: MachineConfig) -> Result<Box<dyn DynMachine>, MachineError> {
    SegmentedVm::any_machine(request, &DUAL, (true, true))
}
