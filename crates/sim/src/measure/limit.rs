//! The least time that simulated structures could take: a loop that goes to arrays of their sizes as
//! often as a machine must, and does nothing else. How far a machine is from it is what `bench` shows.
//!
//! A visit is to a place that no visit before decides, so the processor has as many on their way as it
//! can: no simulator that keeps its state in arrays of these sizes can be faster, but by working on
//! several accesses at once with wider instructions, or by keeping less.

use std::hint::black_box;

/// How accesses go to an array.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// A word anywhere is loaded, as of page tables.
    Load,
    /// A word anywhere is loaded and stored, as of a set whose order of use changes.
    Update,
    /// The next word is loaded, as of a batch of runs.
    Next,
    /// The next word is stored, as where tables are filled page by page.
    Fill,
}

/// An array of a machine, and how often accesses go to it.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Visits {
    /// Bytes; up to the next power of two.
    pub bytes: u64,
    /// Visits in 512 accesses.
    pub in_512: u64,
    /// How.
    pub way: Way,
}

/// Most bytes of an array.
const MOST: u64 = 1 << 31;

/// Goes to all arrays as often as so many accesses must; the sum is there so that nothing is left out.
/// Arrays are taken in turn, 512 accesses at a time.
pub fn visit(arrays: &mut [(Visits, Vec<u64>)], accesses: u64) -> u64 {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let (mut sum, mut next) = (0_u64, 0_usize);
    for _ in 0..accesses / 512 {
        for (visits, array) in arrays.iter_mut() {
            let mask = array.len() - 1;
            match visits.way {
                Way::Load => {
                    for _ in 0..visits.in_512 {
                        random = step(random);
                        sum ^= array[(random >> 20) as usize & mask];
                    }
                }
                Way::Update => {
                    for _ in 0..visits.in_512 {
                        random = step(random);
                        let word = &mut array[(random >> 20) as usize & mask];
                        sum ^= *word;
                        *word = random;
                    }
                }
                Way::Next => {
                    for i in 0..visits.in_512 as usize {
                        sum ^= array[next.wrapping_add(i) & mask];
                    }
                }
                Way::Fill => {
                    for i in 0..visits.in_512 as usize {
                        array[next.wrapping_add(i) & mask] = random;
                    }
                }
            }
        }
        next = next.wrapping_add(512);
    }
    black_box(sum)
}

/// Marsaglia's xorshift: three instructions' time from number to number.
#[inline(always)]
const fn step(mut x: u64) -> u64 {
    x ^= x << 13;
    x ^= x >> 7;
    x ^ x << 17
}

/// The arrays, each with something in it, so that its pages are there.
pub fn arrays(visits: &[Visits]) -> Vec<(Visits, Vec<u64>)> {
    let words = |v: &Visits| (v.bytes.clamp(8, MOST).next_power_of_two() / 8) as usize;
    visits.iter().map(|v| (*v, vec![1; words(v)])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_are_visited_as_often_as_is_said() {
        let visits = |way, in_512| Visits { bytes: 4096, in_512, way };
        let mut all = arrays(&[visits(Way::Fill, 100), visits(Way::Update, 3)]);
        assert_eq!(all[0].1.len(), 512);
        visit(&mut all, 1024);
        // Twice the first hundred words, and at most six anywhere.
        let changed = |array: &[u64]| array.iter().filter(|w| **w != 1).count();
        assert_eq!(changed(&all[0].1), 100);
        assert!((1..=6).contains(&changed(&all[1].1)), "{:?}", changed(&all[1].1));
        // An odd number of loads of ones, and an even one.
        assert_eq!(visit(&mut arrays(&[visits(Way::Load, 3)]), 512), 1);
        assert_eq!(visit(&mut arrays(&[visits(Way::Next, 3)]), 1024), 0);
        assert_eq!(arrays(&[Visits { bytes: 5000, in_512: 1, way: Way::Load }])[0].1.len(), 1024);
    }
}
