//! `inspect --watch`: a line for each look, until the process ends.

use super::report::{Mapping, Report};
use super::{json, print, ram, show};
use crate::args::InspectArgs;
use crate::signals::stop_on_signals;
use anyhow::{Result, bail};
use nestwalk_contiguity::Pieces;
use nestwalk_host::{Clock, Cut, MemoryError, ProcessMemory, RamPiece, SystemClock};
use nestwalk_report::{bytes, count};
use serde_json::json;
use std::sync::Arc;

const HEADING: &str = "       seconds    resident    in 2 MiB      runs     longest   99 %: 2 MiB   anchors    ranges   offsets";

/// Snapshots again and again.
///
/// # Errors
/// The first look fails, or later ones do for another reason than that the process has ended.
pub fn watch(
    args: &InspectArgs,
    process: &ProcessMemory,
    given: &[RamPiece],
    seconds: f64,
) -> Result<()> {
    if !(0.01..=86_400.0).contains(&seconds) {
        bail!("--watch {seconds}: 0.01 to 86400 seconds are expected");
    }
    let format = args.format();
    format.refuse_rows("--watch prints a line for each look")?;
    let as_json = format.is_for_programs();
    let stop = stop_on_signals();
    let mut clock = SystemClock::new(Arc::clone(&stop));
    let interval = (seconds * 1e9) as u64;
    let (mut next, mut looks) = (0, 0u64);
    let mut last: Option<Report> = None;
    let interrupted = loop {
        if !clock.wait_until(next) {
            break true;
        }
        let now = clock.now_ns();
        next = next.saturating_add(interval).max(now.saturating_add(interval / 2));
        let seen = match super::read(process, true, &stop) {
            Ok(seen) => seen,
            Err(error) if last.is_none() => return Err(error),
            Err(error) => match error.downcast_ref::<MemoryError>() {
                Some(MemoryError::None(_) | MemoryError::Zombie(..)) => break false,
                _ if !process.alive() => break false,
                _ => return Err(error),
            },
        };
        let cut = seen.cut;
        // Half a look is worse than the one before, and better than none.
        if cut.is_none() || last.is_none() {
            let mut report = Report::new(process, seen);
            ram::add_dimensions(&mut report, process, given, None)?;
            looks += 1;
            print(&look(&report, now as f64 / 1e9, as_json, looks == 1)?)?;
            if looks == 1 && !as_json {
                report
                    .missing
                    .iter()
                    .for_each(|m| crate::tell::tell(format_args!("nestwalk: without {m}")));
            }
            last = Some(report);
        }
        match cut {
            Some(Cut::Stopped) => break true,
            Some(Cut::Gone) if !process.alive() => break false,
            _ => {}
        }
    };
    let why = if interrupted { "interrupted" } else { "the process has ended" };
    let Some(last) = last else { bail!("{why} before the first look") };
    print(&if as_json {
        json!({ "event": "ended", "why": why, "looks": looks }).to_string() + "\n"
    } else {
        format!("{why} after {looks} looks; the last:\n\n{}", show::report(&last, args.all))
    })
}

fn look(report: &Report, seconds: f64, as_json: bool, first: bool) -> Result<String> {
    if as_json {
        let mut value = json::summary(report);
        value["event"] = "look".into();
        value["seconds"] = seconds.into();
        return Ok(serde_json::to_string(&value)? + "\n");
    }
    // Of a VM its RAM, otherwise the process.
    let Some(d) = report.dimensions.last() else { return Ok(String::new()) };
    let entries = |name: &str| {
        let found = d.survey.techniques.iter().find(|t| t.0 == name);
        found.map_or(0, |(_, pieces): &(_, Pieces)| pieces.to_cover(99))
    };
    let heading = if first { format!("{HEADING}\n") } else { String::new() };
    Ok(format!(
        "{heading}{seconds:>14.3}{:>12}{:>12}{:>10}{:>12}{:>14}{:>10}{:>10}{:>10}\n",
        bytes(report.sum(Mapping::resident)),
        bytes(report.sum(|m| m.region.huge + m.region.hugetlb)),
        count(d.runs.len() as u64),
        bytes(d.longest()),
        count(entries("2m")),
        count(entries("anchors")),
        count(entries("ranges")),
        count(entries("offsets")),
    ))
}
