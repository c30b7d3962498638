//! Trace formats: what the file of each one says of it, and how one is found.

use crate::FORMATS;
use crate::bytes::Window;
use crate::decoder::Decoder;
use crate::export::Writing;
use crate::lines::{LineDecoder, Lines};
use nestwalk_types::{Source, SourceError};
use std::fs::File;
use std::path::Path;

/// A source that was opened, or why it could not be.
pub(crate) type Opened = Result<Box<dyn Source>, SourceError>;

/// Which format a file is read in that looks, by its first bytes, like the one given here.
pub(crate) type Alike = fn(Format, &[u8]) -> Option<Format>;

/// A file that begins as a format does.
pub(crate) struct Input<'a> {
    /// Where it lies.
    pub(crate) path: &'a Path,
    /// Its name for messages.
    pub(crate) name: String,
    /// Its bytes, decompressed.
    pub(crate) window: Window,
    /// Its length in bytes, compressed, if it has one.
    pub(crate) total: Option<u64>,
}

/// What there is to know of a format: its file has one of these, named `FORMAT`, and the list in
/// `lib.rs` has its word.
pub(crate) struct Definition {
    /// The name on the command line.
    pub(crate) name: &'static str,
    /// What such a file is, in some words.
    pub(crate) summary: &'static str,
    /// A record, if records are lines.
    pub(crate) example: Option<&'static str>,
    /// Whether the first bytes of a file, decompressed, show this format. Of those that fit, the first
    /// in the list is taken.
    pub(crate) matches: fn(&[u8]) -> bool,
    /// Opens it.
    pub(crate) read: fn(Input<'_>) -> Opened,
    /// The format to read a file in that was said to be of this one, and looks like the other one that
    /// is given here; `None` if the two have nothing in common.
    pub(crate) alike: Option<Alike>,
    /// Opens a directory, on so many vCPUs, if a trace may be one.
    pub(crate) directory: Option<fn(&Path, u8) -> Opened>,
    /// Opens a file, if it is an archive of this format.
    pub(crate) archive: Option<fn(&Path, &mut File) -> Option<Opened>>,
    /// What the name of a file that is to be written ends with, the usual one first.
    pub(crate) endings: &'static [&'static str],
    /// How accesses are written, if they can be.
    pub(crate) write: Option<&'static Writing>,
}

impl Definition {
    /// A format that is read as a stream of bytes, and not written.
    pub(crate) const fn new(
        name: &'static str,
        summary: &'static str,
        matches: fn(&[u8]) -> bool,
        read: fn(Input<'_>) -> Opened,
    ) -> Self {
        Self {
            name,
            summary,
            example: None,
            matches,
            read,
            alike: None,
            directory: None,
            archive: None,
            endings: &[],
            write: None,
        }
    }

    /// A format whose records are lines, which is not written.
    pub(crate) const fn of_lines<F: Lines + Default + 'static>(
        name: &'static str,
        summary: &'static str,
        matches: fn(&[u8]) -> bool,
    ) -> Self {
        Self { example: Some(F::EXAMPLE), ..Self::new(name, summary, matches, lines::<F>) }
    }
}

fn lines<F: Lines + Default + 'static>(input: Input<'_>) -> Opened {
    let decoder = LineDecoder::<F>::default();
    Ok(Box::new(Decoder::new(input.name, input.window, input.total, decoder)))
}

/// A trace format.
#[derive(Clone, Copy)]
pub struct Format(&'static Definition);

impl Format {
    /// All formats, in the order in which they are tried.
    pub const ALL: &'static [Self] = FORMATS;

    /// Recorded guests, [`crate::trace`]: plain files, which are compressed inside.
    pub const NESTWALK: Self = Self(&crate::trace::FORMAT);

    pub(crate) const fn new(definition: &'static Definition) -> Self {
        Self(definition)
    }

    pub(crate) const fn definition(self) -> &'static Definition {
        self.0
    }

    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        self.0.name
    }

    /// What such a file is, in some words.
    pub const fn summary(self) -> &'static str {
        self.0.summary
    }

    /// A record, if records are lines and the format is not lackey's, which has a decoder of its own.
    pub const fn example(self) -> Option<&'static str> {
        self.0.example
    }

    /// What the name of a file that is to be written in this format ends with, the usual one first.
    pub const fn endings(self) -> &'static [&'static str] {
        self.0.endings
    }

    /// Whether [`crate::Exporter`] writes it.
    pub const fn can_hold_accesses(self) -> bool {
        self.0.write.is_some()
    }

    /// The format that the first bytes of a file show, if one does.
    pub(crate) fn of(head: &[u8]) -> Option<Self> {
        Self::ALL.iter().copied().find(|format| (format.0.matches)(head))
    }

    /// The format to read a file in that was said to be of this one. One that looks like another, and
    /// neither like this one nor like one that is alike, is refused.
    pub(crate) fn forced(self, head: &[u8]) -> Result<Self, String> {
        let Some(found) = Self::of(head).filter(|found| *found != self) else { return Ok(self) };
        if let Some(alike) = self.0.alike.and_then(|alike| alike(found, head)) {
            return Ok(alike);
        }
        if (self.0.matches)(head) {
            return Ok(self);
        }
        Err(format!(
            "said to be {self}, but its first {} bytes are those of a {found} trace; leave \
             `--trace-format` out, or say {found}",
            head.len()
        ))
    }

    /// The names of all, in their order.
    pub fn names() -> Vec<&'static str> {
        Self::ALL.iter().map(|format| format.name()).collect()
    }
}

impl PartialEq for Format {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl Eq for Format {}

impl std::str::FromStr for Format {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.iter().copied().find(|format| format.name() == text);
        found.ok_or_else(|| {
            format!("unknown trace format `{text}`; there are {}", Self::names().join(", "))
        })
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::fmt::Debug for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
