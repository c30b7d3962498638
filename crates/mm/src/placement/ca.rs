//! CA paging (contiguity-aware paging): a mapping's pages lie at one distance from their frames,
//! as long as the frames are free (Alverti et al., "Enhancing and Exploiting Contiguity for Fast
//! Memory Virtualization", ISCA 2020; the released kernel, Linux 4.19 with changes:
//! `mm/mempolicy.c` and `mm/page_alloc.c`).
//!
//! ```text
//! ring of a VMA   { page, offset = page - frame } x 64, the oldest overwritten
//! fault           offset of the entry with the largest page <= the faulting one, else the next above
//!                 none: next-fit placement of the whole VMA; offset = first page - first frame
//!                 target = page - offset, rounded up to the request's alignment
//! target free     it is taken
//! else, large     next-fit placement of what is unmapped; an entry if not at target
//! else, 4 KiB     whatever the buddy allocator gives; no new entry
//! ```
//!
//! `contiguity_map.rs` has the map and next-fit placement. Guest and host each have their own. A
//! copy for copy-on-write is placed by the same routine. Memory has no page cache here, so the
//! part for files is left out.
//!
//! Of several threads that fault in a VMA at once, the first may place and make entries; the
//! others use what there is ([`Ca::place_as`]). Faults in this model come one after the other, so
//! all of them may.

use crate::physical::PhysicalMemory;
use crate::physical::buddy::LINUX_MAX_ORDER;
use crate::placement::{Outcome, Placed, Placement, Request};
use nestwalk_types::{Address, ByNumber};

/// Orders from this one on are large pages: 2 MiB (`HPAGE_PMD_ORDER`).
const LARGE: u32 = 9;

/// What the released kernel has as constants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CaConfig {
    /// Entries of a VMA (`SUB_VMA_TOTAL`).
    pub entries: usize,
    /// A request below 2 MiB leaves free blocks above this order alone (`MAX_ORDER - 2`).
    pub small_limit: u32,
    /// A 4 KiB request whose target is taken is placed anew, as a large one is.
    pub place_small: bool,
}

impl CaConfig {
    /// As released: tuned for transparent large pages. Where all memory is free, a 4 KiB request
    /// finds its target in a block of 4 MiB, must not split it, and gets a frame elsewhere.
    pub const RELEASED: Self =
        Self { entries: 64, small_limit: LINUX_MAX_ORDER - 1, place_small: false };
    /// 4 KiB pages are treated as large ones are: a variant of this project, to see what the
    /// rules for them cost.
    pub const SMALL: Self = Self { entries: 64, small_limit: crate::MAX_ORDER, place_small: true };
}

/// Page, and page minus frame.
type Entry = (u64, i64);

/// The entries of a VMA.
#[derive(Clone, Debug, Default)]
struct Ring {
    entries: Vec<Entry>,
    /// The entry to write next.
    next: usize,
}

impl Ring {
    fn insert(&mut self, page: u64, offset: i64, most: usize) {
        if self.entries.len() < most {
            self.entries.push((page, offset));
        } else {
            self.entries[self.next] = (page, offset);
        }
        self.next = (self.next + 1) % most;
    }
    /// The offset for a page, and the next page above it that has an entry.
    fn look_up(&self, page: u64) -> (Option<i64>, Option<u64>) {
        // Of entries for the same page the kernel's loops take the first one in the ring.
        let (mut below, mut above) = (None::<Entry>, None::<Entry>);
        for &(at, offset) in &self.entries {
            if at <= page && below.is_none_or(|b| at > b.0) {
                below = Some((at, offset));
            } else if at > page && above.is_none_or(|a| at < a.0) {
                above = Some((at, offset));
            }
        }
        (below.or(above).map(|e| e.1), above.map(|a| a.0))
    }
}

/// CA paging for one address space.
#[derive(Clone, Debug)]
pub struct Ca {
    config: CaConfig,
    /// Entries by the VMA's first address, with its end.
    vmas: ByNumber<(u64, Ring)>,
}

impl Ca {
    /// Without mappings.
    pub const fn new(config: CaConfig) -> Self {
        Self { config, vmas: ByNumber::new() }
    }

    /// Parts of VMAs beyond these borders are VMAs of their own, with the same entries: the
    /// kernel copies them when it splits a VMA (`vm_area_dup`).
    fn cut(&mut self, at: u64) {
        let found = at.checked_sub(1).and_then(|below| self.vmas.up_to_mut(below));
        if let Some((_, (end, ring))) = found
            && *end > at
        {
            let (ring, old) = (ring.clone(), std::mem::replace(end, at));
            self.vmas.insert(at, (old, ring));
        }
    }

    /// The entries of the VMA from `start` to `end`. VMAs that were merged keep those of the
    /// lowest one (`vma_merge` extends a VMA and frees the others with what they have).
    fn ring(&mut self, start: u64, end: u64) -> &mut Ring {
        let known = self.vmas.get(start).is_some_and(|v| v.0 == end);
        if !known {
            self.cut(start);
            self.cut(end);
            let inside: Vec<u64> = self.vmas.range(start..end).map(|(s, _)| s).collect();
            let mut rings = inside.into_iter().filter_map(|s| self.vmas.remove(s));
            let ring = rings.next().map_or_else(Ring::default, |v| v.1);
            rings.for_each(drop);
            self.vmas.insert(start, (end, ring));
        }
        &mut self.vmas.get_or_insert(start, Default::default).1
    }

    /// Places a page for a thread that may make placements and entries, or may not because
    /// another one is in the middle of it.
    pub fn place_as<O: Address>(
        &mut self,
        memory: &mut PhysicalMemory<O>,
        request: &Request,
        may_place: bool,
    ) -> Option<Placed<O>> {
        let config = self.config;
        let Request { vma_start, vma_end, size, .. } = *request;
        let (page, order) = (request.page >> 12, size.order());
        let ring = self.ring(vma_start, vma_end);
        let (mut offset, above) = ring.look_up(page);
        // The kernel leaves this undefined for the first fault of a VMA, whose target is free as
        // a rule.
        let unmapped = above.unwrap_or(vma_end >> 12) - page;
        let unmapped = if may_place { unmapped } else { 0 };
        if offset.is_none() && may_place {
            let whole = (vma_end - vma_start) >> 12;
            if let Some(first) = memory.next_fit(0, whole) {
                let new = (vma_start >> 12) as i64 - first as i64;
                ring.insert(page, new, config.entries);
                offset = Some(new);
            }
        }
        // Below frame 0 there is nothing: no valid frame number.
        let target = offset.and_then(|o| u64::try_from(page as i64 - o).ok());
        let large = order >= LARGE || (config.place_small && order == 0);
        let (frame, placed) = allocate(memory, config, (target, order, unmapped), large)?;
        if may_place && large && Some(frame) != target {
            ring.insert(page, page as i64 - frame as i64, config.entries);
        }
        let outcome = match placed {
            _ if Some(frame) == target => Outcome::Target,
            // At the next aligned address, of which there is an entry now, or at a new place.
            Found::Target | Found::Again => Outcome::Again,
            Found::Elsewhere => Outcome::Elsewhere,
        };
        Some(Placed::new(O::new(frame << 12), outcome))
    }
}

/// Where a frame was found.
enum Found {
    Target,
    Again,
    Elsewhere,
}

/// `rmqueue_capaging` and what follows it, zone by zone.
fn allocate<O: Address>(
    memory: &mut PhysicalMemory<O>,
    config: CaConfig,
    (target, order, unmapped): (Option<u64>, u32, u64),
    large: bool,
) -> Option<(u64, Found)> {
    let mask = (1u64 << order) - 1;
    let limit = if order < LARGE { config.small_limit } else { crate::MAX_ORDER };
    for zone in 0..memory.zone_count() {
        // Without a target the kernel does not come here.
        if let Some(target) = target {
            let aligned = (target + mask) & !mask;
            if memory.take_in(zone, aligned, order, limit) {
                return Some((aligned, Found::Target));
            }
            if large && let Some(first) = memory.next_fit(zone, unmapped) {
                // The beginning of the range, or the first aligned frame for sizes above 4 MiB.
                let first = (first + mask) & !mask;
                if memory.take_in(zone, first, order, crate::MAX_ORDER) {
                    return Some((first, Found::Again));
                }
            }
        }
        if let Some(frame) = memory.alloc_in(zone, order) {
            return Some((frame, Found::Elsewhere));
        }
    }
    memory.alloc(order).map(|f| (f.page_number(), Found::Elsewhere))
}

impl<O: Address> Placement<O> for Ca {
    fn attach(&mut self, memory: &mut PhysicalMemory<O>) {
        memory.keep_contiguity_maps();
    }
    fn place(&mut self, memory: &mut PhysicalMemory<O>, request: &Request) -> Option<Placed<O>> {
        self.place_as(memory, request, true)
    }
    fn unmapped(&mut self, _: &mut PhysicalMemory<O>, start: u64, end: u64) {
        self.cut(start);
        self.cut(end);
        let inside: Vec<u64> = self.vmas.range(start..end).map(|(s, _)| s).collect();
        inside.iter().for_each(|s| drop(self.vmas.remove(*s)));
    }
    /// The child's VMAs are copies of the parent's, entries included (`vm_area_dup`).
    fn forked(&self) -> Box<dyn Placement<O>> {
        Box::new(self.clone())
    }
}

#[cfg(test)]
#[path = "ca_tests.rs"]
mod tests;
