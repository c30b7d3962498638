//! The index: which bits of a page number decide its set.
//!
//! A set's index is taken to be linear over exclusive or. Two groups of as many pages as a set has ways,
//! the second moved by some bits, are twice too many if those bits do not change the set, and fit if
//! they do. So bits are found to be independent, or the exclusive or of others.

use super::Figure;
use super::sets::Set;
use crate::pattern::{Clock, Pattern};
use serde::Serialize;
use std::fmt;

/// For each bit of the set, the bits of the page number whose exclusive or it is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Index {
    /// Lowest first.
    pub xor: Vec<Vec<u32>>,
}

impl Index {
    /// Bits of a set.
    pub fn bits(&self) -> u32 {
        self.xor.len() as u32
    }
    /// The set of a page.
    pub fn set(&self, page: u64) -> u64 {
        let bit = |bits: &Vec<u32>| bits.iter().fold(0, |odd, b| odd ^ page >> b & 1);
        self.xor.iter().enumerate().fold(0, |set, (i, bits)| set | bit(bits) << i)
    }
    /// Whether it is the lowest bits.
    pub fn is_linear(&self) -> bool {
        self.xor.iter().enumerate().all(|(i, bits)| *bits == [i as u32])
    }
    /// Whether it is each of the lowest bits with the one as many places above as there are bits.
    pub fn is_folded(&self) -> bool {
        let n = self.bits();
        self.xor.iter().enumerate().all(|(i, bits)| *bits == [i as u32, i as u32 + n])
    }
}

impl fmt::Display for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.xor.is_empty() {
            f.pad("one set")
        } else if self.is_linear() {
            f.pad("linear")
        } else if self.is_folded() {
            f.pad(&format!("xor-{}", self.bits()))
        } else {
            f.pad(&format!("{:?}", self.xor))
        }
    }
}

/// Finds the index of the level that the set is of. `hits` are nanoseconds of a load that hits the first
/// level, and the second, if the set is of the first.
pub fn find(clock: &mut dyn Clock, set: &Set, hits: Option<(f64, f64)>) -> Figure<Index> {
    let Some(test) = Test::new(clock, set, hits) else {
        return Figure::unknown("twice as many pages as ways take no longer");
    };
    // Bits of page numbers that are bits of the set, and others that are added to each.
    let mut found: Vec<Vec<u32>> = Vec::new();
    for bit in 0..set.stride {
        let moves = combinations(bit, &found);
        let masks: Vec<u64> =
            moves.iter().map(|of| of.iter().fold(1 << bit, |m, b| m | 1 << b)).collect();
        match test.first_alike(clock, &masks) {
            // Moving these bits together changes nothing, so this one moves the set as the others do.
            Some(alike) => {
                for row in found.iter_mut().filter(|row| moves[alike].contains(&row[0])) {
                    row.push(bit);
                }
            }
            None => found.push(vec![bit]),
        }
        if found.len() > 14 {
            return Figure::unknown("no bits are the exclusive or of others: more than 14 bits");
        }
    }
    Figure::known(Index { xor: found }, "which bits, moved together, keep pages in their set")
}

/// None, one or two of the bits found so far.
fn combinations(bit: u32, found: &[Vec<u32>]) -> Vec<Vec<u32>> {
    let bits: Vec<u32> = found.iter().map(|row| row[0]).filter(|b| *b < bit).collect();
    let mut all = vec![Vec::new()];
    all.extend(bits.iter().map(|b| vec![*b]));
    for (i, a) in bits.iter().enumerate() {
        all.extend(bits[i + 1..].iter().map(|b| vec![*a, *b]));
    }
    all
}

/// Whether two groups share a set.
struct Test<'a> {
    set: &'a Set,
    /// Nanoseconds between those of groups apart and those of groups together.
    limit: f64,
}

impl<'a> Test<'a> {
    fn new(clock: &mut dyn Clock, set: &'a Set, hits: Option<(f64, f64)>) -> Option<Self> {
        if let Some((first, second)) = hits {
            // Both groups in the second level or not: above the middle some missed the first.
            return Some(Self { set, limit: (first + second) / 2.0 });
        }
        let ways = set.group();
        // What the filler takes stays in: it is the same for all pairs of groups.
        let patterns = [set.pattern(0..ways), set.pattern(0..2 * ways)];
        let times = set.time(clock, &patterns, 0.0);
        let apart = if set.filler == 0 { times[0] } else { times[0] / 2.0 };
        let together = times[1];
        let limit = (apart + together) / 2.0;
        (together > apart * 1.08).then_some(Self { set, limit })
    }

    fn pattern(&self, mask: u64) -> Pattern {
        let group = (0..self.set.group()).map(|k| k << self.set.stride);
        let both = group.clone().chain(group.map(|page| page ^ mask));
        self.set.shuffled(both.collect())
    }

    /// The first mask that moves pages within their set.
    fn first_alike(&self, clock: &mut dyn Clock, masks: &[u64]) -> Option<usize> {
        let patterns: Vec<_> = masks.iter().map(|m| self.pattern(*m)).collect();
        let times = self.set.time(clock, &patterns, 0.0);
        times.iter().position(|time| *time > self.limit)
    }
}
