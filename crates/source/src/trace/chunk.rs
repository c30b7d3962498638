//! Chunks: pieces of the stream that can be decoded by themselves.
//!
//! A chunk's payload is eight numbers (8 bytes each, little-endian: where it begins in the stream,
//! and what it holds), a directory of columns, and the columns, each compressed by itself.

use super::column::Cursor;
use super::{controls, runs};
use nestwalk_types::{Batch, Control, Run};
use std::io::Read;

/// Bytes of the eight numbers.
pub(super) const NUMBERS: usize = 64;
/// Bytes of an entry of the directory: number of the column, raw length, stored length.
const ENTRY: usize = 9;
/// Most runs or controls of a chunk, and most tables with contents.
pub(super) const MOST: u64 = 1 << 22;
const MOST_IMAGES: u64 = MOST / 512 + 1;
/// Most bytes that the columns of a chunk may have, uncompressed.
const RAW_BYTES: u64 = 1 << 28;
/// Columns of runs have numbers from here on; those of controls are lower.
const RUNS_FROM: usize = 64;
/// Controls that a table with contents counts as towards what a batch holds.
const IMAGES: usize = 64;

/// A place in the stream, or a distance.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Extent {
    /// Runs.
    pub runs: u64,
    /// Accesses.
    pub accesses: u64,
    /// Instructions.
    pub instructions: u64,
    /// Controls.
    pub controls: u64,
}

impl Extent {
    /// The place this much further on.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            runs: self.runs.saturating_add(other.runs),
            accesses: self.accesses.saturating_add(other.accesses),
            instructions: self.instructions.saturating_add(other.instructions),
            controls: self.controls.saturating_add(other.controls),
        }
    }
    const fn words(self) -> [u64; 4] {
        [self.runs, self.accesses, self.instructions, self.controls]
    }
    const fn of([runs, accesses, instructions, controls]: [u64; 4]) -> Self {
        Self { runs, accesses, instructions, controls }
    }
    /// So many runs more.
    pub(super) fn add(&mut self, runs: &[Run]) {
        let (mut accesses, mut instructions) = (0, 0);
        for run in runs {
            accesses += u64::from(run.count);
            instructions += u64::from(run.instructions);
        }
        self.runs += runs.len() as u64;
        self.accesses += accesses;
        self.instructions += instructions;
    }
}

/// A piece of the stream, as it is gathered.
#[derive(Default)]
pub(super) struct Piece {
    pub(super) runs: Vec<Run>,
    pub(super) controls: Vec<(u32, Control)>,
}

/// The columns of a chunk, before they are compressed.
pub(super) struct Encoded {
    controls: controls::Written,
    runs: [Vec<u8>; runs::COLUMNS],
    held: Extent,
}

/// Makes columns of a piece whose controls are those of a guest.
///
/// # Errors
/// The name of a control that no guest says.
pub(super) fn encode(piece: &Piece, line_addresses: bool) -> Result<Encoded, &'static str> {
    let mut held = Extent { controls: piece.controls.len() as u64, ..Extent::default() };
    let mut encoder = runs::Encoder::new(line_addresses);
    for run in &piece.runs {
        encoder.run(run);
    }
    held.add(&piece.runs);
    let mut controls = controls::Encoder::new();
    for (position, control) in &piece.controls {
        controls.control(u64::from(*position), control)?;
    }
    Ok(Encoded { controls: controls.columns, runs: encoder.columns, held })
}

impl Encoded {
    pub(super) const fn held(&self) -> Extent {
        self.held
    }

    /// The columns with their numbers and names, those with something in them.
    pub(super) fn columns(&self) -> impl Iterator<Item = (usize, &[u8])> {
        let controls = self.controls.iter().enumerate();
        let runs = self.runs.iter().enumerate().map(|(i, c)| (i + RUNS_FROM, c));
        controls.chain(runs).filter(|c| !c.1.is_empty()).map(|(i, c)| (i, c.as_slice()))
    }

    /// The payload of a chunk that begins at `first`.
    ///
    /// # Errors
    /// What the compressor says.
    pub(super) fn payload(&self, first: Extent, level: i32) -> Result<Vec<u8>, std::io::Error> {
        let mut payload = Vec::new();
        for word in first.words().into_iter().chain(self.held.words()) {
            payload.extend(word.to_le_bytes());
        }
        let mut compressor = zstd::bulk::Compressor::new(level)?;
        let columns: Vec<_> = self.columns().collect();
        let mut stored: Vec<u8> = Vec::new();
        payload.push(columns.len() as u8);
        for (number, raw) in columns {
            let from = stored.len();
            let compressed = compressor.compress(raw)?;
            // What does not shrink is stored as it is.
            let shrinks = compressed.len() < raw.len();
            stored.extend_from_slice(if shrinks { &compressed } else { raw });
            payload.push(number as u8);
            payload.extend((raw.len() as u32).to_le_bytes());
            payload.extend(((stored.len() - from) as u32).to_le_bytes());
        }
        payload.extend(stored);
        Ok(payload)
    }
}

/// The name of a column by its number, for people.
pub(super) fn column_name(number: usize) -> String {
    let (of, name) = match number.checked_sub(RUNS_FROM) {
        Some(run) => ("runs", runs::NAMES.get(run)),
        None => ("controls", controls::NAMES.get(number)),
    };
    name.map_or_else(|| format!("{number}, which is unknown,"), |name| format!("`{name}` of {of}"))
}

/// What the eight numbers say: where a chunk begins and what it holds.
pub(super) fn numbers(payload: &[u8]) -> Option<(Extent, Extent)> {
    let (words, _) = payload.get(..NUMBERS)?.as_chunks::<8>();
    let word = |i: usize| u64::from_le_bytes(words[i]);
    let first = Extent::of([0, 1, 2, 3].map(word));
    Some((first, Extent::of([4, 5, 6, 7].map(word))))
}

/// Decompresses the columns with the numbers from `from` on.
fn columns<const N: usize>(payload: &[u8], from: usize) -> Result<[Cursor; N], String> {
    let mut cursors = [const { Cursor::new(Vec::new()) }; N];
    let entries = usize::from(*payload.get(NUMBERS).ok_or("there is no directory of columns")?);
    let directory = payload.get(NUMBERS + 1..NUMBERS + 1 + entries * ENTRY);
    let directory = directory.ok_or("the directory of columns is cut off")?;
    let (mut at, mut total) = (NUMBERS + 1 + entries * ENTRY, 0);
    for entry in directory.as_chunks::<ENTRY>().0 {
        let [number, raw @ .., s0, s1, s2, s3] = *entry;
        let (raw, stored) = (u32::from_le_bytes(raw), u32::from_le_bytes([s0, s1, s2, s3]));
        let name = || column_name(usize::from(number));
        let bytes = payload.get(at..).and_then(|rest| rest.get(..stored as usize));
        let bytes = bytes.ok_or_else(|| format!("column {} is cut off", name()))?;
        at += bytes.len();
        let Some(cursor) = usize::from(number).checked_sub(from).and_then(|i| cursors.get_mut(i))
        else {
            continue;
        };
        total += u64::from(raw);
        if total > RAW_BYTES || stored > raw {
            return Err(format!("column {} says that it has {raw} bytes, as {stored}", name()));
        }
        let bytes = if stored == raw { Ok(bytes.to_vec()) } else { decompress(bytes, raw) };
        let bytes = bytes.map_err(|e| format!("column {}: {e}", name()))?;
        *cursor = Cursor::new(bytes);
    }
    if at != payload.len() {
        return Err(format!("{} bytes follow the last column", payload.len() - at));
    }
    Ok(cursors)
}

/// Decompresses what must be `raw` bytes. Memory grows with what comes, not with what is said.
fn decompress(bytes: &[u8], raw: u32) -> Result<Vec<u8>, String> {
    let mut out = Vec::with_capacity((raw as usize).min(bytes.len().saturating_mul(16)));
    let decoder = zstd::stream::read::Decoder::with_buffer(bytes).map_err(|e| e.to_string())?;
    decoder.take(u64::from(raw) + 1).read_to_end(&mut out).map_err(|e| e.to_string())?;
    if out.len() != raw as usize {
        return Err(format!("{} bytes or more in place of {raw}", out.len()));
    }
    Ok(out)
}

/// Whether it is a table with contents.
pub(super) const fn is_image(control: &Control) -> bool {
    matches!(control, Control::TableAdded { entries: Some(_), .. })
}

/// Reads the controls of a chunk.
pub(super) struct Controls {
    decoder: controls::Decoder,
    left: u64,
    images: u64,
}

impl Controls {
    /// # Errors
    /// What is wrong with the payload.
    pub(super) fn new(payload: &[u8], held: Extent) -> Result<Self, String> {
        let decoder = controls::Decoder::new(columns(payload, 0)?);
        Ok(Self { decoder, left: held.controls, images: 0 })
    }
    /// Where the next control stands, as an index of runs in the chunk; `None` after the last.
    fn position(&mut self) -> Option<u64> {
        self.left = self.left.checked_sub(1)?;
        Some(self.decoder.position())
    }
    /// The next control with its position.
    pub(super) fn next(&mut self) -> Result<Option<(u64, Control)>, String> {
        let Some(position) = self.position() else {
            return match self.decoder.is_finished() {
                true => Ok(None),
                false => Err("there are more controls than the chunk says".into()),
            };
        };
        let control = self.decoder.control();
        self.images += u64::from(is_image(&control));
        if self.images > MOST_IMAGES {
            Err("it holds more tables than a chunk can".into())
        } else if self.decoder.is_sound() {
            Ok(Some((position, control)))
        } else {
            Err(format!("the control before run {position} cannot be decoded"))
        }
    }
}

/// Reads a chunk, batch by batch.
pub(super) struct Decoder {
    runs: runs::Decoder,
    controls: Controls,
    /// The next control and its position.
    ahead: Option<(u64, Control)>,
    held: Extent,
    /// What was read.
    done: Extent,
}

impl Decoder {
    /// # Errors
    /// What is wrong with the payload.
    pub(super) fn new(payload: &[u8], line_addresses: bool) -> Result<Self, String> {
        let (_, held) = numbers(payload).ok_or("it is too short")?;
        let runs = runs::Decoder::new(columns(payload, RUNS_FROM)?, line_addresses);
        let mut controls = Controls::new(payload, held)?;
        let ahead = controls.next()?;
        Ok(Self { runs, controls, ahead, held, done: Extent::default() })
    }

    /// What was read so far.
    pub(super) const fn done(&self) -> Extent {
        self.done
    }

    /// Replaces `batch` by the next piece; `false` after the last.
    pub(super) fn next_batch(&mut self, batch: &mut Batch) -> Result<bool, String> {
        batch.runs.clear();
        batch.controls.clear();
        let first = self.done.runs;
        let mut end = self.held.runs.min(first + Batch::RUNS as u64);
        let mut weight = 0;
        while let Some((position, control)) = self.ahead.take_if(|a| a.0 <= end) {
            if position > self.held.runs {
                break;
            }
            weight += if is_image(&control) { IMAGES } else { 1 };
            batch.controls.push(((position - first) as u32, control));
            self.done.controls += 1;
            self.ahead = self.controls.next()?;
            if weight >= Batch::RUNS {
                // What stands behind the last control waits for the next batch.
                end = position;
                break;
            }
        }
        self.runs.runs((end - first) as usize, &mut batch.runs);
        self.done.add(&batch.runs);
        if !self.runs.is_sound() {
            return Err(format!("one of the runs {first} to {end} cannot be decoded"));
        }
        if batch.is_empty() { self.finish() } else { Ok(true) }
    }

    /// Whether all that was there is what the chunk says.
    fn finish(&self) -> Result<bool, String> {
        if let Some((position, _)) = self.ahead {
            let held = self.held.runs;
            return Err(format!("a control stands before run {position} of {held}"));
        }
        if !self.runs.is_finished() {
            return Err("there are more runs than the chunk says".into());
        }
        if self.done != self.held {
            return Err(format!("it holds {:?} and says {:?}", self.done, self.held));
        }
        Ok(false)
    }
}
