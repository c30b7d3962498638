//! What can be typed after `step` and `reach`.

use crate::formats::Format;
use clap::{Args as ClapArgs, ValueEnum};
use std::path::PathBuf;

pub(super) const STEP_EXAMPLES: &str = "\
Examples:
  nestwalk step shadow-fault
  nestwalk step unsync --svg unsync.svg
  nestwalk step mode-switch --format json

A real machine runs a small stream of events, and tables and TLBs are compared after each action. docs/class.md
explains what is shown.

Exit code 0: done. 2: something was wrong.";

pub(super) const REACH_EXAMPLES: &str = "\
Examples:
  nestwalk reach --to 8MiB
  nestwalk reach native:4k,native:2m,nested:4k,nested:2m --to 16MiB --svg reach.svg
  nestwalk reach nested --from 16MiB --to 64MiB --source gups --accesses 50k

Exit code 0: done. 2: something was wrong.";

/// A scene of `step`.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum SceneArg {
    /// A page fault of the guest, and the hidden one that follows under shadow paging
    ShadowFault,
    /// A leaf table goes out of step with its shadow, and is brought back
    Unsync,
    /// A store to a page that is copied on write, under shadow paging
    Cow,
    /// The first access to guest memory under nested paging
    EptViolation,
    /// The VM goes from shadow to nested paging
    ModeSwitch,
}

/// Options of `step`.
#[derive(ClapArgs, Debug, Clone)]
pub struct StepArgs {
    /// What is shown
    #[arg(value_enum)]
    pub scene: SceneArg,
    /// Also draw it
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// Hardware profile
    #[arg(long, default_value = "cascade-lake-6252")]
    pub profile: String,
    /// How it is printed
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

/// Options of `reach`.
#[derive(ClapArgs, Debug, Clone)]
pub struct ReachArgs {
    /// Machines, as for `compare --machines`
    #[arg(default_value = "native,native:2m,shadow,nested,nested:2m")]
    pub machines: String,
    /// The smallest footprint
    #[arg(long, value_name = "BYTES", default_value = "2MiB")]
    pub from: String,
    /// The largest; each is twice the one before
    #[arg(long, value_name = "BYTES", default_value = "256MiB")]
    pub to: String,
    /// A workload or pattern that takes --footprint
    #[arg(long, default_value = "uniform")]
    pub source: String,
    /// Accesses of each run
    #[arg(long, value_name = "COUNT", default_value = "200k")]
    pub accesses: String,
    /// Hardware profile
    #[arg(long, default_value = "cascade-lake-6252")]
    pub profile: String,
    /// Also draw it
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// No progress on standard error
    #[arg(long, short)]
    pub quiet: bool,
    /// How it is printed
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}
