//! Paging-structure caches: partial walks, by the address bits already translated.
//!
//! Intel's description (SDM vol. 3A, "Caching Paging-Structure Information"): one cache per level,
//! each entry takes a walk straight to a lower table; the longest match wins. With nested paging the
//! *combined* cache maps a prefix of the gVA to the **host**-physical address of the guest table, and
//! a second one holds the nested tables' own entries by gPA.

use crate::geometry::Indexer;
use crate::profile::WalkCacheProfile;
use crate::replacement::Replacement;
use crate::slim::Sets;
use crate::tlb::Asid;
use nestwalk_tables::{Handle, Level, MAX_LEVELS, Mode, Permissions};
use nestwalk_types::{Address, Hpa};

/// What a walk cache says: where the next table is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pointer {
    /// Host-physical address of the table: where the walker fetches.
    pub table: Hpa,
    /// Address of the same table in the space that its entries are written in (the gPA of a guest
    /// table). Hardware has no use for it; the simulator finds the contents by it.
    pub home: u64,
    /// A short cut to those contents.
    pub handle: Handle,
    /// What the entries passed so far allow.
    pub permissions: Permissions,
    /// Agile paging: 0 for a shadow table; for a guest's, the level of the table at which the walk went
    /// from shadow to guest tables. Hardware needs one bit of it, whether the table is the guest's.
    pub switched: u8,
}

impl Default for Pointer {
    fn default() -> Self {
        Self {
            table: Hpa::new(0),
            home: 0,
            handle: Handle::default(),
            permissions: Permissions::ALL,
            switched: 0,
        }
    }
}

/// One walk cache per level of table that a walk can be taken straight to.
#[derive(Clone, Debug)]
pub struct WalkCache {
    /// `to[l]` takes a walk to a table of level `l`. It has no sets if there is no such cache.
    to: [Sets<Pointer>; MAX_LEVELS],
}

/// Where in a tag the prefix of the address begins.
const PREFIX_SHIFT: u32 = 16;

#[inline]
fn tag(prefix: u64, asid: Asid) -> u64 {
    prefix << PREFIX_SHIFT | u64::from(asid.vpid()) << 12 | u64::from(asid.pcid())
}

/// The longest match among caches from level 2 on.
#[inline(never)]
fn find_above<'a>(
    caches: &'a mut [Sets<Pointer>],
    mode: &Mode,
    translated: u64,
    whose: u64,
) -> Option<(Level, &'a Pointer)> {
    caches.iter_mut().zip(2..).find_map(|(cache, level)| {
        let prefix = translated >> mode.lowest_bit(level + 1);
        let found = cache.look_up(prefix, prefix << PREFIX_SHIFT | whose)?;
        Some((level, &*found))
    })
}

impl WalkCache {
    /// Empty caches of this geometry.
    pub fn new(profile: &WalkCacheProfile) -> Self {
        Self {
            to: std::array::from_fn(|l| {
                profile.to_level(l as Level).map_or_else(Sets::none, |g| {
                    let geometry = g.geometry();
                    let indexer = Indexer::new(geometry.sets());
                    Sets::new(geometry, indexer, Replacement::Lru, PREFIX_SHIFT)
                })
            }),
        }
    }

    /// The longest match for an address: the level of the table to go on with, and the pointer.
    /// `floor` is the lowest level of interest (1 but for walks that end above).
    #[inline]
    pub fn look_up<I: Address>(
        &mut self,
        mode: &Mode,
        address: I,
        asid: Asid,
    ) -> Option<(Level, Pointer)> {
        self.find(mode, address, asid).map(|(level, pointer)| (level, *pointer))
    }

    /// As [`WalkCache::look_up`], of which all but a few are answered by the cache of leaf tables.
    #[inline]
    pub fn find<I: Address>(
        &mut self,
        mode: &Mode,
        address: I,
        asid: Asid,
    ) -> Option<(Level, &Pointer)> {
        let (translated, whose) = (address.value() & mode.address_mask(), tag(0, asid));
        let [_, nearest, above @ ..] = &mut self.to;
        let prefix = translated >> mode.lowest_bit(2);
        match nearest.look_up(prefix, prefix << PREFIX_SHIFT | whose) {
            Some(pointer) => Some((1, pointer)),
            None => find_above(&mut above[..usize::from(mode.levels) - 2], mode, translated, whose),
        }
    }

    /// Remembers that the walk of an address came to a table of `level`.
    #[inline]
    pub fn fill<I: Address>(
        &mut self,
        mode: &Mode,
        address: I,
        asid: Asid,
        level: Level,
        pointer: Pointer,
    ) {
        if let Some(cache) = self.to.get_mut(usize::from(level)) {
            let prefix = mode.prefix(address.value(), level + 1);
            cache.put(prefix, tag(prefix, asid), pointer);
        }
    }

    /// As [`WalkCache::fill`], in a walk that looked this level up and missed, as every walk has that
    /// comes through it: nothing older is looked for.
    #[inline]
    pub fn fill_missed<I: Address>(
        &mut self,
        mode: &Mode,
        address: I,
        asid: Asid,
        level: Level,
        pointer: Pointer,
    ) {
        if let Some(cache) = self.to.get_mut(usize::from(level)) {
            let prefix = mode.prefix(address.value(), level + 1);
            cache.fill(prefix, tag(prefix, asid), pointer);
        }
    }

    /// Removes every entry of `asid`.
    pub fn invalidate_asid(&mut self, asid: Asid) {
        let own = tag(0, asid);
        for cache in &mut self.to {
            cache.retain(|t, _| t & 0xffff != own);
        }
    }

    /// Removes every entry of a VPID.
    pub fn invalidate_vpid(&mut self, vpid: u8) {
        for cache in &mut self.to {
            cache.retain(|t, _| t >> 12 & 0xf != u64::from(vpid));
        }
    }

    /// Removes the entries that a walk of `address` could use.
    pub fn invalidate_address<I: Address>(&mut self, mode: &Mode, address: I, asid: Asid) {
        for level in 1..mode.levels {
            let prefix = mode.prefix(address.value(), level + 1);
            self.to[usize::from(level)].remove(prefix, tag(prefix, asid));
        }
    }

    /// Removes everything.
    pub fn flush(&mut self) {
        for cache in &mut self.to {
            cache.flush();
        }
    }
}
