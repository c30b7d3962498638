//! The range TLB of Redundant Memory Mappings (Karakostas et al., ISCA 2015): translations of ranges
//! of any length, fully associative.

use crate::tlb::Asid;
use nestwalk_tables::Permissions;
use nestwalk_types::PageSize;

/// A range translation: pages one after the other at frames one after the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Range {
    /// Number of the first page (BASE).
    pub base: u64,
    /// Number after that of the last page (LIMIT).
    pub limit: u64,
    /// Page number less frame number, modulo 2^64 (OFFSET).
    pub offset: u64,
    /// What may be done with the pages.
    pub permissions: Permissions,
    /// Stores need not set a dirty bit any more.
    pub dirty: bool,
    /// The page in whose walk the range was found: what the first level gets, where one of that size
    /// lies in the range, aligned on both sides.
    pub page: PageSize,
}

/// The largest of a page size and 4 KiB of which a page around `page` lies in `first..end`, aligned on
/// both sides; `offset` is page number less frame number.
#[inline]
pub const fn fitting(size: PageSize, page: u64, (first, end): (u64, u64), offset: u64) -> PageSize {
    let pages = size.base_pages();
    let start = page & !(pages - 1);
    let aligned = offset & (pages - 1) == 0;
    if aligned && start >= first && start + pages <= end { size } else { PageSize::SIZE_4K }
}

impl Range {
    /// The frame of a page of the range.
    #[inline]
    pub const fn frame(&self, page: u64) -> u64 {
        page.wrapping_sub(self.offset)
    }
    /// Size of the entry that the first level gets for a page.
    #[inline]
    pub const fn entry_size(&self, page: u64) -> PageSize {
        fitting(self.page, page, (self.base, self.limit), self.offset)
    }
    #[inline]
    const fn covers(&self, page: u64) -> bool {
        page >= self.base && page < self.limit
    }
    const fn meets(&self, first: u64, end: u64) -> bool {
        self.base < end && first < self.limit
    }
}

/// The range TLB of one core. Replacement is true LRU.
#[derive(Clone, Debug)]
pub struct RangeTlb {
    /// Most recently used first.
    entries: Vec<(Asid, Range)>,
    size: usize,
}

impl RangeTlb {
    /// An empty one with room for `size` ranges.
    pub fn new(size: usize) -> Self {
        Self { entries: Vec::with_capacity(size), size }
    }

    /// The range that covers a page; it becomes the most recently used.
    #[inline]
    pub fn look_up(&mut self, page: u64, asid: Asid) -> Option<Range> {
        let found = self.entries.iter().position(|(a, r)| *a == asid && r.covers(page))?;
        self.entries[..=found].rotate_right(1);
        Some(self.entries[0].1)
    }

    /// Fills a range in place of all that meet it.
    pub fn fill(&mut self, asid: Asid, range: Range) {
        self.remove(asid, range.base, range.limit);
        self.entries.truncate(self.size.saturating_sub(1));
        self.entries.insert(0, (asid, range));
    }

    /// Removes the ranges that meet the pages from `first` to before `end`.
    #[inline]
    pub fn remove(&mut self, asid: Asid, first: u64, end: u64) {
        self.entries.retain(|(a, r)| *a != asid || !r.meets(first, end));
    }

    /// Removes the ranges of an address space.
    pub fn remove_asid(&mut self, asid: Asid) {
        self.entries.retain(|(a, _)| *a != asid);
    }

    /// Removes everything.
    pub fn flush(&mut self) {
        self.entries.clear();
    }

    /// Ranges in it: what a look-up compares with.
    #[inline]
    pub const fn len(&self) -> usize {
        self.entries.len()
    }
    /// No ranges in it.
    pub const fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Asid = Asid::new(1, 1);
    const B: Asid = Asid::new(1, 2);

    fn range(base: u64, pages: u64) -> Range {
        let (limit, offset) = (base + pages, base.wrapping_sub(7 * base));
        let (permissions, page) = (Permissions::ALL, PageSize::SIZE_4K);
        Range { base, limit, offset, permissions, dirty: true, page }
    }

    #[test]
    fn large_entries_lie_in_the_range_and_are_aligned_on_both_sides() {
        let size =
            |page, range, offset: u64| fitting(PageSize::SIZE_2M, page, range, offset).base_pages();
        assert_eq!(size(600, (512, 1024), 0), 512);
        assert_eq!(size(600, (513, 1024), 0), 1);
        assert_eq!(size(600, (512, 1023), 0), 1);
        assert_eq!(size(600, (0, 4096), 512), 512);
        assert_eq!(size(600, (0, 4096), 8), 1);
        assert_eq!(size(600, (0, 4096), 512u64.wrapping_neg()), 512);
    }

    #[test]
    fn ranges_cover_their_pages_of_their_address_space() {
        let mut t = RangeTlb::new(4);
        t.fill(A, range(100, 50));
        let frame = |t: &mut RangeTlb, page, asid| t.look_up(page, asid).map(|r| r.frame(page));
        let found = [99, 100, 149, 150].map(|p| frame(&mut t, p, A));
        assert_eq!(found, [None, Some(700), Some(749), None]);
        assert_eq!(frame(&mut t, 100, B), None);
    }

    #[test]
    fn the_least_recently_used_gives_way() {
        let mut t = RangeTlb::new(2);
        t.fill(A, range(10, 5));
        t.fill(A, range(20, 5));
        assert!(t.look_up(10, A).is_some());
        t.fill(A, range(30, 5));
        assert_eq!([10, 20, 30].map(|p| t.look_up(p, A).is_some()), [true, false, true]);
        assert_eq!(t.len(), 2);
    }

    #[test]
    fn a_fill_replaces_what_it_meets_and_removal_takes_whole_ranges() {
        let mut t = RangeTlb::new(4);
        t.fill(A, range(10, 5));
        t.fill(A, range(20, 5));
        t.fill(B, range(12, 5));
        t.fill(A, range(14, 7));
        assert_eq!([10, 14, 24].map(|p| t.look_up(p, A).is_some()), [false, true, false]);
        t.remove(A, 20, 21);
        assert_eq!((t.look_up(14, A), t.look_up(12, B).is_some()), (None, true));
        t.remove_asid(B);
        assert!(t.is_empty());
    }
}
