//! Where the guest's tables are linked below those that somebody follows, store by store: each leaf
//! entry that comes or goes is told, in each place where its table is linked.
//!
//! A stored pointer brings all that is below it, or takes it away. A table that is linked in more than
//! [`Leaves::PLACES`] places is missing in the others: no kernel does that, and hostile tables must take
//! no time.

use crate::hardware::world::World;
use nestwalk_tables::entry::LARGE;
use nestwalk_tables::{Entry, Level, Mode, Permissions};
use nestwalk_types::{Address, ByNumber, Gpa, PageSize};
use rustc_hash::FxHashMap;

/// Where a table is linked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// The tree that is followed.
    pub tree: u32,
    /// The table's level.
    pub level: Level,
    /// First address that it maps, within the tree.
    pub va: u64,
    /// What the entries above it permit.
    pub permissions: Permissions,
}

type At = (u32, Level, u64);

impl Place {
    const fn at(self) -> At {
        (self.tree, self.level, self.va)
    }
}

/// A number for a level of a tree.
const fn row(tree: u32, level: Level) -> u64 {
    (tree as u64) << 8 | level as u64
}

/// Who keeps the leaves of trees.
pub trait Leaves {
    /// Places in which a table may be linked.
    const PLACES: usize;
    /// Bits of entries whose change is none.
    const IGNORED: u64;
    /// A leaf stored over a leaf comes, and the old one does not go before.
    const REPLACES: bool;

    /// Whether an entry counts: the one of this index of a table in a place.
    fn counts(&self, mode: &Mode, place: &Place, index: u64, entry: Entry) -> bool;
    /// A leaf at an address of a place's tree.
    fn comes(&mut self, place: &Place, va: u64, size: PageSize, entry: Entry);
    /// The leaf at an address of a tree, if there is one.
    fn goes(&mut self, tree: u32, va: u64, size: PageSize);
    /// All leaves from an address of a tree on.
    fn cleared(&mut self, tree: u32, va: u64, bytes: u64);
}

/// The tables of all trees that are followed.
pub struct Links<L> {
    mode: &'static Mode,
    tables: FxHashMap<u64, Vec<Place>>,
    /// Tables by the row of their tree and level, and their first address.
    links: ByNumber<ByNumber<u64>>,
    /// Whoever keeps the leaves.
    pub leaves: L,
}

impl<L: Leaves> Links<L> {
    /// No tree.
    pub fn new(mode: &'static Mode, leaves: L) -> Self {
        Self { mode, tables: FxHashMap::default(), links: ByNumber::new(), leaves }
    }

    /// How the trees are made.
    pub const fn mode(&self) -> &'static Mode {
        self.mode
    }

    /// Whether the table in this frame is linked somewhere.
    pub fn has(&self, frame: u64) -> bool {
        self.tables.contains_key(&frame)
    }

    /// Follows a tree whose first table, of this level, is in this frame.
    pub fn follow(&mut self, world: &World, frame: u64, tree: u32, level: Level) {
        self.attach(world, frame, Place { tree, level, va: 0, permissions: Permissions::ALL });
    }

    /// Follows a tree no more, whose first table is of this level.
    pub fn leave(&mut self, tree: u32, level: Level) {
        self.detach((tree, level, 0));
    }

    /// The guest stored `new` over `old` at an address.
    pub fn stored(&mut self, world: &World, at: Gpa, old: u64, new: u64) {
        let Some(places) = self.tables.get(&at.page_number()) else { return };
        let same = (old ^ new) & !L::IGNORED == 0;
        let (old, new) = (Entry(old), Entry(new));
        if same || !(old.is_present() || new.is_present()) {
            return;
        }
        let index = (at.value() & 0xfff) / u64::from(self.mode.entry_bytes);
        for place in places.clone() {
            // Of tables that point to themselves one place may go with another.
            if !self.is_linked(place) {
                continue;
            }
            let leaf = |e: Entry| e.is_present() && self.is_leaf(place.level, e);
            if !(L::REPLACES && leaf(old) && leaf(new)) {
                self.entry_goes(place, index, old);
            }
            self.entry_comes(world, place, index, new);
        }
    }

    /// The page of an address is a table, or its contents were told again.
    pub fn told(&mut self, world: &World, frame: u64) {
        self.emptied(frame);
        for place in self.tables.get(&frame).cloned().unwrap_or_default() {
            if self.is_linked(place) {
                self.scan(world, frame, place);
            }
        }
    }

    /// All that a table maps goes.
    pub fn emptied(&mut self, frame: u64) {
        for place in self.tables.get(&frame).cloned().unwrap_or_default() {
            self.clear_below(place.at());
        }
    }

    fn clear_below(&mut self, (tree, level, va): At) {
        let bytes = self.mode.entries(level) << self.mode.span(level).shift();
        self.leaves.cleared(tree, va, bytes);
        for below in 1..level {
            let Some(links) = self.links.get(row(tree, below)) else { continue };
            let gone: Vec<u64> = links.range(va..va + bytes).map(|l| l.0).collect();
            gone.into_iter().for_each(|va| self.unlink((tree, below, va)));
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
        if places.len() >= L::PLACES {
            return;
        }
        places.push(place);
        let links = self.links.get_or_insert(row(place.tree, place.level), ByNumber::new);
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
        self.links.get(row(place.tree, place.level)).is_some_and(|l| l.contains(place.va))
    }

    fn is_leaf(&self, level: Level, entry: Entry) -> bool {
        level == 1 || (self.mode.may_be_leaf(level) && entry.has(LARGE))
    }

    fn entry_goes(&mut self, place: Place, index: u64, entry: Entry) {
        if !entry.is_present() || index >= self.mode.entries(place.level) {
            return;
        }
        let size = self.mode.span(place.level);
        let va = place.va + (index << size.shift());
        if self.is_leaf(place.level, entry) {
            self.leaves.goes(place.tree, va, size);
        } else {
            self.detach((place.tree, place.level - 1, va));
        }
    }

    fn entry_comes(&mut self, world: &World, place: Place, index: u64, entry: Entry) {
        if !entry.is_present()
            || index >= self.mode.entries(place.level)
            || !self.leaves.counts(self.mode, &place, index, entry)
        {
            return;
        }
        let size = self.mode.span(place.level);
        let va = place.va + (index << size.shift());
        if self.is_leaf(place.level, entry) {
            return self.leaves.comes(&place, va, size, entry);
        }
        let (tree, level) = (place.tree, place.level - 1);
        let permissions = place.permissions.and(entry);
        let frame = entry.target::<Gpa>().page_number();
        self.attach(world, frame, Place { tree, level, va, permissions });
    }
}
