//! What a script comes to: memory to begin with, and actions of an address and a value.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// Where the guest's own code is mapped, in frame 1.
pub const CODE: u64 = 0xffff_ffff_8000_0000;
/// Where all of the guest's memory is mapped, for stores to tables.
pub const WINDOW: u64 = 0xffff_8880_0000_0000;
/// What data pages are full of: the instruction OUT, which ends an action.
pub const FILL: u64 = 0xeeee_eeee_eeee_eeee;

/// Something that the guest does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Reads 8 bytes.
    Read(u64),
    /// Stores [`FILL`].
    Write(u64),
    /// Executes an instruction there.
    Fetch(u64),
    /// Stores a value to guest-physical memory, through the window.
    Store(u64, u64),
    /// INVLPG.
    Invlpg(u64),
    /// Loads CR3.
    Cr3(u64),
}

impl Action {
    /// As the program of the real guest has it.
    fn line(self) -> String {
        match self {
            Self::Read(at) => format!("r {at:x}"),
            Self::Write(at) => format!("w {at:x} {FILL:x}"),
            Self::Fetch(at) => format!("x {at:x}"),
            Self::Store(at, value) => format!("w {:x} {value:x}", WINDOW + at),
            Self::Invlpg(at) => format!("i {at:x}"),
            Self::Cr3(root) => format!("c {root:x}"),
        }
    }
}

impl std::fmt::Display for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Read(at) => write!(f, "read {at:x}"),
            Self::Write(at) => write!(f, "write {at:x}"),
            Self::Fetch(at) => write!(f, "fetch {at:x}"),
            Self::Store(at, value) => write!(f, "store {at:x} {value:x}"),
            Self::Invlpg(at) => write!(f, "invlpg {at:x}"),
            Self::Cr3(root) => write!(f, "cr3 {root:x}"),
        }
    }
}

/// A compiled script.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Program {
    /// Its name, one word.
    pub name: String,
    /// Memory of the guest in pages of 4 KiB.
    pub pages: u64,
    /// The host backs it with pages of 2 MiB.
    pub huge: bool,
    /// Frames of tables, which begin as zeros.
    pub tables: BTreeSet<u64>,
    /// Contents of tables by guest-physical address.
    pub memory: BTreeMap<u64, u64>,
    /// Root to begin with.
    pub root: u64,
    /// What the guest does.
    pub actions: Vec<Action>,
}

impl Program {
    /// As the real guest's VMM reads it.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = format!("script {} {:x}\n", self.name, self.pages);
        if self.huge {
            text += "huge\n";
        }
        // Writing to a string cannot fail.
        for gfn in &self.tables {
            let _ = writeln!(text, "zero {:x}", gfn << 12);
        }
        let mut left = self.memory.iter().map(|(at, value)| (*at, *value)).peekable();
        while let Some((at, value)) = left.next() {
            // Entries side by side that map frames side by side are one line.
            let mut count = 1;
            while left.next_if_eq(&(at + 8 * count, value + 0x1000 * count)).is_some() {
                count += 1;
            }
            let _ = writeln!(text, "poke {at:x} {value:x} {count:x}");
        }
        let _ = writeln!(text, "start {:x}", self.root);
        for action in &self.actions {
            let _ = writeln!(text, "{}", action.line());
        }
        text + "end\n"
    }
}
