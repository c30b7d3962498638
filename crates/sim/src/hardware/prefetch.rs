//! Reading ahead: the simulator's own memory latency, overlapped.
//!
//! Where accesses miss the modelled TLBs, the tables and cache tags that a walk needs lie all over the
//! memory of the machine that the simulator runs on, and a walk is too long for the processor to begin
//! the next one early. So, while misses are frequent, the leaf entries and cache sets of the next few
//! runs are read in loops that do nothing else, where many reads overlap: first it is worked out where
//! everything is, then all of it is read. What is read is thrown away: nothing here
//! changes a result, and a stale hint costs time only.

use nestwalk_hw::Caches;
use nestwalk_tables::{Entry, Handle, Mode, TableMemory};
use nestwalk_types::{Address, Hpa};
use std::hint::black_box;

/// Runs that are read ahead at a time.
pub const GROUP: usize = 32;
/// Misses in the last group from which on reading ahead pays.
pub const WORTHWHILE: u64 = GROUP as u64 / 4;

const HINTS: usize = 4096;

/// Where the leaf tables of recently used regions are held, direct-mapped.
pub struct LeafHints<A> {
    entries: Box<[(u64, Handle, A)]>,
}

impl<A: Address> Default for LeafHints<A> {
    fn default() -> Self {
        let none = (u64::MAX, Handle::default(), A::new(0));
        Self { entries: vec![none; HINTS].into_boxed_slice() }
    }
}

/// Leaf entries of a group of addresses, and where they are. Beyond the addresses all is 0.
pub struct Leaves<A> {
    /// The entries.
    pub entries: [Entry; GROUP],
    /// Their addresses.
    pub at: [A; GROUP],
}

impl<A: Address> LeafHints<A> {
    /// The leaf table of an address and how to reach it.
    #[inline]
    fn locate<I: Address>(
        &mut self,
        memory: &TableMemory<A>,
        mode: &Mode,
        root: A,
        address: I,
    ) -> (Handle, A) {
        let region = address.value() >> mode.span(2).shift();
        let hint = &mut self.entries[region as usize & (HINTS - 1)];
        if hint.0 != region {
            let mut table = root;
            for level in (2..=mode.levels).rev() {
                let at = mode.entry_at(table, address.value(), level);
                table = Entry(memory.read(at, mode.entry_bytes).unwrap_or(0)).target();
            }
            *hint = (region, memory.open(table), table);
        }
        (hint.1, hint.2)
    }

    /// Reads the leaf entries of a group of addresses.
    #[inline]
    pub fn read<I: Address>(
        &mut self,
        memory: &TableMemory<A>,
        mode: &Mode,
        root: A,
        addresses: impl Iterator<Item = I>,
    ) -> Leaves<A> {
        let mut words: [&u64; GROUP] = [&0; GROUP];
        let mut leaves = Leaves { entries: [Entry(0); GROUP], at: [A::new(0); GROUP] };
        for ((word, at), address) in words.iter_mut().zip(&mut leaves.at).zip(addresses) {
            let (handle, table) = self.locate(memory, mode, root, address);
            *at = mode.entry_at(table, address.value(), 1);
            *word = memory.word(handle, *at);
        }
        for (entry, word) in leaves.entries.iter_mut().zip(words) {
            *entry = Entry(*word);
        }
        if mode.entry_bytes == 4 {
            for (entry, at) in leaves.entries.iter_mut().zip(&leaves.at) {
                entry.0 = entry.0 >> (8 * (at.value() & 4)) & 0xffff_ffff;
            }
        }
        black_box(&leaves.entries);
        leaves
    }
}

/// Reads the last-level cache sets of a group of addresses, two for each run at most. Where references
/// wait until there are many, the caches do that themselves.
#[inline]
pub fn read_sets(caches: &Caches, addresses: impl Iterator<Item = Hpa>) {
    if caches.is_deferring() {
        return;
    }
    let mut places: [&u32; 2 * GROUP] = [&0; 2 * GROUP];
    let mut count = 0;
    for (place, at) in places.iter_mut().zip(addresses) {
        *place = caches.last_level_place(at);
        count += 1;
    }
    let mut mix = 0;
    for place in &places[..count] {
        mix ^= **place;
    }
    black_box(mix);
}
