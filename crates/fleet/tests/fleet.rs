//! Several VMs on one host: what they share, and that none sees another.

use crate::common;

use common::fleets::{self, MIB, pattern, plan, run, run_well, workload};
use nestwalk_fleet::replacement::Kind;
use nestwalk_fleet::{self as fleet, FleetError, FleetPlan, Vm};
use nestwalk_hw::Translation;
use nestwalk_sim::compare::CompareError;
use nestwalk_sim::hardware::Request;
use nestwalk_sim::hardware::walk::{Fault, WalkWatch};
use nestwalk_sim::hypervisor::nested::Nested;
use nestwalk_sim::scheme::{Event, Handled, MachineError, Platform, Processor, Scheme, Software};
use nestwalk_sim::schemes::nested;
use nestwalk_sim::{Definition, DynMachine, ExitReason, Machine, MachineConfig, Plan, compare};
use nestwalk_types::{Source, SplitMix64};
use std::sync::atomic::AtomicBool;

/// A VM whose guest is told of pages that its host reads.
fn vm(name: &str, machine: &str, source: Box<dyn Source>) -> Vm {
    Vm { async_faults: true, ..fleets::vm(name, machine, source) }
}

/// Turns so short that many fit.
fn turns(turn: u64) -> FleetPlan {
    FleetPlan { turn, ..FleetPlan::default() }
}

fn two() -> Vec<Vm> {
    vec![
        vm("a", "nested", pattern("uniform", 24 * MIB, 60_000)),
        vm("b", "shadow", pattern("zipf:theta=0.9", 16 * MIB, 60_000)),
    ]
}

/// A VM alone is what `compare` makes of it, to the last counter; and so is the only VM of a host.
#[test]
fn alone_is_what_one_machine_is() {
    for machine in ["nested", "shadow:thp+thp", "switching", "agile"] {
        let source = || workload("btree", 1, 3, 30_000);
        let stop = AtomicBool::new(false);
        let single =
            compare(&plan(machine, 1), source().as_mut(), &stop, &mut |_| {}).unwrap().counters;
        let outcome = run_well(&turns(50_000), vec![vm("only", machine, source())]);
        let only = &outcome.vms[0];
        assert_eq!(&only.alone.counters, single.last().unwrap(), "{machine}");
        assert_eq!(only.together.counters, only.alone.counters, "{machine}");
        assert!(only.turns > 3, "{machine}");
    }
}

#[test]
fn own_part_and_neighbours_add_up() {
    let scarce = FleetPlan { host_bytes: Some(40 * MIB + 64 * MIB), ..turns(20_000) };
    for fleet in [turns(20_000), FleetPlan { apart: false, ..turns(20_000) }, scarce] {
        let outcome = run_well(&fleet, two());
        for vm in &outcome.vms {
            let i = vm.interference;
            let sum = i.own + i.tlbs + i.caches + i.memory;
            assert!((sum - i.total).abs() < 1e-9, "{i:?}");
            assert_eq!(i.own.to_bits(), vm.alone.overhead_percent.to_bits());
            assert_eq!(i.total.to_bits(), vm.together.overhead_percent.to_bits());
            assert!(i.total > i.own, "neighbours cost something: {i:?}");
        }
    }
}

/// A neighbour that does the like takes TLB entries; without tags each change of VMs takes all.
#[test]
fn tags_keep_translations_over_a_neighbours_turn() {
    let fleet = |vpids| FleetPlan { vpids, ..turns(5_000) };
    let small = || {
        vec![
            vm("a", "nested", pattern("zipf:theta=0.9", 2 * MIB, 60_000)),
            vm("b", "nested", pattern("zipf:theta=0.9", 2 * MIB, 60_000)),
        ]
    };
    let tagged = run_well(&fleet(true), small());
    let untagged = run_well(&fleet(false), small());
    for (with, without) in tagged.vms.iter().zip(&untagged.vms) {
        let misses = |m: &nestwalk_sim::MachineResult| m.counters.l2_tlb_misses;
        assert!(misses(&with.together) < misses(&without.together));
        assert!(misses(&with.alone) <= misses(&with.together));
        assert_eq!(with.alone, without.alone);
    }
    let preempted = ExitReason::Preempted as usize;
    for vm in &tagged.vms {
        assert!(vm.together.counters.exits[preempted].abs_diff(vm.turns) <= 1);
        assert_eq!(vm.alone.counters.exits[preempted], 0);
    }
}

/// VMs on cores of their own share the last level alone, and are never preempted.
#[test]
fn pinned_vms_keep_their_tlbs() {
    let mut vms = two();
    for (core, vm) in vms.iter_mut().enumerate() {
        vm.pinned = Some(core);
    }
    let outcome = run_well(&turns(20_000), vms);
    assert_eq!((outcome.host.cores, outcome.host.preemptions), (2, 0));
    for vm in &outcome.vms {
        assert!(vm.interference.tlbs.abs() < 1e-12, "{}", vm.name);
    }
    let sharing = run_well(&turns(20_000), two());
    for (own, shared) in outcome.vms.iter().zip(&sharing.vms) {
        assert!(own.interference.total < shared.interference.total, "{}", own.name);
    }
}

/// More VMs than tags: some take turns with one, and the core forgets what the other had.
#[test]
fn tags_are_used_again() {
    let machines = ["nested", "shadow", "sie", "agile", "switching"];
    let vms = (0..33u64).map(|i| {
        let source = workload("btree", 1, i, 30_000);
        vm(&format!("vm{i}"), machines[i as usize % machines.len()], source)
    });
    let outcome = run_well(&FleetPlan { apart: false, ..turns(4_000) }, vms.collect());
    assert!(outcome.host.preemptions > 100);
}

#[test]
fn threads_change_nothing() {
    let fleet = |threads| FleetPlan { threads, host_bytes: Some(100 * MIB), ..turns(20_000) };
    let text = |threads| serde_json::to_string(&run_well(&fleet(threads), two()).vms).unwrap();
    let one = text(1);
    assert!(one.len() > 1000);
    assert_eq!(text(2), one);
    assert_eq!(text(7), one);
}

/// Random fleets with reclaim under way: every machine that can be there, every policy, small and
/// large pages, one and two vCPUs.
#[test]
fn the_referee_holds_while_pages_go_and_come_back() {
    let machines = [
        "nested",
        "shadow",
        "agile",
        "switching",
        "sie",
        "nested/eptad=off",
        "guest-direct",
        "colt",
    ];
    let pages = ["4k+4k", "4k+2m", "thp+thp"];
    let workloads = ["btree", "forkstorm", "gups", "kvstore"];
    let mut random = SplitMix64::new(11);
    let (mut back, mut taken, mut given) = (0, 0, 0);
    for round in 0..16u64 {
        let colt = round % 4 == 3;
        let draw = |i: u64| {
            let vcpus = 1 + random.below(2) as u8;
            let known = if colt { &machines[7..] } else { &machines[..7] };
            let machine = known[random.below(known.len() as u64) as usize];
            let machine =
                format!("{machine}:{}", pages[random.below(2) as usize * usize::from(i < 1)]);
            let name = workloads[random.below(4) as usize];
            let base = Plan { pcids: random.below(2) == 0, ..plan(&machine, usize::from(vcpus)) };
            // Guests that swap, and give pages when they are asked.
            let swaps = machine.contains(":4k") && !machine.starts_with("guest-direct");
            let kind = Kind::ALL[1 + (round + i) as usize % 5].1;
            Vm {
                name: format!("vm{i}"),
                plan: Plan { guest_swap: swaps.then_some(kind), ..base },
                source: workload(name, vcpus, random.below(1000), 30_000),
                pinned: None,
                async_faults: !(round + i).is_multiple_of(3),
                reporting: (round + i).is_multiple_of(2),
                balloon: !(round + i).is_multiple_of(3),
            }
        };
        let vms: Vec<Vm> = (0..3u64).map(draw).collect();
        let (_, replacement, _) = Kind::ALL[round as usize % Kind::ALL.len()];
        let fleet = FleetPlan {
            host_bytes: Some((64 + random.below(24)) * MIB),
            replacement,
            apart: false,
            vpids: random.below(4) > 0,
            ..turns(1_000 + random.below(20_000))
        };
        let names: Vec<String> =
            vms.iter().map(|v| v.plan.machines.last().unwrap().name.clone()).collect();
        let outcome = run(&fleet, vms);
        if let Some(FleetError::Vm { source, .. }) = &outcome.error
            && let CompareError::Machine(MachineError::HostTooSmall { .. }) = source.as_ref()
        {
            continue;
        }
        assert!(outcome.error.is_none(), "{names:?}: {}", outcome.error.unwrap());
        assert_eq!(outcome.host.frames_given_twice, 0, "{names:?}");
        for vm in &outcome.vms {
            let verdict = vm.together.referee.as_ref().unwrap();
            assert_eq!(verdict.violations, 0, "{names:?}: {:?}", verdict.told);
            assert_eq!(vm.swap.lost, 0, "{names:?}");
            assert!(vm.resident_bytes <= 88 * MIB);
            back += vm.swap.swapped_in;
            taken += vm.swap.taken_back;
            given += vm.swap.ballooned;
        }
    }
    assert!(given > 1000, "{given} pages were given");
    assert!(back > 1000 && taken > 1000, "{taken} went, {back} came back");
}

/// What hot pages cost a policy that sees them used, and one that does not.
#[test]
fn policies_that_see_uses_keep_hot_pages() {
    let with = |replacement| {
        let vms = vec![
            vm("hot", "nested", pattern("zipf:theta=0.99", 24 * MIB, 60_000)),
            vm("cold", "nested", pattern("sequential", 40 * MIB, 60_000)),
        ];
        let fleet =
            FleetPlan { host_bytes: Some(84 * MIB), replacement, apart: false, ..turns(10_000) };
        let outcome = run_well(&fleet, vms);
        outcome.vms.iter().map(|v| v.swap.swapped_in).sum::<u64>()
    };
    let (lru, clock, fifo) = (with(Kind::Lru), with(Kind::Clock), with(Kind::Fifo));
    assert!(lru > 0 && lru < fifo && clock < fifo, "lru {lru}, clock {clock}, fifo {fifo}");
}

/// Pages that nobody stores to again are on the device already.
#[test]
fn clean_pages_are_not_written_twice() {
    let vms = vec![vm("a", "nested", pattern("uniform:reads=1", 64 * MIB, 60_000))];
    let fleet = FleetPlan { host_bytes: Some(84 * MIB), apart: false, ..turns(10_000) };
    let outcome = run_well(&fleet, vms);
    let swap = outcome.vms[0].swap;
    assert!(swap.taken_back > swap.written + 4000, "{swap:?}");
    assert!(swap.swapped_in > 0 && swap.waited_ns > 85_000.0, "{swap:?}");
}

/// Nested paging, spoilt.
struct Spoilt {
    inner: Nested,
    wrong: Wrong,
}

#[derive(Clone, Copy, PartialEq)]
enum Wrong {
    /// All VMs have one tag.
    OneVpid,
    /// What the host took back stays mapped.
    PageKept,
}

impl Software for Spoilt {
    fn handle_fault(
        &mut self,
        platform: &mut Platform,
        request: &Request,
        fault: Fault,
    ) -> Result<Handled, MachineError> {
        self.inner.handle_fault(platform, request, fault)
    }
    fn on(&mut self, platform: &mut Platform, event: Event<'_>) -> Result<(), MachineError> {
        match (self.wrong, event) {
            (Wrong::PageKept, Event::HostChanged { .. }) => return Ok(()),
            (Wrong::OneVpid, Event::LoadCr3 { .. }) => platform.cpu.hardware.set_vpid(1),
            _ => {}
        }
        self.inner.on(platform, event)
    }
}

impl Scheme for Spoilt {
    fn walk<W: WalkWatch>(
        &mut self,
        cpu: &mut Processor,
        request: &Request,
        watch: &mut W,
    ) -> Result<Translation, Fault> {
        self.inner.walk(cpu, request, watch)
    }
}

fn spoilt(config: MachineConfig, wrong: Wrong) -> Result<Box<dyn DynMachine>, MachineError> {
    let mut config = config;
    let inner = Nested::new(&mut config)?;
    Ok(Box::new(Machine::new(Spoilt { inner, wrong }, config)?))
}

static ONE_VPID: Definition =
    Definition { build: |config| spoilt(config, Wrong::OneVpid), ..nested::DEFINITION };
static PAGE_KEPT: Definition =
    Definition { build: |config| spoilt(config, Wrong::PageKept), ..nested::DEFINITION };

/// The referee finds what a forgotten tag, or a page that stays mapped, does.
#[test]
fn what_leaks_between_vms_is_caught() {
    for (definition, host_bytes) in [(&ONE_VPID, None), (&PAGE_KEPT, Some(72 * MIB))] {
        let vms = ["a", "b"].map(|name| {
            let mut vm = vm(name, "nested", pattern("zipf:theta=0.9", 24 * MIB, 60_000));
            vm.plan.machines.iter_mut().filter(|m| m.scheme.virtualized).for_each(|m| {
                m.scheme = definition;
            });
            vm
        });
        let outcome = run(&FleetPlan { host_bytes, ..turns(5_000) }, vms.into());
        let alone = outcome.vms.iter().map(|v| v.alone.referee.as_ref().unwrap().violations);
        assert_eq!(alone.sum::<u64>(), 0, "alone nothing is wrong");
        let found = outcome.vms.iter().map(|v| v.together.referee.as_ref().unwrap().violations);
        let found: Vec<u64> = found.collect();
        assert!(found.iter().sum::<u64>() > 0, "{host_bytes:?}: {found:?} {:?}", outcome.error);
    }
}

fn refused(fleet: &FleetPlan, vms: Vec<Vm>) -> String {
    fleet::run(fleet, vms, &AtomicBool::new(false), &mut |_| {})
        .map(|_| ())
        .unwrap_err()
        .to_string()
}

#[test]
fn what_cannot_be_is_told() {
    let uniform = || pattern("uniform", 4 * MIB, 60_000);
    let plain = turns(5_000);
    let of = |machine: &str| vec![vm("a", machine, uniform())];
    let twins = vec![vm("a", "nested", uniform()), vm("a", "nested", uniform())];
    assert!(refused(&plain, twins).contains("two VMs have this name"));
    assert!(refused(&plain, Vec::new()).contains("a fleet of no VM"));
    assert!(refused(&plain, of("native")).contains("none of a virtual machine"));
    assert!(refused(&plain, of("rmm")).contains("know no VPID"));
    assert!(refused(&plain, of("nested:4k+khugepaged")).contains("no placement policy"));
    let mut reports = of("nested");
    reports[0].reporting = true;
    assert!(refused(&plain, reports).contains("give it --host-memory"));
    let one_core = FleetPlan { cores: Some(1), ..plain.clone() };
    let mut second = vm("a", "nested", uniform());
    second.pinned = Some(1);
    assert!(refused(&one_core, vec![second]).contains("the host has 1"));
    let scarce = FleetPlan { host_bytes: Some(64 * MIB), ..plain };
    assert!(refused(&scarce, of("xen-pv")).contains("cannot take it back"));
}

/// A host that is smaller than what cannot be taken back is an error that says so, and what was
/// computed before is there.
#[test]
fn a_host_that_is_too_small_ends_early() {
    let fleet = FleetPlan { host_bytes: Some(4 * MIB), apart: false, ..turns(5_000) };
    let outcome = run(&fleet, two());
    let error = outcome.error.unwrap().to_string();
    assert!(error.contains("smaller than what cannot be taken back"), "{error}");
    assert!(!error.contains("panicked") && outcome.vms.len() == 2);
}
