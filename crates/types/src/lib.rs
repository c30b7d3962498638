//! The words of nestwalk: address spaces, page sizes, events, batches, and what a source is.
//!
//! Every other crate speaks these; this one depends on nothing.

mod addr;
mod batch;
mod by_number;
mod event;
mod permutation;
mod rng;
mod size;
mod source;

pub use addr::{Address, Gpa, Gva, Hpa, Hva};
pub use batch::{Batch, BatchBuilder, Burst, GuestBatch, Lane, Room};
pub use by_number::{ByNumber, NumberSet};
pub use event::{
    AccessKind, Control, FaultCode, GuestSegment, Invalidation, OsWork, ProcessId, Protection, Run,
    RunFlags, VcpuId,
};
pub use permutation::{Permutation, PermutationKey, ShortPermutation};
pub use rng::{SplitMix64, mix64};
pub use size::PageSize;
pub use source::{Filter, FilterArray, GuestInfo, Source, SourceError, SourceInfo};
