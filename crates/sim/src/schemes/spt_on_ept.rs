//! `spt-on-ept`: a VM in a VM whose hypervisor keeps shadow tables in its own memory. Hardware walks
//! these and the outer hypervisor's nested tables, 24 references at most.

use super::{Definition, Facts};
use crate::hypervisor::vm_in_vm::{Kind, SHADOW_OPTIONS, VmInVm};
use crate::scheme::vmm_options::VmmKind;

/// The catalogue's entry.
pub const DEFINITION: Definition = Definition {
    name: "spt-on-ept",
    summary: "a VM in a VM: shadow tables of the inner hypervisor, walked with the outer one's nested tables",
    virtualized: true,
    facts: Facts { flushes_by_itself: true, ..Facts::NONE },
    vmm: VmmKind::Shadow,
    options: &SHADOW_OPTIONS,
    build: |request| VmInVm::machine(Kind::ShadowOnEpt, request, &SHADOW_OPTIONS),
};
