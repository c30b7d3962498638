//! A command that is run and measured: processor time, memory, and what it printed.

use anyhow::{Context, Result, anyhow};
use serde::Serialize;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// What a run took.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Took {
    /// Processor time, the program's own and the kernel's for it: which of both a moment counts for is
    /// only sampled. In steps of 10 ms.
    pub processor_seconds: f64,
    /// From start to end.
    pub wall_seconds: f64,
    /// The most memory that it had, MiB.
    pub peak_mib: f64,
}

/// What a run took, and its output.
pub struct Ran {
    pub took: Took,
    pub out: String,
}

/// Runs a program to its end.
///
/// # Errors
/// It cannot be started, or fails: then what it said.
pub fn run(program: &Path, args: &[String]) -> Result<Ran> {
    let began = Instant::now();
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("{}: cannot be started", program.display()))?;
    let readers = [drain(child.stdout.take()), drain(child.stderr.take())];
    let seen = watch(&mut child);
    let wall_seconds = began.elapsed().as_secs_f64();
    let status = child.wait()?;
    let [out, err] = readers.map(|reader| reader.join().unwrap_or_default());
    if !status.success() {
        let said = err.trim();
        let said = if said.is_empty() { out.trim() } else { said };
        return Err(anyhow!("`{}` failed: {}", args.join(" "), said.lines().next().unwrap_or("")));
    }
    let (processor_seconds, peak_mib) = seen?;
    Ok(Ran { took: Took { processor_seconds, wall_seconds, peak_mib }, out })
}

/// Reads all of a pipe, so that whoever writes to it never waits.
fn drain(pipe: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut text = String::new();
        if let Some(mut pipe) = pipe {
            // What can be read is told, and the exit code says the rest.
            let _ = pipe.read_to_string(&mut text);
        }
        text
    })
}

/// Looks at a child until it has ended, and then, before anybody waits for it, at what it took.
fn watch(child: &mut Child) -> Result<(f64, f64)> {
    const LOOK: Duration = Duration::from_millis(5);
    let folder = format!("/proc/{}", child.id());
    let mut peak_mib = 0.0_f64;
    loop {
        let stat = std::fs::read_to_string(format!("{folder}/stat"));
        let stat = stat.with_context(|| format!("{folder}: this needs Linux's /proc"))?;
        let (state, seconds) = state(&stat).ok_or_else(|| anyhow!("{folder}/stat: `{stat}`"))?;
        if state == 'Z' {
            return Ok((seconds, peak_mib));
        }
        let status = std::fs::read_to_string(format!("{folder}/status")).unwrap_or_default();
        peak_mib = peak_mib.max(peak(&status).unwrap_or(0.0));
        std::thread::sleep(LOOK);
    }
}

/// The state of a process and its seconds of processor time, of `/proc/PID/stat` (proc(5)).
fn state(stat: &str) -> Option<(char, f64)> {
    /// USER_HZ, which Linux has fixed at 100 on all but a few old architectures.
    const TICKS: f64 = 100.0;
    // The second field is the program's name, in parentheses, and may have any letter in it.
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let ticks = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    let state = fields.first()?.chars().next()?;
    Some((state, (ticks(14)? + ticks(15)?) as f64 / TICKS))
}

/// The most memory that a process had, MiB, of `/proc/PID/status`.
fn peak(status: &str) -> Option<f64> {
    let line = status.lines().find(|l| l.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse::<f64>().ok().map(|kib| kib / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_of_a_process_is_read() {
        let stat = "7 (a) Z b) Z 1 7 7 0 -1 4194304 100 0 0 0 150 50 3 4 20 0 1 0 9 0 0";
        assert_eq!(state(stat), Some(('Z', 2.0)));
        assert_eq!(state("7 (a"), None);
        assert_eq!(peak("Name:\tx\nVmHWM:\t    2048 kB\n"), Some(2.0));
        assert_eq!(peak("Name:\tx\n"), None);
    }

    #[test]
    fn a_child_is_measured_and_its_failure_told() {
        let sh = |script: &str| run(Path::new("/bin/sh"), &["-c".into(), script.into()]);
        let ran = sh("i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; echo done").unwrap();
        assert_eq!(ran.out, "done\n");
        assert!(ran.took.processor_seconds > 0.0 && ran.took.peak_mib > 0.1, "{:?}", ran.took);
        let slept = sh("sleep 0.3").unwrap().took;
        assert!(slept.wall_seconds >= 0.3 && slept.processor_seconds < 0.2, "{slept:?}");
        let error = sh("echo wrong >&2; exit 2").err().map(|e| e.to_string()).unwrap_or_default();
        assert!(error.contains("wrong"), "{error}");
    }
}
