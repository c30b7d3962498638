//! The one set-associative structure behind every TLB, walk cache and data cache.
//!
//! Replacement is true LRU but for arrays that ask for another ([`crate::replacement`]). Sets of up to
//! 16 ways keep the order of use beside the tags, as a list of way numbers of 4 bits each in one word,
//! the most recent lowest, so that no entry ever moves; larger sets keep their entries themselves in
//! order of use. The state of another policy stands in the same word, with the way used last in the same
//! place. Order and tags of a set lie together, in whole lines of the cache of the machine that we run
//! on. Invalid ways are filled first: they stand last in the order, and other policies look for them.

use crate::geometry::{Geometry, Indexer};
use crate::replacement::Replacement;
use nestwalk_types::SplitMix64;
use std::marker::PhantomData;

/// A tag, held as one or two lanes of 32 bits so that four ways are compared at once.
pub trait Tag: Copy + Eq {
    /// Equals no tag that is ever looked up.
    const INVALID: Self;
    /// Lanes of 32 bits.
    const LANES: usize;
    /// One lane.
    fn lane(self, lane: usize) -> u32;
    /// The tag of these lanes; the second is ignored if there is one only.
    fn from_lanes(low: u32, high: u32) -> Self;
}

impl Tag for u32 {
    const INVALID: Self = Self::MAX;
    const LANES: usize = 1;
    #[inline(always)]
    fn lane(self, _: usize) -> u32 {
        self
    }
    #[inline(always)]
    fn from_lanes(low: u32, _: u32) -> Self {
        low
    }
}

impl Tag for u64 {
    const INVALID: Self = Self::MAX;
    const LANES: usize = 2;
    #[inline(always)]
    fn lane(self, lane: usize) -> u32 {
        (self >> (32 * lane)) as u32
    }
    #[inline(always)]
    fn from_lanes(low: u32, high: u32) -> Self {
        (Self::from(high) << 32) | Self::from(low)
    }
}

/// A lane, to be compared with four at once.
#[cfg(target_arch = "x86_64")]
struct Four(safe_arch::m128i);

#[cfg(target_arch = "x86_64")]
impl Four {
    #[inline(always)]
    fn all(lane: u32) -> Self {
        Self(safe_arch::set_splat_i32_m128i(lane.cast_signed()))
    }
    /// Which of these are equal, a bit each.
    #[inline(always)]
    fn equal(&self, ways: [u32; 4]) -> u32 {
        let equal = safe_arch::cmp_eq_mask_i32_m128i(ways.into(), self.0);
        safe_arch::move_mask_m128(safe_arch::cast_to_m128_from_m128i(equal)).cast_unsigned()
    }
}

#[cfg(not(target_arch = "x86_64"))]
struct Four(u32);

#[cfg(not(target_arch = "x86_64"))]
impl Four {
    fn all(lane: u32) -> Self {
        Self(lane)
    }
    fn equal(&self, ways: [u32; 4]) -> u32 {
        (0..4).map(|i| u32::from(ways[i] == self.0) << i).sum()
    }
}

/// Which of the `W` ways hold `wanted` in this lane, a bit each.
///
/// All ways are compared: where a tag stands is hard to predict, and a mispredicted branch costs more
/// than the comparisons.
#[inline(always)]
fn equal<const W: usize>(ways: &[u32], wanted: u32) -> u32 {
    let mut found = 0;
    let (fours, rest) = ways[..W].as_chunks::<4>();
    let four_wanted = Four::all(wanted);
    for (i, four) in fours.iter().enumerate() {
        found |= four_wanted.equal(*four) << (4 * i);
    }
    for (i, way) in rest.iter().enumerate() {
        found |= u32::from(*way == wanted) << (4 * fours.len() + i);
    }
    found
}

/// The way that holds `tag` in a set of `W` ways, whose lanes stand one after the other.
#[inline(always)]
fn find<const W: usize, T: Tag>(lanes: &[u32], tag: T) -> Option<usize> {
    let mut found = equal::<W>(lanes, tag.lane(0));
    if T::LANES == 2 {
        found &= equal::<W>(&lanes[W..], tag.lane(1));
    }
    (found != 0).then_some(found.trailing_zeros() as usize)
}

/// As [`find`], for any number of ways.
fn find_any<T: Tag>(lanes: &[u32], tag: T) -> Option<usize> {
    let ways = lanes.len() / T::LANES;
    let (low, high) = lanes.split_at(ways);
    (0..ways).find(|&i| low[i] == tag.lane(0) && (T::LANES == 1 || high[i] == tag.lane(1)))
}

/// Most ways whose order fits one word.
const ORDERED: usize = 16;
/// Way 0 the most recently used, way 15 the least.
pub(crate) const AT_FIRST: u64 = 0xfedc_ba98_7654_3210;
/// 1 in each field of an order.
const ONES: u64 = 0x1111_1111_1111_1111;

/// Bit position of `way` in an order. Fields beyond the set's ways hold numbers that no way has.
#[inline(always)]
pub(crate) const fn place_in(order: u64, way: usize) -> u32 {
    let zero_at = order ^ (ONES * way as u64);
    (zero_at.wrapping_sub(ONES) & !zero_at & ONES << 3).trailing_zeros() & !3
}

/// The order after the field at bit `place`, which is `way`'s, moved to the front.
#[inline(always)]
pub(crate) const fn used(order: u64, place: u32, way: usize) -> u64 {
    let before = order & ((1 << place) - 1);
    // Shifted in two steps, since the last place is the top of the word.
    let after = order >> place >> 4 << place << 4;
    after | before << 4 | way as u64
}

/// The order after the field at bit `place` moved behind the other fields of `ways` ways.
pub(crate) const fn unused(order: u64, place: u32, way: usize, ways: usize) -> u64 {
    let last = 4 * (ways as u32 - 1);
    let before = order & ((1 << place) - 1);
    let beyond = order >> last >> 4 << last << 4;
    let between = (order >> place >> 4 << place) & ((1 << last) - 1);
    beyond | (way as u64) << last | between & !((1 << place) - 1) | before
}

/// Lanes of a set that hold its order of use; the tags follow.
const ORDER_LANES: usize = 2;
/// Lanes in a line of 64 bytes.
const LINE: usize = 16;

/// How the sets of an array keep what their replacement goes by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kept {
    /// LRU: a list in the word beside the tags.
    List,
    /// LRU of larger sets, or random: the entries stand in order of use.
    Entries,
    /// Another policy: its state is the word beside the tags.
    State,
}

/// A set-associative array of payloads `P` under tags `T`. Only if `ANY` may its replacement be another
/// than LRU: arrays that have no other pay nothing for it.
#[derive(Clone, Debug)]
pub struct SetAssoc<T, P, const ANY: bool = false> {
    /// Set by set: the order of use, then the tags lane by lane, then unused lanes.
    lanes: Box<[u32]>,
    /// Lanes before the first set, so that sets begin with a line.
    base: usize,
    /// Lanes from one set to the next.
    stride: usize,
    payloads: Box<[P]>,
    ways: usize,
    indexer: Indexer,
    kept: Kept,
    /// Whether anything was filled since it was last known to be empty.
    used: bool,
    replacement: Replacement,
    random: SplitMix64,
    tag: PhantomData<T>,
}

impl<T: Tag, P: Copy + Default> SetAssoc<T, P> {
    /// An empty array, indexed by the remainder, with true LRU.
    pub fn new(geometry: Geometry) -> Self {
        Self::made(geometry, Indexer::new(geometry.sets()), Replacement::Lru)
    }
}

impl<T: Tag, P: Copy + Default> SetAssoc<T, P, true> {
    /// An empty array with this index and replacement, which its ways must allow.
    pub fn with(geometry: Geometry, indexer: Indexer, replacement: Replacement) -> Self {
        Self::made(geometry, indexer, replacement)
    }
}

impl<T: Tag, P: Copy + Default, const ANY: bool> SetAssoc<T, P, ANY> {
    fn made(geometry: Geometry, indexer: Indexer, replacement: Replacement) -> Self {
        let (entries, ways) = (geometry.entries as usize, geometry.ways as usize);
        let lanes = ORDER_LANES + ways * T::LANES;
        let stride = if lanes <= 8 { lanes } else { lanes.next_multiple_of(LINE) };
        let sets = geometry.sets() as usize;
        let lanes = vec![u32::MAX; sets * stride + LINE].into_boxed_slice();
        let kept = match replacement {
            _ if ways > ORDERED => Kept::Entries,
            Replacement::Lru => Kept::List,
            _ => Kept::State,
        };
        let seed = if let Replacement::Random(seed) = replacement { seed } else { 0 };
        let misplaced = lanes.as_ptr() as usize / 4 % LINE;
        let mut array = Self {
            lanes,
            base: (LINE - misplaced) % LINE,
            stride,
            payloads: vec![P::default(); entries].into_boxed_slice(),
            ways,
            indexer,
            kept,
            used: true,
            replacement,
            random: SplitMix64::new(seed),
            tag: PhantomData,
        };
        array.flush();
        array
    }
    /// How keys are spread over the sets.
    #[inline]
    pub const fn indexer(&self) -> &Indexer {
        &self.indexer
    }
    /// Whether nothing was filled since the last flush.
    #[inline]
    pub const fn is_unused(&self) -> bool {
        !self.used
    }
    /// Number of sets.
    const fn sets(&self) -> usize {
        self.payloads.len() / self.ways
    }
    #[inline(always)]
    const fn kept(&self) -> Kept {
        match ANY {
            true => self.kept,
            false if self.ways <= ORDERED => Kept::List,
            false => Kept::Entries,
        }
    }
    /// Whether no entry ever moves within its set.
    #[inline(always)]
    const fn stays(&self) -> bool {
        !matches!(self.kept(), Kept::Entries)
    }
    /// Index of the lane where a set begins.
    #[inline(always)]
    const fn start(&self, set: usize) -> usize {
        self.base + set * self.stride
    }
    #[inline(always)]
    fn order(&self, set: usize) -> u64 {
        let at = self.start(set);
        u64::from(self.lanes[at + 1]) << 32 | u64::from(self.lanes[at])
    }
    #[inline(always)]
    fn set_order(&mut self, set: usize, order: u64) {
        let at = self.start(set);
        self.lanes[at] = order as u32;
        self.lanes[at + 1] = (order >> 32) as u32;
    }

    /// The beginning of a set in memory, to be read ahead of its use. The value means nothing.
    #[inline]
    pub fn place(&self, set: usize) -> &u32 {
        &self.lanes[self.start(set)]
    }

    #[inline(always)]
    fn find(&self, set: usize, tag: T) -> Option<usize> {
        let from = self.start(set) + ORDER_LANES;
        let lanes = &self.lanes[from..from + self.ways * T::LANES];
        match self.ways {
            2 => find::<2, T>(lanes, tag),
            4 => find::<4, T>(lanes, tag),
            6 => find::<6, T>(lanes, tag),
            8 => find::<8, T>(lanes, tag),
            11 => find::<11, T>(lanes, tag),
            12 => find::<12, T>(lanes, tag),
            16 => find::<16, T>(lanes, tag),
            20 => find::<20, T>(lanes, tag),
            _ => find_any(lanes, tag),
        }
    }
    #[inline(always)]
    fn tag_at(&self, set: usize, way: usize) -> T {
        let low = self.start(set) + ORDER_LANES + way;
        T::from_lanes(self.lanes[low], self.lanes[low + self.ways * (T::LANES - 1)])
    }
    #[inline(always)]
    fn set_tag(&mut self, set: usize, way: usize, tag: T) {
        let low = self.start(set) + ORDER_LANES + way;
        for lane in 0..T::LANES {
            self.lanes[low + self.ways * lane] = tag.lane(lane);
        }
    }

    /// Moves the entry of `from` to `to` in a large set, and those between by one.
    fn rotate(&mut self, set: usize, from: usize, to: usize) {
        let base = set * self.ways;
        let range = from.min(to)..=from.max(to);
        let payloads = &mut self.payloads[base..base + self.ways][range.clone()];
        if from > to {
            payloads.rotate_right(1)
        } else {
            payloads.rotate_left(1)
        }
        for lane in 0..T::LANES {
            let first = self.start(set) + ORDER_LANES + self.ways * lane;
            let tags = &mut self.lanes[first..first + self.ways][range.clone()];
            if from > to { tags.rotate_right(1) } else { tags.rotate_left(1) }
        }
    }

    /// Makes a way the most recently used of its set; which way its entry is from then on.
    #[inline(always)]
    fn touch(&mut self, set: usize, way: usize) -> usize {
        match self.kept() {
            Kept::List => {
                let order = self.order(set);
                self.set_order(set, used(order, place_in(order, way), way));
                way
            }
            Kept::Entries => {
                self.rotate(set, way, 0);
                0
            }
            Kept::State => self.touch_state(set, way),
        }
    }

    #[inline(never)]
    fn touch_state(&mut self, set: usize, way: usize) -> usize {
        let state = self.replacement.used(self.order(set), way, self.ways);
        self.set_order(set, state);
        way
    }

    /// Makes the least recently used way of a set the most recently used; which it is then.
    #[inline(always)]
    fn recycle(&mut self, set: usize) -> usize {
        match self.kept() {
            Kept::List => {
                let last = 4 * (self.ways as u32 - 1);
                let order = self.order(set);
                let way = (order >> last & 15) as usize;
                self.set_order(set, used(order, last, way));
                way
            }
            Kept::Entries if !ANY || self.replacement == Replacement::Lru => {
                self.touch(set, self.ways - 1)
            }
            _ => self.recycle_other(set),
        }
    }

    /// As `recycle`, of policies other than LRU: an invalid way, or the policy's victim.
    #[inline(never)]
    fn recycle_other(&mut self, set: usize) -> usize {
        let invalid = (0..self.ways).find(|way| self.tag_at(set, *way) == T::INVALID);
        let way = invalid.unwrap_or_else(|| match self.replacement {
            Replacement::Random(_) => self.random.below(self.ways as u64) as usize,
            policy => policy.victim(self.order(set), self.ways),
        });
        self.touch(set, way)
    }

    /// Looks `tag` up in `set` and makes it the most recently used.
    #[inline(always)]
    pub fn look_up(&mut self, set: usize, tag: T) -> Option<&mut P> {
        // Programs come back to the same page of a set more often than not.
        let first = if self.stays() { (self.order(set) & 15) as usize } else { 0 };
        if self.tag_at(set, first) == tag {
            return Some(&mut self.payloads[set * self.ways + first]);
        }
        let way = self.find(set, tag)?;
        let way = self.touch(set, way);
        Some(&mut self.payloads[set * self.ways + way])
    }

    /// Looks `tag` up in `set` and fills it if it is not there, most recently used either way; its
    /// payload, if the array has any, is not touched. Whether it was there.
    #[inline(always)]
    pub fn access(&mut self, set: usize, tag: T) -> bool {
        if let Some(way) = self.find(set, tag) {
            self.touch(set, way);
            return true;
        }
        self.used = true;
        let way = self.recycle(set);
        self.set_tag(set, way, tag);
        false
    }

    /// Looks without a trace: the order of use stays.
    pub fn peek(&self, set: usize, tag: T) -> Option<&P> {
        let way = self.find(set, tag)?;
        Some(&self.payloads[set * self.ways + way])
    }

    /// Fills `tag`, which must not be there, as the most recently used.
    #[inline]
    pub fn fill(&mut self, set: usize, tag: T, payload: P) {
        debug_assert!(self.peek(set, tag).is_none(), "filled twice");
        self.used = true;
        let way = self.recycle(set);
        self.set_tag(set, way, tag);
        self.payloads[set * self.ways + way] = payload;
    }

    /// Replaces the payload of `tag` if it is there and fills it otherwise.
    #[inline]
    pub fn put(&mut self, set: usize, tag: T, payload: P) {
        if let Some(here) = self.look_up(set, tag) {
            *here = payload;
        } else {
            self.fill(set, tag, payload);
        }
    }

    /// Empties a way, which becomes the first to be filled.
    fn empty(&mut self, set: usize, way: usize) {
        match self.kept() {
            Kept::List => {
                let order = self.order(set);
                self.set_order(set, unused(order, place_in(order, way), way, self.ways));
                self.set_tag(set, way, T::INVALID);
            }
            Kept::Entries => {
                self.rotate(set, way, self.ways - 1);
                self.set_tag(set, self.ways - 1, T::INVALID);
            }
            Kept::State => self.set_tag(set, way, T::INVALID),
        }
    }

    /// Removes `tag` from `set`; whether it was there.
    pub fn remove(&mut self, set: usize, tag: T) -> bool {
        let found = self.find(set, tag);
        if let Some(way) = found {
            self.empty(set, way);
        }
        found.is_some()
    }

    /// Keeps the entries for which `keep` says so, in their order of use.
    pub fn retain(&mut self, mut keep: impl FnMut(T, &P) -> bool) {
        if !self.used {
            return;
        }
        for set in 0..self.sets() {
            // From the last way on, since emptying one moves those behind it in large sets.
            for way in (0..self.ways).rev() {
                let tag = self.tag_at(set, way);
                if tag != T::INVALID && !keep(tag, &self.payloads[set * self.ways + way]) {
                    self.empty(set, way);
                }
            }
        }
    }

    /// Removes everything.
    pub fn flush(&mut self) {
        if self.used {
            self.lanes.fill(u32::MAX);
            let state = self.replacement.fresh();
            let first = if self.kept() == Kept::List { AT_FIRST } else { state };
            (0..self.sets()).for_each(|set| self.set_order(set, first));
            self.used = false;
        }
    }

    /// All valid entries, set by set; with LRU the most recently used first.
    pub fn iter(&self) -> impl Iterator<Item = (T, &P)> {
        (0..self.payloads.len()).filter_map(|i| {
            let (set, nth) = (i / self.ways, i % self.ways);
            let listed = self.kept() == Kept::List;
            let way = if listed { (self.order(set) >> (4 * nth) & 15) as usize } else { nth };
            let tag = self.tag_at(set, way);
            (tag != T::INVALID).then(|| (tag, &self.payloads[set * self.ways + way]))
        })
    }
}

#[cfg(test)]
#[path = "assoc_tests.rs"]
mod tests;
