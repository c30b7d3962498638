//! Linux's khugepaged: collapses small pages into large ones, a part of memory at a time.

use crate::daemons::{DaemonStats, Home, KhugepagedConfig};
use crate::space::{Block, Collapse, CollapseLimits};
use nestwalk_types::{Address, OsWork};

/// The daemon, and where it is in its round over all address spaces.
#[derive(Debug)]
pub(super) struct Khugepaged {
    pub config: KhugepagedConfig,
    /// Address space and address to go on at.
    cursor: (u64, u64),
}

impl Khugepaged {
    pub const fn new(config: KhugepagedConfig) -> Self {
        Self { config, cursor: (0, 0) }
    }

    /// Scans (`khugepaged_do_scan`): every aligned block of a large page that a mapping covers, up
    /// to so many pages, and none twice. False if no block of free frames was left.
    pub fn run<I: Address, O: Address>(
        &mut self,
        home: &mut impl Home<I, O>,
        stats: &mut DaemonStats,
    ) -> bool {
        let ids = home.spaces();
        if ids.is_empty() {
            return true;
        }
        let (id, mut from) = self.cursor;
        let first = ids.partition_point(|i| *i < id) % ids.len();
        if ids[first] != id {
            from = 0;
        }
        let mut left = self.config.pages_to_scan;
        for i in 0..ids.len() {
            let id = ids[(first + i) % ids.len()];
            match self.space(home, id, from, &mut left, stats) {
                Step::Done => from = 0,
                Step::Later(at) => {
                    self.cursor = (id, at);
                    return true;
                }
                Step::NoBlock(at) => {
                    self.cursor = (id, at);
                    return false;
                }
            }
        }
        // All of it was seen: the next round begins where this one did.
        self.cursor = (ids[first], 0);
        true
    }

    fn space<I: Address, O: Address>(
        &self,
        home: &mut impl Home<I, O>,
        id: u64,
        from: u64,
        left: &mut u64,
        stats: &mut DaemonStats,
    ) -> Step {
        let Some(space) = home.look(id) else { return Step::Done };
        let mode = space.config().mode;
        let (size, entries) = (mode.span(2), mode.entries(1));
        // The limits are those of 512 pages.
        let none = (self.config.max_ptes_none + 1) * (entries / 512) - 1;
        let limits = CollapseLimits { none, shared: self.config.max_ptes_shared * (entries / 512) };
        let mappings: Vec<_> = space.vmas().iter().filter(|v| v.end > from).collect();
        for vma in mappings {
            let begin = vma.start.max(from).next_multiple_of(size.bytes());
            let end = vma.end & !size.mask();
            if begin >= end {
                *left = left.saturating_sub(1);
                continue;
            }
            for block in (begin..end).step_by(size.bytes() as usize) {
                if *left == 0 {
                    return Step::Later(block);
                }
                *left = left.saturating_sub(entries);
                let table = home
                    .look(id)
                    .is_some_and(|s| matches!(s.block(home.memory(), block), Block::Table(_)));
                if !table {
                    continue;
                }
                stats.scanned += entries;
                home.work(OsWork::PageScanned, entries);
                let did = home
                    .with(id, |space, memory, watch| space.collapse(memory, block, limits, watch));
                match did {
                    Some(Collapse::Done { copied }) => {
                        stats.collapsed += 1;
                        stats.copied += copied;
                        stats.bloat += entries - copied;
                        home.work(OsWork::Collapse, 1);
                        home.changed(id, block, size.bytes());
                    }
                    Some(Collapse::NoBlock) => return Step::NoBlock(block),
                    Some(Collapse::Unsuitable) | None => {}
                }
            }
        }
        Step::Done
    }
}

/// What came of an address space.
enum Step {
    /// It was seen to its end.
    Done,
    /// Enough was seen; the rest begins here.
    Later(u64),
    /// No memory for the block here.
    NoBlock(u64),
}
