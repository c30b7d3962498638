//! `asap`: address translation with prefetching in both dimensions (Margaritov et al., "Prefetched
//! Address Translation", MICRO 2019). Registers say where the entries of the two lowest levels of
//! radix tables lie; a miss fetches them at once, beside the walk, which finds them in the caches or
//! on their way. Walks have their 24 references, each look-up up to 2 more beside them. `asap-nested`
//! has it in the host alone, `asap-guest` in the guest alone, over nested tables; `native-asap` is on
//! bare metal. The tables are in `assist/tables/direct`, with what was chosen.

use super::{Definition, Facts};
use crate::assist::tables::direct::{Ahead, Direct, DirectConfig};
use crate::assist::tables::{self, Any, Sides};
use crate::machine::DynMachine;
use crate::scheme::options::{OptionRow, OptionTable, whole};
use crate::scheme::vmm_options::VmmKind;
use crate::scheme::{MachineConfig, MachineError};
use nestwalk_hw::profile::WalkCacheProfile;

/// The catalogue's entry.
pub const DEFINITION: Definition = Definition {
    name: "asap",
    summary: "nested paging whose lowest entries are fetched ahead of walks, by registers (ASAP)",
    virtualized: true,
    facts: Facts::NONE,
    vmm: VmmKind::Other,
    options: &OPTIONS,
    build: |request| make(request, Sides::Both),
};

/// In the host alone.
pub const NESTED: Definition = Definition {
    name: "asap-nested",
    summary: "entries fetched ahead of walks in the host alone",
    build: |request| make(request, Sides::Host),
    ..DEFINITION
};

/// In the guest alone.
pub const GUEST: Definition = Definition {
    name: "asap-guest",
    summary: "entries fetched ahead of walks in the guest alone, over nested tables",
    vmm: VmmKind::Nested,
    build: |request| make(request, Sides::Guest),
    ..DEFINITION
};

/// On bare metal.
pub const NATIVE: Definition = Definition {
    name: "native-asap",
    summary: "bare metal whose lowest entries are fetched ahead of walks, by registers (ASAP)",
    virtualized: false,
    build: |request| make(request, Sides::Native),
    ..DEFINITION
};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Config {
    registers: u64,
    least: u64,
    levels: u8,
}

impl Default for Config {
    fn default() -> Self {
        Self { registers: 16, least: 512, levels: 2 }
    }
}

static OPTIONS: OptionTable<Config> = OptionTable::new(&[
    OptionRow {
        name: "registers",
        values: "N",
        meaning: "registers for mappings of the guest, GiBs on end one, 0 for none (16)",
        set: |c, value| whole(value, 0, 1 << 20).map(|n| c.registers = n),
        get: |c| c.registers.to_string(),
    },
    OptionRow {
        name: "least",
        values: "PAGES",
        meaning: "pages of 4 KiB from which on the tables of a GiB are kept in order (512)",
        set: |c, value| whole(value, 1, 1 << 18).map(|n| c.least = n),
        get: |c| c.least.to_string(),
    },
    OptionRow {
        name: "levels",
        values: "N",
        meaning: "levels fetched ahead: 2, 1 for entries of base pages alone, 0 for none (2)",
        set: |c, value| whole(value, 0, 2).map(|n| c.levels = n as u8),
        get: |c| c.levels.to_string(),
    },
]);

/// Entries of walk caches that lead to tables of levels 1, 2 and 3.
fn entries(caches: &WalkCacheProfile) -> [usize; 3] {
    [1, 2, 3].map(|level| caches.to_level(level).map_or(0, |array| array.entries as usize))
}

fn make(request: MachineConfig, sides: Sides) -> Result<Box<dyn DynMachine>, MachineError> {
    let Config { registers, least, levels } = request.options(&OPTIONS)?;
    let profile = &request.profile;
    let caches = [entries(&profile.walk_cache), entries(&profile.nested_walk_cache)];
    let of = move |host: bool| Some(Ahead { levels, caches: caches[usize::from(host)] });
    let host_memory = sides != Sides::Native;
    let config = DirectConfig { registers, least, host_memory, ahead: of(false) };
    tables::build(request, sides, true, move |host, _| {
        let host_config = DirectConfig { ahead: of(true), ..config.of_host() };
        Some(Any::from(Direct::new(if host { host_config } else { config })))
    })
}

#[cfg(test)]
mod tests {
    use super::OPTIONS;
    use crate::scheme::options::SchemeOptions;

    #[test]
    fn options_are_read_back() {
        let all = "registers=4/least=64/levels=1";
        assert_eq!(OPTIONS.normalize(all).unwrap(), all);
        assert_eq!(OPTIONS.normalize("registers=16/least=512/levels=2").unwrap(), "");
        assert!(OPTIONS.normalize("levels=3").unwrap_err().contains("0 to 2"));
    }
}
