//! The leaf entries of the guest's radix tables, followed store by store: what an OS that kept other
//! tables would have put into those.
//!
//! *Regions.* The table that an entry of a root points to is a region, whatever roots share it: the
//! kernel's half is there once. Hardware tells regions apart by registers, one for each entry of a root,
//! as POWER's segment registers tell segments of 1 TiB; loads of CR3 load them. In modes of two levels a
//! root is a region by itself. A region is followed from when a vCPU first needs it.
//!
//! What is missing because its table is linked in too many places (`assist::links`) is answered by
//! software, access by access.

use crate::assist::links::{Leaves, Links, Place};
use crate::hardware::world::World;
use nestwalk_tables::entry::{NO_EXECUTE, USER, WRITE};
use nestwalk_tables::{Entry, Level, Mode, Permissions};
use nestwalk_types::{Address, ByNumber, Gpa, PageSize};
use rustc_hash::FxHashMap;

/// A leaf entry that came, changed or went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Change {
    /// The region.
    pub region: u32,
    /// First page of 4 KiB, within the region.
    pub page: u64,
    /// Base-2 logarithm of the page's size.
    pub shift: u8,
    /// The entry with what those above it permit; `None` if it went.
    pub entry: Option<u64>,
}

/// Leaf entries, and what becomes of them.
#[derive(Default)]
struct Followed {
    /// Sizes of leaves by region and first page.
    leaves: ByNumber<ByNumber<u8>>,
    changes: Vec<Change>,
}

impl Leaves for Followed {
    const PLACES: usize = 8;
    const IGNORED: u64 = 0;
    const REPLACES: bool = true;

    fn counts(&self, _: &Mode, _: &Place, _: u64, _: Entry) -> bool {
        true
    }

    fn comes(&mut self, place: &Place, va: u64, size: PageSize, entry: Entry) {
        let (region, page, shift) = (place.tree, va >> 12, size.shift() as u8);
        let leaves = self.leaves.get_or_insert(u64::from(region), ByNumber::new);
        leaves.insert(page, shift);
        let entry = Some(folded(entry, place.permissions));
        self.changes.push(Change { region, page, shift, entry });
    }

    fn goes(&mut self, region: u32, va: u64, _: PageSize) {
        let leaves = self.leaves.get_mut(u64::from(region));
        if let Some(shift) = leaves.and_then(|l| l.remove(va >> 12)) {
            self.changes.push(Change { region, page: va >> 12, shift, entry: None });
        }
    }

    fn cleared(&mut self, region: u32, va: u64, bytes: u64) {
        let Some(leaves) = self.leaves.get_mut(u64::from(region)) else { return };
        let pages = va >> 12..(va + bytes) >> 12;
        let gone: Vec<(u64, u8)> = leaves.range(pages).map(|(p, s)| (p, *s)).collect();
        for (page, shift) in gone {
            leaves.remove(page);
            self.changes.push(Change { region, page, shift, entry: None });
        }
    }
}

/// The leaf entries of all regions.
pub struct Mirror {
    links: Links<Followed>,
    regions: FxHashMap<u64, u32>,
    next: u32,
    forgotten: bool,
}

/// Level of the tables that are regions.
pub const fn region_level(mode: &Mode) -> Level {
    if mode.levels > 2 { mode.levels - 1 } else { mode.levels }
}

/// Bytes of a region.
#[inline]
pub const fn region_bytes(mode: &Mode) -> u64 {
    let level = region_level(mode);
    mode.entries(level) << mode.span(level).shift()
}

/// A leaf's value with what those above it permit.
const fn folded(entry: Entry, permissions: Permissions) -> u64 {
    let mut value = entry.0;
    if !permissions.write {
        value &= !WRITE;
    }
    if !permissions.user {
        value &= !USER;
    }
    if !permissions.execute {
        value |= NO_EXECUTE;
    }
    value
}

impl Mirror {
    /// No region.
    pub fn new(mode: &'static Mode) -> Self {
        let links = Links::new(mode, Followed::default());
        Self { links, regions: FxHashMap::default(), next: 0, forgotten: false }
    }

    /// The region whose table is in this frame, if it is followed.
    #[inline]
    pub fn region(&self, frame: u64) -> Option<u32> {
        self.regions.get(&frame).copied()
    }

    /// What has changed since this was last asked.
    pub fn take_changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.links.leaves.changes)
    }

    /// Whether a region has gone since this was last asked.
    pub fn take_forgotten(&mut self) -> bool {
        std::mem::take(&mut self.forgotten)
    }

    /// Follows the region whose table is in this frame, from the first time on.
    pub fn follow(&mut self, world: &World, frame: u64) -> u32 {
        if let Some(region) = self.region(frame) {
            return region;
        }
        let region = self.next;
        self.next += 1;
        self.regions.insert(frame, region);
        self.links.follow(world, frame, region, region_level(self.links.mode()));
        region
    }

    /// The guest stored `new` over `old` at an address.
    pub fn stored(&mut self, world: &World, at: Gpa, old: u64, new: u64) {
        self.links.stored(world, at, old, new);
    }

    /// The page of an address is a table, or its contents were told again.
    pub fn told(&mut self, world: &World, at: Gpa) {
        self.links.told(world, at.page_number());
    }

    /// The pages from an address on are no tables any more, and will be told if they are again.
    /// Entries that point to them stay.
    pub fn gone_in(&mut self, at: Gpa, size: PageSize) {
        for frame in at.page_number()..at.page_number() + size.base_pages() {
            if self.links.has(frame) {
                self.gone(frame);
            }
        }
    }

    fn gone(&mut self, frame: u64) {
        self.links.emptied(frame);
        if let Some(region) = self.regions.remove(&frame) {
            self.links.leave(region, region_level(self.links.mode()));
            self.links.leaves.leaves.remove(u64::from(region));
            self.forgotten = true;
        }
    }
}
