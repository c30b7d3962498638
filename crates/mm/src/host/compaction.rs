//! Compaction of host memory, until a VMM segment can be made.
//!
//! At the beginning the VMM chooses the range of frames in which fewest are in use, and nobody is
//! given
//! frames of it any more (Linux: `alloc_contig_range` isolates its page blocks first). Others'
//! pages in
//! it are moved out, so many at a time; then the guest's pages are moved in. While that lasts
//! there is
//! no segment. Pages that the guest touches for the first time go to their places at once.

use crate::error::MmError;
use crate::host::HostMemory;
use crate::host::segment::SegmentChange;
use crate::physical::runs::{Run, sort};
use crate::space::Unobserved;
use nestwalk_types::{Address, Gpa, Hpa};

/// How far a compaction is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Compaction {
    /// Others' pages are moved out of the range; the frames that are left are given, the lowest
    /// last.
    Out { first: u64, run: Run, left: Vec<u64> },
    /// The guest's pages are moved in, from this page on.
    In { next: u64 },
}

/// What one interval of a compaction did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Compacted {
    /// Guest memory whose pages have moved: first address and bytes.
    pub range: (Gpa, u64),
    /// Pages (4 KiB) of others that were moved.
    pub others: u64,
    /// Pages of the guest.
    pub guest: SegmentChange,
    /// The segment is there.
    pub done: bool,
}

impl HostMemory {
    /// Begins to make memory contiguous behind a range of guest memory. False, and nothing is
    /// begun, if
    /// in every range of frames as long something cannot be moved. So many pages may escape from
    /// the
    /// segment later.
    ///
    /// # Errors
    /// A range that is not whole pages of one memory slot.
    pub fn begin_compaction(
        &mut self,
        start: Gpa,
        bytes: u64,
        escapes: usize,
    ) -> Result<bool, MmError> {
        let (start, pages) = self.segment_range(start, bytes)?;
        self.drop_segment();
        let first = start.page_number();
        let Some(frame) = self.emptiest(first, pages) else { return Ok(false) };
        self.space.set_escapes(escapes);
        let run = Run { frame, frames: pages };
        let mut left = self.memory.physical.take_run(run);
        left.reverse();
        self.compaction = Some(Compaction::Out { first, run, left });
        Ok(true)
    }

    /// Where the fewest frames are in use, of all ranges on addresses that allow 2 MiB pages and in
    /// which everything can be moved.
    fn emptiest(&self, first: u64, pages: u64) -> Option<u64> {
        let movable = &self.memory.physical.movable;
        let mut parts = self.memory.physical.free_runs();
        parts.extend(movable.iter().map(|f| *f..f + 1));
        sort(&mut parts);
        let mut best: Option<(usize, u64)> = None;
        let mut i = 0;
        while i < parts.len() {
            let (begin, mut end) = (parts[i].start, parts[i].end);
            i += 1;
            while i < parts.len() && parts[i].start <= end {
                end = end.max(parts[i].end);
                i += 1;
            }
            let mut at = begin + (first.wrapping_sub(begin) & 511);
            while at + pages <= end {
                let used = movable.partition_point(|f| *f < at + pages)
                    - movable.partition_point(|f| *f < at);
                if best.is_none_or(|b| (used, at) < b) {
                    best = Some((used, at));
                }
                at += 512;
            }
        }
        best.map(|b| b.1)
    }

    /// Whether memory is being made contiguous.
    pub const fn is_compacting(&self) -> bool {
        self.compaction.is_some()
    }

    /// Moves at most so many pages. Who maps the guest's in tables of his own, or has them in a
    /// TLB, owes
    /// their invalidation. `None` if nothing was begun.
    ///
    /// # Errors
    /// Memory is exhausted.
    pub fn compact(&mut self, pages: u64) -> Result<Option<Compacted>, MmError> {
        match self.compaction.take() {
            None => Ok(None),
            Some(Compaction::Out { first, run, left }) => {
                self.move_out(first, run, left, pages).map(Some)
            }
            Some(Compaction::In { next }) => self.move_in(next, pages),
        }
    }

    fn move_out(
        &mut self,
        first: u64,
        run: Run,
        mut left: Vec<u64>,
        pages: u64,
    ) -> Result<Compacted, MmError> {
        let mut others = 0;
        while others < pages && !left.is_empty() {
            // The copy goes outside: all of the range is taken.
            if self.memory.physical.alloc(0).is_none() {
                break;
            }
            left.pop();
            others += 1;
        }
        self.compaction = if left.is_empty() {
            for frame in run.frame..run.frame + run.frames {
                self.memory.physical.free(Hpa::new(frame << 12), 0);
            }
            self.space.reserve(&mut self.memory, first, run, &mut Unobserved);
            Some(Compaction::In { next: first })
        } else {
            Some(Compaction::Out { first, run, left })
        };
        let (range, guest) = ((Gpa::new(0), 0), SegmentChange::default());
        Ok(Compacted { range, others, guest, done: false })
    }

    fn move_in(&mut self, next: u64, pages: u64) -> Result<Option<Compacted>, MmError> {
        let Some(region) = self.space.region() else { return Ok(None) };
        let first = region.start.page_number();
        let end = first + (region.bytes >> 12);
        let from = next.clamp(first, end);
        // Whole large pages, so that they can be used.
        let to = (from.saturating_add(pages.max(1)).next_multiple_of(512)).min(end);
        let Some(gpa) = self.gpa(region.start) else { return Ok(None) };
        let range = (gpa.offset_by((from - first) << 12), (to - from) << 12);
        let in_place = |page: &u64| {
            let at = region.start.offset_by((page - first) << 12);
            let place = region.target.offset_by((page - first) << 12);
            let leaf = self.space.look_up(&self.memory, at);
            leaf.is_ok_and(|leaf| leaf.apply(at) == place)
        };
        let there = (from..to).filter(in_place).count() as u64;
        let moved = self.evict_strays(first, (from, to), region.target)?;
        let start = region.start.offset_by((from - first) << 12);
        self.space.fill_region(&mut self.memory, start, range.1)?;
        let cleared_pages = (to - from) - there - moved;
        let guest = SegmentChange { moved_pages: moved, cleared_pages };
        self.compaction = (to < end).then_some(Compaction::In { next: to });
        Ok(Some(Compacted { range, others: 0, guest, done: to >= end }))
    }

    /// Pages of the range that lie elsewhere are not present any more. Returns how many there were.
    fn evict_strays(
        &mut self,
        first: u64,
        (from, to): (u64, u64),
        target: Hpa,
    ) -> Result<u64, MmError> {
        let (mut moved, mut page) = (0, from);
        while page < to {
            let at = nestwalk_types::Hva::new(page << 12);
            let place = target.offset_by((page - first) << 12);
            let stray = |leaf: &nestwalk_tables::Leaf<Hpa>| leaf.apply(at) != place;
            let leaf = self.space.look_up(&self.memory, at).ok().filter(stray);
            if leaf.is_some() {
                moved += self.space.evict(&mut self.memory, page << 12, (page + 1) << 12)?;
            }
            page += 1;
        }
        Ok(moved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FreeBlocks, HostConfig, KERNEL_BYTES, PagePolicy, PlacementKind};
    use nestwalk_tables::LONG4;

    fn host(name: &str) -> HostMemory {
        let config = HostConfig {
            bytes: 256 << 20,
            mode: &LONG4,
            policy: PagePolicy::Base,
            placement: PlacementKind::default(),
            fragmentation: crate::Fragmentation::Blocks(FreeBlocks::by_name(name).unwrap()),
            seed: 2,
            kernel_bytes: KERNEL_BYTES,
            daemons: crate::DaemonConfig::default(),
        };
        HostMemory::with_config(&config, &[(Gpa::new(0), 64 << 20)]).unwrap()
    }

    #[test]
    fn pages_go_out_and_in_and_the_segment_comes_last() {
        for name in ["aged", "bad"] {
            let mut h = host(name);
            let touched: Vec<Gpa> = (0..500u64).map(|i| Gpa::new((i * 13) << 12)).collect();
            for gpa in &touched[..300] {
                h.ensure(*gpa).unwrap();
            }
            assert!(h.begin_compaction(Gpa::new(0), 64 << 20, 16).unwrap());
            let Some(Compaction::Out { left, .. }) = &h.compaction else { panic!() };
            let out = left.len() as u64;
            let (mut others, mut moved, mut cleared, mut rounds) = (0, 0, 0, 0);
            let done = loop {
                // New pages in the middle of it, which may be in place already.
                if let Some(gpa) = touched.get(300 + rounds) {
                    h.ensure(*gpa).unwrap();
                }
                let step = h.compact(1000).unwrap().unwrap();
                assert!(step.others <= 1000 && step.guest.moved_pages <= 1511);
                others += step.others;
                moved += step.guest.moved_pages;
                cleared += step.guest.cleared_pages;
                rounds += 1;
                assert_eq!(h.segment().is_some(), step.done);
                if step.done {
                    break h.segment().unwrap();
                }
            };
            assert_eq!(others, out, "{name}");
            assert!(moved >= 300 && cleared > 15_000, "{moved} {cleared}");
            assert_eq!((done.bytes, done.escaped.len()), (64 << 20, 0));
            for page in 0..done.bytes >> 12 {
                let gpa = Gpa::new(page << 12);
                let found = h.look_up(gpa).unwrap();
                let at = found.frame.offset_by(gpa.offset_in(found.size));
                assert_eq!(at, done.target.offset_by(gpa.value()));
            }
            let (c, p) = (h.counters(), h.physical());
            let used = c.table_frames + c.data_frames + c.reserved_frames + p.pinned_frames();
            assert_eq!(used + p.free_frames(), p.bytes() >> 12);
            assert_eq!(h.compact(1000).unwrap(), None);
        }
    }

    #[test]
    fn what_cannot_be_moved_is_not_begun() {
        let slots = [(Gpa::new(0), 64 << 20)];
        let mut h = HostMemory::new(128 << 20, &LONG4, PagePolicy::Base, 1.0, 1, &slots).unwrap();
        assert_eq!(h.begin_compaction(Gpa::new(0), 64 << 20, 16), Ok(false));
        assert!(h.begin_compaction(Gpa::new(1), 4096, 16).is_err());
        assert!(!h.is_compacting());
    }
}
