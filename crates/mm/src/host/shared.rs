//! Physical memory that several VMs of a host share, and what a host that reclaims hears of its
//! guests.

use super::{HostMemory, HostPage};
use crate::error::MmError;
use crate::physical::PhysicalMemory;
use crate::space::Unobserved;
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

/// The base page of `gpa` in a page of the host.
pub(super) fn base_page(gpa: Gpa, page: HostPage) -> HostPage {
    let frame = page.frame.offset_by(gpa.offset_in(page.size)).align_down(PageSize::SIZE_4K);
    HostPage { frame, size: PageSize::SIZE_4K, ..page }
}

impl HostMemory {
    /// Whether pages are given out by 4 KiB from now on, whatever is behind them: stores are logged
    /// page by page (KVM: `kvm_slot_dirty_track_enabled` in `kvm_mmu_hugepage_adjust`).
    pub const fn split_pages(&mut self, split: bool) {
        self.split = split;
    }

    /// The VM leaves the host: its pages and all tables, those of the VMM included, are free. Nothing
    /// may be asked of this any more.
    ///
    /// # Errors
    /// Tables that must be split first find no memory.
    pub fn leave(&mut self) -> Result<(), MmError> {
        for slot in self.slots.clone() {
            self.space.unmap(&mut self.memory, slot.hva, slot.bytes, &mut Unobserved)?;
        }
        for frame in std::mem::take(&mut self.vmm_tables) {
            self.memory.physical.free(Hpa::new(frame << 12), 0);
        }
        let tables: BTreeSet<Hpa> = self.memory.tables.pages().collect();
        tables.into_iter().for_each(|table| self.memory.physical.free(table, 0));
        Ok(())
    }

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::HostConfig;
    use crate::placement::{PagePolicy, PlacementKind};
    use nestwalk_tables::LONG4;

    /// A VM that leaves has given back every frame that it took, tables included.
    #[test]
    fn who_leaves_leaves_nothing() {
        for policy in ["4k", "thp", "2m"] {
            let config = HostConfig {
                bytes: 256 << 20,
                mode: &LONG4,
                policy: PagePolicy::by_name(policy).unwrap(),
                placement: PlacementKind::default(),
                fragmentation: 0.0.into(),
                seed: 1,
                kernel_bytes: 1 << 20,
                daemons: crate::DaemonConfig::default(),
            };
            let physical = HostMemory::physical_memory(&config).unwrap();
            let free = physical.free_frames();
            let slots = [(Gpa::new(0), 64 << 20)];
            let mut host = HostMemory::on(physical, &config, &slots, None).unwrap();
            for page in 0..2000u64 {
                host.ensure(Gpa::new(page * (3 << 12))).unwrap();
            }
            let tables = [host.alloc_table().unwrap(), host.alloc_tables(2).unwrap()];
            host.free_table(tables[1].offset_by(4096));
            host.discard(Gpa::new(0)).unwrap();
            assert!(host.physical().free_frames() < free - 2000);
            host.leave().unwrap();
            assert_eq!(host.physical().free_frames(), free, "{policy}");
        }
    }

    #[test]
    fn pages_are_given_out_in_parts_while_they_are_split() {
        let policy = PagePolicy::by_name("2m").unwrap();
        let slots = [(Gpa::new(0), 64 << 20)];
        let mut host = HostMemory::new(256 << 20, &LONG4, policy, 0.0, 1, &slots).unwrap();
        let at = Gpa::new(0x20_3000);
        let whole = host.ensure(at).unwrap();
        host.split_pages(true);
        let part = host.ensure(at).unwrap();
        assert_eq!((part.size, part.frame), (PageSize::SIZE_4K, whole.frame.offset_by(0x3000)));
        host.split_pages(false);
        assert_eq!(host.ensure(at).unwrap().size, whole.size);
    }
}
