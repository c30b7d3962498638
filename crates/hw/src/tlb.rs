//! Translation look-aside buffers: complete translations by page number, size and tag.

pub mod anchors;

use crate::assoc::SetAssoc;
use crate::profile::TlbProfile;
use nestwalk_tables::Permissions;
use nestwalk_types::{Address, Hpa, PageSize};

/// Whose translation an entry is: VPID (upper 4 bits) and PCID (lower 12 bits).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub struct Asid(u16);

impl Asid {
    /// The tag of a PCID in a VPID; 0 is the host's.
    pub const fn new(vpid: u8, pcid: u16) -> Self {
        Self((vpid as u16) << 12 | pcid & 0xfff)
    }
    /// The PCID.
    pub const fn pcid(self) -> u16 {
        self.0 & 0xfff
    }
    /// The VPID.
    pub const fn vpid(self) -> u8 {
        (self.0 >> 12) as u8
    }
    /// The same VM, another address space.
    #[must_use]
    pub const fn with_pcid(self, pcid: u16) -> Self {
        Self::new(self.vpid(), pcid)
    }
}

/// A complete translation, as a TLB holds it: 8 bytes.
///
/// An entry may be a *splinter*: smaller than the page that the guest's tables map, because the
/// host's page is smaller or because the TLB has no entries of the size. It knows the size of the
/// whole, since an invalidation of the page must remove all its splinters.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Translation(u64);

impl Translation {
    const WRITE: u64 = 1;
    const USER: u64 = 1 << 1;
    const EXECUTE: u64 = 1 << 2;
    const DIRTY: u64 = 1 << 3;
    const GLOBAL: u64 = 1 << 4;
    const FRAME: u64 = 0x000f_ffff_ffff_f000;
    const WHOLE_SHIFT: u32 = 52;

    /// A page of `size` at `frame`. `dirty` says that stores need not set the dirty bit any more.
    #[inline]
    pub fn new(
        frame: Hpa,
        size: PageSize,
        permissions: Permissions,
        dirty: bool,
        global: bool,
    ) -> Self {
        Self(
            frame.value() & Self::FRAME
                | u64::from(permissions.write)
                | u64::from(permissions.user) << 1
                | u64::from(permissions.execute) << 2
                | u64::from(dirty) << 3
                | u64::from(global) << 4
                | u64::from(size.shift()) << 5
                | u64::from(size.shift()) << Self::WHOLE_SHIFT,
        )
    }
    /// The same translation as a part of a page of size `whole`.
    #[inline]
    #[must_use]
    pub const fn splinter_of(self, whole: PageSize) -> Self {
        let rest = self.0 & !(63 << Self::WHOLE_SHIFT);
        Self(rest | (whole.shift() as u64) << Self::WHOLE_SHIFT)
    }
    /// Base-2 logarithm of the size of the page that the guest's tables map.
    #[inline]
    pub(crate) const fn whole_shift(self) -> u32 {
        (self.0 >> Self::WHOLE_SHIFT) as u32 & 63
    }
    /// Whether it is smaller than the page that the guest's tables map.
    #[inline]
    pub const fn is_splinter(self) -> bool {
        self.whole_shift() != (self.0 >> 5 & 63) as u32
    }
    /// Size of the page.
    #[inline]
    pub const fn size(self) -> PageSize {
        PageSize::from_shift((self.0 >> 5 & 63) as u8)
    }
    /// First address of the page.
    #[inline]
    pub const fn frame(self) -> Hpa {
        Hpa::new(self.0 & Self::FRAME)
    }
    /// Where an address of the page is.
    #[inline]
    pub fn apply<I: Address>(self, address: I) -> Hpa {
        let mask = (1u64 << (self.0 >> 5 & 63)) - 1;
        Hpa::new(self.0 & Self::FRAME | address.value() & mask)
    }
    /// What may be done with the page.
    #[inline]
    pub const fn permissions(self) -> Permissions {
        Permissions {
            write: self.0 & Self::WRITE != 0,
            user: self.0 & Self::USER != 0,
            execute: self.0 & Self::EXECUTE != 0,
        }
    }
    /// Whether a store needs no walk to set the dirty bit.
    #[inline]
    pub const fn is_dirty(self) -> bool {
        self.0 & Self::DIRTY != 0
    }
    /// Whether it stays when CR3 is loaded.
    #[inline]
    pub const fn is_global(self) -> bool {
        self.0 & Self::GLOBAL != 0
    }
    /// The bits that an access needs to find set: see [`Translation::serves`].
    #[inline]
    pub const fn needs(write: bool, fetch: bool, user: bool) -> u64 {
        let mut bits = 0;
        if write {
            bits |= Self::WRITE | Self::DIRTY;
        }
        if fetch {
            bits |= Self::EXECUTE;
        }
        if user {
            bits |= Self::USER;
        }
        bits
    }
    /// The translation of the base page that lies `pages` further on in memory, all else the same.
    #[inline]
    #[must_use]
    pub const fn step(self, pages: u64) -> Self {
        let frame = (self.0 & Self::FRAME).wrapping_add(pages << 12) & Self::FRAME;
        Self(self.0 & !Self::FRAME | frame)
    }
    /// Everything but the frame: size, permissions, dirty, global, and what it is a part of.
    #[inline]
    pub const fn attributes(self) -> u64 {
        self.0 & !Self::FRAME
    }
    /// The part of `size` around `address` of a larger page.
    #[inline]
    #[must_use]
    pub fn part<I: Address>(self, address: I, size: PageSize) -> Self {
        let frame = self.apply(address.align_down(size));
        let (permissions, dirty) = (self.permissions(), self.is_dirty());
        Self::new(frame, size, permissions, dirty, self.is_global())
            .splinter_of(PageSize::from_shift(self.whole_shift() as u8))
    }
    /// Whether the access may use the entry as it is: permitted, and dirty if it is a store.
    #[inline]
    pub const fn serves(self, needs: u64) -> bool {
        self.0 & needs == needs
    }
}

/// Tag of an entry: page number, size and whose it is.
#[inline]
fn tag(page: u64, size: PageSize, asid: u32) -> u64 {
    // 45 bits of page number at most, 6 of size, 12 + of PCID; the VPID takes the size's place in
    // spirit: together 45 - (shift - 12) + 6 + 17 stay below 64 for 5-level paging.
    page << 19 | u64::from(size.shift() & 3) << 17 | u64::from(asid)
}
const GLOBAL_ASID: u32 = 1 << 16;
const ASID_BITS: u64 = (1 << 17) - 1;

/// One array of a TLB level: entries for one page size, or for several that share the ways.
#[derive(Clone, Debug)]
struct Array {
    sizes: Vec<SizeIn>,
    entries: SetAssoc<u64, Translation>,
}

#[derive(Clone, Copy, Debug)]
struct SizeIn {
    size: PageSize,
    /// Whether the array may hold an entry of this size.
    used: bool,
}

/// A size that some array may hold an entry of.
#[derive(Clone, Copy, Debug)]
struct Active {
    array: usize,
    size: PageSize,
}

/// One level of TLB: an array per page size or per group of sizes.
#[derive(Clone, Debug)]
pub struct Tlb {
    arrays: Vec<Array>,
    /// What a look-up has to try, in the order of the arrays: mostly one size.
    active: Vec<Active>,
    /// Index in `active` of the size found last, for the lower and the upper half of the addresses:
    /// programs and kernels have pages of their own sizes.
    latest: [usize; 2],
    any_global: bool,
    any_splinter: bool,
}

impl Tlb {
    /// An empty TLB of this geometry.
    pub fn new(profile: &[TlbProfile]) -> Self {
        let arrays = profile
            .iter()
            .map(|p| Array {
                sizes: p.page_sizes().map(|size| SizeIn { size, used: false }).collect(),
                entries: SetAssoc::new(p.geometry()),
            })
            .collect();
        let (any_global, any_splinter) = (false, false);
        Self { arrays, active: Vec::new(), latest: [0; 2], any_global, any_splinter }
    }

    /// Looks an address up. The entry found becomes the most recently used of its set.
    #[inline]
    pub fn look_up<I: Address>(&mut self, address: I, asid: Asid) -> Option<Translation> {
        let own = u32::from(asid.0);
        if !self.any_global {
            return self.probe(address, own);
        }
        // Kernels have global entries, programs have none: what is likelier is looked up first.
        let global = GLOBAL_ASID | own & 0xf000;
        let (first, second) =
            if address.value() >> 63 == 1 { (global, own) } else { (own, global) };
        let found = self.probe(address, first);
        if found.is_none() { self.probe(address, second) } else { found }
    }

    #[inline]
    fn probe<I: Address>(&mut self, address: I, asid: u32) -> Option<Translation> {
        let half = (address.value() >> 63) as usize;
        let latest = self.latest[half];
        if let Some(found) = self.probe_size(latest, address, asid) {
            return Some(found);
        }
        for index in 0..self.active.len() {
            if index != latest
                && let Some(found) = self.probe_size(index, address, asid)
            {
                self.latest[half] = index;
                return Some(found);
            }
        }
        None
    }

    #[inline(always)]
    fn probe_size<I: Address>(
        &mut self,
        index: usize,
        address: I,
        asid: u32,
    ) -> Option<Translation> {
        let Active { array, size } = *self.active.get(index)?;
        let entries = &mut self.arrays[array].entries;
        let page = address.value() >> size.shift();
        let set = entries.indexer().set(page);
        entries.look_up(set, tag(page, size, asid)).copied()
    }

    /// Fills the translation of `address`, in place of an older one of the same page. A level that
    /// does not hold pages of the size leaves it out.
    #[inline]
    pub fn fill<I: Address>(&mut self, address: I, asid: Asid, translation: Translation) {
        if let Some(place) = self.place(translation.size()) {
            let (array, set, tag) = self.prepare(place, address, asid, translation);
            self.arrays[array].entries.put(set, tag, translation);
        }
    }

    /// As [`Tlb::fill`], after the address was looked up and missed, or was removed: nothing older is
    /// looked for.
    #[inline]
    pub fn fill_missed<I: Address>(&mut self, address: I, asid: Asid, translation: Translation) {
        if let Some(place) = self.place(translation.size()) {
            self.fill_at(place, address, asid, translation);
        }
    }

    /// As [`Tlb::fill_missed`], but a size that the level does not hold is filled as a splinter of the
    /// largest smaller size that it holds: the first level must be able to serve every access.
    #[inline]
    pub fn fill_splintering<I: Address>(
        &mut self,
        address: I,
        asid: Asid,
        translation: Translation,
    ) {
        match self.place(translation.size()) {
            Some(place) => self.fill_at(place, address, asid, translation),
            None => self.fill_smaller(address, asid, translation),
        }
    }

    #[cold]
    fn fill_smaller<I: Address>(&mut self, address: I, asid: Asid, translation: Translation) {
        let held = self.arrays.iter().flat_map(|a| a.sizes.iter().map(|s| s.size));
        let Some(size) = held.filter(|&s| s < translation.size()).max() else { return };
        let Some(place) = self.place(size) else { return };
        let part = translation.part(address, size);
        self.fill_at(place, address, asid, part);
    }

    #[inline]
    fn fill_at<I: Address>(
        &mut self,
        place: (usize, usize),
        address: I,
        asid: Asid,
        translation: Translation,
    ) {
        let (array, set, tag) = self.prepare(place, address, asid, translation);
        self.arrays[array].entries.fill(set, tag, translation);
    }

    #[cold]
    fn activate(&mut self, array: usize, place: usize) {
        self.arrays[array].sizes[place].used = true;
        let used = self.arrays.iter().enumerate().flat_map(|(array, a)| {
            a.sizes.iter().filter(|s| s.used).map(move |s| Active { array, size: s.size })
        });
        self.active = used.collect();
    }

    /// Array, set and tag of a translation that is about to be filled.
    #[inline(always)]
    fn prepare<I: Address>(
        &mut self,
        (array, place): (usize, usize),
        address: I,
        asid: Asid,
        translation: Translation,
    ) -> (usize, usize, u64) {
        let size = translation.size();
        if !self.arrays[array].sizes[place].used {
            self.activate(array, place);
        }
        self.any_splinter |= translation.is_splinter();
        let mut asid = u32::from(asid.0);
        if translation.is_global() {
            self.any_global = true;
            asid = GLOBAL_ASID | asid & 0xf000;
        }
        let page = address.value() >> size.shift();
        let set = self.arrays[array].entries.indexer().set(page);
        (array, set, tag(page, size, asid))
    }

    #[inline]
    fn place(&self, size: PageSize) -> Option<(usize, usize)> {
        self.arrays
            .iter()
            .enumerate()
            .find_map(|(i, a)| a.sizes.iter().position(|s| s.size == size).map(|j| (i, j)))
    }

    /// Removes the page of `address`: the entries that translate it for `asid`, of any size, and all
    /// other parts of the same large page; global ones too if `global`. Returns how many there were.
    pub fn invalidate_page<I: Address>(&mut self, address: I, asid: Asid, global: bool) -> u32 {
        let removed = self.remove(address, asid, global);
        if self.any_splinter {
            return removed + self.remove_splinters(address.value(), u64::from(asid.0), global);
        }
        removed
    }

    /// Removes the entries that translate `address` for `asid`, of any size; global ones too if
    /// `global`. Returns how many there were. Other parts of the same large page stay.
    pub fn remove<I: Address>(&mut self, address: I, asid: Asid, global: bool) -> u32 {
        let mut removed = 0;
        for array in &mut self.arrays {
            for s in array.sizes.iter().filter(|s| s.used) {
                let page = address.value() >> s.size.shift();
                let set = array.entries.indexer().set(page);
                let own = u32::from(asid.0);
                removed += u32::from(array.entries.remove(set, tag(page, s.size, own)));
                if global && self.any_global {
                    let shared = GLOBAL_ASID | own & 0xf000;
                    removed += u32::from(array.entries.remove(set, tag(page, s.size, shared)));
                }
            }
        }
        removed
    }

    /// Removes all parts of the large page around `address`.
    fn remove_splinters(&mut self, address: u64, asid: u64, global: bool) -> u32 {
        let mut removed = 0;
        let shared = u64::from(GLOBAL_ASID) | asid & 0xf000;
        for array in &mut self.arrays {
            array.entries.retain(|t, part| {
                let own = t & ASID_BITS == asid || (global && t & ASID_BITS == shared);
                if !own || anchors::is_anchor(t) || !part.is_splinter() {
                    return true;
                }
                // The tag has the low 45 bits of the page number.
                let (size, whole) = (part.size().shift(), part.whole_shift());
                let page = address >> size & ((1 << 45) - 1);
                let same = (t >> 19) >> (whole - size) == page >> (whole - size);
                removed += u32::from(same);
                !same
            });
        }
        removed
    }

    /// Removes everything of `asid` but global entries.
    pub fn invalidate_asid(&mut self, asid: Asid) {
        for array in &mut self.arrays {
            array.entries.retain(|t, _| t & ASID_BITS != u64::from(asid.0));
        }
    }

    /// Removes everything of a VPID, with or without its global entries.
    pub fn invalidate_vpid(&mut self, vpid: u8, global: bool) {
        for array in &mut self.arrays {
            array.entries.retain(|t, _| {
                t >> 12 & 0xf != u64::from(vpid) || (!global && t & u64::from(GLOBAL_ASID) != 0)
            });
        }
    }

    /// Removes every entry by which a store needs no walk.
    pub fn remove_stores(&mut self) {
        let store = Translation::needs(true, false, false);
        for array in &mut self.arrays {
            array.entries.retain(|_, translation| !translation.serves(store));
        }
    }

    /// Removes everything.
    pub fn flush(&mut self) {
        for array in &mut self.arrays {
            array.entries.flush();
            for s in &mut array.sizes {
                s.used = false;
            }
        }
        self.active.clear();
        self.any_global = false;
        self.any_splinter = false;
    }

    /// Valid entries.
    pub fn len(&self) -> usize {
        self.arrays.iter().map(|a| a.entries.iter().count()).sum()
    }
    /// No valid entry.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
#[path = "tlb_tests.rs"]
mod tests;
