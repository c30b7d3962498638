//! Valgrind's lackey as a source: saved logs ([`Lackey`]) and live programs ([`Lackey::run`]).
//!
//! The tool has no format for several processes: its lines carry no process number. What valgrind
//! 3.19 does was found by experiment:
//!
//! - `--log-socket`: a connection per `execve`, but a forked child goes on writing, unmarked, into
//!   its parent's connection; and a record costs about 3.5 µs, since each is a `send`.
//! - `--log-fd` and pipes: everything is mixed.
//! - `--log-file=DIR/%p.%n`: a file of its own per process. A fork reopens the log with the new
//!   process number and the next sequence number (`%n`, counted from 1 in each program), an
//!   `execve` opens `PID.1`. About 0.6 µs a record.
//!
//! What valgrind 3.19 shows of instructions was counted with programs whose accesses are known:
//!
//! - Its optimiser removes loads whose result is overwritten before anything can see it. Of 128 loads to
//!   one register, eight in a row, 16 are shown. With
//!   `--vex-iropt-register-updates=allregs-at-mem-access` all 128 are; but of loads whose register an
//!   instruction without an access overwrites only a third. With `allregs-at-each-insn` every load is
//!   there, and a log takes no longer, so live programs run with that.
//! - An atomic read-modify-write (`lock inc`, `lock xadd`, `xchg`) is shown as a load and a modify
//!   of the same bytes, `lock cmpxchg` as a modify, as is `inc` without a prefix. The load is not made
//!   by the program; it is left out.
//! - A repeated string instruction (`rep stos`) is shown as an instruction for each element and one for
//!   the end. It is one instruction, which is fetched once, with an access for each element.
//!
//! So a live program writes files, which are followed while they grow. Each file is unlinked as
//! soon as it is seen, so that nothing is left behind and a second `execve` of the same process
//! begins a new file instead of truncating the old one; what was read is given back to the file
//! system by punching holes; and when the unread part exceeds a limit, the traced processes are
//! stopped until it has shrunk. Disk use is thus bounded.

mod command;
mod follow;
mod live;
mod text;
mod write;

pub use live::{Live, RunOptions};
pub use text::LackeyStats;
pub(crate) use text::Text;

use crate::bytes::Window;
use crate::decoder::Decoder;
use crate::formats::Definition;
use crate::input::{not_empty, open_file};
use nestwalk_types::{Batch, Room, Source, SourceError, SourceInfo};
use std::ffi::OsString;
use std::io::Read;
use std::path::Path;

pub(crate) const FORMAT: Definition = Definition {
    endings: &["lackey"],
    write: Some(&write::WRITING),
    ..Definition::new(
        "lackey",
        "text of valgrind --tool=lackey --trace-mem=yes",
        text::matches,
        |input| Ok(Box::new(Lackey::source(input.name, input.window, input.total))),
    )
};

/// A saved log, as one process.
pub struct Lackey(Decoder<Text>);

impl Lackey {
    /// Reads the log at `path`: plain, gzip, xz or zstd, told by content.
    ///
    /// # Errors
    /// The file cannot be opened or is empty, as [`crate::open`] says it.
    pub fn from_log(path: &Path) -> Result<Self, SourceError> {
        let (name, file, total) = open_file(path)?;
        let window = not_empty(&name, Window::file(file))?;
        Ok(Self::source(name, window, total))
    }

    /// Reads a log from `reader`, which may be compressed; `name` is for messages.
    ///
    /// # Errors
    /// The first bytes cannot be read, or there are none.
    pub fn from_reader(
        name: &str,
        reader: impl Read + Send + 'static,
    ) -> Result<Self, SourceError> {
        let window = not_empty(name, Window::detect(Box::new(reader), true))?;
        Ok(Self::source(name.to_owned(), window, None))
    }

    pub(crate) fn source(name: String, window: Window, total: Option<u64>) -> Self {
        Self(Decoder::new(name, window, total, Text::default()))
    }

    /// Runs `command` under valgrind and follows it and its children; see [`Live`].
    ///
    /// # Errors
    /// Valgrind is not installed, the command does not exist or is not executable, or there is no
    /// room for temporary files.
    pub fn run(command: &[OsString], options: &RunOptions) -> Result<Live, SourceError> {
        Live::start(command, options)
    }

    /// What was found so far.
    pub fn stats(&self) -> LackeyStats {
        self.0.format().stats
    }
}

impl Source for Lackey {
    fn info(&self) -> SourceInfo {
        self.0.info()
    }
    fn next_batch(&mut self, batch: &mut Batch) -> Result<bool, SourceError> {
        self.0.next_batch(batch)
    }
    fn set_room(&mut self, room: Room) -> bool {
        self.0.set_room(room)
    }
    fn tally(&self) -> Vec<(&'static str, u64)> {
        self.0.tally()
    }
    fn position(&self) -> u64 {
        self.0.position()
    }
}
