//! `nested`: hardware walks guest and nested tables (Intel EPT, AMD NPT), 24 references at most.
//!
//! The guest's faults, CR3 loads, invalidations and table writes cost no exit. The only exits are the
//! violations by which the nested tables are built, one per host page.

use super::{Definition, Facts};
use crate::hypervisor::nested::Nested;
use crate::machine::{DynMachine, Machine};
use crate::scheme::options::{OptionRow, OptionTable, one_of, word_of};
use crate::scheme::vmm_options::VmmKind;
use crate::scheme::{MachineConfig, MachineError};

/// The catalogue's entry.
pub const DEFINITION: Definition = Definition {
    name: "nested",
    summary: "two-dimensional walks over guest and nested tables (EPT, NPT)",
    virtualized: true,
    facts: Facts { sampled: true, ..Facts::NONE },
    vmm: VmmKind::NestedNodes,
    options: &OPTIONS,
    build,
};

/// Whether the VM has lived long.
#[derive(Default)]
struct Options {
    prewarmed: bool,
}

static OPTIONS: OptionTable<Options> = OptionTable::new(&[OptionRow {
    name: "lived",
    values: "short|long",
    meaning: "whether the VM has just begun, or all of its memory was touched before; short unless given",
    set: |o, value| one_of(value, &LIVES).map(|long| o.prewarmed = long),
    get: |o| word_of(&o.prewarmed, &LIVES),
}]);

const LIVES: [(&str, bool); 2] = [("short", false), ("long", true)];

fn build(request: MachineConfig) -> Result<Box<dyn DynMachine>, MachineError> {
    let mut request = request;
    let long = request.options(&OPTIONS)?.prewarmed;
    let machine = Machine::new(Nested::new(&mut request)?, request)?;
    Ok(Box::new(if long { machine.prewarmed()? } else { machine }))
}
