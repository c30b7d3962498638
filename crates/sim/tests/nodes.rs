//! Machines of several nodes: what remote memory costs, against closed forms; where tables come to lie;
//! and that the referee finds nothing.

use crate::common;

use common::lives::{BASE, Life};
use common::machines::{Probe, Setup};
use common::{Script, approve, bare_profile, run};
use nestwalk_hw::{Profile, ServedBy};
use nestwalk_sim::scheme::vmm_options::{VmmKind, VmmOptions};
use nestwalk_sim::{Counters, Cycles, Dimension, DynMachine};
use nestwalk_tables::LONG4;
use nestwalk_types::{GuestBatch, PageSize, VcpuId};
use std::collections::HashSet;

const S4K: PageSize = PageSize::SIZE_4K;
const MEMORY: usize = ServedBy::Memory as usize;

fn options(kind: VmmKind, text: &str) -> VmmOptions {
    kind.options().parse(text).unwrap()
}

fn setup(text: &str) -> Setup {
    let vmm = options(VmmKind::NestedNodes, text);
    Setup { vmm, ..Setup::new(bare_profile()) }
}

/// Cycles beyond local memory: remote, and remote with load.
fn beyond(profile: &Profile) -> [u64; 2] {
    let nodes = profile.nodes.as_ref().unwrap();
    let local = profile.caches.memory_cycles.value as u64;
    [&nodes.remote_cycles, &nodes.loaded_cycles].map(|l| l.value as u64 - local)
}

/// A page is mapped and used; then one access walks with nothing cached anywhere.
fn cold<M: Probe>(mut m: M) -> Counters {
    let mut s = Script::new(&LONG4);
    s.map_used(BASE, 0x1234_5000, S4K);
    s.load(BASE);
    m.run(&s.take()).unwrap();
    m.forget();
    let _ = m.platform().cpu.hardware.take_caches();
    s.load(BASE);
    let c = m.count(&s.take());
    approve(&m);
    c
}

/// Lines of the walk's references to one dimension's tables, by where they are.
fn lines(dimension: Dimension) -> u64 {
    let mut m = setup("").nested();
    let mut s = Script::new(&LONG4);
    s.map_used(BASE, 0x1234_5000, S4K);
    s.load(BASE);
    m.run(&s.take()).unwrap();
    let steps = m.watch(&run(BASE, false)).unwrap();
    assert_eq!(steps.len(), 24);
    let of = steps.iter().filter(|s| s.dimension == dimension);
    of.map(|s| s.at.value() >> 6).collect::<HashSet<_>>().len() as u64
}

/// Every reference that a cold walk sends to memory of another node costs the difference, no other
/// does: of the 24, 4 for the guest's tables, and of the 20 to nested tables one for each line that
/// they lie in.
#[test]
fn a_cold_walk_costs_what_its_lines_on_the_other_node_cost() {
    let [remote, loaded] = beyond(&bare_profile());
    let local = cold(setup("").nested());
    let (g, n) = (lines(Dimension::Guest), lines(Dimension::Nested));
    assert_eq!((local.references.total(), g), (24, 4));
    assert_eq!(local.references.0[Dimension::Nested as usize][MEMORY], n);
    for (text, far, cycles) in [
        ("nodes=2", 0, 0),
        ("nodes=2/gpt=0/ept=0/data=0", 0, 0),
        ("nodes=2/gpt=1", g, g * remote),
        ("nodes=2/ept=1", n, n * remote),
        ("nodes=2/gpt=1/ept=1", g + n, (g + n) * remote),
        ("nodes=4/gpt=3/ept=1/load=3", g + n, g * loaded + n * remote),
        ("nodes=2/gpt=1/ept=1/load=1", g + n, (g + n) * loaded),
        // Who is remote depends on where the vCPU runs.
        ("nodes=2/pin=1/gpt=1/ept=1", 0, 0),
        ("nodes=2/pin=1/gpt=0/ept=0/load=0", g + n, (g + n) * loaded),
    ] {
        let c = cold(setup(text).nested());
        assert_eq!(c.references, local.references, "{text}: a placement changes no address");
        assert_eq!(c.remote_walk_references, far, "{text}");
        assert_eq!(c.remote_walk_cycles, cycles, "{text}");
        assert_eq!(c.walk_cycles, local.walk_cycles + cycles, "{text}");
        assert_eq!((c.remote_references, c.remote_cycles), (0, 0), "{text}");
    }
}

/// On bare metal four references, all of them in lines of their own.
#[test]
fn a_cold_native_walk_costs_four_remote_references() {
    let [remote, _] = beyond(&bare_profile());
    let local = cold(setup("").native());
    for (text, walk, data) in [
        ("nodes=2", 0, 0),
        ("nodes=2/gpt=1", 4, 0),
        ("nodes=2/data=1", 0, 1),
        ("nodes=2/data=1/gpt=1", 4, 1),
    ] {
        let vmm = options(VmmKind::BareMetal, text);
        let c = cold(Setup { vmm, ..Setup::new(bare_profile()) }.native());
        assert_eq!((c.remote_walk_references, c.remote_references), (walk, data), "{text}");
        assert_eq!(c.walk_cycles, local.walk_cycles + walk * remote, "{text}");
        assert_eq!(c.remote_cycles, data * remote, "{text}");
    }
}

fn life(seed: u64, vcpus: u8) -> Vec<GuestBatch> {
    let pages = ["4k", "thp"][seed as usize % 2];
    Life { seed, events: 160, vcpus, accesses_percent: 60, mode: &LONG4, pages, pcids: true }.live()
}

fn lived(text: &str, host_pages: &'static str, events: &[GuestBatch]) -> Counters {
    let vcpus = 4;
    let profile = Profile::load("cascade-lake-6252").unwrap();
    let vmm = options(VmmKind::NestedNodes, text);
    let mut m = Setup { vmm, vcpus, host_pages, ..Setup::new(profile) }.nested();
    events.iter().for_each(|e| m.run(e).unwrap());
    approve(&m);
    m.counters().clone()
}

/// Over whole lives, too: with both tables remote a machine pays what it pays with each of them.
#[test]
fn costs_of_two_placements_add_up() {
    let profile = Profile::load("cascade-lake-6252").unwrap();
    for seed in 1..=4 {
        for vcpus in [1, 4] {
            let events = life(seed, vcpus);
            let of = |text: &str| {
                let c = lived(text, "4k", &events);
                (c.walk_cycles, c.remote_walk_cycles, Cycles::of(&c, &profile).total())
            };
            let [ll, lr, rl, rr] = [
                "nodes=2/gpt=0/ept=0/data=0",
                "nodes=2/gpt=0/ept=1/data=0",
                "nodes=2/gpt=1/ept=0/data=0",
                "nodes=2/gpt=1/ept=1/data=0",
            ]
            .map(of);
            assert_eq!(ll.1, 0);
            assert!(lr.1 > 0 && rl.1 > 0);
            assert_eq!(rr.0 - ll.0, (lr.0 - ll.0) + (rl.0 - ll.0), "life {seed}");
            assert_eq!(rr.1, lr.1 + rl.1);
            assert!(((rr.2 - ll.2) - (lr.2 - ll.2) - (rl.2 - ll.2)).abs() < 1e-6 * rr.2);
        }
    }
}

/// One node counts the same as several on which everything is local.
#[test]
fn where_all_is_local_nothing_is_different() {
    for seed in 5..=7 {
        let events = life(seed, 4);
        for host_pages in ["4k", "2m"] {
            let one = lived("", host_pages, &events);
            assert_eq!(lived("nodes=2/pin=1/data=1/gpt=1/ept=1", host_pages, &events), one);
        }
    }
}

/// Frames of tables are on the node that was asked for, and every node's count is that of its frames.
#[test]
fn tables_lie_where_they_were_asked_to() {
    for (text, guest, nested) in [
        ("nodes=2/gpt=1/ept=0", 1, 0),
        ("nodes=2/gpt=0/ept=1/data=1", 0, 1),
        ("nodes=3/gpt=2/ept=2/data=interleave", 2, 2),
    ] {
        for host_pages in ["4k", "2m"] {
            let mut m = Setup { vcpus: 4, host_pages, ..setup(text) }.nested();
            life(3, 4).iter().for_each(|e| m.run(e).unwrap());
            approve(&m);
            let nodes = m.report().nodes.unwrap();
            for (counts, only) in [(&nodes.guest_tables, guest), (&nodes.nested_tables, nested)] {
                assert!(counts[only] > 0, "{text}: {nodes:?}");
                let elsewhere: u64 = counts.iter().sum::<u64>() - counts[only];
                assert_eq!(elsewhere, 0, "{text}: {nodes:?}");
            }
        }
    }
}

/// First touch: what a vCPU first uses lies on its node, and costs the others.
#[test]
fn a_page_lies_with_the_vcpu_that_first_uses_it() {
    let mut m = Setup { vcpus: 2, ..setup("nodes=2/pin=spread") }.nested();
    let mut s = Script::new(&LONG4);
    let root = s.root;
    s.map_used(BASE, 0x1234_5000, S4K);
    s.vcpu = VcpuId(1);
    s.load_cr3(root, 1, false);
    s.load(BASE);
    m.run(&s.take()).unwrap();
    let [remote, _] = beyond(&bare_profile());
    for (vcpu, far) in [(1, 0), (0, 1)] {
        m.forget();
        let _ = m.platform().cpu.hardware.take_caches();
        s.vcpu = VcpuId(vcpu);
        s.load_cr3(root, 1, false);
        s.load(BASE);
        let c = m.count(&s.take());
        assert_eq!((c.remote_references, c.remote_cycles), (far, far * remote), "vCPU {vcpu}");
    }
}

#[test]
fn what_does_not_go_together_is_refused_with_what_would_be_right() {
    for (text, words) in [
        ("gpt=1", "add nodes=2"),
        ("nodes=9", "1 to 8"),
        ("nodes=2/ept=2", "ept=2: nodes are 0 to 1"),
        ("nodes=2/gpt=here", "touch, interleave, or a node"),
        ("nodes=2/load=0", "pin vCPUs to another"),
        ("nodes=2/pin=spread/load=1", "pin vCPUs to another"),
        ("nodes=2/pin=all", "or `spread`"),
    ] {
        let e = VmmKind::NestedNodes.options().parse(text).unwrap_err();
        assert!(e.contains(words), "{text}: {e}");
    }
    let e = options(VmmKind::NestedNodes, "nodes=2").nodes;
    let e = e.layout(&Profile::load("zen4").unwrap(), 1, 1 << 30).unwrap_err();
    assert!(e.contains("zen4") && e.contains("[nodes]"), "{e}");
}
