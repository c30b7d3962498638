//! The primary region: a range of an address space behind which frames lie one after the other.
//!
//! What Basu et al. (ISCA 2013) call so is a contiguous virtual range for which the kernel reserves
//! contiguous physical memory. Here the frames are set aside when the region is made and handed out
//! when pages are touched, so that the page tables hold what the segment says, as in the prototypes
//! of the papers: whatever escapes the segment finds its page by paging.
//!
//! A segment's pages are all present and writable. So pages that are unmapped or write-protected
//! leave the region: at an end the region shrinks; a few in the middle *escape*; for more than that
//! the region keeps its larger part. It ends at a fork, whose pages are shared copy-on-write, and
//! at exec and exit. What has left the region is paged. There is no swapping and no merging of
//! equal pages in this model, so the region need not refuse them.

use crate::error::MmError;
use crate::physical::runs::Run;
use crate::space::{AddressSpace, Flush, Memory, Observer, Unobserved};
use nestwalk_tables::Level;
use nestwalk_types::{Address, NumberSet, PageSize, Protection};

/// Which mapping becomes a primary region.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PrimaryConfig {
    /// Smallest region. ISCA 2013 has regions of gigabytes, which the program asks for; here the
    /// largest mapping is taken as asked for if it has 2 MiB, the span of one leaf table: an
    /// assumption.
    pub least_bytes: u64,
    /// Pages in it that may escape: MICRO 2014 sizes its filter for 16.
    pub escapes: usize,
    /// Where no run of free frames is long enough, memory is exchanged: [`crate::Ballooned`].
    pub balloon: bool,
}

impl Default for PrimaryConfig {
    fn default() -> Self {
        Self { least_bytes: 2 << 20, escapes: 16, balloon: false }
    }
}

/// A range whose pages lie contiguously, but for those that escape.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Contiguous<I, O> {
    /// First address.
    pub start: I,
    /// Length in bytes.
    pub bytes: u64,
    /// Where the first address is.
    pub target: O,
    /// Numbers of the pages that are elsewhere, or nowhere, ascending.
    pub escaped: Vec<u64>,
}

/// What a region has for a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Taken {
    /// This frame.
    Frame(u64),
    /// Not all of it: smaller pages must do.
    Smaller,
    /// Nothing: the page is not in the region, or escapes.
    Elsewhere,
}

/// The frames of a region. Pages are numbered as the address space counts, without sign extension.
#[derive(Debug)]
pub(super) struct Region {
    first: u64,
    pages: u64,
    frame: u64,
    /// A bit for each page from `origin` on whose frame is set aside and not handed out.
    bits: Vec<u64>,
    origin: u64,
    held: u64,
    escaped: NumberSet,
}

impl Region {
    fn new(first: u64, run: Run, missing: &[u64]) -> Self {
        let mut region = Self {
            first,
            pages: run.frames,
            frame: run.frame,
            bits: vec![u64::MAX; run.frames.div_ceil(64) as usize],
            origin: first,
            held: run.frames,
            escaped: NumberSet::new(),
        };
        for frame in missing {
            let page = first + (frame - run.frame);
            region.release(page);
            region.escaped.insert(page);
        }
        region
    }

    const fn end(&self) -> u64 {
        self.first + self.pages
    }
    /// Frames that hold no page yet.
    pub const fn held(&self) -> u64 {
        self.held
    }
    fn holds(&self, page: u64) -> bool {
        let i = page - self.origin;
        self.bits.get((i >> 6) as usize).is_some_and(|w| w >> (i & 63) & 1 == 1)
    }
    /// The page's frame is set aside no more. Returns it if it was.
    fn release(&mut self, page: u64) -> Option<u64> {
        if !self.holds(page) {
            return None;
        }
        let i = page - self.origin;
        self.bits[(i >> 6) as usize] &= !(1 << (i & 63));
        self.held -= 1;
        Some(self.frame + (page - self.first))
    }

    /// Hands the frames of a page out.
    pub fn take(&mut self, page: u64, size: PageSize) -> Taken {
        let pages = size.base_pages();
        let (from, to) = (page.max(self.first), (page + pages).min(self.end()));
        if from >= to {
            return Taken::Elsewhere;
        }
        if pages == 1 {
            return self.release(page).map_or(Taken::Elsewhere, Taken::Frame);
        }
        let frame = self.frame.wrapping_add(page.wrapping_sub(self.first));
        let whole = to - from == pages && frame & (pages - 1) == 0;
        if !whole || !(page..page + pages).all(|p| self.holds(p)) {
            return Taken::Smaller;
        }
        (page..page + pages).for_each(|p| {
            self.release(p);
        });
        Taken::Frame(frame)
    }
}

impl<I: Address, O: Address> AddressSpace<I, O> {
    /// The primary region, if there is one.
    pub fn region(&self) -> Option<Contiguous<I, O>> {
        let region = self.region.as_ref()?;
        let number = |page: u64| self.typed(page << 12).page_number();
        Some(Contiguous {
            start: self.typed(region.first << 12),
            bytes: region.pages << 12,
            target: O::new(region.frame << 12),
            escaped: region.escaped.iter().map(number).collect(),
        })
    }

    /// Bytes of the primary region.
    pub fn region_bytes(&self) -> u64 {
        self.region.as_ref().map_or(0, |r| r.pages << 12)
    }

    /// Whether an address is in the region and does not escape.
    pub(super) fn in_region(&self, address: u64) -> bool {
        let page = address >> 12;
        self.region
            .as_ref()
            .is_some_and(|r| (r.first..r.end()).contains(&page) && !r.escaped.contains(page))
    }

    /// Whether a range has anything of the region.
    pub(super) fn meets_region(&self, start: u64, bytes: u64) -> bool {
        let (first, end) = (start >> 12, (start + bytes) >> 12);
        self.region.as_ref().is_some_and(|r| first < r.end() && r.first < end)
    }

    fn tell(&self, observer: &mut impl Observer<I, O>) {
        observer.segment(self.region().as_ref());
    }

    /// A range was mapped, or made writable: it becomes the primary region if it is larger than
    /// that, or makes the region grow if it follows it.
    ///
    /// A mapping for which memory is missing, not contiguity, gets no region: an eighth of what is
    /// free is left to page tables and other mappings.
    ///
    /// # Errors
    /// Self-ballooning fails: less memory is free than the region needs.
    pub(super) fn consider(
        &mut self,
        memory: &mut Memory<O>,
        start: u64,
        end: u64,
        protection: Protection,
        observer: &mut impl Observer<I, O>,
    ) -> Result<(), MmError> {
        let Some(config) = self.config.primary else { return Ok(()) };
        if !protection.write || start >= end {
            return Ok(());
        }
        let (first, pages) = (start >> 12, (end - start) >> 12);
        match &self.region {
            Some(region) if region.end() == first => {
                self.grow_region(memory, pages, observer);
                return Ok(());
            }
            Some(region) if region.pages >= pages => return Ok(()),
            _ => {}
        }
        let free = memory.physical.free_frames();
        if pages << 12 < config.least_bytes
            || (pages > free - free / 8 && !config.balloon)
            || self.first_present(memory, start, end).is_some()
        {
            return Ok(());
        }
        let holes = config.escapes as u64;
        let mut found = memory.physical.find_run(first, pages, holes);
        if config.balloon && found.is_none_or(|run| run.frames < pages) {
            let exchange = memory.balloon.exchange(&mut memory.physical, pages)?;
            observer.exchanged(&exchange);
            found = memory.physical.find_run(first, pages, holes);
        }
        let Some(run) = found else { return Ok(()) };
        let now = self.region.as_ref().map_or(0, |r| r.pages);
        if run.frames << 12 < config.least_bytes || run.frames <= now {
            return Ok(());
        }
        if self.region.is_some() {
            self.drop_region(memory, observer);
            observer.invalidate(Flush::All);
        }
        self.reserve(memory, first, run, observer);
        Ok(())
    }

    /// Sets a run aside for the pages from `first` on, none of which may be present. Frames of the
    /// run that are not free make their pages escape.
    pub(crate) fn reserve(
        &mut self,
        memory: &mut Memory<O>,
        first: u64,
        run: Run,
        observer: &mut impl Observer<I, O>,
    ) {
        // The address behind the region must exist.
        if self.typed(first << 12).value().checked_add(run.frames << 12).is_none() {
            return;
        }
        let missing = memory.physical.take_run(run);
        let region = Region::new(first, run, &missing);
        memory.counters.reserved_frames += region.held;
        self.region = Some(region);
        self.tell(observer);
    }

    /// The region grows at its end by at most `pages`, as far as the frames that follow are free
    /// and none of the pages is present. Returns by how many.
    pub(crate) fn grow_region(
        &mut self,
        memory: &mut Memory<O>,
        pages: u64,
        observer: &mut impl Observer<I, O>,
    ) -> u64 {
        let Some(region) = &self.region else { return 0 };
        let (end, next) = (region.end(), region.frame + region.pages);
        let present = self.first_present(memory, end << 12, (end + pages) << 12);
        let pages = present.map_or(pages, |at| (at >> 12) - end);
        let runs = memory.physical.free_runs();
        let after = runs.partition_point(|r| r.end <= next);
        let free = runs.get(after).filter(|r| r.start <= next).map_or(0, |r| r.end - next);
        let pages = pages.min(free);
        let Some(region) = &mut self.region else { return 0 };
        if pages > 0 {
            memory.physical.take_run(Run { frame: next, frames: pages });
            region.pages += pages;
            region.held += pages;
            let bits = region.end() - region.origin;
            region.bits.resize(bits.div_ceil(64) as usize, 0);
            for page in end..end + pages {
                let i = page - region.origin;
                region.bits[(i >> 6) as usize] |= 1 << (i & 63);
            }
            // Beyond its end the last word has held bits of no page.
            memory.counters.reserved_frames += pages;
            self.tell(observer);
        }
        pages
    }

    /// The region grows over `pages` that are present, and lie where the region would have them.
    pub(crate) fn adopt(&mut self, pages: u64) {
        if let Some(region) = &mut self.region {
            let end = region.end();
            region.pages += pages;
            let bits = region.end() - region.origin;
            region.bits.resize(bits.div_ceil(64) as usize, 0);
            for page in end..end + pages {
                let i = page - region.origin;
                region.bits[(i >> 6) as usize] &= !(1 << (i & 63));
            }
        }
    }

    /// Pages of a range of addresses leave the region: they are about to be unmapped or
    /// write-protected.
    pub(crate) fn leave_region(
        &mut self,
        memory: &mut Memory<O>,
        start: u64,
        end: u64,
        observer: &mut impl Observer<I, O>,
    ) {
        let escapes = self.escapes;
        let Some(region) = &mut self.region else { return };
        let (from, to) = ((start >> 12).max(region.first), (end >> 12).min(region.end()));
        if from >= to {
            return;
        }
        let new = to - from - region.escaped.range(from..to).count() as u64;
        let inside = from > region.first && to < region.end();
        if inside && region.escaped.len() as u64 + new <= escapes as u64 {
            (from..to).for_each(|page| {
                give_back(memory, region, page);
                region.escaped.insert(page);
            });
            if new == 0 {
                return;
            }
        } else if from - region.first >= region.end() - to {
            self.keep_region(memory, region_first(&self.region), from);
        } else {
            let end = region.end();
            self.keep_region(memory, to, end);
        }
        self.tell(observer);
        observer.invalidate(Flush::All);
    }

    /// The region shrinks to these pages.
    pub(crate) fn keep_region(&mut self, memory: &mut Memory<O>, first: u64, end: u64) {
        let Some(region) = &mut self.region else { return };
        let (old_first, old_end) = (region.first, region.end());
        let (first, end) = (first.max(old_first), end.min(old_end));
        (old_first..first.min(old_end)).chain(end.max(old_first)..old_end).for_each(|page| {
            give_back(memory, region, page);
        });
        if first >= end {
            self.region = None;
            return;
        }
        region.frame += first - old_first;
        (region.first, region.pages) = (first, end - first);
        region.escaped = region.escaped.range(first..end).collect();
        if region.escaped.len() as u64 == region.pages {
            self.region = None;
        }
    }

    /// There is no region any more; its pages stay where they are. An invalidation is owed unless
    /// one of everything follows anyway.
    pub(crate) fn drop_region(
        &mut self,
        memory: &mut Memory<O>,
        observer: &mut impl Observer<I, O>,
    ) {
        if self.region.is_some() {
            self.keep_region(memory, 0, 0);
            self.tell(observer);
        }
    }

    /// Lets more or fewer pages escape from the region from now on.
    pub(crate) const fn set_escapes(&mut self, escapes: usize) {
        self.escapes = escapes;
    }

    /// The pages of a range are not present any more; the mapping stays. What was in them is about
    /// to be found elsewhere, in the region. Returns how many there were, in 4 KiB.
    ///
    /// # Errors
    /// No frame for a table where a large page must be split.
    pub(crate) fn evict(
        &mut self,
        memory: &mut Memory<O>,
        start: u64,
        end: u64,
    ) -> Result<u64, MmError> {
        let before = memory.counters.data_frames;
        self.split_at(memory, start, &mut Unobserved)?;
        self.split_at(memory, end, &mut Unobserved)?;
        self.clear_leaves(memory, start, end, &mut Unobserved);
        Ok(before - memory.counters.data_frames)
    }

    /// Touches every page of a range, with pages as large as the region's frames allow.
    ///
    /// # Errors
    /// Memory is exhausted.
    pub(crate) fn fill_region(
        &mut self,
        memory: &mut Memory<O>,
        start: I,
        bytes: u64,
    ) -> Result<(), MmError> {
        let mode = self.config.mode;
        let largest = if mode.leaf_level(PageSize::SIZE_1G).is_some() {
            PageSize::SIZE_1G
        } else {
            mode.span(2)
        };
        let large = crate::PagePolicy::Explicit(largest).sizes(mode);
        let usual = std::mem::replace(&mut self.sizes, large);
        let filled = self.populate(memory, start, bytes, &mut Unobserved);
        self.sizes = usual;
        filled.map(|_| ())
    }

    /// The first address of a range, in whole pages, that has a leaf.
    pub(crate) fn first_present(&self, memory: &Memory<O>, start: u64, end: u64) -> Option<u64> {
        self.present_below(memory, self.root, self.config.mode.levels, start, end)
    }

    fn present_below(
        &self,
        memory: &Memory<O>,
        table: O,
        level: Level,
        start: u64,
        end: u64,
    ) -> Option<u64> {
        let (mode, mut address) = (self.config.mode, start);
        while address < end {
            let next = ((address | mode.span(level).mask()) + 1).min(end);
            let entry = self.read(memory, mode.entry_at(table, address, level));
            if entry.is_present() {
                if self.is_leaf(entry, level) {
                    return Some(address);
                }
                let below = self.present_below(memory, entry.target(), level - 1, address, next);
                if below.is_some() {
                    return below;
                }
            }
            address = next;
        }
        None
    }
}

fn region_first(region: &Option<Region>) -> u64 {
    region.as_ref().map_or(0, |r| r.first)
}

/// Frees the frame of a page if it is set aside.
fn give_back<O: Address>(memory: &mut Memory<O>, region: &mut Region, page: u64) {
    if let Some(frame) = region.release(page) {
        memory.physical.free(O::new(frame << 12), 0);
        memory.counters.reserved_frames -= 1;
    }
}
