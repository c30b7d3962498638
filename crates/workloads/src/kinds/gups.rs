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
//!
//! `mirror=1` is the variant that vMitosis was measured with (ASPLOS 2021, artifact, `gups.c` of
//! vmitosis-workloads): each number updates `Table[ran[j] % TableSize]` and `Table[TableSize - ran[j] %
//! TableSize]`, 2^30 numbers in all, 17 instructions each in the artifact's program. One of the 17 is a
//! division of 64 bits, whose time is not modelled; its `ran` is on the heap, here on the stack.

use crate::data::log2_floor;
use crate::driver::{About, Driver, Kernel};
use crate::layout::{AddressSpace, Region};
use crate::recorder::{Recorder, Site};
use crate::spec::{Options, Setting, WorkloadError, WorkloadSpec};
use crate::{VERIFY, Workload};
use nestwalk_types::{Source, mix64};

/// This workload's entry in the list.
pub(crate) const WORKLOAD: Workload = Workload {
    name: "gups",
    summary: "HPC Challenge RandomAccess: xor of random words of one large table",
    footprint: 4 << 30,
    settings: &[VERIFY, MIRROR],
    make,
};

const MIRROR: Setting = Setting {
    name: "mirror",
    summary: "1 updates a second word for each number, as far from the table's end (vMitosis)",
    default: 0,
    range: (0, 1),
};

const RAN_LOAD: Site = Site::new(0, 3);
const RAN_STORE: Site = Site::new(1, 9);
const TABLE_LOAD: Site = Site::new(2, 1);
const TABLE_STORE: Site = Site::new(2, 0);
const FIRST_LOAD: Site = Site::new(2, 3);
const SECOND_LOAD: Site = Site::new(3, 2);
const SECOND_STORE: Site = Site::new(3, 0);

const STREAMS: usize = 128;
/// Numbers of the variant with two updates each, in all streams.
const MIRRORED: u64 = 1 << 30;
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

/// Random numbers of one run of the algorithm.
const fn numbers(words: u64, mirror: bool) -> u64 {
    if mirror { MIRRORED } else { 4 * words }
}

struct Gups {
    table: Region,
    stack: u64,
    ran: [u64; STREAMS],
    words: u64,
    mirror: bool,
    rounds: u64,
    values: Option<Vec<u64>>,
    /// States of the streams when this run of the algorithm began, for the verification.
    began: [u64; STREAMS],
    ended: bool,
}

impl Gups {
    fn new(words: u64, seed: u64, options: (bool, bool), space: &mut AddressSpace) -> Self {
        let (verify, mirror) = options;
        // The variant's second update reaches one word beyond the table.
        let held = words + 2 * u64::from(mirror);
        let table = space.malloc(held * 8);
        let stack = space.stack();
        // HPCC begins at 0; another seed begins elsewhere in the same sequence.
        let first = if seed == 0 { 0 } else { mix64(seed) % PERIOD };
        let apart = numbers(words, mirror) / STREAMS as u64;
        let ran = std::array::from_fn(|j| starts((first + apart * j as u64) % PERIOD));
        Self {
            table,
            stack: stack.base + stack.bytes - RAN_BELOW_TOP,
            ran,
            words,
            mirror,
            rounds: 0,
            values: verify.then(|| (0..held).collect()),
            began: ran,
            ended: false,
        }
    }
}

/// What one number does to the table.
fn update(values: &mut [u64], word: u64, (words, mirror): (u64, bool), ran: u64) {
    values[word as usize] ^= ran;
    if mirror {
        values[(words - word) as usize] ^= ran;
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
            let word = ran & mask;
            let at = self.table.at(word, 8);
            m.load(if self.mirror { FIRST_LOAD } else { TABLE_LOAD }, at, 8);
            m.store(TABLE_STORE, at, 8);
            if self.mirror {
                let at = self.table.at(self.words - word, 8);
                m.load(SECOND_LOAD, at, 8);
                m.store(SECOND_STORE, at, 8);
            }
            if let Some(values) = &mut self.values {
                update(values, word, (self.words, self.mirror), ran);
            }
        }
        self.rounds += 1;
        let rounds = numbers(self.words, self.mirror) / STREAMS as u64;
        self.ended = self.rounds.is_multiple_of(rounds);
        !self.ended
    }

    fn verify(&self) -> Result<(), String> {
        let Some(values) = &self.values else { return Ok(()) };
        let mut values = values.clone();
        let mut ran = self.began;
        for _ in 0..numbers(self.words, self.mirror) / STREAMS as u64 {
            for r in &mut ran {
                *r = advance(*r);
                update(&mut values, *r & (self.words - 1), (self.words, self.mirror), *r);
            }
        }
        let wrong = values.iter().zip(0..).filter(|&(&v, i)| v != i).count();
        if wrong == 0 { Ok(()) } else { Err(format!("{wrong} of {} words", self.words)) }
    }
}

fn make(spec: &WorkloadSpec, options: &Options) -> Result<Box<dyn Source>, WorkloadError> {
    let words = 1 << log2_floor(spec.footprint / 8);
    let mut space = AddressSpace::new();
    let set = (options.is_set("verify"), options.is_set(MIRROR.name));
    let kernel = Gups::new(words, spec.seed, set, &mut space);
    let twice = if set.1 { ", two of them for each number" } else { "" };
    let about = About {
        name: WORKLOAD.name,
        description: format!("HPCC RandomAccess, table of {words} words of 8 bytes{twice}"),
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
    fn a_mirrored_number_updates_two_words_as_far_from_either_end() {
        let mut space = AddressSpace::new();
        let mut k = Gups::new(1 << 14, 0, (true, true), &mut space);
        let mut m = Recorder::new(u64::MAX);
        k.step(&mut m);
        let mut wanted: Vec<u64> = (0..(1 << 14) + 2).collect();
        for ran in k.ran {
            let word = ran & ((1 << 14) - 1);
            wanted[word as usize] ^= ran;
            wanted[(1 << 14) - word as usize] ^= ran;
        }
        assert_eq!(k.values, Some(wanted));
    }

    #[test]
    fn updates_twice_restore_the_table() {
        for seed in [0, 1] {
            let mut k = Gups::new(1 << 14, seed, (true, false), &mut AddressSpace::new());
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
