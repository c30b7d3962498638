//! The filter: which accesses become records.
//!
//! A small TLB with replacement by order of use stands between the guest and the stream. What hits is
//! counted in the record that brought its page in. See [`nestwalk_types::Filter`] for what this leaves
//! exact, and why.

use crate::record::Record;
use crate::ring::Producer;

/// Sets and ways of a filter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FilterConfig {
    /// Sets by 4 KiB page, a power of two, at most 64.
    pub sets: u32,
    /// Ways, at most 4.
    pub ways: u32,
    /// Sets by 2 MiB page for what the guest maps so or larger, a power of two, at most 64; one way.
    pub large_sets: u32,
}

/// Data accesses: no first-level TLB of the built-in Intel profiles has fewer sets or ways.
pub const DATA: FilterConfig = FilterConfig { sets: 16, ways: 4, large_sets: 8 };
/// Instruction fetches: first-level TLBs for large code pages are fully associative.
pub const FETCH: FilterConfig = FilterConfig { sets: 16, ways: 4, large_sets: 1 };

impl FilterConfig {
    /// Folds consecutive accesses to one page, nothing else.
    pub const RUNS: Self = Self { sets: 1, ways: 1, large_sets: 1 };
}

const MOST_WAYS: usize = 4;
const MOST_SETS: usize = 64;

/// Size of the page that the guest maps an address with.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Class {
    /// 4 KiB.
    Small,
    /// 2 MiB.
    Large,
    /// 1 GiB.
    Huge,
}

/// Whether an access must become a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Look {
    /// It is counted.
    Hit,
    /// It must.
    Miss,
}

/// A page in the filter.
#[derive(Clone, Copy)]
struct Entry {
    /// Page, mode and generation; see [`AccessFilter::key`].
    key: u64,
    /// The record that counts its accesses.
    home: u64,
    /// Place in the order that the stream shows.
    rank: u8,
    /// Stores may be counted.
    store: bool,
    class: Class,
}

const NOTHING: Entry = Entry { key: u64::MAX, home: 0, rank: 0, store: false, class: Class::Small };

const GENERATIONS: u64 = 1 << 11;
const KERNEL: u64 = 1 << 11;
const PAGE: u64 = !0xfff;

/// The filter of one kind of access on one vCPU.
pub struct AccessFilter {
    /// By set, the most recently used first.
    entries: [Entry; MOST_SETS * MOST_WAYS],
    /// Last large page used in each set.
    large: [u64; MOST_SETS],
    /// Last 1 GiB page used.
    huge: u64,
    /// Sets whose order differs from what the stream shows.
    reordered: u64,
    generation: u64,
    mask: u64,
    large_mask: u64,
    ways: usize,
}

impl AccessFilter {
    /// An empty filter.
    pub fn new(config: FilterConfig) -> Self {
        Self {
            entries: [NOTHING; MOST_SETS * MOST_WAYS],
            large: [u64::MAX; MOST_SETS],
            huge: u64::MAX,
            reordered: 0,
            generation: 0,
            mask: u64::from(config.sets).clamp(1, MOST_SETS as u64) - 1,
            large_mask: u64::from(config.large_sets).clamp(1, MOST_SETS as u64) - 1,
            ways: (config.ways as usize).clamp(1, MOST_WAYS),
        }
    }

    #[inline(always)]
    const fn key(&self, gva: u64, kernel: bool) -> u64 {
        gva & PAGE | if kernel { KERNEL } else { 0 } | self.generation
    }
    #[inline(always)]
    const fn base(&self, gva: u64) -> usize {
        (gva >> 12 & self.mask) as usize * MOST_WAYS
    }

    /// Counts `count` accesses to `lines` of a page, if the filter may keep them to itself.
    #[inline(always)]
    pub fn look(
        &mut self,
        producer: &mut Producer,
        gva: u64,
        (kernel, store): (bool, bool),
        (count, lines): (u16, u64),
    ) -> Look {
        let (key, base) = (self.key(gva, kernel), self.base(gva));
        let entry = &self.entries[base];
        if entry.key != key {
            return self.look_deeper(producer, key, store, (count, lines));
        }
        let current = entry.class == Class::Small
            || self.large[(gva >> 21 & self.large_mask) as usize] == gva >> 21
                && (entry.class == Class::Large || self.huge == gva >> 30);
        if (!store || entry.store) && current {
            return add(producer, entry.home, count, lines);
        }
        Look::Miss
    }

    #[inline(never)]
    fn look_deeper(
        &mut self,
        producer: &mut Producer,
        key: u64,
        store: bool,
        (count, lines): (u16, u64),
    ) -> Look {
        let base = self.base(key);
        let set = &mut self.entries[base..base + self.ways];
        let Some(way) = set.iter().position(|e| e.key == key) else { return Look::Miss };
        let entry = set[way];
        if entry.class != Class::Small || store && !entry.store {
            return Look::Miss;
        }
        let look = add(producer, entry.home, count, lines);
        if look == Look::Hit {
            set[..=way].rotate_right(1);
            self.reordered |= 1 << (base / MOST_WAYS);
        }
        look
    }

    /// Puts an access that is a record of its own into the stream, after what the stream must show
    /// before it. `store`: later stores may be counted in it. Returns where the record is.
    pub fn insert(
        &mut self,
        producer: &mut Producer,
        record: Record,
        class: Class,
        store: bool,
    ) -> u64 {
        let (gva, kernel) = (record.a, record.flags & 4 != 0);
        let (key, base) = (self.key(gva, kernel), self.base(gva));
        self.announce(producer, base / MOST_WAYS);
        let home = producer.push(record);
        let set = &mut self.entries[base..base + self.ways];
        let way = set.iter().position(|e| e.key == key).unwrap_or(set.len() - 1);
        set[..=way].rotate_right(1);
        set[0] = Entry { key, home, rank: 0, store, class };
        rank(set);
        if class >= Class::Large {
            self.large[(gva >> 21 & self.large_mask) as usize] = gva >> 21;
        }
        if class == Class::Huge {
            self.huge = gva >> 30;
        }
        home
    }

    /// Shows pages of a set again, so that the stream has them in their order of use: the fewest that
    /// do, the most recent last. Each takes one access over from the record that counted it.
    fn announce(&mut self, producer: &mut Producer, set: usize) {
        if self.reordered >> set & 1 == 0 {
            return;
        }
        self.reordered &= !(1 << set);
        let set = &mut self.entries[set * MOST_WAYS..][..self.ways];
        let mut changed = set.len() - 1;
        while changed > 0 && set[changed - 1].rank < set[changed].rank {
            changed -= 1;
        }
        for entry in set[..changed].iter_mut().rev() {
            if !producer.is_open(entry.home) {
                continue;
            }
            let home = producer.record(entry.home);
            let line = 1 << (home.a >> 6 & 63);
            home.count -= u16::from(home.count > 1);
            let again = Record { count: 1, instructions: 0, c: line, ..*home };
            entry.home = producer.push(again);
        }
        rank(set);
    }

    /// Shows the order of all sets: to be called before records are published.
    pub fn announce_all(&mut self, producer: &mut Producer) {
        while self.reordered != 0 {
            self.announce(producer, self.reordered.trailing_zeros() as usize);
        }
    }

    /// Forgets everything, after the order was shown: what follows may have changed translations.
    pub fn clear(&mut self, producer: &mut Producer) {
        self.announce_all(producer);
        self.generation = (self.generation + 1) % GENERATIONS;
        if self.generation == 0 {
            self.entries = [NOTHING; MOST_SETS * MOST_WAYS];
        }
        self.large = [u64::MAX; MOST_SETS];
        self.huge = u64::MAX;
    }
}

/// The order of the set is what the stream shows.
fn rank(set: &mut [Entry]) {
    for (i, entry) in set.iter_mut().enumerate() {
        entry.rank = i as u8;
    }
}

#[inline(always)]
fn add(producer: &mut Producer, home: u64, count: u16, lines: u64) -> Look {
    if !producer.is_open(home) {
        return Look::Miss;
    }
    let record = producer.record(home);
    match record.count.checked_add(count) {
        Some(sum) => {
            record.count = sum;
            record.c |= lines;
            Look::Hit
        }
        None => Look::Miss,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::{BLOCK, Layout, Rings};
    use nestwalk_types::SplitMix64;

    /// A TLB with replacement by order of use: misses of a stream of page numbers.
    struct Naive {
        sets: u64,
        ways: usize,
        stacks: Vec<Vec<u64>>,
        misses: Vec<u64>,
    }
    impl Naive {
        fn new(sets: u64, ways: usize) -> Self {
            Self { sets, ways, stacks: vec![Vec::new(); sets as usize], misses: Vec::new() }
        }
        fn access(&mut self, page: u64) {
            let stack = &mut self.stacks[(page % self.sets) as usize];
            match stack.iter().position(|p| *p == page) {
                Some(i) => {
                    stack.remove(i);
                }
                None => self.misses.push(page),
            }
            stack.insert(0, page);
            stack.truncate(self.ways);
        }
        fn flush(&mut self) {
            self.stacks.iter_mut().for_each(Vec::clear);
        }
    }

    /// The class of a page: one in three regions is large, one of those huge.
    fn class(gva: u64) -> Class {
        match (gva >> 21) % 3 {
            0 => Class::Large,
            _ if gva >> 30 & 1 == 1 => Class::Huge,
            _ => Class::Small,
        }
    }

    struct Setup {
        rings: Rings,
        filter: AccessFilter,
        producer: Producer,
        out: Vec<Record>,
    }

    fn setup(name: &str, config: FilterConfig) -> Setup {
        let path =
            std::env::temp_dir().join(format!("nestwalk-filter-{}-{name}", std::process::id()));
        let rings = Rings::create(&path, Layout { vcpus: 1, records: 4 * BLOCK }).unwrap();
        std::fs::remove_file(&path).unwrap();
        let producer = rings.producer(0).unwrap();
        Setup { rings, filter: AccessFilter::new(config), producer, out: Vec::new() }
    }

    impl Setup {
        fn access(&mut self, gva: u64, kernel: bool, store: bool) {
            let look = self.filter.look(
                &mut self.producer,
                gva,
                (kernel, store),
                (1, 1 << (gva >> 6 & 63)),
            );
            if look == Look::Miss {
                let record = Record {
                    a: gva,
                    c: 1 << (gva >> 6 & 63),
                    count: 1,
                    flags: u8::from(store) | u8::from(kernel) << 2,
                    ..Record::default()
                };
                self.filter.insert(&mut self.producer, record, class(gva), store);
            }
        }
        fn publish(&mut self) {
            self.filter.announce_all(&mut self.producer);
            self.producer.publish();
            self.rings.consumer(0).unwrap();
        }
    }

    /// Where the pages of a random stream are: in small regions, in large ones that share a set, and
    /// in more huge ones than their array holds.
    fn address(random: &mut SplitMix64) -> u64 {
        let regions = [1, 2, 4, 5, 1, 2, 0, 24, 48, 72, 96, 120, 512, 1537, 2561, 3586, 4609];
        let small = 6;
        let among = if random.below(8) == 0 { regions.len() } else { small };
        let i = random.below(among as u64);
        let pages = if random.below(4) == 0 { 48 } else { 5 };
        regions[i as usize] << 21 | random.below(pages) << 12 | random.below(4096)
    }

    /// Records of a random stream.
    fn misses_are_kept(config: FilterConfig, seed: u64) -> usize {
        let mut s = setup(&format!("{seed}-{}", config.sets), config);
        let mut consumer = s.rings.consumer(0).unwrap();
        let mut random = SplitMix64::new(seed);
        // First-level arrays of three sizes, and a second level behind each of their misses.
        let geometries = [(16, 4), (16, 6), (32, 4), (64, 12)];
        let run = |small: &mut [Naive], gva: u64| match class(gva) {
            Class::Small => small[0].access(gva >> 12),
            Class::Large => {
                small[1].access(gva >> 21);
                // A host with smaller pages splinters the large one.
                small[0].access(gva >> 12);
            }
            Class::Huge => {
                small[2].access(gva >> 30);
                small[1].access(gva >> 21);
                small[0].access(gva >> 12);
            }
        };
        let arrays = |g: (u64, usize)| [Naive::new(g.0, g.1), Naive::new(8, 4), Naive::new(1, 4)];
        let (mut plain, mut seen) = (geometries.map(arrays), geometries.map(arrays));
        let mut accesses = 0;
        let mut hot = address(&mut random);
        for i in 0..120_000 {
            match random.below(1000) {
                0 => {
                    // An event that empties the TLBs.
                    s.filter.clear(&mut s.producer);
                    s.producer.push(Record::control(crate::Kind::InvalidateAll, 0, 0));
                    plain.iter_mut().flatten().for_each(Naive::flush);
                }
                1..=300 => hot = address(&mut random),
                _ => {}
            }
            let gva = if random.below(2) > 0 { hot } else { address(&mut random) };
            s.access(gva, random.below(4) == 0, random.below(3) == 0);
            plain.iter_mut().for_each(|t| run(t, gva));
            accesses += 1;
            if i % 1000 == 999 {
                s.publish();
                consumer.drain(u64::MAX, |r| s.out.push(r));
            }
        }
        let mut counted = 0;
        for r in &s.out {
            if r.kind != 0 {
                seen.iter_mut().flatten().for_each(Naive::flush);
                continue;
            }
            counted += u64::from(r.count);
            seen.iter_mut().for_each(|t| run(t, r.a));
        }
        assert_eq!(counted, accesses, "each access is counted once");
        for (p, s) in plain.iter().flatten().zip(seen.iter().flatten()) {
            assert!(!p.misses.is_empty());
            assert!(p.misses == s.misses, "{} sets, {} ways: other misses", p.sets, p.ways);
        }
        s.out.len()
    }

    #[test]
    fn misses_of_every_refining_tlb_are_what_they_were() {
        for seed in 0..6 {
            let kept = misses_are_kept(DATA, seed);
            let runs = misses_are_kept(FilterConfig::RUNS, seed);
            assert!(kept < runs, "{kept} records, {runs} with runs alone");
        }
    }

    #[test]
    #[should_panic(expected = "other misses")]
    fn a_filter_with_more_ways_than_the_tlb_hides_misses() {
        // Ways that the TLB does not have: the large arrays with 8 sets see through one way of 64.
        let config = FilterConfig { sets: 4, ways: 4, large_sets: 64 };
        for seed in 0..6 {
            misses_are_kept(config, seed);
        }
    }

    #[test]
    fn a_store_after_loads_is_a_record_and_loads_after_it_are_not() {
        let mut s = setup("store", DATA);
        for store in [false, false, true, true, false] {
            s.access(0x20_1000, false, store);
        }
        s.publish();
        s.rings.consumer(0).unwrap().drain(u64::MAX, |r| s.out.push(r));
        let found: Vec<_> = s.out.iter().map(|r| (r.flags, r.count)).collect();
        assert_eq!(found, [(0, 2), (1, 3)]);
    }
}
