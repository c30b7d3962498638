//! Answer sheets: what a real KVM did, as text.
//!
//! ```text
//! nestwalk answer sheet 1
//! kernel 6.1.0-57-amd64
//! qemu 10.0
//! script NAME
//! > read 0
//! fault 0 0
//! …
//! random SEED HASH
//! ```
//!
//! Of random scripts a sheet has the hash of the lines that they would have here.

use crate::paging::Paging;
use crate::program::Program;
use crate::{Answers, Events};
use std::collections::BTreeMap;
use std::fmt::Write;

/// The first line.
const HEAD: &str = "nestwalk answer sheet 1";

/// The answers that were recorded, by the version of the kernel.
#[must_use]
pub fn recorded(version: &str, paging: Paging) -> Option<&'static str> {
    match (paging, version) {
        (Paging::Shadow, "6.1") => Some(include_str!("../sheets/6.1.txt")),
        (Paging::Shadow, "6.12") => Some(include_str!("../sheets/6.12.txt")),
        (Paging::Nested, "6.1") => Some(include_str!("../sheets/nested-6.1.txt")),
        (Paging::Nested, "6.12") => Some(include_str!("../sheets/nested-6.12.txt")),
        _ => None,
    }
}

/// What one kernel's KVM answered.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Sheet {
    /// As `uname -r` has it.
    pub kernel: String,
    /// The emulator's version.
    pub qemu: String,
    /// Answers by name of the script, each with its actions.
    pub scripts: BTreeMap<String, Vec<(String, Events)>>,
    /// Hashes of random scripts by seed.
    pub random: BTreeMap<u64, u64>,
}

/// A file is not a sheet.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("line {line} of the answer sheet: {what}")]
pub struct SheetError {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong.
    pub what: String,
}

/// The actions of a program with what they led to.
#[must_use]
pub fn answered(program: &Program, answers: &Answers) -> Vec<(String, Events)> {
    let none = Events::new();
    let actions = program.actions.iter().enumerate();
    actions.map(|(i, a)| (a.to_string(), answers.get(i).unwrap_or(&none).clone())).collect()
}

fn lines(answers: &[(String, Events)]) -> String {
    let mut text = String::new();
    for (action, events) in answers {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "> {action}");
        for event in events {
            let _ = writeln!(text, "{event}");
        }
    }
    text
}

/// FNV-1a of the lines of a script's answers.
#[must_use]
pub fn hash(answers: &[(String, Events)]) -> u64 {
    fold(&lines(answers))
}

/// FNV-1a of a text.
#[must_use]
pub fn fold(text: &str) -> u64 {
    let fold = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    text.bytes().fold(0xcbf2_9ce4_8422_2325, fold)
}

impl Sheet {
    /// As text.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = format!("{HEAD}\nkernel {}\nqemu {}\n", self.kernel, self.qemu);
        for (name, answers) in &self.scripts {
            let _ = write!(text, "script {name}\n{}", lines(answers));
        }
        for (seed, hash) in &self.random {
            let _ = writeln!(text, "random {seed} {hash:016x}");
        }
        text
    }

    /// Reads one.
    ///
    /// # Errors
    /// A line is not what it should be.
    pub fn read(text: &str) -> Result<Self, SheetError> {
        let mut sheet = Self::default();
        let mut name: Option<String> = None;
        for (i, line) in text.lines().enumerate() {
            let wrong = |what: &str| SheetError { line: i + 1, what: what.to_owned() };
            let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
            match word {
                _ if i == 0 && line == HEAD => {}
                _ if i == 0 => return Err(wrong(&format!("it does not begin with {HEAD:?}"))),
                "kernel" => rest.clone_into(&mut sheet.kernel),
                "qemu" => rest.clone_into(&mut sheet.qemu),
                "script" => {
                    name = Some(rest.to_owned());
                    sheet.scripts.insert(rest.to_owned(), Vec::new());
                }
                "random" => {
                    let numbers = rest.split_once(' ').and_then(|(seed, hash)| {
                        Some((seed.parse().ok()?, u64::from_str_radix(hash, 16).ok()?))
                    });
                    let (seed, hash) = numbers.ok_or_else(|| wrong("random SEED HASH"))?;
                    sheet.random.insert(seed, hash);
                }
                _ => {
                    let script = name.as_ref().and_then(|n| sheet.scripts.get_mut(n));
                    let script = script.ok_or_else(|| wrong("it is of no script"))?;
                    if word == ">" {
                        script.push((rest.to_owned(), Events::new()));
                    } else {
                        let last = script.last_mut().ok_or_else(|| wrong("it is of no action"))?;
                        last.1.push(line.to_owned());
                    }
                }
            }
        }
        Ok(sheet)
    }
}
