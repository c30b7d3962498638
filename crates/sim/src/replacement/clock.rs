//! Second chance: pages stand in a circle, a hand goes around. A page that was used since the hand
//! last came by is passed over, its accessed bit cleared; the first that was not goes.

use super::{Page, Replacement, Used};
use std::collections::VecDeque;

/// The clock.
#[derive(Default)]
pub struct Clock {
    /// From the hand on.
    pages: VecDeque<Page>,
}

impl<E> Replacement<E> for Clock {
    fn touched(&mut self, page: Page) {
        // Behind the hand: it comes there last.
        self.pages.push_back(page);
    }

    fn victim(&mut self, used: &mut Used<'_, E>) -> Result<Option<Page>, E> {
        // After one round every bit was cleared. Whatever is used all the time must go then, too.
        for _ in 0..=self.pages.len() {
            let Some(page) = self.pages.pop_front() else { break };
            match used(page)? {
                None => {}
                Some(true) => self.pages.push_back(page),
                Some(false) => return Ok(Some(page)),
            }
        }
        Ok(self.pages.pop_front())
    }

    fn retain(&mut self, stays: &mut dyn FnMut(Page) -> bool) {
        self.pages.retain(|page| stays(*page));
    }

    fn len(&self) -> usize {
        self.pages.len()
    }
}
