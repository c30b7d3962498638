//! Random lives of modelled guests, from a seed.

use nestwalk_mm::{GuestConfig, ModelledGuest, PagePolicy};
use nestwalk_tables::Mode;
use nestwalk_types::{
    AccessKind, Batch, BatchBuilder, Control, GuestBatch, Gva, ProcessId, Protection, SplitMix64,
    VcpuId,
};

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
        let mut guest = self.guest();
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
            pcids: self.pcids && self.mode.levels >= 4,
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
