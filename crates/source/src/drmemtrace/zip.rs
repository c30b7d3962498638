//! The members of a zip archive, one after the other, as one stream.
//!
//! Structures as in PKWARE's APPNOTE.TXT 6.3.10: end of central directory (4.3.16), its zip64 form
//! (4.3.14, 4.3.15), central directory headers (4.3.12), local headers (4.3.7), the zip64 extended
//! information field (4.5.3). Members are stored or deflated, as minizip writes them.

use crate::erased::Anywhere;
use flate2::Crc;
use flate2::bufread::DeflateDecoder;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};

const LOCAL: &[u8; 4] = b"PK\x03\x04";
const CENTRAL: &[u8; 4] = b"PK\x01\x02";
const END: &[u8; 4] = b"PK\x05\x06";
const END_64: &[u8; 4] = b"PK\x06\x06";
const END_64_LOCATOR: &[u8; 4] = b"PK\x06\x07";
/// Bytes of the end record with the longest comment.
const END_MAX: u64 = 22 + 65_535;
/// Largest central directory that is read: a million members.
const DIRECTORY_MAX: u64 = 128 << 20;

/// Whether the file is a zip archive; leaves it at its beginning. `false` for what cannot seek.
pub(crate) fn is_zip(file: &mut File) -> bool {
    if !file.metadata().is_ok_and(|m| m.is_file()) {
        return false;
    }
    let mut magic = [0; 4];
    let found = file.read_exact(&mut magic).is_ok() && magic == *LOCAL;
    file.rewind().is_ok() && found
}

struct Member {
    name: String,
    /// Offset of the local header.
    offset: u64,
    /// Bytes of data as stored.
    bytes: u64,
    /// Bytes of data, and their CRC-32.
    full: u64,
    crc: u32,
    deflated: bool,
}

/// Reads all members in the order of the central directory.
pub(super) struct Chunks {
    members: std::vec::IntoIter<Member>,
    state: State,
    /// The member that is read, and what was read of it.
    now: Option<Member>,
    read: u64,
    crc: Crc,
}

/// The archive.
type Input = Box<dyn Anywhere>;
/// Compressed bytes read at a time.
const INPUT: usize = 32 << 10;

enum State {
    Between(Input),
    Stored(io::Take<Input>),
    Deflated(DeflateDecoder<BufReader<io::Take<Input>>>),
    Broken,
}

fn bad(message: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message.into())
}
fn u16_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 2).map_or(0, |b| u64::from(u16::from_le_bytes([b[0], b[1]])))
}
fn u32_at(bytes: &[u8], at: usize) -> u64 {
    u16_at(bytes, at) | u16_at(bytes, at + 2) << 16
}
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u32_at(bytes, at) | u32_at(bytes, at + 4) << 32
}

/// Offset and length of the central directory.
fn find_directory(reader: &mut Input) -> io::Result<(u64, u64)> {
    let length = reader.seek(SeekFrom::End(0))?;
    let tail = length.min(END_MAX);
    reader.seek(SeekFrom::Start(length - tail))?;
    let mut bytes = Vec::new();
    reader.take(tail).read_to_end(&mut bytes)?;
    let end = bytes.windows(22).rposition(|w| w.starts_with(END)).ok_or_else(|| {
        bad("a zip archive without its directory at the end: the file was cut off")
    })?;
    let (size, offset) = (u32_at(&bytes, end + 12), u32_at(&bytes, end + 16));
    let locator = end.checked_sub(20).filter(|&at| bytes[at..].starts_with(END_64_LOCATOR));
    let Some(locator) = locator.filter(|_| size == 0xffff_ffff || offset == 0xffff_ffff) else {
        return Ok((offset, size));
    };
    reader.seek(SeekFrom::Start(u64_at(&bytes, locator + 8)))?;
    let mut end_64 = [0; 56];
    reader.read_exact(&mut end_64)?;
    if !end_64.starts_with(END_64) {
        return Err(bad("a zip archive whose zip64 directory is damaged"));
    }
    Ok((u64_at(&end_64, 48), u64_at(&end_64, 40)))
}

/// The member at the front of the central directory, and the bytes of its header.
fn member(bytes: &[u8]) -> io::Result<(Member, usize)> {
    let (name, extra, comment) = (u16_at(bytes, 28), u16_at(bytes, 30), u16_at(bytes, 32));
    let header = 46 + (name + extra + comment) as usize;
    if !bytes.starts_with(CENTRAL) || bytes.len() < header {
        return Err(bad("a zip archive whose directory is damaged"));
    }
    let extra_at = 46 + name as usize;
    let name = String::from_utf8_lossy(&bytes[46..extra_at]).into_owned();
    let (mut stored, mut full) = (u32_at(bytes, 20), u32_at(bytes, 24));
    let (crc, mut offset) = (u32_at(bytes, 16) as u32, u32_at(bytes, 42));
    let mut field = &bytes[extra_at..extra_at + extra as usize];
    while field.len() >= 4 {
        let end = (4 + u16_at(field, 2) as usize).min(field.len());
        if u16_at(field, 0) == 1 {
            // Only those that do not fit above are here, in this order.
            let mut at = 4;
            for value in [&mut full, &mut stored, &mut offset] {
                if *value == 0xffff_ffff {
                    *value = u64_at(&field[..end], at);
                    at += 8;
                }
            }
        }
        field = &field[end..];
    }
    let deflated = match u16_at(bytes, 10) {
        0 => false,
        8 => true,
        other => {
            return Err(bad(format!(
                "member {name}: compression method {other}; 0 or 8 can be read"
            )));
        }
    };
    Ok((Member { name, offset, bytes: stored, full, crc, deflated }, header))
}

impl Chunks {
    pub(super) fn open(mut reader: Input) -> io::Result<Self> {
        let (offset, size) = find_directory(&mut reader)?;
        if size > DIRECTORY_MAX {
            return Err(bad(format!("a zip archive with a directory of {size} bytes: damaged")));
        }
        reader.seek(SeekFrom::Start(offset))?;
        let mut bytes = Vec::new();
        reader.by_ref().take(size).read_to_end(&mut bytes)?;
        let mut members = Vec::new();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let (member, header) = member(rest)?;
            members.push(member);
            rest = &rest[header..];
        }
        if members.is_empty() {
            return Err(bad("a zip archive without members"));
        }
        Ok(Self {
            members: members.into_iter(),
            state: State::Between(reader),
            now: None,
            read: 0,
            crc: Crc::new(),
        })
    }

    /// Leaves out the members that end at `offset` of the data or before; says where what is left
    /// begins.
    pub(super) fn skip(&mut self, offset: u64) -> u64 {
        let mut begin = 0_u64;
        while let Some(end) =
            self.members.as_slice().first().and_then(|m| begin.checked_add(m.full))
            && end <= offset
        {
            begin = end;
            self.members.next();
        }
        begin
    }

    /// Whether the member that has ended is what the directory says.
    fn check(&mut self) -> io::Result<()> {
        let Some(member) = self.now.take() else { return Ok(()) };
        let (read, crc) = (std::mem::take(&mut self.read), self.crc.sum());
        self.crc.reset();
        if (read, crc) == (member.full, member.crc) {
            return Ok(());
        }
        Err(bad(format!(
            "member {}: {read} bytes with the checksum {crc:08x}, where the directory says {} with \
             {:08x}: damaged",
            member.name, member.full, member.crc
        )))
    }

    /// Goes to the data of the next member. `Ok(false)` if there is none.
    fn next(&mut self, mut reader: Input) -> io::Result<bool> {
        let Some(member) = self.members.next() else {
            self.state = State::Between(reader);
            return Ok(false);
        };
        let mut header = [0; 30];
        reader.seek(SeekFrom::Start(member.offset))?;
        reader.read_exact(&mut header)?;
        if !header.starts_with(LOCAL) {
            return Err(bad(format!(
                "member {} at byte {}: no header",
                member.name, member.offset
            )));
        }
        let skip = u16_at(&header, 26) + u16_at(&header, 28);
        reader.seek(SeekFrom::Start(member.offset + 30 + skip))?;
        let data = reader.take(member.bytes);
        self.state = if member.deflated {
            State::Deflated(DeflateDecoder::new(BufReader::with_capacity(INPUT, data)))
        } else {
            State::Stored(data)
        };
        self.now = Some(member);
        Ok(true)
    }
}

impl Read for Chunks {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        loop {
            let n = match &mut self.state {
                State::Between(_) => Ok(0),
                State::Stored(data) => data.read(buf),
                State::Deflated(data) => data.read(buf),
                State::Broken => return Ok(0),
            };
            let n = n.map_err(|e| {
                bad(format!("member {}: {e}", self.now.as_ref().map_or("", |m| &m.name)))
            })?;
            if n > 0 {
                self.crc.update(&buf[..n]);
                self.read += n as u64;
                return Ok(n);
            }
            // An error below leaves the archive broken: nothing more comes.
            let reader = match std::mem::replace(&mut self.state, State::Broken) {
                State::Between(reader) => reader,
                State::Stored(data) => data.into_inner(),
                State::Deflated(data) => data.into_inner().into_inner().into_inner(),
                State::Broken => return Ok(0),
            };
            self.check()?;
            if !self.next(reader)? {
                return Ok(0);
            }
        }
    }
}
