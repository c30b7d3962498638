//! Arithmetic on 5x5 blocks: the routines of NPB's `solve_subs.f`.

/// A block, by rows.
pub(super) type Block = [[f64; 5]; 5];
/// A vector of the five components of a cell.
pub(super) type Vector = [f64; 5];

/// A multiple of the identity.
pub(super) fn identity(factor: f64) -> Block {
    let mut block = [[0.0; 5]; 5];
    for (i, row) in block.iter_mut().enumerate() {
        row[i] = factor;
    }
    block
}

/// `a + factor * b`.
pub(super) fn add_scaled(a: &Block, factor: f64, b: &Block) -> Block {
    std::array::from_fn(|i| std::array::from_fn(|j| a[i][j] + factor * b[i][j]))
}

/// `a x`.
pub(super) fn times(a: &Block, x: &Vector) -> Vector {
    std::array::from_fn(|i| (0..5).map(|j| a[i][j] * x[j]).sum())
}

/// `b -= a x` (`matvec_sub`).
pub(super) fn matvec_sub(a: &Block, x: &Vector, b: &mut Vector) {
    let product = times(a, x);
    for (b, p) in b.iter_mut().zip(product) {
        *b -= p;
    }
}

/// `c -= a b` (`matmul_sub`).
pub(super) fn matmul_sub(a: &Block, b: &Block, c: &mut Block) {
    for i in 0..5 {
        for j in 0..5 {
            c[i][j] -= (0..5).map(|k| a[i][k] * b[k][j]).sum::<f64>();
        }
    }
}

/// Replaces `c` by `b^-1 c` and `r` by `b^-1 r`, and destroys `b` (`binvcrhs`): Gauss-Jordan
/// without pivoting, as the diagonal blocks are dominant.
pub(super) fn binvcrhs(b: &mut Block, c: &mut Block, r: &mut Vector) {
    for p in 0..5 {
        let scale = 1.0 / b[p][p];
        for k in 0..5 {
            b[p][k] *= scale;
            c[p][k] *= scale;
        }
        r[p] *= scale;
        let (b_row, c_row) = (b[p], c[p]);
        for i in (0..5).filter(|&i| i != p) {
            let factor = b[i][p];
            for k in 0..5 {
                b[i][k] -= factor * b_row[k];
                c[i][k] -= factor * c_row[k];
            }
            r[i] -= factor * r[p];
        }
    }
}
