//! Plain look-up and change of radix tables: what an OS or a VMM does, without caches or costs.

use crate::entry::{Entry, Permissions};
use crate::memory::TableMemory;
use crate::mode::{Level, Mode};
use nestwalk_types::{Address, PageSize};
use std::ops::Range;

/// Where a leaf entry is and what it maps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leaf<O> {
    /// Address of the leaf entry.
    pub at: O,
    /// Level of the leaf entry.
    pub level: Level,
    /// The entry.
    pub entry: Entry,
    /// First address of the page it maps.
    pub frame: O,
    /// Size of the page.
    pub size: PageSize,
    /// What all entries on the way allow.
    pub permissions: Permissions,
}

impl<O: Address> Leaf<O> {
    /// Where `address`, which this leaf maps, is.
    pub fn apply<I: Address>(&self, address: I) -> O {
        self.frame.offset_by(address.offset_in(self.size))
    }
}

/// The table of `level` that should hold or hold a pointer to an address has no entry for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotMapped {
    /// Level of the entry that is not present.
    pub level: Level,
}

/// Looks an address up as an OS would.
///
/// # Errors
/// The level at which no present entry stands.
pub fn look_up<I: Address, O: Address>(
    memory: &TableMemory<O>,
    mode: &Mode,
    root: O,
    address: I,
) -> Result<Leaf<O>, NotMapped> {
    let (mut table, mut permissions) = (root, Permissions::ALL);
    for level in (1..=mode.levels).rev() {
        let at = mode.entry_at(table, address.value(), level);
        let entry = Entry(memory.read(at, mode.entry_bytes).unwrap_or(0));
        if !entry.is_present() {
            return Err(NotMapped { level });
        }
        permissions = permissions.and(entry);
        if level == 1 || (mode.may_be_leaf(level) && entry.has(crate::entry::LARGE)) {
            let size = mode.span(level);
            return Ok(Leaf { at, level, entry, frame: entry.frame(size), size, permissions });
        }
        table = entry.target();
    }
    Err(NotMapped { level: 1 })
}

/// Tells every present leaf entry that maps addresses of `range`, and the first address that it maps, by
/// ascending address. Costs a look at each entry of the tables that there are, however large the range.
/// Tables that point to each other in circles are not followed for ever: some leaves are left out.
pub fn each_leaf<O: Address>(
    memory: &TableMemory<O>,
    mode: &Mode,
    root: O,
    range: &Range<u64>,
    tell: &mut dyn FnMut(u64, Leaf<O>),
) {
    let top = Table { table: root, level: mode.levels, first: 0, permissions: Permissions::ALL };
    // A kernel may share tables between a few places.
    let mut visits = 1024 + 16 * memory.pages().count();
    leaves_below(memory, mode, top, range, &mut visits, tell);
}

/// A table, the first address that it is for, and what all entries above it allow.
#[derive(Clone, Copy)]
struct Table<O> {
    table: O,
    level: Level,
    first: u64,
    permissions: Permissions,
}

fn leaves_below<O: Address>(
    memory: &TableMemory<O>,
    mode: &Mode,
    table: Table<O>,
    range: &Range<u64>,
    visits: &mut usize,
    tell: &mut dyn FnMut(u64, Leaf<O>),
) {
    let size = mode.span(table.level);
    for index in 0..mode.entries(table.level) {
        let first = table.first + index * size.bytes();
        if first >= range.end {
            return;
        }
        if first + (size.bytes() - 1) < range.start {
            continue;
        }
        let at = mode.entry_at(table.table, first, table.level);
        let entry = Entry(memory.read(at, mode.entry_bytes).unwrap_or(0));
        if !entry.is_present() {
            continue;
        }
        let (level, permissions) = (table.level, table.permissions.and(entry));
        if level == 1 || (mode.may_be_leaf(level) && entry.has(crate::entry::LARGE)) {
            tell(first, Leaf { at, level, entry, frame: entry.frame(size), size, permissions });
        } else if let Some(left) = visits.checked_sub(1) {
            *visits = left;
            let below = Table { table: entry.target(), level: level - 1, first, permissions };
            leaves_below(memory, mode, below, range, visits, tell);
        }
    }
}

/// The kernel or VMM that owns a set of tables: gives frames for new tables and learns of stores.
pub trait TableOwner<O> {
    /// Free frames for a table of `level`, as long as the mode's are and aligned to that, or `None` if
    /// memory is exhausted.
    fn new_table(&mut self, level: Level) -> Option<O>;
    /// An entry was stored.
    fn stored(&mut self, at: O, entry: Entry);
}

/// Why a mapping could not be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MapError {
    /// No frame for a table.
    OutOfMemory,
    /// A leaf of a larger size stands at this level.
    Occupied(Level),
}

/// Stores `entry` as the entry of `level` for `address`, making the tables above it as needed.
/// Returns the address of the entry and what stood there.
///
/// # Errors
/// See [`MapError`]; tables made before the error stay.
pub fn store<I: Address, O: Address>(
    memory: &mut TableMemory<O>,
    mode: &Mode,
    root: O,
    address: I,
    level: Level,
    entry: Entry,
    owner: &mut impl TableOwner<O>,
) -> Result<(O, Entry), MapError> {
    let mut table = root;
    for l in (level + 1..=mode.levels).rev() {
        let at = mode.entry_at(table, address.value(), l);
        let here = Entry(memory.read(at, mode.entry_bytes).unwrap_or(0));
        if here.is_present() {
            if mode.may_be_leaf(l) && here.has(crate::entry::LARGE) {
                return Err(MapError::Occupied(l));
            }
            table = here.target();
        } else {
            let new = owner.new_table(l - 1).ok_or(MapError::OutOfMemory)?;
            let pages = mode.table_bytes(l - 1) >> 12;
            (0..pages).for_each(|page| memory.insert(new.offset_by(page << 12), None));
            let pointer = Entry::table(new);
            memory.write(at, mode.entry_bytes, pointer.0);
            owner.stored(at, pointer);
            table = new;
        }
    }
    let at = mode.entry_at(table, address.value(), level);
    let old = Entry(memory.write(at, mode.entry_bytes, entry.0).unwrap_or(0));
    owner.stored(at, entry);
    Ok((at, old))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nestwalk_types::{Gpa, Gva, Protection};

    struct Bump(u64, u64, Vec<(Gpa, Entry)>);
    impl TableOwner<Gpa> for Bump {
        fn new_table(&mut self, _: Level) -> Option<Gpa> {
            self.0 += self.1;
            Some(Gpa::new(self.0))
        }
        fn stored(&mut self, at: Gpa, entry: Entry) {
            self.2.push((at, entry));
        }
    }

    #[test]
    fn what_is_stored_is_found_in_every_mode_and_size() {
        for mode in Mode::all() {
            for size in mode.page_sizes() {
                let mut memory = TableMemory::new();
                // As long as the longest root and table.
                let root = Gpa::new(0x10_0000);
                let pages = mode.table_bytes(mode.levels) >> 12;
                (0..pages).for_each(|page| memory.insert(root.offset_by(page << 12), None));
                let mut owner = Bump(0x10_0000, 0x10_0000, vec![]);
                let level = mode.leaf_level(size).unwrap();
                let gva = Gva::new(0xc765_4321 & mode.address_mask());
                let frame = Gpa::new(size.bytes().max(0x8000_0000));
                let leaf = Entry::leaf(frame, Protection::READ_WRITE, level > 1);
                store(&mut memory, mode, root, gva, level, leaf, &mut owner).unwrap();
                let found = look_up(&memory, mode, root, gva).unwrap();
                assert_eq!((found.frame, found.size, found.level), (frame, size, level));
                assert_eq!(found.apply(gva), frame.offset_by(gva.offset_in(size)));
                assert!(found.permissions.write && found.permissions.user);
                assert_eq!(owner.2.len(), usize::from(mode.levels - level) + 1);
                let other = Gva::new(gva.value() ^ size.bytes());
                assert_eq!(look_up(&memory, mode, root, other), Err(NotMapped { level }));
                // The whole space, a part of the page, and both sides of it.
                let first = gva.value() & !(size.bytes() - 1);
                let (all, end) = (0..1 << mode.address_bits(), first + size.bytes());
                for (range, expected) in [
                    (all.clone(), vec![(first, found)]),
                    (gva.value()..gva.value() + 1, vec![(first, found)]),
                    (0..first, vec![]),
                    (end..all.end, vec![]),
                ] {
                    let mut told = Vec::new();
                    each_leaf(&memory, mode, root, &range, &mut |at, leaf| told.push((at, leaf)));
                    assert_eq!(told, expected, "{} {size:?} {range:x?}", mode.name);
                }
                if level > 1 {
                    let e = store(&mut memory, mode, root, gva, 1, leaf, &mut owner);
                    assert_eq!(e, Err(MapError::Occupied(level)));
                }
            }
        }
    }
}
