//! Lines that were fetched ahead of a look-up, and when they are there.

use super::{AHEAD, MET};
use crate::hardware::Hardware;
use crate::measure::counters::{Counters, Dimension};
use nestwalk_types::Hpa;

/// Of the two lowest levels: where the line is, and in which cycle of the walk it is there.
#[derive(Default)]
pub(super) struct Arriving([(u64, u64); 2]);

impl Arriving {
    /// Whether a level is of a line that is fetched ahead, or was.
    #[inline(always)]
    pub(super) const fn concerns(level: u8) -> bool {
        level & (AHEAD | MET) != 0
    }

    /// Fetches a line of this level: a reference of its own, which takes nobody's time yet.
    pub(super) fn fetch(
        &mut self,
        hardware: &mut Hardware,
        counters: &mut Counters,
        (core, level): (usize, u8),
        at: u64,
    ) {
        let cycles = hardware.ahead(counters, core, Hpa::new(at));
        self.0[usize::from(level & 1)] = (at, hardware.tally.cycles + cycles);
    }

    /// The walk reads a line that was fetched: it finds it in the caches, or waits for it.
    pub(super) fn meet(
        &self,
        hardware: &mut Hardware,
        (core, dimension, level, on_behalf): (usize, Dimension, u8, u8),
    ) {
        let (at, there) = self.0[usize::from(level & 1)];
        let before = hardware.tally.cycles;
        hardware.reference(core, dimension, (level & !MET, on_behalf), Hpa::new(at), 0);
        // What the processor has of entries by their addresses takes no time.
        if hardware.tally.cycles > before {
            hardware.tally.cycles = hardware.tally.cycles.max(there);
        }
    }
}
