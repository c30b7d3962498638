//! A job array of Slurm, each of whose tasks runs a share of the points.

use super::point::Point;
use super::store::{Store, write_whole};
use crate::args::SweepArgs;
use crate::formats::Found;
use crate::progress::{Amount, Phase, Phases};
use crate::screen::Screen;
use crate::signals::stop_on_signals;
use crate::tell;
use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How often it is looked what has come, while the array runs.
const LOOK: Duration = Duration::from_millis(500);
/// How often Slurm is asked whether the job is still there.
const ASK: Duration = Duration::from_secs(5);

/// What was submitted.
pub struct Submitted {
    /// The number of the job; none if nothing was missing.
    job: Option<String>,
    /// The script that sbatch got.
    script: String,
    file: PathBuf,
    tasks: usize,
    missing: usize,
}

/// Where tasks write what they say.
pub fn logs(args: &SweepArgs) -> PathBuf {
    args.output.join("slurm")
}

/// Submits what is missing. Waits for its end if that is asked for.
///
/// # Errors
/// There is no sbatch, or it refuses.
pub fn submit(args: &SweepArgs, points: &[Point], store: &Store) -> Result<Submitted> {
    let missing: Vec<bool> = points.iter().map(|point| !store.has(point)).collect();
    let folder = logs(args);
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("{}: cannot be made", folder.display()))?;
    let all = missing.len().min(args.tasks as usize);
    let mine = |share: usize| missing.iter().skip(share).step_by(all).any(|missing| *missing);
    let tasks: Vec<usize> = (0..all).filter(|share| mine(*share)).map(|share| share + 1).collect();
    // The file may be changed before the tasks read it.
    let copy = folder.join("sweep.toml");
    let text = std::fs::read(&args.file).with_context(|| args.file.display().to_string())?;
    write_whole(&folder.join("sweep.toml.unfinished"), &copy, &text)?;
    let mut submitted = Submitted {
        job: None,
        script: script(args, &copy, &tasks, all)?,
        file: folder.join("job.sh"),
        tasks: tasks.len(),
        missing: missing.iter().filter(|missing| **missing).count(),
    };
    if tasks.is_empty() {
        return Ok(submitted);
    }
    let unfinished = folder.join("job.sh.unfinished");
    write_whole(&unfinished, &submitted.file, submitted.script.as_bytes())?;
    let done = format!("{} of {} points are done", points.len() - submitted.missing, points.len());
    let job = start(args, &submitted, &done)?;
    if args.wait {
        if !args.quiet {
            let file = submitted.file.display();
            tell::tell(format_args!("{file}:\n{}", submitted.script));
            tell::note(&format!("job {job}: {} tasks", submitted.tasks));
        }
        wait(args, &job, points, store)?;
    }
    submitted.job = Some(job);
    Ok(submitted)
}

/// The script of the tasks. It runs in the folder of the sweep until it goes where the sweep was
/// started, so that no path stands where sbatch would look for `%`.
fn script(args: &SweepArgs, copy: &Path, tasks: &[usize], all: usize) -> Result<String> {
    let program = std::env::current_exe().context("the path of this program")?;
    let here = std::env::current_dir().context("the folder in which this runs")?;
    let [copy, output] = [copy, &args.output].map(std::path::absolute);
    let mut script = String::from("#!/bin/sh\n#SBATCH --job-name=nestwalk-sweep\n");
    script += &format!("#SBATCH --array={}\n#SBATCH --output=slurm/%A_%a.log\n", list(tasks));
    for option in &args.sbatch {
        if !option.starts_with('-') || option.contains('\n') {
            bail!(
                "--sbatch={option}: an option of sbatch is expected, as in --sbatch=--time=1:00:00"
            );
        }
        script += &format!("#SBATCH {option}\n");
    }
    script += &format!("cd {} || exit 2\n", quoted(&here)?);
    script += &format!("exec {} sweep {}", quoted(&program)?, quoted(&copy?)?);
    script += &format!(" --output {} \\\n    ", quoted(&output?)?);
    script += &format!("--shard \"$SLURM_ARRAY_TASK_ID/{all}\" --jobs {} --quiet", args.jobs);
    script += &match args.threads {
        Some(threads) => format!(" --threads {threads}"),
        // Where Slurm does not bind tasks, a task sees all cores of its node.
        None => {
            format!(" --threads $(( (${{SLURM_CPUS_PER_TASK:-1}} + {0} - 1) / {0} ))", args.jobs)
        }
    };
    script += if args.skip_invalid { " --skip-invalid\n" } else { "\n" };
    Ok(script)
}

/// A path as a word of a shell.
fn quoted(path: &Path) -> Result<String> {
    let text = path.to_str().with_context(|| format!("{}: not valid UTF-8", path.display()))?;
    Ok(format!("'{}'", text.replace('\'', "'\\''")))
}

/// Ascending numbers as `--array` has them: 1-3,7.
fn list(numbers: &[usize]) -> String {
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for number in numbers {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == *number => *last = *number,
            _ => ranges.push((*number, *number)),
        }
    }
    let range = |(first, last): &(usize, usize)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    ranges.iter().map(range).collect::<Vec<_>>().join(",")
}

/// Gives the script to sbatch, and gets the number of the job.
fn start(args: &SweepArgs, submitted: &Submitted, done: &str) -> Result<String> {
    let mut command = Command::new("sbatch");
    command.arg("--parsable").arg("slurm/job.sh").current_dir(&args.output).stdin(Stdio::null());
    let said = command.output().map_err(|error| {
        anyhow!(
            "--slurm: sbatch cannot be started: {error}; Slurm's commands are needed here (on Debian the \
             package slurm-client), or run shares by --shard"
        )
    })?;
    // JOB, or JOB;CLUSTER where there are several.
    let out = String::from_utf8_lossy(&said.stdout);
    let job = out.trim().split(';').next().unwrap_or_default();
    if said.status.success() && !job.is_empty() && job.chars().all(|c| c.is_ascii_digit()) {
        return Ok(job.to_owned());
    }
    bail!(
        "--slurm: sbatch refused {} ({}): {}{}\nnothing is lost: {done}",
        submitted.file.display(),
        said.status,
        out.trim(),
        String::from_utf8_lossy(&said.stderr).trim()
    )
}

/// Waits until all points are there or the job has gone, and tells how far it is. `sbatch --wait` looks
/// ever less often, and is late by most of a minute soon.
fn wait(args: &SweepArgs, job: &str, points: &[Point], store: &Store) -> Result<()> {
    let stop = stop_on_signals();
    let phases = Phases::new(args.quiet);
    let total = points.len() as u64;
    let done = || points.iter().filter(|point| store.has(point)).count() as u64;
    phases.begin(Phase::of("waiting for Slurm", Amount::Items { done: done(), total }));
    let mut asked = Instant::now();
    loop {
        // Asked before the points are looked for: what has gone has written all that it will.
        let asks = asked.elapsed() >= ASK;
        let gone = asks && !is_there(job);
        let now = done();
        phases.at(Amount::Items { done: now, total });
        if now == total || gone {
            return Ok(());
        }
        if stop.load(Ordering::Relaxed) {
            bail!(
                "interrupted: job {job} goes on; scancel {job} ends it, --collect makes the table"
            );
        }
        if asks {
            asked = Instant::now();
        }
        std::thread::sleep(LOOK);
    }
}

/// Whether a job waits or runs. If Slurm does not answer, it may.
fn is_there(job: &str) -> bool {
    let said = Command::new("squeue").args(["--noheader", "--jobs", job]).output();
    let Ok(said) = said else { return true };
    if said.status.success() {
        return !said.stdout.trim_ascii().is_empty();
    }
    // Slurm forgets jobs some minutes after their end.
    !String::from_utf8_lossy(&said.stderr).contains("Invalid job id")
}

impl Found for Submitted {
    fn json(&self) -> Result<Value> {
        Ok(json!({
            "job": self.job,
            "tasks": self.tasks,
            "missing": self.missing,
            "script": self.script,
            "file": self.file.to_string_lossy(),
        }))
    }

    fn rows(&self) -> Result<Vec<Value>> {
        Ok(vec![self.json()?])
    }

    fn table(&self, _: Screen) -> String {
        let Some(job) = &self.job else {
            return "all points are done: nothing is submitted; --collect makes the table\n".into();
        };
        let (file, tasks, missing) = (self.file.display(), self.tasks, self.missing);
        format!(
            "{file}:\n{}\njob {job}: {tasks} tasks for {missing} points; squeue --job {job} shows them, \
             --collect makes the table\n",
            self.script
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_listed_as_ranges() {
        assert_eq!(list(&[1, 2, 3, 7, 9, 10]), "1-3,7,9-10");
        assert_eq!(list(&[4]), "4");
    }

    #[test]
    fn a_path_is_one_word_of_a_shell() {
        assert_eq!(quoted(Path::new("/a b/it's")).unwrap(), "'/a b/it'\\''s'");
    }
}
