//! The threads of a trace as one stream.

use super::record::{Pause, RECORD, Thread};
use super::zip::Chunks;
use crate::bytes::{Compression, Window};
use crate::input::{cannot_read, not_empty, open_file};
use nestwalk_types::{
    Batch, BatchBuilder, Control, ProcessId, Room, Source, SourceError, SourceInfo, VcpuId,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Files of a directory that get a reading thread each.
const READ_AHEAD: usize = 8;

/// One thread's file.
struct Stream {
    name: String,
    window: Window,
    taken: Arc<AtomicU64>,
    thread: Thread,
    vcpu: VcpuId,
    done: bool,
}

/// A drmemtrace: one file, or a directory with a file per thread.
///
/// Threads are interleaved by their timestamps (one per buffer of the tracer, some ten thousand
/// records): the thread whose latest timestamp is the earliest goes on. Threads of one process share
/// it; thread number `i` of the directory, by name, runs on vCPU `i` modulo the number of vCPUs.
pub struct Drmemtrace {
    name: String,
    total: Option<u64>,
    streams: Vec<Stream>,
    processes: Vec<u64>,
    on_vcpu: Vec<Option<ProcessId>>,
    builder: BatchBuilder,
    current: Option<usize>,
    end: Option<Result<(), SourceError>>,
}

impl Drmemtrace {
    /// Opens the file of one thread: plain, gzip, xz, zstd, or a zip archive of chunks.
    ///
    /// # Errors
    /// The file cannot be read, or is a zip archive without readable members.
    pub fn open(path: &Path) -> Result<Self, SourceError> {
        let (stream, total) = open_stream(path, VcpuId(0), true)?;
        Ok(Self::new(path.display().to_string(), total, vec![stream], 1))
    }

    /// Opens a directory whose files are the threads of one trace, or the directory above it, as
    /// the tracer makes it (`drmemtrace.APP.PID.N.dir` with `trace` in it), on `vcpus` vCPUs.
    ///
    /// # Errors
    /// The directory or one of its files cannot be read, or it has no file whose name contains
    /// `.trace`.
    pub fn open_directory(path: &Path, vcpus: u8) -> Result<Self, SourceError> {
        let name = path.display().to_string();
        let inner = path.join("trace");
        let files = thread_files(if inner.is_dir() { &inner } else { path })
            .map_err(|e| cannot_read(&name, &e))?;
        if files.is_empty() {
            return Err(SourceError {
                source: name,
                message: "no file named *.trace.* in this directory; drmemtrace must have been \
                          post-processed, which running an analysis tool on it once does"
                    .into(),
            });
        }
        let vcpus = vcpus.max(1);
        let mut streams = Vec::new();
        let mut total = Some(0);
        for (i, file) in files.iter().enumerate() {
            let vcpu = VcpuId((i % usize::from(vcpus)) as u8);
            let (stream, bytes) = open_stream(file, vcpu, files.len() <= READ_AHEAD)?;
            total = total.zip(bytes).map(|(t, b)| t + b);
            streams.push(stream);
        }
        Ok(Self::new(name, total, streams, vcpus))
    }

    pub(crate) fn source(name: String, window: Window, total: Option<u64>) -> Self {
        let stream = Stream::new(name.clone(), window, VcpuId(0));
        Self::new(name, total, vec![stream], 1)
    }

    /// A zip archive in memory, if it is one.
    pub(crate) fn from_zip(
        name: &str,
        reader: impl std::io::Read + std::io::Seek + Send + 'static,
    ) -> Option<Self> {
        let chunks = Chunks::open(reader).ok()?;
        let window = Window::new(Box::new(chunks), Compression::None, false).ok()?;
        Some(Self::source(name.to_owned(), window, None))
    }

    fn new(name: String, total: Option<u64>, streams: Vec<Stream>, vcpus: u8) -> Self {
        let mut builder = BatchBuilder::new();
        builder.control(Control::RegionOfInterest);
        Self {
            name,
            total,
            streams,
            processes: Vec::new(),
            on_vcpu: vec![None; usize::from(vcpus)],
            builder,
            current: None,
            end: None,
        }
    }

    /// Our name of a process number; numbered from 1 in order of appearance.
    fn process(&mut self, pid: u64) -> ProcessId {
        let index = self.processes.iter().position(|&p| p == pid).unwrap_or_else(|| {
            self.processes.push(pid);
            self.processes.len() - 1
        });
        ProcessId(index as u32 + 1)
    }

    /// The stream that goes on: the one with the earliest timestamp, the first of several.
    fn pick(&self) -> Option<usize> {
        let open = self.streams.iter().enumerate().filter(|(_, s)| !s.done);
        open.min_by_key(|(_, s)| s.thread.time).map(|(i, _)| i)
    }

    /// Tells which process the stream's vCPU runs, if that has changed.
    fn switch(&mut self, index: usize) {
        let stream = &self.streams[index];
        let on = &mut self.on_vcpu[usize::from(stream.vcpu.0)];
        if let Some(process) = stream.thread.process
            && *on != Some(process)
        {
            *on = Some(process);
            self.builder.control(Control::Switch { vcpu: stream.vcpu, process });
        }
    }

    /// Decodes some of one stream.
    fn step(&mut self) {
        let Some(index) = self.current.or_else(|| self.pick()) else {
            self.end = Some(Ok(()));
            return;
        };
        self.current = Some(index);
        self.switch(index);
        let stream = &mut self.streams[index];
        let (used, pause) =
            stream.thread.decode(stream.window.rest(), stream.vcpu, &mut self.builder);
        stream.window.consume(used);
        match pause {
            Pause::Full => {}
            Pause::Time => self.current = None,
            Pause::End => {
                stream.done = true;
                self.current = None;
            }
            Pause::Process(pid) => {
                let process = self.process(pid);
                self.streams[index].thread.process = Some(process);
            }
            Pause::Bytes => {
                if !stream.window.refill() {
                    self.end = Some(Err(stream.cut_off()));
                }
            }
            Pause::Bad(message) => {
                let (record, offset) = (stream.thread.records, stream.window.offset());
                let message = format!("record {record} at byte {offset}: {message}");
                self.end = Some(Err(SourceError { source: stream.name.clone(), message }));
            }
        }
    }
}

impl Stream {
    fn new(name: String, window: Window, vcpu: VcpuId) -> Self {
        let taken = window.taken();
        Self { name, window, taken, thread: Thread::default(), vcpu, done: false }
    }

    /// The stream has ended without its footer.
    fn cut_off(&self) -> SourceError {
        let message = self.window.failure().err().unwrap_or_else(|| {
            format!(
                "record {} at byte {} has {} of its {RECORD} bytes and no footer came before: the \
                 trace was cut off",
                self.thread.records,
                self.window.offset(),
                self.window.rest().len()
            )
        });
        SourceError { source: self.name.clone(), message }
    }
}

fn open_stream(
    path: &Path,
    vcpu: VcpuId,
    thread: bool,
) -> Result<(Stream, Option<u64>), SourceError> {
    let (name, mut file, bytes) = open_file(path)?;
    let window = if super::is_zip(&mut file) {
        let chunks = Chunks::open(file).map_err(|e| cannot_read(&name, &e))?;
        Window::new(Box::new(chunks), Compression::None, thread)
    } else {
        Window::detect(Box::new(file), thread)
    };
    let window = not_empty(&name, window)?;
    Ok((Stream::new(name, window, vcpu), bytes))
}

/// The thread files of a directory, by name.
fn thread_files(path: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        let is_trace = entry.file_name().to_string_lossy().contains(".trace");
        if is_trace && entry.file_type()?.is_file() {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

impl Source for Drmemtrace {
    fn info(&self) -> SourceInfo {
        let mut approximations = Vec::new();
        if self.streams.iter().any(|s| s.thread.is_filtered()) {
            approximations.push(
                "the trace was filtered by a cache when it was recorded: accesses that hit there \
                 are missing"
                    .to_owned(),
            );
        }
        if self.streams.iter().any(|s| s.thread.lacks_data()) {
            approximations.push("the trace holds instructions only, no loads and stores".into());
        }
        SourceInfo {
            name: self.name.clone(),
            description: format!(
                "drmemtrace, {} threads of {} processes",
                self.streams.len(),
                self.processes.len()
            ),
            knows_lines: true,
            knows_pc: true,
            has_fetches: true,
            approximations,
            guest: None,
            total: self.total,
            failed: None,
        }
    }

    fn next_batch(&mut self, batch: &mut Batch) -> Result<bool, SourceError> {
        while !self.builder.is_full() && self.end.is_none() {
            self.step();
        }
        self.builder.take_into(batch);
        if !batch.is_empty() {
            return Ok(true);
        }
        match &self.end {
            Some(Err(error)) => Err(error.clone()),
            _ => Ok(false),
        }
    }

    fn set_room(&mut self, room: Room) -> bool {
        self.builder.set_room(room);
        true
    }

    fn tally(&self) -> Vec<(&'static str, u64)> {
        let records = self.streams.iter().map(|s| s.thread.records).sum();
        vec![("records", records), ("threads", self.streams.len() as u64)]
    }

    /// Bytes of the files read so far, compressed.
    fn position(&self) -> u64 {
        self.streams.iter().map(|s| s.taken.load(Relaxed)).sum()
    }
}
