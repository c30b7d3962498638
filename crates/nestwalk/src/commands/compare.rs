//! `compare` and `run`: one source, many machines, one table.

use crate::args::{CompareArgs, OutputArgs, RunArgs, TableArgs};
use crate::commands::fleet;
use crate::commands::samples::Samples;
use crate::formats::{self, Found, parquet};
use crate::progress::{Meter, Phases};
use crate::screen::Screen;
use crate::show::baseline::Baseline;
use crate::show::columns::{self, Chosen, Context as Shown};
use crate::show::repeats::Repeats;
use crate::signals::stop_on_signals;
use crate::{outcome, sensitivity, settings, show};
use anyhow::{Context, Result, anyhow, bail};
use nestwalk_capture::live::NOT_STARTED;
use nestwalk_lab::results::Compared;
use nestwalk_lab::{Experiment, Fleet, MachineResult, Opened, Outcome, Session, Work};
use nestwalk_report::{Table, count, paragraph, parse_count};
use nestwalk_types::SourceInfo;
use serde_json::Value;
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;

/// The results of one run as `--output` writes them into results.json.
///
/// # Errors
/// A part cannot be written as JSON.
pub fn results(experiment: &Experiment, session: &Session) -> Result<Value> {
    Results::new(experiment, &Tables::default(), session, &[]).json()
}

/// Where the rest is.
const MORE: &str = "more     --wide: misses, references, exits by reason; --columns NAME,...; nestwalk explain WORD\n";

/// `nestwalk compare`.
pub fn compare(args: &CompareArgs) -> Result<ExitCode> {
    if !args.fleet.vms.is_empty() {
        parquet::refuse(&args.output.output, "of several VMs")?;
        fleet::compare(args, &settings::settings(args)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let tables = Tables { walk_map: args.walk_map, ..Tables::of(&args.tables)? };
    experiment(&settings::experiment(args)?, &args.output, &tables)
}

/// `nestwalk run`.
pub fn run(args: &RunArgs) -> Result<ExitCode> {
    if Fleet::is_in(&args.file) {
        parquet::refuse(&args.output.output, "of several VMs")?;
        fleet::repeat(&args.file, &args.output)?;
        return Ok(ExitCode::SUCCESS);
    }
    let tables = Tables::of(&args.tables)?;
    experiment(&settings::lab().read(&args.file)?, &args.output, &tables)
}

/// What is told beside the counts.
#[derive(Default)]
struct Tables {
    wide: bool,
    /// Columns in place of the first table's.
    columns: Option<Vec<Chosen>>,
    /// Rows are of numbers, not of machines.
    long: bool,
    /// Seeds.
    repeat: u16,
    energy: bool,
    sensitivity: bool,
    contiguity: bool,
    walk_map: bool,
    /// Instructions between two looks at contiguity.
    every: Option<u64>,
}

impl Tables {
    fn of(args: &TableArgs) -> Result<Self> {
        let every = args.contiguity_every.as_deref().map(parse_count).transpose();
        let every = every.context("--contiguity-every")?;
        if every == Some(0) {
            bail!("--contiguity-every 0: at least 1 instruction is needed");
        }
        Ok(Self {
            wide: args.wide,
            columns: args.columns.as_deref().map(columns::choose).transpose()?,
            long: args.long,
            repeat: args.repeat,
            energy: args.energy,
            sensitivity: args.sensitivity,
            contiguity: args.contiguity,
            walk_map: false,
            every,
        })
    }
}

fn experiment(experiment: &Experiment, output: &OutputArgs, tables: &Tables) -> Result<ExitCode> {
    if tables.repeat > 1 && output.samples.is_some() {
        bail!("--samples: of one run only; leave --repeat {} out", tables.repeat);
    }
    let mut opened = open(experiment, output, tables)?;
    let samples = Samples::new(output, opened.machines())?;
    if let Some(samples) = &samples {
        opened.record_samples(samples.cut);
    }
    // A place that cannot be written to is found out before the work, not after it.
    if let Some(place) = &output.output {
        match parquet::is_named(place) {
            true => parquet::prepare("--output", place)?,
            false => prepare(place, experiment)?,
        }
    }
    let stop = stop_on_signals();
    let session = Meter::run(experiment, opened, output.quiet, &stop)?;
    // Nothing of what was asked for has run: there is nothing to tell of it.
    if let Some(how) = session.info.failed.as_ref().filter(|how| how.starts_with(NOT_STARTED)) {
        bail!("{how}");
    }
    let (others, ended) = repeat(experiment, output, tables, &session, &stop);
    let results = Results::new(experiment, tables, &session, &others);
    // Whatever happens to one copy of the results, the other is written.
    let saved = match &output.output {
        None => Ok(()),
        Some(file) if parquet::is_named(file) => formats::save_rows(file, &results),
        Some(folder) => formats::save(folder, &results),
    };
    let sampled = match &samples {
        Some(samples) => samples.save(experiment, &session.info.name, &session.outcome),
        None => Ok(Vec::new()),
    };
    let printed = print(&output.format.render(&results)?);
    saved.and(printed)?;
    for line in sampled?.iter().filter(|_| !output.quiet) {
        crate::tell::tell(format_args!("nestwalk: {line}"));
    }
    let session = session.complete()?;
    ended?;
    Ok(of_command(session.info.failed.as_deref()))
}

/// The experiment, ready to run.
fn open(experiment: &Experiment, output: &OutputArgs, tables: &Tables) -> Result<Opened> {
    let work = Work { threads: output.threads()?, series: None };
    let phases = Phases::new(output.quiet);
    let mut opened = settings::lab().open(experiment, &work, &mut |step| phases.listen(step))?;
    if tables.contiguity {
        opened.look_at_contiguity(tables.every);
    }
    if tables.walk_map {
        opened.map_walks();
    }
    Ok(opened)
}

/// The same with the seeds after the first, each with its seed: those that came to their end, and what
/// ended the one that did not.
fn repeat(
    experiment: &Experiment,
    output: &OutputArgs,
    tables: &Tables,
    first: &Session,
    stop: &AtomicBool,
) -> (Vec<(u64, Session)>, Result<()>) {
    let mut others = Vec::new();
    if first.outcome.error.is_some() {
        return (others, Ok(()));
    }
    for more in 1..u64::from(tables.repeat) {
        let seed = experiment.seed.wrapping_add(more);
        let mut again = Experiment { seed, ..experiment.clone() };
        if let Some(guest) = &mut again.guest {
            guest.seed = seed;
        }
        let run = || {
            let opened = open(&again, output, tables)?;
            Meter::run(&again, opened, output.quiet, stop)?.complete()
        };
        match run() {
            Ok(session) => others.push((seed, session)),
            Err(error) => return (others, Err(error.context(format!("--repeat: seed {seed}")))),
        }
    }
    (others, Ok(()))
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
    tables: &'a Tables,
    info: &'a SourceInfo,
    outcome: &'a Outcome,
    /// Machines with each seed, those of `outcome` first.
    runs: Vec<(u64, &'a [MachineResult])>,
    base: Option<Baseline<'a>>,
    repeats: Option<Repeats>,
}

impl<'a> Results<'a> {
    fn new(
        experiment: &'a Experiment,
        tables: &'a Tables,
        session: &'a Session,
        others: &'a [(u64, Session)],
    ) -> Self {
        let Session { info, outcome } = session;
        let base = Baseline::of(&outcome.machines);
        let first = (experiment.seed, outcome.machines.as_slice());
        let others = others.iter().map(|(seed, s)| (*seed, s.outcome.machines.as_slice()));
        let runs: Vec<_> = std::iter::once(first).chain(others).collect();
        let (seeds, machines): (Vec<u64>, Vec<_>) = runs.iter().copied().unzip();
        let repeats = base.filter(|_| tables.repeat > 1);
        let repeats = repeats.and_then(|base| Repeats::new(base, &seeds, &machines));
        Self { experiment, tables, info, outcome, runs, base, repeats }
    }

    fn compared(&self) -> Compared<'_> {
        let Self { experiment, info, outcome, base, .. } = *self;
        Compared { experiment, info, outcome, base, repeats: self.repeats.as_ref() }
    }

    /// What ran, and what is to be known about it.
    fn head(&self) -> String {
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
        out + &show::set_up(&self.outcome.machines, self.experiment.populate)
    }

    /// The tables, in order.
    fn tables(&self) -> Vec<Table> {
        let (machines, tables) = (&self.outcome.machines, self.tables);
        let context = Shown { base: self.base, repeats: self.repeats.as_ref() };
        let first = match &tables.columns {
            None => columns::brief(&context, machines),
            Some(chosen) => columns::asked(chosen, &context, machines),
        };
        let wide = |table: fn(&[MachineResult]) -> Option<Table>| {
            if tables.wide { table(machines) } else { None }
        };
        let profile = &self.experiment.profile;
        let all = [
            Some(first),
            tables.wide.then(|| columns::wide(&context, machines)),
            wide(show::exits),
            wide(show::segments),
            wide(show::contiguity),
            if tables.energy { show::energy(machines) } else { None },
            if tables.sensitivity { sensitivity::table(machines, profile) } else { None },
            show::coverage(machines),
            show::coverage_over_time(machines),
            show::sampled(self.outcome),
        ];
        all.into_iter().flatten().collect()
    }
}

impl Found for Results<'_> {
    fn json(&self) -> Result<Value> {
        self.compared().json()
    }

    fn rows(&self) -> Result<Vec<Value>> {
        if self.tables.long {
            return show::long::rows(&self.info.name, self.experiment, &self.runs);
        }
        Ok(self.outcome.machines.iter().map(serde_json::to_value).collect::<Result<_, _>>()?)
    }

    fn table(&self, screen: Screen) -> String {
        let verdict = self.compared().verdict();
        let best = verdict.as_ref().map(|v| v.fastest.as_str());
        let mut tables = self
            .tables()
            .into_iter()
            .map(|table| screen.table(&table.render_within(screen.columns()), best));
        let mut out = screen.lines(&self.head());
        out += &format!("\n{}", tables.next().unwrap_or_default());
        if let Some(verdict) = &verdict {
            let text = verdict.sentences.join(" ");
            out += &format!("\n{}", paragraph("verdict  ", &text, screen.columns()));
        }
        if !self.tables.wide && self.tables.columns.is_none() {
            out += &screen.lines(MORE);
        }
        for table in tables {
            out += &format!("\n{table}");
        }
        out + &show::referee(&self.outcome.machines)
    }
}
