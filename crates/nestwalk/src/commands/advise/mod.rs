//! `advise`: larger pages or not and where, shadow or nested paging, and what hardware would give.

mod choices;
mod guest;
mod judge;
mod live;
mod model;
mod seen;
mod show;
mod standin;

use crate::args::AdviseArgs;
use crate::progress::Meter;
use crate::settings;
use crate::signals::stop_on_signals;
use anyhow::{Context, Result, bail};
use choices::Pages;
use judge::{Advice, Run};
use nestwalk_lab::{Experiment, Kind, Session, Settings, Work};
use nestwalk_report::{count, parse_bytes, parse_count};
use show::Report;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Accesses of what has no end of its own.
const ACCESSES: u64 = 2_000_000;
/// Seeds of a source.
const SEEDS: u16 = 3;

/// `nestwalk advise`.
///
/// # Errors
/// Something has no meaning, or cannot be read or run; what was found before has been printed.
pub fn advise(args: &AdviseArgs) -> Result<ExitCode> {
    let stop = stop_on_signals();
    let Some(target) = &args.target else { return guest::advise(args, &stop) };
    match target.parse::<u32>() {
        Ok(pid) if !Path::new(target).exists() => live::advise(args, pid, &stop)?,
        _ => of_source(args, target, "", &stop)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// What all machines of a source are asked for.
fn settings(args: &AdviseArgs) -> Result<Settings> {
    let accesses = args.accesses.as_deref().map(parse_count).transpose().context("--accesses")?;
    let footprint = args.footprint.as_deref().map(parse_bytes).transpose();
    Ok(Settings {
        machines: choices::names().join(","),
        profile: args.profile.clone(),
        accesses,
        footprint: footprint.context("--footprint")?,
        seed: args.seed,
        trace_format: args.trace_format.clone().unwrap_or_default(),
        approximate: args.approximate,
        ..Settings::default()
    })
}

/// Advice on a source, which the machines run with several seeds. It may be known by another name than
/// that which it is read by.
fn of_source(args: &AdviseArgs, source: &str, known: &str, stop: &Arc<AtomicBool>) -> Result<()> {
    let kind = nestwalk_lab::kind(source);
    let endless = matches!(kind, Some(Kind::Workload | Kind::Pattern));
    let mut asked = Settings { sources: vec![source.to_owned()], ..settings(args)? };
    asked.accesses = asked.accesses.or(endless.then_some(ACCESSES));
    let seeds = args.repeat.unwrap_or(SEEDS);
    let (mut runs, mut report) = (Vec::new(), Report::default());
    let mut ended = Ok(());
    for seed in (args.seed..).take(seeds.into()) {
        let experiment = settings::lab().experiment(&Settings { seed, ..asked.clone() })?;
        let run = || {
            let opened = settings::lab().open(&experiment, &work(), &mut |_| {})?;
            Meter::run(&experiment, opened, args.quiet, stop)?.complete()
        };
        match run() {
            Ok(session) => {
                about(&mut report, &experiment, &session);
                runs.push(Run {
                    label: format!("seed {seed}"),
                    machines: session.outcome.machines,
                });
            }
            Err(error) if runs.is_empty() => return Err(error),
            Err(error) => {
                ended = Err(error.context(format!("seed {seed}: the answer is of those before")));
                break;
            }
        }
    }
    if !known.is_empty() {
        report.target = known.to_owned();
    }
    report.assumptions.extend(assumptions_of_source(endless));
    report.narrower.extend(narrower_of_source(&runs, kind));
    print(args, report, &runs, vec![Pages::SMALL])?;
    ended
}

fn work() -> Work {
    Work::default()
}

/// What ran, by its first run.
fn about(report: &mut Report, experiment: &Experiment, session: &Session) {
    if !report.target.is_empty() {
        return;
    }
    let info = &session.info;
    report.target = format!("{}: {}", info.name, info.description);
    report.profile.clone_from(&experiment.profile.description);
    if let Some(m) = session.outcome.machines.first() {
        report.facts.push((
            "counted",
            format!("{} accesses, {} instructions", count(m.accesses), count(m.instructions)),
        ));
        let faults = session.outcome.machines.iter().map(|m| m.guest_faults).max().unwrap_or(0);
        report
            .facts
            .push(("faults", format!("{} page faults at most were counted", count(faults))));
    }
    report.assumptions.extend(info.approximations.iter().cloned());
}

fn assumptions_of_source(endless: bool) -> Vec<String> {
    let mut all = vec![
        "today is 4 KiB pages in guest and host, under nested paging".to_owned(),
        "large pages are transparent 2 MiB ones, which find free memory as in a system just begun".into(),
        "first touches count where the source has them: a longer run has fewer of them per instruction"
            .into(),
    ];
    if endless {
        all.push("a workload's memory was there before counting began".into());
    }
    all
}

fn narrower_of_source(runs: &[Run], kind: Option<Kind>) -> Vec<String> {
    let mut all = Vec::new();
    if runs.len() < 2 {
        all.push("more seeds (--repeat 5): ranges are of one run".to_owned());
    }
    if kind != Some(Kind::Sample) {
        all.push("more accesses (--accesses), if the source has phases".into());
    }
    all.push(
        "the fragmentation of the memory at hand: compare --guest-fragmentation /proc/buddyinfo"
            .into(),
    );
    all
}

/// Prints the answer of the runs.
fn print(args: &AdviseArgs, mut report: Report, runs: &[Run], today: Vec<Pages>) -> Result<()> {
    report.runs = runs.iter().map(|run| run.label.clone()).collect();
    let advice = Advice::of(runs, today);
    report.advice = match report.counted {
        Some(counted) => advice.map(|a| a.with_counted(runs, counted)),
        None => advice,
    };
    if report.advice.is_none() && !runs.is_empty() {
        bail!("the runs counted nothing: there is nothing to advise on");
    }
    let text = args.format().render(&report)?;
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("standard output")
}
