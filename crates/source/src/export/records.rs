//! What a format that can be written says of itself, and a file of its records.

use super::sink::Sink;
use nestwalk_types::ProcessId;
use std::io::{self, Write};

/// Where something is, and how long, bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Item {
    pub(crate) address: u64,
    pub(crate) bytes: u64,
}

/// An instruction with its accesses, no more of them than [`Writing::room`].
pub(crate) struct Instruction<'a> {
    /// It is fetched now.
    pub(crate) fetch: bool,
    /// Its address is not that of the one before, or another process runs.
    pub(crate) moved: bool,
    pub(crate) ip: Item,
    pub(crate) loads: &'a [Item],
    pub(crate) stores: &'a [Item],
}

/// How accesses are written in a format.
pub(crate) struct Writing {
    /// Bytes of the longest access that the format can hold.
    pub(crate) longest: u64,
    /// Loads and stores that an instruction has room for.
    pub(crate) room: (usize, usize),
    /// Every record is an instruction, so that one must be made up for an access without.
    pub(crate) needs_instructions: bool,
    /// The address of an instruction can be told without its fetch.
    pub(crate) has_addresses: bool,
    /// Begins a file; every run is one access, in the order of the trace, if that is given.
    pub(crate) begin: Begin,
}

type Begin = fn(&mut dyn Write, bool) -> io::Result<Box<dyn WriteRecords>>;

impl Writing {
    /// A format of accesses of one byte, any number for an instruction.
    pub(crate) const fn new(begin: Begin) -> Self {
        let room = (usize::MAX, usize::MAX);
        Self { longest: 1, room, needs_instructions: false, has_addresses: false, begin }
    }
}

/// Writes the records of a format.
pub(crate) trait WriteRecords: Send {
    /// What follows is of this process. `false` if the format cannot hold that.
    fn process(&mut self, _out: &mut dyn Write, _process: ProcessId) -> io::Result<bool> {
        Ok(false)
    }
    /// What follows is the kernel's, or the program's. `false` if the format cannot hold that.
    fn mode(&mut self, _out: &mut dyn Write, _kernel: bool) -> io::Result<bool> {
        Ok(false)
    }
    /// Writes an instruction.
    fn instruction(&mut self, out: &mut dyn Write, written: &Instruction<'_>) -> io::Result<()>;
    /// Writes what ends a file.
    fn finish(&mut self, _out: &mut dyn Write) -> io::Result<()> {
        Ok(())
    }
}

/// A file of records.
pub(super) struct Records {
    out: Sink,
    writing: &'static Writing,
    writer: Box<dyn WriteRecords>,
    /// Address of the latest instruction that was written.
    at: Option<u64>,
}

impl Records {
    /// Begins a file.
    pub(super) fn begin(mut out: Sink, writing: &'static Writing, exact: bool) -> io::Result<Self> {
        let writer = (writing.begin)(&mut out, exact)?;
        Ok(Self { out, writing, writer, at: None })
    }

    /// What the format can hold.
    pub(super) const fn writing(&self) -> &'static Writing {
        self.writing
    }

    /// Whether an instruction there must be written anew for further accesses.
    pub(super) fn is_new(&self, ip: u64) -> bool {
        self.writing.needs_instructions || self.at != Some(ip)
    }

    /// What follows is of this process. `false` if the format cannot hold that.
    pub(super) fn process(&mut self, process: ProcessId) -> io::Result<bool> {
        let held = self.writer.process(&mut self.out, process)?;
        if held {
            self.at = None;
        }
        Ok(held)
    }

    /// What follows is the kernel's, or the program's. `false` if the format cannot hold that.
    pub(super) fn mode(&mut self, kernel: bool) -> io::Result<bool> {
        self.writer.mode(&mut self.out, kernel)
    }

    /// An instruction with its accesses; with `fetch` it is fetched now. There are no more than
    /// [`Writing::room`].
    pub(super) fn instruction(
        &mut self,
        fetch: bool,
        ip: Item,
        loads: &[Item],
        stores: &[Item],
    ) -> io::Result<()> {
        let moved = self.at.replace(ip.address) != Some(ip.address);
        let written = Instruction { fetch, moved, ip, loads, stores };
        self.writer.instruction(&mut self.out, &written)
    }

    /// Ends the file.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.writer.finish(&mut self.out)?;
        self.out.finish()
    }
}
