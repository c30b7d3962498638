//! Physical memory that several VMs of a host share, and what a host that reclaims hears of its
//! guests.

use super::{HostMemory, HostPage};
use crate::physical::PhysicalMemory;
use nestwalk_types::{Address, Gpa, Hpa, PageSize};
use std::collections::BTreeSet;

/// What the host hears of guest memory as it is mapped.
#[derive(Default)]
pub(crate) struct Touches {
    /// Pages in the order of their first touch.
    fresh: Vec<(Gpa, PageSize)>,
    /// Numbers of 4 KiB pages that were asked for since their mark was last taken.
    marked: BTreeSet<u64>,
}

impl Touches {
    pub(crate) fn mapped(&mut self, gpa: Gpa, page: &HostPage) {
        self.marked.insert(gpa.page_number());
        if page.fresh {
            self.fresh.push((gpa.align_down(page.size), page.size));
        }
    }
}

impl HostMemory {
    /// The physical memory changes places with `other`: VMs of one host take turns with the one
    /// that they share, and have [`PhysicalMemory::none`] meanwhile. Pages, tables and counters
    /// stay with the VM.
    pub const fn exchange_physical(&mut self, other: &mut PhysicalMemory<Hpa>) {
        std::mem::swap(&mut self.memory.physical, other);
    }

    /// From now on [`HostMemory::take_touched`] and [`HostMemory::take_mark`] tell what is touched.
    pub fn hear_touches(&mut self) {
        self.touches = Some(Box::default());
    }

    /// Pages that were touched for the first time since this was last asked, in order.
    pub fn take_touched(&mut self) -> Vec<(Gpa, PageSize)> {
        self.touches.as_mut().map_or(Vec::new(), |t| std::mem::take(&mut t.fresh))
    }

    /// Whether the page was mapped for its user since this was last asked of it: the accessed bit
    /// that the host's kernel sets itself (KVM: `kvm_set_pfn_accessed`).
    pub fn take_mark(&mut self, gpa: Gpa) -> bool {
        self.touches.as_mut().is_some_and(|t| t.marked.remove(&gpa.page_number()))
    }
}
