//! `trace convert`: between formats, where the content allows it.

use crate::args::{TraceConvertArgs, trace_formats};
use crate::progress::{Course, Meter};
use anyhow::{Context, Result, anyhow, bail};
use nestwalk_lab::trace_format;
use nestwalk_mm::{GuestConfig, ModelledGuest};
use nestwalk_report::{count, parse_bytes, parse_count};
use nestwalk_sim::compare::Progress;
use nestwalk_source::trace::{Header, Summary, TraceReader, TraceWriter, WriteOptions};
use nestwalk_source::{ExportOptions, Exporter, Format, Mapped, PageTables, open};
use nestwalk_tables::Mode;
use nestwalk_types::{
    Batch, Control, Filter, GuestBatch, GuestInfo, ProcessId, Room, Source, SourceError,
    SourceInfo, VcpuId,
};
use std::path::Path;

/// `nestwalk trace convert IN OUT`.
pub fn convert(args: &TraceConvertArgs) -> Result<()> {
    let to = match trace_format(args.to.as_deref().unwrap_or_default()).context("--to")? {
        Some(format) => format,
        None => by_name(&args.output)?,
    };
    if is_same(&args.input, &args.output) {
        bail!("{}: input and output are the same file", args.output.display());
    }
    let format = trace_format(args.trace_format.as_deref().unwrap_or_default());
    let source = open(&args.input, format.context("--trace-format")?)?;
    // What is written is written access by access, if their order is known.
    let exact = to != Format::NESTWALK && source.info().guest.is_none();
    let source: Box<dyn Source> = match &args.page_tables {
        Some(_) if to != Format::NESTWALK => {
            bail!("--page-tables: {to} has no place for them; name OUT .nwt, or give --to nestwalk")
        }
        Some(path) => {
            let tables = PageTables::open(path).context("--page-tables")?;
            Box::new(Mapped::new(source, &tables)?)
        }
        None => source,
    };
    let info = source.info();
    let source = if args.pcids { with_pcids(source, args, &info)? } else { source };
    let mut cut = Cut::new(source, args, &info, exact)?;
    let limit = cut.left.unwrap_or(0);
    let course = Course { limit, ..Course::reading("converting the trace", info.total) };
    let meter = Meter::of_read(course, args.quiet);
    let text = match info.guest {
        _ if to != Format::NESTWALK => export(&mut cut, args, to, &meter),
        Some(guest) if args.page_tables.is_some() => observe(&mut cut, args, guest, &meter),
        Some(_) => recompress(&mut cut, args, &meter),
        None => model(&mut cut, args, &meter),
    };
    drop(meter);
    crate::tell::tell(text?);
    Ok(())
}

/// What a recording says of itself once PCIDs are added.
const PCIDS_ADDED: &str = "PCIDs, which QEMU's processor has not, were added as Linux gives them";

fn with_pcids(
    source: Box<dyn Source>,
    args: &TraceConvertArgs,
    info: &SourceInfo,
) -> Result<Box<dyn Source>> {
    if info.guest.is_none() {
        bail!("--pcids: {} is no recorded guest, and loads no CR3", args.input.display());
    }
    let header = TraceReader::open(&args.input)?.header().clone();
    if header.approximations.iter().any(|a| a == PCIDS_ADDED) {
        bail!("--pcids: {} has them already", args.input.display());
    }
    Ok(nestwalk_adapt::pcids(source, header.pti))
}

/// The format that the name of a file asks for.
fn by_name(path: &Path) -> Result<Format> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let ends = [".gz", ".xz", ".zst"].iter().find_map(|end| name.strip_suffix(end));
    let name = ends.unwrap_or(&name);
    let ending = name.rsplit_once('.').map_or("", |(_, ending)| ending);
    match Format::ALL.iter().find(|format| format.endings().contains(&ending)) {
        Some(format) if *format == Format::NESTWALK && ends.is_some() => bail!(
            "{}: a trace of nestwalk is compressed inside; name it .nwt, and choose with --level",
            path.display()
        ),
        Some(format) => Ok(*format),
        None => bail!(
            "{}: its name does not say a format; end it with {} (all but the first may be followed by \
             .gz, .xz or .zst), or give --to",
            path.display(),
            trace_formats::endings()
        ),
    }
}

fn is_same(input: &Path, output: &Path) -> bool {
    matches!((input.canonicalize(), output.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

/// The input, up to as many accesses as are wanted, from the region of interest on if there is one: the
/// first of the trace in its order, or, of a recorded guest, whose runs have none inside, whole runs.
struct Cut {
    source: Box<dyn Source>,
    left: Option<u64>,
    /// Accesses so far.
    accesses: u64,
    counting: bool,
    ended: bool,
    /// Every access is wanted as a run of its own.
    single: bool,
}

impl Cut {
    fn new(
        source: Box<dyn Source>,
        args: &TraceConvertArgs,
        info: &SourceInfo,
        single: bool,
    ) -> Result<Self> {
        let left = match args.accesses.as_deref() {
            None => None,
            Some(text) => Some(parse_count(text).context("--accesses")?),
        };
        // Of a guest's trace the index says whether there is a region; others always have one.
        let has_region = info.guest.is_none() || args.page_tables.is_some() || {
            let totals = TraceReader::open(&args.input)?.totals().cloned().unwrap_or_default();
            totals.controls_by_kind.contains_key("region_of_interest")
        };
        Ok(Self { source, left, accesses: 0, counting: !has_region, ended: false, single })
    }

    fn next_batch(&mut self, batch: &mut Batch) -> Result<bool, SourceError> {
        if self.ended {
            return Ok(false);
        }
        let accesses = self.left.unwrap_or(u64::MAX);
        self.source.set_room(Room { accesses, single: self.single, ..Room::ALL });
        if !self.source.next_batch(batch)? {
            return Ok(false);
        }
        self.accesses += batch.accesses();
        let mut first = 0;
        if !self.counting {
            let region = batch.controls.iter().find(|c| c.1 == Control::RegionOfInterest);
            self.counting = region.is_some();
            first = region.map_or(batch.runs.len(), |r| r.0 as usize);
        }
        let Some(left) = &mut self.left else { return Ok(true) };
        for (i, run) in batch.runs.iter().enumerate().skip(first) {
            *left = left.saturating_sub(u64::from(run.count));
            if *left == 0 {
                self.ended = true;
                batch.runs.truncate(i + 1);
                batch.controls.retain(|c| c.0 as usize <= i);
                break;
            }
        }
        Ok(true)
    }

    fn show(&self, meter: &Meter) {
        meter.show(Progress::read(self.accesses, self.source.position()));
    }
}

fn options(args: &TraceConvertArgs, line_addresses: bool) -> WriteOptions {
    let level = args.level.unwrap_or(WriteOptions::SMALL.level);
    WriteOptions { level, line_addresses, ..WriteOptions::SMALL }
}

/// Nestwalk to nestwalk.
fn recompress(cut: &mut Cut, args: &TraceConvertArgs, meter: &Meter) -> Result<String> {
    let reader = TraceReader::open(&args.input)?;
    let mut header = reader.header().clone();
    if args.pcids {
        header.approximations.push(PCIDS_ADDED.into());
    }
    let mut summary = reader.summary().cloned().unwrap_or_default();
    let lines = header.line_addresses || !args.whole_addresses;
    let mut writer = TraceWriter::create(&args.output, &header, options(args, lines))?;
    let mut batch = Batch::default();
    let result = loop {
        match cut.next_batch(&mut batch) {
            Ok(true) => writer.write(&batch)?,
            Ok(false) => break Ok(()),
            Err(error) => break Err(error),
        }
        cut.show(meter);
    };
    if cut.ended {
        summary.notes.push("only the beginning of what was recorded".into());
    }
    if let Err(error) = &result {
        summary.notes.push(format!("the recording was damaged: {error}"));
    } else if !reader.is_complete() {
        summary.notes.push("the recording had no end: what came last is missing".into());
    }
    let written = finish(writer, summary, reader.bytes())?;
    // What was sound has been saved.
    result.with_context(|| format!("{written}, which is what could be read"))?;
    Ok(written)
}

fn finish(writer: TraceWriter, summary: Summary, before: u64) -> Result<String> {
    let written = writer.finish(summary)?;
    Ok(format!(
        "{} accesses in {} runs, {} controls: {} bytes in {} chunks, from {}",
        count(written.totals.accesses),
        count(written.totals.runs),
        count(written.totals.controls),
        count(written.bytes),
        count(written.chunks),
        count(before)
    ))
}

/// A trace of accesses to nestwalk, with the page tables that come with it.
fn observe(
    cut: &mut Cut,
    args: &TraceConvertArgs,
    guest: GuestInfo,
    meter: &Meter,
) -> Result<String> {
    let mut header = Header::of(&SourceInfo { guest: Some(guest), ..cut.source.info() });
    header.reproducible = true;
    header.description = format!("{}, with its page tables", header.description);
    let mut writer =
        TraceWriter::create(&args.output, &header, options(args, !args.whole_addresses))?;
    let mut batch = Batch::default();
    while cut.next_batch(&mut batch)? {
        writer.write(&batch)?;
        cut.show(meter);
    }
    finish(writer, summary_of(cut, &header), std::fs::metadata(&args.input)?.len())
}

/// What the source has found since the header was written.
fn summary_of(cut: &Cut, header: &Header) -> Summary {
    let mut notes = cut.source.info().approximations;
    notes.retain(|note| !header.approximations.contains(note));
    Summary { notes, ..Summary::default() }
}

/// A trace of accesses to nestwalk: a modelled guest makes the page tables.
fn model(cut: &mut Cut, args: &TraceConvertArgs, meter: &Meter) -> Result<String> {
    let memory = parse_bytes(&args.guest_memory).context("--guest-memory")?;
    let name = "4-level";
    let mode = Mode::by_name(name).ok_or_else(|| anyhow!("no {name} paging"))?;
    let mut guest = ModelledGuest::new(GuestConfig::new(mode, memory)).context("--guest-memory")?;
    let info = cut.source.info();
    let mut header = Header::of(&SourceInfo {
        guest: Some(GuestInfo {
            memory_bytes: memory,
            paging: mode.name.into(),
            vcpus: 1,
            filter: Filter::RUNS,
        }),
        ..info
    });
    header.reproducible = true;
    header.description = format!("{}, in a modelled guest", header.description);
    header.approximations.push(
        "page tables, faults and invalidations are those of a modelled Linux guest with 4 KiB pages, \
         which runs nothing of its kernel"
            .into(),
    );
    let lines = !args.whole_addresses;
    let mut writer = TraceWriter::create(&args.output, &header, options(args, lines))?;
    let (mut batch, mut output) = (Batch::default(), GuestBatch::default());
    while cut.next_batch(&mut batch)? {
        let mut failed = Ok(());
        let mut part = |part: &mut GuestBatch| {
            if failed.is_ok() {
                failed = writer.write(&part.batch);
            }
        };
        guest.process_in_parts(&batch, &mut output, &mut part)?;
        failed?;
        writer.write(&output.batch)?;
        cut.show(meter);
    }
    finish(writer, summary_of(cut, &header), std::fs::metadata(&args.input)?.len())
}

/// Anything to a format of accesses.
fn export(cut: &mut Cut, args: &TraceConvertArgs, to: Format, meter: &Meter) -> Result<String> {
    let vcpus = cut.source.info().guest.map_or(1, |g| g.vcpus);
    let vcpu = match args.vcpu {
        Some(n) if n >= vcpus => bail!("--vcpu {n}: the guest has {vcpus}, numbered from 0"),
        Some(n) => n,
        None if vcpus > 1 => bail!(
            "{}: the guest has {vcpus} vCPUs, and {to} knows one processor; choose one with --vcpu",
            args.input.display()
        ),
        None => 0,
    };
    let options = ExportOptions {
        user_only: args.user_only,
        process: args.process.map(ProcessId),
        vcpu: VcpuId(vcpu),
        all_instructions: args.all_instructions,
        exact: cut.single,
    };
    let mut exporter = Exporter::create(&args.output, to, options)?;
    let mut batch = Batch::default();
    while cut.next_batch(&mut batch)? {
        exporter.write(&batch)?;
        cut.show(meter);
    }
    let done = exporter.finish()?;
    if done.runs == 0 {
        bail!(
            "{}: none of {} {} is of what was asked for; `nestwalk trace info` shows what there is",
            args.output.display(),
            count(done.left_out),
            if options.exact { "accesses" } else { "runs" }
        );
    }
    if options.exact {
        let mut lost = done.lost();
        lost.extend(
            cut.source.info().approximations.into_iter().map(|note| format!("of IN: {note}")),
        );
        let lost = if lost.is_empty() { "nothing".into() } else { lost.join("; ") };
        return Ok(format!(
            "{} instructions with {} data accesses, for {} accesses; sizes are whole cache lines; lost: \
             {lost}",
            count(done.instructions),
            count(done.accesses),
            count(done.run_accesses)
        ));
    }
    Ok(format!(
        "{} instructions with {} accesses, for {} runs of {} accesses; lost: {} runs left out, {} \
         controls with all page tables, sizes, and how often and when a line was touched again",
        count(done.instructions),
        count(done.accesses),
        count(done.runs),
        count(done.run_accesses),
        count(done.left_out),
        count(done.controls)
    ))
}
