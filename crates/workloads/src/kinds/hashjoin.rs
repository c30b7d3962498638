//! `hashjoin`: the no-partitioning hash join of a primary-key and a foreign-key relation.
//!
//! Source: `NPO_st` of Balkesen et al., "Main-memory hash joins on multi-core CPUs" (ICDE 2013),
//! with 8-byte keys and payloads: buckets of two tuples with a latch, a count and an overflow
//! pointer (48 bytes), half as many as build tuples, hash by the key's low bits. The build relation
//! R has the keys 1 to |R| in random order, |R| the largest power of two such that a probe relation
//! S of the same length fits; S takes the rest of the footprint. Its keys are drawn uniformly; of
//! them `match_percent` have a partner.
//!
//! Real: clearing, building and probing, in order, with the counts that the build finds in the
//! buckets. Implicit: the tuples, R by a bijection. Since every bucket gets exactly two keys, its
//! state follows from which of the two comes first in R. The result, the number of matches, is
//! counted.
//! The table is built before the region of interest where memory is populated; `build=1` measures
//! the build there, too. Instructions: 21 per tuple probed, 22 per tuple built in, as gcc 12.2 -O2
//! compiles the loops.

use crate::data::{hash2, log2_floor, permutation_key};
use crate::driver::{About, Driver, Kernel};
use crate::layout::{AddressSpace, Region};
use crate::recorder::{Recorder, Site};
use crate::spec::{Options, Populate, Setting, WorkloadError, WorkloadSpec};
use crate::{REGION, Workload};
use nestwalk_types::{Permutation, Source, mix64};

/// This workload's entry in the list.
pub(crate) const WORKLOAD: Workload = Workload {
    name: "hashjoin",
    summary: "no-partitioning hash join: probes into one large hash table",
    footprint: 4 << 30,
    settings: &[
        Setting {
            name: "match_percent",
            summary: "probe tuples that have a partner, percent",
            default: 100,
            range: (1, 100),
        },
        Setting {
            name: "build",
            summary: "1 measures the build of the hash table, too",
            default: 0,
            range: (0, 1),
        },
        REGION,
    ],
    make,
};

const CLEAR: Site = Site::new(0, 4);
const R_KEY: Site = Site::new(1, 3);
const BUILD_COUNT: Site = Site::new(2, 5);
const BUILD_NEXT: Site = Site::new(3, 1);
const COUNT_STORE: Site = Site::new(4, 5);
const TUPLE_LOAD: [Site; 2] = [Site::new(5, 3), Site::new(6, 1)];
const TUPLE_STORE: [Site; 2] = [Site::new(7, 3), Site::new(8, 1)];
const S_KEY: Site = Site::new(9, 6);
const PROBE_COUNT: Site = Site::new(10, 6);
const PROBE_KEY: [Site; 2] = [Site::new(11, 3), Site::new(12, 4)];
const PROBE_NEXT: Site = Site::new(13, 2);

const TUPLE: u64 = 16;
const BUCKET: u64 = 48;
const COUNT_AT: u64 = 4;
const TUPLES_AT: u64 = 8;
const NEXT_AT: u64 = 40;
/// Tuples, or 16-byte pieces of the table to clear, per step.
const STEP: u64 = 32;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Clear,
    Build,
    Probe,
}

struct HashJoin {
    r: Region,
    s: Region,
    table: Region,
    /// Order of R: tuple i has the key `order(i) + 1`.
    order: Permutation,
    r_tuples: u64,
    s_tuples: u64,
    /// Keys of S are drawn from `1..=s_keys`.
    s_keys: u64,
    seed: u64,
    first: Phase,
    phase: Phase,
    next: u64,
    matches: u64,
}

impl HashJoin {
    fn new(
        (r_bits, s_tuples): (u32, u64),
        match_percent: u64,
        seed: u64,
        first: Phase,
        space: &mut AddressSpace,
    ) -> Self {
        let r_tuples = 1u64 << r_bits;
        Self {
            r: space.malloc(r_tuples * TUPLE),
            s: space.malloc(s_tuples * TUPLE),
            // posix_memalign to a cache line: an mmap whose data begins a line behind the header.
            table: {
                let map = space.mmap(r_tuples / 2 * BUCKET + 64);
                Region { base: map.base + 64, bytes: map.bytes - 64 }
            },
            order: Permutation::new(r_bits, permutation_key(mix64(seed))),
            r_tuples,
            s_tuples,
            s_keys: r_tuples * 100 / match_percent,
            seed,
            first,
            phase: first,
            next: 0,
            matches: 0,
        }
    }

    const fn buckets(&self) -> u64 {
        self.r_tuples / 2
    }
    const fn bucket_of(&self, key: u64) -> u64 {
        self.table.at(key & (self.buckets() - 1), BUCKET)
    }
    /// Key of tuple `i` of R.
    const fn r_key(&self, i: u64) -> u64 {
        self.order.apply(i) + 1
    }
    /// Key of tuple `i` of S.
    const fn s_key(&self, i: u64) -> u64 {
        ((hash2(i, self.seed) as u128 * self.s_keys as u128) >> 64) as u64 + 1
    }

    fn clear(&self, m: &mut Recorder) -> bool {
        let pieces = self.table.bytes / 16;
        let to = (self.next + STEP).min(pieces);
        m.store_each(CLEAR, self.table.base + 16 * self.next, 16, to - self.next);
        to == pieces
    }

    fn build(&self, m: &mut Recorder) -> bool {
        let to = (self.next + STEP).min(self.r_tuples);
        for i in self.next..to {
            let tuple = self.r.at(i, TUPLE);
            m.load(R_KEY, tuple, 8);
            let key = self.r_key(i);
            let bucket = self.bucket_of(key);
            m.load(BUILD_COUNT, bucket + COUNT_AT, 4);
            m.load(BUILD_NEXT, bucket + NEXT_AT, 8);
            // The other key of this bucket is half the relation away; it is there if it came first.
            let other = self.order.invert((key - 1) ^ self.buckets());
            let count = u64::from(other < i);
            m.store(COUNT_STORE, bucket + COUNT_AT, 4);
            let into = bucket + TUPLES_AT + TUPLE * count;
            m.load(TUPLE_LOAD[0], tuple, 8);
            m.load(TUPLE_LOAD[1], tuple + 8, 8);
            m.store(TUPLE_STORE[0], into, 8);
            m.store(TUPLE_STORE[1], into + 8, 8);
        }
        to == self.r_tuples
    }

    fn probe(&mut self, m: &mut Recorder) -> bool {
        let to = (self.next + STEP).min(self.s_tuples);
        for i in self.next..to {
            m.load(S_KEY, self.s.at(i, TUPLE), 8);
            let key = self.s_key(i);
            let bucket = self.bucket_of(key);
            m.load(PROBE_COUNT, bucket + COUNT_AT, 4);
            // Both keys are compared even after a match; one is a match at most.
            m.load(PROBE_KEY[0], bucket + TUPLES_AT, 8);
            m.load(PROBE_KEY[1], bucket + TUPLES_AT + TUPLE, 8);
            self.matches += u64::from(key <= self.r_tuples);
            m.load(PROBE_NEXT, bucket + NEXT_AT, 8);
        }
        to == self.s_tuples
    }
}

impl Kernel for HashJoin {
    fn step(&mut self, m: &mut Recorder) -> bool {
        if self.phase == self.first && self.next == 0 {
            self.matches = 0;
        }
        let over = match self.phase {
            Phase::Clear => self.clear(m),
            Phase::Build => self.build(m),
            Phase::Probe => self.probe(m),
        };
        self.next += STEP;
        if !over {
            return true;
        }
        self.next = 0;
        let ended = self.phase == Phase::Probe;
        self.phase = match self.phase {
            Phase::Clear => Phase::Build,
            Phase::Build => Phase::Probe,
            Phase::Probe => self.first,
        };
        !ended
    }
}

fn make(spec: &WorkloadSpec, options: &Options) -> Result<Box<dyn Source>, WorkloadError> {
    let r_bits = log2_floor(spec.footprint / (2 * TUPLE + BUCKET / 2));
    let s_tuples = ((spec.footprint - 64) - ((TUPLE + BUCKET / 2) << r_bits)) / TUPLE;
    let built = spec.populate == Populate::Yes && !options.is_set("build");
    let first = if built { Phase::Probe } else { Phase::Clear };
    let percent = options.get("match_percent");
    let mut space = AddressSpace::with_region(options.is_set(REGION.name));
    let kernel = HashJoin::new((r_bits, s_tuples), percent, spec.seed, first, &mut space);
    let about = About {
        name: WORKLOAD.name,
        description: format!(
            "no-partitioning hash join of 2^{r_bits} with {s_tuples} tuples of 16 bytes, \
             {percent} percent of them with a partner"
        ),
        approximations: &[],
    };
    Ok(Driver::boxed(about, spec, &space, kernel))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::run_to_end;
    use nestwalk_types::Batch;
    use std::collections::HashSet;

    #[test]
    fn matches_are_those_of_a_set() {
        for percent in [100, 40, 1] {
            let size = (12, 9000);
            let mut j = HashJoin::new(size, percent, 3, Phase::Clear, &mut AddressSpace::new());
            let keys: HashSet<u64> = (0..4096).map(|i| j.r_key(i)).collect();
            assert_eq!(keys.len(), 4096, "primary keys");
            let expected = (0..9000).filter(|&i| keys.contains(&j.s_key(i))).count() as u64;
            let accesses = run_to_end(&mut j);
            assert_eq!(j.matches, expected);
            assert!(expected.abs_diff(90 * percent) < 300);
            assert_eq!(accesses, 2048 * 3 + 4096 * 8 + 9000 * 5);
        }
    }

    #[test]
    fn the_build_fills_a_real_table() {
        // A table with real counts gets its tuples at the places that the build stores to.
        let size = (10, 100);
        let mut j = HashJoin::new(size, 100, 5, Phase::Build, &mut AddressSpace::new());
        let mut counts = vec![0u64; 512];
        for i in 0..1024 {
            let (mut m, mut batch) = (Recorder::new(u64::MAX), Batch::default());
            j.next = i;
            j.build(&mut m);
            m.take_into(&mut batch);
            let bucket = (j.r_key(i) & 511) as usize;
            let base = j.table.base + 48 * bucket as u64;
            let stores: Vec<u64> =
                batch.runs.iter().filter(|r| r.flags.is_store()).map(|r| r.gva.value()).collect();
            // The count, then, after the tuple was loaded from R, the tuple.
            assert_eq!(stores[..2], [base + COUNT_AT, base + TUPLES_AT + TUPLE * counts[bucket]]);
            counts[bucket] += 1;
        }
        assert!(counts.iter().all(|&c| c == 2));
    }
}
