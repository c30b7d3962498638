//! The referee watches machines whose guests and hosts have daemons that move pages all the time:
//! all schemes, random lives, one vCPU and four.

use crate::common;

use common::GIB;
use common::lives::{Life, with_direct_map};
use common::machines::{Setup, exits};
use nestwalk_hw::Profile;
use nestwalk_mm::{
    DaemonConfig, Fragmentation, FreeBlocks, GuestConfig, GuestStats, HostConfig, HostMemory,
    KERNEL_BYTES, KhugepagedConfig, ModelledGuest, PagePolicy, PlacementKind, RangerConfig,
};
use nestwalk_sim::hypervisor::nested::Nested;
use nestwalk_sim::scheme::MachineConfig;
use nestwalk_sim::schemes::by_name;
use nestwalk_sim::{Counters, DynMachine, ExitReason, Machine, SCHEMES};
use nestwalk_tables::{LEGACY32, LONG4, LONG5, Mode, PAE};
use nestwalk_types::{Gpa, GuestBatch, PageSize, SplitMix64};

const GUEST: u64 = 3 * GIB;

/// They run every so many instructions.
fn daemons(every: u64, pages: u64) -> DaemonConfig {
    DaemonConfig {
        khugepaged: KhugepagedConfig {
            interval: every,
            alloc_interval: every,
            ..KhugepagedConfig::LINUX
        },
        ranger: RangerConfig { interval: every, pages, split: true },
    }
}

struct Case {
    seed: u64,
    vcpus: u8,
    mode: &'static Mode,
    guest: (&'static str, PlacementKind),
    host: (&'static str, PlacementKind),
    /// The stream is that of a recorded guest with a direct map.
    recorded: bool,
}

impl Case {
    fn new(seed: u64, vcpus: u8, recorded: bool) -> Self {
        let ranger = PlacementKind::Ranger;
        let policies = [
            // Small pages at first, though there are blocks for large ones.
            ("khugepaged", PlacementKind::Reserve),
            ("4k", ranger),
            ("khugepaged", ranger),
            ("thp", ranger),
        ];
        let mut r = SplitMix64::new(seed ^ 0xdae);
        let modes: &[&'static Mode] =
            if recorded { &[&LONG4, &LONG5] } else { &[&LONG4, &LONG5, &PAE, &LEGACY32] };
        Self {
            seed,
            vcpus,
            mode: modes[seed as usize % modes.len()],
            guest: policies[r.below(4) as usize],
            host: policies[seed as usize % 4],
            recorded,
        }
    }

    fn live(&self) -> (Vec<GuestBatch>, GuestStats) {
        let life = Life {
            seed: self.seed,
            events: 60,
            vcpus: self.vcpus,
            accesses_percent: 70,
            mode: self.mode,
            pages: self.guest.0,
            pcids: self.seed.is_multiple_of(2),
        };
        let config = GuestConfig {
            policy: PagePolicy::by_name(self.guest.0).unwrap(),
            placement: self.guest.1,
            pcids: life.pcids && self.mode.levels >= 4,
            daemons: daemons(60, [0, 100][self.seed as usize % 2]),
            ..GuestConfig::new(self.mode, GUEST)
        };
        let mut guest = ModelledGuest::new(config).unwrap();
        let batches = life.live_with(&mut guest);
        let mut r = SplitMix64::new(self.seed);
        match self.recorded {
            true => {
                (with_direct_map(&batches, self.mode, PageSize::SIZE_2M, &mut r), guest.stats())
            }
            false => (batches, guest.stats()),
        }
    }

    fn host(&self) -> HostMemory {
        let aged = FreeBlocks::by_name(["aged", "bad"][self.seed as usize / 2 % 2]).unwrap();
        let aged = FreeBlocks { immovable: (1, 8), ..aged };
        let config = HostConfig {
            bytes: if self.recorded { 4 * GIB } else { GIB },
            mode: &LONG4,
            policy: PagePolicy::by_name(self.host.0).unwrap(),
            placement: self.host.1,
            // A large memory takes long to age.
            fragmentation: match self.recorded {
                true => Fragmentation::Degree(0.5),
                false => Fragmentation::Blocks(aged),
            },
            seed: self.seed,
            kernel_bytes: KERNEL_BYTES,
            daemons: daemons(45, [0, 100][self.seed as usize / 2 % 2]),
        };
        HostMemory::with_config(&config, &[(Gpa::new(0), GUEST)]).unwrap()
    }

    fn machine(&self, scheme: &str) -> Box<dyn DynMachine> {
        let definition = by_name(scheme).unwrap();
        let build = MachineConfig {
            name: scheme.into(),
            // Aged hosts have no 16 MiB in one piece.
            variant: definition
                .options
                .normalize(if scheme == "pom-tlb" { "mib=1" } else { "" })
                .unwrap(),
            vmm: nestwalk_sim::scheme::vmm_options::VmmOptions::default(),
            profile: Profile::load("zen2").unwrap(),
            guest_mode: self.mode,
            nested_mode: &LONG4,
            vcpus: usize::from(self.vcpus),
            guest_bytes: GUEST,
            host: definition.virtualized.then(|| self.host()),
            verify: true,
        };
        (definition.build)(build).unwrap()
    }
}

/// Every scheme lives it. Adds to what daemons did.
fn check(case: &Case, guest: &mut GuestStats, host: &mut Counters) {
    let (batches, stats) = case.live();
    guest.daemons.migrated += stats.daemons.migrated;
    guest.daemons.exchanged += stats.daemons.exchanged;
    guest.daemons.collapsed += stats.daemons.collapsed;
    guest.daemons.joined += stats.daemons.joined;
    guest.daemon_interrupts += stats.daemon_interrupts;
    // The kernel of a direct map is no part of lives with segments.
    for scheme in SCHEMES.iter().filter(|s| !case.recorded || !s.facts.primary_region) {
        let mut m = case.machine(scheme.name);
        for batch in &batches {
            if let Err(e) = m.run(batch) {
                panic!("life {} of {} vCPUs: {e}", case.seed, case.vcpus);
            }
        }
        if let Some(verdict) = m.verdict() {
            let what = format!("life {} of {} vCPUs on {}", case.seed, case.vcpus, m.name());
            assert_eq!(verdict.told, Vec::<String>::new(), "{what}");
            assert!(verdict.checked > 20, "{what}");
        }
        let c = m.counters();
        let moved = c.host_pages_unmapped + c.host_collapses + c.host_joins;
        let kicks = exits(c, ExitReason::HostMigration);
        assert_eq!(kicks % u64::from(case.vcpus), 0, "all vCPUs, each time");
        assert!(moved == 0 || kicks > 0 || c.host_pages_exchanged == c.host_pages_unmapped);
        host.host_pages_migrated += c.host_pages_migrated;
        host.host_pages_exchanged += c.host_pages_exchanged;
        host.host_collapses += c.host_collapses;
        host.host_joins += c.host_joins;
    }
}

fn lives(seeds: u64, vcpus: u8, recorded: bool) {
    let (mut guest, mut host) = (GuestStats::default(), Counters::default());
    (0..seeds).for_each(|s| check(&Case::new(s, vcpus, recorded), &mut guest, &mut host));
    let g = &guest.daemons;
    // What did not happen was not tested.
    assert!(g.migrated > 0 && g.exchanged > 0 && g.collapsed > 0, "{g:?}");
    assert!(guest.daemon_interrupts > 0);
    let h = [host.host_pages_migrated, host.host_pages_exchanged, host.host_collapses];
    assert!(h.iter().all(|n| *n > 0), "{h:?}");
}

#[test]
fn one_vcpu() {
    lives(6, 1, false);
}

#[test]
fn four_vcpus() {
    lives(6, 4, false);
}

#[test]
fn recorded_guests_have_hosts_with_daemons() {
    lives(3, 2, true);
}

#[test]
fn a_page_that_moves_unnoticed_is_found() {
    let case = Case { host: ("4k", PlacementKind::Ranger), ..Case::new(0, 1, false) };
    let (batches, _) = case.live();
    let setup = Setup::new(Profile::load("zen2").unwrap());
    let mut found = 0;
    for told in [true, false] {
        let build = setup.build("nested", true);
        let mut build = MachineConfig { host: Some(case.host()), guest_mode: case.mode, ..build };
        let mut m = Machine::new(Nested::new(&mut build).unwrap(), build).unwrap();
        for batch in &batches {
            m.run(batch).unwrap();
            if !told && let Some(host) = &mut m.platform.host {
                host.run_daemons(u64::MAX);
            }
        }
        let violations = m.verdict().unwrap().violations;
        assert_eq!(violations == 0, told);
        found += violations;
    }
    assert!(found > 0);
}
