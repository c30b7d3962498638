//! What reading a trace takes beside decompressing it, in instructions per record.

use super::count;
use anyhow::{Result, anyhow, bail};
use nestwalk_report::{Align, Table};
use nestwalk_source::reading::{self, WAYS};
use std::path::Path;

/// Records of the traces that are read.
const RECORDS: u64 = 400_000;
/// Most instructions of decoding a record where decompressing costs little.
const MOST: f64 = 40.0;
/// Most of decoding as a share of decompressing where that costs much.
const SHARE: f64 = 1.0 / 3.0;

/// What was found for one way of compression.
pub struct Reading {
    /// Its name among all measurements.
    pub name: String,
    /// Instructions per record of decoding, making batches and handing them on.
    pub decoding: f64,
    /// Instructions per record of decompressing.
    decompressing: f64,
    /// Decoding is to be measured by decompressing.
    costly: bool,
}

/// Runs one measurement, `reading:FILE` or `decompressing:FILE`; `None` if the name is of another.
pub fn run(name: &str) -> Option<Result<()>> {
    let (what, path) = name.split_once(':')?;
    let path = Path::new(path);
    match what {
        "reading" => Some(reading::read(path).map(drop).map_err(Into::into)),
        "decompressing" => Some(reading::decompress(path).map(drop).map_err(Into::into)),
        _ => None,
    }
}

/// Writes a trace in each way of compression, and counts the instructions of reading it.
///
/// # Errors
/// The traces cannot be written, or valgrind fails.
pub fn measure() -> Result<Vec<Reading>> {
    let dir = reading::folder()?;
    let mut all = Vec::new();
    // What the program takes for itself and for reading the file.
    let mut plain = None;
    for (way, costly) in WAYS {
        let path = dir.path().join(way);
        let records = reading::write(&path, way, RECORDS)? as f64;
        let path = path.to_str().ok_or_else(|| anyhow!("{}: not valid UTF-8", path.display()))?;
        let without = count(&format!("decompressing:{path}"), RECORDS)?;
        let with = count(&format!("reading:{path}"), RECORDS)?;
        let plain = *plain.get_or_insert(without);
        all.push(Reading {
            name: format!("reading/{way}"),
            decoding: with.saturating_sub(without) as f64 / records,
            decompressing: without.saturating_sub(plain) as f64 / records,
            costly,
        });
    }
    Ok(all)
}

/// The measurements as a table.
pub fn table(all: &[Reading]) -> String {
    let mut table = Table::new()
        .column("instructions/record", Align::Left)
        .column("decompressing", Align::Right)
        .column("decoding", Align::Right)
        .column("share", Align::Right);
    for r in all {
        let share = match r.decompressing {
            0.0 => "-".into(),
            d => format!("{:.0} %", 100.0 * r.decoding / d),
        };
        let numbers = [r.decompressing, r.decoding].map(|n| format!("{n:.1}"));
        let [decompressing, decoding] = numbers;
        table.row(vec![r.name.clone(), decompressing, decoding, share]);
    }
    format!("\ndrmemtrace, {RECORDS} records:\n{}", table.render())
}

/// Whether decoding costs no more than it may.
///
/// # Errors
/// It does.
pub fn check(all: &[Reading]) -> Result<()> {
    let dear = |r: &&Reading| {
        if r.costly { r.decoding > SHARE * r.decompressing } else { r.decoding > MOST }
    };
    let dear: Vec<&str> = all.iter().filter(dear).map(|r| r.name.as_str()).collect();
    if dear.is_empty() {
        return Ok(());
    }
    bail!(
        "decoding costs more than {MOST} instructions a record, or a third of decompressing where that \
         costs much: {}",
        dear.join(", ")
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_dear_depends_on_decompressing() {
        let reading = |name: &str, decoding, decompressing, costly| Reading {
            name: format!("reading/{name}"),
            decoding,
            decompressing,
            costly,
        };
        let good = [reading("plain", 39.9, 0.0, false), reading("gzip", 45.0, 136.0, true)];
        assert!(check(&good).is_ok());
        let text = table(&good);
        assert!(
            text.contains("33 %") && text.contains("39.9") && text.contains("39.9      -"),
            "{text}"
        );
        let bad = [reading("zstd", 40.1, 500.0, false), reading("xz", 34.0, 99.0, true)];
        let message = check(&bad).unwrap_err().to_string();
        assert!(message.contains("reading/zstd, reading/xz"), "{message}");
        assert!(run("walks/nested").is_none());
    }
}
