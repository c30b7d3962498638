//! What events and time cost in energy, as a profile says.

use crate::profile::Sourced;
use serde::{Deserialize, Serialize};

/// Energies of single events in picojoules, and powers. A level's arrays for several page sizes are
/// looked up side by side, so a look-up of a TLB level pays for all of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnergyProfile {
    /// A look-up of the first-level data TLB.
    pub l1d_tlb_pj: Sourced,
    /// A look-up of the first-level instruction TLB.
    pub l1i_tlb_pj: Sourced,
    /// An entry put into a first-level TLB.
    pub l1_tlb_fill_pj: Sourced,
    /// A look-up of the second-level TLB.
    pub l2_tlb_pj: Sourced,
    /// An entry put into the second-level TLB.
    pub l2_tlb_fill_pj: Sourced,
    /// A look-up of the paging-structure caches of linear or combined mappings, all levels.
    pub walk_cache_pj: Sourced,
    /// A look-up of the paging-structure caches of nested tables, all levels.
    pub nested_walk_cache_pj: Sourced,
    /// A look-up of the nested TLB, where there is one.
    pub nested_tlb_pj: Sourced,
    /// A look-up of the fully associative buffer of runs beside the first level (CoLT), of 8 entries.
    pub run_buffer_pj: Sourced,
    /// A base-bound check and the addition after it.
    pub segment_check_pj: Sourced,
    /// A look-up of the escape filter, one beside each check.
    pub escape_filter_pj: Sourced,
    /// An access to a first-level cache: a word.
    pub l1_pj: Sourced,
    /// An access to the second-level cache: a line.
    pub l2_pj: Sourced,
    /// An access to the last-level cache: a line of the core's slice.
    pub llc_pj: Sourced,
    /// An access to memory: a line.
    pub memory_pj: Sourced,
    /// Power of one core at work with its share of the package, in watts.
    pub core_w: Sourced,
    /// Share of that power that flows whatever the core does, 0 to 1.
    pub static_share: Sourced,
    /// Part of the static power that the TLBs and walk caches of a core draw, in watts.
    pub translation_static_w: Sourced,
}

impl EnergyProfile {
    /// All numbers with their keys.
    pub(crate) fn numbers(&self) -> [(&'static str, &Sourced); 18] {
        [
            ("energy.l1d_tlb_pj", &self.l1d_tlb_pj),
            ("energy.l1i_tlb_pj", &self.l1i_tlb_pj),
            ("energy.l1_tlb_fill_pj", &self.l1_tlb_fill_pj),
            ("energy.l2_tlb_pj", &self.l2_tlb_pj),
            ("energy.l2_tlb_fill_pj", &self.l2_tlb_fill_pj),
            ("energy.walk_cache_pj", &self.walk_cache_pj),
            ("energy.nested_walk_cache_pj", &self.nested_walk_cache_pj),
            ("energy.nested_tlb_pj", &self.nested_tlb_pj),
            ("energy.run_buffer_pj", &self.run_buffer_pj),
            ("energy.segment_check_pj", &self.segment_check_pj),
            ("energy.escape_filter_pj", &self.escape_filter_pj),
            ("energy.l1_pj", &self.l1_pj),
            ("energy.l2_pj", &self.l2_pj),
            ("energy.llc_pj", &self.llc_pj),
            ("energy.memory_pj", &self.memory_pj),
            ("energy.core_w", &self.core_w),
            ("energy.static_share", &self.static_share),
            ("energy.translation_static_w", &self.translation_static_w),
        ]
    }

    /// Power of a core whatever it does, in watts.
    pub fn static_w(&self) -> f64 {
        self.core_w.value * self.static_share.value
    }

    /// Power of a core at work beyond that, in watts.
    pub fn dynamic_w(&self) -> f64 {
        self.core_w.value - self.static_w()
    }
}
