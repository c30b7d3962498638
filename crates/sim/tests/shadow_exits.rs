//! Exits of shadow paging, counted beforehand from what the guest does: a first touch, a storm of forks,
//! any life.

use crate::common;

use common::kernel::{DATA, cleared, count, setup, shadowed, write_fault};
use common::lives::Life;
use common::machines::{Probe, Setup, exits, exits_by_name};
use common::{Script, approve};
use nestwalk_sim::hypervisor::shadow::PREVIOUS_ROOTS;
use nestwalk_sim::{DynMachine, ExitReason};
use nestwalk_tables::LONG4;
use nestwalk_tables::entry::{ACCESSED, DIRTY};
use nestwalk_types::{Control, Gpa, PageSize, Protection};

const S4K: PageSize = PageSize::SIZE_4K;

/// A first touch is a true fault, a hidden fault of the kernel that clears the frame, a store to the
/// leaf table (the first of which exits), and a hidden fault of the program.
#[test]
fn the_exits_of_a_first_touch() {
    let (mut m, mut s) = shadowed(0);
    let touch = |s: &mut Script, i: u64| {
        s.fault(i << 12, true);
        cleared(s, DATA + (i << 12));
        s.map_used(i << 12, DATA + (i << 12), S4K);
        s.store(i << 12);
    };
    touch(&mut s, 16);
    let c = count(&mut m, &mut s);
    let first = [("true_fault", 1), ("hidden_fault", 2), ("table_unsync", 1)];
    assert_eq!(exits_by_name(&c), first);
    touch(&mut s, 32);
    let c = count(&mut m, &mut s);
    assert_eq!(exits_by_name(&c), [("true_fault", 1), ("hidden_fault", 2)], "out of step by now");
    // A frame that the kernel has written before is in its shadow.
    s.fault(48 << 12, true);
    cleared(&mut s, DATA + (16 << 12));
    s.map_used(48 << 12, DATA + (16 << 12), S4K);
    s.store(48 << 12);
    let c = count(&mut m, &mut s);
    assert_eq!(exits_by_name(&c), [("true_fault", 1), ("hidden_fault", 1)]);
    // The first page of a new leaf table: the kernel clears the table, links it into a directory that
    // is shadowed, and fills an entry that nobody watches yet.
    touch(&mut s, 512);
    let c = count(&mut m, &mut s);
    let linked = [("true_fault", 1), ("hidden_fault", 3), ("table_write", 1)];
    assert_eq!(exits_by_name(&c), linked);
}

/// A parent forks `children` times; each child writes `cow` inherited pages and reads `reads` others,
/// and exits; then the parent writes `own` of its pages. Every exit follows from the events:
///
/// - CR3 loads: the parent's flush at fork, the switch to the child, its flush at exit, the switch back;
/// - true faults: each first write to a page that is shared, of either side;
/// - hidden faults: the kernel's first store to each of the child's four tables and to each copy; the
///   child's first access to each page after it was mapped or copied; the parent's after it was made
///   writable again (its entry is read-only in the shadow);
/// - the child's leaf table goes out of step once; the parent's once per fork, since the flush brings
///   it back in step, and once before the first;
/// - three stores unlink the child's tables from shadowed ones;
/// - an INVLPG per copy.
#[test]
fn the_exits_of_a_fork_storm_follow_from_its_events() {
    for (children, cow, reads, own) in [(1, 1, 0, 1), (4, 3, 2, 1), (6, 8, 0, 8), (5, 2, 6, 3)] {
        let (mut m, mut s) = shadowed(8);
        let parent = s.root;
        s.load(0);
        m.count(&s.take());
        let mut fresh = DATA + 0x100_0000;
        for _ in 0..children {
            one_child(&mut s, parent, (cow, reads, own), &mut fresh);
        }
        let c = count(&mut m, &mut s);
        let expected = [
            ("true_fault", children * (cow + own)),
            ("hidden_fault", children * (4 + 2 * cow + reads + own)),
            ("table_write", children * 3),
            ("table_unsync", children * 2 + 1),
            ("cr3_load", children * 4),
            ("invalidation", children * cow),
        ];
        assert_eq!(exits_by_name(&c), expected, "{children} {cow} {reads} {own}");
        assert_eq!(c.faulted_walks, children * (2 * cow + reads + 2 * own));
    }
}

fn one_child(s: &mut Script, parent: Gpa, (cow, reads, own): (u64, u64, u64), fresh: &mut u64) {
    let shared = Protection::READ_EXECUTE;
    let child = s.add_root();
    let pages: Vec<(u64, u64)> =
        (0..8).map(|i| (i << 12, s.entry(i << 12, 1).1.target::<Gpa>().value())).collect();
    for (gva, gpa) in &pages {
        s.root = parent;
        s.map(*gva, *gpa, S4K, shared, ACCESSED | DIRTY);
        s.root = child;
        s.map(*gva, *gpa, S4K, shared, DIRTY);
    }
    s.load_cr3(parent, 1, false);
    s.load_cr3(child, 2, false);
    for (gva, _) in &pages[..cow as usize] {
        write_fault(s, *gva, true);
        cleared(s, *fresh);
        s.unmap(*gva, S4K);
        s.invlpg(*gva);
        s.map_used(*gva, *fresh, S4K);
        s.store(*gva);
        *fresh += 0x1000;
    }
    for (gva, _) in &pages[cow as usize..(cow + reads) as usize] {
        s.load(*gva);
    }
    for (gva, _) in &pages {
        s.unmap(*gva, S4K);
    }
    for level in [2, 3, 4] {
        let at = s.entry(0, level).0;
        s.write(at, 0);
        if level < 4 {
            continue;
        }
        s.load_cr3(child, 2, false);
    }
    s.load_cr3(parent, 1, true);
    for (gva, gpa) in &pages[..own as usize] {
        write_fault(s, *gva, true);
        s.map_used(*gva, *gpa, S4K);
        s.store(*gva);
    }
}

/// Identities between events, walks and exits that hold in any life of a modelled guest.
#[test]
fn exits_add_up_in_any_life() {
    let mut seen = [0; ExitReason::ALL.len()];
    for seed in 1..20 {
        let life = Life {
            seed,
            events: 250,
            vcpus: 2,
            accesses_percent: 55,
            mode: &LONG4,
            pages: ["4k", "thp"][seed as usize % 2],
            pcids: seed % 3 != 0,
        };
        let mut m = Setup { vcpus: 2, ..setup("4k") }.shadow();
        let mut written = std::collections::BTreeSet::new();
        let [mut loads, mut invalidations, mut faults] = [0; 3];
        for events in life.live() {
            for (_, control) in &events.batch.controls {
                match control {
                    Control::LoadCr3 { .. } => loads += 1,
                    Control::Invalidate { .. } => invalidations += 1,
                    Control::Fault { .. } => faults += 1,
                    Control::TableAdded { gpa, entries: None, .. } => {
                        written.insert(gpa.value() >> 12);
                    }
                    Control::PageCleared { gpa, size, .. } => {
                        let first = gpa.value() >> 12;
                        written.extend(first..first + size.base_pages());
                    }
                    _ => {}
                }
            }
            m.run(&events).unwrap();
        }
        let c = m.counters();
        let of = |r: ExitReason| exits(c, r);
        assert_eq!(of(ExitReason::Cr3Load), loads, "life {seed}");
        assert_eq!(of(ExitReason::Invalidation), invalidations, "life {seed}");
        assert_eq!(of(ExitReason::TrueFault), faults, "life {seed}");
        assert_eq!(of(ExitReason::EptViolation), 0);
        // Each walk that faults is answered by one exit; the kernel's first store to each frame is a
        // hidden fault that no walk of the stream shows.
        let answered =
            of(ExitReason::TrueFault) + of(ExitReason::HiddenFault) + of(ExitReason::DirtyFault);
        assert_eq!(answered, c.faulted_walks + written.len() as u64, "life {seed}");
        let fills = of(ExitReason::HiddenFault) + of(ExitReason::DirtyFault);
        assert_eq!(c.shadow_fills, fills, "life {seed}");
        seen.iter_mut().zip(c.exits).for_each(|(s, e)| *s += e);
        // A root that is dropped while a vCPU holds it keeps its memory until it is let go.
        let dropped = m.scheme.mmu.bytes() / 4096 - (c.shadow_pages - c.shadow_zaps);
        assert!(dropped <= 2 * (1 + PREVIOUS_ROOTS as u64), "life {seed}: {dropped}");
        approve(&m);
    }
    let never: Vec<_> = ExitReason::ALL.iter().filter(|r| seen[**r as usize] == 0).collect();
    let foreign = [
        ExitReason::EptViolation,
        ExitReason::Interval,
        ExitReason::ModeSwitch,
        ExitReason::HostMigration,
        ExitReason::Preempted,
        ExitReason::WriteProtected,
        ExitReason::PmlFull,
        ExitReason::PageReady,
        ExitReason::PageReadyAck,
        ExitReason::Halted,
        ExitReason::FreePages,
        ExitReason::TableMemory,
        ExitReason::Balloon,
        // The profile's processor delivers interrupts without one.
        ExitReason::InterruptReceived,
        ExitReason::OuterViolation,
        ExitReason::InnerTableStore,
        ExitReason::CombinedFill,
        ExitReason::InnerFlush,
        ExitReason::FaultReturn,
    ];
    let paravirtual = ExitReason::ALL.iter().filter(|r| r.is_hypercall() || r.is_trap());
    let foreign: Vec<_> = foreign.iter().chain(paravirtual).collect();
    assert_eq!(never, foreign, "every reason of shadow paging occurred");
}
