//! The real binary in a directory of its own.

#![allow(dead_code, reason = "each test binary uses its part")]

pub mod recording;

use serde_json::Value;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

/// A fresh directory in which the binary runs.
pub struct Lab {
    dir: TempDir,
}

/// What a run left behind.
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Lab {
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a temporary directory") }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, bytes).expect("room for a file");
        path
    }

    pub fn read(&self, name: &str) -> String {
        let path = self.path(name);
        std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    /// The binary, ready to be run here.
    pub fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nestwalk"));
        command.current_dir(self.dir.path()).stdin(Stdio::null());
        // Whoever runs the tests may have a terminal.
        for variable in ["COLUMNS", "NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE"] {
            command.env_remove(variable);
        }
        command
    }

    /// Runs with the words of `line`, which has no quoting.
    pub fn run(&self, line: &str) -> Ran {
        self.run_with(line.split_whitespace())
    }

    pub fn run_with<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Ran {
        ran(self.command().args(args).output().expect("the binary starts"))
    }

    /// Runs what must succeed.
    pub fn ok(&self, line: &str) -> String {
        let ran = self.run(line);
        assert_eq!(ran.code, 0, "nestwalk {line}\n{}{}", ran.out, ran.err);
        ran.out
    }

    /// Runs what must succeed, for its JSON.
    pub fn json(&self, line: &str) -> Value {
        parse(&self.ok(&format!("{line} --format json")))
    }

    /// Runs what must be refused, for its message: one line or more that begin with our name.
    pub fn refused(&self, line: &str) -> String {
        let ran = self.run(line);
        ran.assert_refused(line);
        ran.err
    }

    /// Runs a tool of the system here.
    pub fn tool(&self, program: &str, args: &[&str]) -> Output {
        let output = Command::new(program).args(args).current_dir(self.dir.path()).output();
        let output = output.unwrap_or_else(|e| {
            panic!("{program}: {e}; the tests need it, and `scripts/check` installs it")
        });
        let err = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {args:?}: {err}");
        output
    }
}

impl Ran {
    /// Exit code 2, no panic, and a message that says nothing twice.
    pub fn assert_refused(&self, line: &str) {
        assert_eq!(self.code, 2, "nestwalk {line}\n{}{}", self.out, self.err);
        assert!(!self.err.contains("panicked"), "nestwalk {line}\n{}", self.err);
        let ours = self.err.contains("nestwalk: ") || self.err.starts_with("error: ");
        assert!(ours, "nestwalk {line}: no message of ours: {}", self.err);
        let parts: Vec<&str> = self.err.trim().split(": ").collect();
        for (i, part) in parts.iter().enumerate().filter(|(_, p)| p.len() > 16) {
            assert!(!parts[..i].contains(part), "nestwalk {line}: said twice: {}", self.err);
        }
    }
}

pub fn ran(output: Output) -> Ran {
    Ran {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8(output.stdout).expect("UTF-8"),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

pub fn parse(json: &str) -> Value {
    serde_json::from_str(json).unwrap_or_else(|e| panic!("no JSON: {e}\n{json}"))
}

/// The machine of that name.
pub fn machine<'a>(results: &'a Value, name: &str) -> &'a Value {
    let machines = results["machines"].as_array().expect("machines");
    machines.iter().find(|m| m["name"] == name).unwrap_or_else(|| panic!("no machine {name}"))
}

/// A number of an object.
pub fn number(object: &Value, key: &str) -> f64 {
    object[key].as_f64().unwrap_or_else(|| panic!("{key} is no number: {}", object[key]))
}

/// A count of an object.
pub fn count(object: &Value, key: &str) -> u64 {
    object[key].as_u64().unwrap_or_else(|| panic!("{key} is no count: {}", object[key]))
}

/// One `ChampSim` record: `struct input_instr` of `inc/trace_instruction.h`, 64 bytes,
/// little-endian: ip, is_branch, branch_taken, 2 + 4 registers, 2 addresses stored to and 4 loaded
/// from.
pub fn champsim(ip: u64, stores: [u64; 2], loads: [u64; 4]) -> [u8; 64] {
    let mut bytes = [0; 64];
    bytes[..8].copy_from_slice(&ip.to_le_bytes());
    let addresses = stores.iter().chain(&loads);
    for (place, address) in bytes[16..].chunks_exact_mut(8).zip(addresses) {
        place.copy_from_slice(&address.to_le_bytes());
    }
    bytes
}

/// A trace of so many instructions that load from one page after the other; every fourth stores.
pub fn champsim_trace(instructions: u64) -> Vec<u8> {
    let record = |i: u64| {
        let data = 0x7f00_0000_0000 + (i % 700) * 4096 + i % 64 * 64;
        let store = if i.is_multiple_of(4) { 0x5555_0000_0000 + i / 4 % 50 * 4096 } else { 0 };
        champsim(0x40_0000 + i % 4000 * 4, [store, 0], [data, 0, 0, 0])
    };
    (0..instructions).flat_map(record).collect()
}

/// The text of `valgrind --tool=lackey --trace-mem=yes` for so many instructions, each with a load.
pub fn lackey_log(instructions: u64) -> String {
    let mut log = String::from("==7== Lackey, an example Valgrind tool\n");
    for i in 0..instructions {
        let (pc, data) = (0x0400_1000 + i % 900 * 4, 0x1f_fe00_0000 + i % 700 * 4096);
        log += &format!("I  {pc:08x},4\n L {data:08x},8\n");
    }
    log
}

/// One drmemtrace record of `trace_entry.h`: type, size, address, 12 bytes.
pub fn drmemtrace_record(kind: u16, size: u16, value: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &size.to_le_bytes(), &value.to_le_bytes()].concat()
}

/// A single-threaded drmemtrace: header (25), thread (22), process (24), then instructions (10),
/// each with a load (0), then the footer (26).
pub fn drmemtrace(instructions: u64) -> Vec<u8> {
    let mut trace = Vec::new();
    for (kind, value) in [(25, 5), (22, 7), (24, 7)] {
        trace.extend(drmemtrace_record(kind, 0, value));
    }
    for i in 0..instructions {
        trace.extend(drmemtrace_record(10, 4, 0x40_0000 + i % 900 * 4));
        trace.extend(drmemtrace_record(0, 8, 0x7f00_0000_0000 + i % 700 * 4096));
    }
    trace.extend(drmemtrace_record(26, 0, 0));
    trace
}

/// The folder of the workspace.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the workspace")
}

/// Arguments of the commands of a page of documentation that stand in fences marked `sh tested`.
pub fn tested_commands(page: &str) -> Vec<String> {
    let text = std::fs::read_to_string(workspace().join(page)).expect(page);
    let fences = text.split("```sh tested\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let lines = fences.flat_map(str::lines).filter(|line| !line.trim().is_empty());
    let arguments = lines.map(|line| {
        let command = line.split(" #").next().unwrap_or_default();
        command.strip_prefix("nestwalk ").unwrap_or_else(|| panic!("{page}: {line}")).to_owned()
    });
    let arguments: Vec<String> = arguments.collect();
    assert!(!arguments.is_empty(), "{page}: no command is tested");
    arguments
}
