//! Snappy's framing format (`framing_format.txt`, 2013-10-25), with the chunks that `DynamoRIO` adds.
//!
//! Its tracer can leave checksums out: chunk types 2 and 3, which the format reserves, are 0 and 1
//! without one (`clients/drcachesim/common/snappy_consts.h`). A checksum of 0 that is not right counts
//! as left out, too, as some writers do.

use snap::raw::{Decoder, decompress_len};
use std::io::{self, Read};

const MAGIC: &[u8; 6] = b"sNaPpY";
/// Most bytes that a chunk decompresses to.
const BLOCK: usize = 64 << 10;
/// Most bytes of a chunk: a block that does not shrink, and its checksum.
const CHUNK: usize = BLOCK + BLOCK / 6 + 32 + 4;

/// Decompresses chunks until there are no more.
pub(crate) struct Snappy<R> {
    inner: R,
    decoder: Decoder,
    /// The stream identifier was there.
    begun: bool,
    chunk: Vec<u8>,
    /// A decompressed block, of which `at..end` was not handed on.
    block: Vec<u8>,
    at: usize,
    end: usize,
}

fn bad(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

impl<R: Read> Snappy<R> {
    pub(crate) fn new(inner: R) -> Self {
        let (chunk, block) = (Vec::new(), Vec::new());
        Self { inner, decoder: Decoder::new(), begun: false, chunk, block, at: 0, end: 0 }
    }

    /// Reads the header of a chunk: its type and length. `None` at the end of the file.
    fn header(&mut self) -> io::Result<Option<(u8, usize)>> {
        let mut header = [0; 4];
        let mut have = 0;
        while have < 4 {
            match self.inner.read(&mut header[have..]) {
                Ok(0) if have == 0 => return Ok(None),
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => have += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        let [kind, low, middle, high] = header;
        Ok(Some((kind, usize::from(low) | usize::from(middle) << 8 | usize::from(high) << 16)))
    }

    /// Decompresses the next block, into `buf` if it fits, and else into our own. Bytes in `buf`; `None`
    /// at the end of the file.
    fn next(&mut self, buf: &mut [u8]) -> io::Result<Option<usize>> {
        let Some((kind, length)) = self.header()? else { return Ok(None) };
        if !self.begun && kind != 0xff {
            return Err(bad(format!("chunk of type {kind}, where the stream identifier must be")));
        }
        match kind {
            0..=3 if length > CHUNK || (kind < 2 && length < 4) => {
                Err(bad(format!("chunk of {length} bytes; at most {CHUNK} are possible")))
            }
            0..=3 => {
                self.chunk.resize(length, 0);
                self.inner.read_exact(&mut self.chunk)?;
                self.data(kind, buf).map(Some)
            }
            0xff => {
                let mut magic = [0; 6];
                if length == MAGIC.len() {
                    self.inner.read_exact(&mut magic)?;
                }
                if magic != *MAGIC {
                    return Err(bad("a stream identifier that is not that of snappy".into()));
                }
                self.begun = true;
                Ok(Some(0))
            }
            0x80..=0xfe => {
                // Padding, and what is reserved and may be skipped.
                let skipped =
                    io::copy(&mut self.inner.by_ref().take(length as u64), &mut io::sink())?;
                if skipped < length as u64 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                Ok(Some(0))
            }
            _ => Err(bad(format!("chunk of type {kind}, which may not be skipped"))),
        }
    }

    /// Decompresses the chunk that was read.
    fn data(&mut self, kind: u8, buf: &mut [u8]) -> io::Result<usize> {
        let (sum, data) = match kind {
            0 | 1 => self.chunk.split_at(4),
            _ => self.chunk.split_at(0),
        };
        let compressed = kind.is_multiple_of(2);
        let bytes = if compressed { decompress_len(data)? } else { data.len() };
        if bytes > BLOCK {
            return Err(bad(format!("a block of {bytes} bytes; at most {BLOCK} are possible")));
        }
        let direct = buf.len() >= bytes;
        if !direct && self.block.is_empty() {
            self.block.resize(BLOCK, 0);
        }
        let block = if direct { &mut buf[..bytes] } else { &mut self.block[..bytes] };
        if compressed {
            self.decoder.decompress(data, block)?;
        } else {
            block.copy_from_slice(data);
        }
        if let Ok(sum) = <[u8; 4]>::try_from(sum) {
            let (sum, crc) = (u32::from_le_bytes(sum), crc32c::crc32c(block));
            let masked = crc.rotate_right(15).wrapping_add(0xa282_ead8);
            if sum != 0 && sum != masked {
                return Err(bad(format!(
                    "a block with the checksum {masked:08x}, where {sum:08x} was written"
                )));
            }
        }
        if direct {
            return Ok(bytes);
        }
        (self.at, self.end) = (0, bytes);
        Ok(0)
    }
}

impl<R: Read> Read for Snappy<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        loop {
            if self.at < self.end {
                let n = (self.end - self.at).min(buf.len());
                buf[..n].copy_from_slice(&self.block[self.at..self.at + n]);
                self.at += n;
                return Ok(n);
            }
            match self.next(buf)? {
                None => return Ok(0),
                Some(0) => {}
                Some(n) => return Ok(n),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const IDENTIFIER: &[u8] = b"\xff\x06\0\0sNaPpY";

    fn chunk(kind: u8, data: &[u8]) -> Vec<u8> {
        let length = (data.len() as u32).to_le_bytes();
        [&[kind], &length[..3], data].concat()
    }

    fn decode(bytes: &[u8], piece: usize) -> (Vec<u8>, io::Result<()>) {
        let (mut all, mut some) = (Vec::new(), vec![0; piece]);
        let mut snappy = Snappy::new(bytes);
        loop {
            match snappy.read(&mut some) {
                Ok(0) => return (all, Ok(())),
                Ok(n) => all.extend(&some[..n]),
                Err(e) => return (all, Err(e)),
            }
        }
    }

    #[test]
    fn what_another_writes_is_read() {
        let data: Vec<u8> = (0..300_000_u32).map(|i| (i / 5 % 300 * i / 999) as u8).collect();
        let mut out = snap::write::FrameEncoder::new(Vec::new());
        out.write_all(&data).unwrap();
        let bytes = out.into_inner().unwrap();
        // Files that were put behind one another, read in pieces smaller and larger than blocks.
        let twice = bytes.repeat(2);
        for piece in [1000, 65_536, 1 << 20] {
            let (found, end) = decode(&twice, piece);
            assert!(end.is_ok() && found == data.repeat(2), "{piece}");
        }
        for at in (20..bytes.len()).step_by(1009) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            let (found, end) = decode(&damaged, 65_536);
            assert!(end.is_err() || found == data, "byte {at}");
        }
    }

    #[test]
    fn chunks_without_checksums_are_read() {
        let packed = |data: &[u8]| snap::raw::Encoder::new().compress_vec(data).unwrap();
        let bytes = [
            IDENTIFIER,
            &chunk(2, &packed(b"one, one, one, one; ")),
            &chunk(0xfe, &[0; 9]),
            &chunk(3, b"two; "),
            &chunk(0x80, b"of someone else"),
            &chunk(1, b"\0\0\0\0three; "),
            &chunk(0, &[&[0; 4], &packed(b"four")[..]].concat()),
        ]
        .concat();
        let (found, end) = decode(&bytes, 7);
        assert!(end.is_ok() && found == b"one, one, one, one; two; three; four");
        // Anywhere but between chunks a cut is an error.
        let between = (0..bytes.len()).filter(|cut| decode(&bytes[..*cut], 99).1.is_ok());
        assert_eq!(between.count(), 7);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let message = |bytes: &[u8]| decode(bytes, 99).1.unwrap_err().to_string();
        let with = |chunk: Vec<u8>| message(&[IDENTIFIER, &chunk].concat());
        assert!(message(&chunk(1, b"\0\0\0\0x")).contains("where the stream identifier must be"));
        assert!(message(&chunk(0xff, b"SnApPy")).contains("not that of snappy"));
        assert!(with(chunk(4, b"")).contains("may not be skipped"));
        assert!(with(chunk(1, b"abcdefg")).contains("checksum"));
        assert!(with(chunk(1, b"abc")).contains("chunk of 3 bytes"));
        assert!(with(chunk(3, &[0; 70_000])).contains("at most 65536"));
        assert!(with(chunk(3, &[0; 90_000])).contains("chunk of 90000 bytes"));
        assert!(!with(chunk(2, b"\xff\xff\xff")).is_empty());
    }
}
