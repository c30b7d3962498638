//! Updates that the guest kernel has queued on a vCPU: Linux's lazy MMU mode.

use nestwalk_types::{Address, Gpa};

/// Queued updates of one vCPU.
#[derive(Default)]
pub(super) struct Queue {
    /// Addresses of entries, and their new values.
    updates: Vec<(Gpa, u64)>,
    /// Page number of the leaf table concerned: the kernel is in lazy mode while it works on one
    /// (`zap_pte_range`, `change_pte_range`, `copy_pte_range`).
    table: u64,
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
    /// Whether updates of the table of `at` are queued.
    pub fn concerns(&self, at: Gpa) -> bool {
        !self.is_empty() && self.table == at.page_number()
    }
    /// Whether an update of the table of `at` may join.
    pub fn takes(&self, at: Gpa) -> bool {
        self.is_empty() || self.table == at.page_number()
    }
    /// Queues an update that it takes.
    pub fn push(&mut self, at: Gpa, value: u64) {
        self.table = at.page_number();
        self.updates.push((at, value));
    }
    /// Empties it.
    pub fn take(&mut self) -> Vec<(Gpa, u64)> {
        std::mem::take(&mut self.updates)
    }
}
