//! Arguments of `completions`, `man` and `doctor`.

use crate::formats::Format;
use clap::Args as ClapArgs;
use clap_complete::Shell;
use std::path::PathBuf;

/// Below the help of `completions`.
pub const COMPLETIONS_HELP: &str = "\
Examples:
  nestwalk completions bash > ~/.local/share/bash-completion/completions/nestwalk
  nestwalk completions zsh > ~/.zfunc/_nestwalk        (with ~/.zfunc in fpath)
  nestwalk completions fish > ~/.config/fish/completions/nestwalk.fish";

/// Below the help of `man`.
pub const MAN_HELP: &str = "\
Examples:
  nestwalk man ~/.local/share/man/man1
  man nestwalk-compare";

/// Below the help of `doctor`.
pub const DOCTOR_HELP: &str = "\
Examples:
  nestwalk doctor
  nestwalk doctor --format json

It changes nothing. Recordings, traces, workloads and patterns need none of what it looks for; each line
says what does. The exit code is 0 whatever is missing.";

/// Options of `completions`.
#[derive(ClapArgs, Debug, Clone)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_enum, value_name = "SHELL")]
    pub shell: Shell,
}

/// Options of `man`.
#[derive(ClapArgs, Debug, Clone)]
pub struct ManArgs {
    /// The folder that gets nestwalk.1 and a page for each command; it is made if it is not there
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,
}

/// Options of `doctor`.
#[derive(ClapArgs, Debug, Clone)]
pub struct DoctorArgs {
    /// How it is printed
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// In place of / for /dev, /proc and /sys
    #[arg(long, hide = true, default_value = "/")]
    pub root: PathBuf,
}
