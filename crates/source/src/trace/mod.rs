//! Traces of guests: the format of nestwalk.
//!
//! What is stored is the stream of a guest with its page tables ([`nestwalk_types::SourceInfo::guest`]):
//! page runs and architectural controls, bit for bit. Where batches end is not kept, and, unless
//! [`WriteOptions::line_addresses`] is off, the lowest 6 bits of the addresses of runs are not.
//!
//! ```text
//! file     magic number (8 bytes), version (4), block HEAD, blocks CHNK, block DONE, trailer (16)
//! block    tag (4), length (4), CRC-32 of the payload (4), CRC-32 of these 12 bytes (4), payload
//! HEAD     Header as JSON
//! CHNK     where it begins: runs, accesses, instructions, controls (8 bytes each)
//!          what it holds: the same four
//!          number of columns (1); for each its number (1), raw length (4), stored length (4)
//!          the columns, each a zstd frame, or as it is if both lengths are the same
//! DONE     totals, summary of the recorder, and a list of chunks, as JSON
//! trailer  where DONE begins (8), CRC-32 of these 8 bytes (4), NWTE
//! ```
//!
//! Numbers are little-endian. A chunk is decoded without any other, and its controls without its runs.
//! Inside, each field has a column; what a field is guessed to be from what came before it in the
//! chunk takes no bytes of its own: the modules `model`, `lists`, `runs`, `controls` and `image` say
//! how.

mod block;
mod chunk;
mod column;
mod controls;
mod header;
mod image;
mod lists;
mod model;
mod reader;
mod runs;
mod writer;

#[cfg(test)]
mod tests;

pub use chunk::Extent;
pub use header::{Header, Summary, Totals, control_name};
pub use reader::TraceReader;
pub use writer::{TraceWriter, WriteOptions, Written};

use crate::formats::{Definition, Input, Opened};
use nestwalk_types::SourceError;
use serde::{Deserialize, Serialize};

pub(crate) const FORMAT: Definition = Definition {
    endings: &["nwt"],
    ..Definition::new("nestwalk", "recorded guests", reader::matches, open)
};

fn open(input: Input<'_>) -> Opened {
    if input.window.is_compressed() {
        let message = "a trace of nestwalk that was compressed once more; it is compressed inside, so \
                       decompress it and give the plain file";
        return Err(SourceError { source: input.name, message: message.into() });
    }
    Ok(Box::new(TraceReader::open(input.path)?))
}

/// A chunk of a trace.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(from = "[u64; 9]", into = "[u64; 9]")]
pub struct ChunkInfo {
    /// Where it begins in the file, bytes.
    pub offset: u64,
    /// Where it begins in the stream.
    pub first: Extent,
    /// What it holds.
    pub held: Extent,
}

impl From<[u64; 9]> for ChunkInfo {
    fn from(words: [u64; 9]) -> Self {
        let [offset, runs, accesses, instructions, controls, ..] = words;
        let first = Extent { runs, accesses, instructions, controls };
        let [.., runs, accesses, instructions, controls] = words;
        Self { offset, first, held: Extent { runs, accesses, instructions, controls } }
    }
}

impl From<ChunkInfo> for [u64; 9] {
    fn from(ChunkInfo { offset, first: f, held: h }: ChunkInfo) -> Self {
        let [fr, fa, fi, fc] = [f.runs, f.accesses, f.instructions, f.controls];
        [offset, fr, fa, fi, fc, h.runs, h.accesses, h.instructions, h.controls]
    }
}

/// The last block.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct End {
    totals: Totals,
    summary: Summary,
    chunks: Vec<ChunkInfo>,
}

/// Sizes of the columns of a chunk made of these runs and controls, by name: raw, and compressed at
/// this level. For measurements.
#[doc(hidden)]
pub fn column_sizes(
    batch: nestwalk_types::Batch,
    level: i32,
) -> Result<Vec<(String, usize, usize)>, &'static str> {
    let piece = chunk::Piece { runs: batch.runs, controls: batch.controls };
    let encoded = chunk::encode(&piece, true)?;
    let size = |raw: &[u8]| zstd::bulk::compress(raw, level).map_or(0, |c| c.len());
    let sizes = encoded.columns().map(|(i, raw)| (chunk::column_name(i), raw.len(), size(raw)));
    Ok(sizes.collect())
}

/// A file with an empty header and this payload as its only chunk, with checksums that are right. For
/// fuzzing.
#[doc(hidden)]
pub fn file_with_chunk(payload: &[u8]) -> Vec<u8> {
    let mut payload = payload.to_vec();
    // It begins where the stream does.
    payload.iter_mut().take(chunk::NUMBERS / 2).for_each(|byte| *byte = 0);
    let mut file = block::MAGIC.to_vec();
    file.extend(block::VERSION.to_le_bytes());
    for (tag, payload) in [(block::TAG_HEADER, b"{}".as_slice()), (block::TAG_CHUNK, &payload)] {
        file.extend(block::head(tag, payload).unwrap_or_default());
        file.extend(payload);
    }
    file
}
