//! The referee watches machines that change their paging mode at every step of random lives: between
//! any two events, and between any two runs, of one vCPU and of four.

use crate::common;

use common::lives::{Life, steps, with_direct_map};
use common::machines::{Setup, exits};
use nestwalk_hw::Profile;
use nestwalk_policy::Mode as PagingMode;
use nestwalk_sim::schemes::switching::Switching;
use nestwalk_sim::{DynMachine, ExitReason, Machine};
use nestwalk_tables::{LEGACY32, LONG4, LONG5, Mode, PAE};
use nestwalk_types::{PageSize, SplitMix64};

const VARIANTS: [&str; 4] = [
    "keep=nothing/tlb=flush",
    "keep=nothing/tlb=carry",
    "keep=nested/tlb=flush",
    "keep=nested/tlb=carry",
];

fn machine(setup: &Setup, variant: &str) -> Machine<Switching> {
    let mut build = setup.build("switching", true);
    // The schedule never comes to its first switch: the test switches.
    build.variant = format!("every=1000000000000000/{variant}");
    Machine::new(Switching::new(&mut build).unwrap(), build).unwrap()
}

struct Case {
    seed: u64,
    vcpus: u8,
    mode: &'static Mode,
    guest_pages: &'static str,
    host_pages: &'static str,
    direct_map: bool,
    /// Steps from switch to switch on average.
    steps: u64,
    /// A host page is taken back every so many steps on average; never if 0.
    discards: u64,
}

/// Lives it on all variants and returns the switches made.
fn live(case: &Case) -> u64 {
    let life = Life {
        seed: case.seed,
        events: 60,
        vcpus: case.vcpus,
        accesses_percent: 65,
        mode: case.mode,
        pages: case.guest_pages,
        pcids: case.seed.is_multiple_of(2),
    };
    let mut r = SplitMix64::new(case.seed);
    let mut batches = life.live();
    if case.direct_map {
        batches = with_direct_map(&batches, case.mode, PageSize::SIZE_2M, &mut r);
    }
    let steps = steps(&batches);
    let profile = if case.seed.is_multiple_of(3) { "sandy-bridge-e5-2430" } else { "zen2" };
    let setup = Setup {
        guest_mode: case.mode,
        host_pages: case.host_pages,
        vcpus: usize::from(case.vcpus),
        ..Setup::new(Profile::load(profile).unwrap())
    };
    let mut switches = 0;
    for variant in VARIANTS {
        let mut m = machine(&setup, variant);
        let mut r = SplitMix64::new(case.seed ^ 0x5eed);
        for step in &steps {
            if r.below(case.steps) == 0 {
                let to = m.scheme.mode().other();
                m.scheme.switch_to(&mut m.platform, to).unwrap();
            }
            if case.discards > 0 && r.below(case.discards) == 0 {
                let used = &steps[r.below(steps.len() as u64) as usize].gpas;
                if let Some(&gpa) = used.first() {
                    m.discard(gpa).unwrap();
                }
            }
            m.run(step).unwrap();
        }
        let verdict = m.verdict().unwrap();
        assert_eq!(verdict.told, Vec::<String>::new(), "life {} {variant}", case.seed);
        assert!(verdict.checked > 20, "life {}", case.seed);
        let c = m.counters();
        let kicks = exits(c, ExitReason::ModeSwitch);
        assert_eq!(kicks, u64::from(case.vcpus) * c.mode_switches, "all vCPUs, each time");
        switches += c.mode_switches;
        agrees(&mut m, variant);
    }
    switches
}

/// Tables of the mode that is not in force have gone, unless they are kept, and their memory with them.
fn agrees(m: &mut Machine<Switching>, variant: &str) {
    let bytes = m.report().page_tables;
    let own = m.platform.host.as_ref().unwrap().tables().len() * 4096;
    assert_eq!(bytes.host, own, "no frame of a table is lost: {variant}");
    match m.scheme.mode() {
        PagingMode::Nested => assert_eq!(bytes.shadow, 0),
        PagingMode::Shadow if variant.contains("keep=nothing") => assert_eq!(bytes.nested, 0),
        PagingMode::Shadow => {}
    }
}

fn cases(vcpus: u8, direct_map: bool, discards: u64) -> impl Iterator<Item = Case> {
    (0..if direct_map { 6 } else { 12 }).map(move |seed: u64| {
        let mode =
            [&LONG4, &LONG5, &PAE, &LEGACY32][seed as usize % if direct_map { 2 } else { 4 }];
        let large = if mode.entry_bytes == 4 { "4m" } else { "2m" };
        let mut r = SplitMix64::new(seed ^ 0xca5e);
        Case {
            seed,
            vcpus,
            mode,
            guest_pages: ["4k", "thp", large][r.below(3) as usize],
            host_pages: ["4k", "thp"][r.below(2) as usize],
            direct_map,
            steps: [1, 2, 9][r.below(3) as usize],
            discards,
        }
    })
}

#[test]
fn one_vcpu_switches_at_every_step() {
    let switches: u64 = cases(1, false, 0).map(|c| live(&c)).sum();
    assert!(switches > 4_000, "{switches}");
}

#[test]
fn four_vcpus_switch_at_every_step() {
    let switches: u64 = cases(4, false, 0).map(|c| live(&c)).sum();
    assert!(switches > 4_000, "{switches}");
}

#[test]
fn four_vcpus_switch_while_the_kernel_stores_through_its_own_mapping() {
    let switches: u64 = cases(4, true, 0).map(|c| live(&c)).sum();
    assert!(switches > 4_000, "{switches}");
}

#[test]
fn the_host_takes_pages_back_in_either_mode() {
    let switches: u64 = cases(4, false, 5).map(|c| live(&c)).sum();
    assert!(switches > 4_000, "{switches}");
}
