//! TLBs of profiles against what was measured of the processors: the published experiments, run on the
//! structures. Figures are the authors', copied here as figures and never computed from a profile.
//!
//! - TLB;DR (Tatar et al., USENIX Security 2022), github.com/vusec/tlbdr: `TLB/README.md` is the output
//!   of its tool on a Kaby Lake; `TLB/mmuctl` has the experiments.
//! - Translation Leak-aside Buffer (Gras et al., USENIX Security 2018), github.com/vusec/tlbkit:
//!   `py/tlblib.py` has successive pages of a set, from experiments on a Skylake.
//!
//! Both wash the other level between accesses, so that every access reaches the one that they probe;
//! here a level is probed alone. How many address spaces a level holds is in
//! `crates/sim/tests/profiles.rs`.

use nestwalk_hw::profile::TlbProfile;
use nestwalk_hw::{Asid, Profile, Tlb, Translation};
use nestwalk_tables::Permissions;
use nestwalk_types::{Gva, Hpa, PageSize};

const A: Asid = Asid::new(0, 1);

/// One level, which pages of 4 KiB are read through.
struct Probe(Tlb);
impl Probe {
    fn new(level: &[TlbProfile]) -> Self {
        Self(Tlb::new(level))
    }
    /// Reads pages in turn.
    fn read_all(&mut self, pages: impl IntoIterator<Item = u64>) {
        for page in pages {
            self.read(page);
        }
    }
    /// Reads a page; whether its translation was there.
    fn read(&mut self, page: u64) -> bool {
        let at = Gva::new(page << 12);
        if self.0.look_up(at, A).is_some() {
            return true;
        }
        let frame = Hpa::new(page << 12);
        let all = Permissions::ALL;
        self.0.fill(at, A, Translation::new(frame, PageSize::SIZE_4K, all, true, false));
        false
    }
}

fn kaby_lake() -> Profile {
    Profile::load("kaby-lake-i5-7600").unwrap()
}

/// Reads pages, reads them again, and says whether any was gone.
fn any_evicted(level: &[TlbProfile], pages: impl Iterator<Item = u64> + Clone) -> bool {
    let mut probe = Probe::new(level);
    probe.read_all(pages.clone());
    pages.map(|page| probe.read(page)).filter(|hit| !hit).count() > 0
}

/// Section 4.2 of TLB;DR, for a linear index: pages `sets` apart from each other.
fn linear(level: &[TlbProfile], sets: u64, pages: u64) -> bool {
    (0..sets).step_by(5).all(|set| any_evicted(level, (0..pages).map(move |k| set + k * sets)))
}

/// The same for an index that combines the lowest bits with the next.
fn combined(level: &[TlbProfile], bits: u32, pages: u64) -> bool {
    let sets = 1 << bits;
    (0..sets).step_by(5).all(|set| any_evicted(level, (0..pages).map(move |k| k << bits | k ^ set)))
}

#[test]
fn kaby_lakes_index_functions_and_ways() {
    let p = kaby_lake();
    // "sTLB hash function: XOR-7 hash function (128 sets), 12 ways/set."
    assert!(combined(&p.l2_tlb, 7, 13) && !combined(&p.l2_tlb, 7, 12));
    // Neither half as many sets, nor a linear index, which the tool tries first.
    assert!(!combined(&p.l2_tlb, 8, 13) && !linear(&p.l2_tlb, 128, 13));
    // "iTLB hash function: LIN-16 hash function (16 sets), 8 ways/set."
    assert!(linear(&p.l1i_tlb, 16, 9) && !linear(&p.l1i_tlb, 16, 8));
    assert!(!linear(&p.l1i_tlb, 8, 9));
    // "dTLB hash function: LIN-16 hash function (16 sets), 4 ways/set."
    assert!(linear(&p.l1d_tlb, 16, 5) && !linear(&p.l1d_tlb, 16, 4));
    assert!(!linear(&p.l1d_tlb, 8, 5));
}

/// Differences by exclusive or of successive pages of a second-level set of a Skylake: the first 63 of
/// `my_xorlist`, which is the same for every set.
const SKYLAKE: [u64; 63] = [
    129, 387, 129, 903, 129, 387, 129, 1935, 129, 387, 129, 903, 129, 387, 129, 3999, 129, 387,
    129, 903, 129, 387, 129, 1935, 129, 387, 129, 903, 129, 387, 129, 8127, 129, 387, 129, 903,
    129, 387, 129, 1935, 129, 387, 129, 903, 129, 387, 129, 3999, 129, 387, 129, 903, 129, 387,
    129, 1935, 129, 387, 129, 903, 129, 387, 129,
];

/// Pages below `limit` that lie in the set of `page`: each is read with others of the set until `page`
/// has to go, which is found without knowing the index, as an attacker finds an eviction set.
fn congruent(level: &[TlbProfile], page: u64, limit: u64) -> Vec<u64> {
    // A fresh level, `page`, and then one candidate many times over with pages far above it: too few of
    // those to evict anything alone.
    let ways = level.iter().find(|a| a.sizes.contains(&"4k".into())).unwrap().ways;
    let far: Vec<u64> = (1..u64::from(ways)).map(|k| page + (k << 30)).collect();
    (0..limit)
        .filter(|&candidate| {
            if candidate == page {
                return true;
            }
            let mut probe = Probe::new(level);
            probe.read(page);
            probe.read_all(far.iter().copied());
            // The set of `page` is full now. One more page evicts one of these if it lies there.
            probe.read(candidate);
            let gone = far.iter().chain([&page]).filter(|p| !probe.0.holds(Gva::new(**p << 12), A));
            gone.count() > 0
        })
        .collect()
}

#[test]
fn pages_of_a_second_level_set_are_those_found_on_a_skylake() {
    let p = kaby_lake();
    for set in [0, 1, 77, 127] {
        let pages = congruent(&p.l2_tlb, set, 1 << 13);
        assert_eq!(pages.len(), 64);
        let between: Vec<u64> = pages.windows(2).map(|w| w[0] ^ w[1]).collect();
        assert_eq!(between, SKYLAKE, "{set}");
    }
}

/// TLB;DR's permutation vectors: element `e` is the page read `e`-th last of a full set. After another
/// of them is read, how many new pages does it take until `e` is gone? Position `p` lives until the
/// `ways - p`-th.
fn vector(level: &[TlbProfile], pages: &[u64], ways: usize, index: usize) -> Vec<usize> {
    let mut vector = vec![usize::MAX; ways];
    for element in 0..ways {
        let gone_after = (1..=ways).find(|fresh| {
            let mut probe = Probe::new(level);
            // Warmed with twice the ways, then known.
            probe.read_all(pages[..3 * ways].iter().copied());
            let nth_last = |e: usize| pages[3 * ways - 1 - e];
            assert!(probe.read(nth_last(index)), "a full set holds what was read last");
            probe.read_all(pages[3 * ways..][..*fresh].iter().copied());
            !probe.0.holds(Gva::new(nth_last(element) << 12), A)
        });
        vector[ways - gone_after.expect("as many new pages as ways evict all")] = element;
    }
    vector
}

/// "sTLB permutation vectors", with agreement of 99.9 %.
const STLB: [[usize; 12]; 12] = [
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11],
    [1, 2, 0, 4, 5, 3, 7, 8, 6, 10, 11, 9],
    [2, 0, 1, 5, 3, 4, 8, 6, 7, 11, 9, 10],
    [3, 1, 2, 0, 4, 5, 9, 7, 8, 6, 10, 11],
    [4, 2, 0, 1, 5, 3, 10, 8, 6, 7, 11, 9],
    [5, 0, 1, 2, 3, 4, 11, 6, 7, 8, 9, 10],
    [6, 1, 2, 3, 4, 5, 0, 7, 8, 9, 10, 11],
    [7, 2, 0, 4, 5, 3, 1, 8, 6, 10, 11, 9],
    [8, 0, 1, 5, 3, 4, 2, 6, 7, 11, 9, 10],
    [9, 1, 2, 0, 4, 5, 3, 7, 8, 6, 10, 11],
    [10, 2, 0, 1, 5, 3, 4, 8, 6, 7, 11, 9],
    [11, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10],
];
/// "dTLB permutation vectors".
const DTLB: [[usize; 4]; 4] = [[0, 1, 2, 3], [1, 0, 3, 2], [2, 1, 0, 3], [3, 0, 1, 2]];
/// "iTLB permutation vectors".
const ITLB: [[usize; 8]; 8] = [
    [0, 1, 2, 3, 4, 5, 6, 7],
    [1, 0, 3, 2, 5, 4, 7, 6],
    [2, 1, 0, 3, 6, 5, 4, 7],
    [3, 0, 1, 2, 7, 4, 5, 6],
    [4, 1, 2, 3, 0, 5, 6, 7],
    [5, 0, 3, 2, 1, 4, 7, 6],
    [6, 1, 0, 3, 2, 5, 4, 7],
    [7, 0, 1, 2, 3, 4, 5, 6],
];

#[test]
fn kaby_lakes_permutation_vectors() {
    let p = kaby_lake();
    for set in [0u64, 83, 127] {
        let pages: Vec<u64> = (1..61).map(|k| k << 7 | k ^ set).collect();
        for (i, published) in STLB.iter().enumerate() {
            assert_eq!(vector(&p.l2_tlb, &pages, 12, i), published, "sTLB, vector {i}");
        }
    }
    for set in [0u64, 5, 15] {
        let pages: Vec<u64> = (1..61).map(|k| k << 4 | set).collect();
        for (i, published) in DTLB.iter().enumerate() {
            assert_eq!(vector(&p.l1d_tlb, &pages, 4, i), published, "dTLB, vector {i}");
        }
        for (i, published) in ITLB.iter().enumerate() {
            assert_eq!(vector(&p.l1i_tlb, &pages, 8, i), published, "iTLB, vector {i}");
        }
    }
}

/// `replacement.h`: pages of a set, the first of which is gone at the end, or is not. With other
/// policies it is the other way round.
const MRU_EVICTS: [u64; 9] = [0, 1, 2, 3, 2, 4, 3, 2, 5];
const PLRU4_EVICTS: [u64; 5] = [0, 1, 2, 1, 3];
const PLRU8_EVICTS: [u64; 8] = [0, 1, 2, 1, 3, 2, 1, 4];
const LRU4_EVICTS: [u64; 5] = [0, 1, 2, 3, 4];
const LRU4_KEEPS: [u64; 4] = [0, 1, 2, 3];

/// The long sequences, by their rule: page 0, the others of a full set, and then turns of a page that is
/// there and a new one, to page 39.
fn keeps(first: u64, turn: &[u64]) -> Vec<u64> {
    let mut sequence: Vec<u64> = (0..=first).collect();
    for (new, old) in (first + 1..40).zip(turn.iter().cycle()) {
        sequence.extend([*old, new]);
    }
    sequence
}

/// Whether page 0 of a sequence is gone at its end; the set was warmed with other pages.
fn gone(level: &[TlbProfile], sequence: &[u64], page: impl Fn(u64) -> u64, ways: u64) -> bool {
    let mut probe = Probe::new(level);
    probe.read_all((0..2 * ways).map(|k| page(50 + k)));
    probe.read_all(sequence.iter().map(|k| page(*k)));
    !probe.0.holds(Gva::new(page(0) << 12), A)
}

#[test]
fn sequences_that_tell_the_policies_apart() {
    let p = kaby_lake();
    let l2 = |sequence: &[u64]| gone(&p.l2_tlb, sequence, |k| k << 7 | k ^ 9, 12);
    let mru_keeps = keeps(11, &[1, 4, 7, 10]);
    assert_eq!((mru_keeps.len(), mru_keeps[67]), (68, 39));
    assert!(l2(&MRU_EVICTS) && !l2(&mru_keeps));
    let dtlb = |sequence: &[u64]| gone(&p.l1d_tlb, sequence, |k| k << 4 | 9, 4);
    let plru4_keeps = keeps(3, &[2]);
    assert!(dtlb(&PLRU4_EVICTS) && !dtlb(&plru4_keeps));
    let itlb = |sequence: &[u64]| gone(&p.l1i_tlb, sequence, |k| k << 4 | 9, 8);
    let plru8_keeps = keeps(7, &[2, 4, 6]);
    assert!(itlb(&PLRU8_EVICTS) && !itlb(&plru8_keeps));

    // True LRU keeps what the short ones evict, and evicts what the long ones keep.
    let lru = |p: &[TlbProfile]| -> Vec<TlbProfile> {
        p.iter().map(|a| TlbProfile { replacement: None, ..a.clone() }).collect()
    };
    let (l2, l1d, l1i) = (lru(&p.l2_tlb), lru(&p.l1d_tlb), lru(&p.l1i_tlb));
    assert!(!gone(&l2, &MRU_EVICTS, |k| k << 7 | k ^ 9, 12));
    assert!(gone(&l2, &mru_keeps, |k| k << 7 | k ^ 9, 12));
    assert!(!gone(&l1d, &PLRU4_EVICTS, |k| k << 4 | 9, 4));
    assert!(gone(&l1d, &plru4_keeps, |k| k << 4 | 9, 4));
    assert!(gone(&l1i, &plru8_keeps, |k| k << 4 | 9, 8));
    assert!(gone(&l1d, &LRU4_EVICTS, |k| k << 4 | 9, 4));
    assert!(!gone(&l1d, &LRU4_KEEPS, |k| k << 4 | 9, 4));
}
