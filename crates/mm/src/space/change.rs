//! Map, unmap, protect, and the end of an address space.

use crate::error::MmError;
use crate::space::gather::Gather;
use crate::space::swap::is_swapped;
use crate::space::{AddressSpace, Memory, Observer, size_index};
use nestwalk_tables::{Entry, Level, entry};
use nestwalk_types::{Address, Protection};

/// The part of the address space that a recursion over tables is about.
#[derive(Clone, Copy)]
struct Range {
    start: u64,
    end: u64,
}

impl<I: Address, O: Address> AddressSpace<I, O> {
    /// Maps a range (`mmap` with `MAP_FIXED`: what was mapped in it before is unmapped first).
    ///
    /// # Errors
    /// A range that is not made of whole pages or lies outside of the mode's range; no frame for a
    /// table when a large page must be split.
    pub fn map(
        &mut self,
        memory: &mut Memory<O>,
        start: I,
        bytes: u64,
        protection: Protection,
        observer: &mut impl Observer<I, O>,
    ) -> Result<(), MmError> {
        self.unmap(memory, start, bytes, observer)?;
        let (start, end) = self.range(start, bytes)?;
        if start < end {
            self.vmas.insert(start, end, protection);
            self.consider(memory, start, end, protection, observer)?;
            self.placement_mapped(memory, (start, end), observer)?;
        }
        Ok(())
    }

    /// A range whose pages were taken back is a mapping still (`madvise(MADV_DONTNEED)`), with
    /// nothing in it until it is touched, whatever the placement does for new mappings.
    ///
    /// # Errors
    /// As [`AddressSpace::map`].
    pub(crate) fn stays_mapped(
        &mut self,
        start: I,
        bytes: u64,
        protection: Protection,
    ) -> Result<(), MmError> {
        let (start, end) = self.range(start, bytes)?;
        self.vmas.insert(start, end, protection);
        Ok(())
    }

    /// Maps, with `protection`, what is not mapped in the aligned block of `bytes` around an
    /// address, up to the mappings on both sides. False if the address is mapped already.
    ///
    /// # Errors
    /// An address outside of the mode's range; no frame, if the placement makes pages present at
    /// once.
    pub fn map_around(
        &mut self,
        memory: &mut Memory<O>,
        address: I,
        bytes: u64,
        protection: Protection,
        observer: &mut impl Observer<I, O>,
    ) -> Result<bool, MmError> {
        let plain = self.plain(address)?;
        if self.vmas.find(plain).is_some() {
            return Ok(false);
        }
        let (before, after) = self.vmas.gap(plain);
        let first = plain & !(bytes - 1);
        let (start, end) = (first.max(before), (first + bytes).min(after));
        self.vmas.insert(start, end, protection);
        self.placement_mapped(memory, (start, end), observer)?;
        Ok(true)
    }

    /// Maps, with `protection`, what is not mapped in a range. Returns the number of gaps filled.
    ///
    /// # Errors
    /// As [`AddressSpace::map`].
    pub fn map_gaps(
        &mut self,
        memory: &mut Memory<O>,
        start: I,
        bytes: u64,
        protection: Protection,
        observer: &mut impl Observer<I, O>,
    ) -> Result<u64, MmError> {
        let (start, end) = self.range(start, bytes)?;
        let mut gaps = 0;
        while let Some((from, to)) = self.vmas.first_gap(start, end) {
            self.vmas.insert(from, to, protection);
            self.consider(memory, from, to, protection, observer)?;
            self.placement_mapped(memory, (from, to), observer)?;
            gaps += 1;
        }
        Ok(gaps)
    }

    /// Unmaps everything in a range (`munmap`): leaves are cleared, tables that no mapping needs
    /// any more are unlinked (`free_pgtables`), the invalidation is made, and then frames are free.
    ///
    /// A large page that reaches over an end is split; the part that goes is free at once, where
    /// Linux keeps it until the page is split in physical memory, too (`deferred_split_folio`).
    ///
    /// # Errors
    /// As [`AddressSpace::map`].
    pub fn unmap(
        &mut self,
        memory: &mut Memory<O>,
        start: I,
        bytes: u64,
        observer: &mut impl Observer<I, O>,
    ) -> Result<(), MmError> {
        let (start, end) = self.range(start, bytes)?;
        if self.vmas.first_gap(start, end) == Some((start, end)) || start == end {
            return Ok(());
        }
        self.leave_region(memory, start, end, observer);
        self.split_at(memory, start, observer)?;
        self.split_at(memory, end, observer)?;
        self.vmas.remove(start, end);
        let levels = self.config.mode.levels;
        self.zap(memory, self.root, levels, Range { start, end }, observer);
        let (floor, ceiling) = self.vmas.gap(start);
        let (range, free) = (Range { start, end }, Range { start: floor, end: ceiling });
        self.unlink(memory, self.root, levels, range, free, observer);
        self.flush(memory, observer);
        self.placement.unmapped(&mut memory.physical, start, end);
        Ok(())
    }

    pub(super) fn flush(&mut self, memory: &mut Memory<O>, observer: &mut impl Observer<I, O>) {
        let mut gather = std::mem::take(&mut self.gather);
        gather.flush(memory, |plain| self.typed(plain), observer);
        self.gather = gather;
    }

    /// Clears every leaf in a range and frees what it mapped; tables and mappings stay.
    pub(super) fn clear_leaves(
        &mut self,
        memory: &mut Memory<O>,
        start: u64,
        end: u64,
        observer: &mut impl Observer<I, O>,
    ) {
        let levels = self.config.mode.levels;
        self.zap(memory, self.root, levels, Range { start, end }, observer);
        self.flush(memory, observer);
    }

    /// Clears every leaf in the range; none reaches over its ends.
    fn zap(
        &mut self,
        memory: &mut Memory<O>,
        table: O,
        level: Level,
        range: Range,
        observer: &mut impl Observer<I, O>,
    ) {
        let (mode, mut address) = (self.config.mode, range.start);
        let size = mode.span(level);
        while address < range.end {
            let next = ((address | size.mask()) + 1).min(range.end);
            let at = mode.entry_at(table, address, level);
            let entry = self.read(memory, at);
            if !entry.is_present() {
                if level == 1 && is_swapped(entry) && memory.swap.is_some() {
                    self.store(memory, at, Entry(0), observer);
                    memory.swap.iter_mut().for_each(|swap| swap.entry_cleared(entry));
                }
            } else if self.is_leaf(entry, level) {
                self.store(memory, at, Entry(0), observer);
                memory.counters.leaves[size_index(size)] -= 1;
                if self.gather.page(address, size, entry.frame(size)) {
                    self.flush(memory, observer);
                }
            } else {
                let part = Range { start: address, end: next };
                self.zap(memory, entry.target(), level - 1, part, observer);
            }
            address = next;
        }
    }

    /// Unlinks the tables that cover a part of `range` and lie in `free` as a whole, lower ones
    /// first. PAE's root keeps its entries: see [`AddressSpace::new`].
    fn unlink(
        &mut self,
        memory: &mut Memory<O>,
        table: O,
        level: Level,
        range: Range,
        free: Range,
        observer: &mut impl Observer<I, O>,
    ) {
        let (mode, mut address) = (self.config.mode, range.start);
        let mask = mode.span(level).mask();
        while address < range.end {
            let next = ((address | mask) + 1).min(range.end);
            let at = mode.entry_at(table, address, level);
            let entry = self.read(memory, at);
            if entry.is_present() && !self.is_leaf(entry, level) {
                if level > 2 {
                    let part = Range { start: address, end: next };
                    self.unlink(memory, entry.target(), level - 1, part, free, observer);
                }
                let first = address & !mask;
                let kept = mode.root_in_registers && level == mode.levels;
                if first >= free.start && first + mask < free.end && !kept {
                    self.store(memory, at, Entry(0), observer);
                    let from = address & !mode.span(2).mask();
                    self.gather.table(from, entry.target());
                }
            }
            address = next;
        }
    }

    /// Gives everything in a range these permissions (`mprotect`). As in Linux a page that is not
    /// shared becomes writable at once if the mapping does (`can_change_pte_writable`), and each
    /// entry that changes is taken out and put back (`ptep_modify_prot_start`, `_commit`).
    ///
    /// # Errors
    /// As [`AddressSpace::map`].
    pub fn protect(
        &mut self,
        memory: &mut Memory<O>,
        start: I,
        bytes: u64,
        protection: Protection,
        observer: &mut impl Observer<I, O>,
    ) -> Result<(), MmError> {
        let (start, end) = self.range(start, bytes)?;
        if start == end {
            return Ok(());
        }
        if !protection.write {
            self.leave_region(memory, start, end, observer);
        }
        self.split_at(memory, start, observer)?;
        self.split_at(memory, end, observer)?;
        let levels = self.config.mode.levels;
        let parts = self.vmas.protect(start, end, protection);
        for part in &parts {
            if part.protection != protection {
                let range = Range { start: part.start, end: part.end };
                self.change(memory, self.root, levels, range, protection, observer);
            }
        }
        self.flush(memory, observer);
        for part in parts {
            self.consider(memory, part.start, part.end, protection, observer)?;
        }
        Ok(())
    }

    fn change(
        &mut self,
        memory: &mut Memory<O>,
        table: O,
        level: Level,
        range: Range,
        protection: Protection,
        observer: &mut impl Observer<I, O>,
    ) {
        let (mode, mut address) = (self.config.mode, range.start);
        let size = mode.span(level);
        while address < range.end {
            let next = ((address | size.mask()) + 1).min(range.end);
            let at = mode.entry_at(table, address, level);
            let entry = self.read(memory, at);
            if !entry.is_present() {
            } else if self.is_leaf(entry, level) {
                let new = self.with_protection(memory, entry, size, protection);
                self.store(memory, at, Entry(0), observer);
                self.store(memory, at, new, observer);
                if new != entry {
                    self.gather.change(address, size);
                }
            } else {
                let part = Range { start: address, end: next };
                self.change(memory, entry.target(), level - 1, part, protection, observer);
            }
            address = next;
        }
    }

    fn with_protection(
        &self,
        memory: &Memory<O>,
        leaf: Entry,
        size: nestwalk_types::PageSize,
        protection: Protection,
    ) -> Entry {
        let has_nx = self.config.mode.entry_bytes == 8;
        let leaf = if protection.execute || !has_nx {
            leaf.without(entry::NO_EXECUTE)
        } else {
            leaf.with(entry::NO_EXECUTE)
        };
        if !protection.write {
            leaf.without(entry::WRITE)
        } else if leaf.has(entry::WRITE) || memory.is_shared(leaf.frame(size), size) {
            leaf
        } else {
            leaf.with(entry::WRITE).without(entry::SOFT_COW)
        }
    }

    /// Unmaps everything (`exit_mmap`); the root stays. Whatever is owed, everything is
    /// invalidated.
    pub fn clear(&mut self, memory: &mut Memory<O>, observer: &mut impl Observer<I, O>) {
        let all = Range { start: 0, end: self.config.mode.address_mask() + 1 };
        let levels = self.config.mode.levels;
        self.drop_region(memory, observer);
        self.vmas.clear();
        self.gather.everything();
        self.zap(memory, self.root, levels, all, observer);
        self.unlink(memory, self.root, levels, all, all, observer);
        self.flush(memory, observer);
        self.gather = Gather::default();
        self.placement.unmapped(&mut memory.physical, all.start, all.end);
    }

    /// The end: unmaps everything and frees the root.
    pub fn destroy(mut self, memory: &mut Memory<O>, observer: &mut impl Observer<I, O>) {
        self.clear(memory, observer);
        let mode = self.config.mode;
        if mode.root_in_registers {
            for i in 0..mode.entries(mode.levels) {
                let at = self.root.offset_by(i * u64::from(mode.entry_bytes));
                let below = self.read(memory, at);
                if below.is_present() {
                    memory.free_table(below.target());
                }
            }
        }
        memory.free_table(self.root);
    }
}
