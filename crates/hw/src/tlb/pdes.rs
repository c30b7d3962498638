//! Page-directory entries in a second-level TLB (AMD from Zen on): they take a walk to the leaf table,
//! and share the ways with translations, under tags of their own.
//!
//! An entry of a TLB is a word. What a walk goes on with is longer here than in hardware, since the
//! simulator finds the contents of tables by it: the word says where it lies beside the array.

use super::{ASID_BITS, Asid, Tlb, Translation};
use crate::profile::TlbProfile;
use crate::slim::Sets;
use crate::walk_cache::Pointer;

const CLASS: u64 = 2 << 17 | 1 << 63;
const CLASS_BITS: u64 = 3 << 17 | 3 << 62;
/// Bits of the number of a block of a leaf table's span.
const PREFIX: u64 = (1 << 36) - 1;

/// Where page-directory entries are, and what they say.
#[derive(Clone, Debug)]
pub(super) struct Pdes {
    array: usize,
    /// Twice as many as the array has entries.
    pointers: Box<[Pointer]>,
    /// Which of them no entry leads to, as far as is known.
    free: Vec<u32>,
    any: bool,
}

impl Pdes {
    pub(super) fn new(array: usize, profile: &TlbProfile) -> Self {
        let slots = 2 * profile.entries;
        let pointers = vec![Pointer::default(); slots as usize].into_boxed_slice();
        Self { array, pointers, free: (0..slots).rev().collect(), any: false }
    }

    /// A slot that no entry leads to. If none is known, the array is looked through, which finds as many
    /// as it has entries, so that it is seldom.
    fn slot(&mut self, entries: &Sets<Translation>) -> u32 {
        if self.free.is_empty() {
            let mut taken = vec![false; self.pointers.len()];
            entries.for_each(|tag, held| {
                if is_pde(tag) {
                    taken[slot_of(*held)] = true;
                }
            });
            let free = (0..taken.len()).rev().filter(|slot| !taken[*slot]);
            self.free.extend(free.map(|slot| slot as u32));
        }
        self.free.pop().unwrap_or(0)
    }
}

/// The word that leads to a slot: a translation that permits nothing.
const fn word(slot: u32) -> Translation {
    Translation((slot as u64) << 12)
}

const fn slot_of(held: Translation) -> usize {
    ((held.0 & Translation::FRAME) >> 12) as usize
}

/// Whether a tag is a page-directory entry's.
pub(super) const fn is_pde(tag: u64) -> bool {
    tag & CLASS_BITS == CLASS
}

#[inline]
fn tag(prefix: u64, asid: Asid) -> u64 {
    (prefix & PREFIX) << 19 | CLASS | u64::from(asid.0)
}

impl Tlb {
    /// Whether page-directory entries have ways here.
    #[inline]
    pub const fn holds_pdes(&self) -> bool {
        self.pdes.is_some()
    }

    /// Where the leaf table of a block is, by the address bits above it.
    #[inline]
    pub fn look_up_pde(&mut self, prefix: u64, asid: Asid) -> Option<Pointer> {
        let pdes = self.pdes.as_ref().filter(|p| p.any)?;
        let entries = &mut self.arrays[pdes.array];
        entries.look_up(prefix, tag(prefix, asid)).map(|held| pdes.pointers[slot_of(*held)])
    }

    /// Remembers where the leaf table of a block is.
    pub fn fill_pde(&mut self, prefix: u64, asid: Asid, pointer: Pointer) {
        let Some(pdes) = &mut self.pdes else { return };
        pdes.any = true;
        let entries = &mut self.arrays[pdes.array];
        let tag = tag(prefix, asid);
        let slot = if let Some(held) = entries.look_up(prefix, tag) {
            slot_of(*held)
        } else {
            let slot = pdes.slot(entries);
            entries.fill(prefix, tag, word(slot));
            slot as usize
        };
        pdes.pointers[slot] = pointer;
    }

    /// Removes the page-directory entry of a block.
    pub fn remove_pde(&mut self, prefix: u64, asid: Asid) {
        if let Some(pdes) = self.pdes.as_ref().filter(|p| p.any) {
            let entries = &mut self.arrays[pdes.array];
            entries.remove(prefix, tag(prefix, asid));
        }
    }

    /// Removes the page-directory entries of an address space.
    pub fn remove_pdes(&mut self, asid: Asid) {
        self.retain_pdes(|t| t & ASID_BITS != u64::from(asid.0));
    }

    /// Removes the page-directory entries of a VPID.
    pub fn remove_pdes_of_vpid(&mut self, vpid: u8) {
        self.retain_pdes(|t| t >> 12 & 0xf != u64::from(vpid));
    }

    fn retain_pdes(&mut self, keep: impl Fn(u64) -> bool) {
        if let Some(pdes) = self.pdes.as_ref().filter(|p| p.any) {
            self.arrays[pdes.array].retain(|t, _| !is_pde(t) || keep(t));
        }
    }
}
