//! What several tests need.
#![allow(dead_code)]

use nestwalk_types::{Batch, Control, Run, Source, SourceError};

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

/// All ways in which a trace may be compressed, with the name of each.
pub fn compressed(data: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    use std::io::Write;
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(data).unwrap();
    let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
    xz.write_all(data).unwrap();
    let blocks = lz4_flex::frame::FrameInfo::new().block_size(lz4_flex::frame::BlockSize::Max64KB);
    let mut lz4 = lz4_flex::frame::FrameEncoder::with_frame_info(blocks, Vec::new());
    lz4.write_all(data).unwrap();
    let mut snappy = snap::write::FrameEncoder::new(Vec::new());
    snappy.write_all(data).unwrap();
    let snappy = match data {
        // The library writes nothing for nothing, not even the stream identifier.
        [] => b"\xff\x06\0\0sNaPpY".to_vec(),
        _ => snappy.into_inner().unwrap(),
    };
    let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    bzip2.write_all(data).unwrap();
    vec![
        ("plain", data.to_vec()),
        ("gzip", gz.finish().unwrap()),
        ("xz", xz.finish().unwrap()),
        ("zstd", zstd::encode_all(data, 1).unwrap()),
        ("lz4", lz4.finish().unwrap()),
        ("snappy", snappy),
        ("bzip2", bzip2.finish().unwrap()),
    ]
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
