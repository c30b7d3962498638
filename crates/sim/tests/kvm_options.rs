//! What KVM's parameters decide: accessed and dirty flags of nested entries, and what is executed of
//! large pages.

use crate::common;

use common::machines::{Probe, Setup, exits, exits_by_name};
use common::{Script, approve};
use nestwalk_hw::Profile;
use nestwalk_sim::hypervisor::nested::Nested;
use nestwalk_sim::scheme::vmm_options::VmmOptions;
use nestwalk_sim::{Counters, ExitReason, Machine};
use nestwalk_tables::entry::{ACCESSED, DIRTY, NO_EXECUTE, WRITE};
use nestwalk_tables::{Entry, LONG4, look_up};
use nestwalk_types::{Gpa, Hpa, PageSize, RunFlags};

const S4K: PageSize = PageSize::SIZE_4K;
const S2M: PageSize = PageSize::SIZE_2M;
const GVA: u64 = 0x4000_0000;
const DATA: u64 = 0x4000_0000;

fn setup(profile: &str, host_pages: &'static str, vmm: VmmOptions) -> Setup {
    Setup { host_pages, vmm, ..Setup::new(Profile::load(profile).unwrap()) }
}

fn options(ept_ad: Option<bool>, nx_huge_pages: Option<bool>) -> VmmOptions {
    VmmOptions { ept_ad, nx_huge_pages, ..VmmOptions::default() }
}

fn fetch(s: &mut Script, gva: u64) {
    s.access_as(gva, RunFlags::FETCH);
}

fn count(m: &mut dyn Probe, s: &mut Script) -> Counters {
    let c = m.count(&s.take());
    assert_eq!(m.verdict().unwrap().told, Vec::<String>::new());
    c
}

/// The nested leaf of an address: where it is, what it says, and the size of its page.
fn leaf(m: &mut Machine<Nested>, gpa: u64) -> (Hpa, Entry, PageSize) {
    let tables = m.scheme.mmu.tables();
    let found = look_up(tables.memory, tables.mode, tables.root, Gpa::new(gpa)).unwrap();
    (found.at, found.entry, found.size)
}

fn change(m: &mut Machine<Nested>, at: Hpa, entry: Entry) {
    m.scheme.mmu.tables().memory.write(at, 8, entry.0).unwrap();
    m.platform.cpu.hardware.invalidate_nested_everywhere();
}

/// A guest page that is in use: the machine, the script, and where its leaf table is.
fn in_use(vmm: VmmOptions) -> (Machine<Nested>, Script, u64) {
    let mut m = setup("cascade-lake-6252", "4k", vmm).nested();
    let mut s = Script::new(&LONG4);
    s.map_used(GVA, DATA, S4K);
    s.load(GVA);
    count(&mut m, &mut s);
    let table = s.entry(GVA, 1).0.value() & !0xfff;
    (m, s, table)
}

// ---- accessed and dirty flags ------------------------------------------------------------------

/// With flags on, a walk sets A and D in the nested entry of each guest table, and A, for a store D, in
/// that of the page. Without, it sets none. KVM has them on.
#[test]
fn a_walk_dirties_the_nested_entries_of_guest_tables() {
    for (given, on) in [(None, true), (Some(true), true), (Some(false), false)] {
        let (mut m, mut s, table) = in_use(options(given, None));
        let flags = |m: &mut Machine<Nested>, gpa| {
            let entry = leaf(m, gpa).1;
            (entry.has(ACCESSED), entry.has(DIRTY))
        };
        assert_eq!(flags(&mut m, table), (on, on), "{given:?}: as KVM makes it");
        let tables: Vec<u64> = (1..=4).map(|l| s.entry(GVA, l).0.value() & !0xfff).collect();
        for gpa in tables.iter().chain([&DATA]) {
            let (at, entry, _) = leaf(&mut m, *gpa);
            change(&mut m, at, entry.without(ACCESSED | DIRTY));
        }
        s.load(GVA);
        count(&mut m, &mut s);
        for gpa in &tables {
            assert_eq!(flags(&mut m, *gpa), (on, on), "{given:?}: table {gpa:#x}");
        }
        assert_eq!(flags(&mut m, DATA), (on, false), "{given:?}: the page was read");
        s.store(GVA);
        let c = count(&mut m, &mut s);
        assert_eq!(flags(&mut m, DATA), (on, on), "{given:?}: the page was stored to");
        // A clean nested entry is one that a store must walk for; without flags there is none.
        assert_eq!(c.rewalks, u64::from(on), "{given:?}");
    }
}

/// A guest table whose page may not be written is a violation for a walk that is a write, and none for
/// one that is a read.
#[test]
fn a_walk_over_a_read_only_page_is_a_violation_where_it_is_a_write() {
    for (on, violations) in [(true, 1), (false, 0)] {
        let (mut m, mut s, table) = in_use(options(Some(on), None));
        let (at, entry, _) = leaf(&mut m, table);
        change(&mut m, at, entry.without(WRITE));
        s.load(GVA);
        let c = count(&mut m, &mut s);
        assert_eq!(exits(&c, ExitReason::EptViolation), violations, "{on}");
        assert_eq!(leaf(&mut m, table).1.has(WRITE), on, "{on}: the answer allows it");
    }
}

/// A processor whose nested paging always has flags refuses to have them off.
#[test]
fn a_processor_without_the_choice_says_so() {
    let mut build = setup("zen2", "4k", options(Some(false), None)).build("nested", true);
    let error = Nested::new(&mut build).err().unwrap().to_string();
    assert!(error.contains("eptad=off") && error.contains("leave it out"), "{error}");
}

// ---- large pages and what is executed --------------------------------------------------------------

/// A fetch from a page that a large nested entry maps leaves it and maps a group of eight small ones
/// around it; what else the entry mapped comes by small ones, too, each group by a violation of its own.
#[test]
fn executed_pages_are_small_where_the_processor_has_the_erratum() {
    for (profile, given, split) in [
        ("cascade-lake-6252", None, true),
        ("cascade-lake-6252", Some(false), false),
        ("zen2", None, false),
        ("zen2", Some(true), true),
    ] {
        for host_pages in ["2m", "1g"] {
            let name = format!("{profile} {given:?} {host_pages}");
            let mut m = setup(profile, host_pages, options(None, given)).nested();
            let mut s = Script::new(&LONG4);
            for page in 0..64 {
                s.map_used(GVA + (page << 12), DATA + (page << 12), S4K);
            }
            s.load(GVA);
            count(&mut m, &mut s);
            let (_, entry, size) = leaf(&mut m, DATA);
            assert!(size >= S2M, "{name}");
            assert_eq!(entry.has(NO_EXECUTE), split, "{name}");
            // (what, violations, fills ahead) where large pages are split.
            let steps: [(&str, u64, bool, [u64; 2]); 6] = [
                ("the page that was loaded from", 0, true, [1, 7]),
                ("its neighbour", 1, true, [0, 0]),
                ("a load in the same group", 2, false, [0, 0]),
                ("a load in another group", 9, false, [1, 7]),
                ("a fetch there", 10, true, [0, 0]),
                ("a fetch in a third group", 16, true, [1, 7]),
            ];
            for (what, page, executes, [violations, ahead]) in steps {
                let gva = GVA + (page << 12);
                if executes {
                    fetch(&mut s, gva);
                } else {
                    s.load(gva);
                }
                let c = count(&mut m, &mut s);
                let expected = if split { (violations, violations, ahead) } else { (0, 0, 0) };
                let found =
                    (exits(&c, ExitReason::EptViolation), c.nested_fills, c.nested_prefetches);
                assert_eq!(found, expected, "{name}: {what}");
                assert_eq!(leaf(&mut m, DATA + (page << 12)).2 == S4K, split, "{name}: {what}");
            }
            // What lies in another 2 MiB is not concerned.
            s.map_used(GVA + (8 << 20), DATA + (8 << 20), S4K);
            s.load(GVA + (8 << 20));
            count(&mut m, &mut s);
            assert!(leaf(&mut m, DATA + (8 << 20)).2 >= S2M, "{name}");
            approve(&m);
        }
    }
}

/// The same under shadow paging: a large page of the guest that is executed has small shadow entries.
#[test]
fn executed_pages_are_small_in_shadow_tables() {
    for (given, split) in [(None, true), (Some(false), false)] {
        let mut m = setup("cascade-lake-6252", "2m", options(None, given)).shadow();
        let mut s = Script::new(&LONG4);
        s.map_used(GVA, DATA, S2M);
        count(&mut m, &mut s);
        s.load(GVA);
        let c = count(&mut m, &mut s);
        assert_eq!((exits(&c, ExitReason::HiddenFault), c.shadow_prefetches), (1, 0));
        fetch(&mut s, GVA + 0x3000);
        let c = count(&mut m, &mut s);
        let expected = if split { vec![("hidden_fault", 1)] } else { vec![] };
        assert_eq!(exits_by_name(&c), expected, "{given:?}");
        assert_eq!(c.shadow_prefetches, if split { 7 } else { 0 });
        s.load(GVA + 0x10_0000);
        let c = count(&mut m, &mut s);
        assert_eq!(exits_by_name(&c), expected, "{given:?}: no large entry comes back");
        approve(&m);
    }
}
