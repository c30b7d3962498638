//! `conform`: the modelled KVM against the real one, event by event.

mod live;
mod recorded;
mod show;

use crate::args::ConformArgs;
use crate::progress::{Amount, Phase, Phases};
use anyhow::{Context, Result, bail};
use nestwalk_conform::compare::{Difference, first_difference};
use nestwalk_conform::paging::Paging;
use nestwalk_conform::program::Program;
use nestwalk_conform::script::compile;
use nestwalk_conform::sheet::{self, Sheet};
use nestwalk_conform::{Answers, random, scripts};
use nestwalk_sim::scheme::vmm_options::KvmVersion;
use std::path::Path;

/// Random scripts unless a number is given.
const RANDOM: u64 = 100;

/// The real KVM of a kernel: which rules it is compared with, and what it answered.
struct Referee {
    /// As `--kvm` has it.
    version: &'static str,
    rules: KvmVersion,
    paging: Paging,
    sheet: Sheet,
    /// It was asked just now.
    live: bool,
}

/// A script under one kernel.
struct Compared {
    name: String,
    actions: usize,
    events: usize,
    difference: Option<(Difference, String)>,
    /// The real one's actions and events.
    answered: Vec<(String, nestwalk_conform::Events)>,
}

/// A kernel with everything that was compared.
struct Verdict {
    referee: Referee,
    scripts: Vec<Compared>,
    /// Seeds that were compared, and those of them that do not agree.
    random: u64,
    differing: Vec<u64>,
}

/// `nestwalk conform`.
///
/// # Errors
/// A script is wrong, the real KVM cannot be asked, or an event differs.
pub fn conform(args: &ConformArgs) -> Result<()> {
    if args.list {
        for (name, text) in scripts::all() {
            crate::tell::say(&format!("script {name}\n{}", text.trim_end()));
        }
        return Ok(());
    }
    if !args.recorded.is_empty() {
        return recorded::conform(args);
    }
    let programs = chosen(&args.scripts)?;
    let seeds = args.random.unwrap_or(if args.scripts.is_empty() { RANDOM } else { 0 });
    let phases = Phases::new(args.quiet);
    let referees = referees(args, &programs, seeds, &phases)?;
    let mut verdicts = Vec::new();
    for referee in referees {
        phases.begin(Phase::new("comparing"));
        verdicts.push(verdict(referee, &programs, seeds, &phases)?);
    }
    phases.end();
    let found = show::Conformance { verdicts: &verdicts, events: args.events };
    crate::tell::say(args.format.render(&found)?.trim_end());
    let wrong: usize = verdicts.iter().map(Verdict::wrong).sum();
    if wrong > 0 {
        bail!("{wrong} scripts do not agree in every event");
    }
    Ok(())
}

impl Verdict {
    fn wrong(&self) -> usize {
        self.scripts.iter().filter(|s| s.difference.is_some()).count() + self.differing.len()
    }
}

/// The scripts that were asked for, compiled.
fn chosen(words: &[String]) -> Result<Vec<Program>> {
    let known = scripts::all();
    let mut texts = Vec::new();
    for word in words {
        if let Some(script) = known.iter().find(|(name, _)| name == word) {
            texts.push(script.clone());
        } else if Path::new(word).is_file() {
            let text = std::fs::read_to_string(word).with_context(|| word.clone())?;
            let own = scripts::split(&text);
            if own.is_empty() {
                bail!("{word}: it has no line \"script NAME\"");
            }
            texts.extend(own);
        } else {
            bail!("{word} is neither a script nor a file; --list prints the scripts");
        }
    }
    let texts = if words.is_empty() { known } else { texts };
    texts.iter().map(|(name, text)| Ok(compile(name, text)?)).collect()
}

/// Versions of the kernel that were asked for, with their rules.
fn kernels(args: &ConformArgs) -> Vec<(&'static str, KvmVersion)> {
    let all = [("6.1", KvmVersion::V6_1), ("6.12", KvmVersion::V6_12)];
    let wanted = |version: &str| args.kvm.is_empty() || args.kvm.iter().any(|v| v == version);
    all.into_iter().filter(|(version, _)| wanted(version)).collect()
}

/// What was asked for.
const fn paging(args: &ConformArgs) -> Paging {
    if args.nested { Paging::Nested } else { Paging::Shadow }
}

/// How names of answer sheets begin.
const fn before(paging: Paging) -> &'static str {
    match paging {
        Paging::Shadow => "",
        Paging::Nested => "nested-",
    }
}

/// Writes an answer sheet where it is to be kept, if it is.
fn save(args: &ConformArgs, name: &str, text: &str) -> Result<()> {
    let Some(folder) = &args.record else { return Ok(()) };
    let path = folder.join(name);
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    std::fs::write(&path, text).with_context(|| path.display().to_string())
}

/// The kernels to compare with, from answer sheets or asked now.
fn referees(
    args: &ConformArgs,
    programs: &[Program],
    seeds: u64,
    phases: &Phases,
) -> Result<Vec<Referee>> {
    let (paging, mut referees) = (paging(args), Vec::new());
    for (version, rules) in kernels(args) {
        let sheet = if args.live {
            let sheet = live::ask((version, paging), programs, seeds, args, phases)?;
            save(args, &format!("{}{version}.txt", before(paging)), &sheet.text())?;
            sheet
        } else {
            let text = sheet::recorded(version, paging).context("no answers were recorded")?;
            Sheet::read(text).with_context(|| format!("answers of {version}"))?
        };
        referees.push(Referee { version, rules, paging, sheet, live: args.live });
    }
    Ok(referees)
}

fn verdict(referee: Referee, programs: &[Program], seeds: u64, phases: &Phases) -> Result<Verdict> {
    let total = programs.len() as u64 + seeds;
    let at = |done| phases.at(Amount::Items { done, total });
    let mut compared = Vec::new();
    for (i, program) in programs.iter().enumerate() {
        at(i as u64);
        let Some(answered) = referee.sheet.scripts.get(&program.name) else {
            bail!("{}: KVM {} was not asked; --live asks it", program.name, referee.version);
        };
        compared.push(compare(&referee, program, answered)?);
    }
    let mut differing = Vec::new();
    for seed in 1..=seeds {
        at(programs.len() as u64 + seed);
        let Some(hash) = referee.sheet.random.get(&seed) else {
            bail!(
                "random script {seed}: KVM {} was asked about {}; --live asks about more",
                referee.version,
                referee.sheet.random.len()
            );
        };
        let program = random::program(seed)?;
        let answers = referee.paging.perform(&program, referee.rules)?;
        if sheet::hash(&sheet::answered(&program, &answers)) != *hash {
            differing.push(seed);
        }
    }
    Ok(Verdict { referee, scripts: compared, random: seeds, differing })
}

fn compare(
    referee: &Referee,
    program: &Program,
    answered: &[(String, nestwalk_conform::Events)],
) -> Result<Compared> {
    let actions: Vec<String> = program.actions.iter().map(ToString::to_string).collect();
    if answered.iter().map(|(action, _)| action).ne(actions.iter()) {
        bail!(
            "{}: KVM {} was asked about another script of this name; --live asks it again",
            program.name,
            referee.version
        );
    }
    let real: Answers = answered.iter().map(|(_, events)| events.clone()).collect();
    let model = referee.paging.perform(program, referee.rules)?;
    let difference = first_difference(&real, &model);
    Ok(Compared {
        name: program.name.clone(),
        actions: actions.len(),
        events: real.iter().map(Vec::len).sum(),
        difference: difference.map(|d| {
            let action = actions.get(d.action).cloned().unwrap_or_default();
            (d, action)
        }),
        answered: answered.to_vec(),
    })
}
