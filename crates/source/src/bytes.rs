//! Bytes of a trace: decompression by content, read ahead in a thread of its own.

use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// Bytes handed from the reading thread at a time: large enough that the hand-over costs nothing,
/// small enough that all blocks in flight stay in a second-level cache.
pub(crate) const BLOCK: usize = 256 << 10;
/// Blocks that the reading thread may be ahead.
const AHEAD: usize = 3;

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
}

impl Compression {
    /// Longest magic number.
    pub(crate) const MAGIC: usize = 6;

    pub(crate) fn of(head: &[u8]) -> Self {
        match head {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
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
    fn name(self) -> &'static str {
        match self {
            Self::None => "file",
            Self::Gzip => "gzip stream",
            Self::Xz => "xz stream",
            Self::Zstd => "zstd stream",
        }
    }
}

/// Counts the bytes that were taken from the file.
struct Counting<R> {
    inner: R,
    taken: Arc<AtomicU64>,
}

impl<R: Read> Read for Counting<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.taken.fetch_add(n as u64, Relaxed);
        Ok(n)
    }
}

/// A block of the decompressed stream, and what ended the stream if this is the last one.
type Block = (Vec<u8>, Option<Result<(), String>>);

enum Input {
    Direct(Box<dyn Read + Send>),
    Thread(Receiver<Block>),
}

/// A window on the decompressed stream: a decoder consumes from the front, blocks join at the back.
pub(crate) struct Window {
    input: Input,
    compression: Compression,
    buf: Vec<u8>,
    pos: usize,
    /// Offset of `buf[0]` in the decompressed stream.
    base: u64,
    end: Option<Result<(), String>>,
    taken: Arc<AtomicU64>,
}

impl Window {
    /// A window on `reader`, decompressing what `compression` says.
    ///
    /// Reading and decompressing have a thread of their own if `thread`: worth it for files, not
    /// for a few bytes in memory.
    pub(crate) fn new(
        reader: Box<dyn Read + Send>,
        compression: Compression,
        thread: bool,
    ) -> io::Result<Self> {
        let taken = Arc::new(AtomicU64::new(0));
        let counted = Counting { inner: reader, taken: taken.clone() };
        let decoded: Box<dyn Read + Send> = match compression {
            Compression::None => Box::new(counted),
            Compression::Gzip => Box::new(flate2::read::MultiGzDecoder::new(counted)),
            Compression::Xz => Box::new(liblzma::read::XzDecoder::new_multi_decoder(counted)),
            Compression::Zstd => Box::new(zstd::stream::read::Decoder::new(counted)?),
        };
        let input = if thread {
            let (send, receive) = sync_channel(AHEAD);
            let taken = taken.clone();
            std::thread::Builder::new()
                .name("trace-reader".into())
                .spawn(move || read_ahead(decoded, compression, &taken, &send))?;
            Input::Thread(receive)
        } else {
            Input::Direct(decoded)
        };
        Ok(Self { input, compression, buf: Vec::new(), pos: 0, base: 0, end: None, taken })
    }

    /// A window on a reader of which nothing is known yet: its magic number decides.
    pub(crate) fn detect(mut reader: Box<dyn Read + Send>, thread: bool) -> io::Result<Self> {
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
        &self.buf[self.pos..]
    }
    /// Offset of `rest()[0]` in the decompressed stream.
    pub(crate) fn offset(&self) -> u64 {
        self.base + self.pos as u64
    }
    pub(crate) fn consume(&mut self, bytes: usize) {
        self.pos += bytes;
        debug_assert!(self.pos <= self.buf.len());
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
        self.base += self.pos as u64;
        self.buf.drain(..self.pos);
        self.pos = 0;
        let before = self.buf.len();
        match &mut self.input {
            Input::Direct(reader) => {
                self.end =
                    read_block(reader.as_mut(), self.compression, &self.taken, &mut self.buf);
            }
            Input::Thread(receive) => match receive.recv() {
                Ok((block, end)) => {
                    if self.buf.is_empty() {
                        self.buf = block;
                    } else {
                        self.buf.extend_from_slice(&block);
                    }
                    self.end = end;
                }
                Err(_) => self.end = Some(Err("the reading thread ended early".into())),
            },
        }
        self.buf.len() > before || self.end.is_none()
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

fn read_ahead(
    mut reader: Box<dyn Read + Send>,
    compression: Compression,
    taken: &AtomicU64,
    send: &SyncSender<Block>,
) {
    loop {
        let mut block = Vec::with_capacity(BLOCK);
        let end = read_block(reader.as_mut(), compression, taken, &mut block);
        let last = end.is_some();
        // A closed channel means that nobody wants the rest.
        if send.send((block, end)).is_err() || last {
            return;
        }
    }
}

/// Appends up to a block to `buf`; says how the stream ended if it did.
fn read_block(
    reader: &mut dyn Read,
    compression: Compression,
    taken: &AtomicU64,
    buf: &mut Vec<u8>,
) -> Option<Result<(), String>> {
    let mut have = buf.len();
    let goal = have + BLOCK;
    buf.resize(goal, 0);
    let end = loop {
        if have == goal {
            break None;
        }
        match reader.read(&mut buf[have..goal]) {
            Ok(0) => break Some(Ok(())),
            Ok(n) => have += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => break Some(Err(describe(compression, taken.load(Relaxed), &e))),
        }
    };
    buf.truncate(have);
    end
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
