//! The modelled guest at its limits: errors, ends of address spaces, large outputs, repetition.

mod common;

use common::pair::{BASE, Pair, STORE};
use common::{Counts, Machine, config, frames_add_up, run};
use nestwalk_mm::{GuestConfig, GuestError, MmError, ModelledGuest, PagePolicy};
use nestwalk_tables::{LEGACY32, LONG4, LONG5, MODES, PAE};
use nestwalk_types::{Batch, Control, Gpa, GuestBatch, Gva, ProcessId, Protection, VcpuId};

#[test]
fn parts_are_the_whole() {
    let script = || {
        let populate = |i: u64| Control::Populate {
            process: ProcessId(0),
            start: Gva::new(BASE + (i << 24)),
            bytes: 16 << 20,
        };
        let mut controls: Vec<_> = (0..4).map(|i| (0, populate(i))).collect();
        controls.push((1, Control::Fork { parent: ProcessId(0), child: ProcessId(1) }));
        controls.push((2, Control::Exit { process: ProcessId(0) }));
        Batch { runs: vec![run(0, BASE, STORE), run(0, BASE + 4096, STORE)], controls }
    };
    let mut whole = GuestBatch::default();
    let mut guest = ModelledGuest::new(config(&LONG4, 512)).unwrap();
    guest.process(&script(), &mut whole).unwrap();
    let (mut parts, mut last) = (Vec::new(), GuestBatch::default());
    let mut guest = ModelledGuest::new(config(&LONG4, 512)).unwrap();
    guest.process_in_parts(&script(), &mut last, &mut |part| parts.push(part.clone())).unwrap();
    assert!(parts.len() > 1);
    parts.push(last);
    let (mut machine, mut joined) = (Machine::new(&LONG4), GuestBatch::default());
    for part in &parts {
        machine.follow(part, |_, r, tag| tag + u64::from(r.flags.is_store()));
        let base = joined.batch.runs.len() as u32;
        joined.batch.runs.extend(&part.batch.runs);
        joined.gpas.extend(&part.gpas);
        let controls = part.batch.controls.iter().map(|c| (c.0 + base, c.1.clone()));
        joined.batch.controls.extend(controls);
    }
    assert_eq!(joined, whole);
}

#[test]
fn errors_say_what_and_where_and_what_would_be_right() {
    let error = |config: GuestConfig, batch: &Batch| {
        let mut out = GuestBatch::default();
        let mut guest = ModelledGuest::new(config).unwrap();
        let e = guest.process(batch, &mut out).unwrap_err();
        assert_eq!(out.gpas.len(), out.batch.runs.len());
        (e, out)
    };
    let access = |gva: u64| Batch { runs: vec![run(0, gva, STORE)], controls: vec![] };
    let one = |control| Batch { runs: vec![], controls: vec![(0, control)] };

    let runs = (0..8192).map(|i| run(0, BASE + (i << 12), STORE)).collect();
    let (e, out) = error(config(&LONG4, 16), &Batch { runs, controls: vec![] });
    assert!(matches!(e, GuestError::OutOfMemory { bytes: 0x100_0000, .. }), "{e}");
    assert!(e.to_string().contains("give the guest more memory"), "{e}");
    assert!(!out.gpas.is_empty() && out.gpas.len() < 4096);

    for (mode, gva) in [(&LONG4, 1 << 47), (&LONG5, 1 << 56), (&PAE, 1 << 32), (&LEGACY32, 1 << 40)]
    {
        let (e, _) = error(config(mode, 64), &access(gva));
        let is = matches!(
            e,
            GuestError::Process { error: MmError::OutOfRange { address, .. }, .. } if address == gva
        );
        assert!(is, "{e}");
        assert!(e.to_string().contains("smaller footprint"), "{e}");
    }
    let (process, protection) = (ProcessId(3), Protection::READ);
    let map = |start, bytes| Control::Map { process, start: Gva::new(start), bytes, protection };
    let (e, _) = error(config(&LONG4, 64), &one(map(0x1001, 4096)));
    assert!(e.to_string().contains("process 3") && e.to_string().contains("4096"), "{e}");
    // From the lower half over the hole to the upper one, and over the end.
    let (e, _) = error(config(&LONG4, 64), &one(map(0x1000, !0xfff - 0x1000)));
    assert!(e.to_string().contains("48 bits"), "{e}");
    let (e, _) = error(config(&LONG4, 64), &one(map(!0xfff, 0x2000)));
    assert!(e.to_string().contains("48 bits"), "{e}");
    let (e, _) = error(config(&PAE, 64), &one(map(0xffff_f000, 0x2000)));
    assert!(e.to_string().contains("32 bits"), "{e}");
    let fork = Control::Fork { parent: process, child: process };
    assert!(error(config(&LONG4, 64), &one(fork)).0.to_string().contains("another number"));
    let vcpu = VcpuId(0);
    let cr3 = Control::LoadCr3 { vcpu, root: Gpa::new(0), pcid: 0, keep: false };
    let (e, _) = error(config(&LONG4, 64), &one(cr3));
    assert!(e.to_string().contains("control 0 of the batch is a load of CR3"), "{e}");

    let build = |c: GuestConfig| ModelledGuest::new(c).map(|_| ()).unwrap_err().to_string();
    assert!(build(config(&LEGACY32, 5 << 10)).contains("4-byte entries"));
    let policy = PagePolicy::by_name("1g").unwrap();
    assert!(build(GuestConfig { policy, ..config(&PAE, 64) }).contains("no 1g pages"));
    assert!(build(config(&LONG4, 32 << 20)).contains("16 TiB"));
    assert!(
        build(GuestConfig { fragmentation: (-0.1).into(), ..config(&LONG4, 64) })
            .contains("0 to 1")
    );
}

#[test]
fn the_ends_of_the_address_space_can_be_used() {
    for mode in MODES {
        let mut p = Pair::new(config(mode, 64));
        let top = if mode.address_bits() == 32 { u64::from(u32::MAX) } else { u64::MAX };
        for gva in [0, top & !0xfff] {
            p.store(gva);
            assert_eq!(p.guest.stats().pages_4k, 1);
            p.unmap(gva, 1);
            assert_eq!(p.guest.stats().pages_4k, 0);
        }
        if mode.address_bits() > 32 {
            let half = 1u64 << (mode.address_bits() - 1);
            p.map(half - 0x1000, 1, Protection::READ_WRITE);
            p.map(half.wrapping_neg(), 1, Protection::READ_WRITE);
            p.store(half - 8);
            p.store(half.wrapping_neg());
            p.unmap(half - 0x1000, 1);
            assert_eq!(p.guest.stats().pages_4k, 1);
        }
        frames_add_up(&p.guest);
    }
}

#[test]
fn the_same_configuration_gives_the_same_output() {
    let output = || {
        let policy = PagePolicy::Thp;
        let c = GuestConfig { policy, fragmentation: 0.5.into(), seed: 7, ..config(&LONG4, 256) };
        let mut guest = ModelledGuest::new(c).unwrap();
        let mut out = GuestBatch::default();
        let runs = (0..4000).map(|i| run(i as u8 & 3, BASE + ((i * 7919 % 30_000) << 12), STORE));
        let batch = Batch { runs: runs.collect(), controls: vec![] };
        guest.process(&batch, &mut out).unwrap();
        (out, guest.stats())
    };
    let (a, b) = (output(), output());
    assert!(a == b && a.1.pages_2m > 0 && a.1.pages_4k > 0);
}

#[test]
fn a_large_unmapping_is_flushed_as_linux_gathers() {
    let mut p = Pair::with("4k");
    let pages = 2 * nestwalk_mm::GATHER_PAGES as u64 + 5;
    for i in 0..pages.div_ceil(4096) {
        p.populate(BASE + (i << 24), 4096);
    }
    p.switch(0, 0);
    let before = p.machine.counts;
    p.unmap(BASE, pages);
    let after = p.machine.counts;
    assert_eq!(after.loads - before.loads, 3);
    assert_eq!(Counts { loads: 0, writes: 0, ..after }, Counts { loads: 0, writes: 0, ..before });
    assert_eq!(p.guest.stats().resident_bytes, (pages.div_ceil(4096) * 4096 - pages) << 12);
}
