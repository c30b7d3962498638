//! Pseudo-random bijections without tables.

use nestwalk_types::SplitMix64;

/// A bijection of `0..2^bits`: three rounds of an odd multiplication and a fold of the upper half
/// onto the lower, each of which can be undone.
#[derive(Clone, Debug)]
pub(crate) struct Permutation {
    mask: u64,
    fold: u32,
    add: u64,
    multiply: [u64; 3],
    divide: [u64; 3],
}

/// Inverse of an odd number modulo 2^64 (Newton: each round doubles the number of right bits).
const fn inverse(odd: u64) -> u64 {
    let mut x = odd;
    let mut round = 0;
    while round < 5 {
        x = x.wrapping_mul(2u64.wrapping_sub(odd.wrapping_mul(x)));
        round += 1;
    }
    x
}

impl Permutation {
    /// The bijection of this seed; `bits` is 0..=63.
    pub(crate) fn new(bits: u32, seed: u64) -> Self {
        let mut random = SplitMix64::new(seed);
        let mask = (1u64 << bits) - 1;
        let multiply = [random.next() | 1, random.next() | 1, random.next() | 1];
        Self {
            mask,
            fold: bits.div_ceil(2).max(1),
            add: random.next(),
            multiply,
            divide: multiply.map(inverse),
        }
    }
    /// Where `x` goes.
    #[inline(always)]
    pub(crate) const fn apply(&self, x: u64) -> u64 {
        let mut x = x.wrapping_add(self.add) & self.mask;
        let mut round = 0;
        while round < 3 {
            x = x.wrapping_mul(self.multiply[round]) & self.mask;
            x ^= x >> self.fold;
            round += 1;
        }
        x
    }
    /// What goes to `x`.
    #[inline(always)]
    pub(crate) const fn invert(&self, x: u64) -> u64 {
        let mut x = x;
        let mut round = 3;
        while round > 0 {
            round -= 1;
            x ^= x >> self.fold;
            x = x.wrapping_mul(self.divide[round]) & self.mask;
        }
        x.wrapping_sub(self.add) & self.mask
    }
}

/// A bijection of `0..len` for any length: the enclosing power of two, walked until the result is
/// inside (less than two rounds on average).
#[derive(Clone, Debug)]
pub(crate) struct ShortPermutation {
    wide: Permutation,
    len: u64,
}

impl ShortPermutation {
    /// The bijection of this seed; `len` is at least 1.
    pub(crate) fn new(len: u64, seed: u64) -> Self {
        Self { wide: Permutation::new(super::log2_ceil(len), seed), len }
    }
    /// Where `x` goes.
    #[inline]
    pub(crate) const fn apply(&self, x: u64) -> u64 {
        let mut x = self.wide.apply(x);
        while x >= self.len {
            x = self.wide.apply(x);
        }
        x
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_comes_once_and_can_be_undone() {
        for bits in 0..=12 {
            let p = Permutation::new(bits, u64::from(bits) + 5);
            let mut seen = vec![false; 1 << bits];
            for x in 0..1u64 << bits {
                let y = p.apply(x);
                assert!(!std::mem::replace(&mut seen[y as usize], true));
                assert_eq!(p.invert(y), x);
            }
        }
        let p = Permutation::new(40, 9);
        assert!((0..1000).all(|x| p.invert(p.apply(x << 27)) == x << 27));
    }

    #[test]
    fn lengths_that_are_no_power_of_two() {
        for len in [1, 2, 3, 5, 100, 1000] {
            let p = ShortPermutation::new(len, 3);
            let mut seen: Vec<u64> = (0..len).map(|x| p.apply(x)).collect();
            seen.sort_unstable();
            assert!(seen.iter().copied().eq(0..len));
        }
    }

    #[test]
    fn neighbours_are_scattered() {
        // Of neighbouring numbers, those that stay within a 2^10th of each other are about 2^-9.
        let p = Permutation::new(20, 1);
        let near = (0..1u64 << 20)
            .filter(|&x| p.apply(x).abs_diff(p.apply((x + 1) & 0xf_ffff)) < 1 << 10)
            .count();
        assert!((1000..3500).contains(&near), "{near}");
    }
}
