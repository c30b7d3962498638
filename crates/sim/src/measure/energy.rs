//! The energy model: counted events and the profile's numbers become nanojoules.
//!
//! ```text
//! TLBs            = look-ups and fills of both levels, of CoLT's buffer beside the first,
//!                   and of anchors in the second
//! walk caches     = look-ups of the paging-structure caches of both dimensions
//! nested TLB      = its look-ups
//! segments        = base-bound checks, each with a look-up of its escape filter; of range TLBs one
//!                   for each entry compared, without a filter
//! walk references = references to tables, faulted walks and background ones included, down to where
//!                   each was served
//! data            = the program's references, down to where each was served
//! core            = base_cpi of each instruction, and the guest kernel's time, at dynamic power
//! VMM             = its and the host kernel's time at dynamic power
//! static          = static power over the run time
//! ```
//!
//! The argument that this makes checkable: hardware that shortens walks may look more structures up,
//! which is dynamic energy, but the program ends sooner, which is static energy (Gandhi et al., MICRO
//! 2014).

use crate::measure::cost::{Cycles, base_cycles};
use crate::measure::counters::Counters;
use nestwalk_hw::energy::EnergyProfile;
use nestwalk_hw::profile::WalkCacheProfile;
use nestwalk_hw::{Profile, ServedBy};
use serde::Serialize;

/// Energy of one machine, by cause, in nanojoules.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Energy {
    /// Look-ups and fills of the first-level TLBs, look-ups of the buffer of runs beside them.
    pub l1_tlb: f64,
    /// Look-ups and fills of the second-level TLB.
    pub l2_tlb: f64,
    /// Look-ups of paging-structure caches.
    pub walk_caches: f64,
    /// Look-ups of the nested TLB.
    pub nested_tlb: f64,
    /// Base-bound checks.
    pub segment_checks: f64,
    /// Look-ups of escape filters.
    pub escape_filter: f64,
    /// The walker's references in caches and memory.
    pub walk_references: f64,
    /// The program's references in caches and memory.
    pub data: f64,
    /// Instructions of the program and work of the guest kernel.
    pub core: f64,
    /// Work of the VMM and the host kernel.
    pub vmm: f64,
    /// Static power over the run time, all of a core.
    #[serde(rename = "static")]
    pub static_power: f64,
    /// Of this, the TLBs' and walk caches'.
    pub translation_static: f64,
}

impl Energy {
    /// Dynamic energy of the translation hardware and of its references.
    pub fn translation(&self) -> f64 {
        self.l1_tlb
            + self.l2_tlb
            + self.walk_caches
            + self.nested_tlb
            + self.segment_checks
            + self.escape_filter
            + self.walk_references
    }

    /// All dynamic energy.
    pub fn dynamic(&self) -> f64 {
        self.translation() + self.data + self.core + self.vmm
    }

    /// Dynamic and static energy.
    pub fn total(&self) -> f64 {
        self.dynamic() + self.static_power
    }

    /// Prices the counters of one machine and the time that they took.
    pub fn of(c: &Counters, cycles: &Cycles, profile: &Profile) -> Self {
        let e = &profile.energy;
        let pj = |n: u64, each: f64| n as f64 * each / 1000.0;
        // Watts times nanoseconds.
        let clock = profile.core.clock();
        let over = |watts: f64, cycles: f64| clock.ns(watts * cycles);
        // What a profile does not have is not looked up.
        let having = |there: bool, look_ups: u64| if there { look_ups } else { 0 };
        let none = WalkCacheProfile::default();
        let checks = c.guest_segment_checks + c.vmm_segment_checks;
        let served = |place: ServedBy| {
            let walks = c.references.served_by(place) + c.faulted_references.served_by(place);
            walks + c.background[place as usize]
        };
        let base_cycles = base_cycles(c, profile);
        Self {
            l1_tlb: pj(c.l1d_tlb_lookups, e.l1d_tlb_pj.value)
                + pj(c.l1i_tlb_lookups, e.l1i_tlb_pj.value)
                + pj(c.l1_tlb_fills, e.l1_tlb_fill_pj.value)
                + pj(c.run_buffer_lookups, e.run_buffer_pj.value),
            l2_tlb: pj(c.l1_tlb_misses + c.anchor_lookups, e.l2_tlb_pj.value)
                + pj(c.walks, e.l2_tlb_fill_pj.value),
            walk_caches: pj(
                having(profile.walk_cache != none, c.walk_cache_lookups) + c.entry_cache_lookups,
                e.walk_cache_pj.value,
            ) + pj(
                having(profile.nested_walk_cache != none, c.nested_walks),
                e.nested_walk_cache_pj.value,
            ),
            nested_tlb: pj(
                having(profile.nested_tlb.is_some(), c.nested_tlb_hits + c.nested_walks),
                e.nested_tlb_pj.value,
            ),
            segment_checks: pj(checks + c.range_checks, e.segment_check_pj.value),
            escape_filter: pj(checks, e.escape_filter_pj.value),
            walk_references: references(&ServedBy::ALL.map(served), e),
            data: references(&with_repeats(&c.data, c.accesses - c.fetches), e)
                + references(&with_repeats(&c.fetch, c.fetches), e),
            core: over(e.dynamic_w(), base_cycles + cycles.guest_os),
            vmm: over(e.dynamic_w(), cycles.vmm),
            static_power: over(e.static_w(), cycles.total()),
            translation_static: over(e.translation_static_w.value, cycles.total()),
        }
    }
}

/// All accesses, where of each run only the first to each line is in `served`: the others find it in
/// the first level.
fn with_repeats(served: &[u64; ServedBy::COUNT], accesses: u64) -> [u64; ServedBy::COUNT] {
    let mut all = *served;
    all[ServedBy::L1 as usize] += accesses.saturating_sub(served.iter().sum());
    all
}

/// Energy in nanojoules of references by where they were served: each has looked up all that is before
/// that.
fn references(served: &[u64; ServedBy::COUNT], e: &EnergyProfile) -> f64 {
    let [l1, l2, llc, memory] = [&e.l1_pj, &e.l2_pj, &e.llc_pj, &e.memory_pj].map(|n| n.value);
    let down_to = [l1, l1 + l2, l1 + l2 + llc, l1 + l2 + llc + memory];
    served.iter().zip(down_to).map(|(n, pj)| *n as f64 * pj / 1000.0).sum()
}

/// Energy of one machine in results. Units and meanings: [`ENERGY_FIELDS`].
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[allow(missing_docs, reason = "documented in ENERGY_FIELDS, which a test compares with this")]
pub struct EnergyResult {
    #[serde(flatten)]
    pub parts: Energy,
    pub translation: f64,
    pub dynamic: f64,
    pub total: f64,
    pub ideal_total: f64,
    #[cfg_attr(feature = "schema", schemars(with = "Option<f64>"))]
    pub translation_pj_per_instruction: f64,
    pub dynamic_overhead_percent: f64,
    pub static_overhead_percent: f64,
    pub overhead_percent: f64,
}

impl EnergyResult {
    /// Prices a machine's counters, and those of the ideal machine with the same guest.
    pub fn new(c: &Counters, profile: &Profile, ideal: Option<&Counters>) -> Self {
        let of = |c: &Counters| Energy::of(c, &Cycles::of(c, profile), profile);
        let ratio = |a: f64, b: f64| if b == 0.0 { 0.0 } else { a / b };
        let (parts, ideal) = (of(c), ideal.map(of).unwrap_or_default());
        let percent = |x: f64| 100.0 * ratio(x, ideal.total());
        Self {
            translation: parts.translation(),
            dynamic: parts.dynamic(),
            total: parts.total(),
            ideal_total: ideal.total(),
            translation_pj_per_instruction: match c.instructions {
                0 => f64::NAN,
                n => 1000.0 * (parts.translation() / n as f64),
            },
            dynamic_overhead_percent: percent(parts.dynamic() - ideal.dynamic()),
            static_overhead_percent: percent(parts.static_power - ideal.static_power),
            overhead_percent: percent(parts.total() - ideal.total()),
            parts,
        }
    }
}

/// Name, unit and meaning of each field of [`EnergyResult`], in its order.
pub static ENERGY_FIELDS: &[(&str, &str, &str)] = &[
    ("l1_tlb", "nJ", "look-ups and fills of first-level TLBs, and of CoLT's buffer beside them"),
    ("l2_tlb", "nJ", "look-ups and fills of the second-level TLB"),
    ("walk_caches", "nJ", "look-ups of paging-structure caches, of both dimensions"),
    ("nested_tlb", "nJ", "look-ups of the nested TLB"),
    ("segment_checks", "nJ", "base-bound checks"),
    ("escape_filter", "nJ", "look-ups of escape filters, one beside each check"),
    (
        "walk_references",
        "nJ",
        "the walker's references in caches and memory, faulted walks included",
    ),
    ("data", "nJ", "the program's references in caches and memory"),
    ("core", "nJ", "instructions without their stalls, and the guest kernel's work"),
    ("vmm", "nJ", "the hypervisor's and the host kernel's work"),
    ("static", "nJ", "static power of the cores over the run time"),
    ("translation_static", "nJ", "of this, that of the TLBs and walk caches"),
    ("translation", "nJ", "dynamic energy of translation: TLBs to walk references"),
    ("dynamic", "nJ", "translation + data + core + VMM"),
    ("total", "nJ", "dynamic + static"),
    ("ideal_total", "nJ", "total of the ideal machine with the same guest"),
    (
        "translation_pj_per_instruction",
        "pJ",
        "translation per instruction; null if instructions are not known",
    ),
    ("dynamic_overhead_percent", "% of ideal_total", "dynamic energy above the ideal machine's"),
    ("static_overhead_percent", "% of ideal_total", "static energy above the ideal machine's"),
    ("overhead_percent", "% of ideal_total", "both together"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_is_documented_in_order() {
        let text = serde_json::to_string(&EnergyResult::default()).unwrap();
        let keys: Vec<String> =
            ENERGY_FIELDS.iter().map(|(name, _, _)| format!("\"{name}\":0.0")).collect();
        assert_eq!(text, format!("{{{}}}", keys.join(",")));
        assert!(ENERGY_FIELDS.iter().all(|f| !f.1.is_empty() && !f.2.is_empty()));
    }

    #[test]
    fn repeats_within_a_line_find_it_in_the_first_level() {
        assert_eq!(with_repeats(&[1, 2, 3, 4], 30), [21, 2, 3, 4]);
        assert_eq!(with_repeats(&[1, 2, 3, 4], 10), [1, 2, 3, 4]);
    }
}
