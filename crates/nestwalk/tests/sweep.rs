//! `sweep`: which points there are, that each is run once whatever ends it, and that the table says what
//! `compare` says.

mod common;

use common::{Lab, parse, ran};
use serde_json::Value;
use std::collections::BTreeMap;
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Twelve small points.
const TWELVE: &str = "\
[compare]
source = 'gups'
accesses = '5k'
populate = 'no'
machines = '{scheme}:{pages}'
[axes]
footprint = ['1MiB', '2MiB']
scheme = ['nested', 'shadow', 'colt']
pages = ['4k', '2m']
";

fn lab(text: &str) -> Lab {
    let lab = Lab::new();
    lab.write("s.toml", text);
    lab
}

/// Files of results, and when each was written.
fn results(lab: &Lab, folder: &str) -> BTreeMap<String, std::time::SystemTime> {
    let Ok(entries) = std::fs::read_dir(lab.path(&format!("{folder}/points"))) else {
        return BTreeMap::new();
    };
    let files = entries.map(|entry| entry.unwrap());
    let name = |file: &std::fs::DirEntry| file.file_name().into_string().unwrap();
    let json = files.filter(|file| name(file).ends_with(".json"));
    json.map(|file| (name(&file), file.metadata().unwrap().modified().unwrap())).collect()
}

/// Rows of a CSV, by its titles.
fn rows(text: &str) -> Vec<BTreeMap<String, String>> {
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    reader.deserialize().map(|row| row.unwrap()).collect()
}

#[test]
fn the_table_says_of_each_point_what_compare_says() {
    let lab = lab(TWELVE);
    let out = lab.ok("sweep s.toml --output d --quiet");
    assert!(out.contains("12 of 12 points"), "{out}");
    // Machines differ from point to point: a line each, and one for bare metal.
    assert_eq!(out.lines().filter(|line| line.contains(" native:")).count(), 12, "{out}");
    assert_eq!(results(&lab, "d").len(), 12);
    let table = rows(&lab.read("d/results.csv"));
    let line =
        "compare gups --accesses 5k --populate no --machines colt:2m --footprint 2MiB --quiet";
    let alone = rows(&lab.ok(&format!("{line} --format csv --long")));
    let chosen = |row: &&BTreeMap<String, String>| {
        row["axis.footprint"] == "2MiB" && row["axis.scheme"] == "colt" && row["axis.pages"] == "2m"
    };
    let mut found: Vec<BTreeMap<String, String>> = table.iter().filter(chosen).cloned().collect();
    for row in &mut found {
        row.retain(|key, _| !key.starts_with("axis."));
    }
    assert!(alone.len() > 300, "{}", alone.len());
    assert_eq!(found, alone);
    // JSON has the results as they are in a folder of `compare`.
    lab.ok(&format!("{line} --output alone"));
    let json = parse(&lab.read("d/results.json"));
    let axes = |point: &&Value| {
        point["axes"]["footprint"] == "2MiB"
            && point["axes"]["scheme"] == "colt"
            && point["axes"]["pages"] == "2m"
    };
    let point = json["points"].as_array().unwrap().iter().find(axes).unwrap();
    assert_eq!(point["results"], parse(&lab.read("alone/results.json")));
    assert_eq!(json["axes"], serde_json::json!(["footprint", "scheme", "pages"]));
}

#[test]
fn no_point_is_run_twice() {
    let lab = lab(TWELVE);
    for (share, there) in [(1, 4), (2, 8)] {
        let said = lab.json(&format!("sweep s.toml -o d --quiet --shard {share}/3"));
        assert_eq!((&said["points"], &said["ran"]), (&4.into(), &4.into()));
        assert_eq!(results(&lab, "d").len(), there);
    }
    let before = results(&lab, "d");
    let listed = lab.json("sweep s.toml -o d --list");
    let done = listed["points"].as_array().unwrap().iter().filter(|p| p["done"] == true).count();
    assert_eq!(done, 8);
    // What is missing is an error, and the table has what is there.
    assert!(lab.refused("sweep s.toml -o d --collect").contains("4 of 12 points are missing"));
    assert_eq!(parse(&lab.read("d/results.json"))["missing"].as_array().unwrap().len(), 4);
    lab.ok("sweep s.toml -o d --quiet --jobs 3");
    let after = results(&lab, "d");
    assert_eq!(after.len(), 12);
    assert!(before.iter().all(|(name, written)| after[name] == *written), "written again");
    // One value more is so many points more, and nothing else.
    lab.write("s.toml", TWELVE.replace("'2MiB'", "'2MiB', '3MiB'"));
    lab.ok("sweep s.toml -o d --quiet");
    let more = results(&lab, "d");
    assert_eq!(more.len(), 18);
    assert!(after.iter().all(|(name, written)| more[name] == *written), "written again");
    // Nor does the order of the work change a byte.
    lab.ok("sweep s.toml -o other --quiet --threads 2");
    assert_eq!(lab.read("d/results.csv"), lab.read("other/results.csv"));
}

#[test]
fn what_was_done_survives_a_kill() {
    let lab = lab(&format!("{TWELVE}seed = {{ from = 1, to = 5 }}\n").replace("5k", "200k"));
    let start = || {
        let mut command = lab.command();
        command.args(["sweep", "s.toml", "-o", "d", "--quiet"]).stdout(Stdio::null());
        command.spawn().expect("the binary starts")
    };
    let mut before = BTreeMap::new();
    // Each attempt is killed when some points have come.
    for attempt in 1..=3 {
        let mut child = start();
        let begun = Instant::now();
        while results(&lab, "d").len() < 8 * attempt {
            assert!(
                begun.elapsed() < Duration::from_secs(120) && child.try_wait().unwrap().is_none()
            );
            sleep(Duration::from_millis(2));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let now = results(&lab, "d");
        assert!(before.iter().all(|(name, written)| now[name] == *written), "run twice");
        assert!(now.keys().all(|name| parse(&lab.read(&format!("d/points/{name}"))).is_object()));
        before = now;
    }
    assert!(before.len() < 60, "there was nothing left to do");
    lab.ok("sweep s.toml -o d --quiet --jobs 2");
    let all = results(&lab, "d");
    assert_eq!(all.len(), 60);
    assert!(before.iter().all(|(name, written)| all[name] == *written), "run twice");
    let left = std::fs::read_dir(lab.path("d/points")).unwrap();
    let left: Vec<_> = left.map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 60, "locks and unfinished files stay: {left:?}");
}

/// Two processes at the same share: each point is run by one of them.
#[test]
fn processes_do_not_run_what_another_is_at() {
    let lab = lab(&TWELVE.replace("5k", "300k"));
    let start = || {
        let mut command = lab.command();
        command.args(["sweep", "s.toml", "-o", "d", "--quiet", "--format", "json"]);
        command.args(["--shard", "1/1"]).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().expect("the binary starts")
    };
    let both = [start(), start()].map(|child| ran(child.wait_with_output().unwrap()));
    let ran: u64 = both.iter().map(|ran| parse(&ran.out)["ran"].as_u64().unwrap()).sum();
    assert_eq!(results(&lab, "d").len(), 12);
    assert_eq!(ran, 12, "run by both");
    lab.ok("sweep s.toml -o d --collect");
}

#[test]
fn keys_of_the_configuration_are_axes() {
    let text = "\
[compare]
source = 'gups'
footprint = '16MiB'
accesses = '20k'
machines = 'nested'
[axes]
profile.l2_tlb.entries = [192, 1536, 12288]
profile.core.base_cpi = [0.25, 1]
";
    let lab = lab(text);
    lab.ok("sweep s.toml -o d --quiet");
    let json = parse(&lab.read("d/results.json"));
    let points = json["points"].as_array().unwrap();
    let of = |point: &Value, key: &str| {
        let machines = point["results"]["machines"].as_array().unwrap();
        let nested = machines.iter().find(|m| m["scheme"] == "nested").unwrap();
        nested[key].as_f64().unwrap()
    };
    let (mut misses, mut cycles) = (BTreeMap::new(), BTreeMap::new());
    for point in points {
        let entries = point["axes"]["profile.l2_tlb.entries"].as_u64().unwrap();
        let cpi = point["axes"]["profile.core.base_cpi"].as_f64().unwrap();
        misses.insert(entries, of(point, "l2_tlb_mpki"));
        cycles.insert(
            (entries, cpi.to_bits()),
            of(point, "ideal_cycles") - of(point, "instructions") * cpi,
        );
    }
    // 16 MiB are 4,096 pages.
    assert!(misses[&192] > misses[&1536] && misses[&1536] > 4.0 * misses[&12288], "{misses:?}");
    // What is not the core's own pace does not depend on it.
    let [slow, fast] = [1.0_f64, 0.25].map(|cpi| cycles[&(192, cpi.to_bits())]);
    assert!((slow - fast).abs() < 1e-6 * slow.abs().max(1.0), "{slow} {fast}");
    // From a configuration that was written it is the same.
    lab.ok("compare gups --footprint 16MiB --accesses 20k --machines nested --quiet --output c");
    let axes = text.split_once("[axes]").unwrap().1;
    lab.write("s.toml", format!("config = 'c/config.toml'\n[axes]{axes}"));
    let written = results(&lab, "d");
    lab.ok("sweep s.toml -o d --quiet");
    assert_eq!(results(&lab, "d"), written, "the same points");
}

/// A trace that changes is another input; where it lies is part of the configuration.
#[test]
fn contents_of_traces_are_part_of_the_key() {
    let lab = lab("[compare]\nsource = 't.champsim'\nmachines = 'nested'\n[axes]\nseed = [1, 2]\n");
    lab.write("t.champsim", common::champsim_trace(500));
    lab.ok("sweep s.toml -o d --quiet");
    lab.write("t.champsim", common::champsim_trace(500));
    lab.ok("sweep s.toml -o d --quiet");
    assert_eq!(results(&lab, "d").len(), 2);
    lab.write("t.champsim", common::champsim_trace(501));
    lab.ok("sweep s.toml -o d --quiet");
    assert_eq!(results(&lab, "d").len(), 4);
    assert_eq!(parse(&lab.read("d/results.json"))["points"].as_array().unwrap().len(), 2);
}

#[test]
fn what_is_wrong_is_said_before_anything_runs() {
    let base = "[compare]\nsource = 'gups'\naccesses = '1k'\nfootprint = '1MiB'\n";
    for (text, words) in [
        ("[axes]\nfotprint = ['1MiB']\n", &["axis `fotprint`", "nearest: `footprint`"][..]),
        (
            "[axes]\nprofile.l2_tlb.entrys = [1]\n",
            &["axis `profile.l2_tlb.entrys`", "nearest: `profile.l2_tlb.entries`"],
        ),
        ("[axes]\nmachines = ['nested', 'nestd']\n", &["point 2 (machines=nestd)", "nestd"]),
        ("[axes]\nseed = ['one']\n", &["seed=one", "--seed"]),
        ("[axes]\nfootprint = []\n", &["footprint", "no values"]),
        ("[axes]\nseed = 3\n", &["seed", "list of values"]),
        ("[axes]\nprofile.l2_tlb.entries = [13]\n", &["point 1", "l2_tlb"]),
        ("[axis]\nseed = [1]\n", &["axis", "axes"]),
        ("[axes]\nseed = [1]\n\"seed,footprint\" = [[1, '1MiB']]\n", &["seed", "twice"]),
    ] {
        let lab = lab(&format!("{base}{text}"));
        let error = lab.refused("sweep s.toml -o d --quiet");
        assert!(error.contains("s.toml"), "{error}");
        for word in words {
            assert!(error.contains(word), "{text}: no {word}: {error}");
        }
        assert!(results(&lab, "d").is_empty());
    }
    let lab = lab(&format!("{base}[axes]\nmachines = ['nested', 'nestd']\n"));
    let ran = lab.run("sweep s.toml -o d --quiet --skip-invalid");
    assert!(ran.code == 0 && ran.err.contains("left out: machines=nestd"), "{}", ran.err);
    assert!(lab.refused("sweep none.toml -o d").contains("none.toml"));
    assert!(lab.refused("sweep s.toml -o d --shard 3/2").contains("1/8"));
}

/// A point that fails does not keep others from being run, nor is it taken for done.
#[test]
fn a_point_that_fails_is_told_and_runs_again() {
    let base = "[compare]\nmachines = 'nested'\naccesses = '1k'\nfootprint = '1MiB'\n";
    let lab = lab(&format!("{base}[axes]\nsource = ['gups', 'bad.champsim']\n"));
    lab.write("bad.champsim", &common::champsim_trace(20)[..1000]);
    for _ in 0..2 {
        let error = lab.refused("sweep s.toml -o d --quiet");
        assert!(error.contains("1 of 2 points are done, 1 failed: source=bad.champsim"), "{error}");
        assert_eq!(results(&lab, "d").len(), 1);
        assert_eq!(parse(&lab.read("d/results.json"))["points"].as_array().unwrap().len(), 1);
    }
    // A result that is damaged is put aside, and comes again.
    let name = results(&lab, "d").into_keys().next().unwrap();
    let whole = lab.read(&format!("d/points/{name}"));
    lab.write(&format!("d/points/{name}"), &whole[..whole.len() / 2]);
    let error = lab.refused("sweep s.toml -o d --collect");
    assert!(error.contains("2 of 2 points are missing"), "{error}");
    assert!(error.contains(&name) && error.contains("not the result of this point"), "{error}");
    lab.refused("sweep s.toml -o d --quiet");
    assert_eq!(lab.read(&format!("d/points/{name}")), whole);
}

#[test]
fn without_slurm_it_is_said_what_is_needed() {
    let lab = lab(TWELVE);
    let mut command = lab.command();
    command.args(["sweep", "s.toml", "-o", "d", "--slurm"]).env("PATH", lab.path("nowhere"));
    let ran = ran(command.output().unwrap());
    ran.assert_refused("sweep --slurm");
    assert!(ran.err.contains("sbatch") && ran.err.contains("slurm-client"), "{}", ran.err);
}

/// Files of a page of documentation, by the names that their fences have.
fn files_of(page: &str) -> Vec<(String, String)> {
    let text = std::fs::read_to_string(common::workspace().join(page)).unwrap();
    let fences = text.split("```toml file=").skip(1);
    let file = |fence: &str| {
        let (name, rest) = fence.split_once('\n').unwrap();
        (name.to_owned(), rest.split("```").next().unwrap().to_owned())
    };
    fences.map(file).collect()
}

#[test]
fn commands_of_the_documentation_run() {
    let lab = Lab::new();
    for (name, text) in files_of("docs/sweep.md") {
        lab.write(&name, text);
    }
    for line in common::tested_commands("docs/sweep.md") {
        lab.ok(&line);
    }
    assert_eq!(lab.read("d/results.csv"), lab.read("shares/results.csv"));
    assert_eq!((results(&lab, "d").len(), results(&lab, "e").len()), (6, 12));
}

#[test]
fn examples_of_the_help_run() {
    let lab = Lab::new();
    let help = lab.ok("sweep --help");
    let text = help.split("points:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    lab.write("tlb.toml", text);
    let examples = help.lines().filter_map(|line| line.trim().strip_prefix("nestwalk sweep "));
    let examples: Vec<&str> = examples.filter(|line| !line.contains("--slurm")).collect();
    assert!(examples.len() >= 3, "{help}");
    for line in examples {
        lab.ok(&format!("sweep {line}"));
    }
    assert_eq!(results(&lab, "d").len(), 6);
}
