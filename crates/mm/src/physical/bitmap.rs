//! A bitmap with 64-ary summaries, so that the first set bit is found without a scan.

/// Bits with summary levels: bit `i` of level `n + 1` is set if word `i` of level `n` is not zero.
///
/// 28 bits of index need five levels. Memory: one bit per index and 1/63 more; untouched parts are
/// zero pages that the allocator of the process never touched.
#[derive(Clone, Debug)]
pub(crate) struct Bitmap {
    levels: Vec<Vec<u64>>,
}

impl Bitmap {
    /// All clear, for indices below `bits`.
    pub fn new(bits: u64) -> Self {
        let (mut levels, mut words) = (Vec::new(), bits.div_ceil(64).max(1));
        loop {
            levels.push(vec![0; words as usize]);
            if words == 1 {
                return Self { levels };
            }
            words = words.div_ceil(64);
        }
    }

    #[inline]
    pub fn test(&self, index: u64) -> bool {
        self.levels[0].get((index >> 6) as usize).is_some_and(|w| w >> (index & 63) & 1 == 1)
    }

    #[inline]
    pub fn set(&mut self, mut index: u64) {
        for level in &mut self.levels {
            let word = &mut level[(index >> 6) as usize];
            let before = *word;
            *word |= 1 << (index & 63);
            if before != 0 {
                return;
            }
            index >>= 6;
        }
    }

    #[inline]
    pub fn clear(&mut self, mut index: u64) {
        for level in &mut self.levels {
            let word = &mut level[(index >> 6) as usize];
            *word &= !(1 << (index & 63));
            if *word != 0 {
                return;
            }
            index >>= 6;
        }
    }

    #[cfg(test)]
    pub fn words(&self) -> impl Iterator<Item = usize> {
        self.levels.iter().map(Vec::len)
    }

    /// Every set index, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u64> {
        (0u64..).zip(&self.levels[0]).filter(|(_, w)| **w != 0).flat_map(|(i, w)| {
            let mut word = *w;
            std::iter::from_fn(move || {
                let bit = (word != 0).then(|| word.trailing_zeros())?;
                word &= word - 1;
                Some(i << 6 | u64::from(bit))
            })
        })
    }

    /// The lowest set index.
    #[inline]
    pub fn first(&self) -> Option<u64> {
        let mut index = 0;
        for level in self.levels.iter().rev() {
            let word = level[index as usize];
            if word == 0 {
                return None;
            }
            index = index << 6 | u64::from(word.trailing_zeros());
        }
        Some(index)
    }

    /// The highest set index below `end`.
    pub fn last_below(&self, end: u64) -> Option<u64> {
        let mut end = end;
        for (level, words) in self.levels.iter().enumerate() {
            let (word, bit) = ((end >> 6) as usize, end & 63);
            let below = words.get(word).map_or(0, |w| w & ((1 << bit) - 1));
            // Beyond the last word there is nothing: what is above says which word is the last.
            if below != 0 {
                let mut index = (word as u64) << 6 | u64::from(63 - below.leading_zeros());
                for words in self.levels[..level].iter().rev() {
                    let word = words[index as usize];
                    index = index << 6 | u64::from(63 - word.leading_zeros());
                }
                return Some(index);
            }
            end = word.min(words.len()) as u64;
        }
        None
    }

    /// Whether any of the `1 << log` indices from `start` on, which is a multiple of that, is set.
    pub fn any(&self, start: u64, log: u32) -> bool {
        let level = log / 6;
        let Some(words) = self.levels.get(level as usize) else {
            return self.first().is_some();
        };
        let index = start >> (6 * level);
        let mask = (1u64 << (1 << (log % 6))).wrapping_sub(1);
        words.get((index >> 6) as usize).is_some_and(|w| w >> (index & 63) & mask != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nestwalk_types::SplitMix64;
    use std::collections::BTreeSet;

    #[test]
    fn agrees_with_a_set() {
        let (bits, mut rng) = (70_000, SplitMix64::new(3));
        let (mut map, mut set) = (Bitmap::new(bits), BTreeSet::new());
        for round in 0..20_000 {
            // Sparse, so that words become empty and summaries are cleared.
            let i = rng.below(bits);
            if round % 3 == 0 {
                map.set(i);
                set.insert(i);
            } else if let Some(i) = set.range(i..).next().copied() {
                map.clear(i);
                set.remove(&i);
            }
            assert_eq!(map.first(), set.first().copied());
            let end = rng.below(bits + 500);
            assert_eq!(map.last_below(end), set.range(..end).next_back().copied(), "{end}");
            let log = (round % 17) as u32;
            let start = i >> log << log;
            let any = set.range(start..start + (1 << log)).next().is_some();
            assert_eq!(map.any(start, log), any, "2^{log} from {start}");
            assert_eq!(map.test(i), set.contains(&i));
        }
    }
}
