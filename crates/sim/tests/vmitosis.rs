//! vMitosis: tables that move to the node of what they point to, and copies of tables on each node.
//! Costs against closed forms, whole lives under the referee, and copies that miss a store, which it
//! must catch.

use crate::common;

use common::lives::{BASE, Life};
use common::machines::{Probe, Setup};
use common::{Script, approve, bare_profile};
use nestwalk_hw::Profile;
use nestwalk_sim::hypervisor::nested::Nested;
use nestwalk_sim::scheme::vmm_options::VmmKind;
use nestwalk_sim::{Counters, DynMachine, Machine};
use nestwalk_tables::{Entry, LONG4, LONG5, Mode, look_up};
use nestwalk_types::{Gpa, GuestBatch, Gva, Hpa, PageSize, VcpuId};
use std::collections::HashSet;

const S4K: PageSize = PageSize::SIZE_4K;
const GPA: u64 = 0x1234_5000;

fn setup(text: &str, profile: Profile) -> Setup {
    let vmm = VmmKind::NestedNodes.options().parse(text).unwrap();
    Setup { vmm, vcpus: 4, ..Setup::new(profile) }
}

fn machine(text: &str) -> Machine<Nested> {
    setup(text, bare_profile()).nested()
}

/// A page is mapped; the vCPUs of the list use it, each of them after a load of CR3.
fn shared_page(m: &mut Machine<Nested>, vcpus: &[u8]) -> Script {
    let mut s = Script::new(&LONG4);
    s.map_used(BASE, GPA, S4K);
    vcpus.iter().for_each(|vcpu| used_by(&mut s, *vcpu));
    m.run(&s.take()).unwrap();
    s
}

fn used_by(s: &mut Script, vcpu: u8) {
    let root = s.root;
    s.vcpu = VcpuId(vcpu);
    s.load_cr3(root, 1, false);
    s.load(BASE);
}

/// Counters of one access by a vCPU, with nothing cached.
fn cold(m: &mut Machine<Nested>, s: &mut Script, vcpu: u8) -> Counters {
    used_by(s, vcpu);
    m.forget();
    let _ = m.platform().cpu.hardware.take_caches();
    m.count(&s.take())
}

/// With copies of both dimensions no walk leaves its node; without, the walks of the other node do.
#[test]
fn with_copies_every_walk_is_local() {
    for (text, far) in [
        ("nodes=2/pin=spread/copies=both", [false, false]),
        ("nodes=4/pin=spread/copies=both", [false, false]),
        ("nodes=2/pin=spread/copies=ept/gpt=0", [false, true]),
        ("nodes=2/pin=spread/copies=gpt/ept=0", [false, true]),
        ("nodes=2/pin=spread", [false, true]),
    ] {
        let mut m = machine(text);
        let mut s = shared_page(&mut m, &[0, 3]);
        for (vcpu, far) in [0, 3].into_iter().zip(far) {
            let c = cold(&mut m, &mut s, vcpu);
            assert_eq!(c.references.total(), 24, "{text}");
            assert_eq!(c.remote_walk_references > 0, far, "{text}, vCPU {vcpu}");
        }
        approve(&m);
    }
}

/// A store to an entry of a guest's table is one more for each node but the first; so is one to an entry
/// of nested tables.
#[test]
fn copies_cost_a_store_for_each_further_node() {
    for nodes in [2, 4] {
        let further = nodes - 1;
        let mut m = machine(&format!("nodes={nodes}/pin=spread/copies=both"));
        let mut s = shared_page(&mut m, &[0]);
        // The tables for the next page are there.
        s.map_used(BASE + 4096, GPA + 4096, S4K);
        s.load(BASE + 4096);
        let c = m.count(&s.take());
        assert_eq!((c.table_writes, c.guest_copy_stores), (1, further));
        assert_eq!((c.nested_fills, c.nested_copy_stores), (1, further));
        assert_eq!((c.guest_copy_pages, c.nested_copy_pages), (0, 0));
        // A new leaf table of the guest, in a page of its own on each node.
        s.map_used(BASE + (2 << 20), GPA + 8192, S4K);
        let c = m.count(&s.take());
        assert_eq!(
            (c.table_writes, c.guest_copy_stores, c.guest_copy_pages),
            (2, 2 * further, further)
        );
        approve(&m);
    }
}

/// Each table has as many pages as there are nodes, one on each.
#[test]
fn copies_take_the_memory_of_the_tables_once_for_each_node() {
    let mut m = machine("nodes=4/pin=spread/copies=both");
    shared_page(&mut m, &[0, 1, 2, 3]);
    let nodes = m.report().nodes.unwrap();
    let [first, rest @ ..] = nodes.nested_tables.as_slice() else { panic!() };
    // Beyond the guest's own memory lie the pages for copies: more to map, on every node alike.
    assert!(*first > 0 && rest.iter().all(|n| n == first), "{nodes:?}");
    let guest = m.platform().cpu.world.guest.len();
    let copies: Vec<u64> = m.platform().cpu.world.copies.iter().map(|c| c.memory.len()).collect();
    assert_eq!(copies, [guest; 3]);
}

/// The next scan moves each table once, after which walks are local, and nothing is left to move.
#[test]
fn tables_move_to_what_they_point_to() {
    for (text, guest, nested) in [
        ("gpt=1/ept=1/migrate=both", true, true),
        ("gpt=1/ept=0/migrate=gpt", true, false),
        ("gpt=0/ept=1/migrate=ept", false, true),
    ] {
        let mut m = machine(&format!("nodes=2/data=0/{text}/scan=1000"));
        let mut s = shared_page(&mut m, &[0]);
        assert!(cold(&mut m, &mut s, 0).remote_walk_references > 0);
        let before = m.report().nodes.unwrap();
        // Two pages in turn, until 1000 instructions have passed.
        s.map_used(BASE + 4096, GPA + 4096, S4K);
        (0..4000).for_each(|i| s.load(BASE + (i % 2) * 4096));
        let c = m.count(&s.take());
        let moved = |n: u64, which: bool| if which { n } else { 0 };
        assert_eq!(c.guest_tables_moved, moved(before.guest_tables[1], guest), "{text}");
        assert_eq!(c.nested_tables_moved, moved(before.nested_tables[1], nested), "{text}");
        assert!(c.guest_tables_scanned + c.nested_tables_scanned > 0);
        let after = m.report().nodes.unwrap();
        assert_eq!((after.guest_tables[1], after.nested_tables[1]), (0, 0), "{text}: {after:?}");
        // Nothing is on two nodes, and nothing is lost.
        let sums = |n: &[u64]| n.iter().sum::<u64>();
        assert_eq!(sums(&after.guest_tables), sums(&before.guest_tables));
        assert_eq!(sums(&after.nested_tables), sums(&before.nested_tables));
        assert_eq!(cold(&mut m, &mut s, 0).remote_walk_references, 0, "{text}");
        approve(&m);
    }
}

fn life(seed: u64, vcpus: u8, mode: &'static Mode) -> Vec<GuestBatch> {
    let pages = ["4k", "thp"][seed as usize % 2];
    Life { seed, events: 200, vcpus, accesses_percent: 60, mode, pages, pcids: true }.live()
}

/// Whole lives: moves and copies under way change no translation, and no count of the walks.
#[test]
fn lives_pass_with_tables_that_move_and_copies_under_way() {
    let profile = Profile::load("cascade-lake-6252").unwrap();
    for seed in 1..=6 {
        for (vcpus, mode) in [(1, &LONG4), (4, &LONG4), (4, &LONG5)] {
            let events = life(seed, vcpus, mode);
            for (text, host_pages) in [
                ("nodes=2/gpt=1/ept=1/migrate=both/scan=1000", "4k"),
                (
                    "nodes=3/pin=spread/data=interleave/gpt=interleave/ept=2/migrate=both/scan=1000",
                    "2m",
                ),
                ("nodes=2/pin=spread/copies=both", "4k"),
                ("nodes=4/pin=spread/copies=both", "2m"),
                ("nodes=2/pin=spread/copies=ept/gpt=1/migrate=gpt/scan=1000", "thp"),
            ] {
                let setup = Setup { host_pages, guest_mode: mode, ..setup(text, profile.clone()) };
                let mut m = setup.nested();
                for (i, e) in events.iter().enumerate() {
                    m.run(e).unwrap_or_else(|e| panic!("{text}, life {seed}, event {i}: {e}"));
                    // The host takes a page back now and then.
                    if i % 10 == 9 {
                        let _ = m.discard(Gpa::new((16 << 20) + ((i as u64) << 12)));
                    }
                }
                approve(&m);
                copies_say_the_same(&mut m, mode);
            }
        }
    }
}

/// Every leaf of the guest's own tables is in every copy.
fn copies_say_the_same(m: &mut Machine<Nested>, mode: &'static Mode) {
    let world = &m.platform().cpu.world;
    for copy in &world.copies {
        for (vcpu, root) in copy.roots.iter().enumerate() {
            let own = world.roots[vcpu];
            if *root == Gpa::new(0) || !world.guest.contains(own) {
                continue;
            }
            let mut own_leaves = HashSet::new();
            let all = 0..1 << 47;
            let bits = |e: Entry| e.without(0x60).0;
            nestwalk_tables::each_leaf(&world.guest, mode, own, &all, &mut |at, leaf| {
                own_leaves.insert((at, bits(leaf.entry)));
            });
            let mut copied = HashSet::new();
            nestwalk_tables::each_leaf(&copy.memory, mode, *root, &all, &mut |at, leaf| {
                copied.insert((at, bits(leaf.entry)));
            });
            assert_eq!(own_leaves, copied);
        }
    }
}

/// A copy of the guest's tables that misses a store sends its node's vCPUs to the old page.
#[test]
fn a_store_that_misses_a_copy_of_the_guests_tables_is_caught() {
    for missed in [false, true] {
        let mut m = machine("nodes=2/pin=spread/copies=both");
        let mut s = shared_page(&mut m, &[0, 3]);
        let copy = &mut m.platform().cpu.world.copies[0];
        let leaf =
            look_up::<Gva, Gpa>(&copy.memory, &LONG4, copy.roots[3], Gva::new(BASE)).unwrap();
        s.unmap(BASE, S4K);
        s.map_used(BASE, GPA + 4096, S4K);
        m.run(&s.take()).unwrap();
        if missed {
            m.platform().cpu.world.copies[0].memory.write(leaf.at, 8, leaf.entry.0);
        }
        used_by(&mut s, 3);
        m.run(&s.take()).unwrap();
        assert_eq!(m.verdict().unwrap().violations > 0, missed);
    }
}

/// So does a copy of nested tables.
#[test]
fn a_store_that_misses_a_copy_of_nested_tables_is_caught() {
    for missed in [false, true] {
        let mut m = machine("nodes=2/pin=spread/copies=both");
        let mut s = shared_page(&mut m, &[0, 3]);
        let tables = m.scheme.mmu.tables_on(|| 1);
        let leaf = look_up::<Gpa, Hpa>(tables.memory, &LONG4, tables.root, Gpa::new(GPA)).unwrap();
        m.discard(Gpa::new(GPA)).unwrap();
        // Another page takes the frame.
        s.map_used(BASE + 4096, GPA + 4096, S4K);
        s.vcpu = VcpuId(0);
        s.load(BASE + 4096);
        s.load(BASE);
        m.run(&s.take()).unwrap();
        if missed {
            m.scheme.mmu.tables_on(|| 1).memory.write(leaf.at, 8, leaf.entry.0);
        }
        used_by(&mut s, 3);
        m.run(&s.take()).unwrap();
        assert_eq!(m.verdict().unwrap().violations > 0, missed);
    }
}

/// What is used by one node's walks was used: the bits of all copies count as one.
#[test]
fn an_entry_was_accessed_if_it_was_in_any_copy() {
    let mut m = machine("nodes=2/pin=spread/copies=both");
    let mut s = shared_page(&mut m, &[0, 3]);
    let take = |m: &mut Machine<Nested>| m.scheme.mmu.take_accessed(Gpa::new(GPA), S4K).unwrap();
    assert!(take(&mut m));
    assert!(!take(&mut m));
    for vcpu in [3, 0] {
        m.forget();
        used_by(&mut s, vcpu);
        m.run(&s.take()).unwrap();
        assert!(take(&mut m), "vCPU {vcpu}");
        assert!(!take(&mut m));
    }
}

#[test]
fn what_does_not_go_together_is_refused() {
    for (text, words) in [
        ("nodes=2/copies=both/gpt=1", "copies"),
        ("nodes=2/copies=ept/migrate=both", "copies"),
        ("nodes=2/scan=5000", "add migrate"),
        ("migrate=both", "add nodes=2"),
        ("nodes=2/copies=all", "none, gpt, ept, both"),
    ] {
        let e = VmmKind::NestedNodes.options().parse(text).unwrap_err();
        assert!(e.contains(words), "{text}: {e}");
    }
}
