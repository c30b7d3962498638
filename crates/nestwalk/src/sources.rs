//! From what was typed to an event stream.

use crate::experiment::Experiment;
use anyhow::{Context, Result, anyhow, bail};
use nestwalk_source::{FirstTouch, Format, Lackey, Limit, Multiplex, Pattern, PatternSpec, RunOptions};
use nestwalk_types::{Batch, Control, Source, SourceError, SourceInfo};
use nestwalk_workloads::{Populate, WORKLOADS, WorkloadSpec};
use std::ffi::OsString;
use std::path::Path;

/// Whether a source is named by a path rather than by the name of a workload or pattern.
pub fn is_file(source: &str) -> bool {
    let word = source.split(':').next().unwrap_or(source);
    let known = WORKLOADS.iter().any(|w| w.name == word) || is_pattern(word);
    !known && (source.contains(['/', '.']) || Path::new(source).exists())
}

fn is_pattern(word: &str) -> bool {
    Pattern::NAMES.contains(&word) || word == "phases"
}

/// Opens everything that the experiment asks for, as one stream.
///
/// # Errors
/// A source cannot be opened.
pub fn open(experiment: &Experiment) -> Result<Box<dyn Source>> {
    let source: Box<dyn Source> = if experiment.lackey.is_empty() {
        let mut sources = Vec::new();
        for name in &experiment.sources {
            sources.push(open_one(name, experiment)?);
        }
        if sources.len() == 1 {
            sources.remove(0)
        } else {
            Box::new(Multiplex::new(sources, experiment.vcpus, experiment.quantum))
        }
    } else {
        let command: Vec<OsString> = experiment.lackey.iter().map(OsString::from).collect();
        let options = RunOptions { vcpus: experiment.vcpus, ..RunOptions::default() };
        Box::new(Lackey::run(&command, &options)?)
    };
    let source: Box<dyn Source> = Box::new(FirstTouch::new(source));
    let source: Box<dyn Source> = if experiment.warmup > 0 {
        Box::new(Warmup { inner: source, left: experiment.warmup, counting: false })
    } else {
        source
    };
    Ok(if experiment.accesses > 0 {
        Box::new(Limit::new(source, experiment.accesses))
    } else {
        source
    })
}

fn open_one(name: &str, experiment: &Experiment) -> Result<Box<dyn Source>> {
    let word = name.split(':').next().unwrap_or(name);
    // What a workload makes beyond the accesses wanted is cut off by `Limit`.
    let accesses = match experiment.accesses {
        0 => None,
        n => Some(n.saturating_add(experiment.warmup)),
    };
    if WORKLOADS.iter().any(|w| w.name == word) {
        let spec = WorkloadSpec {
            footprint: experiment.footprint,
            accesses,
            seed: experiment.seed,
            populate: if experiment.populate { Populate::Yes } else { Populate::No },
        };
        return Ok(nestwalk_workloads::open(name, &spec)?);
    }
    if is_pattern(word) {
        let mut base = PatternSpec {
            footprint: experiment.footprint,
            seed: experiment.seed,
            populate: Some(experiment.populate),
            vcpus: experiment.vcpus,
            ..PatternSpec::default()
        };
        base.accesses = accesses.unwrap_or(base.accesses);
        let spec = PatternSpec::parse(name, &base).with_context(|| name.to_owned())?;
        return Ok(Box::new(spec.source()));
    }
    if !is_file(name) {
        let workloads: Vec<&str> = WORKLOADS.iter().map(|w| w.name).collect();
        bail!(
            "no source `{name}`: it is no file, no workload ({}) and no pattern ({})",
            workloads.join(", "),
            Pattern::NAMES.join(", ")
        );
    }
    let format = match experiment.trace_format.as_str() {
        "" => None,
        text => Some(text.parse::<Format>().map_err(|e| anyhow!(e)).context("--trace-format")?),
    };
    Ok(nestwalk_source::open(Path::new(name), format)?)
}

/// Moves the beginning of the region of interest: the first accesses are simulated, not counted.
struct Warmup {
    inner: Box<dyn Source>,
    left: u64,
    counting: bool,
}

impl Source for Warmup {
    fn info(&self) -> SourceInfo {
        self.inner.info()
    }
    fn position(&self) -> u64 {
        self.inner.position()
    }
    fn next_batch(&mut self, batch: &mut Batch) -> Result<bool, SourceError> {
        let more = self.inner.next_batch(batch)?;
        if !more {
            return Ok(false);
        }
        let mut from = 0;
        if let Some(at) = batch.controls.iter().position(|c| c.1 == Control::RegionOfInterest) {
            from = batch.controls.remove(at).0 as usize;
            self.counting = true;
        }
        if self.counting && self.left > 0 {
            self.skip(batch, from);
        }
        Ok(true)
    }
}

impl Warmup {
    /// Counts accesses of the warm-up from run `from` on, and puts the beginning where it ends.
    fn skip(&mut self, batch: &mut Batch, from: usize) {
        for index in from..batch.runs.len() {
            let count = u64::from(batch.runs[index].count);
            if count < self.left {
                self.left -= count;
                continue;
            }
            let mut position = index + 1;
            if count > self.left {
                // The run lies across the border: its first part is warm-up.
                let mut rest = batch.runs[index];
                let first = &mut batch.runs[index];
                rest.count -= self.left as u16;
                first.count = self.left as u16;
                rest.instructions = (u64::from(first.instructions) * u64::from(rest.count)
                    / (u64::from(rest.count) + self.left))
                    as u16;
                first.instructions -= rest.instructions;
                batch.runs.insert(index + 1, rest);
                for control in &mut batch.controls {
                    if control.0 as usize > index {
                        control.0 += 1;
                    }
                }
            }
            self.left = 0;
            let place = batch
                .controls
                .iter()
                .position(|c| c.0 as usize >= position)
                .unwrap_or(batch.controls.len());
            position = position.min(batch.runs.len());
            batch.controls.insert(place, (position as u32, Control::RegionOfInterest));
            return;
        }
    }
}
