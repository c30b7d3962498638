//! Machines of several nodes, as results have them.

use crate::measure::counters::{CounterRow, Counters, Section};
use crate::report::results::Field;
use crate::scheme::NodesState;
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};
use std::sync::LazyLock;

/// What memory of other nodes served, and where frames lie at the end.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct NodesResult {
    #[serde(flatten, serialize_with = "by_name")]
    #[cfg_attr(feature = "schema", schemars(with = "crate::report::schema::NodeCounters"))]
    counters: Counters,
    /// Frames at the end.
    #[serde(flatten)]
    pub state: NodesState,
}

fn by_name<S: Serializer>(counters: &Counters, serializer: S) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(None)?;
    for (row, value) in counters.of(Section::Nodes) {
        map.serialize_entry(row.name, &value)?;
    }
    map.end()
}

impl NodesResult {
    /// From what was counted and the frames at the end.
    pub fn new(c: &Counters, state: NodesState) -> Self {
        Self { counters: c.clone(), state }
    }
}

/// Every field of [`NodesResult`], in its order.
pub static NODE_FIELDS: LazyLock<Vec<Field>> = LazyLock::new(|| {
    let rows = Counters::ROWS.iter().filter(|row| row.section == Section::Nodes);
    let mut fields: Vec<Field> = rows.map(CounterRow::field).collect();
    fields.extend([
        ("frames", "4 KiB pages", "frames in use at the end, by node"),
        ("guest_tables", "4 KiB pages", "of these, the guest's tables"),
        ("nested_tables", "4 KiB pages", "of these, nested tables"),
    ]);
    fields
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_is_documented_in_order() {
        let found = serde_json::to_value(NodesResult::default()).unwrap();
        let keys: std::collections::BTreeSet<&str> =
            found.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(keys, NODE_FIELDS.iter().map(|f| f.0).collect());
    }
}
