//! `stream`: McCalpin's STREAM.
//!
//! Source: STREAM 5.10 (`stream.c`): static arrays a, b, c of doubles; ten times copy `c = a`,
//! scale `b = 3c`, add `c = a + b`, triad `a = b + 3c`.
//!
//! Real: order, addresses and sizes of all accesses, vectors of 16 bytes as gcc 12.2 -O2 compiles
//! the loops for x86-64; the copy, which gcc turns into a call of `memcpy`, is the same loop here.
//! Implicit: the values, on which no address depends; they are kept with `verify=1` and compared
//! with the closed form as `checkSTREAMresults` does.

use crate::driver::{About, Driver, Kernel};
use crate::layout::{AddressSpace, Region};
use crate::recorder::{Recorder, Site};
use crate::spec::{Options, Setting, WorkloadError, WorkloadSpec};
use crate::{VERIFY, Workload};
use nestwalk_types::Source;

/// This workload's entry in the list.
pub(crate) const WORKLOAD: Workload = Workload {
    name: "stream",
    summary: "STREAM: copy, scale, add and triad over three arrays of doubles",
    footprint: 4 << 30,
    settings: &[
        Setting { name: "times", summary: "iterations", default: 10, range: (1, 1 << 20) },
        VERIFY,
    ],
    make,
};

const COPY: [Site; 2] = [Site::new(0, 4), Site::new(1, 1)];
const SCALE: [Site; 2] = [Site::new(2, 4), Site::new(3, 2)];
const ADD: [Site; 3] = [Site::new(4, 4), Site::new(5, 1), Site::new(6, 1)];
const TRIAD: [Site; 3] = [Site::new(7, 4), Site::new(8, 2), Site::new(9, 1)];

const VECTOR: u64 = 16;
const SCALAR: f64 = 3.0;
/// Vectors per step.
const STEP: u64 = 64;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Pass {
    Copy,
    Scale,
    Add,
    Triad,
}

struct Stream {
    arrays: [Region; 3],
    vectors: u64,
    times: u64,
    time: u64,
    pass: Pass,
    vector: u64,
    values: Option<[Vec<f64>; 3]>,
}

impl Stream {
    fn new(vectors: u64, times: u64, verify: bool, space: &mut AddressSpace) -> Self {
        let bytes = vectors * VECTOR;
        let all = space.data(3 * bytes);
        let arrays = [0, 1, 2].map(|i| Region { base: all.base + i * bytes, bytes });
        let filled = |value: f64| vec![value; 2 * vectors as usize];
        // STREAM doubles a, once 1, while it checks its clock.
        let values = verify.then(|| [filled(2.0), filled(2.0), filled(0.0)]);
        Self { arrays, vectors, times, time: 0, pass: Pass::Copy, vector: 0, values }
    }

    fn compute(&mut self, from: u64, to: u64) {
        let Some([a, b, c]) = &mut self.values else { return };
        for i in 2 * from as usize..2 * to as usize {
            match self.pass {
                Pass::Copy => c[i] = a[i],
                Pass::Scale => b[i] = SCALAR * c[i],
                Pass::Add => c[i] = a[i] + b[i],
                Pass::Triad => a[i] = b[i] + SCALAR * c[i],
            }
        }
    }
}

impl Kernel for Stream {
    fn step(&mut self, m: &mut Recorder) -> bool {
        let to = (self.vector + STEP).min(self.vectors);
        let [a, b, c] = self.arrays.map(|r| r.base);
        let range = self.vector * VECTOR..to * VECTOR;
        let mut one = |sites: [Site; 2], from: u64, into: u64| {
            for at in range.clone().step_by(VECTOR as usize) {
                m.load(sites[0], from + at, VECTOR as u32);
                m.store(sites[1], into + at, VECTOR as u32);
            }
        };
        match self.pass {
            Pass::Copy => one(COPY, a, c),
            Pass::Scale => one(SCALE, c, b),
            Pass::Add | Pass::Triad => {
                let add = self.pass == Pass::Add;
                let (sites, x, y, z) = if add { (ADD, a, b, c) } else { (TRIAD, c, b, a) };
                for at in range.step_by(VECTOR as usize) {
                    m.load(sites[0], x + at, VECTOR as u32);
                    m.load(sites[1], y + at, VECTOR as u32);
                    m.store(sites[2], z + at, VECTOR as u32);
                }
            }
        }
        self.compute(self.vector, to);
        self.vector = to;
        if self.vector == self.vectors {
            self.vector = 0;
            self.pass = match self.pass {
                Pass::Copy => Pass::Scale,
                Pass::Scale => Pass::Add,
                Pass::Add => Pass::Triad,
                Pass::Triad => {
                    self.time += 1;
                    Pass::Copy
                }
            };
            return self.pass != Pass::Copy || !self.time.is_multiple_of(self.times);
        }
        true
    }

    fn verify(&self) -> Result<(), String> {
        let Some(values) = &self.values else { return Ok(()) };
        let (mut a, mut b, mut c) = (2.0, 2.0, 0.0);
        for _ in 0..self.time {
            c = a;
            b = SCALAR * c;
            c = a + b;
            a = b + SCALAR * c;
        }
        for ((name, values), expected) in ["a", "b", "c"].iter().zip(values).zip([a, b, c]) {
            // After many iterations both are infinite, which is equal as well.
            let wrong = |v: &f64| v.total_cmp(&expected).is_ne();
            if let Some(i) = values.iter().position(wrong) {
                return Err(format!("{name}[{i}] is {} and should be {expected}", values[i]));
            }
        }
        Ok(())
    }
}

fn make(spec: &WorkloadSpec, options: &Options) -> Result<Box<dyn Source>, WorkloadError> {
    let vectors = spec.footprint / (3 * VECTOR);
    let mut space = AddressSpace::new();
    let kernel = Stream::new(vectors, options.get("times"), options.is_set("verify"), &mut space);
    let about = About {
        name: WORKLOAD.name,
        description: format!("STREAM, three arrays of {} doubles", 2 * vectors),
        approximations: &[],
    };
    Ok(Driver::boxed(about, spec, &space, kernel))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::run_to_end;

    #[test]
    fn arrays_equal_the_closed_form_and_accesses_are_ten_per_vector() {
        let mut k = Stream::new(1001, 10, true, &mut AddressSpace::new());
        assert_eq!(run_to_end(&mut k), 10 * 1001 * (2 + 2 + 3 + 3));
        assert_eq!(k.verify(), Ok(()));
        run_to_end(&mut k);
        assert_eq!(k.verify(), Ok(()));
        // One iteration maps a to 3a + 3(a + 3a) = 15a.
        let a = k.values.as_ref().unwrap()[0][0];
        assert!((a / (2.0 * 15f64.powi(20)) - 1.0).abs() < 1e-12);
        k.values.as_mut().unwrap()[1][77] += 1e30;
        assert!(k.verify().unwrap_err().starts_with("b[77]"));
    }
}
