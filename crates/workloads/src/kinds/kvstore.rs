//! `kvstore`: a memcached-like cache under a zipfian load.
//!
//! Source: memcached 1.6 (`assoc.c`, `items.c`, `slabs.c`) under YCSB's load: keys of 23 bytes
//! (`user` and 19 digits), zipfian popularity with theta 0.99, `set_percent` SETs, the rest GETs.
//! The hash table has 8-byte bucket pointers, as many as a power of two that keeps it below 1.5
//! items per bucket; items have a 48-byte header (next, prev, h_next, time, exptime, nbytes,
//! refcount, flags, slab class, key length), 8 bytes CAS, key, and value, in the slab class of
//! memcached's default growth (1.25, 8-byte alignment) in preallocated memory (`-L`) carved into 1
//! MiB pages.
//!
//! Real: look-up along the hash chain with key comparison, reference counting, reading the value
//! line by line as the copy to the socket does; for SET, taking a free chunk, writing the item,
//! replacing the old one in chain and free list. Kept: for each key that was SET, its chunk and
//! when; the contents of its chunk. Implicit: the initial load in key order (key k in chunk k), and
//! the chains: a key's hash is a bijection, so the members of a bucket can be listed.
//! Left out: the LRU list, which memcached bumps at most once a minute per item; the network
//! buffers except the received key; the kernel. Instructions are estimates, some 400 a GET with
//! parsing, hashing and sending; they were not counted in compiled code.

use crate::data::{Words, Zipf, log2_ceil, permutation_key};
use crate::driver::{About, Driver, Kernel};
use crate::layout::{AddressSpace, Region};
use crate::recorder::{Recorder, Site};
use crate::spec::{Options, Setting, WorkloadError, WorkloadSpec};
use crate::{REGION, Workload};
use nestwalk_types::{Permutation, ShortPermutation, Source, SplitMix64, mix64};

/// This workload's entry in the list.
pub(crate) const WORKLOAD: Workload = Workload {
    name: "kvstore",
    summary: "memcached-like cache: hash table and slabs, zipfian GETs and SETs",
    footprint: 4 << 30,
    settings: &[
        Setting { name: "set_percent", summary: "SETs, percent", default: 5, range: (0, 100) },
        Setting {
            name: "value_bytes",
            summary: "length of a value, bytes",
            default: 100,
            range: (1, 8192),
        },
        REGION,
    ],
    make,
};

const RECEIVED: Site = Site::new(0, 12);
const BUCKET: Site = Site::new(1, 60);
const KEY_LENGTH: Site = Site::new(2, 4);
const COMPARE: Site = Site::new(3, 6);
const CHAIN_NEXT: Site = Site::new(4, 3);
const FLAGS: Site = Site::new(5, 20);
const EXPIRY: Site = Site::new(6, 6);
const COUNT_LOAD: Site = Site::new(7, 4);
const COUNT_STORE: Site = Site::new(8, 1);
const BYTES: Site = Site::new(9, 30);
const VALUE_READ: Site = Site::new(10, 2);
const RELEASE_LOAD: Site = Site::new(11, 80);
const RELEASE_STORE: Site = Site::new(12, 1);
const FREE_NEXT: Site = Site::new(13, 40);
const HEADER_WRITE: Site = Site::new(14, 3);
const KEY_WRITE: Site = Site::new(15, 3);
const VALUE_WRITE: Site = Site::new(16, 2);
const UNLINK: Site = Site::new(17, 12);
const LINK_NEXT: Site = Site::new(18, 6);
const LINK_BUCKET: Site = Site::new(19, 2);
const FREE_STORE: Site = Site::new(20, 10);

/// Bytes of the item header, of the CAS value, of a key and its end.
const HEADER: u64 = 48;
const KEY_AT: u64 = HEADER + 8;
const KEY_BYTES: u64 = 23;
const VALUE_AT: u64 = KEY_AT + KEY_BYTES + 1;
const H_NEXT_AT: u64 = 16;
const EXPTIME_AT: u64 = 28;
const NBYTES_AT: u64 = 32;
const REFCOUNT_AT: u64 = 36;
const FLAGS_AT: u64 = 38;
const NKEY_AT: u64 = 41;
const SLAB_PAGE: u64 = 1 << 20;
/// Chunks of the free list before the first SET.
const SPARE: u64 = 8;
const THETA: f64 = 0.99;
/// Hashes per bucket that a key may have: the more, the closer to a random hash.
const CANDIDATES_LOG2: u32 = 4;

/// Chunk size of the slab class that holds an item of `bytes` (`slabs_init`).
fn chunk_bytes(bytes: u64) -> u64 {
    let mut size = 96u64;
    while size < bytes {
        size = ((size as f64 * 1.25) as u64).next_multiple_of(8);
    }
    size
}

/// What a chunk holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Item {
    key: u64,
    /// Number of the SET that wrote it; 0 is the initial load.
    version: u64,
}

struct KvStore {
    table: Region,
    slabs: Region,
    buffer: Region,
    chunk: u64,
    per_page: u64,
    value_bytes: u64,
    keys: u64,
    bucket_bits: u32,
    hash: Permutation,
    /// From popularity rank to key.
    popular: ShortPermutation,
    zipf: Zipf,
    random: SplitMix64,
    set_percent: u64,
    /// Of keys that were SET: chunk + 1.
    chunk_of: Words,
    /// Of chunks that were written: key + 1, and the version.
    held_key: Words,
    held_version: Words,
    /// Chunks on the free list, the next last.
    free: Vec<u64>,
    sets: u64,
    requests: u64,
}

impl KvStore {
    fn new(
        keys: u64,
        value_bytes: u64,
        set_percent: u64,
        seed: u64,
        space: &mut AddressSpace,
    ) -> Self {
        let chunk = chunk_bytes(VALUE_AT + value_bytes + 2);
        let per_page = SLAB_PAGE / chunk;
        let chunks = keys + SPARE;
        let bucket_bits = bucket_bits(keys);
        let pages = (chunks - 1) / per_page;
        let last = (chunks - pages * per_page) * chunk;
        Self {
            buffer: space.heap(16 << 10),
            table: space.malloc(8 << bucket_bits),
            slabs: space.malloc(pages * SLAB_PAGE + last),
            chunk,
            per_page,
            value_bytes,
            keys,
            bucket_bits,
            hash: Permutation::new(
                log2_ceil(keys).max(bucket_bits) + CANDIDATES_LOG2,
                permutation_key(mix64(seed)),
            ),
            popular: ShortPermutation::new(keys, permutation_key(seed)),
            zipf: Zipf::new(keys, THETA),
            random: SplitMix64::new(seed),
            set_percent,
            chunk_of: Words::new(keys),
            held_key: Words::new(chunks),
            held_version: Words::new(chunks),
            free: (keys..chunks).rev().collect(),
            sets: 0,
            requests: 0,
        }
    }

    #[inline(always)]
    const fn address(&self, chunk: u64) -> u64 {
        let (page, place) = (chunk / self.per_page, chunk % self.per_page);
        self.slabs.base + page * SLAB_PAGE + place * self.chunk
    }
    fn chunk_of(&self, key: u64) -> u64 {
        match self.chunk_of.get(key) {
            0 => key,
            chunk => chunk - 1,
        }
    }
    /// What memory holds in a chunk.
    fn held(&self, chunk: u64) -> Item {
        match self.held_key.get(chunk) {
            0 => Item { key: chunk, version: 0 },
            key => Item { key: key - 1, version: self.held_version.get(chunk) },
        }
    }

    /// The chunks in the chain of a hash's bucket, newest first: keys that were SET by version,
    /// then the others, of which the later loaded stand in front.
    fn chain(&self, bucket: u64, into: &mut [u64; 1 << (CANDIDATES_LOG2 + 2)]) -> usize {
        let mut entries = [(0, 0, 0); 1 << (CANDIDATES_LOG2 + 2)];
        let mut n = 0;
        let hash_bits = log2_ceil(self.keys).max(self.bucket_bits) + CANDIDATES_LOG2;
        for high in 0..1u64 << (hash_bits - self.bucket_bits) {
            let key = self.hash.invert(high << self.bucket_bits | bucket);
            if key < self.keys {
                let chunk = self.chunk_of(key);
                entries[n] = (self.held(chunk).version, key, chunk);
                n += 1;
            }
        }
        let entries = &mut entries[..n];
        entries.sort_unstable_by(|a, b| b.cmp(a));
        for (to, entry) in into.iter_mut().zip(entries) {
            *to = entry.2;
        }
        n
    }

    /// Loads or stores of `bytes` bytes from `at` on, in aligned words of eight.
    fn words(at: u64, bytes: u64) -> impl Iterator<Item = u64> {
        (at & !7..at + bytes).step_by(8)
    }

    /// Finds the item of a key (`assoc_find`): its chunk, and the address of the pointer to it.
    fn find(&self, m: &mut Recorder, key: u64) -> Option<(u64, u64)> {
        for at in Self::words(self.buffer.base + 512 + 4, KEY_BYTES) {
            m.load(RECEIVED, at, 8);
        }
        let bucket = self.hash.apply(key) & ((1 << self.bucket_bits) - 1);
        let mut pointer = self.table.at(bucket, 8);
        m.load(BUCKET, pointer, 8);
        let mut chain = [0; 1 << (CANDIDATES_LOG2 + 2)];
        let n = self.chain(bucket, &mut chain);
        for &chunk in &chain[..n] {
            let item = self.address(chunk);
            m.load(KEY_LENGTH, item + NKEY_AT, 1);
            // All keys are as long. Different ones differ in their last digits, mostly: memcmp
            // reads the first 16 bytes, which are often the same, and the rest.
            for at in Self::words(item + KEY_AT, KEY_BYTES) {
                m.load(COMPARE, at, 8);
            }
            if self.held(chunk).key == key {
                return Some((chunk, pointer));
            }
            pointer = item + H_NEXT_AT;
            m.load(CHAIN_NEXT, pointer, 8);
        }
        None
    }

    /// GET: what the response's value was.
    fn get(&self, m: &mut Recorder, key: u64) -> Option<Item> {
        let (chunk, _) = self.find(m, key)?;
        let item = self.address(chunk);
        m.load(COUNT_LOAD, item + REFCOUNT_AT, 2);
        m.store(COUNT_STORE, item + REFCOUNT_AT, 2);
        m.load(EXPIRY, item + EXPTIME_AT, 4);
        m.load(FLAGS, item + FLAGS_AT, 2);
        m.load(BYTES, item + NBYTES_AT, 4);
        // The kernel copies the value to the socket with string instructions, line by line.
        let value = item + VALUE_AT;
        for line in (value & !63..value + self.value_bytes + 2).step_by(64) {
            m.load(VALUE_READ, line.max(value), 1);
        }
        m.load(RELEASE_LOAD, item + REFCOUNT_AT, 2);
        m.store(RELEASE_STORE, item + REFCOUNT_AT, 2);
        Some(self.held(chunk))
    }

    /// SET: writes a new item, replaces the old one by it, and frees the old one's chunk.
    fn set(&mut self, m: &mut Recorder, key: u64) {
        let Some(new) = self.free.pop() else { return };
        let item = self.address(new);
        // The chunk's own first word is the link of the free list.
        m.load(FREE_NEXT, item, 8);
        m.store_each(HEADER_WRITE, item, 8, KEY_AT / 8);
        for at in Self::words(item + KEY_AT, KEY_BYTES + 1) {
            m.store(KEY_WRITE, at, 8);
        }
        for at in Self::words(item + VALUE_AT, self.value_bytes + 2) {
            m.store(VALUE_WRITE, at, 8);
        }
        let found = self.find(m, key);
        let bucket = self.hash.apply(key) & ((1 << self.bucket_bits) - 1);
        if let Some((old, pointer)) = found {
            m.load(CHAIN_NEXT, self.address(old) + H_NEXT_AT, 8);
            m.store(UNLINK, pointer, 8);
        }
        m.load(BUCKET, self.table.at(bucket, 8), 8);
        m.store(LINK_NEXT, item + H_NEXT_AT, 8);
        m.store(LINK_BUCKET, self.table.at(bucket, 8), 8);
        if let Some((old, _)) = found {
            m.store(FREE_STORE, self.address(old), 8);
            self.free.push(old);
        }
        self.sets += 1;
        self.chunk_of.set(key, new + 1);
        self.held_key.set(new, key + 1);
        self.held_version.set(new, self.sets);
    }
}

/// Base-2 logarithm of the buckets of a table for so many keys (`assoc_start_expand`: the table is
/// doubled when it has more than 1.5 items per bucket).
const fn bucket_bits(keys: u64) -> u32 {
    log2_ceil((keys * 2).div_ceil(3))
}

impl Kernel for KvStore {
    /// One request.
    fn step(&mut self, m: &mut Recorder) -> bool {
        let key = self.popular.apply(self.zipf.next(&mut self.random));
        if self.random.below(100) < self.set_percent {
            self.set(m, key);
        } else {
            self.get(m, key);
        }
        self.requests += 1;
        !self.requests.is_multiple_of(self.keys)
    }
}

fn make(spec: &WorkloadSpec, options: &Options) -> Result<Box<dyn Source>, WorkloadError> {
    let (value_bytes, set_percent) = (options.get("value_bytes"), options.get("set_percent"));
    let chunk = chunk_bytes(VALUE_AT + value_bytes + 2);
    let available = spec.footprint - (24 << 10);
    let chunks = |bytes: u64| bytes / SLAB_PAGE * (SLAB_PAGE / chunk) + bytes % SLAB_PAGE / chunk;
    // The largest number of keys whose items and buckets fit; buckets come in powers of two.
    let mut keys = chunks(available);
    while chunks(available.saturating_sub(8 << bucket_bits(keys))) < keys + SPARE {
        keys = keys - keys / 256 - 1;
    }
    let mut space = AddressSpace::with_region(options.is_set(REGION.name));
    let kernel = KvStore::new(keys, value_bytes, set_percent, spec.seed, &mut space);
    let about = About {
        name: WORKLOAD.name,
        description: format!(
            "memcached-like, {keys} items of {value_bytes} bytes in chunks of {chunk}, zipf 0.99, \
             {set_percent} percent SETs"
        ),
        approximations: &[
            "memcached's LRU list and the network buffers are left out",
            "instructions between accesses are estimates",
        ],
    };
    Ok(Driver::boxed(about, spec, &space, kernel))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn store(keys: u64) -> KvStore {
        KvStore::new(keys, 100, 50, 8, &mut AddressSpace::new())
    }

    #[test]
    fn slab_classes_are_memcacheds() {
        // The first classes that `memcached -vv` lists.
        let mut sizes = vec![96];
        while sizes.len() < 8 {
            sizes.push(chunk_bytes(sizes.last().unwrap() + 1));
        }
        assert_eq!(sizes, [96, 120, 152, 192, 240, 304, 384, 480]);
    }

    #[test]
    fn the_last_value_set_is_returned() {
        let mut s = store(1500);
        let (mut shadow, mut random) = (HashMap::new(), SplitMix64::new(2));
        let mut m = Recorder::new(u64::MAX);
        for n in 0..40_000 {
            let key = (random.unit() * random.unit() * 1500.0) as u64;
            if random.below(3) == 0 {
                s.set(&mut m, key);
                shadow.insert(key, s.sets);
            }
            let version = shadow.get(&key).copied().unwrap_or(0);
            assert_eq!(s.get(&mut m, key), Some(Item { key, version }), "{n}");
        }
        // No chunk is used twice: every key's, and the free ones.
        let mut chunks: Vec<u64> = (0..1500).map(|k| s.chunk_of(k)).collect();
        chunks.extend(&s.free);
        chunks.sort_unstable();
        assert!(chunks.into_iter().eq(0..1500 + SPARE));
        assert_eq!(s.get(&mut m, 1500), None);
    }

    #[test]
    fn chains_hold_every_key_once_with_the_spread_of_a_random_hash() {
        let s = store(6000);
        let buckets = 1u64 << s.bucket_bits;
        let mut lengths = [0u64; 64];
        let mut all = vec![];
        let mut chain = [0; 64];
        for b in 0..buckets {
            let n = s.chain(b, &mut chain);
            lengths[n] += 1;
            all.extend_from_slice(&chain[..n]);
        }
        all.sort_unstable();
        assert!(all.into_iter().eq(0..6000));
        // Poisson: a share of e^-load is empty, load * e^-load has one.
        let load = 6000.0 / buckets as f64;
        for (count, share) in lengths.iter().zip([(-load).exp(), load * (-load).exp()]) {
            assert!((*count as f64 / buckets as f64 - share).abs() < 0.03, "{lengths:?}");
        }
    }
}
