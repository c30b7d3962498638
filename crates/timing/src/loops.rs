//! The loops. Each load's address depends on the value of the load before, which is 0.

use std::hint::black_box;
use std::time::Instant;

/// Nanoseconds that some work takes, whose result is kept alive.
#[inline(never)]
pub fn nanoseconds<T>(work: impl FnOnce() -> T) -> f64 {
    let start = Instant::now();
    black_box(work());
    start.elapsed().as_nanos() as f64
}

/// A byte, as what is added to the next address. Beyond the end it is 0.
#[inline(always)]
fn load(bytes: &[u8], at: u64) -> u64 {
    bytes.get(at as usize).copied().map_or(0, u64::from)
}

/// One chain of loads through bytes at these places, in turn.
#[inline(never)]
pub fn chase(bytes: &[u8], places: &[u64], rounds: u32) -> u64 {
    let mut value = 0;
    for _ in 0..rounds {
        for place in places {
            value = load(bytes, place.wrapping_add(value));
        }
    }
    value
}

/// `M` chains side by side: chain `i` takes the places `i`, `i + M`, and so on.
#[inline(never)]
pub fn side_by_side<const M: usize>(bytes: &[u8], places: &[u64], rounds: u32) -> u64 {
    let mut values = [0_u64; M];
    for _ in 0..rounds {
        for group in places.as_chunks::<M>().0 {
            for (value, place) in values.iter_mut().zip(group) {
                *value = load(bytes, place.wrapping_add(*value));
            }
        }
    }
    values.iter().fold(0, |a, b| a | b)
}

/// One chain through `1 << doublings` pages in an order that is computed: each once per round. Lines
/// within pages differ. `page` is where it begins, and where it goes on.
#[inline(never)]
pub fn scattered(bytes: &[u8], doublings: u32, page_shift: u32, page: &mut u64, loads: u64) -> u64 {
    let mask = (1_u64 << doublings) - 1;
    let mut value = 0;
    for _ in 0..loads {
        // All residues in turn: Knuth's conditions for a full period hold.
        *page = page.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f) & mask;
        let mixed = *page ^ *page >> (doublings / 2 + 1);
        value = load(bytes, (mixed << page_shift | (mixed & 63) << 6).wrapping_add(value));
    }
    value
}

/// A chain of `steps` times four cycles: an exclusive or, which takes one, and a multiplication, which
/// takes three on every x86-64 processor of the last fifteen years.
#[inline(never)]
pub fn four_cycles(steps: u32) -> u64 {
    let mut value = black_box(1_u64);
    for step in 0..u64::from(steps) {
        value = (value ^ step).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    value
}
