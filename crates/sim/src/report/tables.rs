//! Tables in place of radix tables, as results have them.

use crate::measure::counters::{CounterRow, Counters, Section};
use crate::report::results::Field;
use crate::scheme::TableState;
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};
use std::sync::LazyLock;

/// What software did for such tables, and the tables at the end.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct TablesResult {
    #[serde(flatten, serialize_with = "by_name")]
    #[cfg_attr(feature = "schema", schemars(with = "crate::report::schema::TableCounters"))]
    counters: Counters,
    /// The tables at the end.
    #[serde(flatten)]
    pub state: TableState,
}

fn by_name<S: Serializer>(counters: &Counters, serializer: S) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(None)?;
    for (row, value) in counters.of(Section::Tables) {
        map.serialize_entry(row.name, &value)?;
    }
    map.end()
}

impl TablesResult {
    /// From what was counted and the tables at the end.
    pub fn new(c: &Counters, state: TableState) -> Self {
        Self { counters: c.clone(), state }
    }
}

/// Every field of [`TablesResult`], in its order.
pub static TABLE_FIELDS: LazyLock<Vec<Field>> = LazyLock::new(|| {
    let rows = Counters::ROWS.iter().filter(|row| row.section == Section::Tables);
    let mut fields: Vec<Field> = rows.map(CounterRow::field).collect();
    fields.extend([
        ("guest", "", "the guest's tables at the end; zeros if it has radix tables"),
        ("host", "", "the host's tables at the end; zeros if it has radix tables"),
        ("radix_bytes", "bytes", "the guest's radix tables, which the stream's kernel keeps"),
    ]);
    fields
});

/// Fields of each of them.
pub static STRUCTURE_FIELDS: &[Field] = &[
    ("bytes", "bytes", "memory of the tables"),
    ("places", "count", "places for entries, or for clusters of them"),
    ("used", "count", "of these, those in use"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_is_documented_in_order() {
        let found = serde_json::to_value(TablesResult::default()).unwrap();
        let keys: std::collections::BTreeSet<&str> =
            found.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(keys, TABLE_FIELDS.iter().map(|f| f.0).collect());
        let keys: std::collections::BTreeSet<&str> =
            found["guest"].as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(keys, STRUCTURE_FIELDS.iter().map(|f| f.0).collect());
    }
}
