//! Lines for people, beside results: what goes wrong with them never goes wrong with a command.

use std::fmt::Display;
use std::io::Write;

/// Writes a line to standard error. Whoever read that may have gone, which is no fault of ours; the
/// standard library's macros would panic.
pub fn tell(line: impl Display) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// As [`tell`], of this program.
pub fn note(line: &str) {
    tell(format_args!("nestwalk: {line}"));
}

/// As [`tell`], to standard output: what a command does, where that is its result.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}
