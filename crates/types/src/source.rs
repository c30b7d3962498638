//! What a source of events is to its consumer.

use crate::Batch;

/// Why a source ended early. The message names the place and says what would be right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceError {
    /// Which source: a file, a command, a workload.
    pub source: String,
    /// What was wrong, where, and what would be right.
    pub message: String,
}

impl std::fmt::Display for SourceError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.source, self.message)
    }
}
impl std::error::Error for SourceError {}

/// What a source says of itself, for the results' header.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SourceInfo {
    /// The source as it was asked for, e.g. `gups` or `trace.champsim.xz`.
    pub name: String,
    /// One line on what it is and what was fixed: footprint, seed, command.
    pub description: String,
    /// Which of a page's lines were touched is known.
    pub knows_lines: bool,
    /// The instruction addresses are known.
    pub knows_pc: bool,
    /// Instruction fetches are part of the stream.
    pub has_fetches: bool,
    /// Approximations that the results must name, one sentence each; empty if there are none.
    pub approximations: Vec<String>,
    /// Accesses or bytes in all, if known: what progress is measured against.
    pub total: Option<u64>,
}

/// A stream of events, produced in batches, in constant memory.
pub trait Source: Send {
    /// What it is.
    fn info(&self) -> SourceInfo;
    /// Replaces `batch` by the next piece of the stream. `Ok(false)` means that the stream has
    /// ended and `batch` is empty. An empty batch with `Ok(true)` is no end: a live source has
    /// nothing now, and gives its consumer the time to look whether it should go on.
    ///
    /// # Errors
    /// The stream is damaged or its producer failed; everything before was delivered.
    fn next_batch(&mut self, batch: &mut Batch) -> Result<bool, SourceError>;
    /// Progress in the unit of [`SourceInfo::total`].
    fn position(&self) -> u64 {
        0
    }
}

impl<S: Source + ?Sized> Source for Box<S> {
    fn info(&self) -> SourceInfo {
        (**self).info()
    }
    fn next_batch(&mut self, batch: &mut Batch) -> Result<bool, SourceError> {
        (**self).next_batch(batch)
    }
    fn position(&self) -> u64 {
        (**self).position()
    }
}
