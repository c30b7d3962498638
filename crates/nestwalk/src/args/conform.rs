//! What can be typed after `conform`.

use crate::formats::Format;
use clap::Args as ClapArgs;
use std::path::PathBuf;

pub(super) const EXAMPLES: &str = "\
Examples:
  nestwalk conform
  nestwalk conform --kvm 6.12 --random 1000
  nestwalk conform flood-directory --events
  nestwalk conform --nested
  nestwalk conform --list
  nestwalk conform --recorded gcc                   (a recorded Linux guest in place of scripts)
  nestwalk conform --recorded gcc --nested --kvm 6.1 --format json
  nestwalk conform --live                           (boots kernels 6.1 and 6.12 under QEMU)
  nestwalk conform --live mine.txt --events         (asks the real KVM about scripts of your own)

A script is what a small guest does to its page tables. The real KVM's answers were recorded; the model is
compared with them event by event. docs/conformance.md says what agrees, and has the language.

Exit code 0: every event agrees. 2: one does not, or something was wrong.";

/// Options of `conform`.
#[derive(ClapArgs, Debug, Clone)]
pub struct ConformArgs {
    /// Scripts by name, or files of scripts [default: all that come with the program]
    #[arg(value_name = "SCRIPT|FILE")]
    pub scripts: Vec<String>,
    /// The Linux version whose KVM is the referee [default: each that was asked]
    #[arg(long, value_name = "VERSION", value_parser = ["6.1", "6.12"])]
    pub kvm: Vec<String>,
    /// Random scripts to compare, by seeds from 1 [default: 100; none if scripts are named]
    #[arg(long, value_name = "N")]
    pub random: Option<u64>,
    /// Recorded guests in place of scripts: storm, gcc, redis, or with --live a file
    #[arg(
        long,
        value_name = "NAME|FILE",
        value_delimiter = ',',
        conflicts_with_all = ["scripts", "random", "list", "events"]
    )]
    pub recorded: Vec<String>,
    /// Nested paging in place of shadow paging
    #[arg(long)]
    pub nested: bool,
    /// Ask about so many actions of each recorded guest, from its beginning [default: 300000]
    #[arg(long, value_name = "N", requires_all = ["recorded", "live"])]
    pub actions: Option<usize>,
    /// Ask the real KVM again, under QEMU
    #[arg(long)]
    pub live: bool,
    /// Write its answers here, a file per kernel
    #[arg(long, value_name = "DIR", requires = "live")]
    pub record: Option<PathBuf>,
    /// The clone of the repository in which the small guest's VMM is built [default: where this program
    /// was built]
    #[arg(long, value_name = "DIR", requires = "live")]
    pub source: Option<PathBuf>,
    /// Print every event of each script
    #[arg(long)]
    pub events: bool,
    /// Print the scripts, and compare nothing
    #[arg(long, conflicts_with_all = ["live", "events"])]
    pub list: bool,
    /// How it is printed; csv has a row per script and kernel
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// No progress on standard error
    #[arg(long, short)]
    pub quiet: bool,
}
