//! Reservations of one address space: pages, and the frames that are set aside for them.

use crate::physical::PhysicalMemory;
use crate::physical::set_aside::Reservation;
use nestwalk_types::{Address, ByNumber, PageSize};
use std::ops::Range;

/// What a reservation has for a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Claim {
    /// This frame, which is the page's from now on.
    Frame(u64),
    /// Not all of it: smaller pages must do.
    Smaller,
    /// Nothing: it was given away, or broken.
    Gone,
    /// The page is in no reservation.
    None,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    pages: u64,
    frame: u64,
    reservation: Reservation,
}

/// Reservations by their first page; pages are numbered without sign extension.
#[derive(Debug, Default)]
pub(crate) struct Reservations {
    by_page: ByNumber<Held>,
}

impl Reservations {
    fn around(&self, page: u64) -> Option<(u64, Held)> {
        let (first, &held) = self.by_page.up_to(page)?;
        (page < first + held.pages).then_some((first, held))
    }
    /// Whether a page is in a reservation, broken or not.
    pub fn has(&self, page: u64) -> bool {
        self.around(page).is_some()
    }
    /// The largest range around a page, within `pages`, that is in no reservation.
    pub fn gap(&self, page: u64, pages: &Range<u64>) -> Range<u64> {
        let before = self.by_page.up_to(page).map_or(0, |(f, h)| f + h.pages);
        let after = self.by_page.from(page).map_or(u64::MAX, |(f, _)| f);
        before.max(pages.start)..after.min(pages.end)
    }
    /// The frame that follows the reservation which ends at a page.
    pub fn frame_after(&self, page: u64) -> Option<u64> {
        let (first, held) = self.around(page.checked_sub(1)?)?;
        (first + held.pages == page).then_some(held.frame + held.pages)
    }

    /// Frames that the allocator has given are for these pages.
    pub fn add<O: Address>(
        &mut self,
        memory: &mut PhysicalMemory<O>,
        pages: Range<u64>,
        frame: u64,
    ) {
        let n = pages.end - pages.start;
        let reservation = memory.aside.add(&(frame..frame + n));
        self.by_page.insert(pages.start, Held { pages: n, frame, reservation });
    }

    /// The frames of a page.
    pub fn claim<O: Address>(
        &self,
        memory: &mut PhysicalMemory<O>,
        page: u64,
        size: PageSize,
    ) -> Claim {
        let pages = size.base_pages();
        let Some((first, held)) = self.around(page) else {
            // A reservation that begins within the page counts as well.
            let inside = pages > 1 && self.by_page.range(page..page + pages).next().is_some();
            return if inside { Claim::Smaller } else { Claim::None };
        };
        let frame = held.frame + (page - first);
        let frames = frame..frame + pages;
        let whole = page + pages <= first + held.pages && frame & (pages - 1) == 0;
        if whole && memory.aside.take(held.reservation, &frames) {
            return Claim::Frame(frame);
        }
        if pages > 1 && memory.aside.held_by(held.reservation) > 0 {
            return Claim::Smaller;
        }
        Claim::Gone
    }

    /// Whether nothing is held any more by the reservation around a page.
    pub fn is_used_up<O: Address>(&self, memory: &PhysicalMemory<O>, page: u64) -> bool {
        self.around(page).is_some_and(|(_, h)| memory.aside.held_by(h.reservation) == 0)
    }

    /// Pages are unmapped: what is held for them is free.
    pub fn remove<O: Address>(&mut self, memory: &mut PhysicalMemory<O>, pages: &Range<u64>) {
        let from = self.around(pages.start).map_or(pages.start, |(first, _)| first);
        let hit: Vec<(u64, Held)> =
            self.by_page.range(from..pages.end).map(|(f, h)| (f, *h)).collect();
        for (first, held) in hit {
            self.by_page.remove(first);
            let end = first + held.pages;
            let (cut, rest) = (pages.start.max(first), pages.end.min(end));
            if (cut, rest) == (first, end) {
                memory.end_reservation(held.reservation);
                continue;
            }
            let frame_of = |page: u64| held.frame + (page - first);
            let out = frame_of(cut)..frame_of(rest);
            let parts = memory.cut_reservation(held.reservation, &out);
            for (reservation, part) in parts.into_iter().zip([first..cut, rest..end]) {
                if part.is_empty() {
                    memory.end_reservation(reservation);
                } else {
                    let (pages, frame) = (part.end - part.start, frame_of(part.start));
                    self.by_page.insert(part.start, Held { pages, frame, reservation });
                }
            }
        }
    }
}
