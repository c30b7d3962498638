//! `compare` and `run`: the shape of what comes out, and that it comes out again.

mod common;

use common::{Lab, count, machine, number, parse, recording};
use nestwalk_types::Filter;
use serde_json::Value;
use std::collections::BTreeSet;

/// Fast, and enough to walk, to fault and to exit.
const SMALL: &str = "--footprint 8MiB --accesses 20k --quiet";

/// Objects whose keys are names: `*` in paths.
const NAMED: [&str; 8] = [
    "guests.",
    "guests.observed.table_writes.",
    "guests.observed.dropped.",
    "machines[].walks_switched.",
    "machines[].vmm_work.",
    "verdict.run_times.",
    "verdict.fastest_by_pages.",
    "repeats.machines[].fields.",
];

/// Paths of all keys of a value; elements of arrays are `[]`. What covers memory is documented as one,
/// with its techniques and shares.
fn keys(prefix: &str, value: &Value, out: &mut BTreeSet<String>) {
    match value {
        Value::Object(_) if prefix.contains(".coverage.") && prefix.ends_with(".entries.") => {}
        // By machine and figure.
        Value::Object(_) if prefix == "sampling.half_widths." => {}
        Value::Object(map) => {
            for (key, value) in map {
                let key = if NAMED.contains(&prefix) && key != "observed" { "*" } else { key };
                out.insert(format!("{prefix}{key}"));
                keys(&format!("{prefix}{key}."), value, out);
            }
        }
        Value::Array(items) => {
            let prefix = format!("{}[].", prefix.trim_end_matches('.'));
            items.iter().for_each(|item| keys(&prefix, item, out));
        }
        _ => {}
    }
}

/// The fields that `explain results` documents: each line is `path [unit]: meaning`.
fn documented(lab: &Lab) -> BTreeSet<String> {
    let text = lab.ok("explain results");
    let field = |line: &str| {
        let (head, meaning) = line.split_once(": ").unwrap_or_else(|| panic!("{line}"));
        assert!(!meaning.is_empty(), "{line}");
        head.split(" [").next().unwrap_or(head).to_owned()
    };
    text.lines().map(field).collect()
}

#[test]
fn the_default_prints_a_row_per_machine() {
    let table = Lab::new().ok(&format!("compare gups {SMALL}"));
    for row in ["ideal:4k ", "native:4k ", "shadow:4k+4k ", "nested:4k+4k "] {
        assert_eq!(table.lines().filter(|l| l.starts_with(row)).count(), 1, "{row}\n{table}");
    }
    for head in ["source   gups: ", "profile  Intel Xeon Gold 6252", "counted  20,000 accesses"] {
        assert!(table.lines().any(|l| l.starts_with(head)), "{head}\n{table}");
    }
}

#[test]
fn json_has_the_documented_fields_and_no_others() {
    let lab = Lab::new();
    let documented = documented(&lab);
    // Between them, every kind of exit and of kernel work occurs.
    let lines = [
        format!("compare forkstorm {SMALL} --verify --walk-map"),
        format!(
            "compare forkstorm {SMALL} --verify \
             --machines switching/dsp/interval=0.01,agile/interval=1000,xen-pv,soft-tlb"
        ),
        "compare gups forkstorm --footprint 8MiB --accesses 200k --quiet --populate no --vcpus 2 \
         --verify"
            .into(),
        format!(
            "compare uniform:vcpus=2 --vcpus 2 {SMALL} --verify --populate no \
             --profile sandy-bridge-e5-2430 --machines nested:4k@ranger \
             --daemons ranger-interval-ms=0.001"
        ),
        format!("compare forkstorm {SMALL} --verify --machines ept-on-ept,spt-on-ept,pvm"),
        format!("compare gups {SMALL} --verify --machines ds,vmm-direct,guest-direct,dual-direct"),
        format!(
            "compare gups {SMALL} --verify --populate no --machines native:khugepaged@reserve,native:4k@ranger \
             --daemons khugepaged-interval-ms=0.001,ranger-interval-ms=0.001"
        ),
        format!(
            "compare gups {SMALL} --verify --machines spot,revelator,rmm,anchor,native-colt,clustered \
             --contiguity --contiguity-every 5k"
        ),
        "compare gups --footprint 64MiB --guest-memory 256MiB --accesses 200k --populate no --quiet \
         --verify --host-fragmentation bad --machines vmm-direct/start=paged/compact=40000000"
            .into(),
        format!("compare gups {SMALL} --verify --machines hashed,native-hashed,inverted-shadow"),
        format!(
            "compare gups {SMALL} --verify --machines nested/nodes=2/ept=1/copies=gpt,native/nodes=2/data=1 \
             --profile cascade-lake-6252"
        ),
        format!("compare gups {SMALL} --verify --repeat 2"),
        format!("compare gups {SMALL} --verify --sample=every=5k,unit=1k,warm=1k"),
    ];
    let mut found = BTreeSet::new();
    recording::write(&lab, "guest.nwt", Filter::RUNS);
    let recorded = lab.json("compare guest.nwt --machines nested,nested:4k --quiet");
    keys("", &recorded, &mut found);
    for line in &lines {
        let results = lab.json(line);
        assert_eq!(results["complete"], true);
        for m in results["machines"].as_array().unwrap() {
            let mut own = BTreeSet::new();
            keys("machines[].", m, &mut own);
            // The ideal machine has no referee: there is nothing to be wrong.
            for path in documented.iter().filter(|p| p.matches('.').count() == 1) {
                let scheme = &m["scheme"];
                let optional = match path.as_str() {
                    "machines[].referee" => scheme == "ideal",
                    "machines[].switching" => scheme != "switching",
                    "machines[].segments" => !has_segments(scheme),
                    "machines[].contiguity" => !uses_contiguity(scheme),
                    "machines[].tables" => !has_tables(scheme),
                    "machines[].nodes" => !m["name"].as_str().unwrap().contains("nodes="),
                    "machines[].coverage" => scheme == "ideal" || !line.contains("--contiguity"),
                    "machines[].walk_map" => scheme == "ideal" || !line.contains("--walk-map"),
                    "machines[].host_placement" => m["host_placement"].is_null(),
                    _ => false,
                };
                if path.starts_with("machines[].") && !optional {
                    assert!(own.contains(path), "{} lacks {path}", m["name"]);
                }
            }
        }
        keys("", &results, &mut found);
    }
    let generic = |p: &String| !p.ends_with(".*") && p.as_str() != "guests.observed";
    let found: BTreeSet<String> = found.into_iter().filter(generic).collect();
    let missing: Vec<_> = found.difference(&documented).collect();
    assert!(missing.is_empty(), "not documented: {missing:?}");
    // A process that stores to a table of its own: `sim/tests/xen_pv.rs` has one, no workload has. The
    // end of a VM's turn, where it shares a core with others, and its migration: `fleet/tests/fleet.rs`.
    // Waits for pages of a host that is short of memory, and free pages told to it:
    // `fleet/tests/fleet_waits.rs`.
    let rare = ["table_emulation", "preempted", "write_protected", "pml_full", "table_memory"];
    let waits = ["page_ready", "page_ready_ack", "halted", "free_pages", "balloon"];
    let rare: Vec<String> =
        rare.iter().chain(&waits).map(|exit| format!("machines[].vm_exits.{exit}")).collect();
    let rare = |p: &&String| !rare.contains(p);
    let absent: Vec<_> = documented.difference(&found).filter(rare).collect();
    assert!(absent.is_empty(), "documented, but never there: {absent:?}");
}

fn has_segments(scheme: &Value) -> bool {
    scheme.as_str().is_some_and(|s| s == "ds" || s.ends_with("-direct"))
}

fn has_tables(scheme: &Value) -> bool {
    scheme.as_str().is_some_and(|s| {
        ["hashed", "flat", "inverted", "ecpt", "dmt", "learned", "utopia", "asap"]
            .iter()
            .any(|t| s.contains(t))
    })
}

fn uses_contiguity(scheme: &Value) -> bool {
    let scheme = scheme.as_str().unwrap_or_default();
    ["spot", "revelator", "rmm", "anchor", "inverted-shadow"]
        .contains(&scheme.strip_prefix("native-").unwrap_or(scheme))
}

#[test]
fn csv_has_a_row_per_machine_with_the_values_of_the_json() {
    let lab = Lab::new();
    let line = format!("compare forkstorm {SMALL}");
    let (json, text) = (lab.json(&line), lab.ok(&format!("{line} --format csv")));
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let columns: Vec<String> = reader.headers().unwrap().iter().map(Into::into).collect();
    assert_eq!(columns.iter().collect::<BTreeSet<_>>().len(), columns.len());
    let machines = json["machines"].as_array().unwrap();
    let rows: Vec<csv::StringRecord> = reader.records().map(Result::unwrap).collect();
    assert_eq!(rows.len(), machines.len());
    for (row, machine) in rows.iter().zip(machines) {
        let mut filled = 0;
        for (column, cell) in columns.iter().zip(row) {
            let value = column.split('.').try_fold(machine, |value, key| value.get(key));
            match value {
                None => assert_eq!(cell, "", "{column}"),
                Some(Value::String(text)) => assert_eq!(cell, text),
                Some(value) => {
                    let (cell, value): (f64, f64) =
                        (cell.parse().unwrap(), value.as_f64().unwrap());
                    // The reader of the JSON may be off in the last digit.
                    assert!(
                        (cell - value).abs() <= 1e-12 * value.abs(),
                        "{column}: {cell}, {value}"
                    );
                }
            }
            filled += usize::from(value.is_some());
        }
        assert!(filled > 60, "{filled} cells");
    }
    assert!(columns.iter().any(|c| c == "vm_exits.cr3_load"), "{columns:?}");
}

#[test]
fn an_experiment_is_repeated_to_the_byte() {
    let lab = Lab::new();
    let line = "compare forkstorm gups --footprint 8MiB --accesses 30k --warmup 5k --vcpus 2 \
                --machines nested:thp+4k,shadow --profile zen2 --seed 7 --verify \
                --guest-fragmentation 0.5 --page-size 2m --quantum 10k";
    let first = lab.ok(&format!("{line} --format json --output there/deep --threads 1"));
    assert_eq!(first, lab.read("there/deep/results.json"));
    let table = lab.ok(&format!("{line} --threads 3"));
    assert_eq!(table, lab.read("there/deep/table.txt"));
    assert_eq!(lab.ok(&format!("{line} --format csv")), lab.read("there/deep/results.csv"));
    let config = lab.read("there/deep/config.toml");
    for threads in [1, 2, 5] {
        let again = lab.ok(&format!(
            "run there/deep/config.toml --format json --threads {threads} --output again"
        ));
        assert_eq!(again, first, "--threads {threads}");
        assert_eq!(lab.read("again/config.toml"), config);
    }
    let other = line.replace("--seed 7", "--seed 8");
    assert_ne!(lab.ok(&format!("{other} --format json")), first, "the seed decides nothing");
    // A change of a built-in profile must not change an old experiment: it is in the file.
    assert!(config.contains("[profile.core.base_cpi]"), "{config}");
}

#[test]
fn results_of_another_run_do_not_stay() {
    let lab = Lab::new();
    lab.ok(&format!("compare gups {SMALL} --output here"));
    // This one fails after the folder was prepared.
    lab.refused("compare gups --guest-memory 1MiB --populate no --quiet --output here");
    assert!(lab.read("here/config.toml").contains("guest_memory = 1048576"));
    for stale in ["results.json", "results.csv", "table.txt"] {
        assert!(!lab.path("here").join(stale).exists(), "{stale} is of another configuration");
    }
}

#[test]
fn warm_up_and_counted_part_add_up_to_the_whole() {
    let lab = Lab::new();
    let run = |warmup: u64, accesses: u64| {
        lab.json(&format!(
            "compare gups --footprint 64MiB --quiet --warmup {warmup} --accesses {accesses}"
        ))
    };
    let (whole, first, second) = (run(0, 50_000), run(0, 20_000), run(20_000, 30_000));
    for name in ["ideal:4k", "native:4k", "shadow:4k+4k", "nested:4k+4k"] {
        let of = |results, key| count(machine(results, name), key);
        assert_eq!(of(&second, "accesses"), 30_000);
        for key in [
            "accesses",
            "l1_tlb_misses",
            "l2_tlb_hits",
            "l2_tlb_misses",
            "walks",
            "guest_refs",
            "nested_refs",
            "shadow_refs",
            "walk_cycles",
            "vm_exits_total",
        ] {
            assert_eq!(of(&first, key) + of(&second, key), of(&whole, key), "{name} {key}");
        }
    }
    assert!(count(machine(&second, "nested:4k+4k"), "walks") > 1000, "nothing was tested");
}

#[test]
fn populating_decides_what_first_touches_cost() {
    let lab = Lab::new();
    let run = |populate| {
        lab.json(&format!(
            "compare uniform --footprint 16MiB --accesses 50k --quiet --populate {populate}"
        ))
    };
    let (yes, no) = (run("yes"), run("no"));
    // 16 MiB are 4096 pages, of which 50,000 random accesses leave out none (e^-12 each).
    let faults = |results, name| count(machine(results, name), "guest_faults");
    assert_eq!((faults(&yes, "native:4k"), faults(&no, "native:4k")), (0, 4096));
    assert_eq!(count(machine(&yes, "nested:4k+4k"), "vm_exits_total"), 0);
    let exits = &machine(&no, "nested:4k+4k")["vm_exits"];
    // One violation per page of the program, and one or more for the guest's tables.
    assert!((4097..4200).contains(&count(exits, "ept_violation")), "{exits}");
}

#[test]
fn several_sources_are_several_processes() {
    let lab = Lab::new();
    let line = "compare gups zipf:theta=0.8 stream --quantum 2k --footprint 8MiB --accesses 30k";
    for vcpus in [1, 2] {
        let results = lab.json(&format!("{line} --vcpus {vcpus} --verify --quiet"));
        assert_eq!(count(&results["guests"]["4k"], "processes"), 3);
        let native = machine(&results, "native:4k");
        assert_eq!(count(native, "accesses"), 30_000);
        // Some 100,000 instructions in turns of 2,000: a load of CR3 for nearly each.
        let (loads, turns) = (count(native, "cr3_loads"), count(native, "instructions") / 2000);
        assert!(loads * 2 > turns && loads <= turns * 2, "{loads} loads, {turns} turns");
    }
    let alone = lab.json(&format!("compare gups {SMALL}"));
    assert_eq!(count(machine(&alone, "native:4k"), "cr3_loads"), 0);
}

#[test]
fn every_pattern_runs() {
    let lab = Lab::new();
    let patterns = [
        "sequential",
        "stride:stride=8256",
        "uniform:reads=0.5",
        "zipf:theta=1.2,item=128",
        "chase:node=256",
        "phases:sequential/chase/zipf:theta=0.5",
    ];
    for pattern in patterns {
        let results = lab.json(&format!("compare {pattern} {SMALL} --verify --vcpus 2"));
        assert_eq!(count(machine(&results, "nested:4k+4k"), "accesses"), 20_000, "{pattern}");
    }
    // Sequential words of 8 bytes: a page, and so a miss, every 512 accesses.
    let results = lab.json("compare sequential --footprint 64MiB --accesses 51200 --quiet");
    assert_eq!(count(machine(&results, "native:4k"), "l2_tlb_misses"), 100);
}

#[test]
fn machines_can_be_named_in_every_way() {
    let lab = Lab::new();
    let machines = "nested:4k+2m,nested:thp+4k,shadow:1g,nested@default,native:2m";
    let results = lab.json(&format!("compare gups {SMALL} --machines {machines} --profile zen2"));
    let names: Vec<&str> = results["machines"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| m["name"].as_str().unwrap())
        .collect();
    // Controls for each guest that occurs come first; what was asked for keeps its order.
    let asked = ["nested:4k+2m", "nested:thp+4k", "shadow:1g+1g", "nested:4k+4k", "native:2m"];
    assert_eq!(names[names.len() - 5..], asked);
    for pages in ["4k", "thp", "1g", "2m"] {
        assert!(names.contains(&format!("ideal:{pages}").as_str()), "{names:?}");
        assert!(names.contains(&format!("native:{pages}").as_str()), "{names:?}");
    }
    // Guest pages of 2 MiB on host pages of 4 KiB: the TLB holds the smaller.
    let splintered = machine(&results, "nested:thp+4k");
    assert!(count(splintered, "splintered") > 0 && count(splintered, "splintered") <= 20_000);
    assert_eq!(count(machine(&results, "nested:4k+2m"), "splintered"), 0);
}

#[test]
fn overheads_are_shares_of_ideal_cycles() {
    let results = Lab::new().json(&format!("compare forkstorm {SMALL} --populate no"));
    let ideal = number(machine(&results, "ideal:4k"), "total_cycles");
    for m in results["machines"].as_array().unwrap() {
        let close = |a: f64, b: f64| (a - b).abs() <= 1e-9 * a.abs().max(b.abs()).max(1.0);
        let n = |key| number(m, key);
        assert!(close(n("ideal_cycles"), ideal));
        assert!(close(n("overhead_percent"), 100.0 * (n("total_cycles") - ideal) / ideal));
        assert!(close(n("vmm_overhead_percent"), 100.0 * n("vmm_cycles") / ideal));
        let sum = n("translation_overhead_percent") + n("vmm_overhead_percent");
        assert!(close(n("overhead_percent"), sum), "{}", m["name"]);
        let parts = ["program_cycles", "guest_os_cycles", "translation_cycles", "vmm_cycles"];
        assert!(close(n("total_cycles"), parts.map(n).iter().sum()), "{}", m["name"]);
        let exits: u64 =
            m["vm_exits"].as_object().unwrap().values().filter_map(Value::as_u64).sum();
        assert_eq!(exits, count(m, "vm_exits_total"));
        if m["scheme"] == "ideal" {
            assert!(close(n("overhead_percent"), 0.0));
            assert_eq!((count(m, "walks"), count(m, "l1_tlb_misses")), (0, 0));
        }
    }
}

/// What populating left out of the table is said, with what it would have cost each machine: the verdict
/// of a program that begins with its first touches may be another.
#[test]
fn populated_memory_is_told_with_what_its_first_touch_costs() {
    let lab = Lab::new();
    let gups = "compare gups --footprint 16MiB --accesses 50k --machines shadow,nested";
    let results = lab.json(gups);
    let of = |name: &str, key: &str| number(machine(&results, name), key);
    // The pages of the footprint, each once, and few more.
    let faults = |name: &str| count(machine(&results, name), "setup_guest_faults");
    assert!((4096..4200).contains(&faults("native:4k")), "{}", faults("native:4k"));
    assert_eq!(faults("native:4k"), faults("shadow:4k+4k"));
    let costs =
        ["native:4k", "nested:4k+4k", "shadow:4k+4k"].map(|m| of(m, "setup_overhead_percent"));
    assert!(costs[0] > 0.0 && costs[0] < costs[1] && costs[1] < costs[2], "{costs:?}");
    let table = lab.ok(gups);
    let note = table.lines().find(|l| l.starts_with("note     memory was populated")).unwrap();
    let shadow = format!("shadow:4k+4k {:.1} (", costs[2]);
    assert!(note.contains(&shadow) && note.ends_with("--populate no counts it"), "{note}");
    // What is counted by itself needs no note.
    let cold = lab.json(&format!("{gups} --populate no"));
    assert_eq!(count(machine(&cold, "shadow:4k+4k"), "setup_guest_faults"), 0);
    assert!(!lab.ok(&format!("{gups} --populate no")).contains("before counting"));
}

/// Hits of the second-level TLB cost cycles where nothing walks; the column's name holds both.
#[test]
fn the_column_of_translation_says_what_it_holds() {
    let lab = Lab::new();
    let uniform = "compare uniform --footprint 1MiB --accesses 200k --machines native";
    let results = lab.json(uniform);
    let native = machine(&results, "native:4k");
    assert_eq!((count(native, "walks"), native.get("walk_overhead_percent")), (0, None));
    assert!(number(native, "translation_overhead_percent") > 1.0);
    let table = lab.ok(uniform);
    assert!(table.contains("transl.") && !table.contains("walk  "), "{table}");
    assert!(lab.ok("explain transl. % time").contains("hits of the second-level TLB"));
}

/// Options of KVM's are read, named, and refused where there is no such choice.
#[test]
fn options_of_the_hypervisor_are_part_of_a_machines_name() {
    let lab = Lab::new();
    let small = "compare gups --footprint 1MiB --accesses 2k --machines";
    let table = lab.ok(&format!(
        "{small} nested/eptad=off/lived=long/nx_huge_pages=off:4k+2m,shadow/nx_huge_pages=auto,agile/eptad=on"
    ));
    for name in [
        "nested/lived=long/eptad=off/nx_huge_pages=off:4k+2m",
        "shadow:4k+4k",
        "agile/eptad=on:4k+4k",
    ] {
        assert!(table.contains(name), "{name}: {table}");
    }
    for (machine, words) in [
        ("nested/eptad=maybe", ["eptad=maybe", "on, off"]),
        ("nested/nx_huge_pages=1", ["nx_huge_pages=1", "auto, on, off"]),
        ("shadow/eptad=off", ["no option `eptad`", "kvm=4.19"]),
        ("nested/eptad=off --profile zen2", ["eptad=off", "zen2 always has"]),
    ] {
        let message = lab.refused(&format!("{small} {machine}"));
        assert!(words.iter().all(|w| message.contains(w)), "{message}");
    }
    let explained = lab.ok("explain agile");
    assert!(explained.contains("eptad=on|off") && explained.contains("nx_huge_pages=auto|on|off"));
}

#[test]
fn the_catalogue_lists_what_there_is() {
    let lab = Lab::new();
    let text = lab.ok("schemes");
    let listed: Vec<&str> = text.lines().filter_map(|l| l.split_whitespace().next()).collect();
    let files = |folder: &str, end: &str| -> Vec<String> {
        let folder = common::workspace().join("crates").join(folder);
        let names = std::fs::read_dir(&folder).unwrap().map(|f| f.unwrap().file_name());
        let stem = |n: std::ffi::OsString| Some(n.to_str()?.strip_suffix(end)?.to_owned());
        names.filter_map(stem).filter(|n| n != "mod").collect()
    };
    // Schemes are a file each, and so are profiles and workloads.
    for (folder, end, least) in [
        ("sim/src/schemes", ".rs", 4),
        ("hw/profiles", ".toml", 4),
        ("workloads/src/kinds", ".rs", 12),
    ] {
        let mut names = files(folder, end);
        // What profiles have in common is no profile.
        names.retain(|name| !(folder == "hw/profiles" && name == "common"));
        assert!(names.len() >= least, "{folder}: {names:?}");
        for name in names {
            // A scheme's name may have a hyphen, a file's in Rust may not.
            let hyphen = |n: &String| folder.ends_with("schemes") && n.contains('_');
            let name = if hyphen(&name) { name.replace('_', "-") } else { name };
            assert!(listed.contains(&name.as_str()), "{name} is not listed:\n{text}");
            assert!(lab.ok(&format!("explain {name}")).contains(&name));
        }
    }
    for name in ["uniform", "phases", "default", "walks", "vm_exits", "hidden_fault"] {
        assert!(lab.ok(&format!("explain {name}")).contains(name));
    }
}

#[test]
fn a_walk_shows_the_published_number_of_references() {
    let lab = Lab::new();
    // Bhargava et al. (ASPLOS 2008): g * h + g + h for g guest and h nested levels.
    let expected = [
        ("native", 4),
        ("native --guest-paging 5-level", 5),
        ("native --guest-paging 2-level", 2),
        ("native --guest-paging pae", 2),
        ("shadow", 4),
        ("shadow --guest-paging pae", 2),
        ("shadow --guest-paging 2-level", 2),
        ("nested", 24),
        ("nested:2m+4k", 19),
        ("nested:4k+2m", 19),
        ("nested:2m", 15),
        ("nested --guest-paging 5-level --host-paging 5-level", 35),
        ("native --guest-paging sv39", 3),
        ("shadow --guest-paging sv39 --host-paging sv39x4", 3),
        ("nested --guest-paging sv39 --host-paging sv39x4", 15),
        ("nested --guest-paging sv48 --host-paging sv48x4", 24),
        ("nested --guest-paging sv57 --host-paging sv57x4", 35),
        ("nested:512g+4k --guest-paging sv48 --host-paging sv48x4", 9),
        ("nested --guest-paging arm-4k --host-paging arm-4k-ipa40", 19),
        ("native --guest-paging arm-16k", 4),
        ("nested --guest-paging arm-16k --host-paging arm-16k-ipa48", 19),
        ("nested:16k+32m --guest-paging arm-16k --host-paging arm-16k-ipa40", 9),
        ("nested --guest-paging arm-64k --host-paging arm-64k-ipa40", 11),
        ("nested:512m --guest-paging arm-64k --host-paging arm-64k-ipa48", 8),
    ];
    for (line, references) in expected {
        let walk = parse(&lab.ok(&format!("walk {line} --format json")));
        assert_eq!(walk["steps"].as_array().unwrap().len(), references, "{line}");
        let text = lab.ok(&format!("walk {line}"));
        assert!(text.contains(&format!(" in {references} references:")), "{text}");
        let csv = lab.ok(&format!("walk {line} --format csv"));
        assert_eq!(csv.lines().count(), references + 1);
    }
    // Nothing is cached before the first walk, but it goes through the nested tables five times.
    let cached = parse(&lab.ok("walk nested --caches --format json"));
    assert!(cached["steps"].as_array().unwrap().len() < 24);
}
