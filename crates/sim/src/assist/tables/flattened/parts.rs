//! What flattened tables are made of.

use super::ENTRIES;

/// 2 MiB of pages.
#[derive(Clone, Default)]
pub(super) enum Part {
    #[default]
    Empty,
    /// Base pages; where the table is, if it is one of 4 KiB.
    Small { at: u64, used: u32, entries: Box<[u64; ENTRIES]> },
    /// A page, and the base-2 logarithm of its size: of one of 4 MiB each half says so.
    Large(u64, u8),
}

/// A GiB.
pub(super) struct Gib {
    pub(super) key: (u32, u64),
    /// Address of the node, or of the table of the second level.
    pub(super) at: u64,
    pub(super) flat: bool,
    pub(super) used: u32,
    pub(super) parts: Vec<Part>,
}

/// What a region's entries of the root node are.
#[derive(Clone, Default)]
pub(super) struct Top {
    pub(super) at: u64,
    /// Of a root that is not flattened: the entry above.
    pub(super) above: Option<u64>,
    pub(super) gibs: Vec<TopEntry>,
}

#[derive(Clone, Copy, Default, PartialEq)]
pub(super) enum TopEntry {
    #[default]
    Empty,
    Gib(u32),
    Page(u64),
}

/// Walk caches of a core: keys, the last used last.
#[derive(Clone, Default)]
pub(super) struct WalkEntries {
    pub(super) gibs: Vec<(u32, u64)>,
    pub(super) parts: Vec<(u32, u64)>,
}

/// Whether a key is held; it is from now on, in place of the one that was used longest ago.
pub(super) fn touch(held: &mut Vec<(u32, u64)>, most: usize, key: (u32, u64)) -> bool {
    if let Some(i) = held.iter().rposition(|k| *k == key) {
        let key = held.remove(i);
        held.push(key);
        return true;
    }
    if held.len() >= most {
        if most == 0 {
            return false;
        }
        held.remove(0);
    }
    held.push(key);
    false
}

/// A root node: its block, if there was one, and pieces of it in use.
pub(super) struct Root {
    pub(super) block: Option<u64>,
    pub(super) pieces: u64,
}
