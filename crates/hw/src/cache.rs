//! Data caches: they decide how long each reference takes. Tags only, no contents.

mod helper;
mod nodes;
mod queue;
mod sets;
mod stages;

use self::helper::Helper;
use self::queue::Queue;
use self::sets::Sets;
use crate::assoc::SetAssoc;
use crate::geometry::Geometry;
use crate::profile::CacheProfile;
use nestwalk_types::Hpa;
pub use nodes::{Far, NodeLayout, Nodes};
pub use queue::Settled;
pub use stages::{KINDS, Reference, Served};

/// Where a reference was served.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
#[repr(u8)]
pub enum ServedBy {
    /// First-level cache.
    L1,
    /// Second-level cache.
    L2,
    /// Last-level cache.
    Llc,
    /// Memory.
    Memory,
}

impl ServedBy {
    /// Number of variants.
    pub const COUNT: usize = 4;
    /// All, in order.
    pub const ALL: [Self; Self::COUNT] = [Self::L1, Self::L2, Self::Llc, Self::Memory];
    /// Names in results, in order.
    pub const NAMES: [&'static str; Self::COUNT] = ["l1", "l2", "llc", "memory"];
}

/// Host-physical addresses must be below this: 16 TiB. A tag is then 32 bits wide.
pub const HPA_LIMIT: u64 = 1 << 44;

/// One cache of 64-byte lines with LRU replacement.
#[derive(Clone, Debug)]
pub enum Cache {
    /// Of up to 12 ways.
    Twelve(Sets<3>),
    /// Of up to 16 ways.
    Sixteen(Sets<4>),
    /// Of any other geometry.
    Other(SetAssoc<u32, ()>),
}

impl Cache {
    /// An empty cache; `geometry.entries` counts lines.
    pub fn new(geometry: Geometry) -> Self {
        if Sets::<3>::fits(geometry) {
            Self::Twelve(Sets::new(geometry))
        } else if Sets::<4>::fits(geometry) {
            Self::Sixteen(Sets::new(geometry))
        } else {
            Self::Other(SetAssoc::new(geometry))
        }
    }
    /// The memory of the set that a line belongs to: whoever reads it has the set near by when it is
    /// looked up. The value means nothing.
    #[inline]
    fn place(&self, line: u64) -> &u32 {
        match self {
            Self::Twelve(sets) => sets.place(sets.set(line)),
            Self::Sixteen(sets) => sets.place(sets.set(line)),
            Self::Other(sets) => sets.place(sets.indexer().set(line)),
        }
    }
    /// Looks a line up and fills it if it is not there. Whether it was there.
    #[inline]
    pub fn access(&mut self, line: u64) -> bool {
        match self {
            Self::Twelve(sets) => sets.access(line),
            Self::Sixteen(sets) => sets.access(line),
            Self::Other(sets) => access_other(sets, line),
        }
    }
    /// Uses a line if it is there; nothing is filled. Whether it was there.
    pub fn touch(&mut self, line: u64) -> bool {
        match self {
            Self::Twelve(sets) => sets.touch(line),
            Self::Sixteen(sets) => sets.touch(line),
            Self::Other(sets) => {
                let (tag, set) = sets.indexer().split(line);
                sets.look_up(set, tag as u32).is_some()
            }
        }
    }
    /// Removes a line if it is there; its way is filled next.
    pub fn remove(&mut self, line: u64) {
        match self {
            Self::Twelve(sets) => sets.remove(line),
            Self::Sixteen(sets) => sets.remove(line),
            Self::Other(sets) => {
                let (tag, set) = sets.indexer().split(line);
                sets.remove(set, tag as u32);
            }
        }
    }
}

#[inline(never)]
fn access_other(sets: &mut SetAssoc<u32, ()>, line: u64) -> bool {
    let (tag, set) = sets.indexer().split(line);
    // 38 bits of line number, of which every real cache indexes with 6 at least.
    sets.access(set, tag as u32)
}

/// The private caches of one core.
#[derive(Clone, Debug)]
struct CoreCaches {
    l1d: Cache,
    l1i: Cache,
    l2: Cache,
}

/// The levels of caches.
#[derive(Clone, Debug)]
struct Levels {
    cores: Vec<CoreCaches>,
    /// Of node 0, if there are several.
    llc: Cache,
    nodes: Option<Box<Nodes>>,
}

impl Levels {
    /// In place of levels that are elsewhere: nothing may be looked up.
    fn none() -> Self {
        Self { cores: Vec::new(), llc: Cache::Twelve(Sets::none()), nodes: None }
    }
}

/// All caches of a machine: private first and second levels, a shared last level; one on each node, if
/// there are several.
///
/// A miss fills every level that missed. Not modelled: write-backs, prefetchers, coherence traffic,
/// back-invalidation.
#[derive(Debug)]
pub struct Caches {
    levels: Levels,
    queue: Queue,
    helper: Option<Helper>,
}

/// A copy has no helper.
impl Clone for Caches {
    fn clone(&self) -> Self {
        debug_assert!(!self.is_deferring(), "the levels may be elsewhere");
        Self { levels: self.levels.clone(), queue: self.queue.clone(), helper: None }
    }
}

impl Caches {
    /// Empty caches of this profile for `cores` cores.
    pub fn new(profile: &CacheProfile, cores: usize) -> Self {
        let core = CoreCaches {
            l1d: Cache::new(profile.l1d.geometry()),
            l1i: Cache::new(profile.l1i.geometry()),
            l2: Cache::new(profile.l2.geometry()),
        };
        let llc = Cache::new(profile.llc.geometry());
        let levels = Levels { cores: vec![core; cores], llc, nodes: None };
        Self { levels, queue: Queue::default(), helper: None }
    }
    /// A data reference, of the program or of the walker (page walkers load through the first-level
    /// data cache on the processors of the profiles). None may wait.
    #[inline]
    pub fn data(&mut self, core: usize, at: Hpa) -> ServedBy {
        debug_assert!(!self.has_waiting(), "out of order");
        let line = at.value() >> 6;
        if self.levels.cores[core].l1d.access(line) {
            return ServedBy::L1;
        }
        beyond(&mut self.levels, core, line)
    }
    /// An instruction fetch. No reference may wait.
    #[inline]
    pub fn fetch(&mut self, core: usize, at: Hpa) -> ServedBy {
        debug_assert!(!self.has_waiting(), "out of order");
        let line = at.value() >> 6;
        if self.levels.cores[core].l1i.access(line) {
            return ServedBy::L1;
        }
        beyond(&mut self.levels, core, line)
    }
    /// The memory of the last-level set of an address, to be read ahead of its use. The value means
    /// nothing.
    #[inline]
    pub fn last_level_place(&self, at: Hpa) -> &u32 {
        self.levels.llc.place(at.value() >> 6)
    }
    /// Uses a line of a core's second level by its number, if it is there. No reference may wait.
    pub fn use_second_level(&mut self, core: usize, line: u64) -> bool {
        debug_assert!(!self.has_waiting(), "out of order");
        self.levels.cores[core].l2.touch(line)
    }
    /// Puts a line into a core's second level alone. Whether it was there. No reference may wait.
    pub fn fill_second_level(&mut self, core: usize, line: u64) -> bool {
        debug_assert!(!self.has_waiting(), "out of order");
        self.levels.cores[core].l2.access(line)
    }
    /// Removes the line of an address from a core's second level. No reference may wait.
    pub fn drop_from_second_level(&mut self, core: usize, at: Hpa) {
        debug_assert!(!self.has_waiting(), "out of order");
        self.levels.cores[core].l2.remove(at.value() >> 6);
    }
    /// The private caches of a core change places with those of a core elsewhere.
    pub fn exchange_core(&mut self, core: usize, other: &mut Self, of_other: usize) {
        std::mem::swap(&mut self.levels.cores[core], &mut other.levels.cores[of_other]);
    }
    /// The last levels change places.
    pub const fn exchange_last_level(&mut self, other: &mut Self) {
        std::mem::swap(&mut self.levels.llc, &mut other.levels.llc);
    }
}

#[inline(never)]
fn beyond(levels: &mut Levels, core: usize, line: u64) -> ServedBy {
    let Levels { cores, llc, nodes } = levels;
    if cores[core].l2.access(line) {
        return ServedBy::L2;
    }
    if let Some(nodes) = nodes {
        return beyond_nodes(llc, nodes, core, line);
    }
    if llc.access(line) { ServedBy::Llc } else { ServedBy::Memory }
}

#[inline(never)]
fn beyond_nodes(llc: &mut Cache, nodes: &mut Nodes, core: usize, line: u64) -> ServedBy {
    if nodes.last_level(llc, core).access(line) {
        return ServedBy::Llc;
    }
    nodes.memory(core, line);
    ServedBy::Memory
}

#[cfg(test)]
mod tests;
