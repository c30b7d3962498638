//! The leaf entries of the guest's radix tables, followed store by store: what an OS that kept other
//! tables would have put into those.
//!
//! *Regions.* The table that an entry of a root points to is a region, whatever roots share it: the
//! kernel's half is there once. Hardware tells regions apart by registers, one for each entry of a root,
//! as POWER's segment registers tell segments of 1 TiB; loads of CR3 load them. In modes of two levels a
//! root is a region by itself. A region is followed from when a vCPU first needs it.
//!
//! *Places.* A table is followed in the places where it is linked below a region. One that is linked in
//! more than [`MAX_PLACES`] is missing in the others: no kernel does that, and hostile tables must take
//! no time. What is missing is answered by software, access by access.

use crate::hardware::world::World;
use nestwalk_tables::entry::{LARGE, NO_EXECUTE, USER, WRITE};
use nestwalk_tables::{Entry, Level, Mode, Permissions};
use nestwalk_types::{Address, ByNumber, Gpa, PageSize};
use rustc_hash::FxHashMap;

/// Places in which a table may be linked.
pub const MAX_PLACES: usize = 8;

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

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Place {
    region: u32,
    level: Level,
    /// First address, within the region.
    va: u64,
    permissions: Permissions,
}

type At = (u32, Level, u64);

impl Place {
    const fn at(self) -> At {
        (self.region, self.level, self.va)
    }
}

/// A number for a level of a region.
const fn row(region: u32, level: Level) -> u64 {
    (region as u64) << 8 | level as u64
}

/// The leaf entries of all regions.
pub struct Mirror {
    mode: &'static Mode,
    regions: FxHashMap<u64, u32>,
    next: u32,
    tables: FxHashMap<u64, Vec<Place>>,
    /// Tables by the row of their region and level, and their first address.
    links: ByNumber<ByNumber<u64>>,
    /// Sizes of leaves by region and first page.
    leaves: ByNumber<ByNumber<u8>>,
    changes: Vec<Change>,
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
        Self {
            mode,
            regions: FxHashMap::default(),
            next: 0,
            tables: FxHashMap::default(),
            links: ByNumber::new(),
            leaves: ByNumber::new(),
            changes: Vec::new(),
            forgotten: false,
        }
    }

    /// The region whose table is in this frame, if it is followed.
    #[inline]
    pub fn region(&self, frame: u64) -> Option<u32> {
        self.regions.get(&frame).copied()
    }

    /// What has changed since this was last asked.
    pub fn take_changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
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
        let (level, permissions) = (region_level(self.mode), Permissions::ALL);
        self.attach(world, frame, Place { region, level, va: 0, permissions });
        region
    }

    /// The guest stored `new` over `old` at an address.
    pub fn stored(&mut self, world: &World, at: Gpa, old: u64, new: u64) {
        let Some(places) = self.tables.get(&at.page_number()) else { return };
        let (old, new) = (Entry(old), Entry(new));
        if old == new || !(old.is_present() || new.is_present()) {
            return;
        }
        let index = (at.value() & 0xfff) / u64::from(self.mode.entry_bytes);
        for place in places.clone() {
            // Of tables that point to themselves one place may go with another.
            if !self.is_linked(place) {
                continue;
            }
            let leaf = |e: Entry| e.is_present() && self.is_leaf(place.level, e);
            if !(leaf(old) && leaf(new)) {
                self.entry_goes(place, index, old);
            }
            self.entry_comes(world, place, index, new);
        }
    }

    /// The page of an address is a table, or its contents were told again.
    pub fn told(&mut self, world: &World, at: Gpa) {
        let frame = at.page_number();
        self.emptied(frame);
        for place in self.tables.get(&frame).cloned().unwrap_or_default() {
            if self.is_linked(place) {
                self.scan(world, frame, place);
            }
        }
    }

    /// The pages from an address on are no tables any more, and will be told if they are again.
    /// Entries that point to them stay.
    pub fn gone_in(&mut self, at: Gpa, size: PageSize) {
        for frame in at.page_number()..at.page_number() + size.base_pages() {
            if self.tables.contains_key(&frame) {
                self.gone(frame);
            }
        }
    }

    fn gone(&mut self, frame: u64) {
        self.emptied(frame);
        if let Some(region) = self.regions.remove(&frame) {
            self.detach((region, region_level(self.mode), 0));
            self.leaves.remove(u64::from(region));
            self.forgotten = true;
        }
    }

    /// All that a table maps goes.
    fn emptied(&mut self, frame: u64) {
        for place in self.tables.get(&frame).cloned().unwrap_or_default() {
            self.clear_below(place.at());
        }
    }

    fn clear_below(&mut self, (region, level, va): At) {
        let bytes = self.mode.entries(level) << self.mode.span(level).shift();
        if let Some(leaves) = self.leaves.get_mut(u64::from(region)) {
            let pages = va >> 12..(va + bytes) >> 12;
            let gone: Vec<(u64, u8)> = leaves.range(pages).map(|(p, s)| (p, *s)).collect();
            for (page, shift) in gone {
                leaves.remove(page);
                self.changes.push(Change { region, page, shift, entry: None });
            }
        }
        for below in 1..level {
            let Some(links) = self.links.get(row(region, below)) else { continue };
            let gone: Vec<u64> = links.range(va..va + bytes).map(|l| l.0).collect();
            gone.into_iter().for_each(|va| self.unlink((region, below, va)));
        }
    }

    fn unlink(&mut self, at: At) {
        let Some(links) = self.links.get_mut(row(at.0, at.1)) else { return };
        let Some(frame) = links.remove(at.2) else { return };
        if links.is_empty() {
            self.links.remove(row(at.0, at.1));
        }
        if let Some(places) = self.tables.get_mut(&frame) {
            places.retain(|p| p.at() != at);
            if places.is_empty() {
                self.tables.remove(&frame);
            }
        }
    }

    fn detach(&mut self, at: At) {
        self.clear_below(at);
        self.unlink(at);
    }

    /// A table is linked in a place from now on.
    fn attach(&mut self, world: &World, frame: u64, place: Place) {
        if self.is_linked(place) {
            self.detach(place.at());
        }
        let places = self.tables.entry(frame).or_default();
        if places.len() >= MAX_PLACES {
            return;
        }
        places.push(place);
        let links = self.links.get_or_insert(row(place.region, place.level), ByNumber::new);
        links.insert(place.va, frame);
        self.scan(world, frame, place);
    }

    /// Takes all entries of a table in.
    fn scan(&mut self, world: &World, frame: u64, place: Place) {
        let (table, bytes) = (Gpa::new(frame << 12), self.mode.entry_bytes);
        if !world.guest.contains(table) {
            return;
        }
        let handle = world.guest.open(table);
        for index in 0..self.mode.entries(place.level) {
            let at = table.offset_by(index * u64::from(bytes));
            let entry = Entry(world.guest.entry(handle, at, bytes));
            if entry.is_present() {
                self.entry_comes(world, place, index, entry);
            }
        }
    }

    fn is_linked(&self, place: Place) -> bool {
        self.links.get(row(place.region, place.level)).is_some_and(|l| l.contains(place.va))
    }

    fn is_leaf(&self, level: Level, entry: Entry) -> bool {
        level == 1 || (self.mode.may_be_leaf(level) && entry.has(LARGE))
    }

    fn entry_goes(&mut self, place: Place, index: u64, entry: Entry) {
        if !entry.is_present() || index >= self.mode.entries(place.level) {
            return;
        }
        let span = self.mode.span(place.level);
        let va = place.va + (index << span.shift());
        if !self.is_leaf(place.level, entry) {
            return self.detach((place.region, place.level - 1, va));
        }
        let leaves = self.leaves.get_mut(u64::from(place.region));
        if let Some(shift) = leaves.and_then(|l| l.remove(va >> 12)) {
            let (region, page) = (place.region, va >> 12);
            self.changes.push(Change { region, page, shift, entry: None });
        }
    }

    fn entry_comes(&mut self, world: &World, place: Place, index: u64, entry: Entry) {
        if !entry.is_present() || index >= self.mode.entries(place.level) {
            return;
        }
        let span = self.mode.span(place.level);
        let va = place.va + (index << span.shift());
        if self.is_leaf(place.level, entry) {
            let (region, page, shift) = (place.region, va >> 12, span.shift() as u8);
            let leaves = self.leaves.get_or_insert(u64::from(region), ByNumber::new);
            leaves.insert(page, shift);
            let entry = Some(folded(entry, place.permissions));
            self.changes.push(Change { region, page, shift, entry });
        } else {
            let (region, level) = (place.region, place.level - 1);
            let permissions = place.permissions.and(entry);
            let frame = entry.target::<Gpa>().page_number();
            self.attach(world, frame, Place { region, level, va, permissions });
        }
    }
}
