//! JSON schemas of what is written row by row: from the rows and the types of their values.

use super::results::Field;
use crate::measure::counters::{Counters, Section};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Map, Value};
use std::borrow::Cow;

/// An object whose fields have a unit and a meaning.
#[derive(Default)]
pub struct Object {
    properties: Map<String, Value>,
    required: Vec<String>,
}

impl Object {
    /// A field that every such object has.
    pub fn always<T: JsonSchema>(&mut self, generator: &mut SchemaGenerator, field: &Field) {
        self.required.push(field.0.into());
        self.sometimes::<T>(generator, field);
    }

    /// A field that some have. One whose meaning says when it is null may be that.
    pub fn sometimes<T: JsonSchema>(&mut self, generator: &mut SchemaGenerator, field: &Field) {
        let (name, unit, meaning) = *field;
        let mut schema = match meaning.contains("null if") {
            true => generator.subschema_for::<Option<T>>(),
            false => generator.subschema_for::<T>(),
        };
        schema.insert("description".into(), meaning.into());
        if !unit.is_empty() {
            schema.insert("unit".into(), unit.into());
        }
        self.properties.insert(name.into(), schema.to_value());
    }

    /// Its schema. A later version of nestwalk may have more fields.
    pub fn schema(self) -> Schema {
        json_schema!({ "type": "object", "properties": self.properties, "required": self.required })
    }
}

/// The counters of schemes whose tables are of another kind, as results have them.
pub(crate) struct TableCounters;

impl JsonSchema for TableCounters {
    fn schema_name() -> Cow<'static, str> {
        "TableCounters".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        counters(generator, Section::Tables)
    }
}

fn counters(generator: &mut SchemaGenerator, section: Section) -> Schema {
    let mut all = Object::default();
    for row in Counters::ROWS.iter().filter(|row| row.section == section) {
        all.always::<u64>(generator, &row.field());
    }
    all.schema()
}

/// The counters of machines of several nodes, as results have them.
pub(crate) struct NodeCounters;

impl JsonSchema for NodeCounters {
    fn schema_name() -> Cow<'static, str> {
        "NodeCounters".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        counters(generator, Section::Nodes)
    }
}

/// The counters of schemes that use contiguity, as results have them.
pub(crate) struct ContiguityCounters;

impl JsonSchema for ContiguityCounters {
    fn schema_name() -> Cow<'static, str> {
        "ContiguityCounters".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        counters(generator, Section::Contiguity)
    }
}
