//! Replacement: sequences of pages in one set, whose misses policies differ in.

use super::Figure;
use super::sets::Set;
use crate::pattern::{Clock, Pattern, Sample};
use nestwalk_hw::Replacement;
use nestwalk_hw::assoc::SetAssoc;
use nestwalk_hw::geometry::{Geometry, Indexer};
use nestwalk_types::SplitMix64;

/// Policies that profiles know.
pub const POLICIES: [&str; 5] = ["lru", "tree-plru", "(mru+1)%3plru", "lru3plru", "random"];
/// Turns that are simulated before misses count, and after.
const TURNS: [usize; 2] = [20, 40];
/// Pages between two, from which on patterns are timed more often.
const LONG: usize = 24;
/// Largest root mean square of differences of miss rates that is agreement, and how much nearer than the
/// next policy the best one must be.
const AGREE: f64 = 0.1;
const NEARER: (f64, f64) = (0.015, 1.4);

/// The policy, if it is found twice.
pub fn repeated(clock: &mut dyn Clock, set: &Set, hits: (f64, f64), wash: &Wash) -> Figure<String> {
    let first = find(clock, set, hits, wash);
    if first.get().is_none() {
        return first;
    }
    let second = find(clock, set, hits, wash);
    match (first.get(), second.get()) {
        (Some(a), Some(b)) if a != b => Figure::unknown(format!("found {a} once, and {b} again")),
        _ => second,
    }
}

/// Finds the policy of the level that the set is of. `hits` are nanoseconds of a load that hits the
/// first level, and the second; `wash` are pages that the first level is emptied with, if the set is of
/// the second.
pub fn find(clock: &mut dyn Clock, set: &Set, hits: (f64, f64), wash: &Wash) -> Figure<String> {
    if set.ways == 1 {
        return Figure::known("lru".into(), "one way: there is no choice");
    }
    let sequences = sequences(set.ways);
    let mut of: Vec<Vec<u64>> = sequences.clone();
    // What every load takes if all hit, and if all miss.
    of.push((0..u64::from(set.ways)).collect());
    of.push((0..4 * u64::from(set.ways)).collect());
    let times = wash.times(clock, set, &of, hits.1);
    let [.., none, all] = times[..] else { return Figure::unknown("nothing was timed") };
    // Misses of the first level hit the second.
    let all = if wash.pages.is_empty() { hits.1 } else { all };
    if all <= none * 1.05 {
        return Figure::unknown("misses take no longer than hits");
    }
    let seen: Vec<f64> =
        times.iter().map(|t| ((t - none) / (all - none)).clamp(0.0, 1.0)).collect();
    nearest(set, &sequences, &seen)
}

/// Pages of one set of the first level and of others of the second, loaded between those of a sequence,
/// so that each of these misses the first level and reaches the second.
pub struct Wash {
    /// The pages, three times as many as come between two; none if it is the first level that is looked
    /// at.
    pub pages: Vec<u64>,
    /// How many of them between two.
    pub between: usize,
}

impl Wash {
    /// Nanoseconds of a load of each sequence, those between taken off, which hit the second level.
    pub fn times(
        &self,
        clock: &mut dyn Clock,
        set: &Set,
        sequences: &[Vec<u64>],
        second: f64,
    ) -> Vec<f64> {
        let pages = |s: &Vec<u64>| s.iter().map(|k| set.page(*k)).collect();
        let patterns: Vec<Pattern> =
            sequences.iter().map(|s| self.between(set, pages(s))).collect();
        let mut samples = clock.time(&patterns);
        // Long patterns hide what is looked for in what lies between.
        for _ in 0..if self.between > LONG { 4 } else { 0 } {
            for (least, sample) in samples.iter_mut().zip(clock.time(&patterns)) {
                least.ns = least.ns.min(sample.ns);
            }
        }
        let time = |((sequence, pattern), sample): ((&Vec<u64>, &Pattern), Sample)| {
            let between = pattern.pages.len() - sequence.len();
            let all = sample.ns * pattern.pages.len() as f64;
            (all - second * between as f64) / sequence.len() as f64
        };
        sequences.iter().zip(&patterns).zip(samples).map(time).collect()
    }

    fn between(&self, set: &Set, sequence: Vec<u64>) -> Pattern {
        let mut pages = Vec::new();
        // Three groups in turn: each page between has been evicted, too, when its turn comes.
        let groups: Vec<&[u64]> = self.pages.chunks_exact(self.between.max(1)).collect();
        for (i, page) in sequence.into_iter().enumerate() {
            pages.push(page);
            pages.extend(groups.get(i % 3).copied().unwrap_or_default());
        }
        Pattern { size: set.size, pages }
    }
}

fn nearest(set: &Set, sequences: &[Vec<u64>], seen: &[f64]) -> Figure<String> {
    let mut fits: Vec<(f64, &str)> = Vec::new();
    for name in POLICIES {
        let Ok(policy) = Replacement::parse(name) else { continue };
        if policy.check(set.ways).is_err() {
            continue;
        }
        let square = |(sequence, seen): (&Vec<u64>, &f64)| {
            (misses(sequence, (set.ways, policy), TURNS) - seen).powi(2)
        };
        let sum: f64 = sequences.iter().zip(seen).map(square).sum();
        fits.push(((sum / sequences.len() as f64).sqrt(), name));
    }
    fits.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (Some(best), next) = (fits.first(), fits.get(1)) else {
        return Figure::unknown("no policy has so many ways");
    };
    let told = format!(
        "{} sequences in one set; rates of misses differ by {:.3} (root mean square)",
        sequences.len(),
        best.0
    );
    // Policies of one behaviour, as any of two ways, have one name.
    match next {
        _ if best.0 > AGREE => Figure::unknown(format!("none fits: best {}, {told}", best.1)),
        Some(next) if next.0 - best.0 > 1e-9 && !nearer(best.0, next.0) => Figure::unknown(
            format!("{} and {} fit alike: {told}, and {:.3}", best.1, next.1, next.0),
        ),
        _ => Figure::known(best.1.into(), told),
    }
}

/// Whether the best of two differences is so clearly.
fn nearer(best: f64, next: f64) -> bool {
    next - best > NEARER.0 && next > best * NEARER.1
}

/// Sequences of pages of a set of so many ways: usual ones, and for each pair of policies the one of
/// many in which they differ most.
fn sequences(ways: u32) -> Vec<Vec<u64>> {
    let n = u64::from(ways);
    let hot = |n: u64| (1..n).flat_map(|k| [0, k]).collect();
    let back = |n: u64| (0..n).chain((1..n - 1).rev()).collect();
    let usual: Vec<Vec<u64>> = vec![
        (0..=n).collect(),
        (0..n + 2).collect(),
        hot(n + 1),
        hot(n + 3),
        back(n + 1),
        back(n + 3),
    ];
    let policies: Vec<Replacement> = POLICIES
        .iter()
        .filter_map(|name| Replacement::parse(name).ok())
        .filter(|policy| policy.check(ways).is_ok())
        .collect();
    let mut random = SplitMix64::new(n);
    let tried = if ways > 26 { 0 } else { TRIED };
    let tried: Vec<Vec<u64>> = (0..tried).map(|i| candidate(&mut random, n, i)).collect();
    let rates = |policy: &Replacement| -> Vec<f64> {
        let rate = |s: &Vec<u64>| misses(s, (ways, *policy), [8, 16]);
        usual.iter().chain(&tried).map(rate).collect()
    };
    let rates: Vec<Vec<f64>> = policies.iter().map(rates).collect();
    let mut chosen: Vec<usize> = (0..usual.len()).collect();
    for (i, a) in rates.iter().enumerate() {
        for b in &rates[i + 1..] {
            let apart = |k: &usize| (a[*k] - b[*k]).abs();
            let most = (0..a.len()).max_by(|k, l| apart(k).total_cmp(&apart(l)));
            chosen.extend(most.filter(|k| !chosen.contains(k)));
        }
    }
    let mut all = usual;
    all.extend(tried);
    chosen.into_iter().filter_map(|k| all.get(k).cloned()).collect()
}

/// Sequences that are tried.
const TRIED: u64 = 60;

/// A random sequence: few more pages than ways, some of them often.
fn candidate(random: &mut SplitMix64, ways: u64, i: u64) -> Vec<u64> {
    let pages = ways + 1 + i % 3;
    let often = 1 + random.below(ways);
    let length = ways + 2 + random.below(2 * ways + 2);
    (0..length)
        .map(|_| if random.below(3) < i % 3 { random.below(often) } else { random.below(pages) })
        .collect()
}

/// The share of loads that miss in a set.
pub fn miss_rate(sequence: &[u64], set: (u32, Replacement)) -> f64 {
    misses(sequence, set, TURNS)
}

/// The same of so many turns, after others.
fn misses(sequence: &[u64], (ways, policy): (u32, Replacement), turns: [usize; 2]) -> f64 {
    let shape = Geometry { entries: ways, ways };
    let mut set = SetAssoc::<u64, u64, true>::with(shape, Indexer::new(1), policy);
    let mut misses = 0_u64;
    for turn in 0..turns[0] + turns[1] {
        for page in sequence {
            if set.look_up(0, *page).is_none() {
                set.put(0, *page, 0);
                misses += u64::from(turn >= turns[0]);
            }
        }
    }
    misses as f64 / (turns[1] * sequence.len()).max(1) as f64
}
