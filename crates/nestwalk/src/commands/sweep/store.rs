//! Results of points, a file each. A file that is there is whole, whatever ended who wrote it.

use super::exact;
use super::point::Point;
use crate::commands::compare;
use crate::show::long::COMMIT;
use crate::tell;
use anyhow::{Context, Result};
use nestwalk_lab::{Session, VERSION};
use serde_json::{Value, json};
use std::fs::{File, TryLockError};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

/// Version of the format of a point's file.
const FORMAT: u64 = 1;

/// The folder of the results.
pub struct Store(PathBuf);

/// A point that is ours to run, until this is dropped or its process ends, however.
pub struct Claim {
    _lock: Option<File>,
    /// Written, and renamed once it is whole.
    unfinished: PathBuf,
}

impl Store {
    /// The folder in that of a sweep. It is made.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn open(output: &Path) -> Result<Self> {
        let folder = output.join("points");
        std::fs::create_dir_all(&folder)
            .with_context(|| format!("--output {}: cannot be made", output.display()))?;
        Ok(Self(folder))
    }

    fn file(&self, point: &Point) -> PathBuf {
        self.0.join(format!("{}.json", point.key))
    }

    /// Whether the point's result is there.
    pub fn has(&self, point: &Point) -> bool {
        self.file(point).exists()
    }

    /// Claims a point, if no other process has.
    ///
    /// # Errors
    /// The folder cannot be written to.
    pub fn claim(&self, point: &Point) -> Result<Option<Claim>> {
        let path = self.0.join(format!("{}.lock", point.key));
        let at = || format!("{}: cannot be written", path.display());
        // The kernel gives the lock back when its process ends.
        let lock = File::options().create(true).append(true).open(&path).with_context(at)?;
        let key = &point.key;
        match lock.try_lock() {
            Ok(()) => {
                let unfinished = self.0.join(format!("{key}.unfinished"));
                Ok(Some(Claim { _lock: Some(lock), unfinished }))
            }
            Err(TryLockError::WouldBlock) => Ok(None),
            // A file system without locks: shares do not overlap all the same.
            Err(TryLockError::Error(error)) if error.kind() == ErrorKind::Unsupported => {
                let unfinished = self.0.join(format!("{key}.{}.unfinished", std::process::id()));
                Ok(Some(Claim { _lock: None, unfinished }))
            }
            Err(TryLockError::Error(error)) => Err(error).with_context(at),
        }
    }

    /// Writes the result of a point, whole or not at all.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn save(&self, point: &Point, claim: &Claim, session: &Session) -> Result<()> {
        let value = json!({
            "format_version": FORMAT,
            "version": VERSION,
            "commit": COMMIT,
            "key": point.key,
            "seed": point.experiment.seed,
            "input_hash": point.input_hash,
            "config": point.experiment.to_toml()?,
            "results": compare::results(&point.experiment, session)?,
        });
        let file = self.file(point);
        write_whole(&claim.unfinished, &file, serde_json::to_string(&value)?.as_bytes())?;
        self.settle(point);
        Ok(())
    }

    /// Nobody needs the lock of a point that is done: whoever gets it looks for the result next.
    pub fn settle(&self, point: &Point) {
        let _ = std::fs::remove_file(self.0.join(format!("{}.lock", point.key)));
    }

    /// The result of a point. One that cannot be read is put aside, so that the point is run again.
    ///
    /// # Errors
    /// It is there, but neither can be read nor put aside.
    pub fn read(&self, point: &Point) -> Result<Option<Value>> {
        let file = self.file(point);
        let at = || file.display().to_string();
        let text = match std::fs::read_to_string(&file) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            text => text.with_context(at)?,
        };
        let config = point.experiment.to_toml()?;
        let value = exact::parse(&text).ok();
        let whole = value.filter(|v| v["config"] == *config && v["results"]["machines"].is_array());
        if whole.is_none() {
            let aside = file.with_extension("damaged");
            std::fs::rename(&file, &aside).with_context(at)?;
            tell::note(&format!(
                "{}: not the result of this point; it is {} now, and the point runs again",
                file.display(),
                aside.display()
            ));
        }
        Ok(whole)
    }
}

/// Writes a file under another name and renames it once it is on the disk.
///
/// # Errors
/// It cannot be written; what was there before stays.
pub fn write_whole(unfinished: &Path, file: &Path, bytes: &[u8]) -> Result<()> {
    let write = || {
        let mut out = File::create(unfinished)?;
        out.write_all(bytes)?;
        out.sync_all()?;
        std::fs::rename(unfinished, file)
    };
    let written = write();
    if written.is_err() {
        let _ = std::fs::remove_file(unfinished);
    }
    written.with_context(|| format!("{}: cannot be written", file.display()))
}
