//! What vCPUs cost each other: flushes by the VMM, interrupts by the guest's kernel, and the lock of the
//! shadow tables. Each is counted beforehand from what the guest does.

use crate::common;

use common::kernel::DATA;
use common::machines::{Probe, Setup, exits, exits_by_name};
use common::{Script, approve, builder, machine_with};
use nestwalk_hw::Profile;
use nestwalk_mm::{GuestConfig, ModelledGuest, PagePolicy};
use nestwalk_sim::{Cycles, ExitReason, Machine};
use nestwalk_tables::LONG4;
use nestwalk_types::{
    AccessKind, Batch, Control, Gpa, GuestBatch, Gva, OsWork, PageSize, ProcessId, Protection,
    VcpuId,
};

const S4K: PageSize = PageSize::SIZE_4K;
const BASE: u64 = 0x4000_0000;

fn profile() -> Profile {
    Profile::load("cascade-lake-6252").unwrap()
}

/// `running` of four vCPUs have loaded the script's root; eight pages are shadowed.
fn shadowed(running: u8) -> (Machine<nestwalk_sim::schemes::shadow::Shadow>, Script) {
    let mut m = Setup { vcpus: 4, ..Setup::new(profile()) }.shadow();
    let mut s = Script::new(&LONG4);
    let root = s.root;
    for vcpu in 1..running {
        s.say(Control::LoadCr3 { vcpu: VcpuId(vcpu), root, pcid: 1, keep: true });
    }
    (0..8).for_each(|i| s.map_used(i << 12, DATA + (i << 12), S4K));
    (0..8).for_each(|i| s.load(i << 12));
    m.count(&s.take());
    (m, s)
}

/// A flush that shadow entries owe calls each other vCPU that runs out of the guest, and no other.
#[test]
fn a_dropped_shadow_entry_calls_the_other_running_vcpus_out() {
    for running in 1..=4 {
        let (mut m, mut s) = shadowed(running);
        s.unmap(0x1000, S4K);
        s.invlpg(0x1000);
        let c = m.count(&s.take());
        assert_eq!(exits(&c, ExitReason::Invalidation), 1);
        assert_eq!(exits(&c, ExitReason::RemoteFlush), u64::from(running) - 1, "{running} run");
        assert_eq!(c.remote_flushes, 1);
        approve(&m);
    }
}

/// What costs nothing but a fill flushes nobody.
#[test]
fn a_hidden_fault_of_a_missing_entry_calls_nobody_out() {
    let (mut m, mut s) = shadowed(4);
    s.map_used(0x10_0000, DATA + 0x10_0000, S4K);
    s.load(0x10_0000);
    let c = m.count(&s.take());
    assert_eq!(exits_by_name(&c), [("hidden_fault", 1), ("table_unsync", 1)]);
}

/// A process on `vcpus` vCPUs whose page is unmapped.
fn unmapping(vcpus: u8) -> (GuestBatch, GuestBatch) {
    let policy = PagePolicy::by_name("4k").unwrap();
    let config = GuestConfig { policy, ..GuestConfig::new(&LONG4, 3 << 30) };
    let mut guest = ModelledGuest::new(config).unwrap();
    let mut b = builder();
    let (process, start, bytes) = (ProcessId(0), Gva::new(BASE), 16 << 12);
    b.control(Control::Map { process, start, bytes, protection: Protection::ALL });
    for vcpu in (0..vcpus).rev().map(VcpuId) {
        b.control(Control::Switch { vcpu, process });
        for page in 0..16 {
            let gva = Gva::new(BASE + (page << 12));
            b.access(vcpu, Gva::new(0x40_0000), gva, 8, AccessKind::Store, 3);
        }
    }
    let (mut batch, mut out, mut unmapped) =
        (Batch::default(), GuestBatch::default(), GuestBatch::default());
    b.take_into(&mut batch);
    guest.process(&batch, &mut out).unwrap();
    b.control(Control::Unmap { process, start, bytes: 1 << 12 });
    b.take_into(&mut batch);
    guest.process(&batch, &mut unmapped).unwrap();
    (out, unmapped)
}

/// munmap interrupts each other vCPU that runs the process: time everywhere, exits where the interrupt
/// controller is the hypervisor's.
#[test]
fn munmap_interrupts_the_other_vcpus_of_the_process() {
    for (name, per_interrupt) in
        [("cascade-lake-6252", [1, 0]), ("sandy-bridge-e5-2430", [1, 1]), ("zen2", [1, 1])]
    {
        let profile = Profile::load(name).unwrap();
        for vcpus in [1, 2, 3] {
            let others = u64::from(vcpus) - 1;
            let (before, unmapped) = unmapping(vcpus);
            for scheme in ["ideal", "native", "nested", "shadow", "agile", "spot", "xen-pv"] {
                let mut m = machine_with(scheme, &LONG4, &LONG4, "4k", &profile, 3);
                m.run(&before).unwrap();
                let then = m.counters().clone();
                m.run(&unmapped).unwrap();
                let c = m.counters().since(&then);
                assert_eq!(c.os_work[OsWork::Shootdown.index()], others, "{scheme}");
                let exits = [ExitReason::InterruptSent, ExitReason::InterruptReceived]
                    .map(|r| c.exits[r as usize]);
                let emulated = !matches!(scheme, "ideal" | "native" | "xen-pv");
                let expected = per_interrupt.map(|n| if emulated { n * others } else { 0 });
                assert_eq!(exits, expected, "{scheme} on {name}, {vcpus} vCPUs");
                let ns =
                    Cycles::of(&c, &profile).guest_os * 1000.0 / profile.core.frequency_mhz.value;
                let expected = others as f64 * profile.software.shootdown_ns.value;
                assert!((ns - expected).abs() < 1e-6, "{scheme}: {ns}");
            }
        }
    }
}

/// Faults of several vCPUs at once wait for each other; the same faults of one do not.
#[test]
fn vcpus_that_fault_at_once_wait_for_the_lock_of_the_shadow_tables() {
    let faults = |vcpus: u8| {
        let mut m = Setup { vcpus: 4, ..Setup::new(profile()) }.shadow();
        let mut s = Script::new(&LONG4);
        let root = s.root;
        for vcpu in 1..4 {
            s.say(Control::LoadCr3 { vcpu: VcpuId(vcpu), root, pcid: 1, keep: true });
        }
        // 8 pages apart, so that nothing is filled ahead.
        (0..64).for_each(|i| s.map_used(i << 15, DATA + (i << 15), S4K));
        m.count(&s.take());
        for i in 0..64 {
            s.vcpu = VcpuId((i % u64::from(vcpus)) as u8);
            s.load(i << 15);
        }
        let c = m.count(&s.take());
        assert_eq!(exits(&c, ExitReason::HiddenFault), 64);
        approve(&m);
        c
    };
    let waits: Vec<f64> =
        [1, 2, 4].map(|vcpus| Cycles::of(&faults(vcpus), &profile()).lock_wait).into();
    assert_eq!(faults(4).lock_visits.each(), [16, 16, 16, 16]);
    assert!(waits[0] == 0.0 && waits[1] > 0.0 && waits[2] > 1.5 * waits[1], "{waits:?}");
    let c = faults(4);
    let cycles = Cycles::of(&c, &profile());
    assert!(cycles.lock_wait < cycles.vmm && cycles.vmm < cycles.total());
}

/// A root that a vCPU loads is not at an address of 0: that is how those that run are told.
#[test]
fn roots_are_at_addresses_above_0() {
    assert_ne!(Script::new(&LONG4).root, Gpa::new(0));
}
