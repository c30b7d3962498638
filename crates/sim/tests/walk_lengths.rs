//! How long walks are: with nothing cached, after every partial hit of a walk cache, and over tables
//! that neighbours share. Walk length off by one, a wrong start level, walk caches of a wrong
//! granularity and page-table pages that are not shared were all found in simulators of the field.

use crate::common;

use common::machines::{Probe, Setup, array, only_to_level, roomy_walk_cache, with_tiny_tlbs};
use common::{Script, V0, approve, bare_profile, machine_with, run};
use nestwalk_sim::{Counters, Dimension, DynMachine};
use nestwalk_tables::{LEGACY32, LONG4, LONG5, Mode, PAE};
use nestwalk_types::{GuestBatch, PageSize};

const S4K: PageSize = PageSize::SIZE_4K;
const S2M: PageSize = PageSize::SIZE_2M;
const S4M: PageSize = PageSize::SIZE_4M;
const S1G: PageSize = PageSize::SIZE_1G;

fn refs(c: &Counters) -> (u64, u64) {
    (c.references.of(Dimension::Guest), c.references.of(Dimension::Nested))
}

// ---- walk length -------------------------------------------------------------------------------

/// `g * h + g + h` for g guest and h nested levels walked, for every pair of modes and page sizes;
/// 24 for 4 KiB on 4 KiB, 14 for 2-level on 4-level, 8 for 2-level on 2-level or 1 GiB on 1 GiB.
#[test]
fn cold_walks_have_the_length_of_the_formula_for_every_mode_and_size() {
    let host_sizes = |mode: &Mode| -> Vec<(&'static str, PageSize)> {
        let all = [("4k", S4K), ("2m", S2M), ("4m", S4M), ("1g", S1G)];
        all.into_iter().filter(|(_, s)| mode.leaf_level(*s).is_some()).collect()
    };
    for guest in [&LONG4, &LONG5, &PAE, &LEGACY32] {
        for size in guest.page_sizes() {
            let g = guest.walk_references(guest.leaf_level(size).unwrap());
            assert_eq!(cold("native", guest, &LONG4, size, "4k"), g, "{} {size}", guest.name);
            for host in [&LONG4, &LONG5, &LEGACY32] {
                for (name, host_size) in host_sizes(host) {
                    let h = host.walk_references(host.leaf_level(host_size).unwrap());
                    let found = cold("nested", guest, host, size, name);
                    let what = format!("{} {size} on {} {name}", guest.name, host.name);
                    assert_eq!(found, g * h + g + h, "{what}");
                }
            }
        }
    }
    assert_eq!(cold("nested", &LONG4, &LONG4, S4K, "4k"), 24);
    assert_eq!(cold("nested", &LEGACY32, &LONG4, S4K, "4k"), 14);
    assert_eq!(cold("nested", &LEGACY32, &LEGACY32, S4K, "4k"), 8);
    assert_eq!(cold("nested", &LONG4, &LONG4, S1G, "1g"), 8);
}

/// A shadow walk ends at the level of the smaller page. The shadow of 2-level tables is PAE, since
/// their entries could not hold a host frame.
#[test]
fn cold_shadow_walks_have_the_length_of_the_smaller_page() {
    for (guest, shadow) in [(&LONG4, &LONG4), (&LONG5, &LONG5), (&PAE, &PAE), (&LEGACY32, &PAE)] {
        for size in guest.page_sizes() {
            for (name, host_size) in [("4k", S4K), ("2m", S2M), ("1g", S1G)] {
                let smaller = size.min(host_size);
                let level = (1..=shadow.levels)
                    .filter(|&l| shadow.may_be_leaf(l) && shadow.span(l) <= smaller)
                    .max()
                    .unwrap();
                let found = cold("shadow", guest, &LONG4, size, name);
                let what = format!("{} {size} on {name}", guest.name);
                assert_eq!(found, shadow.walk_references(level), "{what}");
            }
        }
    }
}

fn cold(
    scheme: &str,
    guest: &'static Mode,
    host: &'static Mode,
    size: PageSize,
    host_pages: &str,
) -> u32 {
    let mut script = Script::new(guest);
    script.map_used(0x4000_0000, 0x4000_0000, size);
    script.load(0x4000_0000);
    let mut m = machine_with(scheme, guest, host, host_pages, &bare_profile(), 1);
    m.run(&script.take()).unwrap();
    approve(m.as_ref());
    m.watch(&run(0x4000_0000, false)).unwrap().len() as u32
}

// ---- the start level after a hit in a walk cache ------------------------------------------------

/// Addresses whose walks share more and more with that of address 0: nothing, the root's entry, ...,
/// all but the leaf.
fn sharing(mode: &Mode) -> Vec<(u8, u64)> {
    (1..=mode.levels).rev().map(|level| (level, 1 << mode.span(level).shift())).collect()
}

/// Walks address 0 and then each address with the walk caches filled by address 0 alone.
fn after_partial_hits(
    setup: &Setup,
    machine: &mut dyn FnMut(&Setup) -> Box<dyn Probe>,
) -> Vec<(u8, Counters)> {
    sharing(setup.guest_mode)
        .into_iter()
        .map(|(level, gva)| {
            let mut m = machine(setup);
            let mut s = Script::new(setup.guest_mode);
            s.map_used(0, 0x4000_0000, S4K);
            s.map_used(gva, 0x4000_1000, S4K);
            s.load(0);
            s.load(gva);
            m.count(&s.take());
            m.forget();
            s.load(0);
            m.count(&s.take());
            s.load(gva);
            let c = m.count(&s.take());
            approve(m.as_ref());
            (level, c)
        })
        .collect()
}

#[test]
fn a_walk_goes_on_where_the_longest_match_ends() {
    for (guest, host) in [(&LONG4, &LONG4), (&LONG5, &LONG4), (&LONG4, &LONG5), (&LONG5, &LONG5)] {
        let mut profile = with_tiny_tlbs(bare_profile());
        profile.walk_cache = roomy_walk_cache();
        let setup = Setup { guest_mode: guest, host_mode: host, ..Setup::new(profile) };
        let h = u64::from(host.levels);
        for (level, c) in after_partial_hits(&setup, &mut |s| Box::new(s.native())) {
            assert_eq!(refs(&c), (u64::from(level), 0), "{} level {level}", guest.name);
            assert_eq!(c.walk_cache_hits, u64::from(level < guest.levels));
        }
        for (level, c) in after_partial_hits(&setup, &mut |s| Box::new(s.shadow())) {
            assert_eq!(c.references.of(Dimension::Shadow), u64::from(level), "{}", guest.name);
            assert_eq!(c.references.total(), u64::from(level));
        }
        // The combined cache has the host-physical address of the table where the walk goes on: what
        // is left to translate are the tables below it and the page. With no match it is the root
        // as well.
        for (level, c) in after_partial_hits(&setup, &mut |s| Box::new(s.nested())) {
            let (g, all) = (u64::from(level), level == guest.levels);
            let translations = g + u64::from(all);
            assert_eq!(refs(&c), (g, translations * h), "{} on {} {level}", guest.name, host.name);
            assert_eq!(c.nested_walks, translations);
        }
    }
}

/// The nested tables' own caches: the guest's walk is all there is (nothing combined is cached), and
/// each of its translations goes on where the longest match of its gPA ends.
#[test]
fn a_nested_walk_goes_on_where_the_longest_match_ends() {
    for (guest, host) in [(&LONG4, &LONG4), (&LONG4, &LONG5), (&LONG5, &LONG5)] {
        // Where the data page is, beside guest tables that are all in the first 2 MiB block after
        // 16 MiB: in the same block, the same GiB, the same 512 GiB, elsewhere.
        for (left, gpa) in [(1, 0x110_0000), (2, 0x200_0000), (3, 0x4000_0000), (4, 0x80_0000_0000)]
        {
            let mut profile = with_tiny_tlbs(bare_profile());
            profile.nested_walk_cache = roomy_walk_cache();
            let setup = Setup {
                guest_mode: guest,
                host_mode: host,
                guest_bytes: 1 << 40,
                ..Setup::new(profile)
            };
            let mut m = setup.nested();
            let mut s = Script::new(guest);
            s.map_used(0, gpa, S4K);
            s.load(0);
            m.count(&s.take());
            m.forget();
            s.load(0);
            let c = m.count(&s.take());
            // The first translation walks from the root, each other table's is one reference.
            let (g, h) = (u64::from(guest.levels), u64::from(host.levels));
            assert_eq!(refs(&c), (g, h + (g - 1) + left), "{} {gpa:#x}", guest.name);
            m.forget_translations();
            s.load(0);
            // Everything is cached down to the leaves: a table that is flat to the walker, 9
            // references for 4 levels.
            assert_eq!(refs(&m.count(&s.take())), (g, g + 1));
            approve(&m);
        }
    }
}

/// Both caches: a combined hit leaves one guest reference and the page's translation.
#[test]
fn with_everything_cached_a_nested_walk_is_two_references() {
    let mut profile = with_tiny_tlbs(bare_profile());
    profile.walk_cache = roomy_walk_cache();
    profile.nested_walk_cache = roomy_walk_cache();
    for (mode, nested_tlb, expected) in
        [(&LONG4, None, (1, 1)), (&LONG5, None, (1, 1)), (&LONG4, Some(array(64, 4)), (1, 0))]
    {
        profile.nested_tlb = nested_tlb;
        let setup = Setup { guest_mode: mode, host_mode: mode, ..Setup::new(profile.clone()) };
        let mut m = setup.nested();
        let mut s = Script::new(mode);
        s.map_used(0, 0x4000_0000, S4K);
        s.load(0);
        s.load(0);
        m.count(&s.take());
        m.forget_translations();
        s.load(0);
        let c = m.count(&s.take());
        assert_eq!(refs(&c), expected, "{}", mode.name);
        assert_eq!(c.walk_cache_hits, 1);
    }
}

// ---- granularity of walk caches -----------------------------------------------------------------

/// An entry covers exactly what its table covers: a PDE 2 MiB, a PDPTE 1 GiB, a PML4E 512 GiB, a
/// PML5E 256 TiB: from the first to the last page and not one page more.
#[test]
fn a_walk_cache_entry_covers_what_its_table_covers() {
    for (to_level, span) in [(1, 21), (2, 30), (3, 39), (4, 48)] {
        let mut profile = with_tiny_tlbs(bare_profile());
        profile.walk_cache = only_to_level(to_level, array(1, 1));
        let setup = Setup { guest_mode: &LONG5, host_mode: &LONG5, ..Setup::new(profile) };
        let span = 1u64 << span;
        let start = 3 * span;
        // (address, whether the entry of `start` covers it)
        let probes = [
            (start + 0x1000, true),
            (start + span / 2, true),
            (start + span - 0x1000, true),
            (start + span, false),
            (start - 0x1000, false),
            (start ^ (2 * span), false),
        ];
        let mut machines: Vec<Box<dyn Probe>> =
            vec![Box::new(setup.native()), Box::new(setup.nested()), Box::new(setup.shadow())];
        for m in &mut machines {
            let mut s = Script::new(&LONG5);
            let all = probes.iter().map(|p| p.0).chain([start]);
            all.clone().for_each(|a| s.map_used(a, 0x4000_0000, S4K));
            all.for_each(|a| s.load(a));
            m.count(&s.take());
            for (probe, covered) in probes {
                m.forget_translations();
                s.load(start);
                s.load(probe);
                s.load(start);
                let c = m.count(&s.take());
                // Whether the second and the third walk had a hit; one entry is all there is.
                let expected = if covered { 2 } else { 0 };
                let first = c.walk_cache_hits - expected;
                assert!(c.walks == 3 && first <= 1, "{} level {to_level} {probe:#x}", m.name());
                assert_eq!(c.walk_cache_hits - first, expected, "{} {probe:#x}", m.name());
            }
            approve(m.as_ref());
        }
    }
}

// ---- page-table pages are shared ---------------------------------------------------------------

/// 512 pages share a leaf table, 8 entries a cache line: a sequential walk over N pages makes
/// `ceil(N / 512)` leaf tables, and 7 of 8 references to leaf entries hit the first-level cache.
#[test]
fn a_sequential_walk_shares_tables_and_lines() {
    const PAGES: u64 = 4096;
    let mut profile = with_tiny_tlbs(bare_profile());
    profile.walk_cache = roomy_walk_cache();
    profile.nested_walk_cache = roomy_walk_cache();
    let setup = Setup::new(profile);
    let mut s = Script::new(&LONG4);
    for i in 0..PAGES {
        s.map_used(i << 12, 0x4000_0000 + (i << 12), S4K);
    }
    let tables = s.take();
    // Half-way into each page: their lines do not displace those of the tables' first entries.
    for i in 0..PAGES {
        s.load((i << 12) + 0x800);
    }
    let accesses = s.take();
    let (leaves, regions) = (PAGES, PAGES / 512);
    let mut machines: Vec<(Box<dyn Probe>, Dimension)> = vec![
        (Box::new(setup.native()), Dimension::Guest),
        (Box::new(setup.shadow()), Dimension::Shadow),
        (Box::new(setup.nested()), Dimension::Nested),
        (Box::new(setup.nested()), Dimension::Guest),
    ];
    for (m, dimension) in &mut machines {
        m.run(&tables).unwrap();
        m.run(&accesses).unwrap();
        m.forget();
        // Data caches as new: only what this pass brings in.
        m.platform().cpu.hardware.take_caches();
        let c = m.count(&accesses);
        let [l1, l2, llc, memory] = c.references.0[*dimension as usize];
        // One leaf entry per page; one entry per leaf table; of the two levels above one each.
        let upper = regions + 2;
        let name = format!("{} {dimension:?}", m.name());
        if *dimension != Dimension::Nested {
            assert_eq!(l1 + l2 + llc + memory, leaves + upper, "{name}");
            assert_eq!(l2 + llc + memory, leaves / 8 + regions.div_ceil(8) + 2, "{name}");
        } else {
            // Beside the pages, each guest table is translated once: 8 leaf tables and the three
            // above. The root takes the three upper entries of the first walk, the first page a
            // PDPTE and a PDE, each further region a PDE.
            assert_eq!(l1 + l2 + llc + memory, leaves + (regions + 3) + 3 + 2 + (regions - 1));
            // The 11 tables' leaf entries lie in two lines; one line each holds all PML4Es, PDPTEs,
            // PDEs of the tables and PDEs of the pages.
            assert_eq!(l2 + llc + memory, leaves / 8 + 2 + 4, "{name}");
        }
        let bytes = m.report().page_tables;
        let expected = 4096 * (PAGES.div_ceil(512) + 3);
        assert_eq!(bytes.guest, expected, "{name}");
        if *dimension == Dimension::Shadow {
            assert_eq!(bytes.shadow, expected, "{name}");
        }
        if *dimension == Dimension::Nested {
            // One more leaf table and one more page directory: the guest's tables at 16 MiB.
            assert_eq!(bytes.nested, expected + 2 * 4096, "{name}");
        }
        approve(m.as_ref());
    }
}

/// The same for a guest that makes its tables itself.
#[test]
fn a_modelled_guest_shares_tables() {
    use nestwalk_mm::{GuestConfig, ModelledGuest};
    use nestwalk_types::{AccessKind, Batch, BatchBuilder, Gva};
    for pages in [1, 511, 512, 513, 5000] {
        let mut guest = ModelledGuest::new(GuestConfig::new(&LONG4, 1 << 30)).unwrap();
        let mut b = BatchBuilder::new();
        for i in 0..pages {
            let gva = Gva::new(0x4000_0000 + (i << 12));
            b.access(V0, Gva::new(0), gva, 8, AccessKind::Store, 1);
        }
        let (mut batch, mut out) = (Batch::default(), GuestBatch::default());
        b.take_into(&mut batch);
        guest.process(&batch, &mut out).unwrap();
        let leaf_tables = pages.div_ceil(512);
        let mut m = Setup::new(bare_profile()).native();
        m.run(&out).unwrap();
        assert_eq!(m.report().page_tables.guest, 4096 * (leaf_tables + 3), "{pages} pages");
        assert_eq!(m.counters().walks, pages);
    }
}
