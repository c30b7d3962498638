//! Data that costs no memory until it is written: contents as pure functions of the index, and
//! sparse stores for what an algorithm writes.

mod kronecker;
mod words;
mod zipf;

use nestwalk_types::{PermutationKey, SplitMix64};

pub(crate) use kronecker::Kronecker;
pub(crate) use words::Words;
pub(crate) use zipf::Zipf;

/// Base-2 logarithm of the largest power of two that is at most `n`; 0 for 0.
pub(crate) const fn log2_floor(n: u64) -> u32 {
    match n.checked_ilog2() {
        Some(l) => l,
        None => 0,
    }
}

/// Base-2 logarithm of the smallest power of two that is at least `n`.
pub(crate) const fn log2_ceil(n: u64) -> u32 {
    if n <= 1 { 0 } else { log2_floor(n - 1) + 1 }
}

/// The key of a permutation. The order of the draws decides recorded results.
pub(crate) const fn permutation_key(seed: u64) -> PermutationKey {
    let mut random = SplitMix64::new(seed);
    let multiply = [random.next(), random.next(), random.next()];
    [(random.next(), multiply[0]), (0, multiply[1]), (0, multiply[2])]
}

/// A hash of two numbers.
#[inline]
pub(crate) const fn hash2(a: u64, b: u64) -> u64 {
    nestwalk_types::mix64(
        nestwalk_types::mix64(a.wrapping_add(0x9e37_79b9_7f4a_7c15))
            ^ b.wrapping_mul(0xd6e8_feb8_6659_fd93),
    )
}

/// The upper 53 bits of a hash as a number in `[0, 1)`.
#[inline]
pub(crate) const fn unit(hash: u64) -> f64 {
    (hash >> 11) as f64 / (1u64 << 53) as f64
}
