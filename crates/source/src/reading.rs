//! What `bench` reads: traces of a made-up program, compressed in each way; reading without decoding.

use crate::bytes::Window;
use crate::input::open;
use crate::temporary::Folder;
use nestwalk_types::{Batch, Source, SourceError, SplitMix64};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

/// Ways of compression, and whether decompressing costs so much that decoding is measured by it.
pub const WAYS: [(&str, bool); 7] = [
    ("plain", false),
    ("zstd", false),
    ("lz4", false),
    ("snappy", false),
    ("gzip", true),
    ("xz", true),
    ("bzip2", true),
];

/// Instructions of a function, and functions of the program.
const BODY: u64 = 150;
const FUNCTIONS: u64 = 400;

/// A folder for the traces, which goes when it is dropped.
///
/// # Errors
/// It cannot be made.
pub fn folder() -> io::Result<Folder> {
    Folder::new("nestwalk-bench-")
}

/// Writes a drmemtrace of about so many records, compressed in one of [`WAYS`]; says how many it has.
///
/// Calls of functions, each a few loops over its code, with loads from a stack and from a heap, such
/// that runs are as long as in the recordings that the format's own tests have: seven to nine accesses.
///
/// # Errors
/// The file cannot be written.
pub fn write(path: &Path, way: &str, records: u64) -> io::Result<u64> {
    let file = BufWriter::new(File::create(path)?);
    match way {
        "gzip" => {
            let mut out = flate2::write::GzEncoder::new(file, flate2::Compression::default());
            let n = program(&mut out, records)?;
            out.finish()?.flush()?;
            Ok(n)
        }
        "xz" => {
            let mut out = liblzma::write::XzEncoder::new(file, 6);
            let n = program(&mut out, records)?;
            out.finish()?.flush()?;
            Ok(n)
        }
        "bzip2" => {
            let mut out = bzip2::write::BzEncoder::new(file, bzip2::Compression::best());
            let n = program(&mut out, records)?;
            out.finish()?.flush()?;
            Ok(n)
        }
        "zstd" => {
            let mut out = zstd::stream::write::Encoder::new(file, 0)?;
            let n = program(&mut out, records)?;
            out.finish()?.flush()?;
            Ok(n)
        }
        "lz4" => {
            use lz4_flex::frame::{BlockSize, FrameEncoder, FrameInfo};
            let blocks = FrameInfo::new().block_size(BlockSize::Max64KB);
            let mut out = FrameEncoder::with_frame_info(blocks, file);
            let n = program(&mut out, records)?;
            out.finish().map_err(io::Error::other)?.flush()?;
            Ok(n)
        }
        "snappy" => {
            let mut out = snap::write::FrameEncoder::new(file);
            let n = program(&mut out, records)?;
            out.into_inner().map_err(|e| io::Error::other(e.to_string()))?.flush()?;
            Ok(n)
        }
        _ => {
            let mut out = file;
            let n = program(&mut out, records)?;
            out.flush()?;
            Ok(n)
        }
    }
}

/// Writes the records; says how many.
fn program(out: &mut dyn Write, records: u64) -> io::Result<u64> {
    let mut n = 0_u64;
    let mut entry = |kind: u16, size: u16, value: u64| -> io::Result<u64> {
        let mut bytes = [0; 12];
        bytes[..2].copy_from_slice(&kind.to_le_bytes());
        bytes[2..4].copy_from_slice(&size.to_le_bytes());
        bytes[4..].copy_from_slice(&value.to_le_bytes());
        out.write_all(&bytes)?;
        n += 1;
        Ok(n)
    };
    for (kind, size, value) in [(25, 0, 7), (28, 12, 7), (28, 9, 0x240), (22, 4, 11), (24, 4, 10)] {
        entry(kind, size, value)?;
    }
    let mut random = SplitMix64::new(13);
    let mut done = 0;
    let mut time = 13_000_000_000_000_000;
    let mut seen = vec![false; FUNCTIONS as usize];
    while done < records {
        time += 1 + random.below(500);
        entry(28, 2, time)?;
        entry(28, 3, 0)?;
        // Some functions are called often.
        let function = random.below(FUNCTIONS).min(random.below(FUNCTIONS));
        let first = !std::mem::replace(&mut seen[function as usize], true);
        let stack = 0x7ffd_1234_5000 - (function % 7) * 192;
        let heap = 0x5555_5600_0000 + (function << 16);
        for round in 0..1 + random.below(6) {
            let mut pc = 0x0040_1000 + function * 0x2b0;
            for i in 0..BODY {
                // Lengths and kinds of a place in the program are always the same.
                let fixed = (function * BODY + i).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
                let size = 2 + fixed % 6;
                if first && round == 0 {
                    entry(47, size as u16, fixed)?;
                }
                let kind = if fixed % 9 == 8 { 48 + (fixed >> 8) as u16 % 2 } else { 10 };
                entry(kind, size as u16, pc)?;
                pc += size;
                let store = u16::from(fixed >> 4 & 3 == 0);
                match fixed >> 10 & 15 {
                    0..=3 => done = entry(store, 8, stack + (fixed >> 14 & 63) * 8)?,
                    4 if fixed & 1 == 0 => {
                        done = entry(store, 8, heap + (fixed >> 14 & 31) * 0x800 + 8 * round)?;
                    }
                    4 => done = entry(store, 4, heap + random.below(1 << 16) * 4)?,
                    _ => {}
                }
            }
        }
    }
    entry(23, 4, 11)?;
    entry(26, 0, 0)
}

/// Reads a trace to its end; says how many accesses and runs it has.
///
/// # Errors
/// It is damaged.
pub fn read(path: &Path) -> Result<(u64, u64), SourceError> {
    let mut source = open(path, None)?;
    let mut batch = Batch::default();
    let (mut accesses, mut runs) = (0, 0);
    while source.next_batch(&mut batch)? {
        accesses += batch.accesses();
        runs += batch.runs.len() as u64;
    }
    Ok((accesses, runs))
}

/// Reads a file to its end as a trace is read, and decompresses it, but decodes nothing; says how many
/// bytes there are.
///
/// # Errors
/// It cannot be read or decompressed.
pub fn decompress(path: &Path) -> io::Result<u64> {
    let mut window = Window::file(File::open(path)?)?;
    while window.refill() {
        window.consume(window.rest().len());
    }
    window.failure().map_err(io::Error::other)?;
    Ok(window.offset() + window.rest().len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_of_compression_holds_the_same_trace() {
        let dir = tempfile::tempdir().unwrap();
        let mut all = Vec::new();
        for (way, _) in WAYS {
            let path = dir.path().join(way);
            let records = write(&path, way, 60_000).unwrap();
            assert_eq!(decompress(&path).unwrap(), records * 12, "{way}");
            let small = std::fs::metadata(&path).unwrap().len() < records * 6;
            assert_eq!(small, way != "plain", "{way}");
            all.push((records, read(&path).unwrap()));
        }
        let (records, (accesses, runs)) = all[0];
        assert!(all.iter().all(|found| *found == all[0]), "{all:?}");
        assert!((60_000..63_000).contains(&records) && accesses > records * 8 / 10);
        // Of the recordings that are at hand there are 7 to 9 accesses in a run.
        assert!((6.0..10.0).contains(&(accesses as f64 / runs as f64)), "{accesses} in {runs}");
    }
}
