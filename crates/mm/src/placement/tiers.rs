//! Frames that hardware can guess: a page lies at one of a few hashes of its number, the first of them
//! whose frame is free (Kanellopoulos et al., "Revelator", arXiv 2508.02007; the released allocator,
//! `revelator_simple.h` of the simulator Virtuoso, read).
//!
//! ```text
//! tier i of page v    frame number hash(v * (i + 1)) of all frames of memory
//! fault               the frame of the first tier that is free
//! none of them free   whatever the default placement gives
//! ```
//!
//! The number of the process is in no hash, as there: pages of two processes at one address have the
//! same tiers. Left out: page tables, which the released allocator puts at hashes of their own, and its
//! pages of 2 MiB; large pages are allocated as without. Chosen: six tiers, as many as the released
//! engine has thresholds for; the hash function (`mix64` for `CityHash64`).

use crate::physical::PhysicalMemory;
use crate::placement::{Outcome, Placed, Placement, Request};
use nestwalk_types::{Address, PageSize, mix64};

/// Tiers that the allocator tries.
pub const TIERS: u64 = 6;

/// The frames that a page may be guessed at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tiers {
    /// First frame and frames of each range of memory.
    ranges: Vec<(u64, u64)>,
    frames: u64,
}

impl Tiers {
    /// Of memory in these ranges of first address and bytes.
    pub fn new<O: Address>(ranges: &[(O, u64)]) -> Self {
        let ranges: Vec<_> = ranges.iter().map(|r| (r.0.page_number(), r.1 >> 12)).collect();
        let frames = ranges.iter().map(|r| r.1).sum();
        Self { ranges, frames }
    }

    /// The frame of a tier of a page, both by number.
    #[inline]
    pub fn frame(&self, page: u64, tier: u64) -> u64 {
        let hash = mix64(page.wrapping_mul(tier + 1));
        let mut at = ((u128::from(hash) * u128::from(self.frames)) >> 64) as u64;
        for (first, frames) in &self.ranges {
            if at < *frames {
                return first + at;
            }
            at -= frames;
        }
        0
    }
}

/// Pages of 4 KiB at the first free frame of their tiers.
#[derive(Clone, Debug, Default)]
pub struct Tiered {
    tiers: Tiers,
}

impl<O: Address> Placement<O> for Tiered {
    fn attach(&mut self, memory: &mut PhysicalMemory<O>) {
        self.tiers = Tiers::new(memory.ranges());
    }
    fn place(&mut self, memory: &mut PhysicalMemory<O>, request: &Request) -> Option<Placed<O>> {
        if request.size != PageSize::SIZE_4K {
            let frame = memory.alloc(request.size.order())?;
            return Some(Placed::new(frame, Outcome::Ordinary));
        }
        for tier in 0..TIERS {
            let frame = O::new(self.tiers.frame(request.page >> 12, tier) << 12);
            if memory.alloc_at(frame, 0) {
                let outcome = if tier == 0 { Outcome::Target } else { Outcome::Again };
                return Some(Placed::new(frame, outcome));
            }
        }
        Some(Placed::new(memory.alloc(0)?, Outcome::Elsewhere))
    }
    fn forked(&self) -> Box<dyn Placement<O>> {
        Box::new(self.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nestwalk_types::Gpa;

    /// Filled to the share a of its frames: a page finds its first frame free with the chance of a free
    /// frame at that time, so 1 - a / 2 of all do, and a^6 / 7 find none of six.
    #[test]
    fn pages_lie_where_theory_says() {
        for percent in [20, 50, 80] {
            let ranges = [(Gpa::new(0), 96 << 20), (Gpa::new(1 << 32), 160 << 20)];
            let mut memory = PhysicalMemory::new(&ranges, 0).unwrap();
            let tiers = Tiers::new(memory.ranges());
            let mut tiered = Tiered::default();
            Placement::attach(&mut tiered, &mut memory);
            let (frames, used) = (65_536, 256);
            let pages = frames * percent / 100 - used;
            let mut found = [0_u64; 3];
            for i in 0..pages {
                let page = (0x7000_0000 + i) << 12;
                let request = Request {
                    page,
                    size: PageSize::SIZE_4K,
                    vma_start: 0,
                    vma_end: u64::MAX,
                    copy: false,
                };
                let placed = tiered.place(&mut memory, &request).unwrap();
                assert!(memory.holds(placed.frame));
                let at = |tier| tiers.frame(page >> 12, tier) == placed.frame.page_number();
                match placed.outcome {
                    Outcome::Target => assert!(at(0)),
                    Outcome::Again => assert!((1..TIERS).any(at)),
                    _ => found[2] += 1,
                }
                found[0] += u64::from(placed.outcome == Outcome::Target);
                found[1] += u64::from(placed.outcome == Outcome::Again);
            }
            let a = percent as f64 / 100.0;
            let share = |n: u64| n as f64 / pages as f64;
            assert!((share(found[0]) - (1.0 - a / 2.0)).abs() < 0.01, "{percent}: {found:?}");
            assert!((share(found[2]) - a.powi(6) / 7.0).abs() < 0.003, "{percent}: {found:?}");
        }
    }
}
