//! Anchor entries of hybrid TLB coalescing (Park et al., ISCA 2017): entries of a TLB level that say
//! how many pages from an aligned one on lie in frames one after the other. They live in the array of
//! 4 KiB entries, by the same sets and ways, under tags of their own.

use super::{ASID_BITS, Asid, Tlb, Translation};
use nestwalk_tables::Permissions;
use nestwalk_types::{Address, Hpa, PageSize};

/// In the place of a page size in tags; no size has these bits.
const CLASS: u64 = 3;
/// The longest contiguity is this power of two: 16 bits less one.
pub const LONGEST: u32 = 16;
/// Bits of the contiguity where an entry of a page has its size, and the others above the frame.
const LOW: u32 = 6;
const LOW_SHIFT: u32 = 5;

/// An anchor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Anchor {
    /// Where the anchor's own page is.
    pub frame: Hpa,
    /// Pages from the anchor on that follow each other, 1 to 2^16.
    pub contiguity: u32,
    /// What may be done with each of them.
    pub permissions: Permissions,
    /// Stores need not set a dirty bit any more.
    pub dirty: bool,
    /// The page in whose walk the anchor was filled: 4 KiB, 2 MiB, 4 MiB or 1 GiB.
    pub page: PageSize,
}

/// Page sizes by what an entry has for them.
const SIZES: [PageSize; 4] =
    [PageSize::SIZE_4K, PageSize::SIZE_2M, PageSize::SIZE_4M, PageSize::SIZE_1G];

impl Anchor {
    /// As an array holds it: where pages have sizes an anchor has its contiguity less one, and an index
    /// of the size.
    fn packed(self) -> Translation {
        let page =
            Translation::new(self.frame, PageSize::SIZE_4K, self.permissions, self.dirty, false);
        let sizes = 63 << Translation::WHOLE_SHIFT | 63 << LOW_SHIFT;
        let length = u64::from(self.contiguity.clamp(1, 1 << LONGEST) - 1);
        let low = (length & 63) << LOW_SHIFT;
        let size = SIZES.iter().position(|s| *s == self.page).unwrap_or(0) as u64;
        let high = (size << (LONGEST - LOW) | length >> LOW) << Translation::WHOLE_SHIFT;
        Translation(page.0 & !sizes | low | high)
    }

    fn unpacked(held: Translation) -> Self {
        let high = held.0 >> Translation::WHOLE_SHIFT;
        let length = (high & ((1 << (LONGEST - LOW)) - 1)) << LOW | held.0 >> LOW_SHIFT & 63;
        Self {
            page: SIZES[(high >> (LONGEST - LOW)) as usize & 3],
            frame: held.frame(),
            contiguity: length as u32 + 1,
            permissions: held.permissions(),
            dirty: held.is_dirty(),
        }
    }
}

/// Whether a tag is an anchor's.
pub(super) const fn is_anchor(tag: u64) -> bool {
    tag >> 17 & 3 == CLASS
}

#[inline]
fn tag(key: u64, asid: Asid) -> u64 {
    key << 19 | CLASS << 17 | asid.0 as u64
}

impl Tlb {
    /// The array of 4 KiB entries.
    #[inline]
    fn anchors(&self) -> Option<usize> {
        self.place(PageSize::SIZE_4K).map(|place| self.places[place].array)
    }

    /// The anchor of an address with anchors every `1 << shift` pages; it becomes the most recently
    /// used of its set whether or not its contiguity reaches the address.
    #[inline]
    pub fn look_up_anchor<I: Address>(
        &mut self,
        address: I,
        shift: u32,
        asid: Asid,
    ) -> Option<Anchor> {
        let array = self.anchors()?;
        let entries = &mut self.arrays[array];
        let key = address.page_number() >> shift;
        entries.look_up(key, tag(key, asid)).map(|held| Anchor::unpacked(*held))
    }

    /// Fills the anchor of an address in place of an older one.
    pub fn fill_anchor<I: Address>(&mut self, address: I, shift: u32, asid: Asid, anchor: Anchor) {
        if let Some(array) = self.anchors() {
            let entries = &mut self.arrays[array];
            let key = address.page_number() >> shift;
            entries.put(key, tag(key, asid), anchor.packed());
        }
    }

    /// Removes the anchor of an address.
    #[inline]
    pub fn remove_anchor<I: Address>(&mut self, address: I, shift: u32, asid: Asid) {
        if let Some(array) = self.anchors() {
            let entries = &mut self.arrays[array];
            let key = address.page_number() >> shift;
            entries.remove(key, tag(key, asid));
        }
    }

    /// Removes the anchors whose blocks meet the pages from `first` to before `end`.
    pub fn remove_anchors(&mut self, first: u64, end: u64, shift: u32, asid: Asid) {
        let (first, last) = (first >> shift, end.saturating_sub(1) >> shift);
        for array in &mut self.arrays {
            array.retain(|tag, _| {
                let own = is_anchor(tag) && tag & ASID_BITS == u64::from(asid.0);
                !own || !(first..=last).contains(&(tag >> 19))
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::TlbProfile;
    use nestwalk_types::Gva;

    fn tlb(entries: u32, ways: u32) -> Tlb {
        let sizes = vec!["4k".into(), "2m".into()];
        Tlb::new(&[TlbProfile {
            sizes,
            entries,
            ways,
            source: String::new(),
            ..Default::default()
        }])
    }
    fn anchor(frame: u64, contiguity: u32) -> Anchor {
        let permissions = Permissions { write: true, user: true, execute: false };
        let page = SIZES[contiguity as usize % 4];
        Anchor { frame: Hpa::new(frame << 12), contiguity, permissions, dirty: true, page }
    }
    const A: Asid = Asid::new(1, 3);

    #[test]
    fn anchors_are_read_back_as_they_were_filled() {
        let mut t = tlb(64, 4);
        for (i, contiguity) in [1u32, 2, 63, 64, 65, 4096, 65535, 65536].into_iter().enumerate() {
            let at = Gva::new((i as u64) << 28);
            t.fill_anchor(at, 16, A, anchor((1 << 39) + i as u64, contiguity));
            let end = Gva::new(at.value() + 0xfff_ffff);
            assert_eq!(
                t.look_up_anchor(end, 16, A),
                Some(anchor((1 << 39) + i as u64, contiguity))
            );
            assert_eq!(t.look_up_anchor(at, 16, Asid::new(1, 4)), None);
            // Pages of the same numbers are other entries.
            assert_eq!(t.look_up(at, A), None);
        }
    }

    #[test]
    fn anchors_and_pages_share_the_ways() {
        let mut t = tlb(2, 2);
        let page =
            Translation::new(Hpa::new(0x5000), PageSize::SIZE_4K, Permissions::ALL, true, false);
        t.fill_anchor(Gva::new(0), 3, A, anchor(1, 8));
        t.fill(Gva::new(0x5000), A, page);
        assert!(t.look_up_anchor(Gva::new(0x7000), 3, A).is_some());
        t.fill(Gva::new(0x6000), A, page);
        assert_eq!((t.look_up(Gva::new(0x5000), A), t.len()), (None, 2));
        t.fill(Gva::new(0x9000), A, page);
        assert_eq!(t.look_up_anchor(Gva::new(0x7000), 3, A), None);
    }

    #[test]
    fn removal_is_by_block_and_address_space() {
        let mut t = tlb(64, 64);
        for block in 0..8u64 {
            t.fill_anchor(Gva::new(block << 15), 3, A, anchor(block, 8));
        }
        let there = |t: &mut Tlb| {
            (0..8u64).filter(|b| t.look_up_anchor(Gva::new(b << 15), 3, A).is_some()).count()
        };
        t.remove_anchor(Gva::new(0x9000), 3, A);
        assert_eq!(there(&mut t), 7);
        t.remove_anchors(23, 33, 3, A);
        assert_eq!(there(&mut t), 4);
        t.remove_anchors(0, 1 << 20, 3, Asid::new(1, 9));
        assert_eq!(there(&mut t), 4);
        t.invalidate_asid(A);
        assert_eq!(there(&mut t), 0);
    }
}
