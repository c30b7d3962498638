//! A copy of the nested tables on each node (vMitosis, ASPLOS 2021): every store is made in each,
//! walkers of a node's cores read its own, and an entry was accessed if it was in any.
//!
//! The tables themselves are the copy of node 0.

use super::{FromHost, NestedMmu, clear, empty_root, free_below, take};
use crate::hardware::walk::NestedTables;
use crate::scheme::{MachineError, Platform};
use nestwalk_mm::HostMemory;
use nestwalk_tables::entry::LARGE;
use nestwalk_tables::{Entry, Level, MapError, TableMemory, store};
use nestwalk_types::{Gpa, Hpa, PageSize};

/// The tables of a node from 1 on.
pub(super) struct NodeCopy {
    memory: TableMemory<Hpa>,
    root: Hpa,
}

const NO_FRAME: MachineError =
    MachineError::NoTableFrame { machine: String::new(), what: "copy of a nested table" };

impl NestedMmu {
    /// There is a copy on each of so many nodes. Nothing may be mapped yet.
    ///
    /// # Errors
    /// There is no host, or no frame.
    pub fn replicate(
        &mut self,
        nodes: u8,
        host: &mut Option<HostMemory>,
    ) -> Result<(), MachineError> {
        for _ in 1..nodes {
            let (memory, root) = empty_root(self.mode, host).ok_or(NO_FRAME)?;
            self.copies.push(NodeCopy { memory, root });
        }
        Ok(())
    }

    /// What the walker of a core reads whose node is `node`.
    #[inline]
    pub fn tables_on(&mut self, node: impl FnOnce() -> u8) -> NestedTables<'_> {
        if !self.copies.is_empty()
            && let Some(i) =
                node().checked_sub(1).map(usize::from).filter(|i| *i < self.copies.len())
        {
            let (mode, ad, NodeCopy { memory, root }) =
                (self.mode, self.rules.ept_ad, &mut self.copies[i]);
            return NestedTables { mode, memory, root: *root, ad };
        }
        self.tables()
    }

    /// Bytes of the copies.
    pub(super) fn copied_bytes(&self) -> u64 {
        self.copies.iter().map(|copy| copy.memory.len() * 4096).sum()
    }

    /// Frames of all copies but the first.
    pub(super) fn copied_frames(&self) -> impl Iterator<Item = Hpa> {
        self.copies.iter().flat_map(|copy| copy.memory.pages())
    }

    /// Stores an entry in each copy.
    pub(super) fn store_copies(
        &mut self,
        platform: &mut Platform,
        gpa: Gpa,
        level: Level,
        entry: Entry,
    ) -> Result<(), MachineError> {
        for (i, NodeCopy { memory, root }) in self.copies.iter_mut().enumerate() {
            let host = platform.host.as_mut().ok_or(NO_FRAME)?;
            let mut owner = FromHost::new(host);
            let stored = store(memory, self.mode, *root, gpa, level, entry, &mut owner);
            let (made, stores) = (owner.made, owner.stores);
            match stored {
                Ok((_, old)) if level > 1 && old.is_present() && !old.has(LARGE) => {
                    free_below(memory, self.mode, (old.target(), level - 1), host);
                }
                Ok(_) | Err(MapError::Occupied(_)) => {}
                Err(MapError::OutOfMemory) => return Err(NO_FRAME),
            }
            let counters = &mut platform.cpu.counters;
            counters.nested_copy_stores += stores;
            counters.nested_copy_pages += made.len() as u64;
            if let Some(nodes) = platform.cpu.hardware.caches.nodes_mut() {
                if nodes.of(*root).is_none() {
                    nodes.place(*root, self.mode.table_bytes(self.mode.levels), i as u8 + 1);
                }
                for table in made {
                    nodes.place(table, 4096, i as u8 + 1);
                }
            }
        }
        Ok(())
    }

    /// Clears what maps a range in each copy.
    pub(super) fn clear_copies(&mut self, platform: &mut Platform, at: Gpa, bytes: u64) {
        let Some(host) = &mut platform.host else { return };
        for NodeCopy { memory, root } in &mut self.copies {
            let mut owner = FromHost::new(host);
            clear(memory, (self.mode, *root), at, bytes, &mut owner);
            platform.cpu.counters.nested_copy_stores += owner.stores;
        }
    }

    /// Whether an entry of the range was accessed in a copy; the bits are clear from now on.
    pub(super) fn take_copied(&mut self, at: Gpa, size: PageSize) -> bool {
        let mode = self.mode;
        let mut any = false;
        for NodeCopy { memory, root } in &mut self.copies {
            any |= take(memory, (mode, *root), at, size);
        }
        any
    }

    /// Gives the copies back.
    pub(super) fn unload_copies(&self, host: &mut HostMemory) {
        self.copied_frames().for_each(|table| host.free_table(table));
    }
}
