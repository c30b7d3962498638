//! What can be typed after `advise`.

use super::{GuestArgs, trace_formats};
use crate::formats::Format;
use clap::Args as ClapArgs;
use std::ffi::OsString;
use std::path::PathBuf;

pub(super) const EXAMPLES: &str = "\
Examples:
  nestwalk advise redis
  nestwalk advise gups --footprint 64MiB --accesses 200k
  nestwalk advise trace.champsim.xz --format json
  nestwalk advise 4711
  nestwalk advise 4711 --seconds 10 --sampler damon
  nestwalk advise --guest --kernel 6.12 -- redis-benchmark -n 1000

A number is a process that runs, of a program or of a virtual machine; its accesses are sampled by what the
kernel has, and two stand-ins that the samples allow are simulated. docs/advise.md says what the answer is
worth.

Exit code 0: done. 2: something was wrong, or the process ended meanwhile; what was found before is printed.";

/// Options of `advise`.
#[derive(ClapArgs, Debug, Clone)]
pub struct AdviseArgs {
    /// A process that runs, or what `compare` takes as a source: a recording, workload, pattern or trace
    #[arg(value_name = "PID|SOURCE", required_unless_present = "guest")]
    pub target: Option<String>,
    /// Advise on the command after `--`, which runs in a real Linux guest and is recorded first
    #[arg(long, requires = "command", conflicts_with = "target")]
    pub guest: bool,
    /// The command for --guest
    #[arg(last = true, value_name = "COMMAND", requires = "guest")]
    pub command: Vec<OsString>,
    /// Seeds, over which ranges are [default: 3; 1 of each stand-in of a process]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub repeat: Option<u16>,
    /// Accesses to simulate, 0 for all [default: all of recordings and traces, 2M of others]
    #[arg(long, value_name = "COUNT")]
    pub accesses: Option<String>,
    /// Memory that a workload or pattern works on
    #[arg(long, value_name = "BYTES")]
    pub footprint: Option<String>,
    /// Hardware profile: a built-in name or a .toml file
    #[arg(long, default_value = "cascade-lake-6252")]
    pub profile: String,
    /// The first seed
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    #[arg(long, value_name = "FORMAT", help = trace_formats::read())]
    pub trace_format: Option<String>,
    /// TLBs that a filtered recording is not exact for are simulated all the same
    #[arg(long)]
    pub approximate: bool,
    /// How long a process is sampled
    #[arg(long, value_name = "SECONDS", default_value_t = 3.0, help_heading = "Processes")]
    pub seconds: f64,
    /// By what accesses are sampled: damon, idle, referenced, soft-dirty [default: the first that works]
    #[arg(long, value_name = "NAME", help_heading = "Processes")]
    pub sampler: Option<String>,
    /// The guest of --guest.
    #[command(flatten)]
    pub real: GuestArgs,
    /// How it is printed; csv has a row per choice
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// As --format json
    #[arg(long, conflicts_with = "format")]
    pub json: bool,
    /// No progress on standard error
    #[arg(long, short)]
    pub quiet: bool,
    /// Another /proc
    #[arg(long, hide = true)]
    pub proc: Option<PathBuf>,
    /// Another /sys
    #[arg(long, hide = true)]
    pub sys: Option<PathBuf>,
}

impl AdviseArgs {
    /// How it is printed.
    pub fn format(&self) -> Format {
        if self.json { Format::JSON } else { self.format }
    }
}
