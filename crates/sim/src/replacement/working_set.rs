//! The working set by sampling: WSClock (Carr and Hennessy, SOSP 1981).
//!
//! The working set of a VM is what it used in the last `window` instructions of its own (Denning,
//! CACM 1968). Pages stand in a circle, a hand goes around: a page that was used since the hand last
//! passed has been used now, as far as anybody knows; one that was not, and whose last such moment
//! is longer ago than the window, in time of its VM, goes. If all are in working sets, the memory is
//! too small for them, where the authors' system suspends a program; here the page goes that was
//! used longest ago, of several the first from the hand on. So that not every page costs a look at
//! all, the others of the oldest 32nd are next, unless they are used before.

use super::{Page, Replacement, Used};
use rustc_hash::FxHashMap;
use std::collections::VecDeque;

/// WSClock.
pub struct WorkingSet {
    window: u64,
    /// By VM, instructions that it has run.
    time: FxHashMap<u32, u64>,
    /// From the hand on, each with the time of its VM when it was last known to be used; `None` if
    /// it is to go for want of older ones.
    pages: VecDeque<(Page, Option<u64>)>,
}

impl WorkingSet {
    /// With a window of so many instructions.
    pub fn new(window: u64) -> Self {
        Self { window, time: FxHashMap::default(), pages: VecDeque::new() }
    }

    /// How long ago that was.
    fn age(&self, page: Page, last: Option<u64>) -> u64 {
        last.map_or(u64::MAX, |last| self.now(page) - last)
    }

    fn now(&self, page: Page) -> u64 {
        self.time.get(&page.0).copied().unwrap_or(0)
    }
}

impl<E> Replacement<E> for WorkingSet {
    fn touched(&mut self, page: Page) {
        // Behind the hand: it comes there last.
        self.pages.push_back((page, Some(self.now(page))));
    }

    fn passed(&mut self, vm: u32, instructions: u64) {
        *self.time.entry(vm).or_default() += instructions;
    }

    fn victim(&mut self, used: &mut Used<'_, E>) -> Result<Option<Page>, E> {
        for _ in 0..self.pages.len() {
            let Some((page, last)) = self.pages.pop_front() else { break };
            match used(page)? {
                None => {}
                Some(true) => self.pages.push_back((page, Some(self.now(page)))),
                Some(false) if self.age(page, last) > self.window => return Ok(Some(page)),
                Some(false) => self.pages.push_back((page, last)),
            }
        }
        // A stable sort: of pages of one age the first from the hand on is first.
        let mut order: Vec<usize> = (0..self.pages.len()).collect();
        order.sort_by_key(|at| std::cmp::Reverse(self.age(self.pages[*at].0, self.pages[*at].1)));
        order.truncate((order.len() / 32).max(1));
        let oldest: Vec<Page> = order.iter().map(|at| self.pages[*at].0).collect();
        order.sort_unstable_by(|a, b| b.cmp(a));
        for at in order {
            self.pages.remove(at);
        }
        for page in oldest.iter().skip(1).rev() {
            self.pages.push_front((*page, None));
        }
        Ok(oldest.first().copied())
    }

    fn retain(&mut self, stays: &mut dyn FnMut(Page) -> bool) {
        self.pages.retain(|(page, _)| stays(*page));
    }

    fn len(&self) -> usize {
        self.pages.len()
    }
}
