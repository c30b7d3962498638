//! What each column of a trace takes, and how fast traces are written and read.
//!
//! `cargo run --release -p nestwalk-source --example trace_columns FILE.nwt [LEVEL]`

use nestwalk_source::trace::{Summary, TraceReader, TraceWriter, WriteOptions, column_sizes};
use nestwalk_types::{Batch, Source, SourceError};
use std::io::Cursor;
use std::path::Path;
use std::time::Instant;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or("give a trace of nestwalk")?;
    let level: i32 = args.next().map_or(Ok(19), |text| text.parse())?;
    let mut reader = TraceReader::open(Path::new(&path))?;
    let header = reader.header().clone();
    let all = gather(&mut reader)?;
    let (runs, accesses) = (all.runs.len() as f64, all.accesses() as f64);
    println!("{path}: {runs} runs, {accesses} accesses, {} controls", all.controls.len());
    // As much of it as a chunk holds when it is shipped.
    let first = Batch {
        runs: all.runs[..all.runs.len().min(WriteOptions::SMALL.chunk_runs)].to_vec(),
        controls: all.controls.clone(),
    };
    let held = first.runs.len() as f64;
    println!("first chunk, level {level}:");
    let mut sum = 0;
    for (name, raw, compressed) in column_sizes(first, level)? {
        let bits = compressed as f64 * 8.0;
        sum += compressed;
        println!(
            "  {name:32} {raw:9} {compressed:9} bytes {:7.3} bits/run {:6.2} bits/byte",
            bits / held,
            bits / raw as f64
        );
    }
    println!("  {:.3} bytes/run", sum as f64 / held);
    for options in [WriteOptions::LIVE, WriteOptions { level, ..WriteOptions::SMALL }] {
        let start = Instant::now();
        let options = WriteOptions { thread: false, ..options };
        let mut writer = TraceWriter::new("memory", Vec::new(), &header, options)?;
        writer.write(&all)?;
        let written = writer.finish(Summary::default())?;
        let write = runs / start.elapsed().as_secs_f64() / 1e6;
        let mut reader = TraceReader::new("memory", Cursor::new(written.out))?;
        let mut batch = Batch::default();
        let start = Instant::now();
        while reader.next_batch(&mut batch)? {}
        let seconds = start.elapsed().as_secs_f64();
        println!(
            "chunks of {}, level {}: {} bytes, {:.4} per access; written at {write:.1} M runs/s, read \
             at {:.1} M runs/s, {:.0} M accesses/s",
            options.chunk_runs,
            options.level,
            written.bytes,
            written.bytes as f64 / accesses,
            runs / seconds / 1e6,
            accesses / seconds / 1e6
        );
    }
    Ok(())
}

fn gather(source: &mut dyn Source) -> Result<Batch, SourceError> {
    let (mut all, mut batch) = (Batch::default(), Batch::default());
    while source.next_batch(&mut batch)? {
        let base = all.runs.len() as u32;
        all.controls.extend(batch.controls.drain(..).map(|(p, c)| (base + p, c)));
        all.runs.append(&mut batch.runs);
    }
    Ok(all)
}
