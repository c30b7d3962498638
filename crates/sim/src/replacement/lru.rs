//! The least recently used page, exactly.

use super::{Page, Replacement, Used};
use rustc_hash::FxHashMap;
use std::collections::VecDeque;

/// Exact LRU. Uses are numbered; a queue has each page once for each use that may be its last.
#[derive(Default)]
pub struct Lru {
    clock: u64,
    /// The last use of each page.
    last: FxHashMap<Page, u64>,
    /// Uses in order; one that is not its page's last is void.
    order: VecDeque<(u64, Page)>,
    /// The page of the last use.
    newest: Option<Page>,
}

impl Lru {
    fn note(&mut self, page: Page) {
        self.clock += 1;
        self.newest = Some(page);
        self.last.insert(page, self.clock);
        self.order.push_back((self.clock, page));
        // Void uses go before they are the larger part.
        if self.order.len() > 64 && self.order.len() > 2 * self.last.len() {
            let last = &self.last;
            self.order.retain(|(at, page)| last.get(page) == Some(at));
        }
    }
}

impl<E> Replacement<E> for Lru {
    fn touched(&mut self, page: Page) {
        self.note(page);
    }

    fn used(&mut self, page: Page) {
        if self.newest != Some(page) && self.last.contains_key(&page) {
            self.note(page);
        }
    }

    fn is_exact(&self) -> bool {
        true
    }

    fn victim(&mut self, _used: &mut Used<'_, E>) -> Result<Option<Page>, E> {
        while let Some((at, page)) = self.order.pop_front() {
            if self.last.get(&page) == Some(&at) {
                self.last.remove(&page);
                self.newest = self.newest.filter(|newest| *newest != page);
                return Ok(Some(page));
            }
        }
        Ok(None)
    }

    fn retain(&mut self, stays: &mut dyn FnMut(Page) -> bool) {
        self.last.retain(|page, _| stays(*page));
        self.newest = self.newest.filter(|page| self.last.contains_key(page));
    }

    fn len(&self) -> usize {
        self.last.len()
    }
}
