//! Which way of a full set makes room: the policies that were measured of processors, beside true LRU.
//!
//! The state of a set is one word: its lowest four bits are the way used last, the bits of the trees
//! follow. A bit of a tree points to the half in which the next victim is; using a way turns the bits on
//! its path away from it.
//!
//! ```text
//! tree-plru          a binary tree over all ways: 1, 2, 4, 8 or 16
//! (mru+1)%3plru      three groups with a tree each: 3, 6 or 12 ways; the victim is in the group after
//!                    that of the way used last
//! lru3plru           the same three groups; the victim is in the group used longest ago
//! random             any way alike, from a seed
//! ```
//!
//! The names of the second and third, with the leaves of a tree as a suffix, are TLB;DR's (USENIX
//! Security 2022): (MRU+1)%3PLRU4 is what it measured of Kaby Lake's second-level TLB.

use std::fmt;

/// A replacement policy.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Replacement {
    /// True LRU, of any number of ways.
    #[default]
    Lru,
    /// A binary tree over all ways.
    TreePlru,
    /// Three trees; the victim is in the group after that of the way used last.
    NextOf3Plru,
    /// Three trees; the victim is in the group used longest ago.
    LruOf3Plru,
    /// Any way, from this seed.
    Random(u64),
}

/// Names in profiles.
const NAMES: &str = "lru, tree-plru, (mru+1)%3plru, lru3plru, random or random-SEED";
/// Most ways of a policy other than LRU and random.
const MOST: u32 = 16;
/// First bit of the trees.
const TREES: u32 = 4;
/// Bits of the state from one group's tree to the next.
const GROUP: u32 = 8;
/// First bit of the order of the groups: two bits each, the latest lowest.
const GROUPS: u32 = TREES + 3 * GROUP;

impl Replacement {
    /// The policy of a name.
    ///
    /// # Errors
    /// There is none; the message says which there are.
    pub fn parse(name: &str) -> Result<Self, String> {
        match name {
            "lru" => Ok(Self::Lru),
            "tree-plru" => Ok(Self::TreePlru),
            "(mru+1)%3plru" => Ok(Self::NextOf3Plru),
            "lru3plru" => Ok(Self::LruOf3Plru),
            "random" => Ok(Self::Random(0)),
            _ => name
                .strip_prefix("random-")
                .and_then(|seed| seed.parse().ok())
                .map(Self::Random)
                .ok_or_else(|| format!("replacement `{name}`: use {NAMES}")),
        }
    }

    /// Whether sets of this many ways can have it.
    ///
    /// # Errors
    /// Says how many ways would do.
    pub fn check(self, ways: u32) -> Result<(), String> {
        let (fits, right) = match self {
            Self::Lru | Self::Random(_) => (true, ""),
            Self::TreePlru => (ways.is_power_of_two() && ways <= MOST, "1, 2, 4, 8 or 16 ways"),
            Self::NextOf3Plru | Self::LruOf3Plru => {
                ([3, 6, 12].contains(&ways), "3, 6 or 12 ways: three groups of 1, 2 or 4")
            }
        };
        if fits {
            Ok(())
        } else {
            Err(format!("replacement `{self}` of {ways} ways: it needs {right}"))
        }
    }

    /// The state of a set nothing of which was used.
    pub(crate) const fn fresh(self) -> u64 {
        match self {
            Self::LruOf3Plru => 0b10_01_00 << GROUPS,
            _ => 0,
        }
    }

    /// The state after `way` of `ways` was used.
    pub(crate) fn used(self, state: u64, way: usize, ways: usize) -> u64 {
        let state = state & !15 | way as u64;
        match self {
            Self::Lru | Self::Random(_) => state,
            Self::TreePlru => turn_away(state, TREES, way, ways),
            Self::NextOf3Plru | Self::LruOf3Plru => {
                let leaves = ways / 3;
                let (group, leaf) = (way / leaves, way % leaves);
                let state = turn_away(state, TREES + GROUP * group as u32, leaf, leaves);
                if self == Self::LruOf3Plru { first_of_groups(state, group as u64) } else { state }
            }
        }
    }

    /// The way of a full set that makes room. Not of LRU and random, which have it from elsewhere.
    pub(crate) fn victim(self, state: u64, ways: usize) -> usize {
        let leaves = ways / 3;
        let group = match self {
            Self::NextOf3Plru => ((state & 15) as usize / leaves + 1) % 3,
            Self::LruOf3Plru => (state >> (GROUPS + 4) & 3) as usize,
            _ => return follow(state, TREES, ways),
        };
        group * leaves + follow(state, TREES + GROUP * group as u32, leaves)
    }
}

impl fmt::Display for Replacement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lru => f.write_str("lru"),
            Self::TreePlru => f.write_str("tree-plru"),
            Self::NextOf3Plru => f.write_str("(mru+1)%3plru"),
            Self::LruOf3Plru => f.write_str("lru3plru"),
            Self::Random(0) => f.write_str("random"),
            Self::Random(seed) => write!(f, "random-{seed}"),
        }
    }
}

/// Turns the bits on the path to a leaf away from it. Node `n` of the tree is bit `from + n`, the root
/// 1.
fn turn_away(mut state: u64, from: u32, leaf: usize, leaves: usize) -> u64 {
    let (mut node, mut half) = (1, leaves / 2);
    while half > 0 {
        let right = usize::from(leaf & half != 0);
        state =
            state & !(1 << (from as usize + node)) | (1 - right as u64) << (from as usize + node);
        node = 2 * node + right;
        half /= 2;
    }
    state
}

/// The leaf that the bits point to.
const fn follow(state: u64, from: u32, leaves: usize) -> usize {
    let (mut node, mut half, mut leaf) = (1, leaves / 2, 0);
    while half > 0 {
        let right = (state >> (from as usize + node) & 1) as usize;
        leaf += right * half;
        node = 2 * node + right;
        half /= 2;
    }
    leaf
}

/// The state with a group moved to the front of their order.
const fn first_of_groups(state: u64, group: u64) -> u64 {
    let order = state >> GROUPS & 63;
    let (first, second, third) = (order & 3, order >> 2 & 3, order >> 4);
    let order = if group == first {
        order
    } else if group == second {
        third << 4 | first << 2 | second
    } else {
        second << 4 | first << 2 | third
    };
    state & !(63 << GROUPS) | order << GROUPS
}
