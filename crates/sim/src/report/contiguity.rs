//! What hardware that uses contiguity did, as results have it.

use crate::measure::counters::Counters;
use crate::scheme::ContiguityState;
use nestwalk_hw::ServedBy;
use serde::Serialize;
use std::collections::BTreeMap;

/// Counts of schemes that use contiguity, and the contiguity at the end. The counters' own
/// documentation has their meanings.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize)]
#[allow(missing_docs, reason = "documented in the command line's list of fields")]
pub struct ContiguityResult {
    pub predictions: u64,
    pub predictions_right: u64,
    pub predictions_wrong: u64,
    pub predictions_squashed: u64,
    pub prediction_fills: u64,
    pub prediction_bypasses: u64,
    pub hidden_walk_cycles: u64,
    pub misprediction_cycles: u64,
    pub range_hits: u64,
    pub range_checks: u64,
    pub range_walks: u64,
    pub anchor_hits: u64,
    pub anchor_lookups: u64,
    pub anchor_fills: u64,
    pub anchor_changes: u64,
    pub contiguity_updates: u64,
    pub background_refs: BTreeMap<&'static str, u64>,
    #[serde(flatten)]
    pub state: ContiguityState,
}

impl ContiguityResult {
    /// From what was counted and the state at the end.
    pub fn new(c: &Counters, state: ContiguityState) -> Self {
        Self {
            predictions: c.predictions,
            predictions_right: c.predictions_right,
            predictions_wrong: c.predictions_wrong,
            predictions_squashed: c.predictions_squashed,
            prediction_fills: c.prediction_fills,
            prediction_bypasses: c.prediction_bypasses,
            hidden_walk_cycles: c.hidden_walk_cycles,
            misprediction_cycles: c.misprediction_cycles,
            range_hits: c.range_hits,
            range_checks: c.range_checks,
            range_walks: c.range_walks,
            anchor_hits: c.anchor_hits,
            anchor_lookups: c.anchor_lookups,
            anchor_fills: c.anchor_fills,
            anchor_changes: c.anchor_changes,
            contiguity_updates: c.contiguity_updates,
            background_refs: ServedBy::NAMES.into_iter().zip(c.background).collect(),
            state,
        }
    }
}
