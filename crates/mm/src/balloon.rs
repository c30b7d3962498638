//! Self-ballooning (MICRO 2014): a guest whose free memory is fragmented has its balloon driver pin
//! scattered free pages, gives them to the VMM, and gets as much contiguous new memory by hot-plug.

use crate::error::MmError;
use crate::physical::PhysicalMemory;
use crate::physical::size::Size;
use nestwalk_types::Address;
use std::ops::Range;

/// Memory is added in blocks of 128 MiB (Linux on x86-64, `SECTION_SIZE_BITS` 27).
pub const HOT_PLUG_BYTES: u64 = 128 << 20;

/// What self-ballooning did, and what stood before it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Ballooned {
    /// Times that memory was exchanged.
    pub times: u64,
    /// Pages (4 KiB) that the balloon pinned and the VMM took.
    pub pages: u64,
    /// Bytes of new memory.
    pub added_bytes: u64,
    /// Longest free run before the first time.
    pub longest_before: u64,
    /// Longest free run after the last time.
    pub longest_after: u64,
    /// Pages (4 KiB) that compaction would have had to move for a run as long as was wanted, if all of
    /// them could be moved: those in use where fewest are.
    pub compaction_pages: u64,
}

/// Memory that was exchanged.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Exchange<O> {
    /// Pages that the VMM has now: first address and number of 4 KiB pages, ascending.
    pub pages: Box<[(O, u64)]>,
    /// First address of the new memory.
    pub start: O,
    /// Its length in bytes.
    pub bytes: u64,
}

impl Ballooned {
    /// Exchanges free pages for new memory that holds `pages` one after the other.
    ///
    /// # Errors
    /// Fewer pages are free, or the machine has no addresses left.
    pub(crate) fn exchange<O: Address>(
        &mut self,
        physical: &mut PhysicalMemory<O>,
        pages: u64,
    ) -> Result<Exchange<O>, MmError> {
        // 2 MiB more, so that large pages fit wherever the range begins.
        let bytes = ((pages << 12) + (2 << 20)).next_multiple_of(HOT_PLUG_BYTES);
        let free = physical.free_frames() << 12;
        if bytes > free {
            let reason = format!(
                "more than the {} of free memory; give the guest more memory, or take `primary`",
                Size(free)
            );
            return Err(MmError::Balloon { bytes, reason });
        }
        let runs = physical.free_runs();
        if self.times == 0 {
            self.longest_before = longest(&runs);
            self.compaction_pages = in_the_way(&runs, pages);
        }
        let taken = physical.pin(bytes >> 12);
        let Some(start) = physical.add(bytes) else {
            let reason = "no addresses are left for new memory; give the guest more memory".into();
            return Err(MmError::Balloon { bytes, reason });
        };
        self.times += 1;
        self.pages += bytes >> 12;
        self.added_bytes += bytes;
        self.longest_after = longest(&physical.free_runs());
        let pages = taken.into_iter().map(|r| (O::new(r.start << 12), r.end - r.start)).collect();
        Ok(Exchange { pages, start, bytes })
    }
}

fn longest(runs: &[Range<u64>]) -> u64 {
    runs.iter().map(|r| r.end - r.start).max().unwrap_or(0) << 12
}

/// Frames in use in the range of `pages` frames that begins with a free run and has fewest.
fn in_the_way(runs: &[Range<u64>], pages: u64) -> u64 {
    let (mut end, mut free, mut best) = (0, 0, pages);
    for (begin, run) in runs.iter().enumerate() {
        let limit = run.start + pages;
        while end < runs.len() && runs[end].end <= limit {
            free += runs[end].end - runs[end].start;
            end += 1;
        }
        let part = runs.get(end).map_or(0, |r| limit.saturating_sub(r.start));
        best = best.min(pages - (free + part).min(pages));
        if begin < end {
            free -= run.end - run.start;
        } else {
            end = begin + 1;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use nestwalk_types::{Gpa, SplitMix64};

    #[test]
    fn what_is_in_the_way_is_what_looking_at_every_place_finds() {
        let mut r = SplitMix64::new(5);
        for round in 0..200 {
            let (mut runs, mut at) = (Vec::new(), 0);
            for _ in 0..=r.below(12) {
                let start = at + 1 + r.below(9);
                at = start + 1 + r.below(20);
                runs.push(start..at);
            }
            let pages = 1 + r.below(60);
            let used = |start: u64| {
                (start..start + pages).filter(|f| !runs.iter().any(|r| r.contains(f))).count()
            };
            let naive = runs.iter().map(|r| used(r.start)).min().unwrap() as u64;
            assert_eq!(in_the_way(&runs, pages), naive, "{round} {runs:?} {pages}");
        }
    }

    #[test]
    fn scattered_pages_go_and_one_piece_comes() {
        let ranges = [(Gpa::new(0), 512 << 20)];
        let mut m = PhysicalMemory::with_room(&ranges, 0, 512 << 20).unwrap();
        m.fragment(1.0, 4).unwrap();
        let (free, bytes) = (m.free_frames(), m.bytes());
        let mut b = Ballooned::default();
        let got = b.exchange(&mut m, 40_000).unwrap();
        assert_eq!((got.start, got.bytes), (Gpa::new(4 << 30), 2 * HOT_PLUG_BYTES));
        assert_eq!(got.pages.iter().map(|p| p.1).sum::<u64>(), got.bytes >> 12);
        assert!(
            got.pages.iter().all(|p| !m.is_free(p.0) && p.0.value() + (p.1 << 12) <= 512 << 20)
        );
        assert_eq!((m.free_frames(), m.bytes()), (free, bytes + got.bytes));
        assert!(b.longest_before < 4 << 20 && b.longest_after == got.bytes, "{b:?}");
        assert_eq!(m.find_run(0, 40_000, 0).unwrap().frame, 1 << 20);
        // The second time the memory is right behind; then there is neither memory nor room.
        assert_eq!(b.exchange(&mut m, 1).unwrap().start, Gpa::new((4 << 30) + (256 << 20)));
        let e = b.exchange(&mut m, 200_000).unwrap_err().to_string();
        assert!(e.contains("more than the") && e.contains("of free memory"), "{e}");
        let e = b.exchange(&mut m, 40_000).unwrap_err().to_string();
        assert!(e.contains("no addresses"), "{e}");
    }
}
