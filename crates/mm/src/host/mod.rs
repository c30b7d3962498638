//! The host's memory: the VMM process maps guest RAM, and its page tables say where it is.

pub(crate) mod compaction;
pub(crate) mod daemons;
mod merging;
pub(crate) mod segment;
mod shared;

use crate::daemons::{DaemonConfig, Daemons};
use crate::error::MmError;
use crate::host::compaction::Compaction;
use crate::physical::PhysicalMemory;
use crate::physical::fragmentation::Fragmentation;
use crate::placement::{HostPages, Listed, PagePolicy, PlacementKind};
use crate::placement_stats::PlacementStats;
use crate::space::{Access, AddressSpace, Counters, Memory, SpaceConfig, Unobserved};
use nestwalk_tables::Mode;
use nestwalk_types::{Address, Gpa, Hpa, Hva, PageSize, Protection};
use std::collections::BTreeSet;

const GIB: u64 = 1 << 30;

/// The page of host memory behind a guest-physical address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HostPage {
    /// First host-physical address of the page.
    pub frame: Hpa,
    /// Its size: gPA, hVA and hPA are congruent modulo it, and the slot holds all of it, so a
    /// nested table may map it as one page.
    pub size: PageSize,
    /// It was touched just now for the first time.
    pub fresh: bool,
}

/// A memslot: a range of gPA and the range of hVA that is behind it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Slot {
    /// First guest-physical address.
    pub gpa: Gpa,
    /// Length in bytes.
    pub bytes: u64,
    /// First host-virtual address, congruent to `gpa` modulo 1 GiB.
    pub hva: Hva,
}

/// What the host's memory is made of.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct HostConfig {
    /// Bytes of RAM.
    pub bytes: u64,
    /// Paging mode of the host process.
    pub mode: &'static Mode,
    /// Page sizes behind guest RAM.
    pub policy: PagePolicy,
    /// Placement behind guest RAM.
    pub placement: PlacementKind,
    /// See [`PhysicalMemory::fragment`].
    pub fragmentation: Fragmentation,
    /// Seed of the fragmentation.
    pub seed: u64,
    /// Bytes of the host kernel's image.
    pub kernel_bytes: u64,
    /// When the host kernel's daemons run, if page sizes or placement ask for any.
    pub daemons: DaemonConfig,
}

/// Bytes of a kernel's image unless configured: 32 MiB. An assumption, not a measurement; it only
/// decides where the first free frames are.
pub const KERNEL_BYTES: u64 = 32 << 20;

/// Guest RAM as the host sees it: an address space of the VMM process with one mapping per memslot,
/// whose pages come when the guest touches them.
pub struct HostMemory {
    pub(crate) memory: Memory<Hpa>,
    pub(crate) space: AddressSpace<Hva, Hpa>,
    slots: Vec<Slot>,
    /// Pages that have become larger where they are, which whoever maps them does not know yet.
    joined: Vec<(Gpa, PageSize)>,
    pub(crate) compaction: Option<Compaction>,
    pub(crate) daemons: Daemons,
    /// What is touched, if somebody reclaims.
    touches: Option<Box<shared::Touches>>,
    /// What is mapped is mapped by base pages, whatever is behind it.
    split: bool,
    /// Numbers of the frames that hold tables of the VMM.
    vmm_tables: BTreeSet<u64>,
    /// Numbers of the guest's pages that are merged with others.
    merged: BTreeSet<u64>,
}

impl HostMemory {
    /// Host memory of `bytes` as one flat range, and memslots `(first gPA, bytes)`.
    ///
    /// # Errors
    /// See [`HostMemory::with_config`].
    pub fn new(
        bytes: u64,
        mode: &'static Mode,
        policy: PagePolicy,
        fragmentation: f64,
        seed: u64,
        slots: &[(Gpa, u64)],
    ) -> Result<Self, MmError> {
        let placement = PlacementKind::default();
        let kernel_bytes = KERNEL_BYTES;
        let fragmentation = fragmentation.into();
        let config = HostConfig {
            bytes,
            mode,
            policy,
            placement,
            fragmentation,
            seed,
            kernel_bytes,
            daemons: DaemonConfig::default(),
        };
        Self::with_config(&config, slots)
    }

    /// As configured.
    ///
    /// # Errors
    /// More than 16 TiB, a page size that the mode does not have, slots that do not fit into the
    /// address space of the mode.
    pub fn with_config(config: &HostConfig, slots: &[(Gpa, u64)]) -> Result<Self, MmError> {
        Self::with_pages(config, slots, None)
    }

    /// As [`HostMemory::with_config`], with the pages of guest memory that are listed where the list has
    /// them, in place of the placement policy.
    ///
    /// # Errors
    /// See [`HostMemory::with_config`].
    pub fn with_pages(
        config: &HostConfig,
        slots: &[(Gpa, u64)],
        listed: Option<&HostPages>,
    ) -> Result<Self, MmError> {
        Self::on(Self::physical_memory(config)?, config, slots, listed)
    }

    /// The physical memory of a host as configured, in which there is no guest yet.
    ///
    /// # Errors
    /// More than 16 TiB.
    pub fn physical_memory(config: &HostConfig) -> Result<PhysicalMemory<Hpa>, MmError> {
        let ranges = [(Hpa::new(0), config.bytes)];
        let mut physical = PhysicalMemory::new(&ranges, config.kernel_bytes)?;
        physical.fragment(config.fragmentation, config.seed)?;
        Ok(physical)
    }

    /// As [`HostMemory::with_pages`], in physical memory that is there already: see
    /// [`HostMemory::exchange_physical`].
    ///
    /// # Errors
    /// See [`HostMemory::with_config`].
    pub fn on(
        physical: PhysicalMemory<Hpa>,
        config: &HostConfig,
        slots: &[(Gpa, u64)],
        listed: Option<&HostPages>,
    ) -> Result<Self, MmError> {
        let mut memory = Memory::new(physical, false);
        let HostConfig { mode, policy, placement, .. } = *config;
        let space_config = SpaceConfig { mode, policy, placement, primary: None };
        // Where Linux has its mmap area, in round numbers; with 39 bits, a quarter up a process's half.
        let mut hva = match mode.address_bits() {
            32 => 0,
            39 => 0x10_0000_0000,
            _ => 0x6000_0000_0000,
        };
        let mut placed = Vec::new();
        for &(gpa, bytes) in slots {
            let at = Hva::new(hva + gpa.value() % GIB);
            placed.push(Slot { gpa, bytes, hva: at });
            // A hole, so that mappings of two slots never merge into one.
            hva = (at.value() + bytes + 4096).next_multiple_of(GIB);
        }
        let mut space = match listed {
            None => AddressSpace::new(space_config, &mut memory, &mut Unobserved)?,
            Some(listed) => {
                policy.check(mode)?;
                let at = |gpa: Gpa| {
                    let offset = |s: &Slot| gpa.value().checked_sub(s.gpa.value());
                    let slot = placed.iter().find(|s| offset(s).is_some_and(|o| o < s.bytes))?;
                    Some(slot.hva.value() + offset(slot)?)
                };
                let placement = Box::new(Listed::new(listed.renamed(at)));
                AddressSpace::with(space_config, placement, &mut memory, &mut Unobserved)?
            }
        };
        for slot in &placed {
            let protection = Protection::READ_WRITE;
            space.map(&mut memory, slot.hva, slot.bytes, protection, &mut Unobserved)?;
        }
        placed.sort_by_key(|s| s.gpa);
        let daemons = Daemons::new(&config.daemons, policy, placement);
        Ok(Self {
            memory,
            space,
            slots: placed,
            joined: Vec::new(),
            compaction: None,
            daemons,
            touches: None,
            split: false,
            vmm_tables: BTreeSet::new(),
            merged: BTreeSet::new(),
        })
    }

    /// The guest has new memory at `start`: its last memslot grows if it ends there, else there is
    /// one more.
    ///
    /// # Errors
    /// No addresses are left for it in the VMM process.
    pub fn hot_add(&mut self, start: Gpa, bytes: u64) -> Result<(), MmError> {
        let last = self.slots.last().copied();
        let end = last.map_or(0, |s| s.gpa.value() + s.bytes);
        let hva = match last {
            Some(slot) if end == start.value() => slot.hva.offset_by(slot.bytes),
            Some(slot) => {
                let next = (slot.hva.value() + slot.bytes + 4096).next_multiple_of(GIB);
                Hva::new(next + start.value() % GIB)
            }
            None => return Err(self.no_slot(start)),
        };
        let protection = Protection::READ_WRITE;
        self.space.map(&mut self.memory, hva, bytes, protection, &mut Unobserved)?;
        match self.slots.last_mut() {
            Some(slot) if end == start.value() => slot.bytes += bytes,
            _ => self.slots.push(Slot { gpa: start, bytes, hva }),
        }
        Ok(())
    }

    /// The page behind `gpa`, as large as [`HostMemory::discard`] would take it back.
    pub fn whole_page(&self, gpa: Gpa) -> Option<(Gpa, PageSize)> {
        let size = self.look_up(gpa)?.size.min(self.largest_page());
        Some((gpa.align_down(size), size))
    }

    /// The memslots, ascending by gPA.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }
    /// Host-physical memory.
    pub const fn physical(&self) -> &PhysicalMemory<Hpa> {
        &self.memory.physical
    }
    /// The address space of the VMM process.
    pub const fn space(&self) -> &AddressSpace<Hva, Hpa> {
        &self.space
    }
    /// Frames and pages in use; `table_frames` holds the host process's own tables and those of
    /// [`HostMemory::alloc_table`].
    pub const fn counters(&self) -> &Counters {
        &self.memory.counters
    }

    /// The largest page that the policy has behind guest RAM.
    pub fn largest_page(&self) -> PageSize {
        let config = self.space.config();
        config.policy.largest(config.mode)
    }

    /// Where guest RAM at `gpa` is in the VMM process, or `None` outside of every slot.
    #[inline]
    pub fn hva(&self, gpa: Gpa) -> Option<Hva> {
        let after = self.slots.partition_point(|s| s.gpa <= gpa);
        let slot = self.slots.get(after.checked_sub(1)?)?;
        let offset = gpa.value() - slot.gpa.value();
        (offset < slot.bytes).then(|| slot.hva.offset_by(offset))
    }

    /// The host page behind `gpa`, which is touched, as for a store, if it was not before.
    ///
    /// # Errors
    /// An address outside of every slot; no free frame.
    pub fn ensure(&mut self, gpa: Gpa) -> Result<HostPage, MmError> {
        if let Some(page) = self.merged_page(gpa) {
            return Ok(page);
        }
        let hva = self.hva(gpa).ok_or_else(|| self.no_slot(gpa))?;
        let joined = self.memory.counters.promotions;
        let mapped = self.space.fault(&mut self.memory, hva, Access::WRITE, &mut Unobserved)?;
        let page = HostPage { frame: mapped.frame, size: mapped.size, fresh: mapped.fresh };
        if self.memory.counters.promotions > joined {
            self.joined.push((gpa.align_down(page.size), page.size));
        }
        if let Some(touches) = &mut self.touches {
            touches.mapped(gpa, &page);
        }
        Ok(if self.split { shared::base_page(gpa, page) } else { self.as_known(gpa, page) })
    }

    /// The page as its users know it: of one that has just become larger, the 4 KiB that it was.
    fn as_known(&self, gpa: Gpa, page: HostPage) -> HostPage {
        let known = |(at, size): &(Gpa, PageSize)| gpa.align_down(*size) == *at;
        if self.joined.is_empty() || !self.joined.iter().any(known) {
            return page;
        }
        shared::base_page(gpa, page)
    }

    /// The pages that have become larger since this was last asked, with their sizes. Their
    /// addresses are as before. Whoever maps parts of them in tables of its own takes these out
    /// before the guest runs on, so that the next use finds the whole page (Linux:
    /// `mmu_notifier_invalidate_range`).
    pub fn take_promoted(&mut self) -> Vec<(Gpa, PageSize)> {
        std::mem::take(&mut self.joined)
    }
    /// Whether [`HostMemory::take_promoted`] would return any.
    #[inline]
    pub const fn has_promoted(&self) -> bool {
        !self.joined.is_empty()
    }

    /// The vCPU whose thread the host's kernel works for from now on: it runs on the processor of
    /// that number.
    #[inline]
    pub fn set_cpu(&mut self, vcpu: u8) {
        self.memory.physical.set_cpu(vcpu);
    }

    /// What the placement did, and the state of memory. Looks at every leaf of the VMM process.
    pub fn placement_stats(&self) -> PlacementStats {
        self.memory.placement_stats(self.space.untouched_frames(&self.memory))
    }

    fn no_slot(&self, gpa: Gpa) -> MmError {
        let ranges = self
            .slots
            .iter()
            .map(|s| format!("{:#x}..{:#x}", s.gpa.value(), s.gpa.value() + s.bytes));
        let slots = ranges.collect::<Vec<_>>().join(", ");
        MmError::NoSlot { space: Gpa::SPACE, address: gpa.value(), slots }
    }

    /// The host page behind `gpa` if it was touched already.
    pub fn look_up(&self, gpa: Gpa) -> Option<HostPage> {
        let leaf = self.space.look_up(&self.memory, self.hva(gpa)?).ok()?;
        let page = HostPage { frame: leaf.frame, size: leaf.size, fresh: false };
        Some(self.as_known(gpa, page))
    }

    /// Tells every host page behind guest RAM by ascending gPA, as far as it lies in a slot: the
    /// first gPA, the frame's address, bytes.
    pub fn each_page(&self, tell: &mut dyn FnMut(Gpa, Hpa, u64)) {
        let (memory, mode, root) =
            (&self.memory.tables, self.space.config().mode, self.space.root());
        for slot in &self.slots {
            let range = slot.hva.value()..slot.hva.value() + slot.bytes;
            nestwalk_tables::each_leaf(memory, mode, root, &range, &mut |hva, leaf| {
                let first = hva.max(range.start);
                let bytes = (hva + leaf.size.bytes()).min(range.end) - first;
                let gpa = slot.gpa.offset_by(first - range.start);
                tell(gpa, leaf.frame.offset_by(first - hva), bytes);
            });
        }
    }

    /// The host takes the page behind `gpa` back, as a balloon or `madvise(MADV_DONTNEED)` does:
    /// the next touch finds another one. Returns the page, or `None` if there was none. Whoever
    /// maps it in tables of its own owes their invalidation before the guest runs on.
    ///
    /// # Errors
    /// Splitting or making the mapping again fails for want of memory.
    pub fn discard(&mut self, gpa: Gpa) -> Result<Option<HostPage>, MmError> {
        let (Some(page), Some(hva)) = (self.look_up(gpa), self.hva(gpa)) else { return Ok(None) };
        // Of a segment, whose pages may be larger than the policy's, a page of the policy's size
        // goes.
        let size = page.size.min(self.largest_page());
        let frame = page.frame.offset_by(gpa.offset_in(page.size)).align_down(size);
        let page = HostPage { frame, size, ..page };
        self.merged.remove(&gpa.page_number());
        let (start, bytes) = (hva.align_down(size), size.bytes());
        self.space.unmap(&mut self.memory, start, bytes, &mut Unobserved)?;
        self.space.stays_mapped(start, bytes, Protection::READ_WRITE)?;
        Ok(Some(page))
    }

    /// The host's table pages for guest RAM.
    pub const fn tables(&self) -> &nestwalk_tables::TableMemory<Hpa> {
        &self.memory.tables
    }

    /// A 4 KiB frame for a table of the VMM (nested, shadow), whose contents the VMM keeps.
    pub fn alloc_table(&mut self) -> Option<Hpa> {
        let table = self.memory.physical.alloc(0)?;
        self.memory.counters.add_table();
        self.vmm_tables.insert(table.page_number());
        Some(table)
    }
    /// `2^order` contiguous frames for a table of the VMM that is longer than a page. Each may be
    /// given back by itself.
    pub fn alloc_tables(&mut self, order: u32) -> Option<Hpa> {
        let first = self.memory.physical.alloc(order)?;
        for page in 0..1u64 << order {
            self.memory.counters.add_table();
            self.vmm_tables.insert(first.page_number() + page);
        }
        Some(first)
    }
    /// Gives a frame of [`HostMemory::alloc_table`] back.
    pub fn free_table(&mut self, table: Hpa) {
        self.memory.physical.free(table, 0);
        self.memory.counters.table_frames -= 1;
        self.vmm_tables.remove(&table.page_number());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::physical::pc_memory_map;
    use nestwalk_tables::{LONG4, LONG5};

    fn host(policy: &str, fragmentation: f64) -> HostMemory {
        let policy = PagePolicy::by_name(policy).unwrap();
        let slots = pc_memory_map(5 * GIB);
        HostMemory::new(16 * GIB, &LONG4, policy, fragmentation, 1, &slots).unwrap()
    }

    #[test]
    fn pages_are_congruent_and_inside_of_their_slot() {
        for (policy, size) in [("4k", 12), ("thp", 21), ("2m", 21), ("1g", 30)] {
            let mut h = host(policy, 0.0);
            for gpa in [0x1000, 0x4012_3456, 0xbfff_f000, 0x1_0000_0000, 0x1_7fff_ffff] {
                let gpa = Gpa::new(gpa);
                assert_eq!(h.look_up(gpa), None);
                let page = h.ensure(gpa).unwrap();
                assert_eq!((page.size.shift(), page.fresh), (size, true), "{policy} {gpa:?}");
                assert_eq!(page.frame.offset_in(page.size), 0);
                let hva = h.hva(gpa).unwrap();
                assert_eq!(hva.offset_in(PageSize::SIZE_1G), gpa.offset_in(PageSize::SIZE_1G));
                assert!(h.hva(gpa.align_down(page.size)).is_some());
                assert_eq!(h.ensure(gpa).unwrap(), HostPage { fresh: false, ..page });
                assert_eq!(h.look_up(gpa), Some(HostPage { fresh: false, ..page }));
            }
        }
    }

    #[test]
    fn outside_of_every_slot_is_an_error_that_names_them() {
        let mut h = host("4k", 0.0);
        let e = h.ensure(Gpa::new(0xc000_0000)).unwrap_err().to_string();
        assert!(e.contains("0xc0000000") && e.contains("0x0..0xc0000000"), "{e}");
        assert!(h.ensure(Gpa::new(6 * GIB)).is_err());
    }

    #[test]
    fn a_slot_that_ends_early_has_small_pages_there() {
        let policy = PagePolicy::by_name("1g").unwrap();
        let slots = [(Gpa::new(0x20_0000), 0x40_1000)];
        let mut h = HostMemory::new(4 * GIB, &LONG5, policy, 0.0, 1, &slots).unwrap();
        assert_eq!(h.ensure(Gpa::new(0x20_0000)).unwrap().size, PageSize::SIZE_2M);
        assert_eq!(h.ensure(Gpa::new(0x60_0000)).unwrap().size, PageSize::SIZE_4K);
        assert!(h.ensure(Gpa::new(0x60_1000)).is_err());
    }

    #[test]
    fn a_fragmented_host_falls_back_to_4_kib() {
        let mut h = host("thp", 1.0);
        assert_eq!(h.ensure(Gpa::new(0)).unwrap().size, PageSize::SIZE_4K);
        assert_eq!(h.counters().fallbacks, 1);
        let tables = h.counters().table_frames;
        let t = h.alloc_table().unwrap();
        assert_eq!(h.counters().table_frames, tables + 1);
        h.free_table(t);
        assert_eq!(h.counters().table_frames, tables);
    }

    #[test]
    fn a_discarded_page_comes_back_at_the_next_touch() {
        for policy in ["4k", "2m"] {
            let mut h = host(policy, 0.0);
            let (a, b) = (Gpa::new(0x40_1000), Gpa::new(0x80_0000));
            let old = [h.ensure(a).unwrap(), h.ensure(b).unwrap()];
            let free = h.physical().free_frames();
            assert_eq!(h.discard(a).unwrap(), Some(HostPage { fresh: false, ..old[0] }));
            assert_eq!(h.look_up(a), None);
            assert_eq!(h.look_up(b), Some(HostPage { fresh: false, ..old[1] }));
            assert!(h.physical().free_frames() >= free + old[0].size.base_pages());
            assert_eq!(h.discard(a).unwrap(), None);
            assert_eq!(h.discard(Gpa::new(0xc000_0000)).unwrap(), None);
            let new = h.ensure(a).unwrap();
            assert!(new.fresh && new.size == old[0].size);
        }
    }

    #[test]
    fn the_host_can_be_full() {
        let slots = [(Gpa::new(0), 1 << 30)];
        let mut h = HostMemory::new(64 << 20, &LONG4, PagePolicy::Base, 0.0, 1, &slots).unwrap();
        let e = (0..1u64 << 18).find_map(|i| h.ensure(Gpa::new(i << 12)).err()).unwrap();
        assert!(matches!(e, MmError::OutOfMemory { space: "hVA", .. }), "{e}");
    }
}
