//! Programs run for real, with pages of both sizes in turn.

use crate::pattern::Sample;
use crate::survey::Effort;
use nestwalk_timing::programs::{Program, Ready};
use nestwalk_timing::{Pages, loops, pin, processors};
use std::io;

/// Nanoseconds of an access.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Run {
    /// While nobody disturbs.
    pub ns: f64,
    /// How far the quarter of the fastest parts lies apart.
    pub spread_ns: f64,
}

/// Runs a program of this name, with small and with large pages, in turn.
///
/// # Errors
/// There is no such program, or no memory.
pub fn run(program: &str, bytes: u64, effort: Effort) -> io::Result<[Run; 2]> {
    // Steps of a part: some tenths of a millisecond.
    let (kind, steps, parts) = match program {
        "chase" => (Program::Chase, 500, 3000),
        "gups" => (Program::Gups, 4_000, 2000),
        "stream" => (Program::Stream, 8_000, 1000),
        "btree" => (Program::Btree, 200, 3000),
        _ => return Err(io::ErrorKind::InvalidInput.into()),
    };
    let parts = if effort == Effort::Quick { parts } else { parts * 3 };
    let all = processors()?;
    pin(&all[all.len().saturating_sub(1)..])?;
    let mut ready =
        [Ready::new(kind, bytes, Pages::Small)?, Ready::new(kind, bytes, Pages::Large)?];
    let mut times = [Vec::new(), Vec::new()];
    for part in 0..parts + parts / 10 {
        for (ready, times) in ready.iter_mut().zip(&mut times) {
            let mut accesses = 0;
            let time = loops::nanoseconds(|| accesses = ready.run(steps));
            // The first tenth brings data and entries of tables near.
            if part >= parts / 10 && accesses > 0 {
                times.push(time / accesses as f64);
            }
        }
    }
    pin(&all)?;
    Ok(times.map(|times| {
        let sample = Sample::of(times);
        Run { ns: sample.ns, spread_ns: sample.spread_ns }
    }))
}
