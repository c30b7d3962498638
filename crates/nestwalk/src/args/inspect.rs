//! What can be typed after `inspect`.

use crate::formats::Format;
use clap::Args as ClapArgs;
use std::path::PathBuf;

pub(super) const EXAMPLES: &str = "\
Examples:
  nestwalk inspect 4711
  nestwalk inspect 4711 --watch 5
  nestwalk inspect 4711 --json
  nestwalk inspect --snapshot 815 > guest.json      (in the guest)
  nestwalk inspect 4711 --guest guest.json          (on the host, of its QEMU)
  nestwalk inspect 4711 --ram 0x7f2a00000000:8GiB --guest guest.json

Frame numbers are shown to root only (CAP_SYS_ADMIN); without them it tells what it can, and what is
missing. docs/inspect.md explains the tables.

Exit code 0: done; with --watch also when the process ended. 2: something was wrong, or the process ended
while it was read; what had been read is printed.";

/// Options of `inspect`.
#[derive(ClapArgs, Debug, Clone)]
pub struct InspectArgs {
    /// The process
    #[arg(value_name = "PID", value_parser = clap::value_parser!(u32).range(1..))]
    pub pid: u32,
    /// Look again every so many seconds, a line each, until the process ends or Ctrl-C; then the whole
    /// of the last look
    #[arg(
        long,
        value_name = "SECONDS",
        num_args = 0..=1,
        default_missing_value = "1",
        conflicts_with_all = ["snapshot", "guest"]
    )]
    pub watch: Option<f64>,
    /// Print every run of the process as JSON, for --guest on the host
    #[arg(long, conflicts_with_all = ["guest", "ram"])]
    pub snapshot: bool,
    /// What --snapshot printed in the guest of this QEMU: guest, host, and both dimensions together
    #[arg(long, value_name = "FILE")]
    pub guest: Option<PathBuf>,
    /// Where guest RAM is in the process, and at which guest-physical address [default: found by QEMU's
    /// command line]; may be given several times
    #[arg(long, value_name = "ADDRESS:BYTES[:GPA]")]
    pub ram: Vec<String>,
    /// Every mapping, not only the largest
    #[arg(long)]
    pub all: bool,
    /// How it is printed; csv has a row per mapping
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
}

impl InspectArgs {
    /// How it is printed.
    pub fn format(&self) -> Format {
        if self.json { Format::JSON } else { self.format }
    }
}
