//! Entries of page tables and addresses, as people read them.

use nestwalk_tables::entry::{
    ACCESSED, DIRTY, FRAME, GLOBAL, LARGE, NO_EXECUTE, PRESENT, SOFT_COW, USER, WRITE,
};
use nestwalk_tables::{Level, Mode};

/// Bits of an entry, their letters, and what they mean.
pub const FLAGS: [(u64, &str, &str); 9] = [
    (PRESENT, "P", "present"),
    (WRITE, "W", "stores are allowed"),
    (USER, "U", "user mode is allowed"),
    (ACCESSED, "A", "accessed"),
    (DIRTY, "D", "dirty: stored to"),
    (LARGE, "PS", "maps a large page"),
    (GLOBAL, "G", "global: stays when CR3 is loaded"),
    (SOFT_COW, "cow", "the kernel's own bit: copy on write"),
    (NO_EXECUTE, "NX", "fetches are forbidden"),
];

/// Letters of the bits that are set.
pub fn flags(entry: u64) -> Vec<&'static str> {
    // PS means that only above the last level; there it would be PAT, which nobody sets here.
    FLAGS.iter().filter(|(bit, ..)| entry & bit != 0).map(|(_, letters, _)| *letters).collect()
}

/// Where it points, and its flags: `0x5000 P W U`.
pub fn text(entry: u64) -> String {
    if entry == 0 {
        return "empty".into();
    }
    format!("{:#x} {}", entry & FRAME, flags(entry).join(" "))
}

/// Index of an address in the tables of each level, from the root on, and the first bit of each.
pub fn split(mode: &Mode, address: u64) -> Vec<(Level, u64, u32)> {
    let level = |level: Level| (level, mode.index(address, level), mode.span(level).shift());
    (1..=mode.levels).rev().map(level).collect()
}
