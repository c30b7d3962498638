//! The questions that two lectures on virtual memory leave open ("Memory Virtualization";
//! "Virtualization and Memory Hierarchy"), each answered by a run.

use super::Ended;
use crate::args::ReproduceArgs;
use crate::commands::walk::{steps, without_walk_caches};
use crate::formats::Found;
use crate::progress::{Phase, Phases};
use crate::screen::Screen;
use crate::settings;
use crate::signals::stop_on_signals;
use anyhow::{Result, bail};
use nestwalk_fleet::replacement::Kind;
use nestwalk_hw::Profile;
use nestwalk_lab::{Fleet, FleetOutcome, Lab, MachineResult, Settings, VERSION, Work, words};
use nestwalk_mm::PagePolicy;
use nestwalk_report::{Align, Table, count, parse_bytes, parse_count};
use nestwalk_sim::compare::spec::MachineSpec;
use nestwalk_tables::LONG4;
use serde::Serialize;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, Ordering};

/// Accesses of each program unless said otherwise.
const ACCESSES: u64 = 200_000;
/// Memory of each program unless said otherwise.
const FOOTPRINT: u64 = 16 << 20;
/// What the host's kernel and the firmware take of a host's memory.
const KERNEL: u64 = 33 << 20;

/// A number that a run gave.
#[derive(Serialize)]
struct Fact {
    /// Of what: the row of the answer's table.
    of: String,
    /// What: the column.
    what: String,
    value: f64,
    unit: &'static str,
}

/// A question and what a run says to it.
#[derive(Serialize)]
struct Answer {
    /// As the lecture has it.
    question: &'static str,
    /// What was run.
    run: String,
    facts: Vec<Fact>,
    /// The answer in words.
    answer: String,
}

impl Answer {
    fn new(question: &'static str, run: String) -> Self {
        Self { question, run, facts: Vec::new(), answer: String::new() }
    }
    fn fact(&mut self, of: impl Into<String>, what: &str, value: f64, unit: &'static str) {
        self.facts.push(Fact { of: of.into(), what: what.into(), value, unit });
    }
    fn value(&self, of: &str, what: &str) -> f64 {
        let found = self.facts.iter().find(|f| f.of == of && f.what == what);
        found.map_or(f64::NAN, |f| f.value)
    }
}

/// All answers.
pub struct Lectures {
    answers: Vec<Answer>,
}

/// Whoever asks: the lab and what its runs have in common.
struct Asker<'a> {
    lab: Lab,
    args: &'a ReproduceArgs,
    accesses: u64,
    footprint: u64,
    threads: usize,
    stop: std::sync::Arc<AtomicBool>,
}

type Question = fn(&Asker<'_>) -> Result<Answer>;

const QUESTIONS: [(&str, Question); 7] = [
    ("shadow-tables", shadow_tables),
    ("churn", churn),
    ("tlb-entries", tlb_entries),
    ("two-levels", two_levels),
    ("identifiers", identifiers),
    ("replacement", replacement),
    ("write-back", write_back),
];

/// Answers all questions, or those that `--programs` names.
pub fn run(args: &ReproduceArgs) -> Result<Ended<Lectures>> {
    let asked: Vec<&str> = match &args.programs {
        None => QUESTIONS.iter().map(|q| q.0).collect(),
        Some(names) => names.split(',').map(str::trim).collect(),
    };
    let names = QUESTIONS.map(|q| q.0).join(", ");
    if let Some(unknown) = asked.iter().find(|a| !QUESTIONS.iter().any(|q| q.0 == **a)) {
        bail!("--programs {unknown}: the questions are {names}");
    }
    if args.recordings.is_some() {
        bail!("--recordings: the lectures' questions are asked of built-in programs");
    }
    let asker = Asker {
        lab: settings::lab(),
        args,
        accesses: args.accesses.as_deref().map(parse_count).transpose()?.unwrap_or(ACCESSES).max(1),
        footprint: args.footprint.as_deref().map(parse_bytes).transpose()?.unwrap_or(FOOTPRINT),
        threads: args.output.threads()?,
        stop: stop_on_signals(),
    };
    let phases = Phases::new(args.output.quiet);
    let mut answers = Vec::new();
    for (name, question) in QUESTIONS.iter().filter(|q| asked.contains(&q.0)) {
        phases.begin(Phase::new(format!("asking: {name}")));
        match question(&asker) {
            Ok(answer) => answers.push(answer),
            Err(error) => return Ok((Lectures { answers }, Some(error))),
        }
    }
    Ok((Lectures { answers }, None))
}

impl Asker<'_> {
    fn settings(&self) -> Settings {
        Settings {
            profile: self.args.profile.clone().unwrap_or(Settings::default().profile),
            footprint: Some(self.footprint),
            accesses: Some(self.accesses),
            seed: self.args.seed,
            verify: self.args.verify,
            ..Settings::default()
        }
    }

    /// Machines on one source.
    fn compare(&self, settings: &Settings) -> Result<Vec<MachineResult>> {
        let experiment = self.lab.experiment(settings)?;
        let work = Work { threads: self.threads, series: None };
        let opened = self.lab.open(&experiment, &work, &mut |_| ())?;
        Ok(opened.run(&self.stop, &mut |_| ())?.complete()?.outcome.machines)
    }

    /// VMs on one host.
    fn fleet(&self, vms: &[String], change: impl FnOnce(&mut Fleet)) -> Result<FleetOutcome> {
        let mut fleet = Fleet { apart: false, turn: 20_000, ..Fleet::default() };
        for vm in vms {
            fleet.vm.push(self.lab.vm(vm, &self.settings())?);
        }
        change(&mut fleet);
        let progress = &mut |_| ();
        let mut outcome =
            self.lab.run_fleet(&fleet, self.threads, &mut |_| (), (&self.stop, progress))?;
        if self.stop.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        match outcome.error.take() {
            Some(error) => Err(error.into()),
            None => Ok(outcome),
        }
    }
}

fn machine<'m>(machines: &'m [MachineResult], name: &str) -> Result<&'m MachineResult> {
    let found = machines.iter().find(|m| m.name == name);
    found.ok_or_else(|| anyhow::anyhow!("no result of {name}"))
}

fn shadow_tables(asker: &Asker<'_>) -> Result<Answer> {
    let mut a = Answer::new(
        "How many shadow pages to be maintained, with N VMs of M active processes each?",
        format!("N VMs with M processes `uniform` over {} MiB each", asker.footprint >> 20),
    );
    let mut per = Vec::new();
    for vms in [1, 2, 4] {
        for processes in [1, 2, 4] {
            let sources = vec!["uniform"; processes].join(" ");
            let vm = |i| format!("vm{i}={sources}; machine=shadow; memory=1GiB");
            let outcome = asker.fleet(&(0..vms).map(vm).collect::<Vec<_>>(), |_| ())?;
            let bytes = outcome.vms.iter().map(|v| v.together.page_table_bytes.shadow);
            let pages = bytes.sum::<u64>() / 4096;
            let of = format!("N = {vms}");
            a.fact(of, &format!("M = {processes}"), pages as f64, "tables of 4 KiB");
            per.push(pages as f64 / (vms * processes) as f64);
        }
    }
    let (least, most) = per.iter().fold((f64::MAX, 0.0f64), |(l, m), p| (l.min(*p), m.max(*p)));
    a.answer = format!(
        "A set for each address space, N times M of them: {least:.0} to {most:.0} tables for each, \
         whatever N and M are. Nested paging has one set for each VM."
    );
    Ok(a)
}

fn churn(asker: &Asker<'_>) -> Result<Answer> {
    let mut a = Answer::new(
        "All addresses mapped and no updates of tables: what is shadow paging's performance? And with \
         a lot of page faults and context switches?",
        format!(
            "`uniform` over {} MiB, populated, and the recording `storm` of short processes",
            asker.footprint >> 20
        ),
    );
    let mapped = Settings { sources: vec!["uniform".into()], ..asker.settings() };
    let storm = Settings {
        sources: vec!["storm".into()],
        footprint: None,
        accesses: None,
        ..asker.settings()
    };
    for (of, settings, guest) in [("all mapped", mapped, "4k"), ("churn", storm, "observed")] {
        let machines = asker.compare(&settings)?;
        for scheme in ["native", "shadow", "nested"] {
            let host = if scheme == "native" { "" } else { "+4k" };
            let found = machine(&machines, &format!("{scheme}:{guest}{host}"))?;
            a.fact(of, scheme, found.overhead_percent, "% above ideal");
        }
    }
    a.answer = format!(
        "All mapped, shadow paging costs what bare metal costs: {:.1} and {:.1} %, nested paging {:.1} %. \
         With churn shadow paging costs {:.0} %, nested paging {:.1} %.",
        a.value("all mapped", "shadow"),
        a.value("all mapped", "native"),
        a.value("all mapped", "nested"),
        a.value("churn", "shadow"),
        a.value("churn", "nested"),
    );
    Ok(a)
}

fn tlb_entries(asker: &Asker<'_>) -> Result<Answer> {
    let mut a = Answer::new(
        "One TLB entry in a native system is how many TLB entries under nested paging?",
        "`uniform` over 2 MiB, populated: each walk fills one entry, and all of them stay".into(),
    );
    let settings = Settings {
        sources: vec!["uniform".into()],
        footprint: Some(2 << 20),
        machines: "native:4k,native:2m,nested:4k+4k,nested:2m+2m,nested:2m+4k,nested:4k+2m".into(),
        // Set-up walks, too: it must be counted.
        populate: Some(false),
        accesses: Some(asker.accesses.max(50_000)),
        ..asker.settings()
    };
    let machines = asker.compare(&settings)?;
    for m in machines.iter().filter(|m| m.scheme != "ideal") {
        a.fact(&m.name, "walks", m.counters.walks as f64, "walks");
    }
    let ratio = |nested: &str, native: &str| a.value(nested, "walks") / a.value(native, "walks");
    a.answer = format!(
        "As many as the larger page has smaller ones, where the host's pages are smaller: a guest's page of \
         2 MiB on pages of 4 KiB takes {:.0} times the entries; {:.1} times where both have 2 MiB, {:.1} \
         where both have 4 KiB.",
        ratio("nested:2m+4k", "native:2m"),
        ratio("nested:2m+2m", "native:2m"),
        ratio("nested:4k+4k", "native:4k"),
    );
    Ok(a)
}

fn two_levels(asker: &Asker<'_>) -> Result<Answer> {
    let mut a = Answer::new(
        "How many memory accesses does a translation take with tables of 2 levels?",
        "one walk with nothing cached, reference by reference, guest tables of 2 and 4 levels"
            .into(),
    );
    for (paging, levels) in [("2-level", 2.0), ("4-level", 4.0)] {
        for scheme in ["native", "nested"] {
            let references = cold_walk(scheme, &asker.settings().profile, paging)?;
            a.fact(paging, scheme, references as f64, "references");
        }
        a.fact(paging, "(g+1)(h+1)-1", (levels + 1.0) * 5.0 - 1.0, "references");
    }
    a.answer = format!(
        "{:.0} on bare metal, {:.0} under nested paging with host tables of 4 levels: (g + 1)(h + 1) - 1, \
         which is 8 where the host's tables have 2 levels as well.",
        a.value("2-level", "native"),
        a.value("2-level", "nested"),
    );
    Ok(a)
}

/// References of one walk with nothing cached.
fn cold_walk(scheme: &str, profile: &str, paging: &str) -> Result<usize> {
    let guest_mode = words::mode("guest_paging", paging)?;
    let spec = MachineSpec::parse(scheme, PagePolicy::Base)?;
    let profile = without_walk_caches(Profile::load(profile)?);
    Ok(steps(&spec, profile, (guest_mode, &LONG4), 0x4000_0000)?.len())
}

fn identifiers(asker: &Asker<'_>) -> Result<Answer> {
    let mut a = Answer::new(
        "A TLB with identifiers simplifies management: what does it save at switches between VMs?",
        "two VMs `zipf` over 2 MiB on one core, turns of 20,000 instructions".into(),
    );
    let vms = ["a", "b"].map(|n| format!("{n}=zipf; machine=nested; footprint=2MiB; memory=1GiB"));
    for (of, vpids) in [("with VPIDs", true), ("without", false)] {
        let outcome = asker.fleet(&vms, |fleet| fleet.vpids = vpids)?;
        let sum = |of: fn(&MachineResult) -> u64| {
            outcome.vms.iter().map(|v| of(&v.together)).sum::<u64>() as f64
        };
        a.fact(of, "L2 TLB misses", sum(|m| m.counters.l2_tlb_misses), "count");
        a.fact(of, "switches", outcome.host.preemptions as f64, "count");
        let total = outcome.vms.iter().map(|v| v.interference.total).sum::<f64>() / 2.0;
        a.fact(of, "overhead", total, "% above ideal");
    }
    let misses = |of| a.value(of, "L2 TLB misses");
    a.answer = format!(
        "{} misses in {} switches, {:.0} for each: every switch takes what the VM had in its TLBs.",
        count((misses("without") - misses("with VPIDs")).max(0.0) as u64),
        count(a.value("without", "switches") as u64),
        (misses("without") - misses("with VPIDs")) / a.value("without", "switches"),
    );
    Ok(a)
}

fn replacement(asker: &Asker<'_>) -> Result<Answer> {
    let footprint = asker.footprint * 4;
    let mut a = Answer::new(
        "Which page is replaced on a miss, and how high is the miss rate (0.00001 to 0.001 % in the \
         lecture's table, at 10^6 to 10^7 cycles a miss)?",
        format!("a VM `zipf` over {} MiB; its host has memory for a part of that", footprint >> 20),
    );
    let vm = [format!("a=zipf; machine=nested; footprint={footprint}; memory=1GiB")];
    let clock = Profile::load(&asker.settings().profile)?.core.clock();
    let mut penalty = 0.0;
    for share in [50, 70, 90] {
        for (name, _, _) in Kind::ALL {
            let outcome = asker.fleet(&vm, |fleet| {
                fleet.host_memory =
                    (KERNEL + (4 << 20) + footprint * share / 100).next_multiple_of(4096);
                fleet.replacement = name.into();
                fleet.swap = "disk".into();
            })?;
            let found = &outcome.vms[0];
            let rate = 100.0 * found.swap.swapped_in as f64
                / found.together.counters.accesses.max(1) as f64;
            a.fact(format!("{share} % of it"), name, rate, "% of accesses");
            penalty = clock.cycles(found.swap.waited_ns) / found.swap.swapped_in.max(1) as f64;
        }
    }
    a.answer = format!(
        "With memory for 90 % of what is used LRU misses {:.2} % of accesses, FIFO {:.2} %, the clock \
         {:.2} %; for 50 % LRU {:.1} %. A miss waits {penalty:.1e} cycles for a disk. The lecture's rates \
         are those of memory that is large enough.",
        a.value("90 % of it", "lru"),
        a.value("90 % of it", "fifo"),
        a.value("90 % of it", "clock"),
        a.value("50 % of it", "lru"),
    );
    Ok(a)
}

fn write_back(asker: &Asker<'_>) -> Result<Answer> {
    let footprint = asker.footprint * 4;
    let mut a = Answer::new(
        "What happens on a write: write-back or write-through?",
        format!("a VM `zipf:reads=0.5` over {} MiB, memory for 70 % of it", footprint >> 20),
    );
    let vm = [format!("a=zipf:reads=0.5; machine=nested; footprint={footprint}; memory=1GiB")];
    let outcome = asker.fleet(&vm, |fleet| {
        fleet.host_memory = (KERNEL + (4 << 20) + footprint * 7 / 10).next_multiple_of(4096);
    })?;
    let found = &outcome.vms[0];
    let stores = found.swap.stores as f64;
    a.fact("write-back", "writes to the device", found.swap.written as f64, "pages");
    a.fact("write-through", "writes to the device", stores, "stores");
    a.fact("taken back", "pages", found.swap.taken_back as f64, "pages");
    a.answer = format!(
        "Write-back writes {} pages of {} that go, since a dirty bit tells which; write-through would \
         write to the device at each of {} stores.",
        count(found.swap.written),
        count(found.swap.taken_back),
        count(stores as u64),
    );
    Ok(a)
}

impl Found for Lectures {
    fn json(&self) -> Result<Value> {
        Ok(json!({ "version": VERSION, "answers": serde_json::to_value(&self.answers)? }))
    }

    fn rows(&self) -> Result<Vec<Value>> {
        let row = |a: &Answer, f: &Fact| {
            json!({
                "question": a.question, "of": f.of, "what": f.what, "value": f.value, "unit": f.unit,
            })
        };
        Ok(self.answers.iter().flat_map(|a| a.facts.iter().map(move |f| row(a, f))).collect())
    }

    fn table(&self, _: Screen) -> String {
        self.answers.iter().map(Answer::text).collect::<Vec<_>>().join("\n")
    }
}

impl Answer {
    fn text(&self) -> String {
        let mut columns: Vec<&str> = Vec::new();
        let mut rows: Vec<&str> = Vec::new();
        for fact in &self.facts {
            if !columns.contains(&fact.what.as_str()) {
                columns.push(&fact.what);
            }
            if !rows.contains(&fact.of.as_str()) {
                rows.push(&fact.of);
            }
        }
        let unit = self.facts.first().map_or("", |f| f.unit);
        let same = self.facts.iter().all(|f| f.unit == unit);
        let mut table = Table::new().column(if same { unit } else { "" }, Align::Left);
        for column in &columns {
            table = table.column(column, Align::Right);
        }
        for row in rows {
            let cell = |column: &&str| {
                let value = self.value(row, column);
                if value.is_nan() { "-".into() } else { number(value) }
            };
            let mut cells = vec![row.to_owned()];
            cells.extend(columns.iter().map(cell));
            table.row(cells);
        }
        format!("{}\n  {}\n\n{}\n{}\n", self.question, self.run, table.render(), self.answer)
    }
}

/// A number as people read it.
fn number(value: f64) -> String {
    if value.fract().abs() < 1e-9 && value.abs() >= 1.0 {
        count(value as u64)
    } else if value.abs() < 0.1 && value > 0.0 {
        format!("{value:.4}")
    } else {
        format!("{value:.1}")
    }
}
