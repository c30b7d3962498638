//! The runs of the guest dimension, address space by address space, as the guest's tables say at any
//! time: followed store by store, never looked for.
//!
//! Tables are followed where they are linked under a root that was loaded ([`Links`]). Pages that user
//! mode may not access are left out, and with them the kernel's half. What the index has is always in
//! the tables.

use crate::assist::links::{Leaves, Links, Place};
use crate::hardware::world::World;
use nestwalk_contiguity::{MappedRun, RunSet};
use nestwalk_tables::entry::{ACCESSED, DIRTY};
use nestwalk_tables::{Entry, Mode, Permissions};
use nestwalk_types::{Address, ByNumber, Gpa, PageSize};
use rustc_hash::FxHashMap;

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

/// The runs, and which pages of them may have changed.
struct Runs {
    spaces: ByNumber<Space>,
    largest: u8,
    touched: Vec<Touched>,
}

impl Runs {
    fn unmap(&mut self, tree: u32, va: u64, pages: u64) {
        let space = SpaceId(tree);
        if let Some(s) = self.spaces.get_mut(space.number())
            && s.runs.unmap(va >> 12, pages) > 0
        {
            self.touched.push((space, va >> 12, pages));
        }
    }
}

impl Leaves for Runs {
    /// Two roots share tables under page-table isolation.
    const PLACES: usize = 4;
    const IGNORED: u64 = ACCESSED | DIRTY;
    const REPLACES: bool = false;

    fn counts(&self, mode: &Mode, place: &Place, index: u64, entry: Entry) -> bool {
        // The upper half of wide addresses is the kernel's.
        let lower = mode.address_bits() <= 32 || place.level < mode.levels;
        place.permissions.and(entry).user && (lower || index < mode.entries(place.level) / 2)
    }

    fn comes(&mut self, place: &Place, va: u64, size: PageSize, entry: Entry) {
        let space = SpaceId(place.tree);
        let frame = entry.frame::<Gpa>(size).page_number();
        let Some(s) = self.spaces.get_mut(space.number()) else { return };
        s.runs.map(va >> 12, frame, size.base_pages(), tag(place.permissions.and(entry)));
        self.largest = self.largest.max(size.shift() as u8);
        self.touched.push((space, va >> 12, size.base_pages()));
    }

    fn goes(&mut self, tree: u32, va: u64, size: PageSize) {
        self.unmap(tree, va, size.base_pages());
    }

    fn cleared(&mut self, tree: u32, va: u64, bytes: u64) {
        self.unmap(tree, va, bytes >> 12);
    }
}

/// The runs of all address spaces that were loaded.
pub struct GuestRuns {
    links: Links<Runs>,
    next: u32,
    roots: FxHashMap<u64, SpaceId>,
}

impl GuestRuns {
    /// No address space.
    pub fn new(mode: &'static Mode) -> Self {
        let runs = Runs { spaces: ByNumber::new(), largest: 12, touched: Vec::new() };
        Self { links: Links::new(mode, runs), next: 0, roots: FxHashMap::default() }
    }

    /// The address space of a root table.
    #[inline]
    pub fn space(&self, root: Gpa) -> Option<SpaceId> {
        self.roots.get(&root.page_number()).copied()
    }
    /// The runs of an address space.
    #[inline]
    pub fn runs(&self, space: SpaceId) -> Option<&RunSet> {
        self.links.leaves.spaces.get(space.number()).map(|s| &s.runs)
    }
    /// The run of a page.
    #[inline]
    pub fn find(&self, space: SpaceId, page: u64) -> Option<MappedRun> {
        self.links.leaves.spaces.get(space.number())?.runs.find(page)
    }
    /// All address spaces with their roots and runs.
    pub fn spaces(&self) -> impl Iterator<Item = (SpaceId, Gpa, &RunSet)> {
        self.links
            .leaves
            .spaces
            .iter()
            .map(|(id, s)| (SpaceId(id as u32), Gpa::new(s.root << 12), &s.runs))
    }
    /// The largest page that was ever mapped: an invalidation of an address may concern all of the
    /// aligned block of that size around it.
    #[inline]
    pub const fn largest_page(&self) -> PageSize {
        PageSize::from_shift(self.links.leaves.largest)
    }
    /// What has changed since this was asked last.
    pub fn take_touched(&mut self) -> Vec<Touched> {
        std::mem::take(&mut self.links.leaves.touched)
    }
    /// Whether something has changed since then.
    #[inline]
    pub fn is_touched(&self) -> bool {
        !self.links.leaves.touched.is_empty()
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
        let empty = Space { root: frame, runs: RunSet::new() };
        self.links.leaves.spaces.insert(space.number(), empty);
        self.links.follow(world, frame, space.0, self.links.mode().levels);
    }

    /// The guest stored `new` over `old` at an address.
    pub fn stored(&mut self, world: &World, at: Gpa, old: u64, new: u64) {
        self.links.stored(world, at, old, new);
    }

    /// The page of an address is a table, or its contents were told again.
    pub fn told(&mut self, world: &World, at: Gpa) {
        let frame = at.page_number();
        self.links.told(world, frame);
        if world.roots.iter().any(|root| root.page_number() == frame) {
            self.load(world, at);
        }
    }

    /// The pages from an address on are no tables any more, and will be told if they are again.
    /// Entries that point to them stay.
    pub fn gone_in(&mut self, world: &World, at: Gpa, size: PageSize) {
        for frame in at.page_number()..at.page_number() + size.base_pages() {
            if self.links.has(frame) {
                self.gone(world, frame);
            }
        }
    }

    fn gone(&mut self, world: &World, frame: u64) {
        self.links.emptied(frame);
        let loaded = world.roots.iter().any(|root| root.page_number() == frame);
        if !loaded && let Some(space) = self.roots.remove(&frame) {
            self.links.leave(space.0, self.links.mode().levels);
            self.links.leaves.spaces.remove(space.number());
        }
    }
}
