//! `bt`: the block-tridiagonal solver of the NAS Parallel Benchmarks.
//!
//! Source: NPB 3.4 BT (serial): `adi` = `compute_rhs`, `x_solve`, `y_solve`, `z_solve`, `add`, 200
//! iterations, on the arrays of its common blocks: `us vs ws qs rho_i square` (8 bytes a cell) and
//! `forcing u rhs` (5 x 8 bytes a cell), first and second dimension padded to odd, and the work
//! arrays `fjac njac lhs` of one line. The grid is the largest cube that fits.
//!
//! Real: the loops over cells and lines in their order and the accesses to every array in them; the
//! block-tridiagonal elimination. 5x5 blocks are loaded and stored as a whole by each routine.
//! Simplified: the flux formulas of the Navier-Stokes terms; the right-hand side is the forcing and
//! second differences, the Jacobians are small functions of u. No address depends on the values;
//! they are kept with `verify=1`, and A x = b is checked for every line solved.
//! An iteration makes some 1,800 accesses per cell, far more than a short run. So where memory is
//! populated the region of interest begins in the middle of an iteration, as `begin` says: with
//! `z_solve`, whose lines have the longest stride.
//! Instructions: accesses and scalar floating-point operations of each routine.

mod blocks;
mod sites;

use crate::data::{hash2, unit};
use crate::driver::{About, Driver, Kernel};
use crate::layout::{AddressSpace, Region};
use crate::recorder::Recorder;
use crate::spec::{Options, Populate, Setting, WorkloadError, WorkloadSpec};
use crate::{VERIFY, Workload};
use blocks::{Block, Vector, add_scaled, binvcrhs, identity, matmul_sub, matvec_sub, times};
use nestwalk_types::Source;
use sites::{
    ADD_LOAD, ADD_STORE, BACK_LOAD, BACK_STORE, BINV, BINV_STORE, FLUX_RHS, FLUX_SCALARS,
    FLUX_STORE, FLUX_U, FORCING, JAC_SCALARS, JAC_STORE, JAC_U, LHS_LOAD, LHS_STORE, MATMUL,
    MATMUL_STORE, MATVEC, MATVEC_STORE, POINT_STORE, POINT_U, RHS_COPY, SCALE_LOAD, SCALE_STORE,
};

/// This workload's entry in the list.
pub(crate) const WORKLOAD: Workload = Workload {
    name: "bt",
    summary: "NAS BT: block-tridiagonal sweeps in x, y and z over a cube of cells",
    footprint: 4 << 30,
    settings: &[
        Setting { name: "iterations", summary: "iterations", default: 200, range: (1, 1 << 20) },
        Setting {
            name: "begin",
            summary: "where populated runs begin: 0 compute_rhs, 1 x_solve, 2 y_solve, 3 z_solve",
            default: 3,
            range: (0, 3),
        },
        VERIFY,
    ],
    make,
};

/// Time step; and the weight of the second differences.
const DT: f64 = 0.01;
const DIFFUSION: f64 = 0.75;
const BLOCK: u64 = 25 * 8;
const VECTOR: u64 = 5 * 8;
/// Largest residual of a line: rounding of some hundred operations on numbers of about one.
const RESIDUAL_MAX: f64 = 1e-12;

/// Loops over cells: pointwise, copy of the forcing, fluxes in x, y, z, scaling by the time step.
const RHS_PASSES: u64 = 6;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// Pass of `compute_rhs`.
    Rhs(u64),
    /// A sweep: dimension 0 to 2, and which of the line's four loops.
    Solve(usize, Loop),
    Add,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Loop {
    Jacobians,
    Blocks,
    Forward,
    Backward,
}

struct Values {
    u: Vec<Vector>,
    rhs: Vec<Vector>,
    /// Of the line being solved: the blocks left of, on and right of the diagonal, as they were and
    /// as the elimination leaves them.
    line: Vec<[Block; 3]>,
    reduced: Vec<[Block; 3]>,
    /// Right-hand side of the line as it was.
    b: Vec<Vector>,
    residual: f64,
    seed: u64,
}

struct Bt {
    n: u64,
    /// Padded length of the first two dimensions.
    pitch: u64,
    scalars: [Region; 6],
    forcing: Region,
    u: Region,
    rhs: Region,
    fjac: Region,
    njac: Region,
    lhs: Region,
    phase: Phase,
    /// Cell of the loop, x first.
    at: [u64; 3],
    iteration: u64,
    iterations: u64,
    values: Option<Box<Values>>,
}

/// Bytes for a cube of `n` cells a side.
const fn bytes(n: u64) -> u64 {
    let pitch = n / 2 * 2 + 1;
    pitch * pitch * n * (6 * 8 + 3 * VECTOR) + n * 5 * BLOCK
}

impl Bt {
    fn new(n: u64, iterations: u64, seed: u64, verify: bool, space: &mut AddressSpace) -> Self {
        let pitch = n / 2 * 2 + 1;
        let cells = pitch * pitch * n;
        let all = space.data(bytes(n));
        let mut next = all.base;
        let mut array = |bytes: u64| {
            next += bytes;
            Region { base: next - bytes, bytes }
        };
        let values = verify.then(|| {
            let zero = [[0.0; 5]; 5];
            let start = |i: u64| std::array::from_fn(|m| 1.0 + unit(hash2(5 * i + m as u64, seed)));
            Box::new(Values {
                u: (0..cells).map(start).collect(),
                rhs: vec![[0.0; 5]; cells as usize],
                line: vec![[zero; 3]; n as usize],
                reduced: vec![[zero; 3]; n as usize],
                b: vec![[0.0; 5]; n as usize],
                residual: 0.0,
                seed,
            })
        });
        Self {
            n,
            pitch,
            scalars: std::array::from_fn(|_| array(cells * 8)),
            forcing: array(cells * VECTOR),
            u: array(cells * VECTOR),
            rhs: array(cells * VECTOR),
            fjac: array(n * BLOCK),
            njac: array(n * BLOCK),
            lhs: array(n * 3 * BLOCK),
            phase: Phase::Rhs(0),
            at: [0; 3],
            iteration: 0,
            iterations,
            values,
        }
    }

    /// Goes to the first cell of the first line of a sweep.
    fn enter_sweep(&mut self, dimension: usize) {
        self.phase = Phase::Solve(dimension, Loop::Jacobians);
        self.at = [1; 3];
        self.at[dimension] = 0;
    }

    const fn cell(&self, at: [u64; 3]) -> u64 {
        (at[2] * self.pitch + at[1]) * self.pitch + at[0]
    }
    /// Distance of neighbouring cells in a dimension, in cells.
    const fn stride(&self, dimension: usize) -> u64 {
        [1, self.pitch, self.pitch * self.pitch][dimension]
    }
    /// Address of one of the three blocks of a cell in `lhs`: left (0), diagonal (1), right (2).
    const fn block(&self, i: u64, which: u64) -> u64 {
        self.lhs.at(3 * i + which, BLOCK)
    }

    /// One cell of a pass of `compute_rhs`.
    fn rhs_cell(&mut self, m: &mut Recorder, pass: u64) {
        let cell = self.cell(self.at);
        let (u, rhs) = (self.u.at(cell, VECTOR), self.rhs.at(cell, VECTOR));
        match pass {
            0 => {
                m.load_each(POINT_U, u, 8, 5);
                for array in self.scalars {
                    m.store(POINT_STORE, array.at(cell, 8), 8);
                }
            }
            1 => {
                for component in 0..5 {
                    m.load(FORCING, self.forcing.at(cell, VECTOR) + 8 * component, 8);
                    m.store(RHS_COPY, rhs + 8 * component, 8);
                }
            }
            5 => {
                for component in 0..5 {
                    m.load(SCALE_LOAD, rhs + 8 * component, 8);
                    m.store(SCALE_STORE, rhs + 8 * component, 8);
                }
            }
            _ => self.flux(m, cell, pass as usize - 2),
        }
        let stride =
            if (2..5).contains(&pass) { self.stride(pass as usize - 2) as usize } else { 0 };
        let Some(x) = &mut self.values else { return };
        let c = cell as usize;
        for component in 0..5 {
            let rhs = &mut x.rhs[c][component];
            match pass {
                0 => {}
                1 => *rhs = unit(hash2(cell, x.seed ^ component as u64)),
                5 => *rhs *= DT,
                _ => {
                    let (l, r) = (x.u[c - stride][component], x.u[c + stride][component]);
                    *rhs += DIFFUSION * (l - 2.0 * x.u[c][component] + r);
                }
            }
        }
    }

    /// Fluxes and fourth-order dissipation of an inner cell in a dimension.
    fn flux(&self, m: &mut Recorder, cell: u64, dimension: usize) {
        let stride = self.stride(dimension);
        for array in self.scalars {
            for near in [cell - stride, cell, cell + stride] {
                m.load(FLUX_SCALARS, array.at(near, 8), 8);
            }
        }
        // The dissipation reaches two cells far, except beside the boundary.
        let here = self.at[dimension];
        let from = if here >= 2 { cell - 2 * stride } else { cell - stride };
        let to = if here + 2 < self.n { cell + 2 * stride } else { cell + stride };
        for component in 0..5 {
            let rhs = self.rhs.at(cell, VECTOR) + 8 * component;
            m.load(FLUX_RHS, rhs, 8);
            for near in (from..=to).step_by(stride as usize) {
                m.load(FLUX_U, self.u.at(near, VECTOR) + 8 * component, 8);
            }
            m.store(FLUX_STORE, rhs, 8);
        }
    }

    /// Jacobians of one cell of the line.
    fn jacobians(&self, m: &mut Recorder, i: u64) {
        let cell = self.cell(self.at);
        // rho_i, qs and square, in the order of the common block 4, 3 and 5.
        for array in [4, 3, 5] {
            m.load(JAC_SCALARS, self.scalars[array].at(cell, 8), 8);
        }
        m.load_each(JAC_U, self.u.at(cell, VECTOR), 8, 5);
        m.store_each(JAC_STORE, self.fjac.at(i, BLOCK), 8, 25);
        m.store_each(JAC_STORE, self.njac.at(i, BLOCK), 8, 25);
    }

    /// The three blocks of one cell of the line.
    fn blocks(&mut self, m: &mut Recorder, i: u64, dimension: usize) {
        let inner = i > 0 && i + 1 < self.n;
        if inner {
            for (array, near) in [
                (self.fjac, i - 1),
                (self.njac, i - 1),
                (self.njac, i),
                (self.fjac, i + 1),
                (self.njac, i + 1),
            ] {
                m.load_each(LHS_LOAD, array.at(near, BLOCK), 8, 25);
            }
        }
        m.store_each(LHS_STORE, self.block(i, 0), 8, 75);
        let (cell, stride) = (self.cell(self.at) as usize, self.stride(dimension) as usize);
        let Some(x) = &mut self.values else { return };
        // Flux Jacobian: a dense block of small numbers that depends on the cell.
        let jacobian = |u: &Vector| -> Block {
            std::array::from_fn(|r| std::array::from_fn(|c| (u[r] * u[c] / (1.0 + u[0])).sin()))
        };
        let own = &mut x.line[i as usize];
        *own = if inner {
            let diagonal = identity(1.0 + 2.0 * DT * DIFFUSION);
            let off = identity(-DT * DIFFUSION);
            [
                add_scaled(&off, -DT, &jacobian(&x.u[cell - stride])),
                diagonal,
                add_scaled(&off, DT, &jacobian(&x.u[cell + stride])),
            ]
        } else {
            [identity(0.0), identity(1.0), identity(0.0)]
        };
        x.reduced[i as usize] = *own;
        x.b[i as usize] = x.rhs[cell];
    }

    /// Eliminates the left block of one cell and inverts the diagonal one.
    fn forward(&mut self, m: &mut Recorder, i: u64, dimension: usize) {
        let (cell, stride) = (self.cell(self.at), self.stride(dimension));
        let rhs = self.rhs.at(cell, VECTOR);
        let (diagonal, right) = (self.block(i, 1), self.block(i, 2));
        if i > 0 {
            m.load_each(MATVEC, self.block(i, 0), 8, 25);
            m.load_each(MATVEC, self.rhs.at(cell - stride, VECTOR), 8, 5);
            m.load_each(MATVEC, rhs, 8, 5);
            m.store_each(MATVEC_STORE, rhs, 8, 5);
            m.load_each(MATMUL, self.block(i, 0), 8, 25);
            m.load_each(MATMUL, self.block(i - 1, 2), 8, 25);
            m.load_each(MATMUL, diagonal, 8, 25);
            m.store_each(MATMUL_STORE, diagonal, 8, 25);
        }
        for (block, length) in [(diagonal, 25), (right, 25), (rhs, 5)] {
            // The last cell has no right block (`binvrhs`).
            if block != right || i + 1 < self.n {
                m.load_each(BINV, block, 8, length);
                m.store_each(BINV_STORE, block, 8, length);
            }
        }
        let Some(x) = &mut self.values else { return };
        let (before, from) = x.reduced.split_at_mut(i as usize);
        let [left, diagonal, right] = &mut from[0];
        let mut b = x.rhs[cell as usize];
        if let Some(previous) = before.last() {
            matvec_sub(left, &x.rhs[(cell - stride) as usize], &mut b);
            matmul_sub(left, &previous[2], diagonal);
        }
        binvcrhs(diagonal, right, &mut b);
        x.rhs[cell as usize] = b;
    }

    /// Substitutes the cell to the right into one cell.
    fn backward(&mut self, m: &mut Recorder, i: u64, dimension: usize) {
        let (cell, stride) = (self.cell(self.at), self.stride(dimension));
        if i + 1 < self.n {
            let rhs = self.rhs.at(cell, VECTOR);
            m.load_each(BACK_LOAD, self.block(i, 2), 8, 25);
            m.load_each(BACK_LOAD, self.rhs.at(cell + stride, VECTOR), 8, 5);
            m.load_each(BACK_LOAD, rhs, 8, 5);
            m.store_each(BACK_STORE, rhs, 8, 5);
        }
        let Some(x) = &mut self.values else { return };
        let (c, s) = (cell as usize, stride as usize);
        if i + 1 < self.n {
            let mut own = x.rhs[c];
            matvec_sub(&x.reduced[i as usize][2], &x.rhs[c + s], &mut own);
            x.rhs[c] = own;
        }
        if i == 0 {
            for j in 0..self.n as usize {
                let [left, diagonal, right] = &x.line[j];
                let at = c + j * s;
                let mut rest = x.b[j];
                matvec_sub(diagonal, &x.rhs[at], &mut rest);
                if j > 0 {
                    matvec_sub(left, &x.rhs[at - s], &mut rest);
                }
                if j + 1 < self.n as usize {
                    rest.iter_mut().zip(times(right, &x.rhs[at + s])).for_each(|(r, p)| *r -= p);
                }
                x.residual = rest.iter().fold(x.residual, |most, r| most.max(r.abs()));
            }
        }
    }

    fn add(&mut self, m: &mut Recorder) {
        let cell = self.cell(self.at);
        for component in 0..5 {
            let at = self.u.at(cell, VECTOR) + 8 * component;
            m.load(ADD_LOAD, at, 8);
            m.load(ADD_LOAD, self.rhs.at(cell, VECTOR) + 8 * component, 8);
            m.store(ADD_STORE, at, 8);
        }
        if let Some(x) = &mut self.values {
            let c = cell as usize;
            for component in 0..5 {
                x.u[c][component] += x.rhs[c][component];
            }
        }
    }

    /// First and end index of a loop over cells: everything, or what is not boundary.
    const fn bounds(&self, whole: bool) -> (u64, u64) {
        if whole { (0, self.n) } else { (1, self.n - 1) }
    }

    /// The next cell of a loop over cells, x fastest. `false` when the loop has ended.
    fn next_cell(&mut self, whole: bool) -> bool {
        let (first, end) = self.bounds(whole);
        for dimension in 0..3 {
            self.at[dimension] += 1;
            if self.at[dimension] < end {
                return true;
            }
            self.at[dimension] = first;
        }
        false
    }

    /// The next cell of the line's loop, or the next loop, line, sweep, phase.
    fn advance_line(&mut self, dimension: usize, part: Loop) {
        let last = self.n - 1;
        let i = &mut self.at[dimension];
        match part {
            Loop::Backward if *i > 0 => return *i -= 1,
            Loop::Backward => {}
            _ if *i < last => return *i += 1,
            Loop::Forward => return self.phase = Phase::Solve(dimension, Loop::Backward),
            Loop::Jacobians | Loop::Blocks => {
                *i = 0;
                let next = if part == Loop::Jacobians { Loop::Blocks } else { Loop::Forward };
                return self.phase = Phase::Solve(dimension, next);
            }
        }
        // The two other dimensions, the lower one fastest.
        for other in (0..3).filter(|&d| d != dimension) {
            self.at[other] += 1;
            if self.at[other] < last {
                return self.phase = Phase::Solve(dimension, Loop::Jacobians);
            }
            self.at[other] = 1;
        }
        if dimension < 2 {
            self.enter_sweep(dimension + 1);
        } else {
            (self.phase, self.at) = (Phase::Add, [1; 3]);
        }
    }
}

impl Kernel for Bt {
    /// One cell of one loop.
    fn step(&mut self, m: &mut Recorder) -> bool {
        match self.phase {
            Phase::Rhs(pass) => {
                self.rhs_cell(m, pass);
                if !self.next_cell(pass < 2) {
                    let pass = pass + 1;
                    if pass == RHS_PASSES {
                        self.enter_sweep(0);
                    } else {
                        self.phase = Phase::Rhs(pass);
                        self.at = [self.bounds(pass < 2).0; 3];
                    }
                }
            }
            Phase::Solve(dimension, part) => {
                let i = self.at[dimension];
                match part {
                    Loop::Jacobians => self.jacobians(m, i),
                    Loop::Blocks => self.blocks(m, i, dimension),
                    Loop::Forward => self.forward(m, i, dimension),
                    Loop::Backward => self.backward(m, i, dimension),
                }
                self.advance_line(dimension, part);
            }
            Phase::Add => {
                self.add(m);
                if !self.next_cell(false) {
                    (self.phase, self.at) = (Phase::Rhs(0), [0; 3]);
                    self.iteration += 1;
                    return !self.iteration.is_multiple_of(self.iterations);
                }
            }
        }
        true
    }

    fn verify(&self) -> Result<(), String> {
        match &self.values {
            Some(x) if x.residual.is_nan() || x.residual > RESIDUAL_MAX => Err(format!(
                "a line's residual is {:e} and should be at most {RESIDUAL_MAX:e}",
                x.residual
            )),
            _ => Ok(()),
        }
    }
}

fn make(spec: &WorkloadSpec, options: &Options) -> Result<Box<dyn Source>, WorkloadError> {
    let mut n = 5;
    while bytes(n + 1) <= spec.footprint {
        n += 1;
    }
    let (iterations, verify) = (options.get("iterations"), options.is_set("verify"));
    let mut space = AddressSpace::new();
    let mut kernel = Bt::new(n, iterations, spec.seed, verify, &mut space);
    if let (Populate::Yes, Some(sweep)) = (spec.populate, options.get("begin").checked_sub(1)) {
        kernel.enter_sweep(sweep as usize);
    }
    let about = About {
        name: WORKLOAD.name,
        description: format!("NPB BT, {n} x {n} x {n} cells"),
        approximations: &[
            "5x5 blocks are loaded and stored once per routine; the flux formulas are simplified",
        ],
    };
    Ok(Driver::boxed(about, spec, &space, kernel))
}

#[cfg(test)]
mod tests;
