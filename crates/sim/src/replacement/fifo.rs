//! First in, first out: nobody asks whether a page is used.

use super::{Page, Replacement, Used};
use std::collections::VecDeque;

/// First in, first out.
#[derive(Default)]
pub struct Fifo {
    pages: VecDeque<Page>,
}

impl<E> Replacement<E> for Fifo {
    fn touched(&mut self, page: Page) {
        self.pages.push_back(page);
    }

    fn victim(&mut self, _used: &mut Used<'_, E>) -> Result<Option<Page>, E> {
        Ok(self.pages.pop_front())
    }

    fn retain(&mut self, stays: &mut dyn FnMut(Page) -> bool) {
        self.pages.retain(|page| stays(*page));
    }

    fn len(&self) -> usize {
        self.pages.len()
    }
}
