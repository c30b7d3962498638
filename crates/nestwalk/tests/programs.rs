//! Real programs and traces, live and saved. Needs valgrind, gcc, gzip, xz and zstd, of which
//! `scripts/check` installs what is missing.

mod common;

use common::{Lab, champsim_trace, count, drmemtrace, lackey_log, machine, ran};
use serde_json::Value;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The words that valgrind's greeting and counts leave of a log.
fn records(log: &str, kinds: &[&str]) -> u64 {
    log.lines().filter(|l| kinds.iter().any(|k| l.starts_with(k))).count() as u64
}

#[test]
fn a_real_compile_prints_its_table() {
    let lab = Lab::new();
    // Without a function the compiler's back end stays out of it: a quarter of the instructions.
    lab.write("file.c", "struct node { struct node *next; } first, last = { &first };\n");
    let args =
        "compare --machines native,nested --quiet --output here --lackey -- gcc -O2 -c file.c";
    let table = lab.ok(args);
    assert!(lab.path("file.o").exists(), "the command has run to its end:\n{table}");
    for row in ["ideal:4k ", "native:4k ", "nested:4k+4k "] {
        assert!(table.lines().any(|l| l.starts_with(row)), "{table}");
    }
    // The driver, the compiler proper and the assembler.
    assert!(table.contains(", 3 processes, exit status: 0"), "{table}");
    let results = common::parse(&lab.read("here/results.json"));
    assert_eq!(results["complete"], true);
    let nested = machine(&results, "nested:4k+4k");
    assert!(count(nested, "cr3_loads") >= 3, "{nested}");
    let work = &nested["guest_os_work"];
    assert!(count(work, "forks") >= 2 && count(work, "exits") >= 2, "{work}");
    // cc1 alone retires tens of millions of instructions.
    assert!(count(nested, "instructions") > 10_000_000, "{nested}");
    assert!(count(nested, "fetches") >= count(nested, "instructions"));
    assert!(count(nested, "walks") > count(nested, "guest_faults") / 2);
}

#[test]
fn a_live_program_is_cut_at_the_accesses_wanted_and_ended() {
    let lab = Lab::new();
    // Without the cut, the shell would run for ever.
    let script = "while :; do /bin/true; done";
    let args = ["compare", "--accesses", "300k", "--quiet", "--lackey", "--", "sh", "-c", script];
    let ran = lab.run_with(args);
    assert_eq!(ran.code, 0, "{}{}", ran.out, ran.err);
    assert!(ran.out.contains("counted  300,000 accesses"), "{}", ran.out);
    assert!(ran.out.contains("still running"), "{}", ran.out);
}

#[test]
fn a_command_that_fails_is_said_to() {
    let lab = Lab::new();
    let ran = lab.run("compare --machines nested --quiet --lackey -- false");
    assert_eq!(ran.code, 1, "{}{}", ran.out, ran.err);
    assert!(ran.out.contains("nested:4k+4k"), "the table stays: {}", ran.out);
    let last = ran.err.lines().last().unwrap_or_default();
    assert!(last.starts_with("nestwalk: the traced command failed: exit status: 1"), "{last}");
    let note = ran.out.lines().find(|l| l.starts_with("note     the traced command failed"));
    assert!(note.is_some_and(|l| l.contains("exit status: 1")), "{}", ran.out);
}

#[test]
fn a_saved_log_gives_the_same_plain_and_compressed() {
    let lab = Lab::new();
    let log = "--log-file=true.log";
    lab.tool("valgrind", &["--tool=lackey", "--trace-mem=yes", log, "/bin/true"]);
    lab.tool("gzip", &["-k", "true.log"]);
    lab.tool("xz", &["-k", "-1", "true.log"]);
    lab.tool("zstd", &["-q", "-k", "true.log"]);
    let text = lab.read("true.log");
    let plain = lab.json("compare true.log --quiet --verify");
    let native = machine(&plain, "native:4k");
    // Further elements of repeated string instructions are lines, and no instructions.
    let tally = &lab.json("trace info true.log -q")["tally"];
    let repeats = count(tally, "further_elements_of_string_instructions");
    assert_eq!(count(native, "instructions") + repeats, records(&text, &["I  "]));
    assert!(count(native, "instructions") > 50_000 && repeats < 5000, "{native}");
    // An access across a page border counts twice, so these are bounds, and close ones.
    let shown_only = repeats + count(tally, "loads_of_atomic_instructions_left_out");
    let data = records(&text, &["I  ", " L ", " S ", " M "]) - shown_only;
    let accesses = count(native, "accesses");
    assert!(accesses >= data && accesses < data + data / 100, "{accesses} of {data}");
    for suffix in ["gz", "xz", "zst"] {
        // The name says nothing: content does.
        std::fs::rename(lab.path(&format!("true.log.{suffix}")), lab.path("other")).unwrap();
        let found = lab.json("compare other --trace-format lackey --quiet --verify");
        assert_eq!(found["machines"], plain["machines"], "{suffix}");
        assert_eq!(found["guests"], plain["guests"], "{suffix}");
    }
}

#[test]
fn traces_are_told_by_their_content_or_by_name() {
    let lab = Lab::new();
    lab.write("a", champsim_trace(20_000));
    lab.write("b", lackey_log(20_000));
    lab.write("c", drmemtrace(20_000));
    // Instructions, and fetches and data accesses of each.
    for (file, format, accesses) in
        [("a", "champsim", 45_000), ("b", "lackey", 40_000), ("c", "drmemtrace", 40_000)]
    {
        let told = lab.json(&format!("compare {file} --quiet --verify"));
        let named = lab.json(&format!("compare {file} --trace-format {format} --quiet --verify"));
        assert_eq!(told, named, "{format}");
        let m = machine(&told, "nested:4k+4k");
        let found = ["instructions", "fetches", "accesses"].map(|key| count(m, key));
        assert_eq!(found, [20_000, 20_000, accesses], "{format}");
        let description = told["description"].as_str().unwrap().to_lowercase();
        assert!(description.contains(format), "{description}");
        // 700 pages of data, and the pages of the instructions (4,000 or 900 of 4 bytes), and with
        // ChampSim 50 more that are stored to.
        let faults = count(&told["guests"]["4k"], "faults");
        assert_eq!(faults, if format == "champsim" { 754 } else { 701 }, "{format}");
    }
    for (tool, suffix) in [("gzip", "gz"), ("xz", "xz"), ("zstd", "zst")] {
        lab.tool(tool, &["-k", "a"]);
        let packed = lab.json(&format!("compare a.{suffix} --quiet"));
        assert_eq!(packed["machines"], lab.json("compare a --quiet")["machines"], "{tool}");
    }
    let part = lab.json("compare a --accesses 1000 --warmup 500 --quiet");
    assert_eq!(count(machine(&part, "native:4k"), "accesses"), 1000);
}

#[test]
fn traces_and_workloads_can_share_a_machine() {
    let lab = Lab::new();
    lab.write("trace", champsim_trace(5000));
    let line = "compare trace gups --footprint 4MiB --accesses 20k --quantum 1k --vcpus 2";
    let results = lab.json(&format!("{line} --verify --quiet"));
    assert_eq!(count(&results["guests"]["4k"], "processes"), 2);
    assert_eq!(count(machine(&results, "shadow:4k+4k"), "accesses"), 20_000);
}

/// What the process has computed, in 1/100 s: field 14 of `/proc/PID/stat`.
fn computed(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let user = stat.rsplit(')').next().and_then(|s| s.split_whitespace().nth(11));
    user.map_or(0, |ticks| ticks.parse().unwrap())
}

/// Whether the process has computed for half a second.
fn has_computed(pid: u32) -> bool {
    computed(pid) >= 50
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < Duration::from_secs(60), "{what}: not after a minute");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Sends `signal` to a run once `ready` says so of its process number, and returns how it ended.
fn interrupt(lab: &Lab, args: &[&str], signal: &str, ready: impl Fn(u32) -> bool) -> common::Ran {
    let file = |name| std::fs::File::create(lab.path(name)).expect("room for a file");
    // Where its temporary files are, of which it leaves none behind.
    let temporary = lab.path("temporary");
    std::fs::create_dir_all(&temporary).expect("room for a directory");
    let mut command = lab.command();
    command.args(args).stdout(file("stdout")).stderr(file("stderr")).env("TMPDIR", &temporary);
    let mut running = Running(command.spawn().expect("the binary starts"));
    wait_for("ready", || ready(running.0.id()));
    let kill = format!("kill -{signal} {}", running.0.id());
    assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    let mut code = None;
    wait_for("ended", || {
        code = running.0.try_wait().unwrap().map(|status| status.code().unwrap_or(-1));
        code.is_some()
    });
    assert_eq!(std::fs::read_dir(temporary).unwrap().count(), 0, "{args:?}");
    common::Ran { code: code.unwrap(), out: lab.read("stdout"), err: lab.read("stderr") }
}

/// A process that does not outlive its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Errors mean that it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn an_interruption_keeps_what_was_computed() {
    let lab = Lab::new();
    for (signal, threads) in [("INT", "1"), ("TERM", "2")] {
        let args = ["compare", "uniform", "--accesses", "1000G", "--footprint", "64MiB", "--quiet"];
        let more = ["--threads", threads, "--output", "here", "--format", "json"];
        let ran = interrupt(&lab, &[&args[..], &more].concat(), signal, has_computed);
        ran.assert_refused(signal);
        assert!(
            ran.err.contains("interrupted: the results are those of the first "),
            "{}",
            ran.err
        );
        let results = common::parse(&ran.out);
        assert_eq!(results["complete"], false);
        assert!(count(machine(&results, "native:4k"), "accesses") > 10_000, "{}", ran.out);
        // Every machine has seen the same.
        let all = results["machines"].as_array().unwrap();
        assert!(all.iter().all(|m| m["accesses"] == all[0]["accesses"]), "{}", ran.out);
        assert_eq!(lab.read("here/results.json"), ran.out);
        assert!(lab.read("here/table.txt").contains("nested:4k+4k"));
    }
}

/// The process whose number is in the file `pid`, once it is there.
fn process_of(lab: &Lab) -> Option<u32> {
    let text = std::fs::read_to_string(lab.path("pid")).ok()?;
    text.strip_suffix('\n').map(|pid| pid.parse().unwrap())
}

#[track_caller]
fn assert_gone(lab: &Lab) {
    let pid = process_of(lab).expect("it has begun");
    let state = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    let gone = state.map_or(true, |s| s.contains(") Z "));
    assert!(gone, "process {pid} is still there");
}

#[test]
fn an_interruption_ends_the_live_program_as_well() {
    let lab = Lab::new();
    let script = "echo $$ > pid; while :; do /bin/true; done";
    let args = ["compare", "--quiet", "--lackey", "--", "sh", "-c", script];
    let ran = interrupt(&lab, &args, "INT", |_| process_of(&lab).is_some());
    ran.assert_refused("--lackey");
    assert!(ran.out.contains("nested:4k+4k"), "{}{}", ran.out, ran.err);
    assert_gone(&lab);
}

#[test]
fn an_interruption_is_noticed_while_the_live_program_is_idle() {
    let lab = Lab::new();
    let script = "echo $$ > pid; exec sleep 100";
    let args = ["compare", "--quiet", "--verify", "--lackey", "--", "sh", "-c", script];
    let sleeps = |_| {
        process_of(&lab).is_some_and(|pid| {
            let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let before = computed(pid);
            std::thread::sleep(Duration::from_millis(300));
            line.ends_with("/sleep\x00100\0") && before > 0 && computed(pid) == before
        })
    };
    let ran = interrupt(&lab, &args, "INT", sleeps);
    ran.assert_refused("--lackey");
    // Everything up to the sleep was counted: the start of two programs.
    assert!(ran.err.contains("interrupted: the results are those of the first "), "{}", ran.err);
    assert!(ran.out.contains("nested:4k+4k"), "{}{}", ran.out, ran.err);
    assert_gone(&lab);
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let lab = Lab::new();
    for line in ["schemes", "compare gups --footprint 1MiB --accesses 1k --quiet"] {
        let mut child = lab
            .command()
            .args(line.split_whitespace())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let ran = ran(child.wait_with_output().unwrap());
        assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{line}");
    }
}

#[test]
fn a_pipe_can_be_a_trace() {
    let lab = Lab::new();
    lab.write("trace", champsim_trace(3000));
    let script = format!("cat trace | '{}' compare /dev/stdin --quiet --format json", {
        env!("CARGO_BIN_EXE_nestwalk")
    });
    let piped: Value =
        common::parse(&String::from_utf8(lab.tool("sh", &["-c", &script]).stdout).unwrap());
    assert_eq!(piped["machines"], lab.json("compare trace --quiet")["machines"]);
}
