//! Guest tables that move to the node of what they point to (vMitosis, ASPLOS 2021), as the guest's
//! kernel moves them: it takes another page, copies the table, and has every vCPU forget the old one.
//! The model keeps the page's address, as it does for every placement.

use crate::hypervisor::nested_mmu::belongs;
use crate::scheme::Platform;
use crate::scheme::node_options::MOST;
use nestwalk_tables::entry::LARGE;
use nestwalk_tables::{Entry, Level};
use nestwalk_types::{Address, Gpa, OsWork};
use rustc_hash::FxHashMap;

struct Scan<'a> {
    platform: &'a Platform,
    /// Node of each table that was looked at, by its frame number.
    seen: FxHashMap<u64, u8>,
    moves: Vec<(Gpa, u8)>,
}

impl Scan<'_> {
    fn node(&self, at: Gpa) -> Option<u8> {
        let nodes = self.platform.cpu.hardware.caches.nodes()?;
        nodes.of(self.platform.frame_of(at)?)
    }

    /// Looks at a table and those below it; its node from now on.
    fn table(&mut self, table: Gpa, level: Level) -> Option<u8> {
        if let Some(node) = self.seen.get(&table.page_number()) {
            return Some(*node);
        }
        let (world, own) = (&self.platform.cpu.world, self.node(table)?);
        // Before what is below it: tables that point to themselves end here.
        self.seen.insert(table.page_number(), own);
        let (mode, mut counts) = (world.mode, [0; MOST as usize]);
        for i in 0..mode.entries(level) {
            let at = table.offset_by(i * u64::from(mode.entry_bytes));
            let entry = Entry(world.guest.read(at, mode.entry_bytes)?);
            if !entry.is_present() {
                continue;
            }
            let leaf = level == 1 || (mode.may_be_leaf(level) && entry.has(LARGE));
            let node = if leaf {
                self.node(entry.frame(mode.span(level)))
            } else {
                self.table(entry.target(), level - 1)
            };
            if let Some(node) = node {
                counts[usize::from(node)] += 1;
            }
        }
        let to = belongs(&counts, own)?;
        self.moves.push((table, to));
        self.seen.insert(table.page_number(), to);
        Some(to)
    }
}

/// Moves the guest's tables to the nodes where they belong; how many.
pub fn migrate(platform: &mut Platform) -> u64 {
    let world = &platform.cpu.world;
    let (roots, level): (Vec<u64>, _) = (world.known_roots.iter().collect(), world.mode.levels);
    let mut scan = Scan { platform, seen: FxHashMap::default(), moves: Vec::new() };
    for root in roots {
        scan.table(Gpa::new(root), level);
    }
    let (looked, moves) = (scan.seen.len() as u64, scan.moves);
    for (table, node) in &moves {
        if let Some(frame) = platform.frame_of(*table)
            && let Some(nodes) = platform.cpu.hardware.caches.nodes_mut()
        {
            nodes.place(frame, 4096, *node);
        }
    }
    let running = platform.cpu.world.roots.iter().filter(|root| **root != Gpa::new(0)).count();
    let counters = &mut platform.cpu.counters;
    counters.guest_tables_scanned += looked;
    counters.guest_tables_moved += moves.len() as u64;
    if !moves.is_empty() {
        let others = (running as u64).saturating_sub(1);
        counters.os_work[OsWork::Shootdown.index()] += others;
        platform.interrupted(others);
        platform.cpu.hardware.invalidate_everywhere();
    }
    moves.len() as u64
}
