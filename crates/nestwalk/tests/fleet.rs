//! `compare --vm`: several VMs on one host, from the command line.

mod common;

use common::{Lab, count, number, parse};
use serde_json::Value;

const TWO: &str = "--vm a=uniform;footprint=24MiB;accesses=100k --vm \
                   b=zipf;machine=shadow;footprint=16MiB;accesses=100k --turn 50k";

fn vm<'a>(results: &'a Value, name: &str) -> &'a Value {
    let vms = results["vms"].as_array().unwrap();
    vms.iter().find(|v| v["name"] == name).unwrap()
}

/// What a VM costs alone is what `compare` says of it, and the parts of its overhead add up.
#[test]
fn parts_add_up_and_alone_is_what_compare_says() {
    let lab = Lab::new();
    let together = lab.json(&format!("compare {TWO} --verify"));
    for (name, line) in [
        ("a", "compare uniform --footprint 24MiB --accesses 100k --machines nested --verify"),
        ("b", "compare zipf --footprint 16MiB --accesses 100k --machines shadow --verify"),
    ] {
        let (vm, single) = (vm(&together, name), lab.json(line));
        let single = single["machines"].as_array().unwrap().last().unwrap();
        assert_eq!(&vm["alone"], single, "{name}");
        let part = |key| number(&vm["interference"], key);
        let sum = part("own") + part("tlbs") + part("caches") + part("memory");
        assert!((sum - part("total")).abs() < 1e-6);
        assert!(part("total") > part("own"));
    }
    assert_eq!(count(&together["host"], "frames_given_twice"), 0);
}

/// With less memory than they touch, which the first run tells, pages go and come back; the saved
/// configuration gives the same bytes, whatever the number of threads.
#[test]
fn scarce_memory_shows_and_repeats() {
    let lab = Lab::new();
    let plenty = lab.json(&format!("compare {TWO}"));
    // The host's kernel, and what the VMs touch.
    let most = ((33 << 20) + count(&plenty["host"], "touched_bytes") * 6 / 10) & !4095;
    for policy in ["lru", "two-lists", "mglru", "working-set"] {
        let line = format!(
            "compare {TWO} --host-memory {most} --replacement {policy} --swap zswap --output out \
             --format json"
        );
        let first = lab.ok(&line);
        let results = parse(&first);
        let sum = |key| -> u64 {
            ["a", "b"].iter().map(|name| count(&vm(&results, name)["swap"], key)).sum()
        };
        assert!(sum("taken_back") > 100 && sum("swapped_in") > 100, "{policy}");
        assert_eq!(lab.ok("run out/config.toml --format json --threads 1"), first);
        assert_eq!(lab.read("out/results.json"), first);
        assert_eq!(lab.read("out/results.csv").lines().count(), 3);
    }
}

#[test]
fn what_cannot_be_is_refused() {
    let lab = Lab::new();
    for (arguments, says) in [
        ("--vm a", "write NAME=SOURCE"),
        ("--vm a=nosuch", "no source `nosuch`"),
        ("--vm a=uniform;machine=nestde", "`nestde`"),
        ("--vm a=uniform;colour=red", "no key `colour`"),
        ("--vm a=uniform --vm a=zipf", "two VMs have this name"),
        ("--vm a=uniform;vcpus=2 --cores 1", "the host has 1"),
        ("--vm a=uniform;reporting=on", "give it --host-memory"),
        ("--vm a=words;reporting=on --host-memory 1GiB", "name pages of a modelled guest"),
        ("--vm a=uniform;async-faults=1", "neither on nor off"),
        (
            "--vm a=uniform --replacement best",
            "there are lru, fifo, clock, two-lists, mglru, working-set",
        ),
        ("--vm a=uniform --swap tape", "there are ssd, disk, zswap"),
        ("--vm a=uniform --turn 0", "a turn has 1 instruction at least"),
        ("--vm a=uniform --host-memory 0", "a host has memory"),
        ("uniform --vm a=zipf", "each source stands in its VM"),
        ("--vm a=uniform --energy", "is for one VM"),
        ("--vm a=uniform;machine=ideal", "none of a virtual machine"),
    ] {
        let message = lab.refused(&format!("compare {arguments}"));
        assert!(message.contains(says), "{arguments}: {message}");
    }
    lab.write("fleet.toml", "version = \"0.0.1\"\nvm = []\n");
    assert!(lab.refused("run fleet.toml").contains("written by nestwalk 0.0.1"));
    // What was computed before is printed.
    let ran = lab.run(
        "compare --vm a=uniform;footprint=24MiB;accesses=100k --host-memory 4MiB --format json",
    );
    assert_eq!(ran.code, 2, "{}", ran.err);
    assert!(ran.err.contains("smaller than what cannot be taken back"), "{}", ran.err);
    assert_eq!(parse(&ran.out)["complete"], false);
}

/// The lectures' questions have the answers that closed forms give, where there are any.
#[test]
fn lectures_are_answered() {
    let lab = Lab::new();
    let found = lab.json("reproduce lectures --accesses 60k --quiet");
    let answers = found["answers"].as_array().unwrap();
    assert_eq!(answers.len(), 7);
    let value = |of: &str, what: &str| {
        let mut facts = answers.iter().flat_map(|a| a["facts"].as_array().unwrap());
        let fact = facts.find(|f| f["of"] == of && f["what"] == what);
        number(fact.unwrap_or_else(|| panic!("{of}, {what}")), "value") as i64
    };
    // (g + 1)(h + 1) - 1 references.
    assert_eq!([value("2-level", "native"), value("2-level", "nested")], [2, 14]);
    assert_eq!([value("4-level", "native"), value("4-level", "nested")], [4, 24]);
    // 16 MiB are 8 leaf tables of a process, and 3 above them; N times M of these.
    for (n, m) in [(1, 1), (2, 4), (4, 4)] {
        assert_eq!(value(&format!("N = {n}"), &format!("M = {m}")), 11 * n * m);
    }
    assert_eq!([value("native:2m", "walks"), value("nested:2m+4k", "walks")], [1, 512]);
    assert!(value("without", "L2 TLB misses") > value("with VPIDs", "L2 TLB misses"));
    assert!(
        value("write-back", "writes to the device")
            < value("write-through", "writes to the device")
    );
    let refused = lab.refused("reproduce lectures --programs nosuch");
    assert!(refused.contains("the questions are shadow-tables, churn"), "{refused}");
}
