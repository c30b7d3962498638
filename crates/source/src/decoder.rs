//! What all decoders of byte streams share: feeding, full batches, and errors at the right time.

use crate::bytes::Window;
use nestwalk_types::{
    Batch, BatchBuilder, Control, ProcessId, Room, Source, SourceError, SourceInfo, VcpuId,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The process of a trace that knows only one.
pub(crate) const ONLY_PROCESS: ProcessId = ProcessId(1);

/// What one call of [`Decode::decode`] did: bytes used, and what was wrong behind them.
pub(crate) struct Step {
    pub(crate) used: usize,
    pub(crate) error: Option<String>,
}

/// A format: turns bytes into accesses, keeping between calls what it needs.
pub(crate) trait Decode: Send {
    /// Decodes whole records from the front of `bytes`, until the batch is full or what is left is
    /// not a whole record. `offset` is that of `bytes[0]` in the stream.
    fn decode(&mut self, bytes: &[u8], offset: u64, out: &mut BatchBuilder) -> Step;
    /// The stream ended with `rest` undecoded.
    fn finish(&mut self, rest: &[u8], offset: u64, out: &mut BatchBuilder) -> Result<(), String>;
    /// What to say of this source, as known so far.
    fn info(&self) -> SourceInfo;
    /// What was read so far, as [`Source::tally`] says it.
    fn tally(&self) -> Vec<(&'static str, u64)>;
}

/// A source that decodes a byte stream.
pub(crate) struct Decoder<D> {
    name: String,
    window: Window,
    taken: Arc<AtomicU64>,
    total: Option<u64>,
    decode: D,
    builder: BatchBuilder,
    end: Option<Result<(), String>>,
}

impl<D: Decode> Decoder<D> {
    /// `total` is the length of the file, compressed, if known.
    pub(crate) fn new(name: String, window: Window, total: Option<u64>, decode: D) -> Self {
        let mut builder = BatchBuilder::new();
        builder.control(Control::Switch { vcpu: VcpuId(0), process: ONLY_PROCESS });
        builder.control(Control::RegionOfInterest);
        let taken = window.taken();
        Self { name, window, taken, total, decode, builder, end: None }
    }

    pub(crate) fn format(&self) -> &D {
        &self.decode
    }

    fn step(&mut self) {
        let offset = self.window.offset();
        let step = self.decode.decode(self.window.rest(), offset, &mut self.builder);
        self.window.consume(step.used);
        if let Some(message) = step.error {
            self.end = Some(Err(message));
        } else if !self.builder.is_full() && !self.window.refill() {
            // What the format says of the rest comes second: a damaged stream ends anywhere.
            let (rest, offset) = (self.window.rest(), self.window.offset());
            let finish = self.decode.finish(rest, offset, &mut self.builder);
            self.end = Some(self.window.failure().and(finish));
        }
    }
}

impl<D: Decode> Source for Decoder<D> {
    fn info(&self) -> SourceInfo {
        SourceInfo { name: self.name.clone(), total: self.total, ..self.decode.info() }
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
            Some(Err(message)) => {
                Err(SourceError { source: self.name.clone(), message: message.clone() })
            }
            _ => Ok(false),
        }
    }
    fn set_room(&mut self, room: Room) -> bool {
        self.builder.set_room(room);
        true
    }
    fn tally(&self) -> Vec<(&'static str, u64)> {
        self.decode.tally()
    }
    fn position(&self) -> u64 {
        self.taken.load(Relaxed)
    }
}
