//! Ideal contiguity: what a placement could do that knows how large each mapping is and where all
//! free memory lies, and keeps it from others.
//!
//! At the first touch of a mapping frames are set aside for all of it: the shortest run of free
//! frames that is long enough, on addresses that allow large pages if there is such a one; else
//! the longest runs, one after the other, so that as few as possible are needed. They are handed
//! out when pages are touched. So nothing is prepared that the program could notice, and it is
//! not an upper bound of what is possible with migration.
//!
//! An eighth of free memory stays for page tables and others. Where memory is too small for all
//! mappings, reservations are broken, by halves, those used longest ago first; pages without one
//! are placed as by [`crate::FirstFit`]. A mapping that grows goes on behind its frames if they
//! are free.

use crate::physical::PhysicalMemory;
use crate::physical::runs::Run;
use crate::placement::reservations::{Claim, Reservations};
use crate::placement::{Outcome, Placed, Placement, Request};
use nestwalk_types::Address;
use std::ops::Range;

/// Contiguous memory behind every mapping.
#[derive(Debug, Default)]
pub struct Ideal {
    reservations: Reservations,
}

/// Runs shorter than this are not worth a large page's alignment.
const ALIGNED: u64 = 1024;

impl Ideal {
    fn add<O: Address>(&mut self, memory: &mut PhysicalMemory<O>, pages: Range<u64>, frame: u64) {
        let frames = pages.end - pages.start;
        let missing = memory.take_run(Run { frame, frames });
        debug_assert!(missing.is_empty(), "a run of free frames was not free");
        self.reservations.add(memory, pages, frame);
    }

    /// Sets frames aside for a range of pages, as far as there are any.
    fn reserve<O: Address>(&mut self, memory: &mut PhysicalMemory<O>, pages: Range<u64>) {
        let free = memory.free_frames();
        let mut page = pages.start;
        let end = pages.end.min(page + (free - free / 8));
        if page >= end {
            return;
        }
        // What follows the frames of the mapping before it, if the mapping has grown.
        if let Some(next) = self.reservations.frame_after(page) {
            let mut n = 0;
            while n < end - page && memory.is_free(O::new((next + n) << 12)) {
                n += 1;
            }
            if n > 0 {
                self.add(memory, page..page + n, next);
                page += n;
            }
        }
        if page >= end {
            return;
        }
        if let Some(run) = memory.find_run(page, end - page, 0).filter(|r| r.frames >= end - page) {
            return self.add(memory, page..end, run.frame);
        }
        let mut runs = memory.free_runs();
        runs.sort_unstable_by_key(|r| (r.start.wrapping_sub(r.end), r.start));
        for run in runs {
            if page >= end {
                break;
            }
            let length = run.end - run.start;
            let skip = if length < ALIGNED { 0 } else { page.wrapping_sub(run.start) & 511 };
            let n = (length - skip).min(end - page);
            self.add(memory, page..page + n, run.start + skip);
            page += n;
        }
    }
}

impl<O: Address> Placement<O> for Ideal {
    fn place(&mut self, memory: &mut PhysicalMemory<O>, request: &Request) -> Option<Placed<O>> {
        let page = request.page >> 12;
        let vma = request.vma_start >> 12..request.vma_end >> 12;
        if !self.reservations.has(page) && !request.copy {
            let gap = self.reservations.gap(page, &vma);
            self.reserve(memory, gap);
        }
        match self.reservations.claim(memory, page, request.size) {
            Claim::Frame(frame) => Some(Placed::new(O::new(frame << 12), Outcome::Target)),
            Claim::Smaller => None,
            Claim::Gone | Claim::None => {
                memory.alloc(request.size.order()).map(|f| Placed::new(f, Outcome::Elsewhere))
            }
        }
    }
    fn unmapped(&mut self, memory: &mut PhysicalMemory<O>, start: u64, end: u64) {
        self.reservations.remove(memory, &(start >> 12..end >> 12));
    }
    fn forked(&self) -> Box<dyn Placement<O>> {
        Box::new(Self::default())
    }
}
