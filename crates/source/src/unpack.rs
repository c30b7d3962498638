//! A few bytes that are all there, decompressed: what is packed into a kernel's file.

use crate::erased::Bytes;
use std::io::Read;

/// The most that is unpacked: no kernel is so large, and a damaged file may claim anything.
const MOST_BYTES: u64 = 1 << 30;

/// How a packed piece of a file is compressed, told by its magic number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Packing {
    /// RFC 1952.
    Gzip,
    /// The `.xz` file format 1.2.
    Xz,
    /// RFC 8878.
    Zstd,
}

impl Packing {
    /// What begins like this; `None` if it is none of these.
    #[must_use]
    pub const fn of(packed: &[u8]) -> Option<Self> {
        match packed {
            [0x1f, 0x8b, 0x08, ..] => Some(Self::Gzip),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some(Self::Xz),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Self::Zstd),
            _ => None,
        }
    }

    /// What this is called.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
        }
    }

    /// The bytes of one stream; what follows it is not looked at.
    ///
    /// # Errors
    /// The stream is damaged, cut off, or holds more than 1 GiB; the text says at which byte of it
    /// the decompressor stopped.
    pub fn unpack(self, packed: &[u8]) -> Result<Vec<u8>, String> {
        let mut rest = packed;
        let mut unpacked = Vec::new();
        let read = {
            let input = std::io::BufReader::new(&mut rest);
            let reader: std::io::Result<Box<dyn Bytes + '_>> = match self {
                Self::Gzip => Ok(Box::new(flate2::bufread::GzDecoder::new(input))),
                Self::Xz => Ok(Box::new(liblzma::bufread::XzDecoder::new(input))),
                Self::Zstd => zstd::stream::read::Decoder::with_buffer(input).and_then(|mut d| {
                    // Kernels are packed at the highest level, whose windows are larger than usual.
                    d.window_log_max(30)?;
                    Ok(Box::new(d.single_frame()) as Box<dyn Bytes + '_>)
                }),
            };
            reader.and_then(|r| r.take(MOST_BYTES + 1).read_to_end(&mut unpacked))
        };
        let at = packed.len() - rest.len();
        read.map_err(|e| format!("{} stream, at or before its byte {at}: {e}", self.name()))?;
        if unpacked.len() as u64 > MOST_BYTES {
            return Err(format!("{} stream of more than {MOST_BYTES} bytes", self.name()));
        }
        Ok(unpacked)
    }
}
