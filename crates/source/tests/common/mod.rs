//! What several tests need.
#![allow(dead_code)]

pub mod programs;

use nestwalk_source::Format;
use nestwalk_types::{Batch, Control, Run, Source, SourceError};

/// The format of that name.
pub fn named(name: &str) -> Format {
    name.parse().expect("a format")
}

/// A whole stream.
pub struct Stream {
    pub runs: Vec<Run>,
    /// Controls with their position among all runs.
    pub controls: Vec<(usize, Control)>,
    pub end: Result<(), SourceError>,
}

impl Stream {
    pub fn accesses(&self) -> u64 {
        self.runs.iter().map(|r| u64::from(r.count)).sum()
    }
    pub fn instructions(&self) -> u64 {
        self.runs.iter().map(|r| u64::from(r.instructions)).sum()
    }
    pub fn message(&self) -> String {
        self.end.as_ref().expect_err("an error was expected").to_string()
    }
}

pub fn collect(source: &mut dyn Source) -> Stream {
    let mut stream = Stream { runs: Vec::new(), controls: Vec::new(), end: Ok(()) };
    let mut batch = Batch::default();
    loop {
        match source.next_batch(&mut batch) {
            Ok(true) => {
                let base = stream.runs.len();
                stream
                    .controls
                    .extend(batch.controls.drain(..).map(|(p, c)| (base + p as usize, c)));
                stream.runs.append(&mut batch.runs);
            }
            Ok(false) => return stream,
            Err(e) => {
                stream.end = Err(e);
                return stream;
            }
        }
    }
}

/// Names of the ways in which a trace may be compressed.
pub const COMPRESSED: [&str; 7] = ["plain", "gzip", "xz", "zstd", "lz4", "snappy", "bzip2"];

/// All ways in which a trace may be compressed, with the name of each.
pub fn compressed(data: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    COMPRESSED.map(|name| (name, compress(name, data))).into()
}

/// Compresses in one of [`COMPRESSED`].
pub fn compress(name: &str, data: &[u8]) -> Vec<u8> {
    use std::io::Write;
    match name {
        "gzip" => {
            let level = flate2::Compression::fast();
            let mut gz = flate2::write::GzEncoder::new(Vec::new(), level);
            gz.write_all(data).unwrap();
            gz.finish().unwrap()
        }
        "xz" => {
            let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
            xz.write_all(data).unwrap();
            xz.finish().unwrap()
        }
        "zstd" => zstd::encode_all(data, 1).unwrap(),
        "lz4" => {
            use lz4_flex::frame::{BlockSize, FrameEncoder, FrameInfo};
            let blocks = FrameInfo::new().block_size(BlockSize::Max64KB);
            let mut lz4 = FrameEncoder::with_frame_info(blocks, Vec::new());
            lz4.write_all(data).unwrap();
            lz4.finish().unwrap()
        }
        // The library writes nothing for nothing, not even the stream identifier.
        "snappy" if data.is_empty() => b"\xff\x06\0\0sNaPpY".to_vec(),
        "snappy" => {
            let mut snappy = snap::write::FrameEncoder::new(Vec::new());
            snappy.write_all(data).unwrap();
            snappy.into_inner().unwrap()
        }
        "bzip2" => {
            let level = bzip2::Compression::fast();
            let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), level);
            bzip2.write_all(data).unwrap();
            bzip2.finish().unwrap()
        }
        _ => data.to_vec(),
    }
}

/// A file with this content.
pub fn file(content: &[u8]) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), content).unwrap();
    file
}

/// Runs valgrind's lackey on a command and returns the log.
pub fn valgrind_log(command: &[&str]) -> Vec<u8> {
    let log = tempfile::NamedTempFile::new().unwrap();
    let status = std::process::Command::new("valgrind")
        .args(["--tool=lackey", "--trace-mem=yes"])
        .arg(format!("--log-file={}", log.path().display()))
        .args(command)
        .stdout(std::process::Stdio::null())
        .status()
        .expect("these tests need valgrind: install the Debian package `valgrind`");
    assert!(status.success(), "valgrind: {status}");
    std::fs::read(log.path()).unwrap()
}
