//! Random lives of modelled guests, from a seed.

use nestwalk_mm::{GuestConfig, ModelledGuest, PagePolicy};
use nestwalk_tables::{Entry, Mode, entry};
use nestwalk_types::{
    AccessKind, Address, Batch, BatchBuilder, Control, Gpa, GuestBatch, Gva, PageSize, ProcessId,
    Protection, Run, RunFlags, SplitMix64, VcpuId,
};
use std::collections::BTreeMap;

pub const BASE: u64 = 0x4000_0000;

/// What kind of life.
#[derive(Clone, Copy)]
pub struct Life {
    pub seed: u64,
    /// Things that happen.
    pub events: u32,
    pub vcpus: u8,
    /// Accesses among 100 events.
    pub accesses_percent: u64,
    pub mode: &'static Mode,
    pub pages: &'static str,
    pub pcids: bool,
}

impl Life {
    /// The life as architectural events, a batch per event, so that a test can look in between.
    pub fn live(&self) -> Vec<GuestBatch> {
        self.live_on(self.guest())
    }

    /// The same on a guest that is configured otherwise.
    pub fn live_on(&self, mut guest: ModelledGuest) -> Vec<GuestBatch> {
        self.live_with(&mut guest)
    }

    /// The same, and the guest is left as it is at the end.
    pub fn live_with(&self, guest: &mut ModelledGuest) -> Vec<GuestBatch> {
        let mut r = SplitMix64::new(self.seed);
        let (mut builder, mut batch) = (BatchBuilder::new(), Batch::default());
        let mut out = Vec::new();
        for _ in 0..self.events {
            self.event(&mut r, &mut builder);
            builder.take_into(&mut batch);
            let mut events = GuestBatch::default();
            // What a process may not do is refused by the guest; its life goes on.
            let _ = guest.process(&batch, &mut events);
            out.push(events);
        }
        out
    }

    pub fn guest(&self) -> ModelledGuest {
        let config = GuestConfig {
            policy: PagePolicy::by_name(self.pages).unwrap(),
            pcids: self.pcids && self.mode.address_bits() > 32,
            ..GuestConfig::new(self.mode, 3 << 30)
        };
        ModelledGuest::new(config).unwrap()
    }

    fn event(&self, r: &mut SplitMix64, b: &mut BatchBuilder) {
        let vcpu = VcpuId(r.below(u64::from(self.vcpus)) as u8);
        let process = ProcessId(r.below(4) as u32);
        let page = [r.below(24), 500 + r.below(40), r.below(1600)][r.below(3) as usize];
        let pages = [1 + r.below(6), 30 + r.below(10), 512, 1024][r.below(4) as usize];
        let (start, bytes) = (Gva::new(BASE + (page << 12)), pages << 12);
        if r.below(100) < self.accesses_percent {
            let kind = [AccessKind::Load, AccessKind::Store, AccessKind::Fetch];
            let kind = kind[[0, 0, 1, 1, 2][r.below(5) as usize]];
            let length = if r.below(4) == 0 { r.below(40) } else { 1 };
            for p in page..page + length {
                let gva = Gva::new(BASE + (p << 12) + ((p * 64) & 0xfc0));
                b.access(vcpu, Gva::new(0x40_0000), gva, 8, kind, 3);
            }
            return;
        }
        b.control(match r.below(16) {
            0..2 => Control::Map { process, start, bytes, protection: Protection::ALL },
            2..4 => Control::Unmap { process, start, bytes },
            4..7 => {
                let write = r.below(2) == 0;
                let protection = if write { Protection::ALL } else { Protection::READ };
                Control::Protect { process, start, bytes, protection }
            }
            7 => Control::Populate { process, start, bytes },
            8..10 => Control::Fork { parent: process, child: ProcessId(r.below(4) as u32) },
            10 => Control::Exec { process },
            11 => Control::Exit { process },
            _ => Control::Switch { vcpu, process },
        });
    }
}

/// Joins batches: the same events in as few batches as possible.
pub fn join(batches: &[GuestBatch]) -> GuestBatch {
    let mut all = GuestBatch::default();
    for b in batches {
        let from = all.batch.runs.len() as u32;
        all.batch.runs.extend_from_slice(&b.batch.runs);
        all.gpas.extend_from_slice(&b.gpas);
        let moved = b.batch.controls.iter().map(|(at, c)| (from + at, c.clone()));
        all.batch.controls.extend(moved);
    }
    all
}

/// Cuts a batch before these runs (ascending).
pub fn cut(all: &GuestBatch, at: &[usize]) -> Vec<GuestBatch> {
    let mut out = Vec::new();
    let mut control = 0;
    let mut from = 0;
    let end = all.batch.runs.len();
    for to in at.iter().copied().chain([end]) {
        let mut part = GuestBatch::default();
        part.batch.runs.extend_from_slice(&all.batch.runs[from..to]);
        part.gpas.extend_from_slice(&all.gpas[from..to]);
        while let Some((p, c)) = all.batch.controls.get(control) {
            if (*p as usize) >= to && to != end {
                break;
            }
            part.batch.controls.push((p - from as u32, c.clone()));
            control += 1;
        }
        from = to;
        out.push(part);
    }
    out
}

/// Where the guest kernel of [`with_direct_map`] has all of memory.
pub const DIRECT: u64 = 0xffff_8880_0000_0000;
/// First table of that mapping: memory that modelled guests of 3 GiB do not come to.
const DIRECT_TABLES: u64 = (3 << 30) - (1 << 20);

/// The same life as a recorded guest shows it (4- and 5-level paging): the kernel has a direct map of
/// pages of `size` (2 MiB or 1 GiB) in the upper half of every address space, and each store to a
/// table is also a run through it, before or after its event; so are some loads and stores of memory
/// that was used lately.
pub fn with_direct_map(
    batches: &[GuestBatch],
    mode: &'static Mode,
    size: PageSize,
    r: &mut SplitMix64,
) -> Vec<GuestBatch> {
    let mut kernel = Kernel {
        mode,
        size,
        made: false,
        roots: Vec::new(),
        loaded: BTreeMap::new(),
        used: Vec::new(),
    };
    batches.iter().map(|b| kernel.show(b, r)).collect()
}

struct Kernel {
    mode: &'static Mode,
    size: PageSize,
    /// The tables of the direct map exist.
    made: bool,
    /// Roots with the direct map in them.
    roots: Vec<Gpa>,
    /// Root in CR3 of each vCPU.
    loaded: BTreeMap<VcpuId, Gpa>,
    /// Data pages that runs were in.
    used: Vec<Gpa>,
}

impl Kernel {
    fn show(&mut self, batch: &GuestBatch, r: &mut SplitMix64) -> GuestBatch {
        let mut out = GuestBatch::default();
        let say = |out: &mut GuestBatch, control: Control| {
            out.batch.controls.push((out.batch.runs.len() as u32, control));
        };
        for (controls, runs) in batch.batch.segments() {
            for (_, control) in controls {
                match *control {
                    Control::TableWrite { vcpu, gpa, .. } if self.has_map(vcpu) => {
                        let before = r.below(2) == 0;
                        if before {
                            self.access(&mut out, vcpu, gpa, true);
                        }
                        say(&mut out, control.clone());
                        if !before {
                            self.access(&mut out, vcpu, gpa, true);
                        }
                    }
                    Control::PageCleared { gpa, size, .. } => {
                        self.roots.retain(|root| root.align_down(size) != gpa);
                        say(&mut out, control.clone());
                    }
                    Control::TableAdded { gpa, .. } => {
                        self.roots.retain(|root| *root != gpa);
                        self.used.retain(|page| *page != gpa);
                        say(&mut out, control.clone());
                    }
                    Control::LoadCr3 { vcpu, root, .. } => {
                        self.map(&mut out, vcpu, root);
                        self.loaded.insert(vcpu, root);
                        say(&mut out, control.clone());
                    }
                    _ => say(&mut out, control.clone()),
                }
            }
            for i in runs {
                let (run, gpa) = (batch.batch.runs[i], batch.gpas[i]);
                out.batch.runs.push(run);
                out.gpas.push(gpa);
                self.used.push(gpa);
                if r.below(4) == 0 && self.has_map(run.vcpu) {
                    let page = self.used[r.below(self.used.len() as u64) as usize];
                    self.access(&mut out, run.vcpu, page, r.below(2) == 0);
                }
            }
        }
        out
    }

    fn has_map(&self, vcpu: VcpuId) -> bool {
        self.loaded.get(&vcpu).is_some_and(|root| self.roots.contains(root))
    }

    fn access(&self, out: &mut GuestBatch, vcpu: VcpuId, gpa: Gpa, store: bool) {
        let flags = if store { RunFlags::STORE } else { RunFlags::default() };
        let gva = Gva::new(DIRECT + gpa.value());
        let pc = Gva::new(0xffff_ffff_8100_0000);
        let lines = 1 << (gva.value() >> 6 & 63);
        let flags = flags.union(RunFlags::KERNEL);
        out.batch.runs.push(Run { gva, pc, lines, count: 1, instructions: 1, vcpu, flags });
        out.gpas.push(gpa);
    }

    /// Puts the direct map into an address space that is loaded for the first time.
    fn map(&mut self, out: &mut GuestBatch, vcpu: VcpuId, root: Gpa) {
        if self.roots.contains(&root) {
            return;
        }
        let mut say = |c: Control| out.batch.controls.push((out.batch.runs.len() as u32, c));
        let leaf = |gpa: u64| Entry::leaf(Gpa::new(gpa), Protection::READ_WRITE, true).0;
        let leaf = |gpa: u64| leaf(gpa) & !entry::USER | entry::ACCESSED | entry::DIRTY;
        let pointer = |gpa: u64| Entry::table(Gpa::new(gpa)).0;
        let first = !std::mem::replace(&mut self.made, true);
        self.roots.push(root);
        if first {
            // Directories, the tables above them, and with 5 levels one more.
            let mut upper = Box::new([0; 512]);
            for gib in 0..3u64 {
                let directory = DIRECT_TABLES + ((1 + gib) << 12);
                let slot = self.mode.index(DIRECT + (gib << 30), 3) as usize;
                if self.size == PageSize::SIZE_1G {
                    upper[slot] = leaf(gib << 30);
                    continue;
                }
                upper[slot] = pointer(directory);
                let words: [u64; 512] = std::array::from_fn(|i| leaf(gib << 30 | (i as u64) << 21));
                let entries = Some(Box::new(words));
                say(Control::TableAdded { vcpu, gpa: Gpa::new(directory), entries });
            }
            let (gpa, entries) = (Gpa::new(DIRECT_TABLES), Some(upper));
            say(Control::TableAdded { vcpu, gpa, entries });
            if self.mode.levels == 5 {
                let mut top = Box::new([0; 512]);
                top[self.mode.index(DIRECT, 4) as usize] = pointer(DIRECT_TABLES);
                let gpa = Gpa::new(DIRECT_TABLES + 0x8000);
                say(Control::TableAdded { vcpu, gpa, entries: Some(top) });
            }
        }
        let top = DIRECT_TABLES + if self.mode.levels == 5 { 0x8000 } else { 0 };
        let at = self.mode.entry_at(root, DIRECT, self.mode.levels);
        say(Control::TableWrite { vcpu, gpa: at, value: pointer(top) });
    }
}

/// Each control and each run by itself.
pub fn steps(batches: &[GuestBatch]) -> Vec<GuestBatch> {
    let mut out = Vec::new();
    for b in batches {
        for (controls, runs) in b.batch.segments() {
            for (_, control) in controls {
                let mut step = GuestBatch::default();
                step.batch.controls.push((0, control.clone()));
                out.push(step);
            }
            for i in runs {
                let mut step = GuestBatch::default();
                step.batch.runs.push(b.batch.runs[i]);
                step.gpas.push(b.gpas[i]);
                out.push(step);
            }
        }
    }
    out
}
