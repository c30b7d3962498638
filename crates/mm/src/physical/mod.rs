//! Physical memory of one machine: zones of a memory map, shared frames, fragmentation.

pub(crate) mod background;
pub(crate) mod bad_frames;
pub(crate) mod bitmap;
pub(crate) mod buddy;
pub(crate) mod contiguity_map;
pub(crate) mod counts;
pub(crate) mod fragmentation;
pub(crate) mod free_blocks;
pub(crate) mod free_lists;
pub(crate) mod map;
pub(crate) mod runs;
pub(crate) mod set_aside;
pub(crate) mod size;

use self::background::OthersMoved;
use self::buddy::{Buddy, MAX_ORDER};
use self::counts::FrameCounts;
use self::set_aside::{Pool, SetAside};
use crate::error::MmError;
pub use map::{LOW_MEMORY_BYTES, pc_memory_map, reclaimed_memory_map};
use nestwalk_types::{Address, PageSize, mix64};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::marker::PhantomData;
use std::ops::Range;

/// Physical addresses are below this: 16 TiB. Tags of the data-cache models rely on it.
pub const MAX_PHYSICAL_BYTES: u64 = 1 << 44;
/// Frames below 1 MiB belong to the firmware, as on every PC.
pub const LOW_RESERVED_BYTES: u64 = 1 << 20;
/// Where Linux on x86 is loaded (`CONFIG_PHYSICAL_START`): 16 MiB.
pub const KERNEL_IMAGE_AT: u64 = 16 << 20;
/// Border of the zones DMA32 and NORMAL: 4 GiB.
pub const DMA32_END: u64 = 4 << 30;

/// Hashes one number; the map's order is never looked at, so results do not depend on it.
#[derive(Default)]
struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|b| self.0 = mix64(self.0 ^ u64::from(*b)));
    }
    fn write_u64(&mut self, value: u64) {
        self.0 = mix64(value);
    }
}

/// State of a block that has, or had, more than one mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Share {
    /// That many mappings, at least 2, all of the block's size or all counted at this size.
    Mappings(u32),
    /// At least one mapper has split the block, so mappings are counted in blocks of order `sub`;
    /// `live` of them are still allocated.
    Split { sub: u32, live: u32 },
}

/// One zone: a buddy allocator over its part of the memory map.
#[derive(Clone, Debug)]
pub(crate) struct Zone {
    name: &'static str,
    pub(crate) buddy: Buddy,
}

/// Physical memory: RAM in up to two zones, DMA32 below 4 GiB and NORMAL above. Allocation falls
/// back from NORMAL to DMA32, as in Linux's zone list.
#[derive(Debug)]
pub struct PhysicalMemory<O> {
    /// In the order of allocation.
    pub(crate) zones: Vec<Zone>,
    ranges: Vec<(O, u64)>,
    /// Frames of others that can be moved, ascending, as they lay at the beginning.
    pub(crate) movable: Vec<u64>,
    /// Those that were moved since.
    pub(crate) others_moved: OthersMoved,
    /// Frames that may be added.
    room: u64,
    frames: u64,
    pinned: u64,
    /// Mappings of a 4 KiB frame beyond its first.
    extra: FrameCounts,
    /// Mappings of larger blocks that have more than one.
    shares: HashMap<u64, Share, BuildHasherDefault<NumberHasher>>,
    /// Blocks in state [`Share::Split`]: no look-up for them while there are none.
    split: u64,
    /// Frames that placements have set aside.
    pub(crate) aside: SetAside,
    /// Large pages that are kept for those who ask for their size.
    pub(crate) pools: Vec<Pool>,
    /// The processor on which the kernel runs now.
    pub(crate) cpu: usize,
    space: PhantomData<O>,
}

fn key(frame: u64, order: u32) -> u64 {
    frame << 5 | u64::from(order)
}

impl<O: Address> PhysicalMemory<O> {
    /// RAM in `ranges` of `(first address, bytes)`, ascending. The first MiB and `kernel_bytes`
    /// from
    /// [`KERNEL_IMAGE_AT`] on are in use from the beginning, as far as they are RAM.
    ///
    /// # Errors
    /// Ranges that are not whole pages, overlap, or reach beyond [`MAX_PHYSICAL_BYTES`]; no memory
    /// left after what is reserved.
    pub fn new(ranges: &[(O, u64)], kernel_bytes: u64) -> Result<Self, MmError> {
        Self::with_room(ranges, kernel_bytes, 0)
    }

    /// As [`PhysicalMemory::new`], with addresses for so many bytes that may be added later, above
    /// the end and above 4 GiB.
    ///
    /// # Errors
    /// As [`PhysicalMemory::new`], the room included.
    pub fn with_room(ranges: &[(O, u64)], kernel_bytes: u64, room: u64) -> Result<Self, MmError> {
        let bytes = ranges.iter().fold(0u64, |sum, r| sum.saturating_add(r.1));
        let wrong = |reason: &str| MmError::PhysicalMemory { bytes, reason: reason.into() };
        let mut last = 0;
        for &(start, length) in ranges {
            let start = start.value();
            let end = start.checked_add(length).filter(|end| *end <= MAX_PHYSICAL_BYTES);
            let Some(end) = end else {
                return Err(wrong("reaches beyond 16 TiB, the most that is supported"));
            };
            if start & 0xfff != 0 || length & 0xfff != 0 {
                return Err(wrong("must be whole pages of 4096 bytes"));
            }
            if start < last {
                return Err(wrong("ranges must be ascending and must not overlap"));
            }
            last = end;
        }
        let top = last.max(DMA32_END).saturating_add(room);
        if room > 0 && top > MAX_PHYSICAL_BYTES {
            return Err(wrong("with memory that may be added it reaches beyond 16 TiB"));
        }
        let border = DMA32_END >> 12;
        let mut zones = Vec::new();
        for (name, zone) in [("NORMAL", border..u64::MAX), ("DMA32", 0..border)] {
            let parts: Vec<_> = ranges.iter().map(|r| part(r, &zone)).collect();
            let first = parts.iter().filter(|p| !p.is_empty()).map(|p| p.start).min();
            let end = parts.iter().filter(|p| !p.is_empty()).map(|p| p.end).max();
            let (first, end) = match room > 0 && zone.start > 0 {
                true => (Some(first.unwrap_or(border)), Some(top >> 12)),
                false => (first, end),
            };
            if let (Some(first), Some(end)) = (first, end) {
                let mut buddy = Buddy::new_empty(first..end);
                parts.into_iter().for_each(|p| buddy.add(p));
                zones.push(Zone { name, buddy });
            }
        }
        let ranges = ranges.to_vec();
        let mut memory =
            Self { zones, ranges, room: room >> 12, frames: bytes >> 12, ..Self::none() };
        memory.reserve(0..LOW_RESERVED_BYTES >> 12);
        memory.reserve(KERNEL_IMAGE_AT >> 12..(KERNEL_IMAGE_AT + kernel_bytes).div_ceil(4096));
        if memory.free_frames() == 0 {
            return Err(wrong("nothing is left after the first MiB and the kernel image"));
        }
        Ok(memory)
    }

    /// No memory at all: what is left where memory was taken out.
    pub fn none() -> Self {
        Self {
            zones: Vec::new(),
            ranges: Vec::new(),
            movable: Vec::new(),
            others_moved: OthersMoved::default(),
            room: 0,
            frames: 0,
            pinned: 0,
            extra: FrameCounts::default(),
            shares: HashMap::default(),
            split: 0,
            aside: SetAside::default(),
            pools: Vec::new(),
            cpu: 0,
            space: PhantomData,
        }
    }

    /// Whether there is memory at the address, free or not.
    pub fn holds(&self, at: O) -> bool {
        self.ranges.iter().any(|r| at >= r.0 && at.value() - r.0.value() < r.1)
    }

    /// Marks a frame as faulty: it is in use for good. False if it is in use already.
    pub fn poison(&mut self, at: O) -> bool {
        let free = self.alloc_at(at, 0);
        self.pinned += u64::from(free);
        free
    }

    /// Memory is added above the end, and above 4 GiB: hot-plug. Returns its first address, or
    /// `None`
    /// if there is no room for it.
    pub fn add(&mut self, bytes: u64) -> Option<O> {
        let frames = bytes >> 12;
        let end = self.ranges.last().map_or(0, |r| r.0.value() + r.1);
        let start = end.max(DMA32_END);
        let zone = self.zones.iter_mut().find(|z| z.name == "NORMAL");
        let zone = zone.filter(|_| frames > 0 && frames <= self.room)?;
        zone.buddy.add(start >> 12..(start >> 12) + frames);
        self.room -= frames;
        self.frames += frames;
        match self.ranges.last_mut() {
            Some(last) if end == start => last.1 += bytes,
            _ => self.ranges.push((O::new(start), bytes)),
        }
        Some(O::new(start))
    }

    /// Takes so many frames for good, from the smallest free blocks first, as single pages are
    /// allocated. Returns them as ranges, ascending; fewer if fewer are free.
    pub fn pin(&mut self, frames: u64) -> Vec<Range<u64>> {
        let mut taken = Vec::with_capacity(frames as usize);
        while (taken.len() as u64) < frames
            && let Some(frame) = self.alloc(0)
        {
            taken.push(frame.page_number());
        }
        self.pinned += taken.len() as u64;
        taken.sort_unstable();
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for frame in taken {
            match ranges.last_mut() {
                Some(last) if last.end == frame => last.end += 1,
                _ => ranges.push(frame..frame + 1),
            }
        }
        ranges
    }

    /// Takes those frames of the range that are free for good.
    fn reserve(&mut self, frames: Range<u64>) {
        for frame in frames {
            self.pinned += u64::from(self.alloc_at(O::new(frame << 12), 0));
        }
    }

    /// Ranges of RAM, `(first address, bytes)`, ascending.
    pub fn ranges(&self) -> &[(O, u64)] {
        &self.ranges
    }
    /// Bytes of RAM, the reserved ones included.
    pub const fn bytes(&self) -> u64 {
        self.frames << 12
    }
    /// Free frames of 4 KiB, those on processors' lists included ([`crate::PlacementKind::Linux`]).
    pub fn free_frames(&self) -> u64 {
        self.zones.iter().map(|z| z.buddy.free_frames() + z.buddy.held_frames()).sum()
    }
    /// Frames that were in use from the beginning: firmware, kernel image, fragmentation.
    pub const fn pinned_frames(&self) -> u64 {
        self.pinned
    }
    /// The zones in the order of allocation, `(name, allocator)`.
    pub fn zones(&self) -> impl Iterator<Item = (&'static str, &Buddy)> {
        self.zones.iter().map(|z| (z.name, &z.buddy))
    }
    /// [`Buddy::fmfi`] over all zones, each weighted by its free memory.
    pub fn fmfi(&self, order: u32) -> f64 {
        let free = self.free_frames();
        if free == 0 {
            return 1.0;
        }
        let part = |z: &Zone| z.buddy.fmfi(order) * z.buddy.free_frames() as f64;
        self.zones.iter().map(part).sum::<f64>() / free as f64
    }

    pub(crate) fn zone(&mut self, frame: u64) -> Option<&mut Buddy> {
        self.zones.iter_mut().map(|z| &mut z.buddy).find(|b| b.range().contains(&frame))
    }

    /// A free block of `2^order` frames, or `None`. For blocks of up to 32 KiB, what has been set
    /// aside is given up before that.
    #[inline]
    pub fn alloc(&mut self, order: u32) -> Option<O> {
        let frame = self.zones.iter_mut().find_map(|z| z.buddy.alloc(order));
        frame.or_else(|| self.alloc_in_need(order)).map(|f| O::new(f << 12))
    }
    /// Takes exactly this block; `false` if it is not free as a whole.
    pub fn alloc_at(&mut self, at: O, order: u32) -> bool {
        let frame = at.page_number();
        self.zone(frame).is_some_and(|b| b.alloc_at(frame, order))
    }
    /// Whether the block of `2^order` frames at `at` is free as a whole.
    pub fn is_free_block(&self, at: O, order: u32) -> bool {
        self.zones.iter().any(|z| z.buddy.holder(at.page_number(), order).is_some())
    }
    /// Whether the frame of `at` is free.
    pub fn is_free(&self, at: O) -> bool {
        self.zones.iter().any(|z| z.buddy.is_free(at.page_number()))
    }

    /// Adds a mapping to a block that has one already.
    pub fn share(&mut self, at: O, order: u32) {
        if order == 0 {
            let frame = at.page_number();
            self.extra.set(frame, self.extra.get(frame) + 1);
            return;
        }
        let k = key(at.page_number(), order);
        match self.shares.get_mut(&k) {
            None => {
                self.shares.insert(k, Share::Mappings(2));
            }
            Some(Share::Mappings(n)) => *n += 1,
            Some(&mut Share::Split { sub, .. }) => {
                for part in parts(at, order, sub) {
                    self.share(part, sub);
                }
            }
        }
    }

    /// Whether the block, or a part of it, has more than one mapping.
    pub fn is_shared(&self, at: O, order: u32) -> bool {
        if order == 0 {
            return self.extra.get(at.page_number()) > 0;
        }
        if self.shares.is_empty() {
            return false;
        }
        match self.shares.get(&key(at.page_number(), order)) {
            None => false,
            Some(Share::Mappings(_)) => true,
            Some(&Share::Split { sub, .. }) => {
                parts(at, order, sub).any(|part| self.is_shared(part, sub))
            }
        }
    }

    /// One mapper of the block maps it in blocks of order `sub` from now on.
    pub fn split(&mut self, at: O, order: u32, sub: u32) {
        self.leave_pool(at.page_number(), order);
        let k = key(at.page_number(), order);
        let mappings = match self.shares.get(&k) {
            Some(&Share::Mappings(n)) => Some(n),
            Some(Share::Split { .. }) => return,
            // Not shared, but part of a block whose parts are counted: its own parts are, too.
            None if self.split > 0 && self.whole_of(at, order).is_some() => None,
            None => return,
        };
        self.shares.insert(k, Share::Split { sub, live: 1 << (order - sub) });
        self.split += 1;
        if let Some(n) = mappings {
            for part in parts(at, order, sub) {
                if sub == 0 {
                    self.extra.set(part.page_number(), n - 1);
                } else {
                    self.shares.insert(key(part.page_number(), sub), Share::Mappings(n));
                }
            }
        }
    }

    /// The block in [`Share::Split`] that counts this one as a part, as a key, and its order.
    fn whole_of(&self, at: O, order: u32) -> Option<(u64, u32)> {
        [9, 10, MAX_ORDER].into_iter().filter(|whole| *whole > order).find_map(|whole| {
            let k = key(at.page_number() >> whole << whole, whole);
            match self.shares.get(&k) {
                Some(Share::Split { sub, .. }) if *sub == order => Some((k, whole)),
                _ => None,
            }
        })
    }

    /// Takes a mapping away from a block; the block, or those parts of it that have no mapping
    /// left,
    /// are free again. Returns how many frames that are.
    pub fn release(&mut self, at: O, order: u32) -> u64 {
        if order == 0 {
            return self.release_frame(at);
        }
        let k = key(at.page_number(), order);
        let share = if self.shares.is_empty() { None } else { self.shares.get_mut(&k) };
        match share {
            None => {
                self.free(at, order);
                if self.split > 0 {
                    self.part_is_gone(at, order);
                }
                1 << order
            }
            Some(Share::Mappings(2)) => {
                self.shares.remove(&k);
                0
            }
            Some(Share::Mappings(n)) => {
                *n -= 1;
                0
            }
            Some(&mut Share::Split { sub, .. }) => {
                parts(at, order, sub).map(|part| self.release(part, sub)).sum()
            }
        }
    }

    fn release_frame(&mut self, at: O) -> u64 {
        let frame = at.page_number();
        let extra = self.extra.get(frame);
        if extra > 0 {
            self.extra.set(frame, extra - 1);
            return 0;
        }
        self.free(at, 0);
        if self.split > 0 {
            self.part_is_gone(at, 0);
        }
        1
    }

    /// Keeps the books of blocks in [`Share::Split`] when a part has become free.
    fn part_is_gone(&mut self, at: O, mut order: u32) {
        while let Some((k, whole)) = self.whole_of(at, order) {
            let Some(Share::Split { live, .. }) = self.shares.get_mut(&k) else { return };
            *live -= 1;
            if *live > 0 {
                return;
            }
            self.shares.remove(&k);
            self.split -= 1;
            order = whole;
        }
    }

    /// Frees a block that has no mapping: a table, or what was taken with
    /// [`PhysicalMemory::alloc_at`]. A block that is free already is a bug, which debug builds
    /// catch.
    pub fn free(&mut self, at: O, order: u32) {
        let (frame, cpu) = (at.page_number(), self.cpu);
        if self.back_to_pool(frame, order) {
            return;
        }
        let freed = self.zone(frame).map(|b| match order {
            0 => b.free_on(cpu, frame),
            _ => b.free(frame, order),
        });
        debug_assert_eq!(freed, Some(Ok(())), "{at:?} order {order}");
    }
}

/// The part of a range of addresses that lies in `zone`, in frames.
fn part<O: Address>(range: &(O, u64), zone: &Range<u64>) -> Range<u64> {
    let (first, end) = (range.0.page_number(), (range.0.value() + range.1) >> 12);
    first.max(zone.start)..end.min(zone.end)
}

/// The blocks of order `sub` in a block.
fn parts<O: Address>(at: O, order: u32, sub: u32) -> impl Iterator<Item = O> {
    (0..1u64 << (order - sub)).map(move |i| at.offset_by(i << (12 + sub)))
}

/// Size of the pages that a page of `size` is split into: the leaf one level below.
pub(crate) const fn below(size: PageSize) -> PageSize {
    if size.shift() > PageSize::SIZE_2M.shift() + 1 { PageSize::SIZE_2M } else { PageSize::SIZE_4K }
}

#[cfg(test)]
mod tests;
