//! A copy of the guest's tables on each node (vMitosis, ASPLOS 2021), which the guest's kernel keeps: a
//! vCPU's CR3 points to the copy of its node, and every store to a table is made in each copy.
//!
//! The guest's own tables are the copy of node 0. A table is copied from when it is linked to a root
//! that was loaded, so that its level is known: pointers to tables are those of the copy, all else is
//! the same. Pages for copies lie beyond the guest's memory, 512 at a time for a node.

use crate::hardware::world::{GuestCopy, World};
use crate::hypervisor::nested_mmu::NestedMmu;
use crate::scheme::{Event, MachineError, Platform};
use nestwalk_tables::entry::{FRAME, LARGE};
use nestwalk_tables::{Entry, Level, TableMemory};
use nestwalk_types::{Address, Gpa, PageSize, VcpuId};
use rustc_hash::FxHashMap;

/// Where the pages of copies begin: 1 TiB, beyond the memory of any guest here.
const BEYOND: u64 = 1 << 40;
const CHUNK: u64 = 512 << 12;

/// A table that is copied.
struct Copied {
    level: Level,
    /// Its pages on the nodes from 1 on.
    pages: Vec<Gpa>,
}

/// The copies of a guest's tables.
pub struct GuestCopies {
    tables: FxHashMap<u64, Copied>,
    /// Free pages of each node from 1 on.
    free: Vec<Vec<Gpa>>,
    next: u64,
    /// A table was linked at two levels, as no kernel here does it: there are no copies any more.
    given_up: bool,
}

impl GuestCopies {
    /// No table is copied yet.
    pub fn new(nodes: u8) -> Self {
        let free = vec![Vec::new(); usize::from(nodes.max(1)) - 1];
        Self { tables: FxHashMap::default(), free, next: BEYOND, given_up: false }
    }

    /// Hears of an event whose effect the guest's own tables have.
    ///
    /// # Errors
    /// There is no memory for a copy, or the guest has new memory.
    pub fn on(
        &mut self,
        platform: &mut Platform,
        mmu: &mut NestedMmu,
        event: &Event<'_>,
    ) -> Result<(), MachineError> {
        if self.given_up {
            return Ok(());
        }
        match *event {
            Event::LoadCr3 { vcpu, .. } => self.loaded(platform, mmu, vcpu),
            Event::TableStore { at, new, .. } => self.stored(platform, mmu, at, new),
            Event::TableAdded { at, .. } => match self.tables.get(&at.page_number()) {
                Some(table) => {
                    let level = table.level;
                    self.fill(platform, mmu, at, level)
                }
                None => Ok(()),
            },
            Event::TableRetired { at, .. } => {
                self.drop_page(&mut platform.cpu.world, at);
                Ok(())
            }
            Event::PageWritten { at, size, .. } if !self.tables.is_empty() => {
                for i in 0..size.base_pages() {
                    self.drop_page(&mut platform.cpu.world, at.offset_by(i << 12));
                }
                Ok(())
            }
            Event::MemoryAdded { .. } => Err(MachineError::Variant {
                machine: String::new(),
                reason:
                    "copies: pages for copies of the guest's tables lie beyond its memory, which \
                         grows; take a guest that adds none"
                        .into(),
            }),
            _ => Ok(()),
        }
    }

    fn loaded(
        &mut self,
        platform: &mut Platform,
        mmu: &mut NestedMmu,
        vcpu: VcpuId,
    ) -> Result<(), MachineError> {
        if platform.cpu.world.copies.is_empty() {
            let vcpus = platform.cpu.world.roots.len();
            let copy = || GuestCopy { memory: TableMemory::new(), roots: vec![Gpa::new(0); vcpus] };
            platform.cpu.world.copies = (0..self.free.len()).map(|_| copy()).collect();
            if let Some(nodes) = platform.cpu.hardware.caches.nodes() {
                platform.cpu.world.nodes = (0..vcpus).map(|core| nodes.of_core(core)).collect();
            }
        }
        let (root, level) = (platform.cpu.world.root(vcpu), platform.cpu.world.mode.levels);
        self.adopt(platform, mmu, root, level)?;
        if let Some(table) = self.tables.get(&root.page_number()) {
            for (copy, page) in platform.cpu.world.copies.iter_mut().zip(&table.pages) {
                copy.roots[usize::from(vcpu.0)] = *page;
            }
        }
        Ok(())
    }

    /// A table is copied from now on, with all that is below it.
    fn adopt(
        &mut self,
        platform: &mut Platform,
        mmu: &mut NestedMmu,
        table: Gpa,
        level: Level,
    ) -> Result<(), MachineError> {
        match self.tables.get(&table.page_number()) {
            Some(known) if known.level == level => return Ok(()),
            Some(_) => {
                self.give_up(platform);
                return Ok(());
            }
            None if self.given_up || !platform.cpu.world.guest.contains(table) => return Ok(()),
            None => {}
        }
        let mut pages = Vec::new();
        for node in 1..=self.free.len() {
            pages.push(self.page(platform, mmu, node)?);
        }
        for (copy, page) in platform.cpu.world.copies.iter_mut().zip(&pages) {
            copy.memory.insert(*page, None);
        }
        platform.cpu.counters.guest_copy_pages += pages.len() as u64;
        self.tables.insert(table.page_number(), Copied { level, pages });
        self.fill(platform, mmu, table, level)
    }

    /// A page for a table of a node, which the guest's kernel clears.
    fn page(
        &mut self,
        platform: &mut Platform,
        mmu: &mut NestedMmu,
        node: usize,
    ) -> Result<Gpa, MachineError> {
        if self.free[node - 1].is_empty() {
            let start = self.next;
            if let Some(host) = &mut platform.host {
                host.hot_add(Gpa::new(start), CHUNK)?;
            }
            self.next += CHUNK;
            let pages = (0..CHUNK >> 12).rev().map(|page| Gpa::new(start + (page << 12)));
            self.free[node - 1].extend(pages);
        }
        let page = self.free[node - 1].pop().unwrap_or(Gpa::new(self.next));
        let vcpu = platform.vcpu;
        mmu.back(platform, vcpu, page, PageSize::SIZE_4K)?;
        if let Some(frame) = platform.frame_of(page)
            && let Some(nodes) = platform.cpu.hardware.caches.nodes_mut()
        {
            nodes.place(frame, 4096, node as u8);
        }
        Ok(page)
    }

    /// Makes all entries of a table in its copies.
    fn fill(
        &mut self,
        platform: &mut Platform,
        mmu: &mut NestedMmu,
        table: Gpa,
        level: Level,
    ) -> Result<(), MachineError> {
        let mode = platform.cpu.world.mode;
        let Some(words) = platform.cpu.world.guest.page(table).map(|page| page.into_owned()) else {
            return Ok(());
        };
        for (i, word) in words.iter().enumerate().take(mode.entries(level) as usize) {
            let at = table.offset_by(i as u64 * 8);
            self.store_one(platform, mmu, (at, level), *word)?;
        }
        Ok(())
    }

    fn stored(
        &mut self,
        platform: &mut Platform,
        mmu: &mut NestedMmu,
        at: Gpa,
        new: u64,
    ) -> Result<(), MachineError> {
        let Some(table) = self.tables.get(&at.page_number()) else { return Ok(()) };
        let level = table.level;
        self.store_one(platform, mmu, (at, level), new)?;
        platform.cpu.counters.guest_copy_stores += self.free.len() as u64;
        Ok(())
    }

    /// Stores an entry of a table of a level in each copy.
    fn store_one(
        &mut self,
        platform: &mut Platform,
        mmu: &mut NestedMmu,
        (at, level): (Gpa, Level),
        value: u64,
    ) -> Result<(), MachineError> {
        let mode = platform.cpu.world.mode;
        let entry = Entry(value);
        let leaf = level == 1 || (mode.may_be_leaf(level) && entry.has(LARGE));
        let below: Option<Gpa> = (entry.is_present() && !leaf).then(|| entry.target());
        if let Some(below) = below {
            self.adopt(platform, mmu, below, level - 1)?;
        }
        let Some(table) = self.tables.get(&at.page_number()) else { return Ok(()) };
        let child = below.and_then(|below| self.tables.get(&below.page_number()));
        for (i, copy) in platform.cpu.world.copies.iter_mut().enumerate() {
            let target = child.and_then(|c| c.pages.get(i));
            let value = target.map_or(value, |to| value & !FRAME | to.value());
            if let Some(page) = table.pages.get(i) {
                copy.memory.write(page.offset_by(at.offset_in(PageSize::SIZE_4K)), 8, value);
            }
        }
        Ok(())
    }

    /// A page is no table any more.
    fn drop_page(&mut self, world: &mut World, at: Gpa) {
        let Some(table) = self.tables.remove(&at.page_number()) else { return };
        for (i, page) in table.pages.into_iter().enumerate() {
            if let Some(copy) = world.copies.get_mut(i) {
                copy.memory.remove(page);
            }
            self.free[i].push(page);
        }
    }

    /// All vCPUs walk the guest's own tables.
    fn give_up(&mut self, platform: &mut Platform) {
        self.given_up = true;
        self.tables.clear();
        platform.cpu.world.copies.clear();
        platform.cpu.hardware.invalidate_nested_everywhere();
    }
}
