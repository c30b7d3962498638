//! Comma-separated values, with a line of titles.

use super::{Definition, View};

pub(super) static DEFINITION: Definition = Definition {
    name: "csv",
    meaning: "A row per machine",
    file: "results.csv",
    view: View::Rows,
    render: |found, _| Ok(nestwalk_report::to_csv(&found.rows()?)?),
};
