//! The records of each format that can be written.

use super::sink::Sink;
use crate::champsim::{CLOUDSUITE_RECORD, RECORD};
use crate::input::Format;
use crate::lackey::PLAIN;
use nestwalk_types::ProcessId;
use std::io::{self, Write};

/// Where something is, and how long, bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Item {
    pub(super) address: u64,
    pub(super) bytes: u64,
}

/// Numbers of drmemtrace's `trace_type_t` and `trace_marker_type_t`.
mod drm {
    pub(super) const READ: u16 = 0;
    pub(super) const WRITE: u16 = 1;
    pub(super) const INSTR: u16 = 10;
    pub(super) const THREAD: u16 = 22;
    pub(super) const THREAD_EXIT: u16 = 23;
    pub(super) const PID: u16 = 24;
    pub(super) const HEADER: u16 = 25;
    pub(super) const FOOTER: u16 = 26;
    pub(super) const MARKER: u16 = 28;
    pub(super) const MARKER_FILETYPE: u16 = 9;
    pub(super) const MARKER_CACHE_LINE_SIZE: u16 = 10;
    pub(super) const MARKER_VERSION: u16 = 12;
    pub(super) const MARKER_SYSCALL_TRACE_START: u16 = 27;
    pub(super) const MARKER_SYSCALL_TRACE_END: u16 = 28;
    /// The version before which the format knows neither encodings nor kinds of branches.
    pub(super) const VERSION: u64 = 3;
    /// `OFFLINE_FILE_TYPE_ARCH_X86_64`.
    pub(super) const X86_64: u64 = 0x40;
}

/// A file of records.
pub(super) struct Records {
    out: Sink,
    format: Format,
    /// Address of the latest instruction that was written.
    at: Option<u64>,
    /// `CloudSuite`: the address space.
    asid: u16,
    /// drmemtrace: the thread, once one was said, and whether the kernel runs.
    thread: Option<u64>,
    kernel: bool,
}

impl Records {
    pub(super) const fn can_write(format: Format) -> bool {
        let binary = matches!(format, Format::ChampSim | Format::CloudSuite | Format::Drmemtrace);
        binary || matches!(format, Format::Lackey)
    }

    /// Begins a file.
    pub(super) fn begin(mut out: Sink, format: Format, exact: bool) -> io::Result<Self> {
        if format == Format::Lackey && exact {
            writeln!(out, "==1== {PLAIN}")?;
        }
        let mut records = Self { out, format, at: None, asid: 0, thread: None, kernel: false };
        if format == Format::Drmemtrace {
            records.entry(drm::HEADER, 0, drm::VERSION)?;
            records.entry(drm::MARKER, drm::MARKER_VERSION, drm::VERSION)?;
            records.entry(drm::MARKER, drm::MARKER_FILETYPE, drm::X86_64)?;
        }
        Ok(records)
    }

    /// Bytes of the longest access that the format can hold.
    pub(super) const fn longest(&self) -> u64 {
        match self.format {
            Format::Lackey => 9999,
            Format::Drmemtrace => u16::MAX as u64,
            _ => 1,
        }
    }
    /// Loads and stores that an instruction has room for.
    pub(super) const fn room(&self) -> (usize, usize) {
        match self.format {
            Format::ChampSim => (4, 2),
            Format::CloudSuite => (4, 4),
            _ => (usize::MAX, usize::MAX),
        }
    }
    /// Whether every record is an instruction, so that one must be made up for an access without.
    pub(super) const fn needs_instructions(&self) -> bool {
        matches!(self.format, Format::ChampSim | Format::CloudSuite)
    }
    /// Whether the address of an instruction can be told without its fetch.
    pub(super) const fn has_addresses(&self) -> bool {
        matches!(self.format, Format::Drmemtrace)
    }
    /// Whether an instruction there must be written anew for further accesses.
    pub(super) fn is_new(&self, ip: u64) -> bool {
        self.needs_instructions() || self.at != Some(ip)
    }

    /// What follows is of this process. `false` if the format cannot hold that.
    pub(super) fn process(&mut self, process: ProcessId) -> io::Result<bool> {
        match self.format {
            Format::CloudSuite => {
                self.asid = process.0 as u16;
                Ok(process.0 <= u32::from(u16::MAX))
            }
            Format::Drmemtrace => {
                self.mode(false)?;
                self.begin_thread(u64::from(process.0))?;
                self.at = None;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    fn begin_thread(&mut self, id: u64) -> io::Result<()> {
        let first = self.thread.replace(id).is_none();
        self.entry(drm::THREAD, 8, id)?;
        self.entry(drm::PID, 8, id)?;
        if first {
            self.entry(drm::MARKER, drm::MARKER_CACHE_LINE_SIZE, 64)?;
        }
        Ok(())
    }

    /// What follows is the kernel's, or the program's. `false` if the format cannot hold that.
    pub(super) fn mode(&mut self, kernel: bool) -> io::Result<bool> {
        if self.format != Format::Drmemtrace {
            return Ok(false);
        }
        if self.kernel != kernel {
            self.kernel = kernel;
            let marker = if kernel {
                drm::MARKER_SYSCALL_TRACE_START
            } else {
                drm::MARKER_SYSCALL_TRACE_END
            };
            self.begin_unless_begun()?;
            self.entry(drm::MARKER, marker, 0)?;
        }
        Ok(true)
    }

    /// A trace of one process may not have said which.
    fn begin_unless_begun(&mut self) -> io::Result<()> {
        if self.thread.is_none() { self.begin_thread(1) } else { Ok(()) }
    }

    /// An instruction with its accesses; with `fetch` it is fetched now. There are no more than
    /// [`Records::room`].
    pub(super) fn instruction(
        &mut self,
        fetch: bool,
        ip: Item,
        loads: &[Item],
        stores: &[Item],
    ) -> io::Result<()> {
        let at = self.at.replace(ip.address);
        match self.format {
            Format::ChampSim => {
                let mut record = [0; RECORD];
                fill(&mut record, 16, 2, ip, loads, stores);
                self.out.write_all(&record)
            }
            Format::CloudSuite => {
                let mut record = [0; CLOUDSUITE_RECORD];
                fill(&mut record, 24, 4, ip, loads, stores);
                record[88..90].copy_from_slice(&self.asid.to_le_bytes());
                self.out.write_all(&record)
            }
            Format::Drmemtrace => {
                self.begin_unless_begun()?;
                if fetch {
                    self.entry(drm::INSTR, ip.bytes as u16, ip.address)?;
                } else if at != Some(ip.address) {
                    // Of no length: it names the address alone.
                    self.entry(drm::INSTR, 0, ip.address)?;
                }
                for (kind, items) in [(drm::READ, loads), (drm::WRITE, stores)] {
                    for item in items {
                        self.entry(kind, item.bytes as u16, item.address)?;
                    }
                }
                Ok(())
            }
            _ => {
                if fetch {
                    writeln!(self.out, "I  {:08x},{}", ip.address, ip.bytes)?;
                }
                for (kind, items) in [('L', loads), ('S', stores)] {
                    for item in items {
                        writeln!(self.out, " {kind} {:08x},{}", item.address, item.bytes)?;
                    }
                }
                Ok(())
            }
        }
    }

    /// A record of drmemtrace.
    fn entry(&mut self, kind: u16, size: u16, value: u64) -> io::Result<()> {
        let mut bytes = [0; 12];
        bytes[..2].copy_from_slice(&kind.to_le_bytes());
        bytes[2..4].copy_from_slice(&size.to_le_bytes());
        bytes[4..].copy_from_slice(&value.to_le_bytes());
        self.out.write_all(&bytes)
    }

    /// Ends the file.
    pub(super) fn finish(mut self) -> io::Result<()> {
        if self.format == Format::Drmemtrace {
            self.begin_unless_begun()?;
            self.mode(false)?;
            let thread = self.thread.unwrap_or(1);
            self.entry(drm::THREAD_EXIT, 8, thread)?;
            self.entry(drm::FOOTER, 0, 0)?;
        }
        self.out.finish()
    }
}

/// Fills a record of one of `ChampSim`'s structures, whose addresses begin at `first`, those of `most`
/// stores before those of loads.
fn fill(record: &mut [u8], first: usize, most: usize, ip: Item, loads: &[Item], stores: &[Item]) {
    record[..8].copy_from_slice(&ip.address.to_le_bytes());
    let places = stores.iter().enumerate().chain((most..).zip(loads));
    for (i, item) in places {
        if let Some(place) = record.get_mut(first + 8 * i..first + 8 * i + 8) {
            place.copy_from_slice(&item.address.to_le_bytes());
        }
    }
}
