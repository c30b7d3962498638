//! Eager paging: all memory of a mapping when it is mapped, in as few blocks as the allocator has
//! (Karakostas et al., "Redundant Memory Mappings for Fast Access to Large Memories", ISCA 2015).
//!
//! While pages are left, the largest free block is taken that is not larger than what is left.
//! Where the page-size policy has large pages, smaller blocks come first until the address is
//! aligned to one, so that blocks can be mapped by them: chosen here. The paper pages on demand
//! where memory is too fragmented, by a threshold that is not known; here never. What does not
//! fit into free memory, less a share for page tables, is paged on demand, and so are copies
//! after a fork.

use crate::physical::PhysicalMemory;
use crate::placement::{Outcome, Placed, Placement, Request};
use nestwalk_types::{Address, PageSize};
use std::ops::Range;

/// Free memory that a mapping leaves: one page in so many of the mapping, twice what its 4 KiB leaf
/// tables need, and [`LEAVE_PAGES`].
const LEAVE_SHARE: u64 = 256;
/// See [`LEAVE_SHARE`]: tables of upper levels.
const LEAVE_PAGES: u64 = 32;

/// All memory of a mapping at once.
#[derive(Clone, Debug)]
pub struct Eager {
    largest: PageSize,
    /// Blocks of the mapping that is being filled: pages and the first frame, ascending.
    blocks: Vec<(Range<u64>, u64)>,
    /// Pages that were handed out of these.
    used: Vec<Range<u64>>,
}

impl Eager {
    /// Pages are up to so large.
    pub const fn new(largest: PageSize) -> Self {
        Self { largest, blocks: Vec::new(), used: Vec::new() }
    }

    /// The block that holds a page.
    fn block(&self, page: u64) -> Option<&(Range<u64>, u64)> {
        let after = self.blocks.partition_point(|b| b.0.start <= page);
        self.blocks.get(after.checked_sub(1)?).filter(|b| b.0.contains(&page))
    }
}

impl<O: Address> Placement<O> for Eager {
    fn mapped(&mut self, memory: &mut PhysicalMemory<O>, start: u64, end: u64) {
        let (mut page, end) = (start >> 12, end >> 12);
        let leave = (end - page) / LEAVE_SHARE + LEAVE_PAGES;
        let large = self.largest.order();
        while page < end {
            let room = memory.free_frames().saturating_sub(leave);
            let pages = (end - page).min(room);
            if pages == 0 {
                break;
            }
            let aligned = page.trailing_zeros();
            let most = pages.ilog2().min(crate::MAX_ORDER);
            let most = if aligned < large { most.min(aligned) } else { most };
            let block = (0..=most).rev().find_map(|o| memory.alloc(o).map(|f| (o, f)));
            let Some((order, frame)) = block else { break };
            self.blocks.push((page..page + (1 << order), frame.page_number()));
            page += 1 << order;
        }
    }
    fn fills(&self) -> bool {
        true
    }
    fn has_frame(&self, page: u64) -> bool {
        self.block(page >> 12).is_some()
    }
    fn place(&mut self, memory: &mut PhysicalMemory<O>, request: &Request) -> Option<Placed<O>> {
        let (first, pages) = (request.page >> 12, request.size.base_pages());
        if let Some((block, frame)) = self.block(first).filter(|_| !request.copy) {
            let frame = frame + (first - block.start);
            // A page that does not fit must do with smaller ones.
            if first + pages > block.end || frame & (pages - 1) != 0 {
                return None;
            }
            match self.used.last_mut() {
                Some(last) if last.end == first => last.end += pages,
                _ => self.used.push(first..first + pages),
            }
            return Some(Placed::new(O::new(frame << 12), Outcome::Target));
        }
        let outcome = if self.blocks.is_empty() { Outcome::Ordinary } else { Outcome::Elsewhere };
        memory.alloc(request.size.order()).map(|f| Placed::new(f, outcome))
    }
    fn filled(&mut self, memory: &mut PhysicalMemory<O>) {
        // Pages are filled in ascending order; what was not handed out is free again.
        let mut used = std::mem::take(&mut self.used).into_iter().peekable();
        for (pages, frame) in std::mem::take(&mut self.blocks) {
            let mut at = pages.start;
            while at < pages.end {
                while used.peek().is_some_and(|u| u.end <= at) {
                    used.next();
                }
                let next = used.peek().map_or(pages.end, |u| u.start.clamp(at, pages.end));
                let rows = frame + (at - pages.start)..frame + (next - pages.start);
                memory.free_rows(vec![rows]);
                at = used.peek().map_or(pages.end, |u| u.end.min(pages.end)).max(next);
            }
        }
    }
    fn forked(&self) -> Box<dyn Placement<O>> {
        Box::new(Self::new(self.largest))
    }
}
