//! VMs of fleets, and what runs in them.

use super::GIB;
use nestwalk_fleet::{self as fleet, FleetOutcome, FleetPlan, Vm};
use nestwalk_hw::Profile;
use nestwalk_mm::PagePolicy;
use nestwalk_sim::{MachineSpec, Plan};
use nestwalk_source::{Multiplex, PatternSpec};
use nestwalk_types::Source;
use nestwalk_workloads::{Populate, WorkloadSpec};
use std::sync::atomic::AtomicBool;

pub const MIB: u64 = 1 << 20;

/// A machine of that name with a guest of 1 GiB on a host of 3 GiB, watched by the referee.
pub fn plan(machine: &str, vcpus: usize) -> Plan {
    let base = PagePolicy::by_name("4k").unwrap();
    let machines = MachineSpec::parse_list(machine, base).unwrap();
    let profile = Profile::load("cascade-lake-6252").unwrap();
    Plan { vcpus, verify: true, ..Plan::new(machines, profile, (GIB, 3 * GIB)) }
}

pub fn pattern(text: &str, footprint: u64, accesses: u64) -> Box<dyn Source> {
    let base = PatternSpec { footprint, accesses, ..PatternSpec::default() };
    Box::new(PatternSpec::parse(text, &base).unwrap().source())
}

/// A workload of 6 MiB; on several vCPUs with a storm of processes beside it.
pub fn workload(name: &str, vcpus: u8, seed: u64, accesses: u64) -> Box<dyn Source> {
    let (footprint, accesses, populate) = (6 * MIB, Some(accesses), Populate::Yes);
    let spec = WorkloadSpec { footprint, accesses, seed, populate };
    let open = |name: &str| nestwalk_workloads::open(name, &spec).unwrap();
    if vcpus == 1 {
        return open(name);
    }
    Box::new(Multiplex::new(vec![open(name), open("forkstorm")], vcpus, 5_000))
}

/// A VM of one vCPU whose guest is told of nothing and tells nothing.
pub fn vm(name: &str, machine: &str, source: Box<dyn Source>) -> Vm {
    let plan = plan(machine, 1);
    Vm {
        name: name.into(),
        plan,
        source,
        pinned: None,
        async_faults: false,
        reporting: false,
        balloon: false,
    }
}

pub fn run(fleet: &FleetPlan, vms: Vec<Vm>) -> FleetOutcome {
    fleet::run(fleet, vms, &AtomicBool::new(false), &mut |_| {}).unwrap()
}

/// Runs a fleet that must come to its end with nothing for a referee to say.
pub fn run_well(fleet: &FleetPlan, vms: Vec<Vm>) -> FleetOutcome {
    let outcome = run(fleet, vms);
    assert!(outcome.error.is_none(), "{}", outcome.error.unwrap());
    assert_eq!(outcome.host.frames_given_twice, 0);
    for vm in &outcome.vms {
        for machine in [&vm.alone, &vm.together] {
            let verdict = machine.referee.as_ref().unwrap();
            assert_eq!((verdict.violations, verdict.checked > 0), (0, true), "{:?}", verdict.told);
        }
        let moved = vm.migration.as_ref().map_or(0, |m| m.lost_pages);
        assert_eq!((moved, vm.swap.lost), (0, 0), "{}", vm.name);
    }
    outcome
}
