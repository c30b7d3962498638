//! `pagerank`: PageRank by power iteration over a Kronecker graph.
//!
//! Source: GAP Benchmark Suite, `pr_spmv.cc` (`PageRankPull`): damping .85, at most 20 iterations;
//! each computes `outgoing_contrib[v] = scores[v] / out_degree(v)` and then sums it over the
//! in-neighbours of every vertex. Vertices are 32-bit numbers, scores floats, indices pointers, as
//! in GAP. Two things are added: the scores of vertices without out-edges are spread over all, so
//! that the scores sum to one, and all iterations are done, whatever the change.
//!
//! Real: order, addresses and sizes of all accesses. Implicit: the graph, directed: in-degrees and
//! the shares of out-neighbours follow the Kronecker law (see the notes on that graph) and the
//! labels of the two are permuted independently, so that rows follow each other in memory as in a
//! CSR. No address depends on the scores; they are kept with `verify=1` and must sum to one. The
//! out-neighbours, which the algorithm does not read, are not in memory.
//! The first computation of the contributions is set-up where memory is populated.
//! Instructions: 5 per edge, as gcc 12.2 -O2 compiles the loop.

use crate::data::{Kronecker, log2_floor, permutation_key};
use crate::driver::{About, Driver, Kernel};
use crate::layout::{AddressSpace, Region};
use crate::recorder::{Recorder, Site};
use crate::spec::{Options, Populate, Setting, WorkloadError, WorkloadSpec};
use crate::{REGION, VERIFY, Workload};
use nestwalk_types::{Permutation, Source, mix64};

/// This workload's entry in the list.
pub(crate) const WORKLOAD: Workload = Workload {
    name: "pagerank",
    summary: "PageRank by power iteration over a Kronecker graph in CSR form",
    footprint: 4 << 30,
    settings: &[
        Setting { name: "iterations", summary: "iterations", default: 20, range: (1, 1 << 20) },
        VERIFY,
        REGION,
    ],
    make,
};

const OUT_END: Site = Site::new(0, 3);
const OUT_BEGIN: Site = Site::new(1, 1);
const SCORE_OUT: Site = Site::new(2, 3);
const CONTRIB_STORE: Site = Site::new(3, 4);
const IN_BEGIN: Site = Site::new(4, 3);
const IN_END: Site = Site::new(5, 1);
const NEIGHBOUR: Site = Site::new(6, 3);
const CONTRIB_LOAD: Site = Site::new(7, 2);
const SCORE_LOAD: Site = Site::new(8, 4);
const SCORE_STORE: Site = Site::new(9, 2);

const DAMPING: f64 = 0.85;
/// Edges per vertex at least.
const EDGES: u64 = 16;
/// Bytes per vertex without its row: two indices, score, contribution.
const VERTEX: u64 = 24;
/// GAP's vertices are signed 32-bit numbers.
const SCALE_MAX: u32 = 31;
/// Vertices or edges per step.
const STEP: u64 = 64;

/// Numbers that the addresses do not depend on.
struct Values {
    out_degrees: Vec<u32>,
    scores: Vec<f32>,
    contributions: Vec<f32>,
    /// Sum of the contributions to the vertex whose row is being read.
    incoming: f32,
    /// Score of all vertices without out-edges.
    dangling: f64,
}

enum State {
    /// Computing the contributions from this vertex on.
    Contribute(u64),
    /// In the row of a vertex: next edge, end.
    Row(u64, u64, u64),
}

struct Pagerank {
    graph: Kronecker,
    labels: Permutation,
    in_index: Region,
    in_neighbours: Region,
    out_index: Region,
    scores: Region,
    contributions: Region,
    values: Option<Values>,
    state: State,
    iteration: u64,
    iterations: u64,
}

impl Pagerank {
    fn new(
        (scale, edges): (u32, u64),
        iterations: u64,
        seed: u64,
        verify: bool,
        space: &mut AddressSpace,
    ) -> Self {
        let graph = Kronecker::new(scale, edges, seed);
        let n = graph.vertices();
        let mut this = Self {
            out_index: space.malloc((n + 1) * 8),
            in_index: space.malloc((n + 1) * 8),
            in_neighbours: space.malloc(graph.edges() * 4),
            scores: space.malloc(n * 4),
            contributions: space.malloc(n * 4),
            labels: Permutation::new(scale, permutation_key(mix64(seed))),
            graph,
            values: None,
            state: State::Contribute(0),
            iteration: 0,
            iterations,
        };
        if verify {
            let mut out_degrees = vec![0; n as usize];
            for v in 0..n {
                for e in this.graph.offset(v)..this.graph.offset(v + 1) {
                    out_degrees[this.neighbour(v, e) as usize] += 1;
                }
            }
            this.values = Some(Values {
                out_degrees,
                scores: vec![1.0 / n as f32; n as usize],
                contributions: vec![0.0; n as usize],
                incoming: 0.0,
                dangling: 0.0,
            });
        }
        this
    }

    /// In-neighbour of `v` by edge `edge`.
    #[inline(always)]
    const fn neighbour(&self, v: u64, edge: u64) -> u64 {
        self.labels.apply(self.graph.target(v, edge))
    }

    fn contribute(&mut self, m: &mut Recorder, from: u64) {
        let to = (from + STEP).min(self.graph.vertices());
        for v in from..to {
            m.load(OUT_END, self.out_index.at(v + 1, 8), 8);
            m.load(OUT_BEGIN, self.out_index.at(v, 8), 8);
            m.load(SCORE_OUT, self.scores.at(v, 4), 4);
            m.store(CONTRIB_STORE, self.contributions.at(v, 4), 4);
            if let Some(x) = &mut self.values {
                let (score, degree) = (x.scores[v as usize], x.out_degrees[v as usize]);
                if degree == 0 {
                    x.dangling += f64::from(score);
                }
                x.contributions[v as usize] = score / degree.max(1) as f32;
            }
        }
        if to == self.graph.vertices() {
            self.enter(m, 0);
        } else {
            self.state = State::Contribute(to);
        }
    }

    /// Begins the row of `v`.
    fn enter(&mut self, m: &mut Recorder, v: u64) {
        m.load(IN_BEGIN, self.in_index.at(v, 8), 8);
        m.load(IN_END, self.in_index.at(v + 1, 8), 8);
        self.state = State::Row(v, self.graph.offset(v), self.graph.offset(v + 1));
    }

    /// Ends the row of `v`. `false` if that ends an iteration.
    fn leave(&mut self, m: &mut Recorder, v: u64) -> bool {
        m.load(SCORE_LOAD, self.scores.at(v, 4), 4);
        m.store(SCORE_STORE, self.scores.at(v, 4), 4);
        let n = self.graph.vertices();
        if let Some(x) = &mut self.values {
            let base = (1.0 - DAMPING + DAMPING * x.dangling) / n as f64;
            x.scores[v as usize] = (base + DAMPING * f64::from(x.incoming)) as f32;
            x.incoming = 0.0;
        }
        if v + 1 < n {
            self.enter(m, v + 1);
            return true;
        }
        if let Some(x) = &mut self.values {
            x.dangling = 0.0;
        }
        self.iteration += 1;
        self.state = State::Contribute(0);
        false
    }
}

impl Kernel for Pagerank {
    fn step(&mut self, m: &mut Recorder) -> bool {
        let (v, begin, end) = match self.state {
            State::Row(v, begin, end) => (v, begin, end),
            State::Contribute(from) => {
                self.contribute(m, from);
                return true;
            }
        };
        let stop = end.min(begin + STEP);
        for edge in begin..stop {
            m.load(NEIGHBOUR, self.in_neighbours.at(edge, 4), 4);
            let u = self.neighbour(v, edge);
            m.load(CONTRIB_LOAD, self.contributions.at(u, 4), 4);
            if let Some(x) = &mut self.values {
                x.incoming += x.contributions[u as usize];
            }
        }
        self.state = State::Row(v, stop, end);
        stop < end || self.leave(m, v) || !self.iteration.is_multiple_of(self.iterations)
    }

    fn verify(&self) -> Result<(), String> {
        let Some(x) = &self.values else { return Ok(()) };
        let sum: f64 = x.scores.iter().map(|&s| f64::from(s)).sum();
        // Floats have 24 bits; errors of single scores mostly cancel.
        if (sum - 1.0).abs() < 1e-3 {
            Ok(())
        } else {
            Err(format!("the scores sum to {sum} and should sum to 1"))
        }
    }
}

fn make(spec: &WorkloadSpec, options: &Options) -> Result<Box<dyn Source>, WorkloadError> {
    let scale = log2_floor(spec.footprint / (VERTEX + 4 * EDGES)).min(SCALE_MAX);
    let edges = (spec.footprint - (VERTEX << scale)) / 4;
    let (iterations, verify) = (options.get("iterations"), options.is_set("verify"));
    let mut space = AddressSpace::with_region(options.is_set(REGION.name));
    let mut kernel = Pagerank::new((scale, edges), iterations, spec.seed, verify, &mut space);
    if spec.populate == Populate::Yes {
        let mut set_up = Recorder::new(0);
        while let State::Contribute(_) = kernel.state {
            // Without values the sweep leaves no trace, so that it can be left out.
            match kernel.values {
                Some(_) => _ = kernel.step(&mut set_up),
                None => kernel.enter(&mut set_up, 0),
            }
        }
    }
    let about = About {
        name: WORKLOAD.name,
        description: format!("PageRank, Kronecker graph of scale {scale}, {edges} edges"),
        approximations: &[
            "rows of the graph have their expected length, and labels of rows and of neighbours \
             are permuted independently",
        ],
    };
    Ok(Driver::boxed(about, spec, &space, kernel))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::run_to_end;

    #[test]
    fn scores_are_those_of_a_dense_iteration_and_sum_to_one() {
        let mut k = Pagerank::new((8, 3000), 20, 3, true, &mut AddressSpace::new());
        let n = 256usize;
        let mut matrix = vec![vec![0.0f64; n]; n];
        for v in 0..n as u64 {
            for e in k.graph.offset(v)..k.graph.offset(v + 1) {
                matrix[v as usize][k.neighbour(v, e) as usize] += 1.0;
            }
        }
        // Columns sum to one; a column without edges goes to all.
        for u in 0..n {
            let sum: f64 = matrix.iter().map(|row| row[u]).sum();
            for row in &mut matrix {
                row[u] = if sum > 0.0 { row[u] / sum } else { 1.0 / n as f64 };
            }
        }
        let mut x = vec![1.0 / n as f64; n];
        for _ in 0..20 {
            let dot = |row: &Vec<f64>| row.iter().zip(&x).map(|(a, b)| a * b).sum::<f64>();
            x = matrix.iter().map(|row| 0.15 / n as f64 + 0.85 * dot(row)).collect();
        }
        let accesses = run_to_end(&mut k);
        assert_eq!(accesses, 20 * (8 * 256 + 2 * k.graph.edges()));
        assert_eq!(k.verify(), Ok(()));
        let values = k.values.as_mut().unwrap();
        assert!(values.out_degrees.contains(&0), "the case of dangling vertices is tested");
        for (score, expected) in values.scores.iter().zip(&x) {
            assert!((f64::from(*score) / expected - 1.0).abs() < 1e-5);
        }
        values.scores[0] += 0.01;
        assert!(k.verify().is_err());
    }
}
