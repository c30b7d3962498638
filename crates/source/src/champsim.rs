//! `ChampSim` traces: the field's common currency.
//!
//! The format is `struct input_instr` of ChampSim's `inc/trace_instruction.h`: 64 bytes an
//! instruction, little-endian: `u64 ip; u8 is_branch; u8 branch_taken; u8
//! destination_registers[2]; u8 source_registers[4]; u64 destination_memory[2]; u64
//! source_memory[4]`. A memory address of 0 stands for none.
//!
//! `CloudSuite`'s traces have `struct cloudsuite_instr` of the same file, 96 bytes: four destination
//! registers and addresses, two bytes of address-space identifier (`asid`) behind the addresses, and
//! padding. Each address space is a process; the record that has another is where the processor
//! switches.
//!
//! What the record does not hold: the size of the instruction and of its accesses. Each is taken as
//! one byte, so that no second page is touched that the program may not have touched. Loads come
//! before stores, as in an instruction that reads and writes the same address.
//!
//! Real tracers write things that the header does not lead one to expect: `branch_taken` is left from an
//! earlier branch on instructions that are none, and an `ip` of 0 stands where an instruction's address
//! was not known. Both are taken as they are; how many had no address is said.

use crate::bytes::Window;
use crate::decoder::{Decode, Decoder, ONLY_PROCESS, Step};
use crate::export::{Instruction as Written, Item, WriteRecords, Writing};
use crate::formats::{Definition, Format, Input, Opened};
use crate::input::HEAD;
use nestwalk_types::{AccessKind, BatchBuilder, Control, Gva, ProcessId, SourceInfo, VcpuId};
use std::io::{self, Write};

/// Bytes of a record.
pub const RECORD: usize = 64;
/// Bytes of a record of `CloudSuite`'s traces.
pub const CLOUDSUITE_RECORD: usize = 96;
/// Addresses of loads in a record of either.
const LOADS: usize = 4;

/// `ChampSim`'s own records.
pub(crate) const FORMAT: Definition = Definition {
    alike: Some(|found, head| {
        let cloudsuite = Format::new(&CLOUDSUITE);
        // Its records are ChampSim's, too.
        (found == cloudsuite)
            .then(|| if is_surely_cloudsuite(head) { cloudsuite } else { Format::new(&FORMAT) })
    }),
    endings: &["champsim", "champsimtrace"],
    write: Some(&Writing {
        room: (4, 2),
        needs_instructions: true,
        ..Writing::new(|_, _| Ok(Box::new(Writer { layout: Layout::Plain, asid: 0 })))
    }),
    ..Definition::new(
        "champsim",
        "64-byte records of ChampSim's tracers",
        |head| layout(head) == Some(Layout::Plain),
        |input| open(input, Layout::Plain),
    )
};

/// `CloudSuite`'s records, with address spaces.
pub(crate) const CLOUDSUITE: Definition = Definition {
    alike: Some(|found, head| {
        let is_champsim = found == Format::new(&FORMAT);
        (is_champsim && may_be_cloudsuite(head)).then_some(Format::new(&CLOUDSUITE))
    }),
    endings: &["cloudsuite"],
    write: Some(&Writing {
        room: (4, 4),
        needs_instructions: true,
        ..Writing::new(|_, _| Ok(Box::new(Writer { layout: Layout::CloudSuite, asid: 0 })))
    }),
    ..Definition::new(
        "cloudsuite",
        "96-byte records of ChampSim for CloudSuite",
        |head| layout(head) == Some(Layout::CloudSuite),
        |input| open(input, Layout::CloudSuite),
    )
};

fn open(input: Input<'_>, layout: Layout) -> Opened {
    Ok(Box::new(ChampSim::source(input.name, input.window, input.total, layout)))
}

const V: VcpuId = VcpuId(0);

/// One instruction of a trace, without its registers, which no translation depends on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Instruction {
    /// Its address.
    pub ip: u64,
    /// 1 for a branch.
    pub is_branch: u8,
    /// 1 for a branch that was taken.
    pub branch_taken: u8,
    /// Addresses stored to; 0 for none.
    pub destination_memory: [u64; 2],
    /// Addresses loaded from; 0 for none.
    pub source_memory: [u64; 4],
}

impl Instruction {
    /// Reads a record.
    pub fn from_bytes(bytes: &[u8; RECORD]) -> Self {
        let word = |i: usize| word(bytes, i * 8);
        Self {
            ip: word(0),
            is_branch: bytes[8],
            branch_taken: bytes[9],
            destination_memory: [word(2), word(3)],
            source_memory: [word(4), word(5), word(6), word(7)],
        }
    }

    /// Writes a record; registers are 0.
    pub fn to_bytes(&self) -> [u8; RECORD] {
        let mut bytes = [0; RECORD];
        bytes[..8].copy_from_slice(&self.ip.to_le_bytes());
        bytes[8] = self.is_branch;
        bytes[9] = self.branch_taken;
        let memory = self.destination_memory.iter().chain(&self.source_memory);
        for (field, address) in bytes[16..].chunks_exact_mut(8).zip(memory) {
            field.copy_from_slice(&address.to_le_bytes());
        }
        bytes
    }
}

/// Why flags cannot be those of a record, if they cannot.
fn fault(is_branch: u8, branch_taken: u8) -> Option<String> {
    let flags = [("is_branch", is_branch), ("branch_taken", branch_taken)];
    let (name, value) = flags.into_iter().find(|f| f.1 > 1)?;
    Some(format!("{name} is {value}, which must be 0 or 1: not a ChampSim trace, or damaged"))
}

/// Which of the two structures a file consists of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Layout {
    /// `input_instr`.
    Plain,
    /// `cloudsuite_instr`.
    CloudSuite,
}

impl Layout {
    const fn record(self) -> usize {
        match self {
            Self::Plain => RECORD,
            Self::CloudSuite => CLOUDSUITE_RECORD,
        }
    }
    /// Where addresses begin, and how many there are, those of stores first.
    const fn addresses(self) -> (usize, usize) {
        match self {
            Self::Plain => (16, 6),
            Self::CloudSuite => (24, 8),
        }
    }
}

#[inline(always)]
fn word(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

/// How far the next instruction may be for two records to look like neighbours: code is executed near
/// the code before much more often than not.
const NEAR: u64 = 64 << 10;

/// How well these bytes, the start of a file, fit a layout: records that look like an instruction after
/// another, in units of 1/1000 of all; `None` if one cannot be a record. The format has no magic number:
/// the flags of every whole record must be 0 or 1, and every address must be canonical (48 or 57 bits,
/// sign-extended).
fn fit(head: &[u8], layout: Layout) -> Option<u64> {
    let canonical = |a: u64| matches!((a as i64) >> 56, 0 | -1);
    let (first, count) = layout.addresses();
    let (mut good, mut all, mut previous, mut some) = (0u64, 0, None::<u64>, false);
    for record in head.chunks_exact(layout.record()) {
        let ip = word(record, 0);
        let addresses = (0..count).map(|i| word(record, first + 8 * i));
        let padding = layout == Layout::CloudSuite
            && record[18..24].iter().chain(&record[90..]).any(|&byte| byte != 0);
        if fault(record[8], record[9]).is_some()
            || padding
            || !canonical(ip)
            || !addresses.clone().all(canonical)
        {
            return None;
        }
        some |= ip != 0 || addresses.clone().any(|a| a != 0);
        all += 1;
        good += u64::from(ip != 0 && previous.is_none_or(|p| p.abs_diff(ip) < NEAR));
        previous = Some(ip);
    }
    some.then(|| good * 1000 / all)
}

/// Which records these bytes, the start of a file, look like, if they do.
///
/// Read by the wrong length, every second or third record begins in the middle of one, where hardly
/// anything is an address near the one before. If both fit equally well, a short file is of the records
/// that it is a whole number of, or else of `ChampSim`'s own.
fn layout(head: &[u8]) -> Option<Layout> {
    let (plain, cloud) = (fit(head, Layout::Plain), fit(head, Layout::CloudSuite));
    let whole = |record| head.len().is_multiple_of(record);
    match (whole(RECORD), whole(CLOUDSUITE_RECORD)) {
        (false, true) if cloud.is_some() => Some(Layout::CloudSuite),
        (true, false) if plain.is_some() && head.len() < HEAD => Some(Layout::Plain),
        _ if is_better(plain, cloud) => Some(Layout::CloudSuite),
        _ => plain.map(|_| Layout::Plain),
    }
}

/// Whether most records follow each other as `CloudSuite`'s, and more than as `ChampSim`'s own.
fn is_better(plain: Option<u64>, cloud: Option<u64>) -> bool {
    cloud.is_some_and(|cloud| cloud >= 750 && plain.is_none_or(|plain| cloud > plain))
}

/// Whether these bytes, said to be `ChampSim` records, are surely `CloudSuite`'s.
fn is_surely_cloudsuite(head: &[u8]) -> bool {
    let (plain, cloud) = (fit(head, Layout::Plain), fit(head, Layout::CloudSuite));
    head.len() >= 8 * CLOUDSUITE_RECORD && is_better(plain, cloud)
}

/// Whether these bytes may be `CloudSuite`'s records, if someone says so: the others fit no better.
fn may_be_cloudsuite(head: &[u8]) -> bool {
    let plain = fit(head, Layout::Plain).unwrap_or(0);
    fit(head, Layout::CloudSuite).is_some_and(|cloud| cloud + 250 > plain)
}

/// The decoder's state.
pub(crate) struct ChampSim {
    layout: Layout,
    records: u64,
    /// Records whose instruction has no address.
    nowhere: u64,
    /// The address space of the latest record, and our number of each that was met.
    asid: Option<u16>,
    processes: Vec<(u16, ProcessId)>,
}

impl ChampSim {
    pub(crate) fn source(
        name: String,
        window: Window,
        total: Option<u64>,
        layout: Layout,
    ) -> Decoder<Self> {
        let state = Self { layout, records: 0, nowhere: 0, asid: None, processes: Vec::new() };
        Decoder::new(name, window, total, state)
    }

    /// The records are of another address space from here on.
    #[cold]
    #[inline(never)]
    fn switch(&mut self, asid: u16, out: &mut BatchBuilder) {
        let process = match self.processes.binary_search_by_key(&asid, |p| p.0) {
            Ok(found) => self.processes[found].1,
            Err(place) => {
                let process = ProcessId(ONLY_PROCESS.0 + self.processes.len() as u32);
                self.processes.insert(place, (asid, process));
                process
            }
        };
        // The first one runs already.
        if self.asid.is_some() {
            out.control(Control::Switch { vcpu: V, process });
        }
        self.asid = Some(asid);
    }

    /// Decodes records of `LENGTH` bytes with the addresses of `STORES` stores and four loads from byte
    /// `FIRST` on.
    #[inline(always)]
    fn records<const LENGTH: usize, const FIRST: usize, const STORES: usize>(
        &mut self,
        bytes: &[u8],
        offset: u64,
        out: &mut BatchBuilder,
    ) -> Step {
        let (records, _) = bytes.as_chunks::<LENGTH>();
        let mut used = 0;
        for record in records {
            if out.is_full() {
                break;
            }
            if u16::from_le_bytes([record[8], record[9]]) & !0x0101 != 0
                && let Some(fault) = fault(record[8], record[9])
            {
                let at = offset + used as u64;
                let error = Some(format!("record {} at byte {at}: {fault}", self.records));
                return Step { used, error };
            }
            if LENGTH == CLOUDSUITE_RECORD {
                let asid = u16::from_le_bytes([record[LENGTH - 8], record[LENGTH - 7]]);
                if self.asid != Some(asid) {
                    self.switch(asid, out);
                }
            }
            let ip = word(record, 0);
            self.nowhere += u64::from(ip == 0);
            let pc = Gva::new(ip);
            out.access(V, pc, pc, 1, AccessKind::Fetch, 1);
            for i in STORES..STORES + 4 {
                let address = word(record, FIRST + 8 * i);
                if address != 0 {
                    out.access(V, pc, Gva::new(address), 1, AccessKind::Load, 0);
                }
            }
            for i in 0..STORES {
                let address = word(record, FIRST + 8 * i);
                if address != 0 {
                    out.access(V, pc, Gva::new(address), 1, AccessKind::Store, 0);
                }
            }
            self.records += 1;
            used += LENGTH;
        }
        Step { used, error: None }
    }
}

impl Decode for ChampSim {
    fn decode(&mut self, bytes: &[u8], offset: u64, out: &mut BatchBuilder) -> Step {
        match self.layout {
            Layout::Plain => self.records::<RECORD, 16, 2>(bytes, offset, out),
            Layout::CloudSuite => self.records::<CLOUDSUITE_RECORD, 24, 4>(bytes, offset, out),
        }
    }

    fn finish(&mut self, rest: &[u8], offset: u64, _: &mut BatchBuilder) -> Result<(), String> {
        if rest.is_empty() {
            return Ok(());
        }
        Err(format!(
            "record {} at byte {offset} has {} of its {} bytes: the trace was cut off",
            self.records,
            rest.len(),
            self.layout.record()
        ))
    }

    fn tally(&self) -> Vec<(&'static str, u64)> {
        let spaces = self.processes.len() as u64;
        let mut all = vec![("records", self.records), ("instructions at address 0", self.nowhere)];
        all.extend((self.layout == Layout::CloudSuite).then_some(("address spaces", spaces)));
        all
    }

    fn info(&self) -> SourceInfo {
        let mut approximations = vec![
            "ChampSim records hold no sizes: instructions and accesses that cross into a second \
             page are counted once"
                .to_owned(),
        ];
        if self.nowhere > 0 {
            approximations.push(format!(
                "{} instructions have the address 0 in the trace, and are taken as fetched there",
                self.nowhere
            ));
        }
        let description = match self.layout {
            Layout::Plain => "ChampSim trace, one process".to_owned(),
            Layout::CloudSuite => format!(
                "ChampSim trace, CloudSuite's records, {} address spaces",
                self.processes.len()
            ),
        };
        SourceInfo {
            description,
            knows_lines: true,
            knows_pc: true,
            has_fetches: true,
            approximations,
            ..SourceInfo::default()
        }
    }
}

/// Writes records of one of the structures.
struct Writer {
    layout: Layout,
    /// The address space, which `CloudSuite`'s have.
    asid: u16,
}

impl WriteRecords for Writer {
    fn process(&mut self, _: &mut dyn Write, process: ProcessId) -> io::Result<bool> {
        self.asid = process.0 as u16;
        Ok(self.layout == Layout::CloudSuite && process.0 <= u32::from(u16::MAX))
    }

    fn instruction(&mut self, out: &mut dyn Write, written: &Written<'_>) -> io::Result<()> {
        let mut bytes = [0; CLOUDSUITE_RECORD];
        let record = &mut bytes[..self.layout.record()];
        let (first, all) = self.layout.addresses();
        record[..8].copy_from_slice(&written.ip.address.to_le_bytes());
        // Addresses of stores come before those of loads.
        let places = written.stores.iter().enumerate().chain((all - LOADS..).zip(written.loads));
        for (i, Item { address, .. }) in places {
            if let Some(place) = record.get_mut(first + 8 * i..first + 8 * i + 8) {
                place.copy_from_slice(&address.to_le_bytes());
            }
        }
        if self.layout == Layout::CloudSuite {
            record[88..90].copy_from_slice(&self.asid.to_le_bytes());
        }
        out.write_all(record)
    }
}
