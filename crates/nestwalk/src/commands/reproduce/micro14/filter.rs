//! The escape-filter plot: slowdown by the number of bad pages.

use super::super::programs::Program;
use super::{over, percent};
use crate::args::ReproduceArgs;
use anyhow::Result;
use nestwalk_hw::FilterGeometry;
use nestwalk_sim::report::results::MachineResult;
use serde::Serialize;
use std::sync::atomic::AtomicBool;

/// Numbers of bad pages.
const BAD_PAGES: [u64; 8] = [0, 1, 2, 4, 8, 16, 32, 64];
/// Each decides the places of bad pages and the filter's hash functions.
const SEEDS: u64 = 3;
/// Accesses of each of the many machines at most, and of the warm-up.
pub const ACCESSES: u64 = 4_000_000;

/// The plot.
#[derive(Serialize)]
pub struct Plot {
    /// On which program.
    pub program: String,
    /// Bits and functions of the filter.
    pub geometry: [u32; 2],
    pub seeds: u64,
    pub lines: Vec<Line>,
}

/// One mode.
#[derive(Serialize)]
pub struct Line {
    pub scheme: &'static str,
    pub points: Vec<Point>,
}

/// What so many bad pages do.
#[derive(Serialize)]
pub struct Point {
    pub bad_pages: u64,
    /// Run time over that without bad pages, percent more: mean of all seeds.
    pub mean_percent: f64,
    pub lowest_percent: f64,
    pub highest_percent: f64,
    /// Pages of the VMM segment that the filter reports, percent: mean of all seeds.
    pub reported_percent: f64,
    /// Checks of guest-physical addresses that met such a page, percent of all: mean of all seeds.
    pub escapes_percent: f64,
    /// What theory says of pages that were not put in.
    pub false_positive_percent: f64,
}

const SCHEMES: [&str; 2] = ["dual-direct", "vmm-direct"];

fn machine(scheme: &str, bad: u64, seed: u64) -> String {
    match bad {
        0 => format!("{scheme}:4k"),
        _ => format!("{scheme}/bad={bad}/bad-seed={seed}/filter-seed={seed}:4k"),
    }
}

/// Runs all machines of the plot in one pass.
pub fn run(
    args: &ReproduceArgs,
    profile: &str,
    program: &Program,
    stop: &AtomicBool,
) -> Result<Plot> {
    let mut machines = Vec::new();
    for scheme in SCHEMES {
        for bad in BAD_PAGES {
            let seeds = if bad == 0 { 1 } else { SEEDS };
            machines.extend((1..=seeds).map(|seed| machine(scheme, bad, seed)));
        }
    }
    let ran = program.clone().at_most(ACCESSES).run(args, profile, &machines, None, stop)?;
    let mut results = machines.iter().enumerate().map(|(i, _)| ran.machine(i));
    let geometry = FilterGeometry::default();
    let lines = SCHEMES.map(|scheme| {
        let base = results.next().map_or(0.0, |m| m.total_cycles);
        let mut points = vec![Point::none()];
        for bad in &BAD_PAGES[1..] {
            let seeds: Vec<&MachineResult> = results.by_ref().take(SEEDS as usize).collect();
            points.push(Point::of(*bad, base, &seeds, geometry));
        }
        Line { scheme, points }
    });
    Ok(Plot {
        program: program.name.clone(),
        geometry: [geometry.bits, geometry.hashes],
        seeds: SEEDS,
        lines: lines.into(),
    })
}

impl Point {
    const fn none() -> Self {
        Self {
            bad_pages: 0,
            mean_percent: 0.0,
            lowest_percent: 0.0,
            highest_percent: 0.0,
            reported_percent: 0.0,
            escapes_percent: 0.0,
            false_positive_percent: 0.0,
        }
    }

    fn of(bad: u64, base: f64, seeds: &[&MachineResult], geometry: FilterGeometry) -> Self {
        let mean = |of: &dyn Fn(&MachineResult) -> f64| {
            seeds.iter().map(|m| of(m)).sum::<f64>() / seeds.len().max(1) as f64
        };
        let slowdown = |m: &MachineResult| over(m.total_cycles, base);
        let reported = |m: &MachineResult| {
            let vmm = m.segments.as_ref().map(|s| s.vmm);
            vmm.map_or(0.0, |v| percent(v.reported, v.bytes >> 12))
        };
        let all = || seeds.iter().map(|m| slowdown(m));
        Self {
            bad_pages: bad,
            mean_percent: mean(&slowdown),
            lowest_percent: all().fold(f64::INFINITY, f64::min),
            highest_percent: all().fold(f64::NEG_INFINITY, f64::max),
            reported_percent: mean(&reported),
            escapes_percent: mean(&|m| {
                percent(m.segment_escapes, m.vmm_segment_checks.max(m.guest_segment_checks))
            }),
            false_positive_percent: 100.0 * geometry.false_positive_rate(bad),
        }
    }
}
