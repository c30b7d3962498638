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
        ("--vm a=uniform;balloon=on", "give it --host-memory"),
        ("--vm a=words;balloon=on --host-memory 1GiB", "cannot be asked for pages"),
        ("--vm a=uniform;guest-swap=lru", "no kernel hears of every use"),
        ("--vm a=uniform;guest-swap=best", "there are lru, fifo"),
        (
            "--vm a=uniform --replacement best",
            "there are lru, fifo, clock, two-lists, mglru, working-set",
        ),
        ("--vm a=uniform --swap tape", "there are ssd, disk, zswap"),
        ("--vm a=uniform --migrate b", "there is no such VM; there are a"),
        ("--vm a=uniform --migrate a;link=0Gbit/s", "a link of no bandwidth"),
        ("--vm a=uniform --migrate a;tracking=best", "there are write-protect"),
        ("--vm a=uniform;machine=shadow --migrate a;tracking=pml", "tracking=write-protect"),
        ("--vm a=uniform;zero=10", "from 0% to 100%"),
        ("--vm a=uniform;zero=60%;common=60% --merge ksm", "100 % together"),
        ("--vm a=uniform --merge uksm", "write ksm"),
        ("--vm a=uniform;machine=colt --merge ksm", "take another machine"),
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

/// VMs with governors of different policies run beside a shadow and a nested one, and each is governed
/// as it is alone on a machine whose host never interferes: by its own samples.
#[test]
fn governors_of_different_policies_run_side_by_side() {
    let lab = Lab::new();
    let machines = [
        ("a", "switching/dynamic-thresholds"),
        ("b", "switching/dsp"),
        ("c", "switching/static-thresholds"),
        ("d", "shadow"),
        ("e", "nested"),
    ];
    let vms: Vec<String> = machines
        .iter()
        .map(|(name, machine)| format!("--vm {name}=storm;machine={machine}"))
        .collect();
    let line = format!("compare {} --not-apart --verify", vms.join(" "));
    let table = lab.ok(&line);
    for word in ["paging mode", "dsp", "static-thresholds", "dynamic-thresholds", "shadow, %"] {
        assert!(table.contains(word), "{word}: {table}");
    }
    let results = lab.json(&line);
    let governed = |name: &str| &vm(&results, name)["together"]["switching"];
    let mut lives = std::collections::BTreeSet::new();
    for name in ["a", "b", "c"] {
        let modes = governed(name);
        assert!(count(modes, "samples") > 5, "{name}: {modes}");
        let time = number(modes, "shadow_percent") + number(modes, "nested_percent");
        assert!((time - 100.0).abs() < 1e-6, "{name}: {modes}");
        lives.insert(modes["switches"].to_string());
    }
    assert!(lives.len() > 1, "the policies differ: {lives:?}");
    assert!(["d", "e"].iter().all(|name| governed(name).is_null()));
    for (name, _) in machines {
        assert_eq!(count(&vm(&results, name)["together"]["referee"], "violations"), 0);
    }
}

/// A guest that swaps, asked by its host for pages or not, is told, and repeats.
#[test]
fn guests_that_swap_are_told_and_repeat() {
    let lab = Lab::new();
    let vms = |balloon| {
        format!(
            "compare --vm a=zipf;memory=64MiB;footprint=24MiB;accesses=100k;guest-swap=clock;balloon={balloon} \
             --vm b=zipf;memory=64MiB;footprint=24MiB;accesses=100k;guest-swap=mglru;balloon={balloon} \
             --host-memory 60MiB --replacement clock --turn 50k --not-apart --verify"
        )
    };
    let table = lab.ok(&vms("on"));
    for word in
        ["guest swaps", "mglru", "given by", "a guest that swaps is the same in all columns"]
    {
        assert!(table.contains(word), "{word}: {table}");
    }
    let first = lab.ok(&format!("{} --output out --format json", vms("on")));
    assert_eq!(lab.ok("run out/config.toml --format json --threads 3"), first);
    let (on, off) = (parse(&first), lab.json(&vms("off")));
    let taken = |results: &Value| count(&vm(results, "a")["guest_swap"], "taken_back");
    assert!(taken(&on) > 100 && taken(&off) == 0, "{} {}", taken(&on), taken(&off));
    assert!(count(&vm(&on, "a")["guest_swap"], "ballooned") > 100);
    let native = lab.json(
        "compare zipf --footprint 48MiB --accesses 100k --guest-memory 64MiB --guest-swap clock --machines native,nested",
    );
    let guests = native["guests"].to_string();
    assert!(guests.contains("swapped_in"), "{guests}");
}

/// A VM that moves is told in table and results, and the saved configuration repeats it.
#[test]
fn a_move_is_told_and_repeats() {
    let lab = Lab::new();
    let line = format!(
        "compare {TWO} --not-apart --verify --migrate a;at=40k;link=2Tbit/s;latency=1us;max-downtime=20us;tracking=pml \
         --migrate b;at=40k;link=2Tbit/s;mode=post-copy;latency=1us"
    );
    let table = lab.ok(&line);
    for word in ["migration", "pre-copy", "post-copy", "pml", "completed", "down, ms"] {
        assert!(table.contains(word), "{word}: {table}");
    }
    let first = lab.ok(&format!("{line} --output out --format json"));
    let results = parse(&first);
    for name in ["a", "b"] {
        let vm = vm(&results, name);
        assert_eq!(vm["migration"]["progress"], "completed");
        assert_eq!(count(&vm["migration"], "lost_pages"), 0);
        let part = |key| number(&vm["interference"], key);
        let sum = ["own", "tlbs", "caches", "memory", "migration"].map(part).iter().sum::<f64>();
        assert!((sum - part("total")).abs() < 1e-6 && part("migration") > 0.0);
    }
    let rounds = vm(&results, "a")["migration"]["rounds"].as_array().unwrap().len();
    assert!(rounds >= 2, "{rounds}");
    assert_eq!(lab.ok("run out/config.toml --format json --threads 3"), first);
    // Without a move all else is as it is.
    let without = lab.json(&format!("compare {TWO} --not-apart --verify"));
    assert_eq!(vm(&without, "a")["alone"], vm(&results, "a")["alone"]);
    assert!(vm(&without, "a").get("migration").is_none());
}

/// What merging saves is told in table and results, and the saved configuration repeats it.
#[test]
fn merging_is_told_and_repeats() {
    let lab = Lab::new();
    let vm_of = |name: &str, machine: &str| {
        format!(
            "--vm {name}=uniform:reads=0.99;machine={machine};footprint=8MiB;accesses=100k;zero=10%;common=50%"
        )
    };
    let line = format!(
        "compare {} {} --turn 50k --not-apart --verify --merge ksm;pages=200;sleep=1us",
        vm_of("a", "nested"),
        vm_of("b", "shadow")
    );
    let table = lab.ok(&line);
    for word in ["merging  ", "frames are shared, which saves", "of these"] {
        assert!(table.contains(word), "{word}: {table}");
    }
    let first = lab.ok(&format!("{line} --output out --format json"));
    let results = parse(&first);
    let host = &results["host"];
    assert!(count(&host["merging"], "saved_bytes") > 1 << 20, "{host}");
    assert_eq!(count(host, "frames_given_twice"), 0);
    for name in ["a", "b"] {
        let vm = vm(&results, name);
        assert!(
            count(&vm["merging"], "broken") > 10 && number(&vm["interference"], "merging") > 0.0
        );
    }
    assert_eq!(lab.ok("run out/config.toml --format json --threads 2"), first);
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

/// What a recorded kernel did is done.
#[test]
fn recorded_guests_are_asked_for_no_swapping() {
    let lab = Lab::new();
    for line in
        ["compare storm --guest-swap clock", "compare --vm a=storm;guest-swap=clock --vm b=gups"]
    {
        let error = lab.refused(line);
        assert!(error.contains("recorded kernel") && error.contains("name 4k"), "{error}");
    }
}
