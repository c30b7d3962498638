//! Policies on machines: each changes the mode where phases alternate, and what is recorded of a
//! machine is what its policy saw.

use nestwalk_hw::Profile;
use nestwalk_mm::PagePolicy;
use nestwalk_policy::{Action, Mode, Outcome as Told, POLICIES, PolicySpec};
use nestwalk_sim::measure::series::intervals;
use nestwalk_sim::schemes::sampled;
use nestwalk_sim::{Cut, MachineSpec, Outcome, Plan, SCHEMES, compare};
use nestwalk_source::Multiplex;
use nestwalk_types::Source;
use nestwalk_workloads::{Populate, WorkloadSpec};
use std::sync::atomic::AtomicBool;

/// Length of an interval, simulated milliseconds.
const INTERVAL: f64 = 0.05;

fn plan(machines: &str, vcpus: usize) -> Plan {
    let pages = PagePolicy::by_name("4k").unwrap();
    let machines = MachineSpec::parse_list(machines, pages).unwrap();
    let profile = Profile::load("cascade-lake-6252").unwrap();
    Plan { vcpus, verify: true, ..Plan::new(machines, profile, (1 << 30, 4 << 30)) }
}

/// Look-ups in 14 MiB and storms of 256 KiB in turn, a process for each vCPU, approved by the referee.
fn run(plan: &Plan) -> Outcome {
    let process = |seed| {
        let accesses = Some(180_000 / plan.vcpus as u64);
        let spec = WorkloadSpec { accesses, footprint: 16 << 20, seed, populate: Populate::No };
        nestwalk_workloads::open("seasons:length=30000,storm_kib=256", &spec).unwrap()
    };
    let mut source: Box<dyn Source> = match plan.vcpus {
        1 => process(1),
        n => {
            let processes = (1..=n as u64).map(process).collect();
            Box::new(Multiplex::new(processes, n as u8, 20_000))
        }
    };
    let outcome = compare(plan, &mut *source, &AtomicBool::new(false), &mut |_| {}).unwrap();
    assert!(outcome.error.is_none(), "{:?}", outcome.error);
    for m in &outcome.machines {
        match &m.referee {
            Some(found) => {
                assert!(found.violations == 0 && found.checked > 0, "{}: {:?}", m.name, found.told);
            }
            None => assert!(m.scheme == "ideal" || !plan.verify),
        }
    }
    outcome
}

/// The policies that a machine can run: `hindsight` is a plan made afterwards.
fn policies() -> impl Iterator<Item = &'static str> {
    POLICIES.iter().map(|p| p.name).filter(|name| *name != "hindsight")
}

fn machines() -> String {
    let all: Vec<String> =
        policies().map(|name| format!("switching/{name}/interval={INTERVAL}")).collect();
    all.join(",")
}

fn every_policy_switches(vcpus: usize) {
    let outcome = run(&plan(&machines(), vcpus));
    let mut seen = 0;
    for m in outcome.machines.iter().filter(|m| m.scheme == "switching") {
        let s = m.switching.as_ref().unwrap();
        assert!(s.samples >= 20, "{}: {}", m.name, s.samples);
        assert!(!s.switches.is_empty() && s.nested_percent > 0.0, "{} never switches", m.name);
        seen += 1;
    }
    assert_eq!(seen, policies().count());
}

#[test]
fn every_policy_switches_where_phases_alternate() {
    every_policy_switches(1);
}

#[test]
fn every_policy_switches_four_vcpus() {
    every_policy_switches(4);
}

/// What is recorded of a machine with its policy's own interval is what the policy saw, to the last
/// digit; and the policy, made anew, decides the same on it, as `govern --replay` lets it.
#[test]
fn recorded_samples_are_those_of_the_policy_and_replay_alike() {
    for vcpus in [1, 4] {
        let mut plan = plan(&machines(), vcpus);
        plan.samples = Some(Cut::Milliseconds(INTERVAL));
        plan.threads = vcpus;
        plan.machines.retain(|m| m.scheme.name == "switching");
        let outcome = run(&plan);
        for (m, recorded) in outcome.machines.iter().zip(&outcome.samples) {
            let (journal, recorded) = (m.switching.as_ref().unwrap(), recorded.as_ref().unwrap());
            assert!(recorded.samples.len() >= 20 && recorded.mixed == 0, "{}", m.name);
            let seen: Vec<_> = journal.decisions.iter().map(|d| d.0).collect();
            assert_eq!(recorded.samples, seen, "{}", m.name);

            let name = m.name.split('/').nth(1).unwrap();
            let spec: PolicySpec = name.parse().unwrap();
            let mut policy = spec.build(Mode::Shadow, &|_| unreachable!("names no file")).unwrap();
            for (sample, decision) in &journal.decisions {
                assert_eq!(policy.sample(sample), *decision, "{}", m.name);
                if let Action::Switch(_) = decision.action {
                    policy.switched(Told::Done);
                }
            }
        }
    }
}

/// Samples cut by instructions are the series in another form, aligned on all machines; those of two
/// modes are left out.
#[test]
fn samples_cut_by_instructions_are_aligned_and_of_one_mode() {
    let every = 30_000;
    let mut plan = plan("shadow,nested,switching/every=50000", 1);
    (plan.samples, plan.series) = (Some(Cut::Instructions(every)), Some(every));
    let outcome = run(&plan);
    let of = |name: &str| {
        let at = outcome.machines.iter().position(|m| m.scheme == name).unwrap();
        (outcome.samples[at].as_ref().unwrap(), intervals(&outcome.series[at]))
    };
    let (shadow, nested) = (of("shadow"), of("nested"));
    for ((recorded, counted), mode) in [(&shadow, Mode::Shadow), (&nested, Mode::Nested)] {
        assert_eq!(recorded.mixed, 0);
        // The series has the rest after the last whole interval, too.
        assert!(recorded.samples.len() + 1 >= counted.len() && counted.len() > 20);
        for (s, c) in recorded.samples.iter().zip(counted) {
            assert_eq!((s.check(), s.mode), (Ok(()), mode));
            let counts = (s.instructions, s.guest_page_faults, s.tlb_misses, s.vm_exits);
            let faults = Some(c.guest_faults);
            let exits = Some(c.exits_total());
            assert_eq!(counts, (c.instructions, faults, Some(c.l2_tlb_misses), exits));
        }
    }
    for (s, n) in shadow.0.samples.iter().zip(&nested.0.samples) {
        assert_eq!(s.instructions, n.instructions);
    }
    // The mode changes with every 50,000th instruction: in the middle of two intervals, and at the
    // end of one, of each five.
    let (recorded, counted) = of("switching");
    assert!(recorded.mixed > 5, "{}", recorded.mixed);
    let whole = recorded.samples.len() + recorded.mixed as usize;
    assert!(whole == counted.len() || whole + 1 == counted.len());
    let mixed = recorded.mixed as f64 / whole as f64;
    assert!((mixed - 2.0 / 5.0).abs() < 0.1, "{mixed}");
    assert!(recorded.samples.iter().any(|s| s.mode == Mode::Shadow));
    assert!(recorded.samples.iter().any(|s| s.mode == Mode::Nested));
}

/// The list that refusals quote is the truth.
#[test]
fn machines_with_samples_are_those_of_the_list() {
    let all: Vec<&str> = SCHEMES.iter().map(|s| s.name).collect();
    let plan = Plan { samples: Some(Cut::Instructions(10_000)), ..plan(&all.join(","), 1) };
    let outcome = run(&plan);
    for (m, recorded) in outcome.machines.iter().zip(&outcome.samples) {
        assert_eq!(recorded.is_some(), sampled().contains(&m.scheme.as_str()), "{}", m.name);
    }
}

/// A policy that only looks and advises costs the VM nothing: every counter is the static machine's.
#[test]
fn policies_that_only_advise_change_nothing() {
    let mut list = "shadow,nested".to_owned();
    for name in policies() {
        for start in ["shadow", "nested"] {
            list += &format!(",switching/{name}/interval={INTERVAL}/obey=no/start={start}");
        }
    }
    let outcome = run(&Plan { verify: false, ..plan(&list, 1) });
    let plain = |m: &nestwalk_sim::MachineResult| {
        let mut json = serde_json::to_value(m).unwrap();
        let all = json.as_object_mut().unwrap();
        for own in ["name", "scheme", "switching"] {
            all.remove(own);
        }
        json
    };
    let of = |name: &str| plain(outcome.machines.iter().find(|m| m.scheme == name).unwrap());
    let (shadow, nested) = (of("shadow"), of("nested"));
    assert_ne!(shadow, nested);
    let mut advised = 0;
    for m in outcome.machines.iter().filter(|m| m.scheme == "switching") {
        let s = m.switching.as_ref().unwrap();
        let wanted = s.decisions.iter().filter(|d| d.1.action != Action::Stay).count();
        advised += usize::from(wanted > 0);
        assert!(s.samples >= 20 && s.switches.is_empty(), "{}", m.name);
        assert!(plain(m) == if s.start == Mode::Shadow { shadow.clone() } else { nested.clone() });
    }
    assert!(advised > 8, "{advised} would have switched");
}
