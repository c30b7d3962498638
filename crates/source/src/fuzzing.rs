//! What the fuzz targets call: each decoder over any bytes, checked for what must always hold.

use crate::bytes::{Compression, Window};
use crate::champsim::{ChampSim, Layout};
use crate::decoder::Decoder;
use crate::drmemtrace::Drmemtrace;
use crate::formats::{Format, Input};
use crate::gem5::Gem5;
use crate::lackey::Lackey;
use crate::page_tables::{Mapped, PageTables};
use crate::patterns::PatternSpec;
use crate::trace::{self, TraceReader, TraceWriter, WriteOptions};
use nestwalk_types::{Batch, Control, Source};
use std::io::Cursor;
use std::path::Path;

/// More than any decompressor makes of the inputs of a fuzzer, so that an endless stream is found.
const BATCHES: usize = 100_000;

/// Reads a source to its end and asserts what every stream promises.
fn drain(mut source: impl Source) {
    drain_any(&mut source);
}

fn drain_any(source: &mut dyn Source) {
    let mut batch = Batch::default();
    let mut regions = 0;
    for _ in 0..BATCHES {
        match source.next_batch(&mut batch) {
            Ok(true) => assert!(!batch.is_empty(), "a batch is empty before the end"),
            Ok(false) => {
                assert!(batch.is_empty(), "something comes with the end");
                assert_eq!(regions, 1, "one region of interest");
                return;
            }
            Err(error) => {
                assert!(!error.message.is_empty() && !error.source.is_empty());
                assert_eq!(source.next_batch(&mut batch), Err(error), "an error stays");
                return;
            }
        }
        assert!(batch.runs.iter().all(|r| r.count > 0 && r.lines != 0), "a run is empty");
        assert!(batch.runs.iter().all(|r| r.lines >> (r.gva.value() >> 6 & 63) & 1 == 1));
        assert!(batch.controls.is_sorted_by_key(|c| c.0), "controls are out of order");
        assert!(batch.controls.iter().all(|c| c.0 as usize <= batch.runs.len()));
        regions += batch.controls.iter().filter(|c| c.1 == Control::RegionOfInterest).count();
    }
    panic!("the stream does not end");
}

fn window(data: &[u8], compression: Option<Compression>) -> Option<Window> {
    let reader = Box::new(Cursor::new(data.to_vec()));
    match compression {
        Some(compression) => Window::new(reader, compression, false),
        None => Window::detect(reader, false),
    }
    .ok()
}

/// A lackey log.
pub fn lackey(data: &[u8]) {
    let window = window(data, Some(Compression::None));
    window.into_iter().for_each(|w| drain(Lackey::source("fuzz".into(), w, None)));
}

/// A `ChampSim` trace.
pub fn champsim(data: &[u8]) {
    let window = window(data, Some(Compression::None));
    window.into_iter().for_each(|w| drain(champsim_source(w, Layout::Plain)));
}

/// A `ChampSim` trace with `CloudSuite`'s records.
pub fn cloudsuite(data: &[u8]) {
    let window = window(data, Some(Compression::None));
    window.into_iter().for_each(|w| drain(champsim_source(w, Layout::CloudSuite)));
}

fn champsim_source(window: Window, layout: Layout) -> Decoder<ChampSim> {
    ChampSim::source("fuzz".into(), window, None, layout)
}

/// A file of this format, which is not [`Format::NESTWALK`].
pub fn format(format: Format, data: &[u8]) {
    let Some(window) = window(data, Some(Compression::None)) else { return };
    let input = Input { path: Path::new("fuzz"), name: "fuzz".into(), window, total: None };
    (format.definition().read)(input).into_iter().for_each(drain);
}

/// A byte that chooses a format, by its place in the list, and a file of it.
pub fn formats(data: &[u8]) {
    let Some((place, data)) = data.split_first() else { return };
    let mut all = Format::ALL.iter().filter(|f| **f != Format::NESTWALK).cycle();
    all.nth(usize::from(*place)).into_iter().for_each(|f| format(*f, data));
}

/// A dump of page tables; what is accepted must put each page where a line says, and be a guest.
pub fn page_tables(data: &[u8]) {
    let window = window(data, Some(Compression::None));
    let Some(Ok(tables)) = window.map(|w| PageTables::read("fuzz".into(), w)) else { return };
    let spec = PatternSpec { footprint: 1 << 16, accesses: 10, ..PatternSpec::default() };
    let mapped = Mapped::new(spec.source(), &tables).expect("no guest yet");
    let guest = mapped.info().guest.expect("a guest now");
    assert!(guest.memory_bytes > 0 && !mapped.begin().is_empty());
}

/// A packet trace of gem5. Half of the inputs get the magic number.
pub fn gem5(data: &[u8]) {
    let Some((kind, data)) = data.split_first() else { return };
    let magic: &[u8] = if kind & 1 == 0 { b"gem5" } else { b"" };
    let window = window(&[magic, data].concat(), Some(Compression::None));
    window.into_iter().for_each(|w| drain(Gem5::source("fuzz".into(), w, None)));
}

/// A drmemtrace.
pub fn drmemtrace(data: &[u8]) {
    let window = window(data, Some(Compression::None));
    window.into_iter().for_each(|w| drain(Drmemtrace::source("fuzz".into(), w, None)));
}

/// A zip archive of drmemtrace chunks.
pub fn zip(data: &[u8]) {
    if let Some(source) = Drmemtrace::from_zip("fuzz", Cursor::new(data.to_vec())) {
        drain(source);
    }
}

/// `v2p.textproto` of a drmemtrace.
pub fn v2p(data: &[u8]) {
    if let Err(message) = crate::drmemtrace::v2p::parse(data) {
        assert!(message.contains("line "), "{message}");
    }
}

/// A compressed file; its content is taken for `ChampSim` records.
pub fn compressed(data: &[u8]) {
    let window = window(data, None);
    window.into_iter().for_each(|w| drain(champsim_source(w, Layout::Plain)));
}

/// Everything that a trace of a guest says, with positions in the whole stream, if it ends well.
fn drain_trace(bytes: &[u8]) -> Option<Batch> {
    let mut reader = TraceReader::new("fuzz", Cursor::new(bytes))
        .map_err(|e| assert!(!e.message.is_empty()))
        .ok()?;
    let (mut all, mut batch) = (Batch::default(), Batch::default());
    for _ in 0..BATCHES {
        match reader.next_batch(&mut batch) {
            Ok(true) => assert!(!batch.is_empty(), "a batch is empty before the end"),
            Ok(false) => {
                assert!(batch.is_empty(), "something comes with the end");
                return Some(all);
            }
            Err(error) => {
                assert!(error.message.contains("byte") && batch.is_empty());
                assert_eq!(reader.next_batch(&mut batch), Err(error), "an error stays");
                return None;
            }
        }
        assert!(batch.controls.is_sorted_by_key(|c| c.0), "controls are out of order");
        assert!(batch.controls.iter().all(|c| c.0 as usize <= batch.runs.len()));
        let before = all.runs.len() as u32;
        all.controls.extend(batch.controls.drain(..).map(|(at, c)| (before + at, c)));
        all.runs.append(&mut batch.runs);
    }
    panic!("the stream does not end");
}

/// A trace of a guest. After a byte that is 0 comes a whole file; after another, a chunk, in a file
/// that is made for it, so that no checksum is in the way. What is read well is read again after it
/// was written again, and its controls are read alone.
pub fn trace(data: &[u8]) {
    let Some((kind, data)) = data.split_first() else { return };
    let file = if *kind == 0 { data.to_vec() } else { trace::file_with_chunk(data) };
    let Some(all) = drain_trace(&file) else { return };
    let Ok(mut reader) = TraceReader::new("fuzz", Cursor::new(&file)) else { return };
    let (mut controls, mut some) = (Vec::new(), Vec::new());
    while reader.next_controls(&mut some).expect("they were read before") {
        controls.extend(some.drain(..).map(|(at, control)| (at as u32, control)));
    }
    assert!(controls == all.controls, "controls differ when they are read alone");
    let options =
        WriteOptions { level: 1, thread: false, line_addresses: false, ..WriteOptions::LIVE };
    let mut writer =
        TraceWriter::new("fuzz", Vec::new(), reader.header(), options).expect("memory");
    writer.write(&all).expect("memory");
    let written = writer.finish(trace::Summary::default()).expect("memory");
    assert!(drain_trace(&written.out) == Some(all), "it is another trace when it is written again");
}

/// The text of a pattern; what is accepted must say itself again and run.
pub fn pattern(data: &[u8]) {
    let defaults = PatternSpec { footprint: 1 << 20, accesses: 100, ..PatternSpec::default() };
    let Ok(text) = std::str::from_utf8(data) else { return };
    match PatternSpec::parse(text, &defaults) {
        Err(error) => assert!(!error.to_string().is_empty()),
        Ok(spec) => {
            let again = PatternSpec::parse(&spec.name(), &spec);
            assert_eq!(again.as_ref(), Ok(&spec), "its name says what it is");
            drain(PatternSpec { footprint: 1 << 20, accesses: 1000, ..spec }.source());
        }
    }
}
