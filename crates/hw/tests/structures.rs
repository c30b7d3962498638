//! TLBs and walk caches against maps that forget nothing, over several VMs: what a structure says is
//! what was put in last and not removed since, and with room for everything it forgets nothing.

use nestwalk_hw::profile::{ArrayProfile, CacheLevelProfile, TlbProfile, WalkCacheProfile};
use nestwalk_hw::{Asid, Caches, Pointer, Profile, ServedBy, Tlb, Translation, WalkCache};
use nestwalk_tables::{LEGACY32, LONG4, LONG5, Mode, PAE, Permissions};
use nestwalk_types::{Gva, Hpa, PageSize, SplitMix64};
use std::collections::BTreeMap;

fn tlb(sizes: &[&str], entries: u32, ways: u32) -> Tlb {
    let sizes = sizes.iter().map(|s| (*s).to_owned()).collect();
    Tlb::new(&[TlbProfile { sizes, entries, ways, source: "test".into(), ..Default::default() }])
}

/// Key: VPID, PCID (`None`: global), size, page.
type Known = BTreeMap<(u8, Option<u16>, PageSize, u64), Translation>;

fn asids() -> Vec<Asid> {
    [(0, 0), (1, 0), (1, 1), (1, 0xfff), (2, 1), (15, 1)].map(|(v, p)| Asid::new(v, p)).to_vec()
}

/// Addresses of pages that never overlap each other: each size in its own part.
fn some_page(r: &mut SplitMix64) -> (u64, PageSize) {
    let size = [PageSize::SIZE_4K, PageSize::SIZE_2M, PageSize::SIZE_1G][r.below(3) as usize];
    let part = [0, 1 << 40, 0xffff_8000_0000_0000][r.below(3) as usize];
    (part + (u64::from(size.shift()) << 34) + r.below(6) * size.bytes(), size)
}

#[test]
fn a_roomy_tlb_forgets_nothing_but_what_is_invalidated() {
    let mut subject = tlb(&["4k", "2m", "1g"], 4096, 512);
    let mut known = Known::new();
    let mut r = SplitMix64::new(8);
    let asids = asids();
    for _ in 0..60_000 {
        let asid = asids[r.below(6) as usize];
        let (vpid, pcid) = (asid.vpid(), asid.pcid());
        let (page, size) = some_page(&mut r);
        let gva = Gva::new(page + r.below(size.bytes()));
        let global = page >> 63 == 1;
        match r.below(40) {
            0..8 => {
                let frame = Hpa::new(r.below(1 << 12) << 30);
                let found = Translation::new(frame, size, Permissions::ALL, true, global);
                subject.fill(gva, asid, found);
                known.insert((vpid, (!global).then_some(pcid), size, page), found);
            }
            8 => {
                let too = r.below(2) == 0;
                subject.invalidate_page(gva, asid, too);
                known.remove(&(vpid, Some(pcid), size, page));
                if too {
                    known.remove(&(vpid, None, size, page));
                }
            }
            9 if r.below(8) == 0 => {
                subject.invalidate_asid(asid);
                known.retain(|k, _| (k.0, k.1) != (vpid, Some(pcid)));
            }
            10 if r.below(16) == 0 => {
                let too = r.below(2) == 0;
                subject.invalidate_vpid(vpid, too);
                known.retain(|k, _| k.0 != vpid || (k.1.is_none() && !too));
            }
            _ => {
                let own = known.get(&(vpid, Some(pcid), size, page));
                let expected = own.or_else(|| known.get(&(vpid, None, size, page))).copied();
                assert_eq!(subject.look_up(gva, asid), expected, "{asid:?} {gva:?}");
            }
        }
        assert_eq!(subject.is_empty(), known.is_empty());
    }
    assert_eq!(subject.len(), known.len());
    assert!(known.len() > 20, "{}", known.len());
}

/// `remove` is about one entry, `invalidate_page` about a page and all its parts.
#[test]
fn removing_an_entry_leaves_the_other_parts_of_its_page() {
    for global in [false, true] {
        let mut subject = tlb(&["4k", "2m"], 64, 64);
        let asid = Asid::new(1, 7);
        let part = |frame: u64| {
            let frame = Hpa::new(frame << 12);
            Translation::new(frame, PageSize::SIZE_4K, Permissions::ALL, true, global)
                .splinter_of(PageSize::SIZE_2M)
        };
        (0..4u64).for_each(|i| subject.fill(Gva::new(0x20_0000 + (i << 12)), asid, part(i)));
        assert_eq!(subject.remove(Gva::new(0x20_1fff), asid, false), u32::from(!global));
        assert_eq!(subject.remove(Gva::new(0x20_1000), asid, true), u32::from(global));
        assert_eq!(subject.remove(Gva::new(0x20_9000), asid, true), 0);
        assert_eq!(subject.len(), 3);
        assert_eq!(subject.invalidate_page(Gva::new(0x20_9000), asid, true), 3);
    }
}

fn roomy() -> WalkCacheProfile {
    let array = Some(ArrayProfile { entries: 1024, ways: 64, source: "test".into() });
    WalkCacheProfile {
        pde: array.clone(),
        pdpte: array.clone(),
        pml4e: array.clone(),
        pml5e: array,
    }
}

/// The longest prefix of an address that was filled for its address space, in every mode.
#[test]
fn a_walk_cache_gives_the_longest_match() {
    for mode in [&LONG4, &LONG5, &PAE, &LEGACY32] {
        let mode: &'static Mode = mode;
        let mut subject = WalkCache::new(&roomy());
        let mut known: BTreeMap<(u8, u64, u8, u16), Pointer> = BTreeMap::new();
        let mut r = SplitMix64::new(u64::from(mode.levels));
        let asids = asids();
        let mut hits = 0;
        for i in 0..30_000 {
            let asid = asids[r.below(6) as usize];
            let (vpid, pcid) = (asid.vpid(), asid.pcid());
            // Few values in each part of the address, so that prefixes are shared.
            let mut gva = 0;
            (1..=mode.levels).for_each(|l| gva |= r.below(3) << mode.span(l).shift());
            let gva = Gva::new(gva & mode.address_mask());
            // What a walk to a table of a level has passed: the address above that table's span.
            let prefix = |level: u8| gva.value() >> mode.span(level + 1).shift();
            match r.below(30) {
                0..6 => {
                    let level = 1 + r.below(u64::from(mode.levels) - 1) as u8;
                    let table = Hpa::new(i << 12);
                    let pointer = Pointer { table, home: table.value(), ..Pointer::default() };
                    subject.fill(mode, gva, asid, level, pointer);
                    known.insert((level, prefix(level), vpid, pcid), pointer);
                }
                6 => {
                    subject.invalidate_address(mode, gva, asid);
                    (1..mode.levels).for_each(|l| {
                        known.remove(&(l, prefix(l), vpid, pcid));
                    });
                }
                7 if r.below(8) == 0 => {
                    subject.invalidate_asid(asid);
                    known.retain(|k, _| (k.2, k.3) != (vpid, pcid));
                }
                8 if r.below(16) == 0 => {
                    subject.invalidate_vpid(vpid);
                    known.retain(|k, _| k.2 != vpid);
                }
                _ => {
                    let expected = (1..mode.levels)
                        .find_map(|l| known.get(&(l, prefix(l), vpid, pcid)).map(|p| (l, *p)));
                    hits += u32::from(expected.is_some());
                    assert_eq!(subject.look_up(mode, gva, asid), expected, "{}", mode.name);
                }
            }
        }
        assert!(hits > 1000, "{}: {hits}", mode.name);
    }
}

/// A missing cache is no cache: look-ups pass it by.
#[test]
fn a_level_without_a_walk_cache_is_passed_by() {
    let profile = WalkCacheProfile { pdpte: roomy().pdpte, ..WalkCacheProfile::default() };
    let mut subject = WalkCache::new(&profile);
    let (gva, asid) = (Gva::new(0x4000_0000), Asid::new(1, 1));
    let pointer = |n: u64| Pointer { table: Hpa::new(n << 12), home: n, ..Pointer::default() };
    (1..4).for_each(|level| subject.fill(&LONG4, gva, asid, level, pointer(level.into())));
    assert_eq!(subject.look_up(&LONG4, gva, asid), Some((2, pointer(2))));
    subject.flush();
    assert_eq!(subject.look_up(&LONG4, gva, asid), None);
}

/// A line is where it was brought last: in every level after a miss, in the first after a hit of a
/// lower one; private levels are private, the last is shared; code and data meet in the second.
#[test]
fn a_line_is_found_where_it_was_brought() {
    let mut profile = Profile::load("zen2").unwrap().caches;
    let level = |kib, ways, cycles| CacheLevelProfile { kib, ways, cycles, source: "test".into() };
    (profile.l1d, profile.l1i) = (level(4, 1, 4), level(4, 1, 4));
    (profile.l2, profile.llc) = (level(16, 4, 12), level(64, 16, 40));
    let mut caches = Caches::new(&profile, 2);
    let line = Hpa::new(0x10_0000);
    assert_eq!(caches.data(0, line), ServedBy::Memory);
    assert_eq!(caches.data(0, Hpa::new(line.value() + 63)), ServedBy::L1, "64 bytes are a line");
    assert_eq!(caches.data(0, Hpa::new(line.value() + 64)), ServedBy::Memory);
    assert_eq!(caches.fetch(0, line), ServedBy::L2, "code and data share the second level");
    assert_eq!(caches.data(1, line), ServedBy::Llc, "another core's private levels are empty");
    // Direct-mapped, 64 sets: a line 4 KiB further displaces it from the first level alone.
    assert_eq!(caches.data(0, Hpa::new(line.value() + 4096)), ServedBy::Memory);
    assert_eq!(caches.data(0, line), ServedBy::L2);
    assert_eq!(caches.data(0, line), ServedBy::L1);
    // Four ways in the second level, 64 sets: four more lines of the set displace it there.
    (2..7).for_each(|i| {
        caches.data(0, Hpa::new(line.value() + i * 4096));
    });
    assert_eq!(caches.data(0, line), ServedBy::Llc);
    // Reading ahead changes nothing.
    let before = caches.clone();
    (0..64).for_each(|i| {
        let _ = caches.last_level_place(Hpa::new(line.value() + i * 4096));
    });
    let mut other = before;
    for i in 0..200 {
        let at = Hpa::new(line.value() + i % 50 * 4096);
        assert_eq!(caches.data(0, at), other.data(0, at));
    }
}
