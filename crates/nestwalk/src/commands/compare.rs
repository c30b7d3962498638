//! `compare` and `run`: one source, many machines, one table.

use crate::args::{CompareArgs, OutputArgs, RunArgs};
use crate::commands::fleet;
use crate::commands::samples::Samples;
use crate::formats::{self, Found};
use crate::progress::{Meter, Phases};
use crate::signals::stop_on_signals;
use crate::{outcome, sensitivity, settings, show};
use anyhow::{Context, Result, anyhow, bail};
use nestwalk_capture::live::NOT_STARTED;
use nestwalk_lab::{Experiment, Fleet, Outcome, Session, VERSION, Work};
use nestwalk_report::{count, parse_count};
use nestwalk_types::SourceInfo;
use serde_json::{Value, json};
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::process::ExitCode;

/// `nestwalk compare`.
pub fn compare(args: &CompareArgs) -> Result<ExitCode> {
    if !args.fleet.vms.is_empty() {
        fleet::compare(args, &settings::settings(args)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    experiment(
        &settings::experiment(args)?,
        &args.output,
        &Tables {
            sensitivity: args.sensitivity,
            walk_map: args.walk_map,
            ..Tables::of(args.energy, args.contiguity, args.contiguity_every.as_deref())?
        },
    )
}

/// `nestwalk run`.
pub fn run(args: &RunArgs) -> Result<ExitCode> {
    if Fleet::is_in(&args.file) {
        fleet::repeat(&args.file, &args.output)?;
        return Ok(ExitCode::SUCCESS);
    }
    experiment(
        &settings::lab().read(&args.file)?,
        &args.output,
        &Tables {
            sensitivity: args.sensitivity,
            ..Tables::of(args.energy, args.contiguity, args.contiguity_every.as_deref())?
        },
    )
}

/// What is told beside the counts.
struct Tables {
    energy: bool,
    sensitivity: bool,
    contiguity: bool,
    walk_map: bool,
    /// Instructions between two looks at contiguity.
    every: Option<u64>,
}

impl Tables {
    fn of(energy: bool, contiguity: bool, every: Option<&str>) -> Result<Self> {
        let every = every.map(parse_count).transpose().context("--contiguity-every")?;
        if every == Some(0) {
            bail!("--contiguity-every 0: at least 1 instruction is needed");
        }
        Ok(Self { energy, sensitivity: false, contiguity, walk_map: false, every })
    }
}

fn experiment(experiment: &Experiment, output: &OutputArgs, tables: &Tables) -> Result<ExitCode> {
    let Tables { energy, sensitivity, contiguity, walk_map, every } = *tables;
    let work = Work { threads: output.threads()?, series: None };
    let phases = Phases::new(output.quiet);
    let mut opened = settings::lab().open(experiment, &work, &mut |step| phases.listen(step))?;
    drop(phases);
    let samples = Samples::new(output, opened.machines())?;
    if let Some(samples) = &samples {
        opened.record_samples(samples.cut);
    }
    if contiguity {
        opened.look_at_contiguity(every);
    }
    if walk_map {
        opened.map_walks();
    }
    // A place that cannot be written to is found out before the work, not after it.
    if let Some(folder) = &output.output {
        prepare(folder, experiment)?;
    }
    let session = Meter::run(experiment, opened, output.quiet, &stop_on_signals())?;
    let Session { info, outcome } = &session;
    // Nothing of what was asked for has run: there is nothing to tell of it.
    if let Some(how) = info.failed.as_ref().filter(|how| how.starts_with(NOT_STARTED)) {
        bail!("{how}");
    }
    let results = Results { experiment, info, outcome, energy, sensitivity };
    // Whatever happens to one copy of the results, the other is written.
    let saved = output.output.as_ref().map_or(Ok(()), |folder| formats::save(folder, &results));
    let sampled = match &samples {
        Some(samples) => samples.save(experiment, &info.name, outcome),
        None => Ok(Vec::new()),
    };
    let printed = print(&output.format.render(&results)?);
    saved.and(printed)?;
    for line in sampled?.iter().filter(|_| !output.quiet) {
        crate::tell::tell(format_args!("nestwalk: {line}"));
    }
    let session = session.complete()?;
    Ok(of_command(session.info.failed.as_deref()))
}

/// The exit code of a run that went well, by how the command did that it was a run of. What went wrong
/// is the last that is told; 2 is kept for errors of this program.
pub fn of_command(failed: Option<&str>) -> ExitCode {
    match failed {
        None => ExitCode::SUCCESS,
        Some(how) => {
            crate::tell::tell(format_args!("nestwalk: {how}; the results are those of its run"));
            ExitCode::from(1)
        }
    }
}

fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("standard output")
}

/// Makes the folder with the configuration in it. Results of another run do not stay beside it.
fn prepare(folder: &Path, experiment: &Experiment) -> Result<()> {
    std::fs::create_dir_all(folder)
        .with_context(|| format!("--output {}: cannot be made", folder.display()))?;
    for name in formats::files() {
        let path = folder.join(name);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != ErrorKind::NotFound => {
                return Err(anyhow!(e).context(format!("{}: cannot be replaced", path.display())));
            }
            _ => {}
        }
    }
    formats::write(folder, "config.toml", &experiment.to_toml()?)
}

/// Everything that is shown of a comparison.
struct Results<'a> {
    experiment: &'a Experiment,
    info: &'a SourceInfo,
    outcome: &'a Outcome,
    /// The table of energies is shown.
    energy: bool,
    /// The table of what each price decides is shown.
    sensitivity: bool,
}

impl Found for Results<'_> {
    /// Documented in `fields::RESULTS` and `nestwalk_sim::FIELDS`.
    fn json(&self) -> Result<Value> {
        let profile = &self.experiment.profile;
        let guests = self.outcome.guests.iter();
        let guests: serde_json::Map<String, Value> =
            guests.map(|(name, g)| (name.clone(), outcome::json(g, profile))).collect();
        Ok(json!({
            "version": VERSION,
            "source": self.info.name,
            "description": self.info.description,
            "approximations": self.info.approximations,
            "profile": self.experiment.profile.name,
            "complete": self.outcome.error.is_none(),
            "error": self.outcome.error.as_ref().map(ToString::to_string),
            "guests": guests,
            "machines": serde_json::to_value(&self.outcome.machines)?,
        }))
    }

    fn rows(&self) -> Result<Vec<Value>> {
        Ok(self.outcome.machines.iter().map(serde_json::to_value).collect::<Result<_, _>>()?)
    }

    fn table(&self) -> String {
        let mut out = String::new();
        let info = self.info;
        out += &format!("source   {}: {}\n", info.name, info.description);
        out += &format!("profile  {}\n", self.experiment.profile.description);
        if let Some(m) = self.outcome.machines.first() {
            let (accesses, instructions) = (count(m.accesses), count(m.instructions));
            out += &format!("counted  {accesses} accesses, {instructions} instructions\n");
        }
        for (name, guest) in &self.outcome.guests {
            out += &outcome::lines(name, guest, &self.experiment.profile);
        }
        for line in &info.approximations {
            out += &format!("note     {line}\n");
        }
        out += &show::set_up(&self.outcome.machines, self.experiment.populate);
        out.push('\n');
        out += &show::machines(&self.outcome.machines);
        out += &show::exits(&self.outcome.machines);
        out += &show::segments(&self.outcome.machines);
        out += &show::contiguity(&self.outcome.machines);
        if self.energy {
            out += &show::energy(&self.outcome.machines);
        }
        if self.sensitivity {
            out += &sensitivity::table(&self.outcome.machines, &self.experiment.profile);
        }
        out += &show::coverage(&self.outcome.machines);
        out += &show::coverage_over_time(&self.outcome.machines);
        out += &show::referee(&self.outcome.machines);
        out
    }
}
