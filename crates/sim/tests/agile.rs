//! Agile paging: how long walks are by where they go nested, the hardware's options, and the two ends at
//! which it is one of the plain schemes.
//!
//! Lengths are those of Table II of the paper (Gandhi, Hill, Swift, ISCA 2016): a level costs 1
//! reference in shadow mode and 5 in nested mode, and the guest's root 4 more if it must be translated.

use crate::common;

use common::lives::Life;
use common::machines::{
    Probe, Setup, array, exits, exits_by_name, plain, roomy_walk_cache, with_roomy_tlbs,
    with_tiny_tlbs,
};
use common::{Script, approve, bare_profile, run};
use nestwalk_hw::Profile;
use nestwalk_sim::hypervisor::agile::{AgileConfig, OPTIONS};
use nestwalk_sim::measure::counters::FULLY_NESTED;
use nestwalk_sim::schemes::agile::Agile;
use nestwalk_sim::{Counters, Dimension, DynMachine, ExitReason, Machine};
use nestwalk_tables::entry::{ACCESSED, DIRTY};
use nestwalk_tables::{Entry, LEGACY32, LONG4, LONG5, Mode, PAE};
use nestwalk_types::{PageSize, Protection};

const S4K: PageSize = PageSize::SIZE_4K;
const S2M: PageSize = PageSize::SIZE_2M;
const GVA: u64 = 0x4000_0000;
const DATA: u64 = 0x5000_0000;
/// Instructions in an interval; the default's second is longer than these programs.
const INTERVAL: u64 = 2_000_000;

fn agile(setup: &Setup, variant: &str) -> Machine<Agile> {
    let mut build = setup.build("agile", true);
    let config = OPTIONS.parse(variant).unwrap();
    let config = AgileConfig { interval: config.interval.or(Some(INTERVAL)), ..config };
    Machine::new(Agile::new(config, &mut build).unwrap(), build).unwrap()
}

/// Nothing brings a table back that two stores have made nested.
const FOR_GOOD: &str = "back=never";

/// A machine in which the table of `level` above `GVA` is nested (0: none), and so all below it.
fn nested_at(setup: &Setup, level: u8, size: PageSize) -> (Machine<Agile>, Script) {
    let mode = setup.guest_mode;
    let mut m = agile(setup, FOR_GOOD);
    let mut s = Script::new(mode);
    s.map_used(GVA, DATA, size);
    s.load(GVA);
    m.count(&s.take());
    // The stores that made the tables are long ago.
    m.platform.instructions += INTERVAL;
    if level > 0 {
        // Another entry of that table, which holds nothing before and after.
        let other = GVA ^ (1 << mode.span(level).shift());
        let (at, _) = s.entry(other, level);
        s.write(at, 0);
        s.write(at, 0);
        s.load(GVA);
        let c = m.count(&s.take());
        assert_eq!((c.tables_nested, exits(&c, ExitReason::TableWrite)), (1, 2), "level {level}");
    }
    (m, s)
}

fn cold(m: &mut dyn DynMachine) -> Vec<Dimension> {
    approve(m);
    m.watch(&run(GVA, false)).unwrap().iter().map(|s| s.dimension).collect()
}

fn of(steps: &[Dimension], dimension: Dimension) -> u32 {
    steps.iter().filter(|d| **d == dimension).count() as u32
}

#[test]
fn walks_are_as_long_as_the_level_at_which_they_go_nested_says() {
    let setup = Setup::new(bare_profile());
    for (level, length) in [(0, 4), (1, 8), (2, 12), (3, 16), (4, 20)] {
        let (mut m, _) = nested_at(&setup, level, S4K);
        let steps = cold(&mut m);
        assert_eq!(steps.len(), length, "level {level}");
        // Shadow tables come first, and a walk never goes back to them.
        let above = usize::from(4 - level);
        assert!(steps[..above].iter().all(|d| *d == Dimension::Shadow));
        assert!(!steps[above..].contains(&Dimension::Shadow));
        assert_eq!(of(&steps, Dimension::Guest), u32::from(level));
        assert_eq!(of(&steps, Dimension::Nested), 4 * u32::from(level));
    }
    let mut m = agile(&setup, "start=nested");
    let mut s = Script::new(&LONG4);
    s.map_used(GVA, DATA, S4K);
    s.load(GVA);
    m.count(&s.take());
    assert_eq!(cold(&mut m).len(), 24);
}

/// Every paging mode and page size: what is above the switch is shadow, what is below costs a
/// reference and a nested walk each.
#[test]
fn walks_have_the_length_of_the_formula_for_every_mode_and_size() {
    for (guest, shadow) in [(&LONG4, &LONG4), (&LONG5, &LONG5), (&PAE, &PAE), (&LEGACY32, &PAE)] {
        for (host, host_pages, host_size) in [(&LONG4, "4k", S4K), (&LONG5, "2m", S2M)] {
            for size in guest.page_sizes() {
                let leaf = guest.leaf_level(size).unwrap();
                // Guest pages that a host's smaller ones split have shadow tables below the guest's
                // leaf.
                if size > host_size && size != S2M {
                    continue;
                }
                for level in leaf..=guest.levels {
                    let setup = Setup {
                        guest_mode: guest,
                        host_mode: host,
                        host_pages,
                        ..Setup::new(bare_profile())
                    };
                    let (mut m, _) = nested_at(&setup, level, size);
                    let steps = cold(&mut m);
                    let what =
                        format!("{} {size} on {} {host_pages} {level}", guest.name, host.name);
                    let h = host.walk_references(host.leaf_level(host_size).unwrap());
                    let root = level == guest.levels;
                    let upper = if root { 0 } else { shadow.walk_references(1) - u32::from(level) };
                    let tables = u32::from(level - leaf);
                    assert_eq!(of(&steps, Dimension::Shadow), upper, "{what}");
                    let registers = u32::from(root && guest.root_in_registers);
                    assert_eq!(of(&steps, Dimension::Guest), tables + 1 - registers, "{what}");
                    assert_eq!(of(&steps, Dimension::Nested), (tables + 1) * h, "{what}");
                }
            }
        }
    }
}

/// Up to three levels are skipped whatever the mode; which class a walk is in does not depend on it.
#[test]
fn walk_caches_lead_to_shadow_and_guest_tables() {
    let mut profile = with_tiny_tlbs(bare_profile());
    profile.walk_cache = roomy_walk_cache();
    let setup = Setup::new(profile.clone());
    for level in 0..=4u8 {
        let (mut m, mut s) = nested_at(&setup, level, S4K);
        m.forget();
        s.load(GVA);
        let first = m.count(&s.take());
        assert_eq!(first.references.total(), 4 + 4 * u64::from(level));
        m.forget_translations();
        s.load(GVA);
        let c = m.count(&s.take());
        // One entry of the leaf table, and the page's own nested walk if that is a guest table.
        let rest = if level == 0 { 1 } else { 5 };
        assert_eq!((c.references.total(), c.walk_cache_hits), (rest, 1), "level {level}");
        assert_eq!(c.walks_switched[usize::from(level)], 1);
    }
    // With the nested tables cached, too, it is two references.
    profile.nested_walk_cache = roomy_walk_cache();
    profile.nested_tlb = Some(array(64, 4));
    let (mut m, mut s) = nested_at(&Setup::new(profile), 3, S4K);
    m.forget_translations();
    s.load(GVA);
    let c = m.count(&s.take());
    assert_eq!((c.references.total(), c.nested_tlb_hits), (1, 1));
}

/// The first store to a clean page: with the hardware's help a nested walk beside the shadow's and no
/// exit, without it an exit. Either way the guest's dirty bit is set.
#[test]
fn dirty_bits_are_set_by_a_nested_walk_or_by_an_exit() {
    for (variant, walks, dirty_faults, references) in [("", 1, 0, 4 + 24), ("ad=off", 0, 1, 4)] {
        let mut m = agile(&Setup::new(with_roomy_tlbs(bare_profile())), variant);
        let mut s = Script::new(&LONG4);
        s.map(GVA, DATA, S4K, Protection::ALL, ACCESSED);
        s.load(GVA);
        m.count(&s.take());
        let (at, _) = s.entry(GVA, 1);
        let bit = |m: &Machine<Agile>| Script::machine_entry(&m.platform.cpu.world, at).has(DIRTY);
        assert!(!bit(&m));
        s.store(GVA);
        let c = m.count(&s.take());
        assert!(bit(&m), "{variant}");
        assert_eq!((c.ad_walks, exits(&c, ExitReason::DirtyFault)), (walks, dirty_faults));
        assert_eq!(c.exits_total(), dirty_faults);
        assert_eq!(c.references.total(), references, "{variant}");
        // The guest cleans the page; the next store is the first again.
        let value = Script::machine_entry(&m.platform.cpu.world, at).without(DIRTY);
        s.write(at, value.0);
        s.invlpg(GVA);
        s.store(GVA);
        let c = m.count(&s.take());
        assert!(bit(&m), "{variant}");
        assert_eq!(c.ad_walks, walks);
        // Large pages that the host splits keep to the exits: see below.
        approve(&m);
    }
}

/// A large guest page on small host pages has shadow tables without guest tables: a store to a clean
/// piece exits with either setting, and the bit is seen again after the guest has cleared it.
#[test]
fn the_dirty_bit_of_a_split_page_is_kept() {
    for variant in ["", "ad=off"] {
        let mut m = agile(&Setup::new(with_roomy_tlbs(bare_profile())), variant);
        let mut s = Script::new(&LONG4);
        s.map(GVA, DATA, S2M, Protection::ALL, ACCESSED);
        let (at, _) = s.entry(GVA, 2);
        let clean = Entry(s.entry(GVA, 2).1.0);
        for round in 0..3 {
            s.load(GVA + round * 0x1000);
            s.load(GVA + 0x5000);
            s.store(GVA + 0x5000);
            m.count(&s.take());
            assert!(
                Script::machine_entry(&m.platform.cpu.world, at).has(DIRTY),
                "{variant} {round}"
            );
            // A new interval each time, so that the policy has no part in it.
            s.write(at, clean.0);
            s.invalidate(nestwalk_types::Invalidation::All);
            for _ in 0..10 {
                s.load(GVA + round * 0x1000);
            }
            m.platform.instructions += INTERVAL;
            m.count(&s.take());
            assert!(
                !Script::machine_entry(&m.platform.cpu.world, at).has(DIRTY),
                "{variant} {round}"
            );
        }
        assert_eq!(m.scheme.mmu.shadow.nested_tables().len(), 0);
        approve(&m);
    }
}

/// Address spaces in turn: those that the cache holds come without an exit, the least recently loaded
/// one goes first.
#[test]
fn cr3_loads_that_the_cache_knows_do_not_exit() {
    for (variant, spaces, exiting) in
        [("", 8, 0), ("", 9, 9), ("cr3=4", 4, 0), ("cr3=4", 5, 5), ("cr3=0", 2, 2)]
    {
        let mut m = agile(&Setup::new(bare_profile()), variant);
        let mut s = Script::new(&LONG4);
        let mut roots = vec![s.root];
        roots.extend((1..spaces).map(|_| s.add_root()));
        for (i, root) in roots.iter().enumerate() {
            s.load_cr3(*root, 1 + i as u16, false);
            s.map_used(GVA, DATA + ((i as u64) << 12), S4K);
            s.load(GVA);
        }
        m.count(&s.take());
        for keep in [false, true] {
            for (i, root) in roots.iter().enumerate() {
                s.load_cr3(*root, 1 + i as u16, keep);
                s.load(GVA);
            }
            let c = m.count(&s.take());
            assert_eq!(exits(&c, ExitReason::Cr3Load), exiting, "{variant} {spaces}");
            assert_eq!((c.exits_total(), c.cr3_loads), (exiting, spaces));
        }
        approve(&m);
    }
}

/// A root that goes nested, or whose shadow is dropped, is not what the cache said: its next load is
/// right whatever it costs.
#[test]
fn the_cr3_cache_follows_the_roots() {
    let mut m = agile(&Setup::new(bare_profile()), FOR_GOOD);
    let mut s = Script::new(&LONG4);
    let first = s.root;
    s.map_used(GVA, DATA, S4K);
    s.load(GVA);
    let second = s.add_root();
    s.load_cr3(second, 2, false);
    s.map_used(GVA, DATA + 0x1000, S4K);
    s.load(GVA);
    m.count(&s.take());
    // The kernel stores to the first root while the second is loaded.
    s.root = first;
    let (at, _) = s.entry(GVA + (1 << 39), 4);
    s.root = second;
    m.platform.instructions += INTERVAL;
    s.write(at, 0);
    s.write(at, 0);
    s.load(GVA);
    s.load_cr3(first, 1, false);
    s.load(GVA);
    let c = m.count(&s.take());
    assert_eq!(exits_by_name(&c).iter().find(|e| e.0 == "cr3_load"), None);
    assert_eq!((c.walks_switched[0], c.walks_switched[4]), (1, 1));
    approve(&m);
}

// ---- the two ends ------------------------------------------------------------------------------

fn life(seed: u64, mode: &'static Mode, vcpus: u8) -> Life {
    let narrow = mode.entry_bytes == 4;
    let pages = ["4k", "thp", if narrow { "4m" } else { "2m" }][seed as usize % 3];
    Life {
        seed,
        events: 150,
        vcpus,
        accesses_percent: 65,
        mode,
        pages,
        pcids: seed.is_multiple_of(2),
    }
}

fn lives() -> impl Iterator<Item = (Setup, Life)> {
    (1..=10u64).map(|seed| {
        let mode: &'static Mode = [&LONG4, &LONG5, &PAE, &LEGACY32][seed as usize % 4];
        let vcpus = if seed % 2 == 0 { 4 } else { 1 };
        let setup = Setup {
            guest_mode: mode,
            vcpus: usize::from(vcpus),
            host_pages: ["4k", "thp"][seed as usize / 4 % 2],
            // The walkers of agile paging look at no neighbours of a leaf entry: docs/profiles.md.
            ..Setup::new(plain(Profile::load("zen2").unwrap()))
        };
        (setup, life(seed, mode, vcpus))
    })
}

fn by_dimension(c: &Counters) -> [u64; 3] {
    [Dimension::Guest, Dimension::Nested, Dimension::Shadow].map(|d| c.references.of(d))
}

/// If nothing ever moves and KVM's rules hold, it is shadow paging: the same exits for each reason, the
/// same walks, the same references.
#[test]
fn without_policy_and_options_it_is_shadow_paging() {
    for (setup, life) in lives() {
        let mut shadow = setup.shadow();
        let mut m = agile(&setup, "writes=0/ad=off/cr3=0/sync=kvm");
        for events in life.live() {
            shadow.run(&events).unwrap();
            m.run(&events).unwrap();
        }
        let (a, b) = (m.counters(), shadow.counters());
        let what = format!("life {} {}", life.seed, life.mode.name);
        assert_eq!(exits_by_name(a), exits_by_name(b), "{what}");
        assert!(a.exits_total() > 50);
        assert_eq!(by_dimension(a), by_dimension(b), "{what}");
        assert_eq!((a.walks, a.faulted_walks), (b.walks, b.faulted_walks), "{what}");
        assert_eq!((a.walk_cache_hits, a.sync_entries), (b.walk_cache_hits, b.sync_entries));
        assert_eq!(a.walks_switched[0], a.walks);
        approve(&m);
    }
}

/// If everything is nested from the start, it is nested paging, but for the exits by which the
/// hypervisor learns of address spaces.
#[test]
fn with_everything_nested_it_is_nested_paging() {
    for (setup, life) in lives() {
        let mut nested = setup.nested();
        let mut m = agile(&setup, "start=nested/interval=1099511627776");
        for events in life.live() {
            nested.run(&events).unwrap();
            m.run(&events).unwrap();
        }
        let (a, b) = (m.counters(), nested.counters());
        let what = format!("life {} {}", life.seed, life.mode.name);
        // The walk cache of a 32-bit guest is indexed by 2 MiB, as its shadow tables are.
        if life.mode.entry_bytes == 8 {
            assert_eq!(by_dimension(a), by_dimension(b), "{what}");
            assert_eq!((a.walk_cache_hits, a.nested_walks), (b.walk_cache_hits, b.nested_walks));
        }
        assert_eq!(a.references.of(Dimension::Shadow), 0);
        assert_eq!((a.walks, a.faulted_walks), (b.walks, b.faulted_walks), "{what}");
        let loads = exits(a, ExitReason::Cr3Load);
        assert!(loads > 0 && loads <= a.cr3_loads);
        assert_eq!(exits(a, ExitReason::EptViolation), exits(b, ExitReason::EptViolation));
        assert_eq!(a.exits_total(), b.exits_total() + loads, "{what}");
        assert_eq!(a.walks_switched[FULLY_NESTED], a.walks);
        approve(&m);
    }
}
