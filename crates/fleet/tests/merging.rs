//! Pages of the same contents that VMs of a fleet share: what is saved, what stores break, what is
//! caught; and random fleets with reclaim, merging and migration under way.

use crate::common;

use common::fleets::{MIB, pattern, plan, run, run_well, vm, workload};
use nestwalk_fleet::merging::{MergePlan, Shares};
use nestwalk_fleet::migration::{MigrationPlan, Mode, PAGE_BYTES, Progress};
use nestwalk_fleet::replacement::Kind;
use nestwalk_fleet::{self as fleet, FleetError, FleetPlan, Vm};
use nestwalk_hw::Translation;
use nestwalk_sim::hardware::Request;
use nestwalk_sim::hardware::walk::{Fault, WalkWatch};
use nestwalk_sim::hypervisor::nested::Nested;
use nestwalk_sim::scheme::guard::Tracking;
use nestwalk_sim::scheme::{Event, Handled, MachineError, Platform, Processor, Scheme, Software};
use nestwalk_sim::schemes::nested;
use nestwalk_sim::{Definition, DynMachine, ExitReason, Machine, MachineConfig, Plan};
use nestwalk_types::{Address, Run, SplitMix64};
use std::collections::HashMap;
use std::sync::atomic::AtomicBool;

/// A thread that looks at so many pages in a microsecond.
fn merging(pages: u64, zero: f64, common: f64) -> MergePlan {
    let shares = ["a", "b", "c"].map(|name| (name.into(), Shares { zero, common })).into();
    MergePlan { pages, sleep_ns: 1_000.0, shares }
}

fn fleet(merging: MergePlan) -> FleetPlan {
    FleetPlan { turn: 20_000, apart: false, merging: Some(merging), ..FleetPlan::default() }
}

fn three(text: &str, machines: [&str; 3]) -> Vec<Vm> {
    let names = ["a", "b", "c"].into_iter().zip(machines);
    names.map(|(name, machine)| vm(name, machine, pattern(text, 8 * MIB, 60_000))).collect()
}

/// What nobody stores to is merged: of pages that three VMs have, two are saved; of pages of zeros all
/// but one of 256.
#[test]
fn what_is_saved_follows_from_shares() {
    let vms = || three("uniform:reads=1", ["nested", "shadow", "agile"]);
    for (zero, common) in [(0.0, 0.6), (0.5, 0.0), (0.2, 0.3), (1.0, 0.0), (0.0, 0.0)] {
        let outcome = run_well(&fleet(merging(200, zero, common)), vms());
        let merging = outcome.host.merging.as_ref().unwrap();
        let pages = outcome.vms.iter().map(|vm| vm.touched_bytes >> 12).sum::<u64>() as f64;
        let expected = pages * (zero * 255.0 / 256.0 + common * 2.0 / 3.0);
        let saved = (merging.saved_bytes >> 12) as f64;
        assert!((saved - expected).abs() <= pages * 0.02, "{saved} for {expected}: {merging:?}");
        assert!(merging.full_scans > 2 && merging.pages_scanned as f64 > 2.0 * pages);
        let merged: u64 = outcome.vms.iter().map(|vm| vm.merging.unwrap().merged).sum();
        assert_eq!(merged - merging.frames, merging.saved_bytes >> 12);
        assert!(
            outcome.vms.iter().all(|vm| vm.merging.unwrap().merges >= vm.merging.unwrap().merged)
        );
    }
}

/// A store to a merged page is an exit, and gives the page a frame of its own.
#[test]
fn stores_break_what_is_shared() {
    let vms = || three("uniform:reads=0.9", ["nested", "shadow", "switching"]);
    let outcome = run_well(&fleet(merging(100, 0.0, 0.8)), vms());
    let without = run_well(&FleetPlan { merging: None, ..fleet(merging(1, 0.0, 0.0)) }, vms());
    for (vm, plain) in outcome.vms.iter().zip(&without.vms) {
        let merged = vm.merging.unwrap();
        assert!(merged.broken > 100 && merged.broken <= merged.merges, "{merged:?}");
        assert!(merged.merged <= merged.merges - merged.broken);
        let exits = |vm: &fleet::VmOutcome| vm.together.counters.exits.iter().sum::<u64>();
        assert!(exits(vm) >= exits(plain) + merged.broken, "{}: {merged:?}", vm.name);
        assert!(vm.interference.merging > 0.0);
        let i = vm.interference;
        let sum = i.own + i.tlbs + i.caches + i.memory + i.merging + i.migration;
        assert!((sum - i.total).abs() < 1e-9);
        assert_eq!(vm.alone, plain.alone);
    }
    let nested = &outcome.vms[0];
    let violations =
        |vm: &fleet::VmOutcome| vm.together.counters.exits[ExitReason::EptViolation as usize];
    assert!(violations(nested) >= violations(&without.vms[0]) + nested.merging.unwrap().broken);
}

/// Merged pages leave more memory: less is swapped.
#[test]
fn merging_relieves_a_host_that_is_short_of_memory() {
    let with = |plan| {
        let scarce = FleetPlan {
            host_bytes: Some(56 * MIB),
            replacement: Kind::Clock,
            ..fleet(merging(100, 0.0, 0.0))
        };
        let fleet = FleetPlan { merging: plan, ..scarce };
        let outcome = run_well(&fleet, three("uniform:reads=1", ["nested", "shadow", "nested"]));
        outcome.vms.iter().map(|vm| vm.swap.swapped_in).sum::<u64>()
    };
    let (without, merged) = (with(None), with(Some(merging(400, 0.5, 0.4))));
    assert!(without > 2_000 && merged * 2 < without, "{merged}, without {without}");
}

/// Nested paging with a TLB of its own beside the core's, which no flush reaches.
struct Unflushed {
    inner: Nested,
    kept: HashMap<u64, Translation>,
}

impl Software for Unflushed {
    fn handle_fault(
        &mut self,
        platform: &mut Platform,
        request: &Request,
        fault: Fault,
    ) -> Result<Handled, MachineError> {
        self.inner.handle_fault(platform, request, fault)
    }
    fn on(&mut self, platform: &mut Platform, event: Event<'_>) -> Result<(), MachineError> {
        self.inner.on(platform, event)
    }
}

impl Scheme for Unflushed {
    fn walk<W: WalkWatch>(
        &mut self,
        cpu: &mut Processor,
        request: &Request,
        watch: &mut W,
    ) -> Result<Translation, Fault> {
        let found = self.inner.walk(cpu, request, watch)?;
        if found.permissions().write {
            self.kept.insert(request.gva.page_number(), found);
        }
        Ok(found)
    }
    fn instead_of_l1(&mut self, _cpu: &mut Processor, run: &Run) -> Option<Translation> {
        self.kept.get(&run.gva.page_number()).copied()
    }
}

fn unflushed(mut config: MachineConfig) -> Result<Box<dyn DynMachine>, MachineError> {
    let inner = Nested::new(&mut config)?;
    Ok(Box::new(Machine::new(Unflushed { inner, kept: HashMap::new() }, config)?))
}

static UNFLUSHED: Definition = Definition { build: unflushed, ..nested::DEFINITION };

/// A flush that is left out when a page is merged leaves a translation by which it is stored to in
/// place.
#[test]
fn a_merged_page_written_in_place_is_caught() {
    let mut vms = three("uniform:reads=0.97", ["nested", "nested", "nested"]);
    for vm in &mut vms {
        vm.plan.machines.iter_mut().filter(|m| m.scheme.virtualized).for_each(|m| {
            m.scheme = &UNFLUSHED;
        });
    }
    let outcome = run(&fleet(merging(400, 0.0, 0.9)), vms);
    let alone = outcome.vms.iter().map(|vm| vm.alone.referee.as_ref().unwrap().violations);
    assert_eq!(alone.sum::<u64>(), 0, "alone nothing is wrong");
    let told = outcome.vms.iter().flat_map(|vm| &vm.together.referee.as_ref().unwrap().told);
    let in_place = told.filter(|line| line.contains("merged page")).count();
    assert!(in_place > 0, "{:?}", outcome.error);
    // The other page of the frame has not the contents that it shows.
    assert!(outcome.host.frames_given_twice > 0);
}

/// Random fleets with reclaim, merging and migration under way, one and four vCPUs.
#[test]
fn the_referees_hold_while_pages_are_merged() {
    let machines = ["nested", "shadow", "agile", "switching", "sie", "nested/eptad=off"];
    let workloads = ["btree", "forkstorm", "gups", "kvstore"];
    let mut random = SplitMix64::new(77);
    let (mut broken, mut merges, mut back, mut moved) = (0, 0, 0, 0);
    for round in 0..14u64 {
        let mut draw = |name: &str| {
            let vcpus = 1 + 3 * (round % 2) as u8;
            let machine = machines[random.below(machines.len() as u64) as usize];
            let machine = format!("{machine}:{}", ["4k+4k", "thp+4k"][random.below(2) as usize]);
            let kind = workloads[random.below(4) as usize];
            let source = workload(kind, vcpus, random.below(1000), 40_000);
            let plan = Plan { pcids: random.below(2) == 0, ..plan(&machine, usize::from(vcpus)) };
            let (async_faults, reporting) = (name != "b", round % 3 == 1);
            Vm {
                name: name.into(),
                plan,
                source,
                pinned: None,
                async_faults,
                reporting,
                balloon: false,
            }
        };
        let vms: Vec<Vm> = ["a", "b", "c"].map(&mut draw).into();
        let migration = MigrationPlan {
            vm: "a".into(),
            at: random.below(60_000),
            cancel: (random.below(4) == 0).then_some(90_000),
            link_bits_per_s: (PAGE_BYTES * 8) as f64 / (1.0 + random.below(60) as f64) * 1e9,
            latency_ns: 1_000.0,
            tracking: Tracking::WriteProtect,
            max_downtime_ns: 10_000.0,
            max_rounds: 30,
            mode: if random.below(3) == 0 { Mode::PostCopy } else { Mode::PreCopy },
        };
        let (zero, common) = (random.below(40) as f64 / 100.0, random.below(60) as f64 / 100.0);
        let fleet = FleetPlan {
            host_bytes: (round % 3 > 0).then(|| (50 + random.below(10)) * MIB),
            replacement: Kind::ALL[round as usize % Kind::ALL.len()].1,
            vpids: random.below(4) > 0,
            turn: 1_000 + random.below(20_000),
            migrations: if round % 2 == 0 { vec![migration] } else { Vec::new() },
            ..fleet(merging(20 + random.below(200), zero, common))
        };
        let names: Vec<String> =
            vms.iter().map(|v| v.plan.machines.last().unwrap().name.clone()).collect();
        let outcome = run(&fleet, vms);
        if let Some(FleetError::Vm { source, .. }) = &outcome.error
            && source.to_string().contains("smaller than what cannot be taken back")
        {
            continue;
        }
        assert!(outcome.error.is_none(), "{names:?}: {}", outcome.error.unwrap());
        assert_eq!(outcome.host.frames_given_twice, 0, "round {round}, {names:?}");
        for vm in &outcome.vms {
            let verdict = vm.together.referee.as_ref().unwrap();
            assert_eq!(verdict.violations, 0, "round {round}, {names:?}: {:?}", verdict.told);
            let merged = vm.merging.unwrap();
            (broken, merges) = (broken + merged.broken, merges + merged.merges);
            back += vm.swap.swapped_in;
            let Some(migration) = &vm.migration else { continue };
            assert_eq!(migration.lost_pages, 0, "{names:?}: {migration:?}");
            moved += u64::from(migration.progress == Progress::Completed);
        }
    }
    assert!(broken > 1_000 && merges > 5_000, "{broken} of {merges}");
    assert!(back > 200 && moved > 1, "{back} came back, {moved} moved");
}

#[test]
fn what_cannot_be_merged_is_told() {
    let refused = |machine: &str, plan: MergePlan| {
        let vms = vec![vm("a", machine, pattern("uniform", 4 * MIB, 10_000))];
        let done = fleet::run(&fleet(plan), vms, &AtomicBool::new(false), &mut |_| {}).map(|_| ());
        done.unwrap_err().to_string()
    };
    let one = |zero, common| {
        let shares = vec![("a".to_owned(), Shares { zero, common })];
        MergePlan { shares, ..merging(10, 0.0, 0.0) }
    };
    assert!(refused("nested", one(0.7, 0.7)).contains("100 % together"));
    assert!(refused("nested", MergePlan { pages: 0, ..one(0.1, 0.1) }).contains("pages=100"));
    assert!(refused("nested", merging(1, 0.0, 0.0)).contains("there is no VM b"));
    for machine in ["colt", "vmm-direct", "xen-pv"] {
        assert!(refused(machine, one(0.1, 0.1)).contains("take another machine"), "{machine}");
    }
}
