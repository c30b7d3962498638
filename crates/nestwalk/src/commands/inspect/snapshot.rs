//! Runs of a process in a guest, carried to the host as JSON.

use anyhow::{Context, Result, bail};
use nestwalk_contiguity::RunSet;
use nestwalk_host::{Cut, PAGE_BYTES, ProcessMemory, Snapshot};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::Path;

const FORMAT: &str = "nestwalk-snapshot";
const VERSION: u32 = 1;

/// The file.
#[derive(Serialize, Deserialize)]
struct SnapshotFile {
    format: String,
    version: u32,
    pid: u64,
    name: String,
    complete: bool,
    page_bytes: u64,
    /// First page number, first frame number, pages, permissions (bits: r, w, x, shared); ascending.
    runs: Vec<(u64, u64, u64, u16)>,
}

/// A process in a guest.
pub struct Guest {
    /// Its name.
    pub name: String,
    /// Its number.
    pub pid: u64,
    /// gVA to gPA.
    pub runs: RunSet,
}

/// The file of a process's runs.
pub fn save(process: &ProcessMemory, seen: &Snapshot) -> Result<String> {
    let file = SnapshotFile {
        format: FORMAT.into(),
        version: VERSION,
        pid: process.pid.into(),
        name: process.name.clone(),
        complete: seen.cut != Some(Cut::Gone) && seen.cut != Some(Cut::Stopped),
        page_bytes: PAGE_BYTES,
        runs: seen.runs.iter().map(|r| (r.from, r.to, r.pages, r.tag)).collect(),
    };
    Ok(serde_json::to_string(&file)? + "\n")
}

/// Reads the file.
///
/// # Errors
/// It is no snapshot, or says what cannot be.
pub fn load(path: &Path) -> Result<Guest> {
    let name = || format!("--guest {}", path.display());
    let text = fs::read_to_string(path).with_context(name)?;
    parse(&text).with_context(name)
}

fn parse(text: &str) -> Result<Guest> {
    let what = "no snapshot of a guest's process; `nestwalk inspect --snapshot PID` in the guest makes one";
    let file: SnapshotFile = serde_json::from_str(text).context(what)?;
    if file.format != FORMAT || file.version != VERSION || file.page_bytes != PAGE_BYTES {
        bail!(
            "format `{}`, version {}, pages of {} bytes: {FORMAT}, version {VERSION}, pages of \
             {PAGE_BYTES} bytes are expected",
            file.format,
            file.version,
            file.page_bytes
        );
    }
    // Pages and frames of 52-bit addresses and less, as all that an x86 processor has.
    const LIMIT: u64 = 1 << 52;
    let mut next = 0;
    for (i, &(from, to, pages, _)) in file.runs.iter().enumerate() {
        let end = |first: u64| first.checked_add(pages).filter(|end| *end <= LIMIT);
        let (Some(after), Some(_)) = (end(from), end(to)) else {
            bail!("run {i}: {pages} pages from page {from} to frame {to} are beyond all addresses");
        };
        if from < next || pages == 0 {
            bail!("run {i}: page {from}, {pages} pages: runs must be ascending, and not empty");
        }
        next = after;
    }
    let run = |(from, to, pages, tag)| nestwalk_contiguity::MappedRun { from, to, pages, tag };
    Ok(Guest { name: file.name, pid: file.pid, runs: file.runs.into_iter().map(run).collect() })
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn a_snapshot_that_cannot_be_is_refused_where_it_is() {
        let text = |format: &str, runs: &str| {
            format!(
                r#"{{"format":"{format}","version":1,"pid":7,"name":"a","complete":true,"page_bytes":4096,"runs":{runs}}}"#
            )
        };
        let good = parse(&text("nestwalk-snapshot", "[[1,9,2,3],[3,11,1,3]]")).unwrap();
        assert_eq!((good.runs.len(), good.runs.pages(), good.pid), (1, 3, 7));
        for (format, runs, expected) in [
            ("x", "[]", "format `x`, version 1"),
            ("nestwalk-snapshot", "[[1,9,0,3]]", "run 0: page 1, 0 pages"),
            ("nestwalk-snapshot", "[[1,9,2,3],[2,9,2,3]]", "run 1: page 2"),
            ("nestwalk-snapshot", "[[1,18446744073709551615,2,3]]", "beyond all addresses"),
            ("nestwalk-snapshot", "[[1,2,3]]", "no snapshot of a guest's process"),
            ("nestwalk-snapshot", "[[-1,2,3,4]]", "no snapshot of a guest's process"),
        ] {
            let error = format!("{:#}", parse(&text(format, runs)).err().unwrap());
            assert!(error.contains(expected), "{error}");
        }
        assert!(parse("").is_err());
    }
}
