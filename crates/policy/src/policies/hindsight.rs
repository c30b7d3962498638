//! `hindsight`: the best mode of every interval, known afterwards. No policy can do better, so it is
//! the bound that all are measured against.
//!
//! It needs what no single run has: the cost of each interval in both modes. Two aligned simulations
//! give it; dynamic programming over (interval, mode) then finds the cheapest sequence of modes
//! exactly, switch costs included.

use crate::decision::{Action, Decision, Outcome, Policy, Reason};
use crate::policies::PolicyInfo;
use crate::sample::{Mode, Sample};
use crate::spec::SpecError;
use thiserror::Error;

pub(crate) const INFO: PolicyInfo = PolicyInfo {
    name: "hindsight",
    summary: "the cheapest sequence of modes, known afterwards: the bound of all policies",
    source: "dynamic programming over both modes' costs per interval",
    parameters: &[],
    needs: &[],
    build: |_, _, _| Err(SpecError::NeedsBothModes),
};

/// What an interval costs, in any one unit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct IntervalCost {
    /// Of the interval in shadow mode.
    pub shadow: f64,
    /// Of the interval in nested mode.
    pub nested: f64,
    /// Of a switch to shadow paging at the interval's start, beyond the interval's cost.
    pub to_shadow: f64,
    /// Of a switch to nested paging at the interval's start, beyond the interval's cost.
    pub to_nested: f64,
}

impl IntervalCost {
    /// Of the interval in a mode.
    pub fn of(&self, mode: Mode) -> f64 {
        match mode {
            Mode::Shadow => self.shadow,
            Mode::Nested => self.nested,
        }
    }

    fn to(&self, mode: Mode) -> f64 {
        match mode {
            Mode::Shadow => self.to_shadow,
            Mode::Nested => self.to_nested,
        }
    }
}

/// The cheapest sequence of modes.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The mode of each interval.
    pub modes: Vec<Mode>,
    /// What all intervals and switches cost.
    pub cost: f64,
    /// Switches, one at the start counted if the first mode was given and left.
    pub switches: u32,
}

/// A cost that is not one.
#[derive(Clone, Copy, Debug, PartialEq, Error)]
#[error("interval {interval} costs {value}: costs are finite and not negative")]
pub struct CostError {
    /// The interval, from 0.
    pub interval: usize,
    /// The cost.
    pub value: f64,
}

/// The cheapest modes for these intervals. A VM that is in `start` pays for leaving it; without
/// `start` the first interval's mode is free to choose. Of equal plans the one that switches later
/// or not at all is taken.
///
/// # Errors
/// If a cost is negative, infinite or not a number.
pub fn hindsight(intervals: &[IntervalCost], start: Option<Mode>) -> Result<Plan, CostError> {
    for (interval, c) in intervals.iter().enumerate() {
        for value in [c.shadow, c.nested, c.to_shadow, c.to_nested] {
            if !(value.is_finite() && value >= 0.0) {
                return Err(CostError { interval, value });
            }
        }
    }
    const MODES: [Mode; 2] = [Mode::Shadow, Mode::Nested];
    // Cheapest cost of the intervals so far if the last is in this mode, and whether that interval
    // began with a switch.
    let mut best = match start {
        None => [0.0; 2],
        Some(Mode::Shadow) => [0.0, f64::INFINITY],
        Some(Mode::Nested) => [f64::INFINITY, 0.0],
    };
    let mut came_by_switch: Vec<[bool; 2]> = Vec::with_capacity(intervals.len());
    for (i, costs) in intervals.iter().enumerate() {
        let free = i == 0 && start.is_none();
        let mut next = [0.0; 2];
        let mut switched = [false; 2];
        for (m, mode) in MODES.into_iter().enumerate() {
            let stay = best[m];
            let change = best[1 - m] + costs.to(mode);
            switched[m] = !free && change < stay;
            next[m] = costs.of(mode) + if switched[m] { change } else { stay };
        }
        best = next;
        came_by_switch.push(switched);
    }

    let mut m = usize::from(best[1] < best[0]);
    let cost = best[m];
    let mut modes = Vec::with_capacity(intervals.len());
    let mut switches = 0;
    for switched in came_by_switch.iter().rev() {
        modes.push(MODES[m]);
        if switched[m] {
            switches += 1;
            m = 1 - m;
        }
    }
    modes.reverse();
    Ok(Plan { modes, cost, switches })
}

/// A policy that follows a plan, so that a plan can be simulated like any other policy.
#[derive(Clone, Debug)]
pub struct PlannedModes {
    mode: Mode,
    asked: Option<Mode>,
    modes: Vec<Mode>,
    seen: usize,
}

impl PlannedModes {
    /// Follows `modes`, one per interval. The VM is in `mode` during the first interval, whatever
    /// the plan says of it: a switch can only follow a sample.
    pub fn new(mode: Mode, modes: Vec<Mode>) -> Self {
        Self { mode, asked: None, modes, seen: 0 }
    }
}

impl Policy for PlannedModes {
    fn sample(&mut self, _: &Sample) -> Decision {
        self.seen += 1;
        let reason = Reason::Planned { interval: self.seen as u64 };
        let planned = self.modes.get(self.seen).copied().unwrap_or(self.mode);
        if self.asked.is_some() {
            return Decision::stay(Reason::SwitchUnderWay);
        }
        if planned == self.mode {
            return Decision::stay(reason);
        }
        self.asked = Some(planned);
        Decision { action: Action::Switch(planned), reason }
    }

    fn switched(&mut self, outcome: Outcome) {
        let asked = self.asked.take();
        match outcome {
            Outcome::Done => self.mode = asked.unwrap_or(self.mode),
            Outcome::Refused => {}
            Outcome::Elsewhere(mode) => self.mode = mode,
        }
    }

    fn mode(&self) -> Mode {
        self.mode
    }
}
