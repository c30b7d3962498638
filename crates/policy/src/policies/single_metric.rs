//! `single-metric`: the thesis's remedy for mcf (section 4.2.3, figure 4.5): C is moved by C_VMM%
//! alone under shadow paging and by C_PW% alone under nested paging. So an overhead that the other
//! mode would have, too, causes no switch.

use crate::policies::PolicyInfo;
use crate::policies::dynamic_thresholds::{DOWN, GAIN, LOW, UP};
use crate::policies::thresholds::{Adaptation, HIGH, LEAST_LOAD, Metric, N, QUIET, Thresholds};
use crate::sample::Counter;

pub(crate) const INFO: PolicyInfo = PolicyInfo {
    name: "single-metric",
    summary: "dynamic-thresholds that looks only at VMM under shadow and walks under nested",
    source: "thesis 4.2.3, figure 4.5; the commented choice in rpms.sh",
    parameters: &[HIGH, LOW, N, QUIET, LEAST_LOAD, UP, DOWN, GAIN],
    needs: &[Counter::WalkCycles],
    build: |spec, mode, _| {
        let adaptation = Adaptation {
            up: spec.hundredths("up"),
            down: spec.hundredths("down"),
            gain: spec.hundredths("gain"),
        };
        Ok(Box::new(Thresholds::new(spec, mode, Metric::Own, Some(adaptation))?))
    },
};
