//! `nestwalk trace`: description, verification and conversion of recorded guests' traces.

mod common;

use common::{Lab, champsim, champsim_trace, count, drmemtrace, lackey_log, number, parse};
use nestwalk_source::trace::{Header, Summary, TraceReader, TraceWriter, WriteOptions};
use nestwalk_types::{
    Batch, Control, Filter, FilterArray, Gpa, Gva, ProcessId, Run, RunFlags, Source, VcpuId,
};
use std::path::Path;

const V: VcpuId = VcpuId(0);
const DATA: u64 = 0x7f00_0000_0000;
const TEXT: u64 = 0x40_0000;

fn run(gva: u64, pc: u64, flags: RunFlags, lines: u64, count: u16, instructions: u16) -> Run {
    let (gva, pc) = (Gva::new(gva), Gva::new(pc));
    Run { gva, pc, lines, count, instructions, vcpu: V, flags }
}

fn fetch(pc: u64, instructions: u16) -> Run {
    run(pc & !63, pc, RunFlags::FETCH, 1 << (pc >> 6 & 63), 1, instructions)
}

/// Tables at 0x10_0000 that map the page of `TEXT` for fetches and that of `DATA` for stores, loaded,
/// by the entries' format of the SDM: P 1, R/W 2, U/S 4, NX bit 63.
fn tables() -> Vec<(u32, Control)> {
    let link = |at: u64, gva: u64, level: u64, to: u64| {
        let index = gva >> (12 + 9 * (level - 1)) & 511;
        (0, Control::TableWrite { vcpu: V, gpa: Gpa::new(at + index * 8), value: to })
    };
    let mut controls: Vec<_> = (0..8)
        .map(|i| Control::TableAdded {
            vcpu: V,
            gpa: Gpa::new(0x10_0000 + (i << 12)),
            entries: None,
        })
        .map(|control| (0, control))
        .collect();
    for (gva, first, leaf) in [(TEXT, 0x10_1000, 0x20_0005), (DATA, 0x10_4000, 1 << 63 | 0x30_0007)]
    {
        controls.push(link(0x10_0000, gva, 4, first | 7));
        controls.push(link(first, gva, 3, (first + 0x1000) | 7));
        controls.push(link(first + 0x1000, gva, 2, (first + 0x2000) | 7));
        controls.push(link(first + 0x2000, gva, 1, leaf));
    }
    let root = Gpa::new(0x10_0000);
    controls.push((0, Control::LoadCr3 { vcpu: V, root, pcid: 0, keep: false }));
    let name = "shell".into();
    controls.push((0, Control::Process { vcpu: V, root, id: ProcessId(87), name }));
    controls.push((0, Control::RegionOfInterest));
    controls
}

fn guest(runs: Vec<Run>) -> Batch {
    Batch { runs, controls: tables() }
}

fn sound() -> Batch {
    guest(vec![
        fetch(TEXT + 0x100, 5),
        run(DATA, TEXT + 0x104, RunFlags::default(), 0b1_0011, 9, 0),
        run(DATA + 0x80, TEXT + 0x108, RunFlags::STORE, 0b1100, 2, 0),
        Run { lines: 1 << 8 | 1 << 10, ..fetch(TEXT + 0x200, 4) },
    ])
}

fn header(vcpus: u8) -> Header {
    let four = FilterArray { sets: 16, ways: 4 };
    Header {
        tool: "nestwalk test".into(),
        command: vec!["gcc".into(), "-c".into(), "a.c".into()],
        kernel: "6.1.0-test".into(),
        memory_bytes: 1 << 30,
        vcpus,
        paging: "4-level".into(),
        thp: "always".into(),
        irreproducible_because: "there is a disk".into(),
        filter: Filter { data: four, ..Filter::RUNS },
        knows_lines: true,
        knows_pc: true,
        has_fetches: true,
        ..Header::default()
    }
}

fn write(path: &Path, header: &Header, batch: &Batch) {
    let options = WriteOptions { chunk_runs: 40, ..WriteOptions::LIVE };
    let mut writer = TraceWriter::create(path, header, options).unwrap();
    writer.write(batch).unwrap();
    let dropped = [("device".to_owned(), 7)].into();
    writer.finish(Summary { exit_status: Some(3), dropped, ..Summary::default() }).unwrap();
}

fn lab(batch: &Batch) -> Lab {
    let lab = Lab::new();
    write(&lab.path("a.nwt"), &header(1), batch);
    lab
}

fn read(path: &Path) -> Batch {
    let mut reader = TraceReader::open(path).unwrap();
    let (mut all, mut batch) = (Batch::default(), Batch::default());
    while reader.next_batch(&mut batch).unwrap() {
        let base = all.runs.len() as u32;
        all.controls.extend(batch.controls.drain(..).map(|(at, c)| (base + at, c)));
        all.runs.append(&mut batch.runs);
    }
    all
}

#[test]
fn info_says_what_made_a_trace_and_what_it_holds() {
    let lab = lab(&sound());
    let json = lab.json("trace info a.nwt");
    assert_eq!(json["complete"], true);
    assert_eq!(json["header"]["command"][0], "gcc");
    assert_eq!(count(&json["totals"], "accesses"), 13);
    assert_eq!(count(&json["totals"], "instructions"), 9);
    assert_eq!(count(&json["totals"]["controls_by_kind"], "table_write"), 8);
    assert_eq!(json["summary"]["exit_status"], 3);
    let size = lab.path("a.nwt").metadata().unwrap().len();
    assert_eq!(count(&json, "bytes"), size);
    let expected = size as f64 / 13.0;
    assert!((number(&json, "bytes_per_access") - expected).abs() < 1e-9);
    let text = lab.ok("trace info a.nwt");
    for words in [
        "gcc -c a.c",
        "6.1.0-test",
        "1 GiB of memory, 1 vCPU, 4-level paging, THP always",
        "again gives other bytes: there is a disk",
        "data 16 x 4",
        "complete",
        "device 7",
        "table_write         8",
        "what this trace cannot answer",
        "TLBs with replacement by order of use",
        "lowest 6 bits",
    ] {
        assert!(text.contains(words), "lacks `{words}`: {text}");
    }
    assert!(lab.refused("trace info a.nwt --format csv").contains("table and json"));
    // Its runs are counted, too.
    let read = &json["read"];
    assert_eq!((count(read, "accesses"), count(read, "fetches")), (13, 2));
    assert_eq!((count(read, "code_pages"), count(read, "data_pages")), (1, 1));
    assert_eq!((count(read, "processes"), &read["loads"]), (1, &serde_json::Value::Null));
    lab.write("b.nwt", b"hello");
    let message = lab.refused("trace info b.nwt");
    assert!(message.contains("neither nestwalk nor"), "{message}");
}

#[test]
fn a_sound_trace_has_no_violation() {
    let lab = lab(&sound());
    let json = lab.json("trace verify a.nwt");
    assert_eq!((count(&json, "violations"), count(&json, "runs_with_a_mapping")), (0, 4));
    assert!(lab.ok("trace verify a.nwt").contains("no violation"));
}

#[test]
fn what_no_guest_does_is_a_violation_with_its_place() {
    let bad = |run: Run| {
        let mut batch = sound();
        batch.runs.push(run);
        batch
    };
    let data = RunFlags::default();
    let cases: [(Batch, &str); 7] = [
        (bad(run(DATA + 0x5000, TEXT, data, 1, 1, 0)), "run 4: vCPU 0, user load from"),
        (bad(run(TEXT, TEXT, RunFlags::STORE, 1, 1, 0)), "the tables forbid stores"),
        (bad(fetch(DATA, 1)), "the tables forbid fetches"),
        (bad(run(DATA, TEXT, data, 2, 1, 0)), "run 4: the line of its address"),
        (bad(run(DATA, TEXT, data, 1, 0, 0)), "run 4: it has no access"),
        (bad(Run { vcpu: VcpuId(1), ..fetch(TEXT, 1) }), "run 4: its vCPU"),
        (
            {
                let mut twice = sound();
                twice.controls.push((2, Control::RegionOfInterest));
                twice
            },
            "a second region of interest",
        ),
    ];
    for (batch, words) in cases {
        let lab = lab(&batch);
        let ran = lab.run("trace verify a.nwt");
        ran.assert_refused("trace verify a.nwt");
        assert!(ran.out.contains(words) && ran.out.contains("chunk 0"), "{words}: {}", ran.out);
        assert!(ran.err.contains("violation"), "{}", ran.err);
    }
    // With several vCPUs the order of a translation's end and its last use is not certain.
    let lab = Lab::new();
    write(&lab.path("a.nwt"), &header(2), &bad(run(DATA + 0x5000, TEXT, data, 1, 1, 0)));
    let json = lab.json("trace verify a.nwt");
    assert_eq!(count(&json["runs_without_a_mapping_excused"], "not_mapped"), 1);
}

#[test]
fn damage_is_told_with_chunk_and_byte() {
    let lab = Lab::new();
    lab.write("a.champsim", champsim_trace(30_000));
    lab.ok("trace convert a.champsim a.nwt -q --level 3");
    let options = WriteOptions { chunk_runs: 8000, ..WriteOptions::LIVE };
    let header = TraceReader::open(&lab.path("a.nwt")).unwrap().header().clone();
    let mut writer = TraceWriter::create(&lab.path("b.nwt"), &header, options).unwrap();
    writer.write(&read(&lab.path("a.nwt"))).unwrap();
    writer.finish(Summary::default()).unwrap();
    let chunks = TraceReader::open(&lab.path("b.nwt")).unwrap().chunks().to_vec();
    assert!(chunks.len() > 2, "{}", chunks.len());
    let bytes = std::fs::read(lab.path("b.nwt")).unwrap();
    let mut damaged = bytes.clone();
    damaged[chunks[1].offset as usize + 200] ^= 1;
    lab.write("c.nwt", &damaged);
    let ran = lab.run("trace verify c.nwt");
    ran.assert_refused("trace verify c.nwt");
    let place = format!("chunk 1 of {} at byte {}", chunks.len(), chunks[1].offset);
    assert!(ran.out.contains(&place) && ran.out.contains("checksum"), "{}", ran.out);
    // What a cut leaves can be compared, described, and made whole.
    lab.write("d.nwt", &bytes[..chunks[2].offset as usize + 99]);
    let ran = lab.run("trace verify d.nwt");
    ran.assert_refused("trace verify d.nwt");
    assert!(ran.out.contains("the end is missing"), "{}", ran.out);
    let info = lab.json("trace info d.nwt");
    let runs = chunks[0].held.runs + chunks[1].held.runs;
    assert_eq!((info["complete"].as_bool(), count(&info["totals"], "runs")), (Some(false), runs));
    lab.ok("trace convert d.nwt e.nwt -q");
    assert_eq!(count(&lab.json("trace verify e.nwt"), "runs"), runs);
    // What a damaged one still says is saved, with exit code 2.
    let message = lab.refused("trace convert c.nwt f.nwt -q");
    assert!(message.contains(&place) && message.contains("what could be read"), "{message}");
    assert_eq!(count(&lab.json("trace verify f.nwt"), "runs"), chunks[0].held.runs);
}

#[test]
fn every_format_becomes_a_trace_whose_tables_are_sound() {
    let lab = Lab::new();
    lab.write("a.champsim", champsim_trace(3000));
    lab.write("b.lackey", lackey_log(3000));
    lab.write("c.drmemtrace", drmemtrace(3000));
    for (name, data) in [("a.champsim", 3750), ("b.lackey", 3000), ("c.drmemtrace", 3000)] {
        lab.ok(&format!("trace convert {name} {name}.nwt -q"));
        let json = lab.json(&format!("trace verify {name}.nwt"));
        assert_eq!(count(&json, "violations"), 0);
        assert_eq!(count(&json, "instructions"), 3000, "{name}");
        assert_eq!(count(&json, "accesses"), 3000 + data, "{name}");
        let info = lab.json(&format!("trace info {name}.nwt"));
        let notes = info["header"]["approximations"].to_string();
        assert!(notes.contains("modelled Linux guest"), "{notes}");
        // A fault, and a leaf written, for each page touched.
        let kinds = &info["totals"]["controls_by_kind"];
        assert!(count(kinds, "fault") >= 700 && count(kinds, "table_write") >= 700, "{kinds}");
    }
}

#[test]
fn recompression_and_cutting_keep_whole_runs() {
    let lab = lab(&sound());
    lab.ok("trace convert a.nwt b.nwt -q --level 22");
    assert_eq!(read(&lab.path("b.nwt")), read(&lab.path("a.nwt")));
    let header = |name: &str| TraceReader::open(&lab.path(name)).unwrap().header().clone();
    assert_eq!(header("b.nwt"), header("a.nwt"));
    for (accesses, runs) in [(1, 1), (2, 2), (10, 2), (11, 3), (99, 4)] {
        lab.ok(&format!("trace convert a.nwt c.nwt -q --accesses {accesses}"));
        assert_eq!(read(&lab.path("c.nwt")).runs, sound().runs[..runs], "{accesses}");
    }
    let summary = lab.json("trace info b.nwt");
    assert_eq!(summary["summary"]["exit_status"], 3);
}

#[test]
fn champsim_gets_an_instruction_for_each_run_and_each_line_once() {
    let lab = lab(&sound());
    lab.ok("trace convert a.nwt a.champsim -q");
    let t = TEXT;
    let expected = [
        champsim(t + 0x100, [0; 2], [0; 4]),
        champsim(t + 0x104, [0; 2], [DATA, DATA + 0x40, DATA + 0x100, 0]),
        champsim(t + 0x108, [DATA + 0x80, 0], [0; 4]),
        champsim(t + 0x108, [0; 2], [DATA + 0xc0, 0, 0, 0]),
        champsim(t + 0x200, [0; 2], [0; 4]),
        champsim(t + 0x280, [0; 2], [0; 4]),
    ];
    assert_eq!(std::fs::read(lab.path("a.champsim")).unwrap(), expected.concat());
    // Five instructions were retired with the first fetch run, three of which are written anyway.
    lab.ok("trace convert a.nwt b.champsim -q --all-instructions");
    let plain = |ip| champsim(ip, [0; 2], [0; 4]);
    let more = [plain(t + 0x200); 2];
    let all = [&expected[..4], &[plain(t + 0x100)], &expected[4..], &more].concat();
    assert_eq!(std::fs::read(lab.path("b.champsim")).unwrap(), all.concat());
    // Compressed by its name, and read again.
    lab.ok("trace convert a.nwt c.champsim.xz -q");
    lab.ok("trace convert c.champsim.xz c.nwt -q");
    let pages = |b: &Batch| b.runs.iter().map(|r| r.gva.value() >> 12).collect::<Vec<_>>();
    assert_eq!(pages(&read(&lab.path("c.nwt")))[..2], [t >> 12, DATA >> 12]);
}

#[test]
fn lackey_gets_the_text_that_valgrind_writes() {
    let lab = lab(&sound());
    lab.ok("trace convert a.nwt a.lackey -q");
    let expected = "I  00400100,1\nI  00400104,1\n L 7f0000000000,1\n L 7f0000000040,1\n \
                    L 7f0000000100,1\nI  00400108,1\n S 7f0000000080,1\n L 7f00000000c0,1\n\
                    I  00400200,1\nI  00400280,1\n";
    assert_eq!(lab.read("a.lackey"), expected);
    lab.ok("trace convert a.nwt a.lackey.gz -q --to lackey");
    lab.ok("trace convert a.lackey.gz b.nwt -q");
    assert_eq!(count(&lab.json("trace verify b.nwt"), "instructions"), 5);
}

#[test]
fn kernel_processes_and_vcpus_can_be_left_out() {
    let mut batch = sound();
    batch.runs.push(Run { flags: RunFlags::KERNEL, ..run(DATA, TEXT, RunFlags::KERNEL, 1, 1, 0) });
    let other = Control::Process {
        vcpu: V,
        root: Gpa::new(0x10_0000),
        id: ProcessId(90),
        name: "cc1".into(),
    };
    batch.controls.push((3, other));
    let lab = lab(&batch);
    let records = |options: &str| {
        lab.ok(&format!("trace convert a.nwt a.champsim -q {options}"));
        lab.path("a.champsim").metadata().unwrap().len() / 64
    };
    assert_eq!((records(""), records("--user-only")), (7, 6));
    assert_eq!((records("--process 87"), records("--process 90 --user-only")), (4, 2));
    let message = lab.refused("trace convert a.nwt a.champsim -q --process 5");
    assert!(message.contains("none of 5 runs"), "{message}");
    write(&lab.path("b.nwt"), &header(2), &batch);
    let message = lab.refused("trace convert b.nwt b.champsim -q");
    assert!(message.contains("2 vCPUs") && message.contains("--vcpu"), "{message}");
    lab.ok("trace convert b.nwt b.champsim -q --vcpu 0");
    assert!(lab.refused("trace convert b.nwt b.champsim -q --vcpu 2").contains("numbered from 0"));
}

#[test]
fn what_cannot_be_converted_is_refused_with_what_would_be_right() {
    let lab = lab(&sound());
    lab.write("a.champsim", champsim_trace(100));
    lab.write("dump", "0x400000 0x1000\n");
    let cases: [(&str, &[&str]); 12] = [
        ("a.champsim b.nwt --pcids", &["--pcids", "no recorded guest"]),
        ("a.champsim a.lackey --page-tables dump", &["--page-tables", "lackey has no place"]),
        ("a.nwt b.nwt --page-tables dump", &["a recorded guest, which has its own"]),
        ("a.champsim b.nwt --page-tables a.champsim", &["--page-tables", "line 1 at byte 0"]),
        ("a.nwt a.pinatrace", &["does not say a format", ".champsim", "--to"]),
        ("a.nwt b.x --to pinatrace", &["champsim or cloudsuite, not as pinatrace"]),
        ("a.nwt b.x --to elf", &["--to", "`elf`"]),
        ("a.nwt a.nwt", &["the same file"]),
        ("a.nwt b.nwt.xz", &["compressed inside", "--level"]),
        ("a.nwt b.nwt --accesses x", &["--accesses", "`x`"]),
        ("a.champsim b.nwt --guest-memory 1MiB", &["--guest-memory"]),
        ("nosuch.nwt b.nwt", &["no such file"]),
    ];
    for (words, expected) in cases {
        let message = lab.refused(&format!("trace convert -q {words}"));
        for part in expected {
            assert!(message.contains(part), "{words}: lacks `{part}`: {message}");
        }
    }
    let small = parse(&lab.ok("trace info a.nwt --format json"));
    assert_eq!(count(&small["totals"], "runs"), 4, "the input is as it was");
    lab.ok("trace convert -q --pcids a.nwt b.nwt");
    assert!(lab.ok("trace info b.nwt").contains("PCIDs"));
    assert!(lab.refused("trace convert -q --pcids b.nwt c.nwt").contains("has them already"));
}
