//! `ecpt`: elastic cuckoo page tables in both dimensions (Stojkovic et al., "Parallel Virtualized
//! Memory Translation with Nested Elastic Cuckoo Page Tables", ASPLOS 2022): three steps, each of which
//! reads all lines that may have the entry at once. `native-ecpt` is what they come from (Skarlatos et
//! al., "Elastic Cuckoo Page Tables", ASPLOS 2020), one step; `ecpt-nested` has them in the host alone,
//! under a radix guest, `ecpt-guest` in the guest alone, over nested tables. The tables are in
//! `assist/tables/cuckoo.rs`.
//!
//! Chosen where the papers are not at hand: `kib` of the walk tables (256), one cache of their entries
//! for all tables of a dimension, without the second paper's entries for the guest's own tables.

use super::{Definition, Facts};
use crate::assist::tables::cuckoo::{Cuckoo, CuckooConfig, MOST_WAYS};
use crate::assist::tables::{self, Any, Sides};
use crate::machine::DynMachine;
use crate::scheme::options::{OptionRow, OptionTable, whole};
use crate::scheme::vmm_options::VmmKind;
use crate::scheme::{MachineConfig, MachineError};

/// The catalogue's entry.
pub const DEFINITION: Definition = Definition {
    name: "ecpt",
    summary: "elastic cuckoo tables in guest and host: three steps of parallel probes (nested ECPT)",
    virtualized: true,
    facts: Facts::NONE,
    vmm: VmmKind::Other,
    options: &OPTIONS,
    build: |request| make(request, Sides::Both),
};

/// In the host alone.
pub const NESTED: Definition = Definition {
    name: "ecpt-nested",
    summary: "elastic cuckoo tables in the host, under radix tables of the guest",
    build: |request| make(request, Sides::Host),
    ..DEFINITION
};

/// In the guest alone.
pub const GUEST: Definition = Definition {
    name: "ecpt-guest",
    summary: "elastic cuckoo tables in the guest, over nested tables",
    vmm: VmmKind::Nested,
    build: |request| make(request, Sides::Guest),
    ..DEFINITION
};

/// On bare metal.
pub const NATIVE: Definition = Definition {
    name: "native-ecpt",
    summary: "bare metal with elastic cuckoo tables: one step of parallel probes (ECPT)",
    virtualized: false,
    build: |request| make(request, Sides::Native),
    ..DEFINITION
};

static OPTIONS: OptionTable<CuckooConfig> = OptionTable::new(&[
    OptionRow {
        name: "ways",
        values: "N",
        meaning: "ways of each table, 2 to 4 (3)",
        set: |c, value| whole(value, 2, MOST_WAYS as u64).map(|n| c.ways = n as usize),
        get: |c| c.ways.to_string(),
    },
    OptionRow {
        name: "entries",
        values: "N",
        meaning: "entries of a way at first, a power of two, eight to a line (16384)",
        set: |c, value| {
            c.entries = whole(value, 512, 1 << 24)?;
            if c.entries.is_power_of_two() { Ok(()) } else { Err("it is a power of two".into()) }
        },
        get: |c| c.entries.to_string(),
    },
    OptionRow {
        name: "load",
        values: "PERCENT",
        meaning: "lines in use, above which the smallest way doubles (60)",
        set: |c, value| whole(value, 10, 80).map(|n| c.load = n),
        get: |c| c.load.to_string(),
    },
    OptionRow {
        name: "pmd",
        values: "N",
        meaning: "entries of a core's cache of walk tables for 64 sections of 2 MiB each, 0 for none (16)",
        set: |c, value| whole(value, 0, 1024).map(|n| c.pmd = n as usize),
        get: |c| c.pmd.to_string(),
    },
    OptionRow {
        name: "pud",
        values: "N",
        meaning: "the same for sections of 1 GiB (2)",
        set: |c, value| whole(value, 0, 1024).map(|n| c.pud = n as usize),
        get: |c| c.pud.to_string(),
    },
    OptionRow {
        name: "cycles",
        values: "N",
        meaning: "cycles of a look-up before its lines are read: hash functions 2, caches of walk tables 4 (6)",
        set: |c, value| whole(value, 0, 1000).map(|n| c.cycles = n),
        get: |c| c.cycles.to_string(),
    },
]);

fn make(request: MachineConfig, sides: Sides) -> Result<Box<dyn DynMachine>, MachineError> {
    let (config, cores) = (request.options(&OPTIONS)?, request.vcpus);
    // A guest of radix tables has its walk caches; elsewhere those of walk tables take their place.
    let cached = sides == Sides::Host || sides == Sides::Guest;
    tables::build(request, sides, cached, move |_, m| {
        Cuckoo::new(config, cores, m).map(Any::from)
    })
}

#[cfg(test)]
mod tests {
    use super::OPTIONS;
    use crate::scheme::options::SchemeOptions;

    #[test]
    fn options_are_read_back() {
        let all = "ways=2/entries=1024/load=50/pmd=0/pud=4/cycles=2";
        assert_eq!(OPTIONS.normalize(all).unwrap(), all);
        assert_eq!(OPTIONS.normalize("ways=3/entries=16384/load=60").unwrap(), "");
        for (text, words) in [("ways=5", "2 to 4"), ("entries=1000", "power of two")] {
            let e = OPTIONS.normalize(text).unwrap_err();
            assert!(e.contains(words), "{e}");
        }
    }
}
