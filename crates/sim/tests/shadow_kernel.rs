//! Shadow paging of a guest whose stream shows its kernel at work: the stores to its tables are runs
//! through a direct map of large pages, and events. Each exit is said beforehand, after KVM's rules
//! (Linux 4.19 `mmu.c`: `mmu_need_write_protect`, `rmap_write_protect`, `kvm_mmu_pte_write`).

use crate::common;

use common::kernel::{DATA, setup};
use common::lives::{DIRECT, Life, cut, join, with_direct_map};
use common::machines::{Probe, Setup, exits, exits_by_name};
use common::{Script, V0, approve};
use nestwalk_hw::Profile;
use nestwalk_sim::hypervisor::shadow::FLOOD;
use nestwalk_sim::schemes::shadow::Shadow;
use nestwalk_sim::{Counters, DynMachine, ExitReason, Machine, SCHEMES};
use nestwalk_tables::{LONG4, LONG5};
use nestwalk_types::{Control, Gpa, PageSize, RunFlags, SplitMix64};

const S4K: PageSize = PageSize::SIZE_4K;
const S2M: PageSize = PageSize::SIZE_2M;

/// Which comes first: the run of a store, or its event.
#[derive(Clone, Copy, PartialEq, Debug)]
enum First {
    Run,
    Event,
}
const ORDERS: [First; 2] = [First::Run, First::Event];

/// A guest with used pages `0..8` in one leaf table, and all of its first 32 MiB in a direct map.
struct Guest {
    m: Machine<Shadow>,
    s: Script,
    first: First,
}

impl Guest {
    fn new(first: First, host_pages: &'static str) -> Self {
        let mut s = Script::with_found_tables(&LONG4);
        (0..8).for_each(|i| s.map_used(i << 12, DATA + (i << 12), S4K));
        (0..16).for_each(|i| s.map_used(DIRECT + (i << 21), i << 21, S2M));
        let mut m = setup(host_pages).shadow();
        m.count(&s.take());
        Self { m, s, first }
    }
    fn kernel(&mut self, gpa: Gpa, store: bool) {
        let flags = if store { RunFlags::STORE } else { RunFlags::default() };
        self.s.access_as(DIRECT + gpa.value(), flags.union(RunFlags::KERNEL));
    }
    /// The kernel stores to a table: an event and a run.
    fn store(&mut self, at: Gpa, value: u64) {
        if self.first == First::Run {
            self.kernel(at, true);
        }
        self.s.write(at, value);
        if self.first == First::Event {
            self.kernel(at, true);
        }
    }
    fn count(&mut self) -> Counters {
        let counted = self.m.count(&self.s.take());
        approve(&self.m);
        counted
    }
    /// Where the table of `level` for address 0 is.
    fn table(&self, level: u8) -> Gpa {
        Gpa::new(self.s.entry(0, level).0.value() & !0xfff)
    }
}

fn entry(table: Gpa, index: u64) -> Gpa {
    Gpa::new(table.value() + 8 * index)
}

/// The tables are shadowed, and mapped for the kernel read-only in small pieces: the large page of the
/// direct map is split.
#[test]
fn a_large_page_with_tables_is_split_and_its_tables_are_read_only() {
    for first in ORDERS {
        let mut g = Guest::new(first, "2m");
        g.s.load(0);
        g.count();
        let directory = g.table(2);
        g.kernel(directory, false);
        let c = g.count();
        // The neighbours are filled ahead, tables or not.
        assert_eq!((exits_by_name(&c), c.shadow_prefetches), (vec![("hidden_fault", 1)], 7));
        // Memory without tables is mapped by one large entry.
        g.kernel(Gpa::new(4 << 20), true);
        g.kernel(Gpa::new((4 << 20) + 0x5000), true);
        let c = g.count();
        assert_eq!((exits_by_name(&c), c.shadow_prefetches), (vec![("hidden_fault", 1)], 0));
    }
}

/// A store to a table above the leaves exits once, by its event, whichever of run and event comes
/// first; the third drops the shadow, and one more fault gives the permission back.
#[test]
fn a_store_to_an_upper_table_exits_once() {
    for first in ORDERS {
        for level in [2, 3] {
            let mut g = Guest::new(first, "4k");
            g.s.load(0);
            g.count();
            let table = g.table(level);
            g.kernel(table, false);
            assert_eq!(exits_by_name(&g.count()), [("hidden_fault", 1)]);
            for i in 1..u64::from(FLOOD) {
                g.store(entry(table, 100 + i), 0);
                let c = g.count();
                assert_eq!(exits_by_name(&c), [("table_write", 1)], "{first:?} level {level}");
                assert_eq!((c.flood_zaps, c.shadow_fills), (0, 0));
            }
            g.store(entry(table, 110), 0);
            let third = g.count();
            assert_eq!((exits(&third, ExitReason::TableWrite), third.flood_zaps), (1, 1));
            g.store(entry(table, 111), 0);
            let fourth = g.count();
            // Not a table to the hypervisor any more: the entry becomes writable, once.
            let again = |c: &Counters| exits(c, ExitReason::HiddenFault);
            assert_eq!(again(&third) + again(&fourth), 1, "{first:?} level {level}");
            assert_eq!(exits(&fourth, ExitReason::TableWrite), 0);
            (0..10).for_each(|i| g.store(entry(table, 120 + i), 0));
            assert_eq!(g.count().exits_total(), 0, "free from then on");
        }
    }
}

/// The root is shadowed anew before the guest runs on, so every store to it exits.
#[test]
fn every_store_to_the_root_exits() {
    for first in ORDERS {
        let mut g = Guest::new(first, "4k");
        let root = g.s.root;
        g.kernel(root, false);
        g.count();
        let mut flooded = 0;
        for i in 0..10 {
            g.store(entry(root, 100 + i), 0);
            let c = g.count();
            assert_eq!(exits(&c, ExitReason::TableWrite), 1, "{first:?} {i}");
            flooded += c.flood_zaps;
        }
        assert_eq!(flooded, 10 / u64::from(FLOOD));
    }
}

/// The first store to a leaf table in step exits once; after it, stores are free until a flush brings
/// the table back in step, and the entry of the direct map with it.
#[test]
fn a_leaf_table_goes_out_of_step_in_one_exit() {
    for first in ORDERS {
        let mut g = Guest::new(first, "4k");
        g.s.load(0);
        let table = g.table(1);
        // Reading it needs an entry, which allows stores at once: the table is out of step without an
        // exit of its own.
        g.kernel(table, false);
        assert_eq!(exits_by_name(&g.count()), [("hidden_fault", 2)]);
        g.store(entry(table, 100), 0);
        assert_eq!(g.count().exits_total(), 0, "{first:?}");
        for round in 0..3 {
            g.s.load_cr3(g.s.root, 1, false);
            g.kernel(table, false);
            let c = g.count();
            assert_eq!(exits_by_name(&c), [("cr3_load", 1)], "{first:?} {round}: reading is free");
            assert_eq!(c.sync_entries, 512);
            g.store(entry(table, 101), 0);
            let c = g.count();
            assert_eq!(exits_by_name(&c), [("table_unsync", 1)], "{first:?} {round}");
            assert_eq!(c.shadow_fills, 0);
            (0..100).for_each(|i| g.store(entry(table, 110 + i), 0));
            assert_eq!(g.count().exits_total(), 0, "{first:?} {round}");
        }
    }
}

/// A table that was freed is written like one, until it is none any more to the hypervisor either.
#[test]
fn a_freed_table_is_paid_for_when_its_page_is_used_again() {
    for (level, expected) in [
        (1, vec![("table_unsync", 1)]),
        // One more fault makes its entry writable again.
        (2, vec![("hidden_fault", 1), ("table_write", u64::from(FLOOD))]),
    ] {
        let mut g = Guest::new(First::Event, "4k");
        g.s.load(0);
        let table = g.table(level);
        g.kernel(table, false);
        g.count();
        // In step again, and read-only to the kernel.
        g.s.load_cr3(g.s.root, 1, false);
        g.s.write(g.s.entry(0, level + 1).0, 0);
        g.count();
        g.s.say(Control::TableRetired { vcpu: V0, gpa: table });
        assert!(g.m.platform.cpu.world.guest.contains(table));
        g.kernel(table, true);
        g.kernel(entry(table, 7), true);
        let c = g.count();
        assert_eq!(exits_by_name(&c), expected, "level {level}");
        assert!(!g.m.platform.cpu.world.guest.contains(table));
        (0..9).for_each(|i| g.kernel(entry(table, i), true));
        assert_eq!(g.count().exits_total(), 0, "level {level}");
    }
}

/// Memory that was used before is there, in the host and in the nested tables; nothing is counted.
#[test]
fn what_was_used_before_has_host_pages_and_costs_nothing() {
    let bytes = 64 << 20;
    let backed = || Control::Prefault { start: Gpa::new(0), bytes };
    for host_pages in ["4k", "2m"] {
        let mut s = Script::with_found_tables(&LONG4);
        s.say(backed());
        s.map_used(0, 0x20_0000, S4K);
        s.map_used(0x1000, bytes, S4K);
        s.load(0);
        let backed_alone = s.take();
        s.load(0x1000);
        let beyond = s.take();
        let mut nested = setup(host_pages).nested();
        let c = nested.count(&backed_alone);
        assert_eq!((c.exits_total(), c.host_faults, c.nested_fills), (0, 0, 0));
        let c = nested.count(&beyond);
        assert_eq!(exits_by_name(&c), [("ept_violation", 1)]);
        assert_eq!((c.host_faults, c.nested_fills), (1, 1));
        let mut shadow = setup(host_pages).shadow();
        let c = shadow.count(&backed_alone);
        assert_eq!((exits(&c, ExitReason::HiddenFault), c.host_faults), (1, 0));
        let c = shadow.count(&beyond);
        assert_eq!((exits(&c, ExitReason::HiddenFault), c.host_faults), (1, 1));
        let mut native = setup(host_pages).native();
        native.count(&backed_alone);
        native.count(&beyond);
        approve(&native);
        let pages = bytes >> if host_pages == "4k" { 12 } else { 21 };
        let size = if host_pages == "4k" { S4K } else { S2M };
        let host = nested.platform.host.as_ref().unwrap();
        let found = (0..pages)
            .filter(|i| host.look_up(Gpa::new(i << size.shift())).is_some_and(|p| p.size == size));
        assert_eq!(found.count() as u64, pages);
    }
    let mut s = Script::with_found_tables(&LONG4);
    s.say(Control::Prefault { start: Gpa::new(0), bytes: 1 << 40 });
    let batch = s.take();
    assert!(setup("4k").nested().run(&batch).is_err());
    assert!(setup("4k").shadow().run(&batch).is_err());
}

/// Random lives with the kernel's stores in the stream, on every scheme: the referee approves, and
/// cutting the stream into other batches changes nothing.
#[test]
fn the_referee_approves_lives_with_a_direct_map() {
    for seed in 1..=10u64 {
        let mode = if seed % 2 == 0 { &LONG4 } else { &LONG5 };
        let life = Life {
            seed: 40 + seed,
            events: 70,
            vcpus: 2,
            accesses_percent: 65,
            mode,
            pages: ["4k", "thp", "2m"][seed as usize % 3],
            pcids: seed % 2 == 0,
        };
        let size = [S2M, PageSize::SIZE_1G][seed as usize / 2 % 2];
        let mut r = SplitMix64::new(seed);
        let batches = with_direct_map(&life.live(), mode, size, &mut r);
        let profile = Profile::load("cascade-lake-6252").unwrap();
        let setup = Setup {
            guest_mode: mode,
            vcpus: 2,
            host_pages: ["4k", "2m"][seed as usize % 2],
            ..Setup::new(profile)
        };
        let all = join(&batches);
        let places: Vec<usize> = (1..all.batch.runs.len()).filter(|_| r.below(50) == 0).collect();
        for scheme in SCHEMES {
            let run = |batches: &[nestwalk_types::GuestBatch]| {
                let mut m = (scheme.build)(setup.build(scheme.name, scheme.virtualized)).unwrap();
                batches.iter().for_each(|b| m.run(b).unwrap());
                if let Some(verdict) = m.verdict() {
                    assert_eq!(verdict.told, Vec::<String>::new(), "{} {seed}", scheme.name);
                }
                m.counters().clone()
            };
            assert_eq!(run(&batches), run(&cut(&all, &places)), "{}", scheme.name);
        }
    }
}
