//! Zipf-distributed ranks in constant memory.

use nestwalk_types::SplitMix64;

/// Ranks `0..n`, rank r with probability proportional to `(r + 1)^-theta`.
///
/// The approximation by inversion of Gray et al., "Quickly generating billion-record synthetic
/// databases" (SIGMOD 1994), which YCSB uses: exact for the two most frequent ranks. A workload that
/// stands for YCSB must draw as YCSB does; the synthetic pattern `zipf` has an exact sampler instead.
#[derive(Clone, Debug)]
pub(crate) struct Zipf {
    n: f64,
    zeta: f64,
    second: f64,
    alpha: f64,
    eta: f64,
}

/// Sum of `i^-theta` for i in 1..=n: the first terms one by one, the rest by the Euler-Maclaurin
/// formula, whose error is below the first term left out, about `1000^-(theta + 3)`.
fn zeta(n: u64, theta: f64) -> f64 {
    const EXACT: u64 = 1000;
    let head: f64 = (1..=n.min(EXACT)).map(|i| (i as f64).powf(-theta)).sum();
    if n <= EXACT {
        return head;
    }
    let (a, b) = (EXACT as f64, n as f64);
    let integral = (b.powf(1.0 - theta) - a.powf(1.0 - theta)) / (1.0 - theta);
    let ends = (b.powf(-theta) - a.powf(-theta)) / 2.0;
    let slopes = theta * (a.powf(-theta - 1.0) - b.powf(-theta - 1.0)) / 12.0;
    head + integral + ends + slopes
}

impl Zipf {
    /// Over `n` ranks, `n` at least 1; `theta` in `(0, 1)`.
    pub(crate) fn new(n: u64, theta: f64) -> Self {
        let zeta_n = zeta(n, theta);
        let nf = n as f64;
        let second = 1.0 + 0.5f64.powf(theta);
        Self {
            n: nf,
            zeta: zeta_n,
            second,
            alpha: 1.0 / (1.0 - theta),
            eta: (1.0 - (2.0 / nf).powf(1.0 - theta)) / (1.0 - second / zeta_n),
        }
    }
    /// The next rank.
    #[inline]
    pub(crate) fn next(&self, random: &mut SplitMix64) -> u64 {
        let u = random.unit();
        let scaled = u * self.zeta;
        if scaled < 1.0 || self.n < 2.0 {
            0
        } else if scaled < self.second || self.n < 3.0 {
            1
        } else {
            let rank = self.n * (self.eta * u - self.eta + 1.0).powf(self.alpha);
            (rank as u64).min(self.n as u64 - 1)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeta_is_the_sum() {
        for n in [1, 2, 999, 1000, 1001, 100_000] {
            let sum: f64 = (1..=n).map(|i| (i as f64).powf(-0.99)).sum();
            assert!((zeta(n, 0.99) / sum - 1.0).abs() < 1e-12, "{n}");
        }
    }

    #[test]
    fn frequencies_follow_the_law() {
        let (n, draws) = (10_000, 2_000_000);
        let zipf = Zipf::new(n, 0.99);
        let mut random = SplitMix64::new(3);
        let mut counts = vec![0u64; n as usize];
        for _ in 0..draws {
            counts[zipf.next(&mut random) as usize] += 1;
        }
        let probability = |r: u64| ((r + 1) as f64).powf(-0.99) / zeta(n, 0.99);
        // The first two exactly (five standard deviations), blocks of ranks to a tenth.
        for r in 0..2 {
            let p = probability(r);
            let sigma = (draws as f64 * p * (1.0 - p)).sqrt();
            assert!((counts[r as usize] as f64 - draws as f64 * p).abs() < 5.0 * sigma);
        }
        for (from, to) in [(10, 100), (100, 1000), (1000, 10_000)] {
            let p: f64 = (from..to).map(probability).sum();
            let c: u64 = counts[from as usize..to as usize].iter().sum();
            assert!((c as f64 / draws as f64 / p - 1.0).abs() < 0.1, "{from}..{to}");
        }
    }

    #[test]
    fn small_and_large_domains_stay_inside() {
        let mut random = SplitMix64::new(4);
        for n in [1, 2, 3, 1 << 33] {
            let zipf = Zipf::new(n, 0.99);
            assert!((0..10_000).all(|_| zipf.next(&mut random) < n));
        }
    }
}
