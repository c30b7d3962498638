//! Maps and sets in the order of numbers.
//!
//! The tree of `std` is compiled anew for each type of key and value, which takes longer than most of
//! what uses it. Here the tree is one, of numbers, whatever the values.

use std::collections::btree_map::{BTreeMap, Entry, Range as TreeRange};
use std::ops::{Bound, RangeBounds};

/// Numbers, and for each where its value is.
#[derive(Default, Debug)]
struct Tree(BTreeMap<u64, usize>);

impl Clone for Tree {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

type Bounds = (Bound<u64>, Bound<u64>);

// None of this is generic: it is compiled here.
impl Tree {
    fn get(&self, number: u64) -> Option<usize> {
        self.0.get(&number).copied()
    }
    /// Where the number was before.
    fn set(&mut self, number: u64, at: usize) -> Option<usize> {
        self.0.insert(number, at)
    }
    /// Where the number is, or else `at`, where it is from now on; and whether it is new.
    fn get_or_set(&mut self, number: u64, at: usize) -> (usize, bool) {
        match self.0.entry(number) {
            Entry::Occupied(old) => (*old.get(), false),
            Entry::Vacant(new) => (*new.insert(at), true),
        }
    }
    fn remove(&mut self, number: u64) -> Option<usize> {
        self.0.remove(&number)
    }
    fn range(&self, bounds: Bounds) -> Numbers<'_> {
        if is_nothing(bounds) {
            Numbers(TreeRange::default())
        } else {
            Numbers(self.0.range(bounds))
        }
    }
    fn up_to(&self, number: u64) -> Option<(u64, usize)> {
        self.0.range(..=number).next_back().map(|(n, at)| (*n, *at))
    }
    fn from(&self, number: u64) -> Option<(u64, usize)> {
        self.0.range(number..).next().map(|(n, at)| (*n, *at))
    }
}

/// The tree of `std` refuses ranges that end before they begin.
fn is_nothing(bounds: Bounds) -> bool {
    match bounds {
        (Bound::Included(from), Bound::Excluded(to)) => from >= to,
        (Bound::Included(from), Bound::Included(to)) => from > to,
        (Bound::Excluded(from), Bound::Excluded(to) | Bound::Included(to)) => from >= to,
        _ => false,
    }
}

struct Numbers<'a>(TreeRange<'a, u64, usize>);

impl Iterator for Numbers<'_> {
    type Item = (u64, usize);
    #[inline(never)]
    fn next(&mut self) -> Option<(u64, usize)> {
        self.0.next().map(|(number, at)| (*number, *at))
    }
}

impl DoubleEndedIterator for Numbers<'_> {
    #[inline(never)]
    fn next_back(&mut self) -> Option<(u64, usize)> {
        self.0.next_back().map(|(number, at)| (*number, *at))
    }
}

fn owned(range: impl RangeBounds<u64>) -> Bounds {
    (range.start_bound().cloned(), range.end_bound().cloned())
}

/// A map in the order of its numbers.
#[derive(Clone, Debug)]
pub struct ByNumber<V> {
    tree: Tree,
    /// In any order, each with its number.
    values: Vec<(u64, V)>,
}

impl<V> Default for ByNumber<V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<V> ByNumber<V> {
    /// Without numbers.
    pub const fn new() -> Self {
        Self { tree: Tree(BTreeMap::new()), values: Vec::new() }
    }
    /// How many there are.
    pub const fn len(&self) -> usize {
        self.values.len()
    }
    /// There are none.
    pub const fn is_empty(&self) -> bool {
        self.values.is_empty()
    }
    /// Removes all.
    pub fn clear(&mut self) {
        *self = Self::new();
    }

    /// The value of a number.
    pub fn get(&self, number: u64) -> Option<&V> {
        self.at(self.tree.get(number)?)
    }
    /// The value of a number.
    pub fn get_mut(&mut self, number: u64) -> Option<&mut V> {
        let at = self.tree.get(number)?;
        self.values.get_mut(at).map(|v| &mut v.1)
    }
    /// Whether the number has a value.
    pub fn contains(&self, number: u64) -> bool {
        self.tree.get(number).is_some()
    }
    /// The value of a number, which is this one if it had none.
    pub fn get_or_insert(&mut self, number: u64, value: impl FnOnce() -> V) -> &mut V {
        let (at, new) = self.tree.get_or_set(number, self.values.len());
        if new {
            self.values.push((number, value()));
        }
        &mut self.values[at].1
    }
    /// The greatest number that is not greater than this one.
    pub fn up_to(&self, number: u64) -> Option<(u64, &V)> {
        let (number, at) = self.tree.up_to(number)?;
        Some((number, self.at(at)?))
    }
    /// The greatest number that is not greater than this one.
    pub fn up_to_mut(&mut self, number: u64) -> Option<(u64, &mut V)> {
        let (number, at) = self.tree.up_to(number)?;
        Some((number, &mut self.values.get_mut(at)?.1))
    }
    /// The least number that is not less than this one.
    pub fn from(&self, number: u64) -> Option<(u64, &V)> {
        let (number, at) = self.tree.from(number)?;
        Some((number, self.at(at)?))
    }

    /// Gives a number a value; returns the one that it had.
    pub fn insert(&mut self, number: u64, value: V) -> Option<V> {
        let (at, new) = self.tree.get_or_set(number, self.values.len());
        if new {
            self.values.push((number, value));
            return None;
        }
        self.values.get_mut(at).map(|old| std::mem::replace(&mut old.1, value))
    }
    /// Takes a number out; returns its value.
    pub fn remove(&mut self, number: u64) -> Option<V> {
        let at = self.tree.remove(number)?;
        let (_, value) = self.values.swap_remove(at);
        if let Some((moved, _)) = self.values.get(at) {
            self.tree.set(*moved, at);
        }
        Some(value)
    }
    /// Takes those out of which `keep` says so, asked in order.
    pub fn retain(&mut self, mut keep: impl FnMut(u64, &V) -> bool) {
        let out: Vec<u64> = self.iter().filter(|(n, v)| !keep(*n, v)).map(|e| e.0).collect();
        out.into_iter().for_each(|number| drop(self.remove(number)));
    }

    /// All numbers with their values, in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (u64, &V)> {
        self.range(..)
    }
    /// All numbers, in order.
    pub fn numbers(&self) -> impl DoubleEndedIterator<Item = u64> {
        self.tree.range(owned(..)).map(|e| e.0)
    }
    /// All values, in the order of their numbers.
    pub fn values(&self) -> impl DoubleEndedIterator<Item = &V> {
        self.range(..).map(|e| e.1)
    }
    /// Those in a range, which may be one that ends before it begins.
    pub fn range(
        &self,
        range: impl RangeBounds<u64>,
    ) -> impl DoubleEndedIterator<Item = (u64, &V)> {
        let numbers = self.tree.range(owned(range));
        numbers.filter_map(|(number, at)| Some((number, self.at(at)?)))
    }

    fn at(&self, at: usize) -> Option<&V> {
        self.values.get(at).map(|v| &v.1)
    }
}

/// A set of numbers, in order.
#[derive(Clone, Default, Debug)]
pub struct NumberSet(Tree);

impl NumberSet {
    /// Without numbers.
    pub const fn new() -> Self {
        Self(Tree(BTreeMap::new()))
    }
    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.0.len()
    }
    /// There are none.
    pub fn is_empty(&self) -> bool {
        self.0.0.is_empty()
    }
    /// Whether the number is among them.
    pub fn contains(&self, number: u64) -> bool {
        self.0.get(number).is_some()
    }
    /// Puts a number in; whether it is new.
    pub fn insert(&mut self, number: u64) -> bool {
        self.0.set(number, 0).is_none()
    }
    /// Takes a number out; whether it was in.
    pub fn remove(&mut self, number: u64) -> bool {
        self.0.remove(number).is_some()
    }
    /// All, ascending.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = u64> {
        self.range(..)
    }
    /// Those in a range, ascending.
    pub fn range(&self, range: impl RangeBounds<u64>) -> impl DoubleEndedIterator<Item = u64> {
        self.0.range(owned(range)).map(|e| e.0)
    }
}

impl Extend<u64> for NumberSet {
    fn extend<T: IntoIterator<Item = u64>>(&mut self, numbers: T) {
        for number in numbers {
            self.insert(number);
        }
    }
}

impl FromIterator<u64> for NumberSet {
    fn from_iter<T: IntoIterator<Item = u64>>(numbers: T) -> Self {
        let mut set = Self::new();
        set.extend(numbers);
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SplitMix64;

    #[test]
    fn agrees_with_the_map_of_std() {
        let mut random = SplitMix64::new(3);
        let (mut map, mut oracle) = (ByNumber::new(), BTreeMap::new());
        for step in 0..20_000u64 {
            let n = random.below(300);
            match random.below(5) {
                0 | 1 => assert_eq!(map.insert(n, step), oracle.insert(n, step)),
                2 => assert_eq!(map.remove(n), oracle.remove(&n)),
                3 => assert_eq!(map.get_or_insert(n, || step), oracle.entry(n).or_insert(step)),
                _ if step % 50 == 0 => {
                    map.retain(|n, v| (n ^ v) % 3 > 0);
                    oracle.retain(|n, v| (n ^ *v) % 3 > 0);
                }
                _ => {
                    if let Some((at, value)) = map.up_to_mut(n) {
                        *value += 1;
                        *oracle.get_mut(&at).unwrap() += 1;
                    }
                }
            }
            let pair = |e: (&u64, &u64)| (*e.0, *e.1);
            assert_eq!(map.get(n), oracle.get(&n));
            assert_eq!(map.contains(n), oracle.contains_key(&n));
            let (before, after) = (oracle.range(..=n).next_back(), oracle.range(n..).next());
            assert_eq!(map.up_to(n).map(|e| (e.0, *e.1)), before.map(pair));
            assert_eq!(map.from(n).map(|e| (e.0, *e.1)), after.map(pair));
            if step % 100 == 0 {
                let to = n + random.below(100);
                assert!(map.range(n..to).eq(oracle.range(n..to).map(|e| (*e.0, e.1))));
                assert!(map.range(to + 1..n).next().is_none());
                assert!(map.iter().rev().eq(oracle.iter().rev().map(|e| (*e.0, e.1))));
                assert!(map.values().eq(oracle.values()));
                assert!(map.numbers().eq(oracle.keys().copied()));
                let set: NumberSet = map.numbers().collect();
                assert_eq!((set.len(), set.len()), (map.len(), oracle.len()));
                assert!(set.range(n..).eq(oracle.range(n..).map(|e| *e.0)));
            }
        }
        assert!(map.len() > 50);
        map.clear();
        assert!(map.is_empty() && map.iter().next().is_none());
    }
}
