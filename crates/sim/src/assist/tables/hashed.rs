//! A hash table with packed clusters (Yaniv, Tsafrir, "Hash, Don't Cache (the Page Table)", SIGMETRICS
//! 2016): a place is one line of 64 bytes with the entries of eight pages on end, whose unused bits hold
//! the tag. Addressing is open, so that what collides stands in the next places.
//!
//! One table holds all regions, and pages of all sizes: a cluster of eight large pages stands beside
//! those of small ones, and a page is looked for by one size after another. The paper has small pages
//! alone ("more challenging to support superpages"); here each core begins with the size that a small
//! predictor of POM-TLB's kind gives (Ryoo et al., ISCA 2017): 512 entries, by the 2 MiB around the
//! page.
//!
//! - *Collisions.* The next place, and so on, up to an empty one. Whatever is cleared closes its gap:
//!   later clusters move up, so that there are no tombstones to probe past.
//! - *Load.* Above `load` percent the table doubles, at once: new memory is cleared, every cluster is
//!   moved, the old memory is given back. Below an eighth of that it halves. Where there is no memory in
//!   one piece for the larger table it stays, up to 15 of 16 places.

use super::{Found, Key, NoMemory, Structure, StructureState, Supply, Work};
use nestwalk_tables::Entry;

/// Pages of a cluster.
const CLUSTER: u64 = 8;
const LINE: u64 = 64;
/// Entries of a predictor of page sizes.
const PREDICTOR: usize = 512;

/// How a table is set up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HashConfig {
    /// Most places in use, in percent. Not published; chosen: what elastic cuckoo tables are given, for
    /// which theory has 1.75 probes of what is there (Knuth, vol. 3, 6.4: (1 + 1 / (1 - load)) / 2).
    pub load: u64,
    /// Places at first, a power of two: 64 KiB.
    pub places: u64,
}

impl Default for HashConfig {
    fn default() -> Self {
        Self { load: 60, places: 1024 }
    }
}

#[derive(Clone, Copy, Default)]
struct Place {
    /// Number of the cluster, and the size of its pages.
    tag: u64,
    region: u32,
    /// Entries in use; an empty place has none.
    present: u32,
    entries: [u64; CLUSTER as usize],
}

const fn tag(key: Key, shift: u8) -> u64 {
    (key.of_size(shift) / CLUSTER) << 6 | shift as u64
}

/// Mixes all bits of a tag and a region.
#[inline]
const fn hash(tag: u64, region: u32) -> u64 {
    mix(tag ^ (region as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// Mixes all bits (Stafford's variant 13 of the finalizer of `MurmurHash3`).
#[inline]
pub(super) const fn mix(mut x: u64) -> u64 {
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

/// By core: the size that was found last.
pub(super) struct Predictors(Vec<[u8; PREDICTOR]>);

impl Predictors {
    pub(super) fn new(cores: usize) -> Self {
        Self(vec![[12; PREDICTOR]; cores])
    }

    const fn at(key: Key) -> usize {
        (key.page >> 9) as usize % PREDICTOR
    }

    /// What a core begins with.
    #[inline]
    pub(super) fn size(&self, core: usize, key: Key) -> u8 {
        self.0.get(core).map_or(12, |p| p[Self::at(key)])
    }

    /// A core has found a page of another size.
    #[inline]
    pub(super) fn learn(&mut self, core: usize, key: Key, shift: u8) {
        if let Some(predictor) = self.0.get_mut(core) {
            predictor[Self::at(key)] = shift;
        }
    }
}

/// One page more or less of a size.
pub(super) fn count_size(sizes: &mut Vec<(u8, u64)>, shift: u8, more: bool) {
    let found = sizes.binary_search_by_key(&shift, |s| s.0);
    match (found, more) {
        (Ok(i), true) => sizes[i].1 += 1,
        (Ok(i), false) => {
            sizes[i].1 -= 1;
            if sizes[i].1 == 0 {
                sizes.remove(i);
            }
        }
        (Err(i), true) => sizes.insert(i, (shift, 1)),
        (Err(_), false) => {}
    }
}

/// The table.
pub struct Hashed {
    config: HashConfig,
    base: u64,
    places: Vec<Place>,
    used: u64,
    /// Sizes in use, smallest first, and how many entries have each.
    sizes: Vec<(u8, u64)>,
    predictors: Predictors,
    work: Work,
}

impl Hashed {
    /// An empty table for so many cores; `None` if there is no memory.
    pub fn new(config: HashConfig, cores: usize, memory: &mut dyn Supply) -> Option<Self> {
        let base = memory.take(config.places * LINE)?;
        let work = Work { pages: (config.places * LINE).div_ceil(4096), ..Work::default() };
        let places = vec![Place::default(); config.places as usize];
        let predictors = Predictors::new(cores);
        Some(Self { config, base, places, used: 0, sizes: Vec::new(), predictors, work })
    }

    #[inline]
    const fn mask(&self) -> u64 {
        self.places.len() as u64 - 1
    }

    /// Where a cluster is, or the empty place where it would be.
    fn find(&self, tag: u64, region: u32) -> (usize, bool) {
        let mut at = (hash(tag, region) & self.mask()) as usize;
        loop {
            let place = &self.places[at];
            if place.present == 0 {
                return (at, false);
            }
            if place.tag == tag && place.region == region {
                return (at, true);
            }
            at = (at + 1) & self.mask() as usize;
        }
    }

    /// Makes the table one of `places`, if there is memory for it.
    fn resize(&mut self, places: u64, memory: &mut dyn Supply) -> bool {
        let Some(base) = memory.take(places * LINE) else {
            self.work.refused += 1;
            return false;
        };
        let old = std::mem::replace(&mut self.places, vec![Place::default(); places as usize]);
        for place in old.iter().filter(|p| p.present != 0) {
            let (at, _) = self.find(place.tag, place.region);
            self.places[at] = *place;
        }
        memory.give(self.base, old.len() as u64 * LINE);
        self.base = base;
        self.work.moves += self.used;
        self.work.pages += (places * LINE).div_ceil(4096);
        self.work.resizes += 1;
        true
    }

    fn make_room(&mut self, memory: &mut dyn Supply) -> Result<(), NoMemory> {
        let places = self.places.len() as u64;
        if (self.used + 1) * 100 > places * self.config.load
            && !self.resize(2 * places, memory)
            && (self.used + 1) * 16 > places * 15
        {
            return Err(NoMemory);
        }
        Ok(())
    }

    /// Empties a place and closes the gap (Knuth, vol. 3, 6.4, algorithm R).
    fn close(&mut self, at: usize) {
        let mask = self.mask() as usize;
        let (mut gap, mut next) = (at, at);
        loop {
            next = (next + 1) & mask;
            let place = self.places[next];
            if place.present == 0 {
                break;
            }
            let home = hash(place.tag, place.region) as usize & mask;
            // Whether the gap lies on the way from its home to where it is.
            if (next.wrapping_sub(home) & mask) >= (next.wrapping_sub(gap) & mask) {
                self.places[gap] = place;
                self.work.moves += 1;
                gap = next;
            }
        }
        self.places[gap] = Place::default();
        self.used -= 1;
    }
}

impl Structure for Hashed {
    #[inline]
    fn look_up<E>(
        &mut self,
        core: usize,
        key: Key,
        fetch: &mut impl FnMut(u8, &[u64]) -> Result<(), E>,
    ) -> Result<Option<Found>, E> {
        let first = self.predictors.size(core, key);
        let (mask, mut turn) = (self.mask(), 0);
        // The predicted size, if there is any page of it, and then the others.
        let mut tried = usize::MAX;
        if let Some(i) = self.sizes.iter().position(|s| s.0 == first) {
            tried = i;
        }
        let mut next = tried;
        loop {
            if next == usize::MAX {
                if turn == tried {
                    turn += 1;
                }
                if turn >= self.sizes.len() {
                    // An empty table is probed, too.
                    if self.sizes.is_empty() {
                        fetch(1, &[self.base + (hash(tag(key, 12), key.region) & mask) * LINE])?;
                    }
                    return Ok(None);
                }
                next = turn;
                turn += 1;
            }
            let shift = self.sizes[next].0;
            next = usize::MAX;
            let tag = tag(key, shift);
            let mut at = (hash(tag, key.region) & mask) as usize;
            loop {
                fetch(1, &[self.base + at as u64 * LINE])?;
                let place = &self.places[at];
                if place.present == 0 {
                    break;
                }
                if place.tag == tag && place.region == key.region {
                    let within = (key.of_size(shift) % CLUSTER) as usize;
                    let entry = Entry(place.entries[within]);
                    if place.present >> within & 1 == 0 {
                        break;
                    }
                    if shift != first {
                        self.predictors.learn(core, key, shift);
                    }
                    return Ok(Some(Found { entry, shift, slot: at * CLUSTER as usize + within }));
                }
                at = (at + 1) & mask as usize;
            }
        }
    }

    fn get(&self, key: Key) -> Option<Found> {
        self.sizes.iter().find_map(|&(shift, _)| {
            let (at, there) = self.find(tag(key, shift), key.region);
            let within = (key.of_size(shift) % CLUSTER) as usize;
            let place = &self.places[at];
            let entry = Entry(place.entries[within]);
            (there && place.present >> within & 1 == 1).then_some(Found {
                entry,
                shift,
                slot: at * CLUSTER as usize + within,
            })
        })
    }

    fn put(
        &mut self,
        key: Key,
        shift: u8,
        entry: u64,
        memory: &mut dyn Supply,
    ) -> Result<(), NoMemory> {
        let tag = tag(key, shift);
        let (mut at, there) = self.find(tag, key.region);
        if !there {
            self.make_room(memory)?;
            at = self.find(tag, key.region).0;
            self.places[at] = Place { tag, region: key.region, ..Place::default() };
            self.used += 1;
        }
        let within = (key.of_size(shift) % CLUSTER) as usize;
        let place = &mut self.places[at];
        let new = place.present >> within & 1 == 0;
        place.present |= 1 << within;
        place.entries[within] = entry;
        if new {
            count_size(&mut self.sizes, shift, true);
        }
        self.work.updates += 1;
        Ok(())
    }

    fn remove(&mut self, key: Key, shift: u8, memory: &mut dyn Supply) -> bool {
        let (at, there) = self.find(tag(key, shift), key.region);
        let within = (key.of_size(shift) % CLUSTER) as usize;
        if !there || self.places[at].present >> within & 1 == 0 {
            return false;
        }
        self.places[at].present &= !(1 << within);
        self.places[at].entries[within] = 0;
        if self.places[at].present == 0 {
            self.close(at);
        }
        count_size(&mut self.sizes, shift, false);
        self.work.updates += 1;
        let places = self.places.len() as u64;
        if places > self.config.places && self.used * 800 < places * self.config.load {
            self.resize(places / 2, memory);
        }
        true
    }

    fn mark(&mut self, found: &Found, bits: u64) {
        let place = self.places.get_mut(found.slot / CLUSTER as usize);
        if let Some(place) = place {
            place.entries[found.slot % CLUSTER as usize] |= bits;
        }
    }

    fn shifts(&self) -> Vec<u8> {
        self.sizes.iter().map(|s| s.0).collect()
    }

    fn work(&mut self) -> &mut Work {
        &mut self.work
    }

    fn state(&self) -> StructureState {
        let places = self.places.len() as u64;
        StructureState { bytes: places * LINE, places, used: self.used }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Ledger, lives_like_a_map};
    use super::*;

    fn table(config: HashConfig) -> (Hashed, Ledger) {
        let mut ledger = Ledger::default();
        (Hashed::new(config, 1, &mut ledger).unwrap(), ledger)
    }

    fn holds_its_invariants(table: &Hashed) {
        let mut seen = std::collections::HashSet::new();
        let mut used = 0;
        for (at, place) in table.places.iter().enumerate().filter(|(_, p)| p.present != 0) {
            used += 1;
            assert!(seen.insert((place.tag, place.region)), "a cluster is there twice");
            // Every place from its home on is in use, so that a probe comes to it.
            let mut way = (hash(place.tag, place.region) & table.mask()) as usize;
            while way != at {
                assert!(table.places[way].present != 0, "a gap on the way");
                way = (way + 1) & table.mask() as usize;
            }
        }
        assert_eq!(used, table.used);
        assert!(used * 100 <= table.places.len() as u64 * table.config.load);
    }

    #[test]
    fn it_holds_what_a_map_holds_through_any_number_of_resizes() {
        for seed in 1..=4 {
            let (mut table, mut ledger) = table(HashConfig { places: 64, ..HashConfig::default() });
            lives_like_a_map(&mut table, &mut ledger, seed, holds_its_invariants);
            assert!(table.work.resizes > 8, "{:?}", table.work);
            assert_eq!(ledger.bytes(), table.state().bytes);
        }
    }

    /// Knuth's closed forms for linear probing: (1 + 1 / (1 - a)) / 2 for what is there,
    /// (1 + 1 / (1 - a)^2) / 2 for what is not, for keys in random order.
    #[test]
    fn probes_are_as_many_as_theory_says_at_its_load() {
        for load in [25, 50, 75] {
            let config = HashConfig { load: 90, places: 1 << 16 };
            let (mut table, mut ledger) = table(config);
            let clusters = (1 << 16) * load / 100;
            for i in 0..clusters {
                let key = Key { region: 1, page: i * 8 };
                table.put(key, 12, i << 12 | 1, &mut ledger).unwrap();
            }
            let mut probes = |from: u64, to: u64| {
                let mut n = 0_u64;
                for i in from..to {
                    let mut fetch = |_: u8, lines: &[u64]| {
                        n += lines.len() as u64;
                        Ok::<(), ()>(())
                    };
                    let found = table.look_up(0, Key { region: 1, page: i * 8 }, &mut fetch);
                    assert_eq!(found.unwrap().is_some(), i < clusters);
                }
                n as f64 / (to - from) as f64
            };
            let a = load as f64 / 100.0;
            let (hit, miss) = (probes(0, clusters), probes(clusters, clusters + 40_000));
            let hit_theory = (1.0 + 1.0 / (1.0 - a)) / 2.0;
            let miss_theory = (1.0 + 1.0 / ((1.0 - a) * (1.0 - a))) / 2.0;
            assert!((hit / hit_theory - 1.0).abs() < 0.05, "{load}: {hit} {hit_theory}");
            assert!((miss / miss_theory - 1.0).abs() < 0.10, "{load}: {miss} {miss_theory}");
        }
    }

    #[test]
    fn where_there_is_no_memory_it_fills_up_and_then_says_so() {
        let (mut table, mut ledger) = table(HashConfig { places: 64, ..HashConfig::default() });
        ledger.limit_to(0);
        let put = |i: u64, table: &mut Hashed, ledger: &mut Ledger| {
            table.put(Key { region: 0, page: i * 8 }, 12, 1, ledger)
        };
        let stored = (0..64).take_while(|i| put(*i, &mut table, &mut ledger).is_ok()).count();
        assert_eq!(stored, 60);
        assert!(table.work.refused > 0 && table.work.resizes == 0);
        assert!((0..60).all(|i| table.get(Key { region: 0, page: i * 8 }).is_some()));
    }
}
