//! `svm`: training of a linear support-vector machine on sparse data.
//!
//! Source: LIBLINEAR 2.30, `solve_l2r_l1l2_svc` with L1 loss (`-s 3`), the dual coordinate descent
//! of Hsieh et al. (ICML 2008), C = 1, tolerance 0.1, at most 1000 passes. The data have the shape
//! of kdd2012 (149.6 million rows, 54.7 million features, 11 values a row): rows are arrays of
//! `feature_node` (int index, double value; 16 bytes) ended by index -1.
//!
//! Real: the training with its weights and dual variables, and the order of all its accesses.
//! Implicit: the rows. There are a third as many features as rows, in 11 categories of equal size;
//! a row has one of each, low numbers more often (density x^(-2/3)), all with the value 1/sqrt(11),
//! as kdd2012 is normalised. Labels are the sign of a planted weight vector. Also implicit: the
//! order in which a pass visits the rows, a bijection; the shuffle before each pass makes its
//! accesses but its result is replaced by the bijection. Rows are not shrunk away.
//! The first shuffle is set-up where memory is populated. Instructions: 7 per value in the product
//! and 9 in the update, as gcc 12.2 -O2 compiles the loops.

use crate::Workload;
use crate::data::{Words, hash2, permutation_key, unit};
use crate::driver::{About, Driver, Kernel};
use crate::layout::{AddressSpace, Region};
use crate::recorder::{Recorder, Site};
use crate::spec::{Options, Populate, WorkloadError, WorkloadSpec};
use nestwalk_types::{ShortPermutation, Source, SplitMix64, mix64};

/// This workload's entry in the list.
pub(crate) const WORKLOAD: Workload = Workload {
    name: "svm",
    summary: "linear SVM training on sparse rows by dual coordinate descent (LIBLINEAR)",
    footprint: 4 << 30,
    settings: &[],
    make,
};

/// The call of `rand` takes about 25.
const SHUFFLE_LOAD: [Site; 2] = [Site::new(0, 30), Site::new(1, 6)];
const SHUFFLE_STORE: [Site; 2] = [Site::new(2, 1), Site::new(3, 2)];
const INDEX: Site = Site::new(4, 4);
const ROW: Site = Site::new(5, 1);
const LABEL: Site = Site::new(6, 1);
const FIRST_NODE: Site = Site::new(7, 2);
const DOT_WEIGHT: Site = Site::new(8, 4);
const DOT_VALUE: Site = Site::new(9, 1);
const DOT_NEXT: Site = Site::new(10, 2);
const ALPHA: Site = Site::new(11, 8);
const QD: Site = Site::new(12, 14);
const ALPHA_STORE: Site = Site::new(13, 8);
const AXPY_VALUE: Site = Site::new(14, 3);
const AXPY_NEXT: Site = Site::new(15, 2);
const AXPY_WEIGHT: Site = Site::new(16, 3);
const AXPY_STORE: Site = Site::new(17, 1);

const NODE: u64 = 16;
/// Values per row of kdd2012.
const FIELDS: u64 = 11;
/// Rows are numbered by signed 32-bit numbers.
const ROWS_MAX: u64 = i32::MAX as u64;
/// Upper bound of the dual variables (the parameter C).
const COST: f64 = 1.0;
const TOLERANCE: f64 = 0.1;
const PASSES_MAX: u64 = 1000;
/// Entries to shuffle per step.
const STEP: u64 = 64;

/// Bytes of a row with its pointer, label, dual variable, diagonal entry and place in the order,
/// and a third of a weight.
const fn row_bytes(fields: u64) -> u64 {
    NODE * (fields + 1) + 8 + 1 + 8 + 8 + 4 + 3
}

/// The training set.
struct Rows {
    rows: u64,
    fields: u64,
    features: u64,
    seed: u64,
}

impl Rows {
    /// The feature of a row in a category; ascending in the category.
    #[inline(always)]
    fn feature(&self, row: u64, field: u64) -> u64 {
        let u = unit(hash2(row * self.fields + field, self.seed));
        let size = self.features / self.fields;
        field * size + (u * u * u * size as f64) as u64
    }
    fn value(&self) -> f64 {
        1.0 / (self.fields as f64).sqrt()
    }
    /// 1 or -1: the planted weights are +1 and -1, and the number of categories is odd.
    #[cfg(test)]
    fn label(&self, row: u64) -> f64 {
        let plus = (0..self.fields)
            .filter(|&f| mix64(self.feature(row, f) ^ self.seed) & 1 == 1)
            .count() as u64;
        if 2 * plus > self.fields { 1.0 } else { -1.0 }
    }
}

enum State {
    /// Swapping entry s and a later one.
    Shuffle(u64),
    /// Visiting the s-th row of the pass.
    Visit(u64),
}

struct Svm {
    data: Rows,
    x_space: Region,
    x: Region,
    y: Region,
    qd: Region,
    alpha_at: Region,
    index: Region,
    w_at: Region,
    /// Weights and dual variables, as bits of doubles.
    w: Words,
    alpha: Words,
    order: ShortPermutation,
    random: SplitMix64,
    state: State,
    shuffled: bool,
    pass: u64,
    /// Largest and smallest projected gradient of this pass.
    gradients: (f64, f64),
    seed: u64,
}

const NO_GRADIENTS: (f64, f64) = (f64::NEG_INFINITY, f64::INFINITY);

impl Svm {
    fn new(
        (rows, fields): (u64, u64),
        seed: u64,
        shuffled: bool,
        space: &mut AddressSpace,
    ) -> Self {
        let features = (rows / 3).max(fields);
        Self {
            x_space: space.malloc(rows * (fields + 1) * NODE),
            x: space.malloc(rows * 8),
            y: space.malloc(rows),
            w_at: space.malloc(features * 8),
            qd: space.malloc(rows * 8),
            alpha_at: space.malloc(rows * 8),
            index: space.malloc(rows * 4),
            data: Rows { rows, fields, features, seed: mix64(seed) },
            w: Words::new(features),
            alpha: Words::new(rows),
            order: ShortPermutation::new(rows, permutation_key(seed)),
            random: SplitMix64::new(seed),
            state: if shuffled { State::Visit(0) } else { State::Shuffle(0) },
            shuffled,
            pass: 0,
            gradients: NO_GRADIENTS,
            seed,
        }
    }

    fn weight(&self, feature: u64) -> f64 {
        f64::from_bits(self.w.get(feature))
    }
    fn alpha(&self, row: u64) -> f64 {
        f64::from_bits(self.alpha.get(row))
    }

    fn shuffle(&mut self, m: &mut Recorder, from: u64) {
        let to = (from + STEP).min(self.data.rows);
        for s in from..to {
            let here = self.index.at(s, 4);
            let there = self.index.at(s + self.random.below(self.data.rows - s), 4);
            m.load(SHUFFLE_LOAD[0], here, 4);
            m.load(SHUFFLE_LOAD[1], there, 4);
            m.store(SHUFFLE_STORE[0], here, 4);
            m.store(SHUFFLE_STORE[1], there, 4);
        }
        self.state = if to == self.data.rows { State::Visit(0) } else { State::Shuffle(to) };
    }

    /// The scalar product of a row with the weights, and its label.
    fn dot(&self, m: &mut Recorder, row: u64, first: u64) -> (f64, f64) {
        m.load(LABEL, self.y.at(row, 1), 1);
        let (mut sum, mut plus) = (0.0, 0);
        m.load(FIRST_NODE, first, 4);
        for f in 0..self.data.fields {
            let feature = self.data.feature(row, f);
            m.load(DOT_WEIGHT, self.w_at.at(feature, 8), 8);
            m.load(DOT_VALUE, first + NODE * f + 8, 8);
            m.load(DOT_NEXT, first + NODE * (f + 1), 4);
            sum += self.weight(feature);
            plus += mix64(feature ^ self.data.seed) & 1;
        }
        let label = if 2 * plus > self.data.fields { 1.0 } else { -1.0 };
        (sum * self.data.value(), label)
    }

    /// Minimises over the dual variable of one row.
    fn visit(&mut self, m: &mut Recorder, s: u64) {
        m.load(INDEX, self.index.at(s, 4), 4);
        let row = self.order.apply(s);
        m.load(ROW, self.x.at(row, 8), 8);
        let first = self.x_space.at(row * (self.data.fields + 1), NODE);
        let (product, label) = self.dot(m, row, first);
        let gradient = product * label - 1.0;
        m.load(ALPHA, self.alpha_at.at(row, 8), 8);
        let old = self.alpha(row);
        let projected = if old <= 0.0 {
            gradient.min(0.0)
        } else if old >= COST {
            gradient.max(0.0)
        } else {
            gradient
        };
        self.gradients = (self.gradients.0.max(projected), self.gradients.1.min(projected));
        if projected.abs() <= 1e-12 {
            return;
        }
        // Rows have length one, and L1 loss adds nothing to the diagonal.
        m.load(QD, self.qd.at(row, 8), 8);
        let new = (old - gradient).clamp(0.0, COST);
        m.store(ALPHA_STORE, self.alpha_at.at(row, 8), 8);
        self.alpha.set(row, new.to_bits());
        let step = (new - old) * label * self.data.value();
        for f in 0..self.data.fields {
            let feature = self.data.feature(row, f);
            m.load(AXPY_VALUE, first + NODE * f + 8, 8);
            m.load(AXPY_NEXT, first + NODE * (f + 1), 4);
            m.load(AXPY_WEIGHT, self.w_at.at(feature, 8), 8);
            m.store(AXPY_STORE, self.w_at.at(feature, 8), 8);
            self.w.set(feature, (self.weight(feature) + step).to_bits());
        }
    }

    /// Ends a pass. `false` if the training has ended with it.
    fn end_pass(&mut self) -> bool {
        self.pass += 1;
        self.order =
            ShortPermutation::new(self.data.rows, permutation_key(hash2(self.pass, self.seed)));
        self.state = State::Shuffle(0);
        let (max, min) = std::mem::replace(&mut self.gradients, NO_GRADIENTS);
        max - min > TOLERANCE && !self.pass.is_multiple_of(PASSES_MAX)
    }
}

impl Kernel for Svm {
    /// One row.
    fn step(&mut self, m: &mut Recorder) -> bool {
        match self.state {
            State::Shuffle(s) => self.shuffle(m, s),
            State::Visit(s) => {
                if s == 0 && self.pass == 0 && !self.shuffled {
                    // The weights of the training before are forgotten.
                    self.w.clear();
                    self.alpha.clear();
                }
                self.visit(m, s);
                self.state = State::Visit(s + 1);
                if s + 1 == self.data.rows && !self.end_pass() {
                    self.pass = 0;
                    self.shuffled = false;
                    return false;
                }
            }
        }
        true
    }
}

fn make(spec: &WorkloadSpec, _: &Options) -> Result<Box<dyn Source>, WorkloadError> {
    let mut fields = FIELDS;
    while spec.footprint / row_bytes(fields) > ROWS_MAX {
        fields += 2;
    }
    let rows = spec.footprint / row_bytes(fields);
    let mut space = AddressSpace::new();
    let shuffled = spec.populate == Populate::Yes;
    let kernel = Svm::new((rows, fields), spec.seed, shuffled, &mut space);
    let about = About {
        name: WORKLOAD.name,
        description: format!(
            "LIBLINEAR dual coordinate descent, {rows} rows of {fields} values, {} features",
            kernel.data.features
        ),
        approximations: &[
            "the shuffle of the rows makes its accesses, but the order it leaves is another random \
             one; rows are not shrunk away",
        ],
    };
    Ok(Driver::boxed(about, spec, &space, kernel))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trained(rows: u64, passes: u64) -> Svm {
        let mut k = Svm::new((rows, 11), 6, true, &mut AddressSpace::new());
        let mut m = Recorder::new(u64::MAX);
        while k.pass < passes && k.step(&mut m) {}
        k
    }

    #[test]
    fn features_of_a_row_ascend_and_exist() {
        let k = trained(3000, 0);
        for row in 0..3000 {
            let features: Vec<u64> = (0..11).map(|f| k.data.feature(row, f)).collect();
            assert!(features.is_sorted_by(|a, b| a < b));
            assert!(features[10] < k.data.features);
        }
        let plus = (0..3000).filter(|&r| k.data.label(r) > 0.0).count();
        assert!((500..2500).contains(&plus), "both classes: {plus}");
    }

    #[test]
    fn training_learns_the_planted_labels_and_keeps_its_invariant() {
        let k = trained(4000, 12);
        assert!(k.pass == 12 || k.pass == 0);
        let mut w = vec![0.0; k.data.features as usize];
        for row in 0..4000 {
            let alpha = k.alpha(row);
            assert!((0.0..=COST).contains(&alpha));
            for f in 0..11 {
                w[k.data.feature(row, f) as usize] += alpha * k.data.label(row) * k.data.value();
            }
        }
        // The primal solution is the combination of rows that the dual variables say.
        for (feature, expected) in w.iter().enumerate() {
            assert!((k.weight(feature as u64) - expected).abs() < 1e-9);
        }
        let right = (0..4000)
            .filter(|&row| {
                let score: f64 = (0..11).map(|f| w[k.data.feature(row, f) as usize]).sum();
                score * k.data.label(row) > 0.0
            })
            .count();
        // With C = 1 some rows stay inside the margin; the larger class alone is below 3/4.
        assert!(right > 3700, "{right} of 4000");
        let plus = (0..4000).filter(|&r| k.data.label(r) > 0.0).count();
        assert!(plus.max(4000 - plus) < 3000);
    }

    #[test]
    fn accesses_of_the_first_pass_are_counted_by_rows() {
        // In the first pass every gradient of a row whose variable is 0 and score below 1 counts.
        let mut k = Svm::new((500, 11), 1, false, &mut AddressSpace::new());
        let mut m = Recorder::new(u64::MAX);
        while k.pass < 1 {
            k.step(&mut m);
        }
        let updated = (0..500).filter(|&r| k.alpha(r) > 0.0).count() as u64;
        assert_eq!(m.recorded(), 500 * 4 + 500 * (4 + 33 + 1) + updated * (2 + 44));
    }
}
