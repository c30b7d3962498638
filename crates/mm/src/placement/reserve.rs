//! Reservation-based large pages (Navarro et al., "Practical, Transparent Operating System
//! Support for Superpages", OSDI 2002; FreeBSD, `sys/vm/vm_reserv.c`).
//!
//! The first touch of an aligned block of 2 MiB that a mapping covers reserves a free block of
//! that size; pages of 4 KiB get their places in it when they are touched. When the last one is
//! there, the pages are joined to one leaf of 2 MiB, if their permissions are the same. Under
//! pressure the reservation that was used longest ago is broken and its unused frames are given
//! to others.
//!
//! - `4k`: reserved and never joined. `thp`: joined when full, and no large page at first touch.
//! - `2m`, `4m`, `1g`: the program asks for large pages at once, so nothing is reserved where
//!   they fit; what is touched in smaller pages is.
//! - Not modelled: reservations of several sizes (the paper's 64 KiB and 512 KiB; FreeBSD on x86
//!   has 2 MiB alone), joining clean pages read-only to find out whether all get dirty.

use crate::physical::PhysicalMemory;
use crate::placement::reservations::{Claim, Reservations};
use crate::placement::{Outcome, PagePolicy, Placed, Placement, Request};
use nestwalk_tables::Mode;
use nestwalk_types::{Address, PageSize};

/// Pages of 4 KiB in reserved blocks.
#[derive(Debug)]
pub struct Reserve {
    block: PageSize,
    pages: PagePolicy,
    reservations: Reservations,
}

impl Reserve {
    /// Reservations of the size of a level-2 leaf.
    pub fn new(pages: PagePolicy, mode: &Mode) -> Self {
        Self { block: mode.span(2), pages, reservations: Reservations::default() }
    }

    /// Reserves a block for the page if there is none yet and the mapping covers it.
    fn reserve<O: Address>(&mut self, memory: &mut PhysicalMemory<O>, request: &Request) {
        let start = request.page & !self.block.mask();
        let covers = request.vma_start <= start && self.block.bytes() <= request.vma_end - start;
        let pages = start >> 12..(start >> 12) + self.block.base_pages();
        let taken = self.reservations.gap(request.page >> 12, &pages) != pages;
        if !covers || taken || request.copy {
            return;
        }
        if let Some(frame) = memory.alloc(self.block.order()) {
            self.reservations.add(memory, pages, frame.page_number());
        }
    }
}

impl<O: Address> Placement<O> for Reserve {
    fn offers(&self, size: PageSize) -> bool {
        size == PageSize::SIZE_4K || !self.pages.is_transparent()
    }
    fn place(&mut self, memory: &mut PhysicalMemory<O>, request: &Request) -> Option<Placed<O>> {
        let page = request.page >> 12;
        if request.size == PageSize::SIZE_4K && !self.reservations.has(page) {
            self.reserve(memory, request);
        }
        let outcome = match self.reservations.claim(memory, page, request.size) {
            Claim::Frame(frame) => {
                return Some(Placed::new(O::new(frame << 12), Outcome::Target));
            }
            Claim::Smaller => return None,
            Claim::Gone => Outcome::Elsewhere,
            Claim::None if request.size == PageSize::SIZE_4K => Outcome::Elsewhere,
            Claim::None => Outcome::Ordinary,
        };
        memory.alloc(request.size.order()).map(|f| Placed::new(f, outcome))
    }
    fn complete(&self, memory: &PhysicalMemory<O>, page: u64) -> Option<PageSize> {
        let full =
            self.pages != PagePolicy::Base && self.reservations.is_used_up(memory, page >> 12);
        full.then_some(self.block)
    }
    fn unmapped(&mut self, memory: &mut PhysicalMemory<O>, start: u64, end: u64) {
        self.reservations.remove(memory, &(start >> 12..end >> 12));
    }
    fn forked(&self) -> Box<dyn Placement<O>> {
        let reservations = Reservations::default();
        Box::new(Self { block: self.block, pages: self.pages, reservations })
    }
}
