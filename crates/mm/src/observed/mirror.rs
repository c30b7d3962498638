//! The mirror of the guest's tables, with the level of each and with what translations depend on it.

use crate::observed::stats::LevelWrites;
use crate::physical::counts::FrameCounts;
use nestwalk_tables::entry::{FRAME, LARGE, NO_EXECUTE, PRESENT, USER, WRITE};
use nestwalk_tables::{Entry, Handle, Level, MAX_LEVELS, Mode, TableMemory};
use nestwalk_types::{Address, Gpa, Gva, PageSize};

/// Bits of an entry that decide where it leads or what it allows.
const MEANING: u64 = FRAME | PRESENT | WRITE | USER | NO_EXECUTE;

/// Which translations that someone may remember came by a table.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Walked {
    /// None.
    #[default]
    Never,
    /// Those of 4 KiB pages, of which it has the leaf entries, for this part of the address space.
    Leaf(Gva),
    /// Others, or those of several parts.
    Above,
}

/// What is kept beside each table.
#[derive(Clone, Copy, Default)]
struct Beside {
    walked: Walked,
    /// Stores to it since it is a table of which no level is known.
    unplaced: LevelWrites,
}

/// What must be forgotten after a change of the tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stale {
    /// Nothing.
    Nothing,
    /// The 4 KiB page of this address.
    Page(Gva),
    /// Everything.
    Everything,
}

/// The guest's tables.
pub struct Mirror {
    pub mode: &'static Mode,
    pub tables: TableMemory<Gpa>,
    /// Level of the table in each frame, 0 if it is not known. A frame may have one before it is a
    /// table: an entry that points to it may be stored before its contents are said.
    levels: FrameCounts,
    beside: Vec<Beside>,
    /// By level; those of tables without a level yet are beside the tables.
    pub writes: [LevelWrites; MAX_LEVELS + 1],
    pub stray_writes: u64,
    pub peak: u64,
    /// Frames of guest memory, holes included.
    frames: u64,
}

impl Mirror {
    pub const fn new(mode: &'static Mode, frames: u64) -> Self {
        Self {
            mode,
            tables: TableMemory::new(),
            levels: FrameCounts::new(),
            beside: Vec::new(),
            writes: [LevelWrites { set: 0, cleared: 0, changed: 0 }; MAX_LEVELS + 1],
            stray_writes: 0,
            peak: 0,
            frames,
        }
    }

    fn beside(&mut self, table: Handle) -> Option<&mut Beside> {
        if table == Handle::default() {
            return None;
        }
        if table.index() >= self.beside.len() {
            self.beside.resize(table.index() + 1, Beside::default());
        }
        self.beside.get_mut(table.index())
    }

    /// The page of `gpa` is a table with these words from here on.
    pub fn insert(&mut self, gpa: Gpa, words: Option<&[u64; 512]>) -> Stale {
        let stale = self.lose(gpa);
        let level = self.levels.get(gpa.page_number()) as Level;
        if level != 0 && self.tables.contains(gpa) {
            // It was freed: whatever it is now, something will point to it.
            self.levels.set(gpa.page_number(), 0);
        }
        self.tables.insert(gpa, words);
        self.peak = self.peak.max(self.tables.len());
        if words.is_some() {
            self.place_children(gpa.align_down(PageSize::SIZE_4K));
        }
        stale
    }

    /// The page of `gpa` is no table from here on.
    pub fn remove(&mut self, gpa: Gpa) -> Stale {
        if !self.tables.contains(gpa) {
            return Stale::Nothing;
        }
        let stale = self.lose(gpa);
        self.tables.remove(gpa);
        self.levels.set(gpa.page_number(), 0);
        stale
    }

    /// The contents of a table go: what came by it, and the stores that no level was found for.
    fn lose(&mut self, gpa: Gpa) -> Stale {
        let handle = self.tables.open(gpa);
        let Some(beside) = self.beside(handle) else { return Stale::Nothing };
        let Beside { walked, unplaced } = std::mem::take(beside);
        self.writes[0].add(&unplaced);
        if walked == Walked::Never { Stale::Nothing } else { Stale::Everything }
    }

    /// An entry is stored.
    pub fn write(&mut self, at: Gpa, value: u64) -> Stale {
        let handle = self.tables.open(at);
        let Some(old) = self.tables.write(at, self.mode.entry_bytes, value) else {
            self.stray_writes += 1;
            return Stale::Nothing;
        };
        let (old, new) = (Entry(old), Entry(value));
        let level = self.levels.get(at.page_number()) as Level;
        let (was, is) = (old.is_present(), new.is_present());
        if level == 0 {
            if let Some(beside) = self.beside(handle) {
                beside.unplaced.count(was, is);
            }
        } else {
            self.writes[usize::from(level)].count(was, is);
            self.place_child(level, new);
        }
        // The bit that is PS above the leaf level is an attribute of caching at it.
        let meaning = if level == 1 { MEANING } else { MEANING | LARGE };
        if !was || (old.0 ^ new.0) & meaning == 0 {
            return Stale::Nothing;
        }
        match self.beside(handle).map(|b| b.walked) {
            None | Some(Walked::Never) => Stale::Nothing,
            Some(Walked::Above) => Stale::Everything,
            Some(Walked::Leaf(first)) => {
                let index = (at.value() & 0xfff) / u64::from(self.mode.entry_bytes);
                Stale::Page(first.offset_by(index << 12))
            }
        }
    }

    /// `at`, an entry of level `level`, is part of a walk that will be remembered for `gva`.
    pub fn walked(&mut self, at: Gpa, level: Level, gva: Gva) {
        let region = gva.align_down(self.mode.span(2));
        let handle = self.tables.open(at);
        let Some(beside) = self.beside(handle) else { return };
        beside.walked = match beside.walked {
            _ if level > 1 => Walked::Above,
            Walked::Never => Walked::Leaf(region),
            Walked::Leaf(known) if known == region => Walked::Leaf(region),
            Walked::Leaf(_) | Walked::Above => Walked::Above,
        };
    }

    /// CR3 points to this table.
    pub fn root(&mut self, root: Gpa) {
        self.place(root, self.mode.levels);
    }

    /// An entry of a table of `level` says what level the table behind it has.
    fn place_child(&mut self, level: Level, entry: Entry) {
        let leaf = level == 1 || (self.mode.may_be_leaf(level) && entry.has(LARGE));
        if entry.is_present() && !leaf {
            self.place(entry.target(), level - 1);
        }
    }

    /// A table keeps the level that it was given first, so that each is looked through once, whatever
    /// points to it.
    fn place(&mut self, table: Gpa, level: Level) {
        let frame = table.page_number();
        if frame >= self.frames || self.levels.get(frame) != 0 {
            return;
        }
        self.levels.set(frame, u32::from(level));
        let handle = self.tables.open(table);
        if let Some(beside) = self.beside(handle) {
            let unplaced = std::mem::take(&mut beside.unplaced);
            self.writes[usize::from(level)].add(&unplaced);
            self.place_children(table);
        }
    }

    /// The tables that this one points to have a level if it has one.
    fn place_children(&mut self, table: Gpa) {
        let level = self.levels.get(table.page_number()) as Level;
        if level < 2 {
            return;
        }
        let bytes = self.mode.entry_bytes;
        for index in 0..self.mode.entries(level) {
            let at = table.offset_by(index * u64::from(bytes));
            let entry = Entry(self.tables.read(at, bytes).unwrap_or(0));
            self.place_child(level, entry);
        }
    }

    /// Stores by level, those without a level included.
    pub fn writes(&self) -> [LevelWrites; MAX_LEVELS + 1] {
        let mut writes = self.writes;
        self.beside.iter().for_each(|b| writes[0].add(&b.unplaced));
        writes
    }
}
