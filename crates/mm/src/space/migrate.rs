//! Moving a page to another frame, as daemons do: out of its frame, then into another.

use crate::space::{AddressSpace, Flush, Memory, Observer, Spot};
use nestwalk_tables::{Entry, Level, entry};
use nestwalk_types::{Address, PageSize};

/// What a scan finds in an aligned block of 2 MiB (4 MiB with 4-byte entries), or above it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Block<O> {
    /// Nothing is mapped in what an entry of this size covers.
    Nothing(PageSize),
    /// A large page.
    Large(Entry, PageSize),
    /// A table of small pages.
    Table(O),
}

/// A page that was taken out of its frame.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Taken<O> {
    at: O,
    entry: Entry,
    size: PageSize,
    page: u64,
}

impl<O: Address> Taken<O> {
    /// Where it was.
    pub fn frame(&self) -> O {
        self.entry.frame(self.size)
    }
}

impl<I: Address, O: Address> AddressSpace<I, O> {
    /// What is mapped around an address without sign extension.
    pub(crate) fn block(&self, memory: &Memory<O>, address: u64) -> Block<O> {
        let spot = self.spot(memory, address, 2);
        let size = self.config.mode.span(spot.level);
        if !spot.entry.is_present() {
            Block::Nothing(size)
        } else if self.is_leaf(spot.entry, spot.level) {
            Block::Large(spot.entry, size)
        } else {
            Block::Table(spot.entry.target())
        }
    }

    /// The entry of a small page in its table.
    #[inline]
    pub(crate) fn small_page(&self, memory: &Memory<O>, table: O, address: u64) -> Entry {
        self.read(memory, self.config.mode.entry_at(table, address, 1))
    }

    /// Calls `visit` with the first address, the size and the entry of every page.
    pub(crate) fn pages(&self, memory: &Memory<O>, visit: &mut impl FnMut(u64, PageSize, Entry)) {
        self.pages_of(memory, self.root, self.config.mode.levels, 0, visit);
    }

    fn pages_of(
        &self,
        memory: &Memory<O>,
        table: O,
        level: Level,
        base: u64,
        visit: &mut impl FnMut(u64, PageSize, Entry),
    ) {
        let mode = self.config.mode;
        let size = mode.span(level);
        for i in 0..mode.entries(level) {
            let found = self.read(memory, table.offset_by(i * u64::from(mode.entry_bytes)));
            let first = base + (i << size.shift());
            if !found.is_present() {
            } else if self.is_leaf(found, level) {
                visit(first, size, found);
            } else {
                self.pages_of(memory, found.target(), level - 1, first, visit);
            }
        }
    }

    /// Whether the kernel could move what is mapped there: a page that nobody shares, and that is
    /// not in the primary region, whose segment says where it is.
    pub(crate) fn can_move(&self, memory: &Memory<O>, page: u64, frame: O, size: PageSize) -> bool {
        !memory.is_shared(frame, size) && !self.in_region(page)
    }

    /// Takes a page out of its frame (Linux, `try_to_migrate_one`): its entry is cleared and
    /// invalidated, then says that the page is being moved: it is not present and tells where the
    /// page was. `None`, and nothing is done, unless a page of that size is mapped there.
    pub(crate) fn take_out(
        &self,
        memory: &mut Memory<O>,
        page: u64,
        size: PageSize,
        observer: &mut impl Observer<I, O>,
    ) -> Option<Taken<O>> {
        let level = self.config.mode.leaf_level(size)?;
        let Spot { at, level: found, entry } = self.spot(memory, page, level);
        if found != level || !entry.is_present() || !self.is_leaf(entry, level) {
            return None;
        }
        self.store(memory, at, Entry(0), observer);
        let start = self.typed(page);
        observer.invalidate(Flush::Pages { start, stride: size, count: 1, tables: false });
        self.store(memory, at, entry.without(entry::PRESENT), observer);
        Some(Taken { at, entry, size, page })
    }

    /// Puts a page that was taken out into a frame (Linux, `remove_migration_pte`). It keeps its
    /// permissions, and was accessed and stored to as before. What the frames count is the
    /// caller's.
    pub(crate) fn put_in(
        &self,
        memory: &mut Memory<O>,
        taken: &Taken<O>,
        frame: O,
        observer: &mut impl Observer<I, O>,
    ) {
        debug_assert_eq!(taken.page & taken.size.mask(), 0);
        let from = taken.entry.frame::<O>(taken.size).value();
        let moved = Entry(taken.entry.0 - from + frame.value());
        self.store(memory, taken.at, moved, observer);
    }

    /// Gives the large page at an address a table of small ones.
    pub(crate) fn split_page(
        &self,
        memory: &mut Memory<O>,
        address: u64,
        observer: &mut impl Observer<I, O>,
    ) -> bool {
        let spot = self.spot(memory, address, 2);
        let large = spot.level == 2 && spot.entry.is_present() && self.is_leaf(spot.entry, 2);
        large && self.split_leaf(memory, address, spot, observer).is_ok()
    }
}
