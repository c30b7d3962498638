//! What policies answer, and the interface of all of them.

use crate::sample::{Counter, Hundredths, Mode, Sample, SampleError};
use serde::Serialize;
use std::fmt;

/// A policy: told of every interval, it says when to change the paging mode.
pub trait Policy: Send {
    /// Looks at the next interval. After an answer [`Action::Switch`] the caller owes
    /// [`switched`](Policy::switched); until then every sample is ignored, so a switch may take as
    /// long as it takes.
    fn sample(&mut self, sample: &Sample) -> Decision;

    /// Says what came of a switch, or that the mode was changed by somebody else.
    fn switched(&mut self, outcome: Outcome);

    /// The mode in which the policy believes the VM to be.
    fn mode(&self) -> Mode;
}

/// What came of a switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The VM is in the mode that was asked for.
    Done,
    /// The VM stays in the mode in which it was: the switch was refused, or only advised.
    Refused,
    /// Somebody else put the VM into this mode.
    Elsewhere(Mode),
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Leave the mode as it is.
    Stay,
    /// Change to this mode.
    Switch(Mode),
}

/// A policy's answer to a sample.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Decision {
    /// What to do.
    pub action: Action,
    /// Why.
    pub reason: Reason,
}

impl Decision {
    /// Nothing to do.
    pub const fn stay(reason: Reason) -> Self {
        Self { action: Action::Stay, reason }
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.action {
            Action::Stay => write!(f, "stay: {}", self.reason),
            Action::Switch(mode) => write!(f, "switch to {mode}: {}", self.reason),
        }
    }
}

/// Which of DSP's rules spoke.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DspRule {
    /// Neither rate is high.
    NeitherHigh,
    /// Only page faults are frequent.
    FaultsHigh,
    /// Only TLB misses are frequent.
    MissesHigh,
    /// Both are, and their ratio speaks for nested paging.
    RatioForNested,
    /// Both are, and their ratio speaks for shadow paging.
    RatioForShadow,
}

/// Why a policy answered as it did. Rates are events per million cycles.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Reason {
    /// The sample is not possible.
    Unusable {
        /// What is wrong with it.
        error: SampleError,
    },
    /// The sample lacks what the policy decides by.
    NotCounted {
        /// What is missing.
        counter: Counter,
    },
    /// No cycles or no instructions were counted.
    NothingRan,
    /// The outcome of the last switch is not known yet.
    SwitchUnderWay,
    /// The sample is of another mode than the VM should be in.
    ModeDiffers {
        /// The mode that the policy knows of.
        expected: Mode,
        /// The mode of the sample.
        found: Mode,
    },
    /// The quiet time after a switch.
    Quiet {
        /// Samples that it still lasts.
        left: u32,
    },
    /// The end of the quiet time: the switch proved good or bad, and a threshold moved.
    Adapted {
        /// Whether the VM became faster.
        good: bool,
        /// The mode whose threshold moved: the one that was left.
        threshold_of: Mode,
        /// The threshold before.
        from: f64,
        /// The threshold now.
        to: f64,
        /// Instructions per cycle before the switch.
        ipc_before: f64,
        /// Instructions per cycle after it.
        ipc_after: f64,
    },
    /// The vCPUs hardly ran.
    Idle {
        /// Processors in use, thousandths.
        load_thousandths: u64,
    },
    /// The overhead is above the high threshold.
    High {
        /// The overhead, percent.
        overhead: f64,
        /// The threshold, percent.
        threshold: f64,
        /// The counter C after this sample.
        level: i64,
        /// Where C causes a switch.
        target: i64,
    },
    /// The overhead is below the low threshold.
    Low {
        /// The overhead, percent.
        overhead: f64,
        /// The threshold, percent.
        threshold: f64,
        /// The counter C after this sample.
        level: i64,
        /// Where C causes a switch.
        target: i64,
    },
    /// The overhead is between the thresholds, and C stays.
    Between {
        /// The overhead, percent.
        overhead: f64,
        /// The counter C.
        level: i64,
        /// Where C causes a switch.
        target: i64,
    },
    /// DSP compared its two rates.
    Rates {
        /// Guest page faults.
        faults: f64,
        /// TLB misses.
        misses: f64,
        /// The rule that spoke.
        rule: DspRule,
    },
    /// One rate against one threshold.
    Rate {
        /// What is counted.
        counter: Counter,
        /// Its rate.
        rate: f64,
        /// The threshold.
        threshold: f64,
    },
    /// The last samples voted.
    Votes {
        /// Samples of the window that want the other mode.
        votes: u32,
        /// Samples that the window has now.
        samples: u32,
        /// Votes that cause a switch.
        needed: u32,
    },
    /// A classifier spoke.
    Classified {
        /// The mode that it holds best.
        best: Mode,
        /// Its decision value: above 0 for shadow paging.
        value: f64,
        /// Samples in a row that wanted the other mode.
        agreeing: u32,
    },
    /// Rewards that a bandit expects at best: minus the share of cycles lost.
    Expected {
        /// Of shadow paging.
        shadow: f64,
        /// Of nested paging.
        nested: f64,
        /// Whether the choice was made by chance, to learn.
        explored: bool,
    },
    /// The modes were planned beforehand.
    Planned {
        /// Index of the interval that comes next.
        interval: u64,
    },
}

impl Reason {
    /// The end of a switch's quiet time.
    pub(crate) fn adapted(
        good: bool,
        threshold_of: Mode,
        threshold: (Hundredths, Hundredths),
        ipc: (Hundredths, Hundredths),
    ) -> Self {
        Self::Adapted {
            good,
            threshold_of,
            from: threshold.0.into(),
            to: threshold.1.into(),
            ipc_before: ipc.0.into(),
            ipc_after: ipc.1.into(),
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Unusable { error } => write!(f, "sample refused, {error}"),
            Self::NotCounted { counter } => write!(f, "{counter} were not counted"),
            Self::NothingRan => f.write_str("no cycles or no guest instructions were counted"),
            Self::SwitchUnderWay => f.write_str("the last switch is not finished"),
            Self::ModeDiffers { expected, found } => {
                write!(f, "the sample is of {found} paging, {expected} was expected")
            }
            Self::Quiet { left } => write!(f, "quiet after the switch, {left} more"),
            Self::Adapted { good, threshold_of, from, to, ipc_before, ipc_after } => write!(
                f,
                "{} switch, IPC {ipc_before:.2} -> {ipc_after:.2}: \
                 threshold of {threshold_of} {from:.2} -> {to:.2}",
                if good { "good" } else { "bad" }
            ),
            Self::Idle { load_thousandths: load } => {
                write!(f, "idle, {}.{:03} processors in use", load / 1000, load % 1000)
            }
            Self::High { overhead, threshold, level, target } => write!(
                f,
                "overhead {overhead:.2} % above {threshold:.2} %, C = {level} of {target}"
            ),
            Self::Low { overhead, threshold, level, target } => write!(
                f,
                "overhead {overhead:.2} % below {threshold:.2} %, C = {level} of {target}"
            ),
            Self::Between { overhead, level, target } => {
                write!(f, "overhead {overhead:.2} % between thresholds, C = {level} of {target}")
            }
            Self::Rates { faults, misses, rule } => write!(
                f,
                "{faults:.2} page faults and {misses:.2} TLB misses per million cycles, {}",
                match rule {
                    DspRule::NeitherHigh => "neither is high",
                    DspRule::FaultsHigh => "page faults are high",
                    DspRule::MissesHigh => "TLB misses are high",
                    DspRule::RatioForNested => "both are high, faults weigh more",
                    DspRule::RatioForShadow => "both are high, misses weigh more",
                }
            ),
            Self::Rate { counter, rate, threshold } => {
                let side = if rate > threshold { "above" } else { "not above" };
                write!(f, "{rate:.2} {counter} per million cycles, {side} {threshold:.2}")
            }
            Self::Votes { votes, samples, needed } => {
                write!(f, "{votes} of the last {samples} samples want a switch, {needed} needed")
            }
            Self::Classified { best, value, agreeing } => {
                write!(f, "classified as {best} ({value:+.3}), {agreeing} in a row want a switch")
            }
            Self::Expected { shadow, nested, explored } => write!(
                f,
                "expects at best {shadow:+.4} of shadow and {nested:+.4} of nested{}",
                if explored { ", chose by chance" } else { "" }
            ),
            Self::Planned { interval } => write!(f, "plan for interval {interval}"),
        }
    }
}
