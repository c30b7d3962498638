//! `sie`: IBM's interpretive execution, with a level of tables that the hypervisor keeps beside the
//! guest's own since 1981 (System/370 Extended Architecture; Gum, IBM Journal of Research and
//! Development 27(6), 1983). The guest's real address is a virtual address of the host, translated
//! by two levels of flat tables: a pageable guest. A walk over 4 guest levels makes 4 * (2 + 1) + 2
//! = 14 references.
//!
//! What a hypervisor does under it is what it does under nested tables of today: host page faults
//! build the tables, nothing else leaves the guest. A preferred guest, whose addresses are the
//! host's but for an offset, is not modelled.

use super::{Definition, Facts};
use crate::hypervisor::nested::Nested;
use crate::hypervisor::nested_mmu::NestedMmu;
use crate::machine::{DynMachine, Machine};
use crate::scheme::MachineConfig;
use crate::scheme::MachineError;
use crate::scheme::options::{OptionRow, OptionTable};
use crate::scheme::vmm_options::VmmKind;
use nestwalk_tables::SIE;

/// The catalogue's entry.
pub const DEFINITION: Definition = Definition {
    name: "sie",
    summary: "two-dimensional walks over the host's flat 2-level tables (IBM S/370-XA)",
    virtualized: true,
    facts: Facts { sampled: true, ..Facts::NONE },
    vmm: VmmKind::Other,
    options: &OPTIONS,
    build,
};

static OPTIONS: OptionTable<()> = OptionTable {
    bare: Some("kind"),
    ..OptionTable::new(&[OptionRow {
        name: "kind",
        values: "pageable",
        meaning: "the guest's real addresses are virtual ones of the host; the only kind",
        set: |(), value| match value {
            "pageable" => Ok(()),
            "preferred" => Err("preferred guests (V=R) are not modelled: leave it out".into()),
            _ => Err("there is: pageable".into()),
        },
        get: |()| "pageable".into(),
    }])
};

fn build(request: MachineConfig) -> Result<Box<dyn DynMachine>, MachineError> {
    let mut request = request;
    let mmu = NestedMmu::with_flat_root(&SIE, &mut request.host)?;
    Ok(Box::new(Machine::new(Nested::with(mmu), request)?))
}
