//! Opening a file as a source: compression and format are told by content, not by name.

use crate::bytes::Window;
use crate::formats::{Format, Input, Opened};
use nestwalk_types::{Source, SourceError};
use std::fs::File;
use std::io;
use std::path::Path;

/// Decompressed bytes that detection looks at: some 200 lines of text, 64 `ChampSim` records.
pub(crate) const HEAD: usize = 4096;

/// Opens the trace at `path`. Compression (gzip, xz, zstd, LZ4, snappy, bzip2, zip for drmemtrace) is
/// told by content, and so is the format, unless it is given.
///
/// A directory is a drmemtrace: its files are the threads or cores of a trace.
/// Everything runs on one vCPU; see [`open_on`].
///
/// # Errors
/// The file does not exist, cannot be read, is a directory or empty, or is in none of the formats.
pub fn open(path: &Path, format: Option<Format>) -> Result<Box<dyn Source>, SourceError> {
    open_on(path, format, 1)
}

/// As [`open`], with the threads of a trace that keeps them apart on so many vCPUs.
///
/// # Errors
/// As [`open`].
pub fn open_on(path: &Path, format: Option<Format>, vcpus: u8) -> Opened {
    let wanted = || Format::ALL.iter().filter(|f| format.is_none_or(|said| said == **f));
    if path.is_dir()
        && let Some(open) = wanted().find_map(|f| f.definition().directory)
    {
        return open(path, vcpus);
    }
    let (name, mut file, total) = open_file(path)?;
    for archive in wanted().filter_map(|f| f.definition().archive) {
        if let Some(opened) = archive(path, &mut file) {
            return opened;
        }
    }
    let mut window = not_empty(&name, Window::file(file))?;
    let fail = |message| SourceError { source: name.clone(), message };
    let found = match format {
        Some(format) => Some(format.forced(window.peek(HEAD)).map_err(fail)?),
        None => Format::of(window.peek(HEAD)),
    };
    let Some(found) = found else {
        window.failure().map_err(fail)?;
        return Err(fail(format!(
            "neither {} by its first {} bytes; name the format with `--trace-format` if it is one \
             of these",
            Format::names().join(" nor "),
            window.peek(HEAD).len()
        )));
    };
    (found.definition().read)(Input { path, name, window, total })
}

/// A file that is one and has something in it: its name for messages, and its length in bytes, which
/// a pipe does not have.
pub(crate) fn open_file(path: &Path) -> Result<(String, File, Option<u64>), SourceError> {
    let name = path.display().to_string();
    let fail = |message: String| SourceError { source: name.clone(), message };
    let file = File::open(path).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => fail("no such file; give the path of a trace".into()),
        _ => fail(format!("cannot be opened: {e}")),
    })?;
    let metadata = file.metadata().map_err(|e| cannot_read(&name, &e))?;
    if metadata.is_dir() {
        return Err(fail(
            "a directory; give a file (only a drmemtrace is a directory, with a file per thread)"
                .into(),
        ));
    }
    if metadata.is_file() && metadata.len() == 0 {
        return Err(fail("an empty file; a trace has at least one record".into()));
    }
    let total = metadata.is_file().then_some(metadata.len());
    Ok((name, file, total))
}

/// The window of an input, if it could be opened and has something in it. A pipe or a device has no
/// length, and what is compressed has its own, so the first block is waited for.
pub(crate) fn not_empty(name: &str, window: io::Result<Window>) -> Result<Window, SourceError> {
    let mut window = window.map_err(|e| cannot_read(name, &e))?;
    if window.peek(1).is_empty() {
        let fail = |message| SourceError { source: name.to_owned(), message };
        window.failure().map_err(fail)?;
        let after = if window.is_compressed() { " after decompression" } else { "" };
        return Err(fail(format!("empty{after}; a trace has at least one record")));
    }
    Ok(window)
}

pub(crate) fn cannot_read(name: &str, error: &io::Error) -> SourceError {
    SourceError { source: name.to_owned(), message: format!("cannot be read: {error}") }
}
