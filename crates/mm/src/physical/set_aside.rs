//! Frames that are set aside: taken from the buddy allocator and not yet given to a page.
//! Reservations are for pages that are expected somewhere; pools are for whoever asks for their
//! size.

use crate::physical::PhysicalMemory;
use nestwalk_types::{Address, ByNumber, NumberSet};
use std::ops::Range;

/// A reservation, by its place in the list of all.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Reservation(usize);

/// Frames one after the other, with a bit for each that is held.
#[derive(Clone, Debug)]
struct Record {
    first: u64,
    frames: u64,
    bits: Vec<u64>,
    /// How many are held: not given to pages yet.
    held: u64,
    /// Position in the queue.
    turn: u64,
}

impl Record {
    fn new(frames: &Range<u64>) -> Self {
        let n = frames.end - frames.start;
        let bits = vec![0; n.div_ceil(64) as usize];
        Self { first: frames.start, frames: n, bits, held: 0, turn: 0 }
    }
    const fn end(&self) -> u64 {
        self.first + self.frames
    }

    /// The next frame from `at` on whose bit is `value`, or `end`.
    fn next(&self, at: u64, end: u64, value: bool) -> u64 {
        let (mut i, n) = (at - self.first, end - self.first);
        while i < n {
            let word = self.bits[(i >> 6) as usize];
            let word = (if value { word } else { !word }) >> (i & 63);
            if word != 0 {
                return (self.first + i + u64::from(word.trailing_zeros())).min(end);
            }
            i = ((i >> 6) + 1) << 6;
        }
        end
    }

    /// The rows of held frames in a range.
    fn rows(&self, frames: &Range<u64>) -> Vec<Range<u64>> {
        let (mut at, end) = (frames.start.max(self.first), frames.end.min(self.end()));
        let mut rows = Vec::new();
        while at < end {
            let first = self.next(at, end, true);
            at = self.next(first, end, false);
            if first < at {
                rows.push(first..at);
            }
        }
        rows
    }

    /// Sets the bits of frames, all of which had the other value.
    fn set(&mut self, frames: &Range<u64>, value: bool) {
        let (mut at, end) = (frames.start - self.first, frames.end - self.first);
        self.held = if value { self.held + (end - at) } else { self.held - (end - at) };
        while at < end {
            let n = (64 - (at & 63)).min(end - at);
            let mask = (u64::MAX >> (64 - n)) << (at & 63);
            let word = &mut self.bits[(at >> 6) as usize];
            *word = if value { *word | mask } else { *word & !mask };
            at += n;
        }
    }

    fn holds_all(&self, frames: &Range<u64>) -> bool {
        frames.start >= self.first
            && frames.end <= self.end()
            && self.next(frames.start, frames.end, false) == frames.end
    }
    /// Frames are held no more; the rows of them that were.
    fn release(&mut self, frames: &Range<u64>) -> Vec<Range<u64>> {
        let rows = self.rows(frames);
        rows.iter().for_each(|r| self.set(r, false));
        rows
    }
}

/// All reservations of a memory. Under pressure the one from which nothing was taken for the
/// longest time is broken first, as FreeBSD does (`vm_reserv_reclaim_inactive`: the head of
/// `partpopq`).
#[derive(Clone, Debug, Default)]
pub(crate) struct SetAside {
    records: Vec<Option<Record>>,
    unused: Vec<usize>,
    /// Reservations that hold something, the first to break first.
    queue: ByNumber<usize>,
    turn: u64,
    held: u64,
    /// Times that a reservation was broken.
    pub broken: u64,
}

impl SetAside {
    /// Frames that are held.
    pub const fn held(&self) -> u64 {
        self.held
    }

    fn insert(&mut self, mut record: Record) -> Reservation {
        let slot = self.unused.pop().unwrap_or(self.records.len());
        record.turn = self.turn;
        self.held += record.held;
        if record.held > 0 {
            self.queue.insert(self.turn, slot);
        }
        self.turn += 1;
        match self.records.get_mut(slot) {
            Some(place) => *place = Some(record),
            None => self.records.push(Some(record)),
        }
        Reservation(slot)
    }

    /// Frames that the allocator has given are held from now on.
    pub fn add(&mut self, frames: &Range<u64>) -> Reservation {
        let mut record = Record::new(frames);
        record.set(frames, true);
        self.insert(record)
    }

    /// Takes frames for a page. False, and nothing is taken, unless the reservation holds all of
    /// them.
    pub fn take(&mut self, reservation: Reservation, frames: &Range<u64>) -> bool {
        let Some(Some(record)) = self.records.get_mut(reservation.0) else { return false };
        if !record.holds_all(frames) {
            return false;
        }
        record.set(frames, false);
        self.held -= frames.end - frames.start;
        self.queue.remove(record.turn);
        if record.held > 0 {
            record.turn = self.turn;
            self.queue.insert(self.turn, reservation.0);
            self.turn += 1;
        }
        true
    }

    /// Frames that a reservation still holds.
    pub fn held_by(&self, reservation: Reservation) -> u64 {
        self.records.get(reservation.0).and_then(Option::as_ref).map_or(0, |r| r.held)
    }

    fn remove(&mut self, reservation: Reservation) -> Option<Record> {
        let record = self.records.get_mut(reservation.0)?.take()?;
        self.queue.remove(record.turn);
        self.held -= record.held;
        self.unused.push(reservation.0);
        Some(record)
    }

    /// Takes frames back from the reservation whose turn it is: the upper half of its frames, or
    /// all if that is no more than 2 MiB. `None` if nothing is held.
    fn break_first(&mut self) -> Option<Vec<Range<u64>>> {
        let (turn, &slot) = self.queue.from(0)?;
        let Some(Some(record)) = self.records.get_mut(slot) else {
            self.queue.remove(turn);
            return Some(Vec::new());
        };
        let end = record.end();
        let first = record.next(record.first, end, true);
        let from = if end - first > 512 { first + (end - first) / 2 } else { first };
        let before = record.held;
        let rows = record.release(&(from..end));
        self.held -= before - record.held;
        record.frames = from - record.first;
        record.bits.truncate(record.frames.div_ceil(64) as usize);
        if record.held == 0 {
            self.queue.remove(turn);
        }
        self.broken += u64::from(!rows.is_empty());
        Some(rows)
    }
}

/// Large pages of one size that are kept for those who ask for that size (Linux, `mm/hugetlb.c`):
/// taken at the beginning, given and taken back last in, first out.
#[derive(Clone, Debug)]
pub(crate) struct Pool {
    pub order: u32,
    free: Vec<u64>,
    /// Every page that belongs to the pool, free or not.
    members: NumberSet,
}

impl<O: Address> PhysicalMemory<O> {
    /// Frames that reservations and pools hold for pages that are not there yet.
    pub fn set_aside_frames(&self) -> u64 {
        let pools = self.pools.iter().map(|p| (p.free.len() as u64) << p.order);
        self.aside.held() + pools.sum::<u64>()
    }
    /// Times that a reservation was broken for want of memory.
    pub const fn reservations_broken(&self) -> u64 {
        self.aside.broken
    }

    /// Frees rows of frames in the largest blocks that they consist of.
    pub(crate) fn free_rows(&mut self, rows: Vec<Range<u64>>) {
        for row in rows {
            let mut at = row.start;
            while at < row.end {
                let order = at.trailing_zeros().min((row.end - at).ilog2()).min(crate::MAX_ORDER);
                self.free(O::new(at << 12), order);
                at += 1 << order;
            }
        }
    }

    /// A reservation ends: what it holds is free.
    pub(crate) fn end_reservation(&mut self, reservation: Reservation) {
        if let Some(mut record) = self.aside.remove(reservation) {
            let rows = record.release(&(0..u64::MAX));
            self.free_rows(rows);
        }
    }

    /// Frames in the middle of a reservation are needed no more: it becomes two, one of which may
    /// be empty.
    pub(crate) fn cut_reservation(
        &mut self,
        reservation: Reservation,
        out: &Range<u64>,
    ) -> [Reservation; 2] {
        let record = self.aside.remove(reservation);
        let mut record = record.unwrap_or_else(|| Record::new(out));
        let rows = record.release(out);
        self.free_rows(rows);
        let (first, end) = (record.first, record.end());
        [first..out.start.clamp(first, end), out.end.clamp(first, end)..end].map(|part| {
            let mut half = Record::new(&part);
            record.rows(&part).iter().for_each(|r| half.set(r, true));
            self.aside.insert(half)
        })
    }

    /// Breaks a reservation; false if nothing is held.
    pub(crate) fn break_reservation(&mut self) -> bool {
        let rows = self.aside.break_first();
        rows.map(|rows| self.free_rows(rows)).is_some()
    }

    /// Makes a pool of pages of this order out of `percent` of what is free, unless there is one.
    pub(crate) fn make_pool(&mut self, order: u32, percent: u64) {
        if order == 0 || self.pools.iter().any(|p| p.order == order) {
            return;
        }
        let most = (self.free_frames() * percent / 100) >> order;
        let pages = (0..most).map_while(|_| self.alloc(order));
        let free: Vec<u64> = pages.map(|p| p.page_number()).collect();
        let members = free.iter().copied().collect();
        self.pools.push(Pool { order, free, members });
    }
    /// A page of the pool of this order.
    pub(crate) fn take_from_pool(&mut self, order: u32) -> Option<O> {
        let pool = self.pools.iter_mut().find(|p| p.order == order)?;
        pool.free.pop().map(|f| O::new(f << 12))
    }
    /// A page that is freed goes back to its pool, if it is of one.
    pub(crate) fn back_to_pool(&mut self, frame: u64, order: u32) -> bool {
        let pool = self.pools.iter_mut().find(|p| p.order == order && p.members.contains(frame));
        pool.map(|p| p.free.push(frame)).is_some()
    }
    /// A page that is split leaves its pool: its parts are ordinary memory when they are freed.
    /// (Linux splits no such page and refuses to unmap a part of it.)
    pub(crate) fn leave_pool(&mut self, frame: u64, order: u32) {
        if let Some(pool) = self.pools.iter_mut().find(|p| p.order == order) {
            pool.members.remove(frame);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nestwalk_types::{Gpa, SplitMix64};
    use std::collections::BTreeMap;

    fn memory() -> PhysicalMemory<Gpa> {
        PhysicalMemory::new(&[(Gpa::new(0), 64 << 20)], 0).unwrap()
    }

    /// Each frame by itself: which reservation holds it. The list's numbers are of this test.
    #[test]
    fn held_frames_are_those_of_a_map() {
        let mut r = SplitMix64::new(5);
        let mut m = memory();
        let free = m.free_frames();
        let mut oracle: BTreeMap<u64, u64> = BTreeMap::new();
        let mut list: Vec<(Reservation, Range<u64>, u64)> = Vec::new();
        for id in 0..6000 {
            let one = r.below(list.len().max(1) as u64) as usize;
            match r.below(5) {
                0 => {
                    let order = r.below(10) as u32;
                    if let Some(at) = m.alloc(order) {
                        let frames = at.page_number()..at.page_number() + (1 << order);
                        // Allocating may have broken some.
                        oracle.retain(|f, _| holder(&m, &list, *f).is_some());
                        oracle.extend(frames.clone().map(|f| (f, id)));
                        list.push((m.aside.add(&frames), frames, id));
                    }
                }
                1 | 2 if !list.is_empty() => {
                    let (reservation, frames, id) = &list[one];
                    let order = r.below(3) as u32;
                    let at = (frames.start + r.below(frames.end - frames.start)) >> order << order;
                    let part = at..at + (1 << order);
                    let all = part.clone().all(|f| oracle.get(&f) == Some(id));
                    assert_eq!(m.aside.take(*reservation, &part), all);
                    if all {
                        oracle.retain(|f, _| !part.contains(f));
                        m.free(Gpa::new(part.start << 12), order);
                    }
                }
                3 if !list.is_empty() => {
                    let (reservation, frames, id) = list.swap_remove(one);
                    let from = frames.start + r.below(frames.end - frames.start);
                    let out = from..from + 1 + r.below(frames.end - from);
                    oracle.retain(|f, of| *of != id || !out.contains(f));
                    let parts = m.cut_reservation(reservation, &out);
                    for (half, part) in
                        parts.into_iter().zip([frames.start..from, out.end..frames.end])
                    {
                        if part.is_empty() {
                            m.end_reservation(half);
                        } else {
                            // Both halves have the number of the whole.
                            list.push((half, part, id));
                        }
                    }
                }
                _ if r.below(20) == 0 => {
                    m.break_reservation();
                    oracle.retain(|f, _| holder(&m, &list, *f).is_some());
                }
                _ => {}
            }
            assert_eq!(m.set_aside_frames(), oracle.len() as u64);
            assert_eq!(m.free_frames() + m.set_aside_frames(), free);
        }
        for (frame, id) in &oracle {
            assert_eq!(holder(&m, &list, *frame), Some(*id));
            assert!(!m.is_free(Gpa::new(frame << 12)));
        }
        list.into_iter().for_each(|(reservation, ..)| m.end_reservation(reservation));
        assert_eq!(m.free_frames(), free);
    }

    /// The number of the reservation that holds a frame.
    fn holder(
        m: &PhysicalMemory<Gpa>,
        list: &[(Reservation, Range<u64>, u64)],
        frame: u64,
    ) -> Option<u64> {
        let held = |slot: usize| {
            m.aside.records[slot].as_ref().is_some_and(|r| r.holds_all(&(frame..frame + 1)))
        };
        list.iter().find(|(r, ..)| held(r.0)).map(|l| l.2)
    }

    #[test]
    fn what_was_used_longest_ago_is_broken_first_and_by_halves() {
        let mut m = memory();
        let reserve = |m: &mut PhysicalMemory<Gpa>, order: u32| {
            let f = m.alloc(order).unwrap().page_number();
            (m.aside.add(&(f..f + (1 << order))), f)
        };
        let (a, b) = (reserve(&mut m, 9), reserve(&mut m, 11));
        assert!(m.aside.take(a.0, &(a.1..a.1 + 1)));
        // `b` has waited longer. Half of its 2048 frames go, then half of the rest, then all 512.
        for left in [1024, 512, 0] {
            assert!(m.break_reservation());
            assert_eq!((m.aside.held_by(b.0), m.aside.held_by(a.0)), (left, 511));
        }
        assert!(m.break_reservation());
        assert_eq!(m.set_aside_frames(), 0);
        assert!(!m.break_reservation());
        assert_eq!(m.reservations_broken(), 4);
        m.free(Gpa::new(a.1 << 12), 0);
    }

    #[test]
    fn pools_keep_their_pages_until_they_are_split() {
        let mut m = memory();
        let free = m.free_frames();
        m.make_pool(9, 50);
        m.make_pool(9, 50);
        let pages = (free / 2) >> 9;
        assert_eq!(m.set_aside_frames(), pages << 9);
        let all: Vec<Gpa> = std::iter::from_fn(|| m.take_from_pool(9)).collect();
        assert_eq!(all.len() as u64, pages);
        let before = m.free_frames();
        m.free(all[0], 9);
        assert_eq!((m.free_frames(), m.set_aside_frames()), (before, 512));
        assert_eq!(m.take_from_pool(9), Some(all[0]));
        m.split(all[0], 9, 0);
        (0..512).for_each(|i| m.free(all[0].offset_by(i << 12), 0));
        assert_eq!((m.free_frames(), m.set_aside_frames()), (before + 512, 0));
        assert_eq!(m.take_from_pool(10), None);
    }
}
