//! Cuts fall where the trace has them: the first N accesses are the first N, for every decoder, however
//! many page runs are open side by side.

mod common;

use common::programs::{Access, Encoded, every_format, program};
use common::{Stream, collect, file};
use nestwalk_source::trace::{Header, Summary, TraceReader, TraceWriter, WriteOptions};
use nestwalk_source::{CUT_BY_RUNS, Limit, Multiplex, PatternSpec, open};
use nestwalk_types::{
    Batch, BatchBuilder, Control, Filter, GuestInfo, ProcessId, Room, Run, Source, SourceInfo,
};
use std::collections::BTreeMap;
use std::io::Cursor;

/// What runs hold by process, page and kind: accesses, and lines.
type Held = BTreeMap<(ProcessId, u64, bool), (u64, u64)>;

fn of_runs(stream: &Stream) -> Held {
    let mut held = Held::new();
    let mut process = ProcessId(0);
    let mut controls = stream.controls.iter().peekable();
    for (i, run) in stream.runs.iter().enumerate() {
        while let Some((_, control)) = controls.next_if(|c| c.0 <= i) {
            if let Control::Switch { process: next, .. } = control {
                process = *next;
            }
        }
        let key = (process, run.gva.value() >> 12, run.flags.is_fetch());
        let (count, lines) = held.entry(key).or_default();
        *count += u64::from(run.count);
        *lines |= run.lines;
    }
    held
}

fn of_accesses<'a>(accesses: impl IntoIterator<Item = &'a (ProcessId, Access)>) -> Held {
    let mut held = Held::new();
    for (process, a) in accesses {
        let (count, lines) = held.entry((*process, a.page, a.fetch)).or_default();
        *count += 1;
        *lines |= a.lines;
    }
    held
}

/// The accesses of a trace of one process.
fn alone(e: &Encoded) -> Vec<(ProcessId, Access)> {
    e.accesses.iter().map(|a| (ProcessId(1), *a)).collect()
}

#[test]
fn the_first_accesses_of_every_format_are_the_first() {
    for e in every_format(&program(1, 400)) {
        let file = file(&e.bytes);
        let all = alone(&e);
        let numbers = (1..60).chain([100, 500, 999, all.len() - 1, all.len(), all.len() + 10]);
        for n in numbers {
            let mut source = Limit::new(open(file.path(), None).expect(e.name), n as u64);
            let stream = collect(&mut source);
            let first = &all[..n.min(all.len())];
            assert_eq!(of_runs(&stream), of_accesses(first), "{} {n}", e.name);
            let instructions: u64 = first.iter().map(|a| a.1.instructions).sum();
            assert_eq!(stream.instructions(), instructions, "{} {n}", e.name);
            assert!(!source.info().approximations.iter().any(|a| a == CUT_BY_RUNS));
        }
    }
}

#[test]
fn whole_traces_hold_what_was_written() {
    for e in every_format(&program(2, 30_000)) {
        let file = file(&e.bytes);
        let stream = collect(open(file.path(), None).expect(e.name).as_mut());
        assert_eq!(stream.end, Ok(()), "{}", e.name);
        assert_eq!(of_runs(&stream), of_accesses(&alone(&e)), "{}", e.name);
        assert_eq!(stream.instructions(), e.instructions, "{}", e.name);
        let stores = e.accesses.iter().filter(|a| a.store).map(|a| a.page);
        let found: Vec<&Run> = stream.runs.iter().filter(|r| r.flags.is_store()).collect();
        for page in stores {
            assert!(found.iter().any(|r| r.gva.value() >> 12 == page), "{}", e.name);
        }
    }
}

#[test]
fn accesses_one_by_one_are_those_of_the_program_in_its_order() {
    for e in every_format(&program(3, 5000)) {
        let file = file(&e.bytes);
        let mut source = open(file.path(), None).expect(e.name);
        let (mut runs, mut batch) = (Vec::new(), Batch::default());
        loop {
            assert!(source.set_room(Room::SINGLE), "{}", e.name);
            if !source.next_batch(&mut batch).expect(e.name) {
                break;
            }
            runs.append(&mut batch.runs);
        }
        let found: Vec<Access> = runs
            .iter()
            .map(|r| Access {
                fetch: r.flags.is_fetch(),
                store: r.flags.is_store(),
                page: r.gva.value() >> 12,
                lines: r.lines,
                instructions: r.instructions.into(),
            })
            .collect();
        assert!(runs.iter().all(|r| r.count == 1));
        assert_eq!(found, e.accesses, "{}", e.name);
    }
}

#[test]
fn batches_of_any_size_make_the_same_stream() {
    for e in every_format(&program(4, 2000)) {
        let file = file(&e.bytes);
        let mut source = open(file.path(), None).expect(e.name);
        let mut batch = Batch::default();
        let mut stream = Stream { runs: Vec::new(), controls: Vec::new(), end: Ok(()) };
        let mut r = nestwalk_types::SplitMix64::new(5);
        loop {
            let (accesses, instructions) = (1 + r.below(50), 1 + r.below(20));
            source.set_room(Room { accesses, instructions, single: false });
            if !source.next_batch(&mut batch).unwrap() {
                break;
            }
            let base = stream.runs.len();
            let moved = batch.controls.drain(..).map(|(at, c)| (base + at as usize, c));
            stream.controls.extend(moved);
            stream.runs.append(&mut batch.runs);
        }
        assert_eq!(of_runs(&stream), of_accesses(&alone(&e)), "{}", e.name);
        assert_eq!(stream.instructions(), e.instructions, "{}", e.name);
    }
}

/// Which access of which source is when, by the rule: a turn ends with the last access of its last
/// instruction, or, of a source that has none, after as many accesses.
fn turns(sources: &[&Encoded], quantum: u64) -> Vec<(ProcessId, Access)> {
    let mut at = vec![0; sources.len()];
    let mut all = Vec::new();
    while (0..sources.len()).any(|s| at[s] < sources[s].accesses.len()) {
        for (s, source) in sources.iter().enumerate() {
            let (mut left, known) = (quantum, source.instructions > 0);
            while let Some(access) = source.accesses.get(at[s]) {
                let used = if known { access.instructions } else { 1 };
                if left == 0 && used > 0 {
                    break;
                }
                left = left.saturating_sub(used);
                all.push((ProcessId(s as u32 + 1), *access));
                at[s] += 1;
            }
        }
    }
    all
}

#[test]
fn turns_of_several_processes_end_where_their_instructions_do() {
    let formats = every_format(&program(6, 600));
    let other = every_format(&program(7, 300));
    let by_name = |name: &str| formats.iter().chain(&other).find(|e| e.name == name).unwrap();
    for (names, quantum) in [
        (["lackey", "champsim"], 7),
        (["champsim", "pinatrace"], 50),
        (["pinatrace", "dinero"], 13),
        (["gem5", "drmemtrace"], 1),
    ] {
        let sources = names.map(by_name);
        let files = sources.map(|e| file(&e.bytes));
        let all = turns(&sources, quantum);
        for n in (1..80).chain([555, 1999, all.len()]) {
            let opened = files.iter().map(|f| open(f.path(), None).unwrap()).collect();
            let stream = collect(&mut Limit::new(Multiplex::new(opened, 1, quantum), n as u64));
            let first = &all[..n.min(all.len())];
            assert_eq!(of_runs(&stream), of_accesses(first), "{names:?} {quantum} {n}");
        }
    }
}

#[test]
fn patterns_and_several_vcpus_are_cut_exactly() {
    let base = PatternSpec { accesses: 3000, footprint: 1 << 20, vcpus: 3, ..Default::default() };
    let spec = PatternSpec { chunk: 5, ..PatternSpec::parse("uniform", &base).unwrap() };
    let singles = collect(&mut Limit::new(Single(spec.clone().source()), 3000));
    for n in [1, 2, 3, 10, 100, 1000, 2999] {
        let stream = collect(&mut Limit::new(spec.clone().source(), n));
        let by_vcpu = |runs: &[Run]| {
            let mut held = BTreeMap::new();
            for run in runs {
                *held.entry((run.vcpu, run.gva.value() >> 12)).or_insert(0) += run.count;
            }
            held
        };
        assert_eq!(by_vcpu(&stream.runs), by_vcpu(&singles.runs[..n as usize]), "{n}");
    }
}

/// A source whose accesses are asked for one by one.
struct Single<S>(S);
impl<S: Source> Source for Single<S> {
    fn info(&self) -> SourceInfo {
        self.0.info()
    }
    fn next_batch(&mut self, batch: &mut Batch) -> Result<bool, nestwalk_types::SourceError> {
        self.0.set_room(Room::SINGLE);
        self.0.next_batch(batch)
    }
}

/// A recording keeps runs, not accesses: it is cut as if each run were made before the next.
#[test]
fn a_recording_is_cut_in_the_order_of_its_runs_and_says_so() {
    let mut builder = BatchBuilder::new();
    let mut batch = Batch::default();
    let lackey = &every_format(&program(8, 500))[0];
    let vcpu = nestwalk_types::VcpuId(0);
    for a in &lackey.accesses {
        let kind = match (a.fetch, a.store) {
            (true, _) => nestwalk_types::AccessKind::Fetch,
            (_, true) => nestwalk_types::AccessKind::Store,
            _ => nestwalk_types::AccessKind::Load,
        };
        let gva = nestwalk_types::Gva::new(a.page << 12 | u64::from(a.lines.trailing_zeros()) << 6);
        builder.access(vcpu, gva, gva, 1, kind, a.instructions as u32);
    }
    builder.take_into(&mut batch);
    let guest = Some(GuestInfo {
        memory_bytes: 1 << 30,
        paging: "4-level".into(),
        vcpus: 1,
        filter: Filter::RUNS,
    });
    let header = Header::of(&SourceInfo { guest, ..SourceInfo::default() });
    batch.controls.push((0, Control::RegionOfInterest));
    let mut writer = TraceWriter::new("a", Vec::new(), &header, WriteOptions::LIVE).unwrap();
    writer.write(&batch).unwrap();
    let written = writer.finish(Summary::default()).unwrap().out;
    let expanded: Vec<u64> = batch
        .runs
        .iter()
        .flat_map(|r| std::iter::repeat_n(r.gva.value() >> 12, usize::from(r.count)))
        .collect();
    for n in [1, 2, 10, 100, expanded.len() - 1] {
        let reader = TraceReader::new("a", Cursor::new(written.clone())).unwrap();
        let mut limited = Limit::new(reader, n as u64);
        let runs = collect(&mut limited).runs;
        let found: Vec<u64> = runs
            .iter()
            .flat_map(|r| std::iter::repeat_n(r.gva.value() >> 12, usize::from(r.count)))
            .collect();
        assert_eq!(found, expanded[..n], "{n}");
        assert!(limited.info().approximations.iter().any(|a| a == CUT_BY_RUNS), "{n}");
    }
}
