//! `learned`: a learned index in place of the tables of both dimensions (after LVM, MICRO 2025, which is
//! native, and Margaritov's proposal: predict where a translation is from its address, and check). A
//! walk has 3 references when the models are held and right. `learned-nested` has it in the host alone,
//! under a radix guest; `native-learned` on bare metal. The index is in `assist/tables/learned`, with
//! what was chosen.

use super::{Definition, Facts};
use crate::assist::tables::learned::{Learned, LearnedConfig};
use crate::assist::tables::{self, Any, Sides};
use crate::machine::DynMachine;
use crate::scheme::options::{OptionRow, OptionTable, whole};
use crate::scheme::vmm_options::VmmKind;
use crate::scheme::{MachineConfig, MachineError};

/// The catalogue's entry.
pub const DEFINITION: Definition = Definition {
    name: "learned",
    summary: "a learned index in guest and host, which predicts where entries are (after LVM)",
    virtualized: true,
    facts: Facts::NONE,
    vmm: VmmKind::Other,
    options: &OPTIONS,
    build: |request| make(request, Sides::Both),
};

/// In the host alone.
pub const NESTED: Definition = Definition {
    name: "learned-nested",
    summary: "a learned index in the host, under radix tables of the guest",
    build: |request| make(request, Sides::Host),
    ..DEFINITION
};

/// On bare metal.
pub const NATIVE: Definition = Definition {
    name: "native-learned",
    summary: "bare metal with a learned index (after LVM)",
    virtualized: false,
    build: |request| make(request, Sides::Native),
    ..DEFINITION
};

static OPTIONS: OptionTable<LearnedConfig> = OptionTable::new(&[
    OptionRow {
        name: "error",
        values: "N",
        meaning: "how far a line may stand from where it is predicted, in places (3)",
        set: |c, value| whole(value, 1, 64).map(|n| c.error = n),
        get: |c| c.error.to_string(),
    },
    OptionRow {
        name: "held",
        values: "N",
        meaning: "lines of four models each that a core holds, 0 for none (16)",
        set: |c, value| whole(value, 0, 1024).map(|n| c.held = n as usize),
        get: |c| c.held.to_string(),
    },
]);

fn make(request: MachineConfig, sides: Sides) -> Result<Box<dyn DynMachine>, MachineError> {
    let (config, cores) = (request.options(&OPTIONS)?, request.vcpus);
    let cached = sides == Sides::Host;
    tables::build(request, sides, cached, move |_, _| {
        Some(Any::from(Learned::new(config, cores)))
    })
}

#[cfg(test)]
mod tests {
    use super::OPTIONS;
    use crate::scheme::options::SchemeOptions;

    #[test]
    fn options_are_read_back() {
        let all = "error=5/held=0";
        assert_eq!(OPTIONS.normalize(all).unwrap(), all);
        assert_eq!(OPTIONS.normalize("error=3/held=16").unwrap(), "");
        assert!(OPTIONS.normalize("error=0").unwrap_err().contains("1 to 64"));
    }
}
