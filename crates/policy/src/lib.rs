//! When a virtual machine should change between shadow and nested paging.
//!
//! A [`Policy`] is a pure function of a stream of [`Sample`]s: no clock, no files, no randomness but
//! its seed. So the same code serves the simulator, a live host and the replay of recorded samples.
//! [`POLICIES`] is the catalogue; [`PolicySpec`] parses `name:key=value,...`; [`SampleReader`] and
//! [`SampleWriter`] keep samples as CSV; [`hindsight()`] is the bound that no policy can pass.
//!
//! ```
//! use nestwalk_policy::{Action, Mode, Outcome, PolicySpec};
//!
//! let spec: PolicySpec = "dynamic-thresholds:high=12,low=3".parse()?;
//! let mut policy = spec.build(Mode::Shadow, &|_| unreachable!("names no file"))?;
//! # let samples: Vec<nestwalk_policy::Sample> = Vec::new();
//! for sample in &samples {
//!     let decision = policy.sample(sample);
//!     if let Action::Switch(_mode) = decision.action {
//!         // The switch is made here; then the policy hears what came of it.
//!         policy.switched(Outcome::Done);
//!     }
//! }
//! # Ok::<(), nestwalk_policy::SpecError>(())
//! ```

mod csv;
mod decision;
mod gate;
mod policies;
mod rates;
mod sample;
mod spec;

pub use csv::{COLUMNS, Column, CsvError, Row, SampleReader, SampleWriter};
pub use decision::{Action, Decision, DspRule, Outcome, Policy, Reason};
pub use policies::hindsight::{IntervalCost, Plan, PlannedModes, hindsight};
pub use policies::svm::{TrainError, Training, best_modes, train};
pub use policies::{POLICIES, PolicyInfo};
pub use sample::{Counter, Hundredths, Mode, Sample, SampleError};
pub use spec::{Kind, Parameter, PolicySpec, SpecError};
