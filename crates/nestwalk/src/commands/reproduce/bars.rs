//! Bars of figures: overhead of one machine on one program, split into page walks and VMM.

use super::programs::Ran;
use nestwalk_report::{Align, Table};
use nestwalk_sim::report::results::MachineResult;
use serde::Serialize;

/// A bar.
#[derive(Clone, Debug, Serialize)]
pub struct Bar {
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
        Self {
            bar: bar.into(),
            machine: m.name.clone(),
            walk_percent: m.translation_overhead_percent,
            vmm_percent: m.vmm_overhead_percent,
            total_percent: m.overhead_percent,
            cycles: m.total_cycles,
            exits: m.vm_exits_total,
            switches: m.mode_switches,
            shadow_percent: m.switching.as_ref().map(|s| s.shadow_percent),
        }
    }
}

impl Ran {
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
