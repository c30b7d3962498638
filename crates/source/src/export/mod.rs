//! From a stream of events to the formats of accesses: what they can hold of it.
//!
//! A stream whose runs are single accesses in their order ([`Room::SINGLE`]) is written access by
//! access. How long an access was is known by the cache lines that it touched, and is written so far as
//! the format has sizes: it touches the same lines and pages. Where a format has no place for
//! something, that is counted: [`Exported::lost`] says it.
//!
//! A recorded guest's runs are folded. Of a run the formats get its first access and one access, a
//! load, for each further cache line that it touched; how often lines were touched is lost, as is when,
//! since the recorder's filter has folded later accesses into earlier runs. No sizes are known:
//! accesses are of one byte. An instruction is written for each line of a fetch run and for each data
//! run; with [`ExportOptions::all_instructions`] as many follow a fetch run as it says, so that rates
//! per instruction are right.
//!
//! [`Room::SINGLE`]: nestwalk_types::Room::SINGLE

mod exact;
mod records;
mod sink;

use crate::formats::Format;
use exact::Exact;
use nestwalk_types::{Batch, Control, ProcessId, Run, SourceError, VcpuId};
use records::Records;
pub(crate) use records::{Instruction, Item, WriteRecords, Writing};
use sink::Sink;
use std::fs::File;
use std::io;
use std::path::Path;

/// Addresses that an instruction of `ChampSim` can load from.
const LOADS: usize = 4;

/// What is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ExportOptions {
    /// Leave out accesses of the kernel.
    pub user_only: bool,
    /// Only this process: as numbered by [`Control::Process`] of a recorded guest, or by
    /// [`Control::Switch`] of another trace.
    pub process: Option<ProcessId>,
    /// The vCPU. Others are left out.
    pub vcpu: VcpuId,
    /// Write instructions without accesses, so that there are as many as were retired.
    pub all_instructions: bool,
    /// Every run is one access, in the order of the trace.
    pub exact: bool,
}

/// What was written and what was left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Exported {
    /// Instructions written.
    pub instructions: u64,
    /// Data accesses written, one more for each further page that one touches.
    pub accesses: u64,
    /// Runs written.
    pub runs: u64,
    /// Accesses of these runs.
    pub run_accesses: u64,
    /// Runs left out: of the kernel, of other processes, of other vCPUs.
    pub left_out: u64,
    /// Controls that have no place in the format.
    pub controls: u64,
    /// Switches between processes that the format has no place for.
    pub switches: u64,
    /// Accesses of the kernel that are written as if they were the program's.
    pub kernel: u64,
    /// Fetches from a second page that the format has no place for.
    pub fetches: u64,
    /// Data accesses whose instruction's address the format has no place for.
    pub addresses: u64,
    /// Instructions that stand for accesses without one, since the format has no others.
    pub made: u64,
    /// Instructions that are written as several, since the format has no room for all accesses of one.
    pub split: u64,
}

impl Exported {
    /// What the format had no place for, a clause each; empty if there was nothing.
    pub fn lost(&self) -> Vec<String> {
        let parts = [
            (self.left_out, "accesses left out as asked for"),
            (self.switches, "switches between processes lost"),
            (self.kernel, "accesses of the kernel not told from the program's"),
            (self.fetches, "fetches from an instruction's second page lost"),
            (self.addresses, "accesses without the address of their instruction"),
            (self.made, "instructions made up for accesses without a fetch"),
            (self.split, "instructions written as several, for they access more than one can hold"),
            (self.controls, "other events lost"),
        ];
        parts.iter().filter(|p| p.0 > 0).map(|(n, what)| format!("{n} {what}")).collect()
    }
}

/// Writes a stream as records of another format.
pub struct Exporter {
    name: String,
    records: Records,
    options: ExportOptions,
    /// The process on the vCPU.
    process: Option<ProcessId>,
    /// Of streams of single accesses: the instruction that is put together.
    exact: Exact,
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
        let Some(writing) = format.definition().write else {
            let mut names: Vec<_> = Format::ALL.iter().filter(|f| f.can_hold_accesses()).collect();
            let last = names.pop().map_or("", |f| f.name());
            let names: Vec<_> = names.into_iter().map(|f| f.name()).collect();
            return Err(fail(format!(
                "accesses can be written as {} or {last}, not as {format}",
                names.join(", ")
            )));
        };
        let created = File::create(path).and_then(|file| Sink::new(file, path));
        let out = created.map_err(|e| fail(format!("cannot be created: {e}")))?;
        let records = Records::begin(out, writing, options.exact)
            .map_err(|e| fail(format!("cannot be written: {e}")))?;
        let (done, exact) = (Exported::default(), Exact::default());
        Ok(Self { name, records, options, process: None, exact, fetched: 1, owed: 0, done })
    }

    /// Adds a batch.
    ///
    /// # Errors
    /// The file cannot be written to.
    pub fn write(&mut self, batch: &Batch) -> Result<(), SourceError> {
        for (controls, runs) in batch.segments() {
            for (_, control) in controls {
                self.control(control).map_err(|e| self.failure(&e))?;
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
        self.exact.flush(&mut self.records, &mut self.done).map_err(|e| self.failure(&e))?;
        let Self { name, records, done, .. } = self;
        let failure = |e: io::Error| format!("cannot be written: {e}");
        records.finish().map_err(|e| SourceError { source: name, message: failure(e) })?;
        Ok(done)
    }

    fn failure(&self, error: &io::Error) -> SourceError {
        SourceError { source: self.name.clone(), message: format!("cannot be written: {error}") }
    }

    fn control(&mut self, control: &Control) -> io::Result<()> {
        let now = match *control {
            Control::Process { vcpu, id, .. } if vcpu == self.options.vcpu => id,
            Control::Switch { vcpu, process } if vcpu == self.options.vcpu => process,
            // What a trace of accesses says is nothing that another lacks.
            Control::RegionOfInterest if self.options.exact => return Ok(()),
            _ => {
                self.done.controls += 1;
                return Ok(());
            }
        };
        let before = self.process.replace(now);
        if before != Some(now) {
            self.pay()?;
            self.exact.flush(&mut self.records, &mut self.done)?;
            let is_wanted = self.options.process.is_none_or(|p| p == now);
            let held = !is_wanted || self.records.process(now)?;
            self.done.switches += u64::from(!held && before.is_some());
        }
        Ok(())
    }

    fn is_wanted(&self, run: &Run) -> bool {
        let ExportOptions { user_only, process, vcpu, .. } = self.options;
        run.vcpu == vcpu
            && !(user_only && run.flags.is_kernel())
            && (process.is_none() || process == self.process)
    }

    fn run(&mut self, run: &Run) -> io::Result<()> {
        if self.options.exact {
            return self.exact.run(run, &mut self.records, &mut self.done);
        }
        if !self.records.mode(run.flags.is_kernel())? {
            self.done.kernel += u64::from(run.flags.is_kernel());
        }
        // No instruction of a guest has address 0.
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

    /// An instruction with its accesses, all of one byte.
    fn instruction(&mut self, ip: u64, loads: &[u64], store: Option<u64>) -> io::Result<()> {
        self.done.accesses += loads.len() as u64 + u64::from(store.is_some());
        self.owed = self.owed.saturating_sub(1);
        let of = |address: u64| Item { address, bytes: 1 };
        let mut items = [of(0); LOADS];
        items.iter_mut().zip(loads).for_each(|(to, from)| *to = of(*from));
        let fetch = self.records.is_new(ip) || (loads.is_empty() && store.is_none());
        self.done.instructions += u64::from(fetch);
        self.records.instruction(fetch, of(ip), &items[..loads.len()], store.map(of).as_slice())
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
