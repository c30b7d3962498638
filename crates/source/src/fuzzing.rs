//! What the fuzz targets call: each decoder over any bytes, checked for what must always hold.

use crate::bytes::{Compression, Window};
use crate::champsim::ChampSim;
use crate::drmemtrace::Drmemtrace;
use crate::lackey::Lackey;
use crate::patterns::PatternSpec;
use nestwalk_types::{Batch, Control, Source};
use std::io::Cursor;

/// More than any decompressor makes of the inputs of a fuzzer, so that an endless stream is found.
const BATCHES: usize = 100_000;

/// Reads a source to its end and asserts what every stream promises.
fn drain(mut source: impl Source) {
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
    window.into_iter().for_each(|w| drain(ChampSim::source("fuzz".into(), w, None)));
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

/// A compressed file; its content is taken for `ChampSim` records.
pub fn compressed(data: &[u8]) {
    let window = window(data, None);
    window.into_iter().for_each(|w| drain(ChampSim::source("fuzz".into(), w, None)));
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
