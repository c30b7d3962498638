//! Batches of events: how a source hands its stream on, and the builder that makes page runs.

use crate::{AccessKind, Address, Control, Gpa, Gva, Run, RunFlags, VcpuId};

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

const NONE: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Open {
    page: u64,
    index: u32,
}

const CLOSED: Open = Open { page: u64::MAX, index: NONE };

/// Builds batches from single accesses, folding consecutive ones into page runs.
///
/// Per vCPU one data run and one fetch run are open at a time and grow in place, so runs stand in
/// the order of their first accesses.
pub struct BatchBuilder {
    batch: Batch,
    open: Vec<[Open; 2]>,
}

impl Default for BatchBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl BatchBuilder {
    /// An empty builder.
    pub fn new() -> Self {
        Self { batch: Batch::default(), open: vec![[CLOSED; 2]; 1] }
    }

    /// Adds an access of `bytes` bytes. One that crosses into the next page is two accesses, one to
    /// each page, as the hardware makes two look-ups. `instructions` retire with it.
    #[inline]
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

    /// As [`BatchBuilder::access`], with the run's flags given.
    #[inline]
    pub fn access_with(
        &mut self,
        vcpu: VcpuId,
        pc: Gva,
        gva: Gva,
        bytes: u32,
        flags: RunFlags,
        instructions: u32,
    ) {
        let offset = gva.value() & 0xfff;
        let last = offset + u64::from(bytes.max(1)) - 1;
        self.piece(vcpu, pc, gva, offset >> 6, last.min(0xfff) >> 6, flags, instructions);
        if last > 0xfff {
            self.rest(vcpu, pc, gva, last, flags);
        }
    }

    #[cold]
    fn rest(&mut self, vcpu: VcpuId, pc: Gva, gva: Gva, mut last: u64, flags: RunFlags) {
        let mut page = gva.value() & !0xfff;
        while last > 0xfff {
            last -= 0x1000;
            page = page.wrapping_add(0x1000);
            self.piece(vcpu, pc, Gva::new(page), 0, last.min(0xfff) >> 6, flags, 0);
        }
    }

    #[inline]
    #[expect(clippy::too_many_arguments, reason = "the fields of one record")]
    fn piece(
        &mut self,
        vcpu: VcpuId,
        pc: Gva,
        gva: Gva,
        first_line: u64,
        last_line: u64,
        flags: RunFlags,
        instructions: u32,
    ) {
        let lines = (u64::MAX << first_line) & (u64::MAX >> (63 - last_line));
        let page = gva.page_number() << 1 | u64::from(flags.is_kernel());
        if usize::from(vcpu.0) >= self.open.len() {
            self.open.resize(usize::from(vcpu.0) + 1, [CLOSED; 2]);
        }
        let open = &mut self.open[usize::from(vcpu.0)][usize::from(flags.is_fetch())];
        if open.page == page {
            let run = &mut self.batch.runs[open.index as usize];
            let total = u32::from(run.instructions) + instructions;
            if run.count < u16::MAX
                && total <= u32::from(u16::MAX)
                && (!flags.is_store() || run.flags.is_store())
            {
                run.lines |= lines;
                run.count += 1;
                run.instructions = total as u16;
                return;
            }
        }
        *open = Open { page, index: self.batch.runs.len() as u32 };
        let now = instructions.min(u32::from(u16::MAX));
        self.batch.runs.push(Run {
            gva,
            pc,
            lines,
            count: 1,
            instructions: now as u16,
            vcpu,
            flags,
        });
        if now < instructions {
            self.instructions(vcpu, instructions - now);
        }
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
    }

    fn close(&mut self) {
        self.open.fill([CLOSED; 2]);
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
        self.batch.runs.len() >= Batch::RUNS || self.batch.controls.len() >= Batch::RUNS
    }
    /// Hands the batch over and leaves the builder empty; `into` is reused for its memory.
    pub fn take_into(&mut self, into: &mut Batch) {
        self.close();
        into.runs.clear();
        into.controls.clear();
        std::mem::swap(&mut self.batch, into);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V: VcpuId = VcpuId(0);

    fn batch(f: impl FnOnce(&mut BatchBuilder)) -> Batch {
        let mut b = BatchBuilder::new();
        f(&mut b);
        let mut out = Batch::default();
        b.take_into(&mut out);
        out
    }
    fn load(b: &mut BatchBuilder, gva: u64) {
        b.access(V, Gva::new(0), Gva::new(gva), 8, AccessKind::Load, 1);
    }

    #[test]
    fn consecutive_accesses_fold_and_keep_lines() {
        let out = batch(|b| {
            load(b, 0x1000);
            load(b, 0x1038);
            load(b, 0x1fc0);
            load(b, 0x2000);
        });
        assert_eq!(out.runs.len(), 2);
        assert_eq!(out.runs[0].count, 3);
        assert_eq!(out.runs[0].lines, 1 | 1 << 63);
        assert_eq!(out.instructions(), 4);
    }

    #[test]
    fn a_store_after_loads_begins_a_run_but_loads_after_a_store_do_not() {
        let out = batch(|b| {
            load(b, 0x1000);
            b.access(V, Gva::new(0), Gva::new(0x1000), 8, AccessKind::Store, 1);
            load(b, 0x1008);
        });
        assert_eq!(out.runs.len(), 2);
        assert!(out.runs[1].flags.is_store());
        assert_eq!(out.runs[1].count, 2);
    }

    #[test]
    fn fetch_and_data_runs_stand_in_order_of_first_access() {
        let out = batch(|b| {
            for i in 0..4 {
                b.access(V, Gva::new(i), Gva::new(0x40_0000 + i), 4, AccessKind::Fetch, 1);
                load(b, 0x1000 + 8 * i);
            }
        });
        assert_eq!(out.runs.len(), 2);
        assert!(out.runs[0].flags.is_fetch());
        assert_eq!((out.runs[0].count, out.runs[1].count), (4, 4));
    }

    #[test]
    fn an_access_across_pages_is_one_to_each() {
        let out = batch(|b| {
            b.access(V, Gva::new(0), Gva::new(0x1ffc), 8, AccessKind::Load, 1);
        });
        assert_eq!(out.runs.len(), 2);
        assert_eq!(out.runs[0].lines, 1 << 63);
        assert_eq!(out.runs[1].gva, Gva::new(0x2000));
        assert_eq!(out.runs[1].lines, 1);
        assert_eq!(out.instructions(), 1);
    }

    #[test]
    fn many_instructions_are_all_counted() {
        let out = batch(|b| {
            b.access(V, Gva::new(0), Gva::new(0x1000), 8, AccessKind::Load, 200_000);
        });
        assert_eq!(out.instructions(), 200_000);
    }

    #[test]
    fn segments_cover_runs_and_controls_once_in_order() {
        let control = || Control::Exec { process: crate::ProcessId(1) };
        let out = batch(|b| {
            b.control(control());
            load(b, 0x1000);
            load(b, 0x2000);
            b.control(control());
            b.control(control());
            load(b, 0x3000);
            b.control(control());
        });
        let got: Vec<_> = out.segments().map(|(c, r)| (c.len(), r)).collect();
        assert_eq!(got, vec![(1, 0..2), (2, 2..3), (1, 3..3)]);
        let plain = batch(|b| load(b, 0x1000));
        assert_eq!(plain.segments().map(|(c, r)| (c.len(), r)).collect::<Vec<_>>(), [(0, 0..1)]);
    }
}
