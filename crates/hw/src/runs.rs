//! TLBs whose entries cover runs of consecutive base pages: CoLT's set-associative arrays, in which a
//! run lies in an aligned group of pages, and its fully associative one, in which runs grow together
//! (Pham et al., MICRO 2012).

use crate::geometry::Geometry;
use crate::ordered::{OrderedSets, Slot};
use crate::profile::TlbProfile;
use crate::tlb::{Asid, Translation};
use nestwalk_types::{Address, PageSize};

/// An entry: consecutive pages of one size in consecutive frames, with the same attributes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RunEntry {
    /// Number of the first page, in pages of the translation's size.
    pub first: u64,
    /// Pages; 0 in a free slot. More than one only of base pages.
    pub pages: u32,
    /// Whose it is.
    pub asid: Asid,
    /// Where the first page is, and the attributes of all.
    pub translation: Translation,
    /// Number of the page whose walk brought it in.
    pub walked: u64,
}

impl Slot for RunEntry {
    #[inline]
    fn is_valid(&self) -> bool {
        self.pages != 0
    }
}

/// Whether an entry may be used by `asid`.
#[inline]
pub(crate) fn belongs(translation: Translation, of: Asid, asid: Asid) -> bool {
    of == asid || (translation.is_global() && of.vpid() == asid.vpid())
}

/// Whether an invalidation for `asid` is about an entry: of its own ones, and if `global` of global
/// ones, too.
#[inline]
pub(crate) fn concerns(translation: Translation, of: Asid, asid: Asid, global: bool) -> bool {
    if translation.is_global() { global && of.vpid() == asid.vpid() } else { of == asid }
}

impl RunEntry {
    /// One page.
    #[inline]
    pub fn page<I: Address>(address: I, asid: Asid, translation: Translation) -> Self {
        let first = address.value() >> translation.size().shift();
        Self { first, pages: 1, asid, translation, walked: first }
    }

    /// Whether it has this page, counted in pages of its size.
    #[inline]
    const fn has(&self, page: u64) -> bool {
        page.wrapping_sub(self.first) < self.pages as u64
    }

    /// The part of it that lies in the aligned `1 << shift` pages around `page`, which it has.
    #[must_use]
    pub fn cut(&self, page: u64, shift: u32) -> Self {
        let group = page >> shift << shift;
        let first = self.first.max(group);
        let end = (self.first + u64::from(self.pages)).min(group + (1 << shift));
        Self {
            first,
            pages: (end - first) as u32,
            translation: self.translation.step(first - self.first),
            ..*self
        }
    }

    /// The translation of one of its pages.
    #[inline]
    const fn of(&self, page: u64) -> Translation {
        self.translation.step(page.wrapping_sub(self.first))
    }

    /// Whether both have pages of the same memory, and lie as far from their frames: what one says of a
    /// page of the other is true.
    fn agrees(&self, other: &Self) -> bool {
        let offset = |e: &Self| e.first.wrapping_sub(e.translation.frame().page_number());
        self.asid == other.asid
            && self.translation.attributes() == other.translation.attributes()
            && offset(self) == offset(other)
    }

    /// Whether they share a page of the same address space.
    fn overlaps(&self, other: &Self) -> bool {
        self.translation.size() == other.translation.size()
            && (belongs(self.translation, self.asid, other.asid)
                || belongs(other.translation, other.asid, self.asid))
            && self.first < other.first + u64::from(other.pages)
            && other.first < self.first + u64::from(self.pages)
    }

    /// Whether a part of the large page around `address` is in it, as a splinter.
    fn splinter_around(&self, address: u64) -> bool {
        let (size, whole) = (self.translation.size().shift(), self.translation.whole_shift());
        let (first, last) = (self.first, self.first + u64::from(self.pages) - 1);
        let page = address >> whole;
        self.translation.is_splinter()
            && first >> (whole - size) <= page
            && page <= last >> (whole - size)
    }
}

/// What a look-up found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hit {
    /// Of the page.
    pub translation: Translation,
    /// The entry, if it is one of runs.
    pub entry: RunEntry,
    /// Another page's walk had brought it in.
    pub neighbour: bool,
}

impl Hit {
    fn of(entry: &RunEntry, page: u64) -> Self {
        let neighbour = entry.walked != page;
        Self { translation: entry.of(page), entry: *entry, neighbour }
    }
}

#[derive(Clone, Debug)]
struct Array {
    sizes: Vec<PageSize>,
    /// Base-2 logarithm of the base pages that share a set: the index is shifted by as much.
    shift: u32,
    entries: OrderedSets<RunEntry>,
}

impl Array {
    /// The set of a page of this size, by its number.
    #[inline]
    fn set(&self, page: u64, size: PageSize) -> usize {
        let shift = if size == PageSize::SIZE_4K { self.shift } else { 0 };
        self.entries.set(page >> shift)
    }
}

/// One level of TLB, an array per page size or per group of sizes, whose entries of base pages cover
/// runs in aligned groups. With groups of one page it is a conventional TLB.
#[derive(Clone, Debug)]
pub struct RunLevel {
    arrays: Vec<Array>,
    /// Array and size of what was ever filled: what a look-up has to try.
    active: Vec<(usize, PageSize)>,
    any_splinter: bool,
}

impl RunLevel {
    /// An empty level of this geometry with groups of `1 << shift` base pages.
    pub fn new(profile: &[TlbProfile], shift: u32) -> Self {
        let array = |p: &TlbProfile| Array {
            // Entries that four base pages share have runs in their place.
            sizes: p.page_sizes().filter(|s| *s != PageSize::SIZE_16K).collect(),
            shift,
            entries: OrderedSets::with(p.geometry(), p.indexer()),
        };
        let arrays = profile.iter().map(array).collect();
        Self { arrays, active: Vec::new(), any_splinter: false }
    }

    /// Looks an address up. The entry found becomes the most recently used of its set.
    #[inline]
    pub fn look_up<I: Address>(&mut self, address: I, asid: Asid) -> Option<Hit> {
        for &(index, size) in &self.active {
            let array = &mut self.arrays[index];
            let page = address.value() >> size.shift();
            let set = array.set(page, size);
            let wanted = |e: &RunEntry| {
                e.has(page) && e.translation.size() == size && belongs(e.translation, e.asid, asid)
            };
            if let Some(found) = array.entries.find(set, wanted) {
                return Some(Hit::of(found, page));
            }
        }
        None
    }

    fn place(&self, size: PageSize) -> Option<usize> {
        self.arrays.iter().position(|a| a.sizes.contains(&size))
    }

    /// Fills an entry, cut to the group of `address`, in place of all that it overlaps. A level that
    /// does not hold pages of the size leaves it out. Returns the pages that the entry has there.
    pub fn fill<I: Address>(&mut self, address: I, entry: &RunEntry) -> u32 {
        let size = entry.translation.size();
        let Some(index) = self.place(size) else { return 0 };
        let array = &mut self.arrays[index];
        let page = address.value() >> size.shift();
        let set = array.set(page, size);
        let base = size == PageSize::SIZE_4K;
        let part = if base { entry.cut(page, array.shift) } else { *entry };
        array.entries.retain_in(set, |e| !e.overlaps(&part));
        array.entries.insert(set, part);
        self.any_splinter |= part.translation.is_splinter();
        if !self.active.contains(&(index, size)) {
            self.active.push((index, size));
            self.active.sort_unstable();
        }
        part.pages
    }

    /// As [`RunLevel::fill`], but a size that the level does not hold is filled as a splinter of the
    /// largest smaller size that it holds.
    pub fn fill_splintering<I: Address>(&mut self, address: I, entry: &RunEntry) -> u32 {
        let translation = entry.translation;
        if self.place(translation.size()).is_some() {
            return self.fill(address, entry);
        }
        let held = self.arrays.iter().flat_map(|a| a.sizes.iter().copied());
        let Some(size) = held.filter(|s| *s < translation.size()).max() else { return 0 };
        let part = translation.part(address, size);
        self.fill(address, &RunEntry::page(address, entry.asid, part))
    }

    /// Removes the entries that have `address` for `asid`, whole runs, of any size; global ones too if
    /// `global`. Returns how many there were.
    pub fn remove<I: Address>(&mut self, address: I, asid: Asid, global: bool) -> u32 {
        let mut removed = 0;
        for &(index, size) in &self.active {
            let array = &mut self.arrays[index];
            let page = address.value() >> size.shift();
            let set = array.set(page, size);
            removed += array.entries.retain_in(set, |e| {
                !(e.has(page)
                    && e.translation.size() == size
                    && concerns(e.translation, e.asid, asid, global))
            });
        }
        removed
    }

    /// As [`RunLevel::remove`], with all other parts of the same large page.
    pub fn invalidate_page<I: Address>(&mut self, address: I, asid: Asid, global: bool) -> u32 {
        let mut removed = self.remove(address, asid, global);
        if self.any_splinter {
            for array in &mut self.arrays {
                removed += array.entries.retain(|e| {
                    !(e.splinter_around(address.value())
                        && concerns(e.translation, e.asid, asid, global))
                });
            }
        }
        removed
    }

    /// Removes everything of `asid` but global entries.
    pub fn invalidate_asid(&mut self, asid: Asid) {
        for array in &mut self.arrays {
            array.entries.retain(|e| !concerns(e.translation, e.asid, asid, false));
        }
    }

    /// Removes everything of a VPID, with or without its global entries.
    pub fn invalidate_vpid(&mut self, vpid: u8, global: bool) {
        for array in &mut self.arrays {
            array
                .entries
                .retain(|e| e.asid.vpid() != vpid || (!global && e.translation.is_global()));
        }
    }

    /// Removes everything.
    pub fn flush(&mut self) {
        self.arrays.iter_mut().for_each(|a| a.entries.flush());
        self.active.clear();
        self.any_splinter = false;
    }

    /// All entries.
    pub fn entries(&self) -> impl Iterator<Item = &RunEntry> {
        self.arrays.iter().flat_map(|a| a.entries.iter())
    }
}

/// A small fully associative TLB of runs of base pages of any length. What is filled grows together with
/// entries that it touches.
#[derive(Clone, Debug)]
pub struct RunBuffer {
    entries: OrderedSets<RunEntry>,
    longest: u32,
}

impl RunBuffer {
    /// An empty one; an entry covers `longest` pages at most, and never less than a fill brings.
    pub fn new(geometry: Geometry, longest: u32) -> Self {
        Self { entries: OrderedSets::new(geometry), longest }
    }

    /// Looks an address up. The entry found becomes the most recently used.
    #[inline]
    pub fn look_up<I: Address>(&mut self, address: I, asid: Asid) -> Option<Hit> {
        let page = address.page_number();
        let wanted = |e: &RunEntry| e.has(page) && belongs(e.translation, e.asid, asid);
        self.entries.find(0, wanted).map(|e| Hit::of(e, page))
    }

    /// Fills an entry, grown together with those that it touches and agrees with, in place of all others
    /// that it overlaps. Returns its pages.
    pub fn fill(&mut self, entry: &RunEntry) -> u32 {
        let mut all = *entry;
        // Two entries may touch it, one at each end, and whatever lies between is overlapped.
        for _ in 0..2 {
            let longest = u64::from(self.longest.max(all.pages));
            self.entries.retain_in(0, |e| {
                let (e_end, end) = (e.first + u64::from(e.pages), all.first + u64::from(all.pages));
                let touches = e.first <= end && all.first <= e_end;
                let union = e_end.max(end) - e.first.min(all.first);
                if touches && e.agrees(&all) && union <= longest {
                    if e.first < all.first {
                        (all.first, all.translation) = (e.first, e.translation);
                    }
                    all.pages = union as u32;
                    return false;
                }
                true
            });
        }
        self.entries.retain_in(0, |e| !e.overlaps(&all));
        self.entries.insert(0, all);
        all.pages
    }

    /// Removes the entries that have `address` for `asid`, whole runs, and those with a part of the same
    /// large page if `splinters`; global ones too if `global`. Returns how many there were.
    pub fn remove<I: Address>(
        &mut self,
        address: I,
        asid: Asid,
        global: bool,
        splinters: bool,
    ) -> u32 {
        self.entries.retain_in(0, |e| {
            let about =
                e.has(address.page_number()) || (splinters && e.splinter_around(address.value()));
            !(about && concerns(e.translation, e.asid, asid, global))
        })
    }

    /// Removes everything of `asid` but global entries.
    pub fn invalidate_asid(&mut self, asid: Asid) {
        self.entries.retain(|e| !concerns(e.translation, e.asid, asid, false));
    }

    /// Removes everything of a VPID, with or without its global entries.
    pub fn invalidate_vpid(&mut self, vpid: u8, global: bool) {
        self.entries.retain(|e| e.asid.vpid() != vpid || (!global && e.translation.is_global()));
    }

    /// Removes everything.
    pub fn flush(&mut self) {
        self.entries.flush();
    }

    /// All entries, the most recently used first.
    pub fn entries(&self) -> impl Iterator<Item = &RunEntry> {
        self.entries.iter()
    }
}
