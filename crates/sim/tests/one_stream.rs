//! The same stream in other pieces is the same stream: splitting page runs, splitting batches, reading
//! ahead and working on several threads change no counter.

use crate::common;

use common::lives::{Life, cut, join};
use common::machines::Setup;
use nestwalk_hw::Profile;
use nestwalk_mm::PagePolicy;
use nestwalk_sim::scheme::MachineConfig;
use nestwalk_sim::{Counters, DynMachine, MachineSpec, Plan, SCHEMES, compare};
use nestwalk_source::Multiplex;
use nestwalk_tables::{LEGACY32, LONG4, LONG5, Mode, PAE};
use nestwalk_types::{
    Batch, Control, Gpa, GuestBatch, Gva, Invalidation, PageSize, Run, Source, SplitMix64, VcpuId,
};
use nestwalk_workloads::{Populate, WorkloadSpec};
use proptest::prelude::*;
use std::sync::atomic::AtomicBool;

fn machines(setup: &Setup) -> Vec<Box<dyn DynMachine>> {
    let build = |s: &nestwalk_sim::Definition| {
        let build: MachineConfig = setup.build(s.name, s.virtualized);
        (s.build)(build).unwrap()
    };
    SCHEMES.iter().map(build).collect()
}

/// Counters of every scheme after these batches.
fn counters(setup: &Setup, batches: &[GuestBatch]) -> Vec<(String, Counters)> {
    let mut all = Vec::new();
    for mut m in machines(setup) {
        batches.iter().for_each(|b| m.run(b).unwrap());
        let verdict = m.verdict();
        let none = verdict.as_ref().is_none_or(|v| v.violations == 0);
        assert!(none, "{}: {verdict:?}", m.name());
        all.push((m.name().to_owned(), m.counters().clone()));
    }
    all
}

/// Splits runs of several lines in two where the dice say so: the second part begins with the next
/// line in order and has the rest of the accesses and instructions.
fn split_runs(all: &GuestBatch, r: &mut SplitMix64) -> GuestBatch {
    let mut out = GuestBatch::default();
    let mut controls = all.batch.controls.iter().peekable();
    for (i, (run, gpa)) in all.batch.runs.iter().zip(&all.gpas).enumerate() {
        while let Some((_, c)) = controls.next_if(|(at, _)| *at as usize <= i) {
            out.batch.controls.push((out.batch.runs.len() as u32, c.clone()));
        }
        let (mut run, mut gpa) = (*run, *gpa);
        while run.lines.count_ones() > 1 && run.count > 1 && r.below(2) == 0 {
            let first = 1u64 << (run.gva.value() >> 6 & 63);
            let mut rest = run.lines & !first;
            let mut head = Run { lines: first, ..run };
            // The lines after the first are touched in ascending order.
            for _ in 0..r.below(u64::from(rest.count_ones())) {
                head.lines |= rest & rest.wrapping_neg();
                rest &= rest - 1;
            }
            head.count = 1 + r.below(u64::from(run.count - 1)) as u16;
            head.instructions = r.below(u64::from(run.instructions) + 1) as u16;
            out.batch.runs.push(head);
            out.gpas.push(gpa);
            let offset = u64::from(rest.trailing_zeros()) << 6;
            run.gva = Gva::new(run.gva.value() & !0xfff | offset);
            gpa = Gpa::new(gpa.value() & !0xfff | offset);
            run.lines = rest;
            run.count -= head.count;
            run.instructions -= head.instructions;
        }
        out.batch.runs.push(run);
        out.gpas.push(gpa);
    }
    let end = out.batch.runs.len() as u32;
    out.batch.controls.extend(controls.map(|(_, c)| (end, c.clone())));
    out
}

/// Gives runs more lines, in pages that the guest has mapped anyway.
fn with_lines(mut all: GuestBatch, r: &mut SplitMix64) -> GuestBatch {
    for run in &mut all.batch.runs {
        run.lines |= r.next() & r.next() & r.next();
        run.count = 1 + r.below(40) as u16;
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn splitting_runs_and_batches_changes_nothing(
        seed in any::<u64>(),
        guest in prop_oneof![Just("4k"), Just("thp"), Just("2m")],
        host_pages in prop_oneof![Just("4k"), Just("thp")],
        mode in prop_oneof![Just(&LONG4), Just(&LONG5), Just(&PAE), Just(&LEGACY32)],
        profile in prop_oneof![Just("zen2"), Just("sandy-bridge-e5-2430")],
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..60),
    ) {
        let guest = if mode.entry_bytes == 4 && guest == "2m" { "4m" } else { guest };
        let life = Life {
            seed, events: 120, vcpus: 3, accesses_percent: 75, mode, pages: guest, pcids: seed % 2 == 0,
        };
        let mut r = SplitMix64::new(seed);
        let whole = with_lines(join(&life.live()), &mut r);
        let setup = Setup {
            host_pages, vcpus: 3, guest_mode: mode, ..Setup::new(Profile::load(profile).unwrap())
        };
        let expected = counters(&setup, std::slice::from_ref(&whole));
        let pieces = split_runs(&whole, &mut r);
        prop_assert_eq!(pieces.batch.accesses(), whole.batch.accesses());
        prop_assert_eq!(pieces.batch.instructions(), whole.batch.instructions());
        prop_assert_eq!(&counters(&setup, &[pieces]), &expected);
        let mut at: Vec<usize> = cuts.iter().map(|i| i.index(whole.batch.runs.len() + 1)).collect();
        at.sort_unstable();
        prop_assert_eq!(&counters(&setup, &cut(&whole, &at)), &expected);
    }
}

/// Reading ahead begins where walks are frequent, which batches of one run each never show. Uniform
/// accesses to much memory, with tables that change under way.
#[test]
fn reading_ahead_changes_nothing() {
    for (mode, host_mode) in
        [(&LONG4, &LONG4), (&LONG5, &LONG5), (&PAE, &LONG4), (&LEGACY32, &LEGACY32)]
    {
        let mode: &'static Mode = mode;
        let mut s = common::Script::new(mode);
        let mut r = SplitMix64::new(11);
        let (pages, base) = (8000u64, 0x800_0000u64);
        for i in 0..pages {
            s.map_used(base + (i << 12), 0x1000_0000 + ((i * 37 % pages) << 12), PageSize::SIZE_4K);
        }
        for i in 0..20_000u64 {
            s.access(base + (r.below(pages) << 12) + (i % 64 * 64), i % 3 == 0);
            if i % 97 == 0 {
                // A page moves, and its whole table is dropped now and then: hints grow stale.
                let gva = base + (r.below(pages) << 12);
                s.map_used(gva, 0x1000_0000 + (r.below(pages) << 12), PageSize::SIZE_4K);
                s.invlpg(gva);
            }
            if i % 2003 == 0 {
                s.invalidate(Invalidation::All);
            }
        }
        let whole = s.take();
        let host_bytes = if host_mode.levels == 2 { 4 << 30 } else { 8 << 30 };
        let guest_bytes = 2 << 30;
        let setup = Setup {
            guest_mode: mode,
            host_mode,
            host_bytes,
            guest_bytes,
            ..Setup::new(Profile::load("cascade-lake-6252").unwrap())
        };
        let single = cut(&whole, &(1..whole.batch.runs.len()).collect::<Vec<_>>());
        assert!(single.iter().all(|b| b.batch.runs.len() == 1));
        for scheme in SCHEMES {
            let run = |batches: &[GuestBatch]| {
                let mut m = (scheme.build)(setup.build(scheme.name, scheme.virtualized)).unwrap();
                batches.iter().for_each(|b| m.run(b).unwrap());
                m.counters().clone()
            };
            let (ahead, not) = (run(std::slice::from_ref(&whole)), run(&single));
            assert_eq!(ahead, not, "{} {}", scheme.name, mode.name);
            assert!(scheme.name == "ideal" || ahead.l2_tlb_misses * 4 > ahead.accesses);
        }
    }
}

/// A source of some batches, with a marker for the beginning.
fn source(name: &str) -> Box<dyn Source> {
    let spec = |accesses| WorkloadSpec {
        footprint: 4 << 20,
        accesses: Some(accesses),
        seed: 5,
        populate: Populate::Yes,
    };
    if name == "both" {
        let parts =
            ["btree", "forkstorm"].map(|n| nestwalk_workloads::open(n, &spec(20_000)).unwrap());
        return Box::new(Multiplex::new(parts.into(), 2, 5_000));
    }
    nestwalk_workloads::open(name, &spec(30_000)).unwrap()
}

fn plan(machines: &str, vcpus: usize, threads: usize) -> Plan {
    let base = PagePolicy::by_name("4k").unwrap();
    Plan {
        machines: MachineSpec::parse_list(machines, base).unwrap(),
        profile: Profile::load("cascade-lake-6252").unwrap(),
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

/// The same bytes whatever the number of threads.
#[test]
fn threads_change_no_byte_of_the_results() {
    for (name, machines, vcpus) in [
        ("gups", "native,nested,shadow,nested:4k+2m,nested:thp+thp,shadow:2m+4k", 1),
        ("both", "native,nested,shadow,nested:thp+4k", 2),
    ] {
        let run = |threads| {
            let plan = plan(machines, vcpus, threads);
            let stop = AtomicBool::new(false);
            let mut marks = Vec::new();
            let mut note = |p: nestwalk_sim::Progress| marks.push(p.accesses);
            let outcome = compare(&plan, source(name).as_mut(), &stop, &mut note).unwrap();
            assert!(outcome.error.is_none(), "{}", outcome.error.unwrap());
            assert!(outcome.machines.iter().all(|m| m.accesses > 0));
            let referees = outcome.machines.iter().filter_map(|m| m.referee.as_ref());
            assert!(referees.clone().all(|v| v.violations == 0 && v.checked > 0));
            assert!(referees.count() >= plan.machines.len() - 3, "all but the ideal ones");
            (serde_json::to_string(&outcome.machines).unwrap(), outcome.guests, marks)
        };
        let one = run(1);
        assert!(one.0.len() > 1000 && one.2.len() > 1);
        for threads in [1, 2, 3, 8] {
            let (json, guests, marks) = run(threads);
            assert_eq!(json, one.0, "{name} with {threads} threads");
            assert_eq!(guests, one.1, "{name} with {threads} threads");
            assert_eq!(marks, one.2, "{name} with {threads} threads");
        }
    }
}

/// The same where misses are frequent and nobody watches, so that references wait for others, and
/// threads beyond the machines work on them.
#[test]
fn threads_of_data_caches_change_no_byte() {
    for (machines, vcpus) in [("nested", 1), ("native,nested,shadow,spot,agile", 2)] {
        let run = |threads| {
            let plan = Plan { verify: false, ..plan(machines, vcpus, threads) };
            let stop = AtomicBool::new(false);
            let spec = WorkloadSpec {
                footprint: 64 << 20,
                accesses: Some(60_000),
                seed: 5,
                populate: Populate::Yes,
            };
            let mut gups = nestwalk_workloads::open("gups", &spec).unwrap();
            let outcome = compare(&plan, gups.as_mut(), &stop, &mut |_| {}).unwrap();
            assert!(outcome.error.is_none(), "{}", outcome.error.unwrap());
            serde_json::to_string(&outcome.machines).unwrap()
        };
        let one = run(1);
        for threads in [2, 4, 20] {
            assert_eq!(run(threads), one, "{machines} with {threads} threads");
        }
    }
}

/// All machines in one pass find what each finds alone.
#[test]
fn machines_do_not_disturb_each_other() {
    let run = |machines: &str| {
        let plan = plan(machines, 1, 1);
        let stop = AtomicBool::new(false);
        let outcome = compare(&plan, source("forkstorm").as_mut(), &stop, &mut |_| {}).unwrap();
        assert!(outcome.error.is_none());
        outcome.machines
    };
    let together = run("native,nested,shadow,nested:4k+2m");
    for name in ["native", "nested", "shadow", "nested:4k+2m"] {
        let alone = run(name);
        let found = alone.iter().filter(|m| together.iter().any(|t| t == *m)).count();
        assert_eq!(found, alone.len(), "{name}");
    }
}

/// An error of one machine ends the pass, with what was found before, whatever the number of threads.
#[test]
fn a_failing_machine_is_reported_by_name() {
    struct Wrong(u32);
    impl Source for Wrong {
        fn info(&self) -> nestwalk_types::SourceInfo {
            nestwalk_types::SourceInfo::default()
        }
        fn next_batch(&mut self, batch: &mut Batch) -> Result<bool, nestwalk_types::SourceError> {
            self.0 += 1;
            batch.runs.clear();
            batch.controls.clear();
            let vcpu = if self.0 < 4 { 0 } else { 5 };
            batch.controls.push((0, Control::RegionOfInterest));
            batch.runs.push(Run { vcpu: VcpuId(vcpu), ..common::run(0x1000, true) });
            Ok(self.0 < 40)
        }
    }
    for threads in [1, 2, 8] {
        let plan = plan("native,nested", 1, threads);
        let stop = AtomicBool::new(false);
        let outcome = compare(&plan, &mut Wrong(0), &stop, &mut |_| {}).unwrap();
        let error = outcome.error.expect("vCPU 5 does not exist").to_string();
        assert!(error.contains("vCPU 5") && error.contains("--vcpus 6"), "{threads}: {error}");
        assert_eq!(outcome.machines.len(), plan.machines.len());
    }
}
