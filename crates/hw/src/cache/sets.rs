//! Sets of cache lines with true LRU: whatever is to be known of a set is compared at once.
//!
//! A set has a byte for each way, its *age*: how many of the others were used since. Using a way makes
//! those that were younger a year older, which is one comparison and one subtraction of 16 bytes; the
//! way to be filled next is the one whose age is the highest. Ages and tags of up to 12 ways are one
//! line of the cache of the machine that we run on.

use crate::geometry::{Geometry, Indexer};

/// Four tags.
type Four = [u32; 4];
/// Age of a way that a set does not have: older than any, and it grows no older.
const NO_WAY: i8 = i8::MAX;
/// Lines of the lowest bits of whose number no tag keeps anything: the number of sets is a multiple.
const UNIT: u32 = 64;

/// One set of up to `4 * Q` ways.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Set<const Q: usize> {
    ages: [i8; 16],
    tags: [Four; Q],
}

/// The sets of a cache of up to `4 * Q` ways, 16 at most.
#[derive(Clone, Debug)]
pub struct Sets<const Q: usize> {
    sets: Box<[Set<Q>]>,
    /// Age of the way that is filled next.
    last: i8,
    /// Of a number of sets that is no power of two.
    indexer: Option<Indexer>,
}

impl<const Q: usize> Sets<Q> {
    /// Whether this holds caches of such a geometry.
    pub const fn fits(geometry: Geometry) -> bool {
        geometry.ways as usize <= 4 * Q && geometry.sets().is_multiple_of(UNIT)
    }

    /// Empty sets, of a geometry that [fits](Self::fits).
    pub fn new(geometry: Geometry) -> Self {
        let sets = geometry.sets();
        let mut ages = [NO_WAY; 16];
        ages.iter_mut().zip(0..geometry.ways as i8).for_each(|(age, way)| *age = way);
        let set = Set { ages, tags: [[u32::MAX; 4]; Q] };
        Self {
            sets: vec![set; sets as usize].into_boxed_slice(),
            last: geometry.ways as i8 - 1,
            indexer: (!sets.is_power_of_two()).then(|| Indexer::new(sets)),
        }
    }

    /// No sets: nothing may be looked up.
    pub fn none() -> Self {
        Self { sets: Box::default(), last: 0, indexer: None }
    }

    /// The set of a line.
    #[inline(always)]
    pub fn set(&self, line: u64) -> usize {
        match &self.indexer {
            None => line as usize & (self.sets.len() - 1),
            Some(indexer) => indexer.set(line),
        }
    }

    /// What of a line's number is its set, if the lowest bits are.
    #[inline(always)]
    pub const fn mask(&self) -> Option<usize> {
        match &self.indexer {
            None => Some(self.sets.len() - 1),
            Some(_) => None,
        }
    }

    /// Something of a set, to be read ahead of its use. The value means nothing.
    #[inline(always)]
    pub fn place(&self, set: usize) -> &u32 {
        &self.sets[set].tags[0][0]
    }

    /// Looks a line up and fills it if it is not there. Whether it was there.
    #[inline(always)]
    pub fn access(&mut self, line: u64) -> bool {
        self.access_in(self.set(line), line)
    }

    /// Uses a line if it is there; nothing is filled. Whether it was there.
    pub fn touch(&mut self, line: u64) -> bool {
        let tag = (line / u64::from(UNIT)) as u32;
        lanes::equal(&self.sets[self.set(line)].tags, tag) != 0 && self.access(line)
    }

    /// Removes a line if it is there; its way is filled next.
    pub fn remove(&mut self, line: u64) {
        let (last, at) = (self.last, self.set(line));
        let set = &mut self.sets[at];
        let found = lanes::equal(&set.tags, (line / u64::from(UNIT)) as u32);
        if found == 0 {
            return;
        }
        let way = found.trailing_zeros() as usize & 15;
        let age = set.ages[way];
        set.ages.iter_mut().filter(|a| **a > age && **a <= last).for_each(|a| *a -= 1);
        set.ages[way] = last;
        set.tags.as_flattened_mut()[way] = u32::MAX;
    }

    /// As [`Sets::access`], of a line whose set is known.
    #[inline(always)]
    pub fn access_in(&mut self, set: usize, line: u64) -> bool {
        let set = &mut self.sets[set];
        // A line's number has 38 bits; which of its lowest six it has, the set says.
        let tag = (line / u64::from(UNIT)) as u32;
        let found = lanes::equal(&set.tags, tag);
        let hit = found != 0;
        let filled = lanes::of_age(&set.ages, self.last);
        let way = (if hit { found } else { filled }).trailing_zeros() as usize & 15;
        let age = set.ages[way];
        lanes::grow_older(&mut set.ages, age);
        set.ages[way] = 0;
        if let Some(here) = set.tags.as_flattened_mut().get_mut(way) {
            *here = tag;
        }
        hit
    }
}

/// What is done with all ways at once.
#[cfg(target_arch = "x86_64")]
mod lanes {
    use super::Four;
    use safe_arch::{
        cmp_eq_mask_i8_m128i, cmp_eq_mask_i32_m128i, cmp_gt_mask_i8_m128i, m128i,
        move_mask_i8_m128i, pack_i16_to_i8_m128i, pack_i32_to_i16_m128i, set_splat_i8_m128i,
        set_splat_i32_m128i, zeroed_m128i,
    };

    /// The ways with this tag, a bit each.
    #[inline(always)]
    pub fn equal<const Q: usize>(tags: &[Four; Q], tag: u32) -> u32 {
        let wanted = set_splat_i32_m128i(tag.cast_signed());
        let four = |i: usize| match tags.get(i) {
            Some(four) => cmp_eq_mask_i32_m128i(m128i::from(*four), wanted),
            None => zeroed_m128i(),
        };
        let low = pack_i32_to_i16_m128i(four(0), four(1));
        let high = if Q > 2 { pack_i32_to_i16_m128i(four(2), four(3)) } else { zeroed_m128i() };
        move_mask_i8_m128i(pack_i16_to_i8_m128i(low, high)).cast_unsigned()
    }

    /// The ways of this age, a bit each.
    #[inline(always)]
    pub fn of_age(ages: &[i8; 16], age: i8) -> u32 {
        let equal = cmp_eq_mask_i8_m128i(m128i::from(*ages), set_splat_i8_m128i(age));
        move_mask_i8_m128i(equal).cast_unsigned()
    }

    /// The ways younger than this age a way was used after.
    #[inline(always)]
    pub fn grow_older(ages: &mut [i8; 16], age: i8) {
        let all = m128i::from(*ages);
        // A comparison that holds is -1.
        let younger = cmp_gt_mask_i8_m128i(set_splat_i8_m128i(age), all);
        *ages = safe_arch::sub_i8_m128i(all, younger).into();
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod lanes {
    use super::Four;

    pub fn equal<const Q: usize>(tags: &[Four; Q], tag: u32) -> u32 {
        tags.as_flattened().iter().enumerate().map(|(i, t)| u32::from(*t == tag) << i).sum()
    }

    pub fn of_age(ages: &[i8; 16], age: i8) -> u32 {
        ages.iter().enumerate().map(|(i, a)| u32::from(*a == age) << i).sum()
    }

    pub fn grow_older(ages: &mut [i8; 16], age: i8) {
        ages.iter_mut().for_each(|a| *a += i8::from(*a < age));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nestwalk_types::SplitMix64;

    /// As slow and as plain as can be: the lines of a set, the one used last in front.
    fn by_lists(sets: u32, ways: u32, lines: &[u64]) -> Vec<bool> {
        let mut lists = vec![Vec::<u64>::new(); sets as usize];
        let mut hits = Vec::new();
        for line in lines {
            let list = &mut lists[(line % u64::from(sets)) as usize];
            let found = list.iter().position(|l| l == line);
            hits.push(found.is_some());
            match found {
                Some(at) => {
                    list.remove(at);
                }
                None => list.truncate(ways as usize - 1),
            }
            list.insert(0, *line);
        }
        hits
    }

    fn compare<const Q: usize>(sets: u32, ways: u32) {
        let geometry = Geometry::new(sets * ways, ways).unwrap();
        assert!(Sets::<Q>::fits(geometry));
        let mut random = SplitMix64::new(u64::from(sets * ways));
        let span = u64::from(sets) * u64::from(ways) * 2;
        // High line numbers, and few enough that many are found again.
        let top = (1 << 38) - 4096 - span;
        let lines: Vec<u64> = (0..60_000).map(|_| top + random.below(span)).collect();
        let mut subject = Sets::<Q>::new(geometry);
        let hits: Vec<bool> = lines.iter().map(|line| subject.access(*line)).collect();
        assert_eq!(hits, by_lists(sets, ways, &lines), "{sets} sets of {ways} ways");
        assert!(hits.iter().filter(|hit| **hit).count() > 10_000, "{sets} sets of {ways} ways");
    }

    #[test]
    fn hits_are_those_of_lists_in_order_of_use() {
        (1..=12).for_each(|ways| compare::<3>(64, ways));
        (9..=16).for_each(|ways| compare::<4>(64, ways));
        compare::<3>(13 * 64, 11);
        compare::<4>(7 * 128, 15);
        compare::<2>(64, 8);
    }

    /// Against lists again, with look-ups that fill nothing and removals.
    #[test]
    fn lines_that_are_removed_make_room_and_look_ups_alone_fill_nothing() {
        let (sets, ways) = (64_u64, 6);
        let mut subject = Sets::<3>::new(Geometry::new(64 * 6, 6).unwrap());
        let mut lists = vec![Vec::<u64>::new(); sets as usize];
        let mut random = SplitMix64::new(5);
        let (mut found, mut removed) = (0, 0);
        for _ in 0..100_000 {
            let line = (1 << 37) + random.below(sets * 12);
            let list = &mut lists[(line % sets) as usize];
            let at = list.iter().position(|l| *l == line);
            match random.below(4) {
                0 => {
                    subject.remove(line);
                    removed += u32::from(at.is_some());
                    list.retain(|l| *l != line);
                    continue;
                }
                1 => {
                    assert_eq!(subject.touch(line), at.is_some());
                    found += u32::from(at.is_some());
                    if at.is_none() {
                        continue;
                    }
                }
                _ => assert_eq!(subject.access(line), at.is_some()),
            }
            list.retain(|l| *l != line);
            list.truncate(ways - 1);
            list.insert(0, line);
        }
        assert!(found > 5_000 && removed > 5_000, "{found} found, {removed} removed");
    }

    #[test]
    fn what_does_not_fit_is_known() {
        assert!(!Sets::<3>::fits(Geometry::new(64 * 13, 13).unwrap()));
        assert!(!Sets::<4>::fits(Geometry::new(96 * 4, 4).unwrap()));
    }
}
