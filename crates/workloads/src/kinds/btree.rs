//! `btree`: random look-ups in a bulk-loaded B+tree.
//!
//! Source: `tlx::btree_map<uint64_t, uint64_t>` (tlx 0.6, formerly STX B+ Tree): nodes of at most
//! 16 keys, binary search in every node, an equal or smaller key goes left. The layout is that of
//! its structs: an inner node is two 2-byte header words, 16 keys and 17 child pointers (272
//! bytes), a leaf the header, two list pointers and 16 pairs (280 bytes); each is one malloc, so
//! 288 bytes apart; `bulk_load` allocates all leaves from left to right, then each level above.
//!
//! Real: the search, which compares the keys it loads. Implicit: the nodes. The keys are the even
//! numbers 0, 2, 4, ..., so that child ranges and separators have closed forms. Look-ups are
//! uniform over the keys; `absent_percent` of them ask for an odd number, which is not there.
//! Instructions: 8 per key compared and 8 per node, as gcc 12.2 -O2 compiles the search.

use crate::Workload;
use crate::driver::{About, Driver, Kernel};
use crate::layout::{AddressSpace, Region};
use crate::recorder::{Recorder, Site};
use crate::spec::{Options, Setting, WorkloadError, WorkloadSpec};
use nestwalk_types::{Source, SplitMix64};

/// This workload's entry in the list.
pub(crate) const WORKLOAD: Workload = Workload {
    name: "btree",
    summary: "random look-ups in a large B+tree of 16 keys a node",
    footprint: 4 << 30,
    settings: &[Setting {
        name: "absent_percent",
        summary: "look-ups for keys that are not there, percent",
        default: 0,
        range: (0, 100),
    }],
    make,
};

const LEVEL: Site = Site::new(0, 1);
const SLOTS: Site = Site::new(1, 4);
const INNER_KEY: Site = Site::new(2, 8);
const CHILD: Site = Site::new(3, 3);
const LEAF_SLOTS: Site = Site::new(4, 5);
const LEAF_KEY: Site = Site::new(5, 9);
const FOUND_KEY: Site = Site::new(6, 8);
/// Returning, adding the value up, and drawing the next key.
const VALUE: Site = Site::new(7, 18);

/// Keys per leaf and separators per inner node.
const FAN: u64 = 16;
/// Bytes from node to node: 272 or 280 and malloc's header, in units of 16.
const NODE: u64 = 288;
const HEADER_SLOTS: u64 = 2;
const INNER_KEYS: u64 = 8;
const INNER_CHILDREN: u64 = INNER_KEYS + 8 * FAN;
const LEAF_PAIRS: u64 = 24;

/// One level of the tree: how its nodes share the nodes below. As `bulk_load` does, the remainder
/// goes to the last nodes.
#[derive(Clone, Copy, Debug)]
struct Level {
    /// Number in order of allocation of the level's first node.
    first: u64,
    nodes: u64,
    /// Children of each node, and the node from which on there is one more.
    children: u64,
    more_from: u64,
}

impl Level {
    /// Index, in the level below, of the first child of `node`.
    #[inline(always)]
    const fn child(&self, node: u64) -> u64 {
        node * self.children + node.saturating_sub(self.more_from)
    }
}

struct Btree {
    heap: Region,
    /// From the leaves (whose children are pairs) to the root.
    levels: Vec<Level>,
    keys: u64,
    random: SplitMix64,
    absent_percent: u64,
    look_ups: u64,
    /// Sum of the values found, which is what the real program would print.
    sum: u64,
}

/// What key number `rank` is.
#[inline(always)]
const fn key(rank: u64) -> u64 {
    2 * rank
}

/// What is stored under `key`.
#[inline(always)]
const fn value(key: u64) -> u64 {
    key ^ 0x5555_5555
}

impl Btree {
    fn new(nodes_max: u64, seed: u64, absent_percent: u64, space: &mut AddressSpace) -> Self {
        // A full tree has a sixteenth as many inner nodes as leaves, roughly.
        let leaves = (nodes_max * FAN / (FAN + 1)).saturating_sub(8).max(1);
        let keys = leaves * FAN;
        let mut levels = vec![Level { first: 0, nodes: leaves, children: FAN, more_from: leaves }];
        let mut allocated = leaves;
        while let Some(&Level { nodes: below, .. }) = levels.last()
            && below > 1
        {
            let nodes = below.div_ceil(FAN + 1);
            levels.push(Level {
                first: allocated,
                nodes,
                children: below / nodes,
                more_from: nodes - below % nodes,
            });
            allocated += nodes;
        }
        Self {
            heap: space.heap(allocated * NODE),
            levels,
            keys,
            random: SplitMix64::new(seed),
            absent_percent,
            look_ups: 0,
            sum: 0,
        }
    }

    /// Address of a node of `level`.
    #[inline(always)]
    fn address(&self, level: usize, node: u64) -> u64 {
        self.heap.at(self.levels[level].first + node, NODE)
    }

    /// Largest key below `node` of `level`: the last pair of its last leaf.
    #[inline(always)]
    fn separator(&self, level: usize, node: u64) -> u64 {
        let mut end = node + 1;
        for l in self.levels[..=level].iter().rev() {
            end = l.child(end);
        }
        key(end - 1)
    }

    /// First of `slots` keys that is not below `wanted`; a key is loaded from `base` on.
    #[inline(always)]
    fn lower_bound(
        m: &mut Recorder,
        site: Site,
        (base, stride): (u64, u64),
        slots: u64,
        wanted: u64,
        key_at: impl Fn(u64) -> u64,
    ) -> u64 {
        let (mut low, mut high) = (0, slots);
        while low < high {
            let middle = (low + high) / 2;
            m.load(site, base + middle * stride, 8);
            if wanted <= key_at(middle) {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        low
    }

    /// Looks `wanted` up; the value if it is there.
    #[inline]
    fn look_up(&self, m: &mut Recorder, wanted: u64) -> Option<u64> {
        let mut node = 0;
        for level in (1..self.levels.len()).rev() {
            let at = self.address(level, node);
            m.load(LEVEL, at, 2);
            m.load(SLOTS, at + HEADER_SLOTS, 2);
            let first = self.levels[level].child(node);
            let slots = self.levels[level].child(node + 1) - first - 1;
            let keys = (at + INNER_KEYS, 8);
            let slot = Self::lower_bound(m, INNER_KEY, keys, slots, wanted, |s| {
                self.separator(level - 1, first + s)
            });
            m.load(CHILD, at + INNER_CHILDREN + 8 * slot, 8);
            node = first + slot;
        }
        let at = self.address(0, node);
        m.load(LEVEL, at, 2);
        m.load(LEAF_SLOTS, at + HEADER_SLOTS, 2);
        let first = node * FAN;
        let pairs = (at + LEAF_PAIRS, 16);
        let slot = Self::lower_bound(m, LEAF_KEY, pairs, FAN, wanted, |s| key(first + s));
        if slot == FAN {
            return None;
        }
        m.load(FOUND_KEY, at + LEAF_PAIRS + 16 * slot, 8);
        if key(first + slot) != wanted {
            return None;
        }
        m.load(VALUE, at + LEAF_PAIRS + 16 * slot + 8, 8);
        Some(value(key(first + slot)))
    }
}

impl Kernel for Btree {
    /// One look-up.
    fn step(&mut self, m: &mut Recorder) -> bool {
        let present = key(self.random.below(self.keys));
        let absent = self.absent_percent > 0 && self.random.below(100) < self.absent_percent;
        let found = self.look_up(m, present + u64::from(absent));
        self.sum = self.sum.wrapping_add(found.unwrap_or(0));
        self.look_ups += 1;
        !self.look_ups.is_multiple_of(self.keys)
    }
}

fn make(spec: &WorkloadSpec, options: &Options) -> Result<Box<dyn Source>, WorkloadError> {
    let mut space = AddressSpace::new();
    let absent = options.get("absent_percent");
    let kernel = Btree::new(spec.footprint / NODE, spec.seed, absent, &mut space);
    let about = About {
        name: WORKLOAD.name,
        description: format!(
            "B+tree of {} keys in {} levels, {absent} percent of the look-ups for absent keys",
            kernel.keys,
            kernel.levels.len()
        ),
        approximations: &[],
    };
    Ok(Driver::boxed(about, spec, &space, kernel))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    type Nodes = BTreeMap<u64, (Vec<u64>, Vec<u64>)>;

    /// The tree as `bulk_load` builds it, with real nodes: (keys, children) by address.
    fn built(t: &Btree) -> (Nodes, u64) {
        let mut nodes = BTreeMap::new();
        let mut at = t.heap.base;
        // Each node's address and largest key, from left to right.
        let mut row = vec![];
        for leaf in 0..t.keys / FAN {
            let keys: Vec<_> = (0..FAN).map(|s| 2 * (leaf * FAN + s)).collect();
            row.push((at, keys[15]));
            nodes.insert(at, (keys, vec![]));
            at += NODE;
        }
        while row.len() > 1 {
            let parents = row.len().div_ceil(17);
            let (mut above, mut rest) = (vec![], row.as_slice());
            for i in 0..parents {
                let (mine, others) = rest.split_at(rest.len() / (parents - i));
                let separators = mine[..mine.len() - 1].iter().map(|c| c.1).collect();
                nodes.insert(at, (separators, mine.iter().map(|c| c.0).collect()));
                above.push((at, mine.last().unwrap().1));
                at += NODE;
                rest = others;
            }
            row = above;
        }
        (nodes, row[0].0)
    }

    #[test]
    fn nodes_are_those_of_bulk_loading() {
        for nodes in [9, 20, 400, 5000, 90_000] {
            let t = Btree::new(nodes, 1, 0, &mut AddressSpace::new());
            let (oracle, root) = built(&t);
            assert_eq!(t.address(t.levels.len() - 1, 0), root);
            assert_eq!(oracle.len() as u64, t.levels.iter().map(|l| l.nodes).sum::<u64>());
            for (level, l) in t.levels.iter().enumerate().skip(1) {
                for node in 0..l.nodes {
                    let (keys, children) = &oracle[&t.address(level, node)];
                    let first = l.child(node);
                    for (s, &child) in children.iter().enumerate() {
                        assert_eq!(t.address(level - 1, first + s as u64), child);
                    }
                    for (s, &key) in keys.iter().enumerate() {
                        assert_eq!(t.separator(level - 1, first + s as u64), key);
                    }
                    assert_eq!(l.child(node + 1) - first, children.len() as u64);
                    assert!(children.len() <= 17);
                }
            }
        }
    }

    #[test]
    fn exactly_the_keys_are_found() {
        let t = Btree::new(1000, 1, 0, &mut AddressSpace::new());
        let map: BTreeMap<u64, u64> = (0..t.keys).map(|r| (2 * r, (2 * r) ^ 0x5555_5555)).collect();
        let mut m = Recorder::new(u64::MAX);
        for wanted in 0..2 * t.keys + 40 {
            assert_eq!(t.look_up(&mut m, wanted), map.get(&wanted).copied(), "{wanted}");
        }
    }

    #[test]
    fn absent_keys_are_the_percentage_asked_for() {
        let mut t = Btree::new(5000, 1, 30, &mut AddressSpace::new());
        let mut m = Recorder::new(u64::MAX);
        let mut found = 0;
        for _ in 0..20_000 {
            let before = t.sum;
            t.step(&mut m);
            found += u32::from(t.sum != before);
        }
        assert!((13_600..14_400).contains(&found), "{found}");
    }
}
