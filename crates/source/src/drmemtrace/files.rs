//! Which files are one trace.

use super::record::{Head, Layout, file_type};
use super::zip::{Chunks, is_zip};
use crate::bytes::{Compression, Window};
use crate::input::{cannot_read, open_file};
use nestwalk_types::SourceError;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Beginnings of the names of files that the tracer and its tools put beside traces.
const BESIDE: [&str; 8] = [
    ".",
    "serial_schedule.bin",
    "cpu_schedule.bin",
    "modules.log",
    "funclist.log",
    "encodings.bin",
    "kernel.raw",
    "README",
];
/// Endings of such names.
const BESIDE_ENDS: [&str; 4] = [".textproto", ".log", ".txt", ".md"];
/// Most that first timestamps of threads of one trace lie apart: a day, in microseconds.
const DAY: u64 = 86_400_000_000;
/// Names of files that are not read that a note shows.
const SHOWN: usize = 3;

/// The files of a directory.
pub(super) struct Found {
    /// The threads or cores of the trace, by name.
    pub(super) files: Vec<PathBuf>,
    /// What results must name.
    pub(super) notes: Vec<String>,
}

/// The trace in a directory: that which the tracer makes, with `trace` in it, or `trace` itself.
pub(super) fn in_directory(path: &Path) -> Result<Found, SourceError> {
    let name = path.display().to_string();
    let below = path.join("trace");
    let inner = if below.is_dir() { &below } else { path };
    let (mut files, mut others, mut windows) = (Vec::new(), Vec::new(), Vec::new());
    let entries = std::fs::read_dir(inner).map_err(|e| cannot_read(&name, &e))?;
    for entry in entries {
        let path = entry.map_err(|e| cannot_read(&name, &e))?.path();
        let Some(word) = path.file_name().map(|n| n.to_string_lossy().into_owned()) else {
            continue;
        };
        // A link to a file counts as one.
        if path.is_dir() {
            windows.extend(word.starts_with("window.").then_some(word));
        } else if word.contains(".trace") || word.contains(".memtrace") {
            files.push(path);
        } else if !is_beside(&word) {
            match head(&path) {
                Some(_) => files.push(path),
                None => others.push(word),
            }
        }
    }
    files.sort();
    others.sort();
    windows.sort();
    if files.is_empty() {
        return Err(SourceError { source: name, message: nothing(path, &windows) });
    }
    let mut notes = Vec::new();
    if !others.is_empty() {
        let more = if others.len() > SHOWN { ", ..." } else { "" };
        notes.push(format!(
            "{} files of the directory are no drmemtrace and were not read: {}{more}",
            others.len(),
            others[..others.len().min(SHOWN)].join(", ")
        ));
    }
    if !windows.is_empty() {
        notes.push(format!(
            "windows of the recording were not read, each is a trace of its own: {}",
            windows.join(", ")
        ));
    }
    Ok(Found { files, notes })
}

fn is_beside(name: &str) -> bool {
    BESIDE.iter().any(|b| name.starts_with(b)) || BESIDE_ENDS.iter().any(|e| name.ends_with(e))
}

/// What to say of a directory without a trace.
fn nothing(path: &Path, windows: &[String]) -> String {
    if let Some(first) = windows.first() {
        return format!(
            "the directory has windows of a recording, each a trace of its own: give one, as in {}",
            path.join(first).display()
        );
    }
    let raw = path.join("raw").is_dir() || path.ends_with("raw");
    let why = if raw { "the recording is raw: it" } else { "drmemtrace" };
    format!(
        "no drmemtrace in this directory, that is, no file named *.trace.*, *.memtrace.* or with a \
         header of one; {why} must have been post-processed, which running an analysis tool on it once \
         does"
    )
}

/// What the beginning of a file says, if it is a drmemtrace that can be read twice.
fn head(path: &Path) -> Option<Head> {
    let (_, mut file, total) = open_file(path).ok()?;
    total?;
    let mut window = if is_zip(&mut file) {
        let chunks = Chunks::open(Box::new(file)).ok()?;
        Window::new(Box::new(chunks), Compression::None, false).ok()?
    } else {
        Window::detect(Box::new(file.take(1 << 20)), false).ok()?
    };
    let bytes = window.peek(super::record::HEAD);
    Some(Head::of(Layout::of(bytes)?, bytes))
}

/// Whether these files are threads or cores of one trace: drmemtraces in one directory, of one process
/// and recorded within a day, that differ in their threads or are of cores.
pub fn are_one_trace(paths: &[&Path]) -> bool {
    let [first, rest @ ..] = paths else { return false };
    if rest.is_empty() || rest.iter().any(|p| p.parent() != first.parent()) {
        return false;
    }
    let Some(heads) = paths.iter().map(|p| head(p)).collect::<Option<Vec<_>>>() else {
        return false;
    };
    let first = &heads[0];
    let alike = heads.iter().all(|h| {
        let near = h.time.zip(first.time).is_none_or(|(a, b)| a.abs_diff(b) < DAY);
        h.process.is_some() && h.process == first.process && near
    });
    let mut threads: Vec<_> = heads.iter().map(|h| h.thread).collect();
    threads.sort_unstable();
    threads.dedup();
    let cores = heads.iter().all(|h| h.file_type & file_type::CORE_SHARDED != 0);
    alike && (cores || threads.len() == heads.len())
}

/// The file that says where the trace's pages are in physical memory, if there is one beside it.
pub(super) fn physical(path: &Path) -> Option<PathBuf> {
    let name = "v2p.textproto";
    let folder = if path.is_dir() { Some(path) } else { path.parent() }?;
    let above = folder.parent().filter(|_| folder.ends_with("trace"));
    let folders = [Some(folder), above].into_iter().flatten();
    let mut found = folders.flat_map(|f| [f.join(name), f.join("aux").join(name)]);
    found.find(|p| File::open(p).is_ok_and(|f| f.metadata().is_ok_and(|m| m.is_file())))
}

/// What the beginnings of the trace's files say; `None` if it is no drmemtrace that can be read twice.
pub(super) fn heads(path: &Path) -> Option<Vec<Head>> {
    if !path.is_dir() {
        return Some(vec![head(path)?]);
    }
    let found = in_directory(path).ok()?;
    // The first few say what all are.
    found.files.iter().take(SHOWN).map(|f| head(f)).collect()
}
