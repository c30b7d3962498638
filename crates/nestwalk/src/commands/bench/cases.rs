//! What `bench --against` measures: whole commands that builds of long ago understand, too.

use super::limits::{Kind, Limit};
use anyhow::{Result, bail};
use nestwalk_lab::words;
use nestwalk_mm::PagePolicy;
use nestwalk_sim::Catalogue;
use nestwalk_sim::compare::spec::{Defaults, MachineSpec};

/// What is taken of a command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Measure {
    /// The rate that `bench --case` prints, without set-up, as nanoseconds of processor time an access.
    PerAccess,
    /// Seconds of processor time, all in all.
    Processor,
    /// The most memory, MiB.
    Peak,
}

impl Measure {
    /// Its unit.
    pub const fn unit(self) -> &'static str {
        match self {
            Self::PerAccess => "ns/access",
            Self::Processor => "s",
            Self::Peak => "MiB",
        }
    }
}

/// A command and what is taken of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Task {
    /// Its words.
    pub args: Vec<String>,
    /// What is taken.
    pub measure: Measure,
}

impl Task {
    fn new(measure: Measure, line: &str) -> Self {
        Self { args: line.split_whitespace().map(String::from).collect(), measure }
    }
    fn of_case(case: &str, accesses: u64) -> Self {
        Self::new(Measure::PerAccess, &format!("bench --case {case} --accesses {accesses}"))
    }
}

/// What is set against what.
#[derive(Clone, PartialEq, Debug)]
pub enum Sides {
    /// The old binary against the new one, by the same command.
    Binaries(Task),
    /// Two ways of the new binary: the first against the sum of the others.
    Ways(Task, Vec<Task>),
}

/// A case.
#[derive(Clone, PartialEq, Debug)]
pub struct Case {
    /// Its name.
    pub name: String,
    /// What is measured.
    pub sides: Sides,
    /// The loop that does only what the machine's memory must, where there is one.
    pub limit: Option<Limit>,
}

/// Machines of the paths, one at a time.
const ALONE: [&str; 4] = ["ideal", "native", "shadow", "nested"];

/// Schemes in one pass of a recording that a recording's filter is exact for, and that all builds have.
pub const TWELVE: [&str; 12] = [
    "native",
    "shadow",
    "nested",
    "agile",
    "switching",
    "xen-pv",
    "sie",
    "vmm-direct",
    "spot",
    "rmm",
    "anchor",
    "native-rmm",
];

/// Whole commands: name, what is taken, and the command.
const COMMANDS: [(&str, Measure, &str); 6] = [
    ("replay/storm", Measure::Processor, "compare storm"),
    ("replay/redis", Measure::Processor, "compare redis"),
    ("replay/gcc", Measure::Processor, "compare gcc"),
    ("replay/words", Measure::Processor, "compare words"),
    (
        "populate/64GiB",
        Measure::Processor,
        "compare uniform --footprint 64GiB --populate yes --accesses 1000",
    ),
    ("memory/1TiB", Measure::Peak, "compare gups --footprint 1TiB --populate no --accesses 4M"),
];

/// Every case; `accesses` of each single pass of the paths. Passes of all schemes, which take as long as
/// all of them together, get a tenth; paths on which nothing misses, five times as many.
///
/// # Errors
/// A scheme's name is none, which a test excludes.
pub fn all(accesses: u64) -> Result<Vec<Case>> {
    let mut all = Vec::new();
    for path in [Kind::Walks, Kind::Scattered, Kind::TlbHit, Kind::Stream] {
        for machine in ALONE {
            let name = format!("{}/{machine}", path.name());
            let often = if matches!(path, Kind::TlbHit | Kind::Stream) { 5 } else { 1 };
            let sides = Sides::Binaries(Task::of_case(&name, accesses * often));
            all.push(Case { name, sides, limit: Some(Limit::Path(path, machine)) });
        }
    }
    for (name, measure, line) in COMMANDS {
        let line = format!("{line} --threads 1 --quiet --format json");
        let sides = Sides::Binaries(Task::new(measure, &line));
        let limit = match name.split_once('/') {
            Some(("replay", sample)) => Some(Limit::Recording(sample)),
            Some(("populate", _)) => Some(Limit::Populating(64 << 30)),
            _ => None,
        };
        all.push(Case { name: name.into(), sides, limit });
    }
    all.push(together(Kind::Walks, accesses / 10, |_| true)?);
    // Machines whose first level is of another kind have little in common with the rest.
    all.push(together(Kind::Scattered, accesses / 10, |m| !m.has_own_l1_sets())?);
    let replay = |machines: &str| {
        let line = format!("compare storm --machines {machines} --threads 1 --quiet --format json");
        Task::new(Measure::Processor, &line)
    };
    let sides = Sides::Ways(replay(&TWELVE.join(",")), TWELVE.map(replay).into());
    all.push(Case { name: "together/storm".into(), sides, limit: None });
    Ok(all)
}

/// Every scheme once, at its default, in one pass, against the sum of single passes.
fn together(path: Kind, accesses: u64, with: impl Fn(&MachineSpec) -> bool) -> Result<Case> {
    let names: Vec<String> = every_machine()?.into_iter().filter(with).map(|m| m.name).collect();
    let task = |names: &str| Task::of_case(&format!("{}/{names}", path.name()), accesses);
    let single = names.iter().map(|name| task(name)).collect();
    let sides = Sides::Ways(task(&names.join(",")), single);
    Ok(Case { name: format!("together/{}", path.name()), sides, limit: None })
}

/// The machines of `--machines all` for sources of processes.
///
/// # Errors
/// A name is none, which a test excludes.
pub fn every_machine() -> Result<Vec<MachineSpec>> {
    let defaults = Defaults { pages: PagePolicy::Base, observed: false };
    let all = words::ALL_SCHEMES;
    let names = words::expand(all, &Catalogue::new(), defaults, |_| Ok(()), &mut |_| ());
    Ok(names.split(',').map(|n| MachineSpec::parse(n, defaults)).collect::<Result<_, _>>()?)
}

/// The cases that begin with one of the words between commas; all of an empty text.
///
/// # Errors
/// A word begins no name.
pub fn chosen(cases: Vec<Case>, words: &str) -> Result<Vec<Case>> {
    let words: Vec<&str> = words.split(',').map(str::trim).filter(|w| !w.is_empty()).collect();
    let names: Vec<&str> = cases.iter().map(|c| c.name.as_str()).collect();
    if let Some(word) = words.iter().find(|w| !names.iter().any(|n| n.starts_with(*w))) {
        bail!("--case {word}: no case's name begins so; there are: {}", names.join(", "));
    }
    let is_chosen = |c: &Case| words.is_empty() || words.iter().any(|w| c.name.starts_with(w));
    Ok(cases.into_iter().filter(is_chosen).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_have_names_of_their_own_and_are_chosen_by_their_beginnings() {
        let cases = all(20_000_000).unwrap();
        let names: Vec<String> = cases.iter().map(|c| c.name.clone()).collect();
        let mut once = names.clone();
        once.sort();
        once.dedup();
        assert_eq!(once.len(), names.len(), "{names:?}");
        let count =
            |words: &str| chosen(cases.clone(), words).map(|c| c.len()).map_err(|e| e.to_string());
        assert_eq!(count(""), Ok(names.len()));
        assert_eq!(count("walks"), Ok(4));
        assert_eq!(count("walks/nested, replay"), Ok(5));
        assert!(count("walk,nothing").unwrap_err().contains("nothing"));
    }

    #[test]
    fn together_is_every_scheme_once_and_scattered_the_usual_ones() {
        let cases = all(1000).unwrap();
        let singles = |name: &str| match &cases.iter().find(|c| c.name == name).unwrap().sides {
            Sides::Ways(_, single) => single.len(),
            Sides::Binaries(_) => 0,
        };
        assert_eq!(singles("together/walks"), nestwalk_sim::SCHEMES.len());
        let scattered = singles("together/scattered");
        assert!((12..singles("together/walks")).contains(&scattered), "{scattered}");
        assert_eq!(singles("together/storm"), 12);
    }
}
