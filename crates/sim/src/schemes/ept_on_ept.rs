//! `ept-on-ept`: a VM in a VM, both with nested tables. L0 combines L1's with its own in one table,
//! which hardware walks beside the guest's, 24 references at most.

use super::{Definition, Facts};
use crate::hypervisor::vm_in_vm::{EPT_OPTIONS, Kind, VmInVm};
use crate::scheme::vmm_options::VmmKind;

/// The catalogue's entry.
pub const DEFINITION: Definition = Definition {
    name: "ept-on-ept",
    summary: "a VM in a VM: nested tables of the inner hypervisor, combined by the outer one with its own",
    virtualized: true,
    facts: Facts::NONE,
    vmm: VmmKind::Nested,
    options: &EPT_OPTIONS,
    build: |request| VmInVm::machine(Kind::EptOnEpt, request, &EPT_OPTIONS),
};
