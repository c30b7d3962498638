//! Progress on standard error, where that is no terminal: a line where a phase begins, and results that
//! do not depend on whether somebody looks.

mod common;

use common::Lab;

/// The phases that a command tells, after checking that its results are the same if it tells none.
fn phases(lab: &Lab, line: &str) -> Vec<String> {
    let told = lab.run(line);
    assert_eq!(told.code, 0, "{line}: {}", told.err);
    let quiet = lab.run(&format!("{line} --quiet"));
    assert_eq!((quiet.code, quiet.err.as_str()), (0, ""), "{line}");
    assert_eq!(told.out, quiet.out, "{line}");
    assert!(!told.out.is_empty(), "{line}");
    lines(&told.err)
}

fn lines(err: &str) -> Vec<String> {
    let plain = |line: &str| line.strip_prefix("nestwalk: ").unwrap_or(line).to_owned();
    err.lines().map(plain).collect()
}

const TABLES: &str = "building the tables of the guest as it was before";

#[test]
fn a_comparison_tells_its_phases() {
    let lab = Lab::new();
    let short = "--footprint 4MiB --accesses 20k --threads 2 --machines native,nested";
    let told = phases(&lab, &format!("compare gups {short} --warmup 5k --populate yes"));
    // Its table and what it keeps beside that.
    assert_eq!(told, ["populating memory: 4.0 MiB", "warming up", "running"]);
    let told = phases(&lab, &format!("compare uniform {short} --populate yes"));
    assert_eq!(told, ["populating memory: 4 MiB", "running"]);
    let told = phases(&lab, &format!("compare uniform {short} --populate no"));
    assert_eq!(told, ["running"]);
}

#[test]
fn a_recording_tells_its_phases() {
    let lab = Lab::new();
    let told = phases(&lab, "compare gcc --accesses 20k --machines native,nested");
    assert_eq!(told, [TABLES, "running"]);
    let told = phases(&lab, "compare gcc --accesses 20k --machines native:4k");
    assert_eq!(told, ["reading what the recorded guest's processes map", TABLES, "running"]);
}

#[test]
fn what_is_only_read_tells_it() {
    let lab = Lab::new();
    let trace = concat!(env!("CARGO_MANIFEST_DIR"), "/../../samples/words.nwt");
    assert_eq!(phases(&lab, &format!("trace info {trace}")), ["reading the trace"]);
    assert_eq!(phases(&lab, &format!("trace verify {trace}")), ["checking the trace"]);
    let told = lab.run(&format!("trace convert {trace} out.champsim --accesses 1k"));
    assert_eq!(lines(&told.err)[0], "converting the trace", "{}", told.err);
}

#[test]
fn each_session_of_a_reproduction_tells_its_phases() {
    let lab = Lab::new();
    let told = phases(&lab, "reproduce micro14 --programs stream --accesses 5k --footprint 16MiB");
    let running = told.iter().filter(|line| *line == "running").count();
    let titles = told.iter().filter(|line| line.ends_with(" machines")).count();
    assert!(titles > 0 && running == titles, "{told:?}");
}
