//! Address translation with prefetching (ASAP; Margaritov et al., "Prefetched Address Translation",
//! MICRO 2019): the pages of radix tables lie in the order of what they map, so that a register of a
//! mapping, base and offset, says where the entries of the two lowest levels are. A miss fetches those
//! at once, and walks as ever: nothing is believed that the walk has not read, but what it comes to is
//! on its way.
//!
//! - *A register* is for a mapping in one piece: GiBs on end share one. Each GiB's entries are 2 MiB
//!   in one piece; that those of neighbours are on end is taken as so.
//! - *What is fetched*: entries of both levels, whatever walk caches know, since the paper looks
//!   registers up beside them (recalled); those of base pages only where the GiB has any.
//! - *In a VM* the guest's entries lie in memory that the guest has asked its host for by a hypercall,
//!   and the register holds a host-physical address (recalled from the paper). The guest's walk
//!   translates their guest-physical addresses as any others. Host and guest have a block each for
//!   that: the host's is what is read, the guest's what is translated. Without a block of the host the
//!   mapping has no register.
//! - *Walk caches* have as many entries as the profile's, each fully associative.

use super::super::{AHEAD, Found, Key, MET, Structure, Supply};
use super::{Direct, ENTRIES, Gib, PAGE, PIECE, Part};

/// How it is set up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ahead {
    /// Levels that are fetched ahead: 2, 1 (leaf entries of base pages alone), or 0.
    pub levels: u8,
    /// Entries of walk caches that lead to tables of levels 1, 2 and 3.
    pub caches: [usize; 3],
}

/// Walk caches of a core, by the level of the tables that they lead to: what they map, in units of its
/// size, the last used last.
#[derive(Clone, Default)]
pub(super) struct Walks([Vec<(u32, u64)>; 3]);

/// Which table of `level` leads to a page.
const fn table_of(key: Key, level: usize) -> (u32, u64) {
    (key.region, key.page >> (9 * level))
}

impl Walks {
    /// The lowest level of a table that a walk may begin with.
    fn known(&self, key: Key) -> usize {
        (1..=3).find(|level| self.0[level - 1].contains(&table_of(key, *level))).unwrap_or(4)
    }

    /// A walk has come to a table of this level.
    fn came_to(&mut self, key: Key, level: usize, most: usize) {
        let (held, table) = (&mut self.0[level - 1], table_of(key, level));
        if let Some(i) = held.iter().rposition(|k| *k == table) {
            held.remove(i);
        } else if held.len() >= most {
            if most == 0 {
                return;
            }
            held.remove(0);
        }
        held.push(table);
    }
}

impl Direct {
    /// A walk of radix tables, whose lowest entries are fetched ahead if there is a register.
    #[inline]
    pub(super) fn look_up_ahead<E>(
        &mut self,
        core: usize,
        key: Key,
        ahead: Ahead,
        fetch: &mut impl FnMut(u8, &[u64]) -> Result<(), E>,
    ) -> Result<Option<Found>, E> {
        if self.walks.len() <= core {
            self.walks.resize(core + 1, Walks::default());
        }
        let Some(region) = self.regions.get(key.region as usize) else { return Ok(None) };
        let gib = region.gibs.get((key.page >> 18) as usize).and_then(Option::as_ref);
        let (part, index) = ((key.page >> 9) as usize % ENTRIES, key.page as usize % ENTRIES);
        let within = (part * ENTRIES + index) as u64 * 8;
        let walks = &mut self.walks[core];
        let known = walks.known(key);
        // What the walk meets of it, by level.
        let mut met = [0; 3];
        if let Some(gib) = gib.filter(|g| g.registered) {
            if ahead.levels > 1 {
                fetch(AHEAD | 2, &[gib.ahead[1] + part as u64 * 8])?;
                met[2] = MET;
            }
            if ahead.levels > 0 && gib.small > 0 {
                fetch(AHEAD | 1, &[gib.ahead[0] + within])?;
                met[1] = MET;
            }
        }
        if known > 3 {
            fetch(4, &[region.above[0]])?;
        }
        if known > 2 {
            walks.came_to(key, 3, ahead.caches[2]);
            fetch(3, &[region.above[1] + (key.page >> 18) * 8 % PAGE])?;
        }
        if let Some(gib) = gib {
            let table = match &gib.parts[part] {
                Part::Small { at, .. } => Some(at),
                _ => None,
            };
            if known > 1 || table.is_none() {
                walks.came_to(key, 2, ahead.caches[1]);
                fetch(2 | met[2], &[gib.at + part as u64 * 8])?;
            }
            if let Some(at) = table {
                walks.came_to(key, 1, ahead.caches[0]);
                let line = gib.piece.map_or(at + index as u64 * 8, |(piece, _)| piece + within);
                fetch(1 | met[1], &[line])?;
            }
        }
        Ok(self.get(key))
    }

    /// Registers that a GiB takes beyond those in use: none beside a neighbour that has one, and one
    /// less between two.
    fn more_registers(&self, key: Key) -> i64 {
        let at = (key.page >> 18) as usize;
        let gibs = &self.regions[key.region as usize].gibs;
        let has = |i: usize| gibs.get(i).and_then(Option::as_ref).is_some_and(|g| g.registered);
        1 - i64::from(at > 0 && has(at - 1)) - i64::from(has(at + 1))
    }

    /// A GiB that has become a mapping gets its piece, and a register if one is left or a neighbour's
    /// holds it, too.
    pub(super) fn promote_ahead(&mut self, key: Key, memory: &mut dyn Supply) {
        let Some(piece) = memory.take(PIECE) else { return self.refuse(key) };
        self.work.pages += PIECE / PAGE;
        self.bytes += PIECE;
        let more = self.more_registers(key);
        let registers = self.regions[key.region as usize].registers.saturating_add_signed(more);
        let mut registered = registers <= self.config.registers;
        let Some(gib) = self.gib_mut(key) else { return };
        gib.piece = Some((piece, false));
        gib.ahead = [piece, gib.at];
        if registered && self.config.host_memory {
            let blocks = [memory.take_host(PIECE), memory.take_host(PAGE)];
            if let [Some(small), Some(large)] = blocks
                && let Some(gib) = self.gib_mut(key)
            {
                gib.ahead = [small, large];
            } else {
                registered = false;
                self.work.refused += 1;
                for (at, bytes) in blocks.into_iter().zip([PIECE, PAGE]) {
                    at.into_iter().for_each(|at| memory.give_host(at, bytes));
                }
            }
        }
        if registered {
            self.regions[key.region as usize].registers = registers;
        }
        if let Some(gib) = self.gib_mut(key) {
            gib.registered = registered;
        }
        self.move_in(key, memory);
        self.walks.clear();
    }

    /// A GiB has gone.
    pub(super) fn drop_ahead(&mut self, key: Key, gib: &Gib, memory: &mut dyn Supply) {
        self.walks.clear();
        if !gib.registered {
            return;
        }
        let more = self.more_registers(key);
        let region = &mut self.regions[key.region as usize];
        region.registers = region.registers.saturating_add_signed(-more);
        if self.config.host_memory {
            memory.give_host(gib.ahead[0], PIECE);
            memory.give_host(gib.ahead[1], PAGE);
        }
    }
}
