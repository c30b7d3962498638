//! Evaluations of publications, small.

mod common;

use common::{Lab, count, number};
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
    let results = lab.json("reproduce agile --programs gcc --quiet");
    let program = &results["programs"][0];
    for pages in ["pages_4k", "pages_2m"] {
        let letters: Vec<&str> =
            program[pages].as_array().unwrap().iter().map(|b| b["bar"].as_str().unwrap()).collect();
        assert_eq!(letters, ["B", "N", "S", "A"]);
    }
    assert_eq!(program["published"]["pages_4k"][2], serde_json::json!([3.6, 6.6]));
    assert_eq!(results["published"].as_array().unwrap().len(), 8);
    let average = number(program, "average_references");
    assert!((4.0..=24.0).contains(&average), "{average}");
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
        ("reproduce poem", "thesis"),
    ] {
        let message = lab.refused(line);
        assert!(message.contains(says), "{line}: {message}");
    }
}
