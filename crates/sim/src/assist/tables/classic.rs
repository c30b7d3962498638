//! Hash tables that processors had: an entry for each page, and a rule for those that collide.
//!
//! - [`Rule::Chains`]: Itanium's long format (Itanium Architecture Software Developer's Manual, volume
//!   2, 4.1.5.4 and 5.3.2, read). An entry has 32 bytes: translation, key and size, tag, and a word that
//!   software may use "to link VHPT entries to [...] hash collision chains". A place of the table has
//!   the first entry of its chain; the others lie in memory beside the table. Itanium's walker reads the
//!   first entry alone and leaves the rest to software; here hardware follows the chain, as the
//!   simulations do that compare such a table with radix trees (recalled of "Hash, Don't Cache").
//! - [`Rule::Groups`]: PowerPC's. An entry has 16 bytes, eight make a group of 128; a page's entry is in
//!   the group that its hash names or in the one of the complement, as QEMU's `ppc_hash64_htab_lookup`
//!   (read) looks for it. A group is two lines here, both of which are read at once.
//!
//! Neither puts entries of neighbouring pages on purpose into one line: that, not hashing, is what
//! packed clusters (`hashed.rs`) are better at. POWER's hash is `vsid ^ page` within a segment of 256
//! MiB, which puts neighbours into neighbouring groups; Itanium's is each model's own. Here the
//! segment's number is mixed, and the page's is added to it, for both.
//!
//! Chosen, as in `hashed.rs`: pages of several sizes are looked for one size after another, beginning
//! with what a predictor says; above `load` percent the table doubles at once, below an eighth of that
//! it halves. (Itanium's kernels fill the table with as many entries for a large page as it has small
//! ones; Linux sizes PowerPC's table at boot and takes an entry of a full group out, which is a fault
//! the next time.) A table whose two groups for a page are full doubles as well, so that nothing is ever
//! missing.

use super::hashed::{Predictors, count_size, mix};
use super::{Found, Key, NoMemory, Structure, StructureState, Supply, Work};
use nestwalk_tables::Entry;

const LINE: u64 = 64;
/// Entries of a group.
const GROUP: usize = 8;
/// Pages of a segment, as a base-2 logarithm.
const SEGMENT: u32 = 16;
/// No entry follows.
const END: u32 = u32::MAX;

/// Where entries stand that collide.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rule {
    /// In a chain behind the first one.
    Chains,
    /// In a group, or in a second one.
    Groups,
}

impl Rule {
    /// Bytes of an entry.
    const fn bytes(self) -> u64 {
        match self {
            Self::Chains => 32,
            Self::Groups => 16,
        }
    }
}

#[derive(Clone, Copy)]
struct Slot {
    /// Number of the page and its size; 0 if there is none.
    tag: u64,
    region: u32,
    /// The next slot of a chain.
    next: u32,
    entry: u64,
}

const EMPTY: Slot = Slot { tag: 0, region: 0, next: END, entry: 0 };

/// What a look-up reads in one step: a line, or two at once.
type Step = ([u64; 2], u8);

/// The table.
pub struct Classic {
    rule: Rule,
    /// Most entries for each place, in percent, and places at first.
    load: u64,
    least: u64,
    base: u64,
    /// Memory for what follows the first entries of chains: half as many.
    beside: u64,
    /// Places, and behind them what lies beside.
    slots: Vec<Slot>,
    places: u64,
    /// Slots beside that are in use by none.
    free: Vec<u32>,
    used: u64,
    /// Sizes in use, smallest first, and how many entries have each.
    sizes: Vec<(u8, u64)>,
    predictors: Predictors,
    /// Of the look-up that is under way.
    steps: Vec<Step>,
    work: Work,
}

const fn tag(key: Key, shift: u8) -> u64 {
    key.of_size(shift) << 6 | shift as u64
}

impl Classic {
    /// An empty table for so many cores, with entries in `load` percent of its places at most and
    /// `places` of them at first, a power of two from 64 on; `None` if there is no memory.
    pub fn new(
        rule: Rule,
        (load, places): (u64, u64),
        cores: usize,
        memory: &mut dyn Supply,
    ) -> Option<Self> {
        let mut table = Self {
            rule,
            load,
            least: places,
            base: 0,
            beside: 0,
            slots: Vec::new(),
            places: 0,
            free: Vec::new(),
            used: 0,
            sizes: Vec::new(),
            predictors: Predictors::new(cores),
            steps: Vec::with_capacity(8),
            work: Work::default(),
        };
        table.take(places, memory).then_some(table)
    }

    /// Bytes of places, and of what lies beside them.
    const fn bytes(&self, places: u64) -> (u64, u64) {
        let bytes = places * self.rule.bytes();
        (bytes, if matches!(self.rule, Rule::Chains) { bytes / 2 } else { 0 })
    }

    /// Takes memory for so many places, all of them empty; false, and nothing has changed, if there is
    /// none.
    fn take(&mut self, places: u64, memory: &mut dyn Supply) -> bool {
        let (bytes, more) = self.bytes(places);
        let Some(base) = memory.take(bytes) else { return false };
        let beside = if more == 0 { Some(0) } else { memory.take(more) };
        let Some(beside) = beside else {
            memory.give(base, bytes);
            return false;
        };
        (self.base, self.beside, self.places) = (base, beside, places);
        let slots = places + more / self.rule.bytes();
        self.slots = vec![EMPTY; slots as usize];
        self.free = (places as u32..slots as u32).rev().collect();
        self.work.pages += (bytes + more).div_ceil(4096);
        true
    }

    /// The place of a tag, or the first slot of its group; the second group's.
    fn home(&self, tag: u64, region: u32) -> (usize, usize) {
        let segment = (u64::from(region) << 32) ^ (tag >> (6 + SEGMENT)) << 6 ^ tag & 63;
        let hash = (tag >> 6).wrapping_add(mix(segment));
        match self.rule {
            Rule::Chains => ((hash & (self.places - 1)) as usize, 0),
            Rule::Groups => {
                let mask = self.places / GROUP as u64 - 1;
                ((hash & mask) as usize * GROUP, (!hash & mask) as usize * GROUP)
            }
        }
    }

    /// The line that a slot lies in.
    const fn line(&self, slot: usize) -> u64 {
        let slot = slot as u64;
        let at = match slot.checked_sub(self.places) {
            None => self.base + slot * self.rule.bytes(),
            Some(beside) => self.beside + beside * self.rule.bytes(),
        };
        at & !(LINE - 1)
    }

    /// The slot with a tag, and a step of `reads` for whatever hardware reads until then.
    fn find(&self, tag: u64, region: u32, mut reads: impl FnMut(Step)) -> Option<usize> {
        let is = |slot: &Slot| slot.tag == tag && slot.region == region;
        let (first, second) = self.home(tag, region);
        match self.rule {
            Rule::Chains => {
                let mut at = first;
                loop {
                    reads(([self.line(at), 0], 1));
                    if is(&self.slots[at]) {
                        return Some(at);
                    }
                    match self.slots[at].next {
                        END => return None,
                        next => at = next as usize,
                    }
                }
            }
            Rule::Groups => [first, second].into_iter().find_map(|group| {
                reads(([self.line(group), self.line(group) + LINE], 2));
                self.slots[group..group + GROUP].iter().position(is).map(|i| group + i)
            }),
        }
    }

    /// A slot for a tag that is not there, which from now on is in use; `None`: the table is too full.
    fn room(&mut self, tag: u64, region: u32) -> Option<usize> {
        let (first, second) = self.home(tag, region);
        match self.rule {
            Rule::Chains if self.slots[first].tag == 0 => Some(first),
            Rule::Chains => {
                let slot = self.free.pop()?;
                self.slots[slot as usize].next = self.slots[first].next;
                self.slots[first].next = slot;
                Some(slot as usize)
            }
            Rule::Groups => [first, second].into_iter().find_map(|group| {
                self.slots[group..group + GROUP].iter().position(|s| s.tag == 0).map(|i| group + i)
            }),
        }
    }

    /// Puts what is not there; false if there is no room.
    fn insert(&mut self, (tag, region, entry): (u64, u32, u64)) -> bool {
        let Some(slot) = self.room(tag, region) else { return false };
        let next = if slot < self.places as usize { END } else { self.slots[slot].next };
        self.slots[slot] = Slot { tag, region, next, entry };
        true
    }

    /// Empties a slot. The first of a chain is taken by the one that follows.
    fn clear(&mut self, slot: usize) {
        let Slot { tag, region, next, .. } = self.slots[slot];
        let first = self.home(tag, region).0;
        if self.rule == Rule::Groups || (slot == first && next == END) {
            self.slots[slot] = EMPTY;
            return;
        }
        let gone = if slot == first {
            self.slots[first] = self.slots[next as usize];
            self.work.moves += 1;
            next as usize
        } else {
            let mut before = first;
            while self.slots[before].next as usize != slot {
                before = self.slots[before].next as usize;
            }
            self.slots[before].next = next;
            slot
        };
        self.slots[gone] = EMPTY;
        self.free.push(gone as u32);
    }

    /// Makes the table one of `places`, or of more where that has no room for all; false if there is no
    /// memory.
    fn resize(&mut self, places: u64, memory: &mut dyn Supply) -> bool {
        let old = (self.base, self.beside, self.bytes(self.places), self.places);
        let slots = std::mem::take(&mut self.slots);
        let free = std::mem::take(&mut self.free);
        let mut places = places;
        while self.take(places, memory) {
            let full = slots.iter().filter(|s| s.tag != 0);
            if full.clone().all(|s| self.insert((s.tag, s.region, s.entry))) {
                memory.give(old.0, old.2.0);
                if old.2.1 > 0 {
                    memory.give(old.1, old.2.1);
                }
                self.work.moves += self.used;
                self.work.resizes += 1;
                return true;
            }
            let (bytes, more) = self.bytes(places);
            memory.give(self.base, bytes);
            if more > 0 {
                memory.give(self.beside, more);
            }
            places *= 2;
        }
        (self.base, self.beside, self.places) = (old.0, old.1, old.3);
        (self.slots, self.free) = (slots, free);
        self.work.refused += 1;
        false
    }
}

impl Structure for Classic {
    #[inline]
    fn look_up<E>(
        &mut self,
        core: usize,
        key: Key,
        fetch: &mut impl FnMut(u8, &[u64]) -> Result<(), E>,
    ) -> Result<Option<Found>, E> {
        let found = self.way(core, key);
        for (lines, n) in &self.steps {
            fetch(1, &lines[..usize::from(*n)])?;
        }
        Ok(found)
    }

    fn get(&self, key: Key) -> Option<Found> {
        self.sizes.iter().find_map(|&(shift, _)| {
            let slot = self.find(tag(key, shift), key.region, |_| {})?;
            Some(Found { entry: Entry(self.slots[slot].entry), shift, slot })
        })
    }

    fn put(
        &mut self,
        key: Key,
        shift: u8,
        entry: u64,
        memory: &mut dyn Supply,
    ) -> Result<(), NoMemory> {
        let tag = tag(key, shift);
        self.work.updates += 1;
        if let Some(slot) = self.find(tag, key.region, |_| {}) {
            self.slots[slot].entry = entry;
            return Ok(());
        }
        if (self.used + 1) * 100 > self.places * self.load {
            self.resize(2 * self.places, memory);
        }
        while !self.insert((tag, key.region, entry)) {
            if !self.resize(2 * self.places, memory) {
                return Err(NoMemory);
            }
        }
        self.used += 1;
        count_size(&mut self.sizes, shift, true);
        Ok(())
    }

    fn remove(&mut self, key: Key, shift: u8, memory: &mut dyn Supply) -> bool {
        let Some(slot) = self.find(tag(key, shift), key.region, |_| {}) else { return false };
        self.clear(slot);
        self.used -= 1;
        count_size(&mut self.sizes, shift, false);
        self.work.updates += 1;
        if self.places > self.least && self.used * 800 < self.places * self.load {
            self.resize(self.places / 2, memory);
        }
        true
    }

    fn mark(&mut self, found: &Found, bits: u64) {
        if let Some(slot) = self.slots.get_mut(found.slot) {
            slot.entry |= bits;
        }
    }

    fn shifts(&self) -> Vec<u8> {
        self.sizes.iter().map(|s| s.0).collect()
    }

    fn work(&mut self) -> &mut Work {
        &mut self.work
    }

    fn state(&self) -> StructureState {
        let (bytes, more) = self.bytes(self.places);
        StructureState { bytes: bytes + more, places: self.places, used: self.used }
    }
}

impl Classic {
    /// What a look-up of a core finds; `steps` are what it reads until then.
    fn way(&mut self, core: usize, key: Key) -> Option<Found> {
        let mut steps = std::mem::take(&mut self.steps);
        steps.clear();
        let first = self.predictors.size(core, key);
        let known = self.sizes.iter().position(|s| s.0 == first);
        let others = (0..self.sizes.len()).filter(|i| Some(*i) != known);
        let found = known.into_iter().chain(others).find_map(|i| {
            let shift = self.sizes[i].0;
            let slot = self.find(tag(key, shift), key.region, |step| steps.push(step))?;
            Some(Found { entry: Entry(self.slots[slot].entry), shift, slot })
        });
        if self.sizes.is_empty() {
            // An empty table is probed, too.
            self.find(tag(key, 12), key.region, |step| steps.push(step));
        }
        self.steps = steps;
        if let Some(found) = found.filter(|f| f.shift != first) {
            self.predictors.learn(core, key, found.shift);
        }
        found
    }
}

#[cfg(test)]
#[path = "classic_tests.rs"]
mod tests;
