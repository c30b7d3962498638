//! An array of 64-bit words, all zero at first, that costs memory for what is written only.

/// Largest array that is kept as one, words: 2^24, 128 MiB. Memory of the host that was never
/// written costs nothing there either.
const DENSE: u64 = 1 << 24;

/// An array of zeros that can be written.
///
/// A small one is an array; a large one an open-addressing table of index and value, 16 bytes per
/// slot and three quarters full at most, so 21 to 43 bytes for each word that was written.
#[derive(Debug)]
pub(crate) enum Words {
    /// One word per index.
    Dense(Vec<u64>),
    /// Written words only.
    Sparse(Table),
}

/// Open addressing, linear probing, multiplicative hashing.
#[derive(Debug)]
pub(crate) struct Table {
    /// Index + 1, or 0 if free; value.
    slots: Vec<(u64, u64)>,
    used: usize,
}

impl Table {
    const FIRST: usize = 1 << 12;

    fn new() -> Self {
        Self { slots: vec![(0, 0); Self::FIRST], used: 0 }
    }
    #[inline]
    fn find(&self, index: u64) -> usize {
        let shift = 64 - self.slots.len().trailing_zeros();
        let mut at = (index.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> shift) as usize;
        let key = index + 1;
        while self.slots[at].0 != key && self.slots[at].0 != 0 {
            at = (at + 1) & (self.slots.len() - 1);
        }
        at
    }
    #[inline]
    fn get(&self, index: u64) -> u64 {
        self.slots[self.find(index)].1
    }
    #[inline]
    fn set(&mut self, index: u64, value: u64) {
        let at = self.find(index);
        let new = self.slots[at].0 == 0;
        self.slots[at] = (index + 1, value);
        if new {
            self.used += 1;
            if self.used * 4 > self.slots.len() * 3 {
                self.grow();
            }
        }
    }
    #[cold]
    fn grow(&mut self) {
        let double = vec![(0, 0); self.slots.len() * 2];
        for (key, value) in std::mem::replace(&mut self.slots, double) {
            if key != 0 {
                let at = self.find(key - 1);
                self.slots[at] = (key, value);
            }
        }
    }
}

impl Words {
    /// `len` zeros.
    pub(crate) fn new(len: u64) -> Self {
        if len <= DENSE { Self::Dense(vec![0; len as usize]) } else { Self::sparse() }
    }
    /// As many zeros as there are numbers, whatever the length, without a dense array.
    pub(crate) fn sparse() -> Self {
        Self::Sparse(Table::new())
    }
    /// The word at `index`, below the length.
    #[inline]
    pub(crate) fn get(&self, index: u64) -> u64 {
        match self {
            Self::Dense(words) => words[index as usize],
            Self::Sparse(table) => table.get(index),
        }
    }
    /// Writes the word at `index`, below the length.
    #[inline]
    pub(crate) fn set(&mut self, index: u64, value: u64) {
        match self {
            Self::Dense(words) => words[index as usize] = value,
            Self::Sparse(table) => table.set(index, value),
        }
    }
    /// All zeros again.
    pub(crate) fn clear(&mut self) {
        match self {
            Self::Dense(words) => words.fill(0),
            Self::Sparse(table) => *table = Table::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nestwalk_types::SplitMix64;
    use std::collections::HashMap;

    #[test]
    fn sparse_and_dense_are_a_map_whose_default_is_zero() {
        for mut words in [Words::new(1 << 20), Words::sparse()] {
            let (mut oracle, mut random) = (HashMap::new(), SplitMix64::new(1));
            for _ in 0..300_000 {
                // Squaring makes some indices frequent, so that words are written again too.
                let i = (random.unit() * random.unit() * 1e6) as u64;
                if random.below(2) == 0 {
                    let v = random.next();
                    words.set(i, v);
                    oracle.insert(i, v);
                }
                assert_eq!(words.get(i), oracle.get(&i).copied().unwrap_or(0));
            }
            words.clear();
            assert!((0..1000).all(|i| words.get(i) == 0));
        }
    }

    #[test]
    fn the_largest_indices_have_a_place() {
        let mut w = Words::new(1 << 40);
        w.set((1 << 40) - 1, 7);
        assert_eq!((w.get((1 << 40) - 1), w.get(0)), (7, 0));
    }
}
