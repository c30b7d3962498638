//! Translation look-aside buffers: complete translations by page number, size and tag.

pub mod anchors;
mod hand;
mod pdes;
mod translation;

pub use translation::Translation;

pub use hand::AtHand;
use hand::Hand;
use pdes::Pdes;

use crate::profile::TlbProfile;
use crate::slim::{Latest, Sets};
use nestwalk_types::{Address, PageSize};

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

/// Where in a tag the page number begins.
const PAGE_SHIFT: u32 = 19;

/// Tag of an entry: page number, class and whose it is.
#[inline(always)]
fn tag(page: u64, class: u64, asid: u32) -> u64 {
    // 45 bits of page number at most, 2 of class, 12 + of PCID, and the VPID: 64 for 5-level paging.
    page << PAGE_SHIFT | class | u64::from(asid)
}

/// What tells entries of one size from those of others: two bits above the ASID, and one above the page
/// numbers of what shares those with sizes that have shorter numbers.
///
/// ```text
/// base pages   0                    4 MiB, 1 GiB (never in one mode)   2
/// 2 MiB        1                    four base pages                    2, bit 62
/// anchors      3                    page-directory entries             2, bit 63 and not 62
/// ```
const fn class(size: PageSize) -> u64 {
    let class = (size.shift() as u64 & 3) << 17;
    if size.shift() == PageSize::SIZE_16K.shift() { class | 1 << 62 } else { class }
}
const GLOBAL_ASID: u32 = 1 << 16;
const ASID_BITS: u64 = (1 << 17) - 1;

/// A page size that a level holds, and where.
#[derive(Clone, Copy, Debug)]
struct Place {
    size: PageSize,
    array: usize,
    /// See [`class`].
    class: u64,
    /// Index in `active`, if the array may hold an entry of this size.
    active: Option<u8>,
}

/// No place, in an index of places.
const NOWHERE: u8 = u8::MAX;
/// Sizes by their base-2 logarithm; none that a TLB holds has one of more than 31.
const SHIFTS: usize = 32;

/// A size that some array may hold an entry of.
#[derive(Clone, Copy, Debug)]
struct Active {
    array: usize,
    size: PageSize,
    class: u64,
}

/// One level of TLB: an array per page size or per group of sizes.
#[derive(Clone, Debug)]
pub struct Tlb {
    /// Entries for one page size, or for several that share the ways.
    arrays: Vec<Sets<Translation>>,
    /// Array by array.
    places: Vec<Place>,
    /// Index of the first place of a size, by its shift.
    by_shift: [u8; SHIFTS],
    /// What a look-up has to try, in the order of the arrays: mostly one size.
    active: Vec<Active>,
    /// Index in `active` of the size found or filled last, for the lower and the upper half of the
    /// addresses: programs and kernels have pages of their own sizes. Where entries of two sizes
    /// translate an address it decides, so an access that comes again finds what it found or filled.
    latest: [usize; 2],
    /// What `latest` says, of each half.
    hands: [Hand; 2],
    any_global: bool,
    any_splinter: bool,
    /// Sizes that are held as pieces.
    smashed: Vec<PageSize>,
    pdes: Option<Pdes>,
}

impl Tlb {
    /// An empty TLB of this geometry.
    pub fn new(profile: &[TlbProfile]) -> Self {
        let arrays = profile.iter();
        let arrays =
            arrays.map(|p| Sets::new(p.geometry(), p.indexer(), p.replacement(), PAGE_SHIFT));
        let arrays = arrays.collect();
        let places = profile.iter().enumerate().flat_map(|(array, p)| {
            let place = move |size| Place { size, array, class: class(size), active: None };
            p.page_sizes().map(place)
        });
        let places: Vec<Place> = places.collect();
        let mut by_shift = [NOWHERE; SHIFTS];
        for (i, place) in places.iter().enumerate().rev() {
            by_shift[place.size.shift() as usize % SHIFTS] = i as u8;
        }
        let (any_global, any_splinter) = (false, false);
        let smashed = profile.iter().flat_map(|p| &p.smashed);
        let smashed = smashed.filter_map(|s| crate::profile::parse_page_size(s)).collect();
        let pdes =
            profile.iter().position(|p| p.pdes).map(|array| Pdes::new(array, &profile[array]));
        let (active, latest, hands) = (Vec::new(), [0; 2], [Hand::EMPTY; 2]);
        Self {
            arrays,
            places,
            by_shift,
            active,
            latest,
            hands,
            any_global,
            any_splinter,
            smashed,
            pdes,
        }
    }

    /// Looks an address up. The entry found becomes the most recently used of its set.
    ///
    /// If it was that before, and of the size at hand, nothing changes: that way is short, and in line.
    #[inline(always)]
    pub fn look_up<I: Address>(&mut self, address: I, asid: Asid) -> Option<Translation> {
        let half = (address.value() >> 63) as usize;
        let latest = self.latest(half, asid).find(address.value());
        if latest.is_some() { latest } else { self.search(address, asid) }
    }

    /// The short way of [`Tlb::look_up`] for many addresses of one half: what it finds changes nothing.
    #[inline(always)]
    pub fn latest(&self, half: usize, asid: Asid) -> AtHand<'_> {
        let hand = &self.hands[half & 1];
        let entries = self.arrays.get(hand.array).map_or(Latest::NONE, Sets::latest);
        AtHand { entries, shift: hand.shift, bits: u64::from(asid.0) & hand.keep | hand.bits }
    }

    /// As [`Tlb::look_up`], for a level where few addresses are found to be the most recently used ones.
    #[inline(always)]
    pub fn search<I: Address>(&mut self, address: I, asid: Asid) -> Option<Translation> {
        if self.any_global {
            return self.search_with_global(address.value(), asid);
        }
        self.probe(address.value(), u32::from(asid.0))
    }

    #[inline(never)]
    fn search_with_global(&mut self, address: u64, asid: Asid) -> Option<Translation> {
        // Kernels have global entries, programs have none: what is likelier is looked up first.
        let own = u32::from(asid.0);
        let global = GLOBAL_ASID | own & 0xf000;
        let (first, second) = if address >> 63 == 1 { (global, own) } else { (own, global) };
        let found = self.probe(address, first);
        if found.is_none() { self.probe(address, second) } else { found }
    }

    #[inline(never)]
    fn probe(&mut self, address: u64, asid: u32) -> Option<Translation> {
        let hand = &self.hands[(address >> 63) as usize];
        if let Some(entries) = self.arrays.get_mut(hand.array) {
            let page = address >> hand.shift;
            if let Some(found) = entries.look_up(page, tag(page, hand.class, asid)) {
                return Some(*found);
            }
            if self.active.len() == 1 {
                return None;
            }
        }
        self.probe_others(address, asid)
    }

    /// As `probe`, for the sizes that are not at hand.
    #[inline(never)]
    fn probe_others(&mut self, address: u64, asid: u32) -> Option<Translation> {
        let half = (address >> 63) as usize;
        for (index, &Active { array, size, class }) in self.active.iter().enumerate() {
            let entries = &mut self.arrays[array];
            let page = address >> size.shift();
            if index != self.latest[half]
                && let Some(found) = entries.look_up(page, tag(page, class, asid))
            {
                let found = *found;
                self.take(half, index);
                return Some(found);
            }
        }
        None
    }

    /// A size is at hand from now on, in one half of the addresses.
    fn take(&mut self, half: usize, index: usize) {
        self.latest[half] = index;
        let hand = |active| Hand::of(active, half, self.any_global);
        self.hands[half] = self.active.get(index).map_or(Hand::EMPTY, hand);
    }

    /// Fills the translation of `address`, in place of an older one of the same page. A level that
    /// does not hold pages of the size leaves it out, but for sizes that it smashes, and for four base
    /// pages together, of which it takes the one.
    #[inline]
    pub fn fill<I: Address>(&mut self, address: I, asid: Asid, translation: Translation) {
        let Some(place) = self.place(translation.size()) else {
            return self.fill_piece(address, asid, translation);
        };
        let (array, page, tag) = self.prepare(place, address, asid, translation);
        self.arrays[array].put(page, tag, translation);
    }

    /// As [`Tlb::fill`], after the address was looked up and missed, or was removed: nothing older is
    /// looked for.
    #[inline(always)]
    pub fn fill_missed<I: Address>(&mut self, address: I, asid: Asid, translation: Translation) {
        if !self.fill_at_hand(address, asid, translation) {
            self.fill_not_at_hand(address, asid, translation);
        }
    }

    /// The short way of fills: a whole page of the size at hand that is not global. Whether it was one.
    #[inline(always)]
    fn fill_at_hand<I: Address>(&mut self, address: I, asid: Asid, filled: Translation) -> bool {
        let hand = &self.hands[(address.value() >> 63) as usize];
        if filled.attributes() & Translation::SIZES != hand.sizes {
            return false;
        }
        let Some(entries) = self.arrays.get_mut(hand.array) else { return false };
        let page = address.value() >> hand.shift;
        entries.fill(page, tag(page, hand.class, u32::from(asid.0)), filled);
        true
    }

    #[inline(never)]
    fn fill_not_at_hand<I: Address>(&mut self, address: I, asid: Asid, translation: Translation) {
        match self.place(translation.size()) {
            Some(place) => self.fill_at(place, address, asid, translation),
            None => self.fill_piece(address, asid, translation),
        }
    }

    /// Fills what a level holds in place of a size that it does not hold.
    #[cold]
    fn fill_piece<I: Address>(&mut self, address: I, asid: Asid, translation: Translation) {
        if translation.size() == PageSize::SIZE_16K {
            return self.fill(address, asid, translation.part(address, PageSize::SIZE_4K));
        }
        if self.smashed.contains(&translation.size())
            && let Some(size) = self.next_smaller(translation.size())
        {
            self.fill(address, asid, translation.smashed(address, size));
        }
    }

    /// The largest size of pages that is held and smaller.
    fn next_smaller(&self, than: PageSize) -> Option<PageSize> {
        let held = self.places.iter().map(|place| place.size);
        let pages = held.filter(|&s| s < than && s != PageSize::SIZE_16K);
        pages.max()
    }

    /// As [`Tlb::fill_missed`], but a size that the level does not hold is filled as a splinter of the
    /// largest smaller size that it holds: the first level must be able to serve every access.
    #[inline(always)]
    pub fn fill_splintering<I: Address>(
        &mut self,
        address: I,
        asid: Asid,
        translation: Translation,
    ) {
        if self.fill_at_hand(address, asid, translation) {
            return;
        }
        self.fill_whole_or_part(address, asid, translation);
    }

    #[inline(never)]
    fn fill_whole_or_part<I: Address>(&mut self, address: I, asid: Asid, translation: Translation) {
        match self.place(translation.size()) {
            Some(place) => self.fill_at(place, address, asid, translation),
            None => self.fill_smaller(address, asid, translation),
        }
    }

    #[cold]
    fn fill_smaller<I: Address>(&mut self, address: I, asid: Asid, translation: Translation) {
        let Some(size) = self.next_smaller(translation.size()) else { return };
        let Some(place) = self.place(size) else { return };
        let part = translation.part(address, size);
        self.fill_at(place, address, asid, part);
    }

    #[inline]
    fn fill_at<I: Address>(
        &mut self,
        place: usize,
        address: I,
        asid: Asid,
        translation: Translation,
    ) {
        let (array, page, tag) = self.prepare(place, address, asid, translation);
        self.arrays[array].fill(page, tag, translation);
    }

    #[cold]
    fn activate(&mut self, place: usize) {
        self.places[place].active = Some(0);
        self.active.clear();
        for place in self.places.iter_mut().filter(|place| place.active.is_some()) {
            place.active = Some(self.active.len() as u8);
            let Place { array, size, class, .. } = *place;
            self.active.push(Active { array, size, class });
        }
        (0..2).for_each(|half| self.take(half, self.latest[half]));
    }

    /// Array, page number and tag of a translation that is about to be filled.
    #[inline(always)]
    fn prepare<I: Address>(
        &mut self,
        place: usize,
        address: I,
        asid: Asid,
        translation: Translation,
    ) -> (usize, u64, u64) {
        if self.places[place].active.is_none() {
            self.activate(place);
        }
        let Place { size, array, class, active } = self.places[place];
        self.any_splinter |= translation.is_splinter();
        let mut asid = u32::from(asid.0);
        if translation.is_global() {
            asid = GLOBAL_ASID | asid & 0xf000;
            if !self.any_global {
                self.any_global = true;
                self.take(1, self.latest[1]);
            }
        }
        self.take((address.value() >> 63) as usize, usize::from(active.unwrap_or(0)));
        let page = address.value() >> size.shift();
        (array, page, tag(page, class, asid))
    }

    #[inline(always)]
    fn place(&self, size: PageSize) -> Option<usize> {
        let place = self.by_shift[size.shift() as usize % SHIFTS];
        (place != NOWHERE).then_some(usize::from(place))
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
        for place in self.places.iter().filter(|place| place.active.is_some()) {
            let entries = &mut self.arrays[place.array];
            let page = address.value() >> place.size.shift();
            let own = u32::from(asid.0);
            removed += u32::from(entries.remove(page, tag(page, place.class, own)));
            if global && self.any_global {
                let shared = GLOBAL_ASID | own & 0xf000;
                removed += u32::from(entries.remove(page, tag(page, place.class, shared)));
            }
        }
        removed
    }

    /// Removes all parts of the large page around `address`.
    fn remove_splinters(&mut self, address: u64, asid: u64, global: bool) -> u32 {
        let mut removed = 0;
        let shared = u64::from(GLOBAL_ASID) | asid & 0xf000;
        for array in &mut self.arrays {
            array.retain(|t, part| {
                let own = t & ASID_BITS == asid || (global && t & ASID_BITS == shared);
                if !own || anchors::is_anchor(t) || pdes::is_pde(t) || !part.is_splinter() {
                    return true;
                }
                // The tag has the low 45 bits of the page number; those of four base pages, 43.
                let (size, whole) = (part.size().shift(), part.whole_shift());
                let bits = if size == PageSize::SIZE_16K.shift() { 43 } else { 45 };
                let page = |n: u64| (n & ((1 << bits) - 1)) >> (whole - size);
                let same = page(t >> 19) == page(address >> size);
                removed += u32::from(same);
                !same
            });
        }
        removed
    }

    /// Removes everything of `asid` but global entries.
    pub fn invalidate_asid(&mut self, asid: Asid) {
        for array in &mut self.arrays {
            array.retain(|t, _| t & ASID_BITS != u64::from(asid.0));
        }
    }

    /// Removes everything of a VPID, with or without its global entries.
    pub fn invalidate_vpid(&mut self, vpid: u8, global: bool) {
        for array in &mut self.arrays {
            array.retain(|t, _| {
                t >> 12 & 0xf != u64::from(vpid) || (!global && t & u64::from(GLOBAL_ASID) != 0)
            });
        }
    }

    /// Removes every entry by which a store needs no walk.
    pub fn remove_stores(&mut self) {
        let store = Translation::needs(true, false, false);
        for array in &mut self.arrays {
            array.retain(|_, translation| !translation.serves(store));
        }
    }

    /// Removes everything.
    pub fn flush(&mut self) {
        for array in &mut self.arrays {
            array.flush();
        }
        for place in &mut self.places {
            place.active = None;
        }
        self.active.clear();
        self.hands = [Hand::EMPTY; 2];
        self.any_global = false;
        self.any_splinter = false;
    }

    /// Whether there is an entry of an address for `asid`. Looks without a trace.
    pub fn holds<I: Address>(&self, address: I, asid: Asid) -> bool {
        self.places.iter().filter(|place| place.active.is_some()).any(|place| {
            let entries = &self.arrays[place.array];
            let page = address.value() >> place.size.shift();
            entries.peek(page, tag(page, place.class, u32::from(asid.0))).is_some()
        })
    }

    /// Valid entries.
    pub fn len(&self) -> usize {
        let mut entries = 0;
        self.arrays.iter().for_each(|array| array.for_each(|_, _| entries += 1));
        entries
    }
    /// No valid entry.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
#[path = "tlb_tests.rs"]
mod tests;
