//! `dsp`: dynamic switching paging (Wang et al., VEE'11; the thesis's chapter 5; the lecture's DSP).
//!
//! Frequent guest page faults speak for nested paging, frequent TLB misses for shadow paging; if both
//! are frequent, their ratio decides. The published thresholds were learned for one machine and are
//! not known here; ours are derived, see `rates.rs`.

use crate::decision::{Action, Decision, DspRule, Outcome, Policy, Reason};
use crate::gate::Gate;
use crate::policies::{LOAD, PolicyInfo, SKIP};
use crate::rates::{DERIVED, FAULT_HIGH, FAULTS_PER_MISS, MISS_HIGH, rate};
use crate::sample::{Counter, Mode, Sample};
use crate::spec::{Kind, Parameter, PolicySpec};

pub(crate) const FAULTS: Parameter = Parameter {
    name: "faults",
    default: FAULT_HIGH,
    kind: Kind::Real(0.0, 1e6),
    meaning: "guest page faults per million cycles above which they are frequent",
    source: DERIVED,
};
pub(crate) const MISSES: Parameter = Parameter {
    name: "misses",
    default: MISS_HIGH,
    kind: Kind::Real(0.0, 1e6),
    meaning: "TLB misses per million cycles above which they are frequent",
    source: DERIVED,
};

pub(crate) const INFO: PolicyInfo = PolicyInfo {
    name: "dsp",
    summary: "page-fault rate against TLB-miss rate; where both are high, their ratio",
    source: "Wang et al., VEE 2011; thesis chapter 5; thresholds derived",
    parameters: &[
        FAULTS,
        MISSES,
        Parameter {
            name: "ratio",
            default: FAULTS_PER_MISS,
            kind: Kind::Real(0.0, 1e6),
            meaning: "where both are frequent: faults per TLB miss above which nested paging is better",
            source: "derived: extra cost of a miss over that of a fault, 157 / 9970 cycles",
        },
        SKIP,
        LOAD,
    ],
    needs: &[Counter::GuestPageFaults, Counter::TlbMisses],
    build: |spec, mode, _| Ok(Box::new(Dsp::new(spec, mode))),
};

#[derive(Debug)]
struct Dsp {
    gate: Gate,
    faults: f64,
    misses: f64,
    ratio: f64,
}

impl Dsp {
    fn new(spec: &PolicySpec, mode: Mode) -> Self {
        Self {
            gate: Gate::new(mode, spec.whole("skip"), spec.hundredths("load").0),
            faults: spec.real("faults"),
            misses: spec.real("misses"),
            ratio: spec.real("ratio"),
        }
    }

    fn rule(&self, faults: f64, misses: f64) -> (DspRule, Option<Mode>) {
        match (faults > self.faults, misses > self.misses) {
            (false, false) => (DspRule::NeitherHigh, None),
            (true, false) => (DspRule::FaultsHigh, Some(Mode::Nested)),
            (false, true) => (DspRule::MissesHigh, Some(Mode::Shadow)),
            (true, true) if faults > self.ratio * misses => {
                (DspRule::RatioForNested, Some(Mode::Nested))
            }
            (true, true) => (DspRule::RatioForShadow, Some(Mode::Shadow)),
        }
    }

    fn decide(&mut self, sample: &Sample) -> Result<Decision, Reason> {
        self.gate.admit(sample)?;
        let faults = rate(sample, Counter::GuestPageFaults)?;
        let misses = rate(sample, Counter::TlbMisses)?;
        let (rule, best) = self.rule(faults, misses);
        let reason = Reason::Rates { faults, misses, rule };
        Ok(match best.filter(|&b| b != self.gate.mode()) {
            None => Decision::stay(reason),
            Some(mode) => {
                self.gate.ask(mode);
                Decision { action: Action::Switch(mode), reason }
            }
        })
    }
}

impl Policy for Dsp {
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
