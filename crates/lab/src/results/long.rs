//! Results as a row per machine and number, with the same columns whatever the machines: what many runs
//! gave is one table by putting the files behind each other.

use super::fields::parts_of;
use crate::{Experiment, Kind, MachineResult, VERSION, kind};
use anyhow::{Context, Result};
use nestwalk_report::to_cells;
use nestwalk_sim::FIELDS;
use serde_json::{Value, json};
use std::hash::Hasher;
use std::io::Read;
use twox_hash::XxHash64;

/// The commit that the program was built from, if whoever built it said so.
const COMMIT: &str = match option_env!("NESTWALK_COMMIT") {
    Some(commit) => commit,
    None => "release",
};

/// Bytes of a file that are hashed at once.
const CHUNK: usize = 1 << 20;

/// The unit of a field of a machine, by its path: `energy.total`. Keys that are names have that of
/// their field.
pub fn unit(path: &str) -> &'static str {
    let first = path.split('.').next().unwrap_or(path);
    let own = || FIELDS.iter().find(|f| f.0 == first).map_or("", |f| f.1);
    // The longest object that is documented, and of its keys the one that follows.
    let below = |part: &str| -> Option<&str> { path.strip_prefix(part)?.strip_prefix('.') };
    let parts = parts_of(first).filter_map(|(part, keys)| Some((part.len(), below(part)?, keys)));
    let longest = parts.max_by_key(|p| p.0);
    let found = longest.and_then(|(_, rest, keys)| {
        let key = rest.split('.').next().unwrap_or(rest);
        keys.iter().find(|f| f.0 == key)
    });
    found.map_or_else(own, |f| f.1)
}

/// XXH64 of all that decides the results but the seed and the version: the configuration, and the
/// contents of trace files.
///
/// # Errors
/// A file cannot be read, or the configuration cannot be written.
pub fn input_hash(experiment: &Experiment) -> Result<String> {
    let same = Experiment { seed: 0, version: String::new(), ..experiment.clone() };
    let mut hash = XxHash64::with_seed(0);
    hash.write(same.to_toml()?.as_bytes());
    let mut chunk = vec![0; CHUNK];
    let files = experiment.sources.iter().filter(|s| kind(s) == Some(Kind::File));
    for name in files.filter(|name| std::path::Path::new(name).is_file()) {
        let mut file = std::fs::File::open(name).with_context(|| name.clone())?;
        loop {
            match file.read(&mut chunk).with_context(|| name.clone())? {
                0 => break,
                n => hash.write(&chunk[..n]),
            }
        }
    }
    Ok(format!("{:016x}", hash.finish()))
}

/// The rows of the runs, each with its seed.
///
/// # Errors
/// As [`input_hash`], or a machine cannot be written as JSON.
pub fn rows(
    source: &str,
    experiment: &Experiment,
    runs: &[(u64, &[MachineResult])],
) -> Result<Vec<Value>> {
    let hash = input_hash(experiment)?;
    let mut rows = Vec::new();
    for (seed, m) in runs.iter().flat_map(|(seed, run)| run.iter().map(move |m| (seed, m))) {
        let cells = to_cells(&[serde_json::to_value(m)?]);
        let (_, rest) = m.name.split_once(':').unwrap_or((&m.name, ""));
        let pages = rest.split('@').next().unwrap_or_default();
        let values = cells.columns.iter().zip(cells.rows.iter().flatten());
        for (key, value) in values.filter(|(key, _)| *key != "name") {
            rows.push(json!({
                "machine": m.name,
                "key": key,
                "value": value,
                "unit": unit(key),
                "source": source,
                "profile": experiment.profile.name,
                "pages": pages,
                "seed": seed,
                "version": VERSION,
                "commit": COMMIT,
                "input_hash": hash,
            }));
        }
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::unit;

    #[test]
    fn units_are_those_of_the_fields() {
        for (path, is) in [
            ("walks", "count"),
            ("total_cycles", "cycles"),
            ("vm_exits.cr3_load", "count"),
            ("vmm_work.exit_ns", "count"),
            ("energy.total", "nJ"),
            ("segments.vmm.bytes", "bytes"),
            ("segments.vmm_percent", "% of guest memory"),
            ("coverage.guest.entries.4k.99", "count"),
            ("page_table_bytes.nested", "bytes"),
            ("scheme", ""),
        ] {
            assert_eq!(unit(path), is, "{path}");
        }
    }
}
