//! The state machine of the thesis (figures 3.4 and 3.5), with the arithmetic of its script: three
//! policies are this machine with other parts switched on.

use crate::decision::{Action, Decision, Outcome, Policy, Reason};
use crate::gate::Gate;
use crate::policies::{LOAD, SKIP};
use crate::sample::{Counter, Hundredths, Mode, Sample};
use crate::spec::{Kind, Parameter, PolicySpec, SpecError};

/// Parameters that all three have. The thesis's evaluation has other thresholds than the script.
pub(crate) const HIGH: Parameter = Parameter {
    name: "high",
    default: "9",
    kind: Kind::Hundredths(0.0, 100.0),
    meaning: "T_high at the start, percent of cycles; above it C moves towards a switch",
    source: "script: GLOBAL_H_T=9; thesis 4.2.2: the best of 3 to 20, 4.2.3: 12",
};
pub(crate) const N: Parameter = Parameter {
    name: "n",
    default: "4",
    kind: Kind::Whole(1, 1000),
    meaning: "N: C runs from -N to N and causes a switch at the far end",
    source: "thesis 4.2.2: N = 4; script: STATE_N=4",
};
pub(crate) const QUIET: Parameter = SKIP;
pub(crate) const LEAST_LOAD: Parameter = LOAD;

/// What C is moved by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Metric {
    /// The weighted sum of C_VMM% and C_PW%; weights in hundredths, in the order of the script: the
    /// first is of the mode's own cost (VMM under shadow, walks under nested paging).
    Sum(Hundredths, Hundredths),
    /// Only the mode's own cost.
    Own,
}

/// How thresholds follow the IPC (thesis 3.2.2).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Adaptation {
    /// f_h: a switch was good if the IPC is more than this times the old.
    pub(crate) up: Hundredths,
    /// f_l: a switch was bad if it is less than this times the old.
    pub(crate) down: Hundredths,
    /// What the ratio of IPCs is multiplied with.
    pub(crate) gain: Hundredths,
}

/// No threshold grows beyond this, percent.
const CAP: Hundredths = Hundredths(10_000);

#[derive(Debug)]
pub(crate) struct Thresholds {
    gate: Gate,
    metric: Metric,
    adaptation: Option<Adaptation>,
    low: Hundredths,
    /// T_high of shadow paging, then of nested paging.
    high: [Hundredths; 2],
    n: i64,
    /// The thesis's counter C. It is not reset by a switch: so the first switch takes N samples, and
    /// each later one 2 N.
    level: i64,
    old_ipc: Option<Hundredths>,
    /// Whether the quiet time is that of a switch which this policy wanted and got.
    proving: bool,
}

impl Thresholds {
    pub(crate) fn new(
        spec: &PolicySpec,
        mode: Mode,
        metric: Metric,
        adaptation: Option<Adaptation>,
    ) -> Result<Self, SpecError> {
        let (high, low) = (spec.hundredths("high"), spec.hundredths("low"));
        if low > high {
            let text = format!("low={low} is above high={high}");
            return Err(SpecError::Contradiction(text, spec.info.name));
        }
        Ok(Self {
            gate: Gate::new(mode, spec.whole("skip"), spec.hundredths("load").0),
            metric,
            adaptation,
            low,
            high: [high; 2],
            n: spec.whole("n").into(),
            level: 0,
            old_ipc: None,
            proving: false,
        })
    }

    fn high_of(&mut self, mode: Mode) -> &mut Hundredths {
        &mut self.high[usize::from(mode == Mode::Nested)]
    }

    /// Overhead in ten-thousandths of a percent: products of two numbers with two decimals are
    /// compared without rounding, as `bc -l` does.
    fn overhead(&self, sample: &Sample) -> Result<u128, Reason> {
        if sample.total_cycles() == 0 {
            return Err(Reason::NothingRan);
        }
        let counter = Counter::WalkCycles;
        let vmm = sample.vmm_percent().ok_or(Reason::NothingRan)?;
        let shadow = sample.mode == Mode::Shadow;
        if self.metric == Metric::Own && shadow {
            return Ok(u128::from(vmm.0) * 100);
        }
        let walk = sample.walk_percent().ok_or(Reason::NotCounted { counter })?;
        let (own, other) = if shadow { (vmm, walk) } else { (walk, vmm) };
        Ok(match self.metric {
            Metric::Own => u128::from(own.0) * 100,
            Metric::Sum(w1, w2) => {
                u128::from(w1.0) * u128::from(own.0) + u128::from(w2.0) * u128::from(other.0)
            }
        })
    }

    /// At the end of the quiet time: was the switch worth it? The threshold that moves is that of
    /// the mode that was left, since it caused the switch.
    fn prove(&mut self, sample: &Sample) -> Option<Reason> {
        let Adaptation { up, down, gain } = self.adaptation?;
        let (old, new) = (self.old_ipc?, sample.script_ipc()?);
        let left = self.gate.mode().other();
        let low = self.low;
        let threshold = self.high_of(left);
        let from = *threshold;
        let wide = |h: Hundredths| u128::from(h.0);
        // Truncated to two decimals, in hundredths; without bound where the script divides by 0.
        let change = |a: Hundredths, b: Hundredths| {
            Hundredths::ratio(wide(gain) * wide(a), 100 * wide(b)).unwrap_or(CAP).0
        };
        let good = if wide(new) * 100 < wide(down) * wide(old) {
            threshold.0 = threshold.0.saturating_add(change(old, new)).min(CAP.0);
            false
        } else if wide(new) * 100 > wide(up) * wide(old) {
            threshold.0 = threshold.0.saturating_sub(change(new, old)).max(low.0);
            true
        } else {
            return None;
        };
        Some(Reason::adapted(good, left, (from, *threshold), (old, new)))
    }
}

impl Policy for Thresholds {
    fn sample(&mut self, sample: &Sample) -> Decision {
        if let Err(reason) = self.gate.admit(sample) {
            if reason == (Reason::Quiet { left: 0 }) && self.proving {
                self.proving = false;
                return Decision::stay(self.prove(sample).unwrap_or(reason));
            }
            return Decision::stay(reason);
        }
        let overhead = match self.overhead(sample) {
            Ok(overhead) => overhead,
            Err(reason) => return Decision::stay(reason),
        };
        let Some(ipc) = sample.script_ipc() else { return Decision::stay(Reason::NothingRan) };
        self.old_ipc = Some(ipc);

        let mode = self.gate.mode();
        let towards = if mode == Mode::Shadow { 1 } else { -1 };
        let target = towards * self.n;
        let high = *self.high_of(mode);
        let above = |threshold: Hundredths| overhead > u128::from(threshold.0) * 100;
        let below = |threshold: Hundredths| overhead < u128::from(threshold.0) * 100;
        let percent = overhead as f64 / 1e4;
        let (step, threshold) = if above(high) {
            (towards, high)
        } else if below(self.low) {
            (-towards, self.low)
        } else {
            let level = self.level;
            return Decision::stay(Reason::Between { overhead: percent, level, target });
        };
        self.level = (self.level + step).clamp(-self.n, self.n);
        let (overhead, threshold, level) = (percent, threshold.into(), self.level);
        let reason = if step == towards {
            Reason::High { overhead, threshold, level, target }
        } else {
            Reason::Low { overhead, threshold, level, target }
        };
        if level != target {
            return Decision::stay(reason);
        }
        self.gate.ask(mode.other());
        Decision { action: Action::Switch(mode.other()), reason }
    }

    fn switched(&mut self, outcome: Outcome) {
        self.proving = outcome == Outcome::Done;
        self.gate.switched(outcome);
    }

    fn mode(&self) -> Mode {
        self.gate.mode()
    }
}
