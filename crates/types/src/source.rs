//! What a source of events is to its consumer.

use crate::{Batch, Room};

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
    /// What the stream says of its guest, if it carries architectural events; `None` if it speaks of
    /// processes and has no page tables.
    pub guest: Option<GuestInfo>,
    /// Accesses or bytes in all, if known: what progress is measured against.
    pub total: Option<u64>,
    /// Bytes of memory that set-up makes present, piece by piece, before the region of interest; 0 if it
    /// does not, or nobody knows.
    pub populates: u64,
    /// The command that the source ran has ended, and failed: how. What came of it is whole.
    pub failed: Option<String>,
}

/// What a stream with the page tables of a real guest says of that guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestInfo {
    /// Bytes of guest memory.
    pub memory_bytes: u64,
    /// Name of its paging mode, as `nestwalk_tables` has it.
    pub paging: String,
    /// vCPUs.
    pub vcpus: u8,
    /// Accesses that the stream does not show.
    pub filter: Filter,
}

/// Sets and ways of one array of a filter. 0 sets: the array does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FilterArray {
    /// Sets, a power of two, indexed by the lowest bits of the page number.
    pub sets: u16,
    /// Ways.
    pub ways: u8,
}

/// How a source was filtered: which accesses are parts of runs that stand elsewhere in the stream.
///
/// A filter is a small TLB with replacement by order of use. An access that hits it is counted in the
/// run that brought its page in, or that touched it last, and before an access that misses, pages of
/// its set whose order of use has changed are shown again, in that order. So the top of the stack of
/// every set is known at each miss, and the misses of every TLB with replacement by order of use whose
/// sets refine the filter's and which has at least as many ways are what they were (after Puzak 1985,
/// who shows it for one way). The filter is emptied by every event that may invalidate a translation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Filter {
    /// Data accesses, by 4 KiB page. [`Filter::RUNS`] means that only consecutive ones are folded.
    pub data: FilterArray,
    /// Data accesses to pages that the guest maps as 2 MiB or more, by 2 MiB: an access is hidden only
    /// if it hits here, too, and if its page is the most recently used of its set of `data`; of pages
    /// that the guest maps as 1 GiB, if no other such page was used since, as well. One way.
    pub data_large: FilterArray,
    /// Instruction fetches, by 4 KiB page.
    pub fetch: FilterArray,
    /// Instruction fetches from large pages.
    pub fetch_large: FilterArray,
}

impl Filter {
    /// Only consecutive accesses to one page are folded: exact for everything that looks at pages.
    pub const RUNS: Self = {
        let one = FilterArray { sets: 1, ways: 1 };
        Self { data: one, data_large: one, fetch: one, fetch_large: one }
    };
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
    /// How much of the stream is wanted in the next batch: a cut that falls within page runs ends them
    /// all. It is said before each [`Source::next_batch`] for which it holds. `false` if the order of
    /// accesses within runs is not known any more, so that a run can be cut only as a whole.
    fn set_room(&mut self, _: Room) -> bool {
        false
    }
    /// What was read so far, in the format's own words: a name and a number each, as in `records`.
    fn tally(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
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
    fn set_room(&mut self, room: Room) -> bool {
        (**self).set_room(room)
    }
    fn tally(&self) -> Vec<(&'static str, u64)> {
        (**self).tally()
    }
    fn position(&self) -> u64 {
        (**self).position()
    }
}
