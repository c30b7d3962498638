//! What several runs say together, and samples over time.

use super::read::{Run, name, number};
use anyhow::{Context, Result, bail};
use nestwalk_policy::{Sample, SampleReader};
use nestwalk_report::figure::{Axis, Figure, Plot, Point};
use serde_json::Value;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

/// A number over the footprint: file name, title, axis, and how it is found.
const OVER_FOOTPRINT: [(&str, &str, &str, &str); 3] = [
    (
        "overhead-footprint",
        "Overhead against footprint",
        "overhead, % of ideal",
        "overhead_percent",
    ),
    (
        "misses-footprint",
        "Misses against footprint",
        "misses of both TLBs per 1000 instructions",
        "l2_tlb_mpki",
    ),
    (
        "references-footprint",
        "Length of walks against footprint",
        "references per walk",
        "refs_per_walk",
    ),
];

/// Figures over the footprint, if runs have several.
pub fn footprints(runs: &[Run]) -> Vec<Figure> {
    let mut sized: Vec<(f64, &Run)> =
        runs.iter().filter_map(|run| run.footprint.map(|bytes| (bytes, run))).collect();
    sized.sort_by(|a, b| a.0.total_cmp(&b.0));
    let least = sized.first().map(|s| s.0);
    if sized.last().map(|s| s.0) == least {
        return Vec::new();
    }
    let mut names: Vec<String> = Vec::new();
    for machine in sized.iter().flat_map(|(_, run)| &run.machines) {
        if machine["scheme"] != "ideal" && !names.contains(&name(machine)) {
            names.push(name(machine));
        }
    }
    let figure = |(id, title, axis, key): (&str, &str, &str, &str)| {
        let line = |name: &String| {
            let of = |(bytes, run): &(f64, &Run)| -> Option<Point> {
                let machine = run.machines.iter().find(|m| m["name"].as_str() == Some(name))?;
                Some((*bytes, number(machine, key)))
            };
            (name.clone(), sized.iter().filter_map(of).collect())
        };
        Figure {
            id: id.into(),
            title: title.into(),
            note: "Memory that processes used at most, of each run.".into(),
            plot: Plot::Lines {
                x: Axis::of_bytes("footprint"),
                y: Axis::new(axis),
                lines: names.iter().map(line).collect(),
            },
        }
    };
    OVER_FOOTPRINT.into_iter().map(figure).collect()
}

/// Overheads of all runs and machines, a bar each, if there are several runs.
pub fn overheads(runs: &[Run]) -> Option<Figure> {
    let row = |run: &Run, m: &Value| {
        let parts = ["translation_overhead_percent", "vmm_overhead_percent"];
        (format!("{}, {}", run.label, name(m)), parts.map(|key| number(m, key).max(0.0)).to_vec())
    };
    let rows = runs.iter().flat_map(|run| {
        let machines = run.machines.iter().filter(|m| m["scheme"] != "ideal");
        machines.map(move |m| row(run, m))
    });
    (runs.len() > 1).then(|| Figure {
        id: "overheads".into(),
        title: "Overhead of all runs".into(),
        note: "Relative to the ideal machine of the same run.".into(),
        plot: Plot::Bars {
            axis: Axis::new("overhead, % of ideal"),
            parts: vec!["translation".into(), "VMM".into()],
            rows: rows.collect(),
        },
    })
}

/// Exits and walks over time, from the samples in a folder.
///
/// # Errors
/// It cannot be read, or there are none.
pub fn samples(folder: &Path) -> Result<Vec<Figure>> {
    let at = folder.display();
    let entries =
        std::fs::read_dir(folder).with_context(|| format!("--samples {at}: cannot be read"))?;
    let mut files = entries
        .map(|entry| entry.map(|e| e.path()))
        .collect::<std::io::Result<Vec<_>>>()
        .with_context(|| format!("--samples {at}: cannot be read"))?;
    files.retain(|path| path.extension().is_some_and(|ending| ending == "csv"));
    files.sort();
    if files.is_empty() {
        bail!("--samples {at}: no CSV file in it; `nestwalk compare --samples {at}` writes them");
    }
    let all = files.iter().map(|path| read(path)).collect::<Result<Vec<_>>>()?;
    let lines = |value: fn(&Sample) -> Option<f64>| {
        let line = |(name, samples): &(String, Vec<Sample>)| {
            let point = |s: &Sample| value(s).map(|v| (s.time_ns as f64 / 1e6, v));
            (name.clone(), samples.iter().filter_map(point).collect())
        };
        all.iter().map(line).collect()
    };
    let figure = |id: &str, title: &str, axis: &str, lines| Figure {
        id: id.into(),
        title: title.into(),
        note: "Of each interval; nothing is said of what was before it.".into(),
        plot: Plot::Lines { x: Axis::new("milliseconds"), y: Axis::new(axis), lines },
    };
    Ok(vec![
        figure(
            "exits-time",
            "Exits over time",
            "exits per millisecond",
            lines(|s| s.vm_exits.map(|n| n as f64 / (s.duration_ns as f64 / 1e6))),
        ),
        figure(
            "walks-time",
            "Walks over time",
            "cycles of walks, % of the guest's",
            lines(|s| {
                let share = |walks: u64| 100.0 * walks as f64 / s.guest_cycles as f64;
                s.walk_cycles.map(share)
            }),
        ),
        figure(
            "vmm-time",
            "VMM over time",
            "cycles of the VMM, % of all",
            lines(|s| Some(100.0 * s.host_kernel_cycles as f64 / s.total_cycles() as f64)),
        ),
    ])
}

fn read(path: &Path) -> Result<(String, Vec<Sample>)> {
    let at = || path.display().to_string();
    let file = File::open(path).with_context(at)?;
    let rows = SampleReader::new(BufReader::new(file)).with_context(at)?;
    let samples =
        rows.map(|row| row.map(|row| row.sample)).collect::<Result<_, _>>().with_context(at)?;
    let name = path.file_stem().map(|n| n.to_string_lossy().into_owned());
    Ok((name.unwrap_or_default(), samples))
}
