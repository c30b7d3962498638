use super::*;
use crate::testing::run_to_end;

#[test]
fn every_line_solved_satisfies_its_equations() {
    for n in [5, 8, 9] {
        let mut k = Bt::new(n, 3, 1, true, &mut AddressSpace::new());
        run_to_end(&mut k);
        assert_eq!(k.verify(), Ok(()));
        let inner = k.cell([2, 2, 2]);
        let x = k.values.as_mut().unwrap();
        assert!(x.residual > 0.0, "rounding leaves something: it was computed");
        // The solution moved, and a wrong one is noticed.
        let start = 1.0 + unit(hash2(5 * inner, 1));
        assert!((x.u[inner as usize][0] - start).abs() > 1e-6);
        x.residual = 1e-3;
        assert!(k.verify().is_err());
    }
}

#[test]
fn a_sweep_is_a_dense_solution_of_its_lines() {
    // Stops after the first line in x and solves its 5n equations by dense elimination.
    let n = 7;
    let mut k = Bt::new(n, 1, 4, true, &mut AddressSpace::new());
    let mut m = Recorder::new(u64::MAX);
    while k.at != [0, 2, 1] || !matches!(k.phase, Phase::Solve(0, Loop::Jacobians)) {
        k.step(&mut m);
    }
    let x = k.values.as_ref().unwrap();
    let size = 5 * n as usize;
    let mut a = vec![vec![0.0; size + 1]; size];
    for i in 0..n as usize {
        for r in 0..5 {
            for (which, column) in [(0, i.wrapping_sub(1)), (1, i), (2, i + 1)] {
                for c in 0..5 {
                    if column < n as usize {
                        a[5 * i + r][5 * column + c] = x.line[i][which][r][c];
                    }
                }
            }
            a[5 * i + r][size] = x.b[i][r];
        }
    }
    for p in 0..size {
        let pivot = (p..size).max_by(|&i, &j| a[i][p].abs().total_cmp(&a[j][p].abs())).unwrap();
        a.swap(p, pivot);
        let row = a[p].clone();
        for (_, other) in a.iter_mut().enumerate().filter(|(i, _)| *i != p) {
            let factor = other[p] / row[p];
            other.iter_mut().zip(&row).for_each(|(o, v)| *o -= factor * v);
        }
    }
    for (i, row) in a.iter().enumerate() {
        let solved = x.rhs[k.cell([i as u64 / 5, 1, 1]) as usize][i % 5];
        assert!((solved - row[size] / row[i]).abs() < 1e-11);
    }
}

#[test]
fn accesses_of_an_iteration_are_counted_by_cells() {
    let n = 6;
    let mut k = Bt::new(n, 1, 1, false, &mut AddressSpace::new());
    assert_eq!(run_to_end(&mut k), per_iteration(n));
    // What the module's documentation says of large grids.
    assert!((1700..1900).contains(&(per_iteration(300) / 300u64.pow(3))));
}

/// Accesses of an iteration over a cube of `n` cells a side.
fn per_iteration(n: u64) -> u64 {
    let (all, inner, lines) = (n.pow(3), (n - 2).pow(3), 3 * (n - 2).pow(2));
    // Five-point stencils, but four points beside the two boundaries.
    let stencil = (n - 2).pow(2) * (5 * (n - 2) - 2);
    let rhs = 11 * all + 10 * all + 3 * (28 * inner + 5 * stencil) + 10 * inner;
    let line = n * 58 + n * 75 + (n - 2) * 125 + n * 110 - 50 + (n - 1) * 140 + (n - 1) * 40;
    rhs + lines * line + 15 * inner
}
