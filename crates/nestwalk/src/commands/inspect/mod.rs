//! `inspect`: the memory of a live process or VM, its contiguous runs, and what covers them.

mod json;
mod ram;
mod report;
mod show;
mod snapshot;
mod watch;

use crate::args::InspectArgs;
use crate::formats::Found;
use crate::progress::{Amount, Phase, Phases};
use crate::screen::Screen;
use crate::signals::stop_on_signals;
use anyhow::{Context, Result, bail};
use nestwalk_host::{Cut, ProcessMemory, RamPiece, Roots, Snapshot};
use report::Report;
use serde_json::Value;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// `nestwalk inspect`.
///
/// # Errors
/// The process cannot be read, or not to its end; then what was read has been printed.
pub fn inspect(args: &InspectArgs) -> Result<()> {
    let given: Vec<RamPiece> =
        args.ram.iter().map(|text| ram::parse(text)).collect::<Result<_>>().context("--ram")?;
    let proc = args.proc.clone().unwrap_or(Roots::default().proc);
    let process = ProcessMemory::open(&proc, args.pid)?;
    if let Some(seconds) = args.watch {
        return watch::watch(args, &process, &given, seconds);
    }
    let guest = match &args.guest {
        None => None,
        Some(path) => Some(snapshot::load(path)?),
    };
    let stop = stop_on_signals();
    let seen = read(&process, args.quiet, &stop)?;
    let cut = seen.cut;
    if args.snapshot {
        if seen.frames_hidden {
            bail!(
                "--snapshot: the frames of process {} are hidden, and without them the host's dimension \
                 cannot be joined; run as root",
                process.pid
            );
        }
        print(&snapshot::save(&process, &seen)?)?;
    } else {
        let mut report = Report::new(&process, seen);
        ram::add_dimensions(&mut report, &process, &given, guest.as_ref())?;
        let format = args.format();
        print(&format.render(&Memory { report: &report, all: args.all })?)?;
        if !format.is_for_programs() {
            report
                .missing
                .iter()
                .for_each(|m| crate::tell::tell(format_args!("nestwalk: without {m}")));
        }
    }
    verdict(&process, cut)
}

/// The memory of a process, shown once.
struct Memory<'a> {
    report: &'a Report,
    /// Every mapping is shown to people, too.
    all: bool,
}

impl Found for Memory<'_> {
    fn json(&self) -> Result<Value> {
        Ok(json::report(self.report))
    }

    fn rows(&self) -> Result<Vec<Value>> {
        Ok(json::regions(self.report))
    }

    fn table(&self, _: Screen) -> String {
        show::report(self.report, self.all)
    }
}

/// Reads all memory, with progress.
fn read(process: &ProcessMemory, quiet: bool, stop: &Arc<AtomicBool>) -> Result<Snapshot> {
    let phases = Phases::new(quiet);
    phases.begin(Phase::new("reading where the process's addresses are"));
    let mut go_on = |done: u64, total: u64| {
        phases.at(Amount::Bytes { done, total: Some(total) });
        !stop.load(Ordering::Relaxed)
    };
    Ok(process.read(&mut go_on)?)
}

/// An error if not all was read.
fn verdict(process: &ProcessMemory, cut: Option<Cut>) -> Result<()> {
    let (pid, name) = (process.pid, &process.name);
    match cut {
        None => Ok(()),
        Some(Cut::Gone) => bail!(
            "process {pid} ({name}) ended, or began another program, while it was read: what was read \
             before is told"
        ),
        Some(Cut::Stopped) => bail!("interrupted: what was read of process {pid} before is told"),
    }
}

fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("standard output")
}
