//! Entries, ways and sets, and how keys are spread over sets of any number.

use thiserror::Error;

/// Why a geometry makes no sense.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
pub enum GeometryError {
    /// No entries or no ways.
    #[error("{entries} entries in {ways} ways: both must be at least 1")]
    Zero {
        /// Entries asked for.
        entries: u32,
        /// Ways asked for.
        ways: u32,
    },
    /// The entries do not fill the ways.
    #[error(
        "{entries} entries cannot be split into {ways} ways: {entries} is no multiple of {ways}"
    )]
    Uneven {
        /// Entries asked for.
        entries: u32,
        /// Ways asked for.
        ways: u32,
    },
}

/// Size and associativity of a structure. Any number of sets is allowed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    /// Entries in all.
    pub entries: u32,
    /// Entries per set; as many as `entries` if fully associative.
    pub ways: u32,
}

impl Geometry {
    /// A checked geometry.
    ///
    /// # Errors
    /// See [`GeometryError`].
    pub const fn new(entries: u32, ways: u32) -> Result<Self, GeometryError> {
        if entries == 0 || ways == 0 {
            return Err(GeometryError::Zero { entries, ways });
        }
        if !entries.is_multiple_of(ways) {
            return Err(GeometryError::Uneven { entries, ways });
        }
        Ok(Self { entries, ways })
    }
    /// Number of sets.
    pub const fn sets(self) -> u32 {
        self.entries / self.ways
    }
}

/// Spreads keys over sets: by the remainder, without a division, or by exclusive ors of key bits.
///
/// The number of sets is `odd << shift`; the quotient by `odd` is a multiplication by its
/// reciprocal, exact for keys below `2^(32 + shift)` (Granlund and Montgomery, PLDI 1994). Larger
/// keys are divided.
#[derive(Clone, Debug)]
pub struct Indexer {
    shift: u32,
    /// 0 if sets are found by exclusive ors.
    odd: u64,
    /// `ceil(2^64 / odd)`, 0 if `odd` is 1.
    reciprocal: u64,
    /// The key bits whose exclusive or is a bit of the set, lowest first; none if it is bit `i` with bit
    /// `i + shift`.
    masks: Option<Box<[u64]>>,
}

impl Indexer {
    /// For this many sets.
    pub const fn new(sets: u32) -> Self {
        let shift = sets.trailing_zeros();
        let odd = (sets >> shift) as u64;
        let reciprocal = if odd == 1 { 0 } else { u64::MAX / odd + 1 };
        Self { shift, odd, reciprocal, masks: None }
    }
    /// For `1 << masks.len()` sets, each of whose bits is the exclusive or of the key bits in a mask,
    /// the lowest first.
    pub fn xor(masks: &[u64]) -> Self {
        let shift = masks.len() as u32;
        // One bit with the next field's: two shifts do it for all bits at once.
        let folded = masks.iter().enumerate().all(|(i, m)| *m == (1 | 1 << shift) << i);
        let masks = (!folded).then(|| masks.into());
        Self { shift, odd: 0, reciprocal: 0, masks }
    }
    /// Whether sets are found by the remainder.
    pub(crate) const fn is_linear(&self) -> bool {
        self.odd != 0
    }
    /// `(key / sets, key % sets)` of an index by the remainder.
    #[inline]
    pub const fn split(&self, key: u64) -> (u64, usize) {
        let low = key & ((1 << self.shift) - 1);
        let high = key >> self.shift;
        if self.odd == 1 {
            return (high, low as usize);
        }
        let quotient = if high >> 32 == 0 {
            ((high as u128 * self.reciprocal as u128) >> 64) as u64
        } else {
            high / self.odd
        };
        (quotient, (((high - quotient * self.odd) << self.shift) | low) as usize)
    }
    /// The set of a key: `key % sets`, or by exclusive ors.
    #[inline]
    pub fn set(&self, key: u64) -> usize {
        match self.odd {
            1 => (key & ((1 << self.shift) - 1)) as usize,
            0 => self.xor_set(key),
            _ => self.split(key).1,
        }
    }
    /// Not in line, so that arrays with a plain index pay one comparison for it.
    #[inline(never)]
    fn xor_set(&self, key: u64) -> usize {
        match &self.masks {
            None => ((key ^ key >> self.shift) & ((1 << self.shift) - 1)) as usize,
            Some(masks) => masks
                .iter()
                .enumerate()
                .fold(0, |set, (i, mask)| set | ((key & mask).count_ones() as usize & 1) << i),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nestwalk_types::SplitMix64;

    #[test]
    fn split_is_division_with_remainder() {
        let mut r = SplitMix64::new(7);
        for sets in (1..200).chain([53_248, 57_344, 45_056, 1 << 20, 12_345]) {
            let indexer = Indexer::new(sets);
            let sets = u64::from(sets);
            for i in 0..2000 {
                let key = r.next() >> (i % 64);
                assert_eq!(indexer.split(key), (key / sets, (key % sets) as usize), "{key} {sets}");
            }
        }
    }

    #[test]
    fn exclusive_ors_are_those_of_single_bits() {
        let mut r = SplitMix64::new(8);
        let folded: Vec<u64> = (0..7).map(|i| 1 << i | 1 << (i + 7)).collect();
        let other = [0x8101, 0x2, 0x4044];
        for masks in [folded.as_slice(), &other] {
            let indexer = Indexer::xor(masks);
            for _ in 0..2000 {
                let key = r.next();
                let bit = |i: u32| key >> i & 1 == 1;
                let of = |mask: u64| {
                    (0..64).filter(|i| mask >> i & 1 == 1).fold(false, |b, i| b ^ bit(i))
                };
                let set = masks.iter().rev().fold(0, |set, m| set << 1 | usize::from(of(*m)));
                assert_eq!(indexer.set(key), set, "{key:x}");
            }
        }
    }

    #[test]
    fn nonsense_is_refused_with_the_numbers() {
        assert_eq!(
            Geometry::new(1536, 7).unwrap_err().to_string(),
            "1536 entries cannot be split into 7 ways: 1536 is no multiple of 7"
        );
        assert!(Geometry::new(0, 4).is_err());
        assert_eq!(Geometry::new(1536, 6).unwrap().sets(), 256);
    }
}
