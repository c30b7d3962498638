//! `compare` and `run`: one source, many machines, one table.

use crate::args::{CompareArgs, Format, OutputArgs, RunArgs};
use crate::experiment::Experiment;
use crate::progress::Meter;
use crate::{show, sources};
use anyhow::{Context, Result, anyhow, bail};
use nestwalk_report::count;
use nestwalk_sim::compare::{Outcome, compare as drive};
use nestwalk_types::SourceInfo;
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// `nestwalk compare`.
pub fn compare(args: &CompareArgs) -> Result<()> {
    experiment(&Experiment::from_args(args)?, &args.output)
}

/// `nestwalk run`.
pub fn run(args: &RunArgs) -> Result<()> {
    experiment(&Experiment::from_file(&args.file)?, &args.output)
}

fn experiment(experiment: &Experiment, output: &OutputArgs) -> Result<()> {
    let threads = match output.threads {
        Some(0) => bail!("--threads 0: at least 1 is needed"),
        Some(n) => n,
        None => std::thread::available_parallelism().map_or(1, usize::from),
    };
    let plan = experiment.plan(threads)?;
    // A place that cannot be written to is found out before the work, not after it.
    if let Some(folder) = &output.output {
        prepare(folder, experiment)?;
    }
    let mut source = sources::open(experiment)?;
    let stop = Arc::new(AtomicBool::new(false));
    let on_signal = Arc::clone(&stop);
    // A second handler in one process (tests) is no reason to fail.
    let _ = ctrlc::set_handler(move || on_signal.store(true, Ordering::Relaxed));
    let meter = Meter::new(&source.info(), output.quiet);
    let outcome = drive(&plan, source.as_mut(), &stop, &mut |p| meter.show(p))?;
    meter.done();
    let info = source.info();
    drop(source);
    let counted = outcome.machines.first().map_or(0, |m| m.accesses);
    let json = as_json(experiment, &info, &outcome)?;
    let printed = render(output.format, experiment, &info, &outcome, &json)?;
    std::io::stdout().lock().write_all(printed.as_bytes())?;
    if let Some(folder) = &output.output {
        let table = render(Format::Table, experiment, &info, &outcome, &json)?;
        let csv = render(Format::Csv, experiment, &info, &outcome, &json)?;
        write(folder, "table.txt", &table)?;
        write(folder, "results.csv", &csv)?;
        write(folder, "results.json", &(serde_json::to_string_pretty(&json)? + "\n"))?;
    }
    let violations: u64 =
        outcome.machines.iter().filter_map(|m| m.referee.as_ref()).map(|v| v.violations).sum();
    if let Some(error) = outcome.error {
        return Err(anyhow!(error).context(format!(
            "ended early; the results printed are those of the first {} accesses",
            count(counted)
        )));
    }
    if violations > 0 {
        bail!("the referee found {violations} violations: the results cannot be trusted");
    }
    if counted == 0 {
        bail!("the source made no access: there is nothing to compare");
    }
    Ok(())
}

fn prepare(folder: &Path, experiment: &Experiment) -> Result<()> {
    std::fs::create_dir_all(folder)
        .with_context(|| format!("--output {}: cannot be made", folder.display()))?;
    write(folder, "config.toml", &toml::to_string(experiment)?)
}

fn write(folder: &Path, name: &str, text: &str) -> Result<()> {
    let path = folder.join(name);
    std::fs::write(&path, text).with_context(|| format!("{}: cannot be written", path.display()))
}

fn as_json(experiment: &Experiment, info: &SourceInfo, outcome: &Outcome) -> Result<Value> {
    let guests: serde_json::Map<String, Value> = outcome
        .guests
        .iter()
        .map(|(pages, s)| {
            let stats = json!({
                "faults": s.faults,
                "first_touches": s.first_touches,
                "copies": s.copies,
                "reuses": s.reuses,
                "splits": s.splits,
                "fallbacks": s.fallbacks,
                "implicit_mappings": s.implicit_mappings,
                "peak_table_bytes": s.peak_table_bytes,
                "peak_resident_bytes": s.peak_resident_bytes,
                "pages_4k": s.pages_4k,
                "pages_2m": s.pages_2m,
                "pages_4m": s.pages_4m,
                "pages_1g": s.pages_1g,
                "processes": s.processes,
            });
            (pages.clone(), stats)
        })
        .collect();
    Ok(json!({
        "version": experiment.version,
        "source": info.name,
        "description": info.description,
        "approximations": info.approximations,
        "profile": experiment.profile.name,
        "complete": outcome.error.is_none(),
        "error": outcome.error.as_ref().map(ToString::to_string),
        "guests": guests,
        "machines": serde_json::to_value(&outcome.machines)?,
    }))
}

fn render(
    format: Format,
    experiment: &Experiment,
    info: &SourceInfo,
    outcome: &Outcome,
    json: &Value,
) -> Result<String> {
    Ok(match format {
        Format::Json => serde_json::to_string_pretty(json)? + "\n",
        Format::Csv => match &json["machines"] {
            Value::Array(rows) => nestwalk_report::to_csv(rows)?,
            _ => String::new(),
        },
        Format::Table => table(experiment, info, outcome),
    })
}

fn table(experiment: &Experiment, info: &SourceInfo, outcome: &Outcome) -> String {
    let mut out = String::new();
    let first = outcome.machines.first();
    out += &format!("source   {}: {}\n", info.name, info.description);
    out += &format!("profile  {}\n", experiment.profile.description);
    if let Some(m) = first {
        out += &format!(
            "counted  {} accesses, {} instructions\n",
            count(m.accesses),
            count(m.instructions)
        );
    }
    for (pages, s) in &outcome.guests {
        out += &format!(
            "guest    {pages}: {} faults, {} resident at most, {} tables at most\n",
            count(s.faults),
            nestwalk_report::bytes(s.peak_resident_bytes),
            nestwalk_report::bytes(s.peak_table_bytes)
        );
    }
    for line in &info.approximations {
        out += &format!("note     {line}\n");
    }
    out.push('\n');
    out += &show::machines(&outcome.machines);
    out += &show::exits(&outcome.machines);
    out += &show::referee(&outcome.machines);
    out
}
