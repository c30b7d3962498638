//! Everything that hardware has in reach.

use super::Hardware;
use super::world::World;
use crate::measure::counters::Counters;

/// Everything that hardware has in reach: its own structures, the guest's tables, and the counters. No
/// memory of the host and no hypervisor, so that hardware cannot do what is software's.
pub struct Processor {
    /// The guest's tables, and the roots that are loaded.
    pub world: World,
    /// TLBs and caches.
    pub hardware: Hardware,
    /// What was counted.
    pub counters: Counters,
}
