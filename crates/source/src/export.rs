//! From the events of a guest to the formats of accesses: what they can hold of it.
//!
//! `ChampSim` and lackey know one process on one processor and nothing of page tables, so everything
//! but runs is lost. Of a run they get its first access and one access, a load, for each further
//! cache line that it touched; how often lines were touched is lost, as is when, since
//! the recorder's filter has folded later accesses into earlier runs. No sizes are known: accesses
//! are of one byte. An instruction is written for each line of a fetch run and for each data run;
//! with [`ExportOptions::all_instructions`] as many follow a fetch run as it says, so that rates per
//! instruction are right.

use crate::bytes::Compression;
use crate::champsim::Instruction;
use crate::input::Format;
use nestwalk_types::{Batch, Control, ProcessId, Run, SourceError, VcpuId};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

/// Addresses that an instruction of `ChampSim` can load from.
const LOADS: usize = 4;

/// What is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ExportOptions {
    /// Leave out accesses of the kernel.
    pub user_only: bool,
    /// Only this process of the guest, as numbered by [`Control::Process`].
    pub process: Option<ProcessId>,
    /// The vCPU. Others are left out.
    pub vcpu: VcpuId,
    /// Write instructions without accesses, so that there are as many as were retired.
    pub all_instructions: bool,
}

/// What was written and what was left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Exported {
    /// Instructions written.
    pub instructions: u64,
    /// Data accesses written.
    pub accesses: u64,
    /// Runs written.
    pub runs: u64,
    /// Accesses of these runs.
    pub run_accesses: u64,
    /// Runs left out: of the kernel, of other processes, of other vCPUs.
    pub left_out: u64,
    /// Controls, which have no place in these formats.
    pub controls: u64,
}

/// Writes runs as records of [`Format::ChampSim`] or [`Format::Lackey`].
pub struct Exporter {
    name: String,
    out: Sink,
    format: Format,
    options: ExportOptions,
    /// The process on the vCPU.
    process: Option<ProcessId>,
    /// Address of the latest instruction that was written.
    at: Option<u64>,
    /// Where instructions without accesses stand, and how many are owed.
    fetched: u64,
    owed: u64,
    done: Exported,
}

impl Exporter {
    /// Creates the file. Names that end with `.gz`, `.xz` or `.zst` are compressed.
    ///
    /// # Errors
    /// The file cannot be created, or nothing of that format can be written.
    pub fn create(
        path: &Path,
        format: Format,
        options: ExportOptions,
    ) -> Result<Self, SourceError> {
        let name = path.display().to_string();
        let fail = |message| SourceError { source: name.clone(), message };
        if !matches!(format, Format::ChampSim | Format::Lackey) {
            return Err(fail(format!(
                "accesses can be written as champsim or lackey, not as {format}"
            )));
        }
        let created = File::create(path).and_then(|file| Sink::new(file, path));
        let out = created.map_err(|e| fail(format!("cannot be created: {e}")))?;
        let done = Exported::default();
        Ok(Self { name, out, format, options, process: None, at: None, fetched: 1, owed: 0, done })
    }

    /// Adds a batch.
    ///
    /// # Errors
    /// The file cannot be written to.
    pub fn write(&mut self, batch: &Batch) -> Result<(), SourceError> {
        for (controls, runs) in batch.segments() {
            for (_, control) in controls {
                self.done.controls += 1;
                match *control {
                    Control::Process { vcpu, id, .. } if vcpu == self.options.vcpu => {
                        self.process = Some(id);
                    }
                    _ => {}
                }
            }
            for run in &batch.runs[runs] {
                if self.is_wanted(run) {
                    self.done.runs += 1;
                    self.done.run_accesses += u64::from(run.count);
                    self.run(run).map_err(|e| self.failure(&e))?;
                } else {
                    self.done.left_out += 1;
                }
            }
        }
        Ok(())
    }

    /// Writes what is left.
    ///
    /// # Errors
    /// The file cannot be written to.
    pub fn finish(mut self) -> Result<Exported, SourceError> {
        self.pay().map_err(|e| self.failure(&e))?;
        let Self { name, out, done, .. } = self;
        let failure = |e: io::Error| format!("cannot be written: {e}");
        out.finish().map_err(|e| SourceError { source: name, message: failure(e) })?;
        Ok(done)
    }

    fn failure(&self, error: &io::Error) -> SourceError {
        SourceError { source: self.name.clone(), message: format!("cannot be written: {error}") }
    }

    fn is_wanted(&self, run: &Run) -> bool {
        let ExportOptions { user_only, process, vcpu, .. } = self.options;
        run.vcpu == vcpu
            && !(user_only && run.flags.is_kernel())
            && (process.is_none() || process == self.process)
    }

    fn run(&mut self, run: &Run) -> io::Result<()> {
        // No instruction has address 0 in these formats.
        let ip = run.pc.value().max(1);
        let (first, page) = (run.gva.value(), run.gva.value() & !0xfff);
        let mut others = run.lines & !(1 << (first >> 6 & 63));
        if run.flags.is_fetch() {
            self.pay()?;
            self.fetched = ip;
            self.owed = u64::from(run.instructions);
            self.instruction(ip, &[], None)?;
            let mut line = [0];
            while lines_of(page, &mut others, &mut line) > 0 {
                self.instruction(line[0], &[], None)?;
            }
            return Ok(());
        }
        if run.flags.is_store() {
            self.instruction(ip, &[], Some(first))?;
        } else {
            let mut loads = [first; LOADS];
            let further = lines_of(page, &mut others, &mut loads[1..]);
            self.instruction(ip, &loads[..1 + further], None)?;
        }
        while others != 0 {
            let mut loads = [0; LOADS];
            let found = lines_of(page, &mut others, &mut loads);
            self.instruction(ip, &loads[..found], None)?;
        }
        Ok(())
    }

    /// An instruction with its accesses.
    fn instruction(&mut self, ip: u64, loads: &[u64], store: Option<u64>) -> io::Result<()> {
        self.done.accesses += loads.len() as u64 + u64::from(store.is_some());
        self.owed = self.owed.saturating_sub(1);
        if self.format == Format::ChampSim {
            self.done.instructions += 1;
            let mut record = Instruction { ip, ..Instruction::default() };
            record.source_memory.iter_mut().zip(loads).for_each(|(to, from)| *to = *from);
            record.destination_memory[0] = store.unwrap_or(0);
            return self.out.write_all(&record.to_bytes());
        }
        // Data records follow that of their instruction.
        if self.at != Some(ip) || (loads.is_empty() && store.is_none()) {
            self.done.instructions += 1;
            writeln!(self.out, "I  {ip:08x},1")?;
            self.at = Some(ip);
        }
        loads.iter().try_for_each(|load| writeln!(self.out, " L {load:08x},1"))?;
        store.map_or(Ok(()), |store| writeln!(self.out, " S {store:08x},1"))
    }

    /// Writes the instructions of the latest fetch run that were not written with an access.
    fn pay(&mut self) -> io::Result<()> {
        if self.options.all_instructions {
            while self.owed > 0 {
                self.instruction(self.fetched, &[], None)?;
            }
        }
        self.owed = 0;
        Ok(())
    }
}

/// Moves the lowest lines of a page from `lines` to `addresses` while there is room; says how many.
fn lines_of(page: u64, lines: &mut u64, addresses: &mut [u64]) -> usize {
    let mut found = 0;
    for address in addresses {
        if *lines == 0 {
            break;
        }
        *address = page | u64::from(lines.trailing_zeros()) << 6;
        *lines &= *lines - 1;
        found += 1;
    }
    found
}

/// A file that is written, compressed as its name says.
enum Sink {
    Plain(BufWriter<File>),
    Gzip(BufWriter<flate2::write::GzEncoder<File>>),
    Xz(BufWriter<liblzma::write::XzEncoder<File>>),
    Zstd(BufWriter<zstd::stream::write::Encoder<'static, File>>),
}

impl Sink {
    fn new(file: File, path: &Path) -> io::Result<Self> {
        Ok(match path.extension().and_then(OsStr::to_str).and_then(Compression::by_extension) {
            Some(Compression::Gzip) => {
                let level = flate2::Compression::default();
                Self::Gzip(BufWriter::new(flate2::write::GzEncoder::new(file, level)))
            }
            Some(Compression::Xz) => {
                Self::Xz(BufWriter::new(liblzma::write::XzEncoder::new(file, 6)))
            }
            Some(Compression::Zstd) => {
                Self::Zstd(BufWriter::new(zstd::stream::write::Encoder::new(file, 9)?))
            }
            _ => Self::Plain(BufWriter::new(file)),
        })
    }
    fn inner(&mut self) -> &mut dyn Write {
        match self {
            Self::Plain(out) => out,
            Self::Gzip(out) => out,
            Self::Xz(out) => out,
            Self::Zstd(out) => out,
        }
    }
    fn finish(self) -> io::Result<()> {
        let mut file = match self {
            Self::Plain(out) => out.into_inner()?,
            Self::Gzip(out) => out.into_inner()?.finish()?,
            Self::Xz(out) => out.into_inner()?.finish()?,
            Self::Zstd(out) => out.into_inner()?.finish()?,
        };
        file.flush()
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.inner().write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.inner().flush()
    }
}
