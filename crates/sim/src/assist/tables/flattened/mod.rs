//! Flattened page tables (Park et al., "Every Walk's a Hit", ASPLOS 2022): nodes of 2 MiB that are two
//! levels of a radix tree in one. The root and the level below it are one node, the two lowest levels
//! another for each GiB, so that a walk has two references.
//!
//! - *Memory.* A node is 2 MiB in one piece. Where there is none the GiB has tables of 4 KiB, as a radix
//!   tree has: one reference more. The guest's memory for tables is contiguous by itself; `refused` says
//!   how many of 100 requests find none. In a host it is the host's memory that has it or not.
//! - *Roots.* A guest has a root node for each root that is loaded. What roots share, the kernel's half,
//!   is in the root node of the first that is.
//! - *Large pages* of 2 MiB: all 512 entries of the flattened node that they cover say so, since it has
//!   no level for them. Pages of 1 GiB are entries of the root node.
//! - *Walk cache.* The paper keeps them: each core has some entries that point below the root node, and
//!   as many that point to tables of base pages, which only unflattened GiBs have.

use super::{Found, Key, NoMemory, Structure, StructureState, Supply, Work};
use nestwalk_tables::Entry;
use parts::{Gib, Part, Root, Top, TopEntry, WalkEntries, touch};
use rustc_hash::FxHashMap;

mod parts;
#[cfg(test)]
mod tests;

/// Bytes of a node.
const NODE: u64 = 2 << 20;
const PAGE: u64 = 4096;
/// Entries of a table of 4 KiB.
const ENTRIES: usize = 512;

/// How tables are set up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlatConfig {
    /// Of 100 requests for a node, those that find no memory in one piece.
    pub refused: u64,
    /// Entries of each walk cache; 0 for none.
    pub cache: usize,
}

impl Default for FlatConfig {
    fn default() -> Self {
        Self { refused: 0, cache: 32 }
    }
}

/// The tables.
pub struct Flattened {
    config: FlatConfig,
    tops: Vec<Top>,
    gibs: Vec<Option<Gib>>,
    free: Vec<u32>,
    roots: FxHashMap<u64, Root>,
    current: Option<u64>,
    /// Nodes of roots that have gone, for the next.
    spare: Vec<u64>,
    cores: Vec<WalkEntries>,
    requests: u64,
    bytes: u64,
    sizes: [u64; 3],
    work: Work,
}

const SHIFTS: [u8; 3] = [12, 21, 30];

impl Flattened {
    /// No tables, for so many cores. `root`: the root of one address space, a host's; a guest's come as
    /// they are loaded. `None`: there is no memory.
    pub fn new(
        config: FlatConfig,
        cores: usize,
        root: bool,
        memory: &mut dyn Supply,
    ) -> Option<Self> {
        let mut made = Self {
            config,
            tops: Vec::new(),
            gibs: Vec::new(),
            free: Vec::new(),
            roots: FxHashMap::default(),
            current: None,
            spare: Vec::new(),
            cores: vec![WalkEntries::default(); cores],
            requests: 0,
            bytes: 0,
            sizes: [0; 3],
            work: Work::default(),
        };
        if root {
            made.root_loaded(0, memory);
        }
        Some(made)
    }

    /// Memory of a node, if there is any in one piece.
    fn node(&mut self, memory: &mut dyn Supply) -> Option<u64> {
        self.requests += 1;
        // Spread evenly over the requests.
        let refused = self.requests * self.config.refused / 100
            > (self.requests - 1) * self.config.refused / 100;
        let at = if refused { None } else { memory.take(NODE) };
        match at {
            Some(_) => {
                self.work.pages += NODE / PAGE;
                self.bytes += NODE;
            }
            None => self.work.refused += 1,
        }
        at
    }

    fn table(&mut self, memory: &mut dyn Supply) -> Result<u64, NoMemory> {
        let at = memory.take(PAGE).ok_or(NoMemory)?;
        self.work.pages += 1;
        self.bytes += PAGE;
        Ok(at)
    }

    fn give(&mut self, memory: &mut dyn Supply, at: u64, bytes: u64) {
        memory.give(at, bytes);
        self.bytes -= bytes;
    }

    /// The entries of a region in the root node.
    fn top(&mut self, region: u32, memory: &mut dyn Supply) -> Result<usize, NoMemory> {
        let i = region as usize;
        if i >= self.tops.len() {
            self.tops.resize(i + 1, Top::default());
        }
        if self.tops[i].at == 0 {
            let root = self.current.and_then(|r| self.roots.get_mut(&r));
            let flat = root.and_then(|root| {
                let at = root.block? + root.pieces % (NODE / PAGE) * PAGE;
                root.pieces += 1;
                Some(at)
            });
            let (at, above) = match flat {
                Some(at) => (at, None),
                None => (self.table(memory)?, Some(self.table(memory)?)),
            };
            (self.tops[i].at, self.tops[i].above) = (at, above);
        }
        Ok(i)
    }

    /// The GiB of a key, which is made if it is not there.
    fn gib(&mut self, key: Key, memory: &mut dyn Supply) -> Result<usize, NoMemory> {
        let (region, number) = (key.region, key.page >> 18);
        let top = self.top(region, memory)?;
        let index = number as usize;
        if index >= self.tops[top].gibs.len() {
            self.tops[top].gibs.resize(index + 1, TopEntry::Empty);
        }
        if let TopEntry::Gib(gib) = self.tops[top].gibs[index] {
            return Ok(gib as usize);
        }
        let flat = self.node(memory);
        let at = match flat {
            Some(at) => at,
            None => self.table(memory)?,
        };
        let (parts, flat) = (vec![Part::Empty; ENTRIES], flat.is_some());
        let made = Some(Gib { key: (region, number), at, flat, used: 0, parts });
        let gib = match self.free.pop() {
            Some(gib) => {
                self.gibs[gib as usize] = made;
                gib
            }
            None => {
                self.gibs.push(made);
                self.gibs.len() as u32 - 1
            }
        };
        self.tops[top].gibs[index] = TopEntry::Gib(gib);
        Ok(gib as usize)
    }

    fn top_entry(&self, key: Key) -> TopEntry {
        let top = self.tops.get(key.region as usize);
        top.and_then(|t| t.gibs.get((key.page >> 18) as usize)).copied().unwrap_or_default()
    }

    /// Frees a GiB that maps nothing.
    fn drop_gib(&mut self, gib: usize, memory: &mut dyn Supply) {
        let Some(Gib { key: (region, number), at, flat, .. }) = self.gibs[gib].take() else {
            return;
        };
        self.free.push(gib as u32);
        self.give(memory, at, if flat { NODE } else { PAGE });
        self.tops[region as usize].gibs[number as usize] = TopEntry::Empty;
        self.flush();
    }

    /// A part maps nothing any more.
    fn drop_part(&mut self, gib: usize, part: usize, memory: &mut dyn Supply) {
        let Some(g) = &mut self.gibs[gib] else { return };
        let old = std::mem::take(&mut g.parts[part]);
        g.used -= 1;
        let empty = g.used == 0;
        if let Part::Small { at, .. } = old
            && at != 0
        {
            self.give(memory, at, PAGE);
            self.flush();
        }
        if empty {
            self.drop_gib(gib, memory);
        }
    }

    fn put_small(&mut self, key: Key, entry: u64, memory: &mut dyn Supply) -> Result<(), NoMemory> {
        let gib = self.gib(key, memory)?;
        let part = (key.page >> 9) as usize % ENTRIES;
        let flat = self.gibs[gib].as_ref().is_some_and(|g| g.flat);
        let there = self.gibs[gib].as_ref().map(|g| &g.parts[part]);
        if !matches!(there, Some(Part::Small { .. })) {
            let at = if flat { 0 } else { self.table(memory)? };
            let large = matches!(there_part(&self.gibs[gib], part), Some(Part::Large(..)));
            let Some(g) = &mut self.gibs[gib] else { return Ok(()) };
            g.parts[part] = Part::Small { at, used: 0, entries: Box::new([0; ENTRIES]) };
            g.used += u32::from(!large);
            self.sizes[1] -= u64::from(large);
        }
        let Some(g) = &mut self.gibs[gib] else { return Ok(()) };
        if let Part::Small { used, entries, .. } = &mut g.parts[part] {
            let old = std::mem::replace(&mut entries[key.page as usize % ENTRIES], entry);
            *used += u32::from(old == 0);
            self.sizes[0] += u64::from(old == 0);
        }
        self.work.updates += 1;
        Ok(())
    }

    fn put_large(
        &mut self,
        key: Key,
        (entry, shift): (u64, u8),
        memory: &mut dyn Supply,
    ) -> Result<(), NoMemory> {
        let gib = self.gib(key, memory)?;
        let part = (key.page >> 9) as usize % ENTRIES;
        let Some(g) = &mut self.gibs[gib] else { return Ok(()) };
        let old = std::mem::replace(&mut g.parts[part], Part::Large(entry, shift));
        self.work.updates += if g.flat { ENTRIES as u64 } else { 1 };
        g.used += u32::from(matches!(old, Part::Empty));
        self.sizes[1] += u64::from(!matches!(old, Part::Large(..)));
        if let Part::Small { at, used, .. } = old {
            self.sizes[0] -= u64::from(used);
            if at != 0 {
                self.give(memory, at, PAGE);
                self.flush();
            }
        }
        Ok(())
    }

    /// Forgets all walks.
    fn flush(&mut self) {
        self.cores.iter_mut().for_each(|c| *c = WalkEntries::default());
    }
}

fn there_part(gib: &Option<Gib>, part: usize) -> Option<&Part> {
    gib.as_ref().map(|g| &g.parts[part])
}

impl Structure for Flattened {
    #[inline]
    fn look_up<E>(
        &mut self,
        core: usize,
        key: Key,
        fetch: &mut impl FnMut(u8, &[u64]) -> Result<(), E>,
    ) -> Result<Option<Found>, E> {
        let most = self.config.cache;
        let mut none = WalkEntries::default();
        let cached = self.cores.get_mut(core).unwrap_or(&mut none);
        let (gib_key, part_key) = ((key.region, key.page >> 18), (key.region, key.page >> 9));
        let part_known = cached.parts.contains(&part_key);
        let gib_known = part_known || cached.gibs.contains(&gib_key);
        let top = self.tops.get(key.region as usize);
        if !gib_known {
            let Some(top) = top else { return Ok(None) };
            if let Some(above) = top.above {
                fetch(4, &[above])?;
            }
            fetch(3, &[top.at + (key.page >> 18) * 8])?;
        }
        let gibs = top.map(|t| &t.gibs);
        let entry = gibs.and_then(|g| g.get((key.page >> 18) as usize)).copied();
        let gib = match entry.unwrap_or_default() {
            TopEntry::Empty => return Ok(None),
            TopEntry::Page(entry) => {
                let entry = Entry(entry);
                return Ok(entry.is_present().then_some(Found { entry, shift: 30, slot: 0 }));
            }
            TopEntry::Gib(gib) => gib as usize,
        };
        touch(&mut cached.gibs, most, gib_key);
        let Some(g) = self.gibs.get(gib).and_then(Option::as_ref) else { return Ok(None) };
        let (within, index) = ((key.page >> 9) as usize % ENTRIES, key.page as usize % ENTRIES);
        if g.flat {
            fetch(1, &[g.at + (within * ENTRIES + index) as u64 * 8])?;
        } else if !part_known {
            fetch(2, &[g.at + within as u64 * 8])?;
        }
        let slot = gib * ENTRIES + within;
        match &g.parts[within] {
            Part::Empty => Ok(None),
            Part::Large(entry, shift) => {
                Ok(Some(Found { entry: Entry(*entry), shift: *shift, slot }))
            }
            Part::Small { at, entries, .. } => {
                if !g.flat {
                    touch(&mut cached.parts, most, part_key);
                    fetch(1, &[*at + index as u64 * 8])?;
                }
                let (entry, slot) = (Entry(entries[index]), slot * ENTRIES + index);
                Ok(entry.is_present().then_some(Found { entry, shift: 12, slot }))
            }
        }
    }

    fn get(&self, key: Key) -> Option<Found> {
        let gib = match self.top_entry(key) {
            TopEntry::Empty => return None,
            TopEntry::Page(entry) => {
                return Some(Found { entry: Entry(entry), shift: 30, slot: 0 });
            }
            TopEntry::Gib(gib) => gib as usize,
        };
        let (within, index) = ((key.page >> 9) as usize % ENTRIES, key.page as usize % ENTRIES);
        let slot = gib * ENTRIES + within;
        match there_part(&self.gibs[gib], within)? {
            Part::Empty => None,
            Part::Large(entry, shift) => Some(Found { entry: Entry(*entry), shift: *shift, slot }),
            Part::Small { entries, .. } => {
                let (entry, slot) = (Entry(entries[index]), slot * ENTRIES + index);
                entry.is_present().then_some(Found { entry, shift: 12, slot })
            }
        }
    }

    fn put(
        &mut self,
        key: Key,
        shift: u8,
        entry: u64,
        memory: &mut dyn Supply,
    ) -> Result<(), NoMemory> {
        match shift {
            30 => {
                // What was mapped below it goes first.
                if let TopEntry::Gib(gib) = self.top_entry(key) {
                    for part in 0..ENTRIES as u64 {
                        let page = (key.page >> 18 << 18) + part * ENTRIES as u64;
                        let key = Key { page, ..key };
                        self.remove(key, 21, memory);
                        for i in 0..ENTRIES as u64 {
                            self.remove(Key { page: page + i, ..key }, 12, memory);
                        }
                    }
                    debug_assert!(self.gibs[gib as usize].is_none());
                }
                let top = self.top(key.region, memory)?;
                let index = (key.page >> 18) as usize;
                if index >= self.tops[top].gibs.len() {
                    self.tops[top].gibs.resize(index + 1, TopEntry::Empty);
                }
                let old = std::mem::replace(&mut self.tops[top].gibs[index], TopEntry::Page(entry));
                self.sizes[2] += u64::from(!matches!(old, TopEntry::Page(_)));
                self.work.updates += 1;
                Ok(())
            }
            13..30 => {
                // Of a page of 4 MiB two parts.
                for part in 0..1_u64 << (shift.max(21) - 21) {
                    let first = key.page >> (shift - 12) << (shift - 12);
                    let page = first + part * ENTRIES as u64;
                    self.put_large(Key { page, ..key }, (entry, shift), memory)?;
                }
                Ok(())
            }
            _ => self.put_small(key, entry, memory),
        }
    }

    fn remove(&mut self, key: Key, shift: u8, memory: &mut dyn Supply) -> bool {
        match (shift, self.top_entry(key)) {
            (30, TopEntry::Page(_)) => {
                let index = (key.page >> 18) as usize;
                self.tops[key.region as usize].gibs[index] = TopEntry::Empty;
                self.sizes[2] -= 1;
                self.work.updates += 1;
                true
            }
            (12, TopEntry::Gib(gib)) => {
                let (gib, part) = (gib as usize, (key.page >> 9) as usize % ENTRIES);
                let Some(g) = &mut self.gibs[gib] else { return false };
                let Part::Small { used, entries, .. } = &mut g.parts[part] else { return false };
                if std::mem::take(&mut entries[key.page as usize % ENTRIES]) == 0 {
                    return false;
                }
                *used -= 1;
                let empty = *used == 0;
                self.sizes[0] -= 1;
                self.work.updates += 1;
                if empty {
                    self.drop_part(gib, part, memory);
                }
                true
            }
            (13..30, TopEntry::Gib(gib)) => {
                let (gib, mut any) = (gib as usize, false);
                for i in 0..1 << (shift.max(21) - 21) {
                    let part =
                        (((key.page >> (shift - 12)) << (shift - 21)) as usize + i) % ENTRIES;
                    let Some(g) = &self.gibs[gib] else { break };
                    if matches!(g.parts[part], Part::Large(..)) {
                        self.work.updates += if g.flat { ENTRIES as u64 } else { 1 };
                        self.sizes[1] -= 1;
                        any = true;
                        self.drop_part(gib, part, memory);
                    }
                }
                any
            }
            _ => false,
        }
    }

    fn mark(&mut self, found: &Found, bits: u64) {
        let (gib, part, index) = match found.shift {
            12 => (found.slot / ENTRIES / ENTRIES, found.slot / ENTRIES, found.slot % ENTRIES),
            30 => return,
            _ => (found.slot / ENTRIES, found.slot, 0),
        };
        let Some(g) = self.gibs.get_mut(gib).and_then(Option::as_mut) else { return };
        match &mut g.parts[part % ENTRIES] {
            Part::Large(entry, _) => *entry |= bits,
            Part::Small { entries, .. } => entries[index] |= bits,
            Part::Empty => {}
        }
    }

    fn shifts(&self) -> Vec<u8> {
        SHIFTS.into_iter().zip(self.sizes).filter(|s| s.1 > 0).map(|s| s.0).collect()
    }

    fn root_loaded(&mut self, root: u64, memory: &mut dyn Supply) {
        self.current = Some(root);
        if !self.roots.contains_key(&root) {
            let spare = self.spare.pop();
            self.work.pages += if spare.is_some() { NODE / PAGE } else { 0 };
            let block = spare.or_else(|| self.node(memory));
            self.roots.insert(root, Root { block, pieces: 0 });
        }
    }

    fn root_gone(&mut self, root: u64) {
        self.spare.extend(self.roots.remove(&root).and_then(|r| r.block));
    }

    fn forget_walks(&mut self, core: usize) {
        if let Some(core) = self.cores.get_mut(core) {
            *core = WalkEntries::default();
        }
    }

    fn work(&mut self) -> &mut Work {
        &mut self.work
    }

    fn state(&self) -> StructureState {
        let gibs = self.gibs.iter().flatten();
        let flat = |g: &Gib| if g.flat { (ENTRIES * ENTRIES) as u64 } else { ENTRIES as u64 };
        StructureState {
            bytes: self.bytes,
            places: gibs.map(flat).sum(),
            used: self.sizes[0] + self.sizes[1],
        }
    }
}
