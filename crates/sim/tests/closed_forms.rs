//! The closed form to hold every caching structure against: P things equally likely, E of them
//! held, and a use is a hit with probability E/P, whatever the replacement, as long as the structure
//! is full and holds nothing twice. Each use is independent of all before, so n uses have a standard
//! deviation of `sqrt(p (1 - p) / n)`; four of them are allowed, in whole machines.

use crate::common;

use common::machines::{Probe, Setup, array, only_to_level, plain, tlb, with_tiny_tlbs};
use common::{Script, approve, bare_profile};
use nestwalk_hw::{Profile, ServedBy};
use nestwalk_sim::{Counters, Dimension};
use nestwalk_tables::{LONG4, LONG5, Mode};
use nestwalk_types::{Gpa, GuestBatch, Gva, PageSize, Run, RunFlags, SplitMix64};

const S4K: PageSize = PageSize::SIZE_4K;
const S2M: PageSize = PageSize::SIZE_2M;
/// Uses that are counted, and those before, which fill the structure. 20,000 uses leave a place of a
/// structure of E entries among P = 4E things untouched with probability below e^-3 per entry and
/// pass; the largest structure here is filled by walking through all P things first.
const USES: u64 = 150_000;
const BEFORE: u64 = 20_000;

/// Within four standard deviations of the closed form.
fn hold(what: &str, hits: u64, entries: u64, things: u64) {
    let p = entries as f64 / things as f64;
    let n = USES as f64;
    let sigma = (p * (1.0 - p) / n).sqrt();
    let rate = hits as f64 / n;
    let off = (rate - p) / sigma;
    assert!(off.abs() < 4.0, "{what}: hit rate {rate:.5}, E/P is {p:.5}: {off:.1} sigma off");
}

/// P things: where each is, as the guest has it.
struct Things {
    mode: &'static Mode,
    addresses: Vec<(u64, Gpa)>,
    flags: RunFlags,
}

impl Things {
    /// `count` pages of `size`, `stride` bytes of gVA and `gpa_stride` bytes of gPA apart, and the
    /// events that map them.
    fn pages(
        mode: &'static Mode,
        count: u64,
        size: PageSize,
        (stride, gpa_stride): (u64, u64),
    ) -> (GuestBatch, Self) {
        let mut s = Script::new(mode);
        let mut addresses = Vec::new();
        for i in 0..count {
            let (gva, gpa) = (i * stride, 0x4000_0000 + i * gpa_stride);
            s.map_used(gva, gpa, size);
            addresses.push((gva, Gpa::new(gpa)));
        }
        (s.take(), Self { mode, addresses, flags: RunFlags::default() })
    }

    fn use_one(&self, which: u64, into: &mut GuestBatch) {
        let (gva, gpa) = self.addresses[which as usize];
        let gva = Gva::new(gva);
        into.gpas.push(gpa);
        into.batch.runs.push(Run { gva, flags: self.flags, ..common::run(gva.value(), false) });
    }

    /// Counters of `USES` uniform uses in steady state.
    fn use_at_random(&self, m: &mut dyn Probe, tables: &GuestBatch) -> Counters {
        let mut before = GuestBatch::default();
        let mut r = SplitMix64::new(self.addresses.len() as u64 ^ u64::from(self.mode.levels));
        let count = self.addresses.len() as u64;
        (0..count).for_each(|i| self.use_one(i, &mut before));
        (0..BEFORE).for_each(|_| self.use_one(r.below(count), &mut before));
        let mut events = GuestBatch::default();
        (0..USES).for_each(|_| self.use_one(r.below(count), &mut events));
        m.run(tables).unwrap();
        m.run(&before).unwrap();
        let c = m.count(&events);
        assert_eq!(c.accesses, USES);
        c
    }
}

/// First and second level of every profile, for each page size, for loads and fetches.
#[test]
fn tlbs_hit_as_often_as_the_closed_form_says() {
    for name in ["cascade-lake-6252", "kaby-lake-i5-7600", "sandy-bridge-e5-2430", "zen2"] {
        let profile = plain(Profile::load(name).unwrap());
        let entries = |level: &[nestwalk_hw::profile::TlbProfile], size: &str| -> u64 {
            let held = level.iter().find(|a| a.sizes.iter().any(|s| s == size));
            held.map_or(0, |a| u64::from(a.entries))
        };
        for (size, word) in [(S4K, "4k"), (S2M, "2m")] {
            for flags in [RunFlags::default(), RunFlags::FETCH] {
                let first = if flags.is_fetch() { &profile.l1i_tlb } else { &profile.l1d_tlb };
                let (e1, e2) = (entries(first, word), entries(&profile.l2_tlb, word));
                // Few enough for the first level's share to be seen, more than the second holds. A
                // level without entries of the size holds nothing.
                let count = (e2 + e2 / 3).max(8 * e1).next_multiple_of(2048);
                let (tables, mut things) =
                    Things::pages(&LONG4, count, size, (size.bytes(), size.bytes()));
                things.flags = flags;
                let guest_bytes = 0x4000_0000 + count * size.bytes();
                let setup = Setup { guest_bytes, verify: false, ..Setup::new(profile.clone()) };
                let mut m = setup.native();
                let c = things.use_at_random(&mut m, &tables);
                let what = format!("{name} {word} {flags:?}");
                hold(&format!("{what}: first level"), USES - c.l1_tlb_misses, e1, count);
                let e2 = if e2 == 0 { e1 } else { e2 };
                hold(&format!("{what}: both levels"), USES - c.l2_tlb_misses, e2, count);
                assert_eq!(c.walks, c.l2_tlb_misses);
            }
        }
    }
}

/// Any geometry, in a VM and out of it: 1,536 entries in 6 and in 12 ways, odd numbers of sets.
#[test]
fn tlbs_of_any_geometry_hit_as_often_as_the_closed_form_says() {
    for (entries, ways, count) in [(1536, 12, 6144), (1536, 6, 6144), (48, 48, 192), (33, 11, 198)]
    {
        let mut profile = with_tiny_tlbs(bare_profile());
        profile.l2_tlb = vec![tlb(&["4k", "2m"], entries, ways)];
        profile.walk_cache = only_to_level(1, array(64, 64));
        let (tables, things) = Things::pages(&LONG4, count, S4K, (0x1000, 0x1000));
        let setup = Setup { verify: false, ..Setup::new(profile) };
        let what = format!("{entries} in {ways}");
        let c = things.use_at_random(&mut setup.native(), &tables);
        hold(&format!("{what}, native"), USES - c.l2_tlb_misses, entries.into(), count);
        hold(&format!("{what}, first level"), USES - c.l1_tlb_misses, 1, count);
        let c = things.use_at_random(&mut setup.nested(), &tables);
        hold(&format!("{what}, nested"), USES - c.l2_tlb_misses, entries.into(), count);
        let c = things.use_at_random(&mut setup.shadow(), &tables);
        hold(&format!("{what}, shadow"), USES - c.l2_tlb_misses, entries.into(), count);
    }
}

/// Each paging-structure cache by itself: one page in each of P regions, TLBs that hold the last page
/// alone. What the TLB or the walk cache serves is E of P.
#[test]
fn walk_caches_hit_as_often_as_the_closed_form_says() {
    for (to_level, span, entries, ways, count) in [
        (1, 21, 32, 4, 128),
        (1, 21, 16, 16, 64),
        (2, 30, 4, 4, 16),
        (3, 39, 2, 1, 8),
        (4, 48, 2, 1, 8),
    ] {
        let mut profile = with_tiny_tlbs(bare_profile());
        profile.walk_cache = only_to_level(to_level, array(entries, ways));
        let (tables, things) = Things::pages(&LONG5, count, S4K, (1 << span, 0x1000));
        let setup =
            Setup { guest_mode: &LONG5, host_mode: &LONG5, verify: false, ..Setup::new(profile) };
        let mut machines: Vec<(Box<dyn Probe>, u64)> = vec![
            (Box::new(setup.native()), 0),
            (Box::new(setup.shadow()), 0),
            (Box::new(setup.nested()), 5),
        ];
        for (m, h) in &mut machines {
            let c = things.use_at_random(m.as_mut(), &tables);
            let served = USES - c.l2_tlb_misses + c.walk_cache_hits;
            let what = format!("{} to level {to_level}: {entries} in {ways}", m.name());
            hold(&what, served, entries.into(), count);
            // And what a hit saves: the references of the levels above.
            let (hits, misses) = (c.walk_cache_hits, c.walks - c.walk_cache_hits);
            let left = u64::from(to_level);
            let (by_hit, by_miss) = (left * (*h + 1), 5 + *h * 6);
            assert_eq!(c.references.total(), hits * by_hit + misses * by_miss, "{what}");
        }
    }
}

/// Each cache of nested tables by itself: P pages next to each other in gVA, so that the combined
/// cache always leads to the guest's leaf table, and far apart in gPA; each walk translates one gPA.
#[test]
fn nested_walk_caches_hit_as_often_as_the_closed_form_says() {
    for (to_level, span, entries, ways, count) in
        [(1, 21, 32, 4, 128), (2, 30, 4, 4, 16), (3, 39, 2, 1, 8)]
    {
        let mut profile = with_tiny_tlbs(bare_profile());
        profile.walk_cache = only_to_level(1, array(1, 1));
        profile.nested_walk_cache = only_to_level(to_level, array(entries, ways));
        let (tables, things) = Things::pages(&LONG4, count, S4K, (0x1000, 1 << span));
        let guest_bytes = 0x4000_0000 + (count << span);
        let setup = Setup { guest_bytes, verify: false, ..Setup::new(profile) };
        let mut m = setup.nested();
        let c = things.use_at_random(&mut m, &tables);
        assert_eq!((c.walk_cache_hits, c.nested_walks), (c.walks, c.walks));
        // 4 references without a hit, `to_level` with one.
        let nested = c.references.of(Dimension::Nested);
        let saved = 4 - u64::from(to_level);
        assert_eq!((4 * c.walks - nested) % saved, 0);
        let hits = (4 * c.walks - nested) / saved;
        let served = USES - c.l2_tlb_misses + hits;
        hold(&format!("nested, to level {to_level}"), served, entries.into(), count);
    }
}

/// The nested TLB in the same way.
#[test]
fn the_nested_tlb_hits_as_often_as_the_closed_form_says() {
    for (entries, ways, count) in [(64, 4, 256), (24, 24, 120)] {
        let mut profile = with_tiny_tlbs(bare_profile());
        profile.walk_cache = only_to_level(1, array(1, 1));
        profile.nested_tlb = Some(array(entries, ways));
        let (tables, things) = Things::pages(&LONG4, count, S4K, (0x1000, 0x1000));
        let mut m = Setup { verify: false, ..Setup::new(profile) }.nested();
        let c = things.use_at_random(&mut m, &tables);
        assert_eq!(c.nested_tlb_hits + c.nested_walks, c.walks);
        let served = USES - c.l2_tlb_misses + c.nested_tlb_hits;
        hold(&format!("nested TLB of {entries} in {ways}"), served, entries.into(), count);
    }
}

/// All three levels of data caches at once, by lines of pages that the TLBs hold, for loads and for
/// fetches. A level that is much larger than the one below holds all that the one below holds.
#[test]
fn data_caches_hit_as_often_as_the_closed_form_says() {
    const LINES: u64 = 16_384;
    let mut profile = Profile::load("cascade-lake-6252").unwrap();
    for (level, kib, ways) in [
        (&mut profile.caches.l1d, 32, 8),
        (&mut profile.caches.l1i, 32, 8),
        (&mut profile.caches.l2, 128, 8),
        (&mut profile.caches.llc, 704, 11),
    ] {
        (level.kib, level.ways) = (kib, ways);
    }
    let pages = LINES / 64;
    let (tables, of_pages) = Things::pages(&LONG4, pages, S4K, (0x1000, 0x1000));
    for (flags, host_pages) in [(RunFlags::default(), "4k"), (RunFlags::FETCH, "2m")] {
        let addresses = (0..LINES).map(|i| {
            let (gva, gpa) = of_pages.addresses[(i / 64) as usize];
            let offset = i % 64 * 64;
            (gva + offset, Gpa::new(gpa.value() + offset))
        });
        let things = Things { mode: &LONG4, addresses: addresses.collect(), flags };
        let setup = Setup { host_pages, verify: false, ..Setup::new(profile.clone()) };
        let mut machines: Vec<Box<dyn Probe>> =
            vec![Box::new(setup.native()), Box::new(setup.nested()), Box::new(setup.shadow())];
        for m in &mut machines {
            let c = things.use_at_random(m.as_mut(), &tables);
            assert_eq!(c.walks, 0, "the second-level TLB holds all pages");
            let served = if flags.is_fetch() { c.fetch } else { c.data };
            assert_eq!(served.iter().sum::<u64>(), USES);
            let up_to = |place: ServedBy| served[..=place as usize].iter().sum::<u64>();
            let name = m.name();
            hold(&format!("{name} first level"), up_to(ServedBy::L1), 32 * 16, LINES);
            hold(&format!("{name} second level"), up_to(ServedBy::L2), 128 * 16, LINES);
            hold(&format!("{name} last level"), up_to(ServedBy::Llc), 704 * 16, LINES);
        }
    }
}

/// The address at the end is right all the while.
#[test]
fn the_referee_watches_a_uniform_stream() {
    let profile = Profile::load("zen2").unwrap();
    let (tables, things) = Things::pages(&LONG4, 4096, S4K, (0x1000, 0x20_1000));
    let setup = Setup { guest_bytes: 0x4000_0000 + 4096 * 0x20_1000, ..Setup::new(profile) };
    let mut m = setup.nested();
    things.use_at_random(&mut m, &tables);
    approve(&m);
    let mut m = setup.shadow();
    things.use_at_random(&mut m, &tables);
    approve(&m);
}
