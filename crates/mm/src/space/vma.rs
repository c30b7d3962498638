//! Mappings of an address space: ranges of pages with one protection.

use nestwalk_types::{ByNumber, Protection};

/// One mapping (`vm_area_struct`): anonymous, private memory. Addresses are untyped and without
/// sign extension, so that the last one of the upper half has a successor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Vma {
    /// First address.
    pub start: u64,
    /// One past the last address.
    pub end: u64,
    /// Permissions.
    pub protection: Protection,
}

impl Vma {
    /// Whether the aligned block of `bytes` around `address` lies in the mapping.
    #[inline]
    pub const fn covers(&self, address: u64, bytes: u64) -> bool {
        let first = address & !(bytes - 1);
        self.start <= first && self.end - first >= bytes
    }
}

const NOTHING: Vma = Vma { start: 1, end: 0, protection: Protection::READ };

/// The mappings of an address space: disjoint, neighbours of equal protection merged.
#[derive(Clone, Debug)]
pub struct VmaSet {
    map: ByNumber<(u64, Protection)>,
    /// What [`VmaSet::find`] found last: faults come in clusters.
    last: Vma,
}

impl Default for VmaSet {
    fn default() -> Self {
        Self { map: ByNumber::new(), last: NOTHING }
    }
}

impl VmaSet {
    /// Mappings in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = Vma> {
        self.map.iter().map(|(start, &(end, protection))| Vma { start, end, protection })
    }
    /// Number of mappings.
    pub fn len(&self) -> usize {
        self.map.len()
    }
    /// No mappings.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// The mapping that holds `address`.
    #[inline]
    pub fn find(&mut self, address: u64) -> Option<Vma> {
        if self.last.start <= address && address < self.last.end {
            return Some(self.last);
        }
        let (start, &(end, protection)) = self.map.up_to(address)?;
        if address >= end {
            return None;
        }
        self.last = Vma { start, end, protection };
        Some(self.last)
    }

    /// The range between the mappings around `address`, which is in none: end of the one before
    /// and start of the one after it, or 0 and `u64::MAX`.
    pub fn gap(&self, address: u64) -> (u64, u64) {
        let before = self.map.up_to(address).map_or(0, |(_, v)| v.0);
        let after = self.map.from(address).map_or(u64::MAX, |(s, _)| s);
        (before, after)
    }

    /// The first range in `start..end` that is in no mapping.
    pub fn first_gap(&self, start: u64, end: u64) -> Option<(u64, u64)> {
        let mut at = start;
        if let Some((_, v)) = self.map.up_to(start) {
            at = at.max(v.0);
        }
        for (next, v) in self.map.range(at..) {
            if next > at {
                break;
            }
            at = v.0;
        }
        (at < end).then(|| (at, end.min(self.gap(at).1)))
    }

    fn below(&self, address: u64) -> Option<(u64, &(u64, Protection))> {
        self.map.up_to(address.checked_sub(1)?)
    }

    /// Adds a range that overlaps no mapping.
    pub fn insert(&mut self, mut start: u64, mut end: u64, protection: Protection) {
        self.last = NOTHING;
        if let Some((s, &(e, p))) = self.below(start)
            && e == start
            && p == protection
        {
            start = s;
        }
        if let Some(&(e, p)) = self.map.get(end)
            && p == protection
        {
            self.map.remove(end);
            end = e;
        }
        self.map.insert(start, (end, protection));
    }

    /// Removes the range from all mappings, splitting those that reach over its ends. Returns the
    /// parts removed.
    pub fn remove(&mut self, start: u64, end: u64) -> Vec<Vma> {
        self.last = NOTHING;
        let mut removed = Vec::new();
        let first = self.below(start).filter(|(_, v)| v.0 > start);
        let from = first.map_or(start, |(s, _)| s);
        let hit: Vec<_> = self.map.range(from..end).map(|(s, v)| (s, *v)).collect();
        for (s, (e, protection)) in hit {
            self.map.remove(s);
            if s < start {
                self.map.insert(s, (start, protection));
            }
            if e > end {
                self.map.insert(end, (e, protection));
            }
            removed.push(Vma { start: s.max(start), end: e.min(end), protection });
        }
        removed
    }

    /// Gives every mapping in the range this protection. Returns the parts with what they had.
    pub fn protect(&mut self, start: u64, end: u64, protection: Protection) -> Vec<Vma> {
        let parts = self.remove(start, end);
        for part in &parts {
            self.insert(part.start, part.end, protection);
        }
        parts
    }

    /// Removes all.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nestwalk_types::SplitMix64;

    #[test]
    fn agrees_with_one_flag_per_page() {
        let kinds = [Protection::READ, Protection::READ_WRITE, Protection::READ_EXECUTE];
        let mut rng = SplitMix64::new(9);
        let (mut set, mut naive) = (VmaSet::default(), [None::<Protection>; 64]);
        for _ in 0..5000 {
            let start = rng.below(64);
            let end = start + 1 + rng.below(64 - start);
            let protection = kinds[rng.below(3) as usize];
            let range = &mut naive[start as usize..end as usize];
            match rng.below(3) {
                0 => {
                    let parts = set.remove(start, end);
                    let n: u64 = parts.iter().map(|p| p.end - p.start).sum();
                    assert_eq!(n, range.iter().flatten().count() as u64);
                    range.fill(None);
                }
                1 => {
                    set.protect(start, end, protection);
                    range.iter_mut().flatten().for_each(|p| *p = protection);
                }
                _ => {
                    while let Some((s, e)) = set.first_gap(start, end) {
                        assert!(naive[s as usize..e as usize].iter().all(Option::is_none));
                        set.insert(s, e, protection);
                        naive[s as usize..e as usize].fill(Some(protection));
                    }
                }
            }
            for (i, p) in naive.iter().enumerate() {
                assert_eq!(set.find(i as u64).map(|v| v.protection), *p);
            }
            // Neighbours of equal protection are merged.
            let list: Vec<_> = set.iter().collect();
            for w in list.windows(2) {
                assert!(w[0].end < w[1].start || w[0].protection != w[1].protection, "{list:?}");
            }
        }
    }
}
