//! Where a policy loses against hindsight: interval by interval, its mode and what it took.

use super::programs::Ran;
use nestwalk_policy::Mode;
use nestwalk_sim::measure::cost::Cycles;
use nestwalk_sim::measure::series::intervals;
use serde::Serialize;
use std::fmt;

/// What a machine did over time.
pub struct ModeTimeline {
    /// The mode at the beginning of each interval, and the cycles of it.
    intervals: Vec<(Mode, f64)>,
}

impl ModeTimeline {
    /// Of the machine that was asked for as number `i`, which is one of shadow, nested and switching.
    pub fn of(ran: &Ran, i: usize) -> Self {
        let machine = ran.machine(i);
        let ends = &ran.session.outcome.series[ran.first + i];
        let (mut mode, switches) = match &machine.switching {
            Some(s) => (s.start, s.switches.as_slice()),
            None if machine.scheme == "shadow" => (Mode::Shadow, [].as_slice()),
            None => (Mode::Nested, [].as_slice()),
        };
        let mut switches = switches.iter().peekable();
        let mut instructions = 0;
        let intervals = intervals(ends).into_iter().map(|counted| {
            while let Some(switch) = switches.next_if(|s| s.instructions <= instructions) {
                mode = switch.mode;
            }
            instructions += counted.instructions;
            (mode, Cycles::of(&counted, &ran.profile).total())
        });
        Self { intervals: intervals.collect() }
    }
}

/// A loss by where it comes from, in percent of the run time of hindsight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Why {
    /// In shadow mode, where hindsight was in nested mode.
    in_shadow_percent: f64,
    /// In nested mode, where hindsight was in shadow mode.
    in_nested_percent: f64,
    /// In the same mode as hindsight: tables that are built again, and what begins within an interval.
    rebuilding_percent: f64,
}

impl Why {
    /// Why one is slower than the other; both have the same intervals of instructions.
    pub fn of(policy: &ModeTimeline, hindsight: &ModeTimeline) -> Self {
        let all: f64 = hindsight.intervals.iter().map(|i| i.1).sum();
        let mut why = Self::default();
        for ((mode, cycles), (best, least)) in policy.intervals.iter().zip(&hindsight.intervals) {
            let place = match (mode, best) {
                (Mode::Shadow, Mode::Nested) => &mut why.in_shadow_percent,
                (Mode::Nested, Mode::Shadow) => &mut why.in_nested_percent,
                _ => &mut why.rebuilding_percent,
            };
            *place += if all > 0.0 { 100.0 * (cycles - least) / all } else { 0.0 };
        }
        why
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:+.1} % in shadow mode where nested is better, {:+.1} % in nested mode where shadow is better, \
             {:+.1} % in the right mode, rebuilding tables",
            self.in_shadow_percent, self.in_nested_percent, self.rebuilding_percent
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_are_told_apart() {
        use Mode::{Nested, Shadow};
        let course = |intervals: &[(Mode, f64)]| ModeTimeline { intervals: intervals.to_vec() };
        let best = course(&[(Shadow, 50.0), (Nested, 50.0), (Nested, 60.0), (Shadow, 40.0)]);
        let policy = course(&[(Nested, 60.0), (Shadow, 150.0), (Nested, 90.0), (Shadow, 40.0)]);
        let why = Why::of(&policy, &best);
        let parts = [why.in_nested_percent, why.in_shadow_percent, why.rebuilding_percent];
        let near = |(part, expected): (f64, f64)| (part - expected).abs() < 1e-9;
        assert!(parts.into_iter().zip([5.0, 50.0, 15.0]).all(near), "{why:?}");
        assert_eq!(Why::of(&best, &best), Why::default());
    }
}
