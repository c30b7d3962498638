//! The text of `valgrind --tool=lackey --trace-mem=yes`, decoded byte by byte.
//!
//! The format is that of `lackey/lk_main.c` (valgrind 3.19, functions `trace_instr`, `trace_load`,
//! `trace_store`, `trace_modify`): `"I  %08lx,%lu\n"`, `" L %08lx,%lu\n"`, `" S %08lx,%lu\n"`,
//! `" M %08lx,%lu\n"`: a lower-case hexadecimal address of at least eight digits and a decimal size
//! in bytes. Data records follow the record of their instruction.
//!
//! Logs that others wrote or edited differ in what does not matter, and are read all the same: fewer
//! digits (the traces of courses), upper case, `CR LF`, blanks at the end of a line or one less behind
//! `I`, and a last line without its end. Without `I` lines neither instructions nor their number are
//! known. Any other line is the program's own output, or another's: it is counted, and said.
//!
//! Two things are shown otherwise than they happen (`mod.rs`): the load before the modify of an atomic
//! instruction, and each further element of a repeated string instruction. Both are told by their
//! place: a load directly behind its instruction's record, and directly before a modify of the same
//! bytes; an instruction of two or three bytes at the address of the one before, whose first access
//! follows that of the one before, or that accesses nothing where the one before did.
//!
//! `M`, a modify, is a load and a store of one instruction. It becomes one store, since a TLB is
//! looked up for writing and a read-modify-write counts as a write.

use super::command::EVERY_LOAD;
use crate::decoder::{Decode, Step};
use crate::lines::{CUT_LINE, DIGITS, blanks, decimal, hex};
use nestwalk_types::{AccessKind, BatchBuilder, Gva, SourceInfo, VcpuId};

/// What was found in a log.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LackeyStats {
    /// `I` records.
    pub instructions: u64,
    /// `L` records.
    pub loads: u64,
    /// `S` records.
    pub stores: u64,
    /// `M` records.
    pub modifies: u64,
    /// `I` records of further elements of repeated string instructions, not among `instructions`.
    pub repeats: u64,
    /// `L` records of atomic instructions, whose modify follows, not among `loads`.
    pub atomic_loads: u64,
    /// Lines of valgrind itself, which begin with `==`, `--` or `**` and a process number.
    pub chatter_lines: u64,
    /// Lines that are neither: the program's own output, or records damaged by it.
    pub other_lines: u64,
}

impl LackeyStats {
    /// Records of all four kinds.
    pub fn records(&self) -> u64 {
        let shown_twice = self.repeats + self.atomic_loads;
        self.instructions + self.loads + self.stores + self.modifies + shown_twice
    }
    /// The sum of two logs.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            instructions: self.instructions + other.instructions,
            loads: self.loads + other.loads,
            stores: self.stores + other.stores,
            modifies: self.modifies + other.modifies,
            repeats: self.repeats + other.repeats,
            atomic_loads: self.atomic_loads + other.atomic_loads,
            chatter_lines: self.chatter_lines + other.chatter_lines,
            other_lines: self.other_lines + other.other_lines,
        }
    }
}

/// The kinds of records.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Instruction,
    Load,
    Store,
    Modify,
}

/// A record and the length of its line, newline included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Record {
    pub(crate) kind: Kind,
    pub(crate) address: u64,
    pub(crate) bytes: u32,
    pub(crate) line: usize,
}

/// Bytes that hold any record as lackey writes it: 3 of kind, 16 of address, 1 comma, 4 of size, 2 of
/// the line's end.
const LONGEST: usize = 32;

/// The record that `bytes` begin with, if they begin with one.
#[inline(always)]
pub(crate) fn record(bytes: &[u8; LONGEST]) -> Option<Record> {
    let kind = match [bytes[0], bytes[1], bytes[2]] {
        [b'I', b' ', b' '] => Kind::Instruction,
        [b' ', b'L', b' '] => Kind::Load,
        [b' ', b'S', b' '] => Kind::Store,
        [b' ', b'M', b' '] => Kind::Modify,
        _ => return None,
    };
    let (mut address, mut bad) = (0u64, 0);
    for &byte in &bytes[3..11] {
        let digit = DIGITS[usize::from(byte)];
        bad |= digit;
        address = address << 4 | u64::from(digit);
    }
    if bad >= 16 {
        return None;
    }
    let mut at = 11;
    loop {
        let digit = DIGITS[usize::from(bytes[at])];
        if digit >= 16 {
            break;
        }
        address = address << 4 | u64::from(digit);
        at += 1;
        if at > 19 {
            return None;
        }
    }
    if bytes[at] != b',' {
        return None;
    }
    at += 1;
    let first = at;
    let mut size = 0;
    while bytes[at].is_ascii_digit() {
        if at - first == 4 {
            return None;
        }
        size = size * 10 + u32::from(bytes[at] - b'0');
        at += 1;
    }
    let line = match bytes[at] {
        b'\n' => at + 1,
        b'\r' if bytes[at + 1] == b'\n' => at + 2,
        _ => return None,
    };
    (size > 0 && bytes[first] != b'0').then_some(Record { kind, address, bytes: size, line })
}

/// The record of a whole line that is not as lackey writes it, if it is one.
#[cold]
#[inline(never)]
fn loose(line: &[u8]) -> Option<Record> {
    let (kind, rest) = match line.trim_ascii() {
        [b'I', rest @ ..] => (Kind::Instruction, rest),
        [b'L', rest @ ..] => (Kind::Load, rest),
        [b'S', rest @ ..] => (Kind::Store, rest),
        [b'M', rest @ ..] => (Kind::Modify, rest),
        _ => return None,
    };
    let (address, rest) = hex(blanks(rest)?)?;
    let [b',', size @ ..] = rest else { return None };
    let (bytes, rest) = decimal(size)?;
    let is_size = size[0] != b'0' && bytes < 10_000 && rest.is_empty();
    is_size.then_some(Record { kind, address, bytes, line: line.len() })
}

/// Distinct process numbers in chatter that are remembered: more than enough to say "several".
const PROCESSES: usize = 64;

/// In a line of valgrind's kind at the beginning of a log: it is not valgrind's, and every line is what
/// it says.
pub(super) const PLAIN: &str = "nestwalk: each line is an instruction or an access";

/// Data records of no instruction: more than any has.
const NO_INSTRUCTION: u64 = 1 << 63;

/// The decoder of one log.
pub(crate) struct Text {
    pub(crate) stats: LackeyStats,
    pub(crate) vcpu: VcpuId,
    /// Address of the latest instruction: that of the data records which follow.
    pc: Gva,
    /// Data records of the latest instruction; [`NO_INSTRUCTION`] before the first.
    data: u64,
    /// Address and size of the first of them.
    first: (u64, u32),
    /// Written by [`crate::Exporter`]: every line is what it says.
    plain: bool,
    /// Inside a line that is no record and whose end is not known yet.
    skipping: bool,
    /// A log of a live process may lack its end: the process was killed.
    may_be_cut: bool,
    /// The last record has no end of line.
    no_newline: bool,
    processes: Vec<u32>,
}

impl Default for Text {
    fn default() -> Self {
        Self {
            stats: LackeyStats::default(),
            vcpu: VcpuId(0),
            pc: Gva::new(0),
            data: NO_INSTRUCTION,
            first: (0, 0),
            plain: false,
            skipping: false,
            may_be_cut: false,
            no_newline: false,
            processes: Vec::new(),
        }
    }
}

impl Text {
    /// The decoder of one log of a live program, for this vCPU.
    pub(crate) fn live(vcpu: VcpuId) -> Self {
        Self { vcpu, may_be_cut: true, ..Self::default() }
    }

    #[inline]
    fn take(&mut self, r: Record, out: &mut BatchBuilder) {
        let gva = Gva::new(r.address);
        let kind = match r.kind {
            Kind::Instruction => {
                self.stats.instructions += 1;
                self.pc = gva;
                self.data = 0;
                out.access(self.vcpu, gva, gva, r.bytes, AccessKind::Fetch, 1);
                return;
            }
            Kind::Load => {
                self.stats.loads += 1;
                AccessKind::Load
            }
            Kind::Store => {
                self.stats.stores += 1;
                AccessKind::Store
            }
            Kind::Modify => {
                self.stats.modifies += 1;
                AccessKind::Store
            }
        };
        if self.data == 0 {
            self.first = (r.address, r.bytes);
        }
        self.data += 1;
        out.access(self.vcpu, self.pc, gva, r.bytes, kind, 0);
    }

    /// Whether a record is shown otherwise than it happened and makes nothing: the load of an atomic
    /// instruction, or a further element of a repeated one. `rest` begins with the record's line; `None`
    /// if the line behind it is needed and not there yet.
    #[inline(always)]
    fn is_shown_only(&mut self, r: Record, rest: &[u8], ending: bool) -> Option<bool> {
        match r.kind {
            Kind::Load if self.data == 0 => self.is_atomic(r, rest, ending),
            Kind::Instruction if r.address == self.pc.value() => self.is_repeat(r, rest, ending),
            _ => Some(false),
        }
    }

    /// Of a load, the first record behind its instruction: a modify of the same bytes follows.
    #[inline(always)]
    fn is_atomic(&mut self, r: Record, rest: &[u8], ending: bool) -> Option<bool> {
        let (load, next) = rest.split_at(r.line);
        let known = ending || next.len() >= load.len() || next.get(1).is_some_and(|&b| b != b'M');
        let modify = next.get(1) == Some(&b'M') && next.get(2..load.len()) == Some(&load[2..]);
        let atomic = modify && !self.plain;
        self.stats.atomic_loads += u64::from(known && atomic);
        known.then_some(atomic)
    }

    /// Of an instruction at the address of the one before: that is as long as a string instruction, it
    /// has accessed something, and what follows is the next element or, at the end, no access.
    #[cold]
    fn is_repeat(&mut self, r: Record, rest: &[u8], ending: bool) -> Option<bool> {
        if self.plain || !(1..=2).contains(&self.data) || !(2..=3).contains(&r.bytes) {
            return Some(false);
        }
        let next = &rest[r.line..];
        let end = newline(next);
        if end.is_none() && next.len() < LONGEST && !ending {
            return None;
        }
        let repeat = match end.and_then(|end| loose(&next[..end])) {
            Some(data) if data.kind != Kind::Instruction => {
                let (address, bytes) = self.first;
                let step = data.address.abs_diff(address);
                data.bytes == bytes && step == u64::from(bytes) && bytes <= 8
            }
            _ => true,
        };
        if repeat {
            self.stats.repeats += 1;
            self.data = 0;
        }
        Some(repeat)
    }

    /// A line, or the beginning of one, that is no record.
    #[cold]
    fn other(&mut self, line: &[u8]) {
        match chatter(line) {
            Some(process) => {
                self.stats.chatter_lines += 1;
                self.plain |= memchr::memmem::find(line, PLAIN.as_bytes()).is_some();
                if self.processes.len() < PROCESSES && !self.processes.contains(&process) {
                    self.processes.push(process);
                }
            }
            None => self.stats.other_lines += 1,
        }
    }

    fn approximations(&self) -> Vec<String> {
        let mut all = vec![
            "lackey sees one thread at a time: threads of a process share one vCPU".to_owned(),
        ];
        if self.processes.len() > 1 {
            all.push(format!(
                "the log holds the records of {} processes mixed, taken as one process; `--lackey \
                 -- COMMAND` keeps them apart",
                self.processes.len()
            ));
        }
        if !self.may_be_cut {
            all.push(format!(
                "a log that was written without {EVERY_LOAD} lacks loads whose results are never used"
            ));
        }
        if self.stats.instructions == 0 && self.stats.records() > 0 {
            all.push(
                "the log has no instruction lines, so that instructions and their number are not known"
                    .to_owned(),
            );
        }
        if self.no_newline {
            all.push(CUT_LINE.to_owned());
        }
        if self.stats.other_lines > 0 {
            all.push(format!(
                "{} lines of the log are neither records nor valgrind's own and were skipped",
                self.stats.other_lines
            ));
        }
        all
    }
}

/// The process number of a line of valgrind's own: `==123== …`, `--123-- …` or `**123** …`.
pub(crate) fn chatter(line: &[u8]) -> Option<u32> {
    let [mark @ (b'=' | b'-' | b'*'), second, rest @ ..] = line else { return None };
    let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
    let closed = rest.len() >= digits + 2 && rest[digits] == *mark && rest[digits + 1] == *mark;
    if second != mark || !(1..=9).contains(&digits) || !closed {
        return None;
    }
    Some(rest[..digits].iter().fold(0, |n, b| n * 10 + u32::from(b - b'0')))
}

/// Whether an unfinished last line is the beginning of a record.
fn is_cut_record(rest: &[u8]) -> bool {
    [b"I  ", b" L ", b" S ", b" M "].iter().any(|head| {
        let n = rest.len().min(3);
        rest[..n] == head[..n]
    })
}

impl Text {
    /// Decodes whole lines, until the batch is full or, if the log is `ending`, all of them. Says how
    /// many bytes these were.
    #[inline(always)]
    fn lines(&mut self, bytes: &[u8], ending: bool, out: &mut BatchBuilder) -> usize {
        let mut used = 0;
        while ending || !out.is_full() {
            let rest = &bytes[used..];
            if self.skipping {
                let Some(end) = newline(rest) else {
                    return bytes.len();
                };
                used += end;
                self.skipping = false;
                continue;
            }
            let mut short = [0; LONGEST];
            let head = rest.first_chunk().unwrap_or_else(|| {
                short[..rest.len()].copy_from_slice(rest);
                &short
            });
            if let Some(r) = record(head) {
                match self.is_shown_only(r, rest, ending) {
                    Some(false) => self.take(r, out),
                    Some(true) => {}
                    None => break,
                }
                used += r.line;
            } else if let Some(end) = newline(rest) {
                match loose(&rest[..end]) {
                    Some(r) => self.take(r, out),
                    None => self.other(&rest[..end]),
                }
                used += end;
            } else if rest.len() >= LONGEST {
                self.other(rest);
                self.skipping = true;
            } else {
                break;
            }
        }
        used
    }
}

impl Decode for Text {
    fn decode(&mut self, bytes: &[u8], _: u64, out: &mut BatchBuilder) -> Step {
        Step { used: self.lines(bytes, false, out), error: None }
    }

    fn finish(&mut self, rest: &[u8], offset: u64, out: &mut BatchBuilder) -> Result<(), String> {
        let used = self.lines(rest, true, out);
        let (rest, offset) = (&rest[used..], offset + used as u64);
        if let Some(r) = loose(rest).filter(|_| !self.may_be_cut) {
            self.take(r, out);
            self.no_newline = true;
        } else if !rest.is_empty() {
            if is_cut_record(rest) && !self.may_be_cut {
                return Err(format!(
                    "the log ends inside the record at byte {offset}, line {}: it was cut off",
                    self.stats.records() + self.stats.chatter_lines + self.stats.other_lines + 1
                ));
            }
            self.other(rest);
        }
        if self.stats.records() == 0 && !self.may_be_cut {
            return Err(format!(
                "no record such as `I  04016b80,3` in {} lines; the log must be written with \
                 `valgrind --tool=lackey --trace-mem=yes`",
                self.stats.chatter_lines + self.stats.other_lines
            ));
        }
        Ok(())
    }

    fn tally(&self) -> Vec<(&'static str, u64)> {
        let s = &self.stats;
        vec![
            ("records", s.records()),
            ("loads", s.loads),
            ("stores", s.stores),
            ("modifies", s.modifies),
            ("loads of atomic instructions left out", s.atomic_loads),
            ("further elements of string instructions", s.repeats),
            ("lines of valgrind", s.chatter_lines),
            ("other lines", s.other_lines),
        ]
    }

    fn info(&self) -> SourceInfo {
        SourceInfo {
            description: "log of valgrind's lackey".into(),
            knows_lines: true,
            knows_pc: self.stats.instructions > 0,
            has_fetches: self.stats.instructions > 0,
            approximations: self.approximations(),
            ..SourceInfo::default()
        }
    }
}

/// Bytes up to and with the first newline.
fn newline(bytes: &[u8]) -> Option<usize> {
    memchr::memchr(b'\n', bytes).map(|i| i + 1)
}

/// Whether these bytes, the start of a file, look like a lackey log: a record among its lines, or
/// the tool's greeting.
pub(super) fn matches(head: &[u8]) -> bool {
    head.split_inclusive(|&b| b == b'\n').any(|line| {
        loose(line).is_some()
            || (chatter(line).is_some() && line.windows(8).any(|w| w == b" Lackey,"))
    })
}
