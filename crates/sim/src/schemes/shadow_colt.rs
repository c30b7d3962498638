//! `shadow-colt`: shadow paging with TLBs that coalesce (CoLT, Pham et al., MICRO 2012). A walk ends
//! with one line, of shadow entries, which are contiguous where both dimensions are, so nothing has to
//! be composed.
//!
//! Faults, flushes and exits are those of `shadow`; the options are those of `colt`.

use super::shadow::Shadow;
use super::{Definition, Facts};
use crate::assist::coalescing::colt::OPTIONS;
use crate::assist::coalescing::{CoalescingTlbs, machine_of};
use crate::machine::DynMachine;
use crate::scheme::vmm_options::VmmKind;
use crate::scheme::{MachineConfig, MachineError};

/// The catalogue's entry.
pub const DEFINITION: Definition = Definition {
    name: "shadow-colt",
    summary: "shadow paging, with TLB entries of up to 8 consecutive pages (CoLT)",
    virtualized: true,
    facts: Facts { flushes_by_itself: true, own_l1_sets: true, sampled: true, ..Facts::NONE },
    vmm: VmmKind::Shadow,
    options: &OPTIONS,
    build,
};

fn build(config: MachineConfig) -> Result<Box<dyn DynMachine>, MachineError> {
    let shape = config.options(&OPTIONS)?.shape();
    let scheme = Shadow::new(&config)?;
    Ok(Box::new(machine_of::<_, CoalescingTlbs>(scheme, config, shape)?))
}
