//! What was counted by intervals of instructions: the same intervals on every machine with the same
//! guest, so that machines can be compared moment by moment.

use crate::measure::cost::Cycles;
use crate::measure::counters::Counters;
use nestwalk_hw::Profile;
use nestwalk_policy::IntervalCost;

/// Records the counters every so many instructions.
#[derive(Clone, Debug)]
pub struct Series {
    every: u64,
    due: u64,
    points: Vec<Counters>,
}

impl Default for Series {
    fn default() -> Self {
        Self { every: u64::MAX, due: u64::MAX, points: Vec::new() }
    }
}

impl Series {
    /// Records every so many instructions from the region of interest on.
    pub fn new(every: u64) -> Self {
        Self { every: every.max(1), ..Self::default() }
    }
    /// When the next record is due, by the machine's clock.
    #[inline]
    pub const fn due(&self) -> u64 {
        self.due
    }
    /// The region of interest begins.
    pub fn region_begins(&mut self, clock: u64) {
        self.due = clock.saturating_add(self.every);
        self.points.clear();
    }
    /// Records what is due.
    pub fn look(&mut self, clock: u64, counters: &Counters) {
        while clock >= self.due {
            self.due = self.due.saturating_add(self.every);
            self.points.push(counters.clone());
        }
    }
    /// What was counted by the end of each interval, and by the end, `now`, if that is after the last.
    pub fn ends(&self, now: &Counters) -> Vec<Counters> {
        if self.every == u64::MAX {
            return Vec::new();
        }
        let mut ends = self.points.clone();
        if ends.last() != Some(now) {
            ends.push(now.clone());
        }
        ends
    }
}

/// What was counted in each interval, from what was counted by the end of each.
pub fn intervals(ends: &[Counters]) -> Vec<Counters> {
    let start = Counters::default();
    let before = std::iter::once(&start).chain(ends);
    ends.iter().zip(before).map(|(end, begin)| end.since(begin)).collect()
}

/// Cycles of each interval in both modes, from the series of a shadow and of a nested machine with the
/// same guest: what [`nestwalk_policy::hindsight`] plans with. A switch itself costs `to_shadow` and
/// `to_nested` cycles; with 0 the plan is a bound that nothing reaches.
pub fn interval_costs(
    shadow: &[Counters],
    nested: &[Counters],
    profile: &Profile,
    (to_shadow, to_nested): (f64, f64),
) -> Vec<IntervalCost> {
    let cycles = |c: &Counters| Cycles::of(c, profile).total();
    let pairs = intervals(shadow).into_iter().zip(intervals(nested));
    pairs
        .map(|(s, n)| IntervalCost { shadow: cycles(&s), nested: cycles(&n), to_shadow, to_nested })
        .collect()
}
