//! The clustered part of a multi-granular TLB (Pham et al., HPCA 2014): an entry maps some of eight
//! aligned virtual pages to some of eight aligned frames, in any order.

use crate::geometry::Geometry;
use crate::line::{LINE_PAGES, LINE_SHIFT};
use crate::ordered::{OrderedSets, Slot};
use crate::runs::{belongs, concerns};
use crate::tlb::{Asid, Translation};
use nestwalk_types::Address;

/// An entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ClusterEntry {
    /// Number of the eight pages: the page number without its last three bits.
    pub cluster: u64,
    /// Pages that it maps, a bit each; 0 in a free slot.
    pub pages: u8,
    /// Place of the page whose walk was the last to add to it.
    pub walked: u8,
    /// Whose it is.
    pub asid: Asid,
    /// Places of the frames among their eight, 3 bits for each page.
    pub places: u32,
    /// Where the eight frames begin, and the attributes of all pages.
    pub translation: Translation,
}

impl Slot for ClusterEntry {
    #[inline]
    fn is_valid(&self) -> bool {
        self.pages != 0
    }
}

impl ClusterEntry {
    #[inline]
    const fn has(&self, page: u64) -> bool {
        self.cluster == page >> LINE_SHIFT && self.pages >> (page & 7) & 1 == 1
    }
    /// Both map pages of one eight to the same frames, with the same attributes.
    fn agrees(&self, other: &Self) -> bool {
        self.cluster == other.cluster
            && self.asid == other.asid
            && self.translation == other.translation
    }
    /// Takes a page out.
    fn drop_page(&mut self, page: u64) {
        self.pages &= !(1 << (page & 7));
        self.places &= !(7 << (3 * (page & 7)));
    }
}

/// What a look-up found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ClusterHit {
    /// Of the page.
    pub translation: Translation,
    /// Another page's walk had brought it in.
    pub neighbour: bool,
}

/// An array of such entries, indexed by the number of the eight pages.
#[derive(Clone, Debug)]
pub struct ClusterArray {
    entries: OrderedSets<ClusterEntry>,
    any_splinter: bool,
}

impl ClusterArray {
    /// An empty one.
    pub fn new(geometry: Geometry) -> Self {
        Self { entries: OrderedSets::new(geometry), any_splinter: false }
    }

    /// Looks an address up. The entry found becomes the most recently used of its set.
    #[inline]
    pub fn look_up<I: Address>(&mut self, address: I, asid: Asid) -> Option<ClusterHit> {
        let page = address.page_number();
        let set = self.entries.set(page >> LINE_SHIFT);
        let wanted = |e: &ClusterEntry| e.has(page) && belongs(e.translation, e.asid, asid);
        let found = self.entries.find(set, wanted)?;
        let place = u64::from(found.places >> (3 * (page & 7)) & 7);
        let neighbour = u64::from(found.walked) != page & 7;
        Some(ClusterHit { translation: found.translation.step(place), neighbour })
    }

    /// Fills an entry; what agrees with it is joined with it, and pages that it maps otherwise are taken
    /// out of all others. Returns its pages.
    pub fn fill(&mut self, entry: &ClusterEntry) -> u32 {
        let mut all = *entry;
        let set = self.entries.set(all.cluster);
        self.entries.retain_in(set, |e| {
            let same = e.cluster == all.cluster
                && (belongs(e.translation, e.asid, all.asid)
                    || belongs(all.translation, all.asid, e.asid));
            if same {
                let agrees = e.agrees(&all);
                for page in (0..LINE_PAGES as u64).filter(|p| entry.pages >> p & 1 == 1) {
                    e.drop_page(page);
                }
                if agrees {
                    all.pages |= e.pages;
                    all.places |= e.places;
                    return false;
                }
            }
            e.pages != 0
        });
        self.entries.insert(set, all);
        self.any_splinter |= all.translation.is_splinter();
        all.pages.count_ones()
    }

    /// Takes the page of `address` out of the entries of `asid`, whose other pages stay: each has a
    /// valid bit. Global ones too if `global`. Returns how many had it.
    pub fn remove<I: Address>(&mut self, address: I, asid: Asid, global: bool) -> u32 {
        let page = address.page_number();
        let set = self.entries.set(page >> LINE_SHIFT);
        let mut removed = 0;
        self.entries.retain_in(set, |e| {
            if e.has(page) && concerns(e.translation, e.asid, asid, global) {
                e.drop_page(page);
                removed += 1;
            }
            e.pages != 0
        });
        removed
    }

    /// As [`ClusterArray::remove`], with all other parts of the same large page.
    pub fn invalidate_page<I: Address>(&mut self, address: I, asid: Asid, global: bool) -> u32 {
        let mut removed = self.remove(address, asid, global);
        if self.any_splinter {
            removed += self.entries.retain(|e| {
                let whole = e.translation.whole_shift();
                let around = e.translation.is_splinter()
                    && e.cluster >> (whole - 12 - LINE_SHIFT) == address.value() >> whole;
                !(around && concerns(e.translation, e.asid, asid, global))
            });
        }
        removed
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
        self.any_splinter = false;
    }

    /// All entries.
    pub fn entries(&self) -> impl Iterator<Item = &ClusterEntry> {
        self.entries.iter()
    }
}
