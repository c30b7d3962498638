//! `DynamoRIO` drmemtrace, in the final form that `raw2trace` writes and analysis tools read.
//!
//! The format is that of `clients/drcachesim/common/trace_entry.h`: packed little-endian records of
//! 12 bytes, `u16 type; u16 size; u64 addr` (64-bit builds), one file per thread, plain, gzip, or a
//! zip archive whose members are consecutive chunks of about ten million instructions. The numbers
//! are those of format version 5; older versions have fewer types with the same numbers. What each
//! record means follows `reader/reader.cpp`.
//!
//! What becomes of them:
//! - instructions (and each instruction of a bundle): a fetch that retires one instruction. A size
//!   of 0 only names the program counter, as filtered traces do. `INSTR_NO_FETCH`, a further
//!   iteration of a repeated string instruction, is neither a fetch nor an instruction.
//! - loads and stores: accesses at the program counter of the instruction before.
//! - prefetches and cache flushes: skipped. A prefetch never faults, and which ones a processor
//!   drops on a TLB miss is not documented.
//! - records between the markers `SYSCALL_TRACE_START` and `SYSCALL_TRACE_END`: kernel mode.
//! - other markers, encodings: skipped, but for timestamps, by which threads are interleaved.
//!
//! Not verified against a trace of the real tool, for none could be had as text: the decoder was
//! written from the header and the reader's source, and is tested with bytes made from them. 32-bit
//! traces (8-byte records) and lz4 and snappy compression are not supported.

mod merge;
mod record;
mod zip;

pub use merge::Drmemtrace;
pub(crate) use record::matches;
pub(crate) use zip::is_zip;

#[cfg(test)]
mod tests;
