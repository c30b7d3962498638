//! `pvm`: PVM (SOSP 2023), a hypervisor in a VM that needs no hardware for its guest. The guest runs
//! deprivileged, on shadow tables; hardware walks these and the nested tables of the hypervisor below,
//! 24 references at most, which sees none of the guest's exits.

use super::{Definition, Facts};
use crate::hypervisor::vm_in_vm::{Kind, PVM_OPTIONS, VmInVm};
use crate::scheme::vmm_options::VmmKind;

/// The catalogue's entry.
pub const DEFINITION: Definition = Definition {
    name: "pvm",
    summary: "a VM in a VM: a deprivileged guest on shadow tables, without the outer hypervisor (PVM)",
    virtualized: true,
    facts: Facts { flushes_by_itself: true, ..Facts::NONE },
    vmm: VmmKind::Shadow,
    options: &PVM_OPTIONS,
    build: |request| VmInVm::machine(Kind::Pvm, request, &PVM_OPTIONS),
};
