//! What can be typed after `report`.

use crate::formats::Format;
use clap::{Args as ClapArgs, ValueEnum};
use std::path::PathBuf;

pub(super) const EXAMPLES: &str = "\
Examples:
  nestwalk compare gups --footprint 64MiB --accesses 100k --output d
  nestwalk report d
  nestwalk report d -o d/report.html --figures d/figures --as svg,pgf
  nestwalk report d -o all.html --figures figures --format json

Results of several footprints also give figures over the footprint, and --samples figures over time.
docs/report.md says what each figure shows.

Exit code 0: done. 2: something was wrong, results that cannot be read for example; nothing is written
then.";

/// A format of figures.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Drawing {
    /// A picture for browsers and editors.
    Svg,
    /// TikZ, for `\input` in LaTeX.
    Pgf,
    /// Vega-Lite: the numbers and how to draw them.
    Vega,
}

/// Options of `report`.
#[derive(ClapArgs, Debug, Clone)]
pub struct ReportArgs {
    /// Folders of `compare --output`, or the results.json in them
    #[arg(value_name = "DIR|FILE", required = true)]
    pub results: Vec<PathBuf>,
    /// The page [default: report.html; none with --figures alone]
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Write each figure into DIR, with its numbers as CSV
    #[arg(long, value_name = "DIR")]
    pub figures: Option<PathBuf>,
    /// Formats of --figures
    #[arg(
        long = "as",
        value_name = "FORMATS",
        value_enum,
        value_delimiter = ',',
        default_value = "svg,pgf,vega",
        requires = "figures"
    )]
    pub drawings: Vec<Drawing>,
    /// A folder of `compare --samples`: exits and walks over time
    #[arg(long, value_name = "DIR")]
    pub samples: Option<PathBuf>,
    /// How it is told what was written; JSON also has the numbers of each figure
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}
