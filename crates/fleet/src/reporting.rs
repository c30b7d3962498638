//! Free page reporting: a guest tells its host which of its memory is free, so that the host can
//! use it otherwise.
//!
//! As Linux does it (6.1, `mm/page_reporting.c`, `drivers/virtio/virtio_balloon.c`): blocks of 2 MiB
//! (`pageblock_order`) that are free as a whole and were used since they were last reported are
//! told, 32 in a request (`PAGE_REPORTING_CAPACITY`), each request an exit; the host takes what is
//! behind them (`MADV_DONTNEED`), and contents are gone on both sides. Linux waits two seconds before
//! it looks; this guest looks after each batch of its source.

use nestwalk_mm::PhysicalMemory;
use nestwalk_types::{Control, Gpa, GuestBatch, PageSize};

/// Blocks of a request.
pub(super) const CAPACITY: usize = 32;
const BLOCK: PageSize = PageSize::SIZE_2M;
const ORDER: u32 = BLOCK.shift() - 12;

/// A guest's kernel that reports.
pub(super) struct Reporter {
    /// By number, blocks of the guest's memory that were used since they were last reported.
    used: Vec<bool>,
}

impl Reporter {
    pub(super) const fn new() -> Self {
        Self { used: Vec::new() }
    }

    /// The guest does this.
    pub(super) fn sees(&mut self, part: &GuestBatch) {
        for (_, event) in &part.batch.controls {
            let (gpa, bytes) = match *event {
                Control::PageCleared { gpa, size, .. } => (gpa, size.bytes()),
                Control::TableAdded { gpa, .. } => (gpa, 4096),
                _ => continue,
            };
            let number = |at: u64| (at >> BLOCK.shift()) as usize;
            let (first, last) = (number(gpa.value()), number(gpa.value() + bytes - 1));
            if last >= self.used.len() {
                self.used.resize(last + 1, false);
            }
            self.used[first..=last].fill(true);
        }
    }

    /// Blocks that are to be reported now.
    pub(super) fn look(&mut self, memory: &PhysicalMemory<Gpa>) -> Vec<Gpa> {
        let mut found = Vec::new();
        for (number, used) in self.used.iter_mut().enumerate().filter(|b| *b.1) {
            let at = Gpa::new((number as u64) << BLOCK.shift());
            if memory.is_free_block(at, ORDER) {
                *used = false;
                found.push(at);
            }
        }
        found
    }
}
