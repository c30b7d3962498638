//! The clock of this machine.

use crate::pattern::{Clock, Pattern, Sample};
use nestwalk_timing::{Pages, Region, loops};
use nestwalk_types::mix64;
use std::io;

/// Pages of a region, as a power of two, and so the highest page number of patterns.
pub const DOUBLINGS: [u32; 2] = [26, 21];
/// Loads that a timing takes at least: some microseconds, between two interrupts.
const LOADS: usize = 2000;
/// Words of a base page, and the pages at which an order begins, round by round.
const WORDS: usize = 512;
const STARTS: usize = 64;
/// Lines of a frame, a different one for neighbouring pages.
const LINES: u64 = 64;

/// This machine, as a clock.
pub struct Machine {
    regions: [Region; 2],
    rounds: u32,
    cycle_ns: f64,
    /// Places of the pattern that is timed, each time in other pages of it: where they use a set that
    /// the pattern fills, they would take a way of it.
    order: Vec<u64>,
    /// Says how many timings were made.
    progress: Box<dyn FnMut(u64)>,
}

impl Machine {
    /// Reserves addresses and finds the length of a cycle. Each pattern is timed `rounds` times.
    ///
    /// # Errors
    /// The kernel has no such addresses.
    pub fn new(rounds: u32, progress: Box<dyn FnMut(u64)>) -> io::Result<Self> {
        let region = |pages: Pages, doublings: u32| {
            let bytes = 1 << (doublings + pages.shift());
            Region::reserve(bytes, bytes, pages)
        };
        let regions = [region(Pages::Small, DOUBLINGS[0])?, region(Pages::Large, DOUBLINGS[1])?];
        Ok(Self { regions, rounds, cycle_ns: cycle_ns(rounds * 4), order: Vec::new(), progress })
    }

    /// A load from each 4 KiB of one page of 2 MiB in turn.
    pub fn pieces(&mut self) -> Sample {
        let pattern = Pattern::block(Pages::Small, 512);
        let bytes = self.regions[Pages::Large as usize].bytes();
        let places = places(&pattern);
        loops::chase(bytes, &places, 10);
        let once = |_| loops::nanoseconds(|| loops::chase(bytes, &places, 4)) / (4.0 * 512.0);
        Sample::of((0..self.rounds * 4).map(once).collect())
    }

    /// The memory of such pages.
    pub fn memory(&self, pages: Pages) -> &[u8] {
        self.regions[pages as usize].bytes()
    }
}

/// Nanoseconds of a cycle.
fn cycle_ns(rounds: u32) -> f64 {
    const STEPS: u32 = 5000;
    let once = |_| loops::nanoseconds(|| loops::four_cycles(STEPS)) / f64::from(4 * STEPS);
    Sample::of((0..rounds).map(once).collect()).ns
}

/// Where the loads of a pattern go, as offsets.
pub fn places(pattern: &Pattern) -> Vec<u64> {
    let line = |page: u64| (mix64(page) % LINES) << 6;
    pattern.pages.iter().map(|page| page << pattern.size.shift() | line(*page)).collect()
}

impl Clock for Machine {
    fn time(&mut self, patterns: &[Pattern]) -> Vec<Sample> {
        let places: Vec<Vec<u64>> = patterns.iter().map(places).collect();
        let mut times = vec![Vec::new(); patterns.len()];
        let longest = places.iter().map(Vec::len).max().unwrap_or(0);
        self.order.resize(self.order.len().max(STARTS * WORDS + longest), 0);
        for round in 0..self.rounds as usize {
            let start = (round * 11 + 3) % STARTS * WORDS;
            for ((pattern, places), times) in patterns.iter().zip(&places).zip(&mut times) {
                let order = &mut self.order[start..start + places.len()];
                order.copy_from_slice(places);
                let places = &*order;
                let bytes = self.regions[pattern.size as usize].bytes();
                let turns = (LOADS / places.len().max(1)).max(4) as u32;
                // The first turns bring translations in, and the first of all the pages themselves.
                loops::chase(bytes, places, 8 + turns / 8);
                let time = loops::nanoseconds(|| loops::chase(bytes, places, turns));
                times.push(time / (f64::from(turns) * places.len().max(1) as f64));
            }
            (self.progress)(patterns.len() as u64);
        }
        times.into_iter().map(Sample::of).collect()
    }

    fn cycle_ns(&self) -> f64 {
        self.cycle_ns
    }
}
