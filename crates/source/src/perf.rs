//! `perf script` of sampled data addresses: what `perf mem record` collects.
//!
//! A line for each sample (`process_event` of `tools/perf/builtin-script.c`): command, process or
//! `process/thread`, `[cpu]`, time with a colon, period, event with a colon, data address, data source
//! with its meaning (`|OP LOAD|LVL L1 hit|…`), weights, instruction address, symbol. `-F` chooses among
//! them; needed here are the event and the address, as in `perf script -F pid,tid,time,event,addr,ip`.
//! The kind of an access is that of the data source, or else of the event's name: one with `store` in it
//! samples stores.
//!
//! Samples are a few of very many accesses: how often pages are used can be estimated from them, but
//! which accesses hit a TLB cannot. So every result from them is approximate. What was sampled without
//! an address (it is 0 then) is counted and left out.

use crate::decoder::ONLY_PROCESS;
use crate::formats::Definition;
use crate::lines::{DIGITS, Line, Lines, head_lines, hex};
use nestwalk_types::{BatchBuilder, Control, Gva, ProcessId, RunFlags, SourceInfo, VcpuId};

pub(crate) const FORMAT: Definition = Definition::of_lines::<Perf>(
    "perf",
    "text of perf script: sampled data addresses, approximate",
    matches,
);

const V: VcpuId = VcpuId(0);
/// Fewest digits of what is taken for an instruction address and not for a weight.
const ADDRESS_DIGITS: usize = 6;

/// A sample.
struct Sample {
    process: Option<u32>,
    store: bool,
    address: u64,
    /// 0 if it is not known.
    pc: u64,
}

fn is_hex(word: &[u8]) -> bool {
    !word.is_empty() && word.len() <= 16 && word.iter().all(|&b| DIGITS[usize::from(b)] < 16)
}

/// Words of a line.
fn words(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty())
}

/// Whether a word is a time: digits, a point, digits, a colon.
fn is_time(word: &[u8]) -> bool {
    let Some((b':', number)) = word.split_last() else { return false };
    number.contains(&b'.') && number.iter().all(|&b| b.is_ascii_digit() || b == b'.')
}

/// The process of `123` or `123/124`; the thread, if that is all that was printed.
fn process(word: &[u8]) -> Option<u32> {
    let digits = word.split(|&b| b == b'/').next()?;
    let all = word.iter().all(|&b| b.is_ascii_digit() || b == b'/');
    if !all || !(1..=9).contains(&digits.len()) {
        return None;
    }
    Some(digits.iter().fold(0, |n, b| n * 10 + u32::from(b - b'0')))
}

fn has(text: &[u8], what: &[u8]) -> bool {
    memchr::memmem::find(text, what).is_some()
}

/// Where the next word from `at` on begins and ends.
fn next_word(line: &[u8], at: usize) -> Option<(usize, usize)> {
    let start = line.len() - line[at..].trim_ascii_start().len();
    let length = line[start..].iter().take_while(|b| !b.is_ascii_whitespace()).count();
    (length > 0).then_some((start, start + length))
}

/// Where the event's name begins and ends: the first word with a colon behind the time, if there is
/// one, that a hexadecimal number follows.
fn event(line: &[u8]) -> Option<(usize, usize)> {
    let (mut at, mut found) = (0, None);
    while let Some((start, end)) = next_word(line, at) {
        let word = &line[start..end];
        at = end;
        if is_time(word) {
            found = None;
        } else if found.is_none() && word.ends_with(b":") {
            let next = next_word(line, end).map(|(start, end)| &line[start..end]);
            found = next.is_some_and(is_hex).then_some((start, end));
        }
    }
    found
}

/// The sample of a line.
fn sample(line: &[u8]) -> Option<Sample> {
    let (start, end) = event(line)?;
    let (address, rest) = hex(line[end..].trim_ascii_start())?;
    let before = words(&line[..start]).take_while(|w| !is_time(w) && !w.starts_with(b"["));
    let pid = before.filter_map(process).last();
    let (store, tail) = match memchr::memrchr(b'|', rest) {
        Some(last) => (has(rest, b"|OP STORE"), &rest[last..]),
        None => (has(&line[start..end].to_ascii_lowercase(), b"store"), rest),
    };
    let pc = words(tail).find(|word| word.len() >= ADDRESS_DIGITS && is_hex(word));
    let pc = pc.and_then(hex).map_or(0, |(pc, _)| pc);
    Some(Sample { process: pid, store, address, pc })
}

/// The decoder's state.
#[derive(Default)]
struct Perf {
    samples: u64,
    /// Samples without an address.
    nowhere: u64,
    without_pc: u64,
    /// The process of the latest sample, and our number of each, by theirs.
    process: Option<u32>,
    processes: Vec<(u32, ProcessId)>,
}

impl Perf {
    #[cold]
    fn switch(&mut self, pid: u32, out: &mut BatchBuilder) {
        let process = match self.processes.binary_search_by_key(&pid, |p| p.0) {
            Ok(found) => self.processes[found].1,
            Err(place) => {
                let process = ProcessId(ONLY_PROCESS.0 + self.processes.len() as u32);
                self.processes.insert(place, (pid, process));
                process
            }
        };
        // The first one runs already.
        if self.process.is_some() {
            out.control(Control::Switch { vcpu: V, process });
        }
        self.process = Some(pid);
    }
}

impl Lines for Perf {
    const EXAMPLE: &'static str = "ls 7 [000] 1.5: 1 cpu/mem-loads,ldlat=30/P: 7ffd0010 4011d0";
    const WRITER: &'static str =
        "`perf script -F comm,pid,tid,time,event,addr,ip` of `perf mem record`";

    fn line(&mut self, line: &[u8], out: &mut BatchBuilder) -> Line {
        let Some(s) = sample(line) else {
            return if line.is_empty() || line[0] == b'#' { Line::Comment } else { Line::Other };
        };
        if s.address == 0 {
            self.nowhere += 1;
            return Line::Record;
        }
        if let Some(pid) = s.process
            && self.process != Some(pid)
        {
            self.switch(pid, out);
        }
        self.samples += 1;
        self.without_pc += u64::from(s.pc == 0);
        let mut flags = if s.store { RunFlags::STORE } else { RunFlags::default() };
        // The kernel's half of the address space.
        if (s.pc | s.address) >> 63 == 1 {
            flags = flags.union(RunFlags::KERNEL);
        }
        out.access_with(V, Gva::new(s.pc), Gva::new(s.address), 1, flags, 0);
        Line::Record
    }

    fn info(&self) -> SourceInfo {
        let mut approximations = vec![format!(
            "APPROXIMATE: {} sampled accesses stand for very many that were not sampled, so that misses, \
             walks and times are no measure of the program's; fetches and instructions are not known",
            self.samples
        )];
        if self.nowhere > 0 {
            approximations
                .push(format!("{} samples without a data address were left out", self.nowhere));
        }
        if self.without_pc > 0 {
            approximations.push(format!(
                "{} samples have no instruction address; add `ip` to -F of perf script",
                self.without_pc
            ));
        }
        if self.processes.is_empty() && self.samples > 0 {
            approximations.push(
                "the samples do not say their process, and are taken as of one; add `pid` to -F of \
                 perf script"
                    .to_owned(),
            );
        }
        SourceInfo {
            description: format!(
                "samples of perf script, {} processes",
                self.processes.len().max(1)
            ),
            knows_lines: true,
            knows_pc: self.without_pc == 0,
            has_fetches: false,
            approximations,
            ..SourceInfo::default()
        }
    }
}

/// Whether these bytes, the start of a file, look like samples with an event and a data address: the
/// first lines, but for comments, are.
fn matches(head: &[u8]) -> bool {
    let mut samples = 0;
    let all = head_lines(head).all(|line| {
        let found = sample(line);
        samples += usize::from(found.is_some());
        found.is_some() || line[0] == b'#'
    });
    all && samples > 0
}
