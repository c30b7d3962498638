//! What results must say of a trace.

use super::record::{Counts, NEWEST, file_type};

/// The sentences that follow from what was counted, of all files together.
pub(super) fn of<'a>(counts: impl Iterator<Item = &'a Counts>) -> Vec<String> {
    let mut all = Counts::default();
    let mut unfiltered = 0_u64;
    for c in counts {
        all.skipped += c.skipped;
        all.windows = all.windows.max(c.windows);
        all.filtered_late += c.filtered_late;
        all.file_types |= c.file_types;
        all.version = all.version.max(c.version);
        all.page_size = all.page_size.or(c.page_size);
        all.physical += c.physical;
        all.not_available += c.not_available;
        unfiltered = c.unfiltered.values().fold(unfiltered, |sum, n| sum.saturating_add(*n));
    }
    let mut notes = filtered(&all, unfiltered);
    notes.extend(contents(&all));
    notes
}

/// Of traces that a cache has filtered.
fn filtered(all: &Counts, unfiltered: u64) -> Vec<String> {
    let has = |bits| all.file_types & bits != 0;
    let bimodal = has(file_type::BIMODAL_FILTERED_WARMUP);
    let mut notes = Vec::new();
    if has(file_type::FILTERED) && !bimodal {
        let before = match unfiltered {
            0 => String::new(),
            n => format!(" ({n} instructions ran, as it says)"),
        };
        notes.push(format!(
            "the trace was filtered by a cache when it was recorded: accesses that hit there are \
             missing{before}"
        ));
    }
    if bimodal {
        notes.push(
            "the trace is filtered by a cache up to a marker, and what is before is warm-up".into(),
        );
    }
    if all.filtered_late > 0 {
        notes.push(format!(
            "{} accesses after the warm-up are filtered: of threads that had not reached the marker \
             yet, or of later windows",
            all.filtered_late
        ));
    }
    notes
}

/// Of what the records hold, and of what is missing.
fn contents(all: &Counts) -> Vec<String> {
    let has = |bits| all.file_types & bits != 0;
    let mut notes: Vec<String> = Vec::new();
    if has(file_type::INSTRUCTION_ONLY) {
        notes.push("the trace holds instructions only, no loads and stores".into());
    }
    if has(file_type::KERNEL_SYSCALL_INSTR_ONLY) {
        notes.push(
            "the kernel's part of system calls holds instructions only, no loads and stores".into(),
        );
    }
    if has(file_type::KERNEL_SYSCALL_TRACE_TEMPLATES) {
        notes.push(
            "the file holds templates of the kernel's parts, to be put into traces, and is no \
             recording of a program"
                .into(),
        );
    }
    if has(file_type::ARCH_AARCH64) {
        notes.push(
            "recorded on AArch64: addresses are without tags and extended from bit 47, as those of \
             x86-64 are, so addresses of program and kernel that differ only above it are one"
                .into(),
        );
    }
    if all.windows > 1 {
        notes.push(format!(
            "the trace has {} windows of recording, between which instructions are missing",
            all.windows
        ));
    }
    if all.skipped > 0 {
        notes.push(format!(
            "{} prefetches and cache flushes of the trace are left out",
            all.skipped
        ));
    }
    if let Some(bytes) = all.page_size {
        notes.push(format!(
            "the traced system had pages of {bytes} bytes; page sizes here are those of the machine's \
             name"
        ));
    }
    if all.physical > 0 {
        notes.push(format!(
            "the trace says physical addresses {} times, and {} times that there is none to be had",
            all.physical, all.not_available
        ));
    }
    if all.version > NEWEST {
        notes.push(format!(
            "the trace is of version {} of its format, which is newer than what is known here \
             ({NEWEST}): what new records mean is not",
            all.version
        ));
    }
    notes
}
