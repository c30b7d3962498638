//! What pages contain, as far as it matters who has the same: tokens.
//!
//! No source tells contents, so a share of each VM's pages is stated to be of zeros, and one of contents
//! that the page of that number has in all VMs with such pages. They are drawn by page number. A page
//! that the VM has stored to since counting began has contents of its own.

use nestwalk_types::{Address, Control, GuestBatch, SplitMix64};
use rustc_hash::FxHashMap;

/// Contents of a page: pages of the same have the same.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Token {
    /// Zeros.
    Zero,
    /// What the page of this number contains in several VMs.
    Common(u64),
    /// Of this VM and page alone, after so many stores.
    Own(usize, u64, u64),
}

/// Shares of a VM's pages, from 0 to 1.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Shares {
    /// Pages of zeros.
    pub zero: f64,
    /// Pages that other VMs have, too.
    pub common: f64,
}

/// Contents of all VMs' pages, by what the stream stores.
pub(crate) struct Contents {
    shares: Vec<Shares>,
    stores: Vec<FxHashMap<u64, u64>>,
}

impl Contents {
    pub(super) fn new(shares: Vec<Shares>) -> Self {
        let stores = shares.iter().map(|_| FxHashMap::default()).collect();
        Self { shares, stores }
    }

    /// What the page contains now.
    pub(crate) fn of(&self, vm: usize, page: u64) -> Token {
        if let Some(stores) = self.stores[vm].get(&page) {
            return Token::Own(vm, page, *stores);
        }
        let drawn = SplitMix64::new(page).below(1 << 32) as f64 / (1u64 << 32) as f64;
        let Shares { zero, common } = self.shares[vm];
        // From both ends, so that pages are common whatever the share of zeros.
        if drawn < zero {
            Token::Zero
        } else if drawn >= 1.0 - common {
            Token::Common(page)
        } else {
            Token::Own(vm, page, 0)
        }
    }

    /// The VM did this.
    pub(super) fn ran(&mut self, vm: usize, slice: &GuestBatch) {
        let stores = &mut self.stores[vm];
        for (run, gpa) in slice.batch.runs.iter().zip(&slice.gpas) {
            if run.flags.is_store() {
                *stores.entry(gpa.page_number()).or_default() += 1;
            }
        }
        for (_, event) in &slice.batch.controls {
            let (at, pages) = match *event {
                Control::TableWrite { gpa, .. } | Control::TableAdded { gpa, .. } => (gpa, 1),
                Control::PageCleared { gpa, size, .. } => (gpa, size.base_pages()),
                _ => continue,
            };
            for page in at.page_number()..at.page_number() + pages {
                *stores.entry(page).or_default() += 1;
            }
        }
    }

    /// What was stored before does not count.
    pub(super) fn counting_begins(&mut self) {
        self.stores.iter_mut().for_each(FxHashMap::clear);
    }
}
