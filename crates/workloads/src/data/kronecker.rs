//! A Kronecker graph in CSR form whose arrays are never stored.
//!
//! Graph500 draws each edge by choosing, for every bit of the two vertex numbers, one quadrant of
//! the matrix `[[a, b], [c, d]] = [[.57, .19], [.19, .05]]`. So the share of edges that leave
//! vertex v is a product over the bits of v of `a + b` = .76 (bit 0) or `c + d` = .24 (bit 1), the
//! share of all vertices below v has a closed form, and the target of an edge is drawn bit by bit
//! with `b / (a + b)` or `d / (c + d)`, depending on the source's bit. That gives row offsets and
//! neighbours in constant time:
//!
//! - a row has as many edges as the law expects (to within one), not a random number;
//! - an edge is directed: that v is a neighbour of u does not make u one of v;
//! - `d / (c + d)` = .20833 is 213/1024 = .20801, so that all bits are drawn at once.

use nestwalk_types::mix64;

/// Number one of the shares of edges: 63 fractional bits.
const ONE: u64 = 1 << 63;
/// `a + b`: share of the edges that leave the half of the vertices whose bit is 0.
const LOWER_HALF: f64 = 0.76;

/// The graph, with vertices as the generator numbers them: 0 has the most edges.
#[derive(Debug)]
pub(crate) struct Kronecker {
    scale: u32,
    low_bits: u32,
    edges: u64,
    seed: u64,
    /// Share of the edges of all vertices below `i << low_bits`; and of those 2^low_bits.
    high: Vec<(u64, u64)>,
    /// Share of the edges of a block of 2^low_bits vertices that its first `i` have.
    low: Vec<u64>,
}

/// Shares of `0..2^bits` as (of all before, own), and (of all, 0).
fn shares(bits: u32) -> Vec<(u64, u64)> {
    let mut before = 0u64;
    let mut all: Vec<(u64, u64)> = (0..1u64 << bits)
        .map(|v| {
            let ones = v.count_ones() as i32;
            let own = LOWER_HALF.powi(bits as i32 - ones) * (1.0 - LOWER_HALF).powi(ones);
            // Rounding must never make the shares exceed one, or a row would end after the next
            // begins.
            let own = ((own * ONE as f64) as u64).min(ONE - before);
            let entry = (before, own);
            before += own;
            entry
        })
        .collect();
    all.push((before, 0));
    all
}

/// Both halves of a 128-bit product, folded: one multiplication of mixing.
#[inline(always)]
const fn fold(a: u64, b: u64) -> u64 {
    let product = a as u128 * b as u128;
    product as u64 ^ (product >> 64) as u64
}

impl Kronecker {
    /// 2^`scale` vertices, `scale` at most 32, and about `edges` edges.
    pub(crate) fn new(scale: u32, edges: u64, seed: u64) -> Self {
        let low_bits = scale / 2;
        Self {
            scale,
            low_bits,
            edges,
            seed: mix64(seed ^ 0x6b72_6f6e),
            high: shares(scale - low_bits),
            low: shares(low_bits).into_iter().map(|(before, _)| before).collect(),
        }
    }
    /// Vertices.
    pub(crate) const fn vertices(&self) -> u64 {
        1 << self.scale
    }
    /// Edges, less than were asked for by the rounding of the shares.
    pub(crate) fn edges(&self) -> u64 {
        self.offset(self.vertices())
    }
    /// Index of the first edge of `v`, which is at most the number of vertices.
    #[inline]
    pub(crate) fn offset(&self, v: u64) -> u64 {
        let (before, own) = self.high[(v >> self.low_bits) as usize];
        let part = self.low[(v & ((1 << self.low_bits) - 1)) as usize];
        let share = before + ((u128::from(own) * u128::from(part)) >> 63) as u64;
        ((u128::from(share) * u128::from(self.edges)) >> 63) as u64
    }
    /// Target of edge `edge`, which leaves `v`.
    #[inline(always)]
    pub(crate) const fn target(&self, v: u64, edge: u64) -> u64 {
        let h = mix64(edge ^ self.seed);
        // Ten random words of 32 bits; lane i decides bit i of the target.
        let a = fold(h, 0xa076_1d64_78bd_642f);
        let b = fold(h ^ 0xe703_7ed1_a0b4_28db, 0x8ebc_6af0_9c88_c6e3);
        let c = fold(h ^ 0x5899_65cc_7537_4cc3, 0x1d8e_4e27_c47d_124f);
        let d = fold(h ^ 0xeb44_acca_b455_d165, 0x9e37_79b9_7f4a_7c15);
        let e = fold(h ^ 0x2545_f491_4f6c_dd1d, 0xd6e8_feb8_6659_fd93);
        let quarter = a & (a >> 32);
        // A lane is 1 with 213/256 = 0.11010101 in binary: from the last digit on, a 1 is `or`
        // with a fresh random bit and a 0 is `and`.
        let mut most = b;
        most &= b >> 32;
        most |= c;
        most &= c >> 32;
        most |= d;
        most &= d >> 32;
        most |= e;
        most |= e >> 32;
        quarter & (!v | most) & ((1 << self.scale) - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_the_law_and_follow_each_other() {
        for (scale, edges) in [(0, 10), (1, 100), (7, 1 << 12), (11, 1 << 16), (16, 1 << 22)] {
            let g = Kronecker::new(scale, edges, 1);
            let mut before = 0.0;
            for v in 0..g.vertices() {
                let expected = before * edges as f64;
                assert!((g.offset(v) as f64 - expected).abs() < 2.0, "{scale} {v}");
                assert!(g.offset(v) <= g.offset(v + 1));
                let ones = v.count_ones() as i32;
                before += 0.76f64.powi(scale as i32 - ones) * 0.24f64.powi(ones);
            }
            assert!(edges - g.edges() < 2);
        }
    }

    #[test]
    fn rows_follow_each_other_at_full_scale() {
        let g = Kronecker::new(32, 1 << 36, 1);
        assert!((1 << 36) - g.edges() < 1 << 16);
        for i in 0..1_000_000u64 {
            let v = mix64(i) >> 32;
            assert!(g.offset(v) <= g.offset(v + 1));
            let block = v >> 16 << 16;
            assert!(g.offset(block.max(1) - 1) <= g.offset(block));
        }
    }

    #[test]
    fn quadrants_have_their_probabilities() {
        let g = Kronecker::new(12, 1 << 20, 7);
        // By bit position: number of edges in each quadrant.
        let mut counts = vec![[0u64; 4]; 12];
        for v in 0..g.vertices() {
            for e in g.offset(v)..g.offset(v + 1) {
                let t = g.target(v, e);
                assert!(t < g.vertices());
                for (bit, quadrants) in counts.iter_mut().enumerate() {
                    quadrants[(v >> bit & 1) as usize * 2 + (t >> bit & 1) as usize] += 1;
                }
            }
        }
        for quadrants in &counts {
            for (count, p) in quadrants.iter().zip([0.57, 0.19, 0.19, 0.05]) {
                let share = *count as f64 / (1 << 20) as f64;
                assert!((share - p).abs() < 0.002, "{counts:?}");
            }
        }
    }

    #[test]
    fn bits_are_independent() {
        // Vertex 0 has targets whose bits are 1 with 1/4 each: pairs of bits with 1/16.
        let g = Kronecker::new(32, 1 << 30, 3);
        let draws = 200_000u64;
        for (i, j) in [(0, 1), (0, 16), (5, 31), (15, 16), (30, 31)] {
            let both = (0..draws)
                .filter(|&e| {
                    let t = g.target(0, e);
                    t >> i & t >> j & 1 == 1
                })
                .count();
            let share = both as f64 / draws as f64;
            assert!((share - 1.0 / 16.0).abs() < 0.003, "{i} {j} {share}");
        }
    }
}
