//! Follows a command under valgrind and prints what its stream holds.
//!
//! `cargo run --release -p nestwalk-source --example live -- gcc -O2 -c file.c`

use nestwalk_source::{Lackey, RunOptions};
use nestwalk_types::{Batch, Control, Source};
use std::time::Instant;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let command: Vec<_> = std::env::args_os().skip(1).collect();
    let start = Instant::now();
    let mut live = Lackey::run(&command, &RunOptions::default())?;
    let mut batch = Batch::default();
    let (mut runs, mut accesses, mut instructions) = (0, 0, 0);
    while live.next_batch(&mut batch)? {
        runs += batch.runs.len();
        accesses += batch.accesses();
        instructions += batch.instructions();
        for (_, control) in &batch.controls {
            if !matches!(control, Control::Switch { .. }) {
                println!("after {instructions} instructions: {control:?}");
            }
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    println!("{:?}", live.stats());
    println!(
        "{runs} runs, {accesses} accesses, {instructions} instructions in {seconds:.1} s, {:.2} M \
         records/s, stopped {} times, {:?}",
        live.stats().records() as f64 / seconds / 1e6,
        live.stops(),
        live.exit_status()
    );
    Ok(())
}
