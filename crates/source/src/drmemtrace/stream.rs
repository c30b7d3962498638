//! One file of a trace: opened, read, put aside, taken up again.

use super::record::{HEAD, Head, Layout, Pause, Thread, nearest, without_header};
use super::zip::{Chunks, is_zip};
use crate::bytes::{Compression, Counting, SMALL, Window};
use crate::input::{cannot_read, not_empty, open_file};
use nestwalk_types::{BatchBuilder, SourceError, VcpuId};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A file that is open only while something is read from it, so that thousands need no descriptors.
pub(super) struct Lent {
    path: PathBuf,
    at: u64,
}

impl Lent {
    pub(super) const fn new(path: PathBuf, at: u64) -> Self {
        Self { path, at }
    }
}

impl Read for Lent {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = File::open(&self.path)?.read_at(buf, self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

impl Seek for Lent {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let (base, by) = match to {
            SeekFrom::Start(at) => (at, 0),
            SeekFrom::End(by) => (File::open(&self.path)?.metadata()?.len(), by),
            SeekFrom::Current(by) => (self.at, by),
        };
        self.at = base.checked_add_signed(by).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

/// How the bytes of a stream are had.
#[derive(Clone, Copy)]
enum Form {
    /// They cannot be had again: what is open stays open.
    Once,
    /// From a file that can be opened again.
    Compressed(Compression),
    /// From the members of a zip archive.
    Zip,
}

/// One file.
pub(super) struct Stream {
    pub(super) name: String,
    path: PathBuf,
    form: Form,
    /// What is read; none while the stream is aside.
    window: Option<Window>,
    /// Where it goes on when it is taken up.
    offset: u64,
    taken: Arc<AtomicU64>,
    /// The most bytes that were ever taken: what is read again does not count again.
    most: u64,
    /// Bytes of the file, if known.
    pub(super) total: Option<u64>,
    /// Bytes of memory that it takes while it is open.
    pub(super) memory: usize,
    /// What the beginning of the file says.
    pub(super) head: Head,
    pub(super) thread: Thread,
    pub(super) vcpu: VcpuId,
    pub(super) done: bool,
    /// The file has no header.
    bad: bool,
}

impl Stream {
    /// A stream of which nothing is open but this.
    pub(super) fn of(name: String, window: Window, total: Option<u64>, vcpu: VcpuId) -> Self {
        let taken = window.taken();
        Self::new(name, PathBuf::new(), Form::Once, window, (taken, total), vcpu)
    }

    fn new(
        name: String,
        path: PathBuf,
        form: Form,
        mut window: Window,
        (taken, total): (Arc<AtomicU64>, Option<u64>),
        vcpu: VcpuId,
    ) -> Self {
        let bytes = window.peek(HEAD);
        let layout = Layout::of(bytes);
        let head = Head::of(layout.unwrap_or_default(), bytes);
        let mut thread = Thread::new(layout.unwrap_or_default());
        thread.time = head.time.unwrap_or(0);
        Self {
            name,
            path,
            form,
            window: Some(window),
            offset: 0,
            taken,
            most: 0,
            total,
            memory: 0,
            head,
            thread,
            vcpu,
            done: false,
            bad: layout.is_none(),
        }
    }

    /// Opens a file that stays open, with a thread that reads ahead.
    pub(super) fn open(path: &Path, vcpu: VcpuId) -> Result<Self, SourceError> {
        let (name, mut file, total) = open_file(path)?;
        let taken = Arc::new(AtomicU64::new(0));
        if is_zip(&mut file) {
            let counted = Counting { inner: file, taken: taken.clone() };
            let chunks = Chunks::open(Box::new(counted)).map_err(|e| cannot_read(&name, &e))?;
            let window = Window::new(Box::new(chunks), Compression::None, true);
            let window = not_empty(&name, window)?;
            return Ok(Self::new(name, path.into(), Form::Zip, window, (taken, total), vcpu));
        }
        let window = not_empty(&name, Window::file(file))?;
        Ok(Self::of(name, window, total, vcpu))
    }

    /// Opens a file among many: it can be put aside, and its descriptor is not held.
    pub(super) fn lend(path: &Path, vcpu: VcpuId) -> Result<Self, SourceError> {
        let (name, mut file, total) = open_file(path)?;
        if total.is_none() {
            // A pipe is read once.
            return Ok(Self::of(name.clone(), not_empty(&name, Window::file(file))?, None, vcpu));
        }
        let mut magic = vec![0; 64];
        let zip = is_zip(&mut file);
        let have = file.read_at(&mut magic, 0).map_err(|e| cannot_read(&name, &e))?;
        magic.truncate(have);
        let (form, memory) = if zip {
            (Form::Zip, Compression::Gzip.memory(&magic))
        } else {
            let compression = Compression::of(magic.get(..Compression::MAGIC).unwrap_or(&magic));
            (Form::Compressed(compression), compression.memory(&magic))
        };
        drop(file);
        let taken = Arc::new(AtomicU64::new(0));
        let window = window(path, form, 0, &taken).map_err(|e| cannot_read(&name, &e))?;
        let window = not_empty(&name, Ok(window))?;
        let mut stream = Self::new(name, path.into(), form, window, (taken, total), vcpu);
        stream.memory = memory + 4 * SMALL;
        Ok(stream)
    }

    /// Whether it has its window.
    pub(super) const fn is_open(&self) -> bool {
        self.window.is_some()
    }

    /// Gives up what is open, if it can be opened again; whether it has.
    pub(super) fn put_aside(&mut self) -> bool {
        if matches!(self.form, Form::Once) {
            return false;
        }
        if let Some(window) = self.window.take() {
            self.offset = window.offset();
            self.most = self.position();
        }
        true
    }

    /// Goes on where the stream was put aside.
    pub(super) fn take_up(&mut self) -> Result<(), SourceError> {
        self.taken.store(0, Relaxed);
        let window = window(&self.path, self.form, self.offset, &self.taken)
            .map_err(|e| cannot_read(&self.name, &e))?;
        if window.offset() < self.offset {
            let message = format!(
                "ends before byte {}, up to which it was read before: the file has changed",
                self.offset
            );
            return Err(SourceError { source: self.name.clone(), message });
        }
        self.window = Some(window);
        Ok(())
    }

    /// Takes the first timestamp for one near to `reference`, if only its lower half is there.
    pub(super) fn align(&mut self, reference: u64) {
        if self.thread.layout == Layout::Narrow && self.head.time.is_some() {
            self.thread.time = nearest(reference, self.thread.time as u32);
        }
    }

    /// Decodes some records. `None`: the stream has come to its end.
    pub(super) fn step(&mut self, out: &mut BatchBuilder) -> Result<Option<Pause>, SourceError> {
        let Some(window) = &mut self.window else { return Ok(None) };
        let mut pause = if self.bad {
            without_header(window.rest())
        } else {
            let (used, pause) = self.thread.decode(window.rest(), self.vcpu, out);
            window.consume(used);
            pause
        };
        if pause == Pause::Bytes && !window.refill() {
            if window.rest().is_empty() && self.thread.whole && window.failure().is_ok() {
                self.close();
                return Ok(None);
            }
            return Err(self.cut_off());
        }
        if let Pause::Bad(message) = &mut pause {
            let offset = window.offset();
            let record = offset / self.thread.layout.bytes() as u64;
            let message = format!("record {record} at byte {offset}: {message}");
            return Err(SourceError { source: self.name.clone(), message });
        }
        Ok(Some(pause))
    }

    /// Records read so far.
    pub(super) fn records(&self) -> u64 {
        let offset = self.window.as_ref().map_or(self.offset, Window::offset);
        offset / self.thread.layout.bytes() as u64
    }

    fn close(&mut self) {
        self.done = true;
        self.offset = self.window.as_ref().map_or(self.offset, Window::offset);
        self.most = self.total.unwrap_or_else(|| self.position());
        self.window = None;
    }

    /// The stream has ended without its footer.
    fn cut_off(&self) -> SourceError {
        let source = self.name.clone();
        let Some(window) = &self.window else {
            return SourceError { source, message: "was closed".into() };
        };
        let size = self.thread.layout.bytes();
        let message = window.failure().err().unwrap_or_else(|| {
            format!(
                "record {} at byte {} has {} of its {size} bytes and no footer came before: the \
                 trace was cut off",
                window.offset() / size as u64,
                window.offset(),
                window.rest().len()
            )
        });
        SourceError { source, message }
    }

    /// Bytes of the file that were read, compressed.
    pub(super) fn position(&self) -> u64 {
        let now = if self.window.is_some() { self.taken.load(Relaxed) } else { 0 };
        self.most.max(now).min(self.total.unwrap_or(u64::MAX))
    }
}

/// A small window on a file, from `offset` of its decompressed bytes on or, if there are fewer, at
/// their end.
fn window(path: &Path, form: Form, offset: u64, taken: &Arc<AtomicU64>) -> io::Result<Window> {
    let mut window = match form {
        Form::Zip => {
            let file = Lent::new(path.into(), 0);
            let counted = Counting { inner: file, taken: taken.clone() };
            let mut chunks = Chunks::open(Box::new(counted))?;
            let skipped = chunks.skip(offset);
            let unused = Arc::new(AtomicU64::new(0));
            let mut window = Window::small(Box::new(chunks), Compression::None, unused)?;
            window.begin_at(skipped);
            window
        }
        Form::Compressed(Compression::None) => {
            let file = Box::new(Lent::new(path.into(), offset));
            let mut window = Window::small(file, Compression::None, taken.clone())?;
            window.begin_at(offset);
            window
        }
        Form::Compressed(compression) => {
            let file = Box::new(Lent::new(path.into(), 0));
            Window::small(file, compression, taken.clone())?
        }
        Form::Once => return Err(io::ErrorKind::NotSeekable.into()),
    };
    window.skip_to(offset);
    Ok(window)
}
