//! A guest and its recording are the same guest to every machine: what a modelled guest says, taken for
//! a recorded guest's stream, gives the same results to the last counter.

use crate::common;

use common::lives::{Life, with_direct_map};
use nestwalk_hw::Profile;
use nestwalk_mm::{GuestConfig, ModelledGuest, PagePolicy};
use nestwalk_sim::{CompareError, GuestOutcome, MachineResult, MachineSpec, Plan, compare};
use nestwalk_source::{FirstTouch, Multiplex};
use nestwalk_tables::{LEGACY32, LONG4, LONG5, Mode, PAE};
use nestwalk_types::{
    Batch, Control, Filter, Gpa, GuestBatch, GuestInfo, PageSize, Source, SourceError, SourceInfo,
    SplitMix64, VcpuId,
};
use nestwalk_workloads::{Populate, WorkloadSpec};
use std::sync::atomic::AtomicBool;

const MEMORY: u64 = 3 << 30;

/// Batches, as a source of processes or as a recorded guest.
struct Replay {
    batches: std::vec::IntoIter<Batch>,
    guest: Option<GuestInfo>,
}

impl Source for Replay {
    fn info(&self) -> SourceInfo {
        SourceInfo { name: "replay".into(), guest: self.guest.clone(), ..SourceInfo::default() }
    }
    fn next_batch(&mut self, batch: &mut Batch) -> Result<bool, SourceError> {
        *batch = self.batches.next().unwrap_or_default();
        Ok(!batch.is_empty() || self.batches.len() > 0)
    }
}

fn info(mode: &Mode, vcpus: u8) -> GuestInfo {
    GuestInfo { memory_bytes: MEMORY, paging: mode.name.into(), vcpus, filter: Filter::RUNS }
}

fn plan(machines: &str, mode: &'static Mode, vcpus: u8, threads: usize) -> Plan {
    Plan {
        machines: MachineSpec::parse_list(machines, PagePolicy::Base).unwrap(),
        profile: Profile::load("cascade-lake-6252").unwrap(),
        guest_mode: mode,
        host_mode: &LONG4,
        vcpus: usize::from(vcpus),
        guest_bytes: MEMORY,
        host_bytes: 8 << 30,
        guest_swap: None,
        low_bytes: None,
        bad_frames: nestwalk_mm::BadFrames::NONE,
        daemons: nestwalk_sim::DaemonTimes::default(),
        fragmentation: Default::default(),
        pcids: true,
        seed: 1,
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

fn run(plan: &Plan, source: &mut dyn Source) -> (Vec<MachineResult>, Vec<(String, GuestOutcome)>) {
    let outcome = compare(plan, source, &AtomicBool::new(false), &mut |_| {}).unwrap();
    assert!(outcome.error.is_none(), "{}", outcome.error.unwrap());
    for m in &outcome.machines {
        assert_eq!(m.referee.as_ref().map_or(0, |r| r.violations), 0, "{}", m.name);
    }
    (outcome.machines, outcome.guests)
}

/// The batches of a source, and what a modelled guest makes of them.
fn record(source: &mut dyn Source, mode: &'static Mode, pages: &str) -> (Vec<Batch>, Vec<Batch>) {
    let policy = PagePolicy::by_name(pages).unwrap();
    let mut guest =
        ModelledGuest::new(GuestConfig { policy, seed: 1, ..GuestConfig::new(mode, MEMORY) })
            .unwrap();
    let (mut plain, mut recorded) = (Vec::new(), Vec::new());
    let (mut batch, mut out) = (Batch::default(), GuestBatch::default());
    while source.next_batch(&mut batch).unwrap() {
        guest.process(&batch, &mut out).unwrap();
        recorded.push(out.batch.clone());
        plain.push(batch.clone());
    }
    (plain, recorded)
}

fn same_results(source: &mut dyn Source, mode: &'static Mode, pages: &str, vcpus: u8) {
    let (plain, recorded) = record(source, mode, pages);
    let machines = |guest: &str| {
        ["native", "nested", "nested", "shadow", "shadow"]
            .iter()
            .zip(["", "+4k", "+2m", "+4k", "+2m"])
            .map(|(scheme, host)| format!("{scheme}:{guest}{host}"))
            .collect::<Vec<_>>()
            .join(",")
    };
    let replay =
        |batches: &Vec<Batch>, guest| Replay { batches: batches.clone().into_iter(), guest };
    let direct = plan(&machines(pages), mode, vcpus, 1);
    let (direct, of_direct) = run(&direct, &mut replay(&plain, None));
    for threads in [1, 3] {
        let observed = plan(&machines("observed"), mode, vcpus, threads);
        let guest = Some(info(mode, vcpus));
        let (observed, of_observed) = run(&observed, &mut replay(&recorded, guest));
        assert_eq!(direct.len(), observed.len());
        for (d, o) in direct.iter().zip(&observed) {
            let named = MachineResult { name: d.name.clone(), ..o.clone() };
            assert_eq!(*d, named, "{} and {}", d.name, o.name);
            assert!(d.accesses > 1000, "{}", d.name);
        }
        let [(_, GuestOutcome::Modelled(modelled))] = &of_direct[..] else { panic!() };
        let [(name, GuestOutcome::Observed { stats, examples })] = &of_observed[..] else {
            panic!()
        };
        assert_eq!((name.as_str(), examples.len()), ("observed", 0));
        assert_eq!(stats.faults, modelled.faults);
        assert!(stats.faults > 3);
        let loads = |b: &Batch| {
            b.controls.iter().filter(|c| matches!(c.1, Control::LoadCr3 { .. })).count() as u64
        };
        assert_eq!(stats.cr3_loads, recorded.iter().map(loads).sum::<u64>());
    }
}

#[test]
fn workloads_and_their_recordings_are_the_same_to_every_machine() {
    let open = |name: &str, accesses| {
        let spec = WorkloadSpec {
            footprint: 8 << 20,
            accesses: Some(accesses),
            seed: 3,
            populate: Populate::Yes,
        };
        FirstTouch::new(nestwalk_workloads::open(name, &spec).unwrap())
    };
    same_results(&mut open("forkstorm", 60_000), &LONG4, "4k", 1);
    same_results(&mut open("compiler", 60_000), &LONG5, "thp", 1);
    same_results(&mut open("svm", 30_000), &LONG4, "2m", 1);
    let parts: Vec<Box<dyn Source>> =
        vec![Box::new(open("btree", 30_000)), Box::new(open("forkstorm", 30_000))];
    same_results(&mut Multiplex::new(parts, 2, 3_000), &LONG4, "thp", 2);
}

#[test]
fn random_lives_and_their_recordings_are_the_same_to_every_machine() {
    for seed in 1..=12u64 {
        let mode: &'static Mode = [&LONG4, &LONG5, &PAE, &LEGACY32][seed as usize % 4];
        let narrow = mode.entry_bytes == 4;
        let life = Life {
            seed,
            events: 120,
            vcpus: 2,
            accesses_percent: 60,
            mode,
            pages: ["4k", "thp", if narrow { "4m" } else { "2m" }][seed as usize / 2 % 3],
            pcids: seed % 2 == 0,
        };
        let batches = life.live();
        let mut recorded: Vec<Batch> = batches.iter().map(|b| b.batch.clone()).collect();
        recorded.retain(|b| !b.is_empty());
        for (scheme, host) in [("native", ""), ("nested", "4k"), ("shadow", "4k"), ("shadow", "2m")]
        {
            let suffix = if host.is_empty() { String::new() } else { format!("+{host}") };
            let plan = plan(&format!("{scheme}:observed{suffix}"), mode, 2, 1);
            let guest = Some(info(mode, 2));
            let mut source = Replay { batches: recorded.clone().into_iter(), guest };
            let (observed, _) = run(&plan, &mut source);
            let spec = plan.machines.iter().find(|m| m.scheme.name == scheme).unwrap();
            let mut machine = compare::machine(&plan, spec).unwrap();
            batches.iter().for_each(|b| machine.run(b).unwrap());
            let counters = machine.counters();
            let found = observed.iter().find(|m| m.scheme == scheme).unwrap();
            assert_eq!(found.accesses, counters.accesses);
            assert_eq!(found.vm_exits_total, counters.exits_total(), "{seed} {scheme}{suffix}");
            assert_eq!(found.l1_tlb_misses, counters.l1_tlb_misses);
            assert_eq!(found.walks, counters.walks);
            assert_eq!(found.walk_cycles, counters.walk_cycles);
        }
    }
}

/// Controls that only a recorded guest says, at places where they change nothing, change nothing; those
/// that the machines act on are acted on by all.
#[test]
fn what_only_recordings_say_is_understood_by_every_scheme() {
    let life = Life {
        seed: 5,
        events: 120,
        vcpus: 1,
        accesses_percent: 60,
        mode: &LONG4,
        pages: "4k",
        pcids: false,
    };
    let mut r = SplitMix64::new(5);
    let batches = with_direct_map(&life.live(), &LONG4, PageSize::SIZE_2M, &mut r);
    let batches: Vec<Batch> = batches.into_iter().map(|b| b.batch).collect();
    let backed = Control::Prefault { start: Gpa::new(0), bytes: 1 << 30 };
    let process = |id| Control::Process {
        vcpu: VcpuId(0),
        root: Gpa::new(0),
        id: nestwalk_types::ProcessId(id),
        name: "sh".into(),
    };
    let mut more = batches.clone();
    more[0].controls.insert(0, (0, backed));
    for (i, batch) in more.iter_mut().enumerate() {
        let end = batch.runs.len() as u32;
        batch.controls.push((end, process(i as u32 % 3)));
        // A page that was never a table.
        let gpa = Gpa::new((2 << 30) + (i as u64) * 4096);
        batch.controls.push((end, Control::TableRetired { vcpu: VcpuId(0), gpa }));
    }
    let plan = plan("native:observed,nested:observed+2m,shadow:observed+2m", &LONG4, 1, 1);
    let go = |batches: Vec<Batch>| {
        let guest = Some(info(&LONG4, 1));
        run(&plan, &mut Replay { batches: batches.into_iter(), guest })
    };
    let ((without, _), (with, guests)) = (go(batches), go(more));
    for (a, b) in without.iter().zip(&with) {
        assert_eq!(a.accesses, b.accesses);
        assert_eq!(a.l1_tlb_misses, b.l1_tlb_misses, "{}", a.name);
        // Memory that is there already costs no violation, and what its address space had used is in
        // the shadow tables.
        let virtual_machine = a.scheme == "nested" || a.scheme == "shadow";
        assert_eq!(virtual_machine, a.host_faults > b.host_faults, "{}", a.name);
        assert_eq!(virtual_machine, a.vm_exits_total > b.vm_exits_total, "{}", a.name);
    }
    let [(_, GuestOutcome::Observed { stats, .. })] = &guests[..] else { panic!() };
    assert_eq!(stats.processes, 3);
}

#[test]
fn a_plan_for_another_guest_is_refused() {
    let refused = |plan: Plan, guest: Option<GuestInfo>| {
        let mut source = Replay { batches: Vec::new().into_iter(), guest };
        compare(&plan, &mut source, &AtomicBool::new(false), &mut |_| {}).err().unwrap()
    };
    let observed = || plan("nested:observed+4k", &LONG4, 1, 1);
    assert!(matches!(refused(observed(), None), CompareError::NothingObserved { .. }));
    let other = refused(observed(), Some(info(&LONG4, 2))).to_string();
    assert!(other.contains("2 vCPUs") && other.contains("4-level"), "{other}");
    assert!(matches!(refused(observed(), Some(info(&LONG5, 1))), CompareError::OtherGuest { .. }));
    // Processes in a stream that says it is a guest's.
    let batch = Batch {
        runs: vec![],
        controls: vec![(0, Control::Exec { process: nestwalk_types::ProcessId(1) })],
    };
    let guest = Some(info(&LONG4, 1));
    let mut source = Replay { batches: vec![batch].into_iter(), guest };
    let plan = plan("native:observed,native:4k", &LONG4, 1, 1);
    let outcome = compare(&plan, &mut source, &AtomicBool::new(false), &mut |_| {}).unwrap();
    let error = outcome.error.unwrap().to_string();
    assert!(error.contains("an exec") && error.contains("control 0"), "{error}");
}
