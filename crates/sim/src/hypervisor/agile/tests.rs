//! What must hold between the parts after every event of any life, however tables move.

use super::{AgileMmu, OPTIONS};
use crate::hardware::walk::agile::Start;
use crate::hypervisor::shadow::tests::lives::{self, Life};
use crate::machine::{DynMachine, Machine};
use crate::scheme::MachineConfig;
use crate::scheme::Platform;
use crate::schemes::agile::Agile;
use nestwalk_hw::Profile;
use nestwalk_mm::{HostMemory, PagePolicy};
use nestwalk_tables::{LEGACY32, LONG4, LONG5, Mode, PAE};
use nestwalk_types::{Address, Gpa, Hpa, PageSize, SplitMix64};

fn machine(mode: &'static Mode, host_pages: &str, variant: &str, vcpus: usize) -> Machine<Agile> {
    let policy = PagePolicy::by_name(host_pages).unwrap();
    let slots = [(Gpa::new(0), 3 << 30)];
    let mut build = MachineConfig {
        variant: variant.into(),
        name: format!("agile/{variant}"),
        vmm: crate::scheme::vmm_options::VmmOptions::default(),
        profile: Profile::load("zen2").unwrap(),
        guest_mode: mode,
        nested_mode: &LONG4,
        vcpus,
        guest_bytes: 3 << 30,
        host: Some(HostMemory::new(8 << 30, &LONG4, policy, 0.0, 1, &slots).unwrap()),
        verify: true,
    };
    let config = OPTIONS.parse(variant).unwrap();
    Machine::new(Agile::new(config, &mut build).unwrap(), build).unwrap()
}

/// Root registers say what the tables say.
fn check(mmu: &AgileMmu, platform: &Platform) {
    mmu.shadow.check(platform);
    let host = platform.host.as_ref().unwrap();
    for (v, root) in platform.cpu.world.roots.iter().enumerate() {
        if *root == Gpa::new(0) {
            continue;
        }
        let gfn = root.page_number();
        let nested = mmu.shadow.nested_tables().contains(gfn);
        match mmu.start(v) {
            Start::Nested => assert!(mmu.young.contains(gfn)),
            Start::Switched(at) => {
                let gpa = Gpa::new(gfn << 12);
                let behind = host.look_up(gpa).unwrap();
                assert_eq!(at, behind.frame.offset_by(gpa.offset_in(behind.size)));
                assert!(nested && !mmu.young.contains(gfn));
            }
            Start::Shadow => assert!(!nested && !mmu.young.contains(gfn)),
        }
        // A shadow root that the hardware walks is this address space's.
        if mmu.start(v) == Start::Shadow && mmu.shadow_root(v) != Hpa::new(0) {
            let pcid = platform.cpu.hardware.cores[v].pcid;
            let stale = mmu.shadow.is_obsolete_root(v);
            assert!(stale || mmu.shadow.holds_root(v, gfn, pcid));
        }
    }
}

/// Intervals of some accesses, so that tables move many times in a short life.
const VARIANTS: [&str; 8] = [
    "interval=300",
    "interval=60",
    "interval=300/back=all/ad=off",
    "interval=100/writes=1/cr3=0/refill=off",
    "interval=500/start=nested/walks=0",
    "interval=90/start=nested/back=all/cr3=2",
    "interval=200/writes=1/sync=kvm",
    "interval=1000/writes=1/back=never/ad=off",
];

#[test]
fn the_parts_agree_after_every_event_of_any_life() {
    let (mut nested, mut shadowed) = (0, 0);
    for seed in 1..=24u64 {
        let mode: &'static Mode = [&LONG4, &LONG5, &PAE, &LEGACY32][seed as usize % 4];
        let vcpus = if seed % 3 == 0 { 1 } else { 4 };
        let variant = VARIANTS[seed as usize / 2 % 8];
        let narrow = mode.entry_bytes == 4;
        let life = Life {
            seed,
            events: 90,
            vcpus,
            accesses_percent: 60,
            mode,
            pages: ["4k", "thp", if narrow { "4m" } else { "2m" }][seed as usize / 3 % 3],
            pcids: seed % 2 == 0,
        };
        let host_pages = ["4k", "2m"][seed as usize / 5 % 2];
        let mut m = machine(mode, host_pages, variant, usize::from(vcpus));
        for (i, events) in life.live().iter().enumerate() {
            m.run(events).unwrap();
            if i % 2 == 0 {
                check(&m.scheme.mmu, &m.platform);
            }
        }
        check(&m.scheme.mmu, &m.platform);
        assert_eq!(m.verdict().unwrap().told, Vec::<String>::new(), "{variant}");
        let c = m.counters();
        assert_eq!(c.walks_switched.iter().sum::<u64>(), c.walks, "{variant}");
        (nested, shadowed) = (nested + c.tables_nested, shadowed + c.tables_shadowed);
    }
    assert!(nested > 100 && shadowed > 100, "{nested} {shadowed}");
}

/// The same with the kernel's own stores in the stream, and with pages that the host takes back under
/// way, tables among them.
#[test]
fn the_parts_agree_while_the_kernel_stores_and_the_host_takes_back() {
    let (mut discarded, mut switched) = (0, 0);
    for seed in 1..=12u64 {
        let mode: &'static Mode = [&LONG4, &LONG5][seed as usize % 2];
        let variant = VARIANTS[seed as usize % 8];
        let life = Life {
            seed,
            events: 60,
            vcpus: 2,
            accesses_percent: 60,
            mode,
            pages: ["4k", "thp"][seed as usize / 2 % 2],
            pcids: seed % 3 == 0,
        };
        let mut m = machine(mode, ["4k", "2m"][seed as usize % 2], variant, 2);
        let mut r = SplitMix64::new(seed);
        let batches = lives::with_direct_map(&life.live(), mode, PageSize::SIZE_2M, &mut r);
        for (i, events) in batches.iter().enumerate() {
            m.run(events).unwrap();
            let table = m.scheme.mmu.shadow.nested_tables().numbers().next();
            let data = events.gpas.first().map(|gpa| gpa.page_number());
            for gfn in [table, data].into_iter().flatten().filter(|_| i % 3 == 0) {
                discarded += u64::from(m.discard(Gpa::new(gfn << 12)).unwrap());
            }
            check(&m.scheme.mmu, &m.platform);
        }
        assert_eq!(m.verdict().unwrap().told, Vec::<String>::new(), "{variant}");
        switched += m.counters().walks - m.counters().walks_switched[0];
    }
    assert!(discarded > 50 && switched > 50, "{discarded} {switched}");
}
