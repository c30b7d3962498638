//! Accesses per second that each workload generates on one core.
//!
//! `cargo run --release -p nestwalk-workloads --example rate [WORKLOAD|all [GIB [MILLIONS]]]`

use nestwalk_types::Batch;
use nestwalk_workloads::{Populate, WORKLOADS, WorkloadSpec, open};
use std::time::Instant;

/// Memory of this process that is resident now, MiB; 0 where that cannot be read.
fn resident_mib() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm.split(' ').nth(1).and_then(|p| p.parse().ok()).unwrap_or(0);
    pages / 256
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let wanted = args.next().unwrap_or_else(|| "all".to_owned());
    let gib: u64 = args.next().map_or(Ok(4), |a| a.parse())?;
    let millions: u64 = args.next().map_or(Ok(50), |a| a.parse())?;
    let names: Vec<&str> = match wanted.as_str() {
        "all" => WORKLOADS.iter().map(|w| w.name).collect(),
        one => vec![one],
    };
    println!("workload      M accesses/s  accesses/run  instr/access  resident MiB");
    for name in names {
        let spec = WorkloadSpec {
            footprint: gib << 30,
            accesses: Some(millions * 1_000_000),
            seed: 1,
            // Population is the guest's work, but it decides where the algorithm begins.
            populate: Populate::Yes,
        };
        let mut source = open(name, &spec)?;
        let mut batch = Batch::default();
        let (mut accesses, mut runs, mut instructions) = (0, 0, 0);
        let mut seconds = 0.0;
        loop {
            let begin = Instant::now();
            let more = source.next_batch(&mut batch)?;
            if !batch.runs.is_empty() {
                seconds += begin.elapsed().as_secs_f64();
            }
            if !more {
                break;
            }
            runs += batch.runs.len() as u64;
            accesses += batch.accesses();
            instructions += batch.instructions();
        }
        println!(
            "{name:<12}  {:>12.1}  {:>12.2}  {:>12.2}  {:>12}",
            accesses as f64 / seconds / 1e6,
            accesses as f64 / runs as f64,
            instructions as f64 / accesses as f64,
            resident_mib(),
        );
    }
    Ok(())
}
