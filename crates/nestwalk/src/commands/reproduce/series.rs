//! What happened over time: shares of page walks and of the VMM by intervals of instructions.

use nestwalk_hw::Profile;
use nestwalk_report::{Align, Table};
use nestwalk_sim::Counters;
use nestwalk_sim::measure::cost::Cycles;
use nestwalk_sim::measure::series::intervals;
use nestwalk_sim::report::results::MachineResult;
use serde::Serialize;

/// Points of a line at most.
const POINTS: usize = 400;

/// One machine over time.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// Its name in the figure.
    pub bar: String,
    /// Each interval.
    pub points: Vec<Point>,
    /// Where the paging mode changed.
    pub switches: Vec<Mark>,
}

/// An interval.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Point {
    /// Instructions since the beginning, at its end.
    pub instructions: u64,
    /// Milliseconds since the beginning, at its end, as simulated on this machine.
    pub time_ms: f64,
    /// Cycles in page walks, percent of the interval's cycles: the thesis's C_PW%.
    pub walk_percent: f64,
    /// Cycles in the VMM, percent of the interval's cycles: the thesis's C_VMM%.
    pub vmm_percent: f64,
}

/// A change of the paging mode.
#[derive(Clone, Debug, Serialize)]
pub struct Mark {
    /// Instructions since the beginning.
    pub instructions: u64,
    /// Milliseconds since the beginning.
    pub time_ms: f64,
    /// The mode from then on.
    pub mode: String,
    /// Why.
    pub reason: String,
}

impl Line {
    /// From what was counted by the end of each interval; several become one point where there are too
    /// many for a figure.
    pub fn new(bar: &str, ends: &[Counters], machine: &MachineResult, profile: &Profile) -> Self {
        let clock = profile.core.clock();
        let (mut instructions, mut cycles) = (0, 0.0);
        let step = ends.len().div_ceil(POINTS).max(1);
        let ends: Vec<Counters> = ends.chunks(step).filter_map(<[_]>::last).cloned().collect();
        let points = intervals(&ends).into_iter().map(|counted| {
            let c = Cycles::of(&counted, profile);
            let all = c.total();
            instructions += counted.instructions;
            cycles += all;
            let percent = |part: f64| if all > 0.0 { 100.0 * part / all } else { 0.0 };
            Point {
                instructions,
                time_ms: clock.ms(cycles),
                walk_percent: percent(c.translation),
                vmm_percent: percent(c.vmm),
            }
        });
        let switches = machine.switching.iter().flat_map(|s| &s.switches).map(|s| Mark {
            instructions: s.instructions,
            time_ms: s.time_ms,
            mode: s.mode.to_string(),
            reason: s.reason.clone(),
        });
        Self { bar: bar.into(), points: points.collect(), switches: switches.collect() }
    }
}

/// Rows of a table at most.
const ROWS: usize = 32;

/// Lines of the same program side by side, intervals together where they are too many for a table.
pub fn table(lines: &[&Line]) -> String {
    let longest = lines.iter().map(|l| l.points.len()).max().unwrap_or(0);
    let step = longest.div_ceil(ROWS).max(1);
    let mut table = Table::new().column("million\ninstructions", Align::Right);
    for line in lines {
        table = table.column(&format!("{}\nwalk+VMM %", line.bar), Align::Right);
        if !line.switches.is_empty() {
            table = table.column("\nswitches", Align::Left);
        }
    }
    for first in (0..longest).step_by(step) {
        let last = (first + step).min(longest) - 1;
        let end = lines.iter().filter_map(|l| l.points.get(last)).map(|p| p.instructions).max();
        let mut row = vec![end.map_or(String::new(), |n| format!("{:.0}", n as f64 / 1e6))];
        for line in lines {
            let part =
                &line.points[first.min(line.points.len())..(last + 1).min(line.points.len())];
            row.push(mean(part));
            if !line.switches.is_empty() {
                let begin = first.checked_sub(1).and_then(|i| line.points.get(i));
                let begin = begin.map_or(0, |p| p.instructions);
                let end = part.last().map_or(begin, |p| p.instructions);
                let within = line.switches.iter();
                let within = within.filter(|s| s.instructions >= begin && s.instructions < end);
                row.push(within.map(|s| format!("to {}", s.mode)).collect::<Vec<_>>().join(", "));
            }
        }
        table.row(row);
    }
    table.render()
}

fn mean(points: &[Point]) -> String {
    if points.is_empty() {
        return String::new();
    }
    let n = points.len() as f64;
    let walk: f64 = points.iter().map(|p| p.walk_percent).sum::<f64>() / n;
    let vmm: f64 = points.iter().map(|p| p.vmm_percent).sum::<f64>() / n;
    format!("{walk:.1}+{vmm:.1}")
}
