//! What is particular to drmemtrace on the command line: several files, notes, page tables beside it.

mod common;

use common::{Lab, count, drmemtrace_record as record, machine};
use std::process::Command;

/// A thread of process 10 that touches `pages` pages from `first` on, at these times.
fn thread(tid: u64, first: u64, pages: u64, times: &[u64]) -> Vec<u8> {
    let mut bytes = [record(25, 0, 7), record(28, 9, 0x40), record(22, 4, tid)].concat();
    bytes.extend(record(24, 4, 10));
    for time in times {
        bytes.extend([record(28, 2, *time), record(28, 3, 0)].concat());
        for page in first..first + pages {
            bytes.extend([record(10, 4, 0x40_0000), record(0, 8, page << 12)].concat());
        }
    }
    bytes.extend([record(23, 4, tid), record(26, 0, 0)].concat());
    bytes
}

#[test]
fn files_of_one_trace_are_one_source_however_they_are_given() {
    let lab = Lab::new();
    std::fs::create_dir(lab.path("d")).unwrap();
    lab.write("d/a.1.trace", thread(1, 0x1000, 50, &[1, 4]));
    lab.write("d/a.2.trace", thread(2, 0x2000, 70, &[2, 3]));
    let folder = lab.json("compare d --vcpus 2 --quiet --verify");
    let files = lab.json("compare d/a.1.trace d/a.2.trace --vcpus 2 --quiet --verify");
    assert_eq!(folder["machines"], files["machines"]);
    assert_eq!(folder["description"], "drmemtrace, 2 threads of 1 processes in 2 files");
    assert_eq!(count(machine(&folder, "native:4k"), "accesses"), 2 * 2 * (50 + 70));
    // What is of another process is another source.
    lab.write("d/b.3.trace", [record(25, 0, 7), record(24, 4, 11), record(26, 0, 0)].concat());
    let two = lab.json("compare d/a.1.trace d/b.3.trace --quiet");
    assert!(two["description"].as_str().unwrap().contains("2 sources"), "{}", two["description"]);
}

#[test]
fn many_threads_need_few_descriptors() {
    let lab = Lab::new();
    std::fs::create_dir(lab.path("d")).unwrap();
    for tid in 0..300 {
        lab.write(&format!("d/{tid}.trace"), thread(tid, tid << 8, 3, &[tid, 1000 + tid]));
    }
    let line = "ulimit -n 40; exec \"$0\" compare d --machines native:4k --format json --quiet";
    let mut command = Command::new("sh");
    command.current_dir(lab.path("")).args(["-c", line, env!("CARGO_BIN_EXE_nestwalk")]);
    let ran = common::ran(command.output().unwrap());
    assert_eq!(ran.code, 0, "{}", ran.err);
    let results = common::parse(&ran.out);
    assert_eq!(count(machine(&results, "native:4k"), "accesses"), 300 * 2 * 6);
}

#[test]
fn what_a_trace_lacks_is_in_the_table_and_in_json() {
    let lab = Lab::new();
    let mut trace = thread(1, 0x1000, 5, &[1]);
    // Filtered for warm-up up to a marker, and of a newer version.
    trace.splice(..24, [record(25, 0, 9), record(28, 9, 0x2041)].concat());
    let end = trace.len() - 24;
    trace.splice(end..end, [record(28, 23, 0), record(2, 1, 0), record(10, 4, 0x40_0000)].concat());
    lab.write("t", trace);
    let results = lab.json("compare t --quiet");
    assert_eq!(count(machine(&results, "native:4k"), "accesses"), 1);
    let table = lab.ok("compare t --quiet");
    let notes = results["approximations"].as_array().unwrap();
    for words in ["what is before is warm-up", "1 prefetches", "version 9"] {
        assert!(table.contains(words), "{words}: {table}");
        assert!(notes.iter().any(|n| n.as_str().unwrap().contains(words)), "{words}: {notes:?}");
    }
}

#[test]
fn page_tables_beside_a_trace_are_those_of_its_guest() {
    let lab = Lab::new();
    ["w", "w/trace", "w/aux"].iter().for_each(|d| std::fs::create_dir(lab.path(d)).unwrap());
    lab.write("w/trace/0a.1.memtrace", thread(1, 0x1000, 50, &[1]));
    let mapping = |gva: u64, gpa: u64| {
        format!("address_mapping {{ virtual_address: {gva} physical_address: {gpa} }}\n")
    };
    let both = mapping(0x40_0000, 0x20_0000) + &mapping(0x100_0000, 0x60_0000);
    let text = format!("address_mapping_group {{\n page_size: 2097152\n {both} }}\n");
    lab.write("w/aux/v2p.textproto", text);
    let found = lab.json("compare w --verify --quiet");
    let m = machine(&found, "nested:observed+4k");
    assert_eq!(count(m, "accesses"), 100);
    assert!(found["approximations"].to_string().contains("v2p.textproto"), "{found}");
    // A page of code and one of data, of 2 MiB each.
    assert_eq!(count(machine(&found, "native:observed"), "walks"), 2, "{found}");
    let named = lab.json("compare w --page-tables w/aux/v2p.textproto --verify --quiet");
    assert_eq!(named["machines"], found["machines"]);
    let without = lab.json("compare w --page-tables none --quiet");
    assert_eq!(count(machine(&without, "native:4k"), "accesses"), 100);
    let ran = lab.run("compare w --vcpus 2 --quiet");
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.err.contains("not used because of --vcpus"), "{}", ran.err);
}
