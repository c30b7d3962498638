//! VMs of a fleet that move to other hosts: rounds, logs of stores, down times, contents.

use crate::common;

use common::fleets::{MIB, pattern, plan, run, run_well, vm, workload};
use common::lives::Life;
use common::machines::{Setup, exits};
use nestwalk_fleet::migration::{MigrationOutcome, MigrationPlan, Mode, PAGE_BYTES, Progress};
use nestwalk_fleet::replacement::Kind;
use nestwalk_fleet::{self as fleet, FleetError, FleetOutcome, FleetPlan, Vm};
use nestwalk_hw::{Profile, Translation};
use nestwalk_sim::hardware::Request;
use nestwalk_sim::hardware::walk::{Fault, WalkWatch};
use nestwalk_sim::hypervisor::nested::Nested;
use nestwalk_sim::scheme::guard::Tracking;
use nestwalk_sim::scheme::{Event, Handled, MachineError, Platform, Processor, Scheme, Software};
use nestwalk_sim::schemes::nested;
use nestwalk_sim::{Definition, DynMachine, ExitReason, Machine, MachineConfig, Plan};
use nestwalk_tables::LONG4;
use nestwalk_types::{Address, Control, GuestBatch, Run, SplitMix64};
use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::AtomicBool;

/// A move of `a` over a link that carries a page in so many nanoseconds.
fn moves(page_ns: f64) -> MigrationPlan {
    MigrationPlan {
        vm: "a".into(),
        at: 20_000,
        cancel: None,
        link_bits_per_s: (PAGE_BYTES * 8) as f64 / page_ns * 1e9,
        latency_ns: 1_000.0,
        tracking: Tracking::WriteProtect,
        max_downtime_ns: 10_000.0,
        max_rounds: 30,
        mode: Mode::PreCopy,
    }
}

fn fleet(migration: MigrationPlan) -> FleetPlan {
    FleetPlan { turn: 20_000, apart: false, migrations: vec![migration], ..FleetPlan::default() }
}

fn moved(outcome: &FleetOutcome) -> &MigrationOutcome {
    outcome.vms[0].migration.as_ref().unwrap()
}

/// Stores to each page in turn at a constant rate: each round sends what was stored to in the one
/// before, so pages of rounds are a geometric series of ratio (pages stored to per ns) times (ns to
/// send a page).
#[test]
fn rounds_of_a_constant_rate_are_a_geometric_series() {
    let mut ratios = Vec::new();
    for page_ns in [1_000.0, 2_000.0] {
        let source = pattern("stride:stride=4096,reads=0", 64 * MIB, 60_000);
        let plan = MigrationPlan { max_downtime_ns: 200_000.0, ..moves(page_ns) };
        let fine = FleetPlan { turn: 100, ..fleet(plan) };
        let outcome = run_well(&fine, vec![vm("a", "nested", source)]);
        let migration = moved(&outcome);
        let sent: Vec<f64> = migration.rounds.iter().map(|r| r.pages as f64).collect();
        assert!(sent.len() >= 4 && migration.converged, "{migration:?}");
        assert_eq!(sent.iter().sum::<f64>() as u64, migration.pages_sent);
        assert_eq!(migration.bytes_sent, migration.pages_sent * PAGE_BYTES);
        // Each page but those of the first round is dirty by one exit.
        assert_eq!(migration.write_protected, migration.pages_sent - sent[0] as u64);
        let ratio = sent[1] / sent[0];
        for pair in sent.windows(2).take_while(|pair| pair[1] > 500.0) {
            assert!((pair[1] / pair[0] / ratio - 1.0).abs() < 0.1, "{sent:?}");
        }
        for round in &migration.rounds {
            assert!((round.ns - (1_000.0 + round.pages as f64 * page_ns)).abs() < 1e-3);
        }
        ratios.push(ratio);
    }
    // Twice the time to send a page, twice the pages, but for the time that the host is at work.
    assert!((1.8..2.6).contains(&(ratios[1] / ratios[0])), "{ratios:?}");
}

#[test]
fn without_stores_there_are_two_rounds() {
    for tracking in [Tracking::WriteProtect, Tracking::DirtyBits, Tracking::Pml] {
        let migration = MigrationPlan { tracking, ..moves(20.0) };
        let source = pattern("uniform:reads=1", 8 * MIB, 200_000);
        let outcome = run_well(&fleet(migration), vec![vm("a", "nested", source)]);
        let migration = moved(&outcome);
        let pages: Vec<u64> = migration.rounds.iter().map(|r| r.pages).collect();
        assert_eq!((pages.len(), pages[1], migration.down_ns), (2, 0, 1_000.0), "{migration:?}");
        assert!(pages[0] >= 2048, "{pages:?}");
        assert_eq!((migration.write_protected, migration.pml_full), (0, 0));
    }
}

/// What fits the down time ends the rounds; what never does ends them by their number.
#[test]
fn the_vm_stands_still_as_long_as_it_may() {
    let with = |page_ns, max_rounds| {
        let migration = MigrationPlan { max_rounds, ..moves(page_ns) };
        let vms = vec![vm("a", "nested", pattern("uniform:reads=0.5", 2 * MIB, 400_000))];
        run_well(&fleet(migration), vms)
    };
    let fast = with(5.0, 30);
    assert!(moved(&fast).converged && moved(&fast).down_ns <= 10_000.0, "{:?}", moved(&fast));
    let slow = with(400.0, 3);
    let migration = moved(&slow);
    assert_eq!((migration.converged, migration.rounds.len()), (false, 4), "{migration:?}");
    assert!(migration.down_ns > 10_000.0);
    assert_eq!(migration.progress, Progress::Completed);
}

/// Pages that a slice of the stream stores to, found by looking at all of it.
fn stored(batches: &[GuestBatch]) -> BTreeSet<u64> {
    let mut pages = BTreeSet::new();
    for batch in batches {
        let runs = batch.batch.runs.iter().zip(&batch.gpas);
        let stores = runs.filter(|(run, _)| run.flags.is_store());
        pages.extend(stores.map(|(_, gpa)| gpa.page_number()));
        for (_, event) in &batch.batch.controls {
            match *event {
                Control::TableWrite { gpa, .. } | Control::TableAdded { gpa, .. } => {
                    pages.insert(gpa.page_number());
                }
                Control::PageCleared { gpa, size, .. } => {
                    pages.extend(gpa.page_number()..gpa.page_number() + size.base_pages());
                }
                _ => {}
            }
        }
    }
    pages
}

/// Whatever the mechanism and the tables, a log holds the pages that the stream stores to; and the exits
/// are one for each page, none, or one for each 512 pages at most.
#[test]
fn all_logs_hold_the_pages_that_were_stored_to() {
    for seed in 0..6u64 {
        let vcpus = 1 + seed % 2 * 3;
        let life = Life {
            seed,
            events: 700,
            vcpus: vcpus as u8,
            accesses_percent: 60,
            mode: &LONG4,
            pages: ["4k", "thp"][seed as usize % 2],
            pcids: true,
        };
        let setup = Setup {
            vcpus: vcpus as usize,
            host_pages: ["4k", "thp"][seed as usize / 2 % 2],
            ..Setup::new(Profile::load("cascade-lake-6252").unwrap())
        };
        let lived = life.live();
        for (tracking, scheme) in [
            (Tracking::WriteProtect, "nested"),
            (Tracking::DirtyBits, "nested"),
            (Tracking::Pml, "nested"),
            (Tracking::WriteProtect, "shadow"),
            (Tracking::WriteProtect, "agile"),
        ] {
            let mut machine: Box<dyn DynMachine> = match scheme {
                "nested" => Box::new(setup.nested()),
                "shadow" => Box::new(setup.shadow()),
                _ => Box::new(setup.agile("interval=300")),
            };
            let (before, logged) = lived.split_at(200);
            before.iter().for_each(|batch| machine.run(batch).unwrap());
            machine.tenant().unwrap().log_stores(Some(tracking)).unwrap();
            let mut total = 0;
            for part in logged.chunks(90) {
                part.iter().for_each(|batch| machine.run(batch).unwrap());
                let dirty = machine.tenant().unwrap().take_dirty();
                let truth: Vec<u64> = stored(part).into_iter().collect();
                assert_eq!(dirty, truth, "life {seed}, {scheme} {tracking:?}");
                total += dirty.len() as u64;
            }
            let c = machine.counters();
            let (protected, full) =
                (exits(c, ExitReason::WriteProtected), exits(c, ExitReason::PmlFull));
            let expected = if tracking == Tracking::WriteProtect { total } else { 0 };
            assert_eq!(protected, expected, "life {seed}, {scheme} {tracking:?}");
            assert!(full <= total / 512, "life {seed}: {full} of {total}");
            assert_eq!(machine.verdict().unwrap().violations, 0, "{:?}", machine.verdict());
        }
    }
}

/// While stores are logged tables map by 4 KiB; when that ends without a move, by large pages again.
#[test]
fn large_pages_are_split_and_joined_again() {
    let source = || pattern("uniform:reads=0.5", 32 * MIB, 300_000);
    let go = |cancel, ends_as| {
        let migration = MigrationPlan { cancel, ..moves(1e6) };
        let outcome = run_well(&fleet(migration), vec![vm("a", "nested:4k+2m", source())]);
        assert_eq!(moved(&outcome).progress, ends_as);
        outcome.vms.into_iter().next().unwrap().together
    };
    let early = go(Some(60_000), Progress::Cancelled);
    let late = go(None, Progress::Unfinished);
    let nested = |m: &nestwalk_sim::MachineResult| m.page_table_bytes.nested;
    assert!(nested(&early) < nested(&late), "{} {}", nested(&early), nested(&late));
    let fills = early.counters.nested_fills;
    assert!(late.counters.nested_fills > fills + 4_000, "{fills}");
}

#[test]
fn post_copy_fetches_what_is_touched() {
    for (machine, scarce) in [("nested", false), ("shadow", true)] {
        let migration = MigrationPlan { mode: Mode::PostCopy, ..moves(200.0) };
        let host_bytes = scarce.then_some(80 * MIB);
        let fleet = FleetPlan { host_bytes, ..fleet(migration) };
        let a = pattern("uniform:reads=0.5", 24 * MIB, 150_000);
        let b = pattern("zipf:theta=0.9", 24 * MIB, 150_000);
        let outcome = run_well(&fleet, vec![vm("a", machine, a), vm("b", "nested", b)]);
        let migration = moved(&outcome);
        assert_eq!(migration.progress, Progress::Completed, "{migration:?}");
        assert!(migration.network_faults > 100 && migration.down_ns <= 1_000.0, "{migration:?}");
        let one = 1_000.0 + 200.0;
        let waited = migration.network_faults as f64 * one;
        assert!((migration.waited_ns / waited - 1.0).abs() < 1e-9, "{migration:?}");
        // Every page came once.
        assert!(migration.pages_sent >= 24 * 256 && migration.pages_sent < 26 * 256);
        assert!(migration.total_ns >= migration.pages_sent as f64 * 200.0);
    }
}

/// Random fleets with moves under way, some on hosts that are short of memory.
#[test]
fn the_referees_hold_while_vms_move() {
    let machines =
        ["nested", "shadow", "agile", "switching", "sie", "nested/eptad=off", "switching"];
    let workloads = ["btree", "forkstorm", "gups", "kvstore"];
    let mut random = SplitMix64::new(5);
    let (mut completed, mut rounds, mut resent) = (0, 0, 0);
    for round in 0..16u64 {
        let mut draw = |i: u64| {
            let vcpus = 1 + 3 * (round % 2) as u8;
            let machine = machines[random.below(machines.len() as u64) as usize];
            let machine =
                format!("{machine}:{}", ["4k+4k", "thp+thp", "4k+2m"][random.below(3) as usize]);
            let kind = workloads[random.below(4) as usize];
            let source = workload(kind, vcpus, random.below(1000), 40_000);
            let plan = Plan { pcids: random.below(2) == 0, ..plan(&machine, usize::from(vcpus)) };
            let name = ["a", "b", "c"][i as usize].into();
            let (async_faults, reporting) = (i != 1, round % 3 == 0);
            Vm { name, plan, source, pinned: None, async_faults, reporting, balloon: false }
        };
        let vms: Vec<Vm> = (0..3).map(&mut draw).collect();
        let migration = |vm: &str, random: &mut SplitMix64| MigrationPlan {
            vm: vm.into(),
            at: random.below(40_000),
            mode: if random.below(3) == 0 { Mode::PostCopy } else { Mode::PreCopy },
            cancel: (random.below(6) == 0).then_some(80_000),
            ..moves(1.0 + random.below(40) as f64)
        };
        let migrations = vec![migration("a", &mut random), migration("c", &mut random)];
        let fleet = FleetPlan {
            host_bytes: (round % 3 == 0).then(|| (96 + random.below(24)) * MIB),
            replacement: Kind::ALL[round as usize % Kind::ALL.len()].1,
            apart: false,
            turn: 1_000 + random.below(20_000),
            migrations,
            ..FleetPlan::default()
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
        assert_eq!(outcome.host.frames_given_twice, 0, "{names:?}");
        for vm in &outcome.vms {
            let verdict = vm.together.referee.as_ref().unwrap();
            assert_eq!(verdict.violations, 0, "{names:?}: {:?}", verdict.told);
            let Some(migration) = &vm.migration else { continue };
            assert_eq!(migration.lost_pages, 0, "{names:?}: {migration:?}");
            completed += u64::from(migration.progress == Progress::Completed);
            rounds += migration.rounds.len();
            resent += migration.rounds.iter().skip(1).map(|r| r.pages).sum::<u64>();
        }
    }
    assert!(completed > 12 && rounds > 30 && resent > 1_500, "{completed} {rounds} {resent}");
}

#[test]
fn threads_change_nothing_of_a_move() {
    let text = |threads| {
        let vms = vec![
            vm("a", "nested", pattern("uniform:reads=0.5", 8 * MIB, 100_000)),
            vm("b", "shadow", pattern("zipf:theta=0.9", 8 * MIB, 100_000)),
        ];
        let fleet = FleetPlan { threads, ..fleet(moves(20.0)) };
        serde_json::to_string(&run_well(&fleet, vms).vms).unwrap()
    };
    let one = text(1);
    assert!(one.contains("\"progress\":\"completed\""), "{one}");
    assert_eq!(text(3), one);
}

/// A host that is left has all its memory back: the VM that stays swaps no more.
#[test]
fn a_vm_that_leaves_frees_its_memory() {
    let with = |migrations| {
        let vms = vec![
            vm("a", "nested", pattern("uniform:reads=0.5", 24 * MIB, 100_000)),
            vm("b", "shadow", pattern("uniform:reads=0.5", 24 * MIB, 100_000)),
        ];
        let (host_bytes, turn) = (Some(70 * MIB), 20_000);
        let fleet =
            FleetPlan { host_bytes, turn, migrations, apart: false, ..FleetPlan::default() };
        run_well(&fleet, vms).vms.remove(1).swap.swapped_in
    };
    let (stays, leaves) = (with(Vec::new()), with(vec![moves(5.0)]));
    assert!(leaves * 3 < stays && stays > 1_000, "{leaves}, {stays}");
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
        if request.write {
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

/// A flush that is left out when pages are made clean again loses pages, which the referee of the move
/// finds.
#[test]
fn a_lost_page_is_caught() {
    for tracking in [Tracking::WriteProtect, Tracking::DirtyBits, Tracking::Pml] {
        let mut spoilt = vm("a", "nested", pattern("uniform:reads=0.5", 4 * MIB, 300_000));
        spoilt.plan.machines.iter_mut().filter(|m| m.scheme.virtualized).for_each(|m| {
            m.scheme = &UNFLUSHED;
        });
        let outcome = run(&fleet(MigrationPlan { tracking, ..moves(20.0) }), vec![spoilt]);
        assert!(outcome.error.is_none(), "{:?}", outcome.error);
        let migration = moved(&outcome);
        assert!(migration.lost_pages > 100, "{migration:?}");
    }
}

#[test]
fn what_cannot_move_is_told() {
    let refused = |machine: &str, migrations: Vec<MigrationPlan>| {
        let vms = vec![vm("a", machine, pattern("uniform", 4 * MIB, 10_000))];
        let fleet = FleetPlan { migrations, ..FleetPlan::default() };
        let error = fleet::run(&fleet, vms, &AtomicBool::new(false), &mut |_| {}).map(|_| ());
        error.unwrap_err().to_string()
    };
    let plain = || moves(20.0);
    for (machine, plan, says) in [
        ("nested", MigrationPlan { vm: "z".into(), ..plain() }, "no such VM; there are a"),
        ("nested", MigrationPlan { link_bits_per_s: 0.0, ..plain() }, "a link of no bandwidth"),
        ("nested", MigrationPlan { max_rounds: 0, ..plain() }, "rounds=0"),
        ("nested", MigrationPlan { max_downtime_ns: 0.0, ..plain() }, "more than none"),
        ("vmm-direct", plain(), "take another machine"),
        ("colt", plain(), "several pages in an entry"),
        ("shadow", MigrationPlan { tracking: Tracking::Pml, ..plain() }, "tracking=write-protect"),
        (
            "nested/eptad=off",
            MigrationPlan { tracking: Tracking::DirtyBits, ..plain() },
            "tracking=write-protect",
        ),
    ] {
        let told = refused(machine, vec![plan]);
        assert!(told.contains(says), "{machine}: {told}");
    }
    assert!(refused("nested", vec![plain(), plain()]).contains("a VM moves once"));
}
