//! `clustered`: nested paging with a second-level TLB of which some ways hold clusters (Pham et al.,
//! HPCA 2014): up to eight aligned base pages whose frames lie in eight aligned frames, in any order.
//!
//! `native-clustered` is the same on bare metal. Walks, faults and invalidations are those of `nested`
//! and `native`.

use super::{Definition, Facts};
use crate::assist::coalescing::clustered::OPTIONS;
use crate::assist::coalescing::machine;
use crate::machine::DynMachine;
use crate::scheme::vmm_options::VmmKind;
use crate::scheme::{MachineConfig, MachineError};

/// The catalogue's entry.
pub const DEFINITION: Definition = Definition {
    name: "clustered",
    summary: "nested, with second-level TLB entries of up to 8 pages in 8 frames, in any order",
    virtualized: true,
    facts: Facts { sampled: true, ..Facts::NONE },
    vmm: VmmKind::Nested,
    options: &OPTIONS,
    build,
};

/// The catalogue's entry for bare metal.
pub const NATIVE: Definition = Definition {
    name: "native-clustered",
    summary: "bare metal, with second-level TLB entries of up to 8 pages in 8 frames, in any order",
    virtualized: false,
    facts: Facts { sampled: false, ..DEFINITION.facts },
    vmm: VmmKind::Other,
    ..DEFINITION
};

fn build(request: MachineConfig) -> Result<Box<dyn DynMachine>, MachineError> {
    let shape = request.options(&OPTIONS)?.shape(&request.profile);
    machine(request, shape)
}
