//! Daemons of the modelled guest and of the host, rule by rule.

mod common;

use common::pair::{BASE, Pair, STORE, letters, work, writes};
use common::{config, frames_add_up, run};
use nestwalk_contiguity::{RunSet, ranges};
use nestwalk_mm::{
    DaemonConfig, DaemonStats, FreeBlocks, GuestConfig, HostConfig, HostMemory, KERNEL_BYTES,
    KhugepagedConfig, ModelledGuest, PagePolicy, PlacementKind, RangerConfig,
};
use nestwalk_tables::{Entry, LEGACY32, LONG4, Mode, entry};
use nestwalk_types::{
    Address, Batch, Control, Gpa, GuestBatch, Gva, Invalidation, OsWork, PageSize, ProcessId,
    Protection, Run, RunFlags, VcpuId,
};

const MIB: u64 = 1 << 20;

/// khugepaged runs after so many instructions, of which every run has one.
fn khugepaged(interval: u64) -> KhugepagedConfig {
    KhugepagedConfig { interval, alloc_interval: 100 * interval, ..KhugepagedConfig::LINUX }
}

fn collapsing(mode: &'static Mode, khugepaged: KhugepagedConfig) -> Pair {
    let daemons = DaemonConfig { khugepaged, ..DaemonConfig::default() };
    let policy = PagePolicy::Khugepaged;
    Pair::new(GuestConfig { policy, daemons, ..config(mode, 512) })
}

/// The first `pages` pages of a block are touched while the mapping is too short for a large page;
/// then the mapping covers the block.
fn grown(p: &mut Pair, pages: u64) {
    let block = p.guest.config().mode.span(2).base_pages();
    p.map(BASE, block - 1, Protection::ALL);
    (0..pages).for_each(|i| {
        p.store(BASE + (i << 12));
    });
    p.map(BASE + ((block - 1) << 12), 1, Protection::ALL);
}

/// As [`Pair::runs`], with the letters of the daemon's part alone.
fn last(p: &mut Pair) -> Vec<Control> {
    // The page of the last run, so that nothing but the daemon has anything to do.
    p.load(BASE)
}

fn stats(p: &Pair) -> DaemonStats {
    p.guest.stats().daemons
}

#[test]
fn khugepaged_collapses_in_linux_s_order() {
    for mode in [&LONG4, &LEGACY32] {
        let mut p = collapsing(mode, khugepaged(3));
        grown(&mut p, 3);
        assert_eq!((stats(&p).runs, p.guest.stats().pages_4k), (0, 3));
        let controls = last(&mut p);
        // Table unlinked, everything invalidated, page filled, leaf stored; then what it took.
        assert_eq!(letters(&controls), "0LCwWWWW", "{}", mode.name);
        let leaf = writes(&controls)[1];
        assert!(leaf.has(entry::LARGE | entry::WRITE | entry::ACCESSED | entry::DIRTY));
        let block = mode.span(2).base_pages();
        let counts = [OsWork::PageScanned, OsWork::Collapse, OsWork::PageCopied, OsWork::Shootdown]
            .map(|kind| u64::from(work(&controls, kind)));
        assert_eq!(counts, [block, 1, 3, 1]);
        let s = p.guest.stats();
        assert_eq!((s.pages_4k, s.pages_2m + s.pages_4m), (0, 1));
        assert_eq!((s.daemons.collapsed, s.daemons.bloat), (1, block - 3));
        assert_eq!((s.resident_bytes, s.daemon_interrupts), (block << 12, 1));
        frames_add_up(&p.guest);
        // What was stored before is there: the machine of the test says so.
        p.load(BASE + 0x1000);
        p.store(BASE + 0x5000);
        frames_add_up(&p.guest);
    }
}

#[test]
fn khugepaged_keeps_linux_s_limits() {
    let collapsed = |config: KhugepagedConfig, pages: u64, fork: bool| {
        let mut p = collapsing(&LONG4, config);
        grown(&mut p, pages);
        if fork {
            p.fork(0, 1);
        }
        last(&mut p);
        let scanned = stats(&p).scanned;
        frames_add_up(&p.guest);
        (stats(&p).collapsed, scanned)
    };
    let limits = |none, shared| KhugepagedConfig {
        max_ptes_none: none,
        max_ptes_shared: shared,
        ..khugepaged(2)
    };
    assert_eq!(collapsed(limits(511, 256), 2, false), (1, 512));
    assert_eq!(collapsed(limits(510, 256), 2, false), (1, 512));
    assert_eq!(collapsed(limits(509, 256), 2, false), (0, 512));
    // Pages that a fork shares are copied for the process, as far as they are few. The child's
    // pages have not been accessed.
    assert_eq!(collapsed(limits(511, 2), 2, true), (1, 1024));
    assert_eq!(collapsed(limits(511, 1), 2, true), (0, 1024));
    // Never: no time has been set.
    assert_eq!(collapsed(KhugepagedConfig::LINUX, 2, false), (0, 0));
}

#[test]
fn khugepaged_goes_round_in_portions_and_waits_when_nothing_is_free() {
    let config = KhugepagedConfig { pages_to_scan: 512, ..khugepaged(1) };
    let mut p = collapsing(&LONG4, config);
    // Three blocks with a page each, and none that a mapping covers until the last one is made.
    for i in 0..3u64 {
        p.map(BASE + i * 4 * MIB, 511, Protection::ALL);
        p.store(BASE + i * 4 * MIB);
    }
    for i in 0..3u64 {
        p.map(BASE + i * 4 * MIB + 511 * 4096, 1, Protection::ALL);
    }
    let before = stats(&p).collapsed;
    assert_eq!(before, 0);
    for i in 0..3u64 {
        p.load(BASE + (i % 2) * 4 * MIB);
        assert_eq!(stats(&p).collapsed, i + 1, "one block at a time");
    }
    // No block of free frames: it sleeps for longer.
    let daemons = DaemonConfig { khugepaged: khugepaged(1), ..DaemonConfig::default() };
    let fragmentation = 1.0.into();
    let policy = PagePolicy::Khugepaged;
    let config = GuestConfig { policy, daemons, fragmentation, ..config_of(512) };
    let mut p = Pair::new(config);
    p.store(BASE);
    for i in 0..50u64 {
        p.load(BASE + ((i % 2) << 12));
    }
    assert_eq!((stats(&p).runs, stats(&p).collapsed), (1, 0));
    frames_add_up(&p.guest);
}

fn config_of(mib: u64) -> GuestConfig {
    config(&LONG4, mib)
}

fn ranging(policy: &str, ranger: RangerConfig) -> GuestConfig {
    GuestConfig {
        policy: PagePolicy::by_name(policy).unwrap(),
        placement: PlacementKind::Ranger,
        daemons: DaemonConfig { ranger, ..DaemonConfig::default() },
        // Anchors begin where the zone does: with the zone below 4 GiB that is where firmware and
        // kernel are.
        ..config_of(4096)
    }
}

fn every(interval: u64) -> RangerConfig {
    RangerConfig { interval, ..RangerConfig::RELEASED }
}

/// What a process has, gVA to gPA.
fn mapped(guest: &ModelledGuest, process: u32) -> RunSet {
    let (_, space) = guest.spaces().find(|s| s.0.0 == process).unwrap();
    let mut set = RunSet::default();
    for vma in space.vmas().iter() {
        let mut at = vma.start;
        while at < vma.end {
            match space.look_up(guest.memory(), Gva::new(at)) {
                Ok(leaf) => {
                    let page = Gva::new(at).align_down(leaf.size);
                    let (from, to) = (page.page_number(), leaf.frame.page_number());
                    set.map(from, to, leaf.size.base_pages(), 0);
                    at = page.value() + leaf.size.bytes();
                }
                Err(_) => at += 4096,
            }
        }
    }
    set
}

#[test]
fn a_page_is_moved_in_linux_s_order() {
    let mut p = Pair::new(ranging("4k", every(1)));
    p.map(BASE, 200, Protection::ALL);
    // Not where the first tables are, at the beginning of the zone.
    let first = p.store(BASE + 0x64000);
    let old = writes(&first).last().unwrap().frame::<Gpa>(PageSize::SIZE_4K);
    let controls = p.load(BASE + 0x64000 + 64);
    assert_eq!(letters(&controls), "", "the same page: the daemon waits");
    let controls = p.load(BASE + 0x65000);
    // Entry 0, INVLPG, the entry that says it is being moved; page filled; its entry; the daemon's
    // work.
    assert_eq!(letters(&controls)[..9].to_owned(), "0IwCwWWWW");
    let writes: Vec<Entry> = writes(&controls);
    assert!(!writes[1].is_present() && writes[1].frame::<Gpa>(PageSize::SIZE_4K) == old);
    let to = writes[2].frame::<Gpa>(PageSize::SIZE_4K);
    assert!(to != old && writes[2].has(entry::PRESENT | entry::WRITE | entry::DIRTY));
    let invalidated =
        Control::Invalidate { vcpu: VcpuId(0), what: Invalidation::Page(Gva::new(BASE + 0x64000)) };
    assert_eq!(controls[1], invalidated);
    let kinds = [OsWork::PageScanned, OsWork::PageMigrated, OsWork::PageCopied, OsWork::Shootdown];
    // Every page of the mapping was looked at, and one was there.
    assert_eq!(kinds.map(|k| work(&controls, k)), [200, 1, 1, 1]);
    assert!(p.guest.memory().physical.is_free(old));
    frames_add_up(&p.guest);
}

/// Processes touch a page each in turn, so that their frames lie between each other's.
fn interleaved(config: GuestConfig, processes: u32, pages: u64) -> Pair {
    let mut p = Pair::new(config);
    p.machine.checks_all = false;
    for i in 0..pages {
        for process in 0..processes {
            p.switch(0, process);
            p.store(BASE + (i << 12));
        }
    }
    p
}

#[test]
fn processes_between_each_other_become_contiguous() {
    for policy in ["4k", "thp"] {
        // Large pages come later: there are next to none to begin with.
        let fragmentation = FreeBlocks::by_name("bad").unwrap();
        let fragmentation = nestwalk_mm::Fragmentation::Blocks(fragmentation);
        let config = GuestConfig { fragmentation, ..ranging(policy, every(4000)) };
        let mut p = interleaved(config, 3, 1024);
        let needed =
            |p: &Pair| -> u64 { (0..3).map(|i| ranges(&mapped(&p.guest, i)).to_cover(99)).sum() };
        let before = needed(&p);
        assert!(before > 2500 && stats(&p).runs == 0, "{before}");
        for i in 0..12_000u64 {
            p.store(BASE + ((i % 1024) << 12));
        }
        let (after, s) = (needed(&p), stats(&p));
        assert!(s.runs >= 2 && s.migrated + s.exchanged > 2500, "{s:?}");
        // All that is left are pages whose places page tables have, which cannot be moved. (A large
        // page from the zone below 4 GiB has its mapping's place begin there, where the firmware's
        // memory is.)
        assert!(after <= if policy == "4k" { 20 } else { 270 }, "{before} {after} {s:?}");
        assert_eq!(s.joined > 0, policy == "thp", "{s:?}");
        frames_add_up(&p.guest);
    }
}

#[test]
fn a_budget_only_takes_longer() {
    let small = RangerConfig { interval: 10, pages: 64, split: true };
    let mut p = interleaved(ranging("4k", every(u64::MAX)), 2, 300);
    let unmoved = ranges(&mapped(&p.guest, 0)).entries();
    assert!(unmoved >= 290, "{unmoved}");
    p = interleaved(ranging("4k", small), 2, 300);
    for i in 0..1000u64 {
        p.store(BASE + ((i % 300) << 12));
    }
    let s = stats(&p);
    assert!(s.scanned <= (64 + 512) * s.runs, "{s:?}");
    let left = ranges(&mapped(&p.guest, 0)).entries();
    assert!(left <= 12, "{left} {s:?}");
    frames_add_up(&p.guest);
}

#[test]
fn what_cannot_be_moved_stays_and_what_is_placed_is_left_alone() {
    // A frame of every block is the kernel's: pages whose places these are stay where they are.
    let config = GuestConfig { fragmentation: 1.0.into(), ..ranging("4k", every(50)) };
    let mut p = interleaved(config, 2, 1500);
    for i in 0..4000u64 {
        p.store(BASE + ((i % 1500) << 12));
    }
    let s = stats(&p);
    assert!(s.stuck > 0 && s.migrated > 1000, "{s:?}");
    // Settled: nothing moves any more, however often it runs.
    let moved = |p: &Pair| stats(p).migrated + stats(p).exchanged;
    let before = moved(&p);
    for i in 0..2000u64 {
        p.store(BASE + ((i % 1500) << 12));
    }
    assert!(stats(&p).runs > s.runs + 10);
    assert_eq!(moved(&p), before);
    // Shared pages are left to all who share them.
    let mut p = interleaved(ranging("4k", every(100_000)), 2, 50);
    p.fork(0, 5);
    p.switch(0, 1);
    for i in 0..100_100u64 {
        p.load(BASE + ((i % 2) << 12));
    }
    assert!(stats(&p).runs == 1 && stats(&p).stuck >= 50, "{:?}", stats(&p));
    frames_add_up(&p.guest);
}

/// The same accesses in one batch, and a run for each.
#[test]
fn how_accesses_are_cut_changes_nothing() {
    for (policy, placement) in
        [("khugepaged", PlacementKind::Reserve), ("4k", PlacementKind::Ranger)]
    {
        let config = || GuestConfig {
            policy: PagePolicy::by_name(policy).unwrap(),
            placement,
            daemons: DaemonConfig { khugepaged: khugepaged(7), ranger: every(11) },
            ..config_of(4096)
        };
        let all: Vec<Run> = (0..300u64)
            .map(|i| {
                let page = (i * 37) % 90 / 3;
                let flags = if i % 3 == 0 { STORE } else { RunFlags::default() };
                Run { count: 4, instructions: 4, ..run(0, BASE + (page << 12), flags) }
            })
            .collect();
        let cut: Vec<Run> = all
            .iter()
            .flat_map(|r| {
                let later = RunFlags::default();
                let one = |n: u16, flags| Run { count: n, instructions: n, flags, ..*r };
                [one(1, r.flags), one(3, later)]
            })
            .collect();
        let controls = |runs: &[Run], size: usize| {
            let mut guest = ModelledGuest::new(config()).unwrap();
            let mut said = Vec::new();
            for runs in runs.chunks(size) {
                let mut out = GuestBatch::default();
                let batch = Batch { runs: runs.to_vec(), controls: vec![] };
                guest.process(&batch, &mut out).unwrap();
                said.extend(out.batch.controls.into_iter().map(|c| c.1));
            }
            // Faults are summed up by batch.
            said.retain(|c| !matches!(c, Control::OsWork { work: OsWork::PageFault, .. }));
            (said, guest.stats().daemons)
        };
        let whole = controls(&all, 300);
        assert!(whole.1.runs > 50 && whole.1.copied > 0, "{:?}", whole.1);
        assert_eq!(controls(&cut, 600), whole);
        assert_eq!(controls(&cut, 13), whole);
    }
}

#[test]
fn processes_come_and_go_between_runs_of_daemons() {
    let mut p = Pair::new(ranging("4k", every(3)));
    for round in 0..40u32 {
        let process = round % 5;
        p.switch(0, process);
        for i in 0..20u64 {
            p.store(BASE + ((i * 7 % 20) << 12));
        }
        match round % 3 {
            0 => {
                p.exit((round + 1) % 5);
            }
            1 => {
                let (process, start) = (ProcessId(process), Gva::new(BASE + 0x3000));
                p.control(Control::Unmap { process, start, bytes: 0x5000 });
            }
            _ => {
                p.control(Control::Exec { process: ProcessId(process) });
            }
        }
        frames_add_up(&p.guest);
    }
    assert!(stats(&p).migrated > 0);
}

fn host(policy: &str, placement: PlacementKind, blocks: &str, daemons: DaemonConfig) -> HostMemory {
    let config = HostConfig {
        bytes: 5 << 30,
        mode: &LONG4,
        policy: PagePolicy::by_name(policy).unwrap(),
        placement,
        fragmentation: nestwalk_mm::Fragmentation::Blocks(FreeBlocks::by_name(blocks).unwrap()),
        seed: 3,
        kernel_bytes: KERNEL_BYTES,
        daemons,
    };
    HostMemory::with_config(&config, &[(Gpa::new(0), 256 * MIB)]).unwrap()
}

fn behind(h: &HostMemory, pages: u64) -> RunSet {
    let mut set = RunSet::default();
    for page in 0..pages {
        let gpa = Gpa::new(page << 12);
        if let Some(found) = h.look_up(gpa) {
            set.map(page, found.frame.page_number() + (gpa.offset_in(found.size) >> 12), 1, 0);
        }
    }
    set
}

#[test]
fn a_host_s_pages_are_moved_and_the_vmm_is_told() {
    let daemons = DaemonConfig { ranger: every(1000), ..DaemonConfig::default() };
    let mut h = host("4k", PlacementKind::Ranger, "bad", daemons);
    // In an order that is nobody's.
    (0..4096u64).for_each(|i| {
        h.ensure(Gpa::new((i * 1013 % 4096) << 12)).unwrap();
    });
    let before = behind(&h, 4096);
    assert_eq!(h.daemons_due(), 1000);
    assert_eq!(h.run_daemons(999).changed, []);
    let run = h.run_daemons(1000);
    assert_eq!(h.daemons_due(), 2000);
    let after = behind(&h, 4096);
    let entries = [ranges(&before).entries(), ranges(&after).to_cover(99)];
    assert!(entries[0] > 1000 && entries[1] <= 12, "{entries:?} {:?}", run.did);
    // Exactly what has changed was told.
    let told: std::collections::BTreeSet<u64> = run
        .changed
        .iter()
        .flat_map(|c| c.0.page_number()..c.0.page_number() + (c.1 >> 12))
        .collect();
    for page in 0..4096 {
        let moved = before.find(page).unwrap().offset() != after.find(page).unwrap().offset();
        assert!(!moved || told.contains(&page), "{page}");
    }
    assert_eq!(run.did, h.daemon_stats());
    assert!(run.did.exchanged > 0 && run.did.unmapped >= told.len() as u64);
    let (c, p) = (h.counters(), h.physical());
    assert_eq!(
        c.table_frames + c.data_frames + p.pinned_frames() + p.free_frames(),
        p.bytes() >> 12
    );
    assert_eq!(c.data_frames, 4096);
}

#[test]
fn a_host_s_pages_are_collapsed() {
    let daemons = DaemonConfig { khugepaged: khugepaged(10), ..DaemonConfig::default() };
    let mut h = host("khugepaged", PlacementKind::Reserve, "fresh", daemons);
    (0..100u64).for_each(|i| {
        h.ensure(Gpa::new(i << 12)).unwrap();
    });
    assert_eq!(h.look_up(Gpa::new(0)).unwrap().size, PageSize::SIZE_4K);
    let run = h.run_daemons(10);
    assert_eq!(run.changed, [(Gpa::new(0), 2 * MIB)]);
    assert_eq!((run.did.collapsed, run.did.copied, run.did.bloat), (1, 100, 412));
    assert_eq!(h.look_up(Gpa::new(0x1f_f000)).unwrap().size, PageSize::SIZE_2M);
    let (c, p) = (h.counters(), h.physical());
    let used = c.table_frames + c.data_frames + p.pinned_frames() + p.set_aside_frames();
    assert_eq!(used + p.free_frames(), p.bytes() >> 12);
}
