//! When agile paging moves guest tables: hand-made sequences of stores and intervals, and what comes of
//! it on whole programs.

use crate::common;

use common::machines::{Probe, Setup, exits, with_tiny_tlbs};
use common::{Script, approve, bare_profile};
use nestwalk_hw::Profile;
use nestwalk_mm::PagePolicy;
use nestwalk_sim::hypervisor::agile::{AgileConfig, OPTIONS};
use nestwalk_sim::schemes::agile::Agile;
use nestwalk_sim::{
    Counters, DynMachine, ExitReason, Machine, MachineResult, MachineSpec, Plan, compare,
};
use nestwalk_tables::LONG4;
use nestwalk_types::{Gpa, PageSize};
use nestwalk_workloads::{Populate, WorkloadSpec};
use std::sync::atomic::AtomicBool;

const S4K: PageSize = PageSize::SIZE_4K;
const GVA: u64 = 0x4000_0000;
const DATA: u64 = 0x5000_0000;
/// Accesses in an interval of these tests, one instruction each.
const INTERVAL: u64 = 100;

/// A page is mapped and in use: all tables above it are shadowed.
fn in_use(variant: &str) -> (Machine<Agile>, Script) {
    in_use_with(variant, None)
}

/// The same, walks of guest tables being writes or not.
fn in_use_with(variant: &str, ept_ad: Option<bool>) -> (Machine<Agile>, Script) {
    let mut setup = Setup::new(with_tiny_tlbs(bare_profile()));
    setup.vmm.ept_ad = ept_ad;
    let mut build = setup.build("agile", true);
    let config = OPTIONS.parse(variant).unwrap();
    let config = AgileConfig { interval: config.interval.or(Some(INTERVAL)), ..config };
    let mut m = Machine::new(Agile::new(config, &mut build).unwrap(), build).unwrap();
    let mut s = Script::new(&LONG4);
    s.map_used(GVA, DATA, S4K);
    s.map_used(GVA + 0x1000, DATA + 0x1000, S4K);
    s.load(GVA);
    m.count(&s.take());
    (m, s)
}

/// An entry of the table of `level` that holds nothing.
fn spare(s: &Script, level: u8) -> Gpa {
    s.entry(GVA ^ (1 << LONG4.span(level).shift()) ^ (if level == 1 { 0x4000 } else { 0 }), level).0
}

/// The guest stores nothing over nothing: a store that the hypervisor sees, and no more.
fn touch(s: &mut Script, level: u8) {
    let at = spare(s, level);
    s.write(at, 0);
}

/// The program runs for so many instructions.
fn pass(s: &mut Script, instructions: u64) {
    for i in 0..instructions {
        s.load(GVA + (i % 2) * 0x1000);
    }
}

fn count(m: &mut Machine<Agile>, s: &mut Script) -> Counters {
    let c = m.count(&s.take());
    assert_eq!(m.verdict().unwrap().told, Vec::<String>::new());
    c
}

/// The level at which the next walk of the page goes nested.
fn level_now(m: &mut Machine<Agile>, s: &mut Script) -> usize {
    m.forget();
    s.load(GVA);
    let c = m.count(&s.take());
    approve(m);
    c.walks_switched.iter().position(|n| *n == 1).unwrap()
}

fn seen(c: &Counters) -> (u64, u64) {
    (exits(c, ExitReason::TableWrite), c.tables_nested)
}

// ---- down --------------------------------------------------------------------------------------

/// The first store is emulated, the second moves the table, the third is not seen.
#[test]
fn the_second_store_within_an_interval_moves_a_table() {
    for level in 1..=4 {
        let (mut m, mut s) = in_use("back=never");
        m.platform.instructions += INTERVAL;
        touch(&mut s, level);
        assert_eq!(seen(&count(&mut m, &mut s)), (1, 0), "level {level}");
        assert_eq!(level_now(&mut m, &mut s), 0);
        touch(&mut s, level);
        assert_eq!(seen(&count(&mut m, &mut s)), (1, 1), "level {level}");
        assert_eq!(level_now(&mut m, &mut s), usize::from(level));
        for _ in 0..5 {
            touch(&mut s, level);
        }
        let c = count(&mut m, &mut s);
        assert_eq!(c.exits_total(), 0, "level {level}");
        // All levels below went along: stores to their tables are free.
        (1..level).for_each(|l| touch(&mut s, l));
        assert_eq!(count(&mut m, &mut s).exits_total(), 0, "level {level}");
    }
}

/// After the interval a store is the first again.
#[test]
fn stores_of_different_intervals_do_not_add_up() {
    let (mut m, mut s) = in_use("back=never");
    for _ in 0..4 {
        touch(&mut s, 1);
        pass(&mut s, INTERVAL);
    }
    assert_eq!(seen(&count(&mut m, &mut s)), (4, 0));
    touch(&mut s, 1);
    pass(&mut s, INTERVAL - 5);
    touch(&mut s, 1);
    assert_eq!(seen(&count(&mut m, &mut s)), (2, 1));
}

/// Stores to two tables are stores to two tables.
#[test]
fn each_table_has_its_own_count() {
    let (mut m, mut s) = in_use("back=never");
    touch(&mut s, 1);
    touch(&mut s, 2);
    touch(&mut s, 3);
    assert_eq!(seen(&count(&mut m, &mut s)), (3, 0));
    touch(&mut s, 2);
    assert_eq!(seen(&count(&mut m, &mut s)), (1, 1));
    assert_eq!(level_now(&mut m, &mut s), 2);
    // The table above has one store so far, and takes the others along with its second.
    touch(&mut s, 3);
    assert_eq!(seen(&count(&mut m, &mut s)), (1, 1));
    assert_eq!(level_now(&mut m, &mut s), 3);
    let tables: Vec<u8> = m.scheme.mmu.shadow.nested_tables().values().copied().collect();
    assert_eq!(tables, [3], "what is below a nested table is not remembered");
}

/// The number of stores is a parameter; none means never.
#[test]
fn the_number_of_stores_is_a_parameter() {
    for (variant, stores) in [("writes=2", 2), ("writes=3", 3), ("writes=5", 5)] {
        let (mut m, mut s) = in_use(&format!("{variant}/back=never"));
        (0..10).for_each(|_| touch(&mut s, 1));
        assert_eq!(seen(&count(&mut m, &mut s)), (stores, 1), "{variant}");
    }
    // With one, the store that linked the first table has made the root nested already.
    let (mut m, mut s) = in_use("writes=1/back=never");
    (0..10).for_each(|_| touch(&mut s, 1));
    assert_eq!(seen(&count(&mut m, &mut s)), (0, 0));
    assert_eq!(level_now(&mut m, &mut s), 4);
    let (mut m, mut s) = in_use("writes=0");
    (0..10).for_each(|_| touch(&mut s, 1));
    assert_eq!(seen(&count(&mut m, &mut s)), (10, 0));
}

// ---- back --------------------------------------------------------------------------------------

/// A table that was stored to since the interval began stays, one that was not goes back. The store
/// that made it nested counts as one.
#[test]
fn a_table_goes_back_after_an_interval_without_stores() {
    let (mut m, mut s) = in_use("");
    touch(&mut s, 1);
    touch(&mut s, 1);
    for _ in 0..3 {
        count(&mut m, &mut s);
        assert_eq!(level_now(&mut m, &mut s), 1);
        touch(&mut s, 1);
        pass(&mut s, INTERVAL);
        let c = count(&mut m, &mut s);
        assert_eq!((c.tables_shadowed, c.dirty_bits_scanned), (0, 1));
        assert_eq!(exits(&c, ExitReason::Interval), 1);
        assert_eq!(exits(&c, ExitReason::TableWrite), 0);
    }
    pass(&mut s, INTERVAL);
    let c = count(&mut m, &mut s);
    assert_eq!((c.tables_shadowed, c.dirty_bits_scanned), (1, 1));
    assert_eq!(level_now(&mut m, &mut s), 0);
    // Nothing is nested any more, so that nobody is interrupted, and stores are seen again.
    pass(&mut s, 3 * INTERVAL);
    let c = count(&mut m, &mut s);
    assert_eq!(exits(&c, ExitReason::Interval), 0);
    touch(&mut s, 1);
    assert_eq!(seen(&count(&mut m, &mut s)), (1, 0));
}

/// Where walks of guest tables are writes (EPT's flags, AMD's nested paging), a table that the walker
/// finds by the nested tables is dirty although nobody stored to it, and stays nested. The uppermost of
/// the nested ones is found by the switching entry, which has its host-physical address: it goes back.
/// So tables go back one level in an interval, and all at once where walks are reads, as in the paper.
#[test]
fn walks_keep_tables_nested_where_they_are_writes() {
    for (ept_ad, levels) in [(None, [0, 0, 0]), (Some(false), [0, 0, 0]), (Some(true), [2, 1, 0])] {
        let (mut m, mut s) = in_use_with("", ept_ad);
        touch(&mut s, 3);
        touch(&mut s, 3);
        pass(&mut s, INTERVAL);
        count(&mut m, &mut s);
        assert_eq!(level_now(&mut m, &mut s), 3, "{ept_ad:?}: stored to");
        for level in levels {
            pass(&mut s, INTERVAL);
            count(&mut m, &mut s);
            assert_eq!(level_now(&mut m, &mut s), level, "{ept_ad:?}");
        }
    }
}

/// The default interval is the paper's second: nothing goes back in a program that is shorter.
#[test]
fn an_interval_is_a_second_unless_given() {
    let setup = Setup::new(with_tiny_tlbs(bare_profile()));
    let mut build = setup.build("agile", true);
    let core = build.profile.core.clone();
    let second = (core.frequency_mhz.value * 1e6 / core.base_cpi.value) as u64;
    let m = Machine::new(Agile::new(AgileConfig::default(), &mut build).unwrap(), build).unwrap();
    assert_eq!(m.scheme.mmu.next_timer(), second);
    assert!(second > 1_000_000_000, "{second}");
}

/// A table goes back only after the one above it: a clean table below a dirty one stays, a dirty one
/// below a clean one stays alone.
#[test]
fn the_table_above_goes_back_first() {
    for (kept, expected) in [(2, 2), (1, 1), (3, 3)] {
        let (mut m, mut s) = in_use("");
        touch(&mut s, 3);
        touch(&mut s, 3);
        pass(&mut s, INTERVAL);
        count(&mut m, &mut s);
        assert_eq!(level_now(&mut m, &mut s), 3);
        // From now on the kernel stores to one of the three tables alone.
        for _ in 0..3 {
            touch(&mut s, kept);
            pass(&mut s, INTERVAL);
        }
        let c = count(&mut m, &mut s);
        assert_eq!(level_now(&mut m, &mut s), expected);
        assert_eq!(c.tables_shadowed, u64::from(3 - kept));
        assert_eq!(exits(&c, ExitReason::TableWrite), 0);
        pass(&mut s, 2 * INTERVAL);
        count(&mut m, &mut s);
        assert_eq!(level_now(&mut m, &mut s), 0);
    }
}

/// The simple policy takes everything back, stored to or not.
#[test]
fn the_simple_policy_takes_everything_back() {
    let (mut m, mut s) = in_use("back=all");
    for level in [1, 4] {
        touch(&mut s, level);
        touch(&mut s, level);
        touch(&mut s, level);
        count(&mut m, &mut s);
        assert_eq!(level_now(&mut m, &mut s), usize::from(level));
        pass(&mut s, INTERVAL);
        touch(&mut s, level);
        let c = count(&mut m, &mut s);
        assert_eq!((c.tables_shadowed, c.dirty_bits_scanned), (1, 0));
        assert_eq!(level_now(&mut m, &mut s), 0);
        pass(&mut s, INTERVAL);
        count(&mut m, &mut s);
    }
}

/// A table that the kernel unlinks and makes anew begins in shadow mode.
#[test]
fn a_table_made_anew_is_shadowed() {
    let (mut m, mut s) = in_use("back=never");
    touch(&mut s, 1);
    touch(&mut s, 1);
    count(&mut m, &mut s);
    assert_eq!(level_now(&mut m, &mut s), 1);
    let (at, entry) = s.entry(GVA, 2);
    s.write(at, 0);
    pass_elsewhere(&mut m, &mut s);
    s.write(at, entry.0);
    count(&mut m, &mut s);
    assert_eq!(m.scheme.mmu.shadow.nested_tables().len(), 0);
    assert_eq!(level_now(&mut m, &mut s), 0);
}

/// An interval passes without a load of the page.
fn pass_elsewhere(m: &mut Machine<Agile>, s: &mut Script) {
    count(m, s);
    m.platform.instructions += INTERVAL;
}

/// Processes that begin nested are shadowed once an interval has passed in which walks cost much.
#[test]
fn a_young_process_is_shadowed_when_its_walks_cost_much() {
    // A walk of 24 references takes at least 96 cycles of the first-level cache.
    for (walks, expected) in [(0, 0), (1000, 0), (1_000_000, 6)] {
        let (mut m, mut s) = in_use(&format!("start=nested/walks={walks}"));
        assert_eq!(level_now(&mut m, &mut s), 6);
        pass(&mut s, INTERVAL / 2);
        count(&mut m, &mut s);
        assert_eq!(level_now(&mut m, &mut s), 6, "not before the interval has passed");
        pass(&mut s, 2 * INTERVAL);
        let c = count(&mut m, &mut s);
        assert_eq!(exits(&c, ExitReason::Interval), u64::from(expected == 0));
        assert_eq!(exits(&c, ExitReason::HiddenFault), 0, "its shadows are made at once");
        assert_eq!(level_now(&mut m, &mut s), expected, "{walks}");
        // The next process begins nested all the same.
        let other = s.add_root();
        s.load_cr3(other, 7, false);
        s.map_used(GVA, DATA, S4K);
        count(&mut m, &mut s);
        assert_eq!(level_now(&mut m, &mut s), 6);
    }
}

// ---- programs ----------------------------------------------------------------------------------

fn results(workload: &str, footprint: u64, accesses: u64, machines: &str) -> Vec<MachineResult> {
    let base = PagePolicy::by_name("4k").unwrap();
    let plan = Plan {
        machines: MachineSpec::parse_list(machines, base).unwrap(),
        profile: Profile::load("sandy-bridge-e5-2430").unwrap(),
        guest_mode: &LONG4,
        host_mode: &LONG4,
        vcpus: 1,
        guest_bytes: 1 << 30,
        host_bytes: 4 << 30,
        low_bytes: None,
        bad_frames: nestwalk_mm::BadFrames::NONE,
        daemons: nestwalk_sim::DaemonTimes::default(),
        fragmentation: Default::default(),
        sampling: None,
        guest_swap: None,
        pcids: true,
        seed: 1,
        verify: true,
        threads: 1,
        mappings: None,
        host_pages: None,
        series: None,
        contiguity: false,
        contiguity_every: None,
        walk_map: false,
        samples: None,
    };
    let populate = Populate::Yes;
    let spec = WorkloadSpec { footprint, accesses: Some(accesses), seed: 1, populate };
    let mut source = nestwalk_workloads::open(workload, &spec).unwrap();
    let stop = AtomicBool::new(false);
    let outcome = compare(&plan, source.as_mut(), &stop, &mut |_| {}).unwrap();
    assert!(outcome.error.is_none(), "{:?}", outcome.error);
    for m in &outcome.machines {
        assert_eq!(m.referee.as_ref().map_or(0, |v| v.violations), 0, "{}", m.name);
    }
    outcome.machines.into_iter().filter(|m| !["ideal", "native"].contains(&&*m.scheme)).collect()
}

/// On steady programs most walks are shadow walks and the average is between 4 and 5 references, as
/// the paper's Table VI has it (4.01 to 5.00), although everything was nested when the program had
/// just filled its memory.
#[test]
fn steady_programs_walk_shadow_tables() {
    for (workload, footprint) in [("gups", 64 << 20), ("graph500", 256 << 20)] {
        let machines = "nested,agile/interval=50000";
        let all = results(workload, footprint, 600_000, machines);
        let (nested, agile) = (&all[0], &all[1]);
        let shadow = agile.walks_switched["shadow"] as f64 / agile.walks as f64;
        let length = agile.switched_refs_per_walk;
        assert!(shadow > 0.9, "{workload}: {shadow}");
        assert!((4.0..5.0).contains(&length), "{workload}: {length}");
        assert!(agile.walks > 1000, "{workload}: {}", agile.walks);
        assert!(agile.walk_cycles < nested.walk_cycles, "{workload}");
    }
}

/// On a storm of forks, where shadow paging exits for everything, agile paging leaves what changes to
/// nested walks.
#[test]
fn a_storm_of_forks_exits_seldom() {
    let all = results("forkstorm", 8 << 20, 400_000, "shadow,nested,agile");
    let (shadow, nested, agile) = (&all[0], &all[1], &all[2]);
    assert!(shadow.vm_exits_total > 10_000, "{}", shadow.vm_exits_total);
    assert!(agile.vm_exits_total * 5 < shadow.vm_exits_total, "{}", agile.vm_exits_total);
    assert!(agile.vmm_cycles < shadow.vmm_cycles / 3.0);
    // What it cannot avoid: the stores by which it learns what changes.
    assert!(agile.vm_exits_total > nested.vm_exits_total);
}
