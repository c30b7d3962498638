//! The host's half of a VMM segment: one contiguous piece of host memory behind guest memory.
//!
//! The pages of the segment are in the VMM process's page tables like all guest memory, at the
//! places that the segment says, and all of them are present. So the host's record is complete at
//! any time, whatever hardware has in its registers.
//!
//! Faulty frames are never given out: their guest pages get other frames, and escape. So do pages
//! that the host takes back while the VM runs, as long as they are few; beyond that the segment
//! keeps its larger part.

use crate::error::MmError;
use crate::host::HostMemory;
use crate::host::compaction::Compaction;
use crate::physical::runs::Run;
use crate::space::Unobserved;
use nestwalk_types::{Address, Gpa, Hpa, Hva, SplitMix64};

/// A piece of guest memory that lies contiguously in host memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostSegment {
    /// First guest-physical address.
    pub gpa: Gpa,
    /// Length in bytes.
    pub bytes: u64,
    /// Where the first address is.
    pub target: Hpa,
    /// Numbers (gPA / 4096) of the pages that are elsewhere, ascending.
    pub escaped: Vec<u64>,
}

/// What segment is asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SegmentRequest {
    /// First guest-physical address.
    pub start: Gpa,
    /// Length in bytes. The segment is shorter if no run of free frames is long enough.
    pub bytes: u64,
    /// Shortest segment that is worth having.
    pub least_bytes: u64,
    /// Pages that may escape, beside those of frames that are bad to begin with.
    pub escapes: usize,
    /// Frames at random places of the segment that become faulty just before.
    pub bad: u64,
    /// Decides the places.
    pub seed: u64,
}

/// What the creation or growth of a segment took.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SegmentChange {
    /// Pages (4 KiB) that were in use already and were copied.
    pub moved_pages: u64,
    /// Pages (4 KiB) that were cleared.
    pub cleared_pages: u64,
}

impl HostMemory {
    /// The segment, if there is one. While memory is made contiguous there is none.
    pub fn segment(&self) -> Option<HostSegment> {
        let region = self.space.region().filter(|_| self.compaction.is_none())?;
        let gpa = self.gpa(region.start)?;
        let number = |page: &u64| gpa.page_number() + (page - region.start.page_number());
        Some(HostSegment {
            gpa,
            bytes: region.bytes,
            target: region.target,
            escaped: region.escaped.iter().map(number).collect(),
        })
    }

    /// The guest-physical address behind which an address of the VMM process is.
    pub(crate) fn gpa(&self, hva: Hva) -> Option<Gpa> {
        self.slots().iter().find_map(|s| {
            let offset = hva.value().wrapping_sub(s.hva.value());
            (offset < s.bytes).then(|| s.gpa.offset_by(offset))
        })
    }

    /// These frames are faulty: nobody gets them from now on.
    ///
    /// # Errors
    /// A frame that does not exist, or that is in use.
    pub fn poison(&mut self, frames: &[u64]) -> Result<(), MmError> {
        for &bad in frames {
            if !self.memory.physical.poison(Hpa::new(bad << 12)) {
                let reason = format!(
                    "frame {bad:#x} does not exist, is in use, or was named twice; name free frames of \
                     the host, below {:#x}",
                    self.memory.physical.bytes() >> 12
                );
                return Err(MmError::BadPages { bad: frames.len() as u64, reason });
            }
        }
        Ok(())
    }

    /// Makes a segment in place of the one there is. Its pages that are in use already are moved;
    /// who maps them in tables of his own, or has them in a TLB, owes their invalidation, for the
    /// whole range of the segment. `None`, and no segment, if no run of free frames is long enough.
    ///
    /// # Errors
    /// A range that is not whole pages of one memory slot; as many bad pages as the segment has
    /// pages; memory is exhausted.
    pub fn create_segment(
        &mut self,
        request: &SegmentRequest,
    ) -> Result<Option<SegmentChange>, MmError> {
        let (start, pages) = self.segment_range(request.start, request.bytes)?;
        self.drop_segment();
        let first = start.page_number();
        let physical = &mut self.memory.physical;
        let holes = request.escapes as u64;
        let Some(run) = physical.find_run(first, pages, holes) else { return Ok(None) };
        if run.frames << 12 < request.least_bytes.max(1) {
            return Ok(None);
        }
        self.spoil(run, request.bad, request.seed)?;
        let moved_pages =
            self.space.evict(&mut self.memory, first << 12, (first + run.frames) << 12)?;
        self.space.set_escapes(request.escapes + request.bad as usize);
        self.space.reserve(&mut self.memory, first, run, &mut Unobserved);
        self.space.fill_region(&mut self.memory, start, run.frames << 12)?;
        Ok(Some(SegmentChange { moved_pages, cleared_pages: run.frames - moved_pages }))
    }

    /// The segment grows to `bytes`, or as far as the frames behind it are free and its memory slot
    /// reaches. What is in use there is moved, as by [`HostMemory::create_segment`].
    ///
    /// # Errors
    /// Memory is exhausted.
    pub fn grow_segment(&mut self, bytes: u64) -> Result<SegmentChange, MmError> {
        let Some(segment) = self.segment() else { return Ok(SegmentChange::default()) };
        let end = Gpa::new(segment.gpa.value() + segment.bytes);
        let last = Gpa::new(end.value() - 1);
        let slot =
            self.slots().iter().find(|s| s.gpa <= last && last.value() - s.gpa.value() < s.bytes);
        let slot_end = slot.map_or(0, |s| s.gpa.value() + s.bytes);
        let limit = slot_end.min(segment.gpa.value().saturating_add(bytes)) & !0xfff;
        let Some(from) = self.hva(end).filter(|_| limit > end.value()) else {
            return Ok(SegmentChange::default());
        };
        let in_place = self.pages_in_place(from, &segment, (limit - end.value()) >> 12);
        if in_place > 0 {
            self.space.adopt(in_place);
            let more = self.grow_segment(bytes)?;
            return Ok(more);
        }
        let pages = ((limit - end.value()) >> 12).min(self.free_behind(&segment));
        let (start, stop) = (from.value(), from.value() + (pages << 12));
        let moved_pages = self.space.evict(&mut self.memory, start, stop)?;
        let pages = self.space.grow_region(&mut self.memory, pages, &mut Unobserved);
        self.space.fill_region(&mut self.memory, from, pages << 12)?;
        Ok(SegmentChange { moved_pages, cleared_pages: pages.saturating_sub(moved_pages) })
    }

    /// Pages behind the segment, at most so many, that lie where it would have them: it has shrunk.
    fn pages_in_place(&self, from: Hva, segment: &HostSegment, most: u64) -> u64 {
        let target = segment.target.offset_by(segment.bytes);
        let in_place = |i: &u64| {
            let (at, frame) = (from.offset_by(i << 12), target.offset_by(i << 12));
            let found = self.space.look_up(&self.memory, at);
            found.is_ok_and(|leaf| leaf.apply(at) == frame)
        };
        (0..most).take_while(in_place).count() as u64
    }

    /// Free frames right behind the segment.
    fn free_behind(&self, segment: &HostSegment) -> u64 {
        let next = (segment.target.value() + segment.bytes) >> 12;
        let runs = self.memory.physical.free_runs();
        runs.iter().find(|r| r.contains(&next)).map_or(0, |r| r.end - next)
    }

    /// The segment shrinks to `bytes`, rounded down to whole pages; the pages behind stay where
    /// they are.
    pub fn shrink_segment(&mut self, bytes: u64) {
        if self.compaction.is_some() {
            return self.drop_segment();
        }
        if let Some(region) = self.space.region() {
            let first = region.start.page_number();
            self.space.keep_region(&mut self.memory, first, first + (bytes >> 12));
        }
    }

    /// There is no segment any more; its pages stay where they are.
    pub fn drop_segment(&mut self) {
        if let Some(Compaction::Out { run, left, .. }) = self.compaction.take() {
            // Others' pages that are left stay where they are.
            for frame in (run.frame..run.frame + run.frames).filter(|f| !left.contains(f)) {
                self.memory.physical.free(Hpa::new(frame << 12), 0);
            }
        }
        self.space.drop_region(&mut self.memory, &mut Unobserved);
    }

    pub(crate) fn segment_range(&self, start: Gpa, bytes: u64) -> Result<(Hva, u64), MmError> {
        let wrong =
            |reason: &str| MmError::Segment { gpa: start.value(), bytes, reason: reason.into() };
        if (start.value() | bytes) & 0xfff != 0 || bytes == 0 {
            return Err(wrong("start and length must be multiples of 4096, the length not 0"));
        }
        let inside = self.slots().iter().any(|s| {
            let offset = start.value().wrapping_sub(s.gpa.value());
            offset < s.bytes && s.bytes - offset >= bytes
        });
        match self.hva(start) {
            Some(hva) if inside => Ok((hva, bytes >> 12)),
            _ => Err(wrong("not inside of one memory slot of the guest")),
        }
    }

    /// Frames of the run become faulty.
    fn spoil(&mut self, run: Run, bad: u64, seed: u64) -> Result<(), MmError> {
        if bad + 64 >= run.frames && bad > 0 {
            let reason = format!(
                "the segment has {} pages, of which 64 must be left; give fewer bad ones, or a larger guest",
                run.frames
            );
            return Err(MmError::BadPages { bad, reason });
        }
        let mut random = SplitMix64::new(seed);
        let mut done = 0;
        while done < bad {
            let frame = run.frame + random.below(run.frames);
            done += u64::from(self.memory.physical.poison(Hpa::new(frame << 12)));
        }
        Ok(())
    }
}
