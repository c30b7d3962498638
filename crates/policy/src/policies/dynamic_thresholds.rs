//! `dynamic-thresholds`: the thesis's second policy (section 3.2.2, figure 3.5), as its script
//! computes it.
//!
//! Both modes have a T_high of their own. When the quiet time after a switch ends, the IPC of its
//! last sample is compared with that of the last sample before the switch. If it fell below f_l
//! times the old, T_high of the mode that was left grows by twice the ratio old / new, up to 100; if
//! it rose above f_h times the old, it shrinks by twice the ratio new / old, down to T_low.

use crate::policies::PolicyInfo;
use crate::policies::thresholds::{Adaptation, HIGH, LEAST_LOAD, Metric, N, QUIET, Thresholds};
use crate::sample::Counter;
use crate::spec::{Kind, Parameter};

pub(crate) const LOW: Parameter = Parameter {
    name: "low",
    default: "2",
    kind: Kind::Hundredths(0.0, 100.0),
    meaning: "T_low, percent of cycles; below it C moves away from a switch; floor of T_high",
    source: "script: GLOBAL_L_T=2; thesis 4.2.3: T_low = 3",
};
pub(crate) const UP: Parameter = Parameter {
    name: "up",
    default: "1.1",
    kind: Kind::Hundredths(1.0, 100.0),
    meaning: "f_h: a switch is good if the IPC is above this times the old",
    source: "thesis 4.2.3: f_h = 1.1; script: 1.1",
};
pub(crate) const DOWN: Parameter = Parameter {
    name: "down",
    default: "0.9",
    kind: Kind::Hundredths(0.0, 1.0),
    meaning: "f_l: a switch is bad if the IPC is below this times the old",
    source: "thesis 4.2.3: f_l = 0.9; script: 0.9",
};
pub(crate) const GAIN: Parameter = Parameter {
    name: "gain",
    default: "2",
    kind: Kind::Hundredths(0.0, 100.0),
    meaning: "thresholds move by this times the ratio of IPCs, percent",
    source: "script: 2 * old_gipc / gipc",
};
const OWN: Parameter = Parameter {
    name: "own",
    default: "1",
    kind: Kind::Hundredths(0.0, 100.0),
    meaning: "weight of the mode's own cost: VMM under shadow, walks under nested paging",
    source: "script: W_1=1",
};
const OTHER: Parameter = Parameter {
    name: "other",
    default: "1",
    kind: Kind::Hundredths(0.0, 100.0),
    meaning: "weight of the other cost",
    source: "script: W_2=1",
};

pub(crate) const INFO: PolicyInfo = PolicyInfo {
    name: "dynamic-thresholds",
    summary: "the same with a threshold per mode that the IPC after each switch adapts",
    source: "thesis 3.2.2, figure 3.5; rpms.sh with DYNAMIC=true",
    parameters: &[HIGH, LOW, N, QUIET, LEAST_LOAD, UP, DOWN, GAIN, OWN, OTHER],
    needs: &[Counter::WalkCycles],
    build: |spec, mode, _| {
        let metric = Metric::Sum(spec.hundredths("own"), spec.hundredths("other"));
        let adaptation = Adaptation {
            up: spec.hundredths("up"),
            down: spec.hundredths("down"),
            gain: spec.hundredths("gain"),
        };
        Ok(Box::new(Thresholds::new(spec, mode, metric, Some(adaptation))?))
    },
};
