//! `bench`: the simulator's own speed, per scheme, its instructions per access, and those of reading.

mod against;
mod cases;
mod child;
mod growth;
mod guests;
mod limits;
mod reading;

use crate::args::BenchArgs;
use crate::formats::{Format, Found};
use crate::screen::Screen;
use anyhow::{Context, Result, anyhow, bail};
use nestwalk_hw::Profile;
use nestwalk_lab::words;
use nestwalk_policy::POLICIES;
use nestwalk_report::{Align, Table, parse_count};
use nestwalk_sim::compare::spec::MachineSpec;
use nestwalk_sim::compare::{Plan, compare};
use nestwalk_source::PatternSpec;
use nestwalk_types::{Batch, Control, Source, SourceError, SourceInfo};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// Name, pattern, footprint, and the footprint when instructions are counted (set-up runs under
/// valgrind as well, so it is small).
static CASES: &[(&str, &str, u64, u64)] = &[
    ("tlb-hit", "sequential", 128 << 10, 128 << 10),
    ("scattered", "uniform", 32 << 10, 32 << 10),
    ("stream", "sequential", 4 << 30, 16 << 20),
    ("walks", "uniform", 4 << 30, 64 << 20),
];

/// Machines measured alone, the first four of them in one pass, and machines with segments, which must
/// not be slower than `nested`.
static MACHINES: &[(&str, &str)] = &[
    ("ideal", "ideal"),
    ("native", "native"),
    ("shadow", "shadow"),
    ("nested", "nested"),
    ("all four", "ideal,native,shadow,nested"),
    ("ds", "ds"),
    ("vmm-direct", "vmm-direct"),
    ("guest-direct", "guest-direct"),
    ("dual-direct", "dual-direct"),
];

/// Machines whose instructions are counted beside the first four, and the machine whose run each is
/// without its policy: a policy that only advises leaves the rest of the run as it is.
static WATCHED: &[(&str, &str, Option<&str>)] = &[
    ("agile", "agile/interval=2000000", None),
    ("policy-shadow", "switching/dynamic-thresholds/obey=no/start=shadow", Some("shadow")),
    ("policy-nested", "switching/dynamic-thresholds/obey=no/start=nested", Some("nested")),
];

/// Machines whose instructions are counted, too, and must be no more than those of `nested`, but for
/// [`TOLERANCE`]: their walks are shorter or none.
const DIRECT: [&str; 3] = ["vmm-direct", "guest-direct", "dual-direct"];

/// Share of a run's instructions that a policy may add.
const POLICY_COST: f64 = 0.10;

/// The best rates of other simulators for the like of each case, in million accesses per second, as
/// measured in November 2026 on one core of two shared ones of an AMD EPYC.
static PEERS: &[(&str, &str)] = &[
    ("tlb-hit", "drmemtrace TLB tool, online: 10.1 (no walks, one page size)"),
    ("stream", "DMT/ASAP nested simulator, sequential 256 MiB: 8.0"),
    ("walks", "DMT/ASAP nested simulator, random 4 GiB: 0.37; ChampSim: 0.002; Virtuoso: 0.007"),
];

/// Share by which instructions per access may grow before it counts as a regression.
const TOLERANCE: f64 = 0.02;

/// `nestwalk bench`.
pub fn bench(args: &BenchArgs) -> Result<()> {
    let accesses = parse_count(&args.accesses).context("--accesses")?;
    if let Some(old) = &args.against {
        let chosen = args.case.as_deref().unwrap_or("");
        let found = against::against(old, chosen, args.pairs, accesses)?;
        let out = args.format.render(&found)?;
        return Ok(std::io::stdout().lock().write_all(out.as_bytes())?);
    }
    if args.growth {
        // A tenth: every run has several machines, and there are many.
        let out = args.format.render(&growth::growth(accesses / 10)?)?;
        return Ok(std::io::stdout().lock().write_all(out.as_bytes())?);
    }
    if let Some(name) = &args.case {
        if let Some(done) = reading::run(name) {
            return done;
        }
        let (case, machines) =
            name.split_once('/').ok_or_else(|| anyhow!("--case {name}: write CASE/MACHINE"))?;
        let rate = run((case, machines), accesses, args.small, args.threads)?;
        let out = format!("{:.2} million accesses/s\n", rate / 1e6);
        return Ok(std::io::stdout().lock().write_all(out.as_bytes())?);
    }
    if args.guest {
        let out = args.format.render(&guests::slowdown()?)?;
        return Ok(std::io::stdout().lock().write_all(out.as_bytes())?);
    }
    match &args.instructions {
        Some(file) => instructions(file, args.bless),
        None => seconds(accesses, args.format),
    }
}

/// Seconds that this thread has been on a processor, or, where the system does not tell, seconds.
/// What else runs on the machine does not count.
struct Clock {
    started: Instant,
    /// Other threads work, too: seconds of the wall's clock.
    of_all: bool,
}

impl Clock {
    fn of_this_thread() -> Self {
        Self { started: Instant::now(), of_all: false }
    }

    fn seconds(&self) -> f64 {
        if self.of_all {
            return self.started.elapsed().as_secs_f64();
        }
        // proc(5): the first number is nanoseconds on the processor, of the main thread.
        let text = std::fs::read_to_string("/proc/self/schedstat").unwrap_or_default();
        match text.split_whitespace().next().and_then(|n| n.parse::<u64>().ok()) {
            Some(ns) => ns as f64 / 1e9,
            None => self.started.elapsed().as_secs_f64(),
        }
    }
}

/// Notes when the region of interest begins.
struct Timed<S> {
    inner: S,
    clock: Arc<Clock>,
    began: Arc<Mutex<Option<f64>>>,
}

impl<S: Source> Source for Timed<S> {
    fn info(&self) -> SourceInfo {
        self.inner.info()
    }
    fn next_batch(&mut self, batch: &mut Batch) -> Result<bool, SourceError> {
        let more = self.inner.next_batch(batch)?;
        if batch.controls.iter().any(|c| c.1 == Control::RegionOfInterest)
            && let Ok(mut began) = self.began.lock()
        {
            *began = Some(self.clock.seconds());
        }
        Ok(more)
    }
}

/// Runs one case and returns accesses per second after set-up.
fn run(
    (case, machines): (&str, &str),
    accesses: u64,
    counting: bool,
    threads: usize,
) -> Result<f64> {
    if threads == 0 {
        bail!("--threads 0: at least 1 is needed");
    }
    let (_, pattern, footprint, small) = CASES
        .iter()
        .find(|c| c.0 == case)
        .ok_or_else(|| anyhow!("no case `{case}`; there are tlb-hit, scattered, stream, walks"))?;
    let footprint = if counting { *small } else { *footprint };
    let base_pages = words::pages("page size", "4k")?;
    let watched = WATCHED.iter().map(|m| (m.0, m.1));
    let mut known = MACHINES.iter().copied().chain(watched);
    let names = known.find(|m| m.0 == machines).map_or(machines, |m| m.1);
    let machines = names
        .split(',')
        .map(|n| MachineSpec::parse(n, base_pages))
        .collect::<Result<Vec<_>, _>>()?;
    let profile = Profile::load("cascade-lake-6252")?;
    let plan = Plan { threads, ..Plan::new(machines, profile, (16 << 30, 32 << 30)) };
    let base = PatternSpec { footprint, accesses, populate: Some(true), ..PatternSpec::default() };
    let began = Arc::new(Mutex::new(None));
    let inner = nestwalk_adapt::first_touch(Box::new(PatternSpec::parse(pattern, &base)?.source()));
    let clock = Arc::new(Clock { of_all: threads > 1, ..Clock::of_this_thread() });
    let mut source = Timed { inner, clock: Arc::clone(&clock), began: Arc::clone(&began) };
    let outcome = compare(&plan, &mut source, &AtomicBool::new(false), &mut |_| {})?;
    if let Some(error) = outcome.error {
        return Err(error.into());
    }
    let began = began.lock().ok().and_then(|b| *b).ok_or_else(|| anyhow!("{case}: no accesses"))?;
    Ok(accesses as f64 / (clock.seconds() - began))
}

fn seconds(accesses: u64, format: Format) -> Result<()> {
    let mut rates: Rates = BTreeMap::new();
    for (machine, _) in MACHINES {
        for (case, ..) in CASES {
            let rate = run((case, machine), accesses, false, 1)? / 1e6;
            rates.entry(case).or_default().insert(machine, rate);
        }
    }
    let replay = guests::replay()?;
    let memory = peak_memory_mib();
    let limits = limits::of_paths()?;
    let out = format.render(&Speed { accesses, rates, limits, replay, memory })?;
    std::io::stdout().lock().write_all(out.as_bytes())?;
    Ok(())
}

/// Million accesses per second, by case and machine.
type Rates = BTreeMap<&'static str, BTreeMap<&'static str, f64>>;

/// The simulator's own speed.
struct Speed {
    accesses: u64,
    rates: Rates,
    /// What loops that only go to memory as often as `nested` must come to, by case.
    limits: BTreeMap<&'static str, f64>,
    /// Million accesses of the guest per second, by recording.
    replay: Vec<(&'static str, f64)>,
    /// The peak, in MiB.
    memory: Option<u64>,
}

impl Found for Speed {
    fn json(&self) -> Result<Value> {
        let replay = self.replay.iter().map(|(n, r)| ((*n).to_owned(), *r));
        Ok(json!({
            "unit": "million accesses per second of processor time on one core, set-up not counted",
            "accesses": self.accesses,
            "rates": self.rates,
            "limits": self.limits,
            "replay": replay.collect::<BTreeMap<_, _>>(),
            "peak_memory_mib": self.memory,
        }))
    }

    /// A row per machine; recordings are replayed with all four.
    fn rows(&self) -> Result<Vec<Value>> {
        let numbers = |rates: &mut dyn Iterator<Item = (&'static str, f64)>| {
            rates.map(|(name, rate)| (name.to_owned(), json!(rate))).collect::<Map<_, _>>()
        };
        let row = |(machine, _): &(&'static str, &str)| {
            let rates = &mut CASES.iter().map(|(case, ..)| (*case, self.rates[case][machine]));
            let mut row = json!({ "machine": machine, "rates": numbers(rates) });
            if *machine == "all four" {
                row["replay"] = numbers(&mut self.replay.iter().copied()).into();
            }
            row
        };
        Ok(MACHINES.iter().map(row).collect())
    }

    fn table(&self, _: Screen) -> String {
        let mut table = Table::new().column("million accesses/s, one core", Align::Left);
        for (name, ..) in CASES {
            table = table.column(name, Align::Right);
        }
        for (machine, _) in MACHINES {
            let rates = CASES.iter().map(|(case, ..)| format!("{:.1}", self.rates[case][machine]));
            table.row(std::iter::once((*machine).to_owned()).chain(rates).collect());
        }
        let limits = CASES.iter().map(|(case, ..)| format!("{:.1}", self.limits[case]));
        table.row(std::iter::once("limit of nested".to_owned()).chain(limits).collect());
        let mut out = table.render();
        for (case, ..) in CASES {
            let of = &self.rates[case];
            let sum: f64 = MACHINES[..4].iter().map(|m| 1.0 / of[m.0]).sum();
            let together = 1.0 / of["all four"];
            out += &format!(
                "{case}: all four in one pass take {:.0} % of the sum of single passes\n",
                100.0 * together / sum
            );
        }
        out += "\ntlb-hit: 8-byte loads through 128 KiB again and again; scattered: random loads in \
                32 KiB, where no\ntwo accesses in a row are to one page; stream: 8-byte loads through \
                4 GiB; walks: random loads in 4 GiB.\nTLBs, walk caches and data caches are all on; \
                every machine includes the source and the guest. Seconds are processor time. Limit: a loop \
                that\nonly goes to arrays of the sizes of the structures of `nested`, as often as it must.\n";
        if let Some(mib) = self.memory {
            out += &format!("peak memory of all of this: {mib} MiB\n");
        }
        out += "\nrecordings of real guests, million accesses of the guest per second, all four in one pass:\n";
        for (name, rate) in &self.replay {
            out += &format!("  {name}: {rate:.0}\n");
        }
        out += "\nother simulators (AMD EPYC, November 2026, one core, million accesses/s):\n";
        for (case, peer) in PEERS {
            out += &format!("  {case}: {peer}\n");
        }
        out
    }
}

fn peak_memory_mib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib / 1024)
}

/// Accesses of the two runs whose difference in instructions is divided by theirs: what set-up and
/// start-up take cancels out.
const COUNTED: (u64, u64) = (100_000, 300_000);

/// What is counted, each with what it is without its policy: every case with the first four machines,
/// [`WATCHED`] and [`DIRECT`], and every policy where walks are many, so that intervals are.
fn measurements() -> Vec<(String, Option<String>)> {
    let mut all = Vec::new();
    for (case, ..) in CASES {
        let plain = MACHINES[..4].iter().map(|m| (m.0, None));
        for (machine, without) in plain.chain(WATCHED.iter().map(|m| (m.0, m.2))) {
            all.push((format!("{case}/{machine}"), without.map(|w| format!("{case}/{w}"))));
        }
        all.extend(DIRECT.iter().map(|machine| (format!("{case}/{machine}"), None)));
    }
    // A plan is no policy: `hindsight` has nothing to look at.
    for policy in POLICIES.iter().filter(|p| p.name != "hindsight") {
        let machine = format!("walks/switching/{}/obey=no/start=nested", policy.name);
        all.push((machine, Some("walks/nested".into())));
    }
    all
}

fn instructions(file: &Path, bless: bool) -> Result<()> {
    let place = file.display();
    let known: BTreeMap<String, f64> = if bless {
        BTreeMap::new()
    } else {
        let text = std::fs::read_to_string(file)
            .with_context(|| format!("{place}: cannot be read; --bless writes it"))?;
        toml::from_str(&text).with_context(|| place.to_string())?
    };
    let mut now: BTreeMap<String, f64> = BTreeMap::new();
    let mut table = Table::new()
        .column("instructions/access", Align::Left)
        .column("before", Align::Right)
        .column("now", Align::Right)
        .column("change", Align::Right)
        .column("by the policy", Align::Right);
    let (mut worse, mut dear) = (Vec::new(), Vec::new());
    let reading = reading::measure()?;
    let mut all = reading.iter().map(|r| (r.name.clone(), None)).collect::<Vec<_>>();
    all.extend(measurements());
    for (name, without) in all {
        let per = match reading.iter().find(|r| r.name == name) {
            Some(reading) => reading.decoding,
            None => {
                let (few, many) = (count(&name, COUNTED.0)?, count(&name, COUNTED.1)?);
                many.saturating_sub(few) as f64 / (COUNTED.1 - COUNTED.0) as f64
            }
        };
        let per = (per * 10.0).round() / 10.0;
        let before = known.get(&name).copied();
        let change = before.map(|b| per / b - 1.0);
        if change.is_some_and(|c| c > TOLERANCE) {
            worse.push(name.clone());
        }
        let added = without.and_then(|w| now.get(&w)).map(|w| per / w - 1.0);
        if added.is_some_and(|a| a > POLICY_COST) {
            dear.push(name.clone());
        }
        let percent = |p: Option<f64>| p.map_or("-".into(), |p| format!("{:+.1} %", 100.0 * p));
        table.row(vec![
            name.clone(),
            before.map_or("-".into(), |b| format!("{b:.1}")),
            format!("{per:.1}"),
            percent(change),
            percent(added),
        ]);
        now.insert(name, per);
    }
    let mut out = table.render();
    out += &reading::table(&reading);
    std::io::stdout().lock().write_all(out.as_bytes())?;
    reading::check(&reading)?;
    not_too_dear(&now, &dear)?;
    if bless {
        let head = "# Instructions per access, counted by `nestwalk bench --instructions`: the\n\
                    # simulator's own cost, which no noise of the machine moves.\n";
        std::fs::write(file, format!("{head}{}", toml::to_string(&now)?))
            .with_context(|| format!("{place}: cannot be written"))?;
    } else if !worse.is_empty() {
        bail!(
            "more than {:.0} % more instructions per access than {place} says: {}; mend it, or \
             --bless and say why in the commit",
            100.0 * TOLERANCE,
            worse.join(", ")
        );
    }
    Ok(())
}

/// A policy that adds too much, `dear`, or a machine that makes walks shorter and takes more than nested
/// paging, is refused.
fn not_too_dear(now: &BTreeMap<String, f64>, dear: &[String]) -> Result<()> {
    if !dear.is_empty() {
        bail!(
            "a policy adds more than {:.0} % instructions to the same run without it: {}",
            100.0 * POLICY_COST,
            dear.join(", ")
        );
    }
    let nested = |name: &str| {
        let (case, machine) = name.split_once('/')?;
        DIRECT.contains(&machine).then(|| now.get(&format!("{case}/nested")))?.copied()
    };
    let slower = |(name, per): (&String, &f64)| {
        nested(name).filter(|n| *per > n * (1.0 + TOLERANCE)).map(|_| name.clone())
    };
    let slower: Vec<String> = now.iter().filter_map(slower).collect();
    if !slower.is_empty() {
        bail!(
            "more instructions per access than nested paging in the same case: {}",
            slower.join(", ")
        );
    }
    Ok(())
}

/// Instructions of one run of this program under valgrind.
fn count(case: &str, accesses: u64) -> Result<u64> {
    let program = std::env::current_exe().context("the path of this program")?;
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(program)
        .args(["bench", "--small", "--case", case, "--accesses", &accesses.to_string()])
        .output()
        .context("valgrind cannot be started: install the Debian package `valgrind`")?;
    let text = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("valgrind failed on case {case}: {}", text.trim());
    }
    text.lines()
        .find_map(|l| l.split_once("Collected :"))
        .and_then(|(_, n)| n.trim().parse().ok())
        .ok_or_else(|| anyhow!("valgrind printed no count for case {case}: {}", text.trim()))
}
