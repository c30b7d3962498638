//! Reading a trace.

use super::block::{
    Fault, HEAD, MAGIC, START, TAG_CHUNK, TAG_END, TAG_HEADER, TRAILER, VERSION, offset_of_end,
    read_head, read_payload,
};
use super::chunk::{self, Controls, Decoder, Extent, MOST, NUMBERS};
use super::header::{Header, Summary, Totals};
use super::{ChunkInfo, End};
use crate::erased::Anywhere;
use crate::input;
use nestwalk_types::{Batch, Control, Source, SourceError, SourceInfo};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// Reads a trace.
///
/// Opening reads the header and the index. Of a file without an end, because its writer was killed or
/// it was cut off, the chunks are looked for, and reading ends, without an error, after the last that
/// is complete; [`TraceReader::is_complete`] tells. Damage is an error where it is met; what comes
/// before it is read.
pub struct TraceReader<R = File> {
    input: R,
    state: State,
}

/// All but the file itself, so that one copy of it serves every kind.
struct State {
    name: String,
    /// Bytes of the file.
    bytes: u64,
    header: Header,
    chunks: Vec<ChunkInfo>,
    end: Option<End>,
    /// What is wrong behind the last chunk, if anything is.
    damage: Option<String>,
    next: usize,
    decoder: Option<Decoder>,
    /// What was read, as an end of the latest batch.
    position: Extent,
    failed: Option<String>,
}

impl TraceReader<File> {
    /// Opens the file.
    ///
    /// # Errors
    /// The file does not exist, cannot be read, is no trace of this kind, or its header is damaged.
    pub fn open(path: &Path) -> Result<Self, SourceError> {
        let (name, file, total) = input::open_file(path)?;
        if total.is_none() {
            let message = "a trace of nestwalk is read from a plain file, not from a pipe".into();
            return Err(SourceError { source: name, message });
        }
        Self::new(&name, file)
    }
}

impl<R: Read + Seek + Send> TraceReader<R> {
    /// Reads from `input`; `name` is for messages.
    ///
    /// # Errors
    /// This is no trace, or its header is damaged.
    pub fn new(name: &str, mut input: R) -> Result<Self, SourceError> {
        let state = State::new(name, &mut input)?;
        Ok(Self { input, state })
    }

    /// What the trace says of itself.
    pub const fn header(&self) -> &Header {
        &self.state.header
    }
    /// What it holds, if its end is there.
    pub fn totals(&self) -> Option<&Totals> {
        self.state.end.as_ref().map(|e| &e.totals)
    }
    /// What the recorder said at the end, if that is there.
    pub fn summary(&self) -> Option<&Summary> {
        self.state.end.as_ref().map(|e| &e.summary)
    }
    /// The chunks, in order.
    pub fn chunks(&self) -> &[ChunkInfo] {
        &self.state.chunks
    }
    /// Whether the end of the file is there: nothing was cut off.
    pub const fn is_complete(&self) -> bool {
        self.state.end.is_some()
    }
    /// What is wrong with the end of the file, if anything is but that it is missing.
    pub fn damage(&self) -> Option<&str> {
        self.state.damage.as_deref()
    }
    /// Bytes of the file.
    pub const fn bytes(&self) -> u64 {
        self.state.bytes
    }
    /// What was read so far.
    pub const fn extent(&self) -> Extent {
        self.state.position
    }

    /// Goes to the beginning of a chunk: what [`Source::next_batch`] and
    /// [`TraceReader::next_controls`] then read.
    ///
    /// # Errors
    /// There is no such chunk. One behind the last is the end.
    pub fn seek_chunk(&mut self, chunk: usize) -> Result<(), SourceError> {
        self.state.seek_chunk(chunk)
    }

    /// The controls of the next chunk alone, without decoding its runs: each with the number of the
    /// run in the whole stream before which it stands. `false` after the last chunk.
    ///
    /// `controls` is replaced. What was left of a chunk that [`Source::next_batch`] has begun is
    /// passed over.
    ///
    /// # Errors
    /// As [`Source::next_batch`].
    pub fn next_controls(
        &mut self,
        controls: &mut Vec<(u64, Control)>,
    ) -> Result<bool, SourceError> {
        controls.clear();
        let read = self.state.try_controls(&mut self.input, controls);
        read.map_err(|message| self.state.fail(message))
    }

    /// As [`Source::next_batch`], but `false` at the end of each chunk: the next call begins the next
    /// one. So whoever counts chunks knows which one a batch is of.
    ///
    /// # Errors
    /// As [`Source::next_batch`].
    pub fn next_batch_of_chunk(&mut self, batch: &mut Batch) -> Result<bool, SourceError> {
        let result = self.state.try_batch_of_chunk(&mut self.input, batch);
        self.state.deliver(batch, result)
    }
}

impl<R: Read + Seek + Send> Source for TraceReader<R> {
    fn info(&self) -> SourceInfo {
        self.state.info()
    }
    fn next_batch(&mut self, batch: &mut Batch) -> Result<bool, SourceError> {
        self.state.next_batch(&mut self.input, batch)
    }
    fn position(&self) -> u64 {
        self.state.position.accesses
    }
}

impl State {
    fn new(name: &str, input: &mut dyn Anywhere) -> Result<Self, SourceError> {
        let fail = |message| SourceError { source: name.to_owned(), message };
        let bytes = input.seek(SeekFrom::End(0)).map_err(|e| input::cannot_read(name, &e))?;
        let (header, first) = read_start(input, bytes).map_err(fail)?;
        let mut reader = Self {
            name: name.to_owned(),
            bytes,
            header,
            chunks: Vec::new(),
            end: None,
            damage: None,
            next: 0,
            decoder: None,
            position: Extent::default(),
            failed: None,
        };
        match reader.read_end(input) {
            Some(end) => {
                reader.chunks.clone_from(&end.chunks);
                reader.end = Some(end);
            }
            None => reader.scan(input, first),
        }
        Ok(reader)
    }

    /// The index at the end; `None` if it is not there, or not whole.
    fn read_end(&self, input: &mut dyn Anywhere) -> Option<End> {
        let at = self.bytes.checked_sub(TRAILER as u64)?;
        let mut trailer = [0; TRAILER];
        input.seek(SeekFrom::Start(at)).ok()?;
        input.read_exact(&mut trailer).ok()?;
        let offset = offset_of_end(&trailer)?;
        let head = read_head(input, offset, at).ok()?;
        let whole = head.tag == TAG_END && offset + HEAD as u64 + u64::from(head.length) == at;
        let payload = whole.then(|| read_payload(input, head))?.ok()?;
        serde_json::from_slice(&payload).ok()
    }

    /// Looks for chunks from `at` on.
    fn scan(&mut self, input: &mut dyn Anywhere, mut at: u64) {
        let mut first = Extent::default();
        while at < self.bytes {
            match self.look(input, at, first) {
                Ok(Some((info, length))) => {
                    first = first.plus(info.held);
                    at += HEAD as u64 + length;
                    self.chunks.push(info);
                }
                Ok(None) | Err(Fault::CutOff) => return,
                Err(Fault::Damaged(what)) => {
                    self.damage = Some(format!("chunk {} at byte {at}: {what}", self.chunks.len()));
                    return;
                }
            }
        }
    }

    /// The chunk at `at`, and the length of its payload; `None` if the end of the file is there.
    fn look(
        &mut self,
        input: &mut dyn Anywhere,
        at: u64,
        first: Extent,
    ) -> Result<Option<(ChunkInfo, u64)>, Fault> {
        let head = read_head(input, at, self.bytes)?;
        if head.tag == TAG_END {
            let payload = read_payload(input, head)?;
            let what = match serde_json::from_slice::<End>(&payload) {
                Ok(end) if self.bytes > at + (HEAD + payload.len() + TRAILER - 1) as u64 => {
                    self.end = Some(end);
                    "the trailer is damaged, or something follows it".into()
                }
                Ok(end) => {
                    // All but the trailer.
                    self.end = Some(end);
                    return Ok(None);
                }
                Err(e) => format!("the index cannot be understood: {e}"),
            };
            return Err(Fault::Damaged(what));
        }
        if head.tag != TAG_CHUNK {
            let tag = head.tag.escape_ascii();
            return Err(Fault::Damaged(format!("a block `{tag}`, which has no place here")));
        }
        let mut numbers = [0; NUMBERS];
        let short = (head.length as usize) < NUMBERS;
        let read = if short { Ok(()) } else { input.read_exact(&mut numbers) };
        read.map_err(|e| Fault::Damaged(format!("cannot be read: {e}")))?;
        let info = chunk::numbers(&numbers).filter(|n| !short && n.0 == first);
        let (first, held) = info.ok_or_else(|| {
            Fault::Damaged("does not begin where the chunk before it ends".into())
        })?;
        Ok(Some((ChunkInfo { offset: at, first, held }, u64::from(head.length))))
    }

    fn seek_chunk(&mut self, chunk: usize) -> Result<(), SourceError> {
        let first = match self.chunks.get(chunk) {
            Some(info) => info.first,
            None if chunk == self.chunks.len() => {
                self.chunks.last().map_or(Extent::default(), |last| last.first.plus(last.held))
            }
            None => {
                let message = format!("no chunk {chunk}; there are {}", self.chunks.len());
                return Err(SourceError { source: self.name.clone(), message });
            }
        };
        self.next = chunk;
        self.decoder = None;
        self.position = first;
        self.failed = None;
        Ok(())
    }

    fn try_controls(
        &mut self,
        input: &mut dyn Anywhere,
        controls: &mut Vec<(u64, Control)>,
    ) -> Result<bool, String> {
        if let Some(message) = &self.failed {
            return Err(message.clone());
        }
        self.decoder = None;
        let Some((info, payload)) = self.next_payload(input)? else { return Ok(false) };
        let wrong = |what: String| self.at_chunk(self.next - 1, info.offset, &what);
        let mut decoder = Controls::new(&payload, info.held).map_err(wrong)?;
        while let Some((position, control)) = decoder.next().map_err(wrong)? {
            controls.push((info.first.runs.saturating_add(position), control));
        }
        self.position = info.first.plus(info.held);
        Ok(true)
    }

    fn fail(&mut self, message: String) -> SourceError {
        self.failed = Some(message.clone());
        SourceError { source: self.name.clone(), message }
    }

    /// Where something is wrong, and what.
    fn at_chunk(&self, chunk: usize, offset: u64, what: &str) -> String {
        let of = match &self.end {
            Some(end) => format!(" of {}", end.chunks.len()),
            None => String::new(),
        };
        format!("chunk {chunk}{of} at byte {offset}: {what}; everything before was used")
    }

    /// Reads the next chunk.
    fn next_payload(
        &mut self,
        input: &mut dyn Anywhere,
    ) -> Result<Option<(ChunkInfo, Vec<u8>)>, String> {
        let Some(&info) = self.chunks.get(self.next) else {
            return match &self.damage {
                Some(damage) => Err(format!("{damage}; everything before was used")),
                None => Ok(None),
            };
        };
        self.next += 1;
        let number = self.next - 1;
        let head = read_head(input, info.offset, self.bytes);
        let payload = head.and_then(|head| match head.tag {
            TAG_CHUNK => read_payload(input, head),
            tag => Err(Fault::Damaged(format!("a block `{}` in its place", tag.escape_ascii()))),
        });
        let payload =
            payload.map_err(|fault| self.at_chunk(number, info.offset, &fault.describe()))?;
        let wrong = |what: &str| Err(self.at_chunk(number, info.offset, what));
        match chunk::numbers(&payload) {
            Some((first, held)) if first == info.first && held == info.held => {}
            _ => return wrong("does not hold what the index says"),
        }
        if info.held.runs > MOST || info.held.controls > MOST {
            return wrong("says that it holds more than a chunk can");
        }
        Ok(Some((info, payload)))
    }

    fn try_batch_of_chunk(
        &mut self,
        input: &mut dyn Anywhere,
        batch: &mut Batch,
    ) -> Result<bool, String> {
        if let Some(message) = &self.failed {
            return Err(message.clone());
        }
        if self.decoder.is_none() {
            let Some((info, payload)) = self.next_payload(input)? else { return Ok(false) };
            let decoder = Decoder::new(&payload, self.header.line_addresses);
            let wrong = |what: String| self.at_chunk(self.next - 1, info.offset, &what);
            self.decoder = Some(decoder.map_err(wrong)?);
        }
        let Some(decoder) = self.decoder.as_mut() else { return Ok(false) };
        let info = self.chunks[self.next - 1];
        let more = decoder.next_batch(batch);
        self.position = info.first.plus(decoder.done());
        if !matches!(more, Ok(true)) {
            self.decoder = None;
        }
        more.map_err(|what| self.at_chunk(self.next - 1, info.offset, &what))
    }

    fn deliver(
        &mut self,
        batch: &mut Batch,
        result: Result<bool, String>,
    ) -> Result<bool, SourceError> {
        if !matches!(result, Ok(true)) {
            batch.runs.clear();
            batch.controls.clear();
        }
        result.map_err(|message| self.fail(message))
    }

    fn info(&self) -> SourceInfo {
        let mut approximations = self.header.approximations.clone();
        if self.end.is_none() {
            approximations.push(format!(
                "the recording has no end: it was cut off, and its {} complete chunks are all that \
                 there is",
                self.chunks.len()
            ));
        }
        SourceInfo {
            name: self.name.clone(),
            description: self.header.origin(),
            knows_lines: self.header.knows_lines,
            knows_pc: self.header.knows_pc,
            has_fetches: self.header.has_fetches,
            approximations,
            guest: Some(self.header.guest()),
            total: self.end.as_ref().map(|e| e.totals.accesses),
            populates: 0,
            failed: None,
        }
    }

    fn next_batch(
        &mut self,
        input: &mut dyn Anywhere,
        batch: &mut Batch,
    ) -> Result<bool, SourceError> {
        let result = loop {
            match self.try_batch_of_chunk(input, batch) {
                // A chunk may be empty, and another may follow.
                Ok(false) if self.next < self.chunks.len() || self.damage.is_some() => {}
                result => break result,
            }
        };
        self.deliver(batch, result)
    }
}

/// Reads magic number, version and header; says where the first chunk begins.
fn read_start(input: &mut dyn Anywhere, bytes: u64) -> Result<(Header, u64), String> {
    let mut start = Vec::new();
    input.seek(SeekFrom::Start(0)).map_err(|e| format!("cannot be read: {e}"))?;
    input.take(START).read_to_end(&mut start).map_err(|e| format!("cannot be read: {e}"))?;
    if !start.starts_with(&MAGIC) {
        return Err("not a trace of nestwalk: its first 8 bytes are not 89 4e 57 54 0d 0a 1a 0a; \
                    `nestwalk capture --save` and `nestwalk trace convert` write them"
            .into());
    }
    let version = start.get(MAGIC.len()..).and_then(|v| <[u8; 4]>::try_from(v).ok());
    match version.map(u32::from_le_bytes) {
        Some(VERSION) => {}
        Some(other) => {
            return Err(format!(
                "version {other} of the format, at byte 8; this program reads version {VERSION}"
            ));
        }
        None => return Err(format!("the file is cut off at byte {bytes}, within its header")),
    }
    let wrong = |what: &str| format!("header at byte {START}: {what}");
    let head = read_head(input, START, bytes).map_err(|f| wrong(&f.describe()))?;
    if head.tag != TAG_HEADER {
        return Err(wrong("another block is in its place"));
    }
    let payload = read_payload(input, head).map_err(|f| wrong(&f.describe()))?;
    let header = serde_json::from_slice(&payload);
    let header = header.map_err(|e| wrong(&format!("cannot be understood: {e}")))?;
    Ok((header, START + HEAD as u64 + payload.len() as u64))
}

/// Whether these bytes, the start of a file, are those of a trace.
pub(super) fn matches(head: &[u8]) -> bool {
    head.starts_with(&MAGIC)
}
