//! `conform --recorded`: recorded guests, performed by the small guest under the real KVM.

use super::{before, kernels, live, paging, save};
use crate::args::ConformArgs;
use crate::formats::Found;
use crate::progress::{Amount, Phase, Phases};
use crate::screen::Screen;
use crate::show::headings;
use anyhow::{Context, Result, bail};
use nestwalk_conform::Answers;
use nestwalk_conform::compare::{Difference, first_difference};
use nestwalk_conform::figures::{self, Counts, Figures, Recordings, without_own};
use nestwalk_conform::paging::Paging;
use nestwalk_conform::recording::{Part, part};
use nestwalk_conform::stream::{self, Streamed};
use nestwalk_report::count;
use nestwalk_sim::scheme::vmm_options::KvmVersion;
use nestwalk_source::trace::TraceReader;
use nestwalk_types::Source;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;

/// Actions of a recording at most, unless a number is given.
const ACTIONS: usize = 300_000;
/// How far the machine's exits may lie from the real KVM's, by reason, in parts of a hundred.
const TOLERANCE: u64 = 2;

/// The real KVM of a kernel.
struct Referee {
    version: &'static str,
    rules: KvmVersion,
    paging: Paging,
    recordings: Recordings,
    /// Every event, if it was asked just now.
    answers: BTreeMap<String, Answers>,
}

/// A recording under one kernel.
struct Compared {
    version: &'static str,
    paging: Paging,
    kernel: String,
    qemu: String,
    live: bool,
    name: String,
    instructions: u64,
    real: Figures,
    model: Figures,
    machine: Streamed,
    /// Where the model does otherwise first, and by which action, if every event is at hand.
    shown: Option<(Difference, String)>,
}

/// `nestwalk conform --recorded`.
///
/// # Errors
/// A recording cannot be read, the real KVM cannot be asked, or figures differ.
pub(super) fn conform(args: &ConformArgs) -> Result<()> {
    let phases = Phases::new(args.quiet);
    phases.begin(Phase::new("reading the recordings"));
    let limit = args.actions.unwrap_or(ACTIONS);
    let mut compared = Vec::new();
    for referee in referees(args, limit, &phases)? {
        phases.begin(Phase::new("comparing"));
        for (i, word) in args.recorded.iter().enumerate() {
            phases.at(Amount::Items { done: i as u64, total: args.recorded.len() as u64 });
            compared.push(compare(&referee, word)?);
        }
    }
    phases.end();
    let found = Recorded(&compared);
    crate::tell::say(args.format.render(&found)?.trim_end());
    let wrong = compared.iter().filter(|c| !c.agrees()).count();
    if wrong > 0 {
        bail!("{wrong} recorded guests do not agree");
    }
    Ok(())
}

/// A recording that comes with the program, or a file.
fn open(word: &str) -> Result<(String, Box<dyn Source>)> {
    if let Some(sample) = nestwalk_lab::sample(word) {
        return Ok((word.to_owned(), Box::new(sample.open()?)));
    }
    let path = Path::new(word);
    if !path.is_file() {
        bail!("{word} is neither storm, gcc nor redis, nor a file");
    }
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().replace([' ', '@'], "-");
    Ok((stem, Box::new(TraceReader::open(path)?)))
}

fn take(word: &str, limit: usize) -> Result<Part> {
    let (name, mut source) = open(word)?;
    Ok(part(&name, &mut *source, limit)?)
}

/// The kernels to compare with, from answer sheets or asked now.
fn referees(args: &ConformArgs, limit: usize, phases: &Phases) -> Result<Vec<Referee>> {
    let mut parts = Vec::new();
    if args.live {
        parts = args.recorded.iter().map(|word| take(word, limit)).collect::<Result<_>>()?;
    }
    let (paging, mut referees) = (paging(args), Vec::new());
    for (version, rules) in kernels(args) {
        let (recordings, answers) = if args.live {
            let asked = live::ask_recorded((version, paging), &parts, args, phases)?;
            let name = format!("{}recorded-{version}.txt", before(paging));
            save(args, &name, &asked.0.text())?;
            asked
        } else {
            let text = figures::recorded(version, paging).context("no answers were recorded")?;
            let sheet = Recordings::read(text).with_context(|| format!("answers of {version}"))?;
            (sheet, BTreeMap::new())
        };
        referees.push(Referee { version, rules, paging, recordings, answers });
    }
    Ok(referees)
}

fn compare(referee: &Referee, word: &str) -> Result<Compared> {
    let (name, _) = open(word)?;
    let Some(real) = referee.recordings.figures.get(&name) else {
        bail!("{word}: KVM {} was not asked; --live asks it", referee.version);
    };
    let part = take(word, real.limit)?;
    let paging = referee.paging;
    let answers = paging.perform(&part.program, referee.rules)?;
    let answers = without_own(&part.program, paging, answers);
    let model = Figures::of(&part, paging, &answers, Counts::new());
    if (model.actions, model.program) != (real.actions, real.program) {
        bail!(
            "{word}: KVM {} was asked about another recording of this name; --live asks it again",
            referee.version
        );
    }
    let (_, mut source) = open(word)?;
    let machine = stream::run(&mut *source, &part, paging, referee.rules)?;
    let asked = referee.answers.get(&name);
    let shown = asked.and_then(|real| first_difference(real, &answers));
    Ok(Compared {
        version: referee.version,
        paging,
        kernel: referee.recordings.kernel.clone(),
        qemu: referee.recordings.qemu.clone(),
        live: asked.is_some(),
        name,
        instructions: part.instructions,
        real: real.clone(),
        model,
        machine,
        shown: shown.map(|d| {
            let action = part.program.actions.get(d.action);
            let action = action.map(ToString::to_string).unwrap_or_default();
            (d, action)
        }),
    })
}

impl Compared {
    /// Every event of every action, and the machine's exits by reason within the tolerance, and its
    /// shadow pages.
    fn agrees(&self) -> bool {
        self.real.first_difference(&self.model).is_none() && self.machine_agrees()
    }

    fn machine_agrees(&self) -> bool {
        let near = |a: u64, b: u64| a.abs_diff(b) * 100 <= a.max(b) * TOLERANCE;
        let of = |counts: &Counts, key: &str| counts.get(key).copied().unwrap_or(0);
        let (real, machine) = (&self.real, &self.machine);
        let reasons: BTreeSet<&String> = real.exits.keys().chain(machine.exits.keys()).collect();
        let pages = ["get new", "zap"].into_iter();
        reasons.iter().all(|r| near(of(&real.exits, r), of(&machine.exits, r)))
            && pages.into_iter().all(|k| of(&real.events, k) == of(&machine.events, k))
    }

    /// Each figure: exits or events, its name, and the count of KVM, of the model and of the machine.
    fn figures(&self) -> Vec<(&'static str, &String, [Option<u64>; 3])> {
        let mut rows = Vec::new();
        let (real, model, machine) = (&self.real, &self.model, &self.machine);
        for (kind, all) in [
            ("exits", [&real.exits, &model.exits, &machine.exits]),
            ("events", [&real.events, &model.events, &machine.events]),
        ] {
            let names: BTreeSet<&String> = all.iter().flat_map(|counts| counts.keys()).collect();
            for name in names {
                rows.push((kind, name, all.map(|counts| counts.get(name).copied())));
            }
        }
        rows
    }

    fn json(&self) -> Value {
        let (real, model, machine) = (&self.real, &self.model, &self.machine);
        let mut value = json!({
            "kvm": self.version,
            "paging": self.paging.name(),
            "kernel": self.kernel,
            "qemu": self.qemu,
            "live": self.live,
            "recording": self.name,
            "instructions": self.instructions,
            "actions": real.actions,
            "agrees": real.first_difference(model).is_none(),
            "machine_agrees": self.machine_agrees(),
            "exits": { "kvm": real.exits, "model": model.exits, "machine": machine.exits },
            "events": { "kvm": real.events, "model": model.events, "machine": machine.events },
            "counters": real.counters,
        });
        if let Some(action) = real.first_difference(model) {
            value["differs_from_action"] = action.into();
        }
        if let Some((d, action)) = &self.shown {
            value["difference"] = json!({
                "action_number": d.action,
                "action": action,
                "event_number": d.event,
                "kvm": d.real,
                "model": d.model,
            });
        }
        value
    }

    fn text(&self) -> String {
        let how = if self.live { "asked now" } else { "recorded" };
        let mut text = format!(
            "{} ({} instructions of the guest) under the KVM of Linux {}, QEMU {}, {how}, {} paging:\n",
            self.name,
            count(self.instructions),
            self.kernel,
            self.qemu,
            self.paging.name()
        );
        // Writing to a string cannot fail.
        let actions = count(self.real.actions as u64);
        let _ = match self.real.first_difference(&self.model) {
            None => writeln!(text, "all {actions} actions agree in every event"),
            Some(at) => writeln!(text, "events differ after action {at} of {actions}"),
        };
        if let Some((d, action)) = &self.shown {
            text += &super::show::side_by_side(&format!("action {} ({action})", d.action), d);
        }
        let mut table = headings::table(&headings::RECORDED);
        for (kind, name, counts) in self.figures() {
            let cell = |n: Option<u64>| n.map_or_else(|| "-".to_owned(), count);
            let mut cells = vec![kind.to_owned(), name.clone()];
            cells.extend(counts.map(cell));
            table.row(cells);
        }
        text + &table.render() + "\n"
    }
}

/// All recordings under all kernels.
struct Recorded<'a>(&'a [Compared]);

impl Found for Recorded<'_> {
    fn json(&self) -> Result<Value> {
        let all: Vec<Value> = self.0.iter().map(Compared::json).collect();
        Ok(json!({ "recordings": all }))
    }

    fn rows(&self) -> Result<Vec<Value>> {
        let rows = self.0.iter().flat_map(|c| {
            c.figures().into_iter().map(|(kind, name, [real, model, machine])| {
                json!({
                    "kvm": c.version,
                    "paging": c.paging.name(),
                    "kernel": c.kernel,
                    "recording": c.name,
                    "figure": kind,
                    "name": name,
                    "real": real,
                    "model": model,
                    "machine": machine,
                })
            })
        });
        Ok(rows.collect())
    }

    fn table(&self, _: Screen) -> String {
        self.0.iter().map(Compared::text).collect::<Vec<_>>().join("\n")
    }
}
