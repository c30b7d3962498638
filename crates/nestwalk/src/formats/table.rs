//! A table for people.

use super::{Definition, View};

pub(super) static DEFINITION: Definition = Definition {
    name: "table",
    meaning: "A table for people",
    file: "table.txt",
    view: View::Table,
    render: |found, screen| Ok(found.table(screen)),
};
