//! What events and time cost in energy, as a profile says.

use crate::profile::numbers;

numbers! {
    /// Energies of single events in picojoules, and powers. A level's arrays for several page sizes are
    /// looked up side by side, so a look-up of a TLB level pays for all of them.
    EnergyProfile "energy" {
        l1d_tlb_pj: "A look-up of the first-level data TLB.";
        l1i_tlb_pj: "A look-up of the first-level instruction TLB.";
        l1_tlb_fill_pj: "An entry put into a first-level TLB.";
        l2_tlb_pj: "A look-up of the second-level TLB.";
        l2_tlb_fill_pj: "An entry put into the second-level TLB.";
        walk_cache_pj:
            "A look-up of the paging-structure caches of linear or combined mappings, all levels.";
        nested_walk_cache_pj:
            "A look-up of the paging-structure caches of nested tables, all levels.";
        nested_tlb_pj: "A look-up of the nested TLB, where there is one.";
        run_buffer_pj:
            "A look-up of the fully associative buffer of runs beside the first level (CoLT), of \
             8 entries.";
        segment_check_pj: "A base-bound check and the addition after it.";
        escape_filter_pj: "A look-up of the escape filter, one beside each check.";
        l1_pj: "An access to a first-level cache: a word.";
        l2_pj: "An access to the second-level cache: a line.";
        llc_pj: "An access to the last-level cache: a line of the core's slice.";
        memory_pj: "An access to memory: a line.";
        core_w: "Power of one core at work with its share of the package, in watts.";
        static_share: "Share of that power that flows whatever the core does, 0 to 1.";
        translation_static_w:
            "Part of the static power that the TLBs and walk caches of a core draw, in watts.";
    }
}

impl EnergyProfile {
    /// Power of a core whatever it does, in watts.
    pub fn static_w(&self) -> f64 {
        self.core_w.value * self.static_share.value
    }

    /// Power of a core at work beyond that, in watts.
    pub fn dynamic_w(&self) -> f64 {
        self.core_w.value - self.static_w()
    }
}
