//! `bench --against OLD`: two binaries, or two ways of one, in turn, and how they stand to each other.

use super::cases::{self, Case, Measure, Sides, Task};
use super::child;
use crate::formats::Found;
use crate::screen::Screen;
use crate::tell;
use anyhow::{Context, Result, anyhow, bail};
use nestwalk_report::{Align, Table};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// What came of one case.
struct Row {
    case: Case,
    /// By pair: the old binary or the pass of all, and the new binary or the sum of single passes.
    pairs: Vec<(f64, f64)>,
    /// Why the old binary cannot do it.
    new_here: Option<String>,
    /// In the unit of the case.
    limit: Option<f64>,
}

/// What came of all.
pub struct Against {
    old: PathBuf,
    rows: Vec<Row>,
}

/// Runs the cases that begin with a word of `chosen`, each so many times with each binary, in turn.
///
/// # Errors
/// A word chooses nothing, or this binary fails.
pub fn against(old: &Path, chosen: &str, pairs: u16, accesses: u64) -> Result<Against> {
    if pairs == 0 {
        bail!("--pairs 0: at least 1 is needed");
    }
    let old = old.canonicalize().with_context(|| format!("--against {}", old.display()))?;
    let new = std::env::current_exe().context("the path of this program")?;
    let mut rows = Vec::new();
    for case in cases::chosen(cases::all(accesses)?, chosen)? {
        tell::note(&case.name);
        rows.push(row(case, (&old, &new), pairs)?);
    }
    Ok(Against { old, rows })
}

fn row(case: Case, (old, new): (&Path, &Path), pairs: u16) -> Result<Row> {
    let mut row = Row { limit: None, pairs: Vec::new(), new_here: None, case };
    row.limit = row.case.limit.map(|limit| limit.measure()).transpose()?;
    for pair in 0..pairs {
        let both = match &row.case.sides {
            Sides::Binaries(task) => {
                // Whoever runs first finds the machine as the pair before has left it.
                let first = if pair % 2 == 0 { value(task, old) } else { Ok(value(task, new)?) };
                let then = if pair % 2 == 0 { Ok(value(task, new)?) } else { value(task, old) };
                let (before, now) = if pair % 2 == 0 { (first, then) } else { (then, first) };
                let before = before.unwrap_or_else(|error| {
                    row.new_here = Some(format!("{error:#}"));
                    f64::NAN
                });
                (before, now?)
            }
            Sides::Ways(one, others) => {
                let together = value(one, new)?;
                let apart: Result<Vec<f64>> = others.iter().map(|task| value(task, new)).collect();
                (together, apart?.iter().sum())
            }
        };
        row.pairs.push(both);
        if row.new_here.is_some() {
            break;
        }
    }
    Ok(row)
}

/// What a binary takes for a task, in the unit of its measure.
fn value(task: &Task, binary: &Path) -> Result<f64> {
    let ran = child::run(binary, &task.args)?;
    match task.measure {
        Measure::Processor => Ok(ran.took.processor_seconds),
        Measure::Peak => Ok(ran.took.peak_mib),
        Measure::PerAccess => {
            let rate = ran.out.split_whitespace().next().and_then(|word| word.parse::<f64>().ok());
            let rate = rate
                .filter(|rate| *rate > 0.0 && rate.is_finite())
                .ok_or_else(|| anyhow!("`{}`: no rate; take more --accesses", ran.out.trim()))?;
            Ok(1e3 / rate)
        }
    }
}

/// The least, the median and the greatest; the median of an even number is the mean of its middle.
pub fn spread(numbers: impl Iterator<Item = f64>) -> [f64; 3] {
    let mut sorted: Vec<f64> = numbers.collect();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    let at = |i: usize| sorted.get(i).copied().unwrap_or(f64::NAN);
    [at(0), f64::midpoint(at(last / 2), at(last.div_ceil(2))), at(last)]
}

impl Row {
    fn unit(&self) -> &'static str {
        match &self.case.sides {
            Sides::Binaries(task) | Sides::Ways(task, _) => task.measure.unit(),
        }
    }
    fn medians(&self) -> (f64, f64) {
        (spread(self.pairs.iter().map(|p| p.0))[1], spread(self.pairs.iter().map(|p| p.1))[1])
    }
    fn ratios(&self) -> [f64; 3] {
        spread(self.pairs.iter().map(|p| p.0 / p.1))
    }
    fn is_of_binaries(&self) -> bool {
        matches!(self.case.sides, Sides::Binaries(_))
    }

    fn json(&self) -> Value {
        let commands = match &self.case.sides {
            Sides::Binaries(task) => json!({ "command": task.args.join(" ") }),
            Sides::Ways(one, others) => json!({
                "together": one.args.join(" "),
                "apart": others.iter().map(|t| t.args.join(" ")).collect::<Vec<_>>(),
            }),
        };
        let (first, second) =
            if self.is_of_binaries() { ("old", "new") } else { ("together", "apart") };
        let number = |n: f64| if n.is_finite() { json!(n) } else { Value::Null };
        let pair = |p: &(f64, f64)| json!({ first: number(p.0), second: number(p.1) });
        let ([least, ratio, most], (one, other)) = (self.ratios(), self.medians());
        json!({
            "case": self.case.name,
            "unit": self.unit(),
            first: number(one),
            second: number(other),
            "ratio": number(ratio),
            "ratio_least": number(least),
            "ratio_greatest": number(most),
            "limit": self.limit,
            "new_here": self.new_here,
            "pairs": self.pairs.iter().map(pair).collect::<Vec<_>>(),
            "commands": commands,
        })
    }

    fn cells(&self) -> Vec<String> {
        let ([least, ratio, most], (one, other)) = (self.ratios(), self.medians());
        let digits = |n: f64| match n {
            n if !n.is_finite() => "-".into(),
            n if n.abs() < 10.0 => format!("{n:.2}"),
            n => format!("{n:.1}"),
        };
        let two = |n: f64| if n.is_finite() { format!("{n:.2}") } else { "new here".into() };
        let mut cells =
            vec![self.case.name.clone(), self.unit().into(), digits(one), digits(other)];
        cells.push(two(ratio));
        cells.push(if ratio.is_finite() { format!("{least:.2} to {most:.2}") } else { "-".into() });
        if self.is_of_binaries() {
            cells.push(self.limit.map_or("-".into(), digits));
            cells.push(self.limit.map_or("-".into(), |l| format!("{:.1}", other / l)));
        }
        cells
    }
}

impl Found for Against {
    fn json(&self) -> Result<Value> {
        Ok(json!({ "old": self.old.display().to_string(), "cases": self.rows()? }))
    }

    /// A row per case.
    fn rows(&self) -> Result<Vec<Value>> {
        Ok(self.rows.iter().map(Row::json).collect())
    }

    fn table(&self, _: Screen) -> String {
        let table = |names: [&str; 4]| {
            Table::new()
                .column(names[0], Align::Left)
                .column("unit", Align::Left)
                .column(names[1], Align::Right)
                .column(names[2], Align::Right)
                .column(names[3], Align::Right)
                .column("least to greatest", Align::Right)
        };
        let (binaries, ways): (Vec<&Row>, Vec<&Row>) =
            self.rows.iter().partition(|r| r.is_of_binaries());
        let mut out = String::new();
        if !binaries.is_empty() {
            let mut all = table(["two binaries", "old", "new", "old / new"])
                .column("limit", Align::Right)
                .column("x limit", Align::Right);
            binaries.iter().for_each(|row| all.row(row.cells()));
            out += &all.render();
            out += "limit: a loop that only goes to arrays of the sizes of the machine's structures, as often as it \
                    must.\n";
        }
        if !ways.is_empty() {
            let mut all = table(["one pass", "all", "sum of singles", "share"]);
            ways.iter().for_each(|row| all.row(row.cells()));
            out += if out.is_empty() { "" } else { "\n" };
            out += &all.render();
        }
        out + "Medians of pairs; processor time, but for MiB.\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spreads_are_least_median_and_greatest() {
        let text = |numbers: &[f64]| format!("{:?}", spread(numbers.iter().copied()));
        assert_eq!(text(&[3.0, 1.0, 2.0]), "[1.0, 2.0, 3.0]");
        assert_eq!(text(&[4.0, 1.0, 3.0, 2.0]), "[1.0, 2.5, 4.0]");
        assert!(spread(std::iter::empty()).iter().all(|n| n.is_nan()));
    }

    #[test]
    fn a_row_tells_the_ratios_of_its_pairs_and_a_case_of_new_builds_none() {
        let case = cases::chosen(cases::all(1000).unwrap(), "walks/nested").unwrap().remove(0);
        let pairs = vec![(10.0, 5.0), (12.0, 4.0), (8.0, 8.0)];
        let row = Row { case: case.clone(), pairs, new_here: None, limit: Some(2.5) };
        assert_eq!(
            format!("{:?} {:?}", row.ratios(), row.medians()),
            "[1.0, 2.0, 3.0] (10.0, 5.0)"
        );
        let json = row.json();
        assert_eq!((&json["old"], &json["new"]), (&json!(10.0), &json!(5.0)));
        assert!(row.cells().ends_with(&["2.50".into(), "2.0".into()]), "{:?}", row.cells());
        let pairs = vec![(f64::NAN, 5.0)];
        let new = Row { case, pairs, new_here: Some("no such scheme".into()), limit: None };
        assert_eq!(new.json()["ratio"], Value::Null);
        let found = Against { old: "/old".into(), rows: vec![new] };
        assert!(found.table(Screen::FILE).contains("new here"));
    }
}
