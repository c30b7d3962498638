//! Bars of figures: overhead of one machine on one program, split into page walks and VMM; the figures,
//! and what was published.

use super::programs::Ran;
use nestwalk_report::{Align, Table};
use nestwalk_sim::report::results::MachineResult;
use serde::Serialize;
use serde_json::Value;

/// A bar, with more that an evaluation tells of it.
#[derive(Clone, Debug, Serialize)]
pub struct Bar<M = ModeTimeline> {
    /// Its name in the figure.
    pub bar: String,
    /// The machine, with nothing left to defaults.
    pub machine: String,
    /// Page walks and what they displace, percent of the ideal run time.
    pub walk_percent: f64,
    /// Hypervisor, percent of the ideal run time.
    pub vmm_percent: f64,
    /// Both together.
    pub total_percent: f64,
    /// The rest.
    #[serde(flatten)]
    pub more: M,
}

/// How long a machine took, and how its paging mode changed.
#[derive(Clone, Debug, Serialize)]
pub struct ModeTimeline {
    /// Cycles of the run.
    pub cycles: f64,
    /// VM exits.
    pub exits: u64,
    /// Changes of the paging mode.
    pub switches: u64,
    /// Percent of the time in shadow mode, where the mode changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shadow_percent: Option<f64>,
}

impl Bar {
    /// Of a machine's results.
    pub fn new(bar: &str, m: &MachineResult) -> Self {
        let course = ModeTimeline {
            cycles: m.total_cycles,
            exits: m.vm_exits_total,
            switches: m.mode_switches,
            shadow_percent: m.switching.as_ref().map(|s| s.shadow_percent),
        };
        Self::with(bar, m, course)
    }
}

impl<M> Bar<M> {
    /// Of a machine's results, with more of them.
    pub fn with(bar: &str, m: &MachineResult, more: M) -> Self {
        Self {
            bar: bar.into(),
            machine: m.name.clone(),
            walk_percent: m.translation_overhead_percent,
            vmm_percent: m.vmm_overhead_percent,
            total_percent: m.overhead_percent,
            more,
        }
    }
}

impl Ran {
    /// The machines of this name, which may leave something to defaults, in the order of results.
    pub fn named(&self, name: &str) -> impl DoubleEndedIterator<Item = &MachineResult> {
        self.session.outcome.machines.iter().filter(move |m| {
            let rest = m.name.strip_prefix(name);
            rest.is_some_and(|r| r.is_empty() || r.starts_with(['+', '@']))
        })
    }

    /// What the machine that was asked for as number `i` did.
    pub fn machine(&self, i: usize) -> &MachineResult {
        &self.session.outcome.machines[self.first + i]
    }
}

/// Geometric mean of run times over ideal ones, as an overhead in percent; `None` if there is none.
pub fn geometric_mean(overheads: impl Iterator<Item = f64>) -> Option<f64> {
    let (mut sum, mut count) = (0.0, 0);
    for percent in overheads {
        sum += (1.0 + percent / 100.0).ln();
        count += 1;
    }
    (count > 0).then(|| 100.0 * ((sum / f64::from(count)).exp() - 1.0))
}

/// A part of the whole in percent; 0 of nothing.
pub fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { 100.0 * part as f64 / whole as f64 }
}

/// A published number.
#[derive(Clone, Copy, Serialize)]
pub struct Published {
    /// What it says.
    pub what: &'static str,
    /// Where it is from, and how well it is known.
    pub source: &'static str,
}

/// What was published, a line each.
pub fn published(all: &[Published]) -> String {
    let lines = all.iter().map(|p| format!("  {} ({})\n", p.what, p.source));
    std::iter::once("published\n".to_owned()).chain(lines).collect()
}

/// A row of CSV: the fields of `head`, then those of `found`, whose `absent` ones are empty.
pub fn row(head: Value, found: &impl Serialize, absent: &[&str]) -> serde_json::Result<Value> {
    let mut row = head;
    if let (Some(row), Value::Object(found)) = (row.as_object_mut(), serde_json::to_value(found)?) {
        row.extend(found);
        for key in absent {
            row.entry(*key).or_insert(Value::Null);
        }
    }
    Ok(row)
}

/// A figure as a table with a row per bar, a column per program, and the mean of what `number` says.
pub struct Transposed<'a, B> {
    /// What the numbers are.
    pub title: &'a str,
    /// Names of the programs, and their bars.
    pub programs: Vec<(&'a str, &'a [B])>,
    /// Name of a bar.
    pub name: fn(&B) -> &str,
    /// Overhead in percent.
    pub number: fn(&B) -> f64,
    /// What a cell shows.
    pub cell: fn(&B) -> String,
    /// There is a column of means.
    pub mean: bool,
}

impl<B> Transposed<'_, B> {
    /// With a row for each of `bars`, and what it is, if that is said.
    pub fn table<'a>(&self, bars: impl Iterator<Item = (&'a str, Option<&'a str>)>) -> Table {
        let mut table = Table::new().column(self.title, Align::Left);
        for (program, _) in &self.programs {
            table = table.column(program, Align::Right);
        }
        if self.mean {
            table = table.column("geometric mean", Align::Right);
        }
        let mut bars = bars.peekable();
        if bars.peek().is_some_and(|b| b.1.is_some()) {
            table = table.column("what it is", Align::Left);
        }
        for (name, what) in bars {
            let of = |(_, bars): &(&str, &[B])| bars.iter().position(|b| (self.name)(b) == name);
            let found = self.programs.iter().map(|p| of(p).map(|i| &p.1[i]));
            let found: Vec<Option<&B>> = found.collect();
            let mut row = vec![name.to_owned()];
            row.extend(found.iter().map(|b| b.map_or(String::new(), self.cell)));
            if self.mean {
                let mean = geometric_mean(found.iter().flatten().map(|b| (self.number)(b)));
                row.push(mean.map_or(String::new(), |m| format!("{m:.2}")));
            }
            row.extend(what.map(Into::into));
            table.row(row);
        }
        table
    }
}

/// A figure as a table: a row per program, the bars as `walk+VMM = total`, and the mean.
pub fn figure(
    title: &str,
    programs: &[(&str, Vec<&Bar>)],
    note: impl Fn(&Bar) -> String,
) -> String {
    let Some((_, first)) = programs.first() else { return String::new() };
    let mut table = Table::new().column("overhead, %", Align::Left);
    for bar in first {
        table = table.column(&bar.bar, Align::Right);
    }
    for (name, bars) in programs {
        let mut row = vec![(*name).to_owned()];
        row.extend(bars.iter().map(|b| {
            format!(
                "{:.1}+{:.1} = {:.1}{}",
                b.walk_percent,
                b.vmm_percent,
                b.total_percent,
                note(b)
            )
        }));
        table.row(row);
    }
    if programs.len() > 1 {
        let mut row = vec!["geometric mean".to_owned()];
        row.extend((0..first.len()).map(|i| {
            let of = programs.iter().filter_map(|(_, bars)| bars.get(i)).map(|b| b.total_percent);
            geometric_mean(of).map_or(String::new(), |mean| format!("{mean:.1}"))
        }));
        table.row(row);
    }
    format!("{title}\n\n{}\n", table.render())
}

#[cfg(test)]
mod tests {
    use super::geometric_mean;

    #[test]
    fn the_mean_is_that_of_run_times() {
        // Run times 2 and 8 times the ideal one: 4 in the mean.
        let mean = geometric_mean([100.0, 700.0].into_iter()).unwrap();
        assert!((mean - 300.0).abs() < 1e-9, "{mean}");
        assert_eq!(geometric_mean(std::iter::empty()), None);
    }
}
