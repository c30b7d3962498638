//! Results as a row per machine and number, with the same columns whatever the machines: what many runs
//! gave is one table by putting the files behind each other.

use super::fields::parts_of;
use crate::{Experiment, Kind, MachineResult, VERSION, kind};
use anyhow::{Context, Result};
use nestwalk_report::to_cells;
use nestwalk_sim::FIELDS;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::hash::Hasher;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use twox_hash::XxHash64;

/// The commit that the program was built from, if whoever built it said so.
pub const COMMIT: &str = match option_env!("NESTWALK_COMMIT") {
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
/// contents of its files.
///
/// # Errors
/// A file cannot be read, or the configuration cannot be written.
pub fn input_hash(experiment: &Experiment) -> Result<String> {
    let same = Experiment { seed: 0, version: String::new(), ..experiment.clone() };
    let mut hash = XxHash64::with_seed(0);
    hash.write(same.to_toml()?.as_bytes());
    for file in files(experiment) {
        hash.write_u64(contents(&file)?);
    }
    Ok(format!("{:016x}", hash.finish()))
}

/// The files whose contents decide the results: traces, page tables, pieces of a real guest. Those that
/// the configuration names and that are not there are for whoever opens them to complain of.
fn files(experiment: &Experiment) -> Vec<PathBuf> {
    let traces = experiment.sources.iter().filter(|s| kind(s) == Some(Kind::File));
    let tables = [&experiment.page_tables, &experiment.host_page_tables];
    let mut files: Vec<PathBuf> = traces.chain(tables).map(PathBuf::from).collect();
    if let Some(guest) = &experiment.guest {
        files.extend([PathBuf::from(&guest.kernel), guest.rootfs.clone(), guest.include.clone()]);
    }
    files.retain(|file| file.exists());
    files
}

/// XXH64 of a file's contents, or of the names and contents of all that is in a folder, read once.
fn contents(path: &Path) -> Result<u64> {
    static KNOWN: Mutex<BTreeMap<PathBuf, u64>> = Mutex::new(BTreeMap::new());
    let known = || KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(hash) = known().get(path) {
        return Ok(*hash);
    }
    let mut hash = XxHash64::with_seed(0);
    let at = || path.display().to_string();
    if path.is_dir() {
        let entries = std::fs::read_dir(path).with_context(at)?;
        let mut inside =
            entries.map(|e| Ok(e?.path())).collect::<Result<Vec<_>>>().with_context(at)?;
        inside.sort();
        // Links may lead in circles, and devices have no end.
        inside.retain(|p| p.symlink_metadata().is_ok_and(|m| m.is_dir() || m.is_file()));
        for entry in inside {
            let name = entry.file_name().unwrap_or_default();
            hash.write(name.as_encoded_bytes());
            hash.write_u64(contents(&entry)?);
        }
    } else if path.is_file() {
        let mut file = std::fs::File::open(path).with_context(at)?;
        let mut chunk = vec![0; CHUNK];
        loop {
            match file.read(&mut chunk).with_context(at)? {
                0 => break,
                n => hash.write(&chunk[..n]),
            }
        }
    }
    let found = hash.finish();
    known().insert(path.into(), found);
    Ok(found)
}

/// What all rows of a run have alike.
pub struct About<'a> {
    /// The source, by its name.
    pub source: &'a str,
    /// Name of the profile.
    pub profile: &'a str,
    /// Seed.
    pub seed: u64,
    /// [`input_hash`].
    pub input_hash: &'a str,
}

impl About<'_> {
    /// The rows of a machine, which is an object of the results.
    pub fn rows(&self, machine: &Value) -> Vec<Value> {
        let name = machine["name"].as_str().unwrap_or_default();
        let cells = to_cells(std::slice::from_ref(machine));
        let (_, rest) = name.split_once(':').unwrap_or((name, ""));
        let pages = rest.split('@').next().unwrap_or_default();
        let values = cells.columns.iter().zip(cells.rows.iter().flatten());
        let row = |(key, value): (&String, &String)| {
            json!({
                "machine": name,
                "key": key,
                "value": value,
                "unit": unit(key),
                "source": self.source,
                "profile": self.profile,
                "pages": pages,
                "seed": self.seed,
                "version": VERSION,
                "commit": COMMIT,
                "input_hash": self.input_hash,
            })
        };
        values.filter(|(key, _)| *key != "name").map(row).collect()
    }
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
    let (input_hash, profile) = (input_hash(experiment)?, &experiment.profile.name);
    let mut rows = Vec::new();
    for (seed, machines) in runs {
        let about = About { source, profile, seed: *seed, input_hash: &input_hash };
        for machine in *machines {
            rows.extend(about.rows(&serde_json::to_value(machine)?));
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
