//! `DynamoRIO` drmemtrace, in the final form that `raw2trace` writes and analysis tools read.
//!
//! The format is that of `clients/drcachesim/common/trace_entry.h`, versions 1 to 7: packed
//! little-endian records `u16 type; u16 size; u64 addr` of 12 bytes, or of 8 with `u32 addr` if the
//! tracer was built for 32 bits. There is a file for each thread or, in core-sharded traces, for each
//! core, plain, compressed, or a zip archive whose members are consecutive chunks of about ten million
//! instructions. What each record means follows `reader/reader.cpp` and `common/kernel_tracker.h`.
//!
//! What becomes of them:
//! - instructions (and each instruction of a bundle): a fetch that retires one instruction. A size
//!   of 0 only names the program counter, as filtered traces do. `INSTR_NO_FETCH`, a further
//!   iteration of a repeated string instruction, is neither a fetch nor an instruction.
//! - loads and stores: accesses at the program counter of the instruction before.
//! - prefetches and cache flushes: skipped and counted. A prefetch never faults, and which ones a
//!   processor drops on a TLB miss is not documented.
//! - records between `SYSCALL_TRACE_START` and `_END`, between `CONTEXT_SWITCH_START` and `_END`, and
//!   between `HARDWARE_EVENT` and `HARDWARE_CONTEXT_RETURN`: kernel mode. In whole-system traces,
//!   instructions in the upper half of the address space, too.
//! - `FILTER_ENDPOINT` in a trace that its file type calls filtered for warm-up: the region of interest.
//! - a footer: a trace may end here, or go on; a header: another begins. What ends without a footer was
//!   cut off.
//! - other markers, encodings: skipped, but for timestamps, by which files are interleaved.
//!
//! What a processor ignores of addresses is removed: the top byte on `AArch64`, and on x86-64 the bits
//! above 48 where they are not canonical. `AArch64`'s two halves of 48 bits become x86-64's one.
//!
//! Page tables come with a trace as `v2p.textproto` beside it or as markers in it (`v2p.rs`).
//!
//! Tested with bytes made from the header and the reader's source, and checked against the recordings
//! in `DynamoRIO`'s own tests, whose counts an independent reader has made.

mod files;
mod merge;
mod notes;
mod record;
mod stream;
pub(crate) mod v2p;
mod write;
mod zip;

pub use files::are_one_trace;
pub use merge::Drmemtrace;
pub(crate) use record::matches;
pub use v2p::tables_of_trace;
pub(crate) use zip::is_zip;

use crate::formats::Definition;

pub(crate) const FORMAT: Definition = Definition {
    directory: Some(|path, vcpus| Ok(Box::new(Drmemtrace::open_directory(path, vcpus)?))),
    archive: Some(|path, file| {
        is_zip(file).then(|| Ok(Box::new(Drmemtrace::open(path)?) as Box<_>))
    }),
    endings: &["drmemtrace", "memtrace"],
    write: Some(&write::WRITING),
    ..Definition::new(
        "drmemtrace",
        "final (post-processed) traces of DynamoRIO",
        matches,
        |input| Ok(Box::new(Drmemtrace::source(input.name, input.window, input.total))),
    )
};

#[cfg(test)]
mod tests;
