//! `hashed`: hash tables with packed clusters of eight in place of the tables of both dimensions (Yaniv,
//! Tsafrir, "Hash, Don't Cache (the Page Table)", SIGMETRICS 2016). A walk without collisions has three
//! references: to the host's table for the guest's cluster, to that cluster, to the host's table for the
//! page. There are no walk caches and no nested TLB, unless asked for.
//!
//! `hashed-nested` has it in the host alone, under a radix guest whose walks have the profile's caches
//! (Hoang et al., CAL 2010); `hashed-guest` in the guest alone, over nested tables; `native-hashed` on
//! bare metal. `kind=vhpt` and `kind=htab` have Itanium's table or PowerPC's in its place, which are in
//! `assist/tables/classic.rs`. The packed table is in `assist/tables/hashed.rs`, with what was chosen
//! where the paper has none.

use super::{Definition, Facts};
use crate::assist::tables::classic::{Classic, Rule};
use crate::assist::tables::hashed::{HashConfig, Hashed};
use crate::assist::tables::{self, Any, Sides};
use crate::machine::DynMachine;
use crate::scheme::options::{OptionRow, OptionTable, one_of, whole, word_of};
use crate::scheme::vmm_options::VmmKind;
use crate::scheme::{MachineConfig, MachineError};

/// The catalogue's entry.
pub const DEFINITION: Definition = Definition {
    name: "hashed",
    summary: "hash tables with clusters of eight in guest and host: 3 references (Hash, Don't Cache)",
    virtualized: true,
    facts: Facts::NONE,
    vmm: VmmKind::Other,
    options: &UNCACHED,
    build: both,
};

/// In the host alone.
pub const NESTED: Definition = Definition {
    name: "hashed-nested",
    summary: "a hash table in the host, under radix tables of the guest",
    options: &CACHED,
    build: host,
    ..DEFINITION
};

/// In the guest alone.
pub const GUEST: Definition = Definition {
    name: "hashed-guest",
    summary: "a hash table in the guest, over nested tables",
    vmm: VmmKind::Nested,
    options: &CACHED,
    build: guest,
    ..DEFINITION
};

/// On bare metal.
pub const NATIVE: Definition = Definition {
    name: "native-hashed",
    summary: "bare metal with a hash table: 1 reference (Hash, Don't Cache)",
    virtualized: false,
    build: native,
    ..DEFINITION
};

/// How it is set up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Config<const CACHES: bool> {
    table: HashConfig,
    /// Not packed clusters.
    rule: Option<Rule>,
    other: bool,
}

impl<const CACHES: bool> Config<CACHES> {
    const fn cached(self) -> bool {
        CACHES != self.other
    }
}

const YES: [(&str, bool); 2] = [("yes", true), ("no", false)];

const KINDS: [(&str, Option<Rule>); 3] =
    [("packed", None), ("vhpt", Some(Rule::Chains)), ("htab", Some(Rule::Groups))];

const fn rows<const CACHES: bool>() -> [OptionRow<Config<CACHES>>; 4] {
    [
        OptionRow {
            name: "kind",
            values: "packed|vhpt|htab",
            meaning: "the table: packed clusters of eight; Itanium's long format, an entry a page and chains; \
                      PowerPC's groups of eight with two hashes (packed)",
            set: |c, value| one_of(value, &KINDS).map(|kind| c.rule = kind),
            get: |c| word_of(&c.rule, &KINDS),
        },
        OptionRow {
            name: "load",
            values: "PERCENT",
            meaning: "places of a table that are in use at most, before it doubles (60)",
            set: |c, value| whole(value, 10, 90).map(|n| c.table.load = n),
            get: |c| c.table.load.to_string(),
        },
        OptionRow {
            name: "kib",
            values: "N",
            meaning: "KiB of a table at first, a power of two (64)",
            set: |c, value| {
                let kib = whole(value, 4, 1 << 20)?;
                if !kib.is_power_of_two() {
                    return Err("it is a power of two".into());
                }
                c.table.places = kib * 16;
                Ok(())
            },
            get: |c| (c.table.places / 16).to_string(),
        },
        OptionRow {
            name: "caches",
            values: "yes|no",
            meaning: "the processor has the walk caches and the nested TLB of its profile (no for `hashed` and \
                      `native-hashed`, which replace them; yes for the others)",
            set: |c, value| one_of(value, &YES).map(|yes: bool| c.other = yes != CACHES),
            get: |c| word_of(&c.cached(), &YES),
        },
    ]
}

static UNCACHED: OptionTable<Config<false>> = OptionTable::new(&const { rows::<false>() });
static CACHED: OptionTable<Config<true>> = OptionTable::new(&const { rows::<true>() });

fn make<const CACHES: bool>(
    request: MachineConfig,
    sides: Sides,
    options: &'static OptionTable<Config<CACHES>>,
) -> Result<Box<dyn DynMachine>, MachineError> {
    let (config, cores) = (request.options(options)?, request.vcpus);
    tables::build(request, sides, config.cached(), move |_, m| {
        let HashConfig { load, places } = config.table;
        let mut classic = |rule, each| {
            Classic::new(rule, (load, places * each), cores, m).map(Any::from)
        };
        match config.rule {
            None => Hashed::new(config.table, cores, m).map(Any::from),
            Some(Rule::Chains) => classic(Rule::Chains, 2),
            Some(Rule::Groups) => classic(Rule::Groups, 4),
        }
    })
}

fn both(request: MachineConfig) -> Result<Box<dyn DynMachine>, MachineError> {
    make(request, Sides::Both, &UNCACHED)
}

fn host(request: MachineConfig) -> Result<Box<dyn DynMachine>, MachineError> {
    make(request, Sides::Host, &CACHED)
}

fn guest(request: MachineConfig) -> Result<Box<dyn DynMachine>, MachineError> {
    make(request, Sides::Guest, &CACHED)
}

fn native(request: MachineConfig) -> Result<Box<dyn DynMachine>, MachineError> {
    make(request, Sides::Native, &UNCACHED)
}

#[cfg(test)]
mod tests {
    use super::{CACHED, UNCACHED};
    use crate::scheme::options::SchemeOptions;

    #[test]
    fn options_are_read_back() {
        let all = "kind=htab/load=70/kib=128/caches=yes";
        assert_eq!(UNCACHED.normalize(all).unwrap(), all);
        assert_eq!(CACHED.normalize(all).unwrap(), "kind=htab/load=70/kib=128");
        assert_eq!(UNCACHED.normalize("kind=packed/load=60/kib=64/caches=no").unwrap(), "");
        for (text, words) in [("kind=x", "vhpt"), ("load=95", "10 to 90"), ("kib=3", "4 to"), ("kib=12", "power of two")] {
            let e = UNCACHED.normalize(text).unwrap_err();
            assert!(e.contains(words), "{e}");
        }
    }
}
