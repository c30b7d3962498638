//! What a recorded guest led to, in figures and hashes, and the sheets of what real KVMs answered.
//!
//! ```text
//! nestwalk recorded guests 1
//! kernel 6.1.0-57-amd64
//! qemu 10.0
//! recording NAME LIMIT ACTIONS HASH   actions asked for and made, hash of the small guest's program
//! exit REASON COUNT
//! event KIND COUNT
//! counter NAME COUNT               KVM's own counters at the end, the small guest's own page in them
//! chunk HASH                       of the events of each 1,000 actions
//! ```

use crate::paging::Paging;
use crate::program::{Action, Program};
use crate::recording::{Part, is_own};
use crate::sheet::{self, SheetError};
use crate::{Answers, Events};
use std::collections::BTreeMap;
use std::fmt::Write;

/// The first line of a sheet.
const HEAD: &str = "nestwalk recorded guests 1";
/// Actions of which the sheet has one hash.
pub const CHUNK: usize = 1000;

/// Counts by name.
pub type Counts = BTreeMap<String, u64>;

/// What a recorded guest led to, without the small guest's own page.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Figures {
    /// About how many actions were asked for, at most.
    pub limit: usize,
    /// Actions of the small guest.
    pub actions: usize,
    /// Hash of its program.
    pub program: u64,
    /// Exits by reason, named as the simulator's counters. The exits for OUT and for interrupts of the
    /// host are not among them.
    pub exits: Counts,
    /// Events by kind; `get new` are shadow pages made.
    pub events: Counts,
    /// KVM's own counters, if it was the real one.
    pub counters: Counts,
    /// Hash of the events of each [`CHUNK`] actions.
    pub chunks: Vec<u64>,
}

/// Events without those of the small guest's own page.
#[must_use]
pub fn without_own(program: &Program, paging: Paging, answers: Answers) -> Answers {
    let keep = |events: Events| -> Events {
        events.into_iter().filter(|event| !is_own(event, paging, program.own)).collect()
    };
    answers.into_iter().map(keep).collect()
}

/// Events of each kind.
#[must_use]
pub fn kinds<'a>(events: impl IntoIterator<Item = &'a String>) -> Counts {
    let mut kinds = Counts::new();
    for event in events {
        let (kind, rest) = event.split_once(' ').unwrap_or((event, ""));
        let made = if kind == "get" && rest.ends_with("new") { " new" } else { "" };
        *kinds.entry(format!("{kind}{made}")).or_default() += 1;
    }
    kinds
}

/// Why a page fault exited, as the simulator's counters have it: what followed it says so. `store`: by
/// a store to a page that has a shadow entry.
fn reason(store: bool, followed: &[String]) -> &'static str {
    let has = |kind: &str| followed.iter().any(|e| e.split(' ').next() == Some(kind));
    match store {
        _ if has("inject") => "true_fault",
        _ if has("emulate") => "table_write",
        true if has("dirty") => "dirty_fault",
        true if has("unsync") => "table_unsync",
        _ => "hidden_fault",
    }
}

/// Exits that answers tell.
fn exits(program: &Program, paging: Paging, answers: &Answers) -> Counts {
    let mut exits = Counts::new();
    if paging == Paging::Nested {
        let faults = answers.iter().flatten().filter(|event| event.starts_with("fault "));
        exits.insert("ept_violation".to_owned(), faults.count() as u64);
        return exits;
    }
    let mut add = |reason: &str| *exits.entry(reason.to_owned()).or_default() += 1;
    for (action, events) in program.actions.iter().zip(answers) {
        match action {
            Action::Invlpg(_) => add("invalidation"),
            Action::Cr3(_) => add("cr3_load"),
            _ => {}
        }
        let mut left = events.as_slice();
        while let Some(at) = left.iter().position(|e| e.starts_with("fault ")) {
            let store = left[at].ends_with(" 3") || left[at].ends_with(" 7");
            left = &left[at + 1..];
            let end = left.iter().position(|e| e.starts_with("fault ")).unwrap_or(left.len());
            add(reason(store, &left[..end]));
        }
    }
    exits
}

/// Hashes of the events of each [`CHUNK`] actions, of the first so many.
fn chunks(program: &Program, answers: &Answers) -> Vec<u64> {
    let answered = sheet::answered(program, answers);
    answered[..answers.len().min(answered.len())].chunks(CHUNK).map(sheet::hash).collect()
}

impl Figures {
    /// Of a program and what it led to, without the small guest's own page.
    #[must_use]
    pub fn of(part: &Part, paging: Paging, answers: &Answers, counters: Counts) -> Self {
        let program = &part.program;
        Self {
            limit: part.limit,
            actions: program.actions.len(),
            program: sheet::fold(&program.text()),
            exits: exits(program, paging, answers),
            events: kinds(answers.iter().flatten()),
            counters,
            chunks: chunks(program, answers),
        }
    }

    /// The first action of the first chunk whose events differ.
    #[must_use]
    pub fn first_difference(&self, other: &Self) -> Option<usize> {
        let both = self.chunks.len().max(other.chunks.len());
        (0..both).find(|i| self.chunks.get(*i) != other.chunks.get(*i)).map(|i| i * CHUNK)
    }
}

/// What one kernel's KVM answered, by recording.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Recordings {
    /// As `uname -r` has it.
    pub kernel: String,
    /// The emulator's version.
    pub qemu: String,
    /// Figures by name of the recording.
    pub figures: BTreeMap<String, Figures>,
}

/// The answers that come with the program, by the version of the kernel.
#[must_use]
pub fn recorded(version: &str, paging: Paging) -> Option<&'static str> {
    match (paging, version) {
        (Paging::Shadow, "6.1") => Some(include_str!("../sheets/recorded-6.1.txt")),
        (Paging::Shadow, "6.12") => Some(include_str!("../sheets/recorded-6.12.txt")),
        (Paging::Nested, "6.1") => Some(include_str!("../sheets/nested-recorded-6.1.txt")),
        (Paging::Nested, "6.12") => Some(include_str!("../sheets/nested-recorded-6.12.txt")),
        _ => None,
    }
}

impl Recordings {
    /// As text.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = format!("{HEAD}\nkernel {}\nqemu {}\n", self.kernel, self.qemu);
        // Writing to a string cannot fail.
        for (name, f) in &self.figures {
            let _ = writeln!(text, "recording {name} {} {} {:016x}", f.limit, f.actions, f.program);
            for (word, counts) in
                [("exit", &f.exits), ("event", &f.events), ("counter", &f.counters)]
            {
                for (name, count) in counts {
                    let _ = writeln!(text, "{word} {} {count}", name.replace(' ', "-"));
                }
            }
            for hash in &f.chunks {
                let _ = writeln!(text, "chunk {hash:016x}");
            }
        }
        text
    }

    /// Reads a sheet.
    ///
    /// # Errors
    /// A line is not what it should be.
    pub fn read(text: &str) -> Result<Self, SheetError> {
        let mut all = Self::default();
        let mut name = String::new();
        for (i, line) in text.lines().enumerate() {
            let wrong = |what: &str| SheetError { line: i + 1, what: what.to_owned() };
            let words: Vec<&str> = line.split(' ').collect();
            match words[..] {
                _ if i == 0 && line == HEAD => {}
                _ if i == 0 => return Err(wrong(&format!("it does not begin with {HEAD:?}"))),
                ["kernel", kernel] => kernel.clone_into(&mut all.kernel),
                ["qemu", qemu] => qemu.clone_into(&mut all.qemu),
                ["recording", what, limit, actions, hash] => {
                    let hash = u64::from_str_radix(hash, 16);
                    let (Ok(limit), Ok(actions), Ok(program)) =
                        (limit.parse(), actions.parse(), hash)
                    else {
                        return Err(wrong("recording NAME LIMIT ACTIONS HASH"));
                    };
                    what.clone_into(&mut name);
                    let figures = Figures { limit, actions, program, ..Figures::default() };
                    all.figures.insert(name.clone(), figures);
                }
                _ => {
                    let figures = all.figures.get_mut(&name);
                    let figures = figures.ok_or_else(|| wrong("it is of no recording"))?;
                    figures.line(&words).ok_or_else(|| {
                        wrong("exit, event or counter with NAME and COUNT, or chunk HASH")
                    })?;
                }
            }
        }
        Ok(all)
    }
}

impl Figures {
    fn line(&mut self, words: &[&str]) -> Option<()> {
        let counts = match *words {
            ["chunk", hash] => {
                self.chunks.push(u64::from_str_radix(hash, 16).ok()?);
                return Some(());
            }
            ["exit", ..] => &mut self.exits,
            ["event", ..] => &mut self.events,
            ["counter", ..] => &mut self.counters,
            _ => return None,
        };
        let [_, name, count] = *words else { return None };
        counts.insert(name.replace('-', " "), count.parse().ok()?);
        Some(())
    }
}
