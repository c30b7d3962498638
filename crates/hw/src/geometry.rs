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

/// Spreads keys over sets by the remainder, without a division.
///
/// The number of sets is `odd << shift`; the quotient by `odd` is a multiplication by its
/// reciprocal, exact for keys below `2^(32 + shift)` (Granlund and Montgomery, PLDI 1994). Larger
/// keys are divided.
#[derive(Clone, Copy, Debug)]
pub struct Indexer {
    shift: u32,
    odd: u64,
    /// `ceil(2^64 / odd)`, 0 if `odd` is 1.
    reciprocal: u64,
}

impl Indexer {
    /// For this many sets.
    pub const fn new(sets: u32) -> Self {
        let shift = sets.trailing_zeros();
        let odd = (sets >> shift) as u64;
        let reciprocal = if odd == 1 { 0 } else { u64::MAX / odd + 1 };
        Self { shift, odd, reciprocal }
    }
    /// `(key / sets, key % sets)`.
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
    /// `key % sets`.
    #[inline]
    pub const fn set(&self, key: u64) -> usize {
        self.split(key).1
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
    fn nonsense_is_refused_with_the_numbers() {
        assert_eq!(
            Geometry::new(1536, 7).unwrap_err().to_string(),
            "1536 entries cannot be split into 7 ways: 1536 is no multiple of 7"
        );
        assert!(Geometry::new(0, 4).is_err());
        assert_eq!(Geometry::new(1536, 6).unwrap().sets(), 256);
    }
}
