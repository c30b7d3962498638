//! Estimates of the whole stream's counters by those of measured stretches.

use super::{Phase, Sampling, Totals};
use crate::measure::counters::Counters;
use crate::report::results::MachineResult;

/// Groups of units at most, of which one at a time is left out.
pub const GROUPS: usize = 32;

/// Counters of software: of faults, exits, stores to tables. These happen where controls and first
/// touches are, which no stretch is without, so they are counted over the whole stream. All others are
/// of accesses, and are estimated.
const EVENTS: &[&str] = &[
    "guest_faults",
    "pages_cleared",
    "table_writes",
    "cr3_loads",
    "cr3_flushes",
    "invalidations",
    "mode_switches",
    "guest_segment_loads",
    "vmm_segment_loads",
    "pages_moved",
    "balloon_pages",
    "host_pages_scanned",
    "host_pages_unmapped",
    "host_pages_migrated",
    "host_pages_exchanged",
    "host_collapses",
    "host_joins",
    "host_faults",
    "async_faults",
    "host_pages_cleared",
    "nested_fills",
    "nested_prefetches",
    "shadow_fills",
    "remote_flushes",
    "shadow_prefetches",
    "shadow_drops",
    "sync_entries",
    "sync_present",
    "shadow_pages",
    "shadow_zaps",
    "flood_zaps",
    "tables_nested",
    "tables_shadowed",
    "dirty_bits_scanned",
    "hypercall_operations",
    "entries_validated",
    "updates_refused",
    "reflected_exits",
    "switcher_exits",
    "anchor_changes",
    "contiguity_updates",
];

/// What a machine counted in each measured stretch, and is counting now.
#[derive(Default)]
pub(crate) struct Stretches {
    /// Window by window.
    done: Vec<(usize, Counters)>,
    now: Option<(usize, Counters)>,
}

impl Stretches {
    /// A piece of this phase comes, and these are the counters before it.
    pub(crate) fn enter(&mut self, phase: Phase, counters: &Counters) {
        let number = match phase {
            Phase::Measured(number) => Some(number),
            Phase::Between => None,
        };
        if self.now.as_ref().map(|n| n.0) == number {
            return;
        }
        if let Some((number, before)) = self.now.take() {
            self.done.push((number, counters.since(&before)));
        }
        self.now = number.map(|number| (number, counters.clone()));
    }
}

/// What came of sampling.
#[derive(Clone, Debug, Default)]
pub struct Sampled {
    /// Stretches that were measured, the first, whole one not among them.
    pub units: usize,
    /// Instructions of the region of interest.
    pub instructions: u64,
    /// Of these, the ones that were measured.
    pub measured_instructions: u64,
    /// Runs of the region of interest.
    pub runs: u64,
    /// Of these, and of set-up, the ones that machines have seen.
    pub simulated_runs: u64,
    /// By left-out group, machine by machine: the same estimates without it. Empty where there are fewer
    /// than two units, or where units have weights.
    pub without: Vec<Vec<MachineResult>>,
}

/// What a machine counted, in two strata.
struct Strata<'a> {
    lead: Vec<(f64, &'a Counters)>,
    units: Vec<(f64, &'a Counters)>,
}

/// Estimates of each machine's counters, and the same for each group that is left out. `machines` has
/// the stretches of each, its counters of the whole stream, and what that had; `results` makes results
/// of counters, in the machines' order.
pub(crate) fn sampled(
    sampling: &Sampling,
    machines: &mut [(Stretches, Counters, Totals)],
    results: &dyn Fn(&[Counters]) -> Vec<MachineResult>,
) -> (Vec<Counters>, Sampled) {
    for (stretches, whole, _) in machines.iter_mut() {
        stretches.enter(Phase::Between, whole);
    }
    let machines: &[(Stretches, Counters, Totals)] = machines;
    let totals = machines.first().map_or(Totals::default(), |m| m.2);
    let estimates = |left_out: Option<(usize, usize)>| -> Vec<Counters> {
        let of = |m: &(Stretches, Counters, Totals)| estimate(sampling, m, left_out);
        machines.iter().map(of).collect()
    };
    let first = machines.first().map(|m| m.0.done.as_slice()).unwrap_or_default();
    let lead = usize::from(sampling.lead() > 0 && first.first().is_some_and(|s| s.0 == 0));
    let units = first.len() - lead;
    let groups = if sampling.points.is_empty() && units >= 2 { units.min(GROUPS) } else { 0 };
    let found = Sampled {
        units,
        instructions: totals.instructions,
        measured_instructions: first.iter().map(|s| s.1.instructions).sum(),
        runs: totals.runs,
        simulated_runs: totals.simulated_runs,
        without: (0..groups).map(|g| results(&estimates(Some((g, groups))))).collect(),
    };
    (estimates(None), found)
}

/// The counters of the whole stream, without the units of group `left_out.0` of so many, if any.
fn estimate(
    sampling: &Sampling,
    (stretches, whole, totals): &(Stretches, Counters, Totals),
    left_out: Option<(usize, usize)>,
) -> Counters {
    let strata = match sampling.points.is_empty() {
        true => systematic(&stretches.done, *totals, left_out),
        false => weighted(sampling, &stretches.done, *totals),
    };
    let parts: Vec<_> = strata.lead.into_iter().chain(strata.units).collect();
    let mut all = Counters::blend(&parts, whole, |name| EVENTS.contains(&name));
    // These are known.
    all.instructions = totals.instructions;
    all.kernel_instructions = totals.kernel_instructions;
    all.accesses = totals.accesses;
    all.fetches = totals.fetches;
    // `ideal` looks nothing up.
    if all.l1i_tlb_lookups + all.l1d_tlb_lookups > 0 {
        all.l1i_tlb_lookups = totals.fetches;
        all.l1d_tlb_lookups = totals.accesses - totals.fetches;
    }
    all
}

/// Each unit stands for as many instructions as every other: a ratio estimate.
fn systematic(
    done: &[(usize, Counters)],
    totals: Totals,
    left_out: Option<(usize, usize)>,
) -> Strata<'_> {
    let (lead, units): (Vec<_>, Vec<_>) = done.iter().partition(|s| s.0 == 0);
    let is_in = |number: usize| left_out.is_none_or(|(group, of)| (number - 1) % of != group);
    let units: Vec<_> = units.into_iter().filter(|s| is_in(s.0)).collect();
    let sum = |s: &[&(usize, Counters)]| s.iter().map(|s| s.1.instructions).sum::<u64>();
    let (in_lead, in_units) = (sum(&lead), sum(&units));
    let rest = totals.instructions.saturating_sub(in_lead) as f64;
    // Of a stream that ends before its first unit, the lead is all that is known.
    let (own, factor) = match (in_lead, in_units) {
        (0, 0) => (0.0, 0.0),
        (_, 0) => (totals.instructions as f64 / in_lead as f64, 0.0),
        (_, n) => (1.0, rest / n as f64),
    };
    Strata {
        lead: lead.into_iter().map(|s| (own, &s.1)).collect(),
        units: units.into_iter().map(|s| (factor, &s.1)).collect(),
    }
}

/// Each point stands for its share of the stream; the shares of points that the stream has not reached
/// are the others'.
fn weighted<'a>(sampling: &Sampling, done: &'a [(usize, Counters)], totals: Totals) -> Strata<'a> {
    let weight = |number: usize| sampling.points.get(number).map_or(0.0, |p| p.weight);
    let all: f64 = done.iter().map(|s| weight(s.0)).sum();
    let factor = |(number, counted): &(usize, Counters)| {
        let share = weight(*number) / all;
        share * totals.instructions as f64 / counted.instructions.max(1) as f64
    };
    Strata { lead: Vec::new(), units: done.iter().map(|s| (factor(s), &s.1)).collect() }
}

/// Half the width of the 95 % confidence interval of a figure, by what it is without each group: the
/// delete-a-group jackknife, with Student's quantile of one degree of freedom less than groups.
pub fn half_width(without: &[f64]) -> f64 {
    let n = without.len();
    if n < 2 {
        return f64::NAN;
    }
    let mean = without.iter().sum::<f64>() / n as f64;
    let squares: f64 = without.iter().map(|x| (x - mean) * (x - mean)).sum();
    t_quantile(n - 1) * ((n - 1) as f64 / n as f64 * squares).sqrt()
}

/// Student's 97.5 % quantile for so many degrees of freedom, within 0.1 % from 3 on: Abramowitz and
/// Stegun, Handbook of Mathematical Functions, 26.7.5.
pub fn t_quantile(degrees: usize) -> f64 {
    const X: f64 = 1.959_963_984_540_054;
    match degrees {
        0 => f64::NAN,
        1 => 12.706_2,
        2 => 4.302_65,
        n => {
            let n = n as f64;
            let g = [
                (X.powi(3) + X) / 4.0,
                (5.0 * X.powi(5) + 16.0 * X.powi(3) + 3.0 * X) / 96.0,
                (3.0 * X.powi(7) + 19.0 * X.powi(5) + 17.0 * X.powi(3) - 15.0 * X) / 384.0,
                (79.0 * X.powi(9) + 776.0 * X.powi(7) + 1482.0 * X.powi(5)
                    - 1920.0 * X.powi(3)
                    - 945.0 * X)
                    / 92_160.0,
            ];
            X + g[0] / n + g[1] / n.powi(2) + g[2] / n.powi(3) + g[3] / n.powi(4)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_tables() {
        // NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.2.
        let table = [
            (3, 3.182),
            (5, 2.571),
            (10, 2.228),
            (20, 2.086),
            (30, 2.042),
            (31, 2.040),
            (100, 1.984),
        ];
        for (degrees, quantile) in table {
            let found = t_quantile(degrees);
            assert!((found / quantile - 1.0).abs() < 1.5e-3, "{degrees}: {found}");
        }
    }

    /// Of a mean the jackknife's interval is the usual one.
    #[test]
    fn intervals_of_means_are_those_of_textbooks() {
        let x = [3.0, 5.0, 4.0, 9.0, 1.0, 2.0_f64];
        let (n, sum) = (x.len() as f64, x.iter().sum::<f64>());
        let without: Vec<f64> = x.iter().map(|own| (sum - own) / (n - 1.0)).collect();
        let variance = x.iter().map(|v| (v - sum / n).powi(2)).sum::<f64>() / (n - 1.0);
        let usual = t_quantile(5) * (variance / n).sqrt();
        assert!((half_width(&without) / usual - 1.0).abs() < 1e-12);
        assert!(half_width(&[1.0]).is_nan());
    }

    #[test]
    fn every_event_is_a_counter() {
        for name in EVENTS {
            assert!(Counters::ROWS.iter().any(|row| row.name == *name), "{name}");
        }
    }

    #[test]
    fn units_stand_for_what_lies_between_and_the_lead_for_itself() {
        let counted = |instructions, walks| Counters {
            instructions,
            walks,
            l1d_tlb_lookups: 1,
            ..Counters::default()
        };
        let stretches = Stretches {
            done: vec![(0, counted(100, 50)), (1, counted(10, 1)), (2, counted(10, 3))],
            now: None,
        };
        let whole = Counters { walks: 60, table_writes: 7, ..counted(150, 0) };
        let totals = Totals { instructions: 500, accesses: 800, fetches: 300, ..Totals::default() };
        let sampling = Sampling::systematic(1);
        let machine = (stretches, whole, totals);
        let all = estimate(&sampling, &machine, None);
        // 50, and 4 in 20 instructions of 400.
        assert_eq!((all.walks, all.table_writes, all.instructions), (130, 7, 500));
        assert_eq!((all.l1d_tlb_lookups, all.l1i_tlb_lookups), (500, 300));
        assert_eq!(estimate(&sampling, &machine, Some((0, 2))).walks, 50 + 3 * 40);
        assert_eq!(estimate(&sampling, &machine, Some((1, 2))).walks, 50 + 40);
    }
}
