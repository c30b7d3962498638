//! From samples of a process to stand-ins for its accesses.

use super::standin::{Area, Order, StandIn};
use nestwalk_host::{PAGE_BYTES, Sampling, Snapshot, Window};
use nestwalk_types::mix64;

/// Pages that a stand-in has at most: 16 GiB.
const MOST_PAGES: u64 = 4 << 20;
/// Pages of a large one.
const BLOCK: u64 = 512;
/// The end of the addresses of programs with 4-level tables.
const END: u64 = 1 << 47;

/// What is known of the process, as stand-ins take it.
pub struct Model {
    /// Pages that are there: first page and how many, ascending.
    present: Vec<(u64, u64)>,
    /// What is used of them in the longest window.
    areas: Vec<Area>,
    /// Of so many blocks of 2 MiB one is kept.
    pub one_of: u64,
    /// Instructions for a visit of a page, at most.
    pub instructions_per_page: u64,
    /// Pages that were used in the longest window, before blocks were left out.
    pub used: u64,
    /// What was used of the memory that it is about.
    pub windows: Vec<Window>,
}

/// Runs of pages that are there. If pagemap does not tell, the first of each mapping, as many as smaps
/// says.
fn present(snapshot: &Snapshot) -> Vec<(u64, u64)> {
    let programs = |start: u64| start < END;
    if !snapshot.runs.is_empty() {
        let runs = snapshot.runs.iter().filter(|r| programs(r.from * PAGE_BYTES));
        let mut all: Vec<(u64, u64)> = Vec::new();
        for run in runs {
            match all.last_mut().filter(|(first, pages)| first + pages == run.from) {
                Some((_, pages)) => *pages += run.pages,
                None => all.push((run.from, run.pages)),
            }
        }
        return all;
    }
    let regions = snapshot.regions.iter().filter(|r| programs(r.start) && r.resident() > 0);
    regions
        .map(|r| (r.start / PAGE_BYTES, (r.resident().min(r.bytes()) / PAGE_BYTES).max(1)))
        .collect()
}

/// The parts of runs within some pages.
fn within(runs: &[(u64, u64)], from: u64, to: u64) -> Vec<(u64, u64)> {
    let at = runs.partition_point(|(first, pages)| first + pages <= from);
    runs[at..]
        .iter()
        .take_while(|(first, _)| *first < to)
        .map(|(first, pages)| {
            let start = (*first).max(from);
            (start, (first + pages).min(to) - start)
        })
        .collect()
}

/// The parts of runs that are in blocks that are kept.
fn thinned(runs: &[(u64, u64)], one_of: u64) -> Vec<(u64, u64)> {
    if one_of == 1 {
        return runs.to_vec();
    }
    let mut kept: Vec<(u64, u64)> = Vec::new();
    for (first, pages) in runs {
        let (mut at, end) = (*first, first + pages);
        while at < end {
            let next = (at / BLOCK + 1) * BLOCK;
            if mix64(at / BLOCK).is_multiple_of(one_of) {
                kept.push((at, next.min(end) - at));
            }
            at = next;
        }
    }
    kept
}

/// What was used within ranges.
fn inside(window: &Window, ranges: &[(u64, u64)]) -> Window {
    let is = |start: u64| ranges.iter().any(|(from, to)| (*from..*to).contains(&start));
    let touched = window.touched.iter().filter(|t| is(t.start)).copied();
    Window { seconds: window.seconds, touched: touched.collect() }
}

fn pages(runs: &[(u64, u64)]) -> u64 {
    runs.iter().map(|r| r.1).sum()
}

impl Model {
    /// Of the memory within `ranges`, ascending. `busy` are the processors in use on average,
    /// `hertz` their clock.
    pub fn new(
        snapshot: &Snapshot,
        sampling: &Sampling,
        ranges: &[(u64, u64)],
        busy: f64,
        hertz: f64,
    ) -> Self {
        let all = present(snapshot);
        let parts =
            ranges.iter().map(|(from, to)| within(&all, from / PAGE_BYTES, to / PAGE_BYTES));
        let all: Vec<(u64, u64)> = parts.flatten().collect();
        let windows: Vec<Window> = sampling.windows.iter().map(|w| inside(w, ranges)).collect();
        let one_of = pages(&all).div_ceil(MOST_PAGES).max(1);
        let longest = windows.last().cloned().unwrap_or_default();
        let mut areas = Vec::new();
        for touched in longest.touched.iter().filter(|t| t.pages > 0.0) {
            let runs = within(&all, touched.start / PAGE_BYTES, touched.end / PAGE_BYTES);
            let there = pages(&runs);
            let runs = thinned(&runs, one_of);
            // As many of what is kept as of all.
            let kept = pages(&runs) as f64 / there.max(1) as f64;
            let used = (touched.pages.min(there as f64) * kept).round() as u64;
            areas.extend((used > 0).then_some(Area { runs, used }));
        }
        Self {
            present: thinned(&all, one_of),
            areas,
            one_of,
            instructions_per_page: instructions(&windows, busy, hertz),
            used: longest.pages().round() as u64,
            windows,
        }
    }

    /// Pages that are used in the stand-ins.
    pub fn in_use(&self) -> u64 {
        self.areas.iter().map(|a| a.used).sum()
    }

    /// Bytes that are there.
    pub fn bytes(&self) -> u64 {
        pages(&self.present) * PAGE_BYTES
    }

    /// The stream of a stand-in; none if nothing is used.
    pub fn stand_in(&self, name: &str, order: Order, accesses: u64) -> Option<StandIn> {
        StandIn::new(name, &self.present, &self.areas, order, accesses)
    }
}

/// Instructions from one page to the next, if each page that was used in a window was visited once
/// in it, at one instruction per cycle: of all windows the fewest.
fn instructions(windows: &[Window], busy: f64, hertz: f64) -> u64 {
    let of = |w: &Window| busy * w.seconds * hertz / w.pages();
    let least = windows.iter().filter(|w| w.pages() > 0.0).map(of).fold(f64::INFINITY, f64::min);
    if least.is_finite() { least as u64 } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_cut_to_a_range() {
        let runs = [(10, 10), (30, 10), (50, 10)];
        assert_eq!(within(&runs, 15, 35), [(15, 5), (30, 5)]);
        assert_eq!(within(&runs, 20, 30), []);
        assert_eq!(within(&runs, 0, 100), runs);
    }

    #[test]
    fn of_too_many_blocks_some_are_kept_whole() {
        let kept = thinned(&[(100, 512 * 1000)], 4);
        assert!((200..300).contains(&kept.len()), "{}", kept.len());
        assert!(kept.iter().all(|(first, pages)| first % BLOCK == 0 && *pages == BLOCK
            || *first == 100
            || first + pages == 100 + 512 * 1000));
        assert_eq!(thinned(&[(1, 2)], 1), [(1, 2)]);
    }

    #[test]
    fn the_window_with_most_pages_a_second_says_how_fast_pages_follow() {
        let window = |seconds, pages| Window {
            seconds,
            touched: vec![nestwalk_host::Touched { start: 0, end: 1 << 30, pages }],
        };
        let windows = [window(0.01, 1000.0), window(1.0, 2000.0)];
        assert_eq!(instructions(&windows, 0.5, 2e9), 10_000);
        assert_eq!(instructions(&[window(1.0, 0.0)], 1.0, 1e9), 0);
    }
}
