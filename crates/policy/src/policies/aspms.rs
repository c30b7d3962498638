//! `aspms`: adaptive selection of the paging mode (Bae, Lange, Dinda, ICAC'11, in Palacios, DAV2M;
//! the thesis's chapter 5).
//!
//! Each mode is watched by what it is bad at: exits for paging under shadow paging, TLB misses under
//! nested paging. A switch is followed by a transient, at whose end the cycles per instruction are
//! compared with those before: if they fell, the threshold that caused the switch is lowered, else it
//! is raised. By how much is not known here; ours is a half, so that a threshold that is wrong by a
//! factor of four is right after four mistakes. It stays within a tenth and ten times its start, so
//! that no mode is shut out for good.

use crate::decision::{Action, Decision, Outcome, Policy, Reason};
use crate::gate::Gate;
use crate::policies::dsp::MISSES;
use crate::policies::{LOAD, PolicyInfo, SKIP};
use crate::rates::{DERIVED, EXIT_HIGH, rate};
use crate::sample::{Counter, Mode, Sample};
use crate::spec::{Kind, Parameter, PolicySpec};

pub(crate) const EXITS: Parameter = Parameter {
    name: "exits",
    default: EXIT_HIGH,
    kind: Kind::Real(0.0, 1e6),
    meaning: "VM exits for paging per million cycles above which they are frequent",
    source: DERIVED,
};

pub(crate) const INFO: PolicyInfo = PolicyInfo {
    name: "aspms",
    summary: "exit rate under shadow, TLB-miss rate under nested; thresholds adapted by the CPI",
    source: "Bae, Lange, Dinda, ICAC 2011; thesis chapter 5; thresholds derived",
    parameters: &[
        EXITS,
        MISSES,
        Parameter {
            name: "step",
            default: "0.5",
            kind: Kind::Real(0.0, 0.99),
            meaning: "share by which a good switch lowers its threshold and a bad one raises it",
            source: "chosen here: the source's is not known",
        },
        SKIP,
        LOAD,
    ],
    needs: &[Counter::TlbMisses, Counter::VmExits],
    build: |spec, mode, _| Ok(Box::new(Aspms::new(spec, mode))),
};

/// Thresholds stay within this factor of their start.
const FAR: f64 = 10.0;

#[derive(Debug)]
struct Aspms {
    gate: Gate,
    /// Of exits (shadow), then of misses (nested): at the start and now.
    start: [f64; 2],
    threshold: [f64; 2],
    step: f64,
    old_cpi: Option<f64>,
    proving: bool,
}

fn index(mode: Mode) -> usize {
    usize::from(mode == Mode::Nested)
}

impl Aspms {
    fn new(spec: &PolicySpec, mode: Mode) -> Self {
        let start = [spec.real("exits"), spec.real("misses")];
        Self {
            gate: Gate::new(mode, spec.whole("skip"), spec.hundredths("load").0),
            start,
            threshold: start,
            step: spec.real("step"),
            old_cpi: None,
            proving: false,
        }
    }

    fn prove(&mut self, sample: &Sample) -> Option<Reason> {
        let (old, new) = (self.old_cpi?, sample.cpi()?);
        let left = self.gate.mode().other();
        let (start, from) = (self.start[index(left)], self.threshold[index(left)]);
        let good = new < old;
        let factor = if good { 1.0 - self.step } else { 1.0 + self.step };
        let to = (from * factor).clamp(start / FAR, start * FAR);
        self.threshold[index(left)] = to;
        let (ipc_before, ipc_after) = (1.0 / old, 1.0 / new);
        Some(Reason::Adapted { good, threshold_of: left, from, to, ipc_before, ipc_after })
    }

    fn decide(&mut self, sample: &Sample) -> Result<Decision, Reason> {
        if let Err(reason) = self.gate.admit(sample) {
            if reason == (Reason::Quiet { left: 0 }) && self.proving {
                self.proving = false;
                return Err(self.prove(sample).unwrap_or(reason));
            }
            return Err(reason);
        }
        let mode = self.gate.mode();
        let counter = match mode {
            Mode::Shadow => Counter::VmExits,
            Mode::Nested => Counter::TlbMisses,
        };
        let rate = rate(sample, counter)?;
        self.old_cpi = Some(sample.cpi().ok_or(Reason::NothingRan)?);
        let threshold = self.threshold[index(mode)];
        let reason = Reason::Rate { counter, rate, threshold };
        if rate <= threshold {
            return Ok(Decision::stay(reason));
        }
        self.gate.ask(mode.other());
        Ok(Decision { action: Action::Switch(mode.other()), reason })
    }
}

impl Policy for Aspms {
    fn sample(&mut self, sample: &Sample) -> Decision {
        self.decide(sample).unwrap_or_else(Decision::stay)
    }

    fn switched(&mut self, outcome: Outcome) {
        self.proving = outcome == Outcome::Done;
        self.gate.switched(outcome);
    }

    fn mode(&self) -> Mode {
        self.gate.mode()
    }
}
