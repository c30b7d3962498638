//! Direct memory translation (DMT; Zhang et al., ASPLOS 2024): the leaf entries of a large mapping lie
//! in one piece of memory, and a register says where, so that hardware fetches an entry by its address
//! alone. Radix tables stay, and point to the same entries; what has no register is walked there.
//!
//! The stream does not say what a mapping is. Here it is a GiB that has enough pages: its entries of
//! base pages are 2 MiB in one piece, those of large pages 4 KiB. The registers are given to the first
//! of them of each region, and go on to the next when one has gone. Where there is no memory in one
//! piece a GiB stays with tables of 4 KiB.
//!
//! With `host_memory` the guest has the pieces from the host, by hypercalls, and registers hold
//! host-physical addresses (pvDMT): an entry of the guest needs no translation to be read.
//!
//! With `ahead` nothing is read in place of a walk, but ahead of it (ASAP, in `ahead.rs`).

use super::{DIRECT, Found, Key, NoMemory, Structure, StructureState, Supply, Work};
use ahead::Walks;
use nestwalk_tables::Entry;

mod ahead;
#[cfg(test)]
mod tests;

pub use ahead::Ahead;

const PAGE: u64 = 4096;
/// Bytes of the base pages' entries of a GiB.
const PIECE: u64 = 2 << 20;
const ENTRIES: usize = 512;

/// How it is set up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DirectConfig {
    /// Registers of a core. The paper's are 16.
    pub registers: u64,
    /// Pages of 4 KiB from which on a GiB is a mapping with a piece of its own. Chosen: what one table
    /// of entries maps.
    pub least: u64,
    /// Pieces come from the host by hypercalls.
    pub host_memory: bool,
    /// Walks are those of radix tables, and entries are fetched ahead of them.
    pub ahead: Option<Ahead>,
}

impl Default for DirectConfig {
    fn default() -> Self {
        Self { registers: 16, least: 512, host_memory: false, ahead: None }
    }
}

impl DirectConfig {
    /// Of a host, whose mappings are the slots of guest memory: every GiB is one, and a register holds
    /// a whole slot.
    #[must_use]
    pub const fn of_host(self) -> Self {
        Self { registers: u64::MAX, least: 1, host_memory: false, ahead: self.ahead }
    }
}

/// 2 MiB of pages.
#[derive(Clone, Default)]
enum Part {
    #[default]
    Empty,
    /// Base pages, and where their table is; 0 if it is part of a piece.
    Small { at: u64, used: u32, entries: Box<[u64; ENTRIES]> },
    /// A page, and the base-2 logarithm of its size.
    Large(u64, u8),
}

/// A GiB.
struct Gib {
    /// The table of the second level, which has large pages' entries.
    at: u64,
    /// The piece, and whether the guest has it from the host.
    piece: Option<(u64, bool)>,
    /// The large pages' entries in memory that the guest has from the host; 0 if they are not.
    large_piece: u64,
    /// Where what is fetched ahead lies in the host's memory: entries of base pages, of large ones.
    ahead: [u64; 2],
    registered: bool,
    /// None was to be had; not asked for again.
    refused: bool,
    small: u64,
    large: u64,
    parts: Vec<Part>,
}

impl Gib {
    /// The entry of the second level for a part: its level, and where it is.
    #[inline]
    const fn large_line(&self, part: usize) -> (u8, u64) {
        match self.large_piece {
            0 => (2, self.at + part as u64 * 8),
            at => (2 | DIRECT, at + part as u64 * 8),
        }
    }
}

#[derive(Default)]
struct Region {
    /// Tables of the two upper levels.
    above: [u64; 2],
    registers: u64,
    gibs: Vec<Option<Gib>>,
    pages: Vec<u64>,
}

/// The tables.
pub struct Direct {
    config: DirectConfig,
    regions: Vec<Region>,
    bytes: u64,
    /// Entries by size: 4 KiB, 2 MiB or 4 MiB, 1 GiB.
    sizes: [u64; 3],
    work: Work,
    /// Walk caches, by core.
    walks: Vec<Walks>,
}

impl Direct {
    /// No tables.
    pub fn new(config: DirectConfig) -> Self {
        let (regions, walks, work) = (Vec::new(), Vec::new(), Work::default());
        Self { config, regions, bytes: 0, sizes: [0; 3], work, walks }
    }

    fn table(&mut self, memory: &mut dyn Supply) -> Result<u64, NoMemory> {
        let at = memory.take(PAGE).ok_or(NoMemory)?;
        self.work.pages += 1;
        self.bytes += PAGE;
        Ok(at)
    }

    fn give(&mut self, at: u64, bytes: u64, memory: &mut dyn Supply) {
        memory.give(at, bytes);
        self.bytes -= bytes;
    }

    fn region(&mut self, key: Key, memory: &mut dyn Supply) -> Result<usize, NoMemory> {
        let (i, index) = (key.region as usize, (key.page >> 18) as usize);
        if i >= self.regions.len() {
            self.regions.resize_with(i + 1, Region::default);
        }
        if self.regions[i].above[0] == 0 {
            self.regions[i].above = [self.table(memory)?, self.table(memory)?];
        }
        let region = &mut self.regions[i];
        if index >= region.gibs.len() {
            region.gibs.resize_with(index + 1, || None);
            region.pages.resize(index + 1, 0);
        }
        Ok(i)
    }

    fn gib(&self, key: Key) -> Option<&Gib> {
        self.regions.get(key.region as usize)?.gibs.get((key.page >> 18) as usize)?.as_ref()
    }

    fn gib_mut(&mut self, key: Key) -> Option<&mut Gib> {
        let region = self.regions.get_mut(key.region as usize)?;
        region.gibs.get_mut((key.page >> 18) as usize)?.as_mut()
    }

    fn huge(&self, key: Key) -> Option<u64> {
        let region = self.regions.get(key.region as usize)?;
        region.pages.get((key.page >> 18) as usize).copied().filter(|e| *e != 0)
    }

    fn make_gib(&mut self, key: Key, memory: &mut dyn Supply) -> Result<(), NoMemory> {
        let region = self.region(key, memory)?;
        if self.gib(key).is_some() {
            return Ok(());
        }
        let (at, parts) = (self.table(memory)?, vec![Part::Empty; ENTRIES]);
        let made = Gib {
            at,
            piece: None,
            large_piece: 0,
            ahead: [0; 2],
            registered: false,
            refused: false,
            small: 0,
            large: 0,
            parts,
        };
        self.regions[region].gibs[(key.page >> 18) as usize] = Some(made);
        Ok(())
    }

    /// A GiB that has become a mapping gets a piece for its entries, and a register if one is left.
    fn promote(&mut self, key: Key, memory: &mut dyn Supply) {
        let (least, wants_host) = (self.config.least, self.config.host_memory);
        let Some(gib) = self.gib(key) else { return };
        if gib.piece.is_some() || gib.refused || gib.small + gib.large * (ENTRIES as u64) < least {
            return;
        }
        if self.config.ahead.is_some() {
            return self.promote_ahead(key, memory);
        }
        let from_host = if wants_host { memory.take_host(PIECE) } else { None };
        let piece = match from_host {
            Some(at) => Some((at, true)),
            None => memory.take(PIECE).map(|at| (at, false)),
        };
        let Some(piece) = piece else {
            return self.refuse(key);
        };
        self.work.pages += PIECE / PAGE;
        self.bytes += PIECE;
        let large_piece = if piece.1 { memory.take_host(PAGE).unwrap_or(0) } else { 0 };
        if large_piece != 0 {
            self.work.pages += 1;
            self.bytes += PAGE;
        }
        let region = &mut self.regions[key.region as usize];
        let registered = region.registers < self.config.registers;
        region.registers += u64::from(registered);
        let Some(gib) = self.gib_mut(key) else { return };
        (gib.piece, gib.large_piece, gib.registered) = (Some(piece), large_piece, registered);
        self.work.moves += if large_piece == 0 { 0 } else { gib.large };
        self.move_in(key, memory);
    }

    fn refuse(&mut self, key: Key) {
        self.work.refused += 1;
        if let Some(gib) = self.gib_mut(key) {
            gib.refused = true;
        }
    }

    /// What was in tables of base pages moves into the piece.
    fn move_in(&mut self, key: Key, memory: &mut dyn Supply) {
        let Some(gib) = self.gib_mut(key) else { return };
        let moved = gib.small;
        let tables = gib.parts.iter_mut().filter_map(|part| match part {
            Part::Small { at, .. } => Some(std::mem::take(at)),
            _ => None,
        });
        let tables: Vec<u64> = tables.filter(|at| *at != 0).collect();
        self.work.moves += moved;
        tables.into_iter().for_each(|at| self.give(at, PAGE, memory));
    }

    /// Frees a GiB that maps nothing.
    fn drop_empty(&mut self, key: Key, memory: &mut dyn Supply) {
        if self.gib(key).is_none_or(|g| g.small + g.large > 0) {
            return;
        }
        let region = &mut self.regions[key.region as usize];
        let Some(gib) = region.gibs[(key.page >> 18) as usize].take() else { return };
        if self.config.ahead.is_some() {
            self.drop_ahead(key, &gib, memory);
        } else {
            region.registers -= u64::from(gib.registered);
        }
        match gib.piece {
            Some((at, true)) => {
                memory.give_host(at, PIECE);
                self.bytes -= PIECE;
            }
            Some((at, false)) => self.give(at, PIECE, memory),
            None => {}
        }
        if gib.large_piece != 0 {
            memory.give_host(gib.large_piece, PAGE);
            self.bytes -= PAGE;
        }
        self.give(gib.at, PAGE, memory);
    }

    /// A part maps something else from now on.
    fn replace(&mut self, key: Key, with: Part, memory: &mut dyn Supply) {
        let part = (key.page >> 9) as usize % ENTRIES;
        let Some(gib) = self.gib_mut(key) else { return };
        let old = std::mem::replace(&mut gib.parts[part], with);
        let mut free = 0;
        match old {
            Part::Empty => {}
            Part::Small { at, used, .. } => {
                gib.small -= u64::from(used);
                free = at;
                self.sizes[0] -= u64::from(used);
            }
            Part::Large(..) => {
                gib.large -= 1;
                self.sizes[1] -= 1;
            }
        }
        if free != 0 {
            self.give(free, PAGE, memory);
        }
    }

    fn put_small(&mut self, key: Key, entry: u64, memory: &mut dyn Supply) -> Result<(), NoMemory> {
        let part = (key.page >> 9) as usize % ENTRIES;
        let small = |g: &Gib| matches!(g.parts[part], Part::Small { .. });
        if !self.gib(key).is_some_and(small) {
            let in_piece = self.gib(key).is_some_and(|g| g.piece.is_some());
            let at = if in_piece { 0 } else { self.table(memory)? };
            let new = Part::Small { at, used: 0, entries: Box::new([0; ENTRIES]) };
            self.replace(key, new, memory);
        }
        let Some(gib) = self.gib_mut(key) else { return Ok(()) };
        if let Part::Small { used, entries, .. } = &mut gib.parts[part] {
            let old = std::mem::replace(&mut entries[key.page as usize % ENTRIES], entry);
            *used += u32::from(old == 0);
            gib.small += u64::from(old == 0);
            self.sizes[0] += u64::from(old == 0);
        }
        Ok(())
    }

    /// The parts that a page of 2^`shift` bytes takes: one, or two of a page of 4 MiB.
    fn parts(key: Key, shift: u8) -> impl Iterator<Item = Key> {
        let first = key.of_size(shift) << (shift - 12);
        (0..1_u64 << (shift - 21)).map(move |i| Key { page: first + i * ENTRIES as u64, ..key })
    }
}

impl Structure for Direct {
    #[inline]
    fn look_up<E>(
        &mut self,
        core: usize,
        key: Key,
        fetch: &mut impl FnMut(u8, &[u64]) -> Result<(), E>,
    ) -> Result<Option<Found>, E> {
        if let Some(ahead) = self.config.ahead {
            return self.look_up_ahead(core, key, ahead, fetch);
        }
        let (part, index) = ((key.page >> 9) as usize % ENTRIES, key.page as usize % ENTRIES);
        let within = (part * ENTRIES + index) as u64 * 8;
        if let Some(gib) = self.gib(key)
            && let Some((piece, of_host)) = gib.piece
            && gib.registered
        {
            // Entries of both sizes, if there are both, at once.
            let direct = if of_host { DIRECT } else { 0 };
            let (small, large) = (piece + within, gib.large_line(part));
            match (gib.small > 0, gib.large > 0) {
                (true, true) if large.0 & DIRECT == direct => {
                    fetch(1 | direct, &[small, large.1])?;
                }
                (true, true) => {
                    fetch(1 | direct, &[small])?;
                    fetch(large.0, &[large.1])?;
                }
                (_, true) => fetch(large.0, &[large.1])?,
                _ => fetch(1 | direct, &[small])?,
            }
            return Ok(self.get(key));
        }
        let Some(region) = self.regions.get(key.region as usize) else { return Ok(None) };
        fetch(4, &[region.above[0]])?;
        fetch(3, &[region.above[1] + (key.page >> 18) * 8 % PAGE])?;
        if let Some(gib) = self.gib(key) {
            let (level, at) = gib.large_line(part);
            fetch(level, &[at])?;
            if let Part::Small { at, .. } = &gib.parts[part] {
                match gib.piece {
                    Some((piece, of_host)) => {
                        fetch(1 | if of_host { DIRECT } else { 0 }, &[piece + within])?;
                    }
                    None => fetch(1, &[*at + index as u64 * 8])?,
                }
            }
        }
        Ok(self.get(key))
    }

    fn get(&self, key: Key) -> Option<Found> {
        if let Some(entry) = self.huge(key) {
            return Some(Found { entry: Entry(entry), shift: 30, slot: 0 });
        }
        let gib = self.gib(key)?;
        let (part, index) = ((key.page >> 9) as usize % ENTRIES, key.page as usize % ENTRIES);
        // Where it is follows from region and page.
        let slot = (key.region as usize) << 36 | key.page as usize;
        match &gib.parts[part] {
            Part::Empty => None,
            Part::Large(entry, shift) => Some(Found { entry: Entry(*entry), shift: *shift, slot }),
            Part::Small { entries, .. } => {
                let entry = Entry(entries[index]);
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
        self.work.updates += 1;
        if shift == 30 {
            let region = self.region(key, memory)?;
            let place = &mut self.regions[region].pages[(key.page >> 18) as usize];
            self.sizes[2] += u64::from(std::mem::replace(place, entry) == 0);
            return Ok(());
        }
        self.make_gib(key, memory)?;
        if shift == 12 {
            self.put_small(key, entry, memory)?;
        } else {
            for key in Self::parts(key, shift) {
                self.replace(key, Part::Large(entry, shift), memory);
                if let Some(gib) = self.gib_mut(key) {
                    gib.large += 1;
                    self.sizes[1] += 1;
                }
            }
        }
        self.promote(key, memory);
        Ok(())
    }

    fn remove(&mut self, key: Key, shift: u8, memory: &mut dyn Supply) -> bool {
        let mut any = false;
        if shift == 30 {
            if self.huge(key).is_some() {
                self.regions[key.region as usize].pages[(key.page >> 18) as usize] = 0;
                self.sizes[2] -= 1;
                any = true;
            }
        } else if shift == 12 {
            let (part, index) = ((key.page >> 9) as usize % ENTRIES, key.page as usize % ENTRIES);
            let Some(gib) = self.gib_mut(key) else { return false };
            let Part::Small { used, entries, .. } = &mut gib.parts[part] else { return false };
            if std::mem::take(&mut entries[index]) == 0 {
                return false;
            }
            *used -= 1;
            let empty = *used == 0;
            gib.small -= 1;
            self.sizes[0] -= 1;
            any = true;
            if empty {
                self.replace(key, Part::Empty, memory);
            }
        } else {
            for key in Self::parts(key, shift) {
                let part = (key.page >> 9) as usize % ENTRIES;
                if self.gib(key).is_some_and(|g| matches!(g.parts[part], Part::Large(..))) {
                    self.replace(key, Part::Empty, memory);
                    any = true;
                }
            }
        }
        self.work.updates += u64::from(any);
        if any && shift != 30 {
            self.drop_empty(key, memory);
        }
        any
    }

    fn mark(&mut self, found: &Found, bits: u64) {
        let key =
            Key { region: (found.slot >> 36) as u32, page: (found.slot & ((1 << 36) - 1)) as u64 };
        let (part, index) = ((key.page >> 9) as usize % ENTRIES, key.page as usize % ENTRIES);
        if found.shift == 30 {
            return;
        }
        if let Some(gib) = self.gib_mut(key) {
            match &mut gib.parts[part] {
                Part::Large(entry, _) => *entry |= bits,
                Part::Small { entries, .. } => entries[index] |= bits,
                Part::Empty => {}
            }
        }
    }

    fn shifts(&self) -> Vec<u8> {
        [12, 21, 30].into_iter().zip(self.sizes).filter(|s| s.1 > 0).map(|s| s.0).collect()
    }

    fn forget_walks(&mut self, core: usize) {
        if let Some(walks) = self.walks.get_mut(core) {
            *walks = Walks::default();
        }
    }

    fn work(&mut self) -> &mut Work {
        &mut self.work
    }

    fn state(&self) -> StructureState {
        let gibs = self.regions.iter().flat_map(|r| r.gibs.iter().flatten());
        StructureState {
            bytes: self.bytes,
            places: gibs.map(|g| if g.piece.is_some() { PIECE / 8 } else { 512 }).sum(),
            used: self.sizes.iter().sum(),
        }
    }
}
