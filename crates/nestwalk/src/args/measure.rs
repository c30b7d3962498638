//! What can be typed after `measure`.

use crate::formats::Format;
use clap::Args as ClapArgs;
use std::path::PathBuf;

pub(super) const EXAMPLES: &str = "\
Examples:
  nestwalk measure --quick
  nestwalk measure --quick --write here.toml --svg here.svg
  nestwalk compare gups --footprint 64MiB --accesses 100k --profile here.toml
  nestwalk measure --check here.toml --quick

It only measures time: no privilege, no counters. What cannot be told is unknown, with the reason.
docs/measure.md explains the figures.

Exit code 0: done. 2: something was wrong.";

/// Options of `measure`.
#[derive(ClapArgs, Debug, Clone)]
pub struct MeasureArgs {
    /// Half a minute at most, with fewer repetitions
    #[arg(long)]
    pub quick: bool,
    /// Write what was measured as a hardware profile, over the nearest built-in one
    #[arg(long, value_name = "FILE.toml")]
    pub write: Option<PathBuf>,
    /// Run programs for real and simulated with this profile, side by side, instead: a pointer chase,
    /// GUPS, STREAM and a B-tree over 64 MiB
    #[arg(long, value_name = "PROFILE", conflicts_with_all = ["write", "svg"])]
    pub check: Option<String>,
    /// Also draw the time of a load against pages
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// How it is printed; csv has a row per figure
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// As --format json
    #[arg(long, conflicts_with = "format")]
    pub json: bool,
    /// No progress on standard error
    #[arg(long, short)]
    pub quiet: bool,
}

impl MeasureArgs {
    /// How it is printed.
    pub fn format(&self) -> Format {
        if self.json { Format::JSON } else { self.format }
    }
}
