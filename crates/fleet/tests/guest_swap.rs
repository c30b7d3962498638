//! Guests and native machines that swap, and hosts that ask their balloons.

use crate::common;

use common::fleets::{self, MIB, pattern, plan, run_well};
use nestwalk_fleet::replacement::Kind;
use nestwalk_fleet::{self as fleet, FleetOutcome, FleetPlan, Vm, VmOutcome};
use nestwalk_mm::SwapStats;
use nestwalk_sim::{Plan, compare};
use std::sync::atomic::AtomicBool;

const POLICIES: [Kind; 5] =
    [Kind::Fifo, Kind::Clock, Kind::TwoLists, Kind::Mglru, Kind::WorkingSet];

/// What a guest with so much memory swaps of a pattern, the same on every machine.
fn swapped(machines: &str, kind: Kind, memory: u64, source: &str) -> SwapStats {
    let plan = Plan { guest_bytes: memory, guest_swap: Some(kind), ..plan(machines, 1) };
    let mut source = pattern(source, 16 * MIB, 150_000);
    let stop = AtomicBool::new(false);
    let outcome = compare(&plan, source.as_mut(), &stop, &mut |_| {}).unwrap();
    assert!(outcome.error.is_none(), "{}", outcome.error.unwrap());
    for machine in &outcome.machines {
        let verdict = machine.referee.as_ref().map_or((0, true), |v| (v.violations, v.checked > 0));
        assert_eq!(verdict, (0, true), "{}", machine.name);
    }
    let [(_, guest)] = &outcome.guests[..] else { panic!("one guest for all") };
    guest.modelled().unwrap().swap.unwrap()
}

/// Every machine follows a kernel that takes pages, by every policy; the use bit is worth something,
/// and so is memory.
#[test]
fn a_small_memory_shows_replacement_by_the_use_bit() {
    let zipf = "zipf:theta=0.9";
    let all = POLICIES.map(|kind| swapped("native:4k", kind, 12 * MIB, zipf));
    for (stats, kind) in all.iter().zip(POLICIES) {
        assert!(stats.came_back > 5_000 && stats.written <= stats.taken, "{kind:?}: {stats:?}");
        assert!(stats.scanned >= stats.taken || kind == Kind::Fifo, "{kind:?}: {stats:?}");
    }
    let [fifo, clock, ..] = all;
    assert!(clock.came_back * 10 < fifo.came_back * 9, "{clock:?} {fifo:?}");
    assert_eq!(fifo.scanned, 0, "nobody asks");
    let more = swapped("native:4k", Kind::Clock, 15 * MIB, zipf);
    assert!(more.came_back < clock.came_back, "{more:?} {clock:?}");
    let machines = "native:4k,nested:4k+4k,shadow:4k+4k,agile:4k+4k,xen-pv:4k+4k,switching:4k+2m";
    assert_eq!(swapped(machines, Kind::Clock, 12 * MIB, zipf), clock);
    let loads = swapped("native:4k", Kind::Clock, 12 * MIB, "uniform:reads=1");
    assert!(loads.written < loads.taken / 2, "what was not stored to is there already: {loads:?}");
}

fn vms(memory: u64, footprint: u64, balloon: bool) -> Vec<Vm> {
    let vm = |(name, machine): (&str, &str)| {
        let vm = fleets::vm(name, machine, pattern("zipf:theta=0.9", footprint, 150_000));
        let plan = Plan { guest_bytes: memory, guest_swap: Some(Kind::Clock), ..vm.plan };
        Vm { plan, balloon, async_faults: true, ..vm }
    };
    [("a", "nested"), ("b", "shadow")].map(vm).into()
}

fn short(host: u64) -> FleetPlan {
    let (replacement, host_bytes) = (Kind::Clock, Some(host));
    FleetPlan { turn: 20_000, apart: false, replacement, host_bytes, ..FleetPlan::default() }
}

fn sum(outcome: &FleetOutcome, of: impl Fn(&VmOutcome) -> u64) -> u64 {
    outcome.vms.iter().map(of).sum()
}

/// A guest whose host swaps knows nothing of it; one with a balloon swaps itself, and its host has
/// less to do.
#[test]
fn a_ballooned_vm_swaps_itself_and_a_swapped_one_is_swapped() {
    let swapped = run_well(&short(60 * MIB), vms(64 * MIB, 24 * MIB, false));
    let ballooned = run_well(&short(60 * MIB), vms(64 * MIB, 24 * MIB, true));
    assert_eq!(sum(&swapped, |vm| vm.guest_swap.as_ref().unwrap().taken_back), 0);
    assert_eq!(sum(&swapped, |vm| vm.swap.ballooned), 0);
    for vm in &ballooned.vms {
        let guest = vm.guest_swap.as_ref().unwrap();
        assert_eq!(vm.swap.ballooned, guest.ballooned, "{}", vm.name);
        assert!(guest.waited_ns > 0.0 && guest.policy == "clock");
    }
    let host = |outcome: &FleetOutcome| sum(outcome, |vm| vm.swap.swapped_in);
    assert!(host(&swapped) > 5_000, "{}", host(&swapped));
    assert!(host(&ballooned) * 3 < host(&swapped) * 2, "{} {}", host(&ballooned), host(&swapped));
    let guests = |vm: &VmOutcome| vm.guest_swap.as_ref().unwrap().swapped_in;
    assert!(sum(&ballooned, guests) > 5_000);
}

/// Both swap: pages that the host has taken come back only because the guest swaps them.
#[test]
fn pages_are_swapped_twice_where_host_and_guest_swap() {
    let both = run_well(&short(15 * MIB), vms(12 * MIB, 16 * MIB, false));
    let twice = |outcome: &FleetOutcome| sum(outcome, |vm| vm.swap.double_paged);
    assert!(twice(&both) > 500, "{}", twice(&both));
    assert!(sum(&both, |vm| vm.swap.swapped_in) >= twice(&both));
    let alone = run_well(&short(2 << 30), vms(12 * MIB, 16 * MIB, false));
    assert_eq!((twice(&alone), sum(&alone, |vm| vm.swap.taken_back)), (0, 0));
}

#[test]
fn what_cannot_swap_or_be_asked_is_told() {
    let stop = AtomicBool::new(false);
    for (machine, kind, says) in [
        ("native:4k", Kind::Lru, "no kernel hears of every use; take clock"),
        ("native:thp", Kind::Clock, "of 4 KiB, anywhere; name 4k"),
        ("nested:2m+4k", Kind::Clock, "of 4 KiB, anywhere; name 4k"),
    ] {
        let plan = Plan { guest_swap: Some(kind), ..plan(machine, 1) };
        let mut source = pattern("uniform", MIB, 1_000);
        let refused = compare(&plan, source.as_mut(), &stop, &mut |_| {});
        let error = refused.err().unwrap().to_string();
        assert!(error.contains(says), "{machine}: {error}");
    }
    let plenty = FleetPlan { host_bytes: None, ..short(0) };
    let refused = fleet::run(&plenty, vms(64 * MIB, 4 * MIB, true), &stop, &mut |_| {});
    let error = refused.unwrap_err().to_string();
    assert!(error.contains("VM a: balloon") && error.contains("--host-memory"), "{error}");
}
