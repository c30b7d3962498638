//! From what was typed to an event stream.

pub mod memory;
mod recorded;
pub mod samples;

use crate::experiment::Experiment;
use anyhow::{Context, Result, anyhow, bail};
use memory::Given;
use nestwalk_adapt::{self as adapt, Layout};
use nestwalk_capture::Step;
use nestwalk_capture::live::Live;
use nestwalk_source::{
    Drmemtrace, Format, Lackey, Multiplex, Pattern, PatternSpec, RunOptions, are_one_trace,
};
use nestwalk_types::Source;
use nestwalk_workloads::{Populate, WORKLOADS, WorkloadSpec};
pub use recorded::{host_pages, mapped, recorded, survey, survey_mapped};
use std::ffi::OsString;
use std::path::Path;

/// Patterns in turn, beside [`Pattern::NAMES`].
pub const PHASES: &str = "phases";

/// What a source's name is the name of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A recording that comes with the program.
    Sample,
    /// A built-in workload.
    Workload,
    /// A synthetic pattern.
    Pattern,
    /// The path of a trace.
    File,
    /// Accesses in the memory of the program that runs the experiment.
    Memory,
}

/// What the source is; `None` if nothing of that name exists.
pub fn kind(source: &str) -> Option<Kind> {
    let word = source.split(':').next().unwrap_or(source);
    if source.starts_with(memory::PREFIX) {
        Some(Kind::Memory)
    } else if samples::by_name(source).is_some() {
        Some(Kind::Sample)
    } else if WORKLOADS.iter().any(|w| w.name == word) {
        Some(Kind::Workload)
    } else if Pattern::NAMES.contains(&word) || word == PHASES {
        Some(Kind::Pattern)
    } else {
        (source.contains(['/', '.']) || Path::new(source).exists()).then_some(Kind::File)
    }
}

/// The trace format of that name; `None` for the empty one, which leaves it to the file.
///
/// # Errors
/// There is no such format.
pub fn trace_format(name: &str) -> Result<Option<Format>> {
    match name {
        "" => Ok(None),
        _ => name.parse().map(Some).map_err(|e: String| anyhow!(e)),
    }
}

/// Opens everything that the experiment asks for, as one stream, of which `given` has what is in memory.
/// `say` hears the steps by which a real guest is made ready.
///
/// # Errors
/// A source cannot be opened.
pub fn open(
    experiment: &Experiment,
    mut given: Given,
    say: &mut dyn FnMut(Step<'_>),
) -> Result<Box<dyn Source>> {
    let source: Box<dyn Source> = if let Some(guest) = &experiment.guest {
        // Standard output is for the results.
        let output = Box::new(std::io::stderr());
        Box::new(Live::start(guest.boot(say)?, guest.options(), output)?)
    } else if !experiment.page_tables.is_empty() {
        let format = trace_format(&experiment.trace_format)?;
        Box::new(mapped(&experiment.sources, format, &experiment.page_tables)?)
    } else if experiment.lackey.is_empty() {
        open_sources(experiment, &mut given)?
    } else {
        let command: Vec<OsString> = experiment.lackey.iter().map(OsString::from).collect();
        let (vcpus, quantum) = (experiment.vcpus, experiment.quantum);
        let options = RunOptions { vcpus, quantum, ..RunOptions::default() };
        Box::new(Lackey::run(&command, &options)?)
    };
    Ok(cut(source, experiment))
}

/// The source as machines are driven with it: region of interest, warm-up, number of accesses.
pub fn cut(source: Box<dyn Source>, experiment: &Experiment) -> Box<dyn Source> {
    let source: Box<dyn Source> = if source.info().guest.is_none() {
        adapt::first_touch(source)
    } else if !experiment.page_tables.is_empty()
        || experiment.sources.iter().any(|s| recorded::has_interest(s))
    {
        source
    } else {
        Box::new(recorded::Interest::new(source))
    };
    let source: Box<dyn Source> = match experiment.warmup {
        0 => source,
        n => adapt::warmup(source, n),
    };
    match experiment.accesses {
        0 => source,
        n => adapt::limit(source, n),
    }
}

/// The files of the sources, if they are several that are one trace.
fn one_trace<'a>(sources: &'a [String], format: &str) -> Option<Vec<&'a Path>> {
    let readable = matches!(format, "" | "drmemtrace");
    let files = readable && sources.iter().all(|s| kind(s) == Some(Kind::File));
    let paths: Vec<&Path> = sources.iter().map(Path::new).collect();
    (files && are_one_trace(&paths)).then_some(paths)
}

/// Sources that are processes of their own: files of one trace are one.
pub fn programs(sources: &[String], format: &str) -> u64 {
    one_trace(sources, format).map_or(sources.len() as u64, |_| 1)
}

/// The sources: one, several as processes, or the files of one trace.
fn open_sources(experiment: &Experiment, given: &mut Given) -> Result<Box<dyn Source>> {
    if let [only] = experiment.sources.as_slice() {
        return open_one(only, experiment, given);
    }
    if let Some(paths) = one_trace(&experiment.sources, &experiment.trace_format) {
        return Ok(Box::new(Drmemtrace::open_files(&paths, experiment.vcpus)?));
    }
    let sources = experiment.sources.iter().map(|name| open_one(name, experiment, given));
    let sources = sources.collect::<Result<Vec<_>>>()?;
    Ok(Box::new(Multiplex::new(sources, experiment.vcpus, experiment.quantum)))
}

fn open_one(name: &str, experiment: &Experiment, given: &mut Given) -> Result<Box<dyn Source>> {
    match kind(name) {
        Some(Kind::Memory) => given.take(name).ok_or_else(|| {
            anyhow!("{name}: is an array in the memory of the program that made it, which alone can run it")
        }),
        Some(Kind::Sample) => {
            let sample = samples::by_name(name).ok_or_else(|| anyhow!("no sample `{name}`"))?;
            Ok(Box::new(sample.open()?))
        }
        Some(Kind::Workload) => open_workload(name, experiment),
        Some(Kind::Pattern) => {
            let base = PatternSpec {
                footprint: experiment.footprint,
                seed: experiment.seed,
                populate: Some(experiment.populate),
                vcpus: experiment.vcpus,
                ..PatternSpec::default()
            };
            let accesses = accesses(experiment).unwrap_or(base.accesses);
            let base = PatternSpec { accesses, ..base };
            let spec = PatternSpec::parse(name, &base).with_context(|| name.to_owned())?;
            Ok(Box::new(spec.source()))
        }
        Some(Kind::File) => {
            let format = trace_format(&experiment.trace_format)?;
            // Of several sources each is a process with one vCPU at a time.
            let vcpus = if experiment.sources.len() == 1 { experiment.vcpus } else { 1 };
            Ok(nestwalk_source::open_on(Path::new(name), format, vcpus)?)
        }
        None => {
            let workloads: Vec<&str> = WORKLOADS.iter().map(|w| w.name).collect();
            let samples: Vec<&str> = samples::SAMPLES.iter().map(|s| s.name).collect();
            bail!(
                "no source `{name}`: it is no file, no recording ({}), no workload ({}) and no pattern \
                 ({}, {PHASES})",
                samples.join(", "),
                workloads.join(", "),
                Pattern::NAMES.join(", ")
            )
        }
    }
}

/// Accesses that a source must have; what it makes beyond those wanted is cut off by [`adapt::limit`].
const fn accesses(experiment: &Experiment) -> Option<u64> {
    match experiment.accesses {
        0 => None,
        n => Some(n.saturating_add(experiment.warmup)),
    }
}

fn open_workload(name: &str, experiment: &Experiment) -> Result<Box<dyn Source>> {
    let spec = WorkloadSpec {
        footprint: experiment.footprint,
        accesses: accesses(experiment),
        seed: experiment.seed,
        populate: if experiment.populate { Populate::Yes } else { Populate::No },
    };
    let source = nestwalk_workloads::open(name, &spec)?;
    Ok(match Layout::of(experiment.address_bits()) {
        Some(layout) => adapt::narrow(source, layout),
        None => source,
    })
}
