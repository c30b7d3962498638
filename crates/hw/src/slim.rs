//! Sets for what is looked up most: TLBs and walk caches, of up to 16 ways with true LRU.
//!
//! They do what [`crate::assoc`] does, in fewer steps. Beside its order of use a set has eight bits of
//! each tag, which are compared at once; tag and payload of an entry lie together, and the distance of
//! sets is a power of two. Whatever does not fit (more ways, other replacement) is an array of `assoc`
//! behind the same interface.

use crate::assoc::{AT_FIRST, SetAssoc, place_in, unused, used};
use crate::geometry::{Geometry, Indexer};
use crate::replacement::Replacement;

/// Equals no tag that is ever looked up.
const INVALID: u64 = u64::MAX;
/// Ways whose hints are compared at once.
const WAYS: usize = 16;

/// Eight bits of the tag of each way.
#[derive(Clone, Copy, Debug)]
#[repr(align(16))]
struct Hints([u8; WAYS]);

impl Hints {
    /// The ways with this hint, a bit each.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn equal(&self, hint: u8) -> u32 {
        let wanted = safe_arch::set_splat_i8_m128i(hint.cast_signed());
        let equal = safe_arch::cmp_eq_mask_i8_m128i(self.0.into(), wanted);
        safe_arch::move_mask_i8_m128i(equal).cast_unsigned()
    }
    #[cfg(not(target_arch = "x86_64"))]
    #[inline(always)]
    fn equal(&self, hint: u8) -> u32 {
        self.0.iter().enumerate().fold(0, |found, (way, h)| found | u32::from(*h == hint) << way)
    }
}

/// What a set is looked through by.
#[derive(Clone, Copy, Debug)]
struct Head {
    hints: Hints,
    /// Ways in order of use, 4 bits each, the most recent lowest; 0 beyond the ways.
    order: u64,
}

#[derive(Clone, Copy, Debug)]
struct Entry<P> {
    tag: u64,
    payload: P,
}

/// A set-associative array of payloads under 64-bit tags, of any geometry, index and replacement. What
/// it does is said by a key, which decides the set, and a tag, which has the key in it.
#[derive(Clone, Debug)]
pub struct Sets<P> {
    /// None if `other` has the entries: then the short ways find no set, and go there.
    heads: Box<[Head]>,
    /// Those of a set stand together, and sets a power of two apart.
    entries: Box<[Entry<P>]>,
    /// The bits of a key that are its set.
    mask: u64,
    /// Base-2 logarithm of the distance of sets.
    apart: u32,
    /// Where in a tag the hint is.
    hint_shift: u32,
    /// A bit for each way.
    every: u32,
    /// Where in an order the least recently used way is.
    last: u32,
    /// The fields of an order that are ways.
    fields: u64,
    /// Whether anything was filled since it was last known to be empty.
    used: bool,
    other: Option<Box<SetAssoc<u64, P, true>>>,
}

/// What a look-up of entries used last needs, side by side with others of its kind.
#[derive(Clone, Copy)]
pub struct Latest<'a, P> {
    heads: &'a [Head],
    entries: &'a [Entry<P>],
    mask: u64,
    apart: u32,
}

impl<'a, P> Latest<'a, P> {
    /// Nothing is found.
    pub const NONE: Self = Self { heads: &[], entries: &[], mask: 0, apart: 0 };

    /// What is under `tag`, if it is known at once that it was used last of its set.
    #[inline(always)]
    pub fn find(&self, key: u64, tag: u64) -> Option<&'a P> {
        let set = (key & self.mask) as usize;
        let way = (self.heads.get(set)?.order & 15) as usize;
        let entry = self.entries.get(set << self.apart | way)?;
        (entry.tag == tag).then_some(&entry.payload)
    }
}

impl<P: Copy + Default> Sets<P> {
    /// An empty array with this index and replacement, which its ways must allow. `key_shift`: where in
    /// tags the key begins.
    pub fn new(
        geometry: Geometry,
        indexer: Indexer,
        replacement: Replacement,
        key_shift: u32,
    ) -> Self {
        let (sets, ways) = (geometry.sets(), geometry.ways);
        let plain = replacement == Replacement::Lru && indexer.is_linear();
        let slim = plain && sets.is_power_of_two() && ways as usize <= WAYS;
        let other = || Box::new(SetAssoc::with(geometry, indexer, replacement));
        let other = (!slim).then(other);
        let (sets, ways) = if slim { (sets, ways) } else { (0, 1) };
        let apart = ways.next_power_of_two().trailing_zeros();
        let none = Entry { tag: INVALID, payload: P::default() };
        let head = Head { hints: Hints([0; WAYS]), order: 0 };
        let mut array = Self {
            heads: vec![head; sets as usize].into_boxed_slice(),
            entries: vec![none; (sets as usize) << apart].into_boxed_slice(),
            mask: u64::from(sets.saturating_sub(1)),
            apart,
            hint_shift: (key_shift + sets.max(1).ilog2()).min(56),
            every: u32::MAX >> (32 - ways),
            last: 4 * (ways - 1),
            fields: u64::MAX >> (64 - 4 * ways),
            used: true,
            other,
        };
        array.flush();
        array
    }

    /// No sets: nothing is found, and nothing is filled.
    pub fn none() -> Self {
        let mut none =
            Self::new(Geometry { entries: 1, ways: 1 }, Indexer::new(1), Replacement::Lru, 0);
        (none.heads, none.entries) = (Box::new([]), Box::new([]));
        none
    }

    #[inline(always)]
    const fn set(&self, key: u64) -> usize {
        (key & self.mask) as usize
    }
    #[inline(always)]
    const fn hint(&self, tag: u64) -> u8 {
        (tag >> self.hint_shift) as u8
    }
    /// Index of the entry of a way.
    #[inline(always)]
    const fn at(&self, set: usize, way: usize) -> usize {
        set << self.apart | way
    }

    /// The short way of finding entries that were used last of their sets; nothing changes by it.
    #[inline(always)]
    pub const fn latest(&self) -> Latest<'_, P> {
        let Self { heads, entries, mask, apart, .. } = self;
        Latest { heads, entries, mask: *mask, apart: *apart }
    }

    /// The way that has a tag, and where its entry is.
    #[inline(always)]
    fn find(&self, head: &Head, set: usize, tag: u64) -> Option<(usize, usize)> {
        let mut found = head.hints.equal(self.hint(tag)) & self.every;
        while found != 0 {
            let way = found.trailing_zeros() as usize;
            let at = self.at(set, way);
            if self.entries.get(at)?.tag == tag {
                return Some((way, at));
            }
            found &= found - 1;
        }
        None
    }

    /// Looks `tag` up and makes it the most recently used of its set.
    #[inline(always)]
    pub fn look_up(&mut self, key: u64, tag: u64) -> Option<&mut P> {
        let set = self.set(key);
        let Some(head) = self.heads.get(set) else { return self.look_up_other(key, tag) };
        let (way, at) = self.find(head, set, tag)?;
        let order = head.order;
        if order & 15 != way as u64 {
            self.heads[set].order = used(order, place_in(order, way), way);
        }
        Some(&mut self.entries.get_mut(at)?.payload)
    }

    #[inline(never)]
    fn look_up_other(&mut self, key: u64, tag: u64) -> Option<&mut P> {
        let other = self.other.as_mut()?;
        other.look_up(other.indexer().set(key), tag)
    }

    /// Looks without a trace: the order of use stays.
    pub fn peek(&self, key: u64, tag: u64) -> Option<&P> {
        if let Some(other) = &self.other {
            return other.peek(other.indexer().set(key), tag);
        }
        let set = self.set(key);
        let (_, at) = self.find(self.heads.get(set)?, set, tag)?;
        Some(&self.entries[at].payload)
    }

    /// Fills `tag`, which must not be there, as the most recently used of its set.
    #[inline(always)]
    pub fn fill(&mut self, key: u64, tag: u64, payload: P) {
        debug_assert!(self.peek(key, tag).is_none(), "filled twice");
        let (set, hint) = (self.set(key), self.hint(tag));
        let Some(head) = self.heads.get_mut(set) else {
            return self.fill_other(key, tag, payload);
        };
        let way = (head.order >> self.last & 15) as usize;
        head.order = (head.order << 4 | way as u64) & self.fields;
        head.hints.0[way] = hint;
        self.used = true;
        let at = self.at(set, way);
        if let Some(entry) = self.entries.get_mut(at) {
            *entry = Entry { tag, payload };
        }
    }

    #[inline(never)]
    fn fill_other(&mut self, key: u64, tag: u64, payload: P) {
        if let Some(other) = &mut self.other {
            self.used = true;
            other.fill(other.indexer().set(key), tag, payload);
        }
    }

    /// Replaces the payload of `tag` if it is there and fills it otherwise.
    #[inline]
    pub fn put(&mut self, key: u64, tag: u64, payload: P) {
        if let Some(here) = self.look_up(key, tag) {
            *here = payload;
        } else {
            self.fill(key, tag, payload);
        }
    }

    /// Empties a way, which becomes the first to be filled.
    fn empty(&mut self, set: usize, way: usize) {
        let ways = self.last as usize / 4 + 1;
        let order = &mut self.heads[set].order;
        *order = unused(*order, place_in(*order, way), way, ways);
        let at = self.at(set, way);
        self.entries[at].tag = INVALID;
    }

    /// Removes `tag`; whether it was there.
    pub fn remove(&mut self, key: u64, tag: u64) -> bool {
        if let Some(other) = &mut self.other {
            return other.remove(other.indexer().set(key), tag);
        }
        let set = self.set(key);
        let found = self.heads.get(set).and_then(|head| self.find(head, set, tag));
        if let Some((way, _)) = found {
            self.empty(set, way);
        }
        found.is_some()
    }

    /// Keeps the entries for which `keep` says so, in their order of use.
    pub fn retain(&mut self, mut keep: impl FnMut(u64, &P) -> bool) {
        if !self.used {
            return;
        }
        if let Some(other) = &mut self.other {
            return other.retain(keep);
        }
        for set in 0..self.heads.len() {
            for way in (0..1 << self.apart).rev() {
                let Entry { tag, payload } = &self.entries[self.at(set, way)];
                if *tag != INVALID && !keep(*tag, payload) {
                    self.empty(set, way);
                }
            }
        }
    }

    /// Removes everything.
    pub fn flush(&mut self) {
        if self.used {
            let order = AT_FIRST & self.fields;
            self.heads.iter_mut().for_each(|head| head.order = order);
            self.entries.iter_mut().for_each(|entry| entry.tag = INVALID);
            self.other.iter_mut().for_each(|other| other.flush());
            self.used = false;
        }
    }

    /// Whether nothing was filled since the last flush.
    #[inline(always)]
    pub const fn is_unused(&self) -> bool {
        !self.used
    }

    /// Calls for every valid entry.
    pub fn for_each(&self, mut each: impl FnMut(u64, &P)) {
        match &self.other {
            Some(other) => other.iter().for_each(|(tag, payload)| each(tag, payload)),
            None => {
                let valid = self.entries.iter().filter(|entry| entry.tag != INVALID);
                valid.for_each(|entry| each(entry.tag, &entry.payload));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nestwalk_types::SplitMix64;

    /// All that happens to an array of `assoc` happens to one of these, too.
    #[test]
    fn slim_sets_are_those_of_the_general_array() {
        for (entries, ways) in [(64, 4), (1536, 12), (48, 3), (5, 5), (44, 11), (8, 1), (256, 16)] {
            let geometry = Geometry::new(entries, ways).unwrap();
            let indexer = Indexer::new(geometry.sets());
            let mut slim = Sets::new(geometry, indexer.clone(), Replacement::Lru, 4);
            let mut other = Sets::<u64>::none();
            assert!(slim.other.is_none());
            other.other = Some(Box::new(SetAssoc::with(geometry, indexer, Replacement::Lru)));
            let mut r = SplitMix64::new(u64::from(entries));
            for i in 0..30_000u64 {
                let key = r.below(u64::from(entries) * 2).min(r.below(u64::from(entries) * 2));
                // Keys that share a hint, too.
                let tag = (key | r.below(2) << 20) << 4 | r.below(2);
                match r.below(400) {
                    0..20 => assert_eq!(slim.remove(key, tag), other.remove(key, tag)),
                    20 => {
                        let at = r.below(3);
                        slim.retain(|t, p| (t ^ p) % 3 != at);
                        other.retain(|t, p| (t ^ p) % 3 != at);
                    }
                    21 if i % 7 == 0 => {
                        slim.flush();
                        other.flush();
                        assert!(slim.is_unused() && other.is_unused());
                    }
                    22..60 => {
                        slim.put(key, tag, i);
                        other.put(key, tag, i);
                    }
                    _ => {
                        let latest = slim.latest().find(key, tag).copied();
                        let found = slim.look_up(key, tag).copied();
                        assert_eq!(found, other.look_up(key, tag).copied());
                        assert!(latest.is_none() || latest == found);
                        assert_eq!(slim.latest().find(key, tag).copied(), found);
                        if found.is_none() {
                            slim.fill(key, tag, i);
                            other.fill(key, tag, i);
                        }
                    }
                }
                assert_eq!(slim.peek(key, tag), other.peek(key, tag));
            }
            let entries = |sets: &Sets<u64>| {
                let mut all = Vec::new();
                sets.for_each(|tag, payload| all.push((tag, *payload)));
                all.sort_unstable();
                all
            };
            assert_eq!(entries(&slim), entries(&other));
        }
    }
}
