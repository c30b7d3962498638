//! `utopia`: restricted segments in guest and host, in which a hash of a page's number says which frames
//! it may have (Kanellopoulos et al., "Utopia", MICRO 2023, which is native). A look-up reads tags and
//! filter of a set at once, so that a walk has three steps; what is in no segment is walked in radix
//! tables. `utopia-nested` has it in the host alone, under a radix guest; `utopia-guest` in the guest
//! alone, over nested tables; `native-utopia` on bare metal. The structure is in
//! `assist/tables/restricted`, with what was chosen.

use super::{Definition, Facts};
use crate::assist::tables::restricted::{Restricted, RestrictedConfig};
use crate::assist::tables::{self, Any, Sides};
use crate::machine::DynMachine;
use crate::scheme::options::{OptionRow, OptionTable, one_of, power_of_two, word_of};
use crate::scheme::vmm_options::VmmKind;
use crate::scheme::{MachineConfig, MachineError};

/// The catalogue's entry.
pub const DEFINITION: Definition = Definition {
    name: "utopia",
    summary: "segments in guest and host whose frames a hash names, over radix tables (Utopia)",
    virtualized: true,
    facts: Facts::NONE,
    vmm: VmmKind::Other,
    options: &OPTIONS,
    build: |request| make(request, Sides::Both),
};

/// In the host alone.
pub const NESTED: Definition = Definition {
    name: "utopia-nested",
    summary: "restricted segments in the host, under radix tables of the guest",
    build: |request| make(request, Sides::Host),
    ..DEFINITION
};

/// In the guest alone.
pub const GUEST: Definition = Definition {
    name: "utopia-guest",
    summary: "restricted segments in the guest, over nested tables",
    vmm: VmmKind::Nested,
    build: |request| make(request, Sides::Guest),
    ..DEFINITION
};

/// On bare metal.
pub const NATIVE: Definition = Definition {
    name: "native-utopia",
    summary: "bare metal with restricted segments over radix tables (Utopia)",
    virtualized: false,
    build: |request| make(request, Sides::Native),
    ..DEFINITION
};

const FULL: [(&str, bool); 2] = [("evict", true), ("keep", false)];

/// MiB, or 0 for as much as there is.
fn mib(value: &str, least: u64) -> Result<u64, String> {
    if value == "all" { Ok(0) } else { power_of_two(value, least, 1 << 20) }
}

fn spelled(mib: u64) -> String {
    if mib == 0 { "all".into() } else { mib.to_string() }
}

static OPTIONS: OptionTable<RestrictedConfig> = OptionTable::new(&[
    OptionRow {
        name: "mib",
        values: "N|all",
        meaning: "MiB of the segment of base pages, a power of two; all: as much as guest memory, down to one \
                  (all)",
        set: |c, value| mib(value, 1).map(|n| c.mib[0] = n),
        get: |c| spelled(c.mib[0]),
    },
    OptionRow {
        name: "large",
        values: "N|all",
        meaning: "MiB of the segment of 2 MiB pages, likewise (all)",
        set: |c, value| mib(value, 16).map(|n| c.mib[1] = n),
        get: |c| spelled(c.mib[1]),
    },
    OptionRow {
        name: "ways",
        values: "N",
        meaning: "ways of the sets of base pages, a power of two (16)",
        set: |c, value| power_of_two(value, 1, 16).map(|n| c.ways[0] = n),
        get: |c| c.ways[0].to_string(),
    },
    OptionRow {
        name: "held",
        values: "N",
        meaning: "lines of tags that a core holds, and as many of filters, a power of two (32)",
        set: |c, value| power_of_two(value, 4, 1024).map(|n| c.held = n as u32),
        get: |c| c.held.to_string(),
    },
    OptionRow {
        name: "full",
        values: "evict|keep",
        meaning: "what a page does whose set is full: it displaces one that was not used lately, which is \
                  copied to flexible memory, or is mapped there itself (evict)",
        set: |c, value| one_of(value, &FULL).map(|evict| c.evict = evict),
        get: |c| word_of(&c.evict, &FULL),
    },
]);

fn make(request: MachineConfig, sides: Sides) -> Result<Box<dyn DynMachine>, MachineError> {
    let (config, cores) = (request.options(&OPTIONS)?, request.vcpus);
    let config = config.within(request.guest_bytes);
    tables::build(request, sides, true, move |host, m| {
        Restricted::new(config, cores, host, m).map(Any::from)
    })
}

#[cfg(test)]
mod tests {
    use super::OPTIONS;
    use crate::scheme::options::SchemeOptions;

    #[test]
    fn options_are_read_back() {
        let all = "mib=64/large=128/ways=8/held=16/full=keep";
        assert_eq!(OPTIONS.normalize(all).unwrap(), all);
        assert_eq!(OPTIONS.normalize("mib=all/large=all/ways=16/held=32/full=evict").unwrap(), "");
        for (text, words) in [("mib=3", "power of two"), ("ways=32", "1 to 16"), ("large=8", "16 to")] {
            let e = OPTIONS.normalize(text).unwrap_err();
            assert!(e.contains(words), "{e}");
        }
    }
}
