//! Runs of free frames: where contiguous memory can be had.

use crate::physical::{DMA32_END, PhysicalMemory};
use nestwalk_types::{Address, PageSize};
use std::ops::Range;

/// Frames one after the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// The first.
    pub frame: u64,
    /// How many.
    pub frames: u64,
}

/// Puts ranges in the order of their beginnings.
pub(crate) fn sort(ranges: &mut [Range<u64>]) {
    ranges.sort_unstable_by_key(|range| range.start);
}

impl<O: Address> PhysicalMemory<O> {
    /// The longest ranges of frames that are free as a whole, ascending.
    pub fn free_runs(&self) -> Vec<Range<u64>> {
        let mut blocks: Vec<_> = self.zones().flat_map(|(_, buddy)| buddy.free_ranges()).collect();
        sort(&mut blocks);
        let mut runs: Vec<Range<u64>> = Vec::new();
        for block in blocks {
            match runs.last_mut() {
                Some(last) if last.end == block.start => last.end = block.end,
                _ => runs.push(block),
            }
        }
        runs
    }

    /// Where `pages` pages from page number `first` on can lie contiguously, with at most `holes`
    /// frames in between that are not free. The best alignment wins, so that large pages can be
    /// used; then memory above 4 GiB, where kernels put everything as long as they can; then the
    /// shortest run that is long enough; then the lowest. If none is long enough, the longest one
    /// is given, which is for the first of the pages. `None` if nothing is free.
    pub fn find_run(&self, first: u64, pages: u64, holes: u64) -> Option<Run> {
        let whole = self.free_runs();
        let fits = |runs: &[Range<u64>]| {
            [PageSize::SIZE_1G, PageSize::SIZE_2M, PageSize::SIZE_4K].into_iter().find_map(|size| {
                let starts = runs.iter().map(|r| (aligned(r, first, size), r));
                let fitting = starts.filter(|(start, r)| r.end.saturating_sub(*start) >= pages);
                // As for single pages, zone NORMAL comes first.
                let zone = |r: &Range<u64>| r.end <= DMA32_END >> 12;
                fitting
                    .min_by_key(|(start, r)| (zone(r), r.end - r.start, *start))
                    .map(|(start, _)| start)
            })
        };
        if let Some(frame) = fits(&whole) {
            return Some(Run { frame, frames: pages });
        }
        let wide = if holes == 0 { whole } else { with_holes(&whole, holes) };
        if let Some(frame) = fits(&wide) {
            return Some(Run { frame, frames: pages });
        }
        let longest = wide.into_iter().max_by_key(|r| (r.end - r.start, u64::MAX - r.start))?;
        let start = aligned(&longest, first, PageSize::SIZE_2M);
        // Alignment is worth less than it costs where little would be left.
        let start = if longest.end.saturating_sub(start) < 8 * 512 { longest.start } else { start };
        Some(Run { frame: start, frames: longest.end - start })
    }

    /// Takes every free frame of a run. Returns those that were not free, ascending.
    pub fn take_run(&mut self, run: Run) -> Vec<u64> {
        let (mut at, end) = (run.frame, run.frame + run.frames);
        let mut missing = Vec::new();
        while at < end {
            let fit = at.trailing_zeros().min((end - at).ilog2()).min(crate::MAX_ORDER);
            let took = (0..=fit).rev().find(|&o| self.alloc_at(O::new(at << 12), o));
            if took.is_none() {
                missing.push(at);
            }
            at += 1 << took.unwrap_or(0);
        }
        missing
    }
}

/// The first frame of a run that is congruent to `first` modulo the page size.
const fn aligned(run: &Range<u64>, first: u64, size: PageSize) -> u64 {
    let mask = size.base_pages() - 1;
    run.start + (first.wrapping_sub(run.start) & mask)
}

/// For each run the longest range that begins with it and has no more holes.
fn with_holes(runs: &[Range<u64>], holes: u64) -> Vec<Range<u64>> {
    let (mut end, mut gaps) = (0, 0);
    let mut out = Vec::with_capacity(runs.len());
    for begin in 0..runs.len() {
        if end <= begin {
            (end, gaps) = (begin + 1, 0);
        }
        while end < runs.len() && gaps + (runs[end].start - runs[end - 1].end) <= holes {
            gaps += runs[end].start - runs[end - 1].end;
            end += 1;
        }
        out.push(runs[begin].start..runs[end - 1].end);
        if begin + 1 < end {
            gaps -= runs[begin + 1].start - runs[begin].end;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use nestwalk_types::{Gpa, SplitMix64};

    fn memory(bytes: u64) -> PhysicalMemory<Gpa> {
        PhysicalMemory::new(&[(Gpa::new(0), bytes)], 0).unwrap()
    }

    /// All runs by looking at every frame.
    fn naive(m: &PhysicalMemory<Gpa>, frames: u64) -> Vec<Range<u64>> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        for f in (0..frames).filter(|f| m.is_free(Gpa::new(f << 12))) {
            match runs.last_mut() {
                Some(last) if last.end == f => last.end += 1,
                _ => runs.push(f..f + 1),
            }
        }
        runs
    }

    #[test]
    fn runs_are_what_looking_at_every_frame_finds() {
        let mut r = SplitMix64::new(3);
        for bytes in [8 << 20, 64 << 20, (64 << 20) + 0x5000] {
            let mut m = memory(bytes);
            for _ in 0..200 {
                m.alloc_at(Gpa::new(r.below(bytes >> 12) << 12), 0);
                if r.below(20) == 0 {
                    assert_eq!(m.free_runs(), naive(&m, bytes >> 12));
                }
            }
        }
    }

    #[test]
    fn a_run_is_found_where_a_naive_search_finds_one() {
        let mut r = SplitMix64::new(8);
        for round in 0..60 {
            let mut m = memory(16 << 20);
            (0..r.below(60)).for_each(|_| {
                m.alloc_at(Gpa::new(r.below(4096) << 12), 0);
            });
            let free = |f: u64| u64::from(m.is_free(Gpa::new(f << 12)));
            let (pages, holes) = (1 + r.below(1500), r.below(4));
            let fits = (0..4096u64.saturating_sub(pages)).any(|start| {
                let missing = pages - (start..start + pages).map(free).sum::<u64>();
                // A run begins and ends with a free frame.
                missing <= holes && free(start) == 1 && free(start + pages - 1) == 1
            });
            let run = m.find_run(r.below(1 << 20), pages, holes).unwrap();
            if fits {
                assert_eq!(run.frames, pages, "{round}");
            }
            let before = m.free_frames();
            let missing = m.take_run(run);
            assert!(missing.len() as u64 <= holes, "{round}");
            assert_eq!(before - m.free_frames(), run.frames - missing.len() as u64);
            let inside = |f: &u64| (run.frame..run.frame + run.frames).contains(f);
            assert!(missing.iter().all(inside) && missing.is_sorted());
        }
    }

    #[test]
    fn the_best_alignment_comes_first_and_then_the_shortest_run() {
        let mut m = memory(64 << 20);
        // Free: 256..8192 but for the frames taken here.
        for f in [1024, 3000, 3100] {
            m.alloc_at(Gpa::new(f << 12), 0);
        }
        let run = |first, pages, holes| m.find_run(first, pages, holes).unwrap();
        assert_eq!(run(0, 50, 0), Run { frame: 512, frames: 50 });
        assert_eq!(run(7, 50, 0), Run { frame: 519, frames: 50 });
        // Only between the two is there nothing that is aligned: 3001..3100 has 3072.
        assert_eq!(run(0, 20, 0), Run { frame: 3072, frames: 20 });
        assert_eq!(run(0, 6000, 1), Run { frame: 2560, frames: 5632 }.min_of(run(0, 6000, 1)));
        assert_eq!(run(0, 6000, 2).frames, 6000);
    }

    impl Run {
        /// Itself if it is as long: which of the longest is a matter of alignment.
        fn min_of(self, other: Self) -> Self {
            if other.frames >= self.frames { other } else { self }
        }
    }
}
