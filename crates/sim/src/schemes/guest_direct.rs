//! `guest-direct`: the guest's segment leads to a guest-physical address, for which nested tables
//! are walked: 4 references and 1 check (Gandhi et al., MICRO 2014). The guest's kernel keeps a
//! primary region.

use super::{Definition, Facts};
use crate::assist::segments::{GUEST, SegmentedVm};
use crate::machine::DynMachine;
use crate::scheme::MachineConfig;
use crate::scheme::MachineError;
use crate::scheme::vmm_options::VmmKind;

/// The catalogue's entry.
pub const DEFINITION: Definition = Definition {
    name: "guest-direct",
    summary: "nested paging with the guest dimension as a segment (Guest Direct)",
    virtualized: true,
    facts: Facts { primary_region: true, ..Facts::NONE },
    vmm: VmmKind::Nested,
    options: &GUEST,
    build,
};

fn build(request: MachineConfig) -> Result<Box<dyn DynMachine>, MachineError> {
    SegmentedVm::any_machine(request, &GUEST, (true, false))
}
