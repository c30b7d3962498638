//! Replacement policies against textbook implementations, and against what was published of processors.

use nestwalk_hw::Replacement;
use nestwalk_hw::assoc::SetAssoc;
use nestwalk_hw::geometry::{Geometry, Indexer};
use nestwalk_types::SplitMix64;
use std::collections::BTreeSet;

/// One set, as a textbook has it.
trait Policy {
    /// A way was used.
    fn used(&mut self, way: usize);
    /// Which way of a full set goes.
    fn victim(&mut self) -> usize;
}

struct Lru(Vec<usize>);
impl Policy for Lru {
    fn used(&mut self, way: usize) {
        self.0.retain(|w| *w != way);
        self.0.push(way);
    }
    fn victim(&mut self) -> usize {
        self.0[0]
    }
}

/// A node knows which of its halves was used last.
enum Tree {
    Leaf(usize),
    Node { left: Box<Tree>, right: Box<Tree>, last_right: bool },
}
impl Tree {
    fn new(ways: std::ops::Range<usize>) -> Self {
        if ways.len() == 1 {
            return Self::Leaf(ways.start);
        }
        let middle = ways.start + ways.len() / 2;
        let (left, right) = (Self::new(ways.start..middle), Self::new(middle..ways.end));
        // As if the right half had been used last: an empty tree fills from the left.
        Self::Node { left: Box::new(left), right: Box::new(right), last_right: true }
    }
    fn holds(&self, way: usize) -> bool {
        match self {
            Self::Leaf(w) => *w == way,
            Self::Node { left, right, .. } => left.holds(way) || right.holds(way),
        }
    }
}
impl Policy for Tree {
    fn used(&mut self, way: usize) {
        if let Self::Node { left, right, last_right } = self {
            *last_right = right.holds(way);
            if *last_right { right.used(way) } else { left.used(way) }
        }
    }
    fn victim(&mut self) -> usize {
        match self {
            Self::Leaf(way) => *way,
            Self::Node { left, right, last_right } => {
                if *last_right {
                    left.victim()
                } else {
                    right.victim()
                }
            }
        }
    }
}

/// Three groups: the next one after the last, or the one used longest ago.
struct Groups {
    trees: Vec<Tree>,
    order: Lru,
    next: bool,
}
impl Groups {
    fn new(ways: usize, next: bool) -> Self {
        let size = ways / 3;
        let trees = (0..3).map(|g| Tree::new(g * size..(g + 1) * size)).collect();
        Self { trees, order: Lru(vec![2, 1, 0]), next }
    }
}
impl Policy for Groups {
    fn used(&mut self, way: usize) {
        let group = self.trees.iter().position(|t| t.holds(way)).unwrap();
        self.trees[group].used(way);
        self.order.used(group);
    }
    fn victim(&mut self) -> usize {
        let last = *self.order.0.last().unwrap();
        let group = if self.next { (last + 1) % 3 } else { self.order.victim() };
        self.trees[group].victim()
    }
}

struct Random(SplitMix64, u64);
impl Policy for Random {
    fn used(&mut self, _: usize) {}
    fn victim(&mut self) -> usize {
        self.0.below(self.1) as usize
    }
}

struct Set {
    ways: Vec<Option<u64>>,
    policy: Box<dyn Policy>,
}
impl Set {
    /// Whether it was there.
    fn access(&mut self, tag: u64) -> bool {
        let found = self.ways.iter().position(|w| *w == Some(tag));
        let free = || self.ways.iter().position(Option::is_none);
        let way = found.or_else(free).unwrap_or_else(|| self.policy.victim());
        self.ways[way] = Some(tag);
        self.policy.used(way);
        found.is_some()
    }
    fn remove(&mut self, tag: u64) -> bool {
        let found = self.ways.iter().position(|w| *w == Some(tag));
        found.inspect(|way| self.ways[*way] = None).is_some()
    }
}

fn textbook(replacement: Replacement, ways: usize) -> Box<dyn Policy> {
    match replacement {
        Replacement::Lru => Box::new(Lru((0..ways).rev().collect())),
        Replacement::TreePlru => Box::new(Tree::new(0..ways)),
        Replacement::NextOf3Plru => Box::new(Groups::new(ways, true)),
        Replacement::LruOf3Plru => Box::new(Groups::new(ways, false)),
        Replacement::Random(seed) => Box::new(Random(SplitMix64::new(seed), ways as u64)),
    }
}

#[test]
fn every_policy_misses_where_a_textbooks_does() {
    let policies = ["lru", "tree-plru", "(mru+1)%3plru", "lru3plru", "random", "random-9"];
    for name in policies {
        let replacement = Replacement::parse(name).unwrap();
        assert_eq!(replacement.to_string(), name);
        let mut tried = 0;
        for ways in 1..=16u32 {
            if replacement.check(ways).is_err() {
                continue;
            }
            tried += 1;
            let geometry = Geometry::new(ways, ways).unwrap();
            let mut subject =
                SetAssoc::<u64, u64, true>::with(geometry, Indexer::new(1), replacement);
            let policy = textbook(replacement, ways as usize);
            let mut oracle = Set { ways: vec![None; ways as usize], policy };
            let mut r = SplitMix64::new(u64::from(ways));
            for _ in 0..20_000 {
                let tag = r.below(2 * u64::from(ways) + 1);
                // LRU keeps empty ways behind the others, which a textbook's list does not; random
                // replacement counts its draws.
                if r.below(40) == 0 && replacement != Replacement::Lru {
                    assert_eq!(subject.remove(0, tag), oracle.remove(tag), "{name} {ways}");
                    continue;
                }
                let hit = subject.look_up(0, tag).copied();
                assert_eq!(hit.is_some(), oracle.access(tag), "{name} of {ways} ways");
                match hit {
                    Some(payload) => assert_eq!(payload, tag * 3),
                    None => subject.fill(0, tag, tag * 3),
                }
            }
        }
        assert!(tried >= 3, "{name}");
    }
}

#[test]
fn random_replacement_of_large_sets_takes_every_way_and_repeats_itself() {
    let geometry = Geometry::new(64, 64).unwrap();
    let array = |seed| {
        let replacement = Replacement::Random(seed);
        let mut array = SetAssoc::<u64, (), true>::with(geometry, Indexer::new(1), replacement);
        let held = |array: &SetAssoc<u64, (), true>| -> BTreeSet<u64> {
            array.iter().map(|entry| entry.0).collect()
        };
        let mut went = Vec::new();
        for tag in 0..4096 {
            let before = held(&array);
            array.fill(0, tag, ());
            went.extend(&before - &held(&array));
        }
        went
    };
    let went = array(1);
    assert_eq!(went, array(1));
    assert_ne!(went, array(2));
    // The first 64 fill empty ways. A page lives for 64 fills on the average, half of them 44 or less.
    assert_eq!(went.len(), 4096 - 64);
    let lives: Vec<u64> = went.iter().zip(64..).map(|(tag, now)| now - tag).collect();
    let mean = lives.iter().sum::<u64>() as f64 / lives.len() as f64;
    assert!((58.0..70.0).contains(&mean), "{mean}");
    let short = lives.iter().filter(|l| **l <= 44).count() as f64 / lives.len() as f64;
    assert!((0.45..0.55).contains(&short), "{short}");
}

#[test]
fn ways_that_a_policy_cannot_have_are_refused() {
    let of = |name: &str, ways| Replacement::parse(name).unwrap().check(ways);
    assert!(of("lru", 96).is_ok() && of("random", 96).is_ok());
    assert_eq!(
        of("tree-plru", 12).unwrap_err(),
        "replacement `tree-plru` of 12 ways: it needs 1, 2, 4, 8 or 16 ways"
    );
    assert!(of("tree-plru", 32).is_err());
    let e = of("(mru+1)%3plru", 16).unwrap_err();
    assert!(e.contains("3, 6 or 12 ways"), "{e}");
    assert!(of("lru3plru", 9).is_err());
    let e = Replacement::parse("fifo").unwrap_err();
    assert!(e.contains("tree-plru") && e.contains("random-SEED"), "{e}");
    assert!(Replacement::parse("random-x").is_err());
}
