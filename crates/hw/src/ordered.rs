//! Sets of slots in order of use, for TLBs whose entries are found by more than a tag: entries that
//! cover several pages. Replacement is true LRU, as in [`crate::assoc`], whose arrays are faster.

use crate::geometry::{Geometry, Indexer};

/// What a slot holds.
pub trait Slot: Copy + Default {
    /// Whether it holds anything; the default does not.
    fn is_valid(&self) -> bool;
}

/// A set-associative array of slots. Each set has its most recently used slot first, free ones last.
#[derive(Clone, Debug)]
pub struct OrderedSets<S> {
    slots: Box<[S]>,
    ways: usize,
    indexer: Indexer,
    used: bool,
}

impl<S: Slot> OrderedSets<S> {
    /// An empty array, indexed by the remainder.
    pub fn new(geometry: Geometry) -> Self {
        Self::with(geometry, Indexer::new(geometry.sets()))
    }

    /// An empty array with this index.
    pub fn with(geometry: Geometry, indexer: Indexer) -> Self {
        Self {
            slots: vec![S::default(); geometry.entries as usize].into_boxed_slice(),
            ways: geometry.ways as usize,
            indexer,
            used: false,
        }
    }

    /// The set of a key.
    #[inline]
    pub fn set(&self, key: u64) -> usize {
        self.indexer.set(key)
    }

    /// The first slot of a set that `wanted` accepts, which becomes the most recently used.
    #[inline]
    pub fn find(&mut self, set: usize, wanted: impl Fn(&S) -> bool) -> Option<&mut S> {
        let ways = &mut self.slots[set * self.ways..][..self.ways];
        let at = ways.iter().position(wanted)?;
        ways[..=at].rotate_right(1);
        ways.first_mut()
    }

    /// Puts a slot into a set as the most recently used, in place of a free or the least recently used
    /// one.
    #[inline]
    pub fn insert(&mut self, set: usize, slot: S) {
        self.used = true;
        let ways = &mut self.slots[set * self.ways..][..self.ways];
        ways.rotate_right(1);
        if let Some(first) = ways.first_mut() {
            *first = slot;
        }
    }

    /// Keeps the slots of one set for which `keep` says so, in their order, as `keep` leaves them.
    /// Returns how many went.
    pub fn retain_in(&mut self, set: usize, mut keep: impl FnMut(&mut S) -> bool) -> u32 {
        if !self.used {
            return 0;
        }
        let ways = &mut self.slots[set * self.ways..][..self.ways];
        let (mut kept, mut removed) = (0, 0);
        for at in 0..ways.len() {
            let mut slot = ways[at];
            if slot.is_valid() && !keep(&mut slot) {
                removed += 1;
                continue;
            }
            ways[kept] = slot;
            kept += 1;
        }
        ways[kept..].fill(S::default());
        removed
    }

    /// As [`OrderedSets::retain_in`], of all sets.
    pub fn retain(&mut self, mut keep: impl FnMut(&mut S) -> bool) -> u32 {
        (0..self.slots.len() / self.ways).map(|set| self.retain_in(set, &mut keep)).sum()
    }

    /// Removes everything.
    pub fn flush(&mut self) {
        if self.used {
            self.slots.fill(S::default());
            self.used = false;
        }
    }

    /// All valid slots, set by set, most recently used first.
    pub fn iter(&self) -> impl Iterator<Item = &S> {
        self.slots.iter().filter(|s| s.is_valid())
    }
}
