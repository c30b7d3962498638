//! `dmt` and `pvdmt`: direct memory translation (Zhang et al., ASPLOS 2024). Registers say where the
//! leaf entries of large mappings lie, each in one piece, so that an entry is fetched by its address
//! alone: in `dmt` 3 references (to the host's entry for the guest's, to that, to the host's for the
//! page), in `pvdmt`, whose guest has the memory for its entries from the host by hypercalls, 2;
//! `native-dmt` has 1. What has no register is walked in radix tables, without walk caches. The tables
//! are in `assist/tables/direct`, with what was chosen.

use super::{Definition, Facts};
use crate::assist::tables::direct::{Direct, DirectConfig};
use crate::assist::tables::{self, Any, Sides};
use crate::machine::DynMachine;
use crate::scheme::options::{OptionRow, OptionTable, whole};
use crate::scheme::vmm_options::VmmKind;
use crate::scheme::{MachineConfig, MachineError};

/// The catalogue's entry.
pub const DEFINITION: Definition = Definition {
    name: "dmt",
    summary: "leaf entries of large mappings in one piece, fetched by registers: 3 references (DMT)",
    virtualized: true,
    facts: Facts::NONE,
    vmm: VmmKind::Other,
    options: &OPTIONS,
    build: |request| make(request, Sides::Both, false),
};

/// The guest's entries in the host's memory.
pub const PARAVIRTUAL: Definition = Definition {
    name: "pvdmt",
    summary: "DMT whose guest has memory for its entries from the host by hypercalls: 2 references",
    build: |request| make(request, Sides::Both, true),
    ..DEFINITION
};

/// On bare metal.
pub const NATIVE: Definition = Definition {
    name: "native-dmt",
    summary: "bare metal with leaf entries of large mappings in one piece: 1 reference (DMT)",
    virtualized: false,
    build: |request| make(request, Sides::Native, false),
    ..DEFINITION
};

static OPTIONS: OptionTable<DirectConfig> = OptionTable::new(&[
    OptionRow {
        name: "registers",
        values: "N",
        meaning: "registers for mappings of the guest, a GiB each, 0 for none (16)",
        set: |c, value| whole(value, 0, 1 << 20).map(|n| c.registers = n),
        get: |c| c.registers.to_string(),
    },
    OptionRow {
        name: "least",
        values: "PAGES",
        meaning: "pages of 4 KiB from which on a GiB is a mapping with a piece of its own (512)",
        set: |c, value| whole(value, 1, 1 << 18).map(|n| c.least = n),
        get: |c| c.least.to_string(),
    },
]);

fn make(
    request: MachineConfig,
    sides: Sides,
    host_memory: bool,
) -> Result<Box<dyn DynMachine>, MachineError> {
    let config = DirectConfig { host_memory, ..request.options(&OPTIONS)? };
    tables::build(request, sides, false, move |host, _| {
        Some(Any::from(Direct::new(if host { config.of_host() } else { config })))
    })
}

#[cfg(test)]
mod tests {
    use super::OPTIONS;
    use crate::scheme::options::SchemeOptions;

    #[test]
    fn options_are_read_back() {
        let all = "registers=4/least=64";
        assert_eq!(OPTIONS.normalize(all).unwrap(), all);
        assert_eq!(OPTIONS.normalize("registers=16/least=512").unwrap(), "");
        assert!(OPTIONS.normalize("least=0").unwrap_err().contains("1 to"));
    }
}
