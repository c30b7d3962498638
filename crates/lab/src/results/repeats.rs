//! One experiment with several seeds: mean and spread of each machine's numbers.

use super::baseline::Baseline;
use nestwalk_report::to_cells;
use nestwalk_sim::report::results::MachineResult;
use serde::Serialize;
use serde_json::{Map, Value, json};

/// A number over several seeds.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
pub struct Spread {
    /// Arithmetic mean.
    pub mean: f64,
    /// Standard deviation of the sample (n - 1).
    pub deviation: f64,
    /// The least.
    pub least: f64,
    /// The most.
    pub most: f64,
}

impl Spread {
    /// Of these values; zeros if there are none.
    pub fn of(values: &[f64]) -> Self {
        let n = values.len() as f64;
        if values.is_empty() {
            return Self::default();
        }
        let mean = values.iter().sum::<f64>() / n;
        let squares: f64 = values.iter().map(|v| (v - mean) * (v - mean)).sum();
        Self {
            mean,
            deviation: if n > 1.0 { (squares / (n - 1.0)).sqrt() } else { 0.0 },
            least: values.iter().copied().fold(f64::INFINITY, f64::min),
            most: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        }
    }
}

/// What several seeds found.
pub struct Repeats {
    /// The seeds, in order.
    pub seeds: Vec<u64>,
    machines: Vec<Repeated>,
}

/// A machine over the seeds.
struct Repeated {
    name: String,
    /// With each seed, relative to the same baseline.
    run_times: Vec<f64>,
    run_time: Spread,
    /// Every number of its results.
    fields: Vec<(String, Spread)>,
}

impl Repeats {
    /// Of runs of the same machines, one for each seed; run times are relative to the machine of this
    /// name, with the same seed. None without a baseline.
    pub fn new(base: Baseline, seeds: &[u64], runs: &[&[MachineResult]]) -> Option<Self> {
        let bases = runs.iter().map(|machines| base.in_run(machines));
        let bases: Vec<Baseline> = bases.collect::<Option<_>>()?;
        let machine = |i: usize, m: &MachineResult| {
            let all: Vec<&MachineResult> = runs.iter().filter_map(|run| run.get(i)).collect();
            let run_times: Vec<f64> = bases.iter().zip(&all).map(|(b, m)| b.run_time(m)).collect();
            let run_time = Spread::of(&run_times);
            Repeated { name: m.name.clone(), run_times, run_time, fields: fields(&all) }
        };
        let machines = runs.first()?.iter().enumerate().map(|(i, m)| machine(i, m)).collect();
        Some(Self { seeds: seeds.to_vec(), machines })
    }

    fn machine(&self, name: &str) -> Option<&Repeated> {
        self.machines.iter().find(|m| m.name == name)
    }

    /// Run time of a machine over the seeds.
    pub fn run_time(&self, name: &str) -> Spread {
        self.machine(name).map_or(Spread::default(), |m| m.run_time)
    }

    /// With how many seeds the first machine is faster than the second.
    pub fn times_faster(&self, first: &str, second: &str) -> usize {
        let (Some(a), Some(b)) = (self.machine(first), self.machine(second)) else { return 0 };
        a.run_times.iter().zip(&b.run_times).filter(|(a, b)| a < b).count()
    }

    /// Documented in `fields::REPEATS` and `fields::REPEATED`.
    pub fn json(&self) -> Value {
        let machine = |m: &Repeated| {
            let fields = m.fields.iter().map(|(name, spread)| (name.clone(), json!(spread)));
            let fields: Map<String, Value> = fields.collect();
            json!({ "name": m.name, "run_time": m.run_time, "fields": fields })
        };
        let machines: Vec<Value> = self.machines.iter().map(machine).collect();
        json!({ "seeds": self.seeds, "machines": machines })
    }
}

/// The spread of every number of a machine's results, over its runs.
fn fields(runs: &[&MachineResult]) -> Vec<(String, Spread)> {
    numbers(runs).into_iter().map(|(name, values)| (name, Spread::of(&values))).collect()
}

/// Every number of a machine's results, by run. One that a run does not have is 0 there, as a reason for
/// which nothing exited.
pub(crate) fn numbers(runs: &[&MachineResult]) -> Vec<(String, Vec<f64>)> {
    let rows: Vec<Value> = runs.iter().filter_map(|m| serde_json::to_value(m).ok()).collect();
    let cells = to_cells(&rows);
    let column = |at: usize| {
        let texts = cells.rows.iter().map(|row| row[at].as_str());
        let number = |text: &str| if text.is_empty() { Some(0.0) } else { text.parse().ok() };
        let numbers: Option<Vec<f64>> = texts.clone().map(number).collect();
        numbers.filter(|_| texts.clone().any(|text| !text.is_empty()))
    };
    let names = cells.columns.iter().enumerate();
    names.filter_map(|(at, name)| Some((name.clone(), column(at)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::Spread;

    #[test]
    fn a_spread_is_that_of_the_textbook() {
        let found = Spread::of(&[2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]);
        // Squares of the distances from 5 add up to 32.
        let deviation = (32.0_f64 / 7.0).sqrt();
        assert_eq!(found, Spread { mean: 5.0, deviation, least: 2.0, most: 9.0 });
        assert_eq!(Spread::of(&[3.0]), Spread { mean: 3.0, deviation: 0.0, least: 3.0, most: 3.0 });
        assert_eq!(Spread::of(&[]), Spread::default());
    }
}
