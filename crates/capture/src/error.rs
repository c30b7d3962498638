//! What can go wrong between a command and a guest that runs it.

use std::io;
use std::path::{Path, PathBuf};

/// Why a guest could not be made, started or waited for.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// Something that must be installed or downloaded first is not there.
    #[error("{piece} is missing; this gets it: {command}")]
    Missing {
        /// What is missing.
        piece: String,
        /// The exact command that gets it.
        command: String,
    },
    /// A file could not be read, written or found.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was being done, as a verb: "read", "create".
        action: &'static str,
        /// The file it was being done to.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A program of the host failed.
    #[error("{command} failed: {message}")]
    Tool {
        /// The program with the arguments that matter.
        command: String,
        /// Its own words, or its exit status where it said nothing.
        message: String,
    },
    /// A file is not what it should be.
    #[error("{}: {what}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it and where.
        what: String,
    },
    /// What was asked for cannot be done; the text says what can.
    #[error("{0}")]
    Refused(String),
    /// The guest ended before the command's status was known.
    #[error("the guest ended without the command's exit status: {reason}{}", quoted(last_words))]
    Died {
        /// What is known of the reason.
        reason: String,
        /// The last lines of QEMU's messages and of the guest's console.
        last_words: String,
    },
}

fn quoted(lines: &str) -> String {
    if lines.is_empty() { String::new() } else { format!("; the last lines were:\n{lines}") }
}

/// Says what was done to which file when the system refuses it.
pub(crate) trait At<T> {
    /// Turns an error of the system into one that names the file.
    fn at(self, action: &'static str, path: &Path) -> Result<T, GuestError>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, action: &'static str, path: &Path) -> Result<T, GuestError> {
        self.map_err(|source| GuestError::Io { action, path: path.to_path_buf(), source })
    }
}
