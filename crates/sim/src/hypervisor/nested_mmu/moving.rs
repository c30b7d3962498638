//! Nested tables that move to the node of what they point to (vMitosis, ASPLOS 2021): from the leaves
//! up, a table more than half of whose entries point to another node goes there.

use super::NestedMmu;
use crate::scheme::Platform;
use crate::scheme::node_options::MOST;
use nestwalk_hw::cache::Nodes;
use nestwalk_mm::HostMemory;
use nestwalk_tables::entry::{FRAME, LARGE};
use nestwalk_tables::{Entry, Level, Mode, TableMemory};
use nestwalk_types::{Address, Hpa};

/// Where a table belongs whose entries point to so many frames on each node: elsewhere, if more than
/// half are there.
pub(in crate::hypervisor) fn belongs(counts: &[u64; MOST as usize], own: u8) -> Option<u8> {
    let all: u64 = counts.iter().sum();
    let (most, count) = counts.iter().enumerate().max_by_key(|(i, n)| (**n, usize::MAX - i))?;
    (most != usize::from(own) && 2 * count > all).then_some(most as u8)
}

struct Scan<'a> {
    mode: &'static Mode,
    memory: &'a mut TableMemory<Hpa>,
    host: &'a mut HostMemory,
    nodes: &'a mut Nodes,
    looked: u64,
    moved: u64,
}

impl Scan<'_> {
    /// Looks at a table and those below it; where it is from now on.
    fn table(&mut self, table: Hpa, level: Level) -> Hpa {
        let bytes = self.mode.entry_bytes;
        let mut counts = [0; MOST as usize];
        for i in 0..self.mode.entries(level) {
            let at = table.offset_by(i * u64::from(bytes));
            let entry = Entry(self.memory.read(at, bytes).unwrap_or(0));
            if !entry.is_present() {
                continue;
            }
            let target = if level > 1 && !entry.has(LARGE) {
                let child: Hpa = entry.target();
                let now = self.table(child, level - 1);
                if now != child {
                    self.memory.write(at, bytes, entry.0 & !FRAME | now.value());
                }
                now
            } else {
                entry.frame(self.mode.span(level))
            };
            if let Some(node) = self.nodes.of(target) {
                counts[usize::from(node)] += 1;
            }
        }
        self.looked += 1;
        if self.mode.table_bytes(level) > 4096 {
            // A root of several pages stays where it is.
            return table;
        }
        let own = self.nodes.of(table).unwrap_or(0);
        belongs(&counts, own).map_or(table, |node| self.to(table, node))
    }

    /// Moves a table; where there is no frame for it, it stays.
    fn to(&mut self, table: Hpa, node: u8) -> Hpa {
        let Some(new) = self.host.alloc_table() else { return table };
        let words = self.memory.page(table).map(|page| page.into_owned());
        self.memory.insert(new, words.as_ref());
        self.memory.remove(table);
        self.host.free_table(table);
        self.nodes.forget(table);
        self.nodes.place(new, 4096, node);
        self.moved += 1;
        new
    }
}

impl NestedMmu {
    /// Moves tables to the nodes where they belong; how many. What hardware remembers of them is
    /// flushed.
    pub fn migrate_tables(&mut self, platform: &mut Platform) -> u64 {
        let Some(host) = &mut platform.host else { return 0 };
        let Some(nodes) = platform.cpu.hardware.caches.nodes_mut() else { return 0 };
        let memory = &mut self.memory;
        let mut scan = Scan { mode: self.mode, memory, host, nodes, looked: 0, moved: 0 };
        self.root = scan.table(self.root, self.mode.levels);
        let Scan { looked, moved, .. } = scan;
        platform.cpu.counters.nested_tables_scanned += looked;
        platform.cpu.counters.nested_tables_moved += moved;
        if moved > 0 {
            platform.flush_remote_nested();
        }
        moved
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_belongs_where_more_than_half_of_its_entries_point() {
        let of = |counts: [u64; 3], own| {
            let mut all = [0; MOST as usize];
            all[..3].copy_from_slice(&counts);
            belongs(&all, own)
        };
        assert_eq!(of([0, 0, 0], 0), None);
        assert_eq!(of([4, 5, 0], 0), Some(1));
        assert_eq!(of([5, 5, 0], 0), None);
        assert_eq!(of([5, 5, 0], 2), None);
        assert_eq!(of([1, 4, 4], 0), None);
        assert_eq!(of([0, 9, 1], 1), None);
    }
}
