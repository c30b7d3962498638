//! Bytes of a trace: decompression by content, read ahead in a thread of its own.

use crate::erased::Bytes;
use crate::lz4::Lz4;
use crate::snappy::Snappy;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// Bytes handed from the reading thread at a time: large enough that the hand-over costs nothing,
/// small enough that all blocks in flight stay in a second-level cache.
pub(crate) const BLOCK: usize = 256 << 10;
/// Blocks that the reading thread may be ahead.
const AHEAD: usize = 3;
/// Compressed bytes read at a time.
const INPUT: usize = 128 << 10;
/// Bytes of a block where thousands of files are read in turn, compressed and decompressed.
pub(crate) const SMALL: usize = 16 << 10;

/// How a file is compressed, told by its first bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Compression {
    None,
    /// RFC 1952.
    Gzip,
    /// The `.xz` file format 1.2, section 2.1.1.1.
    Xz,
    /// RFC 8878; skippable frames too, which parallel compressors write first.
    Zstd,
    /// The LZ4 frame format 1.6.4.
    Lz4,
    /// Snappy's framing format, 2013-10-25.
    Snappy,
    /// bzip2, blocks of 100 to 900 kB.
    Bzip2,
}

impl Compression {
    /// Longest magic number.
    pub(crate) const MAGIC: usize = 10;

    pub(crate) fn of(head: &[u8]) -> Self {
        match head {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [0x04, 0x22, 0x4d, 0x18, ..] | [0x02, 0x21, 0x4c, 0x18, ..] => Self::Lz4,
            [0xff, 0x06, 0, 0, b's', b'N', b'a', b'P', b'p', b'Y'] => Self::Snappy,
            // The block's magic number is pi, that of an empty stream the root of pi.
            [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, 0x59, 0x26, 0x53, 0x59]
            | [b'B', b'Z', b'h', b'1'..=b'9', 0x17, 0x72, 0x45, 0x38, 0x50, 0x90] => Self::Bzip2,
            _ => Self::None,
        }
    }
    /// What files with this ending are compressed with, if they are.
    pub(crate) fn by_extension(extension: &str) -> Option<Self> {
        match extension {
            "gz" => Some(Self::Gzip),
            "xz" => Some(Self::Xz),
            "zst" => Some(Self::Zstd),
            _ => None,
        }
    }
    /// Bytes that a decompressor keeps, by what the beginning of the file says of it.
    pub(crate) fn memory(self, head: &[u8]) -> usize {
        let at = |index: usize| head.get(index).copied().unwrap_or(0);
        match self {
            Self::None => 0,
            // A window of 32 KiB, twice, and the tables of codes.
            Self::Gzip => 80 << 10,
            // A block, and the most that one may take compressed.
            Self::Snappy => (64 << 10) + (76 << 10),
            // Blocks of 64 KiB to 4 MiB: one compressed, two and a window decompressed.
            Self::Lz4 => 3 << (8 + 2 * usize::from(at(5) >> 4 & 7)),
            // Four bytes for each byte of a block.
            Self::Bzip2 => usize::from(at(3).saturating_sub(b'0')) * 400_000 + (64 << 10),
            Self::Zstd => (256 << 10) + zstd_window(head),
            // The size byte of the dictionary (`.xz` 1.2, 5.3.1), if LZMA2 is the only filter.
            Self::Xz if at(14) == 0x21 => {
                let bits = usize::from(at(16)).min(40);
                (256 << 10) + ((2 | (bits & 1)) << (bits / 2 + 11))
            }
            Self::Xz => 64 << 20,
        }
    }
    fn name(self) -> &'static str {
        match self {
            Self::None => "file",
            Self::Gzip => "gzip stream",
            Self::Xz => "xz stream",
            Self::Zstd => "zstd stream",
            Self::Lz4 => "LZ4 stream",
            Self::Snappy => "snappy stream",
            Self::Bzip2 => "bzip2 stream",
        }
    }
}

/// The window that the header of a zstd frame announces (RFC 8878, 3.1.1.1).
fn zstd_window(head: &[u8]) -> usize {
    let Some([descriptor, window, rest @ ..]) = head.get(4..) else { return 8 << 20 };
    if head[0] != 0x28 {
        // A skippable frame: that behind it is not seen.
        return 8 << 20;
    }
    if descriptor & 0x20 == 0 {
        let base = 1_usize << (10 + (window >> 3));
        return base + base / 8 * usize::from(window & 7);
    }
    // The window is the content, whose size is behind the identifier of a dictionary.
    let mut size = [0; 8];
    let dictionary = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let bytes = [1, 2, 4, 8][usize::from(descriptor >> 6)];
    let all: Vec<u8> = std::iter::once(*window).chain(rest.iter().copied()).collect();
    let Some(field) = all.get(dictionary..dictionary + bytes) else { return 8 << 20 };
    size[..bytes].copy_from_slice(field);
    usize::try_from(u64::from_le_bytes(size)).unwrap_or(usize::MAX).saturating_add(256)
}

/// Counts the bytes that were taken from the file.
pub(crate) struct Counting<R> {
    pub(crate) inner: R,
    pub(crate) taken: Arc<AtomicU64>,
}

impl<R: Seek> Seek for Counting<R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.inner.seek(to)
    }
}

impl<R: Read> Read for Counting<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.taken.fetch_add(n as u64, Relaxed);
        Ok(n)
    }
}

/// Bytes before each block that the reading thread fills, in which what is left of the block before it
/// finds room: half a record, as a rule, and then nothing is copied.
const HEADROOM: usize = 4096;

/// A block of the decompressed stream behind the headroom, its end, and what ended the stream if this is
/// the last one.
type Block = (Vec<u8>, usize, Option<Result<(), String>>);

enum Input {
    /// Read when more is wanted, in blocks of so many bytes.
    Direct(Box<dyn Bytes>, usize),
    /// Blocks that are read ahead, and a way back for their memory.
    Thread(Receiver<Block>, SyncSender<Vec<u8>>),
}

/// A window on the decompressed stream: a decoder consumes from the front, blocks join at the back.
pub(crate) struct Window {
    input: Input,
    compression: Compression,
    /// Memory, of which `pos..filled` was read and not consumed yet.
    buf: Vec<u8>,
    pos: usize,
    filled: usize,
    /// Offset of `buf[pos]` in the decompressed stream.
    offset: u64,
    end: Option<Result<(), String>>,
    taken: Arc<AtomicU64>,
}

impl Window {
    /// A window on `reader`, decompressing what `compression` says.
    ///
    /// Reading and decompressing have a thread of their own if `thread`: worth it for files, not
    /// for a few bytes in memory.
    pub(crate) fn new(
        reader: Box<dyn Bytes>,
        compression: Compression,
        thread: bool,
    ) -> io::Result<Self> {
        let taken = Arc::new(AtomicU64::new(0));
        let decoded = decompress(reader, compression, INPUT, &taken)?;
        let input = if thread {
            let (send, receive) = sync_channel(AHEAD);
            let (give_back, used) = sync_channel(AHEAD + 2);
            let taken = taken.clone();
            std::thread::Builder::new()
                .name("trace-reader".into())
                .spawn(move || read_ahead(decoded, compression, &taken, &send, &used))?;
            Input::Thread(receive, give_back)
        } else {
            Input::Direct(decoded, BLOCK)
        };
        Ok(Self::of(input, compression, taken))
    }

    /// A window that takes as little memory as it can, beside what the decompressor needs, and reads
    /// when it is asked: for one of thousands of files. `taken` counts the bytes taken from the file.
    pub(crate) fn small(
        reader: Box<dyn Bytes>,
        compression: Compression,
        taken: Arc<AtomicU64>,
    ) -> io::Result<Self> {
        let decoded = decompress(reader, compression, SMALL, &taken)?;
        Ok(Self::of(Input::Direct(decoded, SMALL), compression, taken))
    }

    fn of(input: Input, compression: Compression, taken: Arc<AtomicU64>) -> Self {
        let buf = Vec::new();
        Self { input, compression, buf, pos: 0, filled: 0, offset: 0, end: None, taken }
    }

    /// A window on a reader of which nothing is known yet: its magic number decides.
    pub(crate) fn detect(mut reader: Box<dyn Bytes>, thread: bool) -> io::Result<Self> {
        let mut head = Vec::with_capacity(Compression::MAGIC);
        reader.by_ref().take(Compression::MAGIC as u64).read_to_end(&mut head)?;
        let compression = Compression::of(&head);
        Self::new(Box::new(io::Cursor::new(head).chain(reader)), compression, thread)
    }

    pub(crate) fn file(file: File) -> io::Result<Self> {
        Self::detect(Box::new(file), true)
    }

    /// What was read and not consumed yet.
    pub(crate) fn rest(&self) -> &[u8] {
        &self.buf[self.pos..self.filled]
    }
    /// Offset of `rest()[0]` in the decompressed stream.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }
    pub(crate) fn consume(&mut self, bytes: usize) {
        self.pos += bytes;
        self.offset += bytes as u64;
        debug_assert!(self.pos <= self.filled);
    }
    pub(crate) fn is_compressed(&self) -> bool {
        self.compression != Compression::None
    }
    /// The counter of bytes taken from the file, compressed.
    pub(crate) fn taken(&self) -> Arc<AtomicU64> {
        self.taken.clone()
    }

    /// Adds the next block behind [`Window::rest`]. `false` if the stream has ended.
    pub(crate) fn refill(&mut self) -> bool {
        if self.end.is_some() {
            return false;
        }
        let left = self.filled - self.pos;
        match &mut self.input {
            Input::Direct(reader, block) => {
                self.buf.copy_within(self.pos..self.filled, 0);
                (self.pos, self.filled) = (0, left);
                if self.buf.len() < left + *block {
                    self.buf.resize(left + *block, 0);
                }
                let buf = &mut self.buf[left..left + *block];
                let (read, end) = read_block(reader, self.compression, &self.taken, buf);
                self.filled += read;
                self.end = end;
            }
            Input::Thread(receive, used) => match receive.recv() {
                Ok((mut block, filled, end)) => {
                    self.end = end;
                    if left <= HEADROOM {
                        let pos = HEADROOM - left;
                        block[pos..HEADROOM].copy_from_slice(&self.buf[self.pos..self.filled]);
                        let old = std::mem::replace(&mut self.buf, block);
                        (self.pos, self.filled) = (pos, filled);
                        if !old.is_empty() {
                            // The reading thread may have ended.
                            drop(used.try_send(old));
                        }
                    } else {
                        self.buf.truncate(self.filled);
                        self.buf.extend_from_slice(&block[HEADROOM..filled]);
                        self.filled = self.buf.len();
                    }
                }
                Err(_) => self.end = Some(Err("the reading thread ended early".into())),
            },
        }
        self.filled - self.pos > left || self.end.is_none()
    }

    /// Goes forward to this offset in the decompressed stream; `false` if it ends before.
    pub(crate) fn skip_to(&mut self, offset: u64) -> bool {
        while self.offset() < offset {
            let have = self.rest().len() as u64;
            let now = have.min(offset - self.offset());
            self.consume(now as usize);
            if self.offset() < offset && !self.refill() {
                return false;
            }
        }
        true
    }

    /// Says that the stream began at this offset of what is meant, and not at its beginning.
    pub(crate) fn begin_at(&mut self, offset: u64) {
        self.offset += offset;
    }

    /// Reads until `bytes` are there or the stream ends, and shows these, or what there is.
    pub(crate) fn peek(&mut self, bytes: usize) -> &[u8] {
        while self.rest().len() < bytes && self.refill() {}
        let rest = self.rest();
        &rest[..bytes.min(rest.len())]
    }

    /// Why the stream ended where it did; `Ok` while it goes on.
    pub(crate) fn failure(&self) -> Result<(), String> {
        self.end.clone().unwrap_or(Ok(()))
    }
}

/// The decompressed bytes of `reader`, of which so many are read at a time.
fn decompress(
    reader: Box<dyn Bytes>,
    compression: Compression,
    input: usize,
    taken: &Arc<AtomicU64>,
) -> io::Result<Box<dyn Bytes>> {
    let counted = Counting { inner: reader, taken: taken.clone() };
    let buffered = |counted| BufReader::with_capacity(input, counted);
    Ok(match compression {
        Compression::None => Box::new(counted),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(buffered(counted))),
        Compression::Xz => {
            Box::new(liblzma::bufread::XzDecoder::new_multi_decoder(buffered(counted)))
        }
        Compression::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(buffered(counted))?),
        Compression::Lz4 => Box::new(Lz4::new(buffered(counted))),
        Compression::Snappy => Box::new(Snappy::new(buffered(counted))),
        Compression::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(buffered(counted))),
    })
}

fn read_ahead(
    mut reader: Box<dyn Bytes>,
    compression: Compression,
    taken: &AtomicU64,
    send: &SyncSender<Block>,
    used: &Receiver<Vec<u8>>,
) {
    loop {
        let fits = |block: &Vec<u8>| block.len() == HEADROOM + BLOCK;
        let old = used.try_recv().ok().filter(fits);
        let mut block = old.unwrap_or_else(|| vec![0; HEADROOM + BLOCK]);
        let (read, end) = read_block(&mut reader, compression, taken, &mut block[HEADROOM..]);
        let last = end.is_some();
        // A closed channel means that nobody wants the rest.
        if send.send((block, HEADROOM + read, end)).is_err() || last {
            return;
        }
    }
}

/// Fills `buf` as far as the stream goes: bytes read, and how the stream ended if it did.
fn read_block(
    reader: &mut Box<dyn Bytes>,
    compression: Compression,
    taken: &AtomicU64,
    buf: &mut [u8],
) -> (usize, Option<Result<(), String>>) {
    let mut have = 0;
    while have < buf.len() {
        match reader.read(&mut buf[have..]) {
            Ok(0) => return (have, Some(Ok(()))),
            Ok(n) => have += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return (have, Some(Err(describe(compression, taken.load(Relaxed), &e)))),
        }
    }
    (have, None)
}

fn describe(compression: Compression, taken: u64, error: &io::Error) -> String {
    if compression == Compression::None {
        return format!("cannot be read on after byte {taken}: {error}");
    }
    // The decompressor has read ahead, so the place is where it stopped asking.
    let what = match error.kind() {
        io::ErrorKind::UnexpectedEof => "ends early: the file was cut off",
        _ => "is damaged",
    };
    format!(
        "the {} {what} (at or before byte {taken} of the file; {error}); \
         everything before was used",
        compression.name()
    )
}
