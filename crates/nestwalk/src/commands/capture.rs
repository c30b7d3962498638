//! `capture`: a real Linux guest runs a command and is recorded.

use crate::args::CaptureArgs;
use crate::commands::compare::of_command;
use crate::formats::Found;
use crate::progress::{Beginning, Course, Meter, Phases};
use crate::screen::Screen;
use crate::settings::real_guest;
use crate::tell::tell;
use anyhow::{Context, Result, bail};
use nestwalk_capture::live::{Agreement, Live, NOT_STARTED, Summary, failure};
use nestwalk_capture::{Boot, Cache, KernelChoice, Step, plugin, prepare};
use nestwalk_lab::RealGuest;
use nestwalk_report::{bytes, count};
use nestwalk_sim::compare::Progress;
use nestwalk_source::trace::{self, Header, TraceWriter, WriteOptions};
use nestwalk_types::{Batch, Source};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// `nestwalk capture`. The exit code is 1 if the command failed.
///
/// # Errors
/// A piece is missing, the guest dies, or the trace cannot be written.
pub fn capture(args: &CaptureArgs) -> Result<ExitCode> {
    args.format.refuse_rows("a summary is no table")?;
    if args.prepare {
        only_prepare(args)?;
        if args.command.is_empty() {
            return Ok(ExitCode::SUCCESS);
        }
    }
    if args.command.is_empty() {
        bail!("no command: write it after `--`, as in: capture --save x.nwt -- gcc -O2 -c x.c");
    }
    let stop = crate::signals::stop_on_signals();
    let failed = run(args, output_of_command(args), &stop, &|report| print(args, report))?;
    Ok(of_command(failed.as_deref()))
}

/// Records a command without a word about it but its own output, on standard error; how it failed, if it
/// did.
///
/// # Errors
/// As [`capture`].
pub fn save(args: &CaptureArgs, stop: &AtomicBool) -> Result<Option<String>> {
    run(args, Box::new(std::io::stderr()), stop, &|_| Ok(()))
}

/// Records a command; how it failed, if it did.
fn run(
    args: &CaptureArgs,
    output: Box<dyn Write + Send>,
    stop: &AtomicBool,
    tell: &dyn Fn(&Report) -> Result<()>,
) -> Result<Option<String>> {
    let guest = real_guest(&args.guest, &args.command, Some(args.vcpus), args.seed)?;
    let phases = Phases::new(args.quiet);
    let boot = guest.boot(&mut |step| phases.listen(step))?;
    drop(phases);
    // All that can be missing is missed before a file is replaced, and a place that cannot be written
    // to before the guest runs.
    plugin()?;
    let header = header(&boot, &guest);
    let create = |path: &PathBuf| TraceWriter::create(path, &header, WriteOptions::LIVE);
    let mut writer = args.save.as_ref().map(create).transpose()?;
    let begin = Instant::now();
    let mut live = Live::start(boot, guest.options(), output)?;
    let beginning = if guest.interest { Beginning::BootToMark } else { Beginning::Boot };
    let course = Course { beginning, ..Course::reading("recording", None) };
    let meter = Meter::new(course, args.quiet);
    let result = record(&mut live, writer.as_mut(), stop, &meter);
    drop(meter);
    let (summary, agreement) = (live.summary().clone(), live.agreement().cloned());
    let outcome = live.outcome().cloned();
    let status = outcome.as_ref().map(|o| o.status);
    let processor = outcome.as_ref().and_then(|o| o.cpu);
    drop(live);
    let early = || Some("the guest ended before its command".to_owned());
    let failed = outcome.as_ref().map_or_else(early, failure);
    // Nothing of what was asked for has run: no trace stays, and nothing is told of it.
    if let Some(how) = failed.as_ref().filter(|how| how.starts_with(NOT_STARTED)) {
        drop(writer);
        if let Some(path) = &args.save {
            std::fs::remove_file(path).with_context(|| path.display().to_string())?;
        }
        bail!("{how}");
    }
    let mut size = None;
    if let Some(writer) = writer {
        let written = writer.finish(trace_summary(&summary, status))?;
        size = Some(written.bytes);
    }
    let report = Report {
        header: &header,
        saved: args.save.as_deref(),
        summary,
        agreement,
        status,
        size,
        seconds: begin.elapsed().as_secs_f64(),
        processor: processor.map(|p| p.as_secs_f64()),
    };
    tell(&report)?;
    result?;
    if let Some(a) = &report.agreement
        && a.different + if args.vcpus == 1 { a.not_mapped } else { 0 } > 0
    {
        bail!("the check found disagreements with QEMU: the recording cannot be trusted");
    }
    Ok(failed)
}

/// The command's output is this command's output, but for what a program shall read.
fn output_of_command(args: &CaptureArgs) -> Box<dyn Write + Send> {
    if args.format.is_for_programs() {
        Box::new(std::io::stderr())
    } else {
        Box::new(std::io::stdout())
    }
}

/// Fetches and builds what guests need.
fn only_prepare(args: &CaptureArgs) -> Result<()> {
    let phases = Phases::new(args.quiet);
    let say = &mut |step: Step<'_>| phases.step(step, &mut crate::tell::say);
    let qemu = Path::new("qemu-system-x86_64");
    let kernel = KernelChoice::of(args.guest.kernel.as_deref().unwrap_or_default());
    Ok(prepare(&Cache::locate()?, qemu, &kernel, &args.guest.packages, say)?)
}

fn print(args: &CaptureArgs, report: &Report) -> Result<()> {
    let text = args.format.render(report)?;
    if args.format.is_for_programs() {
        std::io::stdout().write_all(text.as_bytes())?;
    } else if !args.quiet {
        tell(text.trim_end());
    }
    Ok(())
}

/// Writes everything that comes, until the guest has ended.
fn record(
    live: &mut Live,
    mut writer: Option<&mut TraceWriter<std::fs::File>>,
    stop: &AtomicBool,
    meter: &Meter,
) -> Result<()> {
    let mut batch = Batch::default();
    let mut progress = Progress { before: Some(0), ..Progress::default() };
    loop {
        if stop.load(Ordering::Relaxed) {
            bail!("interrupted: what was recorded up to here is kept");
        }
        if !live.next_batch(&mut batch)? {
            return Ok(());
        }
        if let Some(writer) = &mut writer {
            writer.write(&batch)?;
        }
        progress.follow(&batch, live.position());
        meter.show(progress);
    }
}

/// What the trace says of itself.
fn header(boot: &Boot, guest: &RealGuest) -> Header {
    let (major, minor) = nestwalk_capture::qemu_version(&boot.guest().qemu).unwrap_or_default();
    let because = guest.irreproducible();
    Header {
        command: guest.command.clone(),
        kernel: boot.kernel().release.clone(),
        cpu: nestwalk_capture::CPU.into(),
        qemu: format!("{major}.{minor}"),
        thp: guest.thp.clone(),
        pti: guest.pti,
        packages: boot.packages().to_vec(),
        seed: Some(guest.seed),
        reproducible: because.is_none(),
        irreproducible_because: because.unwrap_or_default(),
        boot: guest.boot,
        ..Header::of(&Live::describe(boot, guest.options()))
    }
}

fn trace_summary(summary: &Summary, status: Option<u8>) -> trace::Summary {
    let not_seen: BTreeMap<String, u64> =
        summary.not_seen().map(|(reason, n)| (reason.name().to_owned(), n)).collect();
    let counts = [
        ("fetches", summary.fetches),
        ("kernel_accesses", summary.kernel),
        ("table_writes", summary.table_writes),
        ("page_faults", summary.faults),
        ("cr3_loads", summary.cr3_loads),
    ];
    trace::Summary {
        exit_status: status.map(i32::from),
        dropped: not_seen,
        counts: counts.map(|(name, n)| (name.to_owned(), n)).into(),
        notes: Vec::new(),
    }
}

/// What is said at the end.
struct Report<'a> {
    header: &'a Header,
    /// The trace's file.
    saved: Option<&'a Path>,
    summary: Summary,
    agreement: Option<Agreement>,
    status: Option<u8>,
    size: Option<u64>,
    seconds: f64,
    processor: Option<f64>,
}

impl Found for Report<'_> {
    fn table(&self, _: Screen) -> String {
        let s = &self.summary;
        let mut out = String::new();
        match self.status {
            Some(status) => out += &format!("command  exit status {status}\n"),
            None => out += "command  did not come to its end\n",
        }
        out += &format!(
            "recorded {} accesses ({} fetches, {} by the kernel), {} instructions, in {} runs\n",
            count(s.accesses),
            count(s.fetches),
            count(s.kernel),
            count(s.instructions),
            count(s.runs),
        );
        out += &format!(
            "         {} table writes, {} page faults, {} CR3 loads\n",
            count(s.table_writes),
            count(s.faults),
            count(s.cr3_loads),
        );
        for (reason, n) in s.not_seen() {
            out += &format!("not seen {} accesses: {}\n", count(n), reason.name());
        }
        if let Some(a) = &self.agreement {
            out += &format!(
                "check    {} translations compared with QEMU's: {} different, {} not mapped\n",
                count(a.compared),
                count(a.different),
                count(a.not_mapped),
            );
            for example in &a.examples {
                out += &format!("         {example}\n");
            }
        }
        if let (Some(path), Some(size)) = (self.saved, self.size) {
            out += &format!("trace    {}: {}\n", path.display(), bytes(size));
        }
        out += &format!(
            "time     {:.1} s, QEMU's processor time {} s\n",
            self.seconds,
            self.processor.map_or_else(|| "unknown".into(), |p| format!("{p:.1}")),
        );
        out
    }

    fn json(&self) -> Result<Value> {
        let s = &self.summary;
        let not_seen: serde_json::Map<String, Value> =
            s.not_seen().map(|(r, n)| (r.name().to_owned(), n.into())).collect();
        Ok(json!({
            "header": serde_json::to_value(self.header).context("the header")?,
            "exit_status": self.status,
            "accesses": s.accesses,
            "fetches": s.fetches,
            "kernel_accesses": s.kernel,
            "instructions": s.instructions,
            "runs": s.runs,
            "table_writes": s.table_writes,
            "page_faults": s.faults,
            "cr3_loads": s.cr3_loads,
            "not_seen": not_seen,
            "waits": s.waits,
            "check": self.agreement.as_ref().map(|a| json!({
                "compared": a.compared,
                "different": a.different,
                "not_mapped": a.not_mapped,
                "examples": a.examples,
            })),
            "trace_bytes": self.size,
            "seconds": self.seconds,
            "qemu_processor_seconds": self.processor,
        }))
    }
}
