//! Frames as a dump lists them: host page tables that come with a trace.

use crate::physical::PhysicalMemory;
use crate::placement::{FirstFit, Outcome, Placed, Placement, Request};
use nestwalk_types::{Address, Gpa, Hpa, NumberSet, PageSize};

/// Order of a 2 MiB block.
const LARGE: u32 = 9;

/// Where the host has the pages of guest memory, page by page of 4 KiB.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostPages {
    /// Page number in the guest and frame number in the host, by page.
    pages: Vec<(u64, u64)>,
}

impl HostPages {
    /// Of pages of any size. Of two lines for a page the first counts.
    pub fn new(pages: impl IntoIterator<Item = (Gpa, Hpa, PageSize)>) -> Self {
        let mut all = Vec::new();
        for (gpa, hpa, size) in pages {
            let (page, frame) = (gpa.page_number(), hpa.page_number());
            all.extend((0..size.base_pages()).map(|i| (page + i, frame + i)));
        }
        all.sort_by_key(|p| p.0);
        all.dedup_by_key(|p| p.0);
        Self { pages: all }
    }
    /// Pages of 4 KiB.
    pub fn len(&self) -> usize {
        self.pages.len()
    }
    /// No page.
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }
    /// The first host-physical address behind all of them.
    pub fn end(&self) -> Hpa {
        Hpa::new(self.pages.iter().map(|p| p.1 + 1).max().unwrap_or(0) << 12)
    }
    /// The same with other names for the pages; those without one are left out.
    pub(crate) fn renamed(&self, name: impl Fn(Gpa) -> Option<u64>) -> Vec<(u64, u64)> {
        let named = self
            .pages
            .iter()
            .filter_map(|(page, frame)| Some((name(Gpa::new(page << 12))? >> 12, *frame)));
        let mut all: Vec<(u64, u64)> = named.collect();
        all.sort_unstable();
        all
    }
}

/// A page and its frame.
#[derive(Clone, Copy, Debug)]
struct Entry {
    page: u64,
    frame: u64,
    /// Set aside, and not handed out yet.
    held: bool,
}

/// Pages that are listed get their frames, which are set aside from the beginning; others what the buddy
/// allocator gives. A listed frame that is not there (the kernel has it, or two pages are to have it)
/// is replaced in the same way, and counted as placed elsewhere.
#[derive(Debug)]
pub(crate) struct Listed {
    entries: Vec<Entry>,
    /// First pages of aligned blocks of 2 MiB that were set aside as a whole.
    blocks: NumberSet,
}

impl Listed {
    /// Of page and frame numbers, by page.
    pub(crate) fn new(pages: Vec<(u64, u64)>) -> Self {
        let entry = |(page, frame)| Entry { page, frame, held: false };
        Self { entries: pages.into_iter().map(entry).collect(), blocks: NumberSet::new() }
    }

    /// Entries for `pages` pages from `page` on, if the list has all of them one behind the other on
    /// frames one behind the other.
    fn run(&mut self, page: u64, pages: u64) -> Option<&mut [Entry]> {
        let first = self.entries.partition_point(|e| e.page < page);
        let run = self.entries.get_mut(first..first + usize::try_from(pages).ok()?)?;
        let (start, frame) = run.first().map(|e| (e.page, e.frame))?;
        let whole = start == page
            && run.iter().zip(0..).all(|(e, i)| e.page == page + i && e.frame == frame + i);
        whole.then_some(run)
    }
}

impl<O: Address> Placement<O> for Listed {
    fn attach(&mut self, memory: &mut PhysicalMemory<O>) {
        let large = 1u64 << LARGE;
        let mut index = 0;
        while let Some(&Entry { page, frame, .. }) = self.entries.get(index) {
            let is_large = page % large == 0 && frame % large == 0;
            let at = O::new(frame << 12);
            let run = if is_large { self.run(page, large).map(|run| run.len()) } else { None };
            match run {
                Some(pages) if memory.alloc_at(at, LARGE) => {
                    self.entries[index..index + pages].iter_mut().for_each(|e| e.held = true);
                    self.blocks.insert(page);
                    index += pages;
                }
                _ => {
                    self.entries[index].held = memory.alloc_at(at, 0);
                    index += 1;
                }
            }
        }
    }

    fn offers(&self, size: PageSize) -> bool {
        size.order() <= LARGE
    }

    fn place(&mut self, memory: &mut PhysicalMemory<O>, request: &Request) -> Option<Placed<O>> {
        let (page, order) = (request.page >> 12, request.size.order());
        let listed = self.entries.partition_point(|e| e.page < page);
        let is_listed = self.entries.get(listed).is_some_and(|e| e.page == page);
        if !request.copy && (order == 0 || self.blocks.contains(page)) {
            let run = self.run(page, 1 << order);
            if let Some(run) = run.filter(|run| run.iter().all(|e| e.held)) {
                run.iter_mut().for_each(|e| e.held = false);
                return Some(Placed::new(O::new(run[0].frame << 12), Outcome::Target));
            }
        }
        // A large page would take the place of what is listed.
        let near = self.entries.get(listed).is_some_and(|e| e.page < page + (1 << order));
        if order > 0 && near {
            return None;
        }
        let outcome = if is_listed { Outcome::Elsewhere } else { Outcome::Ordinary };
        Some(Placed::new(memory.alloc(order)?, outcome))
    }

    fn forked(&self) -> Box<dyn Placement<O>> {
        Box::new(FirstFit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{HostConfig, HostMemory, KERNEL_BYTES, PagePolicy, PlacementKind};
    use nestwalk_tables::LONG4;

    fn host(pages: PagePolicy, list: &HostPages) -> HostMemory {
        let config = HostConfig {
            bytes: 1 << 30,
            mode: &LONG4,
            policy: pages,
            placement: PlacementKind::default(),
            fragmentation: Default::default(),
            seed: 1,
            kernel_bytes: KERNEL_BYTES,
            daemons: Default::default(),
        };
        let slots = [(Gpa::new(0), 64 << 20)];
        HostMemory::with_pages(&config, &slots, Some(list)).unwrap()
    }

    #[test]
    fn listed_pages_are_where_the_list_has_them() {
        // Backwards, with a large page among them.
        let small = (0..100u64)
            .map(|i| (Gpa::new(i << 12), Hpa::new(0x2000_0000 - (i << 12)), PageSize::SIZE_4K));
        let large = (Gpa::new(4 << 20), Hpa::new(0x3000_0000), PageSize::SIZE_2M);
        let list = HostPages::new(small.chain([large]));
        assert_eq!((list.len(), list.end()), (100 + 512, Hpa::new(0x3020_0000)));
        for (policy, size) in
            [(PagePolicy::Base, PageSize::SIZE_4K), (PagePolicy::Thp, PageSize::SIZE_2M)]
        {
            let mut host = host(policy, &list);
            for i in (0..100u64).rev() {
                let page = host.ensure(Gpa::new((i << 12) + 5)).unwrap();
                assert_eq!(page.frame, Hpa::new(0x2000_0000 - (i << 12)), "{i}");
                assert_eq!(page.size, PageSize::SIZE_4K, "a large page is not in the list");
            }
            let page = host.ensure(Gpa::new(4 << 20)).unwrap();
            assert_eq!((page.frame, page.size), (Hpa::new(0x3000_0000), size));
            // What is not listed is elsewhere.
            let page = host.ensure(Gpa::new(32 << 20)).unwrap();
            let listed = [0x1ff9_d000..0x2000_1000, 0x3000_0000..0x3020_0000u64];
            assert!(!listed.iter().any(|l| l.contains(&page.frame.value())), "{:?}", page.frame);
            let stats = host.placement_stats();
            assert_eq!(stats.placed_elsewhere, 0);
        }
    }

    #[test]
    fn frames_that_are_not_there_are_replaced_and_counted() {
        let page = |gpa: u64, hpa: u64| (Gpa::new(gpa), Hpa::new(hpa), PageSize::SIZE_4K);
        // Beyond memory, and the same for two pages.
        let list = [page(0x1000, 1 << 40), page(0x2000, 0x2000_0000), page(0x3000, 0x2000_0000)];
        let mut host = host(PagePolicy::Base, &HostPages::new(list));
        for gpa in [0x1000, 0x2000, 0x3000] {
            host.ensure(Gpa::new(gpa)).unwrap();
        }
        let stats = host.placement_stats();
        assert_eq!((stats.at_target, stats.placed_elsewhere), (1, 2));
    }
}
