//! The modelled guest, rule by rule: numbers and orders that can be counted by hand.

mod common;

use common::pair::{BASE, Pair, STORE, letters, work, writes};
use common::{config, frames_add_up, run};
use nestwalk_mm::{DYNAMIC_PCIDS, FLUSH_CEILING, GuestConfig, PagePolicy};
use nestwalk_tables::{LONG4, LONG5, MODES, entry};
use nestwalk_types::{
    Batch, Control, Gpa, Gva, Invalidation, OsWork, ProcessId, Protection, VcpuId,
};

#[test]
fn sixty_four_mebibytes_of_4_kib_pages_are_16384_leaf_writes() {
    for mode in MODES {
        let mut p = Pair::new(config(mode, 512));
        p.machine.checks_all = false; // 16,384 times 16,384 translations
        let runs: Vec<_> = (0..16384).map(|i| run(0, BASE + (i << 12), STORE)).collect();
        p.runs(&runs);
        // Tables of level 1 below an aligned 64 MiB range, and one of each upper level but the root.
        let per_table = mode.span(2).bytes();
        let leaf_tables = (64 << 20) / per_table;
        let (root, preallocated) = if mode.root_in_registers { (1, 4) } else { (1, 0) };
        let upper = u64::from(mode.levels) - 2 - u64::from(mode.root_in_registers);
        let tables = root + preallocated + upper + leaf_tables;
        let counts = p.machine.counts;
        assert_eq!(counts.tables, tables, "{}", mode.name);
        assert_eq!(counts.writes, 16384 + tables - root, "{}", mode.name);
        assert_eq!((counts.cleared, counts.faults), (16384, 16384));
        let stats = p.guest.stats();
        assert_eq!((stats.table_bytes, stats.resident_bytes), (tables << 12, 64 << 20));
        assert_eq!((stats.pages_4k, stats.faults, stats.first_touches), (16384, 16384, 16384));
        assert_eq!(stats.implicit_mappings, 32);
        assert_eq!(p.guest.spaces().next().unwrap().1.vmas().len(), 1, "neighbours are merged");
        assert_eq!(work(&p.runs(&[]), OsWork::PageFault), 0);
    }
}

#[test]
fn with_thp_they_are_32_entries_of_level_2() {
    for policy in ["thp", "2m"] {
        let mut p = Pair::with(policy);
        let runs: Vec<_> = (0..16384).map(|i| run(0, BASE + (i << 12), STORE)).collect();
        let controls = p.runs(&runs);
        let large = writes(&controls).iter().filter(|e| e.has(entry::LARGE)).count();
        assert_eq!((large, p.machine.counts.writes), (32, 32 + 2));
        assert_eq!(p.machine.counts.faults, 32);
        assert_eq!(p.guest.stats().pages_2m, 32);
    }
}

#[test]
fn a_first_touch_is_what_linux_does_in_its_order() {
    let mut p = Pair::with("4k");
    // Root and CR3; fault; three tables, each linked; the page; the leaf; the work at the end.
    assert_eq!(letters(&p.store(BASE)), "NLFNwNwNwCwW");
    let controls = p.load(BASE + 0x1000);
    assert_eq!(letters(&controls), "FCwW");
    let leaf = writes(&controls)[0];
    assert!(leaf.has(entry::PRESENT | entry::USER | entry::WRITE | entry::ACCESSED));
    assert!(!leaf.has(entry::DIRTY) && !leaf.has(entry::NO_EXECUTE));
    let leaf = *writes(&p.store(BASE + 0x2000)).last().unwrap();
    assert!(leaf.has(entry::WRITE | entry::DIRTY | entry::ACCESSED));
    assert_eq!(letters(&p.load(BASE + 0x2000)), "");
    p.map(BASE + (8 << 20), 4, Protection::READ);
    let leaf = *writes(&p.load(BASE + (8 << 20))).last().unwrap();
    assert!(!leaf.has(entry::WRITE) && leaf.has(entry::NO_EXECUTE));
}

#[test]
fn munmap_invalidates_33_pages_one_by_one_and_34_at_once() {
    for (pages, end) in [(FLUSH_CEILING, "I".repeat(33)), (FLUSH_CEILING + 1, "L".into())] {
        let mut p = Pair::with("4k");
        p.map(BASE, 512, Protection::READ_WRITE);
        p.populate(BASE, 512);
        p.switch(0, 0);
        let controls = p.unmap(BASE + 0x3000, pages);
        assert_eq!(letters(&controls), "0".repeat(pages as usize) + &end);
        // The last mapping goes: three tables are unlinked, the root stays.
        let free = p.guest.memory().physical.free_frames();
        let letters = letters(&p.unmap(BASE, 512));
        assert_eq!(letters, "0".repeat(512 - pages as usize + 3) + "L");
        let freed = p.guest.memory().physical.free_frames() - free;
        assert_eq!(freed, 512 - pages + 3);
        assert_eq!(letters.len() as u64, freed + 1);
        frames_add_up(&p.guest);
    }
}

#[test]
fn a_table_stays_while_another_mapping_may_need_it() {
    let mut p = Pair::with("4k");
    p.map(BASE, 1, Protection::READ_WRITE);
    p.map(BASE + 0x10_0000, 1, Protection::READ_WRITE);
    p.store(BASE);
    assert_eq!(letters(&p.unmap(BASE, 1)), "0I");
    // Nothing was touched there, but the table goes with its last mapping.
    assert_eq!(letters(&p.unmap(BASE + 0x10_0000, 1)), "000I");
    assert_eq!(p.guest.stats().table_bytes, 4096);
}

#[test]
fn a_shootdown_reaches_every_vcpu_that_runs_the_process_and_the_others_pay_later() {
    let mut p = Pair::with("4k");
    for vcpu in 0..3 {
        p.switch(vcpu, 0);
        p.runs(&[run(vcpu, BASE, STORE), run(vcpu, BASE + 0x1000, STORE)]);
    }
    assert_eq!(letters(&p.switch(1, 0)), "", "it runs already");
    p.switch(2, 5);
    let controls = p.unmap(BASE, 1);
    let page =
        |vcpu| Control::Invalidate { vcpu: VcpuId(vcpu), what: Invalidation::Page(Gva::new(BASE)) };
    // The vCPU that unmaps interrupts the other one that runs the process.
    let interrupt = Control::OsWork { work: OsWork::Shootdown, count: 1 };
    assert_eq!(controls[1..], [page(0), page(1), interrupt]);
    // vCPU 2 has flushed nothing; its PCID is old when it switches back, once.
    assert_eq!(letters(&p.switch(2, 0)), "LW");
    p.switch(2, 5);
    assert_eq!(letters(&p.switch(2, 0)), "KW");
    assert_eq!(p.guest.stats().invalidations, 2);
}

#[test]
fn six_pcids_are_used_in_turn() {
    let mut p = Pair::with("4k");
    let mut pcids = Vec::new();
    let mut keeps = Vec::new();
    let n = DYNAMIC_PCIDS as u32;
    for process in (0..n).chain(0..n).chain([n, 1, 0, 1]) {
        for c in p.switch(0, process) {
            if let Control::LoadCr3 { pcid, keep, .. } = c {
                pcids.push(pcid);
                keeps.push(keep);
            }
        }
    }
    // Six are new, six are kept; the seventh process takes the first PCID, so process 1 still has
    // the second, and process 0 takes it away from it.
    assert_eq!(pcids, [1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 6, 1, 2, 2, 3]);
    let kept = [vec![false; 6], vec![true; 6], vec![false, true, false, false]].concat();
    assert_eq!(keeps, kept);
    let mut p = Pair::new(GuestConfig { pcids: false, ..config(&LONG4, 256) });
    for process in [0, 1, 0] {
        let controls = p.switch(0, process);
        assert!(
            controls.iter().any(|c| matches!(c, Control::LoadCr3 { pcid: 0, keep: false, .. }))
        );
    }
}

#[test]
fn fork_write_protects_and_shares_and_a_store_copies_or_reuses() {
    let mut p = Pair::with("4k");
    p.map(BASE, 8, Protection::READ_WRITE);
    p.populate(BASE, 4);
    p.load(BASE);
    let resident = p.guest.stats().resident_bytes;
    let controls = p.fork(0, 1);
    // Child: root, then per upper level a table and its link; per page the parent's entry and the
    // child's; at the end the parent's PCID.
    assert_eq!(letters(&controls), "NNwNwNwwwwwwwwwLW");
    assert_eq!(work(&controls, OsWork::Fork), 1);
    for pair in writes(&controls)[3..].chunks(2) {
        assert!(!pair[0].has(entry::WRITE) && pair[0].has(entry::DIRTY | entry::ACCESSED));
        assert!(!pair[1].has(entry::WRITE) && !pair[1].has(entry::ACCESSED));
        assert_eq!(pair[0].target::<Gpa>(), pair[1].target::<Gpa>());
    }
    assert_eq!(p.guest.stats().resident_bytes, resident);
    // The parent copies one page, the child then has it alone.
    let controls = p.store(BASE);
    assert_eq!(letters(&controls), "FC0IwWW");
    assert_eq!(work(&controls, OsWork::PageCopied), 1);
    p.switch(0, 1);
    let controls = p.store(BASE);
    assert_eq!(letters(&controls), "FwW");
    assert!(writes(&controls)[0].has(entry::WRITE | entry::DIRTY | entry::ACCESSED));
    frames_add_up(&p.guest);
    p.exit(1);
    p.switch(0, 0);
    assert_eq!(letters(&p.store(BASE + 0x1000)), "FwW", "the child is gone");
    let stats = p.guest.stats();
    assert_eq!((stats.copies, stats.reuses), (1, 2));
}

#[test]
fn a_shared_thp_is_split_by_the_store_and_one_page_is_copied() {
    let mut p = Pair::with("thp");
    p.store(BASE);
    let controls = p.fork(0, 1);
    assert_eq!(writes(&controls).iter().filter(|e| e.has(entry::LARGE)).count(), 2);
    p.switch(0, 1);
    let controls = p.store(BASE + 0x5000);
    // New table, large leaf taken out and invalidated, 512 small ones, link; then the copy.
    assert_eq!(letters(&controls), format!("FNwI{}wC0IwWW", "w".repeat(512)));
    assert_eq!(work(&controls, OsWork::PageCopied), 1);
    assert_eq!(p.guest.stats().resident_bytes, (2 << 20) + 4096);
    frames_add_up(&p.guest);
    p.exit(1);
    p.switch(0, 0);
    assert_eq!(letters(&p.store(BASE + 0x7000)), "FwW", "all of it is the parent's again");
    frames_add_up(&p.guest);
    assert_eq!(p.guest.stats().pages_2m, 1);
}

#[test]
fn an_explicit_large_page_is_copied_whole() {
    for (policy, pages) in [("2m", 512), ("1g", 512 * 512)] {
        let policy = PagePolicy::by_name(policy).unwrap();
        let mut p = Pair::new(GuestConfig { policy, ..config(&LONG5, 8192) });
        p.store(BASE);
        p.fork(0, 1);
        let controls = p.store(BASE + 0x5000);
        assert_eq!(letters(&controls), "FC0IwWW");
        assert_eq!(work(&controls, OsWork::PageCopied), pages);
        frames_add_up(&p.guest);
    }
}

#[test]
fn a_1_gib_page_falls_back_to_2_mib_and_those_to_4_kib() {
    let policy = PagePolicy::by_name("1g").unwrap();
    let mut p = Pair::new(GuestConfig { policy, ..config(&LONG4, 2048) });
    p.store(1 << 30);
    p.store(2 << 30);
    p.store((2 << 30) + (2 << 20));
    let stats = p.guest.stats();
    // The first GiB of memory has the kernel in it: one 1 GiB page only.
    assert_eq!((stats.pages_1g, stats.pages_2m, stats.fallbacks), (1, 2, 1));
    let mut p =
        Pair::new(GuestConfig { policy, fragmentation: 1.0.into(), ..config(&LONG4, 2048) });
    p.store(1 << 30);
    let stats = p.guest.stats();
    assert_eq!((stats.pages_1g, stats.pages_2m, stats.pages_4k, stats.fallbacks), (0, 0, 1, 2));
    frames_add_up(&p.guest);
}

#[test]
fn thp_needs_a_mapping_that_covers_it_and_no_table() {
    let mut p = Pair::with("thp");
    p.map(BASE, 511, Protection::READ_WRITE);
    p.store(BASE);
    assert_eq!(p.guest.stats().pages_4k, 1);
    // Covered now, but a table of 4 KiB pages is there.
    p.map(BASE + (511 << 12), 513, Protection::READ_WRITE);
    p.store(BASE + 0x1000);
    p.store(BASE + (2 << 20));
    assert_eq!((p.guest.stats().pages_4k, p.guest.stats().pages_2m), (2, 1));
    assert_eq!(p.guest.stats().fallbacks, 0);
}

#[test]
fn the_zero_page_is_mapped_for_loads_and_replaced_by_a_store() {
    let mut p = Pair::new(GuestConfig { zero_page: true, ..config(&LONG4, 256) });
    let first = writes(&p.load(BASE)).pop().unwrap();
    let second = writes(&p.load(BASE + 0x1000)).pop().unwrap();
    assert_eq!(first.target::<Gpa>(), second.target::<Gpa>());
    assert!(!first.has(entry::WRITE));
    assert_eq!(p.guest.stats().resident_bytes, 0);
    let controls = p.store(BASE);
    assert_eq!(letters(&controls), "FC0IwW");
    assert_eq!(work(&controls, OsWork::PageCopied), 0);
    p.exit(0);
    frames_add_up(&p.guest);
}

#[test]
fn mprotect_takes_entries_out_and_invalidates_what_changed() {
    let mut p = Pair::with("4k");
    p.map(BASE, 8, Protection::READ_WRITE);
    p.populate(BASE, 4);
    p.switch(0, 0);
    let protect = |protection| Control::Protect {
        process: ProcessId(0),
        start: Gva::new(BASE),
        bytes: 0x2000,
        protection,
    };
    assert_eq!(letters(&p.control(protect(Protection::READ))), "0w0wII");
    assert_eq!(letters(&p.control(protect(Protection::READ))), "");
    let controls = p.control(protect(Protection::READ_WRITE));
    assert!(writes(&controls)[1].has(entry::WRITE | entry::DIRTY), "it is nobody else's");
    p.fork(0, 1);
    p.control(protect(Protection::READ));
    let controls = p.control(protect(Protection::READ_WRITE));
    assert!(writes(&controls).iter().all(|e| !e.has(entry::WRITE)), "the child has it, too");
    assert_eq!(letters(&p.store(BASE)), "FC0IwWW");
}

#[test]
fn exec_loads_the_new_root_before_the_old_tables_go() {
    let mut p = Pair::with("4k");
    p.switch(1, 0);
    p.store(BASE);
    p.runs(&[run(1, BASE, STORE)]);
    let controls = p.control(Control::Exec { process: ProcessId(0) });
    // vCPU 1 made the last access, so it executes; vCPU 0 still has the old root: it is flushed.
    assert_eq!(letters(&controls), "NL0000LWW");
    assert_eq!(work(&controls, OsWork::Exec), 1);
    assert_eq!(letters(&p.runs(&[run(1, BASE, STORE)])), "FNwNwNwCwW");
    assert_eq!(letters(&p.store(BASE)), "L", "the other vCPU finds the page");
}

#[test]
fn a_process_that_goes_on_after_its_exit_begins_anew() {
    let mut p = Pair::with("4k");
    p.store(BASE);
    p.exit(0);
    assert_eq!(p.guest.stats().processes, 0);
    // Its root's frame becomes the root of another process, with other pages.
    p.switch(1, 7);
    p.runs(&[run(1, BASE, STORE), run(1, BASE + 0x1000, STORE)]);
    let before = p.out.gpas[0];
    p.load(BASE);
    assert_ne!(p.out.gpas[0], before);
    frames_add_up(&p.guest);
}

#[test]
fn a_freed_table_that_serves_elsewhere_is_not_looked_into() {
    let mut p = Pair::with("4k");
    p.map(BASE, 1, Protection::READ_WRITE);
    p.map(BASE + (4 << 20), 1, Protection::READ_WRITE);
    p.store(BASE);
    // vCPU 1 finds the page by a look-up of the tables.
    p.switch(1, 0);
    p.runs(&[run(1, BASE, STORE)]);
    // One page: one INVLPG on each, and the table of level 1 is free; the next one takes its frame.
    assert_eq!(letters(&p.unmap(BASE, 1)), "00IIW");
    p.store(BASE + (4 << 20));
    let other = p.out.gpas[0];
    for vcpu in [0, 1] {
        p.runs(&[run(vcpu, BASE, STORE)]);
        assert_ne!(p.out.gpas[0], other);
    }
}

#[test]
fn work_before_the_region_of_interest_is_said_before_it() {
    let mut p = Pair::with("4k");
    let batch = Batch {
        runs: vec![run(0, BASE, STORE), run(0, BASE + 0x1000, STORE)],
        controls: vec![(1, Control::RegionOfInterest)],
    };
    let controls = p.batch(&batch).to_vec();
    let roi = controls.iter().position(|c| c.1 == Control::RegionOfInterest).unwrap();
    let fault = (1, Control::OsWork { work: OsWork::PageFault, count: 1 });
    assert_eq!(controls[roi - 1], fault);
    assert_eq!(
        *controls.last().unwrap(),
        (2, Control::OsWork { work: OsWork::PageFault, count: 1 })
    );
    assert_eq!(controls[roi].0, 1);
}
