//! The referee watches every scheme in random lives of guests with each placement policy, on hosts with
//! each: of one vCPU and of four, with pages that the host takes back in between.

use crate::common;

use common::lives::{BASE, Life, steps};
use common::machines::Setup;
use nestwalk_hw::Profile;
use nestwalk_mm::{GuestConfig, ModelledGuest, PLACEMENTS, PagePolicy, PlacementKind};
use nestwalk_sim::SCHEMES;
use nestwalk_tables::LONG4;
use nestwalk_types::{
    Batch, BatchBuilder, Control, GuestBatch, Gva, ProcessId, Protection, SplitMix64, VcpuId,
};

const MIB: u64 = 1 << 20;
const GUEST: u64 = 64 * MIB;

fn placements() -> Vec<PlacementKind> {
    PLACEMENTS.iter().map(|p| p.1).filter(|p| !p.has_region()).collect()
}

struct Case {
    seed: u64,
    placement: (PlacementKind, PlacementKind),
    pages: (&'static str, &'static str),
    vcpus: u8,
}

impl Case {
    /// The second case of a policy has it in the host.
    fn new(seed: u64) -> Self {
        let (all, sizes) = (placements(), ["4k", "thp", "2m"]);
        let mut r = SplitMix64::new(seed ^ 0xca);
        let one = all[(seed / 2) as usize % all.len()];
        let other = all[r.below(all.len() as u64) as usize];
        let mut size = || sizes[r.below(3) as usize];
        Self {
            seed,
            placement: if seed.is_multiple_of(2) { (one, other) } else { (other, one) },
            pages: (size(), size()),
            vcpus: if seed.is_multiple_of(3) { 4 } else { 1 },
        }
    }

    fn life(&self) -> Vec<GuestBatch> {
        let life = Life {
            seed: self.seed,
            events: 60,
            vcpus: self.vcpus,
            accesses_percent: 60,
            mode: &LONG4,
            pages: self.pages.0,
            pcids: self.seed.is_multiple_of(2),
        };
        let config = GuestConfig {
            policy: PagePolicy::by_name(self.pages.0).unwrap(),
            placement: self.placement.0,
            fragmentation: if self.seed.is_multiple_of(3) { 0.3 } else { 0.0 }.into(),
            seed: self.seed,
            pcids: life.pcids,
            ..GuestConfig::new(&LONG4, GUEST)
        };
        let mut guest = ModelledGuest::new(config).unwrap();
        // Processes begin with a mapping, and one of them fills a block page by page.
        let (mut b, mut batch, mut first) =
            (BatchBuilder::new(), Batch::default(), GuestBatch::default());
        for process in (0..4).map(ProcessId) {
            let (start, protection) = (Gva::new(BASE), Protection::ALL);
            b.control(Control::Map { process, start, bytes: 6 * MIB, protection });
        }
        b.control(Control::Switch { vcpu: VcpuId(0), process: ProcessId(0) });
        for page in 0..1300 {
            let gva = Gva::new(BASE + (page << 12));
            b.access(VcpuId(0), Gva::new(0), gva, 8, nestwalk_types::AccessKind::Store, 1);
        }
        b.take_into(&mut batch);
        guest.process(&batch, &mut first).unwrap();
        let mut all = vec![first];
        all.extend(life.live_on(guest));
        all
    }
}

fn live(case: &Case) {
    let steps = steps(&case.life());
    let setup = Setup {
        host_pages: case.pages.1,
        host_placement: case.placement.1,
        vcpus: usize::from(case.vcpus),
        guest_bytes: GUEST,
        host_bytes: 256 * MIB,
        ..Setup::new(Profile::load("zen2").unwrap())
    };
    for scheme in SCHEMES.iter().filter(|s| !s.facts.primary_region) {
        let build = setup.build(scheme.name, scheme.virtualized);
        let variant = scheme.options.normalize("").unwrap();
        let mut m =
            (scheme.build)(nestwalk_sim::scheme::MachineConfig { variant, ..build }).unwrap();
        for step in &steps {
            m.run(step).unwrap_or_else(|e| panic!("{} seed {}: {e}", scheme.name, case.seed));
        }
        if let Some(verdict) = m.verdict() {
            let told = Vec::<String>::new();
            assert_eq!(verdict.told, told, "{} seed {}", scheme.name, case.seed);
            assert!(verdict.checked > 0);
        }
    }
}

#[test]
fn the_referee_approves_of_every_scheme_with_every_placement() {
    for seed in 0..6 * placements().len() as u64 {
        live(&Case::new(seed));
    }
}

#[test]
fn pages_that_the_host_joins_are_mapped_as_one_page_from_then_on() {
    // With `reserve` the host has small pages first: the guest touches a block page by page.
    let (guest, host) = (PlacementKind::FirstFit, PlacementKind::Reserve);
    let case = Case { seed: 1, placement: (guest, host), pages: ("4k", "thp"), vcpus: 1 };
    let steps = steps(&case.life());
    let setup = Setup {
        host_pages: "thp",
        host_placement: host,
        guest_bytes: GUEST,
        host_bytes: 256 * MIB,
        ..Setup::new(Profile::load("zen2").unwrap())
    };
    let mut m = setup.nested();
    for step in &steps {
        nestwalk_sim::DynMachine::run(&mut m, step).unwrap();
    }
    let counters = m.platform.host.as_ref().unwrap().counters();
    assert!(counters.promotions > 0 && counters.leaves[1] > 0, "{counters:?}");
    common::approve(&m);
    // The nested tables have the large pages too: a table of small ones for each would be more.
    let tables = nestwalk_sim::DynMachine::report(&m).page_tables.nested >> 12;
    assert!(tables < 3 + (GUEST >> 21) - counters.leaves[1], "{tables}");
}
