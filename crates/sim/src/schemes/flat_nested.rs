//! `flat-nested`: a flat nested table (Ahn, Jin and Huh, "Revisiting Hardware-Assisted Page Walks for
//! Virtualized Systems", ISCA 2012): the host's entry of a guest-physical page is one reference into an
//! array, so that a walk of a guest's four levels has 4 (1 + 1) + 1 = 9. The guest's tables are radix
//! trees. The array is in `assist/tables/flat.rs`, with what was chosen.

use super::{Definition, Facts};
use crate::assist::tables::flat::Flat;
use crate::assist::tables::{self, Any, Sides};
use crate::machine::DynMachine;
use crate::scheme::options::NO_OPTIONS;
use crate::scheme::vmm_options::VmmKind;
use crate::scheme::{MachineConfig, MachineError};

/// The catalogue's entry.
pub const DEFINITION: Definition = Definition {
    name: "flat-nested",
    summary: "an array in the host in place of nested tables, under a radix guest: 9 references",
    virtualized: true,
    facts: Facts::NONE,
    vmm: VmmKind::Other,
    options: &NO_OPTIONS,
    build,
};

/// Pages of 4 KiB up to the end of guest-physical memory.
pub(super) fn pages(request: &MachineConfig) -> u64 {
    let slots = request.host.as_ref().map_or(&[][..], |host| host.slots());
    slots.iter().map(|s| (s.gpa.value() + s.bytes) >> 12).max().unwrap_or(0)
}

fn build(request: MachineConfig) -> Result<Box<dyn DynMachine>, MachineError> {
    let pages = pages(&request);
    tables::build(request, Sides::Host, true, move |_, m| Flat::new(pages, m).map(Any::from))
}
