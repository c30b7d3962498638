//! The physical limit beside each path: how long a loop takes that goes to arrays of the sizes of a
//! machine's structures as often as the path must, on this machine.

use super::Clock;
use anyhow::{Result, anyhow};
use nestwalk_hw::Profile;
use nestwalk_hw::profile::{CacheLevelProfile, TlbProfile};
use nestwalk_sim::measure::limit::{Visits, Way, arrays, visit};
use std::collections::BTreeMap;

/// A path through a machine, of the cases of `bench`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Random loads in 4 GiB.
    Walks,
    /// Random loads in 32 KiB.
    Scattered,
    /// Loads in order through 128 KiB.
    TlbHit,
    /// Loads in order through 4 GiB.
    Stream,
}

impl Kind {
    /// The name of its case.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Walks => "walks",
            Self::Scattered => "scattered",
            Self::TlbHit => "tlb-hit",
            Self::Stream => "stream",
        }
    }
}

/// What the loop does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Limit {
    /// What an access of a path must, on one machine; nanoseconds an access.
    Path(Kind, &'static str),
    /// What the runs of a recording must, on the four machines of its replay; seconds.
    Recording(&'static str),
    /// What populating so many bytes must, of four machines; seconds.
    Populating(u64),
}

/// Bytes of a batch of runs, and words of a run.
const BATCH: u64 = 8192 * 32;
const RUN: u64 = 4;
/// A step of the loop.
const STEP: u64 = 512;
/// Accesses that a path's loop is timed with.
const TIMED: u64 = 4 << 20;

/// Bytes of the structures of a core, a word for each entry.
struct Sizes {
    l1_tlb: u64,
    l2_tlb: u64,
    caches: [u64; 3],
}

impl Sizes {
    fn of(profile: &Profile) -> Self {
        let entries = |t: &[TlbProfile]| t.first().map_or(64, |t| t.entries);
        let lines = |l: &CacheLevelProfile| u64::from(l.kib) * 1024 / 64 * 8;
        let caches = &profile.caches;
        Self {
            l1_tlb: 8 * u64::from(entries(&profile.l1d_tlb)),
            l2_tlb: 8 * u64::from(entries(&profile.l2_tlb)),
            caches: [lines(&caches.l1d), lines(&caches.l2), lines(&caches.llc)],
        }
    }
    /// References that each go to the tags of so many levels.
    fn references(&self, in_512: u64, levels: usize) -> impl Iterator<Item = Visits> {
        let visits = move |bytes| Visits { bytes, in_512, way: Way::Update };
        self.caches.into_iter().take(levels).map(visits)
    }
}

/// What 512 accesses of a path must visit.
fn of_path(path: Kind, machine: &str, profile: &Profile) -> Vec<Visits> {
    let sizes = Sizes::of(profile);
    // A run in so many accesses, and the lines, by the levels of caches that they reach.
    let (runs, lines, levels) = match path {
        Kind::Walks => (STEP, STEP, 3),
        Kind::Scattered => (STEP, STEP, 1),
        Kind::TlbHit => (1, 64, 2),
        Kind::Stream => (1, 64, 3),
    };
    let mut all = vec![Visits { bytes: BATCH, in_512: runs * RUN, way: Way::Next }];
    all.extend(sizes.references(lines, levels));
    if machine == "ideal" {
        return all;
    }
    all.push(Visits { bytes: sizes.l1_tlb, in_512: runs, way: Way::Update });
    if matches!(path, Kind::Scattered | Kind::TlbHit) {
        return all;
    }
    all.push(Visits { bytes: sizes.l2_tlb, in_512: runs, way: Way::Update });
    // Entries of all but the last level are few, and walk caches have them. Nested walks load two last
    // entries more: where the guest's table is, and where the page is.
    let leaves = (4 << 30) / 4096 * 8;
    let tables: &[u64] = match machine {
        "nested" => &[leaves, leaves, leaves / 512],
        _ => &[leaves],
    };
    for bytes in tables {
        all.push(Visits { bytes: *bytes, in_512: runs, way: Way::Load });
        all.extend(sizes.references(runs, levels));
    }
    all
}

/// What 512 runs of a recording must visit: `ideal`, and three machines with TLBs.
fn of_runs(profile: &Profile) -> Vec<Visits> {
    let machines = ["ideal", "native", "shadow", "nested"];
    machines.iter().flat_map(|m| of_path(Kind::Scattered, m, profile)).collect()
}

/// What 512 pages that are populated must visit: the guest's table, each of four machines' copy of it, a
/// shadow of it, and a nested table.
fn of_pages(pages: u64) -> Vec<Visits> {
    vec![Visits { bytes: 8 * pages, in_512: STEP, way: Way::Fill }; 7]
}

/// Million accesses per second of the loops of `nested`, by the names of the paths.
///
/// # Errors
/// A profile is not there, which tests exclude.
pub fn of_paths() -> Result<BTreeMap<&'static str, f64>> {
    let rate = |kind: Kind| Ok((kind.name(), 1e3 / Limit::Path(kind, "nested").measure()?));
    [Kind::TlbHit, Kind::Scattered, Kind::Stream, Kind::Walks].into_iter().map(rate).collect()
}

impl Limit {
    /// How long its loop takes, in the unit of what it is a limit of.
    ///
    /// # Errors
    /// A profile or recording is not there, which tests exclude.
    pub fn measure(self) -> Result<f64> {
        let profile = Profile::load("cascade-lake-6252")?;
        let (visits, count) = match self {
            Self::Path(path, machine) => (of_path(path, machine, &profile), TIMED),
            Self::Recording(name) => {
                let sample =
                    nestwalk_lab::sample(name).ok_or_else(|| anyhow!("no recording {name}"))?;
                let reader = sample.open()?;
                let runs = reader.totals().map_or(0, |t| t.runs);
                (of_runs(&profile), runs)
            }
            Self::Populating(bytes) => (of_pages(bytes / 4096), bytes / 4096),
        };
        let seconds = timed(&visits, count);
        Ok(match self {
            Self::Path(..) => seconds / count as f64 * 1e9,
            Self::Recording(_) | Self::Populating(_) => seconds,
        })
    }
}

/// Seconds of processor time of the loop for so many accesses: as many times more as take a tenth of a
/// second, since the system counts in milliseconds.
fn timed(visits: &[Visits], count: u64) -> f64 {
    const LEAST: f64 = 0.1;
    let mut arrays = arrays(visits);
    let clock = Clock::of_this_thread();
    let mut times = 1;
    loop {
        let before = clock.seconds();
        for _ in 0..times {
            visit(&mut arrays, count);
        }
        let seconds = clock.seconds() - before;
        if seconds >= LEAST || times >= 1 << 20 {
            return seconds / f64::from(times);
        }
        times *= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_walks_visit_two_tables_more_than_native_ones() {
        let profile = Profile::load("cascade-lake-6252").unwrap();
        let sum = |machine: &str, way| -> u64 {
            let of = of_path(Kind::Walks, machine, &profile);
            of.iter().filter(|v| v.way == way).map(|v| v.in_512).sum()
        };
        let loads = ["ideal", "native", "shadow", "nested"].map(|m| sum(m, Way::Load) / STEP);
        assert_eq!(loads, [0, 1, 1, 3]);
        // Data and each entry go to three caches; TLBs are two.
        let updates = ["ideal", "native", "nested"].map(|m| sum(m, Way::Update) / STEP);
        assert_eq!(updates, [3, 8, 14]);
        let bytes = of_path(Kind::Walks, "nested", &profile).iter().map(|v| v.bytes).max();
        assert_eq!(bytes, Some(8 << 20));
    }
}
