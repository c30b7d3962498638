//! What a machine `switching/...` is asked to do: `[POLICY][/KEY=VALUE]...`.
//!
//! The keys of the mechanism are below; all others are the policy's own (`nestwalk-policy` has them
//! with their ranges and sources). A part without `=` goes on with the value before it, so that a
//! policy's file may lie in a folder: `switching/svm/model=runs/trained.toml/keep=nested`.

use crate::scheme::options::{
    Key, OptionRow, OptionTable, SchemeOptions, number, one_of, whole, word_of,
};
use nestwalk_policy::{Mode, Policy, PolicySpec};
use std::str::FromStr;

/// The policy of a machine that names none and has no schedule: the thesis's best.
pub const DEFAULT_POLICY: &str = "dynamic-thresholds";
/// Length of an interval unless given, simulated milliseconds. The thesis samples every second, and its
/// programs run for minutes. A simulation of 20 million accesses covers 0.1 to 1 s, so that an
/// interval of 1 ms gives it some hundreds as well. What a switch costs does not scale with it.
pub const INTERVAL_MS: f64 = 1.0;

/// What happens to TLBs at a switch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TlbHandling {
    /// Everything of the VM is invalidated on all its cores.
    Flush,
    /// What both modes agree on stays: see [`crate::schemes::switching`].
    Carry,
}

/// Who says when.
#[derive(Clone, Debug)]
pub enum Schedule {
    /// A policy, asked at intervals of so many simulated milliseconds.
    Policy(PolicySpec, f64),
    /// The other mode after so many instructions each, for measurements.
    Alternate(u64),
    /// The modes of the intervals of so many instructions from the region of interest on; the last
    /// mode stays.
    Planned(u64, Vec<Mode>),
}

/// All of it.
#[derive(Clone, Debug)]
pub struct Options {
    /// Who says when.
    pub schedule: Schedule,
    /// The mode at the start.
    pub start: Mode,
    /// Nested tables stay while the VM is in shadow mode.
    pub keep_nested: bool,
    /// The host has pages behind all of the guest's memory before the VM begins, and nested tables that
    /// are there, or are kept, map it: the thesis's long-lived VM.
    pub prewarmed: bool,
    /// What happens to TLBs.
    pub tlb: TlbHandling,
    /// The policy's switches are made. Otherwise it only advises, and the VM stays in its mode.
    pub obey: bool,
}

/// Options of the mechanism as they were given.
#[derive(Default)]
struct Given {
    start: Option<Mode>,
    keep_nested: bool,
    prewarmed: bool,
    carry: bool,
    interval: Option<f64>,
    advise: Option<bool>,
    every: Option<u64>,
    plan: Option<Vec<Mode>>,
}

const KEEP: [(&str, bool); 2] = [("nothing", false), ("nested", true)];
const LIVED: [(&str, bool); 2] = [("short", false), ("long", true)];
const TLB: [(&str, bool); 2] = [("flush", false), ("carry", true)];
const OBEY: [(&str, bool); 2] = [("yes", false), ("no", true)];
const START: [(&str, Mode); 2] = [("shadow", Mode::Shadow), ("nested", Mode::Nested)];

static MECHANISM: OptionTable<Given> = OptionTable::new(&[
    OptionRow {
        name: "start",
        values: "shadow|nested",
        meaning: "the mode at the start; shadow unless given",
        set: |g, value| one_of(value, &START).map(|mode| g.start = Some(mode)),
        get: |g| g.start.map_or_else(String::new, |mode| word_of(&mode, &START)),
    },
    OptionRow {
        name: "keep",
        values: "nothing|nested",
        meaning: "tables that stay across switches; nothing unless given, as in the thesis",
        set: |g, value| one_of(value, &KEEP).map(|keep| g.keep_nested = keep),
        get: |g| word_of(&g.keep_nested, &KEEP),
    },
    OptionRow {
        name: "lived",
        values: "short|long",
        meaning: "whether the VM has just begun, or all of its memory was touched before; short unless \
                  given",
        set: |g, value| one_of(value, &LIVED).map(|long| g.prewarmed = long),
        get: |g| word_of(&g.prewarmed, &LIVED),
    },
    OptionRow {
        name: "tlb",
        values: "flush|carry",
        meaning: "whether TLBs are emptied at a switch, or keep what both modes agree on; flush unless \
                  given",
        set: |g, value| one_of(value, &TLB).map(|carry| g.carry = carry),
        get: |g| word_of(&g.carry, &TLB),
    },
    OptionRow {
        name: "interval",
        values: "0.001 to 10000",
        meaning: "simulated milliseconds from sample to sample; 1 unless given",
        set: |g, value| number(value, 0.001, 10_000.0).map(|ms| g.interval = Some(ms)),
        get: |g| g.interval.map_or_else(String::new, |ms| ms.to_string()),
    },
    OptionRow {
        name: "obey",
        values: "yes|no",
        meaning: "whether the policy's switches are made, or it only advises and hears that they were \
                  refused; yes unless given",
        set: |g, value| one_of(value, &OBEY).map(|advise| g.advise = Some(advise)),
        get: |g| g.advise.map_or_else(String::new, |advise| word_of(&advise, &OBEY)),
    },
    OptionRow {
        name: "every",
        values: "1 to 10^15",
        meaning: "in place of a policy: instructions from switch to switch",
        set: |g, value| whole(value, 1, 1_000_000_000_000_000).map(|n| g.every = Some(n)),
        get: |g| g.every.map_or_else(String::new, |n| n.to_string()),
    },
    OptionRow {
        name: "plan",
        values: "such as s40n13",
        meaning: "with every: modes and for how many of these intervals, from the region of interest on",
        set: |g, value| modes(value).map(|modes| g.plan = Some(modes)),
        get: |g| g.plan.as_deref().map_or_else(String::new, plan_text),
    },
]);

/// Options of the mechanism, and of whatever policy is named.
#[derive(Debug)]
pub struct SwitchingOptions;

impl SchemeOptions for SwitchingOptions {
    fn keys(&self) -> Vec<Key> {
        MECHANISM.keys()
    }

    fn normalize(&self, text: &str) -> Result<String, String> {
        variant(text)
    }
}

impl Options {
    /// The policy, newly made.
    ///
    /// # Errors
    /// What is wrong with its parameters, alone or together, or with a file that it names.
    pub fn policy(&self) -> Result<Option<Box<dyn Policy>>, String> {
        let Schedule::Policy(spec, _) = &self.schedule else { return Ok(None) };
        let read = |path: &str| std::fs::read_to_string(path);
        spec.build(self.start, &read).map(Some).map_err(|e| e.to_string())
    }
}

/// With the policy's name, whatever follows it as it is.
fn variant(text: &str) -> Result<String, String> {
    let parts = parts(text);
    let named = parts.first().is_some_and(|p| !p.contains('='));
    let scheduled = parts.iter().any(|p| p.starts_with("every="));
    let full = match (named || scheduled, text.is_empty()) {
        (true, _) => text.to_owned(),
        (false, true) => DEFAULT_POLICY.to_owned(),
        (false, false) => format!("{DEFAULT_POLICY}/{text}"),
    };
    full.parse::<Options>()?.policy()?;
    Ok(full)
}

/// The parts between slashes; one without `=` belongs to the value before it.
fn parts(text: &str) -> Vec<String> {
    let mut parts: Vec<String> = Vec::new();
    for part in text.split('/').filter(|_| !text.is_empty()) {
        match parts.last_mut() {
            Some(value) if value.contains('=') && !part.contains('=') => {
                *value += "/";
                *value += part;
            }
            _ => parts.push(part.to_owned()),
        }
    }
    parts
}

impl FromStr for Options {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = parts(text);
        let (policy, options) = match parts.split_first() {
            Some((policy, options)) if !policy.contains('=') => (Some(policy.as_str()), options),
            _ => (None, parts.as_slice()),
        };
        if let Some(part) = options.iter().find(|part| !part.contains('=')) {
            return Err(format!("`{part}` is not name=value"));
        }
        let (given, own) = MECHANISM.take(options.iter().map(String::as_str))?;
        let Given { start, keep_nested, prewarmed, carry, interval, advise, every, plan } = given;
        let schedule = match (policy, every, plan) {
            (Some(_), Some(_), _) => {
                return Err("a policy and every= exclude each other: leave one out".into());
            }
            (_, None, Some(_)) => return Err("plan= needs every=, the length of its parts".into()),
            (None, Some(every), plan) => {
                if let Some(unknown) = own.first() {
                    let names: Vec<&str> = MECHANISM.rows.iter().map(|row| row.name).collect();
                    let names = names.join(", ");
                    return Err(format!("`{unknown}`: without a policy the options are {names}"));
                }
                if interval.is_some() {
                    return Err("interval= is for policies; every= has its own length".into());
                }
                if advise.is_some() {
                    return Err("obey= is for policies; a schedule is always kept".into());
                }
                match plan {
                    None => Schedule::Alternate(every),
                    Some(modes) => Schedule::Planned(every, modes),
                }
            }
            (policy, None, None) => {
                let name = policy.unwrap_or(DEFAULT_POLICY);
                let spec = format!("{name}:{}", own.join(","));
                let spec = spec.parse::<PolicySpec>().map_err(|e| e.to_string())?;
                Schedule::Policy(spec, interval.unwrap_or(INTERVAL_MS))
            }
        };
        let planned = match &schedule {
            Schedule::Planned(_, modes) => modes.first().copied(),
            _ => None,
        };
        if planned.is_some() && start.is_some() {
            return Err("plan= says the mode at the start, too: leave start= out".into());
        }
        Ok(Self {
            schedule,
            start: planned.or(start).unwrap_or(Mode::Shadow),
            keep_nested,
            prewarmed,
            tlb: if carry { TlbHandling::Carry } else { TlbHandling::Flush },
            obey: !advise.unwrap_or(false),
        })
    }
}

/// Intervals that a plan may have: as many as fit into memory without notice.
const MOST_PLANNED: usize = 1 << 24;

/// `s40n13`: 40 intervals of shadow mode, then 13 of nested mode.
fn modes(text: &str) -> Result<Vec<Mode>, String> {
    let wrong = || format!("`{text}`: letters s and n, each with a count, are expected: s40n13");
    let mut modes: Vec<Mode> = Vec::new();
    let mut rest = text;
    while let Some(letter) = rest.chars().next() {
        let mode = match letter {
            's' => Mode::Shadow,
            'n' => Mode::Nested,
            _ => return Err(wrong()),
        };
        rest = &rest[1..];
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let count: usize = rest[..digits].parse().map_err(|_| wrong())?;
        if count == 0 || count > MOST_PLANNED - modes.len() {
            return Err(format!("`{text}`: 1 to {MOST_PLANNED} intervals in all are expected"));
        }
        modes.extend(std::iter::repeat_n(mode, count));
        rest = &rest[digits..];
    }
    if modes.is_empty() { Err(wrong()) } else { Ok(modes) }
}

/// The text of a plan: a value of `plan`.
pub fn plan_text(modes: &[Mode]) -> String {
    let mut text = String::new();
    for run in modes.chunk_by(|a, b| a == b) {
        text += if run[0] == Mode::Shadow { "s" } else { "n" };
        text += &run.len().to_string();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_completed_with_what_decides() {
        for (given, full) in [
            ("", "dynamic-thresholds"),
            ("keep=nested", "dynamic-thresholds/keep=nested"),
            ("dsp", "dsp"),
            ("every=1000", "every=1000"),
            (
                "static-thresholds/high=12/low=3/tlb=carry",
                "static-thresholds/high=12/low=3/tlb=carry",
            ),
        ] {
            assert_eq!(variant(given).as_deref(), Ok(full));
            assert_eq!(variant(full).as_deref(), Ok(full));
        }
    }

    #[test]
    fn keys_reach_the_mechanism_and_the_policy() {
        let o: Options =
            "static-thresholds/high=12/start=nested/keep=nested/interval=0.5".parse().unwrap();
        assert_eq!((o.start, o.keep_nested, o.tlb), (Mode::Nested, true, TlbHandling::Flush));
        let Schedule::Policy(spec, interval) = o.schedule else { panic!("a policy") };
        assert_eq!(interval.to_string(), "0.5");
        assert!(spec.to_string().starts_with("static-thresholds:high=12,"), "{spec}");
        let o: Options = "every=10/plan=s2n1s1".parse().unwrap();
        let Schedule::Planned(10, modes) = &o.schedule else { panic!("a plan") };
        assert_eq!(modes, &[Mode::Shadow, Mode::Shadow, Mode::Nested, Mode::Shadow]);
        assert_eq!(plan_text(modes), "s2n1s1");
        assert_eq!("every=10/plan=n1".parse::<Options>().unwrap().start, Mode::Nested);
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (text, says) in [
            ("fastest", "there is no policy `fastest`; there are static-thresholds"),
            ("keep=all", "keep=all: there are: nothing, nested"),
            ("tlb=carry/tlb=carry", "tlb is given twice"),
            ("start=both", "start=both: there are: shadow, nested"),
            ("interval=NaN", "not a number from 0.001 to 10000"),
            ("every=0", "not a whole number from 1 to"),
            ("dsp/every=10", "exclude each other"),
            ("plan=s1", "needs every="),
            ("every=10/plan=s1x2", "letters s and n"),
            ("every=10/plan=s", "letters s and n"),
            ("every=10/plan=s0", "1 to 16777216"),
            ("every=10/plan=é1", "letters s and n"),
            ("every=10/plan=s1/start=nested", "leave start= out"),
            ("every=10/high=3", "`high=3`: without a policy the options are start"),
            ("every=10/interval=3", "is for policies"),
            ("every=10/obey=no", "a schedule is always kept"),
            ("dsp/obey=maybe", "there are: yes, no"),
            ("dsp/fast", "`fast` is not name=value"),
            ("static-thresholds/hihg=3", "no parameter `hihg`"),
            ("static-thresholds/high=200", "is expected"),
            ("hindsight", "hindsight"),
            ("svm/model=no/such/file", "no/such/file"),
        ] {
            let e = variant(text).unwrap_err();
            assert!(e.contains(says), "{text}: {e}");
        }
    }
}
