//! `compare --sample`: estimates against the whole run.

mod common;

use common::{Lab, count, machine};
use serde_json::Value;

/// The same run whole and sampled.
fn both(lab: &Lab, line: &str, sample: &str) -> (Value, Value) {
    let run = |sample: &str| lab.json(&format!("compare {line} --quiet {sample}"));
    (run(""), run(sample))
}

fn number(machine: &Value, key: &str) -> f64 {
    machine[key].as_f64().unwrap_or_else(|| panic!("{key}: {machine}"))
}

/// Figures of a machine whose interval does not hold the whole run's number, and how many were looked
/// at.
fn outside(whole: &Value, sampled: &Value, keys: &[&str]) -> (Vec<String>, usize) {
    let (mut out, mut looked) = (Vec::new(), 0);
    for estimate in sampled["machines"].as_array().unwrap() {
        let name = estimate["name"].as_str().unwrap();
        let truth = machine(whole, name);
        let halves = &sampled["sampling"]["half_widths"][name];
        for key in keys {
            let Some(half) = halves[key].as_f64() else { continue };
            looked += 1;
            let (is, said) = (number(truth, key), number(estimate, key));
            if (is - said).abs() > half {
                out.push(format!("{name} {key}: {is} is not {said} +- {half}"));
            }
        }
    }
    (out, looked)
}

const FIGURES: [&str; 5] = [
    "overhead_percent",
    "translation_overhead_percent",
    "l2_tlb_mpki",
    "total_cycles",
    "walk_cycles",
];

#[test]
fn intervals_of_a_recording_hold_the_whole_runs_figures() {
    let lab = Lab::new();
    let (whole, sampled) = both(&lab, "storm", "--sample");
    let (out, looked) = outside(&whole, &sampled, &FIGURES);
    assert!(looked >= 15, "{looked} figures: {}", sampled["sampling"]);
    // Of 95 % intervals one in twenty may be wrong.
    assert!(out.len() * 10 <= looked, "{out:#?}");
    let of = &sampled["sampling"];
    assert!(count(of, "units") >= 40, "{of}");
    assert!(count(of, "measured_instructions") * 20 < count(of, "instructions"), "{of}");
    // What is known stays what it is.
    for estimate in sampled["machines"].as_array().unwrap() {
        let truth = machine(&whole, estimate["name"].as_str().unwrap());
        for key in ["accesses", "instructions", "fetches", "table_writes", "cr3_loads"] {
            assert_eq!(count(estimate, key), count(truth, key), "{key}");
        }
    }
    let table = lab.ok("compare storm --quiet --sample");
    assert!(table.contains("note     sampled: ") && table.contains("+- overhead"), "{table}");
}

/// Simulation points that are all there is, each with its share, are the whole run.
#[test]
fn points_that_cover_a_stream_are_the_whole_run() {
    let lab = Lab::new();
    lab.write("points", "1 0\n0 3\n3 1\n2 2\n");
    lab.write("weights", "0.25 0\n0.25 1\n0.25 2\n0.25 3\n");
    let sample = "--sample=unit=40k,warm=0 --simpoints points --weights weights";
    let line = "uniform --footprint 16MiB --accesses 40k";
    let (whole, sampled) = both(&lab, line, sample);
    assert_eq!(count(&sampled["sampling"], "measured_instructions"), 160_000);
    for estimate in sampled["machines"].as_array().unwrap() {
        let truth = machine(&whole, estimate["name"].as_str().unwrap());
        for (key, is) in truth.as_object().unwrap() {
            let (Some(is), Some(said)) = (is.as_f64(), estimate[key].as_f64()) else { continue };
            assert!((is - said).abs() <= 1e-9 * is.abs(), "{key}: {is}, {said}");
        }
    }
}

#[test]
fn estimates_do_not_depend_on_threads_and_their_configuration_repeats_them() {
    let lab = Lab::new();
    let line = "compare btree --footprint 64MiB --accesses 2M --machines nested --quiet --format json \
                --sample=every=500k,unit=10k,warm=10k";
    let one = lab.ok(&format!("{line} --threads 1 --output d"));
    assert_eq!(one, lab.ok(&format!("{line} --threads 3")));
    assert!(lab.read("d/config.toml").contains("sample = \"every=500000,unit=10000,warm=10000\""));
    assert_eq!(one, lab.ok("run d/config.toml --quiet --format json"));
    // Another seed lies elsewhere.
    assert_ne!(one, lab.ok(&format!("{line} --seed 2")));
}

#[test]
fn what_cannot_be_sampled_is_refused() {
    let lab = Lab::new();
    for (line, told) in [
        ("compare storm --machines switching --sample", "switching"),
        ("compare gups --machines nested:khugepaged --sample", "khugepaged"),
        ("compare storm --sample=every=10k", "10000"),
        ("compare storm --sample=each=1", "every, unit, warm"),
        ("compare storm --sample --samples d", "--samples"),
        ("compare storm --sample --simpoints none", "--weights"),
        ("compare storm --sample --simpoints none --weights none", "none: cannot be read"),
    ] {
        let error = lab.refused(line);
        assert!(error.contains(told), "{line}: {error}");
    }
}
