//! Runs a command in a guest without a plugin, to see what the guest itself costs.
//!
//! `cargo run --release -p nestwalk-capture --example guest -- [--memory MIB]
//! [--vcpus N] [--package NAME]… [--include DIR] [--clock] [--] COMMAND…`; `--clock` has the guest's
//! clock follow the host's instead of counting instructions

use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::time::Instant;

use nestwalk_capture::{Cache, Guest, Step};

fn main() {
    match run() {
        Ok(status) => std::process::exit(status.into()),
        Err(error) => {
            eprintln!("guest: {error}");
            std::process::exit(1)
        }
    }
}

fn run() -> Result<u8, Box<dyn Error>> {
    let mut guest = Guest::new(Vec::new());
    let mut words = std::env::args_os().skip(1);
    while let Some(word) = words.next() {
        let mut value =
            || words.next().and_then(|v| v.into_string().ok()).ok_or("a value is missing");
        match word.to_str() {
            Some("--memory") => guest.memory_bytes = value()?.parse::<u64>()? << 20,
            Some("--vcpus") => guest.vcpus = value()?.parse()?,
            Some("--package") => guest.packages.push(value()?),
            Some("--include") => guest.include = Some(PathBuf::from(value()?)),
            Some("--clock") => guest.reproducible = false,
            Some("--") => guest.command.extend(words.by_ref()),
            _ => {
                guest.command.push(word);
                guest.command.extend(words.by_ref());
            }
        }
    }
    let cache = Cache::locate()?;
    let mut say = |step: Step<'_>| eprintln!("{step:?}");
    let start = Instant::now();
    let boot = guest.boot(&cache, &mut say)?;
    let made = start.elapsed();
    let (image_bytes, kernel) = (boot.image_bytes(), boot.kernel().clone());
    let mut running = boot.start(None)?;
    let outcome = running.wait(&mut io::stdout())?;
    eprintln!(
        "kernel {}, image {:.1} MB made in {:.2} s; status {}, wall {:.2} s, CPU {:.2} s",
        kernel.release,
        image_bytes as f64 / 1e6,
        made.as_secs_f64(),
        outcome.status,
        outcome.wall.as_secs_f64(),
        outcome.cpu.unwrap_or_default().as_secs_f64(),
    );
    eprint!("{}{}", running.messages(), running.console());
    Ok(outcome.status)
}
