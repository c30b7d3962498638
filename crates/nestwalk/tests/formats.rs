//! Traces of the field's formats on the command line: what is counted, what is not known, and conversion
//! between them in one step.

mod common;

use common::{Lab, champsim, count, drmemtrace_record, machine, parse};
use serde_json::Value;
use std::collections::BTreeSet;

/// An instruction: address, loads, stores.
type Ins = (u64, Vec<u64>, Vec<u64>);

/// A loop in one page of code, each of whose instructions loads from a page of its own and stores to
/// another; some have more loads than one record of `ChampSim` holds.
fn program() -> Vec<Ins> {
    (0..300u64)
        .map(|i| {
            let loads = (0..1 + i % 7).map(|n| 0x60_0000 + (i << 12) + 64 * n).collect();
            (0x40_1000 + 4 * (i % 100), loads, vec![0x70_0000 + (i << 12)])
        })
        .collect()
}

/// The program as each format holds it, and what each access touches in order.
fn inputs() -> Vec<(&'static str, Vec<u8>)> {
    let mut lackey = String::new();
    let (mut pin, mut din) = (String::new(), String::new());
    let mut drm: Vec<u8> = [(25, 3), (22, 7), (24, 7)]
        .iter()
        .flat_map(|(kind, value)| drmemtrace_record(*kind, 0, *value))
        .collect();
    for (ip, loads, stores) in program() {
        lackey += &format!("I  {ip:08x},4\n");
        din += &format!("2 {ip:x}\n");
        drm.extend(drmemtrace_record(10, 4, ip));
        for (items, names) in [(&loads, ('L', 'R', 0)), (&stores, ('S', 'W', 1))] {
            for at in items {
                lackey += &format!(" {} {at:08x},8\n", names.0);
                pin += &format!("{ip:#x}: {} {at:#x}\n", names.1);
                din += &format!("{} {at:x}\n", names.2);
                drm.extend(drmemtrace_record(names.2, 8, *at));
            }
        }
    }
    drm.extend(drmemtrace_record(26, 0, 0));
    vec![
        ("lackey", lackey.into_bytes()),
        ("drmemtrace", drm),
        ("dinero", din.into_bytes()),
        ("pinatrace", pin.into_bytes()),
    ]
}

fn info(lab: &Lab, name: &str) -> Value {
    lab.json(&format!("trace info {name} -q"))
}

#[test]
fn info_counts_what_a_trace_of_any_format_holds() {
    let lab = Lab::new();
    let program = program();
    let loads: u64 = program.iter().map(|i| i.1.len() as u64).sum();
    for (format, content) in inputs() {
        lab.write(format, content);
        let found = info(&lab, format);
        assert_eq!((count(&found, "loads"), count(&found, "stores")), (loads, 300), "{format}");
        assert_eq!(count(&found, "data_pages"), 600 - overlap(&program), "{format}");
        assert_eq!((count(&found, "threads"), count(&found, "processes")), (1, 1), "{format}");
        assert_eq!(found["kernel_share_percent"], 0.0);
        if format == "pinatrace" {
            assert_eq!((&found["instructions"], count(&found, "fetches")), (&Value::Null, 0));
            assert_eq!(count(&found, "records"), loads + 300);
        } else {
            assert_eq!((count(&found, "instructions"), count(&found, "fetches")), (300, 300));
            assert_eq!(count(&found, "code_pages"), 1);
        }
        let text = lab.ok(&format!("trace info {format} -q"));
        for words in ["records", "of the kernel   0.0 %", "pages of 4 KiB", "loads"] {
            assert!(text.contains(words), "{format}: lacks `{words}`: {text}");
        }
    }
    // What came before damage is told.
    let cut = std::fs::read(lab.path("drmemtrace")).unwrap();
    lab.write("cut", &cut[..cut.len() / 2]);
    let ran = lab.run("trace info cut -q --format json");
    ran.assert_refused("trace info cut");
    assert_eq!(parse(&ran.out)["complete"], false);
    assert!(ran.err.contains("what is told came before"), "{}", ran.err);
    assert!(lab.refused("trace info cut --format csv").contains("table and json"));
}

/// Data pages that are both loaded from and stored to.
fn overlap(program: &[Ins]) -> u64 {
    let pages = |of: fn(&Ins) -> &Vec<u64>| -> BTreeSet<u64> {
        program.iter().flat_map(of).map(|at| at >> 12).collect()
    };
    pages(|i| &i.1).intersection(&pages(|i| &i.2)).count() as u64
}

#[test]
fn every_format_becomes_every_format_in_one_step() {
    let lab = Lab::new();
    for (format, content) in inputs() {
        lab.write(format, content);
        let source = info(&lab, format);
        for to in ["champsim", "cloudsuite", "lackey", "drmemtrace"] {
            let ran = lab.run(&format!("trace convert {format} out.{to}.gz -q"));
            assert_eq!(ran.code, 0, "{}", ran.err);
            let found = lab.json(&format!("trace info out.{to}.gz -q --trace-format {to}"));
            for key in ["loads", "stores", "data_pages"] {
                assert_eq!(found[key], source[key], "{format} to {to}: {key}");
            }
            let records = matches!(to, "champsim" | "cloudsuite");
            if format == "pinatrace" && records {
                // Every access needs an instruction there; those of one stay together.
                assert!(ran.err.contains("300 instructions made up"), "{}", ran.err);
                assert!(count(&found, "instructions") >= 300);
            } else if records {
                let more = program().iter().filter(|i| i.1.len() > 4).count() as u64;
                assert_eq!(count(&found, "instructions"), 300 + more, "{format} to {to}");
                assert!(ran.err.contains(&format!("{more} instructions written as several")));
            } else {
                assert_eq!(found["instructions"], source["instructions"], "{format} to {to}");
                assert_eq!(found["fetches"], source["fetches"], "{format} to {to}");
            }
            if (format, to) == ("pinatrace", "lackey") {
                assert!(
                    ran.err.contains("accesses without the address of their instr"),
                    "{}",
                    ran.err
                );
            }
        }
    }
}

#[test]
fn conversion_cuts_in_the_order_of_the_trace() {
    let lab = Lab::new();
    for (format, content) in inputs() {
        lab.write(format, content);
        for n in [1, 2, 3, 10, 1000] {
            lab.ok(&format!("trace convert {format} out.lackey -q --accesses {n}"));
            let log = lab.read("out.lackey");
            let found: Vec<&str> = log.lines().skip(1).collect();
            let mut expected = Vec::new();
            for (ip, loads, stores) in program() {
                if format != "pinatrace" {
                    expected.push(format!("I  {ip:08x},1"));
                }
                expected.extend(loads.iter().map(|at| format!(" L {at:08x},1")));
                expected.extend(stores.iter().map(|at| format!(" S {at:08x},1")));
            }
            assert_eq!(found, expected[..n], "{format} {n}");
            lab.ok(&format!("trace convert {format} out.nwt -q --accesses {n}"));
            let read = &info(&lab, "out.nwt")["read"];
            let pages = info(&lab, "out.lackey");
            assert_eq!((count(read, "accesses"), &read["pages"]), (n as u64, &pages["pages"]));
        }
    }
}

#[test]
fn the_first_accesses_are_counted_and_no_others() {
    let lab = Lab::new();
    // Each instruction fetches, loads and stores: a page of code, and two new pages of data.
    let record = |i: u64| {
        champsim(0x40_1000 + 4 * i, [0x70_0000 + (i << 12), 0], [0x60_0000 + (i << 12), 0, 0, 0])
    };
    lab.write("a", (0..100).flat_map(record).collect::<Vec<_>>());
    let run = |options: &str| {
        let found = lab.json(&format!("compare a --machines native --quiet {options}"));
        let m = machine(&found, "native:4k");
        (count(m, "instructions"), count(m, "accesses"), count(m, "walks"))
    };
    assert_eq!(run("--accesses 10"), (4, 10, 7));
    assert_eq!(run("--accesses 10 --warmup 100"), (3, 10, 7));
    assert_eq!(run("--accesses 9 --warmup 3"), (3, 9, 6));
    assert_eq!(run("--warmup 299"), (0, 1, 1));
    let second =
        lab.run("compare a a --machines native --quiet --quantum 1 --accesses 6 --format json");
    let m = parse(&second.out);
    assert_eq!(count(machine(&m, "native:4k"), "instructions"), 2, "one of each process");
}

#[test]
fn rates_per_instruction_are_unknown_without_instructions() {
    let lab = Lab::new();
    lab.write("a.lackey", (0..500).map(|i| format!(" L {:x},8\n", i << 12)).collect::<String>());
    let found = lab.json("compare a.lackey --machines native,nested --quiet");
    for name in ["native:4k", "nested:4k+4k"] {
        let m = machine(&found, name);
        assert_eq!(
            (count(m, "accesses"), count(m, "walks"), count(m, "instructions")),
            (500, 500, 0)
        );
        for rate in ["l1_tlb_mpki", "l2_tlb_mpki"] {
            assert_eq!(m[rate], Value::Null, "{rate}");
        }
        assert_eq!(m["energy"]["translation_pj_per_instruction"], Value::Null);
    }
    let table = lab.ok("compare a.lackey --machines native --quiet --energy --wide");
    let mut rows = table.lines().filter(|line| line.starts_with("native:4k"));
    let mut cells = || -> Vec<&str> { rows.next().unwrap().split_whitespace().collect() };
    assert_eq!(cells()[2], "-", "{table}");
    assert_eq!(cells()[..4], ["native:4k", "-", "-", "500"], "{table}");
    assert!(table.contains("MPKI") && !table.contains("NaN") && !table.contains("inf"), "{table}");
    let csv = lab.ok("compare a.lackey --machines native --quiet --format csv");
    assert!(!csv.contains("NaN"), "{csv}");
}

#[test]
fn page_tables_of_a_trace_are_those_of_an_observed_guest() {
    let lab = Lab::new();
    let record = |i: u64| champsim(0x40_1000, [0; 2], [0x60_0000 + (i << 12), 0, 0, 0]);
    lab.write("a", (0..64).flat_map(record).collect::<Vec<_>>());
    // Data lies backwards in memory, but for the last page, which the dump lacks.
    let mut dump = String::from("0x401000 0x5000\n");
    for i in 0..63u64 {
        dump += &format!("{:#x} {:#x}\n", 0x60_0000 + (i << 12), 0x20_0000 - (i << 12));
    }
    lab.write("dump", &dump);
    let line = "compare a --page-tables dump --quiet --verify --machines native,nested,native:4k";
    let found = lab.json(line);
    for name in ["native:observed", "nested:observed+4k"] {
        let m = machine(&found, name);
        assert_eq!((count(m, "accesses"), count(m, "guest_faults")), (127, 0), "{name}");
    }
    let dropped = &found["guests"]["observed"]["dropped"]["not_mapped"];
    assert_eq!(count(dropped, "accesses"), 1, "{}", found["guests"]);
    let notes = found["approximations"].to_string();
    assert!(notes.contains("page tables are those of dump, 64 pages"), "{notes}");
    // The same as a trace of nestwalk, whose page tables are sound but for the page that is lacking.
    lab.ok("trace convert a b.nwt -q --page-tables dump");
    let json = lab.run("trace verify b.nwt -q --format json");
    assert_eq!(count(&parse(&json.out), "violations"), 1, "{}", json.out);
    let again = lab.json("compare b.nwt --quiet --machines native,nested");
    for name in ["native:observed", "nested:observed+4k"] {
        for key in ["accesses", "walks", "guest_refs", "nested_refs", "vm_exits_total"] {
            assert_eq!(machine(&again, name)[key], machine(&found, name)[key], "{name} {key}");
        }
    }
    for (words, expected) in [
        ("compare gups --page-tables dump", "is for a trace file"),
        ("compare a a --page-tables dump", "one trace file; 2 sources"),
        ("compare a --page-tables gone", "gone: no such file"),
        ("compare a --page-tables a", "line 1 at byte 0: is no page"),
    ] {
        let message = lab.refused(&format!("{words} --quiet"));
        assert!(message.contains(expected), "{words}: {message}");
    }
    // Tables of the dump: code and data share all but the last.
    let tables = 5;
    // The host's beside them: the first page of data is the last of host memory.
    let host: String = (0..0x300u64)
        .map(|i| format!("{:#x} {:#x}\n", i << 12, 0x40_0000_0000 - ((i + 1) << 12)))
        .collect();
    lab.write("host", host);
    let both = "compare a --page-tables dump --host-page-tables host --quiet --verify --contiguity";
    let nested = lab.json(&format!("{both} --machines nested"));
    let m = machine(&nested, "nested:observed+4k");
    assert_eq!((count(m, "accesses"), count(m, "walks")), (127, 64));
    assert_eq!(nested["error"], Value::Null);
    let placed = &m["host_placement"];
    assert_eq!(count(placed, "placed_elsewhere"), 0);
    // The host has memory behind all that the guest's dump names, and nothing else was used.
    assert_eq!(count(placed, "at_target"), 64 + tables);
    let message = lab.refused("compare a --host-page-tables host --quiet");
    assert!(message.contains("--page-tables"), "{message}");
    // And from the file that repeats it.
    lab.ok(&format!("{line} --output here"));
    let again = lab.ok("run here/config.toml --quiet --format json");
    assert_eq!(parse(&again)["machines"], found["machines"]);
}
