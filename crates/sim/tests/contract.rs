//! What every scheme owes: the referee watches all of them over random lives of random guests.

use crate::common;

use common::machine_with;
use nestwalk_hw::Profile;
use nestwalk_mm::{GuestConfig, ModelledGuest, PagePolicy, PlacementKind, PrimaryConfig};
use nestwalk_sim::SCHEMES;
use nestwalk_sim::machine::DynMachine;
use nestwalk_tables::{LEGACY32, LONG4, LONG5, Mode, PAE};
use nestwalk_types::{
    AccessKind, Batch, BatchBuilder, Control, GuestBatch, Gva, ProcessId, Protection, VcpuId,
};
use proptest::prelude::*;

const VCPUS: u8 = 3;
const BASE: u64 = 0x4000_0000;

#[derive(Clone, Copy, Debug)]
enum Op {
    Access { vcpu: u8, page: u64, write: bool, fetch: bool },
    Sweep { vcpu: u8, page: u64, pages: u64, write: bool },
    Map { process: u32, page: u64, pages: u64 },
    Unmap { process: u32, page: u64, pages: u64 },
    Protect { process: u32, page: u64, pages: u64, write: bool },
    Populate { process: u32, page: u64, pages: u64 },
    Fork { parent: u32, child: u32 },
    Exec { process: u32 },
    Exit { process: u32 },
    Switch { vcpu: u8, process: u32 },
}

fn op() -> impl Strategy<Value = Op> {
    let vcpu = 0..VCPUS;
    let process = 0u32..5;
    let page = prop_oneof![0u64..24, 500u64..540, 0u64..1600];
    let pages = prop_oneof![1u64..6, 30u64..40, Just(512u64), Just(1024)];
    prop_oneof![
        12 => (vcpu.clone(), page.clone(), any::<bool>(), any::<bool>())
            .prop_map(|(vcpu, page, write, fetch)| Op::Access { vcpu, page, write, fetch: fetch && !write }),
        4 => (vcpu.clone(), page.clone(), pages.clone(), any::<bool>())
            .prop_map(|(vcpu, page, pages, write)| Op::Sweep { vcpu, page, pages, write }),
        2 => (process.clone(), page.clone(), pages.clone())
            .prop_map(|(process, page, pages)| Op::Map { process, page, pages }),
        2 => (process.clone(), page.clone(), pages.clone())
            .prop_map(|(process, page, pages)| Op::Unmap { process, page, pages }),
        2 => (process.clone(), page.clone(), pages.clone(), any::<bool>())
            .prop_map(|(process, page, pages, write)| Op::Protect { process, page, pages, write }),
        1 => (process.clone(), page, pages)
            .prop_map(|(process, page, pages)| Op::Populate { process, page, pages }),
        2 => (process.clone(), 0u32..5).prop_map(|(parent, child)| Op::Fork { parent, child }),
        1 => process.clone().prop_map(|process| Op::Exec { process }),
        1 => process.clone().prop_map(|process| Op::Exit { process }),
        4 => (vcpu, process).prop_map(|(vcpu, process)| Op::Switch { vcpu, process }),
    ]
}

fn say(b: &mut BatchBuilder, op: Op) {
    let range = |page: u64, pages: u64| (Gva::new(BASE + (page << 12)), pages << 12);
    let access = |b: &mut BatchBuilder, vcpu: u8, page: u64, kind: AccessKind| {
        let gva = Gva::new(BASE + (page << 12) + ((page * 64) & 0xfc0));
        b.access(VcpuId(vcpu), Gva::new(0x40_0000), gva, 8, kind, 3);
    };
    match op {
        Op::Access { vcpu, page, write, fetch } => {
            let kind = match (write, fetch) {
                (true, _) => AccessKind::Store,
                (_, true) => AccessKind::Fetch,
                _ => AccessKind::Load,
            };
            access(b, vcpu, page, kind);
        }
        Op::Sweep { vcpu, page, pages, write } => {
            for p in page..page + pages {
                access(b, vcpu, p, if write { AccessKind::Store } else { AccessKind::Load });
            }
        }
        Op::Map { process, page, pages } => {
            let (start, bytes) = range(page, pages);
            let protection = Protection::ALL;
            b.control(Control::Map { process: ProcessId(process), start, bytes, protection });
        }
        Op::Unmap { process, page, pages } => {
            let (start, bytes) = range(page, pages);
            b.control(Control::Unmap { process: ProcessId(process), start, bytes });
        }
        Op::Protect { process, page, pages, write } => {
            let (start, bytes) = range(page, pages);
            let protection = if write { Protection::ALL } else { Protection::READ };
            b.control(Control::Protect { process: ProcessId(process), start, bytes, protection });
        }
        Op::Populate { process, page, pages } => {
            let (start, bytes) = range(page, pages);
            b.control(Control::Populate { process: ProcessId(process), start, bytes });
        }
        Op::Fork { parent, child } => {
            b.control(Control::Fork { parent: ProcessId(parent), child: ProcessId(child) });
        }
        Op::Exec { process } => b.control(Control::Exec { process: ProcessId(process) }),
        Op::Exit { process } => b.control(Control::Exit { process: ProcessId(process) }),
        Op::Switch { vcpu, process } => {
            b.control(Control::Switch { vcpu: VcpuId(vcpu), process: ProcessId(process) });
        }
    }
}

/// Small structures, so that a short life evicts from all of them.
fn small_profile() -> Profile {
    let mut p = Profile::load("zen2").unwrap();
    for level in [&mut p.l1d_tlb, &mut p.l1i_tlb, &mut p.l2_tlb] {
        for array in level {
            array.entries = 8;
            array.ways = 4;
            // What pages share depends on where they lie, which differs on the machines.
            array.sizes.retain(|size| size != "16k");
        }
    }
    for cache in [&mut p.walk_cache, &mut p.nested_walk_cache] {
        for array in [&mut cache.pde, &mut cache.pdpte, &mut cache.pml4e].into_iter().flatten() {
            (array.entries, array.ways) = (2, 2);
        }
    }
    if let Some(nested) = &mut p.nested_tlb {
        (nested.entries, nested.ways) = (4, 2);
    }
    p
}

fn machines(mode: &'static Mode, host_pages: &str) -> Vec<Box<dyn DynMachine>> {
    let profile = small_profile();
    SCHEMES
        .iter()
        .map(|s| machine_with(s.name, mode, &LONG4, host_pages, &profile, usize::from(VCPUS)))
        .collect()
}

/// One `check` for tests and for whoever finds a failing life.
fn check(ops: &[Op], mode: &'static Mode, guest_pages: &str, host_pages: &str, pcids: bool) {
    check_placed(ops, mode, (guest_pages, host_pages), pcids, PlacementKind::default());
}

fn check_placed(
    ops: &[Op],
    mode: &'static Mode,
    (guest_pages, host_pages): (&str, &str),
    pcids: bool,
    placement: PlacementKind,
) {
    let config = GuestConfig {
        placement,
        primary: PrimaryConfig { least_bytes: 4096, escapes: 4, balloon: false },
        policy: PagePolicy::by_name(guest_pages).unwrap(),
        pcids: pcids && mode.levels >= 4,
        ..GuestConfig::new(mode, 3 << 30)
    };
    let mut guest = ModelledGuest::new(config).unwrap();
    let mut machines = machines(mode, host_pages);
    let (mut builder, mut batch, mut out) =
        (BatchBuilder::new(), Batch::default(), GuestBatch::default());
    for &op in ops {
        say(&mut builder, op);
        builder.take_into(&mut batch);
        // What a process may not do is refused by the guest; its life goes on.
        let _ = guest.process(&batch, &mut out);
        for machine in &mut machines {
            if let Err(e) = machine.run(&out) {
                panic!("{op:?}: {e}");
            }
            if let Some(verdict) = machine.verdict() {
                assert_eq!(verdict.told, Vec::<String>::new(), "{op:?} on {}", machine.name());
            }
        }
    }
    let ideal = machines[0].counters();
    for m in &machines[1..] {
        let c = m.counters();
        assert_eq!((c.accesses, c.instructions), (ideal.accesses, ideal.instructions));
        assert_eq!(c.guest_faults, ideal.guest_faults);
        assert_eq!(c.pages_cleared, ideal.pages_cleared);
    }
    // Bare metal and nested paging see the same tables, so the same first-level misses.
    assert_eq!(machines[1].name(), "native");
    // (4 MiB pages are splintered by any host.)
    if guest_pages == "4k" || (host_pages != "4k" && guest_pages != "4m") {
        let (native, nested) = (machines[1].counters(), machines[2].counters());
        assert_eq!(native.exits_total(), 0);
        assert_eq!(native.l1_tlb_misses, nested.l1_tlb_misses);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, ..ProptestConfig::default() })]

    #[test]
    fn the_referee_approves_of_every_scheme(
        ops in proptest::collection::vec(op(), 1..60),
        guest in prop_oneof![Just("4k"), Just("thp"), Just("2m")],
        host in prop_oneof![Just("4k"), Just("thp")],
        five in any::<bool>(),
        pcids in any::<bool>(),
    ) {
        check(&ops, if five { &LONG5 } else { &LONG4 }, guest, host, pcids);
    }

    #[test]
    fn the_referee_approves_of_every_scheme_on_guests_with_primary_regions(
        ops in proptest::collection::vec(op(), 1..60),
        guest in prop_oneof![Just("4k"), Just("thp"), Just("2m")],
        pcids in any::<bool>(),
    ) {
        check_placed(&ops, &LONG4, (guest, "4k"), pcids, PlacementKind::Primary);
    }

    #[test]
    fn the_referee_approves_of_every_scheme_under_32_bit_paging(
        ops in proptest::collection::vec(op(), 1..40),
        large in any::<bool>(),
        legacy in any::<bool>(),
        host in prop_oneof![Just("4k"), Just("thp")],
    ) {
        let (mode, pages) = if legacy { (&LEGACY32, "4m") } else { (&PAE, "2m") };
        check(&ops, mode, if large { pages } else { "4k" }, host, false);
    }
}
