//! Page tables that are no radix trees: of the guest, of the host, or of both.
//!
//! A [`Structure`] maps pages and is looked up by hardware. It knows not what the pages are: in the
//! guest they are pages of a *region* ([`mirror`]), in the host those of guest-physical memory.
//! [`Tabled`] is the scheme, of a guest's side ([`GuestSide`]) and a host's ([`HostSide`]), each of
//! which may have a structure in place of its radix tables.
//!
//! The guest's kernel is the stream's, which keeps radix tables. The OS half follows its stores and
//! keeps the structure in step with them ([`mirror::Mirror`]). What that takes is counted: each entry
//! that is stored, each that a larger table makes it move, memory that is cleared.

mod any;
mod arriving;
pub mod classic;
pub mod cuckoo;
pub mod direct;
pub mod flat;
pub mod flattened;
mod guest;
pub mod hashed;
mod host;
pub mod learned;
pub mod mirror;
pub mod restricted;
mod scheme;
mod supply;
#[cfg(test)]
mod testing;

pub use any::Any;
pub use guest::{GuestSide, GuestTable, RadixGuest};
pub use host::{HostSide, HostTable, NoHost};
pub use scheme::{Sides, Tabled, build};
pub use supply::{GuestArea, Supply};

pub use crate::scheme::StructureState;
use nestwalk_tables::Entry;
use nestwalk_types::PageSize;

/// A page that is looked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Key {
    /// The region that it is of; 0 of guest-physical memory.
    pub region: u32,
    /// Its number within the region, in pages of 4 KiB.
    pub page: u64,
}

impl Key {
    /// The number of the page of 2^`shift` bytes that it lies in.
    #[inline]
    pub const fn of_size(self, shift: u8) -> u64 {
        self.page >> (shift - 12)
    }
}

/// What a look-up has found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Found {
    /// The entry, with what all levels permit.
    pub entry: Entry,
    /// Base-2 logarithm of the page's size.
    pub shift: u8,
    /// Where the structure has it.
    pub slot: usize,
}

impl Found {
    /// Size of the page.
    #[inline]
    pub const fn size(&self) -> PageSize {
        PageSize::from_shift(self.shift)
    }
}

/// What keeping a structure has taken since this was last asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Work {
    /// Entries stored or cleared.
    pub updates: u64,
    /// Entries, or clusters of them, that were moved within a table or to a larger one.
    pub moves: u64,
    /// Pages of 4 KiB that were cleared for tables.
    pub pages: u64,
    /// Changes of a table's size.
    pub resizes: u64,
    /// Pieces of memory that were asked for and not to be had.
    pub refused: u64,
    /// Pages of 4 KiB that were copied, since a table says where they lie.
    pub copies: u64,
}

/// No memory for a table that cannot do without.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoMemory;

/// The level of lines that are fetched beside a look-up: nothing waits for them.
pub const BACKGROUND: u8 = 0;

/// Set in the level of lines of a guest's structure that lie in memory which the guest has from its
/// host: their addresses are host-physical, and nothing translates them.
pub const DIRECT: u8 = 0x80;

/// Set in the level of a line that a look-up will come to: it is fetched now, and nothing waits until
/// then. Its address is host-physical.
pub const AHEAD: u8 = 0x40;

/// Set in the level of a line that was fetched ahead: the look-up has come to it.
pub const MET: u8 = 0x20;

/// A structure that maps pages.
pub trait Structure: Send {
    /// Looks a page up as the hardware of a core does. `fetch` reads lines of 64 bytes by their
    /// addresses, all of a call at once, of tables of some level; an error of it ends the look-up.
    ///
    /// # Errors
    /// Those of `fetch`.
    fn look_up<E>(
        &mut self,
        core: usize,
        key: Key,
        fetch: &mut impl FnMut(u8, &[u64]) -> Result<(), E>,
    ) -> Result<Option<Found>, E>;

    /// The entry of a page, as software looks.
    fn get(&self, key: Key) -> Option<Found>;

    /// Stores the entry of the page of 2^`shift` bytes around `key`, over what is there.
    ///
    /// # Errors
    /// There is no memory for it.
    fn put(
        &mut self,
        key: Key,
        shift: u8,
        entry: u64,
        memory: &mut dyn Supply,
    ) -> Result<(), NoMemory>;

    /// Clears the entry of the page of 2^`shift` bytes around `key`. Returns whether there was one.
    fn remove(&mut self, key: Key, shift: u8, memory: &mut dyn Supply) -> bool;

    /// Sets accessed and dirty bits of an entry that was found.
    fn mark(&mut self, found: &Found, bits: u64);

    /// Sizes of pages that are in it, as base-2 logarithms, smallest first.
    fn shifts(&self) -> Vec<u8>;

    /// Cycles of a look-up before its first line is read.
    #[inline]
    fn cycles(&self) -> u64 {
        0
    }

    /// Regions that come from now on are those of this root.
    fn root_loaded(&mut self, _root: u64, _memory: &mut dyn Supply) {}

    /// This root is none any more.
    fn root_gone(&mut self, _root: u64) {}

    /// A core forgets where walks that it made have led.
    fn forget_walks(&mut self, _core: usize) {}

    /// What keeping it has taken.
    fn work(&mut self) -> &mut Work;

    /// As it is.
    fn state(&self) -> StructureState;
}
