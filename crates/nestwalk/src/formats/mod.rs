//! Formats in which results are printed and saved.

use clap::ValueEnum;

/// How results are printed.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Format {
    /// A table for people.
    #[default]
    Table,
    /// One JSON object.
    Json,
    /// A row per machine.
    Csv,
}
