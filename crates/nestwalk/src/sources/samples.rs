//! Recordings of real guests that come with the program, so that it has something real to show at once.

use anyhow::Result;
use nestwalk_source::trace::TraceReader;
use nestwalk_types::SourceError;
use std::io::Cursor;

/// A recording. `samples/record` in the repository makes them.
pub struct Sample {
    /// Its name as a source.
    pub name: &'static str,
    /// What was recorded.
    pub summary: &'static str,
    bytes: &'static [u8],
}

macro_rules! sample {
    ($name:literal, $summary:literal) => {
        Sample {
            name: $name,
            summary: $summary,
            bytes: include_bytes!(concat!("../../../../samples/", $name, ".nwt")),
        }
    };
}

/// Every sample; the first is what is compared if no source is named.
pub static SAMPLES: &[Sample] = &[
    sample!("gcc", "gcc -O2 compiles a small file: driver, compiler, assembler"),
    sample!("redis", "a redis server and its load, 500 sets and gets by 4 clients"),
    sample!("words", "a perl script counts, sorts and replaces words"),
    sample!("storm", "a shell script starts a hundred short processes"),
    sample!("bfs", "the middle of a breadth-first search over 1 GiB in 4 KiB pages"),
];

/// The sample of that name.
pub fn by_name(name: &str) -> Option<&'static Sample> {
    SAMPLES.iter().find(|s| s.name == name)
}

impl Sample {
    /// Reads it.
    ///
    /// # Errors
    /// It is damaged, which a test excludes.
    pub fn open(&self) -> Result<TraceReader<Cursor<&'static [u8]>>, SourceError> {
        TraceReader::new(self.name, Cursor::new(self.bytes))
    }
}
