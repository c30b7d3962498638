//! Batches of events: how a source hands its stream on, and the builder that makes page runs.

mod burst;
mod lane;

pub use burst::Burst;
pub use lane::Lane;

use crate::{AccessKind, Control, Gpa, Gva, Run, RunFlags, VcpuId};

/// A piece of the event stream: runs in program order, and the controls between them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Page runs in the order of their first accesses.
    pub runs: Vec<Run>,
    /// `(position, control)` in order: the control takes effect before `runs[position]`; a position
    /// equal to `runs.len()` is after the last run.
    pub controls: Vec<(u32, Control)>,
}

impl Batch {
    /// Runs after which a source should hand a batch on: 8,192, 256 KiB, which stays in a
    /// second-level cache while several machines read it.
    pub const RUNS: usize = 8192;

    /// No run and no control.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty() && self.controls.is_empty()
    }
    /// Accesses in all runs.
    pub fn accesses(&self) -> u64 {
        self.runs.iter().map(|r| u64::from(r.count)).sum()
    }
    /// Instructions in all runs.
    pub fn instructions(&self) -> u64 {
        self.runs.iter().map(|r| u64::from(r.instructions)).sum()
    }
    /// Splits the batch at its controls: slices of runs, each with the controls before it.
    pub fn segments(&self) -> impl Iterator<Item = (&[(u32, Control)], std::ops::Range<usize>)> {
        let (mut control, mut run, mut done) = (0, 0, false);
        std::iter::from_fn(move || {
            if done {
                return None;
            }
            let first = control;
            while control < self.controls.len() && self.controls[control].0 as usize <= run {
                control += 1;
            }
            let end = self.controls.get(control).map_or(self.runs.len(), |c| c.0 as usize);
            let segment = (&self.controls[first..control], run..end);
            run = end;
            done = control == self.controls.len();
            Some(segment)
        })
    }
}

/// A batch after the guest has dealt with it: the process-level controls have become table writes,
/// CR3 loads, invalidations and faults, and each run has its guest-physical address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuestBatch {
    /// Runs and architectural controls.
    pub batch: Batch,
    /// `gpas[i]` is where the guest's tables put the first access of `runs[i]` at that time.
    pub gpas: Vec<Gpa>,
}

/// How much of a stream is wanted in the next batch, so that a cut falls where the trace has it and not
/// where a page run happens to end: several runs may be open side by side, which all end there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Room {
    /// A run begins behind exactly so many accesses, and the batch is handed on soon after.
    pub accesses: u64,
    /// The batch is handed on once so many instructions have retired in it.
    pub instructions: u64,
    /// Every access is a run of its own, so that their order is known.
    pub single: bool,
}

impl Room {
    /// No limit but the size of a batch.
    pub const ALL: Self = Self { accesses: u64::MAX, instructions: u64::MAX, single: false };
    /// Every access by itself.
    pub const SINGLE: Self = Self { single: true, ..Self::ALL };

    /// So many accesses.
    pub const fn accesses(accesses: u64) -> Self {
        Self { accesses, ..Self::ALL }
    }
}

/// The latest run of one kind on one vCPU.
#[derive(Clone, Copy)]
struct Open {
    /// First address of its page, and [`RunFlags::KERNEL`] if it is of the kernel.
    page: u64,
    /// Its index in the batch.
    index: usize,
}

/// No run: no access has this page, in which all bits are set.
const CLOSED: Open = Open { page: u64::MAX, index: 0 };

/// Builds batches from single accesses, folding consecutive ones into page runs.
///
/// Per vCPU one data run and one fetch run are open at a time and grow in place, so runs stand in
/// the order of their first accesses.
pub struct BatchBuilder {
    batch: Batch,
    /// Data run and fetch run of each vCPU. One for each that can be, so that none is out of bounds.
    open: Box<[[Open; 2]; 256]>,
    /// The highest vCPU that may have open runs.
    highest: VcpuId,
    /// Accesses up to which none needs a look at what is wanted. While instructions are wanted without
    /// limit these are the accesses that are still wanted; otherwise it is 0.
    left: u64,
    /// What is still wanted of the stream in this batch, but for instructions, while those have a limit.
    room: Room,
    /// Instructions that are still wanted in this batch, but for the last one, so that a borrow tells
    /// it.
    instructions: u64,
    /// What a [`Lane`] writes to before it is handed over.
    slots: Box<[Run; lane::SLOTS]>,
    /// Runs at which the batch is handed on: 0 once controls or the room are used up.
    most: usize,
}

#[cold]
#[inline(never)]
fn push_growing(runs: &mut Vec<Run>, run: Run) {
    runs.reserve(Batch::RUNS);
    runs.push(run);
}

impl Default for BatchBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl BatchBuilder {
    /// An empty builder.
    pub fn new() -> Self {
        let open = Box::new([[CLOSED; 2]; 256]);
        let batch = Batch::default();
        let (left, room, instructions) = (u64::MAX, Room::ALL, u64::MAX);
        let slots = Box::new([lane::EMPTY; lane::SLOTS]);
        Self { batch, open, highest: VcpuId(0), left, room, instructions, slots, most: Batch::RUNS }
    }

    /// Says how much of the stream is wanted in the batch that is being built; see [`Room`]. It holds
    /// until the batch is handed on. At least one access is always wanted, or there would be no batch.
    pub fn set_room(&mut self, room: Room) {
        let accesses = if room.single { 0 } else { room.accesses.max(1) };
        self.room = Room { accesses, ..room };
        self.instructions = match room.instructions {
            u64::MAX => u64::MAX,
            n => n.saturating_sub(1),
        };
        self.left = if self.counts_instructions() { 0 } else { accesses };
    }

    /// Instructions have a limit.
    #[inline]
    const fn counts_instructions(&self) -> bool {
        self.instructions != u64::MAX
    }

    /// Accesses and instructions that are still wanted, of the latter but for the last one.
    #[inline]
    const fn wanted(&self) -> (u64, u64) {
        let accesses = if self.counts_instructions() { self.room.accesses } else { self.left };
        (accesses, self.instructions)
    }

    /// So many accesses were made, of which so many retired an instruction each.
    #[inline]
    const fn made(&mut self, accesses: u64, instructions: u64) {
        if self.counts_instructions() {
            self.room.accesses -= accesses;
            self.instructions -= instructions;
        } else {
            self.left -= accesses;
        }
    }

    /// Takes so many accesses from those that are wanted at once, for [`BatchBuilder::burst`].
    /// Not if fewer are wanted, or if instructions have a limit.
    #[inline]
    pub const fn reserve(&mut self, accesses: u64) -> bool {
        if self.counts_instructions() || self.left < accesses {
            return false;
        }
        self.left -= accesses;
        true
    }

    /// An access that needs a look at what is wanted.
    #[cold]
    #[inline(never)]
    fn counted(&mut self, instructions: u16) {
        self.left = 0;
        if !self.counts_instructions() {
            return self.border();
        }
        let (accesses, none_left) = self.room.accesses.overflowing_sub(1);
        self.room.accesses = accesses;
        if none_left {
            self.border();
        }
        if instructions > 0 {
            let (left, none_left) = self.instructions.overflowing_sub(u64::from(instructions));
            self.instructions = left;
            if none_left {
                self.turn_ends();
            }
        }
    }
    /// What is still wanted of the stream in this batch.
    #[inline]
    pub const fn room(&self) -> Room {
        let (accesses, instructions) = self.wanted();
        Room { accesses, instructions: instructions.saturating_add(1), ..self.room }
    }

    /// The accesses that are wanted are there: what comes after them begins runs of its own, each
    /// access one, until the batch is handed on.
    #[cold]
    #[inline(never)]
    fn border(&mut self) {
        self.close();
        (self.left, self.room.accesses) = (0, 0);
        if !self.room.single {
            self.most = 0;
        }
    }

    /// The instructions that are wanted are there with this access: the next one is behind a border.
    #[cold]
    #[inline(never)]
    fn turn_ends(&mut self) {
        self.room.accesses = 0;
        self.instructions = 0;
        self.most = 0;
    }

    /// Adds an access of `bytes` bytes. One that crosses into the next page is two accesses, one to
    /// each page, as the hardware makes two look-ups. `instructions` retire with it.
    #[inline(always)]
    pub fn access(
        &mut self,
        vcpu: VcpuId,
        pc: Gva,
        gva: Gva,
        bytes: u32,
        kind: AccessKind,
        instructions: u32,
    ) {
        self.access_with(vcpu, pc, gva, bytes, RunFlags::of(kind), instructions);
    }

    /// For many accesses of one vCPU in user mode, none of which crosses a line, that were reserved.
    /// `instructions` retire with each, and room for all their runs is made at once.
    #[inline]
    pub fn burst(&mut self, vcpu: VcpuId, accesses: usize, instructions: u16) -> Burst<'_> {
        let Self { batch, open, highest, .. } = self;
        batch.runs.reserve(accesses);
        *highest = (*highest).max(vcpu);
        let open = &mut open[usize::from(vcpu.0)][0];
        Burst { runs: &mut batch.runs, latest: *open, open, vcpu, instructions }
    }

    /// As [`BatchBuilder::access`], with the run's flags given.
    #[inline(always)]
    pub fn access_with(
        &mut self,
        vcpu: VcpuId,
        pc: Gva,
        gva: Gva,
        bytes: u32,
        flags: RunFlags,
        instructions: u32,
    ) {
        let at = gva.value();
        // Most are within a line, and so within a page.
        match u16::try_from(instructions) {
            Ok(instructions) if (at & 63) + u64::from(bytes) <= 64 => {
                self.piece(vcpu, pc, gva, 1 << (at >> 6 & 63), flags, instructions);
            }
            _ => self.wide(vcpu, pc, gva, bytes, flags, instructions),
        }
    }

    /// An access to several lines, or after more instructions than a run holds.
    #[inline(never)]
    fn wide(
        &mut self,
        vcpu: VcpuId,
        pc: Gva,
        gva: Gva,
        bytes: u32,
        flags: RunFlags,
        instructions: u32,
    ) {
        let lines = |first: u64, last: u64| {
            (u64::MAX << (first >> 6)) & (u64::MAX >> (63 - (last.min(0xfff) >> 6)))
        };
        let offset = gva.value() & 0xfff;
        let mut last = offset + u64::from(bytes.max(1)) - 1;
        let now = instructions.min(u32::from(u16::MAX));
        if now < instructions {
            // What does not fit one run begins one.
            self.open[usize::from(vcpu.0)][usize::from(flags.is_fetch())] = CLOSED;
        }
        self.piece(vcpu, pc, gva, lines(offset, last), flags, now as u16);
        if now < instructions {
            self.instructions(vcpu, instructions - now);
        }
        let mut page = gva.value() & !0xfff;
        while last > 0xfff {
            last -= 0x1000;
            page = page.wrapping_add(0x1000);
            self.piece(vcpu, pc, Gva::new(page), lines(0, last), flags, 0);
        }
    }

    /// Adds an access to lines of one page.
    #[inline(always)]
    fn piece(
        &mut self,
        vcpu: VcpuId,
        pc: Gva,
        gva: Gva,
        lines: u64,
        flags: RunFlags,
        instructions: u16,
    ) {
        // Stored before it is looked at: that is one instruction and a branch.
        let (left, look) = self.left.overflowing_sub(1);
        self.left = left;
        if look {
            self.counted(instructions);
        }
        let page = gva.value() & !0xfff | flags.kernel_bit();
        let runs = &mut self.batch.runs;
        let open = &mut self.open[usize::from(vcpu.0)][usize::from(flags.is_fetch())];
        if open.page == page
            && let Some(run) = runs.get_mut(open.index)
            && run.count < u16::MAX
            && let Some(total) = run.instructions.checked_add(instructions)
            && (!flags.is_store() || run.flags.is_store())
        {
            run.lines |= lines;
            run.count += 1;
            run.instructions = total;
            return;
        }
        let index = runs.len();
        // Not one value for both: that the cold call takes its address would keep it in memory.
        let run = || Run { gva, pc, lines, count: 1, instructions, vcpu, flags };
        if index == runs.capacity() {
            push_growing(runs, run());
        } else {
            runs.push(run());
        }
        *open = Open { page, index };
        self.highest = self.highest.max(vcpu);
    }

    /// Adds instructions that make no access. They are carried by the latest run that has room; if
    /// there is none in this batch the latest access is repeated as a run that carries them, so it
    /// is best to give instructions with the access that follows them.
    #[cold]
    fn instructions(&mut self, vcpu: VcpuId, mut instructions: u32) {
        // Spread over the newest runs of this vCPU in the batch; a gap of more than 64 K
        // instructions without an access is rare enough for a linear search.
        for run in self.batch.runs.iter_mut().rev().filter(|r| r.vcpu == vcpu) {
            let room = u32::from(u16::MAX - run.instructions);
            let take = room.min(instructions);
            run.instructions += take as u16;
            instructions -= take;
            if instructions == 0 {
                return;
            }
        }
        while instructions > 0 {
            let Some(last) = self.batch.runs.iter().rev().find(|r| r.vcpu == vcpu).copied() else {
                return;
            };
            let take = instructions.min(u32::from(u16::MAX));
            self.batch.runs.push(Run { count: 1, instructions: take as u16, ..last });
            instructions -= take;
        }
    }

    /// Adds a control before the next access. Open runs end, since what follows may change tables.
    pub fn control(&mut self, control: Control) {
        self.close();
        self.batch.controls.push((self.batch.runs.len() as u32, control));
        if self.batch.controls.len() >= Batch::RUNS {
            self.most = 0;
        }
    }

    fn close(&mut self) {
        self.open[..=usize::from(self.highest.0)].fill([CLOSED; 2]);
    }

    /// Runs in the batch so far.
    #[inline]
    pub fn len(&self) -> usize {
        self.batch.runs.len()
    }
    /// No run and no control so far.
    pub fn is_empty(&self) -> bool {
        self.batch.is_empty()
    }
    /// Whether the batch should be handed on.
    #[inline]
    pub fn is_full(&self) -> bool {
        self.batch.runs.len() >= self.most
    }
    /// Hands the batch over and leaves the builder empty; `into` is reused for its memory.
    pub fn take_into(&mut self, into: &mut Batch) {
        self.close();
        (self.left, self.room) = (u64::MAX, Room::ALL);
        self.instructions = u64::MAX;
        self.most = Batch::RUNS;
        into.runs.clear();
        into.controls.clear();
        std::mem::swap(&mut self.batch, into);
    }
}

#[cfg(test)]
mod tests;
