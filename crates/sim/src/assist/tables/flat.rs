//! A flat table (Ahn, Jin and Huh, "Revisiting Hardware-Assisted Page Walks for Virtualized Systems",
//! ISCA 2012): an array of entries by the number of the page, for a host's guest-physical memory. A
//! look-up is one reference. What the abstract says is that, no more; the rest is chosen:
//!
//! - *Memory.* The VMM takes the whole array when it makes the VM, and clears it: 8 bytes for each page
//!   of 4 KiB up to the end of guest-physical memory, holes included. It is in one piece, whose start a
//!   register has. A host that is too fragmented for that gives pieces half as long, and so on; then
//!   the hardware has a register for each, and a look-up is one reference still. Each piece that was
//!   refused is counted.
//! - *Memory that comes later* beyond the end has pieces of its own, taken when it is first mapped.
//! - *Large pages.* There is one array, for pages of 4 KiB. All entries that a larger page covers say
//!   so, with its size, so that TLBs hold it as one; the VMM stores each of them.
//! - *No walk cache*: a look-up has no upper levels. The nested TLB stays, and so do the walk caches of
//!   the guest's dimension.

use super::{Found, Key, NoMemory, Structure, StructureState, Supply, Work};
use nestwalk_tables::Entry;
use std::collections::BTreeMap;

const PAGE: u64 = 4096;
/// Entries of a page of the array; they cover 2 MiB.
const ENTRIES: usize = 512;
/// Bytes of an entry.
const BYTES: u64 = 8;

/// What a page of the array says.
enum Part {
    Empty,
    /// Base pages, and how many there are.
    Small(Box<[u64; ENTRIES]>, u32),
    /// A page that covers all of it, and the base-2 logarithm of its size.
    Large(u64, u8),
}

/// Memory that is addressed as one block, in one piece or in several of the same length.
pub struct Pieces {
    /// Where each is; 0 if it is none yet.
    starts: Vec<u64>,
    /// Base-2 logarithm of the bytes of one.
    shift: u32,
}

impl Pieces {
    /// So many bytes, in pieces as long as there are, and how often a length was refused. `None`: there
    /// is no memory.
    pub fn new(bytes: u64, memory: &mut dyn Supply) -> Option<(Self, u64)> {
        let mut shift = bytes.next_power_of_two().max(PAGE).trailing_zeros();
        let mut refused = 0;
        loop {
            if let Some(starts) = take_all(bytes, shift, memory) {
                return Some((Self { starts, shift }, refused));
            }
            refused += 1;
            if 1 << shift == PAGE {
                return None;
            }
            shift -= 1;
        }
    }

    /// The address at an offset; `None` beyond the end.
    #[inline]
    pub fn at(&self, offset: u64) -> Option<u64> {
        let start = *self.starts.get((offset >> self.shift) as usize)?;
        (start != 0).then_some(start + (offset & ((1 << self.shift) - 1)))
    }

    /// Takes the piece of an offset beyond the end, if it is not there. Returns its bytes.
    fn reach(&mut self, offset: u64, memory: &mut dyn Supply) -> Result<u64, NoMemory> {
        let number = (offset >> self.shift) as usize;
        if self.starts.len() <= number {
            self.starts.resize(number + 1, 0);
        }
        if self.starts[number] != 0 {
            return Ok(0);
        }
        let bytes = 1 << self.shift;
        self.starts[number] = memory.take(bytes).ok_or(NoMemory)?;
        Ok(bytes)
    }
}

/// The array.
pub struct Flat {
    pieces: Pieces,
    parts: Vec<Part>,
    /// Entries in use by the size of their page.
    used: BTreeMap<u8, u64>,
    bytes: u64,
    work: Work,
}

impl Flat {
    /// An empty array for so many pages of 4 KiB. `None`: there is no memory.
    pub fn new(pages: u64, memory: &mut dyn Supply) -> Option<Self> {
        let bytes = (pages.max(1) * BYTES).next_multiple_of(PAGE);
        let (pieces, refused) = Pieces::new(bytes, memory)?;
        let work = Work { pages: bytes / PAGE, refused, ..Work::default() };
        Some(Self { pieces, parts: Vec::new(), used: BTreeMap::new(), bytes, work })
    }

    /// Memory for the entry of a page beyond the array.
    fn reach(&mut self, page: u64, memory: &mut dyn Supply) -> Result<(), NoMemory> {
        let bytes = self.pieces.reach(page * BYTES, memory)?;
        self.bytes += bytes;
        self.work.pages += bytes / PAGE;
        let part = (page / ENTRIES as u64) as usize;
        if self.parts.len() <= part {
            self.parts.resize_with(part + 1, || Part::Empty);
        }
        Ok(())
    }

    fn count(&mut self, shift: u8, entries: u64, more: bool) {
        let used = self.used.entry(shift).or_default();
        *used = if more { *used + entries } else { *used - entries };
        self.work.updates += entries;
    }

    /// Clears all that is in a page of the array, pages that reach beyond it included.
    fn clear(&mut self, part: usize) {
        match self.parts.get_mut(part) {
            None | Some(Part::Empty) => {}
            Some(Part::Small(_, used)) => {
                let used = u64::from(*used);
                self.parts[part] = Part::Empty;
                self.count(12, used, false);
            }
            Some(Part::Large(_, shift)) => {
                let shift = *shift;
                self.clear_large(part, shift);
            }
        }
    }

    /// Clears the page of 2^`shift` bytes, more than 4 KiB, around a page of the array.
    fn clear_large(&mut self, part: usize, shift: u8) -> bool {
        let mut any = false;
        for part in around(part, shift) {
            if matches!(self.parts.get(part), Some(Part::Large(_, s)) if *s == shift) {
                self.parts[part] = Part::Empty;
                self.count(shift, ENTRIES as u64, false);
                any = true;
            }
        }
        any
    }
}

/// The pages of the array that hold a page of 2^`shift` bytes, of which `part` is one.
const fn around(part: usize, shift: u8) -> std::ops::Range<usize> {
    let long = 1 << shift.saturating_sub(21);
    let first = part & !(long - 1);
    first..first + long
}

/// So many bytes in pieces of 2^`piece`, of which the last may be shorter; all or none.
fn take_all(bytes: u64, piece: u32, memory: &mut dyn Supply) -> Option<Vec<u64>> {
    let long = 1_u64 << piece;
    let mut pieces = Vec::new();
    for _ in 0..bytes.div_ceil(long) {
        let Some(at) = memory.take(long) else {
            pieces.into_iter().for_each(|at| memory.give(at, long));
            return None;
        };
        pieces.push(at);
    }
    // What is beyond the end goes back, page by page.
    let last = *pieces.last()?;
    let over = pieces.len() as u64 * long - bytes;
    (0..over / PAGE).for_each(|page| memory.give(last + long - over + page * PAGE, PAGE));
    Some(pieces)
}

impl Structure for Flat {
    #[inline]
    fn look_up<E>(
        &mut self,
        _core: usize,
        key: Key,
        fetch: &mut impl FnMut(u8, &[u64]) -> Result<(), E>,
    ) -> Result<Option<Found>, E> {
        let Some(at) = self.pieces.at(key.page * BYTES) else { return Ok(None) };
        fetch(1, &[at])?;
        Ok(self.get(key))
    }

    #[inline]
    fn get(&self, key: Key) -> Option<Found> {
        let slot = key.page as usize;
        let (entry, shift) = match self.parts.get(slot / ENTRIES)? {
            Part::Empty => return None,
            Part::Small(entries, _) => (Entry(entries[slot % ENTRIES]), 12),
            Part::Large(entry, shift) => (Entry(*entry), *shift),
        };
        entry.is_present().then_some(Found { entry, shift, slot })
    }

    fn put(
        &mut self,
        key: Key,
        shift: u8,
        entry: u64,
        memory: &mut dyn Supply,
    ) -> Result<(), NoMemory> {
        let part = key.page as usize / ENTRIES;
        if shift > 12 {
            for part in around(part, shift) {
                self.reach((part * ENTRIES) as u64, memory)?;
                self.clear(part);
                self.parts[part] = Part::Large(entry, shift);
                self.count(shift, ENTRIES as u64, true);
            }
            return Ok(());
        }
        self.reach(key.page, memory)?;
        if !matches!(self.parts[part], Part::Small(..)) {
            self.clear(part);
            self.parts[part] = Part::Small(Box::new([0; ENTRIES]), 0);
        }
        if let Part::Small(entries, used) = &mut self.parts[part] {
            let old = std::mem::replace(&mut entries[key.page as usize % ENTRIES], entry);
            *used += u32::from(old == 0);
            if old == 0 {
                self.count(12, 1, true);
            } else {
                self.work.updates += 1;
            }
        }
        Ok(())
    }

    fn remove(&mut self, key: Key, shift: u8, _memory: &mut dyn Supply) -> bool {
        let (part, index) = (key.page as usize / ENTRIES, key.page as usize % ENTRIES);
        if shift > 12 {
            return self.clear_large(part, shift);
        }
        let Some(Part::Small(entries, used)) = self.parts.get_mut(part) else { return false };
        if std::mem::take(&mut entries[index]) == 0 {
            return false;
        }
        *used -= 1;
        if *used == 0 {
            self.parts[part] = Part::Empty;
        }
        self.count(12, 1, false);
        true
    }

    fn mark(&mut self, found: &Found, bits: u64) {
        for part in around(found.slot / ENTRIES, found.shift) {
            match self.parts.get_mut(part) {
                Some(Part::Large(entry, _)) => *entry |= bits,
                Some(Part::Small(entries, _)) => entries[found.slot % ENTRIES] |= bits,
                _ => {}
            }
        }
    }

    fn shifts(&self) -> Vec<u8> {
        self.used.iter().filter(|(_, used)| **used > 0).map(|(shift, _)| *shift).collect()
    }

    fn work(&mut self) -> &mut Work {
        &mut self.work
    }

    fn state(&self) -> StructureState {
        let (bytes, places) = (self.bytes, self.bytes / BYTES);
        StructureState { bytes, places, used: self.used.values().sum() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assist::tables::testing::{Ledger, lives_like_a_map_of};

    #[test]
    fn it_holds_what_a_map_holds() {
        for seed in 1..4 {
            let mut ledger = Ledger::default();
            // What lies beyond has pieces of its own.
            let mut flat = Flat::new(1 << 14, &mut ledger).unwrap();
            lives_like_a_map_of(1, &mut flat, &mut ledger, seed, |f: &Flat| {
                let entries = |p: &Part| match p {
                    Part::Empty => 0,
                    Part::Small(entries, used) => {
                        assert_eq!(entries.iter().filter(|e| **e != 0).count(), *used as usize);
                        u64::from(*used)
                    }
                    Part::Large(..) => ENTRIES as u64,
                };
                assert_eq!(f.state().used, f.parts.iter().map(entries).sum::<u64>());
            });
            assert_eq!(ledger.bytes(), flat.state().bytes);
            assert!(flat.state().bytes > (1 << 14) * BYTES);
        }
    }

    /// Memory in blocks of at most so many bytes.
    struct Pieces(Ledger, u64, u64);

    impl Supply for Pieces {
        fn take(&mut self, bytes: u64) -> Option<u64> {
            if bytes > self.1 {
                return None;
            }
            // A block is given back page by page if it is trimmed.
            self.2 += bytes / PAGE;
            self.0.take(bytes)
        }
        fn give(&mut self, _at: u64, bytes: u64) {
            self.2 -= bytes / PAGE;
        }
    }

    /// One piece where there is one, pieces half as long where not; one reference whatever they are.
    #[test]
    fn a_fragmented_host_gives_pieces_and_a_look_up_is_one_reference() {
        let pages = 3 << 18;
        for (most, piece, refused) in [(1 << 30, 23, 0), (2 << 20, 21, 2), (PAGE, 12, 11)] {
            let mut memory = Pieces(Ledger::default(), most, 0);
            let mut flat = Flat::new(pages, &mut memory).unwrap();
            assert_eq!((flat.pieces.shift, flat.work.refused), (piece, refused));
            assert_eq!((memory.2, flat.work.pages), (1536, 1536), "6 MiB, trimmed");
            let mut seen = std::collections::BTreeSet::new();
            for page in [0, 1, 511, 512, 1 << 18, pages - 1] {
                let key = Key { region: 0, page };
                flat.put(key, 12, 0x1001, &mut memory).unwrap();
                let mut lines = Vec::new();
                let mut fetch = |level: u8, at: &[u64]| {
                    lines.extend(at.iter().map(|at| (level, *at)));
                    Ok::<(), ()>(())
                };
                assert!(flat.look_up(0, key, &mut fetch).unwrap().is_some());
                assert!(lines.len() == 1 && lines[0].0 == 1 && seen.insert(lines[0].1));
            }
            assert_eq!(flat.work.pages, 1536, "nothing was taken since");
        }
        assert!(Flat::new(pages, &mut Pieces(Ledger::default(), 0, 0)).is_none());
    }

    /// Every entry that a larger page covers is stored; a smaller page in it clears them all.
    #[test]
    fn a_large_page_is_all_its_entries() {
        let mut ledger = Ledger::default();
        let mut flat = Flat::new(1 << 20, &mut ledger).unwrap();
        let key = |page| Key { region: 0, page };
        flat.put(key(1 << 18), 30, 0x4000_0081, &mut ledger).unwrap();
        assert_eq!((flat.work.updates, flat.shifts()), (1 << 18, vec![30]));
        assert_eq!(flat.get(key((1 << 19) - 1)).map(|f| f.shift), Some(30));
        flat.put(key((1 << 18) + 700), 12, 0x1001, &mut ledger).unwrap();
        assert_eq!((flat.shifts(), flat.state().used), (vec![12], 1));
        assert!(flat.get(key(1 << 18)).is_none());
        assert!(!flat.remove(key(1 << 18), 30, &mut ledger));
        assert!(flat.remove(key((1 << 18) + 700), 12, &mut ledger) && flat.shifts().is_empty());
    }
}
