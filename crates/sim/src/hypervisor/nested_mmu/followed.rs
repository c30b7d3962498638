//! What a hypervisor of hypervisors asks of nested tables: its own, which it fills by entries of others,
//! and those of its guest, whose stores it follows.

use super::NestedMmu;
use crate::scheme::{MachineError, Platform};
use nestwalk_tables::{Entry, Level, Mode, look_up};
use nestwalk_types::{Gpa, Hpa, PageSize};

impl NestedMmu {
    /// Stores are written down from now on.
    pub fn keep_journal(&mut self) {
        self.journal = Some(Vec::new());
    }

    /// Where entries were stored since this was last asked, in order.
    pub fn take_journal(&mut self) -> Vec<Hpa> {
        self.journal.as_mut().map_or(Vec::new(), std::mem::take)
    }

    /// Paging mode of the tables.
    pub const fn mode(&self) -> &'static Mode {
        self.mode
    }

    /// The root table.
    pub const fn root(&self) -> Hpa {
        self.root
    }

    /// Size of the page that maps an address.
    pub fn mapped_size(&self, gpa: Gpa) -> Option<PageSize> {
        look_up(&self.memory, self.mode, self.root, gpa).ok().map(|leaf| leaf.size)
    }

    /// The table that an entry points to, if it points to one.
    pub fn table_behind(&self, at: Hpa) -> Option<Hpa> {
        let entry = Entry(self.memory.read(at, self.mode.entry_bytes)?);
        let table = entry.target();
        (entry.is_present() && self.memory.contains(table)).then_some(table)
    }

    /// The tables on the way to an address, from the root down.
    pub fn tables_to(&self, gpa: Gpa) -> Vec<Hpa> {
        let mut passed = vec![self.root];
        for level in (2..=self.mode.levels).rev() {
            let at = self.mode.entry_at(passed[passed.len() - 1], gpa.value(), level);
            match self.table_behind(at) {
                Some(table) => passed.push(table),
                None => break,
            }
        }
        passed
    }

    /// Maps a page by an entry of this level to this frame, whatever the host's record has there.
    ///
    /// # Errors
    /// There is no frame for a table.
    pub fn map_frame(
        &mut self,
        platform: &mut Platform,
        gpa: Gpa,
        (level, frame): (Level, Hpa),
    ) -> Result<(), MachineError> {
        self.store_leaf(platform, gpa, level, frame)?;
        platform.cpu.counters.nested_fills += 1;
        Ok(())
    }

    /// Maps what the host has behind an address, by an entry of at most this size; a page that is
    /// fetched from, as `nx_huge_pages` asks for.
    ///
    /// # Errors
    /// Host memory is exhausted, or the address is no guest memory.
    pub fn combine(
        &mut self,
        platform: &mut Platform,
        (gpa, fetch): (Gpa, bool),
        most: PageSize,
    ) -> Result<PageSize, MachineError> {
        if fetch && self.rules.nx_huge_pages {
            return self.map_executed(platform, gpa);
        }
        self.map_at_most(platform, gpa, Some(most))
    }
}
