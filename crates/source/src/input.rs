//! Opening a file as a source: compression and format are told by content, not by name.

use crate::bytes::Window;
use crate::champsim::{self, ChampSim, Layout};
use crate::decoder::Decoder;
use crate::dinero::{self, Dinero};
use crate::drmemtrace::{self, Drmemtrace};
use crate::gem5::{self, Gem5};
use crate::lackey::{self, Lackey};
use crate::lines::LineDecoder;
use crate::perf::{self, Perf};
use crate::pinatrace::{self, Pinatrace};
use crate::trace::{self, TraceReader};
use nestwalk_types::{Source, SourceError};
use std::fs::File;
use std::io;
use std::path::Path;

/// A trace format.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// Text of `valgrind --tool=lackey --trace-mem=yes`.
    Lackey,
    /// 64-byte `ChampSim` records.
    ChampSim,
    /// 96-byte records of `ChampSim` for `CloudSuite`, with address spaces.
    CloudSuite,
    /// Text of Pin's example tool `pinatrace`.
    Pinatrace,
    /// Dinero's `din` text, plain or extended.
    Dinero,
    /// Text of `perf script`: sampled data addresses.
    Perf,
    /// gem5's packet traces.
    Gem5,
    /// `DynamoRIO` drmemtrace, final (post-processed) form.
    Drmemtrace,
    /// Recorded guests, [`trace`]: plain files, which are compressed inside.
    Nestwalk,
}

impl Format {
    /// All formats, in the order in which they are tried.
    pub const ALL: [Self; 9] = [
        Self::Nestwalk,
        Self::Gem5,
        Self::Lackey,
        Self::Pinatrace,
        Self::Perf,
        Self::Dinero,
        Self::Drmemtrace,
        Self::ChampSim,
        Self::CloudSuite,
    ];

    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lackey => "lackey",
            Self::ChampSim => "champsim",
            Self::CloudSuite => "cloudsuite",
            Self::Pinatrace => "pinatrace",
            Self::Dinero => "dinero",
            Self::Perf => "perf",
            Self::Gem5 => "gem5",
            Self::Drmemtrace => "drmemtrace",
            Self::Nestwalk => "nestwalk",
        }
    }

    /// The format that the first bytes of a file show, if one does.
    fn of(head: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.fits(head))
    }

    /// Whether the first bytes of a file show this format.
    fn fits(self, head: &[u8]) -> bool {
        match self {
            Self::Lackey => lackey::matches(head),
            Self::ChampSim | Self::CloudSuite => champsim::matches(head, self),
            Self::Drmemtrace => drmemtrace::matches(head),
            Self::Nestwalk => trace::matches(head),
            Self::Pinatrace => pinatrace::matches(head),
            Self::Dinero => dinero::matches(head),
            Self::Perf => perf::matches(head),
            Self::Gem5 => gem5::matches(head),
        }
    }

    /// The format to read a file in that was said to be of this one: `CloudSuite`'s records are
    /// `ChampSim`'s, too. One that looks like another, and not like this one, is refused.
    fn forced(self, head: &[u8]) -> Result<Self, String> {
        match Self::of(head) {
            Some(Self::CloudSuite) if self == Self::ChampSim => {
                Ok(if champsim::is_surely_cloudsuite(head) { Self::CloudSuite } else { self })
            }
            Some(Self::ChampSim)
                if self == Self::CloudSuite && champsim::may_be_cloudsuite(head) =>
            {
                Ok(Self::CloudSuite)
            }
            Some(found) if found != self && !self.fits(head) => Err(format!(
                "said to be {self}, but its first {} bytes are those of a {found} trace; leave \
                 `--trace-format` out, or say {found}",
                head.len()
            )),
            _ => Ok(self),
        }
    }

    fn names() -> String {
        Self::ALL.map(Self::name).join(", ")
    }
}

impl std::str::FromStr for Format {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|f| f.name() == text);
        found.ok_or_else(|| format!("unknown trace format `{text}`; there are {}", Self::names()))
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

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
pub fn open_on(
    path: &Path,
    format: Option<Format>,
    vcpus: u8,
) -> Result<Box<dyn Source>, SourceError> {
    if format.is_none_or(|f| f == Format::Drmemtrace) && path.is_dir() {
        return Ok(Box::new(Drmemtrace::open_directory(path, vcpus)?));
    }
    let (name, mut file, total) = open_file(path)?;
    if format.is_none_or(|f| f == Format::Drmemtrace) && drmemtrace::is_zip(&mut file) {
        return Ok(Box::new(Drmemtrace::open(path)?));
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
            Format::names().replace(", ", " nor "),
            window.peek(HEAD).len()
        )));
    };
    Ok(match found {
        Format::Lackey => Box::new(Lackey::source(name, window, total)),
        Format::ChampSim => Box::new(ChampSim::source(name, window, total, Layout::Plain)),
        Format::CloudSuite => Box::new(ChampSim::source(name, window, total, Layout::CloudSuite)),
        Format::Pinatrace => lines::<Pinatrace>(name, window, total),
        Format::Dinero => lines::<Dinero>(name, window, total),
        Format::Perf => lines::<Perf>(name, window, total),
        Format::Gem5 => Box::new(Gem5::source(name, window, total)),
        Format::Drmemtrace => Box::new(Drmemtrace::source(name, window, total)),
        Format::Nestwalk if window.is_compressed() => {
            return Err(fail(
                "a trace of nestwalk that was compressed once more; it is compressed inside, so \
                 decompress it and give the plain file"
                    .into(),
            ));
        }
        Format::Nestwalk => Box::new(TraceReader::open(path)?),
    })
}

fn lines<F>(name: String, window: Window, total: Option<u64>) -> Box<dyn Source>
where
    F: crate::lines::Lines + Default + 'static,
{
    Box::new(Decoder::new(name, window, total, LineDecoder::<F>::default()))
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
