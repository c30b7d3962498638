//! `trace verify`: whether a trace is sound, and says what a guest can do.

use super::print;
use crate::args::TraceVerifyArgs;
use crate::formats::Found;
use crate::progress::Meter;
use crate::screen::Screen;
use anyhow::{Result, bail};
use nestwalk_mm::{DROP_REASONS, DropReason, ObservedGuest};
use nestwalk_report::count;
use nestwalk_sim::compare::Progress;
use nestwalk_source::trace::{Header, Totals, TraceReader, control_name};
use nestwalk_types::{Batch, Control, GuestBatch, Run, Source};
use serde_json::{Value, json};

/// Violations that are told one by one.
const TOLD: usize = 20;

/// `nestwalk trace verify FILE`.
pub fn verify(args: &TraceVerifyArgs) -> Result<()> {
    args.format.refuse_rows("a verdict is no table")?;
    let mut reader = TraceReader::open(&args.file)?;
    let meter = Meter::reading("checking the trace", reader.info().total, args.quiet);
    let mut check = Check::new(reader.header());
    check.file(&reader);
    for chunk in 0..reader.chunks().len() {
        check.chunk(&mut reader, chunk, &meter);
    }
    check.totals(&reader);
    drop(meter);
    let verdict = check.verdict();
    print(&args.format.render(&verdict)?)?;
    match verdict.violations {
        0 => Ok(()),
        1 => bail!("{}: 1 violation", args.file.display()),
        n => bail!("{}: {} violations", args.file.display(), count(n)),
    }
}

/// What was found.
struct Verdict {
    chunks: u64,
    totals: Totals,
    /// Runs that the tables map, by whether they could be looked up at all.
    translated: u64,
    /// Runs without a mapping that is no violation, by reason.
    excused: Vec<(&'static str, u64)>,
    violations: u64,
    told: Vec<String>,
}

/// A check under way.
struct Check {
    vcpus: u8,
    line_addresses: bool,
    knows_lines: bool,
    guest: Option<ObservedGuest>,
    output: GuestBatch,
    /// Examples of the guest that were told.
    examples: usize,
    verdict: Verdict,
}

impl Check {
    fn new(header: &Header) -> Self {
        let verdict = Verdict {
            chunks: 0,
            totals: Totals::default(),
            translated: 0,
            excused: Vec::new(),
            violations: 0,
            told: Vec::new(),
        };
        let mut check = Self {
            vcpus: header.vcpus,
            line_addresses: header.line_addresses,
            knows_lines: header.knows_lines,
            guest: None,
            output: GuestBatch::default(),
            examples: 0,
            verdict,
        };
        match ObservedGuest::new(&header.guest()) {
            Ok(guest) => check.guest = Some(guest),
            Err(error) => check.violation(&format!("header: {error}")),
        }
        check
    }

    fn violation(&mut self, what: &str) {
        self.verdict.violations += 1;
        if self.verdict.told.len() < TOLD {
            self.verdict.told.push(what.to_owned());
        }
    }

    /// What stands around the chunks.
    fn file(&mut self, reader: &TraceReader) {
        if let Some(damage) = reader.damage() {
            self.violation(damage);
        } else if !reader.is_complete() {
            self.violation(&format!(
                "the end is missing: the writer was killed, or the file was cut off after chunk {} \
                 of {} bytes; `nestwalk trace convert` makes a whole trace of what is there",
                reader.chunks().len().saturating_sub(1),
                count(reader.bytes())
            ));
        }
    }

    fn chunk(&mut self, reader: &mut TraceReader, chunk: usize, meter: &Meter) {
        let mut batch = Batch::default();
        let result = reader.seek_chunk(chunk).and_then(|()| {
            let mut first = reader.extent().runs;
            while reader.next_batch_of_chunk(&mut batch)? {
                self.batch(&batch, chunk, first);
                let position = reader.position();
                meter.show(Progress::read(position, position));
                first = reader.extent().runs;
            }
            Ok(())
        });
        self.verdict.chunks += 1;
        if let Err(error) = result {
            self.violation(&error.message);
            // Without what the chunk said, the tables are not known any more.
            self.guest = None;
        }
    }

    /// Checks a batch that begins with run `first` of the stream.
    fn batch(&mut self, batch: &Batch, chunk: usize, first: u64) {
        let totals = &mut self.verdict.totals;
        totals.runs += batch.runs.len() as u64;
        totals.controls += batch.controls.len() as u64;
        for run in &batch.runs {
            totals.accesses += u64::from(run.count);
            totals.instructions += u64::from(run.instructions);
        }
        for (_, control) in &batch.controls {
            *totals.controls_by_kind.entry(control_name(control).into()).or_default() += 1;
        }
        for (i, run) in batch.runs.iter().enumerate() {
            if let Some(what) = self.fault(run) {
                self.violation(&format!("chunk {chunk}, run {}: {what}", first + i as u64));
            }
        }
        self.regions(chunk);
        self.mappings(batch, chunk);
    }

    /// What is wrong with a run by itself.
    fn fault(&self, run: &Run) -> Option<&'static str> {
        let own = run.lines >> (run.gva.value() >> 6 & 63) & 1;
        if run.count == 0 {
            Some("it has no access")
        } else if run.lines == 0 || (self.knows_lines && own == 0) {
            Some("the line of its address is not among its lines")
        } else if run.vcpu.0 >= self.vcpus {
            Some("its vCPU is none of the guest's")
        } else if run.flags.is_store() && run.flags.is_fetch() {
            Some("it is a store and a fetch")
        } else if self.line_addresses && run.gva.value() & 63 != 0 {
            Some("its address is not that of a line")
        } else {
            None
        }
    }

    fn regions(&mut self, chunk: usize) {
        let name = control_name(&Control::RegionOfInterest);
        let said = self.verdict.totals.controls_by_kind.get(name).copied().unwrap_or(0);
        if said > 1 {
            self.violation(&format!("chunk {chunk}: a second region of interest begins"));
            self.verdict.totals.controls_by_kind.insert(name.into(), 1);
        }
    }

    /// Whether every run has a mapping.
    fn mappings(&mut self, batch: &Batch, chunk: usize) {
        let Some(guest) = &mut self.guest else { return };
        if let Err(error) = guest.process(batch, &mut self.output) {
            self.violation(&format!("chunk {chunk}: {error}; mappings behind it are not checked"));
            self.guest = None;
            return;
        }
        self.verdict.translated += self.output.gpas.len() as u64;
        let new: Vec<_> = guest.examples().iter().skip(self.examples).copied().collect();
        self.examples += new.len();
        for example in new {
            if !self.is_excused(example.reason) && self.verdict.told.len() < TOLD {
                self.verdict.told.push(format!("chunk {chunk}, {example}"));
            }
        }
    }

    /// Devices have no memory; and of several vCPUs one may use a translation that another has just
    /// taken back, until it is told so.
    const fn is_excused(&self, reason: DropReason) -> bool {
        matches!(reason, DropReason::Device) || self.vcpus > 1
    }

    /// What was read against what the end says.
    fn totals(&mut self, reader: &TraceReader) {
        let Some(said) = reader.totals() else { return };
        let found = &self.verdict.totals;
        let numbers = [
            ("runs", said.runs, found.runs),
            ("accesses", said.accesses, found.accesses),
            ("instructions", said.instructions, found.instructions),
            ("controls", said.controls, found.controls),
        ];
        let mut wrong: Vec<String> = Vec::new();
        for (name, said, found) in numbers.into_iter().filter(|n| n.1 != n.2) {
            wrong.push(format!("the end says {} {name}, there are {}", count(said), count(found)));
        }
        if said.controls_by_kind != found.controls_by_kind {
            wrong.push(format!(
                "the end says {:?} controls by kind, there are {:?}",
                said.controls_by_kind, found.controls_by_kind
            ));
        }
        wrong.iter().for_each(|what| self.violation(what));
    }

    fn verdict(mut self) -> Verdict {
        let dropped = self.guest.as_ref().map(|guest| guest.stats().dropped).unwrap_or_default();
        for (reason, dropped) in DROP_REASONS.into_iter().zip(dropped) {
            if dropped.runs == 0 {
                continue;
            }
            if self.is_excused(reason) {
                self.verdict.excused.push((reason.name(), dropped.runs));
            } else {
                self.verdict.violations += dropped.runs;
            }
        }
        self.verdict
    }
}

impl Found for Verdict {
    fn json(&self) -> Result<Value> {
        let excused: serde_json::Map<_, _> =
            self.excused.iter().map(|(name, n)| ((*name).to_owned(), json!(n))).collect();
        Ok(json!({
            "chunks": self.chunks,
            "runs": self.totals.runs,
            "accesses": self.totals.accesses,
            "instructions": self.totals.instructions,
            "controls": self.totals.controls,
            "controls_by_kind": self.totals.controls_by_kind,
            "runs_with_a_mapping": self.translated,
            "runs_without_a_mapping_excused": excused,
            "violations": self.violations,
            "told": self.told,
        }))
    }

    fn table(&self, _: Screen) -> String {
        let Totals { runs, accesses, controls, .. } = self.totals;
        let mut out = format!(
            "{} chunks, {} runs, {} accesses, {} controls read; {} runs have a mapping\n",
            count(self.chunks),
            count(runs),
            count(accesses),
            count(controls),
            count(self.translated)
        );
        for (name, n) in &self.excused {
            out += &format!("{} runs without one are no violation: {name}\n", count(*n));
        }
        for line in &self.told {
            out += &format!("violation: {line}\n");
        }
        let told = self.told.len() as u64;
        if self.violations > told {
            out += &format!("and {} more\n", count(self.violations - told));
        }
        if self.violations == 0 {
            out += "no violation\n";
        }
        out
    }
}
