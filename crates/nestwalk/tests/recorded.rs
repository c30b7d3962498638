//! Recorded guests as sources of `compare`: observed, re-mapped, and refused where they must be.

mod common;

use common::recording::{WORKLOAD, write};
use common::{Lab, machine};
use nestwalk_types::{Filter, FilterArray};
use serde_json::Value;

fn lab() -> Lab {
    let lab = Lab::new();
    write(&lab, "guest.nwt", Filter::RUNS);
    lab
}

/// A machine's results without what names it.
fn nameless(results: &Value, name: &str) -> Value {
    let mut machine = machine(results, name).clone();
    machine.as_object_mut().unwrap().remove("name").unwrap();
    machine
}

/// The observed guest has the tables of the guest that was recorded, so every machine finds the same.
#[test]
fn machines_find_the_same_on_a_guest_and_on_its_recording() {
    let lab = lab();
    let machines = "native,shadow,nested,shadow:4k+2m,nested:4k+1g";
    let direct = lab.json(&format!("compare {WORKLOAD} --machines {machines} --verify --quiet"));
    let machines = machines.replace(":4k+", ":observed+");
    let observed = lab.json(&format!("compare guest.nwt --machines {machines} --verify --quiet"));
    for name in ["ideal:4k", "native:4k", "shadow:4k+4k", "nested:4k+4k", "shadow:4k+2m"] {
        let other = name.replace(":4k", ":observed");
        assert_eq!(nameless(&direct, name), nameless(&observed, &other), "{name}");
    }
    let (of_direct, of_observed) = (&direct["guests"]["4k"], &observed["guests"]["observed"]);
    assert!(of_direct["faults"].as_u64().unwrap() > 100);
    assert_eq!(of_direct["faults"], of_observed["faults"]);
    assert_eq!(of_observed["dropped"]["not_mapped"]["runs"], 0);
    let writes = machine(&observed, "native:observed")["table_writes"].as_u64().unwrap();
    let by_level = of_observed["table_writes"].as_object().unwrap();
    let sum: u64 = by_level
        .values()
        .flat_map(|level| ["set", "cleared", "changed"].map(|k| level[k].as_u64().unwrap()))
        .sum();
    assert!(writes > 1000 && sum >= writes, "set-up is not counted by the machine: {sum} {writes}");
}

#[test]
fn the_observed_guest_is_the_default_and_has_a_line() {
    let lab = lab();
    let table = lab.ok("compare guest.nwt --quiet");
    for row in ["ideal:observed ", "native:observed ", "shadow:observed+4k ", "nested:observed+4k "]
    {
        assert!(table.lines().any(|l| l.starts_with(row)), "{row}\n{table}");
    }
    let line = table.lines().find(|l| l.starts_with("guest    observed: ")).unwrap();
    assert!(line.contains(" faults, ") && line.contains(" L1, "), "{line}");
    assert!(!table.contains("dropped") && !table.contains("note     the recorded"), "{table}");
    // A run repeats it from its configuration, byte for byte.
    let first = lab.ok("compare guest.nwt --quiet --output here --accesses 5k --warmup 2k");
    assert!(first.contains("counted  5,000 accesses"), "{first}");
    assert_eq!(lab.ok("run here/config.toml --quiet"), first);
}

#[test]
fn a_re_mapped_guest_has_the_processes_of_the_recording() {
    let lab = lab();
    let results =
        lab.json("compare guest.nwt --machines nested,nested:4k,shadow:thp+2m --verify --quiet");
    let guests = &results["guests"];
    let (observed, remapped) = (&guests["observed"], &guests["4k"]);
    assert_eq!(remapped["recorded_accesses"], observed["accesses"]);
    // The recording has no kernel in it, and nothing outside of its mappings.
    assert_eq!(remapped["left_out_accesses"], 0);
    assert_eq!(remapped["unmapped_accesses"], 0);
    assert_eq!(remapped["implicit_mappings"], 0);
    assert!(remapped["recorded_forks"].as_u64().unwrap() > 3, "{remapped}");
    // The same policy as the recorded kernel's takes the same pages, but for what parents wrote
    // between a fork and their child's first turn.
    let of = |guest: &Value, key: &str| guest[key].as_f64().unwrap();
    let ratio = of(remapped, "faults") / of(observed, "faults");
    assert!((0.9..1.1).contains(&ratio), "{ratio}");
    assert!(guests["thp"]["pages_2m"].as_u64().unwrap() > 0, "{}", guests["thp"]);
    let (a, b) = (machine(&results, "nested:observed+4k"), machine(&results, "nested:4k+4k"));
    assert_eq!(a["accesses"], b["accesses"]);
    let named = results["approximations"].as_array().unwrap();
    assert!(named.iter().any(|a| a.as_str().unwrap().contains("re-mapped")), "{named:?}");
}

#[test]
fn what_would_make_another_guest_of_it_is_refused() {
    let lab = lab();
    for (line, parts) in [
        ("compare guest.nwt --vcpus 2", &["--vcpus 2", "the recorded guest has 1"] as &[&str]),
        ("compare guest.nwt --guest-memory 2GiB", &["--guest-memory 2 GiB", "1 GiB"]),
        ("compare guest.nwt --guest-paging 5-level", &["--guest-paging 5-level", "4-level"]),
        ("compare guest.nwt --quantum 10k", &["--quantum", "recorded guest"]),
        ("compare guest.nwt --footprint 1GiB", &["--footprint", "recorded guest"]),
        ("compare guest.nwt --populate no", &["--populate", "recorded guest"]),
        ("compare guest.nwt gups", &["guest.nwt is a recorded guest", "alone"]),
        ("compare guest.nwt --no-pcids", &["--no-pcids", "nested:thp"]),
        ("compare guest.nwt --guest-fragmentation 0.5", &["--guest-fragmentation", "modelled"]),
        ("compare gups --machines nested:observed", &["`nested:observed+4k`", "no recorded guest"]),
        ("compare guest.nwt --machines nested:8k", &["no page sizes `8k`"]),
        ("compare guest.nwt --machines nested@default+default", &["the host's"]),
        ("walk nested:observed", &["no recorded guest"]),
    ] {
        let said = lab.refused(line);
        for part in parts {
            assert!(said.contains(part), "{line}: lacks `{part}`: {said}");
        }
    }
    // What says the same again is no conflict.
    lab.ok("compare guest.nwt --vcpus 1 --guest-memory 1GiB --guest-paging 4-level --quiet");
    lab.ok("compare guest.nwt --machines nested:thp --guest-fragmentation 0.5 --no-pcids --quiet");
}

#[test]
fn machines_that_need_more_than_a_filter_shows_are_refused_or_named() {
    let lab = Lab::new();
    let four = FilterArray { sets: 16, ways: 4 };
    let one = |sets| FilterArray { sets, ways: 1 };
    let filter = Filter { data: four, data_large: one(8), fetch: four, fetch_large: one(1) };
    write(&lab, "filtered.nwt", filter);
    write(&lab, "whole.nwt", Filter::RUNS);
    lab.ok("compare filtered.nwt --quiet");
    lab.ok("compare whole.nwt --profile zen2 --quiet");
    let said = lab.refused("compare filtered.nwt --profile zen2");
    for part in ["zen2", "1 set of 64 ways", "multiple of 16 sets", "--no-filter", "--approximate"]
    {
        assert!(said.contains(part), "lacks `{part}`: {said}");
    }
    let table = lab.ok("compare filtered.nwt --profile zen2 --approximate --quiet --output here");
    let notes = table.lines().filter(|l| l.starts_with("note     misses are approximate: "));
    assert_eq!(notes.count(), 2, "{table}");
    assert_eq!(lab.ok("run here/config.toml --quiet"), table);
}
