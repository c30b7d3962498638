//! Speed with real guests: recordings replayed, and what recording and live comparison cost a guest.

use super::Clock;
use crate::formats::Found;
use crate::screen::Screen;
use anyhow::{Context, Result, anyhow};
use nestwalk_capture::live::{Live, LiveOptions};
use nestwalk_capture::{Boot, Cache, Guest};
use nestwalk_hw::Profile;
use nestwalk_lab::{SAMPLES, words};
use nestwalk_report::{Align, Table};
use nestwalk_sim::compare::spec::{Defaults, MachineSpec};
use nestwalk_sim::compare::{Plan, compare};
use nestwalk_types::{Batch, GuestInfo, Source};
use serde_json::{Value, json};
use std::ffi::OsString;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

/// The machines of a replay, beside their controls.
const MACHINES: &str = "native,shadow,nested";

/// What the guests compile; gcc's own time is some twenty times that of starting it.
const PROGRAM: &str = include_str!("../../../../../samples/matmul.c");

fn plan(guest: &GuestInfo, threads: usize) -> Result<Plan> {
    let defaults = Defaults { pages: words::pages("page size", "4k")?, observed: true };
    let machines = MachineSpec::parse_list(MACHINES, defaults)?;
    let profile = Profile::load("cascade-lake-6252")?;
    let bytes = (guest.memory_bytes, 2 * guest.memory_bytes + (8 << 30));
    Ok(Plan { vcpus: usize::from(guest.vcpus), threads, ..Plan::new(machines, profile, bytes) })
}

/// Million accesses of the recorded guest per second of processor time, for each sample: ideal, native,
/// shadow and nested in one pass, on one core.
pub fn replay() -> Result<Vec<(&'static str, f64)>> {
    let mut rates = Vec::new();
    for sample in SAMPLES {
        let mut reader = sample.open()?;
        let guest = reader.info().guest.ok_or_else(|| anyhow!("{}: no guest", sample.name))?;
        let plan = plan(&guest, 1)?;
        let clock = Clock::of_this_thread();
        let before = clock.seconds();
        let outcome = compare(&plan, &mut reader, &AtomicBool::new(false), &mut |_| {})?;
        let seconds = clock.seconds() - before;
        if let Some(error) = outcome.error {
            return Err(error.into());
        }
        rates.push((sample.name, reader.position() as f64 / seconds / 1e6));
    }
    Ok(rates)
}

/// One way to run a guest, in seconds.
#[derive(Clone, Copy)]
struct Cost {
    wall: f64,
    /// QEMU's processor time.
    qemu: f64,
}

/// How a guest is run.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Plain,
    Recorded,
    Compared,
}

fn boot(folder: &Path, command: &[&str]) -> Result<Boot> {
    let guest = Guest {
        packages: vec!["gcc".into(), "libc6-dev".into()],
        include: Some(folder.to_owned()),
        memory_bytes: 1 << 30,
        seed: 1,
        ..Guest::new(command.iter().map(OsString::from).collect())
    };
    Ok(guest.boot(&Cache::locate()?, &mut |_| {})?)
}

fn run(folder: &Path, command: &[&str], way: Way) -> Result<Cost> {
    let boot = boot(folder, command)?;
    let begin = Instant::now();
    let qemu: Option<Duration> = if way == Way::Plain {
        boot.start(None)?.wait(&mut std::io::sink())?.cpu
    } else {
        let options = LiveOptions { boot: false, interest: false, check: false, filter: true };
        let mut live = Live::start(boot, options, Box::new(std::io::sink()))?;
        if way == Way::Recorded {
            let mut batch = Batch::default();
            while live.next_batch(&mut batch)? {}
        } else {
            let guest = live.info().guest.context("no guest")?;
            let threads = std::thread::available_parallelism().map_or(1, usize::from);
            let plan = plan(&guest, threads)?;
            let outcome = compare(&plan, &mut live, &AtomicBool::new(false), &mut |_| {})?;
            if let Some(error) = outcome.error {
                return Err(error.into());
            }
        }
        live.outcome().and_then(|o| o.cpu)
    };
    let qemu = qemu.context("the system does not tell QEMU's processor time")?.as_secs_f64();
    Ok(Cost { wall: begin.elapsed().as_secs_f64(), qemu })
}

/// What a command costs a guest, without the boot: seconds of it minus those of `true`.
fn cost(folder: &Path, way: Way) -> Result<Cost> {
    let whole = run(folder, &["sh", "-c", "for i in 1 2 3 4; do gcc -O2 -c bench.c; done"], way)?;
    let boot = run(folder, &["true"], way)?;
    Ok(Cost { wall: whole.wall - boot.wall, qemu: whole.qemu - boot.qemu })
}

/// `nestwalk bench --guest`: how much slower a guest is when it is recorded, or compared live.
pub fn slowdown() -> Result<Slowdown> {
    let folder = std::env::temp_dir().join(format!("nestwalk-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    std::fs::write(folder.join("bench.c"), PROGRAM)?;
    let ways = [("plain", Way::Plain), ("recorded", Way::Recorded), ("compared", Way::Compared)];
    let costs: Result<Vec<_>> = ways.iter().map(|(n, w)| Ok((*n, cost(&folder, *w)?))).collect();
    // Nothing depends on it any more.
    let _ = std::fs::remove_dir_all(&folder);
    Ok(Slowdown { costs: costs? })
}

/// What each way costs, `plain` first.
pub struct Slowdown {
    costs: Vec<(&'static str, Cost)>,
}

impl Found for Slowdown {
    fn json(&self) -> Result<Value> {
        let value = |(name, c): &(&str, Cost)| {
            ((*name).into(), json!({ "wall_seconds": c.wall, "qemu_seconds": c.qemu }))
        };
        Ok(Value::Object(self.costs.iter().map(value).collect()))
    }

    fn rows(&self) -> Result<Vec<Value>> {
        let row = |(name, c): &(&str, Cost)| json!({ "way": name, "wall_seconds": c.wall, "qemu_seconds": c.qemu });
        Ok(self.costs.iter().map(row).collect())
    }

    fn table(&self, _: Screen) -> String {
        let plain = self.costs[0].1;
        let mut table = Table::new()
            .column("gcc -O2 -c, four times, in a guest", Align::Left)
            .column("seconds", Align::Right)
            .column("x plain", Align::Right)
            .column("QEMU's processor s", Align::Right)
            .column("x plain", Align::Right);
        for (name, c) in &self.costs {
            table.row(vec![
                (*name).into(),
                format!("{:.1}", c.wall),
                format!("{:.2}", c.wall / plain.wall),
                format!("{:.1}", c.qemu),
                format!("{:.2}", c.qemu / plain.qemu),
            ]);
        }
        table.render()
            + "plain: QEMU without plugin, with its clock bound to instructions as for every recording;\n\
           recorded: with the plugin, and a reader that takes everything; compared: native, shadow and\n\
           nested live. The boot is not counted.\n"
    }
}
