//! The mechanism of switching paging modes: what a switch costs, what stays, who is told.

use crate::common;

use common::lives::{Life, cut, join};
use common::machines::{Probe, Setup, exits, exits_by_name};
use common::{Script, approve};
use nestwalk_hw::Profile;
use nestwalk_mm::PagePolicy;
use nestwalk_policy::{Mode as PagingMode, hindsight};
use nestwalk_sim::measure::series::intervals;
use nestwalk_sim::schemes::switching::Switching;
use nestwalk_sim::{
    Cycles, DynMachine, ExitReason, Machine, MachineSpec, Outcome, Plan, compare, interval_costs,
};
use nestwalk_tables::LONG4;
use nestwalk_types::{Gpa, PageSize, SplitMix64};
use nestwalk_workloads::{Populate, WorkloadSpec};
use std::sync::atomic::AtomicBool;

fn machine(setup: &Setup, variant: &str) -> Machine<Switching> {
    let mut build = setup.build("switching", true);
    build.variant = variant.into();
    Machine::new(Switching::new(&mut build).unwrap(), build).unwrap()
}

fn setup(vcpus: usize) -> Setup {
    Setup { vcpus, ..Setup::new(Profile::load("cascade-lake-6252").unwrap()) }
}

fn switch(m: &mut Machine<Switching>, to: PagingMode) {
    m.scheme.switch_to(&mut m.platform, to).unwrap();
}

const NEVER: &str = "every=1000000000000000";
/// Pages of the hand-written program: 8 leaf tables.
const PAGES: u64 = 4096;

/// A guest with its pages mapped and used, each at another place; and a load of each page.
fn guest() -> (nestwalk_types::GuestBatch, nestwalk_types::GuestBatch) {
    let mut s = Script::with_found_tables(&LONG4);
    for i in 0..PAGES {
        s.map_used(0x4000_0000 + (i << 12), (64 << 20) + (i << 12), PageSize::SIZE_4K);
    }
    let tables = s.take();
    (0..PAGES).for_each(|i| s.load(0x4000_0000 + (i << 12)));
    (tables, s.take())
}

/// After a switch the VM costs what it costs a hypervisor that meets this guest for the first time,
/// with all host pages there.
#[test]
fn a_switch_costs_what_is_built_anew() {
    let (tables, loads) = guest();
    let touch = |host: &mut Option<nestwalk_mm::HostMemory>| {
        let host = host.as_mut().unwrap();
        for gpa in (16 << 20..(16 << 20) + 0x20_0000).step_by(0x1000) {
            host.ensure(Gpa::new(gpa)).unwrap();
        }
        for i in 0..PAGES {
            host.ensure(Gpa::new((64 << 20) + (i << 12))).unwrap();
        }
    };
    let mut shadow = setup(1).shadow();
    let mut nested = setup(1).nested();
    shadow.run(&tables).unwrap();
    nested.run(&tables).unwrap();
    touch(&mut shadow.platform.host);
    touch(&mut nested.platform.host);
    let (from_shadow, from_nested) = (shadow.count(&loads), nested.count(&loads));
    // Groups of 8 neighbours come with one fault.
    assert_eq!(exits_by_name(&from_shadow), [("hidden_fault", PAGES / 8)]);
    // Every page, and 8 leaf tables with the 3 tables above them.
    assert_eq!(exits_by_name(&from_nested), [("ept_violation", PAGES + 8 + 3)]);

    let mut m = machine(&setup(1), &format!("{NEVER}/start=nested"));
    m.run(&tables).unwrap();
    touch(&mut m.platform.host);
    assert_eq!(m.count(&loads).exits, from_nested.exits);
    switch(&mut m, PagingMode::Shadow);
    assert_eq!(m.count(&loads).exits, from_shadow.exits);
    switch(&mut m, PagingMode::Nested);
    assert_eq!(m.count(&loads).exits, from_nested.exits);
    // Nothing is left to build.
    m.forget_translations();
    assert_eq!(m.count(&loads).exits_total(), 0);
    approve(&m);
}

#[test]
fn kept_nested_tables_cost_memory_and_no_exit() {
    let (tables, loads) = guest();
    let back = |keep: &str| {
        let mut m = machine(&setup(1), &format!("{NEVER}/start=nested/keep={keep}"));
        m.run(&tables).unwrap();
        m.run(&loads).unwrap();
        let before = m.report().page_tables.nested;
        switch(&mut m, PagingMode::Shadow);
        m.run(&loads).unwrap();
        let during = m.report().page_tables;
        assert!(during.shadow > 0);
        m.platform.cpu.counters = Default::default();
        switch(&mut m, PagingMode::Nested);
        m.run(&loads).unwrap();
        approve(&m);
        assert_eq!(m.report().page_tables.nested, before);
        (m.counters().clone(), before, during.nested)
    };
    let (dropped, _, during) = back("nothing");
    assert_eq!(during, 0);
    assert_eq!(
        exits_by_name(&dropped),
        [("ept_violation", PAGES + 8 + 3), ("mode_switch", 1)],
        "all of it is built again"
    );
    let (kept, before, during) = back("nested");
    assert_eq!(during, before, "the tables stay");
    assert_eq!(exits_by_name(&kept), [("mode_switch", 1)]);
    assert_eq!(kept.nested_fills, 0);
}

/// A switch under kept tables is bounded by the pages that the host changed since.
#[test]
fn what_the_host_changes_meanwhile_is_not_used_again() {
    let (tables, loads) = guest();
    for tlb in ["flush", "carry"] {
        let mut m = machine(&setup(1), &format!("{NEVER}/start=nested/keep=nested/tlb={tlb}"));
        m.run(&tables).unwrap();
        m.run(&loads).unwrap();
        switch(&mut m, PagingMode::Shadow);
        // Three are taken back, and get each other's memory.
        let gpa = |i: u64| Gpa::new((64 << 20) + (i << 12));
        let place = |m: &Machine<Switching>, i| {
            m.platform.host.as_ref().unwrap().look_up(gpa(i)).map(|p| p.frame)
        };
        let old: Vec<_> = [7, 700, 1700].map(|i| place(&m, i)).into();
        for i in [7, 700, 1700] {
            assert!(m.discard(gpa(i)).unwrap());
            assert!(!m.discard(gpa(i)).unwrap());
        }
        // What was freed first is given out first.
        for i in [1700, 700, 7] {
            m.platform.host.as_mut().unwrap().ensure(gpa(i)).unwrap();
        }
        let new: Vec<_> = [7, 700, 1700].map(|i| place(&m, i)).into();
        assert_ne!(old, new, "the mapping is another");
        m.platform.cpu.counters = Default::default();
        switch(&mut m, PagingMode::Nested);
        m.run(&loads).unwrap();
        assert_eq!(exits_by_name(m.counters()), [("ept_violation", 3), ("mode_switch", 1)]);
        approve(&m);
    }
}

/// Under `carry` a VM that goes to shadow mode reads through old entries and stores through none.
#[test]
fn no_store_gets_past_write_protection() {
    let mut s = Script::with_found_tables(&LONG4);
    for i in 0..4u64 {
        s.map_used(0x4000_0000 + (i << 12), (64 << 20) + (i << 12), PageSize::SIZE_4K);
    }
    let tables = s.take();
    s.load(0x4000_0000);
    s.store(0x4000_1000);
    let both = s.take();
    for (tlb, misses) in [("flush", 2), ("carry", 1)] {
        let mut m = machine(&setup(1), &format!("{NEVER}/start=nested/keep=nested/tlb={tlb}"));
        m.run(&tables).unwrap();
        // The load leaves an entry by which no store goes past the walker.
        let world = &mut m.platform.cpu.world;
        let (at, entry) = (s.entry(0x4000_0000, 1).0, s.entry(0x4000_0000, 1).1);
        world.guest.write(at, 8, entry.0 & !nestwalk_tables::entry::DIRTY);
        m.run(&both).unwrap();
        switch(&mut m, PagingMode::Shadow);
        let c = m.count(&both);
        assert_eq!(c.l1_tlb_misses, misses, "{tlb}");
        assert_eq!(exits(&c, ExitReason::HiddenFault), 1, "{tlb}");
        switch(&mut m, PagingMode::Nested);
        let c = m.count(&both);
        assert_eq!(c.l1_tlb_misses, if tlb == "carry" { 0 } else { 2 });
        approve(&m);
    }
}

/// Shadow entries do not say that they are parts of one guest page: INVLPG of one address must remove
/// all of them from hardware, which is on its own in nested mode.
#[test]
fn parts_of_a_large_guest_page_are_not_carried() {
    let size = PageSize::SIZE_2M;
    let mut s = Script::with_found_tables(&LONG4);
    s.map_used(0x4000_0000, 64 << 20, size);
    s.load(0x4000_0000);
    s.load(0x4000_5000);
    let before = s.take();
    s.map_used(0x4000_0000, 128 << 20, size);
    s.invlpg(0x4000_0000);
    s.load(0x4000_5000);
    let after = s.take();
    for tlb in ["flush", "carry"] {
        let mut m = machine(&setup(1), &format!("{NEVER}/tlb={tlb}"));
        m.run(&before).unwrap();
        switch(&mut m, PagingMode::Nested);
        m.run(&after).unwrap();
        approve(&m);
    }
}

fn plan(machines: &str, vcpus: usize, threads: usize) -> Plan {
    let base = PagePolicy::by_name("4k").unwrap();
    Plan {
        machines: MachineSpec::parse_list(machines, base).unwrap(),
        profile: Profile::load("kaby-lake-i5-7600").unwrap(),
        guest_mode: &LONG4,
        host_mode: &LONG4,
        vcpus,
        guest_bytes: 1 << 30,
        host_bytes: 4 << 30,
        guest_swap: None,
        low_bytes: None,
        bad_frames: nestwalk_mm::BadFrames::NONE,
        daemons: nestwalk_sim::DaemonTimes::default(),
        fragmentation: (0.3.into(), 0.2.into()),
        pcids: true,
        seed: 9,
        verify: true,
        threads,
        mappings: None,
        host_pages: None,
        series: None,
        contiguity: false,
        contiguity_every: None,
        walk_map: false,
        samples: None,
        sampling: None,
    }
}

fn run(plan: &Plan, workload: &str, accesses: u64) -> Outcome {
    let (accesses, populate) = (Some(accesses), Populate::No);
    let spec = WorkloadSpec { accesses, footprint: 32 << 20, seed: 5, populate };
    let mut source = nestwalk_workloads::open(workload, &spec).unwrap();
    let outcome = compare(plan, &mut *source, &AtomicBool::new(false), &mut |_| {}).unwrap();
    assert!(outcome.error.is_none(), "{:?}", outcome.error);
    for m in &outcome.machines {
        let violations = m.referee.as_ref().map_or(0, |v| v.violations);
        assert_eq!(violations, 0, "{}", m.name);
    }
    outcome
}

/// A policy that only looks changes nothing: every counter is the static machine's.
#[test]
fn a_policy_that_never_switches_is_the_static_mode() {
    // No overhead is above 100 % or below 0.
    let policy = "switching/static-thresholds/high=100/low=0/interval=0.01";
    let list = format!(
        "shadow,nested,{policy}/start=shadow,{policy}/start=nested,\
         switching/{NEVER}/start=shadow,switching/{NEVER}/start=nested/keep=nested/tlb=carry"
    );
    for workload in ["gups", "btree", "forkstorm"] {
        let outcome = run(&plan(&list, 1, 1), workload, 60_000);
        let plain = |i: usize| {
            let mut json = serde_json::to_value(&outcome.machines[i]).unwrap();
            let all = json.as_object_mut().unwrap();
            for own in ["name", "scheme", "switching"] {
                all.remove(own);
            }
            json
        };
        let at =
            |name: &str| outcome.machines.iter().position(|m| m.name.starts_with(name)).unwrap();
        let (shadow, nested) = (at("shadow"), at("nested"));
        assert_eq!(plain(shadow), plain(nested + 1), "{workload}");
        assert_eq!(plain(nested), plain(nested + 2), "{workload}");
        assert_eq!(plain(shadow), plain(nested + 3), "{workload}");
        assert_eq!(plain(nested), plain(nested + 4), "{workload}");
        let looked = outcome.machines[nested + 1].switching.as_ref().unwrap();
        assert!(looked.samples > 5, "{workload}: {}", looked.samples);
        assert_eq!((looked.switches.len(), looked.shadow_percent), (0, 100.0));
    }
}

const POLICIES: &str = "shadow,switching/dynamic-thresholds/n=1/skip=0/interval=0.02,\
    switching/dsp/interval=0.02/keep=nested,switching/bandit/interval=0.02/tlb=carry,\
    switching/every=20000/keep=nested/tlb=carry,switching/every=7000/plan=s3n2s1n9s4";

#[test]
fn threads_change_no_byte() {
    let series = Some(10_000);
    let results = [1, 2, 4].map(|threads| {
        let plan = Plan { series, ..plan(POLICIES, 1, threads) };
        let outcome = run(&plan, "forkstorm", 60_000);
        (serde_json::to_string(&outcome.machines).unwrap(), outcome.series)
    });
    assert!(results[0].0.contains("by schedule"));
    assert!(results.iter().all(|r| *r == results[0]));
}

/// Samples cover the time without gaps, are possible, and are what the counters say.
#[test]
fn samples_and_switches_add_up() {
    let outcome = run(&plan(POLICIES, 1, 1), "forkstorm", 200_000);
    let mut switches = 0;
    for m in outcome.machines.iter().filter(|m| m.scheme == "switching") {
        let s = m.switching.as_ref().unwrap();
        switches += s.switches.len();
        assert_eq!(s.switches.len() as u64, m.mode_switches, "{}", m.name);
        assert_eq!(m.vm_exits.get("mode_switch").copied().unwrap_or(0), m.mode_switches);
        assert!((s.shadow_percent + s.nested_percent - 100.0).abs() < 1e-9);
        let (mut time, mut instructions, mut cycles, mut mode) = (0, 0, 0, s.start);
        let mut changes = s.switches.iter().peekable();
        for (sample, _) in &s.decisions {
            assert_eq!(sample.check(), Ok(()), "{}", m.name);
            assert_eq!((sample.time_ns - sample.duration_ns, sample.mode), (time, mode));
            assert!(sample.duration_ns >= 20_000, "an interval is 20 us at least");
            time = sample.time_ns;
            instructions += sample.instructions;
            cycles += sample.total_cycles();
            if let Some(change) = changes.next_if(|c| c.sample.as_ref() == Some(sample)) {
                mode = change.mode;
                assert!((change.time_ms - time as f64 / 1e6).abs() < 1e-3, "{}", m.name);
                assert_eq!(change.instructions, instructions);
            }
        }
        assert!(instructions <= m.instructions && cycles as f64 <= m.total_cycles * 1.001);
        if s.samples > 0 {
            assert!(s.samples > 20 && instructions * 10 > m.instructions * 9, "{}", m.name);
        }
    }
    assert!(switches > 20, "{switches}");
}

/// Intervals of instructions are the same on every machine, and their sum is the whole.
#[test]
fn series_are_aligned_and_complete() {
    let (every, total) = (20_000, 200_000);
    let machines = "shadow,nested,switching/every=20000/plan=s3n2s1n1";
    let plan = Plan { series: Some(every), ..plan(machines, 1, 1) };
    let outcome = run(&plan, "forkstorm", total);
    let at = |name: &str| outcome.machines.iter().position(|m| m.name.starts_with(name)).unwrap();
    let of = |name: &str| &outcome.series[at(name)];
    let (shadow, nested, planned) = (of("shadow"), of("nested"), of("switching"));
    let instructions =
        |s: &[nestwalk_sim::Counters]| s.iter().map(|c| c.instructions).collect::<Vec<_>>();
    assert_eq!(instructions(shadow), instructions(nested));
    assert_eq!(instructions(shadow), instructions(planned));
    assert!(shadow.len() as u64 >= outcome.machines[at("shadow")].instructions / every);
    assert_eq!(shadow.last().unwrap().instructions, outcome.machines[at("shadow")].instructions);
    for (i, part) in intervals(shadow)[..shadow.len() - 1].iter().enumerate() {
        // A run may reach over the end, by no more than a page's accesses.
        assert!(part.instructions.abs_diff(every) < every / 10, "{i}: {}", part.instructions);
    }
    // The plan's switches are at the ends of intervals 3, 5, 6.
    let switching = outcome.machines[at("switching")].switching.as_ref().unwrap();
    let when: Vec<u64> = switching.switches.iter().map(|s| s.instructions).collect();
    assert_eq!(when, [2, 4, 5].map(|i| shadow[i].instructions));
    assert_eq!(switching.start, PagingMode::Shadow);

    let costs = interval_costs(shadow, nested, &plan.profile, (0.0, 0.0));
    let sum: f64 = costs.iter().map(|c| c.shadow).sum();
    let whole = Cycles::of(shadow.last().unwrap(), &plan.profile).total();
    assert!((sum / whole - 1.0).abs() < 1e-9);
    let best = hindsight(&costs, None).unwrap();
    assert!(best.cost <= whole && best.modes.len() == costs.len());
}

/// Snapshots come at places of the program, not of batches.
#[test]
fn the_cut_of_the_stream_changes_nothing() {
    for seed in 0..8 {
        let life = Life {
            seed,
            events: 150,
            vcpus: 4,
            accesses_percent: 80,
            mode: &LONG4,
            pages: ["4k", "thp"][seed as usize % 2],
            pcids: true,
        };
        let whole = join(&life.live());
        for variant in ["every=40/tlb=carry", "dynamic-thresholds/n=1/skip=0/interval=0.01"] {
            let lived = |batches: &[nestwalk_types::GuestBatch]| {
                let mut m = machine(&setup(4), variant);
                batches.iter().for_each(|b| m.run(b).unwrap());
                approve(&m);
                (m.counters().clone(), m.report().switching.unwrap())
            };
            let expected = lived(std::slice::from_ref(&whole));
            let mut r = SplitMix64::new(seed);
            let runs = whole.batch.runs.len() as u64;
            let mut at: Vec<usize> = (0..60).map(|_| r.below(runs + 1) as usize).collect();
            at.sort_unstable();
            assert_eq!(lived(&cut(&whole, &at)), expected, "life {seed} {variant}");
            let every: Vec<usize> = (1..runs as usize).collect();
            assert_eq!(lived(&cut(&whole, &every)), expected, "life {seed} {variant}");
            assert!(expected.0.mode_switches > 0, "life {seed} {variant}");
        }
    }
}

/// All memory of a long-lived VM is behind it and mapped: nested tables are never missing anything, and
/// going back to them is free of violations. What the guest meets is the same.
#[test]
fn a_long_lived_vm_has_no_violations() {
    let list = "nested,nested/lived=long,switching/every=20000/keep=nested,\
                switching/every=20000/keep=nested/lived=long,switching/every=20000/lived=long";
    let outcome = run(&plan(list, 1, 1), "forkstorm", 200_000);
    let violations = |name: &str| {
        let m = outcome.machines.iter().find(|m| m.name.starts_with(name)).unwrap();
        (m.vm_exits.get("ept_violation").copied().unwrap_or(0), m.host_faults, m.guest_faults)
    };
    let (short, host_faults, guest_faults) = violations("nested:");
    assert!(short > 100 && host_faults >= short, "{short} {host_faults}");
    assert_eq!(violations("nested/lived=long:"), (0, 0, guest_faults));
    assert!(violations("switching/every=20000/keep=nested:").0 > 100);
    assert_eq!(violations("switching/every=20000/keep=nested/lived=long:"), (0, 0, guest_faults));
    // Dropped tables are built again, though the host has the pages.
    let (dropped, host_faults, _) = violations("switching/every=20000/lived=long:");
    assert!(dropped > 100, "{dropped}");
    assert_eq!(host_faults, 0);
}
