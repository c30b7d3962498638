//! Machines whose geometry is known, as clocks: the estimator must give it back. Their TLBs are the
//! simulator's; loads are timed by counting what missed, and disturbed as on a shared machine.

use nestwalk_hw::geometry::Geometry as Shape;
use nestwalk_hw::profile::TlbProfile;
use nestwalk_hw::{Asid, Tlb, Translation};
use nestwalk_measure::estimate::geometry;
use nestwalk_measure::pattern::{Clock, Pattern, Sample};
use nestwalk_tables::Permissions;
use nestwalk_timing::Pages;
use nestwalk_types::{Gva, Hpa, PageSize, SplitMix64};
use std::collections::BTreeMap;

/// Cycles of a load, of a second-level hit and of a walk, more each.
struct Costs {
    load: f64,
    second: f64,
    walk: f64,
}

struct Synthetic {
    levels: [Vec<TlbProfile>; 2],
    costs: Costs,
    /// Share of a time by which it is off, standard deviation.
    noise: f64,
    random: SplitMix64,
    /// What patterns that are timed again take.
    known: BTreeMap<Vec<u64>, f64>,
}

impl Synthetic {
    /// Cycles of a load without noise.
    fn cycles(&self, pattern: &Pattern) -> f64 {
        let size = PageSize::from_shift(pattern.size.shift() as u8);
        let [mut first, mut second] = self.levels.each_ref().map(|level| Tlb::new(level));
        let turns = (2000 / pattern.pages.len()).max(4);
        let warm = 8 + turns / 8;
        let mut misses = [0_u64; 2];
        let base = 5_u64 << 40;
        for turn in 0..warm + turns {
            for page in &pattern.pages {
                let at = Gva::new(base + (page << size.shift()));
                if first.look_up(at, Asid::new(0, 1)).is_some() {
                    continue;
                }
                let translation =
                    Translation::new(Hpa::new(0), size, Permissions::ALL, true, false);
                let hit = second.look_up(at, Asid::new(0, 1)).is_some();
                if !hit {
                    second.fill(at, Asid::new(0, 1), translation);
                }
                first.fill(at, Asid::new(0, 1), translation);
                if turn >= warm {
                    misses[0] += 1;
                    misses[1] += u64::from(!hit);
                }
            }
        }
        let loads = (turns * pattern.pages.len()) as f64;
        let share = misses.map(|n| n as f64 / loads);
        self.costs.load + share[0] * self.costs.second + share[1] * self.costs.walk
    }

    /// As a shared machine has it: a few per cent up, mostly, and sometimes twice as long.
    fn disturbed(&mut self, cycles: f64) -> f64 {
        let bell: f64 = (0..12).map(|_| self.random.unit()).sum::<f64>() - 6.0;
        let preempted = if self.random.below(8) == 0 { 2.0 } else { 1.0 };
        cycles * (1.0 + self.noise * bell.abs()) * preempted
    }
}

impl Clock for Synthetic {
    fn time(&mut self, patterns: &[Pattern]) -> Vec<Sample> {
        let of = |pattern: &Pattern| {
            let known = self.known.get(&pattern.pages).copied();
            let cycles = known.unwrap_or_else(|| self.cycles(pattern));
            self.known.insert(pattern.pages.clone(), cycles);
            Sample::of((0..16).map(|_| self.disturbed(cycles) * 0.4).collect())
        };
        patterns.iter().map(of).collect()
    }
    fn cycle_ns(&self) -> f64 {
        0.4
    }
}

/// An array for both page sizes: entries, ways, index, replacement.
type Array = (u32, u32, &'static str, &'static str);

fn profile((entries, ways, index, replacement): Array) -> Vec<TlbProfile> {
    let text = format!(
        "sizes = [\"4k\", \"2m\"]\nentries = {entries}\nways = {ways}\nreplacement = \"{replacement}\"\n\
         index = {index}\nsource = \"synthetic\""
    );
    vec![toml::from_str(&text).unwrap()]
}

const L: &str = "\"linear\"";

/// First and second level.
const MACHINES: [(Array, Array); 33] = [
    // Those of built-in profiles.
    ((64, 4, L, "lru"), (1536, 12, L, "lru")),
    ((64, 4, L, "tree-plru"), (1536, 12, "\"xor-7\"", "(mru+1)%3plru")),
    ((64, 4, L, "lru"), (512, 4, L, "lru")),
    ((96, 6, L, "lru"), (2048, 16, L, "lru")),
    ((64, 64, L, "lru"), (2048, 16, L, "lru")),
    ((72, 72, L, "lru"), (3072, 24, L, "lru")),
    ((96, 96, L, "lru"), (4096, 16, L, "lru")),
    // Policies of the first level.
    ((64, 8, L, "tree-plru"), (1536, 12, L, "lru")),
    ((96, 6, L, "lru3plru"), (2048, 16, "\"xor-7\"", "tree-plru")),
    ((96, 6, L, "(mru+1)%3plru"), (2048, 8, "\"xor-8\"", "tree-plru")),
    ((48, 6, L, "lru3plru"), (1024, 8, L, "tree-plru")),
    ((64, 4, L, "random"), (1536, 12, L, "lru")),
    ((48, 3, L, "(mru+1)%3plru"), (768, 12, L, "lru3plru")),
    ((32, 2, L, "lru"), (1024, 4, L, "tree-plru")),
    // Policies of the second.
    ((64, 4, L, "lru"), (1024, 8, L, "random")),
    ((64, 4, L, "lru"), (2048, 16, L, "random")),
    ((64, 4, L, "lru"), (1536, 12, L, "lru3plru")),
    ((64, 4, L, "lru"), (1536, 12, L, "(mru+1)%3plru")),
    ((64, 4, L, "lru"), (1024, 16, L, "tree-plru")),
    ((64, 4, L, "tree-plru"), (1024, 8, L, "tree-plru")),
    ((64, 4, L, "tree-plru"), (2048, 16, "\"xor-7\"", "lru")),
    ((32, 32, L, "lru"), (1024, 8, L, "tree-plru")),
    ((64, 64, L, "lru"), (2048, 16, "\"xor-7\"", "tree-plru")),
    // Index functions of the second.
    ((64, 4, L, "lru"), (512, 8, "\"xor-6\"", "lru")),
    ((64, 4, L, "lru"), (2048, 8, "\"xor-8\"", "lru")),
    (
        (64, 4, L, "lru"),
        (2048, 16, "{ xor = [[0, 9], [1, 10], [2, 11], [3, 7], [4, 8], [5], [6]] }", "lru"),
    ),
    (
        (64, 4, L, "lru"),
        (1024, 8, "{ xor = [[0, 7, 12], [1, 8, 13], [2, 9], [3, 10], [4, 11], [5], [6]] }", "lru"),
    ),
    ((64, 4, L, "lru"), (1536, 12, "{ xor = [[0, 7], [1], [2], [3], [4], [5], [6]] }", "lru")),
    // And of the first.
    ((64, 4, "\"xor-4\"", "lru"), (1536, 12, "\"xor-7\"", "lru")),
    ((96, 6, "\"xor-4\"", "lru3plru"), (2048, 16, "\"xor-7\"", "lru")),
    ((128, 8, "\"xor-4\"", "tree-plru"), (2048, 16, L, "lru")),
    // Sizes.
    ((16, 4, L, "lru"), (256, 4, L, "lru")),
    ((128, 4, L, "lru"), (4096, 8, L, "lru")),
];

fn given_back(machine: usize, noise: f64, size: Pages) -> Result<(), String> {
    let (l1, l2) = MACHINES[machine];
    let costs = Costs { load: 6.0, second: 7.0, walk: 20.0 + machine as f64 };
    let levels = [profile(l1), profile(l2)];
    let mut clock = Synthetic {
        levels,
        costs,
        noise,
        random: SplitMix64::new(machine as u64),
        known: BTreeMap::new(),
    };
    let found = geometry(&mut clock, size);
    for (level, told, array) in [("l1", &found.l1, l1), ("l2", &found.l2, l2)] {
        let Some(told) = told.get() else { return Err(format!("{level}: {told:?}")) };
        let (entries, ways, _, replacement) = array;
        let index = told.index.get().map(|i| i.xor.clone());
        let shape = Shape::new(entries, ways).unwrap();
        let want = wanted_index(array, shape.sets().trailing_zeros());
        // Two ways: all policies but random are one.
        let same = told.replacement.get().is_some_and(|r| r == replacement);
        if (told.entries, told.ways) != (entries, ways) || index.as_ref() != Some(&want) || !same {
            return Err(format!("{level} of {:?}: {told:?}", MACHINES[machine]));
        }
    }
    Ok(())
}

/// The lists of bits, as the estimator writes them.
fn wanted_index((.., index, _): Array, bits: u32) -> Vec<Vec<u32>> {
    if index == L {
        return (0..bits).map(|i| vec![i]).collect();
    }
    if index.contains("\"xor-") {
        return (0..bits).map(|i| vec![i, i + bits]).collect();
    }
    let table: toml::Table = toml::from_str(&format!("index = {index}")).unwrap();
    table["index"]["xor"].clone().try_into().unwrap()
}

/// A quarter of the machines, so that tests run side by side.
fn quarter(which: usize) {
    let mut wrong = Vec::new();
    for machine in (which..MACHINES.len()).step_by(4) {
        if let Err(problem) = given_back(machine, 0.02, Pages::Small) {
            wrong.push(format!("{machine}: {problem}"));
        }
    }
    assert!(wrong.is_empty(), "of {}:\n{}", MACHINES.len(), wrong.join("\n"));
}

#[test]
fn known_geometries_are_given_back() {
    quarter(0);
}

#[test]
fn known_geometries_are_given_back_2() {
    quarter(1);
}

#[test]
fn known_geometries_are_given_back_3() {
    quarter(2);
}

#[test]
fn known_geometries_are_given_back_4() {
    quarter(3);
}
