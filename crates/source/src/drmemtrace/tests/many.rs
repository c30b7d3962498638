//! Several files as one trace.

use super::{collect, entry, footer, head, instruction, time, zip};
use crate::drmemtrace::record::kind;
use crate::drmemtrace::{Drmemtrace, are_one_trace};
use nestwalk_types::{Batch, Source};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

/// A thread that runs at these times, and touches a page of its own for each.
fn thread(tid: u64, pid: u64, times: impl Iterator<Item = u64>) -> Vec<u8> {
    let mut bytes = head(tid, pid);
    for t in times {
        bytes.extend(time(t));
        bytes.extend(instruction(0x40_0000 + 4 * tid, 4));
        bytes.extend(entry(kind::READ, 8, tid << 32 | t << 12));
        // Buffers of the tracer are long.
        bytes.extend(entry(kind::READ, 8, tid << 32).repeat(200));
    }
    bytes.extend(footer());
    bytes
}

fn compressed(data: &[u8], how: usize) -> (&'static str, Vec<u8>) {
    let memory = "memory";
    match how {
        0 => ("trace", data.to_vec()),
        1 => ("trace.zip", zip(data, 5)),
        2 => {
            let level = flate2::Compression::fast();
            let mut gz = flate2::write::GzEncoder::new(Vec::new(), level);
            gz.write_all(data).expect(memory);
            ("trace.gz", gz.finish().expect(memory))
        }
        3 => {
            let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
            xz.write_all(data).expect(memory);
            ("trace.xz", xz.finish().expect(memory))
        }
        4 => ("trace.zst", zstd::encode_all(data, 1).expect(memory)),
        5 => {
            let mut lz4 = lz4_flex::frame::FrameEncoder::new(Vec::new());
            lz4.write_all(data).expect(memory);
            ("trace.lz4", lz4.finish().expect(memory))
        }
        6 => {
            let mut snappy = snap::write::FrameEncoder::new(Vec::new());
            snappy.write_all(data).expect(memory);
            ("memtrace.sz", snappy.into_inner().expect(memory))
        }
        _ => {
            let level = bzip2::Compression::fast();
            let mut bz = bzip2::write::BzEncoder::new(Vec::new(), level);
            bz.write_all(data).expect(memory);
            ("trace.bz2", bz.finish().expect(memory))
        }
    }
}

fn paths(folder: &Path) -> Vec<PathBuf> {
    let mut all: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    all.sort();
    all
}

#[test]
fn files_that_are_put_aside_go_on_where_they_were() {
    const FILES: u64 = 24;
    let dir = tempfile::tempdir().unwrap();
    for i in 0..FILES {
        // Every thread runs again and again, and no two at the same time.
        let bytes = thread(100 + i, 10, (0..40).map(|round| 1 + round * FILES + i));
        let (ending, data) = compressed(&bytes, i as usize % 8);
        fs::write(dir.path().join(format!("app.{i:02}.{ending}")), data).unwrap();
    }
    let paths = paths(dir.path());
    let paths: Vec<&Path> = paths.iter().map(AsRef::as_ref).collect();
    let read = |memory| {
        let mut source = Drmemtrace::open_within(&paths, 3, memory).unwrap();
        let (mut runs, mut batch) = (Vec::new(), Batch::default());
        while source.next_batch(&mut batch).unwrap() {
            runs.append(&mut batch.runs);
            assert!(Some(source.position()) <= source.info().total);
        }
        assert_eq!(Some(source.position()), source.info().total);
        runs
    };
    let whole = read(usize::MAX);
    let order: Vec<u64> = whole
        .iter()
        .filter(|r| !r.flags.is_fetch() && r.gva.value() & 0xffff_ffff != 0)
        .map(|r| r.gva.value() >> 12 & 0xf_ffff)
        .collect();
    assert_eq!(order, (1..=40 * FILES).collect::<Vec<_>>());
    // With room for all but some, for few, and for none but that which is read.
    for memory in [60 << 20, 8 << 20, 0] {
        assert!(read(memory) == whole, "{memory}");
    }
}

#[test]
fn damage_in_one_of_many_names_the_file() {
    let dir = tempfile::tempdir().unwrap();
    for i in 0..12 {
        let mut bytes = thread(i, 10, 1..5);
        if i == 7 {
            bytes.truncate(bytes.len() - 5);
        }
        fs::write(dir.path().join(format!("{i:02}.trace")), bytes).unwrap();
    }
    let error = collect(Drmemtrace::open_directory(dir.path(), 2).unwrap()).2.unwrap_err();
    assert!(error.source.ends_with("07.trace") && error.message.contains("cut off"), "{error}");

    // A file that shrinks while it is aside.
    fs::write(dir.path().join("07.trace"), thread(7, 10, 1..5)).unwrap();
    let mut source = Drmemtrace::open_directory(dir.path(), 2).unwrap();
    fs::write(dir.path().join("07.trace"), b"").unwrap();
    let error = loop {
        if let Err(error) = source.next_batch(&mut Batch::default()) {
            break error;
        }
    };
    assert!(error.source.ends_with("07.trace"), "{error}");
}

#[test]
fn the_layout_of_published_traces_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let workload = dir.path().join("workload");
    fs::create_dir_all(workload.join("trace")).unwrap();
    fs::create_dir_all(workload.join("aux")).unwrap();
    fs::write(workload.join("aux/info.textproto"), "x: 1").unwrap();
    for tid in [7_u64, 8] {
        let data = zip(&thread(tid, 10, 1..4), 2);
        fs::write(workload.join(format!("trace/0a1b2c3d.{tid}.memtrace.zip")), data).unwrap();
    }
    let whole = collect(Drmemtrace::open_directory(&workload, 1).unwrap());
    assert_eq!(whole.2, Ok(()));
    assert_eq!(whole, collect(Drmemtrace::open_directory(&workload.join("trace"), 1).unwrap()));
    let mut told = crate::open(&workload, None).unwrap();
    assert!(told.next_batch(&mut Batch::default()).unwrap());
    let description = told.info().description;
    assert!(description.contains("2 threads of 1 processes in 2 files"), "{description}");
}

#[test]
fn what_is_not_read_of_a_directory_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, data: &[u8]| fs::write(dir.path().join(name), data).unwrap();
    write("a.1.trace", &thread(1, 10, 1..4));
    // Known by its content.
    write("two", &thread(2, 10, 1..4));
    write("modules.log", b"not a trace");
    write("cpu_schedule.bin.zip", b"not a trace");
    let notes = |path: &Path| Drmemtrace::open_directory(path, 1).unwrap().info().approximations;
    assert!(notes(dir.path()).is_empty());
    write("other", b"neither");
    write("v2p.textproto.bak", b"neither");
    let said = notes(dir.path());
    assert!(
        said[0].contains("2 files") && said[0].contains("other, v2p.textproto.bak"),
        "{said:?}"
    );
    // What has the name of a trace must be one.
    write("b.2.trace", b"neither this");
    let end = collect(Drmemtrace::open_directory(dir.path(), 1).unwrap()).2.unwrap_err();
    assert!(end.source.ends_with("b.2.trace"), "{end}");
}

#[test]
fn directories_without_a_trace_say_what_to_give() {
    let dir = tempfile::tempdir().unwrap();
    let message = || Drmemtrace::open_directory(dir.path(), 1).err().unwrap().message;
    assert!(message().contains("must have been post-processed"));
    fs::create_dir(dir.path().join("raw")).unwrap();
    assert!(message().contains("the recording is raw"));
    fs::create_dir(dir.path().join("window.0001")).unwrap();
    fs::create_dir(dir.path().join("window.0000")).unwrap();
    assert!(message().contains("give one, as in") && message().contains("window.0000"));
}

#[test]
fn files_are_one_trace_if_they_say_so() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, data: &[u8]| {
        let path = dir.path().join(name);
        fs::write(&path, data).unwrap();
        path
    };
    let a = write("a", &thread(1, 10, 1..4));
    let b = write("b", &zip(&thread(2, 10, 1..4), 2));
    let again = write("again", &thread(1, 10, 1..4));
    let other = write("other", &thread(3, 11, 1..4));
    let later = write("later", &thread(4, 10, 100_000_000_000..100_000_000_001));
    let text = write("text", b"neither");
    fs::create_dir(dir.path().join("below")).unwrap();
    let below = write("below/c", &thread(5, 10, 1..4));
    let one = |paths: &[&PathBuf]| {
        let paths: Vec<&Path> = paths.iter().map(|p| p.as_path()).collect();
        are_one_trace(&paths)
    };
    assert!(one(&[&a, &b]));
    for with in [&again, &other, &later, &text, &below] {
        assert!(!one(&[&a, with]), "{}", with.display());
    }
    assert!(!one(&[&a]));
    // The same thread may begin on two cores.
    let core = |tid| {
        let kind = entry(kind::MARKER, 9, 0x10040);
        [&entry(kind::HEADER, 0, 7)[..], &kind, &thread(tid, 10, 1..4)[12..]].concat()
    };
    assert!(one(&[&write("core0", &core(1)), &write("core1", &core(1))]));
    let paths = [a.as_path(), b.as_path()];
    let (runs, _, end) = collect(Drmemtrace::open_files(&paths, 1).unwrap());
    assert_eq!(end, Ok(()));
    assert_eq!(runs.iter().map(|r| u64::from(r.instructions)).sum::<u64>(), 6);
}
