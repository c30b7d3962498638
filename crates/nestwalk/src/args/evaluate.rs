//! Arguments of `reproduce`, `explain` and `bench`.

use super::{Drawing, OutputArgs};
use crate::formats::Format;
use clap::{Args as ClapArgs, ValueEnum};
use std::path::PathBuf;

/// A publication.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Publication {
    /// Runtime-aware Paging Mode Switching: figures 4.1 to 4.6, and all policies.
    Thesis,
    /// Agile Paging (ISCA 2016): figure 5 and table VI.
    Agile,
    /// Efficient Memory Virtualization (MICRO 2014): page sizes, direct segments, VMM, Guest and
    /// Dual Direct, and the escape filter.
    Micro14,
    /// Enhancing and Exploiting Contiguity (ISCA 2020): CA paging and its rivals, `SpOT`, RMM, `CoLT`,
    /// anchors.
    Isca20,
    /// vMitosis (ASPLOS 2021): times and counters of the run that the cost of cycles is fitted to.
    Vmitosis,
    /// LMbench under EPT and shadow paging (PVM, SOSP 2023): what the prices of software are fitted
    /// to.
    Lmbench,
    /// Two lectures on memory virtualization: the questions that they leave open.
    Lectures,
    /// Other page tables: hashed, flattened, cuckoo, a TLB in memory, beside what their papers have.
    Tables,
    /// vMitosis (ASPLOS 2021): page tables on other nodes, moved and copied.
    Numa,
}

/// Tables that stay at a switch.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum KeepArg {
    /// None, as in the thesis.
    #[default]
    Nothing,
    /// Nested tables.
    Nested,
}

/// What VMs have behind them.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum LivedArg {
    /// They have just begun.
    #[default]
    Short,
    /// All of their memory has been touched.
    Long,
}

/// Options of `reproduce`.
#[derive(ClapArgs, Debug, Clone)]
pub struct ReproduceArgs {
    /// Which
    #[arg(value_enum)]
    pub publication: Publication,
    /// Recordings to run as well: every *.nwt of DIR, named as the file
    #[arg(long, value_name = "DIR")]
    pub recordings: Option<PathBuf>,
    /// Only these programs, separated by commas
    #[arg(long, value_name = "NAMES")]
    pub programs: Option<String>,
    /// Hardware profile [default: that of the publication's machine]
    #[arg(long)]
    pub profile: Option<String>,
    /// Accesses of each built-in program, in place of its own number, for a quick look; its
    /// warm-up is
    /// no longer then
    #[arg(long, value_name = "COUNT")]
    pub accesses: Option<String>,
    /// Memory of each built-in program, in place of its own
    #[arg(long, value_name = "BYTES")]
    pub footprint: Option<String>,
    /// Decides every random choice
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// The referee checks every access of every machine
    #[arg(long)]
    pub verify: bool,
    /// TLBs that a filtered recording is not exact for are simulated all the same; the program's
    /// description names them
    #[arg(long)]
    pub approximate: bool,
    /// Length of a policy's interval, simulated milliseconds
    #[arg(long, value_name = "MS", default_value_t = 20.0, help_heading = "The thesis")]
    pub interval: f64,
    /// Tables that stay at a switch
    #[arg(long, value_enum, default_value_t, help_heading = "The thesis")]
    pub keep: KeepArg,
    /// What VMs have behind them
    #[arg(long, value_enum, default_value_t, help_heading = "The thesis")]
    pub lived: LivedArg,
    /// Write each figure into DIR, published bars beside ours, with its numbers as CSV
    #[arg(long, value_name = "DIR", help_heading = "Figures")]
    pub figures: Option<PathBuf>,
    /// Formats of --figures
    #[arg(
        long = "as",
        value_name = "FORMATS",
        value_enum,
        value_delimiter = ',',
        default_value = "svg,pgf,vega",
        requires = "figures",
        help_heading = "Figures"
    )]
    pub drawings: Vec<Drawing>,
    /// The prices of a profile's software section are fitted again
    #[arg(long, help_heading = "LMbench")]
    pub fit: bool,
    /// Where results go.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Options of `explain`.
#[derive(ClapArgs, Debug, Clone)]
pub struct ExplainArgs {
    /// A scheme or machine, policy, profile, workload, pattern, heading or other word that `compare`
    /// prints, field of the JSON results (`results` for all), or number of a profile
    #[arg(required_unless_present = "fields", value_name = "WORD")]
    pub name: Vec<String>,
    /// All fields of the JSON results and numbers of profiles, as tables in Markdown
    #[arg(long, conflicts_with = "name")]
    pub fields: bool,
}

/// Options of `bench`.
#[derive(ClapArgs, Debug, Clone)]
pub struct BenchArgs {
    /// Accesses of each measurement
    #[arg(long, value_name = "COUNT", default_value = "20M")]
    pub accesses: String,
    /// Count the simulator's instructions under valgrind instead of seconds, and compare them with
    /// the numbers in this file
    #[arg(long, value_name = "FILE")]
    pub instructions: Option<PathBuf>,
    /// With --instructions: write the numbers instead of comparing them
    #[arg(long, requires = "instructions")]
    pub bless: bool,
    /// Measure how much slower a real guest is when it is recorded or compared live
    #[arg(long, conflicts_with = "instructions")]
    pub guest: bool,
    /// Run whole commands with this binary and with another one, in turn, and print how many times as
    /// fast this one is: the median of the pairs, the least and the greatest, beside the time of a loop
    /// that only goes to memory as often as a machine must
    #[arg(long, value_name = "OLD", conflicts_with_all = ["instructions", "guest", "small"])]
    pub against: Option<PathBuf>,
    /// With --against: how often both are run
    #[arg(long, value_name = "N", default_value_t = 5, requires = "against")]
    pub pairs: u16,
    /// Measure how time and memory grow with footprint, machines, vCPUs and threads; each run has a
    /// tenth of --accesses
    #[arg(long, conflicts_with_all = ["instructions", "guest", "case", "against"])]
    pub growth: bool,
    /// Only one measurement, as in walks/nested; with --against, those whose names begin so, several
    /// with commas between them
    #[arg(long, value_name = "CASE/MACHINE")]
    pub case: Option<String>,
    /// With --case: worker threads; of more than one, wall time is measured in place of the processor's
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        requires = "case",
        conflicts_with = "against"
    )]
    pub threads: usize,
    /// With --case: the small footprint that --instructions counts with
    #[arg(long, hide = true, requires = "case")]
    pub small: bool,
    /// How results are printed
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}
