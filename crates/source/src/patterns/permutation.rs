//! A pseudo-random permutation of `0..n` that takes no memory.

use nestwalk_types::SplitMix64;

/// Rounds of mixing: three of multiply and xor-shift, the shape of the `SplitMix64` finalizer.
const ROUNDS: usize = 3;

/// A bijection of `0..n`.
///
/// On `k`-bit numbers, `2^k >= n`, adding a constant, multiplying by an odd constant and `x ^ (x >>
/// s)` with `s >= 1` are bijections modulo `2^k`, and so is their composition. Results of `n` and
/// above are mapped again until one is below ("cycle walking": Black and Rogaway, "Ciphers with
/// Arbitrary Finite Domains", CT-RSA 2002), less than twice on average.
#[derive(Clone, Debug)]
pub(crate) struct Permutation {
    n: u64,
    mask: u64,
    shift: u32,
    keys: [(u64, u64); ROUNDS],
}

impl Permutation {
    /// The permutation of `0..n` that belongs to the seed; `n` is at least 1.
    pub(crate) fn new(n: u64, seed: u64) -> Self {
        let n = n.max(1);
        let bits = (64 - (n - 1).leading_zeros()).max(1);
        let mask = u64::MAX >> (64 - bits);
        let mut random = SplitMix64::new(seed);
        let keys = [(); ROUNDS].map(|()| (random.next(), random.next() | 1));
        Self { n, mask, shift: bits.div_ceil(2), keys }
    }

    pub(crate) fn len(&self) -> u64 {
        self.n
    }

    /// Where `i`, which is below `n`, goes.
    #[inline]
    pub(crate) fn apply(&self, i: u64) -> u64 {
        let mut x = i;
        loop {
            for (add, multiply) in self.keys {
                x = x.wrapping_add(add).wrapping_mul(multiply) & self.mask;
                x ^= x >> self.shift;
            }
            if x < self.n {
                return x;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_hit_once() {
        for n in [1, 2, 3, 5, 64, 100, 1000, 4096, 4097, 65_537] {
            for seed in 0..4 {
                let p = Permutation::new(n, seed);
                let mut seen = vec![false; n as usize];
                (0..n).for_each(|i| seen[p.apply(i) as usize] = true);
                assert!(seen.iter().all(|&s| s), "{n} {seed}");
            }
        }
    }

    #[test]
    fn neighbours_do_not_stay_neighbours() {
        let n = 1 << 20;
        let p = Permutation::new(n, 7);
        let near = (0..n - 1).filter(|&i| p.apply(i).abs_diff(p.apply(i + 1)) < 512).count();
        // Uniform distances would give n * 2 * 511 / n, about 1,022.
        assert!(near < 4000, "{near} of {n} steps stay within 512 places");
    }
}
