//! Samples of simulations: recorded, replayed, and refused with their reasons.

mod common;

use common::{Lab, parse};
use serde_json::Value;

const SEASONS: &str = "compare seasons:length=30000,storm_kib=256 --footprint 16MiB --accesses 120000 \
                       --populate no --format json";

/// What `govern --replay` prints.
fn events(out: &str) -> Vec<Value> {
    out.lines().map(parse).collect()
}

/// A recorded machine, replayed, switches where it switched, with the same reasons.
#[test]
fn a_recorded_machine_replays_as_it_ran() {
    let lab = Lab::new();
    let machines = "switching/dsp/interval=0.05,switching/single-metric/interval=0.05";
    let ran = lab.json(&format!(
        "{} --machines {machines} --samples rec --sample-every 0.05ms",
        SEASONS.trim_end_matches(" --format json")
    ));
    let mut replayed = 0;
    for machine in ran["machines"].as_array().unwrap() {
        let Some(switching) = machine.get("switching").filter(|s| s.is_object()) else { continue };
        let policy = machine["name"].as_str().unwrap().split('/').nth(1).unwrap();
        let file = format!("rec/switching-{policy}-interval=0.05-4k+4k.csv");
        assert!(lab.read(&file).starts_with("# samples of switching/"), "{file}");
        let all =
            events(&lab.ok(&format!("govern --replay {file} --policy {policy} --format json")));
        let decided: Vec<&Value> = all.iter().filter(|e| e["event"] == "decided").collect();
        assert_eq!(decided.len() as u64, switching["samples"].as_u64().unwrap());
        let asked: Vec<&Value> =
            decided.iter().copied().filter(|e| e["decision"]["action"] != "stay").collect();
        let made = switching["switches"].as_array().unwrap();
        assert!(!made.is_empty(), "{policy}");
        assert_eq!(asked.len(), made.len(), "{policy}");
        for (asked, made) in asked.iter().zip(made) {
            assert_eq!(asked["sample"], made["sample"], "{policy}");
        }
        assert_eq!(all.iter().filter(|e| e["event"] == "switched").count(), made.len());
        replayed += 1;
    }
    assert_eq!(replayed, 2);
}

/// Two static machines, cut by instructions, are what training takes; the labelled rows that it
/// writes train the same model.
#[test]
fn a_model_is_trained_from_simulations() {
    let lab = Lab::new();
    for (dir, seed) in [("a", 1), ("b", 2)] {
        let line = format!(
            "{SEASONS} --seed {seed} --machines shadow,nested,agile --samples {dir} \
             --sample-every 20k"
        );
        let ran = lab.run(&line);
        assert_eq!(ran.code, 0, "{}", ran.err);
        assert!(ran.err.contains("no samples of agile:4k+4k: it has no mode"), "{}", ran.err);
        assert!(ran.err.contains(&format!("samples of shadow:4k+4k in {dir}/")), "{}", ran.err);
    }
    let pair = |dir: &str| format!("{dir}/shadow-4k+4k.csv {dir}/nested-4k+4k.csv");
    lab.ok(&format!(
        "govern --train {} {} --save-model svm.model --save-rows rows.csv",
        pair("a"),
        pair("b")
    ));
    lab.ok("govern --train rows.csv --save-model again.model --save-rows again.csv");
    assert_eq!(lab.read("svm.model"), lab.read("again.model"));
    assert_eq!(lab.read("rows.csv"), lab.read("again.csv"));
    let error = lab.refused(&format!("govern --train {} rows.csv --save-model x", pair("a")));
    assert!(error.contains("two after two; there are 3"), "{error}");
    let line = "govern --train a/shadow-4k+4k.csv b/shadow-4k+4k.csv --save-model x";
    assert!(lab.refused(line).contains("in shadow mode and a run in nested mode are needed"));
}

#[test]
fn samples_that_cannot_be_are_refused_before_the_work() {
    let lab = Lab::new();
    lab.write("file", "");
    for (args, expected) in [
        (
            "--machines native,agile --samples d",
            "nested, shadow, ssp, switching, sie, colt, clustered, shadow-colt are",
        ),
        ("--samples d --sample-every 1s", "`1s` is no interval; simulated milliseconds"),
        ("--samples d --sample-every 0ms", "0.001ms to 10000ms"),
        ("--samples d --sample-every 0", "at least 1 instruction"),
        ("--samples file/d", "file/d: cannot be made"),
        ("--sample-every 1ms", "--samples"),
    ] {
        let error = lab.refused(&format!("compare gups {args}"));
        assert!(error.contains(expected), "{args}: {error}");
    }
    assert!(!lab.path("d").exists());
}
