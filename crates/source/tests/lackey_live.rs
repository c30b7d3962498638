//! Live programs under valgrind, which must be installed (Debian package `valgrind`).

mod common;

use common::{Stream, collect};
use nestwalk_source::{Lackey, LackeyStats, RunOptions};
use nestwalk_types::{Batch, Control, ProcessId, Source};
use std::ffi::OsString;

fn words(command: &[&str]) -> Vec<OsString> {
    command.iter().map(OsString::from).collect()
}

fn run(command: &[&str], options: &RunOptions) -> (Stream, LackeyStats, u64) {
    let mut live = Lackey::run(&words(command), options)
        .expect("these tests need valgrind: install the Debian package `valgrind`");
    let stream = collect(&mut live);
    assert!(live.exit_status().is_some_and(|s| s.success()), "{:?}", live.exit_status());
    (stream, live.stats(), live.stops())
}

#[test]
fn a_program_is_one_process_with_all_its_records() {
    let (stream, stats, _) = run(&["true"], &RunOptions::default());
    assert_eq!(stream.end, Ok(()));
    assert_eq!(stream.instructions(), stats.instructions);
    assert_eq!(stats.other_lines, 0, "every line is a record or valgrind's own");
    // The dynamic loader alone takes some 100,000 instructions; a log of its own counts them.
    let log = common::valgrind_log(&["true"]);
    let saved = log.split(|&b| b == b'\n').filter(|l| l.starts_with(b"I  ")).count() as u64;
    assert!(stats.instructions.abs_diff(saved) < saved / 5, "{} {saved}", stats.instructions);
    let p = ProcessId(1);
    let first: Vec<_> = stream.controls.iter().map(|c| &c.1).collect();
    assert!(
        matches!(first[..], [Control::RegionOfInterest, Control::Switch { .. }, Control::Exit { process }] if *process == p),
        "{first:?}"
    );
}

#[test]
fn forked_and_started_programs_are_processes_of_their_own() {
    // A subshell that only forks, a program that is started, one that replaces itself twice.
    let script = "(x=1; y=$x; exit 0); /bin/true; sh -c 'exec /bin/echo replaced'";
    let (stream, stats, _) = run(&["sh", "-c", script], &RunOptions::default());
    assert_eq!(stream.end, Ok(()));
    assert_eq!(stream.instructions(), stats.instructions);
    let count = |f: fn(&Control) -> bool| stream.controls.iter().filter(|c| f(&c.1)).count();
    assert_eq!(count(|c| matches!(c, Control::Fork { .. })), 3, "{:?}", stream.controls);
    assert_eq!(count(|c| matches!(c, Control::Exec { .. })), 3, "{:?}", stream.controls);
    assert_eq!(count(|c| matches!(c, Control::Exit { .. })), 4, "{:?}", stream.controls);
    check_life(&stream);
}

/// Every process is born before it runs, is not mentioned after its exit, and the region of interest
/// comes once.
fn check_life(stream: &Stream) {
    let mut alive = vec![ProcessId(1)];
    let mut regions = 0;
    for (_, control) in &stream.controls {
        match control {
            Control::Fork { parent, child } => {
                assert!(alive.contains(parent) && !alive.contains(child), "{control:?}");
                alive.push(*child);
            }
            Control::Exec { process } | Control::Switch { process, .. } => {
                assert!(alive.contains(process), "{control:?}");
            }
            Control::Exit { process } => {
                assert!(alive.contains(process), "{control:?}");
                alive.retain(|p| p != process);
            }
            Control::RegionOfInterest => regions += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((alive.len(), regions), (0, 1));
}

#[test]
fn several_vcpus_are_used() {
    let options = RunOptions { vcpus: 2, ..RunOptions::default() };
    let (stream, _, _) = run(&["sh", "-c", "/bin/true; /bin/true"], &options);
    let on = |v| stream.runs.iter().filter(|r| r.vcpu.0 == v).count();
    assert!(on(0) > 1000 && on(1) > 1000, "{} {}", on(0), on(1));
}

#[test]
fn turns_of_live_processes_are_as_long_as_they_are_asked_for() {
    // Two that run at once, and have run by the time that they are read: what they gave a turn up for
    // is there.
    let options = RunOptions { quantum: 5000, ..RunOptions::default() };
    let script = ["sh", "-c", "/bin/true & /bin/true & wait"];
    let mut live = Lackey::run(&words(&script), &options).unwrap();
    std::thread::sleep(std::time::Duration::from_secs(5));
    let stream = collect(&mut live);
    assert_eq!((stream.end.clone(), stream.instructions()), (Ok(()), live.stats().instructions));
    let is_switch = |c: &Control| matches!(c, Control::Switch { .. });
    let mut borders: Vec<usize> =
        stream.controls.iter().filter(|c| is_switch(&c.1)).map(|c| c.0).collect();
    borders.push(stream.runs.len());
    let of = |w: &[usize]| -> u64 {
        stream.runs[w[0]..w[1]].iter().map(|r| u64::from(r.instructions)).sum()
    };
    let turns: Vec<u64> = borders.windows(2).map(of).collect();
    // One that goes on alone has several turns in a row.
    let whole = turns.iter().filter(|n| **n > 0 && **n % 5000 == 0).count();
    assert!(turns.len() > 10 && whole > turns.len() / 2, "{turns:?}");
}

#[test]
fn a_program_that_writes_faster_is_stopped_and_loses_nothing() {
    let options = RunOptions { unread_bytes: 64 << 10, ..RunOptions::default() };
    let mut live = Lackey::run(&words(&["sh", "-c", "/bin/true; /bin/true"]), &options).unwrap();
    let mut batch = Batch::default();
    let (mut instructions, mut exits) = (0, 0);
    while live.next_batch(&mut batch).unwrap() {
        instructions += batch.instructions();
        exits += batch.controls.iter().filter(|c| matches!(c.1, Control::Exit { .. })).count();
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert_eq!(instructions, live.stats().instructions);
    assert_eq!(exits, 3);
    assert!(live.stops() > 0, "the program was never stopped");
    assert_eq!(live.stats().other_lines, 0);
}

#[test]
fn failures_say_what_to_do() {
    let error = |command: &[&str], options: &RunOptions| {
        Lackey::run(&words(command), options).err().expect("an error").to_string()
    };
    let normal = RunOptions::default();
    let message = error(&["no-such-command-anywhere"], &normal);
    assert!(message.contains("no such command in PATH"), "{message}");
    let message = error(&["/nonexistent/command"], &normal);
    assert!(message.contains("No such file"), "{message}");
    let message = error(&["/etc/passwd"], &normal);
    assert!(message.contains("not an executable file"), "{message}");
    assert!(error(&[], &normal).contains("no command given"));
    let missing = RunOptions { valgrind: "no-such-valgrind".into(), ..normal };
    let message = error(&["true"], &missing);
    assert!(message.contains("install the Debian package `valgrind`"), "{message}");
}

#[test]
fn a_failing_command_is_reported_at_the_end() {
    let mut live = Lackey::run(&words(&["false"]), &RunOptions::default()).unwrap();
    let stream = collect(&mut live);
    assert!(stream.end.is_ok() && stream.accesses() > 0);
    assert_eq!(live.exit_status().and_then(|s| s.code()), Some(1));
    let said = live.info().approximations.join("\n");
    assert!(said.contains("failed: exit status: 1"), "{said}");
}

/// Processes with this word among those of their command.
fn with_word(word: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if line.split(|&b| b == 0).any(|w| w == word.as_bytes()) {
            found.push(String::from_utf8_lossy(&line).replace('\0', " "));
        }
    }
    found
}

/// A number of seconds to sleep, for a minute, that no other test has.
fn minute(test: u32) -> String {
    format!("6{test}.{}", std::process::id())
}

#[test]
fn an_idle_program_gives_empty_batches() {
    let mut live = Lackey::run(&words(&["sleep", &minute(0)]), &RunOptions::default()).unwrap();
    let mut batch = Batch::default();
    let (mut instructions, mut empty) = (0, 0);
    // A program sleeps some 200,000 instructions after its start.
    while empty < 3 || instructions < 50_000 {
        let began = std::time::Instant::now();
        assert!(live.next_batch(&mut batch).unwrap());
        assert!(began.elapsed().as_secs() < 5, "waited for a program that does nothing");
        instructions += batch.instructions();
        empty += u32::from(batch.is_empty());
    }
    assert_eq!(live.exit_status(), None);
}

#[test]
fn dropping_the_source_ends_the_program_and_leaves_nothing() {
    let (parent, child, orphan) = (minute(1), minute(2), minute(3));
    // A shell that waits, a child of it, and one whose parent has gone.
    let script = format!("(sleep {orphan} &); sleep {child} & sleep {parent}");
    let sleeping = || [&parent, &child, &orphan].map(|word| with_word(word).len());
    // As soon as anything is there, and when all three sleep.
    for all in [false, true] {
        let mut live = Lackey::run(&words(&["sh", "-c", &script]), &RunOptions::default()).unwrap();
        let mut batch = Batch::default();
        while live.stats().records() == 0 || (all && sleeping() != [1, 1, 1]) {
            assert!(live.next_batch(&mut batch).unwrap());
        }
        drop(live);
        assert_eq!(with_word(&script), Vec::<String>::new());
        assert_eq!(sleeping(), [0, 0, 0]);
    }
}

/// A program without a library, whose instructions and accesses can be counted by reading it.
fn assembled(text: &str) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let (source, program) = (dir.path().join("a.s"), dir.path().join("a"));
    let head = ".globl _start\n.bss\n.balign 4096\narea: .skip 4096*130\n.text\n_start:\n";
    let exit = "\nmov $60, %eax\nxor %edi, %edi\nsyscall\n";
    std::fs::write(&source, [head, text, exit].concat()).unwrap();
    let mut gcc = std::process::Command::new("gcc");
    gcc.args(["-nostdlib", "-static", "-o"]).arg(&program).arg(&source);
    assert!(gcc.status().expect("this test needs gcc").success());
    let name = program.to_str().unwrap().to_owned();
    (dir, name)
}

/// Instructions, loads, and stores and modifies of a live program, and what its records say.
fn counts(text: &str) -> ([u64; 3], LackeyStats) {
    let (_dir, program) = assembled(text);
    let (stream, stats, _) = run(&[&program], &RunOptions::default());
    assert_eq!(stream.end, Ok(()));
    assert_eq!(stream.instructions(), stats.instructions);
    ([stats.instructions, stats.loads, stats.stores + stats.modifies], stats)
}

#[test]
fn every_load_is_seen_even_if_nothing_needs_it() {
    // Eight loads to one register: only the last is needed.
    let eight: String = (0..8).map(|i| format!("mov {}(%rbx), %rax\n", i << 12)).collect();
    let text = format!(
        "lea area(%rip), %rbx\nmov $16, %ecx\n1:\n{eight}add $32768, %rbx\ndec %ecx\njnz 1b\n"
    );
    assert_eq!(counts(&text).0, [2 + 16 * 11 + 3, 128, 0]);
    // The register is overwritten by what accesses nothing.
    let text = "lea area(%rip), %rbx\nmov $16, %ecx\n1: mov (%rbx), %rax\nxor %eax, %eax\n\
                mov 4096(%rbx), %rax\nmov $3, %eax\nadd $8192, %rbx\ndec %ecx\njnz 1b\n";
    assert_eq!(counts(text).0, [2 + 16 * 7 + 3, 32, 0]);
}

#[test]
fn atomic_and_repeated_instructions_are_counted_once() {
    let text = "lea area(%rip), %rbx\nlock incq (%rbx)\nlock xaddq %rax, (%rbx)\nxchg %rax, (%rbx)\n\
                lock cmpxchgq %rcx, (%rbx)\nincq (%rbx)\n";
    let (found, stats) = counts(text);
    assert_eq!(found, [6 + 3, 0, 5]);
    assert_eq!(stats.atomic_loads, 3, "valgrind shows three of them with a load");
    let text = "lea area(%rip), %rdi\nmov $16, %ecx\nrep stosq\nlea area(%rip), %rsi\n\
                lea area+4096(%rip), %rdi\nmov $16, %ecx\nrep movsq\nlea area(%rip), %rdi\n\
                mov $16, %ecx\nmov $1, %eax\nrepne scasq\n";
    let (found, stats) = counts(text);
    assert_eq!(found, [11 + 3, 32, 32]);
    assert_eq!(stats.repeats, 3 * 16, "an instruction for each element and the end");
    // A jump to itself is another instruction each time.
    let text = "mov $5, %ecx\n1: loop 1b\nxor %ecx, %ecx\nrep stosq\n";
    assert_eq!(counts(text).0, [1 + 5 + 2 + 3, 0, 0]);
}
