//! Files that are written, compressed as their name says.

use crate::bytes::Compression;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

/// A file that is written, compressed as its name says.
pub(super) enum Sink {
    Plain(BufWriter<File>),
    Gzip(BufWriter<flate2::write::GzEncoder<File>>),
    Xz(BufWriter<liblzma::write::XzEncoder<File>>),
    Zstd(BufWriter<zstd::stream::write::Encoder<'static, File>>),
}

impl Sink {
    pub(super) fn new(file: File, path: &Path) -> io::Result<Self> {
        Ok(match path.extension().and_then(OsStr::to_str).and_then(Compression::by_extension) {
            Some(Compression::Gzip) => {
                let level = flate2::Compression::default();
                Self::Gzip(BufWriter::new(flate2::write::GzEncoder::new(file, level)))
            }
            Some(Compression::Xz) => {
                Self::Xz(BufWriter::new(liblzma::write::XzEncoder::new(file, 6)))
            }
            Some(Compression::Zstd) => {
                Self::Zstd(BufWriter::new(zstd::stream::write::Encoder::new(file, 9)?))
            }
            _ => Self::Plain(BufWriter::new(file)),
        })
    }
    fn inner(&mut self) -> &mut dyn Write {
        match self {
            Self::Plain(out) => out,
            Self::Gzip(out) => out,
            Self::Xz(out) => out,
            Self::Zstd(out) => out,
        }
    }
    pub(super) fn finish(self) -> io::Result<()> {
        let mut file = match self {
            Self::Plain(out) => out.into_inner()?,
            Self::Gzip(out) => out.into_inner()?.finish()?,
            Self::Xz(out) => out.into_inner()?.finish()?,
            Self::Zstd(out) => out.into_inner()?.finish()?,
        };
        file.flush()
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.inner().write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.inner().flush()
    }
}
