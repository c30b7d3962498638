//! Pseudo-random bijections that take no memory, fixed for ever as the generator is.

/// Rounds of mixing: three of multiply and xor-shift, the shape of the `SplitMix64` finalizer.
const ROUNDS: usize = 3;

/// What decides a [`Permutation`]: the addend and the factor of each round. Factors are made odd.
pub type PermutationKey = [(u64, u64); ROUNDS];

/// A bijection of `0..2^bits`.
///
/// Modulo `2^bits`, adding a constant, multiplying by an odd constant, and folding the upper half of
/// the bits onto the lower can each be undone, and so can three rounds of them.
#[derive(Clone, Debug)]
pub struct Permutation {
    mask: u64,
    fold: u32,
    add: [u64; ROUNDS],
    multiply: [u64; ROUNDS],
    divide: [u64; ROUNDS],
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
    /// The bijection of this key; `bits` is 0 to 64.
    pub fn new(bits: u32, key: PermutationKey) -> Self {
        let multiply = key.map(|k| k.1 | 1);
        Self {
            mask: u64::MAX.checked_shr(64 - bits.min(64)).unwrap_or(0),
            fold: bits.min(64).div_ceil(2).max(1),
            add: key.map(|k| k.0),
            multiply,
            divide: multiply.map(inverse),
        }
    }
    /// Where `x`, which is below `2^bits`, goes.
    #[inline(always)]
    pub const fn apply(&self, x: u64) -> u64 {
        let mut x = x;
        let mut round = 0;
        while round < ROUNDS {
            x = x.wrapping_add(self.add[round]).wrapping_mul(self.multiply[round]) & self.mask;
            x ^= x >> self.fold;
            round += 1;
        }
        x
    }
    /// What goes to `x`, which is below `2^bits`.
    #[inline(always)]
    pub const fn invert(&self, x: u64) -> u64 {
        let mut x = x;
        let mut round = ROUNDS;
        while round > 0 {
            round -= 1;
            x ^= x >> self.fold;
            x = x.wrapping_mul(self.divide[round]).wrapping_sub(self.add[round]) & self.mask;
        }
        x
    }
}

/// A bijection of `0..len` for any length.
///
/// That of the enclosing power of two, applied again until the result is inside ("cycle walking":
/// Black and Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002), less than twice on
/// average.
#[derive(Clone, Debug)]
pub struct ShortPermutation {
    wide: Permutation,
    len: u64,
}

impl ShortPermutation {
    /// The bijection of this key; a `len` of 0 is taken as 1.
    pub fn new(len: u64, key: PermutationKey) -> Self {
        let len = len.max(1);
        Self { wide: Permutation::new(64 - (len - 1).leading_zeros(), key), len }
    }
    /// How many numbers it permutes.
    #[inline]
    pub const fn count(&self) -> u64 {
        self.len
    }
    /// Where `x`, which is below `len`, goes.
    #[inline]
    pub const fn apply(&self, x: u64) -> u64 {
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
    use crate::SplitMix64;

    fn key(seed: u64) -> PermutationKey {
        let mut random = SplitMix64::new(seed);
        [(); ROUNDS].map(|()| (random.next(), random.next()))
    }

    #[test]
    fn every_number_comes_once_and_can_be_undone() {
        for bits in 0..=12 {
            let p = Permutation::new(bits, key(u64::from(bits) + 5));
            let mut seen = vec![false; 1 << bits];
            for x in 0..1u64 << bits {
                let y = p.apply(x);
                assert!(!std::mem::replace(&mut seen[y as usize], true));
                assert_eq!(p.invert(y), x);
            }
        }
        for bits in [40, 63, 64] {
            let p = Permutation::new(bits, key(9));
            let far = 1 << (bits - 1);
            assert!((0..1000).all(|x| p.invert(p.apply(far + x)) == far + x), "{bits}");
        }
    }

    #[test]
    fn lengths_that_are_no_power_of_two() {
        for len in [1, 2, 3, 5, 64, 100, 1000, 4096, 4097, 65_537] {
            for seed in 0..4 {
                let p = ShortPermutation::new(len, key(seed));
                let mut seen: Vec<u64> = (0..len).map(|x| p.apply(x)).collect();
                seen.sort_unstable();
                assert!(seen.iter().copied().eq(0..len), "{len} {seed}");
            }
        }
    }

    #[test]
    fn neighbours_are_scattered() {
        // Distances are uniform, so of neighbours those within 2^10 of each other are about 2^-9.
        let p = Permutation::new(20, key(7));
        let near = (0..1u64 << 20)
            .filter(|&x| p.apply(x).abs_diff(p.apply((x + 1) & 0xf_ffff)) < 1 << 10)
            .count();
        assert!((1000..4000).contains(&near), "{near}");
    }
}
