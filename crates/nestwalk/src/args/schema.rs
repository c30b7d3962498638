//! What can be typed after `schema`.

use clap::{Args as ClapArgs, ValueEnum};

pub(super) const EXAMPLES: &str = "\
Examples:
  nestwalk schema > results.schema.json
  nestwalk schema sweep

It needs a build with the feature schema: cargo build --release --features schema. docs/formats.md says what may
change from version to version, and what may not.";

/// A file that has a schema.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum SchemaOf {
    /// The results.json of `compare --output`, which `compare --format json` prints.
    #[default]
    Results,
    /// The results.json of `sweep --output`.
    Sweep,
}

/// Options of `schema`.
#[derive(ClapArgs, Debug, Clone)]
pub struct SchemaArgs {
    /// Of what
    #[arg(value_enum, default_value_t)]
    pub of: SchemaOf,
}
