//! The policies: one file each, and the list from which names, parameters and the catalogue follow.

mod aspms;
mod bandit;
mod dsp;
mod dynamic_thresholds;
pub(crate) mod hindsight;
mod kvm_window;
mod single_metric;
mod static_thresholds;
pub(crate) mod svm;
mod thresholds;

use crate::decision::Policy;
use crate::sample::{Counter, Mode};
use crate::spec::{Kind, Parameter, PolicySpec, ReadFile, SpecError};

/// How a policy is made from its checked parameters.
pub(crate) type Build = fn(&PolicySpec, Mode, ReadFile<'_>) -> Result<Box<dyn Policy>, SpecError>;

/// A policy of the catalogue.
#[derive(Debug)]
pub struct PolicyInfo {
    /// Its name.
    pub name: &'static str,
    /// What it does, in a sentence.
    pub summary: &'static str,
    /// Who described it, and where.
    pub source: &'static str,
    /// Its parameters.
    pub parameters: &'static [Parameter],
    /// Counters without which it never switches.
    pub needs: &'static [Counter],
    pub(crate) build: Build,
}

/// All policies.
pub static POLICIES: &[PolicyInfo] = &[
    static_thresholds::INFO,
    dynamic_thresholds::INFO,
    single_metric::INFO,
    dsp::INFO,
    aspms::INFO,
    kvm_window::INFO,
    svm::INFO,
    bandit::INFO,
    hindsight::INFO,
];

/// Quiet time: thesis 3.2.1 and the script agree where an interval is a second.
const SKIP: Parameter = Parameter {
    name: "skip",
    default: "2",
    kind: Kind::Whole(0, 1000),
    meaning: "samples after a switch that decide nothing",
    source: "thesis 3.2.1: 2 T; script: SKIP_TIME=2000 ms, rounded up to intervals",
};

/// Samples of an idle VM say nothing.
const LOAD: Parameter = Parameter {
    name: "load",
    default: "0.6",
    kind: Kind::Hundredths(0.0, 4096.0),
    meaning: "processors in use below which a sample is ignored",
    source: "script: cpuload < 0.60",
};
