//! Daemons of a kernel that move pages while programs run: Linux's khugepaged and Translation
//! Ranger.
//!
//! The same daemons serve a guest and a host. What they work on is a [`Home`]: address spaces, the
//! memory behind them, and whoever must learn of changes. Time is instructions; a daemon sleeps for
//! its interval, does a bounded amount of work at once, and sleeps again.

mod anchors;
mod khugepaged;
mod owners;
mod ranger;

use crate::balloon::Exchange;
use crate::placement::{PagePolicy, PlacementKind};
use crate::space::{AddressSpace, Contiguous, Flush, Memory, Observer};
use khugepaged::Khugepaged;
use nestwalk_tables::{Entry, Level};
use nestwalk_types::{Address, OsWork, PageSize};
use ranger::Ranger;

/// Linux's khugepaged (`mm/khugepaged.c`; `Documentation/admin-guide/mm/transhuge.rst`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KhugepagedConfig {
    /// Instructions from a scan to the next; `u64::MAX` for never. Linux: `scan_sleep_millisecs`.
    pub interval: u64,
    /// Instructions to wait after no block was free. Linux: `alloc_sleep_millisecs`.
    pub alloc_interval: u64,
    /// Pages of 4 KiB that a scan goes through (`pages_to_scan`).
    pub pages_to_scan: u64,
    /// Of the 512 pages of a block, so many may be missing (`max_ptes_none`).
    pub max_ptes_none: u64,
    /// So many may be shared with other processes (`max_ptes_shared`).
    pub max_ptes_shared: u64,
}

impl KhugepagedConfig {
    /// Linux's numbers, but for time, which the kernel has in milliseconds: never.
    pub const LINUX: Self = Self {
        interval: u64::MAX,
        alloc_interval: u64::MAX,
        pages_to_scan: 8 * 512,
        max_ptes_none: 511,
        max_ptes_shared: 256,
    };
    /// Milliseconds from a scan to the next in Linux.
    pub const INTERVAL_MS: f64 = 10_000.0;
    /// Milliseconds that Linux waits after no block was free.
    pub const ALLOC_INTERVAL_MS: f64 = 60_000.0;
}

/// Translation Ranger (Yan, Lustig, Nellans, Bhattacharjee, ISCA 2019; `mm/mem_defrag.c` of the
/// patches "Generating physically contiguous memory after page allocation", linux-mm, February
/// 2019).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RangerConfig {
    /// Instructions from a run to the next; `u64::MAX` for never.
    pub interval: u64,
    /// Pages of 4 KiB that a run looks at; 0 for all of all processes, as the patches do.
    pub pages: u64,
    /// A large page is split if what it should change places with is a small one, or the other way
    /// round (patch 5 of the series).
    pub split: bool,
}

impl RangerConfig {
    /// As released, but for time: never.
    pub const RELEASED: Self = Self { interval: u64::MAX, pages: 0, split: true };
    /// Milliseconds from a run to the next in the scripts of the evaluation of CA paging (ISCA
    /// 2020) that run Translation Ranger (`kmem_defragd/scan_sleep_millisecs`).
    pub const INTERVAL_MS: f64 = 3_000.0;
}

/// When daemons run, and how much they do. Whether there is one, page sizes and placement say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DaemonConfig {
    /// Of page sizes [`PagePolicy::Khugepaged`].
    pub khugepaged: KhugepagedConfig,
    /// Of placement [`PlacementKind::Ranger`].
    pub ranger: RangerConfig,
}

impl Default for DaemonConfig {
    /// Published numbers, but no time at which anything is done.
    fn default() -> Self {
        Self { khugepaged: KhugepagedConfig::LINUX, ranger: RangerConfig::RELEASED }
    }
}

/// What daemons have done. Pages are of 4 KiB; a large one counts as 512.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DaemonStats {
    /// Times that a daemon woke up and worked.
    pub runs: u64,
    /// Pages looked at.
    pub scanned: u64,
    /// Pages moved to a free frame.
    pub migrated: u64,
    /// Pages moved to where another was, which came to where they were.
    pub exchanged: u64,
    /// Pages, of any size, that were unmapped to be mapped elsewhere.
    pub unmapped: u64,
    /// Pages that were not where they should be and could not be moved there, at each look anew.
    pub stuck: u64,
    /// Large pages made of small ones in another place (khugepaged).
    pub collapsed: u64,
    /// Of these, pages that were not there before: memory that is used for nothing yet.
    pub bloat: u64,
    /// Large pages made of small ones where they lay, once all were in place (Translation Ranger).
    pub joined: u64,
    /// Large pages that were split to be moved.
    pub split: u64,
    /// Pages copied, for whatever reason; an exchange copies two.
    pub copied: u64,
}

/// Whoever learns of changes of an address space, whatever it is.
pub(crate) struct Watch<'a, I, O>(pub &'a mut dyn Observer<I, O>);

impl<I: Address, O: Address> Observer<I, O> for Watch<'_, I, O> {
    fn table_new(&mut self, table: O, level: Level) {
        self.0.table_new(table, level);
    }
    fn stored(&mut self, at: O, entry: Entry) {
        self.0.stored(at, entry);
    }
    fn page_cleared(&mut self, frame: O, size: PageSize) {
        self.0.page_cleared(frame, size);
    }
    fn page_copied(&mut self, from: O, to: O, size: PageSize) {
        self.0.page_copied(from, to, size);
    }
    fn invalidate(&mut self, flush: Flush<I>) {
        self.0.invalidate(flush);
    }
    fn written_out(&mut self, frame: O) {
        self.0.written_out(frame);
    }
    fn exchanged(&mut self, exchange: &Exchange<O>) {
        self.0.exchanged(exchange);
    }
    fn segment(&mut self, region: Option<&Contiguous<I, O>>) {
        self.0.segment(region);
    }
}

/// What daemons work on.
pub(crate) trait Home<I: Address, O: Address> {
    /// Numbers of the address spaces, ascending; one that has ended does not come again.
    fn spaces(&self) -> Vec<u64>;
    /// An address space.
    fn look(&self, id: u64) -> Option<&AddressSpace<I, O>>;
    /// The memory behind them.
    fn memory(&self) -> &Memory<O>;
    /// The same, to change what no address space has.
    fn memory_mut(&mut self) -> &mut Memory<O>;
    /// Changes an address space.
    fn with<R>(
        &mut self,
        id: u64,
        f: impl FnOnce(&mut AddressSpace<I, O>, &mut Memory<O>, &mut Watch<'_, I, O>) -> R,
    ) -> Option<R>;
    /// Something was done that takes time.
    fn work(&mut self, work: OsWork, count: u64);
    /// What is mapped in a range (without sign extension) lies elsewhere now, or is mapped
    /// otherwise.
    fn changed(&mut self, id: u64, start: u64, bytes: u64);
}

/// The daemons of one kernel; none by default.
#[derive(Debug)]
pub(crate) struct Daemons {
    khugepaged: Option<Khugepaged>,
    ranger: Option<Ranger>,
    /// Instructions at which each is to run.
    khugepaged_due: u64,
    ranger_due: u64,
    pub stats: DaemonStats,
}

impl Default for Daemons {
    fn default() -> Self {
        let (khugepaged, ranger, stats) = (None, None, DaemonStats::default());
        Self { khugepaged, ranger, khugepaged_due: u64::MAX, ranger_due: u64::MAX, stats }
    }
}

impl Daemons {
    /// Those that page sizes and placement ask for.
    pub fn new(config: &DaemonConfig, policy: PagePolicy, placement: PlacementKind) -> Self {
        let khugepaged =
            (policy == PagePolicy::Khugepaged).then(|| Khugepaged::new(config.khugepaged));
        let ranger = (placement == PlacementKind::Ranger).then(|| Ranger::new(config.ranger));
        Self {
            khugepaged_due: khugepaged.as_ref().map_or(u64::MAX, |k| k.config.interval),
            ranger_due: ranger.as_ref().map_or(u64::MAX, |r| r.config.interval),
            khugepaged,
            ranger,
            stats: DaemonStats::default(),
        }
    }

    /// When the next one is to run; `u64::MAX` for never.
    #[inline]
    pub fn due(&self) -> u64 {
        self.khugepaged_due.min(self.ranger_due)
    }

    /// Runs what is due at this time.
    pub fn run<I: Address, O: Address>(&mut self, clock: u64, home: &mut impl Home<I, O>) {
        if clock >= self.ranger_due
            && let Some(ranger) = &mut self.ranger
        {
            self.stats.runs += 1;
            ranger.run(home, &mut self.stats);
            self.ranger_due = clock.saturating_add(ranger.config.interval);
        }
        if clock >= self.khugepaged_due
            && let Some(khugepaged) = &mut self.khugepaged
        {
            self.stats.runs += 1;
            let served = khugepaged.run(home, &mut self.stats);
            let KhugepagedConfig { interval, alloc_interval, .. } = khugepaged.config;
            let sleep = if served { interval } else { alloc_interval };
            self.khugepaged_due = clock.saturating_add(sleep);
        }
    }
}

impl DaemonStats {
    /// What was done since an earlier moment.
    #[must_use]
    pub const fn since(&self, earlier: &Self) -> Self {
        Self {
            runs: self.runs - earlier.runs,
            scanned: self.scanned - earlier.scanned,
            migrated: self.migrated - earlier.migrated,
            exchanged: self.exchanged - earlier.exchanged,
            unmapped: self.unmapped - earlier.unmapped,
            stuck: self.stuck - earlier.stuck,
            collapsed: self.collapsed - earlier.collapsed,
            bloat: self.bloat - earlier.bloat,
            joined: self.joined - earlier.joined,
            split: self.split - earlier.split,
            copied: self.copied - earlier.copied,
        }
    }
}
