//! Streams that no guest makes: whatever they say, nothing panics, and what is refused is refused with a
//! message.

use crate::common;

use common::machines::Setup;
use nestwalk_hw::Profile;
use nestwalk_mm::{ObservedGuest, Remap, Survey};
use nestwalk_sim::SCHEMES;
use nestwalk_tables::{LONG4, LONG5};
use nestwalk_types::{
    Batch, Control, FaultCode, Filter, Gpa, GuestBatch, GuestInfo, Gva, Invalidation, PageSize,
    ProcessId, Run, RunFlags, SplitMix64, VcpuId,
};
use std::sync::Arc;

/// Addresses that meet often, at borders, and anywhere.
fn gpa(r: &mut SplitMix64) -> Gpa {
    Gpa::new(match r.below(60) {
        0..50 => r.below(12) << 12,
        50..58 => r.below(40) * 0x1000 * 511,
        58 => (3 << 30) - 0x2000 + r.below(0x4000),
        _ => r.next(),
    })
}

fn gva(r: &mut SplitMix64) -> Gva {
    let low =
        r.below(3) << 39 | r.below(2) << 30 | r.below(3) << 21 | r.below(3) << 12 | r.below(4096);
    Gva::new(match r.below(6) {
        0..4 => low,
        4 => 0xffff_8000_0000_0000 | low,
        _ => r.next(),
    })
}

fn entry(r: &mut SplitMix64) -> u64 {
    let bits = r.next() & 0x8000_0000_0000_0fff;
    let used = if r.below(4) > 0 { 0x67 } else { 0 };
    gpa(r).value() & 0x000f_ffff_ffff_f000 | bits | used
}

fn image(r: &mut SplitMix64) -> Box<[u64; 512]> {
    let mut words = Box::new([0; 512]);
    for index in [0, 1, 2, 3, 256, 257, 511] {
        if r.below(5) > 0 {
            words[index] = entry(r);
        }
    }
    words
}

fn control(r: &mut SplitMix64) -> Control {
    let vcpu = VcpuId(u8::from(r.below(200) == 0) * 2 + r.below(2) as u8);
    let (here, value) = (gpa(r), entry(r));
    match r.below(24) {
        0..8 => {
            let entries = (r.below(3) > 0).then(|| image(r));
            Control::TableAdded { vcpu, gpa: here, entries }
        }
        8..12 => Control::TableWrite { vcpu, gpa: here.offset(r.below(4) * 8), value },
        12 => Control::TableRetired { vcpu, gpa: here },
        13..16 => {
            Control::LoadCr3 { vcpu, root: here, pcid: r.next() as u16, keep: r.below(2) == 0 }
        }
        16 => {
            let size = [PageSize::SIZE_4K, PageSize::SIZE_2M, PageSize::from_shift(63)];
            let size = size[usize::from(r.below(40) == 0) + usize::from(r.below(40) == 0)];
            Control::PageCleared { vcpu, gpa: here, size }
        }
        17 => Control::Prefault {
            start: here,
            bytes: [4096, 1 << 21, r.next() | 1 << 40][[0, 0, 0, 0, 0, 1, 2][r.below(7) as usize]],
        },
        18 => {
            let code = FaultCode {
                present: r.below(2) == 0,
                write: r.below(2) == 0,
                user: r.below(2) == 0,
                fetch: r.below(4) == 0,
            };
            Control::Fault { vcpu, gva: gva(r), code }
        }
        19 => Control::Process {
            vcpu,
            root: here,
            id: ProcessId(r.below(3) as u32),
            name: "x".into(),
        },
        20 => Control::RegionOfInterest,
        _ => {
            let pcid = r.next() as u16;
            let what = [
                Invalidation::Page(gva(r)),
                Invalidation::PageInPcid(gva(r), pcid),
                Invalidation::Pcid(pcid),
                Invalidation::AllButGlobal,
                Invalidation::All,
            ];
            Control::Invalidate { vcpu, what: what[r.below(5) as usize] }
        }
    }
}

trait Offset {
    fn offset(self, bytes: u64) -> Self;
}
impl Offset for Gpa {
    fn offset(self, bytes: u64) -> Self {
        Self::new(self.value().wrapping_add(bytes))
    }
}

fn batch(r: &mut SplitMix64) -> Batch {
    let runs: Vec<Run> = (0..r.below(12))
        .map(|_| {
            let flags = [RunFlags::default(), RunFlags::STORE, RunFlags::FETCH, RunFlags::KERNEL];
            let flags = flags[r.below(4) as usize].union(flags[r.below(4) as usize]);
            let (at, vcpu) = (gva(r), VcpuId(r.below(2) as u8));
            Run { gva: at, pc: at, lines: r.next() | 1, count: 1, instructions: 1, vcpu, flags }
        })
        .collect();
    let mut controls: Vec<(u32, Control)> =
        (0..r.below(12)).map(|_| (r.below(runs.len() as u64 + 1) as u32, control(r))).collect();
    controls.sort_by_key(|c| c.0);
    Batch { runs, controls }
}

#[test]
fn whatever_a_stream_says_nothing_panics() {
    let (mut dropped, mut ran, mut refused) = (0, 0, 0);
    for seed in 0..120u64 {
        let mut r = SplitMix64::new(seed);
        let mode = [&LONG4, &LONG5][seed as usize % 2];
        let info = GuestInfo {
            memory_bytes: 3 << 30,
            paging: mode.name.into(),
            vcpus: 2,
            filter: Filter::RUNS,
        };
        let profile = Profile::load("cascade-lake-6252").unwrap();
        let host_pages = ["4k", "2m"][seed as usize / 2 % 2];
        let setup = Setup { guest_mode: mode, vcpus: 2, host_pages, ..Setup::new(profile) };
        let mut machines: Vec<_> = SCHEMES
            .iter()
            .map(|s| (s.build)(setup.build(s.name, s.virtualized)).unwrap())
            .collect();
        let batches: Vec<Batch> = (0..60).map(|_| batch(&mut r)).collect();
        let mut survey = Survey::new(&info).unwrap();
        for control in batches.iter().flat_map(|b| &b.controls) {
            let _ = survey.follow(control);
        }
        let mut remap = Remap::new(&info, Some(Arc::new(survey.finish()))).unwrap();
        let mut guest = ObservedGuest::new(&info).unwrap();
        let (mut plain, mut out) = (Batch::default(), GuestBatch::default());
        for batch in &batches {
            let _ = remap.process(batch, &mut plain);
            if let Err(error) = guest.process(batch, &mut out) {
                refused += 1;
                assert!(!error.to_string().is_empty());
            }
            // A machine that cannot go on is left out from then on.
            machines.retain_mut(|m| match m.run(&out) {
                Ok(()) => true,
                Err(error) => {
                    refused += 1;
                    assert!(!error.to_string().is_empty());
                    false
                }
            });
            ran += out.batch.runs.len();
        }
        dropped += guest.stats().dropped_total().runs;
    }
    assert!(dropped > 1000 && ran > 300 && refused > 100, "{dropped} {ran} {refused}");
}

/// Tables that point to each other everywhere have a way of 512 entries at every level: nothing looks
/// through all of them.
#[test]
fn tables_full_of_each_other_take_no_time() {
    let info = GuestInfo {
        memory_bytes: 1 << 30,
        paging: LONG5.name.into(),
        vcpus: 1,
        filter: Filter::RUNS,
    };
    let vcpu = VcpuId(0);
    let full = |seed: u64| {
        let mut r = SplitMix64::new(seed);
        Box::new(std::array::from_fn(|_| (1 + r.below(16)) << 12 | 7))
    };
    let mut controls = Vec::new();
    for i in 1..=16u64 {
        let (gpa, entries) = (Gpa::new(i << 12), Some(full(i)));
        controls.push((0, Control::TableAdded { vcpu, gpa, entries }));
    }
    for i in 1..=16u64 {
        let root = Gpa::new(i << 12);
        controls.push((0, Control::LoadCr3 { vcpu, root, pcid: 0, keep: false }));
        let (gpa, value) = (Gpa::new((i << 12) + 8 * i), 0);
        controls.push((0, Control::TableWrite { vcpu, gpa, value }));
    }
    let run = Run {
        gva: Gva::new(0x234),
        pc: Gva::new(0),
        lines: 1,
        count: 1,
        instructions: 1,
        vcpu,
        flags: RunFlags::default(),
    };
    let batch = Batch { runs: vec![run; 100], controls };
    let mut survey = Survey::new(&info).unwrap();
    batch.controls.iter().for_each(|c| survey.follow(c).unwrap());
    let mut remap = Remap::new(&info, Some(Arc::new(survey.finish()))).unwrap();
    remap.process(&batch, &mut Batch::default()).unwrap();
    let mut guest = ObservedGuest::new(&info).unwrap();
    let mut out = GuestBatch::default();
    guest.process(&batch, &mut out).unwrap();
    assert_eq!(out.batch.runs.len(), 100, "they map everything");
}
