//! What can be typed after `sweep`.

use crate::formats::Format;
use clap::Args as ClapArgs;
use std::path::PathBuf;

pub(super) const EXAMPLES: &str = "\
Examples:
  nestwalk sweep tlb.toml --output d
  nestwalk sweep tlb.toml --output d --shard 2/8
  parallel nestwalk sweep tlb.toml --output d --shard {}/8 ::: 1 2 3 4 5 6 7 8
  nestwalk sweep tlb.toml --output d --slurm --tasks 50 --sbatch=--time=2:00:00
  nestwalk sweep tlb.toml --output d --collect --format csv

A file of 2 times 3 points:
  [compare]                               # options of `compare`
  source = \"gups\"
  accesses = \"100k\"
  machines = \"native,shadow,nested\"
  [axes]                                  # lists of values, of options or of keys of config.toml
  footprint = [\"16MiB\", \"64MiB\"]
  profile.l2_tlb.entries = [768, 1536, 3072]

Each point's result is a file in DIR/points. The same command, whoever ended it before and how, goes on with
what is missing; no point is run twice. docs/sweep.md has more.

Exit code 0: all points that were asked for are there. 2: something was wrong, or interrupted; what was
computed is kept.";

/// Options of `sweep`.
#[derive(ClapArgs, Debug, Clone)]
pub struct SweepArgs {
    /// What is swept
    #[arg(value_name = "FILE.toml")]
    pub file: PathBuf,
    /// The folder of the points' results, and of the table of all: results.csv, results.json
    #[arg(long, short, value_name = "DIR")]
    pub output: PathBuf,
    /// Run only the I-th of N shares, and make no table
    #[arg(long, value_name = "I/N", conflicts_with_all = ["slurm", "collect"])]
    pub shard: Option<String>,
    /// Run nothing: make the table of what is there
    #[arg(long, conflicts_with = "slurm")]
    pub collect: bool,
    /// Run nothing: say which points there are, and which are done
    #[arg(long, conflicts_with_all = ["slurm", "collect", "shard"])]
    pub list: bool,
    /// Also write the long table into this file, in Parquet
    #[arg(long, value_name = "FILE.parquet", conflicts_with_all = ["shard", "list"])]
    pub table: Option<PathBuf>,
    /// Leave out points whose values do not go together, and say which; without it they are an error
    #[arg(long)]
    pub skip_invalid: bool,
    /// Points at a time
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        value_parser = clap::value_parser!(u16).range(1..=1024)
    )]
    pub jobs: u16,
    /// Worker threads of each point; results do not depend on it [default: the cores, shared by --jobs]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Submit what is missing as a job array of Slurm
    #[arg(long, help_heading = "Slurm")]
    pub slurm: bool,
    /// Tasks of the array, at most
    #[arg(
        long,
        value_name = "N",
        default_value_t = 100,
        value_parser = clap::value_parser!(u32).range(1..=1_000_000),
        requires = "slurm",
        help_heading = "Slurm"
    )]
    pub tasks: u32,
    /// An option for sbatch, as in --sbatch=--partition=long; may be given several times
    #[arg(
        long,
        value_name = "OPTION",
        allow_hyphen_values = true,
        requires = "slurm",
        help_heading = "Slurm"
    )]
    pub sbatch: Vec<String>,
    /// Wait for the array's end, and make the table
    #[arg(long, requires = "slurm", help_heading = "Slurm")]
    pub wait: bool,
    /// How it is printed
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// No progress on standard error
    #[arg(long, short)]
    pub quiet: bool,
}
