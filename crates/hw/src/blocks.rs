//! TLB blocks: translations of eight pages on end in a line of the second-level data cache
//! (Kanellopoulos et al., "Victima", MICRO 2023).
//!
//! What lines hold is kept here, set by set as the cache keeps them; whether the cache still has a line
//! it says itself. Lines of blocks have addresses that no memory has, whose lowest bits are the number
//! of the block, so that blocks and data compete for the ways of sets as any lines do. Of the blocks of
//! a set those are here that were used last, as many as there are ways: the cache, whose replacement is
//! LRU too, can have no others.
//!
//! Whatever voids all blocks of an address space marks a time; what was filled before it is void. A
//! void block keeps its way until another line needs it.

use crate::assoc::SetAssoc;
use crate::cache::HPA_LIMIT;
use crate::geometry::Geometry;
use crate::tlb::{Asid, Translation};
use nestwalk_types::{Address, PageSize};

/// Pages of a block.
pub const BLOCK_PAGES: usize = 8;

/// Lines from here on are blocks.
const FIRST: u64 = (HPA_LIMIT / 2) >> 6;
/// Bits of a line's number that are the block's; the bits above tell blocks apart.
const INDEX_BITS: u32 = 12;
const APART_BITS: u32 = 24;

/// Where in a tag the number of the block begins; below it are kind and owner.
const NUMBER: u32 = 20;
const NUMBER_BITS: u32 = 42;
const KIND: u32 = 17;
const NESTED: u64 = 4;
const GLOBAL: u64 = 1 << 16;

/// What a block translates.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BlockOf {
    /// Linear addresses.
    Linear,
    /// Guest-physical addresses.
    Nested,
}

#[derive(Clone, Copy, Default)]
struct Block {
    born: u64,
    entries: [Translation; BLOCK_PAGES],
}

/// The blocks of a core's second-level cache.
#[derive(Clone)]
pub struct Blocks {
    blocks: SetAssoc<u64, Block>,
    /// Sizes of pages that blocks were filled with, of linear and of guest-physical addresses.
    sizes: [Vec<PageSize>; 2],
    any_global: bool,
    any_splinter: bool,
    now: u64,
    /// When the blocks of a PCID were voided last, all of those, those of global pages, nested ones.
    voided: Vec<u64>,
    voided_all: u64,
    voided_global: u64,
    voided_nested: u64,
}

/// Whose an entry is that is not global.
const fn owner_of(asid: Asid) -> u64 {
    (asid.vpid() as u64) << 12 | asid.pcid() as u64
}

/// A block's tag, where it is, and which of its entries an address has.
struct Place {
    tag: u64,
    line: u64,
    set: usize,
    entry: usize,
}

impl Blocks {
    /// No blocks, in a cache of this geometry.
    pub fn new(cache: Geometry) -> Self {
        Self {
            blocks: SetAssoc::new(cache),
            sizes: [Vec::new(), Vec::new()],
            any_global: false,
            any_splinter: false,
            now: 0,
            voided: vec![0; 1 << 12],
            voided_all: 0,
            voided_global: 0,
            voided_nested: 0,
        }
    }

    fn place(&self, address: u64, size: PageSize, owner: u64, of: BlockOf) -> Place {
        let page = address >> size.shift();
        let number = (page / BLOCK_PAGES as u64) & ((1 << NUMBER_BITS) - 1);
        // 4 KiB, 2 MiB, 4 MiB, 1 GiB.
        let kind = u64::from(size.shift()) & 3 | if of == BlockOf::Nested { NESTED } else { 0 };
        let tag = number << NUMBER | kind << KIND | owner;
        let apart = tag.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - APART_BITS);
        let line = FIRST + (apart << INDEX_BITS | number & ((1 << INDEX_BITS) - 1));
        let set = self.blocks.indexer().set(line);
        Place { tag, line, set, entry: page as usize % BLOCK_PAGES }
    }

    /// Whether a block of an owner that was filled at that time is void.
    fn is_void(&self, born: u64, owner: u64, of: BlockOf) -> bool {
        let voided = match of {
            BlockOf::Nested => self.voided_nested,
            BlockOf::Linear if owner & GLOBAL != 0 => self.voided_global,
            BlockOf::Linear => self.voided_all.max(self.voided[owner as usize & 0xfff]),
        };
        born < voided
    }

    fn owners(&self, asid: Asid, of: BlockOf) -> impl Iterator<Item = u64> + use<> {
        let own = owner_of(asid);
        let global = self.any_global && of == BlockOf::Linear;
        std::iter::once(own).chain(global.then_some(GLOBAL | own & 0xf000))
    }

    /// Looks an address up. `has` says whether the cache has a line, and uses it.
    pub fn look_up<I: Address>(
        &mut self,
        address: I,
        asid: Asid,
        of: BlockOf,
        mut has: impl FnMut(u64) -> bool,
    ) -> Option<Translation> {
        for i in 0..self.sizes[of as usize].len() {
            let size = self.sizes[of as usize][i];
            for owner in self.owners(asid, of) {
                let place = self.place(address.value(), size, owner, of);
                let Some(block) = self.blocks.peek(place.set, place.tag) else { continue };
                let (born, found) = (block.born, block.entries[place.entry]);
                if found == Translation::default() || self.is_void(born, owner, of) {
                    continue;
                }
                if !has(place.line) {
                    self.blocks.remove(place.set, place.tag);
                    continue;
                }
                let _ = self.blocks.look_up(place.set, place.tag);
                return Some(found);
            }
        }
        None
    }

    /// Puts what is known of the pages around an address into their block: `entries` of the size and
    /// owner of the address's own; those that are no translation stay as they are. `fill` puts a line
    /// into the cache, and says whether it was there. Returns whether the block is new.
    pub fn fill<I: Address>(
        &mut self,
        address: I,
        asid: Asid,
        of: BlockOf,
        entries: &[Translation; BLOCK_PAGES],
        mut fill: impl FnMut(u64) -> bool,
    ) -> bool {
        let Some(first) = entries.iter().find(|e| **e != Translation::default()) else {
            return false;
        };
        let mut owner = owner_of(asid);
        if of == BlockOf::Linear && first.is_global() {
            owner = GLOBAL | owner & 0xf000;
            self.any_global = true;
        }
        self.any_splinter |= of == BlockOf::Linear && first.is_splinter();
        let size = first.size();
        if !self.sizes[of as usize].contains(&size) {
            self.sizes[of as usize].push(size);
        }
        let place = self.place(address.value(), size, owner, of);
        let there = fill(place.line);
        let old = self.blocks.peek(place.set, place.tag).copied();
        let old = old.filter(|b| there && !self.is_void(b.born, owner, of));
        let mut block = old.unwrap_or(Block { born: self.now, ..Block::default() });
        for (to, from) in block.entries.iter_mut().zip(entries) {
            if *from != Translation::default() {
                *to = *from;
            }
        }
        self.blocks.put(place.set, place.tag, block);
        old.is_none()
    }

    fn drop_entries(&mut self, address: u64, owner: u64, of: BlockOf) {
        for i in 0..self.sizes[of as usize].len() {
            let place = self.place(address, self.sizes[of as usize][i], owner, of);
            // Here it counts as used, in the cache it does not: at most a dead block stays longer.
            if let Some(block) = self.blocks.look_up(place.set, place.tag) {
                block.entries[place.entry] = Translation::default();
            }
        }
    }

    /// Removes the translation of an address, global ones too if `global`; other parts of the same large
    /// page stay.
    pub fn remove<I: Address>(&mut self, address: I, asid: Asid, global: bool) {
        for owner in self.owners(asid, BlockOf::Linear) {
            if global || owner & GLOBAL == 0 {
                self.drop_entries(address.value(), owner, BlockOf::Linear);
            }
        }
    }

    /// Removes the page of an address, as [`crate::Tlb::invalidate_page`]. If there was ever a part of a
    /// page whose other parts may be anywhere, the whole address space goes.
    pub fn invalidate_page<I: Address>(&mut self, address: I, asid: Asid, global: bool) {
        self.remove(address, asid, global);
        if self.any_splinter {
            self.invalidate_asid(asid);
            self.voided_global = if global { self.now } else { self.voided_global };
        }
    }

    /// Removes everything of `asid` but global entries.
    pub fn invalidate_asid(&mut self, asid: Asid) {
        self.now += 1;
        self.voided[usize::from(asid.pcid())] = self.now;
    }

    /// Removes all linear translations, with or without global ones: blocks are of one VPID.
    pub const fn invalidate_all(&mut self, global: bool) {
        self.now += 1;
        self.voided_all = self.now;
        if global {
            self.voided_global = self.now;
        }
    }

    /// Removes the translation of a guest-physical address.
    pub fn remove_nested<I: Address>(&mut self, address: I, asid: Asid) {
        self.drop_entries(address.value(), owner_of(asid), BlockOf::Nested);
    }

    /// Removes all translations of guest-physical addresses.
    pub const fn invalidate_nested(&mut self) {
        self.now += 1;
        self.voided_nested = self.now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Cache;
    use nestwalk_tables::Permissions;
    use nestwalk_types::{Gva, Hpa, SplitMix64};
    use std::collections::BTreeMap;

    const S4K: PageSize = PageSize::SIZE_4K;

    fn page(frame: u64, global: bool) -> Translation {
        Translation::new(Hpa::new(frame << 12), S4K, Permissions::ALL, true, global)
    }

    fn alone(gva: Gva, found: Translation) -> [Translation; BLOCK_PAGES] {
        let mut entries = [Translation::default(); BLOCK_PAGES];
        entries[gva.page_number() as usize % BLOCK_PAGES] = found;
        entries
    }

    /// Fills, look-ups and invalidations at random, in step with a plain map: what is found is what was
    /// put in last and not invalidated since, and data that goes through the cache displaces some of it.
    #[test]
    fn what_is_found_was_put_in_and_not_invalidated() {
        let geometry = Geometry::new(64 * 4, 4).unwrap();
        let (mut blocks, mut cache) = (Blocks::new(geometry), Cache::new(geometry));
        let mut plain: BTreeMap<(u16, u64), u64> = BTreeMap::new();
        let mut random = SplitMix64::new(7);
        let (mut hits, mut lost) = (0, 0);
        for i in 1..200_000_u64 {
            let asid = Asid::new(1, random.below(3) as u16);
            let number = random.below(2_000);
            let gva = Gva::new(number << 12);
            match random.below(100) {
                0..30 => {
                    let entries = alone(gva, page(i, false));
                    blocks.fill(gva, asid, BlockOf::Linear, &entries, |l| cache.access(l));
                    plain.insert((asid.pcid(), number), i);
                }
                30..34 => {
                    blocks.invalidate_page(gva, asid, true);
                    plain.remove(&(asid.pcid(), number));
                }
                34 if random.below(20) == 0 => {
                    blocks.invalidate_asid(asid);
                    plain.retain(|k, _| k.0 != asid.pcid());
                }
                35 if random.below(200) == 0 => {
                    blocks.invalidate_all(true);
                    plain.clear();
                }
                36..50 => {
                    cache.access(random.below(1 << 20));
                }
                _ => {
                    let found = blocks.look_up(gva, asid, BlockOf::Linear, |l| cache.touch(l));
                    let known = plain.get(&(asid.pcid(), number));
                    match found {
                        Some(found) => assert_eq!(Some(&(found.frame().value() >> 12)), known),
                        None => lost += u32::from(known.is_some()),
                    }
                    hits += u32::from(found.is_some());
                }
            }
        }
        assert!(hits > 2_000 && lost > 5_000, "{hits} hits, {lost} lost");
    }

    #[test]
    fn global_pages_stay_when_an_address_space_goes_and_are_found_from_others() {
        let mut blocks = Blocks::new(Geometry::new(64, 4).unwrap());
        let (gva, one, other) = (Gva::new(0x7000), Asid::new(1, 1), Asid::new(1, 2));
        blocks.fill(gva, one, BlockOf::Linear, &alone(gva, page(5, true)), |_| false);
        blocks.invalidate_asid(one);
        blocks.invalidate_all(false);
        assert!(blocks.look_up(gva, other, BlockOf::Linear, |_| true).is_some());
        blocks.invalidate_page(gva, other, true);
        assert!(blocks.look_up(gva, one, BlockOf::Linear, |_| true).is_none());
    }

    #[test]
    fn a_block_whose_line_is_gone_is_gone() {
        let mut blocks = Blocks::new(Geometry::new(64, 4).unwrap());
        let (gva, asid) = (Gva::new(0x7000), Asid::new(1, 1));
        let entries = alone(gva, page(5, false));
        assert!(blocks.fill(gva, asid, BlockOf::Linear, &entries, |_| false));
        assert!(blocks.look_up(gva, asid, BlockOf::Linear, |_| false).is_none());
        assert!(blocks.look_up(gva, asid, BlockOf::Linear, |_| true).is_none());
    }

    #[test]
    fn parts_of_a_large_page_go_with_it() {
        let mut blocks = Blocks::new(Geometry::new(64, 4).unwrap());
        let (gva, asid) = (Gva::new(0x20_7000), Asid::new(1, 1));
        let part = page(5, false).splinter_of(PageSize::SIZE_2M);
        blocks.fill(gva, asid, BlockOf::Linear, &alone(gva, part), |_| false);
        blocks.invalidate_page(Gva::new(0x20_0000), asid, true);
        assert!(blocks.look_up(gva, asid, BlockOf::Linear, |_| true).is_none());
    }
}
