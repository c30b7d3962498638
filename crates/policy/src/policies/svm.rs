//! `svm`: a support-vector machine that learned which mode suits which rates (Kuang, Brown, Wang,
//! Machine Learning 101, 2015, ASP-SVM; the thesis's chapter 5): the features are the page-fault and
//! the TLB-miss rate, the classes the modes.
//!
//! Training is `libsvm-rs`'s C-SVC with a radial kernel, without chance, so the same rows give the same
//! model. Models are LIBSVM's text files: class 1 is shadow, class -1 nested paging; feature 1 is
//! f / (f + 5) of f page faults, feature 2 m / (m + 64) of m TLB misses per million cycles.

use crate::decision::{Action, Decision, Outcome, Policy, Reason};
use crate::gate::Gate;
use crate::policies::{LOAD, PolicyInfo, SKIP};
use crate::rates::{rate, squash};
use crate::sample::{Counter, Mode, Sample};
use crate::spec::{Kind, Parameter, PolicySpec, ReadFile, SpecError};
use libsvm_rs::io::{load_model_from_reader, save_model_to_writer};
use libsvm_rs::predict::predict_values;
use libsvm_rs::train::svm_train;
use libsvm_rs::{KernelType, SvmModel, SvmNode, SvmParameter, SvmProblem, SvmType};
use thiserror::Error;

pub(crate) const INFO: PolicyInfo = PolicyInfo {
    name: "svm",
    summary: "a support-vector machine over page-fault and TLB-miss rates, trained beforehand",
    source: "Kuang, Brown, Wang, Machine Learning 101 (2015), 137-161",
    parameters: &[
        Parameter {
            name: "model",
            default: "the model that comes with nestwalk",
            kind: Kind::File,
            meaning: "the trained model, a LIBSVM text file, as `govern --train` makes it",
            source: "trained by nestwalk on its own simulations: crates/policy/data/train",
        },
        Parameter {
            name: "agree",
            default: "2",
            kind: Kind::Whole(1, 1000),
            meaning: "samples in a row that must want the other mode",
            source: "chosen here: one sample may lie across two phases",
        },
        SKIP,
        LOAD,
    ],
    needs: &[Counter::GuestPageFaults, Counter::TlbMisses],
    build: |spec, mode, read| Ok(Box::new(Svm::new(spec, mode, read)?)),
};

/// Rates that become 1/2: the thresholds of the other policies, but fixed, as models depend on them.
const FAULTS_HALF: f64 = 5.0;
const MISSES_HALF: f64 = 64.0;
const SHADOW: f64 = 1.0;
const NESTED: f64 = -1.0;
/// Training takes time quadratic in the rows.
const MOST_ROWS: usize = 50_000;
/// Share of the cycles by which a mode must be better to teach anything. Where both are alike it is
/// chance which has fewer cycles, and no loss to have the other.
const ALIKE: f64 = 0.01;
/// Used where no other model is named. `data/train` makes it of simulations.
const DEFAULT: &str = include_str!("../../data/svm.model");

fn features(sample: &Sample) -> Result<[SvmNode; 2], Reason> {
    let faults = squash(rate(sample, Counter::GuestPageFaults)?, FAULTS_HALF);
    let misses = squash(rate(sample, Counter::TlbMisses)?, MISSES_HALF);
    Ok([SvmNode { index: 1, value: faults }, SvmNode { index: 2, value: misses }])
}

/// The class, and the decision value turned so that it is positive for shadow paging.
fn classify(model: &SvmModel, features: &[SvmNode]) -> (Mode, f64) {
    let mut values = [0.0];
    let label = predict_values(model, features, &mut values);
    let shadow_first = model.label.first() == Some(&1);
    let value = if shadow_first { values[0] } else { -values[0] };
    (if label > 0.0 { Mode::Shadow } else { Mode::Nested }, value)
}

/// A model is checked before use: LIBSVM has others.
fn load(text: &str) -> Result<SvmModel, String> {
    let model = load_model_from_reader(text.as_bytes()).map_err(|e| e.to_string())?;
    let mut labels = model.label.clone();
    labels.sort_unstable();
    if model.param.svm_type != SvmType::CSvc || labels != [-1, 1] {
        return Err("not a model of two classes, 1 (shadow) and -1 (nested)".into());
    }
    if model.param.kernel_type == KernelType::Precomputed {
        return Err("a precomputed kernel cannot be used here".into());
    }
    if model.sv.iter().flatten().any(|node| !(1..=2).contains(&node.index)) {
        return Err("a model of page faults and TLB misses has the features 1 and 2 only".into());
    }
    Ok(model)
}

struct Svm {
    gate: Gate,
    model: SvmModel,
    agree: u32,
    agreeing: u32,
}

impl Svm {
    fn new(spec: &PolicySpec, mode: Mode, read: ReadFile<'_>) -> Result<Self, SpecError> {
        let (path, text) = spec
            .file("model", read)?
            .unwrap_or_else(|| ("the model that comes with nestwalk", DEFAULT.to_owned()));
        let model = load(&text).map_err(|e| spec.file_error(path, &e))?;
        let gate = Gate::new(mode, spec.whole("skip"), spec.hundredths("load").0);
        Ok(Self { gate, model, agree: spec.whole("agree"), agreeing: 0 })
    }

    fn decide(&mut self, sample: &Sample) -> Result<Decision, Reason> {
        self.gate.admit(sample)?;
        let (best, value) = classify(&self.model, &features(sample)?);
        self.agreeing = if best == self.gate.mode() { 0 } else { self.agreeing + 1 };
        let reason = Reason::Classified { best, value, agreeing: self.agreeing };
        if self.agreeing < self.agree {
            return Ok(Decision::stay(reason));
        }
        self.agreeing = 0;
        self.gate.ask(best);
        Ok(Decision { action: Action::Switch(best), reason })
    }
}

impl Policy for Svm {
    fn sample(&mut self, sample: &Sample) -> Decision {
        self.decide(sample).unwrap_or_else(Decision::stay)
    }

    fn switched(&mut self, outcome: Outcome) {
        self.agreeing = 0;
        self.gate.switched(outcome);
    }

    fn mode(&self) -> Mode {
        self.gate.mode()
    }
}

/// A trained model and how good it is.
#[derive(Clone, Debug)]
pub struct Training {
    /// The model, a LIBSVM text file.
    pub model: String,
    /// Rows that it was trained on, by best mode: shadow, nested.
    pub rows: [usize; 2],
    /// Rows that say nothing and were left out: idle or impossible.
    pub left_out: usize,
    /// Support vectors.
    pub support_vectors: usize,
    /// Rows that the model classifies as they are.
    pub correct: usize,
    /// Every fifth row, classified by a model of the others: how many, and how many rightly.
    pub held_out: [usize; 2],
}

/// Why nothing can be learned.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TrainError {
    /// A row lacks a feature.
    #[error("row {row}: {counter} were not counted, and the model learns from them")]
    NotCounted {
        /// The row, from 1.
        row: usize,
        /// What is missing.
        counter: Counter,
    },
    /// One mode is never best.
    #[error("{0} paging is best in no row: both modes must be best somewhere to learn where")]
    OneClass(Mode),
    /// Too many rows.
    #[error("{0} rows are too many: at most {MOST_ROWS}; leave out every other one")]
    TooMany(usize),
    /// The two runs are not aligned.
    #[error("the runs have {0} and {1} intervals: they must be of the same work, cut alike")]
    Unaligned(usize, usize),
    /// The runs are of the same mode.
    #[error("row {row}: a run in shadow mode and a run in nested mode are needed")]
    Modes {
        /// The row, from 1.
        row: usize,
    },
    /// The library does not accept it.
    #[error("{0}")]
    Library(String),
}

/// Learns from samples and the mode that was best in each.
///
/// # Errors
/// If the samples lack the features, or one mode is never best.
pub fn train(rows: &[(Sample, Mode)]) -> Result<Training, TrainError> {
    let mut kept: Vec<([SvmNode; 2], Mode)> = Vec::new();
    for (i, (sample, best)) in rows.iter().enumerate() {
        match sample
            .check()
            .map_err(|error| Reason::Unusable { error })
            .and_then(|()| features(sample))
        {
            Ok(features) => kept.push((features, *best)),
            Err(Reason::NotCounted { counter }) => {
                return Err(TrainError::NotCounted { row: i + 1, counter });
            }
            Err(_) => {}
        }
    }
    if kept.len() > MOST_ROWS {
        return Err(TrainError::TooMany(kept.len()));
    }
    let count = |mode| kept.iter().filter(|r| r.1 == mode).count();
    let model = fit(kept.iter())?;
    let right = |model: &SvmModel, row: &([SvmNode; 2], Mode)| classify(model, &row.0).0 == row.1;
    let held: Vec<_> = kept.iter().skip(4).step_by(5).collect();
    let others = kept.iter().enumerate().filter(|(i, _)| i % 5 != 4).map(|(_, row)| row);
    let held_right = match fit(others) {
        Ok(model) => held.iter().filter(|row| right(&model, row)).count(),
        Err(_) => 0,
    };
    let mut text = Vec::new();
    save_model_to_writer(&mut text, &model).map_err(|e| TrainError::Library(e.to_string()))?;
    Ok(Training {
        model: String::from_utf8_lossy(&text).into_owned(),
        rows: [count(Mode::Shadow), count(Mode::Nested)],
        left_out: rows.len() - kept.len(),
        support_vectors: model.sv.len(),
        correct: kept.iter().filter(|row| right(&model, row)).count(),
        held_out: [held.len(), held_right],
    })
}

fn fit<'a>(rows: impl Iterator<Item = &'a ([SvmNode; 2], Mode)>) -> Result<SvmModel, TrainError> {
    let mut problem = SvmProblem { labels: Vec::new(), instances: Vec::new() };
    for (features, best) in rows {
        problem.labels.push(if *best == Mode::Shadow { SHADOW } else { NESTED });
        problem.instances.push(features.to_vec());
    }
    for (mode, label) in [(Mode::Shadow, SHADOW), (Mode::Nested, NESTED)] {
        if !problem.labels.iter().any(|l| (l - label).abs() < 0.5) {
            return Err(TrainError::OneClass(mode));
        }
    }
    // LIBSVM's defaults but for the width of the kernel: features lie in 0..1, and a standard
    // deviation of a quarter (gamma = 1 / (2 * 0.25 * 0.25)) still follows a curved border.
    let parameters = SvmParameter { gamma: 8.0, ..SvmParameter::default() };
    libsvm_rs::check_parameter(&problem, &parameters)
        .map_err(|e| TrainError::Library(e.to_string()))?;
    libsvm_rs::set_quiet(true);
    Ok(svm_train(&problem, &parameters))
}

/// Labels intervals by the mode in which they took fewer cycles, from two runs of the same work cut at
/// the same instructions. Both samples of an interval become a row, since a classifier meets either;
/// intervals in which neither mode is 1 % better become none.
///
/// # Errors
/// If the runs do not have the same number of intervals, or not one mode each.
pub fn best_modes(shadow: &[Sample], nested: &[Sample]) -> Result<Vec<(Sample, Mode)>, TrainError> {
    if shadow.len() != nested.len() {
        return Err(TrainError::Unaligned(shadow.len(), nested.len()));
    }
    let mut rows = Vec::with_capacity(2 * shadow.len());
    for (i, (s, n)) in shadow.iter().zip(nested).enumerate() {
        if s.mode != Mode::Shadow || n.mode != Mode::Nested {
            return Err(TrainError::Modes { row: i + 1 });
        }
        let (in_shadow, in_nested) = (s.total_cycles(), n.total_cycles());
        let least = in_shadow.min(in_nested);
        if (in_shadow.max(in_nested) - least) as f64 <= ALIKE * least as f64 {
            continue;
        }
        let best = if in_shadow < in_nested { Mode::Shadow } else { Mode::Nested };
        rows.extend([(*s, best), (*n, best)]);
    }
    Ok(rows)
}
