//! Reading ahead: the simulator's own memory latency, overlapped.
//!
//! Where accesses miss the modelled TLBs, the tables and cache tags that a walk needs lie all over the
//! memory of the machine that the simulator runs on, and a walk is too long for the processor to begin
//! the next one early. So, while misses are frequent, the leaf entries and cache sets of the next few
//! runs are read in short loops, where the reads overlap. What is read is thrown away: nothing here
//! changes a result, and a stale hint costs time only.

use nestwalk_hw::Caches;
use nestwalk_tables::{Entry, Handle, Mode, TableMemory};
use nestwalk_types::{Address, Hpa};
use std::hint::black_box;

/// Runs that are read ahead at a time.
pub const GROUP: usize = 16;
/// Misses in the last group from which on reading ahead pays.
pub const WORTHWHILE: u64 = 4;

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
        let mut handles = [Handle::default(); GROUP];
        let mut leaves = Leaves { entries: [Entry(0); GROUP], at: [A::new(0); GROUP] };
        let mut count = 0;
        for (i, address) in addresses.enumerate().take(GROUP) {
            let (handle, table) = self.locate(memory, mode, root, address);
            handles[i] = handle;
            leaves.at[i] = mode.entry_at(table, address.value(), 1);
            count = i + 1;
        }
        for (i, handle) in handles[..count].iter().enumerate() {
            leaves.entries[i] = Entry(memory.entry(*handle, leaves.at[i], mode.entry_bytes));
        }
        black_box(&leaves.entries);
        leaves
    }
}

/// Reads the cache sets of a group of addresses.
#[inline]
pub fn read_sets(caches: &Caches, addresses: impl Iterator<Item = Hpa>) {
    let mut mix = 0;
    for at in addresses {
        mix ^= caches.read_ahead(at);
    }
    black_box(mix);
}
