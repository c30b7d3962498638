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

macro_rules! loops {
    ($($name:literal: $summary:literal,)*) => {
        &[$(Sample {
            name: concat!("lmbench-", $name),
            summary: $summary,
            bytes: include_bytes!(concat!("../../../../samples/lmbench/", $name, ".nwt")),
        },)*]
    };
}

/// The loops behind rows of LMbench, for `reproduce lmbench`. `samples/lmbench/record` makes them.
pub static LMBENCH: &[Sample] = loops! {
    "syscall": "getppid, 100 times",
    "io": "a byte of /dev/zero read and one of /dev/null written, 100 times",
    "select": "select on 100 descriptors, 20 times",
    "send": "a signal sent and ignored, 100 times",
    "catch": "a signal sent and caught, 100 times",
    "protection": "a store to a read-only page and the signal's handler, 100 times",
    "faults": "2 MiB of a file in the page cache mapped and touched, twice",
    "remap": "the same without touching it, 4 times",
    "map": "20 MiB of a file mapped, and 128 pages stored to",
    "touch": "256 KiB of anonymous memory mapped and touched, 4 times",
    "fork": "fork and exit, 6 times",
    "exec": "fork and exec of a small program, twice",
    "shell": "fork and sh -c of a small program",
};

/// The recording of that name.
pub fn by_name(name: &str) -> Option<&'static Sample> {
    SAMPLES.iter().chain(LMBENCH).find(|s| s.name == name)
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
