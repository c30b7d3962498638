//! Round trips and determinism; damage is tested in `tests/trace_damage.rs`.

use super::{Header, Summary, TraceReader, TraceWriter, WriteOptions, Written};
use nestwalk_types::{
    Batch, Control, FaultCode, Gpa, Gva, Invalidation, OsWork, PageSize, ProcessId, Run, RunFlags,
    Source, VcpuId,
};
use proptest::collection::vec;
use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_assert, prop_assert_eq};
use proptest::{option, prop_oneof, proptest};
use std::io::Cursor;

/// Whole addresses, in small chunks, without a thread.
const WHOLE: WriteOptions =
    WriteOptions { chunk_runs: 50, level: 1, line_addresses: false, thread: false };

fn written(batches: &[Batch], options: WriteOptions) -> Written<Vec<u8>> {
    let mut writer = TraceWriter::new("test", Vec::new(), &Header::default(), options).unwrap();
    batches.iter().for_each(|b| writer.write(b).unwrap());
    writer.finish(Summary::default()).unwrap()
}

/// Runs, and controls with their position among all runs.
type Stream = (Vec<Run>, Vec<(u64, Control)>);

fn read(bytes: Vec<u8>) -> Stream {
    let mut reader = TraceReader::new("test", Cursor::new(bytes)).unwrap();
    let (mut runs, mut controls) = (Vec::new(), Vec::new());
    let mut batch = Batch::default();
    while reader.next_batch(&mut batch).unwrap() {
        assert!(!batch.is_empty() && batch.controls.is_sorted_by_key(|c| c.0));
        let base = runs.len() as u64;
        controls.extend(batch.controls.drain(..).map(|(p, c)| (base + u64::from(p), c)));
        runs.append(&mut batch.runs);
    }
    assert!(batch.is_empty());
    (runs, controls)
}

fn controls_alone(bytes: Vec<u8>) -> Vec<(u64, Control)> {
    let mut reader = TraceReader::new("test", Cursor::new(bytes)).unwrap();
    let (mut all, mut some) = (Vec::new(), Vec::new());
    while reader.next_controls(&mut some).unwrap() {
        all.append(&mut some);
    }
    all
}

fn stream(batches: &[Batch], mask: u64) -> Stream {
    let (mut runs, mut controls) = (Vec::new(), Vec::new());
    for batch in batches {
        let base = runs.len() as u64;
        controls.extend(batch.controls.iter().map(|(p, c)| (base + u64::from(*p), c.clone())));
        let masked = |r: &Run| Run { gva: Gva::new(r.gva.value() & mask), ..*r };
        runs.extend(batch.runs.iter().map(masked));
    }
    (runs, controls)
}

/// Numbers that repeat, that are near each other, and any.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => (0_u64..8).prop_map(|n| 0x7fff_0000_1000 + n * 0x1008),
        2 => (0_u64..8).prop_map(|n| 0xffff_ffff_8100_0000 + n * 64),
        1 => any::<u64>(),
        1 => Just(0),
    ]
}

fn runs() -> impl Strategy<Value = Run> {
    let flags = prop_oneof![
        Just(RunFlags::default()),
        Just(RunFlags::STORE),
        Just(RunFlags::FETCH),
        Just(RunFlags::STORE.union(RunFlags::KERNEL)),
        Just(RunFlags::FETCH.union(RunFlags::KERNEL).union(RunFlags::STORE)),
    ];
    let vcpu = prop_oneof![8 => Just(0_u8), 2 => Just(1), 1 => any::<u8>()];
    let small = || prop_oneof![4 => 0_u16..4, 1 => 250_u16..260, 1 => any::<u16>()];
    let lines = prop_oneof![
        3 => (0_u32..64).prop_map(|i| 1 << i),
        2 => (0_u32..64, 1_u32..65).prop_map(|(at, n)| (u64::MAX >> (64 - n)) << at),
        2 => any::<u64>(),
        1 => (any::<u64>(), any::<u64>(), any::<u64>()).prop_map(|(a, b, c)| a & b & c),
    ];
    // The line of the address is one of the lines, but for one in eight.
    (number(), number(), lines, small(), small(), flags, vcpu, 0_u8..8).prop_map(
        |(gva, pc, lines, count, instructions, flags, vcpu, odd)| {
            let own = if odd == 0 { 0 } else { 1 << (gva >> 6 & 63) };
            Run {
                gva: Gva::new(gva),
                pc: Gva::new(if flags.is_fetch() && odd < 5 { gva } else { pc }),
                lines: lines | own,
                count,
                instructions,
                vcpu: VcpuId(vcpu),
                flags,
            }
        },
    )
}

fn image() -> impl Strategy<Value = Box<[u64; 512]>> {
    let piece = (0_usize..200, number(), prop_oneof![Just(0_u64), Just(0x1000), Just(0x20_0000)]);
    vec(piece, 0..8).prop_map(|pieces| {
        let mut entries = Box::new([0; 512]);
        let mut at = 0;
        for (length, start, step) in pieces {
            for i in 0..length.min(512 - at) {
                entries[at] = start.wrapping_add(step * i as u64);
                at += 1;
            }
        }
        entries
    })
}

fn controls() -> impl Strategy<Value = Control> {
    let vcpu = || prop_oneof![8 => Just(VcpuId(0)), 1 => any::<u8>().prop_map(VcpuId)];
    let gva = || number().prop_map(Gva::new);
    let gpa = || number().prop_map(Gpa::new);
    let what = prop_oneof![
        gva().prop_map(Invalidation::Page),
        (gva(), any::<u16>()).prop_map(|(a, p)| Invalidation::PageInPcid(a, p)),
        any::<u16>().prop_map(Invalidation::Pcid),
        Just(Invalidation::AllButGlobal),
        Just(Invalidation::All),
    ];
    let code = any::<[bool; 4]>().prop_map(|[present, write, user, fetch]| FaultCode {
        present,
        write,
        user,
        fetch,
    });
    let write = (vcpu(), gpa(), number()).prop_map(|(vcpu, gpa, value)| Control::TableWrite {
        vcpu,
        gpa,
        value,
    });
    let other = prop_oneof![
        Just(Control::RegionOfInterest),
        (vcpu(), gpa(), 0_u16..4, any::<bool>())
            .prop_map(|(vcpu, root, pcid, keep)| Control::LoadCr3 { vcpu, root, pcid, keep }),
        (vcpu(), gpa(), any::<u16>(), any::<bool>())
            .prop_map(|(vcpu, root, pcid, keep)| Control::LoadCr3 { vcpu, root, pcid, keep }),
        (vcpu(), what).prop_map(|(vcpu, what)| Control::Invalidate { vcpu, what }),
        (vcpu(), gpa(), option::of(image())).prop_map(|(vcpu, gpa, entries)| Control::TableAdded {
            vcpu,
            gpa,
            entries
        }),
        (vcpu(), gpa(), 12_u8..64).prop_map(|(vcpu, gpa, shift)| Control::PageCleared {
            vcpu,
            gpa,
            size: PageSize::from_shift(shift)
        }),
        (vcpu(), gpa()).prop_map(|(vcpu, gpa)| Control::TableRetired { vcpu, gpa }),
        (gpa(), number()).prop_map(|(start, bytes)| Control::Prefault { start, bytes }),
        (vcpu(), gpa(), any::<u32>(), "[a-z\u{e9}]{0,15}").prop_map(|(vcpu, root, id, name)| {
            Control::Process { vcpu, root, id: ProcessId(id), name: name.into() }
        }),
        (vcpu(), gva(), code).prop_map(|(vcpu, gva, code)| Control::Fault { vcpu, gva, code }),
        (0_usize..6, any::<u32>())
            .prop_map(|(i, count)| Control::OsWork { work: OsWork::ALL[i], count }),
    ];
    prop_oneof![1 => write, 2 => other]
}

fn batches() -> impl Strategy<Value = Vec<Batch>> {
    let batch = (vec(runs(), 0..120), vec((any::<u32>(), controls()), 0..40));
    let batch = batch.prop_map(|(runs, controls)| {
        let places = runs.len() as u32 + 1;
        let mut controls: Vec<_> = controls.into_iter().map(|(p, c)| (p % places, c)).collect();
        controls.sort_by_key(|c| c.0);
        Batch { runs, controls }
    });
    vec(batch, 0..5)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn every_stream_comes_back(batches in batches(), chunk_runs in 1_usize..300) {
        let (runs, controls) = stream(&batches, !0);
        let written = written(&batches, WriteOptions { chunk_runs, ..WHOLE });
        prop_assert_eq!(written.totals.runs, runs.len() as u64);
        prop_assert_eq!(written.totals.controls, controls.len() as u64);
        prop_assert_eq!(&controls_alone(written.out.clone()), &controls);
        let read = read(written.out);
        prop_assert!(read.0 == runs, "runs differ");
        prop_assert_eq!(read.1, controls);
    }

    #[test]
    fn line_addresses_lose_six_bits_and_nothing_else(batches in batches()) {
        let options = WriteOptions { line_addresses: true, ..WHOLE };
        prop_assert!(read(written(&batches, options).out) == stream(&batches, !63));
    }

    #[test]
    fn bytes_do_not_depend_on_threads_or_batches(batches in batches()) {
        let here = written(&batches, WHOLE).out;
        let thread = written(&batches, WriteOptions { thread: true, ..WHOLE }).out;
        prop_assert!(here == thread);
        // The same stream, an event at a time.
        let mut single = Vec::new();
        for batch in &batches {
            for (controls, runs) in batch.segments() {
                let control = |c: &(u32, Control)| (0, c.1.clone());
                single.extend(controls.iter().map(|c| Batch {
                    runs: Vec::new(),
                    controls: vec![control(c)],
                }));
                single.extend(batch.runs[runs].iter().map(|r| Batch {
                    runs: vec![*r],
                    controls: Vec::new(),
                }));
            }
        }
        prop_assert!(here == written(&single, WHOLE).out);
    }
}

#[test]
fn controls_of_processes_are_refused() {
    let mut writer = TraceWriter::new("test", Vec::new(), &Header::default(), WHOLE).unwrap();
    let controls = vec![(0, Control::Exit { process: ProcessId(1) })];
    let error = writer.write(&Batch { runs: Vec::new(), controls }).unwrap_err();
    assert!(
        error.message.contains("`exit`") && error.message.contains("modelled guest"),
        "{error}"
    );
    assert_eq!(writer.write(&Batch::default()), Err(error.clone()), "an error stays");
    assert_eq!(writer.finish(Summary::default()).map(drop), Err(error));
}
