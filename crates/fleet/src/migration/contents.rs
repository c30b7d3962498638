//! The referee of migrations: what the guest stored to each page, by the stream, and what was sent.
//!
//! It knows nothing of how stores are logged. The contents of a page are the number of stores to it
//! since the migration began.

use nestwalk_types::{Address, Control, GuestBatch};
use rustc_hash::FxHashMap;

/// Contents of pages, by number: here, and on the other host.
#[derive(Default)]
pub(super) struct Contents {
    here: FxHashMap<u64, u64>,
    there: FxHashMap<u64, u64>,
}

impl Contents {
    /// The guest did this.
    pub(super) fn ran(&mut self, slice: &GuestBatch) {
        for (run, gpa) in slice.batch.runs.iter().zip(&slice.gpas) {
            if run.flags.is_store() {
                *self.here.entry(gpa.page_number()).or_default() += 1;
            }
        }
        for (_, event) in &slice.batch.controls {
            let (at, pages) = match *event {
                Control::TableWrite { gpa, .. } | Control::TableAdded { gpa, .. } => (gpa, 1),
                Control::PageCleared { gpa, size, .. } => (gpa, size.base_pages()),
                _ => continue,
            };
            for page in at.page_number()..at.page_number() + pages {
                *self.here.entry(page).or_default() += 1;
            }
        }
    }

    /// These pages were sent.
    pub(super) fn sent(&mut self, pages: &[u64]) {
        for page in pages {
            if let Some(contents) = self.here.get(page) {
                self.there.insert(*page, *contents);
            }
        }
    }

    /// Pages that are not as the guest left them on the other host.
    pub(super) fn lost(&self) -> u64 {
        let differs = |(page, contents): &(&u64, &u64)| self.there.get(page) != Some(contents);
        self.here.iter().filter(differs).count() as u64
    }
}
