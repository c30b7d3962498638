//! Runs and what covers them, against maps that know every page by itself.

use nestwalk_contiguity::{
    Histogram, MappedRun, PageSizes, Pieces, RunSet, SHARES, anchors, best_anchors, clustered,
    coalesced, compose, huge_pages, offsets, ranges,
};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

/// Frame and tag of every page.
type Naive = BTreeMap<u64, (u64, u16)>;

fn pages_of(set: &RunSet) -> Naive {
    let page = |r: MappedRun| (0..r.pages).map(move |i| (r.from + i, (r.to + i, r.tag)));
    set.iter().flat_map(page).collect()
}

/// Runs by looking at every page and the one before it.
fn runs_of(map: &Naive) -> Vec<MappedRun> {
    let mut runs: Vec<MappedRun> = Vec::new();
    for (&from, &(to, tag)) in map {
        match runs.last_mut() {
            Some(r) if r.from + r.pages == from && r.to + r.pages == to && r.tag == tag => {
                r.pages += 1
            }
            _ => runs.push(MappedRun { from, to, pages: 1, tag }),
        }
    }
    runs
}

/// `Some((frame, tag))` maps, `None` unmaps, from a page on, so many pages.
type Step = (u64, u64, Option<(u64, u16)>);

fn steps(space: u64, longest: u64) -> impl Strategy<Value = Vec<Step>> {
    // Offsets are few, so that runs meet their like.
    let target = (0..4u64, 0..2u16);
    let step = (0..space, 1..=longest, proptest::option::weighted(0.8, target));
    proptest::collection::vec(step, 0..40).prop_map(move |steps| {
        let offset = |o: u64| [0, 1, 8, 4096][o as usize];
        steps.into_iter().map(|(f, n, t)| (f, n, t.map(|(o, tag)| (f + offset(o), tag)))).collect()
    })
}

fn build(steps: &[Step]) -> (RunSet, Naive) {
    let (mut set, mut naive) = (RunSet::new(), Naive::new());
    for &(from, pages, target) in steps {
        for page in from..from + pages {
            naive.remove(&page);
        }
        match target {
            Some((to, tag)) => {
                naive.extend((0..pages).map(|i| (from + i, (to + i, tag))));
                let run = set.map(from, to, pages, tag);
                assert_eq!(Some(run), set.find(from));
                assert_eq!(Some(run), set.find(from + pages - 1));
            }
            None => {
                let before = set.pages();
                assert_eq!(set.unmap(from, pages), before - set.pages());
            }
        }
    }
    (set, naive)
}

/// How many of the largest are needed, one by one.
fn naive_cover(mut sizes: Vec<u64>, percent: u64) -> u64 {
    let total: u64 = sizes.iter().sum();
    sizes.sort_unstable_by(|a, b| b.cmp(a));
    let (mut covered, mut entries) = (0, 0);
    for size in sizes {
        if covered * 100 >= total * percent {
            break;
        }
        covered += size;
        entries += 1;
    }
    entries
}

fn check(pieces: &Pieces, mut sizes: Vec<u64>) {
    for percent in SHARES {
        let naive = naive_cover(sizes.clone(), percent.into());
        assert_eq!(pieces.to_cover(percent), naive, "{percent} % of {sizes:?}");
    }
    let flat = pieces.iter().flat_map(|(size, count)| vec![size; count as usize]);
    let flat: Vec<u64> = flat.collect();
    sizes.sort_unstable_by(|a, b| b.cmp(a));
    assert_eq!(flat, sizes);
}

/// Groups pages by a key; the size of every group.
fn grouped<K: Ord>(map: &Naive, key: impl Fn(u64, u64, u16) -> K) -> Vec<u64> {
    let mut groups: BTreeMap<K, u64> = BTreeMap::new();
    for (&page, &(frame, tag)) in map {
        *groups.entry(key(page, frame, tag)).or_default() += 1;
    }
    groups.into_values().collect()
}

/// The sizes in pages of regular entries for these pages.
fn naive_regular(map: &Naive, sizes: &[u64]) -> Vec<u64> {
    let mut left: BTreeSet<u64> = map.keys().copied().collect();
    let mut entries = Vec::new();
    for &size in sizes {
        let starts: Vec<u64> = left.iter().copied().filter(|p| p.is_multiple_of(size)).collect();
        for start in starts {
            let (frame, tag) = map[&start];
            let whole = (0..size).all(|i| map.get(&(start + i)) == Some(&(frame + i, tag)));
            if whole && frame.is_multiple_of(size) && left.contains(&start) {
                for page in start..start + size {
                    left.remove(&page);
                }
                entries.push(size);
            }
        }
    }
    entries
}

/// Anchors page by page: from which entry each page would be translated.
fn naive_anchors(map: &Naive, distance: u64) -> Vec<u64> {
    let continues = |from: u64, to: u64| {
        (from..to).all(|p| {
            let (frame, tag) = map[&p];
            map.get(&(p + 1)) == Some(&(frame + 1, tag))
        })
    };
    let entry = |page: u64| {
        let anchor = page - page % distance;
        let covered = map.contains_key(&anchor) && continues_to(map, anchor, page, &continues);
        if covered { (anchor, true) } else { (page, false) }
    };
    grouped(map, |page, _, _| entry(page))
}

fn continues_to(map: &Naive, from: u64, to: u64, all: &dyn Fn(u64, u64) -> bool) -> bool {
    (from..=to).all(|p| map.contains_key(&p)) && all(from, to)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn runs_are_what_looking_at_every_page_finds(
        steps in steps(300, 60),
        looks in proptest::collection::vec(0..400u64, 20),
    ) {
        let (set, naive) = build(&steps);
        let runs = runs_of(&naive);
        prop_assert_eq!(set.iter().collect::<Vec<_>>(), runs.clone());
        prop_assert_eq!(set.pages(), naive.len() as u64);
        prop_assert_eq!(set.len(), runs.len());
        prop_assert_eq!(&set, &set.iter().rev().collect::<RunSet>());
        for page in looks {
            let find = |f: &dyn Fn(&MappedRun) -> bool| runs.iter().copied().find(|r| f(r));
            prop_assert_eq!(set.find(page), find(&|r| r.contains(page)));
            prop_assert_eq!(set.next_at_or_after(page), find(&|r| r.end() > page));
            let within: Naive = naive.range(page..page + 17).map(|(p, f)| (*p, *f)).collect();
            prop_assert_eq!(set.within(page, 17).collect::<Vec<_>>(), runs_of(&within));
        }
    }

    #[test]
    fn composed_runs_are_two_look_ups(first in steps(300, 60), second in steps(5000, 900)) {
        let ((first, a), (second, b)) = (build(&first), build(&second));
        let both = a.iter().filter_map(|(&p, (f, tag))| Some((p, (b.get(f)?.0, *tag))));
        let both: Naive = both.collect();
        let composed = compose(&first, &second);
        prop_assert_eq!(composed.iter().collect::<Vec<_>>(), runs_of(&both));
        prop_assert_eq!(pages_of(&composed), both);
    }

    #[test]
    fn entries_are_what_page_by_page_groups_to(steps in steps(300, 60)) {
        let (set, naive) = build(&steps);
        check(&ranges(&set), runs_of(&naive).iter().map(|r| r.pages).collect());
        check(&offsets(&set), grouped(&naive, |page, frame, _| page.wrapping_sub(frame)));
        let cluster = |page, frame, tag| (page / 8, frame / 8, tag);
        check(&clustered(&set, PageSizes::Base), grouped(&naive, cluster));
        for group in [4, 8] {
            let run = |page: u64| runs_of(&naive).iter().position(|r| r.contains(page));
            let sizes = grouped(&naive, |page, _, _| (page / group, run(page)));
            check(&coalesced(&set, group, PageSizes::Base), sizes);
        }
        for distance in [1, 2, 4, 16, 64, 1024] {
            check(&anchors(&set, distance, PageSizes::Base), naive_anchors(&naive, distance));
        }
        let (distance, best) = best_anchors(&set, PageSizes::Base);
        let all = (1..=16).map(|order| naive_anchors(&naive, 1 << order).len());
        let (order, entries) = all.enumerate().min_by_key(|&(_, n)| n).unwrap();
        prop_assert_eq!((distance, best.entries()), (2 << order, entries as u64));
    }

    #[test]
    fn huge_pages_are_aligned_on_both_sides(steps in steps(4000, 3000)) {
        let (set, naive) = build(&steps);
        check(&huge_pages(&set, PageSizes::Base), naive_regular(&naive, &[1]));
        check(&huge_pages(&set, PageSizes::Huge2M), naive_regular(&naive, &[512, 1]));
        prop_assert_eq!(huge_pages(&set, PageSizes::Huge1G), huge_pages(&set, PageSizes::Huge2M));
        let total = set.pages();
        for sizes in [PageSizes::Base, PageSizes::Huge2M, PageSizes::Huge1G] {
            prop_assert_eq!(coalesced(&set, 8, sizes).pages(), total);
            prop_assert_eq!(clustered(&set, sizes).pages(), total);
            prop_assert_eq!(anchors(&set, 2048, sizes).pages(), total);
        }
    }

    #[test]
    fn a_histogram_counts_every_run_once(steps in steps(300, 60)) {
        let (set, naive) = build(&steps);
        let buckets = Histogram::of(&set).buckets;
        prop_assert_eq!(buckets.iter().map(|b| b.runs).sum::<u64>(), set.len() as u64);
        for bucket in buckets {
            let range = 1 << bucket.order..2 << bucket.order;
            let inside: Vec<u64> =
                runs_of(&naive).iter().map(|r| r.pages).filter(|p| range.contains(p)).collect();
            prop_assert_eq!((bucket.runs, bucket.pages), (inside.len() as u64, inside.iter().sum()));
        }
    }
}

#[test]
fn a_run_of_gigabytes_is_cut_without_looking_at_pages() {
    const G: u64 = 512 * 512;
    // From 1 GiB - 2 MiB - 4 KiB on, aligned alike: a page, a 2 MiB page, 3 of 1 GiB, 512 and 7 more.
    let mut set = RunSet::new();
    set.map(G - 513, 9 * G - 513, 513 + 3 * G + 519, 0);
    let pieces: Vec<_> = huge_pages(&set, PageSizes::Huge1G).iter().collect();
    assert_eq!(pieces, [(G, 3), (512, 2), (1, 8)]);
    let pieces: Vec<_> = huge_pages(&set, PageSizes::Huge2M).iter().collect();
    assert_eq!(pieces, [(512, 3 * 512 + 2), (1, 8)]);
    // Shifted by one frame nothing is aligned, and ranges do not care.
    let mut shifted = RunSet::new();
    shifted.map(G, 1, G << 10, 0);
    assert_eq!(huge_pages(&shifted, PageSizes::Huge1G).entries(), G << 10);
    assert_eq!(ranges(&shifted).shares(), [1; 4]);
    assert_eq!(anchors(&shifted, 1 << 16, PageSizes::Base).entries(), G << 10 >> 16);
    // 8 frames from frame 1 on lie in two clusters.
    assert_eq!(clustered(&shifted, PageSizes::Base).entries(), 2 * (G << 10) / 8);
}

#[test]
fn the_ends_of_the_number_space_do_not_wrap() {
    let mut set = RunSet::new();
    set.map(u64::MAX - 4, 3, 100, 1);
    assert_eq!(set.pages(), 4);
    assert_eq!(set.find(u64::MAX), None);
    assert_eq!(set.unmap(0, u64::MAX), 4);
    assert!(set.is_empty());
    set.map(0, u64::MAX - 1, 4, 0);
    assert_eq!(clustered(&set, PageSizes::Huge1G).pages(), 4);
    assert_eq!(coalesced(&set, 0, PageSizes::Base).entries(), 4);
    assert_eq!(anchors(&set, u64::MAX, PageSizes::Base).entries(), 1);
    assert_eq!(set.map(9, 9, 0, 0).pages, 0);
    assert_eq!((set.len(), Pieces::new().to_cover(80)), (1, 0));
}
