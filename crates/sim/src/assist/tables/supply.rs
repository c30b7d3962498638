//! Where tables get their memory from.

use nestwalk_hw::HPA_LIMIT;
use nestwalk_mm::HostMemory;
use nestwalk_types::{Gpa, Hpa};
use std::collections::BTreeMap;

const PAGE: u64 = 4096;

/// Gives memory in blocks that are a power of two of pages long, aligned to their length.
pub trait Supply {
    /// A block of so many bytes; `None` if there is none.
    fn take(&mut self, bytes: u64) -> Option<u64>;
    /// Takes a block back.
    fn give(&mut self, at: u64, bytes: u64);
    /// A block of the host's memory, for a guest that asks its host; `None` if there is none to ask.
    fn take_host(&mut self, _bytes: u64) -> Option<u64> {
        None
    }
    /// Gives such a block back to the host.
    fn give_host(&mut self, _at: u64, _bytes: u64) {}
}

impl Supply for HostMemory {
    fn take(&mut self, bytes: u64) -> Option<u64> {
        let order = bytes.div_ceil(PAGE).next_power_of_two().trailing_zeros();
        self.alloc_tables(order).map(|at| at.value())
    }
    fn give(&mut self, at: u64, bytes: u64) {
        let pages = bytes.div_ceil(PAGE).next_power_of_two();
        (0..pages).for_each(|page| self.free_table(Hpa::new(at + page * PAGE)));
    }
}

/// Memory that the guest's kernel has for its tables, above what the stream's kernel has decided about.
#[derive(Debug)]
pub struct GuestArea {
    next: u64,
    end: u64,
    /// Blocks given back, by length.
    free: BTreeMap<u64, Vec<u64>>,
    /// Blocks that were taken and are not cleared yet.
    fresh: Vec<(Gpa, u64)>,
}

/// Where the area lies if addresses reach: far above guest memory, which may grow.
const FAR: u64 = 1 << 40;

impl GuestArea {
    /// An area for a guest of so many bytes, which the host backs from now on; on bare metal it is above
    /// all memory that can be. `None`: guest-physical addresses of so many bits do not reach.
    pub fn new(guest_bytes: u64, host: Option<&mut HostMemory>, bits: u32) -> Option<Self> {
        // Clusters with a page each in a table that has just grown: 256 bytes for a page, and half as
        // much again while it grows.
        let bytes = (guest_bytes / 8).next_power_of_two().max(64 << 20);
        let Some(host) = host else {
            return Some(Self::from(HPA_LIMIT / 2, HPA_LIMIT));
        };
        let last = host.slots().last().map_or(0, |s| s.gpa.value() + s.bytes);
        let start = if bits > 41 { FAR } else { last.next_multiple_of(1 << 30) };
        let room = (1_u64 << bits).saturating_sub(start);
        let bytes = if bytes <= room { bytes } else { 1 << room.checked_ilog2()? };
        host.hot_add(Gpa::new(start), bytes).ok()?;
        Some(Self::from(start, start + bytes))
    }

    const fn from(next: u64, end: u64) -> Self {
        Self { next, end, free: BTreeMap::new(), fresh: Vec::new() }
    }

    /// Blocks that were taken since this was last asked: the kernel clears them.
    pub fn take_fresh(&mut self) -> Vec<(Gpa, u64)> {
        std::mem::take(&mut self.fresh)
    }
}

impl Supply for GuestArea {
    fn take(&mut self, bytes: u64) -> Option<u64> {
        let bytes = bytes.max(PAGE).next_power_of_two();
        let at = match self.free.get_mut(&bytes).and_then(Vec::pop) {
            Some(at) => at,
            None => {
                let at = self.next.next_multiple_of(bytes);
                if at + bytes > self.end {
                    return None;
                }
                // What alignment leaves out is for smaller blocks.
                while self.next < at {
                    let piece = 1 << self.next.trailing_zeros();
                    self.free.entry(piece).or_default().push(self.next);
                    self.next += piece;
                }
                self.next = at + bytes;
                at
            }
        };
        self.fresh.push((Gpa::new(at), bytes));
        Some(at)
    }

    fn give(&mut self, at: u64, bytes: u64) {
        self.free.entry(bytes.max(PAGE).next_power_of_two()).or_default().push(at);
    }
}

/// A guest's memory for tables, and the host that it may ask by hypercalls.
pub(super) struct Asking<'a> {
    pub(super) area: &'a mut GuestArea,
    pub(super) host: Option<&'a mut HostMemory>,
    /// Hypercalls so far.
    pub(super) asked: u64,
}

impl Supply for Asking<'_> {
    fn take(&mut self, bytes: u64) -> Option<u64> {
        self.area.take(bytes)
    }
    fn give(&mut self, at: u64, bytes: u64) {
        self.area.give(at, bytes);
    }
    fn take_host(&mut self, bytes: u64) -> Option<u64> {
        self.asked += 1;
        self.host.as_mut()?.take(bytes)
    }
    fn give_host(&mut self, at: u64, bytes: u64) {
        self.asked += 1;
        if let Some(host) = &mut self.host {
            host.give(at, bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_aligned_and_never_given_twice() {
        let mut area = GuestArea::from(1 << 40, (1 << 40) + (4 << 20));
        let mut out: Vec<(u64, u64)> = Vec::new();
        for bytes in [4096, 1 << 20, 8192, 4096, 1 << 20, 64 << 10] {
            let at = area.take(bytes).unwrap();
            assert_eq!(at % bytes, 0);
            assert!(out.iter().all(|(a, b)| at + bytes <= *a || a + b <= at), "{at:#x}");
            out.push((at, bytes));
        }
        assert_eq!(area.take_fresh().len(), 6);
        let (at, bytes) = out[1];
        area.give(at, bytes);
        assert_eq!(area.take(bytes), Some(at));
        assert_eq!(area.take(4 << 20), None);
    }
}
