//! Page-table pages in simulated physical memory: real entries at real addresses.

use crate::sparse::SparsePage;
use nestwalk_types::Address;
use std::borrow::Cow;
use std::marker::PhantomData;

const CHUNK_SHIFT: u32 = 9;
const CHUNK: usize = 1 << CHUNK_SHIFT;
const SLAB_SHIFT: u32 = 8;
const SLAB: usize = 1 << SLAB_SHIFT;

/// Tables whose pages are kept whole: those of 64 GiB of small pages. Where there are more, most hold
/// few entries.
const WHOLE: usize = 132 << SLAB_SHIFT;

type Page = [u64; 512];

/// A short cut to a table: where it is held. It may be kept, and is checked when it is used
/// ([`TableMemory::reopen`]), since the table may have gone by then.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Handle(u32);

impl Default for Handle {
    fn default() -> Self {
        Self(u32::MAX)
    }
}

impl Handle {
    /// A small number that no other table has while this one is held: an index for what someone else
    /// wants to keep of each table. `u32::MAX` for the default
    /// handle.
    #[inline]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// What a slot holds besides entries.
struct Slot {
    /// Frame number of the table; `u64::MAX` if the slot is free.
    frame: u64,
    /// Handles of the tables that entries point to, as far as walks have come by.
    children: Option<Box<[Handle; 512]>>,
}

/// The pages of one physical address space that hold page tables. Pages of data have no contents
/// and take no memory.
///
/// A read is three dependent loads (directory, slot, entry) and no hashing. Memory: 4 KiB per table
/// page and 2 KiB per 2 MiB of address space that has a table page. Beyond 33,792 tables it is 64 bytes
/// for each line of eight entries that is in use, and 100 bytes per table.
pub struct TableMemory<A> {
    /// Slot + 1 of each frame, by frame number in chunks of 512; 0 is no table.
    directory: Vec<Option<Box<[u32; CHUNK]>>>,
    /// Pages of the first slots.
    slabs: Vec<Box<[Page]>>,
    /// Pages of the other slots.
    sparse: Vec<SparsePage>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    space: PhantomData<A>,
}

impl<A: Address> Default for TableMemory<A> {
    fn default() -> Self {
        Self::new()
    }
}

impl<A: Address> TableMemory<A> {
    /// No tables.
    pub const fn new() -> Self {
        Self {
            directory: Vec::new(),
            slabs: Vec::new(),
            sparse: Vec::new(),
            slots: Vec::new(),
            free: Vec::new(),
            space: PhantomData,
        }
    }

    #[inline]
    fn slot(&self, at: A) -> Option<usize> {
        let frame = at.page_number();
        let chunk = self.directory.get((frame >> CHUNK_SHIFT) as usize)?.as_ref()?;
        (chunk[frame as usize & (CHUNK - 1)] as usize).checked_sub(1)
    }
    /// A word of a table whose page is not kept whole; zero if there is no such table.
    #[cold]
    fn sparse_word(&self, slot: usize, index: usize) -> &u64 {
        slot.checked_sub(WHOLE).and_then(|i| self.sparse.get(i)).map_or(&0, |page| page.word(index))
    }
    /// Stores `value` where `mask` has bits. Returns the word that stood there.
    #[inline]
    fn store(&mut self, slot: usize, at: A, mask: u64, value: u64) -> u64 {
        let index = (at.value() >> 3 & 511) as usize;
        if let Some(slab) = self.slabs.get_mut(slot >> SLAB_SHIFT) {
            let word = &mut slab[slot & (SLAB - 1)][index];
            let old = *word;
            *word = old & !mask | value & mask;
            return old;
        }
        self.store_sparse(slot, index, mask, value)
    }
    #[cold]
    fn store_sparse(&mut self, slot: usize, index: usize, mask: u64, value: u64) -> u64 {
        let Some(page) = slot.checked_sub(WHOLE).and_then(|i| self.sparse.get_mut(i)) else {
            return 0;
        };
        let old = *page.word(index);
        page.store(index, old & !mask | value & mask)
    }

    /// The handle of the table at `at`; the default if there is none.
    #[inline]
    pub fn open(&self, at: A) -> Handle {
        self.slot(at).map_or(Handle::default(), |s| Handle(s as u32))
    }
    /// `handle`, if it still is the table's at `at`; otherwise the right one.
    #[inline]
    pub fn reopen(&self, handle: Handle, at: A) -> Handle {
        match self.slots.get(handle.0 as usize) {
            Some(slot) if slot.frame == at.page_number() => handle,
            _ => self.open(at),
        }
    }
    /// The handle of the table at `target`, to which entry `index` of the table of `handle` points.
    /// Remembered for the next time.
    #[inline]
    pub fn child(&mut self, handle: Handle, index: u64, target: A) -> Handle {
        let index = index as usize & 511;
        let known = self.slots.get(handle.0 as usize).and_then(|s| s.children.as_ref());
        let hint = known.map_or(Handle::default(), |c| c[index]);
        let child = self.reopen(hint, target);
        if child != hint
            && let Some(slot) = self.slots.get_mut(handle.0 as usize)
        {
            let none = || Box::new([Handle::default(); 512]);
            slot.children.get_or_insert_with(none)[index] = child;
        }
        child
    }
    /// Where the 8-byte word around `at` is, in the table of `handle`; a zero for the default handle.
    #[inline]
    pub fn word(&self, handle: Handle, at: A) -> &u64 {
        let slot = handle.0 as usize;
        let index = (at.value() >> 3 & 511) as usize;
        match self.slabs.get(slot >> SLAB_SHIFT) {
            Some(slab) => &slab[slot & (SLAB - 1)][index],
            None => self.sparse_word(slot, index),
        }
    }
    /// The entry of `bytes` (4 or 8) bytes at `at`, in the table of `handle`; 0 for the default handle.
    #[inline]
    pub fn entry(&self, handle: Handle, at: A, bytes: u8) -> u64 {
        let word = *self.word(handle, at);
        match (bytes, at.value() & 4) {
            (8, _) => word,
            (_, 0) => word & 0xffff_ffff,
            _ => word >> 32,
        }
    }

    /// Table pages held.
    pub const fn len(&self) -> u64 {
        (self.slots.len() as u64) - (self.free.len() as u64)
    }
    /// No table pages.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Whether the page of `at` holds a table.
    pub fn contains(&self, at: A) -> bool {
        self.slot(at).is_some()
    }
    /// The entries of the page of `at`, as 8-byte words.
    pub fn page(&self, at: A) -> Option<Cow<'_, Page>> {
        let slot = self.slot(at)?;
        match self.slabs.get(slot >> SLAB_SHIFT) {
            Some(slab) => Some(Cow::Borrowed(&slab[slot & (SLAB - 1)])),
            None => Some(Cow::Owned(self.sparse.get(slot.checked_sub(WHOLE)?)?.words())),
        }
    }

    /// Makes the page of `at` a table with these words, or all zero.
    pub fn insert(&mut self, at: A, words: Option<&Page>) {
        let frame = at.page_number();
        let index = (frame >> CHUNK_SHIFT) as usize;
        if index >= self.directory.len() {
            self.directory.resize_with(index + 1, || None);
        }
        let known = self.slot(at);
        let slot = known.unwrap_or_else(|| {
            let slot = self.free.pop().unwrap_or_else(|| {
                self.slots.push(Slot { frame, children: None });
                self.slots.len() as u32 - 1
            }) as usize;
            self.slots[slot].frame = frame;
            if slot >= WHOLE + self.sparse.len() {
                self.sparse.push(SparsePage::default());
            } else if slot < WHOLE && slot >> SLAB_SHIFT >= self.slabs.len() {
                self.slabs.push(vec![[0; 512]; SLAB].into_boxed_slice());
            }
            let chunk = self.directory[index].get_or_insert_with(|| Box::new([0; CHUNK]));
            chunk[frame as usize & (CHUNK - 1)] = slot as u32 + 1;
            slot
        });
        match (self.slabs.get_mut(slot >> SLAB_SHIFT), words) {
            (Some(slab), Some(words)) => slab[slot & (SLAB - 1)] = *words,
            (Some(slab), None) => slab[slot & (SLAB - 1)].fill(0),
            (None, words) => {
                self.sparse[slot - WHOLE] = words.map(SparsePage::from).unwrap_or_default()
            }
        }
    }

    /// The page of `at` holds a table no more. Does nothing if it held none.
    pub fn remove(&mut self, at: A) {
        if let Some(slot) = self.slot(at) {
            let frame = at.page_number();
            if let Some(chunk) = &mut self.directory[(frame >> CHUNK_SHIFT) as usize] {
                chunk[frame as usize & (CHUNK - 1)] = 0;
            }
            self.slots[slot] = Slot { frame: u64::MAX, children: None };
            if let Some(page) = slot.checked_sub(WHOLE).and_then(|i| self.sparse.get_mut(i)) {
                *page = SparsePage::default();
            }
            self.free.push(slot as u32);
        }
    }

    /// The entry of `bytes` (4 or 8) bytes at `at`; `None` if the page holds no table.
    #[inline]
    pub fn read(&self, at: A, bytes: u8) -> Option<u64> {
        let slot = self.slot(at)?;
        Some(self.entry(Handle(slot as u32), at, bytes))
    }

    /// Stores an entry of `bytes` (4 or 8) bytes at `at`. Returns what stood there, or `None`, and
    /// changes nothing, if the page holds no table.
    #[inline]
    pub fn write(&mut self, at: A, bytes: u8, value: u64) -> Option<u64> {
        let slot = self.slot(at)?;
        if bytes == 8 {
            return Some(self.store(slot, at, u64::MAX, value));
        }
        let shift = if at.value() & 4 == 0 { 0 } else { 32 };
        let old = self.store(slot, at, 0xffff_ffff << shift, value << shift);
        Some(old >> shift & 0xffff_ffff)
    }

    /// Sets bits of an entry: what hardware does with the accessed and dirty bits.
    #[inline]
    pub fn set_bits(&mut self, at: A, bits: u64) {
        if let Some(slot) = self.slot(at) {
            let bits = bits << ((at.value() & 4) * 8);
            self.store(slot, at, bits, bits);
        }
    }

    /// Addresses of all table pages, ascending.
    pub fn pages(&self) -> impl Iterator<Item = A> {
        self.directory.iter().enumerate().flat_map(|(i, chunk)| {
            chunk.iter().flat_map(move |c| {
                c.iter()
                    .enumerate()
                    .filter(|(_, s)| **s != 0)
                    .map(move |(j, _)| A::new(((i << CHUNK_SHIFT | j) as u64) << 12))
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nestwalk_types::Gpa;

    #[test]
    fn four_byte_entries_share_a_word() {
        let mut m = TableMemory::new();
        let t = Gpa::new(0x5000);
        m.insert(t, None);
        assert_eq!(m.write(Gpa::new(0x5004), 4, 0xdead_beef), Some(0));
        assert_eq!(m.write(Gpa::new(0x5000), 4, 0x1234_5678), Some(0));
        m.set_bits(Gpa::new(0x5004), 0x10);
        assert_eq!(m.read(Gpa::new(0x5004), 4), Some(0xdead_beff));
        assert_eq!(m.read(Gpa::new(0x5000), 8), Some(0xdead_beff_1234_5678));
    }

    #[test]
    fn handles_notice_that_their_table_has_gone() {
        let mut m = TableMemory::new();
        let (root, a, b) = (Gpa::new(0x1000), Gpa::new(0x2000), Gpa::new(0x3000));
        m.insert(root, None);
        m.insert(a, None);
        m.write(a, 8, 7);
        let top = m.open(root);
        let child = m.child(top, 5, a);
        assert_eq!((m.entry(child, a, 8), m.child(top, 5, a)), (7, child));
        m.remove(a);
        assert_eq!(m.child(top, 5, a), Handle::default());
        assert_eq!(m.entry(m.reopen(child, a), a, 8), 0);
        m.insert(b, None);
        m.write(b, 8, 9);
        assert_eq!(m.entry(m.reopen(child, b), b, 8), 9);
        assert_eq!(m.entry(m.reopen(child, a), a, 8), 0);
    }

    #[test]
    fn slots_are_reused_and_clean() {
        let mut m = TableMemory::new();
        for i in 0..1000u64 {
            m.insert(Gpa::new(i << 24), None);
            m.write(Gpa::new(i << 24), 8, i + 1);
        }
        assert_eq!(m.len(), 1000);
        assert_eq!(m.pages().count(), 1000);
        m.remove(Gpa::new(7 << 24));
        assert_eq!(m.read(Gpa::new(7 << 24), 8), None);
        m.insert(Gpa::new(0x9000), None);
        assert_eq!(m.read(Gpa::new(0x9000), 8), Some(0));
        assert_eq!(m.read(Gpa::new(8 << 24), 8), Some(9));
        assert_eq!(m.len(), 1000);
    }

    /// As many tables as no test of guests has: those that are kept whole, and others.
    #[test]
    fn tables_that_are_not_kept_whole_are_as_good() {
        let mut m = TableMemory::new();
        let table = |i: usize| Gpa::new((i as u64) << 12);
        let tables = WHOLE + 100;
        for i in 0..tables {
            m.insert(table(i), None);
            m.write(table(i).offset_by(8 * (i as u64 % 512)), 8, i as u64 + 1);
            m.write(table(i).offset_by(4), 4, 5);
        }
        for i in [0, WHOLE - 1, WHOLE, tables - 1] {
            let at = table(i).offset_by(8 * (i as u64 % 512));
            let half = if i % 512 == 0 { 5 << 32 } else { 0 };
            assert_eq!(m.read(at, 8), Some((i as u64 + 1) & 0xffff_ffff | half));
            m.set_bits(at, 1 << 20);
            assert_eq!(m.entry(m.open(table(i)), at, 4), (i as u64 + 1) | 1 << 20);
            let page = *m.page(at).unwrap();
            assert_eq!(page[i % 512], (i as u64 + 1) | 1 << 20 | half);
            m.insert(table(tables), Some(&page));
            assert_eq!(*m.page(table(tables)).unwrap(), page);
            assert_eq!(m.word(m.open(table(tables)), at), m.word(m.open(table(i)), at));
        }
        m.remove(table(WHOLE + 1));
        assert_eq!(m.read(table(WHOLE + 1), 8), None);
        m.insert(table(tables + 1), None);
        assert_eq!(m.read(table(tables + 1), 8), Some(0), "a slot that was in use is clean");
    }
}
