//! `static-thresholds`: the thesis's first policy (section 3.2.1, figure 3.4).

use crate::policies::PolicyInfo;
use crate::policies::thresholds::{HIGH, LEAST_LOAD, Metric, N, QUIET, Thresholds};
use crate::sample::{Counter, Hundredths};
use crate::spec::{Kind, Parameter};

/// T_low of thesis 4.2.2.
const LOW: Parameter = Parameter {
    name: "low",
    default: "3",
    kind: Kind::Hundredths(0.0, 100.0),
    meaning: "T_low, percent of cycles; below it C moves away from a switch",
    source: "thesis 4.2.2: T_low = 3; script: GLOBAL_L_T=2",
};

pub(crate) const INFO: PolicyInfo = PolicyInfo {
    name: "static-thresholds",
    summary: "switches when walks and VMM together cost too much for long; fixed thresholds",
    source: "thesis 3.2.1, figure 3.4; rpms.sh with DYNAMIC=false",
    parameters: &[HIGH, LOW, N, QUIET, LEAST_LOAD],
    needs: &[Counter::WalkCycles],
    build: |spec, mode, _| {
        let one = Hundredths(100);
        Ok(Box::new(Thresholds::new(spec, mode, Metric::Sum(one, one), None)?))
    },
};
