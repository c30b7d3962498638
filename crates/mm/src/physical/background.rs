//! Frames that others have, who are no processes of the model, but whose pages can be moved: those
//! of an aged memory ([`crate::Fragmentation::Blocks`]).

use crate::physical::PhysicalMemory;
use nestwalk_types::{Address, NumberSet};
use std::ops::Range;

/// What has changed since the list of others' frames was made.
#[derive(Clone, Debug, Default)]
pub(crate) struct OthersMoved {
    out: NumberSet,
    into: NumberSet,
}

impl<O: Address> PhysicalMemory<O> {
    /// Frames of the zone in which a frame is.
    pub(crate) fn zone_of(&self, frame: u64) -> Range<u64> {
        let zones = self.zones.iter().map(|z| z.buddy.range());
        zones.into_iter().find(|r| r.contains(&frame)).unwrap_or(0..0)
    }

    /// Whether others have the frame and can be moved.
    pub(crate) fn is_others(&self, frame: u64) -> bool {
        let moved = &self.others_moved;
        moved.into.contains(frame)
            || (self.movable.binary_search(&frame).is_ok() && !moved.out.contains(frame))
    }

    /// Others leave a frame, to whoever moved them, and have another.
    pub(crate) fn exchange_others(&mut self, left: u64, taken: u64) {
        debug_assert!(self.is_others(left) && !self.is_others(taken));
        let moved = &mut self.others_moved;
        if !moved.into.remove(left) {
            moved.out.insert(left);
        }
        if !moved.out.remove(taken) {
            moved.into.insert(taken);
        }
    }

    /// The list of others' frames is made anew.
    pub(crate) fn settle_others(&mut self) {
        let OthersMoved { out, into } = std::mem::take(&mut self.others_moved);
        if !out.is_empty() {
            self.movable.retain(|f| !out.contains(*f));
            self.movable.extend(into.iter());
            self.movable.sort_unstable();
        }
    }

    /// As [`PhysicalMemory::alloc_at`]; processors' lists are emptied first if they may hold a part
    /// of the block (`drain_all_pages`).
    pub(crate) fn take_drained(&mut self, at: O, order: u32) -> bool {
        self.alloc_at(at, order)
            || (self.zones.iter().any(|z| z.buddy.held_frames() > 0) && {
                self.drain();
                self.alloc_at(at, order)
            })
    }
}
