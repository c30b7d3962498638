//! The programs made of bytes run on this machine too.

mod common;

use std::process::{Command, ExitStatus};

use common::Temporary;
use nestwalk_capture::programs::{launcher, mark_instruction, marker};

fn launch(arguments: &[&str]) -> ExitStatus {
    let directory = Temporary::new();
    let run = directory.program("run", launcher());
    Command::new(run).args(arguments).env("GIVEN", "7").status().expect("the launcher starts")
}

#[test]
fn the_launcher_gives_back_the_status() {
    assert_eq!(launch(&["/bin/sh", "sh", "-c", "exit 0"]).code(), Some(0));
    assert_eq!(launch(&["/bin/sh", "sh", "-c", "exit 255"]).code(), Some(255));
}

#[test]
fn the_launcher_hands_on_name_arguments_and_environment() {
    let script = r#"[ "$0,$1,$2,$#" = "name,a b,,2" ] && exit $GIVEN"#;
    assert_eq!(launch(&["/bin/sh", "sh", "-c", script, "name", "a b", ""]).code(), Some(7));
}

#[test]
fn a_signal_is_128_and_its_number() {
    assert_eq!(launch(&["/bin/sh", "sh", "-c", "kill -TERM $$"]).code(), Some(128 + 15));
    assert_eq!(launch(&["/bin/sh", "sh", "-c", "kill -KILL $$"]).code(), Some(128 + 9));
}

#[test]
fn what_cannot_start_has_the_status_of_a_shell() {
    assert_eq!(launch(&["/nonexistent", "x"]).code(), Some(127));
    assert_eq!(launch(&["/etc/passwd", "x"]).code(), Some(126));
    assert_eq!(launch(&["/bin/true"]).code(), Some(125));
    assert_eq!(launch(&[]).code(), Some(125));
}

/// The launcher must wait for its own child only, also when a grandchild outlives it.
#[test]
fn a_background_process_does_not_hold_the_launcher() {
    let start = std::time::Instant::now();
    let script = "sleep 20 >/dev/null 2>&1 & echo $! >\"$1\"; exit 5";
    let directory = Temporary::new();
    let pid = directory.file("pid", "");
    let pid_path = pid.to_str().unwrap();
    assert_eq!(launch(&["/bin/sh", "sh", "-c", script, "sh", pid_path]).code(), Some(5));
    assert!(start.elapsed().as_secs() < 15);
    let sleeper = std::fs::read_to_string(pid).unwrap();
    assert!(Command::new("kill").arg(sleeper.trim()).status().unwrap().success());
}

#[test]
fn the_marker_takes_one_digit() {
    let directory = Temporary::new();
    let mark = directory.program("mark", marker());
    let run = |arguments: &[&str]| Command::new(&mark).args(arguments).output().unwrap();
    for number in 1..=9 {
        assert_eq!(run(&[&number.to_string()]).status.code(), Some(0), "mark {number}");
    }
    for wrong in [&["0"][..], &["10"], &["x"], &[""], &[":"], &["/"], &[], &["1", "2"]] {
        let output = run(wrong);
        assert_eq!(output.status.code(), Some(2), "mark {wrong:?}");
        assert!(output.stderr.starts_with(b"usage: nestwalk-mark N"));
    }
}

/// Each mark is in the programs once, so that none is executed by chance with another.
#[test]
fn marks_are_where_they_should_be() {
    let count = |program: &[u8], number| {
        program.windows(7).filter(|bytes| *bytes == mark_instruction(number)).count()
    };
    // Intel SDM volume 2B: NOP r/m32 is 0F 1F /0; ModRM 0x80 is [RAX + disp32].
    assert_eq!(mark_instruction(3), [0x0f, 0x1f, 0x80, 0x03, 0x00, 0xa0, 0xf5]);
    let (launcher, marker) = (launcher(), marker());
    for number in 1..=9 {
        assert_eq!(count(&launcher, number), usize::from(number <= 2), "launcher, mark {number}");
        assert_eq!(count(&marker, number), 1, "marker, mark {number}");
    }
}
