//! `gups`: HPC Challenge RandomAccess.
//!
//! Source: HPCC 1.5.0, `RandomAccess/core_single_cpu.c`: 128 streams of a linear-feedback shift
//! register, each update `Table[ran[j] & (TableSize - 1)] ^= ran[j]`, four updates per word of the
//! table. The table is the largest power of two that fits. Its verification is HPCC's too: the same
//! updates once more restore `Table[i] == i`.
//!
//! Real: order, addresses and sizes of all accesses: `ran[j]` on the stack is loaded and stored,
//! the table's word is loaded and stored by one `xor` to memory, two accesses of one instruction.
//! Implicit: the table's values, on which no address depends; they are kept with `verify=1`.
//! Instructions: 13 per update, as gcc 12.2 -O2 compiles the loop.

use crate::data::log2_floor;
use crate::driver::{About, Driver, Kernel};
use crate::layout::{AddressSpace, Region};
use crate::recorder::{Recorder, Site};
use crate::spec::{Options, WorkloadError, WorkloadSpec};
use crate::{VERIFY, Workload};
use nestwalk_types::{Source, mix64};

/// This workload's entry in the list.
pub(crate) const WORKLOAD: Workload = Workload {
    name: "gups",
    summary: "HPC Challenge RandomAccess: xor of random words of one large table",
    footprint: 4 << 30,
    settings: &[VERIFY],
    make,
};

const RAN_LOAD: Site = Site::new(0, 3);
const RAN_STORE: Site = Site::new(1, 9);
const TABLE_LOAD: Site = Site::new(2, 1);
const TABLE_STORE: Site = Site::new(2, 0);

const STREAMS: usize = 128;
/// The primitive polynomial of HPCC, x^63 + x^2 + x + 1 in its bit order.
const POLYNOMIAL: u64 = 7;
/// Period of the register.
const PERIOD: u64 = 1_317_624_576_693_539_401;
/// Distance of `ran` below the top of the stack: the array, the frames of `main` and its callers,
/// arguments and environment.
const RAN_BELOW_TOP: u64 = 0x1400;

#[inline(always)]
const fn advance(ran: u64) -> u64 {
    (ran << 1) ^ if (ran as i64) < 0 { POLYNOMIAL } else { 0 }
}

/// The register's state after `n` steps from 1 (`HPCC_starts`).
fn starts(n: u64) -> u64 {
    let n = n % PERIOD;
    if n == 0 {
        return 1;
    }
    // powers[j] is x^2j: squaring a state maps bit j to it.
    let mut powers = [0u64; 64];
    let mut power = 1;
    for p in &mut powers {
        *p = power;
        power = advance(advance(power));
    }
    let mut ran = 2;
    for bit in (0..n.ilog2()).rev() {
        ran = (0..64).filter(|j| ran >> j & 1 == 1).fold(0, |sum, j| sum ^ powers[j]);
        if n >> bit & 1 == 1 {
            ran = advance(ran);
        }
    }
    ran
}

struct Gups {
    table: Region,
    stack: u64,
    ran: [u64; STREAMS],
    words: u64,
    rounds: u64,
    values: Option<Vec<u64>>,
    /// States of the streams when this run of the algorithm began, for the verification.
    began: [u64; STREAMS],
    ended: bool,
}

impl Gups {
    fn new(words: u64, seed: u64, verify: bool, space: &mut AddressSpace) -> Self {
        let table = space.malloc(words * 8);
        let stack = space.stack();
        // HPCC begins at 0; another seed begins elsewhere in the same sequence.
        let first = if seed == 0 { 0 } else { mix64(seed) % PERIOD };
        let apart = 4 * words / STREAMS as u64;
        let ran = std::array::from_fn(|j| starts((first + apart * j as u64) % PERIOD));
        Self {
            table,
            stack: stack.base + stack.bytes - RAN_BELOW_TOP,
            ran,
            words,
            rounds: 0,
            values: verify.then(|| (0..words).collect()),
            began: ran,
            ended: false,
        }
    }
}

impl Kernel for Gups {
    /// One update in each stream.
    fn step(&mut self, m: &mut Recorder) -> bool {
        if std::mem::take(&mut self.ended) {
            self.began = self.ran;
            if let Some(values) = &mut self.values {
                values.iter_mut().zip(0..).for_each(|(v, i)| *v = i);
            }
        }
        let mask = self.words - 1;
        for j in 0..STREAMS {
            let slot = self.stack + 8 * j as u64;
            m.load(RAN_LOAD, slot, 8);
            let ran = advance(self.ran[j]);
            self.ran[j] = ran;
            m.store(RAN_STORE, slot, 8);
            let at = self.table.at(ran & mask, 8);
            m.load(TABLE_LOAD, at, 8);
            m.store(TABLE_STORE, at, 8);
            if let Some(values) = &mut self.values {
                values[(ran & mask) as usize] ^= ran;
            }
        }
        self.rounds += 1;
        self.ended = self.rounds.is_multiple_of(4 * self.words / STREAMS as u64);
        !self.ended
    }

    fn verify(&self) -> Result<(), String> {
        let Some(values) = &self.values else { return Ok(()) };
        let mut values = values.clone();
        let mut ran = self.began;
        for _ in 0..4 * self.words / STREAMS as u64 {
            for r in &mut ran {
                *r = advance(*r);
                values[(*r & (self.words - 1)) as usize] ^= *r;
            }
        }
        let wrong = values.iter().zip(0..).filter(|&(&v, i)| v != i).count();
        if wrong == 0 { Ok(()) } else { Err(format!("{wrong} of {} words", self.words)) }
    }
}

fn make(spec: &WorkloadSpec, options: &Options) -> Result<Box<dyn Source>, WorkloadError> {
    let words = 1 << log2_floor(spec.footprint / 8);
    let mut space = AddressSpace::new();
    let kernel = Gups::new(words, spec.seed, options.is_set("verify"), &mut space);
    let about = About {
        name: WORKLOAD.name,
        description: format!("HPCC RandomAccess, table of {words} words of 8 bytes"),
        approximations: &[],
    };
    Ok(Driver::boxed(about, spec, &space, kernel))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::run_to_end;

    #[test]
    fn jumping_ahead_is_stepping() {
        let mut ran = 1;
        for n in 0..3000 {
            assert_eq!(starts(n), ran, "{n}");
            ran = advance(ran);
        }
        assert_eq!(starts(PERIOD + 5), starts(5));
    }

    #[test]
    fn updates_twice_restore_the_table() {
        for seed in [0, 1] {
            let mut k = Gups::new(1 << 14, seed, true, &mut AddressSpace::new());
            let accesses = run_to_end(&mut k);
            assert_eq!(accesses, 4 * 4 * (1 << 14), "four accesses per update, four per word");
            assert_eq!(k.verify(), Ok(()));
            assert!(k.values.as_ref().unwrap().iter().zip(0..).any(|(&v, i)| v != i));
            // A second run begins from a fresh table and can be verified as well.
            run_to_end(&mut k);
            assert_eq!(k.verify(), Ok(()));
            k.values.as_mut().unwrap()[5] ^= 1;
            assert!(k.verify().is_err());
        }
    }
}
