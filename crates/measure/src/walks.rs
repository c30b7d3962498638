//! What walks cost: by where the entries of tables are cached, by levels, and side by side.

use crate::estimate::{Figure, Geometry, Index};
use crate::pattern::{Clock, Pattern, Sample};
use crate::real::{Machine, places};
use crate::survey::Effort;
use nestwalk_timing::{Pages, Region, loops};
use serde::Serialize;

/// Time against something, in cycles.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Cost {
    /// Of what: bytes of tables, regions, chains.
    pub of: u64,
    /// Cycles of a load beyond one that hits the second level.
    pub cycles: f64,
}

/// What walks cost.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Walks {
    /// Walks in a random order over so many bytes of leaf entries: the more, the farther away they are
    /// cached.
    pub by_leaf_bytes: Vec<Cost>,
    /// Walks to so many page tables, of 2 MiB each, in turn.
    pub by_tables: Vec<Cost>,
    /// Walks to so many page directories, of 1 GiB each, in turn.
    pub by_directories: Vec<Cost>,
    /// Page tables that walks find without the upper levels.
    pub tables_cached: Figure<u64>,
    /// Page directories that walks find without the levels above.
    pub directories_cached: Figure<u64>,
    /// Cycles of a walk that a guest saves with a page of 2 MiB though its host has smaller ones.
    pub saved_by_large: Figure<f64>,
    /// Whether pages that lie one after the other in memory share entries of the first level.
    pub coalescing: Figure<String>,
    /// Cycles of a load of one of so many chains side by side, per load.
    pub side_by_side: Vec<Cost>,
    /// Walks at a time.
    pub walkers: Figure<u64>,
    /// Share of a walk's cycles that independent loads wait for.
    pub exposed: Figure<f64>,
}

/// Measures walks. `small` is what is known of the TLBs.
pub fn walks(machine: &mut Machine, small: &Geometry, effort: Effort) -> Walks {
    let cycle = machine.cycle_ns();
    let hit = small.load_cycles + small.l2_hit_cycles.get().copied().unwrap_or(0.0);
    let by_leaf_bytes = by_leaf_bytes(machine, hit, effort);
    let level = small.l2.get();
    let (mut by_tables, mut by_directories) = (Vec::new(), Vec::new());
    if let (Some(first), Some(second)) = (small.l1.get(), level)
        && let (Some(a), Some(b)) = (first.index.get(), second.index.get())
    {
        let set = OneSet { indexes: [a, b], ways: first.ways.max(second.ways) };
        by_tables = by_regions(machine, &set, 9, (cycle, hit));
        by_directories = by_regions(machine, &set, 18, (cycle, hit));
    }
    let side_by_side = side_by_side(machine, cycle);
    let (walkers, exposed) = walkers(&side_by_side, hit);
    Walks {
        tables_cached: reach(&by_tables),
        directories_cached: reach(&by_directories),
        saved_by_large: saved_by_large(machine, hit),
        coalescing: coalescing(small, machine),
        by_leaf_bytes,
        by_tables,
        by_directories,
        side_by_side,
        walkers,
        exposed,
    }
}

fn by_leaf_bytes(machine: &Machine, hit: f64, effort: Effort) -> Vec<Cost> {
    let most = if effort == Effort::Quick { 19 } else { 21 };
    let bytes = machine.memory(Pages::Small);
    let cost = |doublings: u32| {
        let pages = 1_u64 << doublings;
        // Few at a time, going on where the last ended: some tenths of a millisecond.
        let loads = 1 << 12;
        let (shift, mut page) = (Pages::Small.shift(), 1);
        // Once through all, which makes the kernel map them.
        loops::scattered(bytes, doublings, shift, &mut page, pages);
        let mut once = || loops::scattered(bytes, doublings, shift, &mut page, loads);
        let times = (0..120).map(|_| loops::nanoseconds(&mut once) / loads as f64).collect();
        let ns = Sample::of(times).ns;
        Cost { of: pages * 8, cycles: (ns / machine.cycle_ns() - hit).max(0.0) }
    };
    (13..=most).map(cost).collect()
}

/// Loads from as many 4 KiB, of small pages and of large ones.
fn saved_by_large(machine: &Machine, hit: f64) -> Figure<f64> {
    let places = places(&Pattern::block(Pages::Small, 1 << 14));
    let [small, large] = [Pages::Small, Pages::Large].map(|pages| {
        let bytes = machine.memory(pages);
        loops::chase(bytes, &places, 2);
        let once = |_| loops::nanoseconds(|| loops::chase(bytes, &places, 1)) / places.len() as f64;
        Sample::of((0..60).map(once).collect()).ns / machine.cycle_ns() - hit
    });
    if large < 3.0 {
        return Figure::unknown("pages of 2 MiB are held whole: there is no walk to compare with");
    }
    let told = format!(
        "walks over 64 MiB take {small:.1} cycles with pages of 4 KiB, and {large:.1} with pieces of 2 MiB"
    );
    Figure::known(small - large, told)
}

/// Half as many pages again as the first level holds, of memory that was stored to in order, so that
/// most frames follow each other: with entries of several pages they fit.
fn coalescing(small: &Geometry, machine: &Machine) -> Figure<String> {
    let (Some(first), Some(hit)) = (small.l1.get(), small.l2_hit_cycles.get()) else {
        return Figure::unknown("the first level is not known");
    };
    let pages = u64::from(first.entries) * 3 / 2;
    let region = Region::reserve(pages << 12, Pages::Large.bytes(), Pages::Small);
    let mut region = match region {
        Ok(region) => region,
        Err(error) => return Figure::unknown(error.to_string()),
    };
    region.bytes_mut().iter_mut().step_by(4096).for_each(|byte| *byte = 0);
    let places = places(&Pattern::block(Pages::Small, pages));
    let run = |rounds| loops::chase(region.bytes(), &places, rounds);
    run(8);
    let once = |_| loops::nanoseconds(|| run(16)) / (16 * places.len()) as f64;
    let cycles = Sample::of((0..100).map(once).collect()).ns / machine.cycle_ns();
    let share = (cycles - small.load_cycles) / hit;
    let told = format!(
        "{pages} pages of memory in order: {:.0} % of the first level's misses are left",
        100.0 * share.clamp(0.0, 1.0)
    );
    if share > 0.7 {
        Figure::known("none seen".into(), told)
    } else if share < 0.3 {
        Figure::known("seen".into(), told)
    } else {
        Figure::unknown(told)
    }
}

/// One set of each level, and the most that either holds.
struct OneSet<'a> {
    indexes: [&'a Index; 2],
    ways: u32,
}

/// Pages of one set of each level, so many that all miss, a few in each region of pages.
fn by_regions(
    clock: &mut dyn Clock,
    set: &OneSet<'_>,
    shift: u32,
    (cycle, hit): (f64, f64),
) -> Vec<Cost> {
    // Within 2 MiB, whatever the region: the same page table.
    let fits = |page: &u64| set.indexes.iter().all(|index| index.set(*page) == 0);
    let near = |region: u64| {
        let first = region << shift;
        (0..512).map(move |k| first + k).filter(fits).take(4).collect::<Vec<u64>>()
    };
    let most = 256;
    let regions: Vec<Vec<u64>> =
        (0..1_u64 << (26 - shift)).map(near).filter(|pages| !pages.is_empty()).take(most).collect();
    let each = regions.first().map_or(1, Vec::len) as u64;
    let least = (2 * u64::from(set.ways)).div_ceil(each);
    let counts: Vec<u64> = (0..24)
        .map(|i| (4.0 * 2_f64.powf(f64::from(i) / 4.0)).round() as u64)
        .filter(|n| *n >= least && *n <= regions.len() as u64)
        .collect();
    let pattern = |n: &u64| Pattern::shuffled(Pages::Small, regions[..*n as usize].concat());
    let patterns: Vec<_> = counts.iter().map(pattern).collect();
    let samples = clock.time(&patterns);
    let cost =
        |(n, sample): (&u64, Sample)| Cost { of: *n, cycles: (sample.ns / cycle - hit).max(0.0) };
    counts.iter().zip(samples).map(cost).collect()
}

/// The last number before the time rises, if it does so in one step.
pub fn reach(costs: &[Cost]) -> Figure<u64> {
    let (Some(first), Some(last)) = (costs.first(), costs.last()) else {
        return Figure::unknown("an index is not known, so walks cannot be had at will");
    };
    let rise = last.cycles - first.cycles;
    if rise < 0.15 * first.cycles || rise < 3.0 {
        let why = format!("walks take {:.0} to {:.0} cycles: no step", first.cycles, last.cycles);
        return Figure::unknown(why);
    }
    let before = |share: f64| {
        let within = costs.iter().take_while(|c| c.cycles < first.cycles + share * rise);
        within.map(|c| c.of).last().unwrap_or(first.of)
    };
    let (early, late) = (before(0.25), before(0.75));
    if early == first.of {
        return Figure::unknown(format!("fewer than {}, or none: the step is before", first.of));
    }
    if late > early * 3 {
        let why = format!("no step, but a slope from {early} to {late}");
        return Figure::unknown(why);
    }
    Figure::known(
        early,
        format!("walks take {:.0} cycles, beyond it {:.0}", first.cycles, last.cycles),
    )
}

/// Chains side by side over pages that all need walks whose entries are near.
fn side_by_side(machine: &Machine, cycle: f64) -> Vec<Cost> {
    let pattern = Pattern::block(Pages::Small, 1 << 14);
    let places = places(&pattern);
    let bytes = machine.memory(Pages::Small);
    let one = |chains: u64| {
        let run = |rounds| match chains {
            1 => loops::side_by_side::<1>(bytes, &places, rounds),
            2 => loops::side_by_side::<2>(bytes, &places, rounds),
            4 => loops::side_by_side::<4>(bytes, &places, rounds),
            8 => loops::side_by_side::<8>(bytes, &places, rounds),
            _ => loops::side_by_side::<16>(bytes, &places, rounds),
        };
        run(1);
        let once = |_| loops::nanoseconds(|| run(1)) / places.len() as f64;
        let ns = Sample::of((0..30).map(once).collect()).ns;
        Cost { of: chains, cycles: ns / cycle }
    };
    [1, 2, 4, 8, 16].map(one).to_vec()
}

/// How many walks are under way at a time: as often as a walk fits into the time from one to the next.
pub fn walkers(side_by_side: &[Cost], hit: f64) -> (Figure<u64>, Figure<f64>) {
    let least = side_by_side.iter().map(|c| c.cycles).fold(f64::INFINITY, f64::min);
    let walk = side_by_side.first().map_or(0.0, |c| c.cycles - hit);
    if walk < 4.0 || !least.is_finite() || least <= 0.0 {
        let why = "walks take too few cycles to be told from hits";
        return (Figure::unknown(why), Figure::unknown(why));
    }
    let ratio = walk / least;
    let told = format!(
        "a chain takes {walk:.1} cycles a walk, and chains side by side {least:.1} from load to load"
    );
    let walkers = if (ratio - ratio.round()).abs() < 0.35 && ratio >= 0.65 {
        Figure::known(ratio.round() as u64, told.clone())
    } else {
        Figure::unknown(format!("{ratio:.1} is between two numbers: {told}"))
    };
    (walkers, Figure::known((1.0 / ratio).min(1.0), told))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn costs(of: &[(u64, f64)]) -> Vec<Cost> {
        of.iter().map(|(of, cycles)| Cost { of: *of, cycles: *cycles }).collect()
    }

    #[test]
    fn a_step_is_found_and_a_slope_is_none() {
        let step = costs(&[(8, 20.0), (16, 20.4), (32, 21.0), (38, 34.0), (45, 35.0), (64, 35.0)]);
        assert_eq!(reach(&step).get(), Some(&32));
        let slope =
            costs(&[(8, 20.0), (16, 22.0), (32, 26.0), (64, 32.0), (128, 38.0), (256, 40.0)]);
        assert!(reach(&slope).why().contains("slope"), "{:?}", reach(&slope));
        let flat = costs(&[(8, 20.0), (256, 21.0)]);
        assert!(reach(&flat).why().contains("no step"));
        let early = costs(&[(8, 20.0), (11, 33.0), (256, 34.0)]);
        assert!(reach(&early).why().contains("fewer than 8"));
    }

    #[test]
    fn walkers_are_how_often_a_walk_fits() {
        let four = costs(&[(1, 53.0), (2, 27.0), (4, 14.0), (8, 10.1), (16, 10.0)]);
        let (walkers, exposed) = walkers(&four, 13.0);
        assert_eq!((walkers.get(), exposed.get()), (Some(&4), Some(&0.25)));
        let (none, _) = super::walkers(&costs(&[(1, 14.0), (2, 7.0)]), 13.0);
        assert_eq!(none.get(), None);
    }
}
