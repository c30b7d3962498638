//! What is run: built-in workloads, recordings that come with the program, and recordings of a folder.

use crate::args::{Args, Command, ReproduceArgs};
use crate::progress::{Meter, Phases};
use crate::settings;
use anyhow::{Context, Error, Result, anyhow, bail};
use clap::Parser;
use nestwalk_hw::Profile;
use nestwalk_lab::{Experiment, Kind, Session, Work, kind};
use nestwalk_report::parse_bytes;
use nestwalk_sim::compare::CompareError;
use std::path::Path;
use std::sync::atomic::AtomicBool;

/// A program of an evaluation.
#[derive(Clone, Debug)]
pub struct Program {
    /// Its name in figures.
    pub name: String,
    /// The words of `compare` that name it.
    words: Vec<String>,
    /// It is a recording.
    recorded: bool,
    /// Accesses at most, and of the warm-up.
    most: Option<u64>,
    /// What one process has of the program's memory: times, parts.
    share: (u64, u64),
}

/// What results tell beside the counts.
#[derive(Clone, Copy)]
struct Look {
    series: Option<u64>,
    contiguity: bool,
}

/// A built-in program: its name, and the words of `compare`.
pub type BuiltIn = (&'static str, &'static str);

/// What `--programs` and `--recordings` choose: the built-in ones, then the recordings by name.
///
/// # Errors
/// The folder has no recording, or a name is not there.
pub fn chosen(args: &ReproduceArgs, built_in: &[BuiltIn]) -> Result<Vec<Program>> {
    let mut all: Vec<Program> =
        built_in.iter().map(|(name, words)| Program::of(name, words)).collect();
    if let Some(folder) = &args.recordings {
        all.extend(recordings(folder)?);
    }
    let Some(wanted) = &args.programs else { return Ok(all) };
    let mut found = Vec::new();
    for name in wanted.split(',').map(str::trim).filter(|n| !n.is_empty()) {
        // Of two of one name the recorded one is meant.
        let program = all.iter().rev().find(|p| p.name == name).ok_or_else(|| {
            let known: Vec<&str> = all.iter().map(|p| p.name.as_str()).collect();
            anyhow!("--programs: there is no `{name}`; there are: {}", known.join(", "))
        })?;
        found.push(program.clone());
    }
    if found.is_empty() {
        bail!("--programs: no program is named");
    }
    Ok(found)
}

/// Runs each program; whatever stops one leaves what was found of those before it.
///
/// # Errors
/// One cannot be run at all, which is found out before the first is run; or none came to its end.
pub fn each<T>(
    args: &ReproduceArgs,
    profile: &str,
    programs: &[Program],
    mut run: impl FnMut(&Program) -> Result<T>,
) -> Result<(Vec<T>, Option<Error>)> {
    args.output.threads()?;
    for program in programs {
        program
            .compare(args, profile, &["native".into()])
            .with_context(|| format!("program {}", program.name))?;
    }
    let mut found = Vec::new();
    for program in programs {
        match run(program) {
            Ok(one) => found.push(one),
            Err(error) if found.is_empty() => return Err(error),
            Err(error) => return Ok((found, Some(error))),
        }
    }
    Ok((found, None))
}

/// The traces of a folder, by name.
fn recordings(folder: &Path) -> Result<Vec<Program>> {
    let context = || format!("--recordings {}", folder.display());
    let mut paths = Vec::new();
    for file in std::fs::read_dir(folder).with_context(context)? {
        let path = file.with_context(context)?.path();
        if path.extension().is_some_and(|e| e == "nwt") {
            paths.push(path);
        }
    }
    paths.sort();
    if paths.is_empty() {
        bail!("{}: no file *.nwt; samples/thesis/record makes them", context());
    }
    let program = |path: &Path| {
        let stem = path.file_stem().and_then(|s| s.to_str());
        let (Some(stem), Some(path)) = (stem, path.to_str()) else {
            bail!("{}: not valid UTF-8", path.display());
        };
        Ok(Program {
            name: stem.into(),
            words: vec![path.into()],
            recorded: true,
            most: None,
            share: (1, 1),
        })
    };
    paths.iter().map(|p| program(p)).collect()
}

impl Program {
    /// A built-in program.
    pub fn of(name: &str, words: &str) -> Self {
        Self {
            name: name.into(),
            words: words.split_whitespace().map(Into::into).collect(),
            recorded: kind(words) == Some(Kind::Sample),
            most: None,
            share: (1, 1),
        }
    }

    /// Whether it is a recorded guest.
    pub const fn is_recorded(&self) -> bool {
        self.recorded
    }

    /// The same, cut short where there are many machines: so many accesses at most, and as many before
    /// that are not counted. A recording is as long as it is.
    pub const fn at_most(mut self, accesses: u64) -> Self {
        self.most = Some(accesses);
        self
    }

    /// The same with more options of `compare`.
    pub fn with(mut self, words: &str) -> Self {
        self.words.extend(words.split_whitespace().map(Into::into));
        self
    }

    /// The same in so many processes at once.
    pub fn copies(mut self, copies: usize) -> Self {
        if let Some(source) = self.words.first().cloned() {
            (1..copies).for_each(|_| self.words.insert(0, source.clone()));
        }
        self
    }

    /// The same with another part of its memory for each process: so many times it, in so many parts.
    pub const fn memory(mut self, times: u64, parts: u64) -> Self {
        self.share = (times, parts);
        self
    }

    /// Runs it on these machines, beside the controls that they need.
    ///
    /// # Errors
    /// It cannot be run, or not to its end.
    pub fn run(
        &self,
        args: &ReproduceArgs,
        profile: &str,
        machines: &[String],
        series: Option<u64>,
        stop: &AtomicBool,
    ) -> Result<Ran> {
        let look = Look { series, contiguity: false };
        self.session(args, (profile, &|_| ()), machines, look, stop)
            .with_context(|| format!("program {}", self.name))
    }

    /// Runs it, and looks at contiguity at the end.
    ///
    /// # Errors
    /// It cannot be run, or not to its end.
    pub fn run_and_look(
        &self,
        args: &ReproduceArgs,
        profile: &str,
        machines: &[String],
        stop: &AtomicBool,
    ) -> Result<Ran> {
        let look = Look { series: None, contiguity: true };
        self.session(args, (profile, &|_| ()), machines, look, stop)
            .with_context(|| format!("program {}", self.name))
    }

    /// Runs it with other numbers in the profile.
    ///
    /// # Errors
    /// It cannot be run, or not to its end.
    pub fn run_with(
        &self,
        args: &ReproduceArgs,
        profile: &str,
        machines: &[String],
        set: &dyn Fn(&mut Profile),
        stop: &AtomicBool,
    ) -> Result<Ran> {
        let look = Look { series: None, contiguity: false };
        self.session(args, (profile, set), machines, look, stop)
            .with_context(|| format!("program {}", self.name))
    }

    /// The words of `compare` as it would understand them, with the evaluation's options.
    fn compare(
        &self,
        args: &ReproduceArgs,
        profile: &str,
        machines: &[String],
    ) -> Result<Experiment> {
        let line = ["nestwalk", "compare", "--profile", profile, "--machines"].map(String::from);
        let line = line.into_iter().chain([machines.join(",")]).chain(self.words.clone());
        let Command::Compare(compare) = Args::try_parse_from(line)?.command else {
            bail!("{}: not a comparison", self.name);
        };
        let mut compare = *compare;
        compare.seed = args.seed;
        compare.verify = args.verify;
        compare.approximate |= args.approximate;
        if !self.recorded {
            if args.accesses.is_some() {
                compare.accesses.clone_from(&args.accesses);
            }
            if args.footprint.is_some() {
                compare.footprint.clone_from(&args.footprint);
            }
            if let (Some(text), (times, parts)) = (&compare.footprint, self.share) {
                let bytes = parse_bytes(text).context("--footprint")?;
                compare.footprint = Some((bytes.saturating_mul(times) / parts).to_string());
            }
        }
        let mut experiment = settings::experiment(&compare)?;
        if !self.recorded {
            if let Some(most) = self.most {
                experiment.accesses = experiment.accesses.min(most);
            }
            if args.accesses.is_some() || self.most.is_some() {
                experiment.warmup = experiment.warmup.min(experiment.accesses);
            }
        }
        Ok(experiment)
    }

    fn session(
        &self,
        args: &ReproduceArgs,
        (profile, set): (&str, &dyn Fn(&mut Profile)),
        machines: &[String],
        look: Look,
        stop: &AtomicBool,
    ) -> Result<Ran> {
        let mut experiment = self.compare(args, profile, machines)?;
        set(&mut experiment.profile);
        let machines = machines.len();
        let output = &args.output;
        let work = Work { threads: output.threads()?, series: look.series };
        let phases = Phases::new(output.quiet);
        if !output.quiet {
            crate::tell::tell(format_args!("{}: {machines} machines", self.name));
        }
        let mut opened =
            settings::lab().open(&experiment, &work, &mut |step| phases.listen(step))?;
        drop(phases);
        if look.contiguity {
            opened.look_at_contiguity(None);
        }
        let mut session = Meter::run(&experiment, opened, output.quiet, stop)?;
        let info = &mut session.info;
        for told in info.approximations.iter().filter(|told| told.starts_with(INEXACT)) {
            info.description = format!("{}; {told}", info.description);
        }
        match session.outcome.error {
            Some(CompareError::Interrupted) => bail!("interrupted: there are no results"),
            Some(error) => return Err(error.into()),
            None => {}
        }
        let refereed = session.outcome.machines.iter().filter_map(|m| m.referee.as_ref());
        let violations: u64 = refereed.map(|v| v.violations).sum();
        if violations > 0 {
            bail!("the referee found {violations} violations: the results cannot be trusted");
        }
        let first = session.outcome.machines.len() - machines;
        Ok(Ran { session, first, profile: experiment.profile })
    }
}

/// Begins what is said of TLBs that a recording's filter is not exact for.
const INEXACT: &str = "misses are approximate";

/// A program that was run.
pub struct Ran {
    /// What came of it.
    pub session: Session,
    /// Where the machines that were asked for begin, after the controls.
    pub first: usize,
    /// The hardware profile.
    pub profile: Profile,
}
