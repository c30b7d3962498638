//! Reverse map: which shadow entries map a guest frame.
//!
//! Nearly every frame is mapped once, so the entry's address is held in place and a list is made only
//! for the second (as KVM's `kvm_rmap_head` does). 8 bytes per frame in chunks of 2 MiB that were
//! ever mapped.

use nestwalk_types::Hpa;

const CHUNK_SHIFT: u32 = 9;

/// Shadow entries by guest frame number. Entries are 8-byte aligned, so bit 0 marks a list.
#[derive(Default)]
pub struct Rmap {
    chunks: Vec<Option<Box<[u64; 1 << CHUNK_SHIFT]>>>,
    lists: Vec<Vec<u64>>,
    free: Vec<usize>,
    /// Entries in it.
    count: u64,
}

impl Rmap {
    fn head(&mut self, gfn: u64) -> &mut u64 {
        let chunk = (gfn >> CHUNK_SHIFT) as usize;
        if chunk >= self.chunks.len() {
            self.chunks.resize_with(chunk + 1, || None);
        }
        let chunk = self.chunks[chunk].get_or_insert_with(|| Box::new([0; 1 << CHUNK_SHIFT]));
        &mut chunk[gfn as usize & ((1 << CHUNK_SHIFT) - 1)]
    }

    /// The entry at `spte` maps `gfn` from now on.
    pub fn add(&mut self, gfn: u64, spte: Hpa) {
        self.count += 1;
        let head = *self.head(gfn);
        let new = if head == 0 {
            spte.value()
        } else if head & 1 == 1 {
            self.lists[(head >> 1) as usize].push(spte.value());
            head
        } else {
            let list = self.free.pop().unwrap_or_else(|| {
                self.lists.push(Vec::new());
                self.lists.len() - 1
            });
            self.lists[list].extend([head, spte.value()]);
            (list as u64) << 1 | 1
        };
        *self.head(gfn) = new;
    }

    /// The entry at `spte` maps `gfn` no more. Returns whether it did.
    pub fn remove(&mut self, gfn: u64, spte: Hpa) -> bool {
        let head = *self.head(gfn);
        if head & 1 == 0 {
            if head != spte.value() || head == 0 {
                return false;
            }
            *self.head(gfn) = 0;
            self.count -= 1;
            return true;
        }
        let index = (head >> 1) as usize;
        let list = &mut self.lists[index];
        let Some(place) = list.iter().position(|&s| s == spte.value()) else { return false };
        list.swap_remove(place);
        self.count -= 1;
        if list.len() == 1 {
            let last = list[0];
            list.clear();
            self.free.push(index);
            *self.head(gfn) = last;
        }
        true
    }

    /// Entries of all frames.
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// All entries that map `gfn`.
    pub fn entries(&self, gfn: u64) -> Vec<Hpa> {
        let head = self
            .chunks
            .get((gfn >> CHUNK_SHIFT) as usize)
            .and_then(Option::as_ref)
            .map_or(0, |c| c[gfn as usize & ((1 << CHUNK_SHIFT) - 1)]);
        match head {
            0 => Vec::new(),
            h if h & 1 == 1 => self.lists[(h >> 1) as usize].iter().map(|&s| Hpa::new(s)).collect(),
            h => vec![Hpa::new(h)],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nestwalk_types::SplitMix64;
    use std::collections::{BTreeMap, BTreeSet};

    #[test]
    fn agrees_with_a_map_of_sets() {
        let mut subject = Rmap::default();
        let mut oracle: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
        let mut r = SplitMix64::new(3);
        for _ in 0..20_000 {
            let (gfn, spte) = (r.below(40) * 100, (r.below(6) + 1) * 8);
            let known = oracle.entry(gfn).or_default();
            if r.below(2) == 0 {
                assert_eq!(subject.remove(gfn, Hpa::new(spte)), known.remove(&spte));
            } else if known.insert(spte) {
                subject.add(gfn, Hpa::new(spte));
            }
            let got: BTreeSet<u64> = subject.entries(gfn).iter().map(|h| h.value()).collect();
            assert_eq!(&got, known);
            let all: usize = oracle.values().map(BTreeSet::len).sum();
            assert_eq!(subject.count(), all as u64);
        }
    }
}
