//! What placement came to in one dimension, for the results.

use crate::measure::cost::clearing_ns;
use nestwalk_hw::Profile;
use nestwalk_mm::PlacementStats;
use serde::Serialize;

/// How pages were placed, what is held and not used, how fragmented memory is. See [`PLACEMENT_FIELDS`].
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[allow(missing_docs, reason = "PLACEMENT_FIELDS has unit and meaning of each")]
pub struct PlacementResult {
    pub at_target: u64,
    pub placed_again: u64,
    pub placed_elsewhere: u64,
    pub promotions: u64,
    pub reservations_broken: u64,
    pub set_aside_bytes: u64,
    pub untouched_bytes: u64,
    pub most_at_once: u64,
    pub most_at_once_us: f64,
    pub fmfi_start: f64,
    pub fmfi_end: f64,
}

/// Name, unit and meaning of each field of [`PlacementResult`], in its order.
pub static PLACEMENT_FIELDS: &[(&str, &str, &str)] = &[
    ("at_target", "count", "pages placed where the policy wanted them"),
    ("placed_again", "count", "pages for which it chose a new place, since that could not be had"),
    ("placed_elsewhere", "count", "pages that got any frame instead"),
    ("promotions", "count", "rows of small pages joined to a large one (placement reserve)"),
    ("reservations_broken", "count", "times that frames set aside were given to others"),
    (
        "set_aside_bytes",
        "bytes",
        "reservations, pools and primary regions that hold no page, at the end",
    ),
    (
        "untouched_bytes",
        "bytes",
        "mapped pages that were never used, at the end; a large page counts as used as a whole",
    ),
    ("most_at_once", "4 KiB pages", "the most that one fault or mapping allocated and cleared"),
    ("most_at_once_us", "us", "how long that took: pages * clear_page_ns"),
    ("fmfi_start", "share", "free memory that no 2 MiB page could use at the start, 0 to 1"),
    ("fmfi_end", "share", "the same at the end"),
];

impl PlacementResult {
    /// With the times of a profile.
    pub fn new(s: &PlacementStats, profile: &Profile) -> Self {
        Self {
            at_target: s.at_target,
            placed_again: s.placed_again,
            placed_elsewhere: s.placed_elsewhere,
            promotions: s.promotions,
            reservations_broken: s.reservations_broken,
            set_aside_bytes: s.set_aside_bytes,
            untouched_bytes: s.untouched_bytes,
            most_at_once: s.most_at_once,
            most_at_once_us: clearing_ns(s.most_at_once, profile) / 1e3,
            fmfi_start: s.fmfi_start,
            fmfi_end: s.fmfi_end,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_is_documented_in_order() {
        let text = serde_json::to_string(&PlacementResult::default()).unwrap();
        let keys = text.matches("\":").count();
        assert_eq!(keys, PLACEMENT_FIELDS.len());
        let mut from = 0;
        for (name, _, meaning) in PLACEMENT_FIELDS {
            let at = text[from..].find(&format!("\"{name}\":")).unwrap();
            from += at + 1;
            assert!(!meaning.is_empty());
        }
    }
}
