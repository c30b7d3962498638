//! Ways: how many pages, so far apart that they share a set, a level holds.
//!
//! Where misses begin is not enough: something else may use a way now and then. So the whole curve of
//! misses is compared with those of sets of any policy.

use super::replacement::{POLICIES, Wash, miss_rate};
use super::sets::Set;
use crate::pattern::{Clock, Pattern};
use nestwalk_hw::Replacement;
use nestwalk_timing::Pages;

/// A first level with as many ways hides the second's, whose sets have as many.
pub const NARROW: u32 = 12;
/// Distances that are tried, as powers of two of pages.
const STRIDES: [&[u32]; 2] = [&[8, 10, 12, 14, 16, 18], &[5, 7, 9, 11, 12, 14]];
/// Most pages of a set.
const MOST: u64 = 132;
/// Sets of more ways are those of fully associative first levels: their curves are steep.
const MOST_OF_POLICIES: u32 = 26;
/// The share of misses that is one; a random victim of 32 ways gives twice as many.
const SHARE: f64 = 0.055;

/// Numbers of pages: each up to 40, then every fourth.
fn counts() -> Vec<u64> {
    (1..=40).chain((44..=MOST).step_by(4)).collect()
}

/// Time against pages of a set, for several distances.
pub struct Far {
    /// The distance at which fewest pages fit into the first level.
    pub stride: u32,
    /// Shares of loads beyond the first level, by [`counts`].
    misses: Vec<f64>,
    /// Nanoseconds, by distance and count.
    times: Vec<(u32, Vec<f64>)>,
}

impl Far {
    /// Times pages far apart.
    pub fn measure(clock: &mut dyn Clock, size: Pages, first: f64, second: f64) -> Self {
        let strides = STRIDES[size as usize];
        let counts = counts();
        let pattern = |s: u32, n: u64| Pattern::shuffled(size, (0..n).map(|k| k << s).collect());
        let of = |s: &u32| counts.iter().map(|n| pattern(*s, *n)).collect::<Vec<_>>();
        let patterns: Vec<_> = strides.iter().flat_map(of).collect();
        let samples = clock.time(&patterns);
        let rows = strides.iter().zip(samples.chunks(counts.len()));
        let times: Vec<(u32, Vec<f64>)> =
            rows.map(|(s, row)| (*s, row.iter().map(|sample| sample.ns).collect())).collect();
        let share = |t: &f64| ((t - first) / (second - first)).clamp(0.0, 1.0);
        let mut all = times.iter().map(|(s, row)| (*s, row.iter().map(share).collect::<Vec<_>>()));
        // The farther of two that are alike: what shares a set there does so for certain.
        let mut best = all.next().unwrap_or_default();
        for other in all {
            if held(&other.1, SHARE) <= held(&best.1, SHARE) {
                best = other;
            }
        }
        Self { stride: best.0, misses: best.1, times }
    }

    /// Ways of the first level.
    pub fn first_level(&self) -> Option<u32> {
        nearest(&self.misses)
    }
}

/// The ways whose misses are nearest, of any policy, about where misses begin.
fn nearest(misses: &[f64]) -> Option<u32> {
    let begin = ways(held(misses, SHARE))?;
    if begin > MOST_OF_POLICIES {
        return Some(begin);
    }
    let counts = counts();
    let far = u64::from(begin) * 2 + 4;
    let square = |ways: u32, policy: Replacement| -> f64 {
        let rows = counts.iter().zip(misses).filter(|(n, _)| **n <= far);
        let row = |(n, seen): (&u64, &f64)| {
            let pages: Vec<u64> = (0..*n).collect();
            let told = if *n <= u64::from(ways) { 0.0 } else { miss_rate(&pages, (ways, policy)) };
            (told - seen.clamp(0.0, 1.0)).powi(2)
        };
        rows.map(row).sum()
    };
    // Powers of two, and three times those, are likelier than what lies a little nearer.
    let usual = |ways: u32| (ways >> ways.trailing_zeros()) <= 3;
    let mut best: Option<(f64, u32)> = None;
    for ways in begin.saturating_sub(1).max(1)..=begin + 3 {
        let policies = POLICIES.iter().filter_map(|name| Replacement::parse(name).ok());
        for policy in policies.filter(|policy| policy.check(ways).is_ok()) {
            let off = square(ways, policy) * if usual(ways) { 1.0 } else { 3.0 };
            if best.is_none_or(|(least, _)| off < least) {
                best = Some((off, ways));
            }
        }
    }
    best.map(|(_, ways)| ways)
}

/// The first count from which on the share of misses is one.
fn held(misses: &[f64], share: f64) -> usize {
    misses.iter().rposition(|m| *m < share).map_or(0, |last| last + 1)
}

/// The count before, if there is one after.
fn ways(first_missing: usize) -> Option<u32> {
    let counts = counts();
    (first_missing > 0 && first_missing < counts.len()).then(|| counts[first_missing - 1] as u32)
}

/// Ways of the second level, and the distance at which they are seen.
pub fn second_level(
    clock: &mut dyn Clock,
    far: &Far,
    size: Pages,
    second: f64,
    filler: u32,
) -> Option<(u32, u32)> {
    let rows = if filler == 0 { far.times.clone() } else { filled(clock, size, second, filler) };
    let mut best: Option<(u32, u32)> = None;
    for (stride, row) in rows {
        // All miss at three times as many pages as any second level has ways.
        let end = &row[row.len() - 8..];
        let all = end.iter().copied().fold(f64::INFINITY, f64::min);
        if all <= second * 1.25 {
            continue;
        }
        let share: Vec<f64> = row.iter().map(|t| (t - second) / (all - second)).collect();
        let Some(ways) = nearest(&share) else { continue };
        if best.is_none_or(|(fewest, _)| ways <= fewest) {
            best = Some((ways, stride));
        }
    }
    best
}

/// Ways of a second level whose index is known, with loads between that empty the first level: pages
/// that stay there would not reach the second, and not be used as they seem.
pub fn washed(clock: &mut dyn Clock, set: &Set, wash: &Wash, second: f64) -> Option<u32> {
    let far = 3 * u64::from(set.ways) + 4;
    let sequences: Vec<Vec<u64>> =
        counts().into_iter().filter(|n| *n <= far).map(|n| (0..n).collect()).collect();
    let times = wash.times(clock, set, &sequences, second);
    let all = times.iter().rev().take(3).copied().fold(f64::INFINITY, f64::min);
    let fit = times.get(..set.ways as usize / 2)?;
    let none = fit.iter().copied().fold(f64::INFINITY, f64::min);
    nearest(&times.iter().map(|t| (t - none) / (all - none)).collect::<Vec<_>>())
}

/// Times of pages far apart with others between.
fn filled(clock: &mut dyn Clock, size: Pages, second: f64, filler: u32) -> Vec<(u32, Vec<f64>)> {
    let counts = counts();
    let row = |stride: &u32| {
        let set = Set { size, stride: *stride, ways: 0, filler, members: Vec::new() };
        let patterns: Vec<_> = counts.iter().map(|n| set.pattern(0..*n)).collect();
        (*stride, set.time(clock, &patterns, second))
    };
    STRIDES[size as usize].iter().map(row).collect()
}
