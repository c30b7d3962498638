//! `reach`: overhead against footprint, where TLBs stop to reach.

use crate::args::{Args, Command, ReachArgs};
use crate::formats::{self, Found};
use crate::screen::Screen;
use crate::settings;
use crate::signals::stop_on_signals;
use crate::tell;
use anyhow::{Context, Result, anyhow, bail};
use clap::Parser;
use nestwalk_hw::Profile;
use nestwalk_hw::profile::TlbProfile;
use nestwalk_lab::{Experiment, Work};
use nestwalk_report::figure::{Axis, Figure, Plot, number, plain, svg};
use nestwalk_report::{Align, Table, bytes, parse_bytes};
use serde_json::{Value, json};
use std::io::Write;

/// Runs at most: from 4 KiB to 1 TiB there are 28 doublings.
const MOST: usize = 40;

/// `nestwalk reach`.
pub fn reach(args: &ReachArgs) -> Result<()> {
    let from = parse_bytes(&args.from).context("--from")?;
    let to = parse_bytes(&args.to).context("--to")?;
    if from < 4096 || to < from {
        bail!(
            "--from {} --to {}: at least 4KiB, and no more than the other, is needed",
            args.from,
            args.to
        );
    }
    let sizes: Vec<u64> = std::iter::successors(Some(from), |n| n.checked_mul(2))
        .take_while(|n| *n <= to)
        .take(MOST)
        .collect();
    // All arguments are right, or none is run.
    let runs = sizes.iter().map(|size| experiment(args, *size)).collect::<Result<Vec<_>>>()?;
    let stop = stop_on_signals();
    let mut points = Vec::new();
    for (run, size) in runs.iter().zip(&sizes) {
        if !args.quiet {
            tell::note(&format!("{} of {}", bytes(*size), bytes(to)));
        }
        let work = Work { threads: threads(), series: None };
        let opened = settings::lab().open(run, &work, &mut |_| {})?;
        let session = opened.run(&stop, &mut |_| {})?.complete()?;
        let machines = session.outcome.machines.iter().filter(|m| m.scheme != "ideal");
        points.extend(machines.map(|m| Point {
            machine: m.name.clone(),
            footprint: *size,
            overhead_percent: m.overhead_percent,
            l2_tlb_mpki: m.l2_tlb_mpki,
        }));
    }
    let profile = Profile::load(&args.profile).context("--profile")?;
    let found = Reach { source: &args.source, sizes, points, tlbs: tlbs(&profile) };
    if let Some(file) = &args.svg {
        formats::write_file("--svg", file, &svg(&found.figure().scene()))?;
    }
    let out = args.format.render(&found)?;
    std::io::stdout().lock().write_all(out.as_bytes())?;
    Ok(())
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The comparison of one footprint, as `compare` would have it.
fn experiment(args: &ReachArgs, size: u64) -> Result<Experiment> {
    let size = size.to_string();
    let words = [
        "nestwalk",
        "compare",
        &args.source,
        "--footprint",
        &size,
        "--accesses",
        &args.accesses,
        "--warmup",
        &args.accesses,
        "--machines",
        &args.machines,
        "--profile",
        &args.profile,
    ];
    match Args::try_parse_from(words).map_err(|e| anyhow!("{}", e.kind()))?.command {
        Command::Compare(options) => settings::experiment(&options),
        _ => bail!("no comparison"),
    }
}

/// Memory that each level of TLBs covers, by page size.
fn tlbs(profile: &Profile) -> Vec<(String, u64)> {
    let of = |name: &str, arrays: &[TlbProfile]| -> Vec<(String, u64)> {
        let covered = arrays.iter().flat_map(|array| {
            array.page_sizes().map(|size| {
                let what =
                    format!("{name}, pages of {}: {} entries", bytes(size.bytes()), array.entries);
                (what, array.entries as u64 * size.bytes())
            })
        });
        covered.collect()
    };
    [of("first-level data TLB", &profile.l1d_tlb), of("second-level TLB", &profile.l2_tlb)].concat()
}

struct Point {
    machine: String,
    footprint: u64,
    overhead_percent: f64,
    l2_tlb_mpki: f64,
}

struct Reach<'a> {
    source: &'a str,
    sizes: Vec<u64>,
    points: Vec<Point>,
    tlbs: Vec<(String, u64)>,
}

impl Reach<'_> {
    fn machines(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for point in &self.points {
            if !names.contains(&point.machine.as_str()) {
                names.push(&point.machine);
            }
        }
        names
    }

    fn figure(&self) -> Figure {
        let line = |name: &&str| {
            let mine = self.points.iter().filter(|p| p.machine == *name);
            ((*name).to_owned(), mine.map(|p| (p.footprint as f64, p.overhead_percent)).collect())
        };
        Figure {
            id: "reach".into(),
            title: format!("Overhead of {} against footprint", self.source),
            note: String::new(),
            plot: Plot::Lines {
                x: Axis::of_bytes("footprint"),
                y: Axis::new("overhead, % of ideal"),
                lines: self.machines().iter().map(line).collect(),
            },
        }
    }
}

impl Found for Reach<'_> {
    fn json(&self) -> Result<Value> {
        let tlb = |(what, bytes): &(String, u64)| json!({ "what": what, "bytes": bytes });
        Ok(json!({
            "source": self.source,
            "points": self.rows()?,
            "tlbs": self.tlbs.iter().map(tlb).collect::<Vec<_>>(),
        }))
    }

    fn rows(&self) -> Result<Vec<Value>> {
        let row = |p: &Point| {
            json!({
                "machine": p.machine,
                "footprint": p.footprint,
                "overhead_percent": p.overhead_percent,
                "l2_tlb_mpki": p.l2_tlb_mpki,
            })
        };
        Ok(self.points.iter().map(row).collect())
    }

    fn table(&self, _: Screen) -> String {
        let names = self.machines();
        let mut table = Table::new().column("footprint", Align::Right);
        for name in &names {
            table = table.column(name, Align::Right);
        }
        for size in &self.sizes {
            let of = |name: &&str| {
                let point = self.points.iter().find(|p| p.machine == *name && p.footprint == *size);
                point.map_or("-".into(), |p| number(p.overhead_percent))
            };
            table.row(std::iter::once(bytes(*size)).chain(names.iter().map(of)).collect());
        }
        let figure = self.figure();
        let mut out = format!("{}, % of ideal\n\n{}\n", figure.title, table.render());
        if let Plot::Lines { x, y, lines } = &figure.plot {
            out += &plain(x, y, lines);
        }
        out.push('\n');
        for (what, covered) in &self.tlbs {
            out += &format!("{what}, {}\n", bytes(*covered));
        }
        out
    }
}
