//! The runs of the guest dimension, address space by address space, as the guest's tables say at any
//! time: followed store by store, never looked for.
//!
//! A table is in the index in the places where it is linked under a root that was loaded: first
//! address and level. A stored leaf maps or unmaps its pages in each place; a stored pointer brings all
//! that is below it, or takes it away. Pages that user mode may not access are left out, and with
//! them the kernel's half.
//!
//! What the index has is always in the tables. A page that is linked in more than [`MAX_PLACES`]
//! places is missing in the others: no kernel does that, and hostile tables must take no time.

use crate::hardware::world::World;
use nestwalk_contiguity::{MappedRun, RunSet};
use nestwalk_tables::entry::{ACCESSED, DIRTY, LARGE};
use nestwalk_tables::{Entry, Level, Mode, Permissions};
use nestwalk_types::{Address, ByNumber, Gpa, PageSize};
use rustc_hash::FxHashMap;

/// Places in which a table may be linked: two roots share tables under page-table isolation.
pub const MAX_PLACES: usize = 4;

/// An address space of the index.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct SpaceId(u32);

impl SpaceId {
    /// Its number, from 0 on.
    #[inline]
    pub const fn number(self) -> u64 {
        self.0 as u64
    }
}

/// Pages of an address space whose mapping may have changed: first page number and count.
pub type Touched = (SpaceId, u64, u64);

/// Where a table is linked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Place {
    space: SpaceId,
    level: Level,
    /// First address that it maps.
    va: u64,
    /// What the entries above it permit.
    permissions: Permissions,
}

type Key = (SpaceId, Level, u64);

/// A number for a level of an address space.
const fn row(space: SpaceId, level: Level) -> u64 {
    space.number() << 8 | level as u64
}

impl Place {
    const fn key(self) -> Key {
        (self.space, self.level, self.va)
    }
}

struct Space {
    root: u64,
    runs: RunSet,
}

/// What the pages of a run permit, as the tag of its run.
const fn tag(permissions: Permissions) -> u16 {
    permissions.write as u16 | (permissions.execute as u16) << 1
}

/// What the pages of a run permit.
pub const fn permissions_of(run: MappedRun) -> Permissions {
    Permissions { write: run.tag & 1 != 0, user: true, execute: run.tag & 2 != 0 }
}

/// The runs of all address spaces that were loaded.
pub struct GuestRuns {
    mode: &'static Mode,
    spaces: ByNumber<Space>,
    next: u32,
    roots: FxHashMap<u64, SpaceId>,
    tables: FxHashMap<u64, Vec<Place>>,
    /// Tables by the row of their space and level, and their first address.
    links: ByNumber<ByNumber<u64>>,
    largest: u8,
    touched: Vec<Touched>,
}

impl GuestRuns {
    /// No address space.
    pub fn new(mode: &'static Mode) -> Self {
        Self {
            mode,
            spaces: ByNumber::new(),
            next: 0,
            roots: FxHashMap::default(),
            tables: FxHashMap::default(),
            links: ByNumber::new(),
            largest: 12,
            touched: Vec::new(),
        }
    }

    /// The address space of a root table.
    #[inline]
    pub fn space(&self, root: Gpa) -> Option<SpaceId> {
        self.roots.get(&root.page_number()).copied()
    }
    /// The runs of an address space.
    #[inline]
    pub fn runs(&self, space: SpaceId) -> Option<&RunSet> {
        self.spaces.get(space.number()).map(|s| &s.runs)
    }
    /// The run of a page.
    #[inline]
    pub fn find(&self, space: SpaceId, page: u64) -> Option<MappedRun> {
        self.spaces.get(space.number())?.runs.find(page)
    }
    /// All address spaces with their roots and runs.
    pub fn spaces(&self) -> impl Iterator<Item = (SpaceId, Gpa, &RunSet)> {
        self.spaces.iter().map(|(id, s)| (SpaceId(id as u32), Gpa::new(s.root << 12), &s.runs))
    }
    /// The largest page that was ever mapped: an invalidation of an address may concern all of the
    /// aligned block of that size around it.
    #[inline]
    pub const fn largest_page(&self) -> PageSize {
        PageSize::from_shift(self.largest)
    }
    /// What has changed since this was asked last.
    pub fn take_touched(&mut self) -> Vec<Touched> {
        std::mem::take(&mut self.touched)
    }
    /// Whether something has changed since then.
    #[inline]
    pub fn is_touched(&self) -> bool {
        !self.touched.is_empty()
    }

    /// A root was loaded: from the first time on its tables are followed.
    pub fn load(&mut self, world: &World, root: Gpa) {
        let frame = root.page_number();
        if self.roots.contains_key(&frame) {
            return;
        }
        let space = SpaceId(self.next);
        self.next += 1;
        self.roots.insert(frame, space);
        self.spaces.insert(space.number(), Space { root: frame, runs: RunSet::new() });
        let (level, permissions) = (self.mode.levels, Permissions::ALL);
        self.attach(world, frame, Place { space, level, va: 0, permissions });
    }

    /// The guest stored `new` over `old` at an address.
    pub fn stored(&mut self, world: &World, at: Gpa, old: u64, new: u64) {
        let Some(places) = self.tables.get(&at.page_number()) else { return };
        let (old, new) = (Entry(old), Entry(new));
        let same = (old.0 ^ new.0) & !(ACCESSED | DIRTY) == 0;
        if same || !(old.is_present() || new.is_present()) {
            return;
        }
        let index = (at.value() & 0xfff) / u64::from(self.mode.entry_bytes);
        for place in places.clone() {
            // Of tables that point to themselves one place may go with another.
            if self.is_linked(place) {
                self.entry_goes(place, index, old);
                self.entry_comes(world, place, index, new);
            }
        }
    }

    /// The page of an address is a table, or its contents were told again.
    pub fn told(&mut self, world: &World, at: Gpa) {
        self.emptied(at);
        let frame = at.page_number();
        for place in self.tables.get(&frame).cloned().unwrap_or_default() {
            if self.is_linked(place) {
                self.scan(world, frame, place);
            }
        }
        if world.roots.iter().any(|root| root.page_number() == frame) {
            self.load(world, at);
        }
    }

    /// The pages from an address on are no tables any more, and will be told if they are again.
    /// Entries that point to them stay.
    pub fn gone_in(&mut self, world: &World, at: Gpa, size: PageSize) {
        for i in 0..size.base_pages() {
            let page = at.offset_by(i << 12);
            if self.tables.contains_key(&page.page_number()) {
                self.gone(world, page);
            }
        }
    }

    fn gone(&mut self, world: &World, at: Gpa) {
        self.emptied(at);
        let frame = at.page_number();
        let loaded = world.roots.iter().any(|root| root.page_number() == frame);
        if !loaded && let Some(space) = self.roots.remove(&frame) {
            self.detach((space, self.mode.levels, 0));
            self.spaces.remove(space.number());
        }
    }

    /// All that a table maps goes.
    fn emptied(&mut self, at: Gpa) {
        for place in self.tables.get(&at.page_number()).cloned().unwrap_or_default() {
            self.clear_below(place.key());
        }
    }

    /// Bytes that a table of a level maps.
    fn reach(&self, level: Level) -> u64 {
        self.mode.entries(level) << self.mode.span(level).shift()
    }

    fn clear_below(&mut self, (space, level, va): Key) {
        let bytes = self.reach(level);
        if let Some(s) = self.spaces.get_mut(space.number())
            && s.runs.unmap(va >> 12, bytes >> 12) > 0
        {
            self.touched.push((space, va >> 12, bytes >> 12));
        }
        for below in 1..level {
            let Some(links) = self.links.get(row(space, below)) else { continue };
            let gone: Vec<u64> = links.range(va..va + bytes).map(|l| l.0).collect();
            gone.into_iter().for_each(|va| self.unlink((space, below, va)));
        }
    }

    fn unlink(&mut self, key: Key) {
        let Some(links) = self.links.get_mut(row(key.0, key.1)) else { return };
        let Some(frame) = links.remove(key.2) else { return };
        if links.is_empty() {
            self.links.remove(row(key.0, key.1));
        }
        if let Some(places) = self.tables.get_mut(&frame) {
            places.retain(|p| p.key() != key);
            if places.is_empty() {
                self.tables.remove(&frame);
            }
        }
    }

    fn detach(&mut self, key: Key) {
        self.clear_below(key);
        self.unlink(key);
    }

    /// A table is linked in a place from now on.
    fn attach(&mut self, world: &World, frame: u64, place: Place) {
        if self.is_linked(place) {
            self.detach(place.key());
        }
        let places = self.tables.entry(frame).or_default();
        if places.len() >= MAX_PLACES {
            return;
        }
        places.push(place);
        let links = self.links.get_or_insert(row(place.space, place.level), ByNumber::new);
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
        self.links.get(row(place.space, place.level)).is_some_and(|l| l.contains(place.va))
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
        if self.is_leaf(place.level, entry) {
            let Some(space) = self.spaces.get_mut(place.space.number()) else { return };
            if space.runs.unmap(va >> 12, span.base_pages()) > 0 {
                self.touched.push((place.space, va >> 12, span.base_pages()));
            }
        } else {
            self.detach((place.space, place.level - 1, va));
        }
    }

    fn entry_comes(&mut self, world: &World, place: Place, index: u64, entry: Entry) {
        let permissions = place.permissions.and(entry);
        let count = self.mode.entries(place.level);
        // The upper half of wide addresses is the kernel's.
        let lower = self.mode.address_bits() <= 32 || place.level < self.mode.levels;
        let end = if lower { count } else { count / 2 };
        if !entry.is_present() || !permissions.user || index >= end {
            return;
        }
        let span = self.mode.span(place.level);
        let va = place.va + (index << span.shift());
        if self.is_leaf(place.level, entry) {
            let frame = entry.frame::<Gpa>(span).page_number();
            let Some(space) = self.spaces.get_mut(place.space.number()) else { return };
            space.runs.map(va >> 12, frame, span.base_pages(), tag(permissions));
            self.largest = self.largest.max(span.shift() as u8);
            self.touched.push((place.space, va >> 12, span.base_pages()));
        } else {
            let (space, level) = (place.space, place.level - 1);
            let frame = entry.target::<Gpa>().page_number();
            self.attach(world, frame, Place { space, level, va, permissions });
        }
    }
}
