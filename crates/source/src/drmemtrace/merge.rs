//! The files of a trace as one stream.

use super::files;
use super::notes;
use super::record::{Pause, file_type};
use super::stream::Stream;
use super::zip::Chunks;
use crate::bytes::{Compression, Window};
use nestwalk_types::{
    Batch, BatchBuilder, Control, ProcessId, Room, Source, SourceError, SourceInfo, VcpuId,
};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::path::Path;

/// Files of a trace that get a reading thread each, and stay open.
const READ_AHEAD: usize = 8;
/// Bytes that the decompressors and buffers of all files may take, where there are more of them.
const MEMORY: usize = 640 << 20;

/// A drmemtrace: one file, or one for each thread or core.
///
/// Files are interleaved by their timestamps (one per buffer of the tracer, some ten thousand records):
/// the one whose latest timestamp is the earliest goes on. Threads of one process share it; file number
/// `i`, by name, runs on vCPU `i` modulo the number of vCPUs.
///
/// Of more than `READ_AHEAD` files, no descriptor is held, and no more decompressors are kept than
/// `MEMORY` allows: the file whose turn is the last in line is put aside, and is read anew up to its
/// place when its turn comes (plain files and members of zip archives: from there).
pub struct Drmemtrace {
    name: String,
    total: Option<u64>,
    streams: Vec<Stream>,
    /// What each waiting stream's latest timestamp is, and its number: the earliest comes first.
    waiting: BinaryHeap<Reverse<(u64, usize)>>,
    current: Option<usize>,
    /// Streams that are open and can be put aside, and what they take.
    open: Vec<usize>,
    open_memory: usize,
    memory: usize,
    processes: Vec<u64>,
    on_vcpu: Vec<Option<ProcessId>>,
    /// The trace is filtered up to a marker that has not come yet.
    warming_up: bool,
    builder: BatchBuilder,
    end: Option<Result<(), SourceError>>,
    notes: Vec<String>,
    /// Where pages are, if that is asked for.
    pages: Option<Pages>,
}

/// Where the markers of a trace say that its pages are.
#[derive(Default)]
pub(super) struct Pages {
    /// By virtual address: the first physical address, and how often it changed.
    pub(super) pages: BTreeMap<u64, (u64, u32)>,
    /// Where each was last.
    latest: BTreeMap<u64, u64>,
    /// Bytes of a page.
    pub(super) page_bytes: u64,
}

impl Pages {
    fn note(&mut self, gva: u64, gpa: u64) {
        let mask = self.page_bytes - 1;
        let (gva, gpa) = (gva & !mask, gpa & !mask);
        let page = self.pages.entry(gva).or_insert((gpa, 0));
        if self.latest.insert(gva, gpa).is_some_and(|before| before != gpa) {
            page.1 += 1;
        }
    }
}

impl Drmemtrace {
    /// Notes where pages are, by the markers, from here on.
    pub(super) fn collect_pages(&mut self) {
        let said = self.streams.iter().find_map(|s| s.head.page_size);
        let power = |bytes: &u64| bytes.is_power_of_two() && *bytes >= 4096;
        let page_bytes = said.filter(power).unwrap_or(4096);
        self.pages = Some(Pages { page_bytes, ..Pages::default() });
    }

    /// What was noted.
    pub(super) fn pages(self) -> Pages {
        self.pages.unwrap_or_default()
    }

    /// Opens one file: plain, compressed, or a zip archive of chunks.
    ///
    /// # Errors
    /// The file cannot be read, or is a zip archive without readable members.
    pub fn open(path: &Path) -> Result<Self, SourceError> {
        let stream = Stream::open(path, VcpuId(0))?;
        Ok(Self::new(path.display().to_string(), vec![stream], 1))
    }

    /// Opens a directory whose files are the threads or cores of one trace, or the directory above it,
    /// as the tracer makes it (`drmemtrace.APP.PID.N.dir` with `trace` in it), on `vcpus` vCPUs.
    ///
    /// # Errors
    /// The directory or one of its files cannot be read, or it has no drmemtrace.
    pub fn open_directory(path: &Path, vcpus: u8) -> Result<Self, SourceError> {
        let found = files::in_directory(path)?;
        let paths: Vec<&Path> = found.files.iter().map(AsRef::as_ref).collect();
        let mut source = Self::open_files(&paths, vcpus)?;
        source.name = path.display().to_string();
        source.notes.extend(found.notes);
        Ok(source)
    }

    /// Opens files that are the threads or cores of one trace, on `vcpus` vCPUs.
    ///
    /// # Errors
    /// One of them cannot be read.
    pub fn open_files(paths: &[&Path], vcpus: u8) -> Result<Self, SourceError> {
        Self::open_within(paths, vcpus, MEMORY)
    }

    /// As [`Drmemtrace::open_files`], with so many bytes for decompressors and buffers.
    pub(super) fn open_within(
        paths: &[&Path],
        vcpus: u8,
        memory: usize,
    ) -> Result<Self, SourceError> {
        let vcpus = vcpus.max(1);
        let mut streams: Vec<Stream> = Vec::with_capacity(paths.len());
        for (i, path) in paths.iter().enumerate() {
            let vcpu = VcpuId((i % usize::from(vcpus)) as u8);
            if paths.len() <= READ_AHEAD {
                streams.push(Stream::open(path, vcpu)?);
            } else {
                let mut stream = Stream::lend(path, vcpu)?;
                stream.put_aside();
                streams.push(stream);
            }
        }
        let names: Vec<&str> = streams.iter().map(|s| s.name.as_str()).collect();
        let name = match names.as_slice() {
            [first, .., last] => format!("{first}...{last}"),
            [only] => (*only).to_owned(),
            [] => String::new(),
        };
        let mut source = Self::new(name, streams, vcpus);
        source.memory = memory;
        Ok(source)
    }

    pub(crate) fn source(name: String, window: Window, total: Option<u64>) -> Self {
        let stream = Stream::of(name.clone(), window, total, VcpuId(0));
        Self::new(name, vec![stream], 1)
    }

    /// A zip archive in memory, if it is one.
    pub(crate) fn from_zip(
        name: &str,
        reader: impl std::io::Read + std::io::Seek + Send + 'static,
    ) -> Option<Self> {
        let chunks = Chunks::open(Box::new(reader)).ok()?;
        let window = Window::new(Box::new(chunks), Compression::None, false).ok()?;
        Some(Self::source(name.to_owned(), window, None))
    }

    fn new(name: String, mut streams: Vec<Stream>, vcpus: u8) -> Self {
        let mut builder = BatchBuilder::new();
        let filtered = |s: &Stream| s.head.file_type & file_type::BIMODAL_FILTERED_WARMUP != 0;
        let warming_up = streams.iter().any(filtered);
        if !warming_up {
            builder.control(Control::RegionOfInterest);
            streams.iter_mut().for_each(|s| s.thread.count());
        }
        // Half a timestamp says nothing of the other: any that is greater does.
        let first = streams.iter().find_map(|s| s.head.time).unwrap_or(0) + (1 << 32);
        streams.iter_mut().for_each(|s| s.align(first));
        let waiting =
            streams.iter().enumerate().map(|(i, s)| Reverse((s.thread.time, i))).collect();
        Self {
            name,
            total: streams.iter().map(|s| s.total).sum(),
            streams,
            waiting,
            current: None,
            open: Vec::new(),
            open_memory: 0,
            memory: MEMORY,
            processes: Vec::new(),
            on_vcpu: vec![None; usize::from(vcpus)],
            warming_up,
            builder,
            end: None,
            notes: Vec::new(),
            pages: None,
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

    /// The stream that goes on, ready to be read: the one with the earliest timestamp, the first of
    /// several.
    fn pick(&mut self) -> Result<Option<usize>, SourceError> {
        if self.current.is_some() {
            return Ok(self.current);
        }
        let Some(Reverse((_, index))) = self.waiting.pop() else { return Ok(None) };
        if !self.streams[index].is_open() {
            self.make_room(self.streams[index].memory);
            self.streams[index].take_up()?;
            self.open.push(index);
            self.open_memory += self.streams[index].memory;
        }
        self.current = Some(index);
        Ok(self.current)
    }

    /// Puts streams aside until `bytes` fit, those whose turn comes last first.
    fn make_room(&mut self, bytes: usize) {
        while self.open_memory + bytes > self.memory {
            let last = (0..self.open.len()).max_by_key(|&at| {
                let index = self.open[at];
                (self.streams[index].thread.time, index)
            });
            let Some(at) = last else { return };
            let index = self.open.swap_remove(at);
            self.open_memory -= self.streams[index].memory;
            self.streams[index].put_aside();
        }
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
    fn step(&mut self) -> Result<(), SourceError> {
        let Some(index) = self.pick()? else {
            if self.warming_up {
                // Nobody takes the warm-up for a result.
                self.warming_up = false;
                self.builder.control(Control::RegionOfInterest);
                return Err(self.without_end_of_filter());
            }
            self.end = Some(Ok(()));
            return Ok(());
        };
        self.switch(index);
        let stream = &mut self.streams[index];
        match stream.step(&mut self.builder)? {
            Some(Pause::Time) => {
                let time = stream.thread.time;
                if self.waiting.peek().is_some_and(|Reverse(next)| *next < (time, index)) {
                    self.waiting.push(Reverse((time, index)));
                    self.current = None;
                }
            }
            Some(Pause::Process(pid)) => {
                let process = self.process(pid);
                self.streams[index].thread.process = Some(process);
            }
            Some(Pause::FilterEnd) if self.warming_up => {
                self.warming_up = false;
                self.builder.control(Control::RegionOfInterest);
                self.streams.iter_mut().for_each(|s| s.thread.count());
            }
            Some(Pause::Physical { gva, at: Some(gpa) }) => {
                self.pages.iter_mut().for_each(|p| p.note(gva, gpa));
            }
            Some(_) => {}
            None => {
                self.current = None;
                if let Some(at) = self.open.iter().position(|&o| o == index) {
                    self.open.swap_remove(at);
                    self.open_memory -= self.streams[index].memory;
                }
            }
        }
        Ok(())
    }

    fn without_end_of_filter(&self) -> SourceError {
        SourceError {
            source: self.name.clone(),
            message:
                "ended without the marker at which filtering ends (type 23), which the file type \
                      announces: all of it is warm-up, and nothing is left to count"
                    .into(),
        }
    }

    /// Threads met so far.
    fn threads(&self) -> u64 {
        let all: BTreeSet<u64> = self.streams.iter().flat_map(|s| s.thread.threads()).collect();
        all.len() as u64
    }

    fn description(&self) -> String {
        let files = match self.streams.len() {
            1 => String::new(),
            n => format!(" in {n} files"),
        };
        format!(
            "drmemtrace, {} threads of {} processes{files}",
            self.threads(),
            self.processes.len()
        )
    }
}

impl Source for Drmemtrace {
    fn info(&self) -> SourceInfo {
        let mut approximations = notes::of(self.streams.iter().map(|s| &s.thread.counts));
        approximations.extend(self.notes.iter().cloned());
        SourceInfo {
            name: self.name.clone(),
            description: self.description(),
            knows_lines: true,
            knows_pc: true,
            has_fetches: true,
            approximations,
            guest: None,
            total: self.total,
            populates: 0,
            failed: None,
        }
    }

    fn next_batch(&mut self, batch: &mut Batch) -> Result<bool, SourceError> {
        while !self.builder.is_full() && self.end.is_none() {
            if let Err(error) = self.step() {
                self.end = Some(Err(error));
            }
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
        let records = self.streams.iter().map(Stream::records).sum();
        vec![("records", records), ("threads", self.threads())]
    }

    /// Bytes of the files read so far, compressed.
    fn position(&self) -> u64 {
        self.streams.iter().map(Stream::position).sum()
    }
}
