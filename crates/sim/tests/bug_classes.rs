//! Classes of bugs that were found in simulators of the field, beside those of [walk
//! lengths](walk_lengths.rs): which part of an address an entry is about, what an access counts when
//! it is retried, whose an entry is.

use crate::common;

use common::machines::{Probe, Setup, exits, tlb, with_roomy_tlbs};
use common::{Script, V0, approve, bare_profile};
use nestwalk_hw::{Profile, ServedBy, Translation};
use nestwalk_sim::hardware::Request;
use nestwalk_sim::hardware::walk::{Fault, WalkWatch};
use nestwalk_sim::hypervisor::nested::Nested;
use nestwalk_sim::scheme::{Event, Handled, MachineError, Platform, Processor, Scheme, Software};
use nestwalk_sim::{DynMachine, ExitReason, Machine};
use nestwalk_tables::{LONG4, LONG5};
use nestwalk_types::{Gpa, Gva, Invalidation, PageSize, Protection, VcpuId};

const S4K: PageSize = PageSize::SIZE_4K;
const S2M: PageSize = PageSize::SIZE_2M;
const S1G: PageSize = PageSize::SIZE_1G;

// ---- guest and host pages of different sizes ----------------------------------------------------

/// A TLB entry covers the smaller of the two pages, for every pair.
#[test]
fn a_tlb_entry_covers_the_smaller_page() {
    for guest in [S4K, S2M, S1G] {
        for (name, host) in [("4k", S4K), ("2m", S2M), ("1g", S1G)] {
            let setup = Setup { host_pages: name, ..Setup::new(with_roomy_tlbs(bare_profile())) };
            let mut s = Script::new(&LONG4);
            s.map_used(0x4000_0000, 0x4000_0000, guest);
            let tables = s.take();
            let offsets = [0, 0x40, 0x1000, 0x1f_f000, 0x20_0000, 0x20_1000, 0x3fff_f000];
            let mut entries = Vec::new();
            for offset in offsets.into_iter().filter(|o| *o < guest.bytes()) {
                entries.push(offset >> guest.min(host).shift());
                s.load(0x4000_0000 + offset);
            }
            entries.dedup();
            let accesses = s.take();
            let expected = entries.len() as u64;
            let mut machines: Vec<Box<dyn Probe>> =
                vec![Box::new(setup.nested()), Box::new(setup.shadow())];
            for m in &mut machines {
                m.run(&tables).unwrap();
                let c = m.count(&accesses);
                let what = format!("{} {guest} on {name}", m.name());
                assert_eq!((c.l1_tlb_misses, c.l2_tlb_misses), (expected, expected), "{what}");
                assert_eq!(c.walks, expected, "{what}");
                if m.name() == "nested" {
                    let splintered = if host < guest { expected } else { 0 };
                    assert_eq!(c.splintered, splintered, "{what}");
                }
                assert_eq!(m.count(&accesses).l1_tlb_misses, 0, "{what}: they all fit");
                approve(m.as_ref());
            }
            let mut m = setup.native();
            m.run(&tables).unwrap();
            let mut whole = offsets.into_iter().filter(|o| *o < guest.bytes()).collect::<Vec<_>>();
            whole.iter_mut().for_each(|o| *o >>= guest.shift());
            whole.dedup();
            assert_eq!(m.count(&accesses).l1_tlb_misses, whole.len() as u64);
        }
    }
}

// ---- invalidation of the parts of a large page ---------------------------------------------------

/// INVLPG of any address of a large page removes all entries that were made of it, where the host's
/// pages are smaller and where the TLB has no entries of the size; the next page's stay.
#[test]
fn an_invalidation_removes_every_part_of_a_large_page() {
    let mut only_4k = with_roomy_tlbs(bare_profile());
    only_4k.l1d_tlb = vec![tlb(&["4k"], 4096, 64)];
    only_4k.l2_tlb = vec![tlb(&["4k"], 4096, 64)];
    let parts = [0u64, 0x1000, 0x8_0000, 0x1f_f000];
    let (page, next) = (0x4000_0000u64, 0x4020_0000u64);
    let mut setups: Vec<(Box<dyn Probe>, &str)> = vec![
        (
            Box::new(Setup::new(with_roomy_tlbs(bare_profile())).nested()),
            "host's pages are smaller",
        ),
        (Box::new(Setup::new(only_4k.clone()).native()), "no entries of the size"),
        (Box::new(Setup { host_pages: "2m", ..Setup::new(only_4k) }.nested()), "same, in a VM"),
    ];
    for (m, why) in &mut setups {
        let mut s = Script::new(&LONG4);
        s.map_used(page, 0x4000_0000, S2M);
        s.map_used(next, 0x4020_0000, S2M);
        let touch = |s: &mut Script, at: u64| parts.iter().for_each(|p| s.load(at + p));
        touch(&mut s, page);
        touch(&mut s, next);
        m.run(&s.take()).unwrap();
        touch(&mut s, page);
        touch(&mut s, next);
        assert_eq!(m.count(&s.take()).l1_tlb_misses, 0, "{why}");
        s.invlpg(page + 0x12_3456);
        touch(&mut s, next);
        assert_eq!(m.count(&s.take()).l1_tlb_misses, 0, "{why}: the next page's stay");
        touch(&mut s, page);
        assert_eq!(m.count(&s.take()).l1_tlb_misses, 4, "{why}: all parts are gone");
        approve(m.as_ref());
    }
}

/// A fault or a first store concerns the entry that it met, not the other parts of a large page
/// (SDM vol. 3A: a page fault invalidates the entries for the page number of the linear address;
/// vol. 3C: an EPT violation the combined mappings of the linear address).
#[test]
fn a_fault_or_a_first_store_leaves_the_other_parts_of_a_large_page() {
    let mut m = Setup::new(with_roomy_tlbs(bare_profile())).nested();
    let mut s = Script::new(&LONG4);
    s.map(0x4000_0000, 0x4000_0000, S2M, Protection::ALL, 0x20);
    for part in 0..4 {
        s.load(0x4000_0000 + (part << 12));
    }
    // Each of the four was an EPT violation. The entries made before it are still there.
    let c = m.count(&s.take());
    assert_eq!((c.l1_tlb_misses, exits(&c, ExitReason::EptViolation) >= 4), (4, true));
    for part in 0..4 {
        s.load(0x4000_0000 + (part << 12));
    }
    assert_eq!(m.count(&s.take()).l1_tlb_misses, 0, "violations of other pages");
    s.store(0x4000_0000);
    let c = m.count(&s.take());
    assert_eq!((c.rewalks, c.l1_tlb_misses, c.walks), (1, 0, 1));
    for part in 0..4 {
        s.load(0x4000_0000 + (part << 12));
    }
    assert_eq!(m.count(&s.take()).l1_tlb_misses, 0, "the first store to another part");
    s.fault(0x4000_1000, true);
    for part in 0..4 {
        s.load(0x4000_0000 + (part << 12));
    }
    let c = m.count(&s.take());
    assert_eq!(c.l1_tlb_misses, 1, "the fault's own page");
    // The fault was spurious: the page was there. The walk that found it so belongs to the fault.
    assert_eq!((c.walks, c.faulted_walks, c.guest_faults), (1, 1, 1));
    approve(&m);
}

// ---- faults in the middle of a walk, and what a retry counts ------------------------------------

/// Nested paging that writes down its violations.
struct Logged(Nested, Vec<Gpa>);

impl Scheme for Logged {
    fn walk<W: WalkWatch>(
        &mut self,
        cpu: &mut Processor,
        request: &Request,
        watch: &mut W,
    ) -> Result<Translation, Fault> {
        self.0.walk(cpu, request, watch)
    }
}

impl Software for Logged {
    fn handle_fault(
        &mut self,
        platform: &mut Platform,
        request: &Request,
        fault: Fault,
    ) -> Result<Handled, MachineError> {
        if let Fault::Nested { gpa, .. } = fault {
            self.1.push(gpa);
        }
        self.0.handle_fault(platform, request, fault)
    }

    fn on(&mut self, platform: &mut Platform, event: Event<'_>) -> Result<(), MachineError> {
        self.0.on(platform, event)
    }
}

/// For every set of missing host pages behind the guest's tables and the page itself: each is one
/// violation, in the order of the walk; the access counts one miss in each level, one walk, as many
/// faulted walks as violations; and comes to the right address (the referee's check).
#[test]
fn the_host_may_miss_at_any_point_of_a_walk_and_the_access_counts_once() {
    for mode in [&LONG4, &LONG5] {
        let levels = u32::from(mode.levels);
        for profile in [bare_profile(), Profile::load("zen2").unwrap()] {
            let setup = Setup { guest_mode: mode, host_mode: mode, ..Setup::new(profile) };
            for missing in 0..1u32 << (levels + 1) {
                let mut build = setup.build("nested", true);
                let inner = Nested::new(&mut build).unwrap();
                let mut m = Machine::new(Logged(inner, Vec::new()), build).unwrap();
                let mut s = Script::with_found_tables(mode);
                s.map_used(0x1000, 0x4000_0000, S4K);
                m.run(&s.take()).unwrap();
                // In the order of the walk: the root table first, the page last.
                let mut points: Vec<Gpa> =
                    (1..=mode.levels).rev().map(|l| s.entry(0x1000, l).0).collect();
                points.push(Gpa::new(0x4000_0000));
                let mut expected = Vec::new();
                for (i, point) in points.iter().enumerate() {
                    let page = Gpa::new(point.value() & !0xfff);
                    if missing >> i & 1 == 1 {
                        expected.push(page);
                    } else {
                        m.scheme.0.mmu.back(&mut m.platform, V0, page, S4K).unwrap();
                    }
                }
                s.store(0x1000);
                let c = m.count(&s.take());
                let faults = expected.len() as u64;
                let got: Vec<u64> = m.scheme.1.iter().map(|g| g.value() & !0xfff).collect();
                let expected: Vec<u64> = expected.iter().map(|g| g.value()).collect();
                assert_eq!(got, expected);
                assert_eq!((c.l1_tlb_misses, c.l2_tlb_misses, c.l2_tlb_hits), (1, 1, 0));
                assert_eq!((c.walks, c.faulted_walks, c.rewalks), (1, faults, 0));
                assert_eq!(c.accesses, 1);
                assert_eq!(exits(&c, ExitReason::EptViolation), faults);
                assert_eq!((c.exits_total(), c.nested_fills), (faults, faults));
                approve(&m);
                s.store(0x1000);
                assert_eq!(m.count(&s.take()).l1_tlb_misses, 0);
            }
        }
    }
}

/// The same under shadow paging, where an access may meet a hidden fault and then, as a store to a
/// page that was mapped read-only, a dirty fault.
#[test]
fn a_retried_access_counts_once_under_shadow_paging() {
    let mut m = Setup::new(Profile::load("cascade-lake-6252").unwrap()).shadow();
    let mut s = Script::new(&LONG4);
    s.map(0x1000, 0x4000_0000, S4K, Protection::ALL, 0x20);
    m.run(&s.take()).unwrap();
    s.load(0x1000);
    let c = m.count(&s.take());
    assert_eq!((c.l1_tlb_misses, c.l2_tlb_misses, c.walks, c.faulted_walks), (1, 1, 1, 1));
    assert_eq!((exits(&c, ExitReason::HiddenFault), c.exits_total()), (1, 1));
    s.store(0x1000);
    let c = m.count(&s.take());
    assert_eq!((c.l1_tlb_misses, c.l2_tlb_misses, c.rewalks), (0, 0, 1));
    assert_eq!((c.walks, c.faulted_walks), (1, 1));
    assert_eq!((exits(&c, ExitReason::DirtyFault), c.exits_total()), (1, 1));
    approve(&m);
}

/// A guest page fault is a faulted walk, and no miss: the access that it belongs to comes later.
#[test]
fn a_guest_fault_is_no_miss() {
    let setup = Setup::new(Profile::load("cascade-lake-6252").unwrap());
    let mut machines: Vec<Box<dyn Probe>> =
        vec![Box::new(setup.native()), Box::new(setup.nested()), Box::new(setup.shadow())];
    for m in &mut machines {
        let mut s = Script::new(&LONG4);
        s.map_used(0x2000, 0x4000_1000, S4K);
        s.load(0x2000);
        m.run(&s.take()).unwrap();
        s.fault(0x1000, true);
        let c = m.count(&s.take());
        assert_eq!((c.l1_tlb_misses, c.walks, c.accesses), (0, 0, 0), "{}", m.name());
        assert_eq!((c.faulted_walks, c.guest_faults), (1, 1), "{}", m.name());
        s.map_used(0x1000, 0x4000_0000, S4K);
        s.store(0x1000);
        let c = m.count(&s.take());
        assert_eq!((c.l1_tlb_misses, c.l2_tlb_misses, c.walks), (1, 1, 1), "{}", m.name());
        approve(m.as_ref());
    }
}

// ---- tags --------------------------------------------------------------------------------------

/// Entries of another PCID survive a CR3 load, are not used by it, and are there on return; a load
/// without the keep bit removes those of the PCID that it loads, and no other's.
#[test]
fn entries_of_another_pcid_survive_and_do_not_hit() {
    let setup = Setup::new(Profile::load("cascade-lake-6252").unwrap());
    let mut machines: Vec<Box<dyn Probe>> =
        vec![Box::new(setup.native()), Box::new(setup.nested())];
    for m in &mut machines {
        let mut s = Script::new(&LONG4);
        let (first, second) = (s.root, s.add_root());
        s.map_used(0x1000, 0x4000_0000, S4K);
        s.load_cr3(second, 2, false);
        s.map_used(0x1000, 0x4000_1000, S4K);
        s.load(0x1000);
        s.load_cr3(first, 1, false);
        s.load(0x1000);
        let c = m.count(&s.take());
        assert_eq!(c.l1_tlb_misses, 2, "{}: the first load is of another PCID", m.name());
        s.load_cr3(second, 2, true);
        s.load(0x1000);
        s.load_cr3(first, 1, true);
        s.load(0x1000);
        assert_eq!(m.count(&s.take()).l1_tlb_misses, 0, "{}: kept", m.name());
        s.load_cr3(second, 2, false);
        s.load_cr3(first, 1, true);
        s.load(0x1000);
        assert_eq!(m.count(&s.take()).l1_tlb_misses, 0, "{}: not of PCID 2", m.name());
        s.load_cr3(second, 2, true);
        s.load(0x1000);
        assert_eq!(m.count(&s.take()).l2_tlb_misses, 1, "{}: of PCID 2", m.name());
        // INVLPG is about the current PCID, INVPCID about the one it names.
        s.invalidate(Invalidation::PageInPcid(Gva::new(0x1000), 1));
        s.load(0x1000);
        assert_eq!(m.count(&s.take()).l1_tlb_misses, 0, "{}", m.name());
        s.load_cr3(first, 1, true);
        s.load(0x1000);
        assert_eq!(m.count(&s.take()).l2_tlb_misses, 1, "{}", m.name());
        s.invalidate(Invalidation::Pcid(2));
        s.load(0x1000);
        assert_eq!(m.count(&s.take()).l1_tlb_misses, 0, "{}", m.name());
        s.load_cr3(second, 2, true);
        s.load(0x1000);
        assert_eq!(m.count(&s.take()).l2_tlb_misses, 1, "{}", m.name());
        approve(m.as_ref());
    }
}

/// Each vCPU has its own structures: what one has cached, another has not.
#[test]
fn each_vcpu_has_its_own_structures() {
    let setup = Setup { vcpus: 2, ..Setup::new(Profile::load("zen2").unwrap()) };
    let mut machines: Vec<Box<dyn Probe>> =
        vec![Box::new(setup.native()), Box::new(setup.nested()), Box::new(setup.shadow())];
    for m in &mut machines {
        let mut s = Script::new(&LONG4);
        s.map_used(0x1000, 0x4000_0000, S4K);
        s.load(0x1000);
        s.vcpu = VcpuId(1);
        s.load_cr3(s.root, 1, false);
        s.load(0x1000);
        let c = m.count(&s.take());
        assert_eq!((c.l1_tlb_misses, c.l2_tlb_misses, c.walks), (2, 2, 2), "{}", m.name());
        // The second vCPU's INVLPG leaves the first one's entry.
        s.invlpg(0x1000);
        s.vcpu = V0;
        s.load(0x1000);
        assert_eq!(m.count(&s.take()).l1_tlb_misses, 0, "{}", m.name());
        s.vcpu = VcpuId(1);
        s.load(0x1000);
        assert_eq!(m.count(&s.take()).l1_tlb_misses, 1, "{}", m.name());
        // The walk caches of the second vCPU are its own as well, the last-level cache is shared.
        let served = m.counters().references.served_by(ServedBy::Memory);
        assert_eq!(served, 0, "{}", m.name());
        approve(m.as_ref());
    }
}
