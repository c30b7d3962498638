//! What KVM's tracepoints say, as lines of events.

use crate::{Answers, Events};
use std::collections::BTreeMap;

/// The small guest's store, MOV [RDI], RSI.
const STORE: &str = "48 89 37";

/// The value behind a word: `gfn 20 l4` has `20` behind `gfn`.
fn after<'a>(words: &[&'a str], word: &str) -> Option<&'a str> {
    let place = words.iter().position(|w| *w == word)?;
    words.get(place + 1).copied()
}

fn hex(word: &str) -> Option<u64> {
    u64::from_str_radix(word.trim_start_matches("0x"), 16).ok()
}

/// `sp gen 0 gfn 23 l1 8-byte q0 wux nxe ad root 0 sync`: frame, level, kind, permissions.
fn page(words: &[&str]) -> Option<String> {
    let gfn = after(words, "gfn")?;
    let level = words.iter().find(|w| w.starts_with('l') && w.len() == 2)?;
    let kind = if words.contains(&"direct") { " direct" } else { "" };
    let access = words.iter().find(|w| {
        w.len() == 3 && w.chars().zip("wux".chars()).all(|(c, all)| c == all || c == '-')
    })?;
    Some(format!("{gfn} {level}{kind} {access}"))
}

/// One line of a trace, as an event; `None` if it is none that is compared.
///
/// Not compared are exits, whose reasons follow from the action and the faults; drops of roots that were
/// dropped before (`invalid`); and accessed and dirty bits of shadow entries.
#[must_use]
pub fn event(line: &str) -> Option<String> {
    // Before the event's name, whoever records says which thread, processor and time.
    let name = line.split_whitespace().find(|word| {
        word.ends_with(':') && (word.starts_with("kvm_") || word.starts_with("fast_page"))
    })?;
    let (_, rest) = line.split_once(name)?;
    let words: Vec<&str> = rest.split_whitespace().collect();
    match name.trim_end_matches(':') {
        "kvm_page_fault" => {
            let code = hex(after(&words, "error_code")?)?;
            Some(format!("fault {:x} {code:x}", hex(after(&words, "address")?)? & !0xfff))
        }
        "kvm_inj_exception" => {
            // An interrupt of the host may come while it is delivered: then it is given again.
            let first = rest.contains("#PF") && !rest.contains("reinjected");
            first.then(|| "inject".to_owned())
        }
        // Of a store; the VMM emulates INVLPG and loads of CR3, too.
        "kvm_emulate_insn" => rest.contains(STORE).then(|| "emulate".to_owned()),
        "kvm_mmu_set_accessed_bit" => Some(format!("accessed {}", after(&words, "gpa")?)),
        "kvm_mmu_set_dirty_bit" => Some(format!("dirty {}", after(&words, "gpa")?)),
        "kvm_mmu_get_page" => {
            let made = if words.contains(&"new") { "new" } else { "old" };
            Some(format!("get {} {made}", page(&words)?))
        }
        "kvm_mmu_unsync_page" => Some(format!("unsync {}", page(&words)?)),
        "kvm_mmu_sync_page" => Some(format!("sync {}", page(&words)?)),
        "kvm_mmu_prepare_zap_page" => {
            let zapped = !words.contains(&"invalid");
            zapped.then(|| page(&words).map(|p| format!("zap {p}"))).flatten()
        }
        "kvm_mmu_set_spte" => {
            let permits = words.iter().find(|w| w.starts_with('('))?;
            let index = hex(after(&words, "at")?)? >> 3 & 511;
            let (gfn, level) = (after(&words, "gfn")?, after(&words, "level")?);
            // (rwxu): of these, what an entry may lack.
            let permits = permits.trim_matches(['(', ')']);
            let letter = |c| if permits.contains(c) { c } else { '-' };
            let (w, x, u) = (letter('w'), letter('x'), letter('u'));
            Some(format!("set {gfn} l{level} i{index:x} {w}{u}{x}"))
        }
        "fast_page_fault" => Some("fast_page_fault".to_owned()),
        _ => None,
    }
}

/// What a run of the real guest wrote.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Answers by name of the script.
    pub answers: BTreeMap<String, Answers>,
    /// Exits by name of the script and reason, but for the OUT that ends each action.
    pub exits: BTreeMap<String, BTreeMap<String, u64>>,
    /// What KVM itself has counted by the end of the script, by its names.
    pub counters: BTreeMap<String, BTreeMap<String, u64>>,
    /// Scripts that could not be performed, with the reason.
    pub failed: Vec<(String, String)>,
    /// The kernel had no room for so many lines.
    pub lost: u64,
    /// All scripts were performed.
    pub complete: bool,
}

impl Report {
    /// A line that the kernel wrote between marks.
    fn line(&mut self, name: &str, line: &str) {
        if let Some(lost) = line.split_once("[LOST ").and_then(|(_, rest)| rest.split_once(' ')) {
            self.lost += lost.0.parse().unwrap_or(1);
        }
        let reason = line.split_once("kvm_exit: ").and_then(|(_, rest)| {
            let (_, reason) = rest.split_once("reason ")?;
            Some(reason.split_once(" rip ")?.0.to_owned())
        });
        if let Some(reason) = reason {
            *self.exits.entry(name.to_owned()).or_default().entry(reason).or_default() += 1;
        } else if let Some(event) = event(line)
            && let Some(last) = self.answers.entry(name.to_owned()).or_default().last_mut()
        {
            last.push(event);
        }
    }
}

/// Reads the output of the real guest's VMM.
#[must_use]
pub fn report(text: &str) -> Report {
    let mut report = Report::default();
    let mut name = String::new();
    let mut open = false;
    for line in text.lines() {
        let Some((_, mark)) = line.split_once('@') else {
            if open {
                report.line(&name, line);
            }
            continue;
        };
        let mut words = mark.split_whitespace();
        match words.next() {
            Some("script") => {
                name = words.next().unwrap_or("").to_owned();
                report.answers.entry(name.clone()).or_default();
                open = true;
            }
            Some("do") => report.answers.entry(name.clone()).or_default().push(Events::new()),
            Some("counter") => {
                if let (Some(what), Some(Ok(n))) = (words.next(), words.next().map(str::parse)) {
                    report.counters.entry(name.clone()).or_default().insert(what.to_owned(), n);
                }
            }
            Some("close") => open = false,
            Some("failed") => {
                let why: Vec<&str> = words.collect();
                report.failed.push((name.clone(), why.join(" ")));
            }
            Some("done") => report.complete = true,
            _ => {}
        }
    }
    report
}
