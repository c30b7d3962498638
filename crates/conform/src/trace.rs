//! What KVM's tracepoints say, as lines of events.

use crate::{Answers, Events};
use std::collections::BTreeMap;

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
    /// Scripts that could not be performed, with the reason.
    pub failed: Vec<(String, String)>,
    /// All scripts were performed.
    pub complete: bool,
}

/// Reads the output of the real guest's VMM.
#[must_use]
pub fn report(text: &str) -> Report {
    let mut report = Report::default();
    let mut name = String::new();
    let mut open = false;
    for line in text.lines() {
        let Some((_, mark)) = line.split_once('@') else {
            if open && let Some(event) = event(line) {
                let answers = report.answers.entry(name.clone()).or_default();
                if let Some(last) = answers.last_mut() {
                    last.push(event);
                }
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
