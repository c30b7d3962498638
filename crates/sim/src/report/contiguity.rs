//! What hardware that uses contiguity did, as results have it.

use crate::measure::counters::{CounterRow, Counters, Section};
use crate::report::results::{Field, served};
use crate::scheme::ContiguityState;
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};
use std::collections::BTreeMap;
use std::sync::LazyLock;

/// Counts of schemes that use contiguity, and the contiguity at the end.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ContiguityResult {
    #[serde(flatten, serialize_with = "by_name")]
    #[cfg_attr(feature = "schema", schemars(with = "crate::report::schema::ContiguityCounters"))]
    counters: Counters,
    /// References that nothing waited for, by where they were served.
    pub background_refs: BTreeMap<&'static str, u64>,
    /// The contiguity at the end.
    #[serde(flatten)]
    pub state: ContiguityState,
}

fn by_name<S: Serializer>(counters: &Counters, serializer: S) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(None)?;
    for (row, value) in counters.of(Section::Contiguity) {
        map.serialize_entry(row.name, &value)?;
    }
    map.end()
}

impl ContiguityResult {
    /// From what was counted and the state at the end.
    pub fn new(c: &Counters, state: ContiguityState) -> Self {
        Self { counters: c.clone(), background_refs: served(&c.background), state }
    }
}

/// Every field of [`ContiguityResult`], in its order.
pub static CONTIGUITY_FIELDS: LazyLock<Vec<Field>> = LazyLock::new(|| {
    let rows = Counters::ROWS.iter().filter(|row| row.section == Section::Contiguity);
    let mut fields: Vec<Field> = rows.map(CounterRow::field).collect();
    fields.extend([
        (
            "background_refs",
            "count",
            "references that nothing waited for: to range tables and anchors, and where wrong guesses led",
        ),
        ("guest_pages", "4 KiB pages", "what user mode may access, all address spaces, at the end"),
        ("guest_runs", "count", "runs in which it lies"),
        ("host_pages", "4 KiB pages", "guest memory that nested tables map at the end"),
        ("host_runs", "count", "runs in which it lies"),
        ("metadata_bytes", "bytes", "range tables at the end"),
        (
            "anchor_distance",
            "4 KiB pages",
            "from anchor to anchor in the largest address space; 0 without",
        ),
    ]);
    fields
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_is_documented_in_order() {
        let text = serde_json::to_string(&ContiguityResult::default()).unwrap();
        let found: Vec<&str> = text.split('"').skip(1).step_by(2).collect();
        let served = nestwalk_hw::ServedBy::NAMES;
        let found: Vec<&str> = found.into_iter().filter(|key| !served.contains(key)).collect();
        assert_eq!(found, CONTIGUITY_FIELDS.iter().map(|f| f.0).collect::<Vec<_>>());
    }
}
