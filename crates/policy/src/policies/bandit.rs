//! `bandit`: a contextual bandit (Hiebel, Brown, Wang, ICPP'18, abstract: paging modes are the arms,
//! page-fault and TLB-miss counts the context, and nothing need be known of the workload beforehand).
//!
//! Theirs, DSP-OFFSET, learns from random profiling and then stays as it is. Ours learns while it
//! runs: LinUCB with disjoint models (Li et al., WWW'10, algorithm 1), and by chance too if `explore`
//! is set. The reward of an interval is minus the share of cycles that went into walks and the host's
//! kernel: so a mode that was never tried in a context, whose expected reward begins at 0, is worth a
//! try. Only exactly rounded operations are used, so a seed decides the same everywhere.

use crate::decision::{Action, Decision, Outcome, Policy, Reason};
use crate::gate::Gate;
use crate::policies::dsp::{FAULTS, MISSES};
use crate::policies::{LOAD, PolicyInfo, SKIP};
use crate::rates::{rate, squash};
use crate::sample::{Counter, Mode, Sample};
use crate::spec::{Kind, Parameter, PolicySpec};
use nestwalk_types::SplitMix64;

pub(crate) const INFO: PolicyInfo = PolicyInfo {
    name: "bandit",
    summary: "contextual bandit (LinUCB) that learns each mode's worth from faults and TLB misses",
    source: "Hiebel, Brown, Wang, ICPP 2018 (the idea); Li et al., WWW 2010 (the algorithm)",
    parameters: &[
        Parameter {
            name: "alpha",
            default: "0.1",
            kind: Kind::Real(0.0, 100.0),
            meaning: "width of the confidence: how much is tried for lack of knowledge",
            source: "chosen here: overheads spread over tenths; the source's is not known",
        },
        Parameter {
            name: "explore",
            default: "0",
            kind: Kind::Real(0.0, 1.0),
            meaning: "share of decisions made by chance, as random profiling does",
            source: "chosen here: LinUCB explores by itself",
        },
        Parameter {
            name: "margin",
            default: "0.02",
            kind: Kind::Real(0.0, 1.0),
            meaning: "reward that the other mode must promise beyond this one's, since switches cost",
            source: "chosen here: 2 % of cycles",
        },
        Parameter {
            name: "seed",
            default: "1",
            kind: Kind::Whole(0, u64::MAX),
            meaning: "decides what is chosen by chance",
            source: "arbitrary",
        },
        FAULTS,
        MISSES,
        SKIP,
        LOAD,
    ],
    needs: &[Counter::WalkCycles, Counter::GuestPageFaults, Counter::TlbMisses],
    build: |spec, mode, _| Ok(Box::new(Bandit::new(spec, mode))),
};

/// Context: 1, page faults, TLB misses; the latter two are 1/2 at the thresholds of the other policies.
type Context = [f64; 3];

/// What is known of one arm: a ridge regression of the reward on the context.
#[derive(Clone, Debug)]
struct Arm {
    /// Inverse of (unit matrix + sum of context x context).
    inverse: [[f64; 3]; 3],
    /// Sum of reward x context.
    b: Context,
}

fn dot(a: &Context, b: &Context) -> f64 {
    a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
}

impl Arm {
    fn new() -> Self {
        Self { inverse: [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], b: [0.0; 3] }
    }

    fn times_inverse(&self, x: &Context) -> Context {
        [dot(&self.inverse[0], x), dot(&self.inverse[1], x), dot(&self.inverse[2], x)]
    }

    /// Sherman and Morrison: the inverse after x x' is added.
    fn learn(&mut self, x: &Context, reward: f64) {
        let v = self.times_inverse(x);
        let scale = 1.0 / (1.0 + dot(x, &v));
        for (row, vi) in self.inverse.iter_mut().zip(v) {
            for (cell, vj) in row.iter_mut().zip(v) {
                *cell -= scale * vi * vj;
            }
        }
        for (b, xi) in self.b.iter_mut().zip(x) {
            *b += reward * xi;
        }
    }

    /// The reward expected at most, with the confidence's width `alpha`.
    fn upper(&self, x: &Context, alpha: f64) -> f64 {
        let v = self.times_inverse(x);
        dot(&self.b, &v) + alpha * dot(x, &v).max(0.0).sqrt()
    }
}

#[derive(Debug)]
struct Bandit {
    gate: Gate,
    arms: [Arm; 2],
    alpha: f64,
    explore: f64,
    margin: f64,
    halves: [f64; 2],
    random: SplitMix64,
}

impl Bandit {
    fn new(spec: &PolicySpec, mode: Mode) -> Self {
        Self {
            gate: Gate::new(mode, spec.whole("skip"), spec.hundredths("load").0),
            arms: [Arm::new(), Arm::new()],
            alpha: spec.real("alpha"),
            explore: spec.real("explore"),
            margin: spec.real("margin"),
            // Never 0, so that a rate of 0 has a place, too.
            halves: [spec.real("faults").max(1e-9), spec.real("misses").max(1e-9)],
            random: SplitMix64::new(spec.seed("seed")),
        }
    }

    fn decide(&mut self, sample: &Sample) -> Result<Decision, Reason> {
        self.gate.admit(sample)?;
        let faults = rate(sample, Counter::GuestPageFaults)?;
        let misses = rate(sample, Counter::TlbMisses)?;
        let counter = Counter::WalkCycles;
        let walk = sample.walk_cycles.ok_or(Reason::NotCounted { counter })?;
        let x = [1.0, squash(faults, self.halves[0]), squash(misses, self.halves[1])];
        let lost = (walk as f64 + sample.host_kernel_cycles as f64) / sample.total_cycles() as f64;
        let mode = self.gate.mode();
        let index = |mode| usize::from(mode == Mode::Nested);
        self.arms[index(mode)].learn(&x, -lost);

        let upper = [&self.arms[0], &self.arms[1]].map(|arm| arm.upper(&x, self.alpha));
        // Both numbers are drawn always, so that `explore` does not shift the stream.
        let (chance, coin) = (unit(&mut self.random), unit(&mut self.random));
        let explored = chance < self.explore;
        let other = mode.other();
        let change = if explored {
            coin < 0.5
        } else {
            upper[index(other)] > upper[index(mode)] + self.margin
        };
        let reason = Reason::Expected { shadow: upper[0], nested: upper[1], explored };
        if !change {
            return Ok(Decision::stay(reason));
        }
        self.gate.ask(other);
        Ok(Decision { action: Action::Switch(other), reason })
    }
}

/// A number of 0..1 with 53 bits.
fn unit(random: &mut SplitMix64) -> f64 {
    (random.next() >> 11) as f64 / (1u64 << 53) as f64
}

impl Policy for Bandit {
    fn sample(&mut self, sample: &Sample) -> Decision {
        self.decide(sample).unwrap_or_else(Decision::stay)
    }

    fn switched(&mut self, outcome: Outcome) {
        self.gate.switched(outcome);
    }

    fn mode(&self) -> Mode {
        self.gate.mode()
    }
}

#[cfg(test)]
mod tests {
    use super::Arm;

    #[test]
    fn an_arm_is_the_ridge_regression() {
        // Contexts (1, 0, 0) twice with rewards 0.5 and 0.9: A = diag(3, 1, 1), b = (1.4, 0, 0), so
        // the estimate at (1, 0, 0) is 1.4 / 3 and the width sqrt(1 / 3).
        let mut arm = Arm::new();
        let x = [1.0, 0.0, 0.0];
        arm.learn(&x, 0.5);
        arm.learn(&x, 0.9);
        assert!((arm.upper(&x, 0.0) - 1.4 / 3.0).abs() < 1e-12);
        assert!((arm.upper(&x, 2.0) - (1.4 / 3.0 + 2.0 * (1.0f64 / 3.0).sqrt())).abs() < 1e-12);
        // A direction never seen keeps its full width.
        assert!((arm.upper(&[0.0, 1.0, 0.0], 1.0) - 1.0).abs() < 1e-12);
        // (1, 1, 0) once more: A = [[4, 1], [1, 2]], b = (2.4, 1) with reward 1; at (1, 1, 0) the
        // estimate is (2*2.4 - 1 + 4 - 2.4)/7 = 5.4/7, the width sqrt((2 - 2 + 4)/7).
        arm.learn(&[1.0, 1.0, 0.0], 1.0);
        assert!((arm.upper(&[1.0, 1.0, 0.0], 0.0) - 5.4 / 7.0).abs() < 1e-12);
        let width = arm.upper(&[1.0, 1.0, 0.0], 1.0) - 5.4 / 7.0;
        assert!((width - (4.0f64 / 7.0).sqrt()).abs() < 1e-12);
    }
}
