//! Linux's two lists for anonymous memory (6.1, `mm/vmscan.c`, `mm/swap.c`).
//!
//! A new page goes to the head of the inactive list. Reclaim looks at the tail of that list
//! (`shrink_folio_list`, `folio_check_references`): a page that was not used goes; one that was
//! used stays, marked as referenced, and becomes active when it is found used a second time. When
//! the inactive list is low (`inactive_is_low`), pages from the tail of the active list become
//! inactive, their accessed bits cleared, used or not (`shrink_active_list`, for anonymous pages).

use super::{Page, Replacement, Used};
use std::collections::VecDeque;

/// Pages that are looked at between two looks at the balance of the lists (`SWAP_CLUSTER_MAX`).
const CLUSTER: usize = 32;
/// Pages of 4 KiB in a gigabyte.
const GIGABYTE: usize = 1 << 18;

/// Linux's two lists.
#[derive(Default)]
pub struct TwoLists {
    /// The tail is in front. With each page whether it was found used before.
    inactive: VecDeque<(Page, bool)>,
    active: VecDeque<Page>,
}

impl TwoLists {
    /// `inactive_is_low`: the active list may be sqrt(10 n) times as long for n gigabytes, 1 below
    /// one.
    fn inactive_is_low(&self) -> bool {
        let gigabytes = (self.inactive.len() + self.active.len()) / GIGABYTE;
        let ratio = if gigabytes == 0 { 1 } else { (10 * gigabytes).isqrt() };
        self.inactive.len() * ratio < self.active.len()
    }

    fn deactivate<E>(&mut self, used: &mut Used<'_, E>) -> Result<(), E> {
        for _ in 0..CLUSTER {
            let Some(page) = self.active.pop_front() else { break };
            if used(page)?.is_some() {
                self.inactive.push_back((page, false));
            }
        }
        Ok(())
    }
}

impl<E> Replacement<E> for TwoLists {
    fn touched(&mut self, page: Page) {
        self.inactive.push_back((page, false));
    }

    fn victim(&mut self, used: &mut Used<'_, E>) -> Result<Option<Page>, E> {
        // Whatever is used all the time goes after both lists were looked through.
        let mut looks = 2 * (self.inactive.len() + self.active.len()) + CLUSTER;
        loop {
            if self.inactive_is_low() || self.inactive.is_empty() {
                self.deactivate(used)?;
            }
            let Some((page, referenced)) = self.inactive.pop_front() else { return Ok(None) };
            match used(page)? {
                None => {}
                Some(true) if looks > 0 && referenced => self.active.push_back(page),
                Some(true) if looks > 0 => self.inactive.push_back((page, true)),
                Some(_) => return Ok(Some(page)),
            }
            looks = looks.saturating_sub(1);
        }
    }

    fn retain(&mut self, stays: &mut dyn FnMut(Page) -> bool) {
        self.inactive.retain(|(page, _)| stays(*page));
        self.active.retain(|page| stays(*page));
    }

    fn len(&self) -> usize {
        self.inactive.len() + self.active.len()
    }
}
