//! `flattened`: flattened page tables in both dimensions (Park et al., "Every Walk's a Hit: Making Page
//! Walks Single-Access Cache Hits", ASPLOS 2022): nodes of 2 MiB that are two levels in one, so that a
//! walk in two dimensions has 8 references in place of 24. `flattened-nested` has them in the host
//! alone, under a radix guest; `flattened-guest` in the guest alone, over nested tables;
//! `native-flattened` on bare metal, 2 references. The tables are in `assist/tables/flattened.rs`, with
//! what was chosen.
//!
//! Left out is the paper's second half, caches that give page tables priority.

use super::{Definition, Facts};
use crate::assist::tables::flattened::{FlatConfig, Flattened};
use crate::assist::tables::{self, Any, Sides};
use crate::machine::DynMachine;
use crate::scheme::options::{OptionRow, OptionTable, whole};
use crate::scheme::vmm_options::VmmKind;
use crate::scheme::{MachineConfig, MachineError};

/// The catalogue's entry.
pub const DEFINITION: Definition = Definition {
    name: "flattened",
    summary: "nodes of 2 MiB, two levels in one, in guest and host: 8 references (flattened tables)",
    virtualized: true,
    facts: Facts::NONE,
    vmm: VmmKind::Other,
    options: &OPTIONS,
    build: |request| make(request, Sides::Both),
};

/// In the host alone.
pub const NESTED: Definition = Definition {
    name: "flattened-nested",
    summary: "flattened tables in the host, under radix tables of the guest",
    build: |request| make(request, Sides::Host),
    ..DEFINITION
};

/// In the guest alone.
pub const GUEST: Definition = Definition {
    name: "flattened-guest",
    summary: "flattened tables in the guest, over nested tables",
    vmm: VmmKind::Nested,
    build: |request| make(request, Sides::Guest),
    ..DEFINITION
};

/// On bare metal.
pub const NATIVE: Definition = Definition {
    name: "native-flattened",
    summary: "bare metal with flattened tables: 2 references",
    virtualized: false,
    build: |request| make(request, Sides::Native),
    ..DEFINITION
};

static OPTIONS: OptionTable<FlatConfig> = OptionTable::new(&[
    OptionRow {
        name: "refused",
        values: "PERCENT",
        meaning: "nodes of 2 MiB that find no memory in one piece, and are tables of 4 KiB then; a host's \
                  fragmentation comes on top (0)",
        set: |c, value| whole(value, 0, 100).map(|n| c.refused = n),
        get: |c| c.refused.to_string(),
    },
    OptionRow {
        name: "cache",
        values: "N",
        meaning: "entries of each walk cache of a core and dimension, 0 for none (32)",
        set: |c, value| whole(value, 0, 1024).map(|n| c.cache = n as usize),
        get: |c| c.cache.to_string(),
    },
]);

fn make(request: MachineConfig, sides: Sides) -> Result<Box<dyn DynMachine>, MachineError> {
    let (config, cores) = (request.options(&OPTIONS)?, request.vcpus);
    tables::build(request, sides, true, move |host, m| {
        Flattened::new(config, cores, host, m).map(Any::from)
    })
}

#[cfg(test)]
mod tests {
    use super::OPTIONS;
    use crate::scheme::options::SchemeOptions;

    #[test]
    fn options_are_read_back() {
        let all = "refused=30/cache=0";
        assert_eq!(OPTIONS.normalize(all).unwrap(), all);
        assert_eq!(OPTIONS.normalize("refused=0/cache=32").unwrap(), "");
        assert!(OPTIONS.normalize("refused=101").unwrap_err().contains("0 to 100"));
    }
}
