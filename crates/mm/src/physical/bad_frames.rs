//! Faulty frames of guest memory, by number or at random places.

use crate::error::MmError;
use crate::physical::PhysicalMemory;
use nestwalk_types::{Address, SplitMix64};

/// Up to [`BadFrames::MOST`] frames by number, or how many there are at random places.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BadFrames {
    /// How many, and what decides where.
    random: (u64, u64),
    /// By number (address / 4096); so many of the array count.
    listed: [u64; Self::MOST],
    count: usize,
}

impl BadFrames {
    /// Frames that can be listed: as many as evaluations of escape filters have.
    pub const MOST: usize = 64;
    /// Every frame works.
    pub const NONE: Self = Self { random: (0, 0), listed: [0; Self::MOST], count: 0 };

    /// So many, anywhere in memory that is free at the start; the seed decides where.
    pub const fn random(count: u64, seed: u64) -> Self {
        Self { random: (count, seed), ..Self::NONE }
    }
    /// These frames; `None` if they are more than [`BadFrames::MOST`].
    pub fn listed(frames: &[u64]) -> Option<Self> {
        let mut bad = Self { count: frames.len(), ..Self::NONE };
        bad.listed.get_mut(..frames.len())?.copy_from_slice(frames);
        Some(bad)
    }
}

impl Default for BadFrames {
    fn default() -> Self {
        Self::NONE
    }
}

impl<O: Address> PhysicalMemory<O> {
    /// Takes faulty frames out of use for good. A listed frame that the kernel's image or
    /// fragmentation holds already is never given out anyhow.
    ///
    /// # Errors
    /// More than are free, or a frame that is outside of memory.
    pub fn mark_bad(&mut self, bad: &BadFrames) -> Result<(), MmError> {
        for &frame in bad.listed.iter().take(bad.count) {
            if !self.holds(O::new(frame << 12)) {
                let reason = format!("frame {frame:#x} is no {} memory", O::SPACE);
                return Err(MmError::BadPages { bad: bad.count as u64, reason });
            }
            self.poison(O::new(frame << 12));
        }
        let (count, seed) = bad.random;
        let free = self.free_frames();
        if count >= free {
            let reason = format!("only {free} frames of {} are free", O::SPACE);
            return Err(MmError::BadPages { bad: count, reason });
        }
        if count == 0 {
            return Ok(());
        }
        // Drawn by rank among the free frames, so that it ends in fragmented memory, too.
        let mut random = SplitMix64::new(seed);
        let runs = self.free_runs();
        let mut left = count;
        while left > 0 {
            let mut rank = random.below(free);
            let run = runs.iter().find(|r| {
                let inside = rank < r.end - r.start;
                rank -= if inside { 0 } else { r.end - r.start };
                inside
            });
            let frame = run.map(|r| r.start + rank);
            left -= u64::from(frame.is_some_and(|f| self.poison(O::new(f << 12))));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::physical::pc_memory_map;
    use nestwalk_types::Gpa;

    fn memory() -> PhysicalMemory<Gpa> {
        PhysicalMemory::new(&pc_memory_map(5 << 30), 32 << 20).unwrap()
    }

    #[test]
    fn bad_frames_are_never_given_out() {
        let mut m = memory();
        let listed = [0x10_0000, 0x10_0001, 0x2_0000];
        m.mark_bad(&BadFrames::listed(&listed).unwrap()).unwrap();
        for frame in listed {
            assert!(!m.alloc_at(Gpa::new(frame << 12), 0));
        }
        assert!(m.alloc_at(Gpa::new(0x10_0002 << 12), 0));
        let free = m.free_frames();
        m.mark_bad(&BadFrames::random(1000, 7)).unwrap();
        assert_eq!(free - m.free_frames(), 1000);
        let runs = m.free_runs();
        let mut again = memory();
        again.mark_bad(&BadFrames::listed(&listed).unwrap()).unwrap();
        assert!(again.alloc_at(Gpa::new(0x10_0002 << 12), 0));
        again.mark_bad(&BadFrames::random(1000, 7)).unwrap();
        assert_eq!(again.free_runs(), runs);
    }

    #[test]
    fn what_cannot_be_bad_is_named() {
        let e = memory().mark_bad(&BadFrames::listed(&[0xd_0000]).unwrap()).unwrap_err();
        assert!(e.to_string().contains("0xd0000") && e.to_string().contains("gPA"), "{e}");
        let e = memory().mark_bad(&BadFrames::random(1 << 40, 0)).unwrap_err().to_string();
        assert!(e.contains("1099511627776") && e.contains("free"), "{e}");
        assert_eq!(BadFrames::listed(&[0; 65]), None);
        assert_eq!(BadFrames::listed(&[]), Some(BadFrames::NONE));
    }
}
