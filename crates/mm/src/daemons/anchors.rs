//! Anchors: where each mapping's memory is to lie (Translation Ranger).

use crate::physical::runs::sort;
use crate::space::Vma;
use nestwalk_types::ByNumber;
use std::ops::Range;

/// Part of a mapping, and the frame at which its first page belongs.
#[derive(Clone, Debug)]
struct Anchor {
    end: u64,
    frame: u64,
    /// Frames of the zone; pages beyond it stay where they are.
    zone: Range<u64>,
}

impl Anchor {
    const fn place(&self, start: u64, page: u64) -> u64 {
        self.frame + ((page - start) >> 12)
    }
    const fn frames(&self, start: u64) -> Range<u64> {
        self.frame..self.frame + ((self.end - start) >> 12)
    }
}

/// Where a page belongs, if anywhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Place {
    /// At this frame.
    At(u64),
    /// Beyond the zone.
    Beyond,
}

/// The anchors of all address spaces, by address space and first address.
#[derive(Debug, Default)]
pub(super) struct Anchors(ByNumber<ByNumber<Anchor>>);

impl Anchors {
    /// Address spaces that are not in the list have ended.
    pub fn keep_spaces(&mut self, ids: &[u64]) {
        self.0.retain(|id, _| ids.binary_search(&id).is_ok());
    }

    /// Mappings have changed: of an anchor what lies in the mapping around its beginning is left.
    pub fn keep_mappings(&mut self, id: u64, vmas: &[Vma]) {
        let Some(anchors) = self.0.get_mut(id) else { return };
        let all: Vec<u64> = anchors.numbers().collect();
        for start in all {
            let after = vmas.partition_point(|v| v.start <= start);
            let around = after.checked_sub(1).map(|i| vmas[i]).filter(|v| start < v.end);
            match (around, anchors.get_mut(start)) {
                (Some(vma), Some(anchor)) => anchor.end = anchor.end.min(vma.end),
                _ => {
                    anchors.remove(start);
                }
            }
        }
    }

    /// Where a page of an address space belongs, if its part of the mapping has an anchor.
    pub fn find(&self, id: u64, page: u64) -> Option<Place> {
        let (start, anchor) = self.0.get(id)?.up_to(page)?;
        (page < anchor.end).then(|| Self::place(anchor, start, page))
    }

    fn place(anchor: &Anchor, start: u64, page: u64) -> Place {
        let frame = anchor.place(start, page);
        if anchor.zone.contains(&frame) { Place::At(frame) } else { Place::Beyond }
    }

    /// Where a page belongs. A mapping without an anchor gets one that begins with the mapping; one
    /// that has grown at its end has its last anchor's extended; one that has grown at its
    /// beginning gets another one for all of it.
    pub fn of(&mut self, id: u64, vma: &Vma, page: u64, zone: &Range<u64>, large: u32) -> Place {
        if let Some(place) = self.find(id, page) {
            return place;
        }
        let anchors = self.0.get_or_insert(id, ByNumber::new);
        if let Some((start, anchor)) = anchors.up_to_mut(page)
            && start >= vma.start
        {
            anchor.end = vma.end;
            return Self::place(anchor, start, page);
        }
        anchors.retain(|start, _| start < vma.start || start >= vma.end);
        let frame = self.choose(vma, zone, large);
        let anchor = Anchor { end: vma.end, frame, zone: zone.clone() };
        let place = Self::place(&anchor, vma.start, page);
        self.0.get_or_insert(id, ByNumber::new).insert(vma.start, anchor);
        place
    }

    /// The lowest place in the zone that no anchor's pages overlap; the beginning of the zone if
    /// there is none. It is congruent to the mapping modulo the largest page that may fit into
    /// that.
    fn choose(&self, vma: &Vma, zone: &Range<u64>, large: u32) -> u64 {
        let (page, pages) = (vma.start >> 12, (vma.end - vma.start) >> 12);
        let order = [18, large].into_iter().find(|o| pages >= 1 << o).unwrap_or(0);
        let congruent = |frame: u64| frame + (page.wrapping_sub(frame) & ((1 << order) - 1));
        let anchors = self.0.values().flat_map(ByNumber::iter);
        let mut taken: Vec<Range<u64>> = anchors.map(|(start, a)| a.frames(start)).collect();
        sort(&mut taken);
        let first = congruent(zone.start);
        let mut at = first;
        for range in taken.iter().filter(|r| r.end > zone.start) {
            if at + pages <= range.start {
                break;
            }
            at = congruent(at.max(range.end));
        }
        if at + pages <= zone.end { at } else { first }
    }

    /// How many there are.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.0.values().map(ByNumber::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nestwalk_types::Protection;

    fn vma(start: u64, end: u64) -> Vma {
        Vma { start: start << 12, end: end << 12, protection: Protection::ALL }
    }
    fn at(anchors: &mut Anchors, id: u64, vma: &Vma, page: u64) -> u64 {
        match anchors.of(id, vma, page << 12, &(0..1 << 20), 9) {
            Place::At(frame) => frame,
            Place::Beyond => panic!("beyond the zone"),
        }
    }

    #[test]
    fn places_do_not_overlap_and_are_congruent() {
        let mut anchors = Anchors::default();
        // Congruent modulo 2 MiB, as it has as much; the next begins behind it, in another process.
        let a = vma(0x10003, 0x10003 + 700);
        assert_eq!(at(&mut anchors, 1, &a, 0x10005), 5);
        let b = vma(0x40000, 0x40000 + 512);
        assert_eq!(at(&mut anchors, 2, &b, 0x40001), 1025);
        // A small one fits where it may be anywhere: before the first.
        let c = vma(0x50000, 0x50003);
        assert_eq!(at(&mut anchors, 2, &c, 0x50000), 0);
        let d = vma(0x60000, 0x60004);
        assert_eq!(at(&mut anchors, 2, &d, 0x60000), 703);
        // 1 GiB is congruent modulo that.
        let e = vma(0x80000 + 7, 0x80000 + 7 + (1 << 18));
        assert_eq!(at(&mut anchors, 3, &e, 0x80007), (1 << 18) + 7);
        assert_eq!(anchors.len(), 5);
    }

    #[test]
    fn anchors_follow_their_mappings() {
        let mut anchors = Anchors::default();
        assert_eq!(at(&mut anchors, 1, &vma(100, 200), 150), 50);
        // Grown at the end: the same place. Behind a hole: another one.
        assert_eq!(at(&mut anchors, 1, &vma(100, 300), 250), 150);
        anchors.keep_mappings(1, &[vma(100, 180), vma(190, 300)]);
        assert_eq!(anchors.find(1, 170 << 12), Some(Place::At(70)));
        assert_eq!(anchors.find(1, 200 << 12), None);
        assert_eq!(at(&mut anchors, 1, &vma(190, 300), 200), 80 + 10);
        // Grown at the beginning: one anchor for all of it.
        assert_eq!(at(&mut anchors, 1, &vma(90, 180), 95), 190 + 5);
        assert_eq!(anchors.len(), 2);
        anchors.keep_spaces(&[2]);
        assert_eq!(anchors.len(), 0);
        // No room: at the beginning of the zone, and beyond it nothing.
        let all = vma(0x1000, 0x1000 + 20);
        assert_eq!(anchors.of(2, &all, 0x1000 << 12, &(16..32), 9), Place::At(16));
        assert_eq!(anchors.of(2, &all, 0x1010 << 12, &(16..32), 9), Place::Beyond);
    }
}
