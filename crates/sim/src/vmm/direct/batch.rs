//! Updates that the guest kernel has queued on a vCPU: Linux's lazy MMU mode.

use nestwalk_types::{Address, Gpa};

/// Queued updates of one vCPU.
#[derive(Default)]
pub(super) struct Queue {
    /// Addresses of entries, and their new values.
    updates: Vec<(Gpa, u64)>,
    /// Page numbers of the leaf tables concerned: the kernel holds at most two of their locks at a
    /// time, those of parent and child in a fork (`copy_pte_range`).
    tables: [Option<u64>; 2],
}

impl Queue {
    /// Nothing is queued.
    pub const fn is_empty(&self) -> bool {
        self.updates.is_empty()
    }
    /// Updates queued.
    pub const fn len(&self) -> usize {
        self.updates.len()
    }
    /// Whether the table of `at` is concerned.
    pub fn concerns(&self, at: Gpa) -> bool {
        self.tables.contains(&Some(at.page_number()))
    }
    /// Whether an update of the table of `at` may join: the kernel leaves lazy mode when it has done
    /// with a leaf table.
    pub fn takes(&self, at: Gpa) -> bool {
        self.concerns(at) || self.tables.contains(&None)
    }
    /// Queues an update that it takes.
    pub fn push(&mut self, at: Gpa, value: u64) {
        if !self.concerns(at)
            && let Some(free) = self.tables.iter_mut().find(|t| t.is_none())
        {
            *free = Some(at.page_number());
        }
        self.updates.push((at, value));
    }
    /// Empties it.
    pub fn take(&mut self) -> Vec<(Gpa, u64)> {
        self.tables = [None; 2];
        std::mem::take(&mut self.updates)
    }
}
