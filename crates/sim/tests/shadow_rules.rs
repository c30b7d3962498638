//! KVM's rules for shadow paging (Linux 4.19 `mmu.c`, `paging_tmpl.h`), each on a guest written by
//! hand, so that every exit can be said beforehand.

use crate::common;

use common::kernel::{DATA, cleared, count, setup, shadowed, write_fault};
use common::lives::Life;
use common::machines::{Probe, Setup, exits, exits_by_name};
use common::{Script, approve};
use nestwalk_sim::hypervisor::shadow::{FLOOD, PREFETCH, PREVIOUS_ROOTS, QUOTA_MIN};
use nestwalk_sim::schemes::shadow::Shadow;
use nestwalk_sim::{DynMachine, ExitReason, Machine};
use nestwalk_tables::LONG4;
use nestwalk_tables::entry::{ACCESSED, DIRTY};
use nestwalk_types::{Gpa, Invalidation, PageSize, Protection, SplitMix64};

const S4K: PageSize = PageSize::SIZE_4K;
const S2M: PageSize = PageSize::SIZE_2M;

/// Something that a guest does.
type Way = Box<dyn Fn(&mut Script)>;

// ---- faults --------------------------------------------------------------------------------------

/// A fault is the guest's own if its tables do not allow the access, whatever the shadow has.
#[test]
fn true_and_hidden_faults_are_told_apart() {
    let (mut m, mut s) = shadowed(8);
    s.map(0x20_0000, DATA, S4K, Protection::READ, ACCESSED);
    s.load(0x20_0000);
    let c = count(&mut m, &mut s);
    assert_eq!(exits(&c, ExitReason::HiddenFault), 2, "the new table's page, then the program");
    write_fault(&mut s, 0x20_0000, true);
    assert_eq!(exits_by_name(&count(&mut m, &mut s)), [("true_fault", 1)]);
    s.fault(0x40_0000, false);
    assert_eq!(exits_by_name(&count(&mut m, &mut s)), [("true_fault", 1)]);
    s.load(0);
    assert_eq!(exits_by_name(&count(&mut m, &mut s)), [("hidden_fault", 1)]);
}

/// A page that was read first exits once more at its first store, so that the guest's dirty bit can be
/// set; one that is stored to first does not.
#[test]
fn a_dirty_fault_comes_once_for_each_page_that_was_read_first() {
    let mut m = setup("4k").shadow();
    let mut s = Script::new(&LONG4);
    // 64 pages apart, so that nothing is filled ahead.
    let pages: Vec<u64> = (0..7).map(|i| i << 18).collect();
    for gva in &pages {
        s.map(*gva, DATA + gva, S4K, Protection::ALL, ACCESSED);
    }
    m.count(&s.take());
    pages[..4].iter().for_each(|gva| s.load(*gva));
    let c = count(&mut m, &mut s);
    assert_eq!(exits_by_name(&c), [("hidden_fault", 4)]);
    for gva in &pages[..4] {
        assert!(!Script::machine_entry(&m.platform.cpu.world, s.entry(*gva, 1).0).has(DIRTY));
    }
    pages[..3].iter().for_each(|gva| s.store(*gva));
    let c = count(&mut m, &mut s);
    assert_eq!(exits_by_name(&c), [("dirty_fault", 3)]);
    pages[..3].iter().for_each(|gva| s.store(*gva));
    assert_eq!(count(&mut m, &mut s).exits_total(), 0);
    pages[4..].iter().for_each(|gva| s.store(*gva));
    let c = count(&mut m, &mut s);
    assert_eq!(exits_by_name(&c), [("hidden_fault", 3)]);
    for (i, gva) in pages.iter().enumerate() {
        let entry = Script::machine_entry(&m.platform.cpu.world, s.entry(*gva, 1).0);
        assert_eq!(entry.has(DIRTY), i != 3, "the guest's dirty bit of page {i}");
        assert!(entry.has(ACCESSED));
    }
}

// ---- leaf tables -----------------------------------------------------------------------------------

/// The first store to a leaf table exits, later ones are free, until the address space is loaded or
/// flushed: then it is compared (512 entries) and protected again.
#[test]
fn a_leaf_table_goes_out_of_step_once_and_back_at_a_flush() {
    let flushes: Vec<(&str, bool, Way)> = vec![
        ("CR3 load", true, Box::new(|s| s.load_cr3(s.root, 1, false))),
        ("CR3 load that keeps", false, Box::new(|s| s.load_cr3(s.root, 1, true))),
        ("INVLPG", false, Box::new(|s| s.invlpg(0x7000))),
        ("INVPCID of the PCID", true, Box::new(|s| s.invalidate(Invalidation::Pcid(1)))),
        ("INVPCID of another PCID", false, Box::new(|s| s.invalidate(Invalidation::Pcid(2)))),
        ("INVPCID of all but global", true, Box::new(|s| s.invalidate(Invalidation::AllButGlobal))),
        ("INVPCID of all", true, Box::new(|s| s.invalidate(Invalidation::All))),
    ];
    let write = |s: &mut Script, i: u64| s.map_used(i << 12, DATA + (i << 12), S4K);
    for (name, in_step, flush) in &flushes {
        let (mut m, mut s) = shadowed(8);
        write(&mut s, 100);
        assert_eq!(exits_by_name(&count(&mut m, &mut s)), [("table_unsync", 1)]);
        (101..140).for_each(|i| write(&mut s, i));
        assert_eq!(count(&mut m, &mut s).exits_total(), 0, "{name}");
        flush(&mut s);
        let c = count(&mut m, &mut s);
        assert_eq!(c.exits_total(), 1, "{name} itself");
        assert_eq!(c.sync_entries, if *in_step { 512 } else { 0 }, "{name}");
        write(&mut s, 200);
        let again = exits(&count(&mut m, &mut s), ExitReason::TableUnsync);
        assert_eq!(again, u64::from(*in_step), "{name}");
    }
}

/// A fault in a leaf table that is linked already does not compare it: it stays out of step, and the
/// next store to it costs no exit. Only a flush brings it back. Seen on a real KVM (Linux 6.1.192,
/// shadow paging under an emulated SVM): `mmu_unsync` is 1 from the store to the CR3 load.
#[test]
fn a_fault_in_an_out_of_step_table_leaves_it_so() {
    let (mut m, mut s) = shadowed(8);
    s.map_used(0x10_0000, DATA + 0x10_0000, S4K);
    assert_eq!(exits_by_name(&count(&mut m, &mut s)), [("table_unsync", 1)]);
    s.load(0x10_0000);
    let c = count(&mut m, &mut s);
    assert_eq!(exits_by_name(&c), [("hidden_fault", 1)]);
    assert_eq!(c.sync_entries, 0);
    s.map_used(0x12_0000, DATA + 0x12_0000, S4K);
    assert_eq!(count(&mut m, &mut s).exits_total(), 0, "still out of step");
    s.load_cr3(s.root, 1, false);
    assert_eq!(count(&mut m, &mut s).sync_entries, 512);
    s.map_used(0x14_0000, DATA + 0x14_0000, S4K);
    assert_eq!(exits_by_name(&count(&mut m, &mut s)), [("table_unsync", 1)]);
}

/// What a shadow table loses is counted entry by entry, and a comparison counts the entries for which
/// it reads the guest's.
#[test]
fn entries_that_go_and_entries_that_are_compared_are_counted() {
    let (mut m, mut s) = shadowed(8);
    let there = |s: &mut Script| (0..8).for_each(|i| s.load(i << 12));
    there(&mut s);
    count(&mut m, &mut s);
    s.map_used(100 << 12, DATA + (100 << 12), S4K);
    s.load_cr3(s.root, 1, false);
    let c = count(&mut m, &mut s);
    assert_eq!((c.sync_entries, c.shadow_drops), (512, 0));
    let present = c.sync_present;
    assert!((8..=16).contains(&present), "{present} of 512 are there");
    // The guest takes two of them away, and the next comparison drops those.
    s.unmap(0, S4K);
    s.unmap(1 << 12, S4K);
    s.load_cr3(s.root, 1, false);
    let c = count(&mut m, &mut s);
    assert_eq!((c.sync_present, c.shadow_drops), (present, 2));
}

/// What comparing does: an entry whose guest entry moved or went is dropped, one that was narrowed is
/// narrowed, the others stay; entries that are new are not filled.
#[test]
fn comparing_drops_what_changed_and_keeps_the_rest() {
    let (mut m, mut s) = shadowed(8);
    s.load(0);
    let c = count(&mut m, &mut s);
    assert_eq!((c.shadow_fills, c.shadow_prefetches), (1, 7));
    s.map_used(0x1000, DATA + 0x20_0000, S4K);
    s.unmap(0x2000, S4K);
    s.map(0x3000, DATA + 0x3000, S4K, Protection::READ_EXECUTE, ACCESSED | DIRTY);
    s.map_used(0x9000, DATA, S4K);
    s.load_cr3(s.root, 1, false);
    count(&mut m, &mut s);
    [0, 0x3000, 0x4000, 0x7000].into_iter().for_each(|gva| s.load(gva));
    assert_eq!(count(&mut m, &mut s).exits_total(), 0, "as they were, or narrower");
    s.load(0x1000);
    s.load(0x9000);
    assert_eq!(exits_by_name(&count(&mut m, &mut s)), [("hidden_fault", 2)]);
    write_fault(&mut s, 0x3000, true);
    assert_eq!(exits_by_name(&count(&mut m, &mut s)), [("true_fault", 1)]);
}

/// INVLPG brings the one entry in step at once, and only if its table is out of step.
#[test]
fn invlpg_reads_one_entry_anew() {
    let (mut m, mut s) = shadowed(8);
    s.load(0);
    count(&mut m, &mut s);
    s.map_used(0x1000, DATA + 0x2000, S4K);
    s.invlpg(0x1000);
    let c = count(&mut m, &mut s);
    assert_eq!(exits_by_name(&c), [("table_unsync", 1), ("invalidation", 1)]);
    assert_eq!((c.shadow_prefetches, c.sync_entries), (1, 0));
    s.load(0x1000);
    assert_eq!(count(&mut m, &mut s).exits_total(), 0, "filled by INVLPG");
    let (mut m, mut s) = shadowed(8);
    s.invlpg(0x1000);
    let c = count(&mut m, &mut s);
    assert_eq!((c.exits_total(), c.shadow_prefetches), (1, 0), "in step: nothing to do");
}

// ---- tables above the leaf level --------------------------------------------------------------------

/// Each store to a table above the leaf level exits. The third without a use in between drops its
/// shadow, after which stores are free; a fault that passes the table is a use.
#[test]
fn stores_to_upper_tables_exit_and_flooding_drops_the_shadow() {
    assert_eq!(FLOOD, 3);
    for level in [2, 3, 4] {
        let (mut m, mut s) = shadowed(8);
        let table = s.entry(0, level).0.value() & !0xfff;
        let empty = |i: u64| Gpa::new(table + 8 * (300 + i));
        for i in 0..2 {
            s.write(empty(i), 0);
            let c = count(&mut m, &mut s);
            assert_eq!((exits_by_name(&c), c.flood_zaps), (vec![("table_write", 1)], 0));
        }
        s.write(empty(2), 0);
        let c = count(&mut m, &mut s);
        assert_eq!((exits_by_name(&c), c.flood_zaps), (vec![("table_write", 1)], 1));
        assert_eq!(c.shadow_zaps, 1, "level {level}");
        s.write(empty(3), 0);
        assert_eq!(count(&mut m, &mut s).exits_total(), 0, "level {level}: not shadowed any more");
        // The next access makes the shadow anew; what was below is found again.
        s.load(0);
        let c = count(&mut m, &mut s);
        assert_eq!(exits_by_name(&c), [("hidden_fault", 1)], "level {level}");
        assert_eq!(c.shadow_pages, 1, "level {level}");
        s.write(empty(4), 0);
        assert_eq!(exits_by_name(&count(&mut m, &mut s)), [("table_write", 1)]);
    }
}

#[test]
fn a_use_between_stores_keeps_the_shadow() {
    let (mut m, mut s) = shadowed(0);
    let directory = s.entry(0, 2).0.value() & !0xfff;
    for i in 0..12 {
        cleared(&mut s, DATA + (i << 12));
        s.map_used(i << 16, DATA + (i << 12), S4K);
    }
    s.load_cr3(s.root, 1, false);
    count(&mut m, &mut s);
    for i in 0..12 {
        // Two stores, and a hidden fault on the way through.
        s.write(Gpa::new(directory + 8 * 300), 0);
        s.write(Gpa::new(directory + 8 * 301), 0);
        s.load(i << 16);
        let c = count(&mut m, &mut s);
        assert_eq!(exits_by_name(&c), [("hidden_fault", 1), ("table_write", 2)], "{i}");
        assert_eq!(c.flood_zaps, 0);
    }
    // A TLB hit or a hardware walk is no use: the hypervisor does not see it.
    for gva in [0, 1 << 16, 2 << 16] {
        s.write(Gpa::new(directory + 8 * 300), 0);
        s.load(gva);
    }
    assert_eq!(count(&mut m, &mut s).flood_zaps, 1);
}

// ---- filling ahead -----------------------------------------------------------------------------------

/// A fill looks at the aligned group of eight, in order, and stops at the first entry that cannot be
/// filled: not used yet, not present, or without a page of the host.
#[test]
fn prefetch_fills_the_group_up_to_the_first_that_cannot_be_filled() {
    assert_eq!(PREFETCH, 8);
    let all = |_: &mut Script| {};
    let unused = |s: &mut Script| s.map(0x4000, DATA + 0x4000, S4K, Protection::ALL, 0);
    let absent = |s: &mut Script| s.unmap(0x4000, S4K);
    let unbacked = |s: &mut Script| s.map_used(0x4000, DATA + 0x80_0000, S4K);
    let first = |s: &mut Script| s.unmap(0, S4K);
    let cases: [(&str, Way, u64, u64); 6] = [
        ("all can be filled", Box::new(all), 3, 7),
        ("from the end of the group", Box::new(all), 7, 7),
        ("entry 4 was never used", Box::new(unused), 6, 4),
        ("entry 4 is absent", Box::new(absent), 2, 3),
        ("entry 4 has no page of the host", Box::new(unbacked), 6, 4),
        ("entry 0 is absent", Box::new(first), 5, 0),
    ];
    for (name, change, touched, ahead) in cases {
        let (mut m, mut s) = shadowed(16);
        change(&mut s);
        m.count(&s.take());
        s.load(touched << 12);
        let c = count(&mut m, &mut s);
        assert_eq!((exits(&c, ExitReason::HiddenFault), c.exits_total()), (1, 1), "{name}");
        assert_eq!((c.shadow_fills, c.shadow_prefetches), (1, ahead), "{name}");
        // What was filled needs no exit; the next group does.
        let filled = (0..8).filter(|i| *i != touched).take(ahead as usize);
        filled.for_each(|i| s.load(i << 12));
        assert_eq!(count(&mut m, &mut s).exits_total(), 0, "{name}");
        s.load(8 << 12);
        assert_eq!(exits_by_name(&count(&mut m, &mut s)), [("hidden_fault", 1)], "{name}");
    }
}

// ---- roots ---------------------------------------------------------------------------------------------

/// A CR3 switch to one of the last roots takes it as it is, if the guest says keep; a root that was
/// forgotten is brought in step as if it were new. Four address spaces are remembered, the current one
/// included.
#[test]
fn four_roots_are_remembered() {
    assert_eq!(PREVIOUS_ROOTS, 3);
    for spaces in 2..=6u64 {
        let mut m = setup("4k").shadow();
        let mut s = Script::new(&LONG4);
        let mut roots = vec![s.root];
        (1..spaces).for_each(|_| roots.push(s.add_root()));
        for (i, root) in roots.iter().enumerate() {
            s.load_cr3(*root, i as u16 + 1, false);
            s.map_used(0x1000, DATA + ((i as u64) << 12), S4K);
            s.load(0x1000);
        }
        // Each leaf table goes out of step.
        for root in &roots {
            s.root = *root;
            s.map_used(0x9000, DATA, S4K);
        }
        m.count(&s.take());
        for (i, root) in roots.iter().enumerate() {
            s.load_cr3(*root, i as u16 + 1, true);
            s.load(0x1000);
        }
        let c = count(&mut m, &mut s);
        assert_eq!(exits_by_name(&c), [("cr3_load", spaces)], "{spaces}: shadow pages are kept");
        assert_eq!(c.shadow_pages, 0);
        // Going round, the least recent root comes next: either all are remembered or none is.
        let synced = if spaces <= 4 { 0 } else { spaces * 512 };
        assert_eq!(c.sync_entries, synced, "{spaces} address spaces");
        approve(&m);
    }
}

// ---- large pages ------------------------------------------------------------------------------------------

/// One shadow entry for 2 MiB where guest and host have the page; 4 KiB entries if the guest's tables
/// that are shadowed lie inside.
#[test]
fn a_large_entry_covers_no_shadowed_table() {
    let mut m = setup("2m").shadow();
    let mut s = Script::new(&LONG4);
    s.map_used(0x4000_0000, DATA, S2M);
    // The block at 16 MiB holds the guest's tables.
    s.map_used(0x4020_0000, 16 << 20, S2M);
    m.count(&s.take());
    [0, 0x8000, 0x10_0000, 0x1f_f000].into_iter().for_each(|o| s.load(0x4000_0000 + o));
    let c = count(&mut m, &mut s);
    assert_eq!((exits_by_name(&c), c.shadow_fills), (vec![("hidden_fault", 1)], 1));
    [0, 0x8000, 0x10_0000, 0x1f_f000].into_iter().for_each(|o| s.load(0x4020_0000 + o));
    let c = count(&mut m, &mut s);
    assert_eq!(exits_by_name(&c), [("hidden_fault", 4)]);
    // Each with its group of eight, since a large page is used as a whole.
    assert_eq!((c.shadow_fills, c.shadow_prefetches), (4, 28));
    // A table appears inside of the first page, and is shadowed: the large entry allows no stores any
    // more, and the first one splits it.
    s.next_table = DATA + 0x5000;
    s.map_used(0x8000_0000, DATA + 0x20_0000, S4K);
    assert_eq!(s.next_table, DATA + 0x7000, "a directory and a leaf table");
    m.count(&s.take());
    s.load(0x4000_0000);
    assert_eq!(count(&mut m, &mut s).exits_total(), 0, "they are not shadowed yet");
    s.load(0x8000_0000);
    s.load(0x4000_0000);
    s.load(0x4010_0000);
    let c = count(&mut m, &mut s);
    assert_eq!(exits_by_name(&c), [("hidden_fault", 1)], "the table's user");
    s.store(0x4000_0000);
    s.store(0x4010_0000);
    let c = count(&mut m, &mut s);
    assert_eq!(exits_by_name(&c), [("hidden_fault", 2)], "4 KiB at a time");
    assert_eq!((c.shadow_fills, c.shadow_prefetches), (2, 14), "7 more each, the tables read-only");
}

// ---- quota ---------------------------------------------------------------------------------------------------

/// The number of shadow pages stays within the quota, the oldest go, and all stays right.
#[test]
fn the_quota_holds() {
    let setup = setup("4k");
    let mut build = setup.build("shadow", true);
    // Two per cent of 1 MiB is less than the minimum.
    build.guest_bytes = 1 << 20;
    let mut m = Machine::new(Shadow::new(&build).unwrap(), build).unwrap();
    let mut s = Script::new(&LONG4);
    let regions = 200u64;
    for i in 0..regions {
        s.map_used(i << 21, DATA + (i << 12), S4K);
    }
    m.run(&s.take()).unwrap();
    let mut r = SplitMix64::new(4);
    let mut most = 0;
    for i in 0..3000 {
        let region = r.below(regions);
        s.access(region << 21, i % 2 == 0);
        if i % 50 == 0 {
            s.map_used(region << 21, DATA + (r.below(400) << 12), S4K);
            s.invlpg(region << 21);
            s.load(region << 21);
        }
        m.run(&s.take()).unwrap();
        let pages = m.scheme.mmu.bytes() / 4096;
        assert!(pages <= QUOTA_MIN, "{pages}");
        most = most.max(pages);
    }
    assert_eq!(most, QUOTA_MIN, "and is used");
    let c = m.counters();
    assert!(c.shadow_zaps > 500, "{}", c.shadow_zaps);
    assert_eq!(c.shadow_pages - c.shadow_zaps, m.scheme.mmu.bytes() / 4096);
    assert_eq!(c.flood_zaps, 0);
    approve(&m);
    // Roots of several vCPUs and processes, forks and exits, under the same pressure.
    for seed in 1..6 {
        let life = Life {
            seed,
            events: 250,
            vcpus: 3,
            accesses_percent: 70,
            mode: &LONG4,
            pages: "4k",
            pcids: true,
        };
        let setup = Setup { vcpus: 3, ..setup.clone() };
        let mut build = setup.build("shadow", true);
        build.guest_bytes = 1 << 20;
        let mut m = Machine::new(Shadow::new(&build).unwrap(), build).unwrap();
        for events in life.live() {
            m.run(&events).unwrap();
            assert!(m.scheme.mmu.bytes() / 4096 <= QUOTA_MIN);
        }
        approve(&m);
    }
}
