//! How fast each source produces its stream, on one core (decompression has one more).
//!
//! `cargo run --release -p nestwalk-source --example throughput [PATTERN…]`

use nestwalk_source::champsim::Instruction;
use nestwalk_source::{Lackey, PatternSpec, open};
use nestwalk_types::{Batch, Source};
use std::fmt::Write as _;
use std::io::Cursor;
use std::time::Instant;

fn measure(name: &str, source: &mut dyn Source, bytes: usize) {
    let start = Instant::now();
    let mut batch = Batch::default();
    let (mut runs, mut accesses) = (0, 0);
    while source.next_batch(&mut batch).expect("a sound source") {
        runs += batch.runs.len();
        accesses += batch.accesses();
    }
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{name:40} {:8.1} M accesses/s {:8.1} M runs/s {:8.0} MB/s",
        accesses as f64 / seconds / 1e6,
        runs as f64 / seconds / 1e6,
        bytes as f64 / seconds / 1e6
    );
}

/// A log shaped as lackey's are: about 0.4 data records per instruction, a few pages at a time.
fn log(records: u64) -> String {
    let mut text = String::new();
    for i in 0..records / 7 {
        for j in 0..5 {
            writeln!(text, "I  {:08x},{}", 0x0401_6b80 + 16 * (i % 200) + j, 3 + j % 2)
                .expect("memory");
        }
        writeln!(text, " L {:08x},8", 0x1f_feff_e7e0 + i % 512 * 8).expect("memory");
        writeln!(text, " S {:08x},8", 0x0483_2000 + i * 64 % 65536).expect("memory");
    }
    text
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let defaults = PatternSpec { accesses: 100_000_000, footprint: 4 << 30, ..Default::default() };
    let given: Vec<String> = std::env::args().skip(1).collect();
    let all = ["sequential", "stride", "uniform", "uniform:reads=0.7", "zipf", "chase"];
    let texts = if given.is_empty() { all.map(String::from).to_vec() } else { given };
    for text in texts {
        let spec = PatternSpec::parse(&text, &defaults)?;
        measure(&text, &mut spec.source(), 0);
    }
    let text = log(20_000_000);
    let bytes = text.len();
    measure("lackey log", &mut Lackey::from_reader("log", Cursor::new(text))?, bytes);
    let file = tempfile::NamedTempFile::new()?;
    let record = |i: u64| Instruction {
        ip: 0x40_0000 + 4 * (i % 1000),
        source_memory: [
            if i.is_multiple_of(3) { 0x7000_0000 + i * 64 % (64 << 20) } else { 0 },
            0,
            0,
            0,
        ],
        ..Instruction::default()
    };
    let data: Vec<u8> = (0..5_000_000).flat_map(|i| record(i).to_bytes()).collect();
    std::fs::write(file.path(), &data)?;
    measure("champsim", open(file.path(), None)?.as_mut(), data.len());
    Ok(())
}
