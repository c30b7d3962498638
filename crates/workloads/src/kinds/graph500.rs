//! `graph500`: breadth-first searches in a Kronecker graph.
//!
//! Source: Graph500 reference code 2.1.4, `seq-csr/seq-csr.c` (`make_bfs_tree`) and the generator's
//! initiator .57, .19, .19, .05. Vertices are 64-bit numbers; `xoff` has begin and end of each row,
//! `xadj` the neighbours, `bfs_tree` the parents, `vlist` the queue. 64 roots with at least one
//! edge. The scale is the largest with 16 undirected edges (32 entries of `xadj`) per vertex that
//! fits; `xadj` takes the rest.
//!
//! Real: the search, with the parents and the queue it writes. Implicit: the graph (see
//! the notes on the Kronecker graph): rows have the expected length, edges are directed, and rows
//! lie in the generator's order of vertices while labels are permuted as the specification asks,
//! so that neighbouring labels do not have neighbouring rows. A search visits rows in the order of
//! discovery, to which that makes no difference.
//! Clearing `bfs_tree` before the first search is set-up where memory is populated.
//! Instructions: 7 per edge, as gcc 12.2 -O2 compiles the loop.

use crate::data::{Kronecker, Words, log2_floor, permutation_key};
use crate::driver::{About, Driver, Kernel};
use crate::layout::{AddressSpace, Region};
use crate::recorder::{Recorder, Site};
use crate::spec::{Options, Populate, Setting, WorkloadError, WorkloadSpec};
use crate::{REGION, Workload};
use nestwalk_types::{Permutation, Source, SplitMix64};

/// This workload's entry in the list.
pub(crate) const WORKLOAD: Workload = Workload {
    name: "graph500",
    summary: "breadth-first searches in a Kronecker graph in CSR form",
    footprint: 4 << 30,
    settings: &[
        Setting { name: "roots", summary: "searches", default: 64, range: (1, 1 << 20) },
        REGION,
    ],
    make,
};

const TREE_CLEAR: Site = Site::new(0, 3);
const ROOT_QUEUE: Site = Site::new(1, 8);
const ROOT_TREE: Site = Site::new(2, 1);
const QUEUE_LOAD: Site = Site::new(3, 4);
const ROW_END: Site = Site::new(4, 3);
const ROW_BEGIN: Site = Site::new(5, 1);
const NEIGHBOUR: Site = Site::new(6, 5);
const TREE_LOAD: Site = Site::new(7, 2);
const TREE_STORE: Site = Site::new(8, 2);
const QUEUE_STORE: Site = Site::new(9, 1);

/// Entries of `xadj` per vertex at least.
const ENTRIES: u64 = 32;
/// Bytes per vertex without its row: begin and end, parent, queue.
const VERTEX: u64 = 32;
/// Entries of a row, or words to clear, per step.
const STEP: u64 = 64;

enum State {
    /// Storing -1 to every parent from this vertex on.
    Clear(u64),
    /// Taking the next vertex from the queue.
    Next,
    /// In a row: vertex as labelled and as generated, next entry, end.
    Row(u64, u64, u64, u64),
}

struct Graph500 {
    graph: Kronecker,
    labels: Permutation,
    xoff: Region,
    xadj: Region,
    bfs_tree: Region,
    vlist: Region,
    /// Parent + 1 of each label; 0 if not reached.
    parents: Words,
    /// Labels in order of discovery.
    queue: Vec<u32>,
    taken: usize,
    state: State,
    random: SplitMix64,
    searches: u64,
    roots: u64,
}

impl Graph500 {
    fn new(
        (scale, entries): (u32, u64),
        roots: u64,
        seed: u64,
        cleared: bool,
        space: &mut AddressSpace,
    ) -> Self {
        let graph = Kronecker::new(scale, entries, seed);
        let n = graph.vertices();
        let mut random = SplitMix64::new(seed);
        let mut this = Self {
            xoff: space.malloc(n * 16),
            xadj: space.malloc(graph.edges() * 8),
            bfs_tree: space.malloc(n * 8),
            vlist: space.malloc(n * 8),
            labels: Permutation::new(scale, permutation_key(random.next())),
            graph,
            parents: Words::new(n),
            queue: Vec::new(),
            taken: 0,
            state: State::Clear(0),
            random,
            searches: 0,
            roots,
        };
        if cleared {
            this.state = State::Clear(n);
        }
        this
    }

    fn row(&self, vertex: u64) -> (u64, u64) {
        (self.graph.offset(vertex), self.graph.offset(vertex + 1))
    }

    /// Chooses a root with an edge and begins there.
    fn begin(&mut self, m: &mut Recorder) {
        self.parents.clear();
        self.queue.clear();
        self.taken = 0;
        let root = loop {
            let label = self.random.below(self.graph.vertices());
            let (begin, end) = self.row(self.labels.invert(label));
            if begin < end {
                break label;
            }
        };
        m.store(ROOT_QUEUE, self.vlist.at(0, 8), 8);
        self.queue.push(root as u32);
        m.store(ROOT_TREE, self.bfs_tree.at(root, 8), 8);
        self.parents.set(root, root + 1);
        self.state = State::Next;
    }

    fn clear(&mut self, m: &mut Recorder, from: u64) {
        let to = (from + STEP).min(self.graph.vertices());
        m.store_each(TREE_CLEAR, self.bfs_tree.base + 8 * from, 8, to - from);
        if to == self.graph.vertices() {
            self.begin(m);
        } else {
            self.state = State::Clear(to);
        }
    }

    /// Takes a vertex from the queue. `false` if there is none.
    fn next(&mut self, m: &mut Recorder) -> bool {
        let Some(&label) = self.queue.get(self.taken) else { return false };
        let label = u64::from(label);
        m.load(QUEUE_LOAD, self.vlist.at(self.taken as u64, 8), 8);
        self.taken += 1;
        let row = self.xoff.at(label, 16);
        m.load(ROW_END, row + 8, 8);
        m.load(ROW_BEGIN, row, 8);
        let vertex = self.labels.invert(label);
        let (begin, end) = self.row(vertex);
        self.state = State::Row(label, vertex, begin, end);
        true
    }

    fn edges(&mut self, m: &mut Recorder, label: u64, vertex: u64, begin: u64, end: u64) {
        let stop = end.min(begin + STEP);
        for entry in begin..stop {
            m.load(NEIGHBOUR, self.xadj.at(entry, 8), 8);
            let neighbour = self.labels.apply(self.graph.target(vertex, entry));
            let parent = self.bfs_tree.at(neighbour, 8);
            m.load(TREE_LOAD, parent, 8);
            if self.parents.get(neighbour) == 0 {
                m.store(TREE_STORE, parent, 8);
                self.parents.set(neighbour, label + 1);
                m.store(QUEUE_STORE, self.vlist.at(self.queue.len() as u64, 8), 8);
                self.queue.push(neighbour as u32);
            }
        }
        self.state = if stop == end { State::Next } else { State::Row(label, vertex, stop, end) };
    }
}

impl Kernel for Graph500 {
    fn step(&mut self, m: &mut Recorder) -> bool {
        match self.state {
            State::Clear(from) => self.clear(m, from),
            State::Row(label, vertex, begin, end) => self.edges(m, label, vertex, begin, end),
            State::Next => {
                if !self.next(m) {
                    self.searches += 1;
                    self.state = State::Clear(0);
                    return !self.searches.is_multiple_of(self.roots);
                }
            }
        }
        true
    }
}

fn make(spec: &WorkloadSpec, options: &Options) -> Result<Box<dyn Source>, WorkloadError> {
    let scale = log2_floor(spec.footprint / (VERTEX + 8 * ENTRIES));
    let entries = (spec.footprint - (VERTEX << scale)) / 8;
    let cleared = spec.populate == Populate::Yes;
    let mut space = AddressSpace::with_region(options.is_set(REGION.name));
    let roots = options.get("roots");
    let kernel = Graph500::new((scale, entries), roots, spec.seed, cleared, &mut space);
    let about = About {
        name: WORKLOAD.name,
        description: format!("Kronecker graph of scale {scale}, {entries} directed edges, BFS"),
        approximations: &[
            "rows of the graph have their expected length, edges are directed, and rows lie in \
             the generator's order, not in that of the permuted labels",
        ],
    };
    Ok(Driver::boxed(about, spec, &space, kernel))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The graph as lists, and breadth-first distances by relaxing all edges until nothing changes.
    fn naive_depths(g: &Graph500, root: u64) -> (Vec<Vec<u64>>, Vec<Option<u64>>) {
        let n = g.graph.vertices();
        let lists: Vec<Vec<u64>> = (0..n)
            .map(|label| {
                let v = g.labels.invert(label);
                let row = g.graph.offset(v)..g.graph.offset(v + 1);
                row.map(|e| g.labels.apply(g.graph.target(v, e))).collect()
            })
            .collect();
        let mut depths: Vec<Option<u64>> = vec![None; n as usize];
        depths[root as usize] = Some(0);
        loop {
            let mut changed = false;
            for (v, list) in lists.iter().enumerate() {
                let Some(d) = depths[v] else { continue };
                for &w in list {
                    let there = &mut depths[w as usize];
                    if there.is_none_or(|old| old > d + 1) {
                        *there = Some(d + 1);
                        changed = true;
                    }
                }
            }
            if !changed {
                return (lists, depths);
            }
        }
    }

    #[test]
    fn parents_are_a_valid_tree_with_the_depths_of_a_naive_search() {
        let mut g = Graph500::new((10, 1 << 15), 3, 5, false, &mut AddressSpace::new());
        let mut m = Recorder::new(u64::MAX);
        for search in 1..=3 {
            while g.searches < search {
                g.step(&mut m);
            }
            let root = u64::from(g.queue[0]);
            let (lists, expected) = naive_depths(&g, root);
            let depth = |mut v: u64| {
                let mut depth = 0;
                while v != root {
                    v = g.parents.get(v) - 1;
                    depth += 1;
                    assert!(depth < 1024, "the parents have a cycle");
                }
                depth
            };
            assert!(g.queue.len() > 300, "the root reaches the large component");
            for v in 0..1024 {
                match g.parents.get(v) {
                    0 => assert_eq!(expected[v as usize], None),
                    p => {
                        assert_eq!(expected[v as usize], Some(depth(v)));
                        assert!(v == root || lists[p as usize - 1].contains(&v));
                    }
                }
            }
            assert_eq!(g.queue.len(), expected.iter().flatten().count());
        }
    }

    #[test]
    fn accesses_of_a_search_are_counted_by_its_edges() {
        let mut g = Graph500::new((9, 1 << 13), 1, 2, false, &mut AddressSpace::new());
        let accesses = crate::testing::run_to_end(&mut g);
        let edges: u64 = (g.queue.iter())
            .map(|&label| {
                let (begin, end) = g.row(g.labels.invert(u64::from(label)));
                end - begin
            })
            .sum();
        let found = g.queue.len() as u64;
        // Clear, root, three loads per vertex, two per edge, two stores per discovery.
        assert_eq!(accesses, 512 + 2 + 3 * found + 2 * edges + 2 * (found - 1));
    }
}
