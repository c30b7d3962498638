//! A filtered stream has the misses of the whole one, in the same order, for TLBs that refine the
//! filter: against a filter written after the words of [`nestwalk_types::Filter`].

use nestwalk_hw::profile::{IndexProfile, TlbProfile};
use nestwalk_hw::{Asid, Profile, Tlb, Translation};
use nestwalk_tables::Permissions;
use nestwalk_types::{Address, Filter, FilterArray, Gva, Hpa, PageSize, SplitMix64};

/// A small TLB with replacement by order of use, and which of that order its output shows.
struct Reference {
    /// Pages by set, the most recently used first.
    used: Vec<Vec<u64>>,
    /// The same, as the output has it.
    shown: Vec<Vec<u64>>,
    ways: usize,
    /// The last large page of each set.
    large: Vec<Option<u64>>,
    huge: Option<u64>,
}

fn touch(set: &mut Vec<u64>, page: u64, ways: usize) {
    set.retain(|p| *p != page);
    set.insert(0, page);
    set.truncate(ways);
}

/// The pages that must be used again for one order of use to become the other: what is left behind
/// them stands in the old order.
fn moved<'a>(now: &'a [u64], before: &[u64]) -> &'a [u64] {
    let place = |page: &u64| before.iter().position(|p| p == page);
    let in_order = |rest: &[u64]| rest.is_sorted_by_key(place);
    let first = (0..=now.len()).find(|k| in_order(&now[*k..]));
    &now[..first.unwrap_or(now.len())]
}

impl Reference {
    fn new(small: FilterArray, large: FilterArray) -> Self {
        let sets = vec![Vec::new(); usize::from(small.sets)];
        let large = vec![None; usize::from(large.sets)];
        let ways = usize::from(small.ways);
        Self { used: sets.clone(), shown: sets, ways, large, huge: None }
    }

    /// The accesses that stand in the output for one to this page of 4 KiB, which is part of a page of
    /// `size`.
    fn access(&mut self, page: u64, size: PageSize) -> Vec<u64> {
        let set = page as usize % self.used.len();
        let (large, huge) = (page >> 9, page >> 18);
        let place = large as usize % self.large.len();
        let hit = self.used[set].contains(&page);
        let hidden = hit
            && (size == PageSize::SIZE_4K
                || self.used[set][0] == page
                    && self.large[place] == Some(large)
                    && (size == PageSize::SIZE_2M || self.huge == Some(huge)));
        if hidden {
            touch(&mut self.used[set], page, self.ways);
            return Vec::new();
        }
        let mut output = Vec::new();
        output.extend(moved(&self.used[set], &self.shown[set]).iter().rev());
        output.push(page);
        touch(&mut self.used[set], page, self.ways);
        self.shown[set] = self.used[set].clone();
        if size > PageSize::SIZE_4K {
            self.large[place] = Some(large);
        }
        if size == PageSize::SIZE_1G {
            self.huge = Some(huge);
        }
        output
    }
}

/// Pages that the guest maps as 4 KiB, 2 MiB and 1 GiB, a few of each.
fn stream(r: &mut SplitMix64, length: usize) -> Vec<u64> {
    let (near, far) = (1 + r.below(20), 1 + r.below(300));
    let mut all = Vec::new();
    let mut last = 0;
    for _ in 0..length {
        last = match r.below(10) {
            0..3 => last,
            3..6 => r.below(near),
            6 => r.below(far),
            7 | 8 => (1 << 18) + (r.below(20) << 9) + r.below(3),
            _ => ((2 + r.below(6)) << 18) + (r.below(5) << 9) + r.below(2),
        };
        all.push(last);
    }
    all
}

fn size_of(page: u64) -> PageSize {
    [PageSize::SIZE_4K, PageSize::SIZE_2M, PageSize::SIZE_1G][(page >> 18).min(2) as usize]
}

/// The pages that miss, in order. `host` is the size of the pages behind the guest's.
fn misses(arrays: &[TlbProfile], pages: &[u64], host: PageSize) -> Vec<u64> {
    let mut tlb = Tlb::new(arrays);
    let asid = Asid::new(0, 0);
    let mut missed = Vec::new();
    for page in pages {
        let gva = Gva::new(page << 12);
        if tlb.look_up(gva, asid).is_none() {
            missed.push(*page);
            let size = size_of(*page).min(host);
            let frame = Hpa::new(gva.align_down(size).value());
            let found = Translation::new(frame, size, Permissions::ALL, true, false);
            tlb.fill_splintering(gva, asid, found);
        }
    }
    missed
}

fn array(sizes: &[&str], sets: u32, ways: u32) -> TlbProfile {
    let sizes = sizes.iter().map(|s| (*s).to_owned()).collect();
    TlbProfile { sizes, entries: sets * ways, ways, source: "test".into(), ..Default::default() }
}

/// 4 KiB pages with another replacement or index.
fn with(sets: u32, ways: u32, replacement: Option<&str>, index: Option<&str>) -> TlbProfile {
    TlbProfile {
        replacement: replacement.map(Into::into),
        index: index.map(|name| IndexProfile::Named(name.into())),
        ..array(&["4k"], sets, ways)
    }
}

fn profile(arrays: Vec<TlbProfile>) -> Profile {
    let mut profile = Profile::load("cascade-lake-6252").unwrap();
    profile.l1i_tlb = arrays.clone();
    profile.l1d_tlb = arrays;
    profile
}

fn filter(small: FilterArray, large: FilterArray) -> Filter {
    Filter { data: small, data_large: large, fetch: small, fetch_large: large }
}

fn random_filter(r: &mut SplitMix64) -> (FilterArray, FilterArray) {
    let small = FilterArray { sets: 1 << r.below(5), ways: 1 + r.below(4) as u8 };
    (small, FilterArray { sets: 1 << r.below(4), ways: 1 })
}

#[test]
fn what_refines_a_filter_sees_the_same_misses_in_the_same_order() {
    let (mut shown, mut whole, mut missed) = (0, 0, 0);
    for seed in 0..600 {
        let mut r = SplitMix64::new(seed);
        let (small, large) = match seed % 6 {
            0 => (FilterArray { sets: 1, ways: 1 }, FilterArray { sets: 1, ways: 1 }),
            _ => random_filter(&mut r),
        };
        let mut finer = |f: FilterArray| {
            (u32::from(f.sets) * (1 + r.below(3) as u32), u32::from(f.ways) + r.below(3) as u32)
        };
        let ((s, sw), (l, lw)) = (finer(small), finer(large));
        let mut arrays = vec![
            array(&["4k"], s, sw),
            array(&["2m"], l, lw),
            array(&["1g"], 1, 1 + seed as u32 % 4),
        ];
        match seed % 4 {
            // Without 1 GiB entries, or without large ones at all, pages are split.
            0 => arrays.truncate(2),
            1 => arrays.truncate(1),
            // A shared one, where the filter allows it.
            2 if seed % 6 == 0 => arrays = vec![array(&["4k", "2m", "1g"], s, sw)],
            _ => {}
        }
        assert_eq!(profile(arrays.clone()).too_fine_for(&filter(small, large)), []);
        let pages = stream(&mut r, 3000);
        let mut reference = Reference::new(small, large);
        let filtered: Vec<u64> =
            pages.iter().flat_map(|p| reference.access(*p, size_of(*p))).collect();
        for host in [PageSize::SIZE_1G, PageSize::SIZE_2M, PageSize::SIZE_4K] {
            let expected = misses(&arrays, &pages, host);
            assert_eq!(misses(&arrays, &filtered, host), expected, "{seed} {arrays:?} {small:?}");
            missed += expected.len();
        }
        shown += filtered.len();
        whole += pages.len();
    }
    assert!(shown * 10 < whole * 9 && missed * 20 > whole, "{shown} {whole} {missed}");
}

/// What is refused is refused for a reason: some stream differs.
#[test]
fn what_does_not_refine_a_filter_may_see_other_misses() {
    let four = FilterArray { sets: 16, ways: 4 };
    let large = FilterArray { sets: 8, ways: 1 };
    let full = |n: u32| array(&["4k"], 1, n);
    for (what, arrays, small, large) in [
        ("one set of 64 ways", vec![full(64)], four, large),
        ("half the sets", vec![array(&["4k"], 8, 8)], four, large),
        ("sets that are no multiple", vec![array(&["4k"], 24, 4)], four, large),
        ("too few ways", vec![array(&["4k"], 16, 3)], four, large),
        ("a shared array", vec![array(&["4k", "2m", "1g"], 16, 8)], four, large),
        ("pseudo-LRU", vec![with(16, 4, Some("tree-plru"), None)], four, large),
        ("random replacement", vec![with(16, 4, Some("random"), None)], four, large),
        ("an index by exclusive ors", vec![with(16, 4, None, Some("xor-4"))], four, large),
        ("large pages in one set", vec![array(&["4k"], 16, 4), array(&["2m"], 1, 8)], four, large),
        (
            "1 GiB pages among 2 MiB ones",
            vec![array(&["4k"], 16, 4), array(&["2m", "1g"], 8, 2)],
            four,
            large,
        ),
    ] {
        let refused = profile(arrays.clone()).too_fine_for(&filter(small, large));
        assert_eq!(refused.len(), 2, "{what}: data and instructions");
        let differs = (0..300).any(|seed| {
            let mut r = SplitMix64::new(seed);
            let pages = stream(&mut r, 3000);
            let mut reference = Reference::new(small, large);
            let filtered: Vec<u64> =
                pages.iter().flat_map(|p| reference.access(*p, size_of(*p))).collect();
            [PageSize::SIZE_1G, PageSize::SIZE_4K]
                .into_iter()
                .any(|host| misses(&arrays, &filtered, host) != misses(&arrays, &pages, host))
        });
        assert!(differs, "{what}: no stream shows the difference");
    }
}

#[test]
fn built_in_profiles_and_the_recorders_filter() {
    let filter = Filter {
        data: FilterArray { sets: 16, ways: 4 },
        data_large: FilterArray { sets: 8, ways: 1 },
        fetch: FilterArray { sets: 16, ways: 4 },
        fetch_large: FilterArray { sets: 1, ways: 1 },
    };
    for name in ["cascade-lake-6252", "golden-cove", "sandy-bridge-e5-2430"] {
        assert_eq!(Profile::load(name).unwrap().too_fine_for(&filter), [], "{name}");
    }
    let kaby = Profile::load("kaby-lake-i5-7600").unwrap();
    assert_eq!(kaby.too_fine_for(&Filter::RUNS), []);
    let refused: Vec<String> = kaby.too_fine_for(&filter).iter().map(ToString::to_string).collect();
    assert_eq!(refused.len(), 2);
    assert!(
        refused[0].ends_with("with a linear index and true LRU; it has replacement tree-plru"),
        "{}",
        refused[0]
    );
    let zen = Profile::load("zen2").unwrap();
    assert_eq!(zen.too_fine_for(&Filter::RUNS), []);
    assert_eq!(zen.too_fine_for(&Filter::default()), []);
    let refused: Vec<String> = zen.too_fine_for(&filter).iter().map(ToString::to_string).collect();
    assert_eq!(
        refused[0],
        "the first-level data TLB for 4k, 16k, 2m, 1g pages has 1 set of 64 ways; the recording is filtered \
         by 16 sets of 4 ways over 4k pages, which is exact for a multiple of 16 sets with at least 4 \
         ways, for one page size"
    );
    assert!(refused[1].contains("instruction TLB"), "{}", refused[1]);
}
