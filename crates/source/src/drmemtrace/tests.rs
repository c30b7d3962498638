//! Streams made by hand from `trace_entry.h` and `reader.cpp`.

mod features;
mod many;
mod naive;

use super::Drmemtrace;
use super::record::{kind, marker};
use crate::bytes::{Compression, Window};
use nestwalk_types::{Batch, Control, ProcessId, Run, Source, SourceError, VcpuId};
use std::io::{Cursor, Write};

fn entry(kind: u16, size: u16, value: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &size.to_le_bytes(), &value.to_le_bytes()].concat()
}

/// Header, thread, process, and the markers that a real file begins with.
fn head(thread: u64, process: u64) -> Vec<u8> {
    [
        entry(kind::HEADER, 0, 5),
        entry(kind::THREAD, 4, thread),
        entry(kind::PID, 4, process),
        entry(kind::MARKER, 12, 5),
        entry(kind::MARKER, marker::FILETYPE, 0x240),
        entry(kind::MARKER, 10, 64),
        entry(kind::MARKER, 18, 4096),
    ]
    .concat()
}
fn time(microseconds: u64) -> Vec<u8> {
    [entry(kind::MARKER, marker::TIMESTAMP, microseconds), entry(kind::MARKER, 3, 0)].concat()
}
fn instruction(pc: u64, size: u16) -> Vec<u8> {
    entry(kind::INSTR, size, pc)
}
fn footer() -> Vec<u8> {
    entry(kind::FOOTER, 0, 0)
}

type Stream = (Vec<Run>, Vec<(usize, Control)>, Result<(), SourceError>);

fn collect(mut source: Drmemtrace) -> Stream {
    let (mut runs, mut controls) = (Vec::new(), Vec::new());
    let mut batch = Batch::default();
    loop {
        match source.next_batch(&mut batch) {
            Ok(true) => {
                let base = runs.len();
                controls.extend(batch.controls.drain(..).map(|(p, c)| (base + p as usize, c)));
                runs.append(&mut batch.runs);
            }
            Ok(false) => return (runs, controls, Ok(())),
            Err(e) => return (runs, controls, Err(e)),
        }
    }
}

fn decode(bytes: &[u8]) -> Stream {
    let reader = Box::new(Cursor::new(bytes.to_vec()));
    let window = Window::new(reader, Compression::None, false).expect("memory can be read");
    collect(Drmemtrace::source("trace".into(), window, None))
}

/// Every kind of record that matters, with what it must become.
fn sample() -> Vec<u8> {
    [
        head(11, 10),
        time(100),
        entry(kind::ENCODING, 3, 0x00c3_8948),
        instruction(0x40_0000, 3),
        entry(kind::READ, 8, 0x7000_0000),
        entry(kind::WRITE, 4, 0x7000_2000),
        // Two instructions of 2 and 5 bytes that follow.
        entry(kind::INSTR_BUNDLE, 2, 0x0502),
        entry(kind::INSTR_NO_FETCH, 2, 0x40_0005),
        entry(kind::READ, 16, 0x7000_4ff8),
        entry(kind::PREFETCH, 1, 0x9999_0000),
        entry(kind::PREFETCH_WRITE_L3_NT, 1, 0x9999_0000),
        entry(kind::DATA_FLUSH_END, 0, 0x9999_0000),
        entry(kind::INSTR_TAKEN_JUMP, 2, 0x40_000a),
        // A size of 0 tells the program counter only.
        entry(kind::INSTR, 0, 0x40_1234),
        entry(kind::READ, 1, 0x7000_6000),
        entry(kind::MARKER, marker::SYSCALL_TRACE_START, 1),
        instruction(0xffff_ffff_8100_0000, 4),
        entry(kind::READ, 8, 0xffff_8880_0000_0000),
        entry(kind::MARKER, marker::SYSCALL_TRACE_END, 1),
        entry(kind::THREAD_EXIT, 0, 11),
        footer(),
    ]
    .concat()
}

#[test]
fn records_become_the_accesses_that_they_mean() {
    let (runs, controls, end) = decode(&sample());
    assert_eq!(end, Ok(()));
    let switch = Control::Switch { vcpu: VcpuId(0), process: ProcessId(1) };
    assert_eq!(controls, [(0, Control::RegionOfInterest), (0, switch)]);
    let found: Vec<_> = runs
        .iter()
        .map(|r| {
            let f = r.flags;
            let what = match (f.is_fetch(), f.is_store()) {
                (true, _) => 'F',
                (_, true) => 'S',
                _ => 'L',
            };
            (what, r.gva.value(), r.pc.value(), r.count, r.instructions, f.is_kernel())
        })
        .collect();
    let expected = [
        // 0x400000, 0x400003, 0x400005 and the jump at 0x40000a on one page.
        ('F', 0x40_0000, 0x40_0000, 4, 4, false),
        ('L', 0x7000_0000, 0x40_0000, 1, 0, false),
        ('S', 0x7000_2000, 0x40_0000, 1, 0, false),
        ('L', 0x7000_4ff8, 0x40_0005, 1, 0, false),
        ('L', 0x7000_5000, 0x40_0005, 1, 0, false),
        ('L', 0x7000_6000, 0x40_1234, 1, 0, false),
        ('F', 0xffff_ffff_8100_0000, 0xffff_ffff_8100_0000, 1, 1, true),
        ('L', 0xffff_8880_0000_0000, 0xffff_ffff_8100_0000, 1, 0, true),
    ];
    assert_eq!(found, expected);
}

#[test]
fn a_cut_anywhere_is_reported_with_its_record() {
    let bytes = sample();
    let whole = decode(&bytes).0;
    for cut in 0..bytes.len() {
        let (runs, _, end) = decode(&bytes[..cut]);
        let message = end.expect_err("no footer").message;
        let place = format!("record {} at byte {} has", cut / 12, cut / 12 * 12);
        assert!(message.starts_with(&place), "{cut}: {message}");
        let (n, m) = (runs.len(), runs.iter().map(|r| u32::from(r.count)).sum::<u32>());
        assert!(n <= whole.len() && m <= 12);
        assert!(runs.iter().zip(&whole).all(|(a, b)| a.gva == b.gva && a.pc == b.pc));
    }
}

#[test]
fn damage_is_named() {
    let message = |bytes: Vec<u8>| decode(&bytes).2.expect_err("damaged").message;
    let bad = [head(1, 1), entry(77, 0, 0), footer()].concat();
    assert_eq!(message(bad), "record 7 at byte 84: type 77; types are 0 to 49");
    assert!(message(instruction(0x1000, 4)).contains("where a header (type 25) must be"));
    let bundle = [head(1, 1), instruction(0, 1), entry(kind::INSTR_BUNDLE, 9, 0)].concat();
    assert!(message(bundle).contains("a bundle of 9 instructions"));
    assert!(message(entry(kind::HEADER, 0, 1 << 40)).contains("version 1099511627776"));
}

#[test]
fn a_filtered_trace_says_so() {
    let bytes = [head(1, 1), entry(kind::MARKER, marker::FILETYPE, 0x180), footer()].concat();
    let window = Window::new(Box::new(Cursor::new(bytes)), Compression::None, false);
    let mut source = Drmemtrace::source("trace".into(), window.expect("memory"), None);
    while source.next_batch(&mut Batch::default()).expect("sound") {}
    assert!(source.info().approximations[0].contains("filtered"));
}

/// Threads 21 and 22 of process 20 and thread 31 of process 30, by timestamp.
fn directory() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let thread = |tid, pid, times: &[u64]| {
        let mut bytes = head(tid, pid);
        for &t in times {
            bytes.extend(time(t));
            bytes.extend(instruction(t << 12, 4));
        }
        bytes.extend(footer());
        bytes
    };
    let write = |name: &str, bytes: &[u8]| {
        std::fs::write(dir.path().join(name), bytes).expect("room for a file");
    };
    write("app.21.trace", &thread(21, 20, &[10, 40, 70]));
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(&thread(22, 20, &[20, 50])).expect("memory");
    write("app.22.trace.gz", &gz.finish().expect("memory"));
    write("app.31.trace.zip", &zip(&thread(31, 30, &[30, 60]), 3));
    write("modules.log", b"not a trace");
    dir
}

#[test]
fn threads_of_a_directory_are_interleaved_by_time() {
    let dir = directory();
    let (runs, controls, end) = collect(Drmemtrace::open_directory(dir.path(), 2).expect("opens"));
    assert_eq!(end, Ok(()));
    let order: Vec<_> = runs.iter().map(|r| (r.gva.value() >> 12, r.vcpu.0)).collect();
    assert_eq!(order, [(10, 0), (20, 1), (30, 0), (40, 0), (50, 1), (60, 0), (70, 0)]);
    let switches: Vec<_> = controls
        .iter()
        .filter_map(|(at, c)| match c {
            Control::Switch { vcpu, process } => Some((*at, vcpu.0, process.0)),
            _ => None,
        })
        .collect();
    // vCPU 0 is shared by threads 21 (process 1) and 31 (process 2); vCPU 1 runs thread 22.
    let running =
        |at: usize, vcpu: u8| switches.iter().rfind(|s| s.0 <= at && s.1 == vcpu).map(|s| s.2);
    let processes: Vec<_> = order.iter().enumerate().map(|(i, o)| running(i, o.1)).collect();
    assert_eq!(processes, [1, 1, 2, 1, 1, 2, 1].map(Some));
}

#[test]
fn a_directory_without_traces_says_what_to_do() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let error = Drmemtrace::open_directory(dir.path(), 2).err().expect("nothing there");
    assert!(error.message.contains("post-processed"), "{error}");
}

/// A zip archive of `data` in so many members, deflated and stored in turn, as APPNOTE.TXT says.
fn zip(data: &[u8], members: usize) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    let pieces = data.chunks(data.len().div_ceil(members));
    let count = pieces.len() as u16;
    for (i, piece) in pieces.enumerate() {
        let mut crc = flate2::Crc::new();
        crc.update(piece);
        let deflated = i % 2 == 0;
        let stored = if deflated {
            let mut d = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
            d.write_all(piece).expect("memory");
            d.finish().expect("memory")
        } else {
            piece.to_vec()
        };
        let name = format!("chunk.{i:04}");
        let mut common = Vec::new();
        common.extend([20, 0, 0, 0, if deflated { 8 } else { 0 }, 0, 0, 0, 0, 0]);
        common.extend(crc.sum().to_le_bytes());
        common.extend((stored.len() as u32).to_le_bytes());
        common.extend((piece.len() as u32).to_le_bytes());
        common.extend((name.len() as u16).to_le_bytes());
        common.extend([0, 0]);
        directory.extend(b"PK\x01\x02\x14\x00");
        directory.extend(&common);
        directory.extend([0; 10]);
        directory.extend((out.len() as u32).to_le_bytes());
        directory.extend(name.bytes());
        out.extend(b"PK\x03\x04");
        out.extend(&common);
        out.extend(name.bytes());
        out.extend(&stored);
    }
    let offset = out.len() as u32;
    out.extend(&directory);
    out.extend(b"PK\x05\x06\0\0\0\0");
    out.extend([count.to_le_bytes(), count.to_le_bytes()].concat());
    out.extend((directory.len() as u32).to_le_bytes());
    out.extend(offset.to_le_bytes());
    out.extend([0, 0]);
    out
}

#[test]
fn members_of_an_archive_are_one_stream() {
    let bytes = sample();
    for members in [1, 2, 3, 7] {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), zip(&bytes, members)).expect("room for a file");
        let found = collect(Drmemtrace::open(file.path()).expect("opens"));
        assert_eq!(found, decode(&bytes), "{members} members");
        let mut opened = crate::open(file.path(), None).expect("told by content");
        assert!(opened.next_batch(&mut Batch::default()).expect("sound"));
    }
}

#[test]
fn a_damaged_archive_is_an_error_and_never_a_panic() {
    let archive = zip(&sample(), 3);
    for cut in 0..archive.len() {
        if let Some(source) = Drmemtrace::from_zip("zip", Cursor::new(archive[..cut].to_vec())) {
            assert!(collect(source).2.is_err(), "cut at {cut}");
        }
    }
    for at in 0..archive.len() {
        for bit in 0..8 {
            let mut bytes = archive.clone();
            bytes[at] ^= 1 << bit;
            if let Some(source) = Drmemtrace::from_zip("zip", Cursor::new(bytes)) {
                drop(collect(source));
            }
        }
    }
}
