//! Which guest frames are page tables: followed store by store from the first CR3 load that is seen.
//!
//! A table is in use from when it becomes reachable from a loaded root until its last parent lets go of
//! it. A frame that was a table is remembered until the next store to it, which says that the kernel
//! uses it for something else.

use crate::ram::{Ram, child};
use nestwalk_wire::Record;
use nestwalk_wire::{IMAGE_RECORDS, Kind};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, Ordering};

/// A frame that was a table.
const FORMER: u8 = 0x80;
const ENTRIES: usize = 512;

/// What is known of a table above the lowest level.
struct Table {
    /// Entries as of the last store.
    entries: Box<[u64; ENTRIES]>,
    /// vCPUs that have it in CR3, for roots.
    loaded: u32,
    root: bool,
}

/// The tables in use.
pub struct Tables {
    upper: BTreeMap<u64, Table>,
    /// Entries that point to each table.
    parents: BTreeMap<u64, u32>,
    /// Frames that became tables so far.
    made: u64,
}

/// By frame: 0, the level of the table that it holds, or [`FORMER`].
pub struct Levels(Box<[AtomicU8]>);

impl Levels {
    pub fn new(frames: u64) -> Self {
        Self((0..frames).map(|_| AtomicU8::new(0)).collect())
    }
    /// Whether a store to this address must be looked at.
    #[inline]
    pub fn watched(&self, gpa: u64) -> bool {
        self.get(gpa) != 0
    }
    #[inline]
    fn get(&self, gpa: u64) -> u8 {
        self.0.get((gpa >> 12) as usize).map_or(0, |l| l.load(Ordering::Relaxed))
    }
    fn set(&self, gpa: u64, level: u8) {
        if let Some(l) = self.0.get((gpa >> 12) as usize) {
            l.store(level, Ordering::Relaxed);
        }
    }
}

impl Tables {
    pub const fn new() -> Self {
        Self { upper: BTreeMap::new(), parents: BTreeMap::new(), made: 0 }
    }

    /// Frames that became tables so far.
    pub const fn made(&self) -> u64 {
        self.made
    }

    /// A vCPU loads the root `new` in place of `old`: records of tables that are new come first.
    pub fn load(
        &mut self,
        (ram, levels): (&Ram, &Levels),
        (old, new, top): (Option<u64>, u64, u8),
        say: &mut dyn FnMut(Record),
    ) {
        if let Some(table) = old.and_then(|old| self.upper.get_mut(&old)) {
            table.loaded = table.loaded.saturating_sub(1);
        }
        if levels.get(new) == 0 || levels.get(new) == FORMER {
            self.enter(ram, levels, new, top, say);
        }
        if let Some(table) = self.upper.get_mut(&new) {
            table.loaded += 1;
            table.root = true;
        }
    }

    /// A table that became reachable, and those that it points to.
    fn enter(
        &mut self,
        ram: &Ram,
        levels: &Levels,
        gpa: u64,
        level: u8,
        say: &mut dyn FnMut(Record),
    ) {
        if !ram.has(gpa) {
            return;
        }
        levels.set(gpa, level);
        self.made += 1;
        let mut entries = Box::new([0; ENTRIES]);
        for (i, entry) in entries.iter_mut().enumerate() {
            *entry = ram.load(gpa + 8 * i as u64).unwrap_or(0);
        }
        if level > 1 {
            for entry in entries.iter() {
                if let Some(below) = child(*entry, level) {
                    self.refer(ram, levels, below, level - 1, say);
                }
            }
        }
        say(Record::control(Kind::TableNew, gpa, u64::from(level)));
        for i in 0..IMAGE_RECORDS {
            let four = &entries[4 * i..4 * i + 4];
            say(Record::from([four[0], four[1], four[2], four[3]]));
        }
        if level > 1 {
            self.upper.insert(gpa, Table { entries, loaded: 0, root: false });
        }
    }

    fn refer(
        &mut self,
        ram: &Ram,
        levels: &Levels,
        gpa: u64,
        level: u8,
        say: &mut dyn FnMut(Record),
    ) {
        *self.parents.entry(gpa).or_insert(0) += 1;
        if levels.get(gpa) == 0 || levels.get(gpa) == FORMER {
            self.enter(ram, levels, gpa, level, say);
        }
    }

    fn let_go(&mut self, levels: &Levels, gpa: u64) {
        let Some(parents) = self.parents.get_mut(&gpa) else { return };
        *parents -= 1;
        if *parents > 0 {
            return;
        }
        self.parents.remove(&gpa);
        if self.upper.get(&gpa).is_none_or(|t| !t.root) {
            self.leave(levels, gpa);
        }
    }

    /// A table that nothing points to any more.
    fn leave(&mut self, levels: &Levels, gpa: u64) {
        let level = levels.get(gpa);
        levels.set(gpa, FORMER);
        if let Some(table) = self.upper.remove(&gpa) {
            for entry in table.entries.iter() {
                if let Some(below) = child(*entry, level) {
                    self.let_go(levels, below);
                }
            }
        }
    }

    /// A store was made to a watched frame. `gpa` and `bytes` are those of the store.
    pub fn stored(
        &mut self,
        (ram, levels): (&Ram, &Levels),
        (gpa, bytes): (u64, u64),
        say: &mut dyn FnMut(Record),
    ) {
        let mut at = gpa & !7;
        while at < gpa + bytes {
            let frame = at & !0xfff;
            match levels.get(frame) {
                0 => {}
                FORMER => {
                    levels.set(frame, 0);
                    say(Record::control(Kind::TableReused, frame, 0));
                }
                1 => say(Record::control(Kind::TableWrite, at, ram.load(at).unwrap_or(0))),
                level => self.upper_entry(ram, levels, at, level, say),
            }
            at += 8;
        }
    }

    fn upper_entry(
        &mut self,
        ram: &Ram,
        levels: &Levels,
        at: u64,
        level: u8,
        say: &mut dyn FnMut(Record),
    ) {
        let (frame, index) = (at & !0xfff, (at & 0xfff) as usize / 8);
        let new = ram.load(at).unwrap_or(0);
        let Some(table) = self.upper.get_mut(&frame) else { return };
        let old = std::mem::replace(&mut table.entries[index], new);
        // A root that nobody has loaded and whose process is gone. Linux never clears the kernel's half
        // of one, and never clears what is clear: the page has another use from now on.
        let another_use = (index >= ENTRIES / 2 && old & 1 == 1 && old != new) || old | new == 0;
        if table.root
            && table.loaded == 0
            && another_use
            && table.entries[..ENTRIES / 2].iter().all(|e| e & 1 == 0)
        {
            self.leave(levels, frame);
            if let Some(below) = child(old, level) {
                self.let_go(levels, below);
            }
            levels.set(frame, 0);
            say(Record::control(Kind::TableReused, frame, 0));
            return;
        }
        let (before, after) = (child(old, level), child(new, level));
        if before != after {
            // The new one first, so that what both reach stays in use.
            if let Some(below) = after {
                self.refer(ram, levels, below, level - 1, say);
            }
            if let Some(below) = before {
                self.let_go(levels, below);
            }
        }
        say(Record::control(Kind::TableWrite, at, new));
    }
}
