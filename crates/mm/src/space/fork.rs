//! fork: a copy-on-write copy of an address space.

use crate::error::MmError;
use crate::space::swap::is_swapped;
use crate::space::{AddressSpace, Flush, Memory, Observer, out_of_memory, size_index};
use nestwalk_tables::{Entry, Level, entry};
use nestwalk_types::Address;

impl<I: Address, O: Address> AddressSpace<I, O> {
    /// A copy whose pages are shared until one side writes (`dup_mmap`, `copy_page_range`): tables
    /// of the child are made as entries need them, each writable leaf is write-protected in the
    /// parent just before its copy is stored in the child, and at the end everything of the parent
    /// is invalidated, whether something was write-protected or not. Leaves of the child are old
    /// (`pte_mkold`). Large pages are shared as they are.
    ///
    /// A primary region ends: what is shared and write-protected cannot be in a segment, whose pages are
    /// all writable. Parent and child go on with paging until they map memory anew.
    ///
    /// # Errors
    /// No frame for a table; then the child is gone and the parent's pages are write-protected in
    /// part.
    pub fn fork(
        &mut self,
        memory: &mut Memory<O>,
        observer: &mut impl Observer<I, O>,
    ) -> Result<Self, MmError> {
        self.drop_region(memory, observer);
        let mut child = Self::with(self.config, self.placement.forked(), memory, observer)?;
        child.vmas = self.vmas.clone();
        let levels = self.config.mode.levels;
        let copied = self.copy_tables(memory, self.root, child.root, levels, observer);
        observer.invalidate(Flush::All);
        match copied {
            Ok(()) => Ok(child),
            Err(e) => {
                child.destroy(memory, &mut crate::space::Unobserved);
                Err(e)
            }
        }
    }

    fn copy_tables(
        &self,
        memory: &mut Memory<O>,
        from: O,
        to: O,
        level: Level,
        observer: &mut impl Observer<I, O>,
    ) -> Result<(), MmError> {
        let mode = self.config.mode;
        for i in 0..mode.entries(level) {
            let offset = i * u64::from(mode.entry_bytes);
            let (source, target) = (from.offset_by(offset), to.offset_by(offset));
            let mut entry = self.read(memory, source);
            if !entry.is_present() {
                // `copy_nonpresent_pte`, `swap_duplicate`.
                if level == 1 && is_swapped(entry) && memory.swap.is_some() {
                    self.store(memory, target, entry, observer);
                    memory.swap.iter_mut().for_each(|swap| swap.entry_copied(entry));
                }
                continue;
            }
            if self.is_leaf(entry, level) {
                let size = mode.span(level);
                if entry.has(entry::WRITE) {
                    entry = entry.without(entry::WRITE).with(entry::SOFT_COW);
                    self.store(memory, source, entry, observer);
                }
                memory.share(entry.frame(size), size);
                memory.counters.leaves[size_index(size)] += 1;
                let leaf = entry.without(entry::ACCESSED).with(entry::SOFT_COW);
                self.store(memory, target, leaf, observer);
                continue;
            }
            let below = self.read(memory, target);
            let table = if below.is_present() {
                below.target()
            } else {
                let table = memory.new_table().ok_or_else(|| out_of_memory::<I>(0))?;
                observer.table_new(table, level - 1);
                self.store(memory, target, Entry::table(table), observer);
                table
            };
            self.copy_tables(memory, entry.target(), table, level - 1, observer)?;
        }
        Ok(())
    }
}
