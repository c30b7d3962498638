//! `compare --samples`: what a policy would have seen of each machine, a CSV file each.

use crate::args::OutputArgs;
use anyhow::{Context, Result, bail};
use nestwalk_lab::{Experiment, VERSION};
use nestwalk_policy::SampleWriter;
use nestwalk_report::parse_count;
use nestwalk_sim::compare::Outcome;
use nestwalk_sim::compare::spec::MachineSpec;
use nestwalk_sim::schemes::sampled;
use nestwalk_sim::{Cut, Recorded};
use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};

/// Bounds of an interval, simulated milliseconds: those of the key `interval` of `switching`.
const LEAST_MS: f64 = 0.001;
const MOST_MS: f64 = 10_000.0;

/// Where samples go, and how they are cut.
pub struct Samples {
    folder: PathBuf,
    every: String,
    /// Where samples end.
    pub cut: Cut,
}

/// `1ms` of simulated time, or `100k` instructions.
fn cut(text: &str) -> Result<Cut> {
    if let Some(number) = text.strip_suffix("ms") {
        // A comparison with NaN is false.
        return match number.trim().parse::<f64>() {
            Ok(ms) if (LEAST_MS..=MOST_MS).contains(&ms) => Ok(Cut::Milliseconds(ms)),
            _ => bail!("`{text}`: {LEAST_MS}ms to {MOST_MS}ms of simulated time is expected"),
        };
    }
    match parse_count(text) {
        Ok(0) => bail!("`{text}`: at least 1 instruction is needed"),
        Ok(instructions) => Ok(Cut::Instructions(instructions)),
        Err(_) => bail!(
            "`{text}` is no interval; simulated milliseconds such as 1ms are, or instructions such \
             as 100k"
        ),
    }
}

impl Samples {
    /// What the arguments ask for. The folder is made: a place that cannot be written to is found out
    /// before the work.
    ///
    /// # Errors
    /// No machine has samples, the interval is none, or the folder cannot be made.
    pub fn new(args: &OutputArgs, machines: &[MachineSpec]) -> Result<Option<Self>> {
        let Some(folder) = &args.samples else { return Ok(None) };
        let cut = cut(&args.sample_every).context("--sample-every")?;
        if !machines.iter().any(|m| m.scheme.facts.sampled) {
            bail!(
                "--samples: none of the machines is in one of the modes between which policies \
                 choose; {} are",
                sampled().join(", ")
            );
        }
        std::fs::create_dir_all(folder)
            .with_context(|| format!("--samples {}: cannot be made", folder.display()))?;
        Ok(Some(Self { folder: folder.clone(), every: args.sample_every.clone(), cut }))
    }

    /// Writes a file for each machine that has samples. Returns a line for each machine.
    ///
    /// # Errors
    /// A file cannot be written; half a one does not stay.
    pub fn save(
        &self,
        experiment: &Experiment,
        source: &str,
        outcome: &Outcome,
    ) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        let mut names: Vec<String> = Vec::new();
        for (result, recorded) in outcome.machines.iter().zip(&outcome.samples) {
            let machine = &result.name;
            let Some(recorded) = recorded else {
                lines.push(format!("no samples of {machine}: it has no mode that policies change"));
                continue;
            };
            let mut name = file_name(machine);
            while names.contains(&name) {
                name.push('-');
            }
            let path = self.folder.join(format!("{name}.csv"));
            names.push(name);
            let mixed = recorded.mixed;
            let mut comments = vec![
                format!("samples of {machine}, simulated by nestwalk {}", VERSION),
                format!("source: {source}, profile: {}", experiment.profile.name),
                format!("vCPUs: {}, cut every {}", experiment.vcpus, self.every),
            ];
            if mixed > 0 {
                comments.push(format!("left out: {mixed} intervals in which the mode changed"));
            }
            let written = write(&path, &comments, recorded);
            if written.is_err() {
                // Half a file would be taken for a whole one.
                let _ = std::fs::remove_file(&path);
            }
            written.with_context(|| format!("{}: cannot be written", path.display()))?;
            let left = match mixed {
                0 => String::new(),
                n => format!("; {n} intervals are left out, since the mode changed in them"),
            };
            let count = recorded.samples.len();
            lines.push(format!("{count} samples of {machine} in {}{left}", path.display()));
        }
        Ok(lines)
    }
}

fn write(path: &Path, comments: &[String], recorded: &Recorded) -> Result<()> {
    let mut writer = SampleWriter::new(BufWriter::new(File::create(path)?), comments)?;
    for sample in &recorded.samples {
        writer.write(sample)?;
    }
    Ok(())
}

/// A machine's name without what a file's name cannot have, or should not.
fn file_name(machine: &str) -> String {
    let kept = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '=' | '+' | '_' | '-');
    machine.chars().map(|c| if kept(c) { c } else { '-' }).collect()
}

#[cfg(test)]
mod tests {
    use super::{cut, file_name};
    use nestwalk_sim::Cut;

    #[test]
    fn intervals_are_time_or_instructions() {
        assert_eq!(cut("1ms").unwrap(), Cut::Milliseconds(1.0));
        assert_eq!(cut("0.25ms").unwrap(), Cut::Milliseconds(0.25));
        assert_eq!(cut("100k").unwrap(), Cut::Instructions(100_000));
        for bad in ["", "ms", "NaNms", "-1ms", "1s", "0", "0.0001ms", "20000ms", "-5"] {
            let error = cut(bad).unwrap_err().to_string();
            assert!(error.contains("ms") || error.contains("instruction"), "{bad}: {error}");
        }
    }

    #[test]
    fn files_are_named_as_machines() {
        assert_eq!(file_name("shadow:4k+4k"), "shadow-4k+4k");
        assert_eq!(file_name("switching/dsp/keep=nested:thp"), "switching-dsp-keep=nested-thp");
        assert_eq!(file_name("switching/svm/model=../x"), "switching-svm-model=..-x");
    }
}
