//! Sampled runs: how they are asked for, what cannot be sampled, and what results tell of it.

use crate::results::repeats::numbers;
use anyhow::{Context, Result, anyhow, bail};
use nestwalk_report::{count, parse_count};
use nestwalk_sim::compare::Outcome;
use nestwalk_sim::compare::sampling::{Point, Sampled, Sampling, half_width};
use nestwalk_sim::compare::spec::MachineSpec;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// The word for units as they are if nothing is said of them.
pub const DEFAULT: &str = "default";

/// Schemes that decide by time, which stands still where runs are passed over.
const BY_TIME: [&str; 4] = ["switching", "agile", "anchor", "native-anchor"];
/// Words in the names of machines whose daemons run by time.
const DAEMONS: [&str; 2] = ["khugepaged", "ranger"];

/// What a text asks for: `default`, or `every=1M,unit=20k,warm=20k`, of which each may be left out, and
/// for simulation points `points=3:0.25+7:0.75`. None of an empty text. `option` is for messages.
///
/// # Errors
/// The text means nothing, or what it asks for cannot be.
pub fn parse(option: &str, text: &str, seed: u64) -> Result<Option<Sampling>> {
    if text.is_empty() {
        return Ok(None);
    }
    let mut found = Sampling::systematic(seed);
    for part in text.split(',').map(str::trim).filter(|part| *part != DEFAULT) {
        let (key, value) = part.split_once('=').ok_or_else(|| {
            anyhow!("{option} {part}: write every=COUNT,unit=COUNT,warm=COUNT, or {DEFAULT}")
        })?;
        let number = || parse_count(value).with_context(|| format!("{option} {key}"));
        match key {
            "every" => found.every = number()?,
            "unit" => found.unit = number()?,
            "warm" => found.warm = number()?,
            "points" => found.points = points(option, value)?,
            _ => bail!("{option} {part}: no such key; there are: every, unit, warm, points"),
        }
    }
    found.check().map_err(|reason| anyhow!("{option} {text}: {reason}"))?;
    Ok(Some(found))
}

fn points(option: &str, text: &str) -> Result<Vec<Point>> {
    let point = |word: &str| {
        let (interval, weight) = word.split_once(':')?;
        Some(Point { interval: interval.parse().ok()?, weight: weight.parse().ok()? })
    };
    let read = |word: &str| {
        point(word).ok_or_else(|| {
            anyhow!("{option} points={word}: write INTERVAL:WEIGHT, as in points=3:0.25+7:0.75")
        })
    };
    text.split('+').map(read).collect()
}

/// With nothing left open, as [`parse`] reads it.
pub fn text(sampling: &Sampling) -> String {
    let Sampling { every, unit, warm, points, .. } = sampling;
    if points.is_empty() {
        return format!("every={every},unit={unit},warm={warm}");
    }
    let words: Vec<String> =
        points.iter().map(|p| format!("{}:{}", p.interval, p.weight)).collect();
    format!("unit={unit},warm={warm},points={}", words.join("+"))
}

/// The text for the simulation points of two files, as SimPoint 3.2 writes them: lines of the number of
/// an interval and of its cluster, and lines of a weight and a cluster.
///
/// # Errors
/// A line is none, or a cluster has an interval and no weight, or the other way around.
pub fn simpoints(intervals: &str, weights: &str) -> Result<String> {
    fn rows<T: std::str::FromStr>(what: &str, text: &str) -> Result<BTreeMap<u64, T>> {
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let row = |(i, line): (usize, &str)| {
            let mut words = line.split_whitespace();
            let value = words.next().and_then(|w| w.parse().ok());
            let cluster = words.next().and_then(|w| w.parse().ok());
            let (Some(value), Some(cluster)) = (value, cluster) else {
                bail!("{what}, line {}: `{line}` is not {what} and the number of a cluster", i + 1);
            };
            Ok((cluster, value))
        };
        lines.map(row).collect()
    }
    let intervals = rows::<u64>("the number of an interval", intervals)?;
    let weights = rows::<f64>("a weight", weights)?;
    if let Some(cluster) = intervals.keys().find(|c| !weights.contains_key(c)) {
        bail!("cluster {cluster} has an interval and no weight");
    }
    if let Some(cluster) = weights.keys().find(|c| !intervals.contains_key(c)) {
        bail!("cluster {cluster} has a weight and no interval");
    }
    let mut points: Vec<_> = intervals.iter().map(|(c, i)| (*i, weights[c])).collect();
    points.sort_by_key(|p| p.0);
    let words: Vec<String> = points.iter().map(|(i, weight)| format!("{i}:{weight}")).collect();
    if words.is_empty() {
        bail!("there are no intervals");
    }
    Ok(format!("points={}", words.join("+")))
}

/// Whether a machine can be sampled.
///
/// # Errors
/// It cannot: it does something at times.
pub(crate) fn fits(option: &str, spec: &MachineSpec) -> Result<()> {
    let name = &spec.name;
    let daemon = DAEMONS.iter().find(|word| name.contains(**word));
    if BY_TIME.contains(&spec.scheme.name) || daemon.is_some() {
        let what = daemon.map_or(spec.scheme.name, |word| word);
        bail!(
            "{option}: `{name}`: {what} does its work at times, which pass only where accesses are \
             simulated; leave the machine or {option} out"
        );
    }
    Ok(())
}

/// What results name.
pub(crate) fn approximation(sampled: &Sampled) -> String {
    let share = |part: u64, all: u64| 100.0 * part as f64 / all.max(1) as f64;
    format!(
        "sampled: counts of accesses are estimates by {} units and the first stretch, {:.1} % of {} \
         instructions; machines have seen {:.1} % of the runs; counts of software are those of what they saw",
        count(sampled.units as u64),
        share(sampled.measured_instructions, sampled.instructions),
        count(sampled.instructions),
        share(sampled.simulated_runs, sampled.runs),
    )
}

/// Share of an estimate that its interval has on either side beside the sampling error: what warming
/// leaves out is as much in every unit, so no spread of units shows it. docs/sampling.md has how much
/// was found.
pub const ALLOWANCE: f64 = 0.01;

/// By machine, half the width of each figure's 95 % confidence interval, [`ALLOWANCE`] included; those
/// that have none are known.
pub fn half_widths(outcome: &Outcome) -> Vec<BTreeMap<String, f64>> {
    let without = outcome.sampled.as_ref().map(|s| s.without.as_slice()).unwrap_or_default();
    let of = |machine: usize| -> BTreeMap<String, f64> {
        let groups: Vec<_> = without.iter().filter_map(|group| group.get(machine)).collect();
        let half = |(name, values): (String, Vec<f64>)| {
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            // Sums of the same numbers in another order are no estimates.
            let spread = half_width(&values);
            (spread > 1e-12 * mean.abs()).then(|| (name, spread + ALLOWANCE * mean.abs()))
        };
        numbers(&groups).into_iter().filter_map(half).collect()
    };
    (0..outcome.machines.len()).map(of).collect()
}

/// Documented in `fields::SAMPLING`; none if all was measured.
pub(crate) fn json(outcome: &Outcome) -> Option<Value> {
    let sampled = outcome.sampled.as_ref()?;
    let names = outcome.machines.iter().map(|m| m.name.clone());
    let widths = half_widths(outcome).into_iter().map(|w| json!(w));
    Some(json!({
        "units": sampled.units,
        "instructions": sampled.instructions,
        "measured_instructions": sampled.measured_instructions,
        "runs": sampled.runs,
        "simulated_runs": sampled.simulated_runs,
        "half_widths": names.zip(widths).collect::<Map<_, _>>(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_read_and_written() {
        let read = |text: &str| parse("--sample", text, 7).map_err(|e| format!("{e:#}"));
        assert_eq!(read(""), Ok(None));
        assert_eq!(read(DEFAULT), Ok(Some(Sampling::systematic(7))));
        let found = read("every=5M,warm=100k").unwrap().unwrap();
        assert_eq!((found.every, found.unit, found.warm), (5_000_000, 20_000, 100_000));
        assert_eq!(text(&found), "every=5000000,unit=20000,warm=100000");
        let points = read("unit=1M,points=3:0.25+7:0.75").unwrap().unwrap();
        assert_eq!(read(&text(&points)), Ok(Some(points)));
        for (wrong, told) in [
            ("10", "every=COUNT"),
            ("each=5", "no such key"),
            ("every=x", "every"),
            ("every=1000", "more than"),
            ("points=3", "INTERVAL:WEIGHT"),
            ("points=7:0.5+3:0.5", "out of order"),
        ] {
            let error = read(wrong).unwrap_err();
            assert!(error.starts_with("--sample") && error.contains(told), "{error}");
        }
    }

    #[test]
    fn simulation_points_are_joined_by_clusters() {
        let found = simpoints("12 0\n3 1\n", "0.25 1\n0.75 0\n").unwrap();
        assert_eq!(found, "points=3:0.25+12:0.75");
        let wrong = |a, b| simpoints(a, b).unwrap_err().to_string();
        assert!(wrong("12 0\n", "0.25 1\n").contains("cluster 0"));
        assert!(wrong("12 0\n", "0.5 0\n0.5 1\n").contains("cluster 1"));
        assert!(wrong("x\n", "").contains("line 1"));
        assert!(wrong("", "").contains("no intervals"));
    }
}
