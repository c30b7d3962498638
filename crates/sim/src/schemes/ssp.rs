//! `ssp`: swift shadow paging (Sha et al., VEE 2021): shadow tables whose guest tables nobody protects.
//! No store to a table exits; the VMM compares when the guest flushes TLBs. What was chosen is told in
//! `hypervisor/shadow/swift.rs`.
//!
//! Left out is the second half of the authors' accelerated shadow paging (ASP; IEEE Transactions on
//! Computers, 2022): there a privileged mode of the processor (Sunway's, RISC-V's machine mode) answers
//! the faults on leaf entries by software that walks both dimensions. What entering it and such a walk
//! cost is not published in what could be read.

use super::shadow::Shadow;
use super::{Definition, Facts};
use crate::hypervisor::shadow::Rules;
use crate::machine::{DynMachine, Machine};
use crate::scheme::options::{OptionRow, OptionTable, whole};
use crate::scheme::vmm_options::VmmKind;
use crate::scheme::{MachineConfig, MachineError};

/// The catalogue's entry.
pub const DEFINITION: Definition = Definition {
    name: "ssp",
    summary: "shadow tables without write protection, compared when the guest flushes (swift shadow paging)",
    virtualized: true,
    facts: Facts { flushes_by_itself: true, sampled: true, ..Facts::NONE },
    vmm: VmmKind::Other,
    options: &OPTIONS,
    build,
};

/// How it is set up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SwiftConfig {
    /// Roots of shadow tables in the buffer of each vCPU, beside the current one. The publication's
    /// number is not known; chosen: as many as PCIDs that Linux gives out on x86 (6), less that one.
    pub roots: usize,
}

impl Default for SwiftConfig {
    fn default() -> Self {
        Self { roots: 5 }
    }
}

static OPTIONS: OptionTable<SwiftConfig> = OptionTable::new(&[OptionRow {
    name: "roots",
    values: "N",
    meaning: "address spaces besides the current one that a vCPU takes up again without an exit (5)",
    set: |c, value| whole(value, 0, 4096).map(|n| c.roots = n as usize),
    get: |c| c.roots.to_string(),
}]);

fn build(request: MachineConfig) -> Result<Box<dyn DynMachine>, MachineError> {
    let SwiftConfig { roots } = request.options(&OPTIONS)?;
    let rules = Rules { write_protect: false, previous_roots: roots, ..Rules::default() };
    Ok(Box::new(Machine::new(Shadow::with_rules(&request, rules), request)?))
}

#[cfg(test)]
mod tests {
    use super::OPTIONS;
    use crate::scheme::options::SchemeOptions;

    #[test]
    fn options_are_read_back() {
        assert_eq!(OPTIONS.normalize("roots=0").unwrap(), "roots=0");
        assert_eq!(OPTIONS.normalize("roots=5").unwrap(), "");
        assert!(OPTIONS.normalize("roots=x").unwrap_err().contains("whole number"));
    }
}
