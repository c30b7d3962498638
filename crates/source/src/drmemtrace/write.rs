//! Writing traces of one thread at a time.

use crate::export::{Instruction, WriteRecords, Writing};
use nestwalk_types::ProcessId;
use std::io::{self, Write};

// Numbers of `trace_type_t` and `trace_marker_type_t`.
const READ: u16 = 0;
const WRITE: u16 = 1;
const INSTR: u16 = 10;
const THREAD: u16 = 22;
const THREAD_EXIT: u16 = 23;
const PID: u16 = 24;
const HEADER: u16 = 25;
const FOOTER: u16 = 26;
const MARKER: u16 = 28;
const MARKER_FILETYPE: u16 = 9;
const MARKER_CACHE_LINE_SIZE: u16 = 10;
const MARKER_VERSION: u16 = 12;
const MARKER_SYSCALL_TRACE_START: u16 = 27;
const MARKER_SYSCALL_TRACE_END: u16 = 28;
/// The version before which the format knows neither encodings nor kinds of branches.
const VERSION: u64 = 3;
/// `OFFLINE_FILE_TYPE_ARCH_X86_64`.
const X86_64: u64 = 0x40;

/// It says its version and the architecture first.
pub(super) const WRITING: Writing = Writing {
    longest: u16::MAX as u64,
    has_addresses: true,
    ..Writing::new(|out, _| {
        entry(out, HEADER, 0, VERSION)?;
        entry(out, MARKER, MARKER_VERSION, VERSION)?;
        entry(out, MARKER, MARKER_FILETYPE, X86_64)?;
        Ok(Box::new(Records { thread: None, kernel: false }))
    })
};

struct Records {
    /// The thread, once one was said.
    thread: Option<u64>,
    /// The kernel runs.
    kernel: bool,
}

impl Records {
    fn begin_thread(&mut self, out: &mut dyn Write, id: u64) -> io::Result<()> {
        let first = self.thread.replace(id).is_none();
        entry(out, THREAD, 8, id)?;
        entry(out, PID, 8, id)?;
        if first {
            entry(out, MARKER, MARKER_CACHE_LINE_SIZE, 64)?;
        }
        Ok(())
    }

    /// A trace of one process may not have said which.
    fn begin_unless_begun(&mut self, out: &mut dyn Write) -> io::Result<()> {
        if self.thread.is_none() { self.begin_thread(out, 1) } else { Ok(()) }
    }
}

impl WriteRecords for Records {
    fn process(&mut self, out: &mut dyn Write, process: ProcessId) -> io::Result<bool> {
        self.mode(out, false)?;
        self.begin_thread(out, u64::from(process.0))?;
        Ok(true)
    }

    fn mode(&mut self, out: &mut dyn Write, kernel: bool) -> io::Result<bool> {
        if self.kernel != kernel {
            self.kernel = kernel;
            let marker = if kernel { MARKER_SYSCALL_TRACE_START } else { MARKER_SYSCALL_TRACE_END };
            self.begin_unless_begun(out)?;
            entry(out, MARKER, marker, 0)?;
        }
        Ok(true)
    }

    fn instruction(&mut self, out: &mut dyn Write, written: &Instruction<'_>) -> io::Result<()> {
        self.begin_unless_begun(out)?;
        let ip = written.ip;
        if written.fetch {
            entry(out, INSTR, ip.bytes as u16, ip.address)?;
        } else if written.moved {
            // Of no length: it names the address alone.
            entry(out, INSTR, 0, ip.address)?;
        }
        for (kind, items) in [(READ, written.loads), (WRITE, written.stores)] {
            for item in items {
                entry(out, kind, item.bytes as u16, item.address)?;
            }
        }
        Ok(())
    }

    fn finish(&mut self, out: &mut dyn Write) -> io::Result<()> {
        self.begin_unless_begun(out)?;
        self.mode(out, false)?;
        entry(out, THREAD_EXIT, 8, self.thread.unwrap_or(1))?;
        entry(out, FOOTER, 0, 0)
    }
}

/// A record.
fn entry(out: &mut dyn Write, kind: u16, size: u16, value: u64) -> io::Result<()> {
    let mut bytes = [0; 12];
    bytes[..2].copy_from_slice(&kind.to_le_bytes());
    bytes[2..4].copy_from_slice(&size.to_le_bytes());
    bytes[4..].copy_from_slice(&value.to_le_bytes());
    out.write_all(&bytes)
}
