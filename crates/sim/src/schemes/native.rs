//! `native`: no virtual machine. One walk over the guest's own tables, 4 references at most.
//!
//! The control that a virtual machine is compared with: the guest's placement, tables and kernel are
//! those of the virtual machines beside it, only that a guest-physical address *is* an address of RAM.

use super::{Definition, Facts};
use crate::hypervisor::bare_metal::Native;
use crate::machine::{DynMachine, Machine};
use crate::scheme::options::NO_OPTIONS;
use crate::scheme::vmm_options::VmmKind;
use crate::scheme::{MachineConfig, MachineError};

/// The catalogue's entry.
pub const DEFINITION: Definition = Definition {
    name: "native",
    summary: "bare metal: one walk over the guest's own tables",
    virtualized: false,
    facts: Facts::NONE,
    vmm: VmmKind::BareMetal,
    options: &NO_OPTIONS,
    build,
};

fn build(request: MachineConfig) -> Result<Box<dyn DynMachine>, MachineError> {
    Ok(Box::new(Machine::new(Native::default(), request)?))
}
