//! What happened: switches and their reasons, and how long the VM was in which mode.

use crate::measure::cost::Cycles;
use crate::measure::counters::Counters;
use crate::scheme::{Switched, SwitchingResult};
use nestwalk_hw::Profile;
use nestwalk_policy::{Decision, Mode, Sample};

/// Keeps it while the machine runs.
pub struct Journal {
    profile: Profile,
    vcpus: f64,
    start: Mode,
    /// Cycles of all vCPUs in each mode, up to the last switch.
    cycles: [f64; 2],
    /// Cycles in all at the last switch.
    since: f64,
    switches: Vec<Switched>,
    decisions: Vec<(Sample, Decision)>,
}

impl Journal {
    /// Nothing has happened yet.
    pub fn new(profile: &Profile, vcpus: usize, start: Mode) -> Self {
        Self {
            profile: profile.clone(),
            vcpus: vcpus.max(1) as f64,
            start,
            cycles: [0.0; 2],
            since: 0.0,
            switches: Vec::new(),
            decisions: Vec::new(),
        }
    }

    /// The region of interest begins in this mode.
    pub fn restart(&mut self, mode: Mode) {
        self.start = mode;
        (self.cycles, self.since) = ([0.0; 2], 0.0);
        self.switches.clear();
        self.decisions.clear();
    }

    /// A policy answered.
    pub fn decided(&mut self, sample: Sample, decision: Decision) {
        self.decisions.push((sample, decision));
    }

    /// The VM leaves `from`, and this is what was counted before.
    pub fn switched(
        &mut self,
        counters: &Counters,
        from: Mode,
        reason: String,
        sample: Option<Sample>,
    ) {
        let now = Cycles::of(counters, &self.profile).total();
        self.cycles[from as usize] += now - self.since;
        self.since = now;
        let clock = self.profile.core.clock().of_all(self.vcpus);
        self.switches.push(Switched {
            time_ms: clock.ms(now),
            instructions: counters.instructions,
            mode: from.other(),
            reason,
            sample,
        });
    }

    /// All of it, for a VM that is in `mode` now.
    pub fn result(&self, counters: &Counters, mode: Mode) -> SwitchingResult {
        let mut cycles = self.cycles;
        cycles[mode as usize] += Cycles::of(counters, &self.profile).total() - self.since;
        let all: f64 = cycles.iter().sum();
        let percent = |m: Mode| if all > 0.0 { 100.0 * (cycles[m as usize] / all) } else { 0.0 };
        SwitchingResult {
            start: self.start,
            shadow_percent: percent(Mode::Shadow),
            nested_percent: percent(Mode::Nested),
            samples: self.decisions.len() as u64,
            switches: self.switches.clone(),
            decisions: self.decisions.clone(),
        }
    }
}
