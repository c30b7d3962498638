//! `measure` on whatever machine the tests run on: its figures cannot be known here, but what is written
//! must be used, what is unknown must say why, and derived numbers must follow from those beside them.

mod common;

use common::Lab;
use serde_json::Value;

/// A figure is known from something, or unknown for a reason.
fn said(figure: &Value) {
    let known =
        !figure["value"].is_null() && figure["source"].as_str().is_some_and(|s| !s.is_empty());
    let unknown = figure["unknown"].as_str().is_some_and(|s| !s.is_empty());
    assert!(known != unknown, "{figure}");
}

#[test]
fn examples_of_the_help_run_and_their_files_are_used() {
    let lab = Lab::new();
    let help = lab.ok("measure --help");
    let examples = help.split("Examples:\n").nth(1).unwrap();
    let examples = examples.lines().map_while(|line| line.trim().strip_prefix("nestwalk "));
    let examples: Vec<&str> = examples.collect();
    assert!(examples.len() >= 4, "{help}");
    for line in examples {
        lab.ok(line);
    }
    let text = std::fs::read_to_string(lab.path("here.toml")).unwrap();
    assert!(text.contains("source = \"measured: nestwalk measure"), "{text}");
    let told = lab.ok("explain here.toml");
    assert!(told.contains("measured: nestwalk measure: a chain of multiplications"), "{told}");
    assert!(std::fs::read_to_string(lab.path("here.svg")).unwrap().starts_with("<svg"));
}

#[test]
fn what_is_unknown_says_why() {
    let lab = Lab::new();
    let found = lab.json("measure --quick --quiet");
    let mhz = found["mhz"].as_f64().unwrap();
    assert!((300.0..9000.0).contains(&mhz), "{mhz}");
    let small = &found["small"];
    for key in ["l1", "l2", "l2_hit_cycles", "walk_cycles"] {
        said(&small[key]);
    }
    for key in ["tables_cached", "directories_cached", "walkers", "exposed"] {
        said(&found["walks"][key]);
    }
    for key in ["store_fault_ns", "load_fault_ns", "shootdown_ns", "process_switch_ns"] {
        said(&found["kernel"][key]);
    }
    said(&found["large"]);
    let pages: Vec<u64> =
        small["curve"].as_array().unwrap().iter().map(|p| p["pages"].as_u64().unwrap()).collect();
    assert!(pages.len() > 50 && pages.is_sorted());
}

#[test]
fn a_check_shows_both_and_how_far_they_are_apart() {
    let lab = Lab::new();
    let found = lab.json("measure --check golden-cove --quick --quiet");
    let rows = found["programs"].as_array().unwrap();
    let names: Vec<&str> = rows.iter().map(|row| row["program"].as_str().unwrap()).collect();
    assert_eq!(names, ["chase", "chase", "gups", "gups", "stream", "stream", "btree", "btree"]);
    for pair in rows.as_chunks::<2>().0 {
        let number = |row: &Value, key: &str| row[key].as_f64().unwrap();
        for row in pair {
            let (real, simulated) = (number(row, "real_ns"), number(row, "simulated_ns"));
            assert!(real > 0.05 && simulated > 0.05, "{row}");
            let off = 100.0 * (simulated / real - 1.0);
            assert!((off - number(row, "deviation_percent")).abs() < 1e-6, "{row}");
        }
        let ratio = number(&pair[0], "real_ns") / number(&pair[1], "real_ns");
        assert!((ratio - number(&pair[0], "real_of_large")).abs() < 1e-6);
        // Small pages never take fewer walks than large ones.
        let walks = |row| number(row, "walks_per_1000_accesses");
        assert!(walks(&pair[0]) >= walks(&pair[1]), "{pair:?}");
    }
    assert!(lab.refused("measure --check nosuch").contains("--check"));
    assert!(lab.refused("measure --check zen4 --write x.toml").contains("--write"));
}

#[test]
fn folders_that_are_not_there_are_told_before_anything_is_measured() {
    let lab = Lab::new();
    for option in ["--write", "--svg"] {
        let error = lab.refused(&format!("measure {option} none/here"));
        assert!(error.contains("no folder none"), "{error}");
        assert!(!error.contains("walks"), "{error}");
    }
}
