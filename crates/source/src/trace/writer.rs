//! Writing a trace.

use super::block::{MAGIC, START, TAG_CHUNK, TAG_END, TAG_HEADER, VERSION, head, trailer};
use super::chunk::{self, Extent, Piece};
use super::header::{Header, Summary, Totals, control_name};
use super::{ChunkInfo, End};
use nestwalk_types::{Batch, Control, Run, SourceError};
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

/// Pieces that may wait for the compressing thread.
const WAITING: usize = 2;
/// What an image of a table counts towards the length of a chunk, in runs.
const IMAGE: usize = 512;

/// How a trace is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WriteOptions {
    /// Runs in a chunk, 1 to 2^22. Controls count, too, and an image of a table as 512 runs.
    pub chunk_runs: usize,
    /// Level of zstd, 1 to 22.
    pub level: i32,
    /// Clears the lowest 6 bits of the addresses of runs ([`Header::line_addresses`]).
    pub line_addresses: bool,
    /// Encodes, compresses and writes in a thread of its own. The bytes are the same.
    pub thread: bool,
}

impl WriteOptions {
    /// For recording: small chunks, quickly compressed, so that little is lost when the recorder is
    /// killed.
    pub const LIVE: Self =
        Self { chunk_runs: 256 << 10, level: 3, line_addresses: true, thread: true };
    /// For shipping: as small as can be. Takes 128 MiB for the chunk that is gathered, and no thread,
    /// which would wait for the compressor with as much.
    pub const SMALL: Self =
        Self { chunk_runs: 4 << 20, level: 19, line_addresses: true, thread: false };
}

impl Default for WriteOptions {
    fn default() -> Self {
        Self::LIVE
    }
}

/// A trace that was written to its end.
#[derive(Debug)]
pub struct Written<W> {
    /// What it was written to.
    pub out: W,
    /// Bytes written.
    pub bytes: u64,
    /// Chunks.
    pub chunks: u64,
    /// What the trace holds.
    pub totals: Totals,
}

/// Writes a trace, chunk by chunk.
///
/// Each chunk is handed to the operating system when it is complete, so that of a writer that was
/// killed everything is left but the chunk it was gathering. One that is dropped without
/// [`TraceWriter::finish`] writes what it has, without an end: readers call such a trace incomplete.
pub struct TraceWriter<W: Write + Send + 'static = File> {
    name: String,
    options: WriteOptions,
    piece: Piece,
    /// Length of the piece, in runs.
    weight: usize,
    totals: Totals,
    interest: bool,
    back: Option<Back<W>>,
    failed: Option<String>,
}

impl TraceWriter<File> {
    /// Creates the file and writes the header.
    ///
    /// # Errors
    /// The file cannot be created or written to.
    pub fn create(
        path: &Path,
        header: &Header,
        options: WriteOptions,
    ) -> Result<Self, SourceError> {
        let name = path.display().to_string();
        match File::create(path) {
            Ok(file) => Self::new(&name, file, header, options),
            Err(e) => Err(SourceError { source: name, message: format!("cannot be created: {e}") }),
        }
    }
}

impl<W: Write + Send + 'static> TraceWriter<W> {
    /// Writes the header to `out`; `name` is for messages.
    ///
    /// # Errors
    /// `out` cannot be written to, or there is no further thread.
    pub fn new(
        name: &str,
        out: W,
        header: &Header,
        options: WriteOptions,
    ) -> Result<Self, SourceError> {
        let fail = |message| SourceError { source: name.to_owned(), message };
        let mut output =
            Output { out, at: 0, first: Extent::default(), chunks: Vec::new(), options };
        output.begin(header).map_err(fail)?;
        let back =
            if options.thread { Back::thread(output).map_err(fail)? } else { Back::Here(output) };
        Ok(Self {
            name: name.to_owned(),
            options: WriteOptions { chunk_runs: options.chunk_runs.clamp(1, 1 << 22), ..options },
            piece: Piece::default(),
            weight: 0,
            totals: Totals::default(),
            interest: false,
            back: Some(back),
            failed: None,
        })
    }

    /// Adds a batch of a guest's events. Where batches end is not kept.
    ///
    /// # Errors
    /// The batch has controls of processes, which belong in no trace of a guest; or what was given
    /// before could not be written. The error stays.
    pub fn write(&mut self, batch: &Batch) -> Result<(), SourceError> {
        self.try_write(batch).map_err(|message| self.fail(message))
    }

    /// Writes the rest, the totals and `summary`, and the end of the file.
    ///
    /// # Errors
    /// As [`TraceWriter::write`].
    pub fn finish(mut self, summary: Summary) -> Result<Written<W>, SourceError> {
        self.try_finish(summary).map_err(|message| self.fail(message))
    }

    fn fail(&mut self, message: String) -> SourceError {
        self.failed = Some(message.clone());
        SourceError { source: self.name.clone(), message }
    }

    fn try_write(&mut self, batch: &Batch) -> Result<(), String> {
        if let Some(message) = &self.failed {
            return Err(message.clone());
        }
        let mut runs = batch.runs.as_slice();
        let mut at = 0;
        for (position, control) in &batch.controls {
            let before = (*position as usize).clamp(at, batch.runs.len()) - at;
            self.runs(&runs[..before])?;
            runs = &runs[before..];
            at += before;
            self.control(control)?;
        }
        self.runs(runs)
    }

    fn runs(&mut self, mut runs: &[Run]) -> Result<(), String> {
        let mask = if self.options.line_addresses { !63 } else { !0 };
        while !runs.is_empty() {
            if self.weight >= self.options.chunk_runs {
                self.send()?;
            }
            let room = self.options.chunk_runs - self.weight;
            let (now, later) = runs.split_at(runs.len().min(room));
            self.weight += now.len();
            self.totals.runs += now.len() as u64;
            let mut accesses = 0;
            self.piece.runs.extend(now.iter().map(|run| {
                accesses += u64::from(run.count);
                self.totals.instructions += u64::from(run.instructions);
                Run { gva: nestwalk_types::Gva::new(run.gva.value() & mask), ..*run }
            }));
            self.totals.accesses += accesses;
            if self.interest {
                self.totals.accesses_of_interest += accesses;
            }
            runs = later;
        }
        Ok(())
    }

    fn control(&mut self, control: &Control) -> Result<(), String> {
        if !is_architectural(control) {
            return Err(format!(
                "the control `{}` of a process cannot be part of a trace of a guest; pass the stream \
                 through the modelled guest first",
                control_name(control)
            ));
        }
        if self.weight >= self.options.chunk_runs {
            self.send()?;
        }
        self.interest |= *control == Control::RegionOfInterest;
        self.totals.add_controls(control_name(control), 1);
        self.weight += if chunk::is_image(control) { IMAGE } else { 1 };
        self.piece.controls.push((self.piece.runs.len() as u32, control.clone()));
        Ok(())
    }

    /// Hands the piece on.
    fn send(&mut self) -> Result<(), String> {
        self.weight = 0;
        match self.back.as_mut() {
            Some(Back::Here(output)) => {
                output.chunk(&self.piece)?;
                self.piece.runs.clear();
                self.piece.controls.clear();
            }
            Some(Back::Thread { pieces, used, .. }) => {
                let empty = used.try_recv().unwrap_or_default();
                let full = std::mem::replace(&mut self.piece, empty);
                if pieces.as_ref().is_none_or(|p| p.send(full).is_err()) {
                    // It has ended before us: it has failed.
                    return self.output().map(drop);
                }
            }
            None => {}
        }
        Ok(())
    }

    /// The output, once everything handed on has been written.
    fn output(&mut self) -> Result<Output<W>, String> {
        match self.back.take() {
            Some(Back::Here(output)) => Ok(output),
            Some(Back::Thread { pieces, thread, .. }) => {
                drop(pieces);
                thread.join().unwrap_or_else(|_| Err("the writing thread has panicked".into()))
            }
            None => Err("the trace was not written".into()),
        }
    }

    fn try_finish(&mut self, summary: Summary) -> Result<Written<W>, String> {
        if let Some(message) = &self.failed {
            return Err(message.clone());
        }
        if self.weight > 0 {
            self.send()?;
        }
        let mut output = self.output()?;
        let totals = std::mem::take(&mut self.totals);
        output.end(totals.clone(), summary)?;
        let Output { out, at, chunks, .. } = output;
        Ok(Written { out, bytes: at, chunks: chunks.len() as u64, totals })
    }
}

impl<W: Write + Send + 'static> Drop for TraceWriter<W> {
    fn drop(&mut self) {
        if self.back.is_some() {
            if self.weight > 0 && self.failed.is_none() {
                // Nobody is left to be told.
                let _ = self.send();
            }
            let _ = self.output();
        }
    }
}

const fn is_architectural(control: &Control) -> bool {
    match control {
        Control::RegionOfInterest
        | Control::LoadCr3 { .. }
        | Control::Invalidate { .. }
        | Control::TableAdded { .. }
        | Control::TableWrite { .. }
        | Control::PageCleared { .. }
        | Control::TableRetired { .. }
        | Control::Prefault { .. }
        | Control::Process { .. }
        | Control::Fault { .. }
        | Control::OsWork { .. } => true,
        // No recorded guest has segment registers, and traces have no place for them.
        Control::LoadSegment { .. }
        | Control::SelfBallooned { .. }
        | Control::WrittenOut { .. }
        | Control::Switch { .. }
        | Control::Map { .. }
        | Control::Populate { .. }
        | Control::Unmap { .. }
        | Control::Protect { .. }
        | Control::Fork { .. }
        | Control::Exec { .. }
        | Control::Exit { .. } => false,
    }
}

/// Where pieces go.
enum Back<W> {
    Here(Output<W>),
    Thread {
        /// Dropped to say that there are no more.
        pieces: Option<SyncSender<Piece>>,
        /// Pieces that were written, for their memory.
        used: Receiver<Piece>,
        thread: JoinHandle<Result<Output<W>, String>>,
    },
}

impl<W: Write + Send + 'static> Back<W> {
    fn thread(mut output: Output<W>) -> Result<Self, String> {
        let (pieces, to_write) = sync_channel::<Piece>(WAITING);
        let (give_back, used) = sync_channel(WAITING + 1);
        let write = move || {
            for mut piece in to_write {
                output.chunk(&piece)?;
                piece.runs.clear();
                piece.controls.clear();
                // If nobody wants it back, or enough are there, it goes.
                let _ = give_back.try_send(piece);
            }
            Ok(output)
        };
        let thread = std::thread::Builder::new().name("trace-writer".into()).spawn(write);
        let thread = thread.map_err(|e| format!("cannot start a thread: {e}"))?;
        Ok(Self::Thread { pieces: Some(pieces), used, thread })
    }
}

/// The file.
struct Output<W> {
    out: W,
    at: u64,
    /// Where the next chunk begins in the stream.
    first: Extent,
    chunks: Vec<ChunkInfo>,
    options: WriteOptions,
}

impl<W: Write> Output<W> {
    fn bytes(&mut self, bytes: &[u8]) -> Result<(), String> {
        let at = self.at;
        self.at += bytes.len() as u64;
        self.out.write_all(bytes).map_err(|e| format!("cannot be written at byte {at}: {e}"))
    }

    fn block(&mut self, tag: [u8; 4], payload: &[u8]) -> Result<(), String> {
        let head = head(tag, payload).map_err(|e| e.to_string())?;
        self.bytes(&head)?;
        self.bytes(payload)?;
        let at = self.at;
        self.out.flush().map_err(|e| format!("cannot be written at byte {at}: {e}"))
    }

    fn begin(&mut self, header: &Header) -> Result<(), String> {
        let mut header = Header { line_addresses: self.options.line_addresses, ..header.clone() };
        for limit in header.limits() {
            if !header.cannot_answer.contains(&limit) {
                header.cannot_answer.push(limit);
            }
        }
        let json = serde_json::to_vec(&header).map_err(|e| e.to_string())?;
        let mut start = MAGIC.to_vec();
        start.extend(VERSION.to_le_bytes());
        debug_assert_eq!(start.len() as u64, START);
        self.bytes(&start)?;
        self.block(TAG_HEADER, &json)
    }

    fn chunk(&mut self, piece: &Piece) -> Result<(), String> {
        let encoded = chunk::encode(piece, self.options.line_addresses)
            .map_err(|name| format!("the control `{name}` cannot be part of a trace of a guest"))?;
        let held = encoded.held();
        let payload = encoded.payload(self.first, self.options.level);
        let payload = payload.map_err(|e| format!("cannot be compressed: {e}"))?;
        let info = ChunkInfo { offset: self.at, first: self.first, held };
        self.block(TAG_CHUNK, &payload)?;
        self.chunks.push(info);
        self.first = self.first.plus(held);
        Ok(())
    }

    fn end(&mut self, totals: Totals, summary: Summary) -> Result<(), String> {
        let offset = self.at;
        let end = End { totals, summary, chunks: self.chunks.clone() };
        let json = serde_json::to_vec(&end).map_err(|e| e.to_string())?;
        self.block(TAG_END, &json)?;
        self.bytes(&trailer(offset))?;
        let at = self.at;
        self.out.flush().map_err(|e| format!("cannot be written at byte {at}: {e}"))
    }
}
