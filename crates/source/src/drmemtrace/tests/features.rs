//! What the format can say beyond instructions, loads and stores.

use super::naive::{of_records, of_runs};
use super::{Stream, collect, entry, footer, head, instruction, time};
use crate::bytes::{Compression, Window};
use crate::drmemtrace::Drmemtrace;
use crate::drmemtrace::record::{kind, marker};
use nestwalk_types::{Batch, Control, Source};
use proptest::prelude::*;
use std::io::Cursor;

fn source(bytes: &[u8]) -> Drmemtrace {
    let window = Window::new(Box::new(Cursor::new(bytes.to_vec())), Compression::None, false);
    Drmemtrace::source("trace".into(), window.expect("memory can be read"), None)
}

/// Reads all, and asserts that the second reader counts the same.
fn read(bytes: &[u8], size: usize) -> Stream {
    let mut records = source(bytes);
    while records.next_batch(&mut Batch::default()) == Ok(true) {}
    assert_eq!(records.tally()[0], ("records", (bytes.len() / size) as u64));
    let stream = collect(source(bytes));
    assert_eq!(of_runs(&stream.0, &stream.1), of_records(bytes, size));
    stream
}

fn mark(size: u16, value: u64) -> Vec<u8> {
    entry(kind::MARKER, size, value)
}
fn load(gva: u64) -> Vec<u8> {
    entry(kind::READ, 8, gva)
}

/// Header, thread, process and file type of a trace.
fn typed(file_type: u64) -> Vec<u8> {
    [
        entry(kind::HEADER, 0, 7),
        mark(12, 7),
        mark(marker::FILETYPE, file_type),
        entry(kind::THREAD, 4, 11),
        entry(kind::PID, 4, 10),
    ]
    .concat()
}

/// What results would say.
fn notes(bytes: &[u8]) -> Vec<String> {
    let mut source = source(bytes);
    while source.next_batch(&mut Batch::default()).expect("sound") {}
    source.info().approximations
}

#[test]
fn a_footer_ends_a_thread_and_not_the_file() {
    let thread = |tid: u64, pcs: &[u64]| {
        let body = pcs.iter().flat_map(|pc| instruction(*pc, 4)).collect();
        [head(tid, 5), time(tid), body, entry(kind::THREAD_EXIT, 4, tid), footer()].concat()
    };
    let first = thread(11, &[0x1000, 0x1004]);
    let waits = mark(33, 0).repeat(100);
    let second = thread(12, &[0x2000, 0x2004, 0x2008]);
    // Between the traces of a core there may be records of neither.
    let whole = [&first[..], &waits, &second, &waits, &footer()].concat();
    let (runs, _, end) = read(&whole, 12);
    assert_eq!(end, Ok(()));
    assert_eq!(runs.iter().map(|r| r.count).collect::<Vec<_>>(), [2, 3]);
    assert!(source(&whole).info().description.contains("0 threads"), "before it was read");

    // A file that is cut between footers is told from one that ends with one.
    for cut in (12..=whole.len()).step_by(12) {
        let last = &whole[cut - 12..cut];
        let end = collect(source(&whole[..cut])).2;
        assert_eq!(end.is_ok(), last == footer(), "{cut}");
    }
}

#[test]
fn the_kernels_parts_are_kernel_mode() {
    let pairs = [
        (marker::SYSCALL_TRACE_START, marker::SYSCALL_TRACE_END),
        (marker::CONTEXT_SWITCH_START, marker::CONTEXT_SWITCH_END),
        (marker::HARDWARE_EVENT, marker::HARDWARE_CONTEXT_RETURN),
    ];
    let mut bytes = [typed(0x1040), time(1)].concat();
    for (start, end) in pairs {
        bytes.extend([instruction(0x40_1000, 4), mark(start, 1)].concat());
        bytes.extend([instruction(0xffff_ffff_8100_0000, 4), load(0x1000)].concat());
        bytes.extend([mark(end, 1), instruction(0x40_1004, 4)].concat());
    }
    // Events nest.
    bytes.extend(mark(marker::HARDWARE_EVENT, 0).repeat(2));
    bytes.extend([load(0x2000), mark(marker::HARDWARE_CONTEXT_RETURN, 0), load(0x3000)].concat());
    bytes.extend([mark(marker::HARDWARE_CONTEXT_RETURN, 0), load(0x4000), footer()].concat());
    let (runs, controls, end) = read(&bytes, 12);
    assert_eq!((end, of_runs(&runs, &controls).kernel), (Ok(()), 3 * 2 + 2));
    assert!(notes(&bytes).is_empty());
}

#[test]
fn the_whole_systems_kernel_is_told_by_its_address_too() {
    let body = [
        instruction(0x40_1000, 4),
        load(0x5000),
        // A call of the kernel without a marker, and its return.
        instruction(0xffff_ffff_8100_0000, 4),
        load(0x6000),
        instruction(0x40_1004, 4),
        footer(),
    ]
    .concat();
    let kernel = |file_type| {
        let (runs, controls, _) = read(&[typed(file_type), body.clone()].concat(), 12);
        of_runs(&runs, &controls).kernel
    };
    assert_eq!((kernel(0x40040), kernel(0x40)), (2, 0));
    // What was in the kernel's half before the file type says nothing of what is behind it.
    let before = [instruction(0x8000_8000_0000_1000, 4), instruction(0xffff_8000_0000_1004, 4)];
    let behind = [typed(0x40040), load(0x6000), instruction(0x40_1000, 4), footer()].concat();
    let bytes = [typed(0x40), before.concat(), behind].concat();
    let (runs, controls, _) = read(&bytes, 12);
    assert_eq!(of_runs(&runs, &controls).kernel, 0);
    // A program of AArch64 lies in the upper part of its own half.
    let program = [instruction(0xaaaa_0000_1000, 4), load(0xffff_0000_1000), footer()].concat();
    let (runs, controls, _) = read(&[typed(0x40008), program].concat(), 12);
    assert_eq!(of_runs(&runs, &controls).kernel, 0);
}

#[test]
fn tags_of_addresses_are_removed() {
    let gvas = |file_type, gvas: &[u64]| -> Vec<u64> {
        let body = gvas.iter().flat_map(|gva| load(*gva)).collect();
        let bytes = [typed(file_type), instruction(0x40_1000, 4), body, footer()].concat();
        let (runs, _, end) = read(&bytes, 12);
        assert_eq!(end, Ok(()));
        runs.iter().skip(1).map(|r| r.gva.value()).collect()
    };
    // AArch64: tags go, 48-bit addresses have bit 47 above it, and 52-bit ones keep theirs.
    let tagged = [
        0x0b00_aaaa_0000_1000,
        0x0b00_2aaa_0000_1000,
        0xb4ff_8000_1234_5000,
        0x5a0f_8000_0000_0000,
    ];
    let plain = [
        0xffff_aaaa_0000_1000,
        0x0000_2aaa_0000_1000,
        0xffff_8000_1234_5000,
        0x000f_8000_0000_0000,
    ];
    assert_eq!(gvas(0x8, &tagged), plain);
    // x86-64: an address of 57 bits is left alone, and what is none is one of 48.
    let tagged = [0x00ff_0000_0000_1000, 0x2aaa_7fff_ffff_f000, 0x8000_8000_0000_1000];
    let plain = [0x00ff_0000_0000_1000, 0x0000_7fff_ffff_f000, 0xffff_8000_0000_1000];
    assert_eq!(gvas(0x40, &tagged), plain);
}

/// A record of a 32-bit build.
fn narrow(kind: u16, size: u16, value: u32) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &size.to_le_bytes(), &value.to_le_bytes()].concat()
}

fn narrow_trace(tid: u32, times: &[u32]) -> Vec<u8> {
    let mut bytes = [
        narrow(kind::HEADER, 0, 6),
        narrow(kind::MARKER, 12, 6),
        narrow(kind::MARKER, marker::FILETYPE, 0x220),
        narrow(kind::THREAD, 4, tid),
        narrow(kind::PID, 4, 10),
    ]
    .concat();
    for t in times {
        bytes.extend(narrow(kind::MARKER, marker::TIMESTAMP, *t));
        bytes.extend(narrow(kind::INSTR, 4, 0xbf80_0ffe));
        bytes.extend(narrow(kind::INSTR_BUNDLE, 4, 0x0203_0402));
        bytes.extend(narrow(kind::WRITE, 4, 0xffff_fffe));
    }
    bytes.extend(narrow(kind::FOOTER, 0, 0));
    bytes
}

#[test]
fn records_of_32_bit_builds_are_told_and_read() {
    let bytes = narrow_trace(11, &[5, 6, 7]);
    let (runs, controls, end) = read(&bytes, 8);
    assert_eq!(end, Ok(()));
    let n = of_runs(&runs, &controls);
    // Five instructions and a store each time, the first and the store across pages.
    assert_eq!((n.instructions, n.accesses), (15, 3 * (6 + 2)));
    for cut in (0..bytes.len()).filter(|cut| *cut > 16) {
        let message = collect(source(&bytes[..cut])).2.expect_err("no footer").message;
        assert!(message.starts_with(&format!("record {} at byte {}", cut / 8, cut / 8 * 8)));
        assert!(message.contains("of its 8 bytes"), "{message}");
    }
    let too_many = [narrow_trace(1, &[]), narrow(kind::INSTR_BUNDLE, 5, 0)].concat();
    let message = collect(source(&too_many)).2.expect_err("five do not fit").message;
    assert!(message.contains("at most 4 fit"), "{message}");
}

#[test]
fn times_of_32_bit_builds_wrap() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let near = u32::MAX - 1;
    // The second thread begins after the first has wrapped.
    std::fs::write(dir.path().join("1.trace"), narrow_trace(1, &[near, near + 1, 0, 4])).unwrap();
    std::fs::write(dir.path().join("2.trace"), narrow_trace(2, &[2, 3])).unwrap();
    let (runs, _, end) = collect(Drmemtrace::open_directory(dir.path(), 2).expect("opens"));
    assert_eq!(end, Ok(()));
    let mut order: Vec<u8> = runs.iter().map(|r| r.vcpu.0).collect();
    order.dedup();
    assert_eq!(order, [0, 1, 0]);
}

/// A trace that is filtered for warm-up, with so many loads before the marker and behind it.
fn bimodal(tid: u64, before: u64, after: u64, at: u64) -> Vec<u8> {
    let some = |n: u64| (0..n).flat_map(|i| load(i << 12)).collect::<Vec<u8>>();
    [
        entry(kind::HEADER, 0, 7),
        mark(marker::FILETYPE, 0x2041),
        entry(kind::THREAD, 4, tid),
        entry(kind::PID, 4, 10),
        time(at),
        instruction(0x40_1000, 4),
        some(before),
        mark(marker::FILTER_ENDPOINT, 0),
        some(after),
        footer(),
    ]
    .concat()
}

#[test]
fn counting_begins_where_filtering_ends() {
    let bytes = bimodal(1, 30, 50, 1);
    let (runs, controls, end) = read(&bytes, 12);
    let n = of_runs(&runs, &controls);
    assert_eq!((end, n.warmup, n.accesses), (Ok(()), 31, 81));
    assert!(notes(&bytes)[0].contains("what is before is warm-up"));
    assert_eq!(notes(&bytes).len(), 1);

    // The marker of the earliest thread counts; what others still filter is said.
    let dir = tempfile::tempdir().expect("a temporary directory");
    std::fs::write(dir.path().join("1.trace"), bimodal(1, 30, 50, 1)).unwrap();
    std::fs::write(dir.path().join("2.trace"), bimodal(2, 7, 5, 2)).unwrap();
    let mut two = Drmemtrace::open_directory(dir.path(), 1).expect("opens");
    while two.next_batch(&mut Batch::default()).expect("sound") {}
    let notes = two.info().approximations;
    assert!(notes[1].contains("8 accesses after the warm-up are filtered"), "{notes:?}");
}

#[test]
fn a_trace_that_is_all_warm_up_is_no_result() {
    let bytes = bimodal(1, 30, 0, 1);
    let without = [&bytes[..bytes.len() - 24], &footer()].concat();
    let (runs, controls, end) = collect(source(&without));
    assert!(end.expect_err("nothing to count").message.contains("nothing is left to count"));
    assert_eq!(controls.last().map(|c| c.0), Some(runs.len()));
    assert_eq!(controls.last().map(|c| &c.1), Some(&Control::RegionOfInterest));
}

#[test]
fn what_a_trace_lacks_is_said() {
    let with = |file_type, body: &[u8]| notes(&[&typed(file_type), body, &footer()].concat());
    for (file_type, words) in [
        (0x41, "filtered by a cache"),
        (0xc0, "filtered by a cache"),
        (0x140, "filtered by a cache"),
        (0x44, "instructions only"),
        (0x8040, "kernel's part of system calls holds instructions only"),
        (0x4040, "templates of the kernel's parts"),
    ] {
        let said = with(file_type, &[]);
        assert!(said.len() == 1 && said[0].contains(words), "{file_type:#x}: {said:?}");
    }
    assert!(with(0x1e40, &[]).is_empty());
    let counts = [mark(marker::INSTRUCTION_COUNT, 500), mark(marker::INSTRUCTION_COUNT, 9000)];
    assert!(with(0x180, &counts.concat())[0].contains("9000 instructions ran"));
    let windows: Vec<u8> = [3, 3, 4, 5].iter().flat_map(|w| mark(marker::WINDOW_ID, *w)).collect();
    assert!(with(0x40, &windows)[0].contains("3 windows"));
    let skipped = [
        entry(kind::PREFETCH, 1, 0),
        entry(kind::INSTR_FLUSH, 0, 0),
        entry(kind::INSTR_FLUSH_END, 0, 64),
    ];
    assert!(with(0x40, &skipped.concat())[0].starts_with("2 prefetches and cache flushes"));
    assert!(with(0x40, &mark(marker::PAGE_SIZE, 65536))[0].contains("pages of 65536 bytes"));
    assert!(with(0x40, &mark(marker::PAGE_SIZE, 4096)).is_empty());
    let newer = [entry(kind::HEADER, 0, 9), footer()].concat();
    assert!(notes(&newer)[0].contains("version 9"));
}

#[test]
fn what_is_not_post_processed_is_told() {
    let raw = [0x42_u64, 8 << 48, 0xc4 << 56].map(u64::to_le_bytes);
    let mut raw = raw.concat();
    raw[7] = 0xc4;
    let message = collect(source(&raw)).2.expect_err("raw").message;
    assert!(message.contains("before post-processing") && message.contains("record 0 at byte 0"));
}

/// Records of any kind that the format has, with addresses that cross pages and are tagged.
fn record() -> impl Strategy<Value = Vec<u8>> {
    let address = prop_oneof![
        3 => (0_u64..40, 0_u64..4096).prop_map(|(page, at)| page << 12 | at),
        1 => (0_u64..9, 0_u64..64).prop_map(|(page, at)| 0xffff_8880_0000_0fe0 + (page << 12) + at),
        1 => any::<u64>(),
    ];
    let markers = prop_oneof![Just(27_u16), Just(28), Just(34), Just(35), Just(43), Just(44)];
    let file_types = prop_oneof![Just(0x40_u64), Just(0x8), Just(0x40040), Just(0x40008)];
    prop_oneof![
        4 => (0_u16..=1, 0_u16..70, address.clone()).prop_map(|(k, s, a)| entry(k, s, a)),
        4 => (10_u16..=16, 0_u16..16, address.clone()).prop_map(|(k, s, a)| entry(k, s, a)),
        1 => (29_u16..=31, 0_u16..16, address.clone()).prop_map(|(k, s, a)| entry(k, s, a)),
        1 => (47_u16..=49, 1_u16..16, address.clone()).prop_map(|(k, s, a)| entry(k, s, a)),
        1 => (0_u16..=8, any::<[u8; 8]>()).prop_map(|(n, lengths)| {
            let lengths = lengths.map(|l| l % 16 + 1);
            entry(kind::INSTR_BUNDLE, n, u64::from_le_bytes(lengths))
        }),
        1 => (32_u16..=46, address).prop_map(|(k, a)| entry(k, 1, a)),
        1 => (markers, 0_u64..3).prop_map(|(m, v)| mark(m, v)),
        1 => (1_u64..1000).prop_map(time),
        1 => file_types.prop_map(typed),
        1 => Just(footer()),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn two_readers_count_the_same(records in prop::collection::vec(record(), 0..400)) {
        let bytes = [typed(0x40), records.concat(), footer()].concat();
        let (_, _, end) = read(&bytes, 12);
        prop_assert_eq!(end, Ok(()));
    }
}
