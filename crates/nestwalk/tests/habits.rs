//! Completions, manual pages, `doctor`, and how help is grouped.

mod common;

use common::{Lab, parse, ran};
use serde_json::Value;
use std::collections::BTreeMap;

/// Names of the commands, as `--help` lists them.
fn commands(lab: &Lab) -> Vec<String> {
    let help = lab.ok("--help");
    // Under headings, up to those of options.
    let indented =
        help.lines().take_while(|line| *line != "Options:").filter(|line| line.starts_with("  "));
    // Names stand where all begin, their further lines do not.
    let names = indented.filter(|line| !line.starts_with("   "));
    names.filter_map(|line| line.split_whitespace().next()).map(String::from).collect()
}

#[test]
fn shells_take_the_completions_and_know_every_command() {
    let lab = Lab::new();
    let commands = commands(&lab);
    assert!(commands.len() > 12, "{commands:?}");
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = lab.ok(&format!("completions {shell}"));
        for command in commands.iter().filter(|c| *c != "help") {
            assert!(script.contains(command.as_str()), "{shell}: {command}");
        }
        assert!(script.contains("repeat"), "{shell}: options");
    }
    lab.write("nestwalk.bash", lab.ok("completions bash"));
    // What bash makes of it: the words that may follow `nestwalk com`.
    let script = "source nestwalk.bash; COMP_WORDS=(nestwalk com); COMP_CWORD=1; \
                  _nestwalk nestwalk com nestwalk; echo \"${COMPREPLY[@]}\"";
    let said = lab.tool("bash", &["-c", script]);
    assert_eq!(String::from_utf8_lossy(&said.stdout).trim(), "compare completions");
    assert!(lab.refused("completions csh").contains("bash"));
}

#[test]
fn every_command_has_a_manual_page() {
    let lab = Lab::new();
    let said = lab.ok("man pages/man1");
    let page = |name: &str| lab.read(&format!("pages/man1/nestwalk{name}.1"));
    assert!(page("").contains(".TH"));
    let commands = commands(&lab);
    for command in commands.iter().filter(|c| *c != "help") {
        assert!(page(&format!("-{command}")).contains(".SH SYNOPSIS"), "{command}");
    }
    let compare = page("-compare");
    assert!(compare.contains("repeat") && compare.contains("nestwalk compare gups forkstorm"));
    page("-trace-convert");
    let pages = std::fs::read_dir(lab.path("pages/man1")).unwrap().count();
    assert!(said.starts_with(&format!("{pages} pages in ")), "{said}");
    lab.write("file", "");
    assert!(lab.refused("man file").contains("file"));
}

fn doctor(lab: &Lab, root: &str, variables: &[(&str, &str)]) -> BTreeMap<String, Value> {
    let mut command = lab.command();
    command.args(["doctor", "--format", "json", "--root", root]);
    let ran = ran(command.envs(variables.iter().copied()).output().expect("the binary starts"));
    assert_eq!(ran.code, 0, "whatever is missing: {}", ran.err);
    let found = parse(&ran.out);
    let checks = found["checks"].as_array().unwrap().iter();
    checks.map(|c| (c["name"].as_str().unwrap().to_owned(), c.clone())).collect()
}

/// On a bare machine all is missing, and each says what mends it; where a piece is there, it is found.
#[test]
fn the_doctor_finds_what_is_there_and_says_how_to_get_the_rest() {
    let lab = Lab::new();
    let nowhere = lab.path("nowhere").display().to_string();
    let bare = [("PATH", nowhere.as_str()), ("NESTWALK_CACHE", nowhere.as_str())];
    let found = doctor(&lab, "nowhere", &bare);
    assert!(found.len() >= 12, "{found:?}");
    // The plugin may lie beside the binary of the tests.
    for (name, check) in found.iter().filter(|(name, _)| *name != "plugin") {
        assert_eq!(check["ok"], false, "{name}: {check}");
        assert!(check["remedy"].as_str().unwrap().len() > 10, "{name}: {check}");
        assert!(!check["needed_for"].as_str().unwrap().is_empty(), "{name}");
    }
    // A machine of files.
    for folder in [
        "root/dev",
        "root/proc/self",
        "root/proc/sys/kernel",
        "root/sys/kernel/debug/kvm",
        "root/sys/kernel/tracing/events",
        "root/sys/bus/event_source/devices/cpu",
        "bin",
        "cache/kernels/6.1.0-9-cloud-amd64",
    ] {
        std::fs::create_dir_all(lab.path(folder)).unwrap();
    }
    lab.write("root/dev/kvm", "");
    lab.write("root/proc/self/pagemap", "");
    lab.write("root/proc/self/status", "Name:\tx\nCapEff:\t000001ffffffffff\n");
    lab.write("root/proc/sys/kernel/perf_event_paranoid", "2\n");
    for (program, says) in [
        ("qemu-system-x86_64", "QEMU emulator version 10.0.2 (Debian)"),
        ("valgrind", "valgrind-3.24.0"),
    ] {
        let path = lab.write(&format!("bin/{program}"), format!("#!/bin/sh\necho '{says}'\n"));
        lab.tool("chmod", &["+x", path.to_str().unwrap()]);
    }
    let bin = lab.path("bin").display().to_string();
    let cache = lab.path("cache").display().to_string();
    let found = doctor(&lab, "root", &[("PATH", &bin), ("NESTWALK_CACHE", &cache)]);
    for (name, words) in [
        ("QEMU", "QEMU 10.0"),
        ("valgrind", "valgrind-3.24.0"),
        ("guest kernel", "6.1.0-9-cloud-amd64"),
        ("KVM", "dev/kvm"),
        ("KVM statistics", "debug/kvm"),
        ("tracefs", "tracing/events"),
        ("counters", "devices/cpu"),
        ("frames", "CAP_SYS_ADMIN"),
    ] {
        let check = &found[name];
        assert_eq!((&check["ok"], &check["remedy"]), (&true.into(), &"".into()), "{name}: {check}");
        assert!(check["found"].as_str().unwrap().contains(words), "{name}: {check}");
    }
    for name in ["perf permission", "busybox", "apt"] {
        assert_eq!(found[name]["ok"], false, "{name}");
    }
    assert!(found["perf permission"]["remedy"].as_str().unwrap().contains("paranoid=1"));
    lab.write("root/proc/self/status", "CapEff:\t0000000000000000\n");
    lab.write("root/proc/sys/kernel/perf_event_paranoid", "-1\n");
    let found = doctor(&lab, "root", &[("PATH", &bin)]);
    assert_eq!(
        (&found["frames"]["ok"], &found["perf permission"]["ok"]),
        (&false.into(), &true.into())
    );
    // QEMU that is too old is missing, too.
    lab.write("bin/qemu-system-x86_64", "#!/bin/sh\necho 'QEMU emulator version 7.2.0'\n");
    let found = doctor(&lab, "root", &[("PATH", &bin)]);
    assert!(found["QEMU"]["found"].as_str().unwrap().contains("7.2"), "{}", found["QEMU"]);
}

#[test]
fn the_doctor_says_a_line_for_each_piece() {
    let lab = Lab::new();
    let (text, json) = (lab.ok("doctor"), parse(&lab.ok("doctor --format json")));
    let checks = json["checks"].as_array().unwrap();
    for check in checks {
        let state = if check["ok"] == true { "ok" } else { "missing" };
        let name = check["name"].as_str().unwrap();
        let line =
            text.lines().find(|l| l.split_once(' ').is_some_and(|l| l.1.trim().starts_with(name)));
        assert!(line.is_some_and(|l| l.starts_with(state)), "{name} {state}\n{text}");
    }
    let there = checks.iter().filter(|c| c["ok"] == true).count();
    assert!(text.contains(&format!("{there} of {} are there", checks.len())), "{text}");
    assert_eq!(lab.ok("doctor --format csv").lines().count(), checks.len() + 1);
}

#[test]
fn help_is_grouped() {
    let lab = Lab::new();
    for (command, groups) in [
        (
            "",
            &[
                "Compare",
                "Teach",
                "Live machines",
                "Recordings and traces",
                "About nestwalk",
                "Options",
            ][..],
        ),
        ("compare", &["Source", "Machines", "Memory", "Real guests", "Tables", "Output"]),
        ("run", &["Tables", "Output"]),
        ("reproduce", &["The thesis", "Output"]),
    ] {
        let help = lab.ok(format!("{command} --help").trim());
        let mut from = 0;
        for group in groups {
            let at = help[from..].find(&format!("\n{group}:\n"));
            from += at.unwrap_or_else(|| panic!("{command}: {group} in order\n{help}"));
        }
    }
}
