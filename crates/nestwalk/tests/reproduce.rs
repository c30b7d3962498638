//! Evaluations of publications, small.

mod common;

use common::{Lab, count, number, workspace};
use serde_json::Value;

fn bar<'a>(program: &'a Value, name: &str) -> &'a Value {
    let bars = program["bars"].as_array().unwrap();
    bars.iter().find(|b| b["bar"] == name).unwrap_or_else(|| panic!("no bar {name}"))
}

/// Every bar of the thesis's figures is there, overheads have their parts, and what hindsight did was
/// run, so that it is no worse than a static mode.
#[test]
fn the_thesis_has_its_figures() {
    let lab = Lab::new();
    let line = "reproduce thesis --programs forkstorm --accesses 100k --interval 0.02 --verify --quiet \
                --output out";
    let results = lab.json(line);
    let program = &results["programs"][0];
    assert_eq!(program["program"], "forkstorm");
    assert_eq!((&program["start"], &program["best_static"]), (&"shadow".into(), &"nested".into()));
    for b in program["bars"].as_array().unwrap() {
        let parts = number(b, "walk_percent") + number(b, "vmm_percent");
        assert!((parts - number(b, "total_percent")).abs() < 1e-6, "{b}");
    }
    let cycles = |name: &str| number(bar(program, name), "cycles");
    let (short, long) = (cycles("nested, short-lived VM"), cycles("nested, long-lived VM"));
    assert!(long < short && short < cycles("shadow"));
    assert!(cycles("hindsight") <= short.min(cycles("shadow")));
    assert!(number(program, "cheaper_mode_percent") > 0.0);
    // Where each policy lost adds up to what it lost.
    for against in program["against"].as_array().unwrap() {
        let why = &against["why"];
        let parts = ["in_shadow_percent", "in_nested_percent", "rebuilding_percent"];
        let sum: f64 = parts.iter().map(|part| number(why, part)).sum();
        assert!((sum - number(against, "hindsight_percent")).abs() < 1e-6, "{against}");
    }
    assert_eq!(program["static_thresholds"].as_array().unwrap().len(), 6);
    // A storm of forks drives every policy of the thesis out of shadow mode.
    assert!(count(bar(program, "dynamic-thresholds"), "switches") > 0);
    let series = program["series"].as_array().unwrap();
    let shadow = series[0]["points"].as_array().unwrap();
    assert!(shadow.len() > 10);
    let last = count(shadow.last().unwrap(), "instructions");
    assert_eq!(last, count(program, "instructions"));
    assert!(series[2]["switches"].as_array().unwrap().iter().all(|s| s["reason"] != ""));
    let table = lab.read("out/table.txt");
    for figure in ["4.1", "4.2", "4.3", "4.4", "4.6"] {
        assert!(table.contains(&format!("\n{figure}")), "{figure}: {table}");
    }
    assert!(lab.read("out/results.csv").lines().count() > 10);
}

#[test]
fn agile_paging_has_its_bars_beside_the_published_ones() {
    let lab = Lab::new();
    let results = lab.json("reproduce agile --programs gcc --quiet --figures f --as svg");
    let program = &results["programs"][0];
    let figure = lab.read("f/1-gcc.csv");
    // Two page sizes with four bars each, and those of the paper.
    assert_eq!(figure.lines().count(), 1 + 2 * 4 * 2, "{figure}");
    assert!(figure.contains("\n\"4k, S, published\",3.6,6.6\n"), "{figure}");
    let ours = &program["pages_4k"][2];
    let line = format!("\n\"4k, S\",{},{}\n", ours["walk_percent"], ours["vmm_percent"]);
    assert!(figure.contains(&line), "{line}{figure}");
    assert!(lab.read("f/1-gcc.svg").contains("4k, S, published"));
    for pages in ["pages_4k", "pages_2m"] {
        let letters: Vec<&str> =
            program[pages].as_array().unwrap().iter().map(|b| b["bar"].as_str().unwrap()).collect();
        assert_eq!(letters, ["B", "N", "S", "A"]);
    }
    assert_eq!(program["published"]["pages_4k"][2], serde_json::json!([3.6, 6.6]));
    assert_eq!(results["published"].as_array().unwrap().len(), 8);
    let average = number(program, "average_references");
    assert!((4.0..=24.0).contains(&average), "{average}");
    // The paper's interval does not end in this program: nothing goes back. Where walks are writes, less
    // goes back than where they are reads.
    let variants = program["variants"].as_array().unwrap();
    let back: Vec<u64> = variants.iter().map(|v| count(v, "tables_shadowed")).collect();
    assert_eq!((variants[0]["bar"].as_str(), back[0]), (Some("interval of 1 s"), 0));
    assert!(back[1] > back[2], "{back:?}");
    assert_eq!(variants[1]["machine"], program["pages_4k"][3]["machine"]);
}

/// Configurations by the paper's names, claims with what was measured, the plot beside theory.
#[test]
fn direct_segments_for_virtual_machines_have_their_claims_checked() {
    let lab = Lab::new();
    let line = "reproduce micro14 --programs kvstore,stream --accesses 10k --footprint 16MiB --verify --quiet \
                --output out";
    let results = lab.json(line);
    let [kvstore, stream] = [0, 1].map(|i| &results["programs"][i]);
    assert_eq!((&kvstore["group"], &stream["group"]), (&"big-memory".into(), &"compute".into()));
    assert_eq!(kvstore["bars"].as_array().unwrap().len(), 15);
    let total = |name: &str| number(bar(kvstore, name), "total_percent");
    assert!(total("4K+4K") > total("4K") && total("4K") > total("2M"));
    // All arrays lie in one region, so nothing is walked but the stack.
    for name in ["DS", "DD"] {
        assert!(total(name).abs() < 0.5, "{name}: {}", total(name));
        assert!(number(bar(kvstore, name), "outside_percent") < 1.0);
    }
    // Bars of one guest, over the bare metal with that guest's pages.
    assert!(number(bar(kvstore, "THP+VD"), "over_native_percent").abs() < 5.0);
    assert!(number(bar(kvstore, "4K"), "over_native_percent").abs() < 1e-9);
    // What is in or out follows from what was measured, in both directions.
    let checks = results["checks"].as_array().unwrap();
    assert_eq!(checks.len(), 7);
    for check in checks {
        let measured = number(check, "measured_percent");
        let bounds = check["bounds_percent"].as_array().unwrap();
        let (low, high) = (bounds[0].as_f64().unwrap(), bounds[1].as_f64().unwrap());
        assert_eq!(check["within"], (low..=high).contains(&measured), "{check}");
        assert!(measured <= number(check, "highest_percent") + 1e-9, "{check}");
    }
    // Contiguous memory where there was none. Compaction takes longer than this test.
    let scenarios = results["scenarios"].as_array().unwrap();
    let bytes = |i: usize, which: &str| count(&scenarios[i], which);
    assert!(bytes(0, "guest_segment_bytes") < 64 << 20 && bytes(0, "longest_run_before") == 0);
    assert!(bytes(1, "guest_segment_bytes") >= 1 << 30);
    assert!(bytes(1, "longest_run_before") < 64 << 20 && bytes(1, "balloon_pages") > 0);
    assert!(number(&scenarios[2], "vmm_percent") < 90.0);
    assert!(number(&scenarios[3], "vmm_percent") >= 95.0);
    assert!(bytes(4, "vmm_segment_bytes") < 64 << 20);
    // Reported are the bad pages, and of all others a share as theory has it, which three filters vary
    // about.
    let plots = results["escape_filter"].as_array().unwrap();
    assert_eq!(plots.len(), 1);
    for line in plots[0]["lines"].as_array().unwrap() {
        let points = line["points"].as_array().unwrap();
        let bad: Vec<u64> = points.iter().map(|p| count(p, "bad_pages")).collect();
        assert_eq!(bad, [0, 1, 2, 4, 8, 16, 32, 64]);
        for point in &points[5..] {
            let theory = number(point, "false_positive_percent");
            let reported = number(point, "reported_percent");
            assert!((0.5 * theory..1.5 * theory).contains(&reported), "{point}");
        }
        assert!(number(&points[7], "escapes_percent") > 2.0);
        assert!(number(&points[7], "mean_percent") > number(&points[1], "mean_percent"));
    }
    // A hit that costs cycles costs them.
    let rows = results["details"]["rows"].as_array().unwrap();
    let direct: Vec<f64> = rows
        .iter()
        .filter(|r| r["parameter"] == "hit_cycles" && r["bar"] == "DD")
        .map(|r| number(r, "total_percent"))
        .collect();
    assert!(direct[0] < direct[1] && direct[1] < direct[2], "{direct:?}");
    let table = lab.read("out/table.txt");
    assert!(table.contains("The big-memory programs") && table.contains("as remembered"));
    assert_eq!(lab.read("out/results.csv").lines().count(), 31);
}

/// Every technique of contiguity with its counts, mappings by placement and set-up, what depends on
/// what.
#[test]
fn contiguity_has_its_mappings_and_its_hardware() {
    let lab = Lab::new();
    let line = "reproduce isca20 --programs hashjoin,bt --accesses 100k --footprint 64MiB --verify --quiet \
                --output out";
    let results = lab.json(line);
    for program in results["programs"].as_array().unwrap() {
        assert_eq!(program["bars"].as_array().unwrap().len(), 13);
        let walks = |name: &str| number(bar(program, name), "walks_percent");
        let misses = |name: &str| count(bar(program, name), "l2_tlb_misses");
        assert!(walks("4K+4K") > walks("4K") && walks("4K") > walks("THP"), "{program}");
        assert!(walks("RMM") < 0.1 * walks("4K") && misses("CoLT") < misses("4K"), "{program}");
        assert!(misses("vCoLT") < misses("4K+4K") && walks("DS") < 0.5, "{program}");
        let coalescing = &program["coalescing"];
        let misses = |which: &str| count(coalescing, which);
        assert!(misses("colt_l2_tlb_misses") <= misses("l2_tlb_misses"), "{coalescing}");
        // Linux's single pages have no runs that policies make, and so on.
        let lines = program["contiguity"].as_array().unwrap();
        for setup in ["alone", "pressure", "four"] {
            let of = |policy: &str| {
                let found = lines.iter().find(|l| l["setup"] == setup && l["policy"] == policy);
                found.unwrap_or_else(|| panic!("{setup} {policy}: {program}"))
            };
            let ranges = |policy: &str| count(&of(policy)["both"]["ranges"], "99");
            assert!(ranges("ca") < ranges("linux"), "{setup}: {program}");
            for policy in ["linux", "ca"] {
                assert_eq!(count(of(policy), "bloat_bytes"), 0, "{setup} {policy}");
                assert_eq!(count(of(policy), "migrated_pages"), 0, "{setup} {policy}");
                for of_technique in of(policy)["both"].as_object().unwrap().values() {
                    let shares = ["80", "90", "99", "100"].map(|s| count(of_technique, s));
                    assert!(shares.is_sorted() && shares[0] > 0, "{of_technique}");
                }
            }
            // Memory that a mapping got beforehand, in the host all of the guest's.
            assert!(count(of("eager"), "bloat_bytes") > 64 << 20);
            let four = if setup == "four" { 2 } else { 1 };
            let mapped = count(of("ca"), "mapped_bytes") >> 20;
            assert!((50 * four..=66 * four).contains(&mapped), "{setup}: {mapped} MiB");
        }
    }
    let details = results["details"].as_array().unwrap();
    assert_eq!(details.len(), 20);
    assert!(results["checks"].as_array().unwrap().len() >= 7);
    let table = lab.read("out/table.txt");
    assert!(table.contains("Mappings, four") && table.contains("16.5 %"));
    assert_eq!(lab.read("out/results.csv").lines().count(), 27);
}

/// A file that is no recording is found out before anything runs; one that is damaged further in ends
/// the work, and what was found before it is printed.
#[test]
fn what_was_found_before_an_error_is_printed() {
    let lab = Lab::new();
    let storm = workspace().join("samples/storm.nwt");
    let mut bytes = std::fs::read(storm).unwrap();
    std::fs::create_dir(lab.path("r")).unwrap();
    lab.write("r/whole.nwt", &bytes);
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    lab.write("r/damaged.nwt", &bytes);
    let ran =
        lab.run("reproduce agile --recordings r --programs whole,damaged --quiet --format json");
    assert_eq!(ran.code, 2, "{}", ran.err);
    assert!(ran.err.contains("ended early") && ran.err.contains("damaged"), "{}", ran.err);
    let results = common::parse(&ran.out);
    assert_eq!(results["complete"], false);
    assert_eq!(results["programs"].as_array().unwrap().len(), 1);
    assert_eq!(results["programs"][0]["program"], "whole");
    lab.write("r/none.nwt", "no recording");
    let message = lab.refused("reproduce agile --recordings r --programs whole,none --quiet");
    assert!(message.contains("program none"), "{message}");
}

/// Page tables on other nodes: with copies no walk leaves its node, and the worst place is remote and
/// busy.
#[test]
fn placements_over_nodes_have_the_published_times_beside_them() {
    let lab = Lab::new();
    let found = lab.json(
        "reproduce numa --programs gups,xsbench-wide --footprint 256MiB --accesses 50k --verify --quiet",
    );
    assert_eq!(found["complete"], true);
    let rows = found["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 3 + 10 + 4);
    let of = |program: &str, place: &str| {
        let row = rows.iter().find(|r| r["program"] == program && r["place"] == place).unwrap();
        let number = |key: &str| row[key].as_f64().unwrap();
        (number("simulated"), number("remote_walk_percent"), number("published"))
    };
    assert!((of("gups", "RRI").2 - 792.0 / 260.0).abs() < 1e-9);
    assert!((of("xsbench-wide", "FM").2 - 482.0 / 782.0).abs() < 1e-9);
    let times = ["LL", "LR", "RR", "RRI"].map(|place| of("gups", place).0);
    assert!((times[0] - 1.0).abs() < 1e-9 && times.is_sorted(), "{times:?}");
    assert!(of("gups", "LL").1 < 1e-9 && of("gups", "RR").1 > 0.0);
    for (place, local) in [("F", false), ("FM", true), ("I", false), ("IM", true)] {
        let remote = of("xsbench-wide", place).1;
        assert_eq!(remote < 1e-9, local, "{place}: {remote}");
    }
}

#[test]
fn what_cannot_be_reproduced_is_said() {
    let lab = Lab::new();
    for (line, says) in [
        ("reproduce thesis --programs mcf", "there is no `mcf`; there are: seasons, gups"),
        ("reproduce thesis --programs ,", "no program is named"),
        ("reproduce thesis --recordings none", "--recordings none"),
        ("reproduce thesis --recordings .", "no file *.nwt; samples/thesis/record makes them"),
        ("reproduce thesis --interval 0", "0.001 to 10000 milliseconds"),
        ("reproduce thesis --profile none", "none"),
        ("reproduce thesis --threads 0", "at least 1"),
        ("reproduce micro14 --programs memcached", "graph500, kvstore, pagerank, gups, bt"),
        ("reproduce micro14 --programs gups --footprint 1KiB", "program gups"),
        ("reproduce poem", "thesis"),
    ] {
        let message = lab.refused(line);
        assert!(message.contains(says), "{line}: {message}");
    }
}

/// The prices of software are those of the fit: one set meets what is published of shadow paging beside
/// EPT, row by row, and the rows leave no other set far from it.
#[test]
fn lmbench_takes_what_was_published() {
    let lab = Lab::new();
    let fits = cfg!(feature = "fit");
    let results = lab.json(if fits {
        "reproduce lmbench --fit --quiet --output out"
    } else {
        "reproduce lmbench --quiet --output out"
    });
    let rows = results["rows"].as_array().unwrap();
    let row = |name: &str| {
        rows.iter().find(|r| r["name"] == name).unwrap_or_else(|| panic!("no row {name}"))
    };
    for name in ["protection fault", "page fault", "fork", "exec", "sh"] {
        let error = number(row(name), "error_percent");
        assert!(error.abs() < 20.0, "{name}: {error} %");
    }
    // A system call is two loads of CR3 with page-table isolation, and a fault is one exit more.
    let exits = |name: &str, reason: &str| number(&row(name)["exits"], reason);
    for name in ["null system call", "null I/O", "100-descriptor select"] {
        assert_eq!(row(name)["exits"].as_object().unwrap().len(), 1, "{name}");
        assert!((exits(name, "cr3_load") - 2.0).abs() < 1e-9, "{name}");
    }
    assert!((exits("protection fault", "true_fault") - 1.0).abs() < 1e-9);
    // Sixteen pages are mapped around a fault, whose entries are filled in groups of eight.
    assert!((16.0 * exits("page fault", "true_fault") - 1.0).abs() < 0.1);
    assert!((8.0 * exits("page fault", "hidden_fault") - 1.0).abs() < 0.1);
    // Differences are the sum of what is paid and what is not the hypervisor's.
    let profile = nestwalk_hw::Profile::load("cascade-lake-6252").unwrap();
    let ns = |key: &str| {
        let key = format!("software.{key}");
        profile.numbers().iter().find(|(k, _)| *k == key).unwrap().1.value
    };
    for r in rows {
        let paid: f64 = r["work"]
            .as_object()
            .unwrap()
            .iter()
            .map(|(key, times)| times.as_f64().unwrap() * ns(key) / 1000.0)
            .sum();
        let difference = number(r, "difference_us");
        let sum = paid + number(r, "other_us");
        assert!((sum - difference).abs() < 1e-6 * difference, "{}", r["name"]);
    }
    assert!(lab.read("out/results.csv").lines().count() > rows.len());
    let error = lab.refused("reproduce lmbench --programs fork");
    assert!(error.contains("leave --programs"), "{error}");
    if !fits {
        let error = lab.refused("reproduce lmbench --fit");
        assert!(error.contains("--features fit"), "{error}");
        return;
    }
    let fit = &results["fit"];
    assert_eq!(fit["rank"], fit["free"], "the rows tell all free prices apart");
    assert!(number(fit, "worst") < 0.10, "{fit}");
    for price in fit["prices"].as_array().unwrap() {
        let wide: Vec<f64> =
            price["wide"].as_array().unwrap().iter().filter_map(Value::as_f64).collect();
        let used = ns(price["key"].as_str().unwrap());
        assert!(wide[0] - 0.5 <= used && used <= wide[1] + 0.5, "{used}: {price}");
    }
    let table = lab.read("out/table.txt");
    assert!(table.contains("rank 5 of 5 free prices"), "{table}");
}

/// The table of sensitivities has a row for each price that was paid, and what halving takes off is
/// half of what the price makes.
#[test]
fn sensitivity_shows_what_each_price_decides() {
    let lab = Lab::new();
    let line = "compare lmbench-fork --machines shadow,nested --quiet";
    let text = lab.ok(&format!("{line} --sensitivity"));
    assert!(text.contains("halving / doubling") && text.contains("\nshadow_fill_ns "), "{text}");
    let results = lab.json(line);
    let machines = results["machines"].as_array().unwrap();
    let shadow = machines.iter().find(|m| m["scheme"] == "shadow").unwrap();
    // The guest's kernel is the same on every machine, the ideal one included.
    assert!(count(shadow, "kernel_instructions") * 10 > count(shadow, "instructions") * 9);
    for m in machines {
        for key in ["kernel_instructions", "cr3_loads"] {
            assert_eq!(count(m, key), count(shadow, key), "{key}: {}", m["name"]);
        }
        assert!((number(m, "guest_os_cycles") - number(shadow, "guest_os_cycles")).abs() < 1e-6);
    }
    let profile = nestwalk_hw::Profile::load("cascade-lake-6252").unwrap();
    let fills = number(&shadow["vmm_work"], "shadow_fill_ns");
    let cycles = fills * profile.software.shadow_fill_ns.value * 2.1;
    let percent = 100.0 * cycles / number(shadow, "ideal_cycles");
    let wanted = format!("{:+.1} / {:+.1}", -percent / 2.0, percent);
    let row = text.lines().find(|l| l.starts_with("shadow_fill_ns")).unwrap();
    assert!(row.contains(&wanted), "{wanted}: {row}");
    assert!(!lab.ok(line).contains("halving"));
}

/// The thesis's processor has TLBs that no filter is exact for.
#[test]
fn recordings_on_other_processors_are_approximate_and_say_so() {
    let lab = Lab::new();
    std::fs::create_dir(lab.path("r")).unwrap();
    std::fs::copy(workspace().join("samples/storm.nwt"), lab.path("r/shell.nwt")).unwrap();
    let line = "reproduce thesis --recordings r --programs shell --interval 5 --quiet";
    assert!(lab.refused(line).contains("accept an approximation with --approximate"));
    let results = lab.json(&format!("{line} --approximate"));
    let description = results["programs"][0]["description"].as_str().unwrap();
    assert!(description.contains("misses are approximate"), "{description}");
}

/// Every structure on a program and a recording: what was published stands beside it, and what deviates
/// says why.
#[test]
fn other_tables_have_their_published_numbers_beside_them() {
    let lab = Lab::new();
    let line =
        "reproduce tables --programs gups,bfs --accesses 20k --footprint 16MiB --verify --quiet";
    let results = lab.json(line);
    let rows = results["rows"].as_array().unwrap();
    let machines: Vec<&str> = rows.iter().map(|r| r["machine"].as_str().unwrap()).collect();
    let all = [
        "nested",
        "hashed",
        "hashed/kind=vhpt",
        "hashed/kind=htab",
        "hashed-nested",
        "flat-nested",
        "inverted-shadow",
        "flattened",
        "ecpt",
        "pvdmt",
        "asap",
        "learned",
        "utopia",
        "pom-tlb",
        "victima",
    ];
    assert_eq!(machines, [all, all].concat());
    for row in rows {
        // The TLB in memory holds all of so small a program: nothing is walked.
        let unwalked = row["machine"] == "pom-tlb" && row["program"] == "gups";
        let refs = number(row, "refs_per_walk");
        assert!(if unwalked { refs < 1e-9 } else { refs >= 1.0 }, "{row}");
        assert!(number(row, "table_bytes") > 0.0, "{row}");
        let published = row["published_walk_speedup"].as_f64();
        let near = published.is_some_and(|p| (number(row, "walk_speedup") / p - 1.0).abs() <= 0.1);
        let silent = near || row["machine"] == "nested";
        assert_eq!(row["why"].as_str().unwrap().is_empty(), silent, "{row}");
    }
    assert_eq!(rows[7]["published_walk_speedup"], 1.281);
    assert!((number(&rows[0], "walk_speedup") - 1.0).abs() < 1e-9);
}
