//! Blocks: what a file is made of.
//!
//! A block is a head of 16 bytes (a tag of 4 letters, the length of the payload, the CRC-32 of the
//! payload, the CRC-32 of the 12 bytes before; numbers are little-endian) and its payload. So a length
//! is believed only if its own checksum is right.

use crate::erased::Anywhere;
use std::io::{self, Read, Seek, SeekFrom};

/// First bytes of a file. As in PNG: a byte that no text has, and line ends that a transfer as text
/// would change.
pub(super) const MAGIC: [u8; 8] = *b"\x89NWT\r\n\x1a\n";
/// Version of the format, which follows the magic number in 4 bytes. Versions 1 and 2 were never
/// shipped.
pub(super) const VERSION: u32 = 3;
/// Bytes of magic number and version.
pub(super) const START: u64 = 12;
/// Bytes of a block's head.
pub(super) const HEAD: usize = 16;
/// Bytes of the trailer: where the last block begins (8), the CRC-32 of that (4), and its own tag.
pub(super) const TRAILER: usize = 16;

pub(super) const TAG_HEADER: [u8; 4] = *b"HEAD";
pub(super) const TAG_CHUNK: [u8; 4] = *b"CHNK";
pub(super) const TAG_END: [u8; 4] = *b"DONE";
const TAG_TRAILER: [u8; 4] = *b"NWTE";

/// The bytes of a block's head.
pub(super) fn head(tag: [u8; 4], payload: &[u8]) -> io::Result<[u8; HEAD]> {
    let length = u32::try_from(payload.len())
        .map_err(|_| io::Error::other(format!("a block of {} bytes is too long", payload.len())))?;
    let mut head = [0; HEAD];
    head[..4].copy_from_slice(&tag);
    head[4..8].copy_from_slice(&length.to_le_bytes());
    head[8..12].copy_from_slice(&crc32fast::hash(payload).to_le_bytes());
    let check = crc32fast::hash(&head[..12]);
    head[12..].copy_from_slice(&check.to_le_bytes());
    Ok(head)
}

/// The bytes of the trailer, for a last block at `offset`.
pub(super) fn trailer(offset: u64) -> [u8; TRAILER] {
    let mut bytes = [0; TRAILER];
    bytes[..8].copy_from_slice(&offset.to_le_bytes());
    let check = crc32fast::hash(&bytes[..8]);
    bytes[8..12].copy_from_slice(&check.to_le_bytes());
    bytes[12..].copy_from_slice(&TAG_TRAILER);
    bytes
}

/// Where the trailer says that the last block begins, if these bytes are one.
pub(super) fn offset_of_end(bytes: &[u8; TRAILER]) -> Option<u64> {
    let [o0, o1, o2, o3, o4, o5, o6, o7, ..] = *bytes;
    let offset = u64::from_le_bytes([o0, o1, o2, o3, o4, o5, o6, o7]);
    (*bytes == trailer(offset)).then_some(offset)
}

/// A block's head, as read.
#[derive(Clone, Copy)]
pub(super) struct Head {
    pub(super) tag: [u8; 4],
    pub(super) length: u32,
    crc: u32,
}

/// How reading a block went wrong.
pub(super) enum Fault {
    /// The file ends within it.
    CutOff,
    /// What is wrong.
    Damaged(String),
}

impl Fault {
    pub(super) fn describe(self) -> String {
        match self {
            Self::CutOff => "the file is cut off here".into(),
            Self::Damaged(what) => what,
        }
    }
}

fn unreadable(error: &io::Error) -> Fault {
    Fault::Damaged(format!("cannot be read: {error}"))
}

/// Reads the head at `offset` of a file of so many bytes.
pub(super) fn read_head(input: &mut dyn Anywhere, offset: u64, file: u64) -> Result<Head, Fault> {
    if offset.saturating_add(HEAD as u64) > file {
        return Err(Fault::CutOff);
    }
    let mut bytes = [0; HEAD];
    input.seek(SeekFrom::Start(offset)).map_err(|e| unreadable(&e))?;
    input.read_exact(&mut bytes).map_err(|e| unreadable(&e))?;
    let word = |i: usize| u32::from_le_bytes([bytes[i], bytes[i + 1], bytes[i + 2], bytes[i + 3]]);
    if word(12) != crc32fast::hash(&bytes[..12]) {
        return Err(Fault::Damaged("the checksum of the block's head is wrong".into()));
    }
    let tag = [bytes[0], bytes[1], bytes[2], bytes[3]];
    if offset + HEAD as u64 + u64::from(word(4)) > file {
        return Err(Fault::CutOff);
    }
    Ok(Head { tag, length: word(4), crc: word(8) })
}

/// Reads the payload that follows a head that was just read.
pub(super) fn read_payload(input: &mut dyn Anywhere, head: Head) -> Result<Vec<u8>, Fault> {
    // The length is within the file, see above.
    let mut payload = vec![0; head.length as usize];
    input.read_exact(&mut payload).map_err(|e| match e.kind() {
        io::ErrorKind::UnexpectedEof => Fault::CutOff,
        _ => unreadable(&e),
    })?;
    if crc32fast::hash(&payload) != head.crc {
        let bytes = payload.len();
        return Err(Fault::Damaged(format!("the checksum of the block's {bytes} bytes is wrong")));
    }
    Ok(payload)
}
