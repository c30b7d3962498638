//! `PTEMagnet`: neighbouring pages get neighbouring frames, so that the host's entries for them share a
//! line of the data caches (Margaritov et al., "PTEMagnet: Fine-Grained Physical Memory Reservation for
//! Faster Page Walks in Public Clouds", ASPLOS 2021; the released change to Linux 4.19,
//! `mm/mem_reservations.c`, read).
//!
//! ```text
//! first fault of an aligned group of eight pages   a free block of 32 KiB is reserved, a frame is used
//! later faults of the group                        the frame at the page's place in the block
//! no free block of 32 KiB                          a single page, as without
//! a page of the group is unmapped, or copied       the reservation ends: what nobody used is free, and
//!                                                  the group's next fault reserves anew
//! ```
//!
//! Below is Linux's allocator ([`crate::Linux`]), as in the released change. A group is reserved whether
//! or not its mapping covers all of it, as there.
//!
//! - *Who has it*: every process. The released change gives it to one process by its number, a stand-in
//!   for the control group of the paper.
//! - *Pressure*: the released change ends a reservation when one of its pages is swapped out. Here
//!   reservations are broken when no block is free, the one used longest ago first, as for
//!   [`crate::Reserve`]; a group whose reservation was broken gets a new one at its next fault.
//! - *Large pages* are allocated as without; where one would overlap a reservation, small ones must do.

use crate::physical::PhysicalMemory;
use crate::placement::reservations::{Claim, Reservations};
use crate::placement::{Outcome, Placed, Placement, Request};
use nestwalk_types::{Address, PageSize};
use std::ops::Range;

/// Order of a group: the eight entries of a line (`RESERV_ORDER`).
const ORDER: u32 = 3;

/// Reserved groups of one address space.
#[derive(Debug, Default)]
pub struct PteMagnet {
    reservations: Reservations,
}

/// The group around a page.
const fn group(page: u64) -> Range<u64> {
    let first = page >> ORDER << ORDER;
    first..first + (1 << ORDER)
}

impl PteMagnet {
    /// A block for the group around a page, if one is free without taking it from others.
    fn reserve<O: Address>(&mut self, memory: &mut PhysicalMemory<O>, page: u64) {
        if let Some(frame) = memory.alloc_as_linux(ORDER) {
            self.reservations.add(memory, group(page), frame.page_number());
        }
    }

    fn small<O: Address>(
        &mut self,
        memory: &mut PhysicalMemory<O>,
        request: &Request,
    ) -> Option<Placed<O>> {
        let page = request.page >> 12;
        if request.copy {
            self.reservations.remove(memory, &group(page));
            return single(memory, Outcome::Ordinary);
        }
        if let Claim::Frame(frame) = self.reservations.claim(memory, page, request.size) {
            return Some(Placed::new(O::new(frame << 12), Outcome::Target));
        }
        // None yet, or it was broken, or this page went and came again.
        self.reservations.remove(memory, &group(page));
        self.reserve(memory, page);
        match self.reservations.claim(memory, page, request.size) {
            Claim::Frame(frame) => Some(Placed::new(O::new(frame << 12), Outcome::Target)),
            _ => single(memory, Outcome::Elsewhere),
        }
    }
}

/// A page of its own; the last ones are taken from reservations.
fn single<O: Address>(memory: &mut PhysicalMemory<O>, outcome: Outcome) -> Option<Placed<O>> {
    let frame = memory.alloc_as_linux(0).or_else(|| memory.alloc(0))?;
    Some(Placed::new(frame, outcome))
}

impl<O: Address> Placement<O> for PteMagnet {
    fn attach(&mut self, memory: &mut PhysicalMemory<O>) {
        memory.keep_free_lists();
    }
    fn place(&mut self, memory: &mut PhysicalMemory<O>, request: &Request) -> Option<Placed<O>> {
        if request.size == PageSize::SIZE_4K {
            return self.small(memory, request);
        }
        match self.reservations.claim(memory, request.page >> 12, request.size) {
            Claim::None => {
                let frame = memory.alloc_as_linux(request.size.order())?;
                Some(Placed::new(frame, Outcome::Ordinary))
            }
            _ => None,
        }
    }
    fn unmapped(&mut self, memory: &mut PhysicalMemory<O>, start: u64, end: u64) {
        if start < end {
            let (first, last) = (group(start >> 12), group((end - 1) >> 12));
            self.reservations.remove(memory, &(first.start..last.end));
        }
    }
    /// A child begins without reservations (`mm_init`).
    fn forked(&self) -> Box<dyn Placement<O>> {
        Box::new(Self::default())
    }
}
