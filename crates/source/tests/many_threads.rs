//! A trace of three thousand threads, with few descriptors and in bounded memory.
//!
//! One test alone: it lowers limits of its process, and looks at the most memory that it took.

mod common;

use nestwalk_source::Drmemtrace;
use nestwalk_types::{Batch, Source};
use nix::sys::resource::{Resource, setrlimit};

const THREADS: u64 = 3000;
/// Times that each thread runs, in turn with all others.
const ROUNDS: u64 = 3;
/// Records of each time: more than a small window holds.
const RECORDS: u64 = 3000;

fn entry(kind: u16, size: u16, value: u64) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[..2].copy_from_slice(&kind.to_le_bytes());
    bytes[2..4].copy_from_slice(&size.to_le_bytes());
    bytes[4..].copy_from_slice(&value.to_le_bytes());
    bytes
}

fn thread(tid: u64) -> Vec<u8> {
    let mut bytes = [entry(25, 0, 7), entry(22, 4, tid), entry(24, 4, 10)].concat();
    for round in 0..ROUNDS {
        bytes.extend(entry(28, 2, 1 + round * THREADS + tid));
        bytes.extend(entry(10, 4, 0x40_0000));
        for i in 0..RECORDS {
            bytes.extend(entry(0, 8, tid << 24 | (i * i % 997) << 12));
        }
    }
    bytes.extend(entry(26, 0, 0));
    bytes
}

fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn three_thousand_threads_need_few_descriptors_and_little_memory() {
    let dir = tempfile::tempdir().unwrap();
    // What the tracer writes; the members of its zip archives are as gzip.
    let ways = ["plain", "gzip", "lz4", "snappy"];
    for tid in 0..THREADS {
        let data = common::compress(ways[tid as usize % ways.len()], &thread(tid));
        std::fs::write(dir.path().join(format!("{tid:04}.memtrace")), data).unwrap();
    }
    setrlimit(Resource::RLIMIT_NOFILE, 40, 40).unwrap();
    let mut source = Drmemtrace::open_directory(dir.path(), 4).unwrap();
    let (mut batch, mut accesses, mut turns, mut latest) = (Batch::default(), 0, 0, u64::MAX);
    while source.next_batch(&mut batch).unwrap() {
        accesses += batch.accesses();
        for run in batch.runs.iter().filter(|r| !r.flags.is_fetch()) {
            let thread = run.gva.value() >> 24;
            turns += u64::from(thread != latest);
            latest = thread;
        }
    }
    assert_eq!(accesses, THREADS * ROUNDS * (RECORDS + 1));
    assert_eq!(turns, THREADS * ROUNDS, "threads run when their time comes");
    assert!(peak_kib() < 1 << 20, "{} KiB", peak_kib());
}
