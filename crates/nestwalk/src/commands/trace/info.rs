//! `trace info`: what a trace says of itself, and what was found in it.

use super::print;
use super::read::Read;
use crate::args::TraceInfoArgs;
use crate::formats::Found;
use crate::progress::Meter;
use crate::screen::Screen;
use anyhow::{Context, Result, bail};
use nestwalk_lab::trace_format;
use nestwalk_report::{Align, Table, bytes, count};
use nestwalk_source::trace::{Header, Totals, TraceReader, control_name};
use nestwalk_types::{Filter, FilterArray, Source, SourceInfo};
use serde_json::{Value, json};

/// `nestwalk trace info FILE`.
pub fn info(args: &TraceInfoArgs) -> Result<()> {
    args.format.refuse_rows("a description is no table")?;
    let format = trace_format(args.trace_format.as_deref().unwrap_or_default());
    let mut source = nestwalk_source::open(&args.file, format.context("--trace-format")?)?;
    let meter = Meter::reading("reading the trace", source.info().total, args.quiet);
    let is_recorded = source.info().guest.is_some();
    let read = Read::all(source.as_mut(), &meter);
    drop(meter);
    if is_recorded {
        return recorded(args, &read);
    }
    print(&args.format.render(&Described { read: &read, source: &source.info() })?)?;
    read.error.map_or(Ok(()), |error| bail!("{error}; what is told came before"))
}

/// Of a recorded guest, which says more of itself.
fn recorded(args: &TraceInfoArgs, read: &Read) -> Result<()> {
    let mut reader = TraceReader::open(&args.file)?;
    let (totals, damage) = totals(&mut reader);
    let damage = damage.as_deref();
    print(&args.format.render(&Recorded { reader: &reader, totals: &totals, damage, read })?)
}

/// What is told of any trace.
struct Described<'a> {
    read: &'a Read,
    source: &'a SourceInfo,
}

impl Found for Described<'_> {
    fn json(&self) -> Result<Value> {
        Ok(self.read.as_json(self.source))
    }

    fn table(&self, _: Screen) -> String {
        self.read.as_text(self.source)
    }
}

/// What is told of a recorded guest.
struct Recorded<'a> {
    reader: &'a TraceReader,
    totals: &'a Totals,
    damage: Option<&'a str>,
    read: &'a Read,
}

/// What the trace holds, and what is wrong with it: of one without its end, what its chunks say.
fn totals(reader: &mut TraceReader) -> (Totals, Option<String>) {
    if let Some(totals) = reader.totals() {
        return (totals.clone(), reader.damage().map(str::to_owned));
    }
    let mut totals = Totals::default();
    let mut controls = Vec::new();
    let damage = loop {
        match reader.next_controls(&mut controls) {
            Ok(true) => {}
            Ok(false) => break None,
            Err(error) => break Some(error.message),
        }
        for (_, control) in &controls {
            totals.controls += 1;
            *totals.controls_by_kind.entry(control_name(control).into()).or_default() += 1;
        }
        let extent = reader.extent();
        totals.runs = extent.runs;
        totals.accesses = extent.accesses;
        totals.instructions = extent.instructions;
    };
    (totals, damage)
}

fn per(bytes: u64, n: u64) -> f64 {
    if n == 0 { 0.0 } else { bytes as f64 / n as f64 }
}

impl Found for Recorded<'_> {
    fn json(&self) -> Result<Value> {
        let Self { reader, totals, damage, read } = self;
        let bytes = reader.bytes();
        Ok(json!({
            "bytes": bytes,
            "complete": reader.is_complete(),
            "damage": damage,
            "chunks": reader.chunks().len(),
            "bytes_per_access": per(bytes, totals.accesses),
            "bytes_per_run": per(bytes, totals.runs),
            "header": reader.header(),
            "totals": totals,
            "summary": reader.summary(),
            "read": read.numbers(),
        }))
    }

    fn table(&self, _: Screen) -> String {
        let Self { reader, totals, damage, read } = self;
        let mut table = Table::new().column("trace", Align::Left).column("", Align::Left);
        let rows = header(reader.header()).into_iter().chain(content(reader, totals, *damage));
        for (name, value) in rows {
            if !value.is_empty() {
                table.row(vec![name.into(), value]);
            }
        }
        let mut out = table.render();
        out += &format!("\n{}", read.table("read"));
        let mut kinds = Table::new().column("controls", Align::Left).column("", Align::Right);
        for (name, n) in &totals.controls_by_kind {
            kinds.row(vec![name.clone(), count(*n)]);
        }
        if totals.controls > 0 {
            out += &format!("\n{}", kinds.render());
        }
        let header = reader.header();
        let notes = reader.summary().map(|s| s.notes.as_slice()).unwrap_or_default();
        out += &list("approximations", &header.approximations);
        out += &list("what this trace cannot answer", &header.cannot_answer);
        out + &list("notes", notes)
    }
}

pub(super) fn list(title: &str, lines: &[String]) -> String {
    if lines.is_empty() {
        return String::new();
    }
    lines.iter().fold(format!("\n{title}:\n"), |text, line| text + "  " + line + "\n")
}

type Row = (&'static str, String);

fn header(header: &Header) -> Vec<Row> {
    let yes = |is: bool, text: &str| if is { text.to_owned() } else { String::new() };
    let some = |parts: &[String]| {
        parts.iter().filter(|p| !p.is_empty()).cloned().collect::<Vec<_>>().join(", ")
    };
    let recorded = match (header.reproducible, header.irreproducible_because.as_str()) {
        (true, _) => "again gives the same bytes".into(),
        (false, "") => String::new(),
        (false, why) => format!("again gives other bytes: {why}"),
    };
    let guest = some(&[
        format!("{} of memory", bytes(header.memory_bytes)),
        match header.vcpus {
            1 => "1 vCPU".into(),
            n => format!("{n} vCPUs"),
        },
        format!("{} paging", header.paging),
        if header.thp.is_empty() { String::new() } else { format!("THP {}", header.thp) },
        yes(header.pti, "page-table isolation"),
    ]);
    let known = some(&[
        yes(header.knows_lines, "cache lines"),
        yes(header.knows_pc, "instruction addresses"),
        yes(header.has_fetches, "fetches"),
        yes(header.line_addresses, "addresses to 64 bytes"),
        yes(header.boot, "the boot"),
    ]);
    vec![
        ("of", header.origin()),
        ("command", header.command.join(" ")),
        ("written by", header.tool.clone()),
        ("kernel", header.kernel.clone()),
        ("QEMU", some(&[header.qemu.clone(), header.cpu.clone()])),
        ("guest", guest),
        ("packages", packages(&header.packages)),
        ("seed", header.seed.map(|s| s.to_string()).unwrap_or_default()),
        ("recording it", recorded),
        ("filter", filter(&header.filter)),
        ("known", known),
    ]
}

/// All if they are few, else how many.
fn packages(packages: &[String]) -> String {
    match packages.len() {
        0..=3 => packages.join(", "),
        n => format!("{n}; --format json names them"),
    }
}

fn filter(filter: &Filter) -> String {
    if *filter == Filter::RUNS {
        return "consecutive accesses to a page are one run".into();
    }
    let array = |name: &str, a: FilterArray| match a.sets {
        0 => None,
        sets => Some(format!("{name} {sets} x {}", a.ways)),
    };
    let arrays = [
        array("data", filter.data),
        array("data, large pages", filter.data_large),
        array("fetches", filter.fetch),
        array("fetches, large pages", filter.fetch_large),
    ];
    arrays.into_iter().flatten().collect::<Vec<_>>().join("; ")
}

fn content(reader: &TraceReader, totals: &Totals, damage: Option<&str>) -> Vec<Row> {
    let size = reader.bytes();
    let state = match (reader.is_complete(), damage) {
        (_, Some(damage)) => format!("damaged: {damage}"),
        (true, None) => "complete".into(),
        (false, None) => {
            "incomplete: its end is missing, as its writer was killed or it was cut off".into()
        }
    };
    let summary = reader.summary();
    let status = summary.and_then(|s| s.exit_status).map(|s| s.to_string());
    let dropped = summary.map(|s| &s.dropped).into_iter().flatten();
    let dropped: Vec<_> = dropped.map(|(why, n)| format!("{why} {}", count(*n))).collect();
    vec![
        ("state", state),
        ("accesses", count(totals.accesses)),
        ("runs", count(totals.runs)),
        ("instructions", count(totals.instructions)),
        ("controls", count(totals.controls)),
        ("exit status", status.unwrap_or_default()),
        ("dropped", dropped.join(", ")),
        ("chunks", count(reader.chunks().len() as u64)),
        (
            "size",
            format!(
                "{}, {:.4} bytes per access, {:.2} per run",
                bytes(size),
                per(size, totals.accesses),
                per(size, totals.runs)
            ),
        ),
    ]
}
