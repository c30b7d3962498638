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
    /// The same in user mode.
    UserRead(u64),
    /// The same in user mode.
    UserWrite(u64),
    /// The same in user mode.
    UserFetch(u64),
    /// Stores a value to guest-physical memory, through the window.
    Store(u64, u64),
    /// Stores a value at an address.
    Put(u64, u64),
    /// The VMM gives a page contents ([`Program::images`], by number), of which KVM learns nothing.
    Place(usize),
    /// INVLPG.
    Invlpg(u64),
    /// Loads CR3.
    Cr3(u64),
}

/// Contents of a page of the guest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Image {
    /// Its frame.
    pub gfn: u64,
    /// Its words; `None` is [`FILL`] all over.
    pub words: Option<Box<[u64; 512]>>,
}

impl Image {
    fn text(&self) -> String {
        let at = self.gfn << 12;
        let Some(words) = &self.words else { return format!("f {at:x}\n") };
        let there = words.iter().enumerate().filter(|(_, word)| **word != 0);
        let there = there.map(|(i, word)| (at + 8 * i as u64, *word));
        format!("t {at:x}\n{}", pokes(there))
    }
}

/// Where the guest's own page is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Own {
    /// Its address in every address space.
    pub va: u64,
    /// Its frame. Frames from here to the end of memory belong to the guest's own page and its tables,
    /// if `va` is not [`CODE`].
    pub gfn: u64,
}

impl Default for Own {
    fn default() -> Self {
        Self { va: CODE, gfn: 1 }
    }
}

/// Lines for words by address; entries side by side that map frames side by side are one line.
fn pokes(words: impl Iterator<Item = (u64, u64)>) -> String {
    let mut text = String::new();
    let mut left = words.peekable();
    while let Some((at, value)) = left.next() {
        let mut count = 1;
        let next = |count: u64| Some((at + 8 * count, value.checked_add(0x1000 * count)?));
        while next(count).is_some_and(|n| left.next_if_eq(&n).is_some()) {
            count += 1;
        }
        // Writing to a string cannot fail.
        let _ = writeln!(text, "poke {at:x} {value:x} {count:x}");
    }
    text
}

impl Action {
    /// As the program of the real guest has it.
    fn line(self, images: &[Image]) -> String {
        let line = match self {
            Self::Read(at) => format!("r {at:x}"),
            Self::Write(at) => format!("w {at:x} {FILL:x}"),
            Self::Fetch(at) => format!("x {at:x}"),
            Self::UserRead(at) => format!("R {at:x}"),
            Self::UserWrite(at) => format!("W {at:x} {FILL:x}"),
            Self::UserFetch(at) => format!("X {at:x}"),
            Self::Store(at, value) => format!("w {:x} {value:x}", WINDOW + at),
            Self::Put(at, value) => format!("w {at:x} {value:x}"),
            Self::Place(image) => return images.get(image).map(Image::text).unwrap_or_default(),
            Self::Invlpg(at) => format!("i {at:x}"),
            Self::Cr3(root) => format!("c {root:x}"),
        };
        line + "\n"
    }
}

impl std::fmt::Display for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Read(at) => write!(f, "read {at:x}"),
            Self::Write(at) => write!(f, "write {at:x}"),
            Self::Fetch(at) => write!(f, "fetch {at:x}"),
            Self::UserRead(at) => write!(f, "user read {at:x}"),
            Self::UserWrite(at) => write!(f, "user write {at:x}"),
            Self::UserFetch(at) => write!(f, "user fetch {at:x}"),
            Self::Store(at, value) => write!(f, "store {at:x} {value:x}"),
            Self::Put(at, value) => write!(f, "put {at:x} {value:x}"),
            Self::Place(image) => write!(f, "place {image:x}"),
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
    /// Frames that the host has pages for: first and number of each range. None means all.
    pub backed: Vec<(u64, u64)>,
    /// Where the guest's own page is.
    pub own: Own,
    /// Frames of tables, which begin as zeros.
    pub tables: BTreeSet<u64>,
    /// Contents of tables by guest-physical address.
    pub memory: BTreeMap<u64, u64>,
    /// Contents that pages get on the way.
    pub images: Vec<Image>,
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
        if self.own != Own::default() {
            let _ = writeln!(text, "own {:x} {:x}", self.own.va, self.own.gfn << 12);
        }
        for (first, count) in &self.backed {
            let _ = writeln!(text, "back {:x} {count:x}", first << 12);
        }
        for gfn in &self.tables {
            let _ = writeln!(text, "zero {:x}", gfn << 12);
        }
        text += &pokes(self.memory.iter().map(|(at, value)| (*at, *value)));
        let _ = writeln!(text, "start {:x}", self.root);
        for action in &self.actions {
            text += &action.line(&self.images);
        }
        text + "end\n"
    }
}
