//! The page size at hand: what the short ways of a TLB's look-ups and fills need, in one place.

use super::{Active, GLOBAL_ASID, PAGE_SHIFT, Translation};
use crate::slim::Latest;

/// The size found or filled last, with all that the short ways of look-ups and fills need.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hand {
    /// `usize::MAX` if nothing of a size found or filled last is there.
    pub array: usize,
    pub shift: u32,
    /// Whose entries are looked up first: of an ASID these bits, and of the class, [`GLOBAL_ASID`] among
    /// them where global entries are the likelier ones.
    pub keep: u64,
    pub bits: u64,
    /// See [`class`].
    pub class: u64,
    /// What a translation that is filled the short way has in [`Translation::SIZES`].
    pub sizes: u64,
}

impl Hand {
    /// Nothing is at hand.
    pub const EMPTY: Self =
        Self { array: usize::MAX, shift: 0, keep: 0, bits: 0, class: 0, sizes: !0 };

    /// A size in the lower or the upper half of the addresses.
    pub fn of(active: &Active, half: usize, any_global: bool) -> Self {
        let Active { array, size, class } = *active;
        let global = any_global && half == 1;
        let (keep, extra) = if global { (0xf000, GLOBAL_ASID) } else { (0xffff, 0) };
        let bits = class | u64::from(extra);
        let shift = size.shift();
        Self { array, shift, keep, bits, class, sizes: Translation::sizes(size) }
    }
}

/// The entries of the size at hand, for one half of the addresses and one address space.
#[derive(Clone, Copy)]
pub struct AtHand<'a> {
    pub(super) entries: Latest<'a, Translation>,
    pub(super) shift: u32,
    pub(super) bits: u64,
}

impl AtHand<'_> {
    /// The translation of an address, if it was the last that was used of its set.
    #[inline(always)]
    pub fn find(&self, address: u64) -> Option<Translation> {
        let page = address >> self.shift;
        self.entries.find(page, page << PAGE_SHIFT | self.bits).copied()
    }
}
