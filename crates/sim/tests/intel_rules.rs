//! What an invalidation, a fault and an EPT violation remove, by Intel's rules: SDM vol. 3A, "Caching
//! Translation Information", and vol. 3C, "Caching Translation Information" of the chapter on VMX
//! support for address translation. Three families of mappings are cached: linear ones (no EPT),
//! combined ones (gVA to hPA, TLBs and paging-structure caches), guest-physical ones (gPA to hPA,
//! nested TLB and caches of nested tables). What is left is seen by the references of the next walk.

use crate::common;

use common::machines::{Probe, Setup, array, exits, roomy_walk_cache, with_roomy_tlbs};
use common::{Script, V0, approve, bare_profile};
use nestwalk_hw::Profile;
use nestwalk_sim::{Counters, Dimension, ExitReason};
use nestwalk_tables::entry::GLOBAL;
use nestwalk_tables::{LEGACY32, LONG4, LONG5, Mode};
use nestwalk_types::{Gva, Invalidation, PageSize, Protection, VcpuId};

const S4K: PageSize = PageSize::SIZE_4K;
const DATA: u64 = 0x4000_0000;

/// Everything is cached and nothing evicted.
fn profile(nested_tlb: bool) -> Profile {
    let mut profile = with_roomy_tlbs(bare_profile());
    profile.walk_cache = roomy_walk_cache();
    profile.nested_walk_cache = roomy_walk_cache();
    profile.nested_tlb = nested_tlb.then(|| array(64, 64));
    profile
}

fn refs(c: &Counters) -> (u64, u64) {
    (c.references.of(Dimension::Guest), c.references.of(Dimension::Nested))
}

/// Something that a guest does.
type Way = Box<dyn Fn(&mut Script)>;

/// Every way by which a guest drops all that is cached of page 0x1000 in PCID 1.
fn all_ways() -> Vec<(&'static str, Way)> {
    let gva = Gva::new(0x1000);
    let way = |what: Invalidation| -> Way { Box::new(move |s: &mut Script| s.invalidate(what)) };
    vec![
        ("INVLPG", way(Invalidation::Page(gva))),
        ("INVPCID of an address", way(Invalidation::PageInPcid(gva, 1))),
        ("INVPCID of a PCID", way(Invalidation::Pcid(1))),
        ("INVPCID of all but global", way(Invalidation::AllButGlobal)),
        ("INVPCID of all", way(Invalidation::All)),
        ("MOV to CR3", Box::new(|s: &mut Script| s.load_cr3(s.root, 1, false))),
    ]
}

/// Combined mappings go, guest-physical ones stay.
#[test]
fn an_invalidation_removes_combined_mappings_and_no_guest_physical_ones() {
    for (nested_tlb, left) in [(false, 5), (true, 0)] {
        for (name, way) in all_ways() {
            let mut m = Setup::new(profile(nested_tlb)).nested();
            let mut s = Script::new(&LONG4);
            s.map_used(0x1000, DATA, S4K);
            s.load(0x1000);
            s.load(0x1000);
            m.count(&s.take());
            way(&mut s);
            s.load(0x1000);
            let c = m.count(&s.take());
            assert_eq!((c.l1_tlb_misses, c.l2_tlb_misses, c.walk_cache_hits), (1, 1, 0), "{name}");
            // From the root of the guest's tables; each of the five translations of a gPA is a hit
            // of the nested TLB, or one reference after a hit of the nested PDE cache.
            assert_eq!(refs(&c), (4, left), "{name}");
            assert_eq!(c.nested_tlb_hits, 5 - left, "{name}");
            approve(&m);
        }
    }
}

/// The same without EPT: linear mappings go.
#[test]
fn an_invalidation_removes_linear_mappings() {
    for (name, way) in all_ways() {
        let setup = Setup::new(profile(false));
        let (mut native, mut shadow) = (setup.native(), setup.shadow());
        for m in [&mut native as &mut dyn Probe, &mut shadow] {
            let mut s = Script::new(&LONG4);
            s.map_used(0x1000, DATA, S4K);
            s.load(0x1000);
            m.count(&s.take());
            way(&mut s);
            s.load(0x1000);
            let c = m.count(&s.take());
            assert_eq!((c.l2_tlb_misses, c.references.total()), (1, 4), "{name} on {}", m.name());
        }
    }
}

/// INVLPG drops the TLB entries of one page, and the paging-structure caches of the whole current
/// PCID; other PCIDs' stay.
#[test]
fn invlpg_removes_one_page_and_all_partial_walks_of_its_pcid() {
    let setup = Setup::new(profile(false));
    let (mut native, mut nested) = (setup.native(), setup.nested());
    for m in [&mut native as &mut dyn Probe, &mut nested] {
        let mut s = Script::new(&LONG4);
        let (first, second) = (s.root, s.add_root());
        for (root, pcid) in [(first, 1), (second, 2)] {
            s.load_cr3(root, pcid, false);
            s.map_used(0x1000, DATA, S4K);
            s.map_used(0x2000, DATA + 0x1000, S4K);
            s.map_used(0x4000_1000, DATA + 0x2000, S4K);
            s.load(0x1000);
            s.load(0x4000_1000);
        }
        m.count(&s.take());
        s.invlpg(0x1000);
        s.load(0x4000_1000);
        assert_eq!(m.count(&s.take()).l1_tlb_misses, 0, "{}: another page", m.name());
        s.load(0x2000);
        let c = m.count(&s.take());
        assert_eq!(c.references.of(Dimension::Guest), 4, "{}: from the root", m.name());
        s.load_cr3(first, 1, true);
        s.load(0x2000);
        let c = m.count(&s.take());
        assert_eq!(c.references.of(Dimension::Guest), 1, "{}: another PCID", m.name());
    }
}

/// A CR3 load with the keep bit removes nothing, one without removes what is tagged with the PCID
/// that it loads, partial walks too.
#[test]
fn a_cr3_load_removes_the_pcid_that_it_loads() {
    let setup = Setup::new(profile(true));
    let (mut native, mut nested) = (setup.native(), setup.nested());
    for m in [&mut native as &mut dyn Probe, &mut nested] {
        let mut s = Script::new(&LONG4);
        let (first, second) = (s.root, s.add_root());
        for (root, pcid) in [(first, 1), (second, 2)] {
            s.load_cr3(root, pcid, false);
            s.map_used(0x1000, DATA, S4K);
            s.map_used(0x2000, DATA, S4K);
            s.load(0x1000);
        }
        m.count(&s.take());
        s.load_cr3(first, 1, true);
        s.load(0x1000);
        s.load(0x2000);
        let c = m.count(&s.take());
        assert_eq!((c.l1_tlb_misses, c.references.of(Dimension::Guest)), (1, 1), "{}", m.name());
        s.load_cr3(second, 2, false);
        s.load(0x2000);
        let c = m.count(&s.take());
        assert_eq!((c.l1_tlb_misses, c.references.of(Dimension::Guest)), (1, 4), "{}", m.name());
        s.load_cr3(first, 1, true);
        s.load(0x1000);
        s.load(0x2000);
        assert_eq!(m.count(&s.take()).l1_tlb_misses, 0, "{}", m.name());
    }
}

/// Guest-physical mappings are tagged by the EPT pointer alone: every PCID uses them, and no other
/// vCPU does.
#[test]
fn guest_physical_mappings_are_shared_by_address_spaces_and_not_by_vcpus() {
    let mut m = Setup { vcpus: 2, ..Setup::new(profile(true)) }.nested();
    let mut s = Script::new(&LONG4);
    let second = s.add_root();
    s.map_used(0x1000, DATA, S4K);
    s.load(0x1000);
    s.load_cr3(second, 2, false);
    s.map_used(0x1000, DATA, S4K);
    let tables = s.take();
    m.count(&tables);
    s.load(0x1000);
    let c = m.count(&s.take());
    // Its own four tables are new; the page was translated for PCID 1.
    assert_eq!((c.nested_tlb_hits, c.nested_walks), (1, 4));
    s.load_cr3(second, 3, false);
    s.load(0x1000);
    let c = m.count(&s.take());
    assert_eq!((c.nested_tlb_hits, c.nested_walks, refs(&c)), (5, 0, (4, 0)));
    s.vcpu = VcpuId(1);
    s.load_cr3(second, 3, false);
    s.load(0x1000);
    let c = m.count(&s.take());
    assert_eq!((c.nested_tlb_hits, c.nested_walks), (0, 5));
    approve(&m);
}

/// An EPT violation removes the guest-physical mappings that were used for its gPA and the combined
/// ones of its linear address, and no others.
#[test]
fn an_ept_violation_removes_what_was_used_for_it_and_nothing_else() {
    for host in [&LONG4, &LONG5, &LEGACY32] {
        let host: &'static Mode = host;
        let host_bytes = if host.levels == 2 { 4 << 30 } else { 8 << 30 };
        let setup = Setup { host_mode: host, host_bytes, ..Setup::new(profile(false)) };
        let mut m = setup.nested();
        let mut s = Script::new(&LONG4);
        // Two pages of one guest region and one of another; the first two gPAs share a nested table.
        s.map_used(0x1000, DATA, S4K);
        s.map_used(0x2000, DATA + 0x1000, S4K);
        s.map_used(0x20_1000, DATA + 0x4000_0000, S4K);
        s.load(0x1000);
        s.load(0x20_1000);
        m.count(&s.take());
        s.load(0x2000);
        let c = m.count(&s.take());
        assert_eq!((exits(&c, ExitReason::EptViolation), c.faulted_walks), (1, 1));
        // The walk that fails finds the guest's leaf table and the nested leaf table in the caches.
        assert_eq!(c.faulted_references.of(Dimension::Guest), 1, "{}", host.name);
        assert_eq!(c.faulted_references.of(Dimension::Nested), 1, "{}", host.name);
        // The walk after it begins at both roots: the partial walks of the linear address are gone,
        // and those of the gPA; the guest's four tables lie elsewhere, so theirs are not.
        let h = u64::from(host.levels);
        assert_eq!(refs(&c), (4, 4 + h), "{}", host.name);
        s.load(0x1000);
        s.load(0x20_1000);
        assert_eq!(m.count(&s.take()).l1_tlb_misses, 0, "{}: other translations", host.name);
        m.forget_translations();
        s.load(0x20_1000);
        let c = m.count(&s.take());
        // Another linear address and another gPA: their partial walks were left alone.
        assert_eq!(refs(&c), (1, 1), "{}: other partial walks", host.name);
        approve(&m);
    }
}

/// The guest-physical mappings that go are those of the processor on which it happened.
#[test]
fn a_violation_of_the_kernels_own_store_concerns_its_vcpu() {
    let mut m = Setup { vcpus: 2, ..Setup::new(profile(false)) }.nested();
    let mut s = Script::new(&LONG4);
    s.map_used(0x1000, DATA, S4K);
    s.load(0x1000);
    m.count(&s.take());
    // The second vCPU clears a page beside the first one's.
    s.say(nestwalk_types::Control::PageCleared {
        vcpu: VcpuId(1),
        gpa: nestwalk_types::Gpa::new(DATA + 0x1000),
        size: S4K,
    });
    assert_eq!(exits(&m.count(&s.take()), ExitReason::EptViolation), 1);
    m.forget_translations();
    assert_eq!(s.vcpu, V0);
    s.load(0x1000);
    assert_eq!(refs(&m.count(&s.take())), (1, 1));
}

/// What is not present is not cached: an entry that appears is seen without an invalidation, at each
/// level, by the hardware that has just failed there.
#[test]
fn nothing_is_cached_of_an_entry_that_is_not_present() {
    for mode in [&LONG4, &LONG5] {
        // The first address shares 0, 1, ... levels of tables with the one that faults.
        for level in 1..=mode.levels {
            let setup = Setup { guest_mode: mode, host_mode: mode, ..Setup::new(profile(true)) };
            let (mut native, mut nested) = (setup.native(), setup.nested());
            for m in [&mut native as &mut dyn Probe, &mut nested] {
                let gva = 1u64 << mode.span(level).shift();
                let mut s = Script::new(mode);
                s.map_used(0, DATA, S4K);
                s.load(0);
                m.count(&s.take());
                // The entry of `level` is not there: the walk that fails passes what is above.
                s.fault(gva, false);
                let c = m.count(&s.take());
                assert_eq!(c.faulted_references.of(Dimension::Guest), 1, "{level} {}", m.name());
                s.map_used(gva, DATA + 0x1000, S4K);
                s.load(gva);
                let c = m.count(&s.take());
                // A fault drops the partial walks of its address, so this one begins at the root.
                let levels = u64::from(mode.levels);
                assert_eq!(c.references.of(Dimension::Guest), levels, "{level} {}", m.name());
                assert_eq!((c.l2_tlb_misses, c.walks), (1, 1));
                let verdict = m.verdict().unwrap();
                assert_eq!(verdict.told, Vec::<String>::new());
            }
        }
    }
}

/// A global page serves every PCID; it survives CR3 loads and the INVPCIDs that spare global
/// translations, and goes with INVLPG and with INVPCID of all.
#[test]
fn global_pages_stay_where_the_manual_says_so() {
    let gva = Gva::new(0x1000);
    let page = |s: &mut Script, what: Invalidation| s.invalidate(what);
    let ways: Vec<(&str, bool, Way)> = vec![
        ("MOV to CR3", true, Box::new(|s: &mut Script| s.load_cr3(s.root, 1, false))),
        ("MOV to CR3, another PCID", true, Box::new(|s: &mut Script| s.load_cr3(s.root, 2, false))),
        (
            "INVPCID of an address",
            true,
            Box::new(move |s| page(s, Invalidation::PageInPcid(gva, 1))),
        ),
        ("INVPCID of a PCID", true, Box::new(move |s| page(s, Invalidation::Pcid(1)))),
        ("INVPCID of all but global", true, Box::new(move |s| page(s, Invalidation::AllButGlobal))),
        ("INVLPG", false, Box::new(move |s| page(s, Invalidation::Page(gva)))),
        ("INVPCID of all", false, Box::new(move |s| page(s, Invalidation::All))),
    ];
    let setup = Setup::new(profile(true));
    for (name, stays, way) in &ways {
        let (mut native, mut nested) = (setup.native(), setup.nested());
        for m in [&mut native as &mut dyn Probe, &mut nested] {
            let mut s = Script::new(&LONG4);
            s.map(0x1000, DATA, S4K, Protection::ALL, 0x60 | GLOBAL);
            s.map_used(0x2000, DATA + 0x1000, S4K);
            s.load(0x1000);
            s.load(0x2000);
            m.count(&s.take());
            way(&mut s);
            s.load(0x1000);
            let c = m.count(&s.take());
            assert_eq!(c.l1_tlb_misses, u64::from(!stays), "{name} on {}", m.name());
            assert_eq!(c.l2_tlb_misses, u64::from(!stays), "{name} on {}", m.name());
        }
    }
}
