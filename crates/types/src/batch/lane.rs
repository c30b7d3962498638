//! The short way into a batch, for decoders with many accesses of one vCPU in a row.

use super::{BatchBuilder, CLOSED, Open};
use crate::{Batch, Gva, Run, RunFlags, VcpuId};

/// Runs that a lane gathers before it hands them to the batch.
const FRESH: usize = 126;
/// Slots for those, and for the runs of each kind that were open before.
pub(super) const SLOTS: usize = FRESH + 2;

/// The run of one kind that is open, as it will be written back.
#[derive(Clone, Copy)]
struct Side {
    /// First address of its page, and bytes from there that it takes: those of the page, or none.
    page: u64,
    bytes: u64,
    /// First address of the line that was fetched from last, which is one of `lines`, and bytes from
    /// there that need nothing but to be counted: those of the line, or none.
    line: u64,
    line_bytes: u64,
    /// Where it is among the slots.
    slot: usize,
    lines: u64,
    /// Its accesses.
    count: u16,
    /// Those that no instruction retires with, if it is of fetches: what was crossed into.
    apart: u16,
    /// It takes stores.
    stores: bool,
}

/// No run: nothing joins it.
const NONE: Side = Side {
    page: 0,
    bytes: 0,
    line: 0,
    line_bytes: 0,
    slot: usize::MAX,
    lines: 0,
    count: 0,
    apart: 0,
    stores: false,
};

/// What no slot holds yet.
pub(super) const EMPTY: Run = Run {
    gva: Gva::new(0),
    pc: Gva::new(0),
    lines: 0,
    count: 0,
    instructions: 0,
    vcpu: VcpuId(0),
    flags: RunFlags::of(crate::AccessKind::Load),
};

const DATA: usize = 0;
const FETCH: usize = 1;

/// Adds accesses of one vCPU to a batch, as [`BatchBuilder::access_with`] does, in a third of the
/// instructions: the two runs that are open are held here, and written back when the lane ends. A run
/// that is nearly full is followed by another a little earlier.
pub struct Lane<'a> {
    builder: &'a mut BatchBuilder,
    vcpu: VcpuId,
    /// [`RunFlags::KERNEL`] or nothing: of all accesses until it is set again.
    mode: RunFlags,
    sides: [Side; 2],
    /// Accesses that the room of the builder does not know of yet.
    made: [u32; 2],
    /// Most accesses that are still to come by the short way.
    most: u64,
    /// Runs gathered, and how many may be: none if a run is open that only the builder knows of.
    fresh: usize,
    limit: usize,
    /// Places in the batch of the runs that were open before.
    before: [usize; 2],
}

impl BatchBuilder {
    /// A lane for at most so many accesses of this vCPU that are in one page, in this mode:
    /// [`RunFlags::KERNEL`] or nothing.
    #[inline]
    pub fn lane(&mut self, vcpu: VcpuId, most: u32, mode: RunFlags) -> Lane<'_> {
        let (sides, most) = ([NONE; 2], u64::from(most));
        let mut lane = Lane {
            builder: self,
            vcpu,
            mode,
            sides,
            made: [0; 2],
            most,
            fresh: 0,
            limit: 0,
            before: [0; 2],
        };
        lane.load();
        lane
    }
}

impl Lane<'_> {
    /// Adds a fetch of `bytes` bytes, with which one instruction retires.
    #[inline(always)]
    pub fn fetch(&mut self, pc: u64, bytes: u16) {
        if !self.joins_fetch(pc, bytes) {
            self.turn::<FETCH>(pc, pc, bytes, false);
        }
    }

    /// Adds a load of `bytes` bytes or a store.
    #[inline(always)]
    pub fn data(&mut self, pc: u64, gva: u64, bytes: u16, store: bool) {
        if !self.joins_data(gva, bytes, store) {
            self.turn::<DATA>(pc, gva, bytes, store);
        }
    }

    /// Adds a fetch of one byte or more to the run that is open, if it fits; whether it did. What fits
    /// is within a page of the run, so an address that is not as it should be does not.
    #[inline(always)]
    pub fn joins_fetch(&mut self, pc: u64, bytes: u16) -> bool {
        self.joins::<FETCH>(pc, bytes, false)
    }

    /// As [`Lane::joins_fetch`] for a load or a store.
    #[inline(always)]
    pub fn joins_data(&mut self, gva: u64, bytes: u16, store: bool) -> bool {
        self.joins::<DATA>(gva, bytes, store)
    }

    #[inline(always)]
    fn joins<const KIND: usize>(&mut self, gva: u64, bytes: u16, store: bool) -> bool {
        let side = &mut self.sides[KIND];
        if KIND == FETCH && bytes != 0 {
            // Most instructions are in the line of the one before.
            let first = gva.wrapping_sub(side.line);
            let last = first.wrapping_add(u64::from(bytes) - 1);
            if (first | last) < side.line_bytes {
                side.count += 1;
                return true;
            }
        }
        let more = u64::from(bytes).wrapping_sub(1);
        if more >= 64 {
            return false;
        }
        let first = gva.wrapping_sub(side.page);
        let last = first.wrapping_add(more);
        // Both are within the page.
        if (first | last) >= side.bytes {
            return false;
        }
        if KIND == DATA && store && !side.stores {
            return false;
        }
        if KIND == FETCH {
            (side.line, side.line_bytes) = (gva.wrapping_add(more) & !63, 64);
        }
        side.count += 1;
        side.lines |= 1 << (first >> 6 & 63);
        side.lines |= 1 << (last >> 6 & 63);
        true
    }

    /// Adds a fetch that [`Lane::joins_fetch`] has just refused.
    #[inline(always)]
    pub fn begins_fetch(&mut self, pc: u64, bytes: u16) {
        self.turn::<FETCH>(pc, pc, bytes, false);
    }

    /// Adds a load or a store that [`Lane::joins_data`] has just refused.
    #[inline(always)]
    pub fn begins_data(&mut self, pc: u64, gva: u64, bytes: u16, store: bool) {
        self.turn::<DATA>(pc, gva, bytes, store);
    }

    /// Sets the mode of the accesses that follow.
    #[inline]
    pub fn set_mode(&mut self, mode: RunFlags) {
        if mode != self.mode {
            self.store();
            self.mode = mode;
            self.load();
        }
    }

    /// An access that begins a run.
    #[inline(never)]
    fn turn<const KIND: usize>(&mut self, pc: u64, gva: u64, bytes: u16, store: bool) {
        let (at, size) = (gva & 0xfff, u64::from(bytes));
        let kind = if KIND == FETCH { RunFlags::FETCH } else { RunFlags::STORE.when(store) };
        let flags = self.mode.union(kind);
        let instructions = u32::from(KIND == FETCH);
        if self.fresh == self.limit || size.wrapping_sub(1) >= 64 || at + size > 4096 {
            return self.long(pc, gva, bytes, flags, instructions);
        }
        self.write_back::<KIND>();
        let lines = 1 << (at >> 6) | 1 << ((at + size - 1) >> 6);
        let (pc, start, vcpu) = (Gva::new(pc), Gva::new(gva), self.vcpu);
        let slot = self.fresh;
        self.fresh = slot + 1;
        // Of no access yet: the first is one of those that are written back.
        let run = Run { gva: start, pc, lines, count: 0, instructions: 0, vcpu, flags };
        self.builder.slots[slot % SLOTS] = run;
        let page = gva & !0xfff;
        let (line, line_bytes) = (0, 0);
        let (bytes, count, apart, stores) = (4096, 1, 0, store);
        self.sides[KIND] =
            Side { page, bytes, line, line_bytes, slot, lines, count, apart, stores };
    }

    /// An access to more than a page, or near to what is wanted of the stream.
    #[cold]
    #[inline(never)]
    fn long(&mut self, pc: u64, gva: u64, bytes: u16, flags: RunFlags, instructions: u32) {
        let (vcpu, pc, gva) = (self.vcpu, Gva::new(pc), Gva::new(gva));
        self.store();
        self.builder.access_with(vcpu, pc, gva, u32::from(bytes), flags, instructions);
        self.load();
    }

    /// Takes the open runs over, unless what is wanted of the stream may end on the way.
    fn load(&mut self) {
        let (accesses, instructions) = self.builder.wanted();
        self.sides = [NONE; 2];
        (self.fresh, self.limit) = (0, 0);
        if accesses.min(instructions) <= self.most {
            return;
        }
        let kernel = self.mode.kernel_bit();
        for (kind, side) in self.sides.iter_mut().enumerate() {
            let open = self.builder.open[usize::from(self.vcpu.0)][kind];
            if open.page == CLOSED.page || open.page & 0xfff != kernel {
                continue;
            }
            let Some(run) = self.builder.batch.runs.get(open.index).copied() else { continue };
            let fetch = kind == FETCH;
            let apart = if fetch { run.count.checked_sub(run.instructions) } else { Some(0) };
            // A run that began with many instructions stays on the long way.
            let Some(apart) = apart else { continue };
            let slot = FRESH + kind;
            self.builder.slots[slot] = run;
            self.before[kind] = open.index;
            // One that would be full before the lane ends is left as it is, and another begun.
            let fits = u64::from(run.count) + self.most <= u64::from(u16::MAX);
            *side = Side {
                page: open.page & !0xfff,
                bytes: if fits { 4096 } else { 0 },
                line: 0,
                line_bytes: 0,
                slot,
                lines: run.lines,
                count: run.count,
                apart,
                stores: run.flags.is_store(),
            };
        }
        if self.sides.iter().all(|s| s.slot != NONE.slot) {
            self.limit = FRESH;
        }
    }

    /// Brings the run of one kind up to date in its slot.
    #[inline]
    fn write_back<const KIND: usize>(&mut self) {
        let side = &self.sides[KIND];
        let run = &mut self.builder.slots[side.slot % SLOTS];
        self.made[KIND] += u32::from(side.count - run.count);
        run.lines = side.lines;
        run.count = side.count;
        if KIND == FETCH {
            run.instructions = side.count - side.apart;
        }
    }

    /// Brings the batch up to date, with both runs open.
    fn store(&mut self) {
        let kernel = self.mode.kernel_bit();
        let start = self.builder.batch.runs.len();
        for kind in [DATA, FETCH] {
            let side = self.sides[kind];
            if side.slot == NONE.slot {
                continue;
            }
            match kind {
                DATA => self.write_back::<DATA>(),
                _ => self.write_back::<FETCH>(),
            }
            let before = self.before[kind];
            if let Some(run) = self.builder.batch.runs.get_mut(before) {
                *run = self.builder.slots[FRESH + kind];
            }
            let index = if side.slot < FRESH { start + side.slot } else { before };
            let open = Open { page: side.page | kernel, index };
            self.builder.open[usize::from(self.vcpu.0)][kind] = open;
            self.builder.highest = self.builder.highest.max(self.vcpu);
        }
        let [data, fetches] = std::mem::take(&mut self.made).map(u64::from);
        self.builder.made(data + fetches, fetches);
        let BatchBuilder { batch, slots, .. } = &mut *self.builder;
        if batch.runs.capacity() < start + self.fresh {
            batch.runs.reserve(Batch::RUNS);
        }
        batch.runs.extend_from_slice(&slots[..self.fresh]);
    }
}

impl Drop for Lane<'_> {
    fn drop(&mut self) {
        self.store();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SplitMix64;
    use crate::batch::Room;

    /// The same accesses by a lane and one by one.
    fn both(seed: u64, room: Room) -> [Batch; 2] {
        let mut builders = [BatchBuilder::new(), BatchBuilder::new()];
        let mut random = SplitMix64::new(seed);
        builders.iter_mut().for_each(|b| b.set_room(room));
        let [short, long] = &mut builders;
        for _ in 0..200 {
            let vcpu = VcpuId(random.below(3) as u8);
            let n = random.below(40) as u32;
            let mut mode = RunFlags::KERNEL.when(random.below(2) == 0);
            let mut lane = short.lane(vcpu, n, mode);
            for _ in 0..n {
                let at = random.below(4) << 12 | random.below(4096);
                if random.below(9) == 0 {
                    mode = RunFlags::KERNEL.when(random.below(2) == 0);
                    lane.set_mode(mode);
                }
                let bytes = [random.below(20), random.below(300)][random.below(2) as usize] as u16;
                let what = random.below(3);
                let (pc, gva) = (Gva::new(at + 7), Gva::new(at));
                if what == 0 {
                    lane.fetch(at, bytes);
                    let flags = mode.union(RunFlags::FETCH);
                    long.access_with(vcpu, gva, gva, u32::from(bytes), flags, 1);
                } else {
                    let flags = mode.union(RunFlags::STORE.when(what == 2));
                    lane.data(at + 7, at, bytes, what == 2);
                    long.access_with(vcpu, pc, gva, u32::from(bytes), flags, 0);
                }
            }
            drop(lane);
            assert_eq!(short.is_full(), long.is_full());
            assert_eq!(short.room(), long.room());
        }
        builders.map(|mut b| {
            let mut out = Batch::default();
            b.take_into(&mut out);
            out
        })
    }

    #[test]
    fn the_short_way_leads_where_the_long_one_does() {
        for seed in 0..40 {
            let rooms =
                [Room::ALL, Room::accesses(seed * 97), Room { instructions: 900, ..Room::ALL }];
            for room in rooms {
                let [short, long] = both(seed, room);
                assert_eq!(short, long, "{seed} {room:?}");
            }
        }
    }

    #[test]
    fn a_run_is_full_by_the_short_way_too() {
        let mut b = BatchBuilder::new();
        for _ in 0..70 {
            let mut lane = b.lane(VcpuId(0), 2000, RunFlags::default());
            (0..1000).for_each(|_| lane.fetch(0x1000, 4));
            (0..1000).for_each(|_| lane.data(0, 0x1000, 4, false));
        }
        let mut out = Batch::default();
        b.take_into(&mut out);
        let counts: Vec<u16> = out.runs.iter().map(|r| r.count).collect();
        assert_eq!(counts.len(), 4);
        assert!(counts[..2].iter().all(|c| u32::from(*c) + 2000 > u32::from(u16::MAX)));
        assert_eq!(out.accesses(), 140_000);
        assert_eq!(out.instructions(), 70_000);
    }
}
