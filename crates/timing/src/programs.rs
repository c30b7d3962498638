//! Four programs over real memory, as the workloads and patterns of the same names have them: a pointer
//! chase over nodes of a line, HPC Challenge's updates, STREAM, and look-ups in a B+tree.

use crate::{Pages, Region};
use std::io;

/// A program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Program {
    /// One chain through all lines of memory, in random order.
    Chase,
    /// Random words are changed.
    Gups,
    /// Copy, scale, add and triad of three arrays.
    Stream,
    /// Look-ups in a B+tree of 16 keys a node.
    Btree,
}

/// Words of a line, and of a node of the tree: two of header, 16 keys, 17 children or 16 values.
const LINE: usize = 8;
const NODE: usize = 36;
/// Where a node's keys begin, and what is beside them.
const KEYS: usize = 2;
const CHILDREN: usize = KEYS + FAN;
const FAN: usize = 16;
/// HPC Challenge's polynomial.
const POLYNOMIAL: u64 = 7;
const STREAMS: usize = 128;

/// A program that is ready to run.
pub struct Ready {
    region: Region,
    program: Program,
    /// The node to come, or the state of a random generator.
    at: u64,
    ran: [u64; STREAMS],
    /// First nodes of the levels of the tree, from the leaves, and keys.
    levels: Vec<usize>,
    keys: u64,
}

fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

fn word(words: &[[u8; 8]], at: usize) -> u64 {
    words.get(at).map_or(0, |word| u64::from_le_bytes(*word))
}

fn set(words: &mut [[u8; 8]], at: usize, value: u64) {
    if let Some(word) = words.get_mut(at) {
        *word = value.to_le_bytes();
    }
}

impl Ready {
    /// Makes the program's memory, of so many bytes.
    ///
    /// # Errors
    /// The kernel has no memory.
    pub fn new(program: Program, bytes: u64, pages: Pages) -> io::Result<Self> {
        let region = Region::reserve(bytes, Pages::Large.bytes(), pages)?;
        let mut state = 88_172_645_463_325_252;
        let ran = std::array::from_fn(|_| next(&mut state));
        let mut ready = Self { region, program, at: state, ran, levels: Vec::new(), keys: 0 };
        let words = ready.region.bytes_mut().as_chunks_mut::<8>().0;
        match program {
            Program::Chase => {
                ready.at = 0;
                cycle(words, state);
            }
            Program::Gups | Program::Stream => {
                ready.at = 0;
                (0..words.len()).for_each(|i| set(words, i, (i as f64).to_bits()));
            }
            Program::Btree => (ready.levels, ready.keys) = tree(words),
        }
        Ok(ready)
    }

    /// Runs `steps` loads, updates or look-ups, or each kernel of STREAM over as many numbers, each at
    /// another place, and goes on from there; returns accesses to memory.
    #[inline(never)]
    pub fn run(&mut self, steps: u64) -> u64 {
        let words = self.region.bytes_mut().as_chunks_mut::<8>().0;
        match self.program {
            Program::Chase => {
                for _ in 0..steps {
                    self.at = word(words, self.at as usize * LINE);
                }
                steps
            }
            Program::Gups => {
                let mask = (words.len().next_power_of_two()
                    >> u32::from(!words.len().is_power_of_two()))
                    - 1;
                for step in 0..steps {
                    let ran = &mut self.ran[step as usize % STREAMS];
                    let high = if *ran >> 63 == 1 { POLYNOMIAL } else { 0 };
                    *ran = *ran << 1 ^ high;
                    let at = *ran as usize & mask;
                    set(words, at, word(words, at) ^ *ran);
                }
                4 * steps
            }
            Program::Stream => {
                let (first, length) = (self.at as usize, steps as usize);
                self.at = (first + length) as u64;
                stream(words, first, length)
            }
            Program::Btree => {
                let mut accesses = 0;
                for _ in 0..steps {
                    let rank =
                        ((u128::from(next(&mut self.at)) * u128::from(self.keys)) >> 64) as u64;
                    accesses += look_up(words, &self.levels, 2 * rank);
                }
                accesses
            }
        }
    }
}

/// A random cycle through all lines (Sattolo's algorithm), each with the number of the next.
fn cycle(words: &mut [[u8; 8]], mut state: u64) {
    let lines = words.len() / LINE;
    (0..lines).for_each(|i| set(words, i * LINE, i as u64));
    for i in (1..lines).rev() {
        let other = ((u128::from(next(&mut state)) * i as u128) >> 64) as usize;
        let (a, b) = (word(words, i * LINE), word(words, other * LINE));
        set(words, i * LINE, b);
        set(words, other * LINE, a);
    }
}

/// The four kernels, a quarter of the arrays apart, vectors of 16 bytes: ten accesses for two numbers.
fn stream(words: &mut [[u8; 8]], first: usize, length: usize) -> u64 {
    let n = words.len() / 3;
    let length = length.min(n / 4);
    let (a, rest) = words.split_at_mut(n);
    let (b, c) = rest.split_at_mut(n);
    let f = |word: &[u8; 8]| f64::from_le_bytes(*word);
    let part = |kernel: usize| {
        let from = (first + kernel * (n / 4)) % (n - length + 1);
        from..from + length
    };
    let (p, q, r, s) = (part(0), part(1), part(2), part(3));
    c[p.clone()].copy_from_slice(&a[p]);
    b[q.clone()].iter_mut().zip(&c[q]).for_each(|(b, c)| *b = (3.0 * f(c)).to_le_bytes());
    let sums = c[r.clone()].iter_mut().zip(&a[r.clone()]).zip(&b[r]);
    sums.for_each(|((c, a), b)| *c = (f(a) + f(b)).to_le_bytes());
    let triads = a[s.clone()].iter_mut().zip(&b[s.clone()]).zip(&c[s]);
    triads.for_each(|((a, b), c)| *a = (f(b) + 3.0 * f(c)).to_le_bytes());
    10 * (length as u64 / 2)
}

/// Builds a tree of even keys; the first node of each level from the leaves, and keys.
fn tree(words: &mut [[u8; 8]]) -> (Vec<usize>, u64) {
    let nodes = words.len() / NODE;
    let leaves = (nodes * FAN / (FAN + 1)).saturating_sub(8).max(1);
    let keys = (leaves * FAN) as u64;
    for leaf in 0..leaves {
        for i in 0..FAN {
            let key = 2 * (leaf * FAN + i) as u64;
            set(words, leaf * NODE + KEYS + i, key);
            set(words, leaf * NODE + CHILDREN + i, key ^ 0x5555_5555);
        }
    }
    // Leaves below a node of the level, and the level's first node and number of nodes.
    let (mut below, mut first, mut count, mut levels) = (1, 0, leaves, vec![0]);
    while count > 1 {
        let (start, parents) = (first + count, count.div_ceil(FAN + 1));
        for parent in 0..parents {
            for i in 0..=FAN {
                let child = parent * (FAN + 1) + i;
                let node = (start + parent) * NODE;
                // The largest key below the child; beyond the last child, more than any key.
                let last = ((child + 1) * below * FAN).min(leaves * FAN) - 1;
                let key = if child + 1 < count { 2 * last as u64 } else { u64::MAX };
                if i < FAN {
                    set(words, node + KEYS + i, key);
                }
                set(words, node + CHILDREN + i, (first + child.min(count - 1)) as u64);
            }
        }
        below *= FAN + 1;
        (first, count) = (start, parents);
        levels.push(first);
    }
    (levels, keys)
}

/// Looks a key up; accesses.
fn look_up(words: &[[u8; 8]], levels: &[usize], key: u64) -> u64 {
    let (mut accesses, mut node) = (0, levels.last().copied().unwrap_or(0));
    for _ in levels {
        let (mut low, mut high) = (0, FAN);
        while low < high {
            let middle = usize::midpoint(low, high);
            accesses += 1;
            if key <= word(words, node * NODE + KEYS + middle) {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        // The child, or of a leaf the value.
        node = word(words, node * NODE + CHILDREN + low) as usize;
        accesses += 1;
    }
    std::hint::black_box(node);
    accesses
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chase_goes_round_all_lines() {
        let mut chase = Ready::new(Program::Chase, 1 << 16, Pages::Small).unwrap();
        let lines = 1024;
        for _ in 1..lines {
            chase.run(1);
            assert_ne!(chase.at, 0, "a shorter cycle");
        }
        chase.run(1);
        assert_eq!(chase.at, 0);
    }

    #[test]
    fn every_key_of_the_tree_is_found() {
        let mut words = vec![[0; 8]; NODE * 5000];
        let (levels, keys) = tree(&mut words);
        assert!(levels.len() > 2 && keys > 70_000);
        for rank in 0..keys {
            let key = 2 * rank;
            // Down to the leaf, which has the key.
            let (mut node, mut depth) = (*levels.last().unwrap(), levels.len());
            while depth > 1 {
                let at = (0..FAN).position(|i| key <= word(&words, node * NODE + KEYS + i));
                node = word(&words, node * NODE + CHILDREN + at.unwrap_or(FAN)) as usize;
                depth -= 1;
            }
            let found = (0..FAN).any(|i| word(&words, node * NODE + KEYS + i) == key);
            assert!(found, "{key} is not in node {node}");
        }
        let mut tree = Ready::new(Program::Btree, 1 << 20, Pages::Small).unwrap();
        assert!(tree.run(100) > 1000);
    }

    #[test]
    fn updates_twice_over_are_none() {
        let mut gups = Ready::new(Program::Gups, 1 << 16, Pages::Small).unwrap();
        let before = gups.region.bytes().to_vec();
        let ran = gups.ran;
        gups.run(5000);
        assert_ne!(gups.region.bytes(), before);
        gups.ran = ran;
        gups.run(5000);
        assert_eq!(gups.region.bytes(), before);
    }
}
