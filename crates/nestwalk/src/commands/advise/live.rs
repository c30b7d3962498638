//! Advice on a process that runs: what is there is read, accesses are sampled, and stand-ins that the
//! samples allow are simulated.

use super::choices::Pages;
use super::judge::Run;
use super::model::Model;
use super::seen::{self, Seen};
use super::show::Report;
use super::standin::Order;
use super::{ACCESSES, print, settings, work};
use crate::args::AdviseArgs;
use crate::progress::{Amount, Meter, Phase, Phases};
use crate::settings::lab;
use anyhow::{Result, anyhow, bail};
use nestwalk_host::{Cut, Missing, ProcessMemory, Roots, SAMPLERS, Sampling, Snapshot, sample};
use nestwalk_lab::{Experiment, Fragmentation, Settings};
use nestwalk_report::{bytes, count};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Seconds that samples may take: what is shorter sees nothing, what is longer was mistyped.
const SECONDS: std::ops::RangeInclusive<f64> = 0.1..=3600.0;

/// `nestwalk advise PID`.
///
/// # Errors
/// There is no such process, it cannot be looked at, or it ended meanwhile; then what was found is
/// printed.
pub fn advise(args: &AdviseArgs, pid: u32, stop: &Arc<AtomicBool>) -> Result<()> {
    check(args)?;
    let roots = roots(args);
    if pid == 0 {
        bail!("there is no process 0");
    }
    let process = ProcessMemory::open(&roots.proc, pid)?;
    let snapshot = read(&process, args.quiet, stop)?;
    let seen = Seen::of(&roots, &process, &snapshot);
    let mut report = Report { target: seen.target.clone(), ..Report::default() };
    seen.tell(&mut report);
    report.missing.extend(snapshot.missing.clone());
    if snapshot.cut.is_some() {
        report.cut = Some("the process ended while its memory was read".into());
        print(args, report, &[], Vec::new())?;
        bail!(
            "process {pid} ({}) ended while its memory was read: nothing was sampled",
            process.name
        );
    }
    let begin = Instant::now();
    let sampled = samples(args, &roots, &process, &snapshot, stop, &mut report);
    seen.tell_exits(&roots, begin.elapsed().as_secs_f64(), &mut report);
    let Some((sampling, busy)) = sampled else {
        report.cut = Some("no sampler saw accesses".into());
        print(args, report, &[], Vec::new())?;
        bail!("no sampler saw accesses of process {pid} ({}): see \"not seen\"", process.name);
    };
    let experiment = experiment(args, &seen, 0, args.seed)?;
    report.profile.clone_from(&experiment.profile.description);
    let hertz = experiment.profile.core.frequency_mhz.value * 1e6;
    let model = Model::new(&snapshot, &sampling, &seen.ranges, busy, hertz);
    tell_samples(&mut report, &sampling, &model, busy);
    report.assumptions.extend(seen.assumptions(&sampling, &model));
    report.narrower.extend(seen.narrower(&report));
    let gone = sampling.cut.then(|| ended(&process, stop));
    report.cut.clone_from(&gone);
    if model.in_use() == 0 {
        report.cut.get_or_insert_with(|| "no page was used".into());
        print(args, report, &[], Vec::new())?;
        let idle = format!("process {pid} ({}) used no memory while it was sampled", process.name);
        bail!("{}: sample for longer (--seconds 30), or when it works", gone.unwrap_or(idle));
    }
    let (runs, failed) = simulate(args, &seen, &model, &process.name, stop);
    if let Some(error) = &failed {
        report.cut = Some(format!("{error:#}"));
    }
    print(args, report, &runs, seen.today())?;
    match (failed, gone) {
        (Some(error), _) => Err(error),
        (None, Some(gone)) => bail!("{gone}: the answer is of what was sampled before"),
        (None, None) => Ok(()),
    }
}

fn ended(process: &ProcessMemory, stop: &AtomicBool) -> String {
    let (pid, name) = (process.pid, &process.name);
    match stop.load(Ordering::Relaxed) {
        true => format!("interrupted while process {pid} ({name}) was sampled"),
        false => format!("process {pid} ({name}) ended while it was sampled"),
    }
}

fn check(args: &AdviseArgs) -> Result<()> {
    if !SECONDS.contains(&args.seconds) {
        bail!("--seconds {}: from {} to {} seconds", args.seconds, SECONDS.start(), SECONDS.end());
    }
    if let Some(name) = &args.sampler
        && !SAMPLERS.iter().any(|s| s.name == name)
    {
        let names: Vec<&str> = SAMPLERS.iter().map(|s| s.name).collect();
        bail!("--sampler {name}: there is none of that name; there are {}", names.join(", "));
    }
    for (option, given) in
        [("--footprint", args.footprint.is_some()), ("--trace-format", args.trace_format.is_some())]
    {
        if given {
            bail!("{option}: is for sources, not for a process that runs");
        }
    }
    Ok(())
}

fn roots(args: &AdviseArgs) -> Roots {
    let mut roots = Roots::default();
    if let Some(sys) = &args.sys {
        roots.kvm = sys.join("kernel/debug/kvm");
        roots.sys.clone_from(sys);
    }
    if let Some(proc) = &args.proc {
        roots.proc.clone_from(proc);
    }
    roots
}

/// Reads what is mapped, with progress.
fn read(process: &ProcessMemory, quiet: bool, stop: &AtomicBool) -> Result<Snapshot> {
    let phases = Phases::new(quiet);
    phases.begin(Phase::new("reading where the process's addresses are"));
    let mut go_on = |done: u64, total: u64| {
        phases.at(Amount::Bytes { done, total: Some(total) });
        !stop.load(Ordering::Relaxed)
    };
    let snapshot = process.read(&mut go_on)?;
    if snapshot.cut == Some(Cut::Stopped) {
        bail!("interrupted: nothing was sampled yet");
    }
    Ok(snapshot)
}

/// Samples, and how many processors were in use meanwhile. What is missing goes into the report.
fn samples(
    args: &AdviseArgs,
    roots: &Roots,
    process: &ProcessMemory,
    snapshot: &Snapshot,
    stop: &AtomicBool,
    report: &mut Report,
) -> Option<(Sampling, f64)> {
    let phases = Phases::new(args.quiet);
    phases.begin(Phase::new("sampling accesses"));
    let mut counters = seen::counters(roots, process, &mut report.missing);
    let before = process.processor_seconds();
    let begin = Instant::now();
    let go_on = || !stop.load(Ordering::Relaxed);
    let time = Duration::from_secs_f64(args.seconds);
    let found = sample(roots, process, snapshot, time, args.sampler.as_deref(), &go_on);
    let wall = begin.elapsed().as_secs_f64();
    // Its time is not known any more where it has ended: one processor was in use.
    let busy = before.zip(process.processor_seconds()).map_or(1.0, |(b, a)| (a - b) / wall);
    if let Some(counters) = &mut counters {
        seen::tell_counters(counters, report);
    }
    seen::memory_samples(roots, &mut report.missing, &mut report.narrower);
    match found {
        Ok((sampling, lacked)) => {
            report.missing.extend(lacked);
            Some((sampling, busy.max(0.0)))
        }
        Err(lacked) => {
            report.missing.extend(lacked);
            None
        }
    }
}

fn tell_samples(report: &mut Report, sampling: &Sampling, model: &Model, busy: f64) {
    let windows: Vec<String> = model
        .windows
        .iter()
        .map(|w| {
            let used = bytes(w.pages().round() as u64 * nestwalk_host::PAGE_BYTES);
            format!("{used} in {:.3} s", w.seconds)
        })
        .collect();
    let sampler = sampling.sampler;
    let used = windows.join(", ");
    report.facts.push(("sampled", format!("{}: {used}", sampler.sees)));
    let visits = count(model.instructions_per_page);
    report.facts.push((
        "busy",
        format!("{busy:.2} processors on average; up to {visits} instructions from page to page"),
    ));
    let window = |w: &nestwalk_host::Window| json!({ "seconds": w.seconds, "used_bytes": w.pages() * nestwalk_host::PAGE_BYTES as f64 });
    report.seen.insert("sampler".into(), json!(sampler.name));
    report.seen.insert("windows".into(), model.windows.iter().map(window).collect());
    report.seen.insert("processors_in_use".into(), json!(busy));
    report.seen.insert("instructions_per_page".into(), json!(model.instructions_per_page));
}

/// What the machines of a stand-in are asked for.
fn experiment(args: &AdviseArgs, seen: &Seen, footprint: u64, seed: u64) -> Result<Experiment> {
    let asked = settings(args)?;
    let lies = |here| if here { seen.fragmentation } else { Fragmentation::default() };
    lab().experiment(&Settings {
        sources: vec!["uniform".into()],
        footprint: Some(footprint.max(1 << 20)),
        accesses: asked.accesses.filter(|n| *n > 0).or(Some(ACCESSES)),
        populate: Some(true),
        guest_fragmentation: lies(seen.is_guest()),
        host_fragmentation: lies(!seen.is_guest()),
        seed,
        ..asked
    })
}

/// Runs both stand-ins with each seed: the runs that came to their end, and what ended the one that did
/// not.
fn simulate(
    args: &AdviseArgs,
    seen: &Seen,
    model: &Model,
    name: &str,
    stop: &Arc<AtomicBool>,
) -> (Vec<Run>, Option<anyhow::Error>) {
    let mut runs = Vec::new();
    for seed in (args.seed..).take(args.repeat.unwrap_or(1).into()) {
        let in_order = Order::InOrder { instructions: model.instructions_per_page };
        for (what, order) in [("in order", in_order), ("at random", Order::AtRandom { seed })] {
            let label = match args.repeat {
                None | Some(1) => what.to_owned(),
                Some(_) => format!("{what} (seed {seed})"),
            };
            let experiment = experiment(args, seen, model.bytes(), seed);
            let name = format!("{name}, {label}");
            match experiment.and_then(|e| one(args, &e, model, &name, order, stop)) {
                Ok(machines) => runs.push(Run { label, machines }),
                Err(error) => return (runs, Some(error.context(label))),
            }
        }
    }
    (runs, None)
}

fn one(
    args: &AdviseArgs,
    experiment: &Experiment,
    model: &Model,
    name: &str,
    order: Order,
    stop: &Arc<AtomicBool>,
) -> Result<Vec<nestwalk_lab::MachineResult>> {
    let source = model.stand_in(name, order, experiment.accesses);
    let source = source.ok_or_else(|| anyhow!("no page is used"))?;
    let opened = lab().open_with(experiment, &work(), Box::new(source))?;
    let session = Meter::run(experiment, opened, args.quiet, stop)?.complete()?;
    Ok(session.outcome.machines)
}

/// What a report lacks by name, for whoever says what would narrow it.
pub fn lacks(missing: &[Missing], what: &str) -> bool {
    missing.iter().any(|m| m.what == what)
}

/// Both ways that a dimension may be which nobody sees.
pub fn unseen(known: impl Fn(bool) -> Pages) -> Vec<Pages> {
    vec![known(false), known(true)]
}
