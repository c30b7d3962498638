//! Arguments of `trace`.

use super::examples::CONVERT_HELP;
use super::trace_formats;
use crate::formats::Format;
use clap::{Args as ClapArgs, Subcommand};
use std::path::PathBuf;

/// What is done with traces of guests.
#[derive(Subcommand, Debug)]
pub enum TraceCommand {
    /// What a trace of any format holds, after reading it, and what made it
    Info(TraceInfoArgs),
    /// Check checksums, order, totals, and that every access has a mapping in the recorded page
    /// tables
    Verify(TraceVerifyArgs),
    /// Compress again, cut, and convert from and to other formats
    #[command(after_help = CONVERT_HELP)]
    Convert(Box<TraceConvertArgs>),
}

/// Options of `trace info`.
#[derive(ClapArgs, Debug, Clone)]
pub struct TraceInfoArgs {
    /// A trace of nestwalk, or any that `compare` reads
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Format of FILE, instead of telling it by the contents
    #[arg(long, value_name = "FORMAT")]
    pub trace_format: Option<String>,
    /// How it is printed: table or json
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// No progress on standard error
    #[arg(long, short)]
    pub quiet: bool,
}

/// Options of `trace verify`.
#[derive(ClapArgs, Debug, Clone)]
pub struct TraceVerifyArgs {
    /// A trace of nestwalk
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// How the verdict is printed: table or json
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// No progress on standard error
    #[arg(long, short)]
    pub quiet: bool,
}

/// Options of `trace convert`.
#[derive(ClapArgs, Debug, Clone)]
pub struct TraceConvertArgs {
    /// The trace to read: of nestwalk, or any that `compare` reads
    #[arg(value_name = "IN")]
    pub input: PathBuf,
    #[arg(value_name = "OUT", help = trace_formats::output())]
    pub output: PathBuf,
    #[arg(long, value_name = "FORMAT", help = trace_formats::written())]
    pub to: Option<String>,
    /// Format of IN, instead of telling it by the contents
    #[arg(long, value_name = "FORMAT")]
    pub trace_format: Option<String>,
    /// Only so many accesses from the beginning of the region of interest; of a recorded guest rounded
    /// up to a whole run
    #[arg(long, value_name = "COUNT")]
    pub accesses: Option<String>,
    /// Page tables that come with IN, as for `compare`
    #[arg(long, value_name = "FILE")]
    pub page_tables: Option<PathBuf>,
    /// To nestwalk: level of compression, 1 to 22 [default: 19]
    #[arg(long, value_parser = clap::value_parser!(i32).range(1..=22))]
    pub level: Option<i32>,
    /// To nestwalk: keep the lowest 6 bits of addresses, if IN has them
    #[arg(long)]
    pub whole_addresses: bool,
    /// Of a recorded Linux guest: as if its processor had PCIDs, which QEMU's has not
    #[arg(long)]
    pub pcids: bool,
    /// To nestwalk from other formats: memory of the modelled guest
    #[arg(long, value_name = "BYTES", default_value = "16GiB")]
    pub guest_memory: String,
    /// To other formats: leave out the kernel
    #[arg(long)]
    pub user_only: bool,
    /// To other formats: only the process of this number
    #[arg(long, value_name = "PID")]
    pub process: Option<u32>,
    /// To other formats: the vCPU, if there are several
    #[arg(long, value_name = "N")]
    pub vcpu: Option<u8>,
    /// To other formats: as many instructions as were retired, not only those of runs
    #[arg(long)]
    pub all_instructions: bool,
    /// No progress on standard error
    #[arg(long, short)]
    pub quiet: bool,
}
