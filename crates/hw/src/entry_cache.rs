//! A cache of page-table entries by where they lie in memory, as AMD's (Bhargava et al., ASPLOS 2008:
//! the page walk cache, tagged by system-physical address; thesis, section 2.1.4). It holds entries
//! above the leaf tables, of the guest and of nested tables alike, and shortens references, not walks: a
//! walk goes through every level.

use crate::assoc::SetAssoc;
use crate::profile::EntryCacheProfile;
use nestwalk_types::Hpa;

/// The cache of one core.
#[derive(Clone, Debug)]
pub struct EntryCache {
    entries: SetAssoc<u64, ()>,
    lowest_level: u8,
}

impl EntryCache {
    /// An empty one.
    pub fn new(profile: &EntryCacheProfile) -> Self {
        Self { entries: SetAssoc::new(profile.geometry()), lowest_level: profile.lowest_level }
    }

    /// Whether entries of a level are held.
    #[inline]
    pub const fn holds(&self, level: u8) -> bool {
        level >= self.lowest_level
    }

    /// Looks an entry up by its address, and fills it if it is not there. Whether it was there.
    #[inline]
    pub fn access(&mut self, at: Hpa) -> bool {
        let key = at.value() >> 2;
        let set = self.entries.indexer().set(key >> 1);
        self.entries.access(set, key)
    }

    /// Removes everything.
    pub fn flush(&mut self) {
        self.entries.flush();
    }
}
