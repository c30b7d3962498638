//! The one set-associative structure behind every TLB, walk cache and data cache.
//!
//! Replacement is true LRU, kept by position: the ways of a set stand in order of use, the most
//! recent first, so a hit on it moves nothing and the victim is always the last. Invalid ways stand
//! behind all valid ones, so they are filled first.

use crate::geometry::{Geometry, Indexer};

/// A tag that can stand for "no entry".
pub trait Tag: Copy + Eq {
    /// Equals no tag that is ever looked up.
    const INVALID: Self;
}
impl Tag for u32 {
    const INVALID: Self = Self::MAX;
}
impl Tag for u64 {
    const INVALID: Self = Self::MAX;
}

/// A set-associative array of payloads `P` under tags `T`, with true LRU replacement.
#[derive(Clone, Debug)]
pub struct SetAssoc<T, P> {
    tags: Box<[T]>,
    payloads: Box<[P]>,
    ways: usize,
    indexer: Indexer,
    /// Whether anything was filled since it was last known to be empty.
    used: bool,
}

/// Runs `$body` with `$w` a constant for the usual numbers of ways, so that the compiler unrolls the
/// search and the moves.
macro_rules! with_ways {
    ($ways:expr, $f:ident ( $($arg:expr),* )) => {
        match $ways {
            4 => $f::<4, _, _>($($arg),*),
            8 => $f::<8, _, _>($($arg),*),
            11 => $f::<11, _, _>($($arg),*),
            12 => $f::<12, _, _>($($arg),*),
            16 => $f::<16, _, _>($($arg),*),
            20 => $f::<20, _, _>($($arg),*),
            _ => $f::<0, _, _>($($arg),*),
        }
    };
}

/// `W` is the number of ways, or 0 for "as long as the slice".
#[inline(always)]
fn touch<const W: usize, T: Tag, P: Copy>(tags: &mut [T], payloads: &mut [P], tag: T) -> bool {
    let ways = if W == 0 { tags.len() } else { W };
    let (tags, payloads) = (&mut tags[..ways], &mut payloads[..ways]);
    if tags[0] == tag {
        return true;
    }
    for way in 1..ways {
        if tags[way] == tag {
            let payload = payloads[way];
            tags.copy_within(0..way, 1);
            payloads.copy_within(0..way, 1);
            tags[0] = tag;
            payloads[0] = payload;
            return true;
        }
    }
    false
}

#[inline(always)]
fn push<const W: usize, T: Tag, P: Copy>(
    tags: &mut [T],
    payloads: &mut [P],
    (tag, payload): (T, P),
) -> Option<(T, P)> {
    let ways = if W == 0 { tags.len() } else { W };
    let (tags, payloads) = (&mut tags[..ways], &mut payloads[..ways]);
    let victim = (tags[ways - 1], payloads[ways - 1]);
    tags.copy_within(0..ways - 1, 1);
    payloads.copy_within(0..ways - 1, 1);
    tags[0] = tag;
    payloads[0] = payload;
    (victim.0 != T::INVALID).then_some(victim)
}

impl<P: Copy + Default> SetAssoc<u32, P> {
    /// Reads the first and the last tag of a set, to have them near. The value means nothing.
    #[inline]
    pub fn read_ahead(&self, set: usize) -> u32 {
        let range = self.range(set);
        self.tags[range.start] ^ self.tags[range.end - 1]
    }
}

impl<T: Tag, P: Copy + Default> SetAssoc<T, P> {
    /// An empty array.
    pub fn new(geometry: Geometry) -> Self {
        let entries = geometry.entries as usize;
        Self {
            tags: vec![T::INVALID; entries].into_boxed_slice(),
            payloads: vec![P::default(); entries].into_boxed_slice(),
            ways: geometry.ways as usize,
            indexer: Indexer::new(geometry.sets()),
            used: false,
        }
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
    #[inline]
    fn range(&self, set: usize) -> std::ops::Range<usize> {
        let from = set * self.ways;
        from..from + self.ways
    }

    /// Looks `tag` up in `set` and makes it the most recently used.
    #[inline]
    pub fn look_up(&mut self, set: usize, tag: T) -> Option<&mut P> {
        let range = self.range(set);
        let (tags, payloads) = (&mut self.tags[range.clone()], &mut self.payloads[range]);
        with_ways!(self.ways, touch(tags, payloads, tag)).then(|| &mut payloads[0])
    }

    /// Looks without a trace: the order of use stays.
    pub fn peek(&self, set: usize, tag: T) -> Option<&P> {
        let range = self.range(set);
        let way = self.tags[range.clone()].iter().position(|&t| t == tag)?;
        Some(&self.payloads[range.start + way])
    }

    /// Fills `tag`, which must not be there, as the most recently used. Returns what it displaced.
    #[inline]
    pub fn fill(&mut self, set: usize, tag: T, payload: P) -> Option<(T, P)> {
        self.used = true;
        let range = self.range(set);
        let (tags, payloads) = (&mut self.tags[range.clone()], &mut self.payloads[range]);
        with_ways!(self.ways, push(tags, payloads, (tag, payload)))
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

    /// Removes `tag` from `set`; whether it was there.
    pub fn remove(&mut self, set: usize, tag: T) -> bool {
        let range = self.range(set);
        let Some(way) = self.tags[range.clone()].iter().position(|&t| t == tag) else {
            return false;
        };
        self.tags[range.clone()].copy_within(way + 1.., way);
        self.payloads[range.clone()].copy_within(way + 1.., way);
        self.tags[range.end - 1] = T::INVALID;
        true
    }

    /// Keeps the entries for which `keep` says so, in their order of use.
    pub fn retain(&mut self, mut keep: impl FnMut(T, &P) -> bool) {
        if !self.used {
            return;
        }
        for set in 0..self.tags.len() / self.ways {
            let from = set * self.ways;
            let mut kept = from;
            for way in from..from + self.ways {
                let tag = self.tags[way];
                if tag == T::INVALID {
                    break;
                }
                if keep(tag, &self.payloads[way]) {
                    self.tags[kept] = tag;
                    self.payloads[kept] = self.payloads[way];
                    kept += 1;
                }
            }
            self.tags[kept..from + self.ways].fill(T::INVALID);
        }
    }

    /// Removes everything.
    pub fn flush(&mut self) {
        if self.used {
            self.tags.fill(T::INVALID);
            self.used = false;
        }
    }

    /// All valid entries, set by set, most recently used first.
    pub fn iter(&self) -> impl Iterator<Item = (T, &P)> {
        self.tags
            .iter()
            .zip(&self.payloads)
            .filter(|(t, _)| **t != T::INVALID)
            .map(|(t, p)| (*t, p))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nestwalk_types::SplitMix64;

    /// LRU by time stamps, as a textbook has it.
    struct Oracle {
        sets: Vec<Vec<(u64, u64)>>,
        ways: usize,
        clock: u64,
    }
    impl Oracle {
        fn access(&mut self, set: usize, tag: u64) -> bool {
            self.clock += 1;
            let set = &mut self.sets[set];
            if let Some(e) = set.iter_mut().find(|e| e.0 == tag) {
                e.1 = self.clock;
                return true;
            }
            if set.len() == self.ways {
                let oldest = set.iter().enumerate().min_by_key(|(_, e)| e.1).unwrap().0;
                set.swap_remove(oldest);
            }
            set.push((tag, self.clock));
            false
        }
    }

    #[test]
    fn misses_equal_the_oracles_for_every_geometry() {
        for (entries, ways) in
            [(64, 4), (1536, 12), (1536, 6), (48, 48), (5, 5), (33, 11), (160, 20)]
        {
            let geometry = Geometry::new(entries, ways).unwrap();
            let sets = geometry.sets() as usize;
            let mut subject = SetAssoc::<u64, u64>::new(geometry);
            let mut oracle = Oracle { sets: vec![vec![]; sets], ways: ways as usize, clock: 0 };
            let mut r = SplitMix64::new(u64::from(entries));
            for _ in 0..50_000 {
                let bound = u64::from(entries) * 2;
                let key = r.below(bound).min(r.below(bound));
                let set = (key % sets as u64) as usize;
                if r.below(50) == 0 {
                    let there = oracle.sets[set].iter().position(|e| e.0 == key);
                    assert_eq!(subject.remove(set, key), there.is_some());
                    if let Some(i) = there {
                        oracle.sets[set].remove(i);
                    }
                    continue;
                }
                let hit = subject.look_up(set, key).map(|p| *p);
                assert_eq!(hit.is_some(), oracle.access(set, key));
                match hit {
                    Some(p) => assert_eq!(p, key * 3),
                    None => drop(subject.fill(set, key, key * 3)),
                }
            }
        }
    }

    #[test]
    fn retain_keeps_order_and_makes_room() {
        let mut a = SetAssoc::<u64, ()>::new(Geometry::new(4, 4).unwrap());
        for t in 0..4 {
            a.fill(0, t, ());
        }
        a.retain(|t, ()| t % 2 == 0);
        assert_eq!(a.iter().map(|e| e.0).collect::<Vec<_>>(), [2, 0]);
        assert_eq!(a.fill(0, 9, ()), None);
        assert_eq!(a.fill(0, 10, ()), None);
        assert_eq!(a.fill(0, 11, ()), Some((0, ())));
    }
}
