//! A job array of Slurm, each of whose tasks runs a share of the points.

use super::store::write_whole;
use crate::args::SweepArgs;
use crate::formats::Found;
use crate::progress::{Amount, Phase, Phases};
use crate::screen::Screen;
use crate::signals::stop_on_signals;
use crate::tell;
use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How often it is looked what has come, while the array runs.
const LOOK: Duration = Duration::from_millis(500);

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

/// Submits what is missing: `missing` says it for each point. Waits for its end if that is asked for.
///
/// # Errors
/// There is no sbatch, or it refuses.
pub fn submit(args: &SweepArgs, missing: &[bool]) -> Result<Submitted> {
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
    let mut child = start(args)?;
    let job = number_of(&mut child, missing, &submitted)?;
    if args.wait {
        if !args.quiet {
            let file = submitted.file.display();
            tell::tell(format_args!("{file}:\n{}", submitted.script));
            tell::note(&format!("job {job}: {} tasks", submitted.tasks));
        }
        wait(args, child, &job, missing)?;
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

fn start(args: &SweepArgs) -> Result<Child> {
    let mut command = Command::new("sbatch");
    command.arg("--parsable").args(args.wait.then_some("--wait")).arg("slurm/job.sh");
    command.current_dir(&args.output).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().map_err(|error| {
        anyhow!(
            "--slurm: sbatch cannot be started: {error}; Slurm's commands are needed here (on Debian the \
             package slurm-client), or run shares by --shard"
        )
    })
}

/// The number that sbatch gives the job.
fn number_of(child: &mut Child, missing: &[bool], submitted: &Submitted) -> Result<String> {
    let mut line = String::new();
    if let Some(out) = child.stdout.take() {
        BufReader::new(out).read_line(&mut line).context("sbatch")?;
    }
    // JOB, or JOB;CLUSTER where there are several.
    let job = line.trim().split(';').next().unwrap_or_default().to_owned();
    if !job.is_empty() && job.chars().all(|c| c.is_ascii_digit()) {
        return Ok(job);
    }
    let mut said = line;
    if let Some(mut err) = child.stderr.take() {
        err.read_to_string(&mut said).context("sbatch")?;
    }
    let status = child.wait().context("sbatch")?;
    let done = missing.iter().filter(|missing| !**missing).count();
    bail!(
        "--slurm: sbatch refused {} ({status}): {}\nnothing is lost: {done} of {} points are done",
        submitted.file.display(),
        said.trim(),
        missing.len()
    )
}

/// Waits until sbatch has seen the end of the array, and tells how far it is.
fn wait(args: &SweepArgs, mut child: Child, job: &str, missing: &[bool]) -> Result<()> {
    let (stop, points) = (stop_on_signals(), args.output.join("points"));
    let phases = Phases::new(args.quiet);
    let total = missing.len() as u64;
    let done = || -> u64 {
        let files = std::fs::read_dir(&points).into_iter().flatten().flatten();
        let is_result = |e: &std::fs::DirEntry| e.path().extension().is_some_and(|e| e == "json");
        // Results of other sweeps may lie there, too.
        (files.filter(is_result).count() as u64).min(total)
    };
    phases.begin(Phase::of("waiting for Slurm", Amount::Items { done: done(), total }));
    loop {
        let ended = child.try_wait().context("sbatch")?;
        if stop.load(Ordering::Relaxed) {
            bail!(
                "interrupted: job {job} goes on; scancel {job} ends it, --collect makes the table"
            );
        }
        // It fails if a task did; what is missing then is told from the results.
        if ended.is_some() {
            return Ok(());
        }
        phases.at(Amount::Items { done: done(), total });
        std::thread::sleep(LOOK);
    }
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
