//! JSON, indented.

use super::{Definition, View};

pub(super) static DEFINITION: Definition = Definition {
    name: "json",
    meaning: "One JSON object",
    file: "results.json",
    view: View::Json,
    render: |found, _| Ok(serde_json::to_string_pretty(&found.json()?)? + "\n"),
};
