//! From times to geometry. Nothing here knows who has the time: this machine, or a simulated one whose
//! geometry is known (`tests/synthetic.rs`).
//!
//! ```text
//! curve        pages in a row, more and more: where the time of a load rises a level is full
//! ways         pages so far apart that they share a set: the same for one set of each level
//! index        two groups of pages of a set, the second moved by some bits: do both share the set?
//! replacement  sequences in one set, whose misses policies differ in
//! ```

mod curve;
mod index;
mod replacement;
mod sets;
mod ways;

pub use curve::{Curve, Point};
pub use index::Index;

use crate::pattern::Clock;
use nestwalk_hw::Replacement;
use nestwalk_timing::Pages;
use serde::Serialize;
use std::fmt;

/// What was found, or why it was not.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(untagged)]
pub enum Figure<T> {
    /// A value and what it follows from.
    Known {
        /// The value.
        value: T,
        /// What it follows from.
        source: String,
    },
    /// It cannot be told.
    Unknown {
        /// Why.
        unknown: String,
    },
}

impl<T> Figure<T> {
    /// A value.
    pub fn known(value: T, source: impl Into<String>) -> Self {
        Self::Known { value, source: source.into() }
    }
    /// None.
    pub fn unknown(why: impl Into<String>) -> Self {
        Self::Unknown { unknown: why.into() }
    }
    /// The value, if it is known.
    pub fn get(&self) -> Option<&T> {
        match self {
            Self::Known { value, .. } => Some(value),
            Self::Unknown { .. } => None,
        }
    }
    /// What it follows from, or why it is unknown.
    pub fn why(&self) -> &str {
        match self {
            Self::Known { source, .. } => source,
            Self::Unknown { unknown } => unknown,
        }
    }
}

impl<T: fmt::Display> fmt::Display for Figure<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known { value, .. } => value.fmt(f),
            Self::Unknown { .. } => f.pad("unknown"),
        }
    }
}

/// One level of TLB, as far as pages of one size use it.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Level {
    /// Entries in all.
    pub entries: u32,
    /// Entries per set.
    pub ways: u32,
    /// How pages are spread over sets.
    pub index: Figure<Index>,
    /// Which way makes room; the name in profiles.
    pub replacement: Figure<String>,
    /// What the entries follow from.
    pub source: String,
}

impl Level {
    /// The policy of replacement, if it is known.
    pub fn policy(&self) -> Option<Replacement> {
        Replacement::parse(self.replacement.get()?).ok()
    }
}

/// Both levels for pages of one size.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Geometry {
    /// The pages.
    pub pages: &'static str,
    /// First level.
    pub l1: Figure<Level>,
    /// Second level.
    pub l2: Figure<Level>,
    /// Cycles of a load whose translation is in the first level.
    pub load_cycles: f64,
    /// Cycles more if it is in the second.
    pub l2_hit_cycles: Figure<f64>,
    /// Cycles more than those if it is in neither, for pages in a row.
    pub walk_cycles: Figure<f64>,
    /// Time against pages in a row.
    pub curve: Curve,
}

/// Both levels' geometry for pages of a size.
pub fn geometry(clock: &mut dyn Clock, size: Pages) -> Geometry {
    let cycle = clock.cycle_ns().max(1e-6);
    let mut curve = Curve::measure(clock, size);
    let times = curve.times();
    let mut found = Geometry {
        pages: size.name(),
        l1: Figure::unknown(times.problem.clone()),
        l2: Figure::unknown(times.problem.clone()),
        load_cycles: times.first / cycle,
        l2_hit_cycles: Figure::unknown(times.problem.clone()),
        walk_cycles: Figure::unknown(times.problem.clone()),
        curve: curve.clone(),
    };
    let Some(second) = times.second else { return found };
    let far = ways::Far::measure(clock, size, times.first, second);
    let first = far.first_level();
    if let Some(ways) = first {
        let set = sets::Set { size, stride: far.stride, ways, filler: 0, members: Vec::new() };
        let l1 = level(clock, set, (times.first, second), None);
        let (full, entries) = (times.first_full, l1.entries);
        found.l1 = Figure::known(with_curve(l1, full), format!("{entries} entries"));
    }
    found.l2_hit_cycles = Figure::known(
        (second - times.first) / cycle,
        "pages in a row: loads beyond the first level less loads within it",
    );
    let Some(third) = times.third else {
        let why = "pages in a row take no longer, however many: no second level of its own";
        found.l2 = Figure::unknown(why);
        found.walk_cycles = found.l2_hit_cycles;
        found.l2_hit_cycles = Figure::unknown(why);
        curve.ns_to_cycles(cycle);
        found.curve = curve;
        return found;
    };
    found.walk_cycles = Figure::known(
        (third - second) / cycle,
        "pages in a row: loads beyond the second level less loads within it",
    );
    found.l2 = second_level(clock, size, &far, &found, &times);
    curve.ns_to_cycles(cycle);
    found.curve = curve;
    found
}

fn second_level(
    clock: &mut dyn Clock,
    size: Pages,
    far: &ways::Far,
    found: &Geometry,
    times: &curve::Times,
) -> Figure<Level> {
    let (Some(l1), Some(second)) = (found.l1.get(), times.second) else {
        return Figure::unknown("the first level is not known, which hides the second");
    };
    // Where pages of one set do not leave the first level, others make them.
    let filler = if l1.ways >= ways::NARROW { l1.entries * 2 } else { 0 };
    let Some((ways, stride)) = ways::second_level(clock, far, size, second, filler) else {
        return Figure::unknown("pages far apart show no number of ways");
    };
    let set = sets::Set { size, stride, ways, filler, members: Vec::new() };
    let l2 = level(clock, set, (times.first, second), Some(l1));
    let entries = l2.entries;
    Figure::known(with_curve(l2, times.second_full), format!("{entries} entries"))
}

/// A level whose ways are known, and where the times of hits in it and before it lie.
fn level(clock: &mut dyn Clock, mut set: sets::Set, hits: (f64, f64), l1: Option<&Level>) -> Level {
    let index = index::find(clock, &set, l1.is_none().then_some(hits));
    let (sets, source) = match index.get() {
        Some(index) => (1 << index.bits(), "pages far apart, and which bits keep them apart"),
        None => (1, "one set: the index is not known"),
    };
    let replacement = match (index.get(), l1) {
        (Some(index), None) => {
            // Near each other in the first level's set, so that they are spread over the second level's.
            let pages = (8 * u64::from(set.ways)) << index.bits();
            set.members = (0..pages).filter(|page| index.set(*page) == 0).collect();
            let wash = replacement::Wash { pages: Vec::new(), between: 0 };
            replacement::repeated(clock, &set, hits, &wash)
        }
        (Some(index), Some(l1)) => match l1.index.get() {
            Some(first) => {
                let others = (1..1 << 16).filter(|p| first.set(*p) == 0 && index.set(*p) != 0);
                // How often a set is filled until nothing older is left in it.
                let times = match l1.policy() {
                    Some(Replacement::Lru) => 1,
                    Some(Replacement::Random(_)) => 4,
                    _ => 2,
                };
                let between = (times * l1.ways) as usize;
                let wash = replacement::Wash { pages: others.take(3 * between).collect(), between };
                if let Some(ways) = ways::washed(clock, &set, &wash, hits.1) {
                    set.ways = ways;
                }
                replacement::repeated(clock, &set, hits, &wash)
            }
            None => Figure::unknown("the first level's index is not known, which hides it"),
        },
        (None, _) => Figure::unknown("the index is not known"),
    };
    Level {
        entries: set.ways * sets,
        ways: set.ways,
        index,
        replacement,
        source: format!("{sets} sets of {} ways: {source}", set.ways),
    }
}

/// Whether the curve agrees.
fn with_curve(mut level: Level, full: Option<u64>) -> Level {
    if let Some(full) = full {
        let ratio = f64::from(level.entries) / full as f64;
        if !(0.5..2.0).contains(&ratio) {
            let why = "it does not agree with pages in a row, which take longer from";
            level.index = Figure::unknown(format!("{why} {full} on"));
            level.entries = full as u32;
        }
        level.source += &format!("; pages in a row take longer from {full} on");
    }
    level
}
