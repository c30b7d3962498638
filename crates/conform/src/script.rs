//! The language of scripts, and what a guest's kernel would do for each line.
//!
//! A line is words; numbers are hexadecimal; `#` begins a comment. Lines before `run` make what is there
//! when the guest begins, without events; after it, each is one or more actions:
//!
//! ```text
//! spaces N                 so many address spaces, from 0 (1 unless given)
//! window 4k|2m             by which pages the guest maps its memory for stores to tables (4k)
//! huge                     the host backs the guest with pages of 2 MiB (else 4 KiB)
//! upper FLAGS              of table entries made from now on (rwxua)
//! space N                  whose tables the following lines change (0, and the one of the last `cr3`)
//! map VA GPA [FLAGS] [2m]  maps a page, with the tables that are missing (rwxuad)
//! unmap VA                 its leaf entry becomes 0
//! protect VA FLAGS         its leaf entry gets other flags
//! entry LEVEL VA FLAGS     the entry of LEVEL on the way to VA gets other flags; `-` is none
//! link LEVEL VA VA2 [N]    the entry of LEVEL on the way to VA becomes that of VA2 (of space N)
//! flood LEVEL VA N         N stores of 0 to an unused entry of the table with the entry of LEVEL
//! store GPA VALUE          a store to memory as it is
//! read|write|fetch VA      an access by the kernel
//! invlpg VA
//! cr3 N                    loads the root of space N
//! ```
//!
//! FLAGS are letters: `r` present, `w`, `x`, `u`, `a`ccessed, `d`irty, in any order.

use crate::program::{Action, Own, Program};
use std::collections::{BTreeMap, BTreeSet};

/// Frames of the guest's own tables: of its code at 2 to 4, of the window at 5 to 11.
const CODE_TABLES: [u64; 3] = [2, 3, 4];
const WINDOW_PDPT: u64 = 5;
const WINDOW_PD: u64 = 6;
const WINDOW_PT: u64 = 8;
/// Slots of code and window in every root.
const CODE_SLOT: u64 = 511;
const WINDOW_SLOT: u64 = 273;
/// First frame of a script's tables, and the first that is none.
const TABLES: std::ops::Range<u64> = 0x20..0x100;
/// Memory of every guest in pages: 8 MiB.
pub const PAGES: u64 = 0x800;
/// The entry that `flood` stores to.
const UNUSED: u64 = 300;
const NX: u64 = 1 << 63;
const LARGE: u64 = 1 << 7;
const FRAME: u64 = 0x000f_ffff_ffff_f000;
const FLAGS: u64 = NX | 0x67;

/// What is wrong with a script.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{name}, line {line}: {what}")]
pub struct ScriptError {
    /// The script.
    pub name: String,
    /// Its line, from 1.
    pub line: usize,
    /// What is wrong, and what would be right.
    pub what: String,
}

/// A guest's kernel that performs a script.
struct Kernel {
    memory: BTreeMap<u64, u64>,
    tables: BTreeSet<u64>,
    roots: Vec<u64>,
    space: usize,
    /// Flags of new table entries.
    upper: u64,
    actions: Vec<Action>,
    running: bool,
    next: u64,
    huge: bool,
}

/// Compiles a script.
///
/// # Errors
/// A line is not of the language, or asks for what cannot be.
pub fn compile(name: &str, text: &str) -> Result<Program, ScriptError> {
    let mut kernel = Kernel::new();
    for (i, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or("");
        let words: Vec<&str> = line.split_whitespace().collect();
        if let Some((word, rest)) = words.split_first() {
            let told = kernel.line(word, rest);
            told.map_err(|what| ScriptError { name: name.to_owned(), line: i + 1, what })?;
        }
    }
    Ok(Program {
        name: name.to_owned(),
        pages: PAGES,
        huge: kernel.huge,
        backed: Vec::new(),
        own: Own::default(),
        images: Vec::new(),
        tables: kernel.tables,
        root: kernel.roots[0] << 12,
        memory: kernel.memory.into_iter().filter(|(at, _)| at & NX == 0).collect(),
        actions: kernel.actions,
    })
}

fn number(word: &str) -> Result<u64, String> {
    u64::from_str_radix(word, 16).map_err(|_| format!("{word} is no hexadecimal number"))
}

fn flags(word: &str) -> Result<u64, String> {
    if word == "-" {
        return Ok(0);
    }
    let mut bits = NX;
    for letter in word.chars() {
        match letter {
            'r' => bits |= 1,
            'w' => bits |= 2,
            'u' => bits |= 4,
            'a' => bits |= 0x20,
            'd' => bits |= 0x40,
            'x' => bits &= !NX,
            _ => return Err(format!("{word}: {letter} is no flag; there are r, w, x, u, a, d")),
        }
    }
    Ok(bits)
}

fn level(word: &str) -> Result<u8, String> {
    match number(word)? {
        n @ 1..=4 => Ok(n as u8),
        n => Err(format!("level {n}: there are 1 to 4")),
    }
}

impl Kernel {
    fn new() -> Self {
        let mut kernel = Self {
            memory: BTreeMap::new(),
            tables: BTreeSet::new(),
            roots: Vec::new(),
            space: 0,
            upper: 0x27,
            actions: Vec::new(),
            running: false,
            next: TABLES.start,
            huge: false,
        };
        let [pdpt, pd, pt] = CODE_TABLES;
        kernel.fixed(pdpt, 510, pd << 12 | 0x23);
        kernel.fixed(pd, 0, pt << 12 | 0x23);
        kernel.fixed(pt, 0, 0x1063);
        kernel.fixed(WINDOW_PDPT, 0, WINDOW_PD << 12 | 0x23);
        kernel.window(false);
        // The first root's tables come first.
        let _ = kernel.add_root();
        kernel
    }

    fn fixed(&mut self, table: u64, index: u64, value: u64) {
        self.tables.insert(table);
        self.memory.insert(table << 12 | index << 3, value);
    }

    fn window(&mut self, large: bool) {
        for i in 0..PAGES >> 9 {
            if large {
                self.fixed(WINDOW_PD, i, i << 21 | 0xe3 | NX);
                self.tables.remove(&(WINDOW_PT + i));
                self.memory.retain(|at, _| at >> 12 != WINDOW_PT + i);
                continue;
            }
            self.fixed(WINDOW_PD, i, (WINDOW_PT + i) << 12 | 0x23);
            for j in 0..512 {
                self.fixed(WINDOW_PT + i, j, (i << 9 | j) << 12 | 0x63 | NX);
            }
        }
    }

    fn new_table(&mut self) -> Result<u64, String> {
        if self.next >= TABLES.end {
            return Err(format!("more than {} tables", TABLES.end - TABLES.start));
        }
        self.tables.insert(self.next);
        self.next += 1;
        Ok(self.next - 1)
    }

    fn add_root(&mut self) -> Result<(), String> {
        let root = self.new_table()?;
        self.fixed(root, CODE_SLOT, CODE_TABLES[0] << 12 | 0x23);
        self.fixed(root, WINDOW_SLOT, WINDOW_PDPT << 12 | 0x23);
        self.roots.push(root);
        Ok(())
    }

    fn root(&self, space: usize) -> Result<u64, String> {
        let missing = || format!("space {space}: there are {}", self.roots.len());
        self.roots.get(space).copied().ok_or_else(missing)
    }

    fn store(&mut self, at: u64, value: u64) {
        if self.running {
            self.actions.push(Action::Store(at, value));
        }
        self.memory_now(at, value);
    }

    /// The kernel's own idea of its tables; what the guest begins with stays as it was.
    fn memory_now(&mut self, at: u64, value: u64) {
        if self.running {
            self.memory.insert(at | NX, value);
        } else {
            self.memory.insert(at, value);
        }
    }

    fn load(&self, at: u64) -> u64 {
        let now = self.memory.get(&(at | NX)).or_else(|| self.memory.get(&at));
        now.copied().unwrap_or(0)
    }

    /// Where the entry of `level` for an address is; missing tables are made, if allowed.
    fn entry(&mut self, space: usize, va: u64, level: u8, make: bool) -> Result<u64, String> {
        let mut table = self.root(space)?;
        for l in (level..=4).rev() {
            let at = table << 12 | (va >> (3 + 9 * l) & 0xff8);
            if l == level {
                return Ok(at);
            }
            let entry = self.load(at);
            if entry & 1 == 1 && entry & LARGE == 0 {
                table = (entry & FRAME) >> 12;
            } else if make {
                table = self.new_table()?;
                self.store(at, table << 12 | self.upper);
            } else {
                return Err(format!("{va:x} has no table of level {}", l - 1));
            }
        }
        Err(format!("level {level}: there are 1 to 4"))
    }

    /// Where the leaf entry for an address is.
    fn leaf(&mut self, va: u64) -> Result<u64, String> {
        let at = self.entry(self.space, va, 2, false)?;
        if self.load(at) & LARGE != 0 { Ok(at) } else { self.entry(self.space, va, 1, false) }
    }

    fn line(&mut self, word: &str, rest: &[&str]) -> Result<(), String> {
        match (word, rest) {
            ("run", []) => {
                self.running = true;
                self.space = 0;
                Ok(())
            }
            ("spaces" | "window" | "huge", _) if self.running => {
                Err(format!("{word} comes before run"))
            }
            ("spaces", [n]) => {
                (self.roots.len() as u64..number(n)?).try_for_each(|_| self.add_root())
            }
            ("window", ["4k"]) => Ok(()),
            ("window", ["2m"]) => {
                self.window(true);
                Ok(())
            }
            ("huge", []) => {
                self.huge = true;
                Ok(())
            }
            ("upper", [f]) => {
                self.upper = flags(f)?;
                Ok(())
            }
            ("space", [n]) => {
                self.space = number(n)? as usize;
                self.root(self.space).map(|_| ())
            }
            ("map", [va, gpa, more @ ..]) => self.map(number(va)?, number(gpa)?, more),
            ("store", [at, value]) => {
                self.store(number(at)?, number(value)?);
                Ok(())
            }
            ("unmap" | "protect" | "entry" | "link" | "flood", _) => self.change(word, rest),
            _ => self.act(word, rest),
        }
    }

    fn map(&mut self, va: u64, gpa: u64, more: &[&str]) -> Result<(), String> {
        let large = more.last() == Some(&"2m");
        let words = &more[..more.len() - usize::from(large)];
        let bits = match words {
            [] => 0x67,
            [f] => flags(f)?,
            _ => return Err("map VA GPA [FLAGS] [2m]".to_owned()),
        };
        let (level, size) = if large { (2, LARGE) } else { (1, 0) };
        let at = self.entry(self.space, va, level, true)?;
        self.store(at, gpa | bits | size);
        Ok(())
    }

    /// An entry that is there changes.
    fn change(&mut self, word: &str, rest: &[&str]) -> Result<(), String> {
        let (at, value) = match (word, rest) {
            ("unmap", [va]) => (self.leaf(number(va)?)?, 0),
            ("protect", [va, f]) => {
                let at = self.leaf(number(va)?)?;
                (at, self.load(at) & !FLAGS | flags(f)?)
            }
            ("entry", [l, va, f]) => {
                let at = self.entry(self.space, number(va)?, level(l)?, false)?;
                let bits = flags(f)?;
                (at, if bits == 0 { 0 } else { self.load(at) & !FLAGS | bits })
            }
            ("link", [l, va, from, of @ ..]) => {
                let of = of.first().map_or(Ok(self.space as u64), |n| number(n))?;
                let from = self.entry(of as usize, number(from)?, level(l)?, false)?;
                let at = self.entry(self.space, number(va)?, level(l)?, true)?;
                (at, self.load(from))
            }
            ("flood", [l, va, n]) => {
                let at = self.entry(self.space, number(va)?, level(l)?, false)?;
                let at = at & !0xfff | UNUSED << 3;
                for _ in 1..number(n)? {
                    self.store(at, 0);
                }
                (at, 0)
            }
            _ => return Err(format!("{word} {}: not so many words", rest.join(" "))),
        };
        self.store(at, value);
        Ok(())
    }

    fn act(&mut self, word: &str, rest: &[&str]) -> Result<(), String> {
        let [at] = rest else {
            return Err(format!("{word} {} is no line of a script", rest.join(" ")));
        };
        if !self.running {
            return Err(format!("{word} comes after run"));
        }
        let at = number(at)?;
        let action = match word {
            "read" => Action::Read(at),
            "write" => Action::Write(at),
            "fetch" => Action::Fetch(at),
            "invlpg" => Action::Invlpg(at),
            "cr3" => {
                self.space = at as usize;
                Action::Cr3(self.root(self.space)? << 12)
            }
            _ => return Err(format!("{word} is no word of a script")),
        };
        self.actions.push(action);
        Ok(())
    }
}
