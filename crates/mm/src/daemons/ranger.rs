//! Translation Ranger: moves the pages of each mapping to where its anchor has them, one behind the
//! other, and changes them with pages that are there.

use crate::daemons::anchors::{Anchors, Place};
use crate::daemons::owners::Owners;
use crate::daemons::{DaemonStats, Home, RangerConfig};
use crate::space::{Block, Observer, TakenOut, Vma};
use nestwalk_types::{Address, OsWork, PageSize};
use std::ops::Range;

/// The daemon, the anchors of all mappings, and where it is in its round.
#[derive(Debug)]
pub(super) struct Ranger {
    pub config: RangerConfig,
    anchors: Anchors,
    /// Address space and address to go on at.
    cursor: (u64, u64),
}

/// A page of an address space.
#[derive(Clone, Copy, Debug)]
struct Page {
    id: u64,
    at: u64,
    size: PageSize,
    frame: u64,
}

/// What became of a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Moved {
    /// It is in its place.
    Placed,
    /// It stays where it is.
    Stuck,
    /// It is large, and a small one is in its place.
    TooLarge,
}

/// One run.
struct Pass<'a, H> {
    home: &'a mut H,
    anchors: &'a mut Anchors,
    owners: Owners,
    stats: &'a mut DaemonStats,
    split: bool,
    /// Pages looked at.
    seen: u64,
}

impl Ranger {
    pub fn new(config: RangerConfig) -> Self {
        Self { config, anchors: Anchors::default(), cursor: (0, 0) }
    }

    /// One run: mapping by mapping, from where the last one ended.
    pub fn run<I: Address, O: Address>(
        &mut self,
        home: &mut impl Home<I, O>,
        stats: &mut DaemonStats,
    ) {
        let ids = home.spaces();
        if ids.is_empty() {
            return;
        }
        self.anchors.keep_spaces(&ids);
        let budget = if self.config.pages == 0 { u64::MAX } else { self.config.pages };
        let (id, mut from) = self.cursor;
        let first = ids.partition_point(|i| *i < id) % ids.len();
        if ids[first] != id {
            from = 0;
        }
        let anchors = &mut self.anchors;
        let split = self.config.split;
        let mut pass = Pass { home, anchors, owners: Owners::default(), stats, split, seen: 0 };
        self.cursor = (ids[first], 0);
        for i in 0..ids.len() {
            let id = ids[(first + i) % ids.len()];
            if let Some(at) = pass.space(id, std::mem::take(&mut from), budget) {
                self.cursor = (id, at);
                break;
            }
        }
        let seen = pass.seen;
        pass.home.work(OsWork::PageScanned, seen);
        pass.home.memory_mut().physical.settle_others();
    }
}

impl<H> Pass<'_, H> {
    /// The mappings of an address space from an address on. Returns where to go on if the budget is
    /// spent.
    fn space<I: Address, O: Address>(&mut self, id: u64, from: u64, budget: u64) -> Option<u64>
    where
        H: Home<I, O>,
    {
        let space = self.home.look(id)?;
        let size = space.config().mode.span(2);
        let mappings: Vec<Vma> = space.vmas().iter().collect();
        self.anchors.keep_mappings(id, &mappings);
        for vma in mappings.iter().filter(|v| v.end > from) {
            let mut at = vma.start.max(from);
            while at < vma.end {
                if self.seen >= budget {
                    return Some(at);
                }
                at = self.block(id, vma, at, size);
            }
        }
        None
    }

    /// A part of a mapping, up to the next border of a large page. Returns where the next part
    /// begins.
    fn block<I: Address, O: Address>(&mut self, id: u64, vma: &Vma, at: u64, size: PageSize) -> u64
    where
        H: Home<I, O>,
    {
        let Some(space) = self.home.look(id) else { return vma.end };
        let end = ((at | size.mask()) + 1).min(vma.end);
        match space.block(self.home.memory(), at) {
            Block::Nothing(nothing) => return ((at | nothing.mask()) + 1).min(vma.end),
            Block::Large(entry, large) => {
                let first = at & !large.mask();
                let frame = entry.frame::<O>(large).page_number();
                self.see(large.base_pages());
                let page = Page { id, at: first, size: large, frame };
                if self.place(vma, page) == Moved::TooLarge {
                    if self.split && large == size && self.split_page(page) {
                        return at;
                    }
                    self.stats.stuck += large.base_pages();
                }
                return first + large.bytes();
            }
            Block::Table(table) => {
                let (mut at, mut placed) = (at, at & size.mask() == 0 && end & size.mask() == 0);
                let first = at;
                while at < end {
                    let entry = self
                        .home
                        .look(id)
                        .map(|s| s.small_page(self.home.memory(), table, at))
                        .filter(|e| e.is_present());
                    self.see(1);
                    placed &= entry.is_some_and(|e| {
                        let frame = e.frame::<O>(PageSize::SIZE_4K).page_number();
                        let page = Page { id, at, size: PageSize::SIZE_4K, frame };
                        self.place(vma, page) == Moved::Placed
                    });
                    at += 4096;
                }
                if placed {
                    self.join(id, first, size);
                }
            }
        }
        end
    }

    const fn see(&mut self, pages: u64) {
        self.seen += pages;
        self.stats.scanned += pages;
    }

    fn unmapped<I: Address, O: Address>(&mut self, pages: u64)
    where
        H: Home<I, O>,
    {
        self.stats.unmapped += pages;
        self.home.work(OsWork::PageMigrated, pages);
    }

    /// Brings a page to its place.
    fn place<I: Address, O: Address>(&mut self, vma: &Vma, page: Page) -> Moved
    where
        H: Home<I, O>,
    {
        let moved = self.try_to_place(vma, page);
        if moved == Moved::Stuck {
            self.stats.stuck += page.size.base_pages();
        }
        moved
    }

    fn try_to_place<I: Address, O: Address>(&mut self, vma: &Vma, page: Page) -> Moved
    where
        H: Home<I, O>,
    {
        let Some(space) = self.home.look(page.id) else { return Moved::Stuck };
        let (memory, mode) = (self.home.memory(), space.config().mode);
        let movable = space.can_move(memory, page.at, O::new(page.frame << 12), page.size);
        let zone: Range<u64> = memory.physical.zone_of(page.frame);
        let large = mode.span(2).order();
        let Place::At(target) = self.anchors.of(page.id, vma, page.at, &zone, large) else {
            return Moved::Stuck;
        };
        if target == page.frame {
            return Moved::Placed;
        }
        if !movable || target & (page.size.base_pages() - 1) != 0 {
            return Moved::Stuck;
        }
        let at = O::new(target << 12);
        if self.home.memory_mut().physical.take_drained(at, page.size.order()) {
            return self.migrate(page, target);
        }
        if self.home.memory().physical.is_free(at) {
            return Moved::Stuck;
        }
        self.exchange(page, target)
    }

    /// The page goes to a frame that was free, and that is taken now.
    fn migrate<I: Address, O: Address>(&mut self, page: Page, target: u64) -> Moved
    where
        H: Home<I, O>,
    {
        let (to, size) = (O::new(target << 12), page.size);
        let moved = self.home.with(page.id, |space, memory, watch| {
            let Some(taken) = space.take_out(memory, page.at, size, watch) else {
                memory.physical.free(to, size.order());
                return false;
            };
            memory.counters.add_data(size);
            watch.page_cleared(to, size);
            watch.page_copied(taken.frame(), to, size);
            space.put_in(memory, &taken, to, watch);
            memory.release(taken.frame(), size);
            true
        });
        if moved != Some(true) {
            return Moved::Stuck;
        }
        self.stats.migrated += size.base_pages();
        self.stats.copied += size.base_pages();
        self.unmapped(1);
        self.home.changed(page.id, page.at, size.bytes());
        self.owners.moved(target, page.id, page.at);
        Moved::Placed
    }

    /// The page that is in its place is a process's, or one of others that can be moved.
    fn exchange<I: Address, O: Address>(&mut self, page: Page, target: u64) -> Moved
    where
        H: Home<I, O>,
    {
        if self.home.memory().physical.is_others(target) {
            return match page.size {
                PageSize::SIZE_4K => self.exchange_with_others(page, target),
                _ => Moved::TooLarge,
            };
        }
        // A large page of another may reach over the target.
        let order = |size: PageSize| size.order();
        let Some(other) = self.owner(target) else { return Moved::Stuck };
        let place = self.anchors.find(other.id, other.at);
        if place == Some(Place::At(other.frame)) {
            return Moved::Stuck;
        }
        if order(other.size) > order(page.size) {
            let split = self.split && self.split_page(other);
            return if split { self.exchange(page, target) } else { Moved::Stuck };
        }
        if order(other.size) < order(page.size) {
            return Moved::TooLarge;
        }
        self.swap(page, other)
    }

    /// Whose page a frame belongs to, if it can be moved.
    fn owner<I: Address, O: Address>(&mut self, target: u64) -> Option<Page>
    where
        H: Home<I, O>,
    {
        for order in [0, 9, 10] {
            let frame = target >> order << order;
            let Some((id, at)) = self.owners.find(self.home, frame) else { continue };
            let Some(space) = self.home.look(id) else { continue };
            let memory = self.home.memory();
            let size = match space.block(memory, at) {
                Block::Table(table) => {
                    let entry = space.small_page(memory, table, at);
                    let here = entry.frame::<O>(PageSize::SIZE_4K).page_number() == frame;
                    if !entry.is_present() || !here || frame != target {
                        continue;
                    }
                    PageSize::SIZE_4K
                }
                Block::Large(entry, size) => {
                    let first = entry.frame::<O>(size).page_number();
                    if first != frame || target - first >= size.base_pages() {
                        continue;
                    }
                    size
                }
                Block::Nothing(_) => continue,
            };
            let movable = space.can_move(memory, at, O::new(frame << 12), size);
            return movable.then_some(Page { id, at, size, frame });
        }
        None
    }

    /// Two pages change places: both are out of their frames while their contents are exchanged.
    fn swap<I: Address, O: Address>(&mut self, page: Page, other: Page) -> Moved
    where
        H: Home<I, O>,
    {
        let Some(one) = self.take(page) else { return Moved::Stuck };
        let two = self.take(other);
        let (here, there) = (O::new(page.frame << 12), O::new(other.frame << 12));
        match &two {
            Some(two) => {
                self.put(page, &one, there, Some(here));
                self.put(other, two, here, Some(there));
            }
            None => self.put(page, &one, here, None),
        }
        if two.is_none() {
            return Moved::Stuck;
        }
        for (page, frame) in [(page, other.frame), (other, page.frame)] {
            self.stats.exchanged += page.size.base_pages();
            self.stats.copied += page.size.base_pages();
            self.home.changed(page.id, page.at, page.size.bytes());
            self.owners.moved(frame, page.id, page.at);
        }
        self.unmapped(2);
        Moved::Placed
    }

    fn take<I: Address, O: Address>(&mut self, page: Page) -> Option<TakenOut<O>>
    where
        H: Home<I, O>,
    {
        self.home.with(page.id, |s, memory, watch| s.take_out(memory, page.at, page.size, watch))?
    }

    fn put<I: Address, O: Address>(
        &mut self,
        page: Page,
        taken: &TakenOut<O>,
        frame: O,
        copied_from: Option<O>,
    ) where
        H: Home<I, O>,
    {
        self.home.with(page.id, |space, memory, watch| {
            if let Some(from) = copied_from {
                watch.page_copied(from, frame, page.size);
            }
            space.put_in(memory, taken, frame, watch);
        });
    }

    /// The page in its place is none of these address spaces': it gets the frame of ours.
    fn exchange_with_others<I: Address, O: Address>(&mut self, page: Page, target: u64) -> Moved
    where
        H: Home<I, O>,
    {
        let size = page.size;
        let (here, there) = (O::new(page.frame << 12), O::new(target << 12));
        let moved = self.home.with(page.id, |space, memory, watch| {
            let Some(taken) = space.take_out(memory, page.at, size, watch) else { return false };
            // The frame is new to the process. The others' page is copied, too.
            watch.page_cleared(there, size);
            watch.page_copied(here, there, size);
            space.put_in(memory, &taken, there, watch);
            memory.physical.exchange_others(target, page.frame);
            true
        });
        if moved != Some(true) {
            return Moved::Stuck;
        }
        self.stats.exchanged += 2;
        self.stats.copied += 2;
        self.unmapped(2);
        self.home.work(OsWork::PageCopied, 1);
        self.home.changed(page.id, page.at, size.bytes());
        self.owners.moved(target, page.id, page.at);
        Moved::Placed
    }

    fn split_page<I: Address, O: Address>(&mut self, page: Page) -> bool
    where
        H: Home<I, O>,
    {
        let split =
            self.home.with(page.id, |s, memory, watch| s.split_page(memory, page.at, watch));
        if split == Some(true) {
            self.stats.split += 1;
            self.home.changed(page.id, page.at, page.size.bytes());
            self.owners.split(page.frame, page.id, page.at, page.size.base_pages());
        }
        split == Some(true)
    }

    /// All pages of a block are in their places: they become a large one, if the policy has those
    /// (`promote_huge_page_address`, `promote_huge_pmd_address`).
    fn join<I: Address, O: Address>(&mut self, id: u64, first: u64, size: PageSize)
    where
        H: Home<I, O>,
    {
        let joined = self.home.with(id, |space, memory, watch| {
            let config = space.config();
            let allowed = config.policy.largest(config.mode) >= size;
            allowed && space.promote(memory, first, size, watch).is_some()
        });
        if joined == Some(true) {
            self.stats.joined += 1;
            self.home.changed(id, first, size.bytes());
        }
    }
}
