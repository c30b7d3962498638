//! What can be typed behind `setup`.

use clap::Args as ClapArgs;
use std::path::PathBuf;

/// Examples, and what is needed.
pub const HELP: &str = "\
Examples:
  nestwalk setup
  nestwalk setup --kernel 6.12 --package gcc --package libc6-dev

QEMU 10.0 or newer must be installed: scripts/guest in the repository does that on Debian and Ubuntu, too.
Everything else is downloaded from the archives that this system's apt asks, without privilege, into
$NESTWALK_CACHE, or else nestwalk below $XDG_CACHE_HOME or ~/.cache. What is there already is left alone.
The plugin has a licence of its own (GPL-2.0-or-later), so it is no part of this program: cargo builds it
from the repository that this program was built in.";

/// Options of `setup`.
#[derive(ClapArgs, Debug, Clone)]
pub struct SetupArgs {
    /// A Debian package to have as well; may be given several times
    #[arg(long = "package", value_name = "NAME")]
    pub packages: Vec<String>,
    /// The kernel, as for `compare`
    #[arg(long, value_name = "VERSION|PACKAGE|FILE")]
    pub kernel: Option<String>,
    /// No progress on standard error; cargo's, of the plugin, stays
    #[arg(long, short)]
    pub quiet: bool,
    /// The repository, for the plugin [default: where this program was built]
    #[arg(long, value_name = "DIR")]
    pub source: Option<PathBuf>,
}
