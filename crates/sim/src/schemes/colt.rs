//! `colt`: nested paging with TLBs that coalesce (CoLT, Pham et al., MICRO 2012): up to eight base pages
//! whose leaf entries came with a walk's line share a TLB entry, if they are consecutive in memory.
//!
//! `native-colt` is the same on bare metal. Walks, faults and invalidations are those of `nested` and
//! `native`.

use super::{Definition, Facts};
use crate::assist::coalescing::colt::OPTIONS;
use crate::assist::coalescing::machine;
use crate::machine::DynMachine;
use crate::scheme::vmm_options::VmmKind;
use crate::scheme::{MachineConfig, MachineError};

/// The catalogue's entry.
pub const DEFINITION: Definition = Definition {
    name: "colt",
    summary: "nested, with TLB entries of up to 8 consecutive pages (CoLT)",
    virtualized: true,
    facts: Facts { own_l1_sets: true, sampled: true, ..Facts::NONE },
    vmm: VmmKind::Nested,
    options: &OPTIONS,
    build,
};

/// The catalogue's entry for bare metal.
pub const NATIVE: Definition = Definition {
    name: "native-colt",
    summary: "bare metal, with TLB entries of up to 8 consecutive pages (CoLT)",
    virtualized: false,
    facts: Facts { sampled: false, ..DEFINITION.facts },
    vmm: VmmKind::Other,
    ..DEFINITION
};

fn build(request: MachineConfig) -> Result<Box<dyn DynMachine>, MachineError> {
    let shape = request.options(&OPTIONS)?.shape();
    machine(request, shape)
}
