//! The escape filter: pages of a segment that must not be translated by it (MICRO 2014).
//!
//! A parallel Bloom filter: each hash function has a bank of its own, of `bits / hashes` bits, so
//! that all banks are read at once by memories of one port (Sanchez et al., MICRO 2007). Hash
//! functions are of the class H3 (Carter and Wegman, 1979): each input bit that is set contributes
//! a random word, and the words are added modulo 2. With `n` pages put in, a page that was not is
//! reported with probability
//!
//! ```text
//! (1 - (1 - k/m)^n)^k     m bits in all, k hashes, m/k bits per bank
//! ```
//!
//! which is the formula of a filter with one shared array, `(1 - (1 - 1/m)^(k n))^k`, but that each
//! bank takes `n` of the `k n` insertions and has `m/k` of the bits: for 256 bits, 4 hashes and 16
//! pages 0.246 % against 0.241 %.

use nestwalk_types::SplitMix64;
use std::ops::Range;
use std::sync::Arc;
use thiserror::Error;

/// Bits of a page number that the hash functions read: those of 57-bit addresses, and some more.
const KEY_BYTES: usize = 6;

/// Size of a filter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FilterGeometry {
    /// Bits of all banks together.
    pub bits: u32,
    /// Hash functions, each with its bank.
    pub hashes: u32,
}

impl Default for FilterGeometry {
    /// 256 bits and 4 hashes, as MICRO 2014.
    fn default() -> Self {
        Self { bits: 256, hashes: 4 }
    }
}

/// Why a filter cannot be built.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum FilterError {
    /// Nothing to hash into, or nothing that hashes.
    #[error("a filter of {bits} bits and {hashes} hashes: neither may be 0")]
    Nothing {
        /// Bits.
        bits: u32,
        /// Hash functions.
        hashes: u32,
    },
    /// Banks would not have a power of two of bits.
    #[error(
        "a filter of {bits} bits and {hashes} hashes: bits per hash must be a power of two, as in \
         256 and 4"
    )]
    Uneven {
        /// Bits.
        bits: u32,
        /// Hash functions.
        hashes: u32,
    },
    /// Too large for a register of a core.
    #[error("a filter of {bits} bits and {hashes} hashes: at most 65536 bits and 16 hashes")]
    TooLarge {
        /// Bits.
        bits: u32,
        /// Hash functions.
        hashes: u32,
    },
}

impl FilterGeometry {
    /// Whether such a filter can be built.
    ///
    /// # Errors
    /// It cannot; see [`FilterError`].
    pub const fn check(self) -> Result<(), FilterError> {
        let Self { bits, hashes } = self;
        if bits == 0 || hashes == 0 {
            return Err(FilterError::Nothing { bits, hashes });
        }
        if bits > 1 << 16 || hashes > 16 {
            return Err(FilterError::TooLarge { bits, hashes });
        }
        if bits % hashes != 0 || !(bits / hashes).is_power_of_two() {
            return Err(FilterError::Uneven { bits, hashes });
        }
        Ok(())
    }

    /// Probability that a page which was not put in is reported, after `pages` others were.
    pub fn false_positive_rate(self, pages: u64) -> f64 {
        let bank = f64::from(self.bits / self.hashes);
        (1.0 - (1.0 - 1.0 / bank).powf(pages as f64)).powi(self.hashes as i32)
    }
}

/// The matrices of the hash functions, by byte of the key: 16 bits of output are enough for any
/// bank.
type Matrix = [[u16; 256]; KEY_BYTES];

/// A filter over page numbers.
#[derive(Clone, Debug)]
pub struct EscapeFilter {
    matrices: Arc<[Matrix]>,
    bank_bits: u32,
    /// Banks one after the other, each in whole words.
    words: Vec<u64>,
    pages: u64,
}

impl EscapeFilter {
    /// An empty filter whose hash functions come from the seed.
    ///
    /// # Errors
    /// See [`FilterError`].
    pub fn new(geometry: FilterGeometry, seed: u64) -> Result<Self, FilterError> {
        geometry.check()?;
        let bank_bits = geometry.bits / geometry.hashes;
        let mut random = SplitMix64::new(seed);
        let matrices = (0..geometry.hashes).map(|_| matrix(&mut random, bank_bits)).collect();
        let words = vec![0; (bank_bits.div_ceil(64) * geometry.hashes) as usize];
        Ok(Self { matrices, bank_bits, words, pages: 0 })
    }

    /// Word and bit of a page in one bank.
    #[inline]
    fn place(&self, bank: usize, page: u64) -> (usize, u64) {
        let matrix = &self.matrices[bank];
        let mut hash = 0;
        for (byte, table) in matrix.iter().enumerate() {
            hash ^= table[(page >> (8 * byte)) as usize & 0xff];
        }
        let words = self.bank_bits.div_ceil(64) as usize;
        (bank * words + usize::from(hash >> 6), 1 << (hash & 63))
    }

    /// Puts a page in. It cannot be taken out: see [`EscapeFilter::clear`].
    pub fn insert(&mut self, page: u64) {
        for bank in 0..self.matrices.len() {
            let (word, bit) = self.place(bank, page);
            self.words[word] |= bit;
        }
        self.pages += 1;
    }

    /// Whether the page escapes: true for every page that was put in, and for some that were not.
    #[inline]
    pub fn reports(&self, page: u64) -> bool {
        self.pages > 0
            && (0..self.matrices.len()).all(|bank| {
                let (word, bit) = self.place(bank, page);
                self.words[word] & bit != 0
            })
    }

    /// Nothing was put in, so nothing is reported: hardware has one bit for this.
    #[inline]
    pub const fn is_empty(&self) -> bool {
        self.pages == 0
    }

    /// Takes everything out.
    pub fn clear(&mut self) {
        self.words.fill(0);
        self.pages = 0;
    }

    /// Every page of a range that is reported, false positives included: what page tables must
    /// hold.
    pub fn reported(&self, pages: Range<u64>) -> impl Iterator<Item = u64> {
        let pages = if self.is_empty() { 0..0 } else { pages };
        pages.filter(|page| self.reports(*page))
    }
}

fn matrix(random: &mut SplitMix64, bank_bits: u32) -> Matrix {
    let mut matrix = [[0; 256]; KEY_BYTES];
    for table in &mut matrix {
        let rows: [u16; 8] = std::array::from_fn(|_| random.below(u64::from(bank_bits)) as u16);
        for (value, sum) in table.iter_mut().enumerate() {
            let set = (0..8).filter(|bit| value >> bit & 1 == 1);
            *sum = set.fold(0, |sum, bit| sum ^ rows[bit]);
        }
    }
    matrix
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn what_was_put_in_is_reported_always() {
        for (bits, hashes) in [(1, 1), (16, 4), (256, 4), (256, 1), (96, 3), (1 << 16, 16)] {
            let mut r = SplitMix64::new(7);
            let mut filter = EscapeFilter::new(FilterGeometry { bits, hashes }, 3).unwrap();
            assert!(filter.is_empty() && !filter.reports(5));
            let pages: Vec<u64> = (0..64).map(|_| r.next() >> 17).collect();
            pages.iter().for_each(|p| filter.insert(*p));
            assert!(pages.iter().all(|p| filter.reports(*p)), "{bits} {hashes}");
            filter.clear();
            assert!(pages.iter().all(|p| !filter.reports(*p)));
        }
    }

    #[test]
    fn the_reported_pages_are_those_that_are_reported() {
        let mut r = SplitMix64::new(21);
        for seed in 0..40 {
            let start = r.below(1 << 40);
            let put: Vec<u64> = (0..r.below(40)).map(|_| start + r.below(5000)).collect();
            let mut filter = EscapeFilter::new(FilterGeometry::default(), seed).unwrap();
            put.iter().for_each(|p| filter.insert(*p));
            let said: BTreeSet<u64> = filter.reported(start..start + 5000).collect();
            assert!(put.iter().all(|p| said.contains(p)));
            assert!((start..start + 5000).all(|p| filter.reports(p) == said.contains(&p)));
        }
    }

    /// Each hash function is linear over bits: the class H3 is nothing else.
    #[test]
    fn hashes_are_linear() {
        let filter = EscapeFilter::new(FilterGeometry::default(), 11).unwrap();
        let hash = |bank: usize, page: u64| {
            let (word, bit) = filter.place(bank, page);
            (word - bank) as u64 * 64 + u64::from(bit.trailing_zeros())
        };
        let mut r = SplitMix64::new(5);
        for _ in 0..1000 {
            let (a, b) = (r.next() >> 16, r.next() >> 16);
            for bank in 0..4 {
                assert_eq!(hash(bank, a ^ b), hash(bank, a) ^ hash(bank, b));
            }
        }
    }

    /// Over many filters with hash functions of their own, against the formula, within four
    /// standard errors of the measured mean; and far from what half or twice as many hashes would
    /// give.
    #[test]
    fn the_rate_of_false_positives_is_the_formula_s() {
        for (bits, hashes, put) in
            [(256, 4, 16), (256, 4, 64), (256, 2, 8), (1024, 4, 64), (64, 1, 4)]
        {
            let geometry = FilterGeometry { bits, hashes };
            let rates: Vec<f64> = (0..300).map(|seed| measured(geometry, put, seed)).collect();
            let n = rates.len() as f64;
            let mean = rates.iter().sum::<f64>() / n;
            let variance = rates.iter().map(|r| (r - mean).powi(2)).sum::<f64>() / (n - 1.0);
            let error = (variance / n).sqrt();
            let theory = geometry.false_positive_rate(put);
            assert!(
                (mean - theory).abs() < 4.0 * error,
                "{geometry:?}, {put} pages: {mean} against {theory}, standard error {error}"
            );
            assert!(error < theory / 8.0, "{geometry:?}: the measurement is too coarse, {error}");
        }
    }

    fn measured(geometry: FilterGeometry, put: u64, seed: u64) -> f64 {
        let mut filter = EscapeFilter::new(geometry, seed).unwrap();
        let mut r = SplitMix64::new(seed ^ 0xabcd);
        let inserted: BTreeSet<u64> = (0..put).map(|_| r.below(1 << 30)).collect();
        inserted.iter().for_each(|p| filter.insert(*p));
        let trials = 4000;
        let others = (0..trials).map(|_| r.below(1 << 30)).filter(|p| !inserted.contains(p));
        others.filter(|p| filter.reports(*p)).count() as f64 / f64::from(trials)
    }

    #[test]
    fn the_numbers_of_the_documentation() {
        let rate = FilterGeometry::default().false_positive_rate(16);
        assert!((rate - 0.002_46).abs() < 0.000_005, "{rate}");
        let shared: f64 = (1.0 - (1.0 - 1.0f64 / 256.0).powi(64)).powi(4);
        assert!((shared - 0.002_41).abs() < 0.000_01, "{shared}");
    }

    #[test]
    fn sizes_that_cannot_be_are_refused() {
        let e = |bits, hashes| FilterGeometry { bits, hashes }.check().unwrap_err().to_string();
        assert!(e(0, 4).contains("neither may be 0") && e(256, 0).contains("neither may be 0"));
        assert!(e(256, 3).contains("power of two") && e(96, 2).contains("power of two"));
        assert!(e(1 << 17, 4).contains("at most") && e(1 << 16, 32).contains("at most"));
        assert!(EscapeFilter::new(FilterGeometry { bits: 0, hashes: 1 }, 0).is_err());
    }
}
