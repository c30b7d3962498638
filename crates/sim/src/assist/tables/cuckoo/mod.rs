//! Elastic cuckoo page tables (Skarlatos et al., ASPLOS 2020; nested: Stojkovic et al., ASPLOS 2022).
//!
//! Each page size has a table of its own, of several ways. A line holds the entries of eight pages on
//! end, and stands in one place of one way, each of which has its own hash, so that a look-up reads a
//! line of each way at once.
//!
//! - *Elastic.* A way grows or shrinks gradually: while it does it is two tables, and a pointer says
//!   how much of the old one has moved. A place of the old one before the pointer is looked for in the
//!   new one instead, so that a look-up still reads one line of each way. Each insertion moves a line
//!   on. Ways of a table are resized one at a time, the smallest first.
//! - *Collisions.* A line that is in the way moves to its place in another way, taken at random from a
//!   seed, and so on. After `MOST_MOVES` moves the table grows.
//! - *Walk tables* (CWT) say which sizes of pages a section of 2 MiB, and one of 1 GiB, has, and of a
//!   large page in which way it is. Each core has some of their entries, of 64 sections each (CWC).
//!   With an entry at hand a look-up reads the ways of the tables that may have the page, or of a large
//!   page one line; without, those of all sizes. A missing entry is fetched meanwhile; nothing waits
//!   for that.

use super::{BACKGROUND, Found, Key, NoMemory, Structure, StructureState, Supply, Work};
use nestwalk_tables::Entry;
use nestwalk_types::SplitMix64;
use rustc_hash::FxHashMap;
use walk_tables::{Held, Section};
use way::{Line, Part, Way};

#[cfg(test)]
mod tests;
mod walk_tables;
mod way;

const CLUSTER: u64 = 8;
const LINE: u64 = 64;
/// Moves after which a table is taken for full.
const MOST_MOVES: u32 = 32;
/// Most ways.
pub const MOST_WAYS: usize = 4;
/// Lines of walk tables: 64 sections in 32 bytes each.
const WALK_LINES: u64 = 4096;

/// How tables are set up; the papers' own numbers where they are known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CuckooConfig {
    /// Ways of each table (3).
    pub ways: usize,
    /// Entries of a way at first, eight to a line (16,384).
    pub entries: u64,
    /// Lines in use, in percent, above which a way doubles (60).
    pub load: u64,
    /// Entries of a core's cache of walk-table entries for sections of 2 MiB (16).
    pub pmd: usize,
    /// The same for sections of 1 GiB (2).
    pub pud: usize,
    /// Cycles of a look-up before its lines are read: hash functions 2, walk caches 4.
    pub cycles: u64,
}

impl Default for CuckooConfig {
    fn default() -> Self {
        Self { ways: 3, entries: 16_384, load: 60, pmd: 16, pud: 2, cycles: 6 }
    }
}

/// The table of one page size.
struct Table {
    shift: u8,
    ways: Vec<Way>,
    entries: u64,
}

/// The tables.
pub struct Cuckoo {
    config: CuckooConfig,
    tables: Vec<Table>,
    pmd: FxHashMap<(u32, u64), Section>,
    pud: FxHashMap<(u32, u64), Section>,
    walk_base: u64,
    cores: Vec<Held>,
    random: SplitMix64,
    work: Work,
}

impl Cuckoo {
    /// Empty tables of base pages for so many cores; `None` if there is no memory.
    pub fn new(config: CuckooConfig, cores: usize, memory: &mut dyn Supply) -> Option<Self> {
        let mut made = Self {
            config,
            tables: Vec::new(),
            pmd: FxHashMap::default(),
            pud: FxHashMap::default(),
            walk_base: memory.take(WALK_LINES * LINE)?,
            cores: vec![Held::default(); cores],
            random: SplitMix64::new(1),
            work: Work::default(),
        };
        made.work.pages += WALK_LINES * LINE / 4096;
        made.table(12, memory)?;
        Some(made)
    }

    /// The table of a page size, which is made if there is none.
    fn table(&mut self, shift: u8, memory: &mut dyn Supply) -> Option<usize> {
        match self.tables.binary_search_by_key(&shift, |t| t.shift) {
            Ok(i) => Some(i),
            Err(i) => {
                let mut ways = Vec::new();
                for way in 0..self.config.ways as u64 {
                    let lines = self.config.entries / CLUSTER;
                    let old = Part::new(lines, memory, &mut self.work)?;
                    let salt = SplitMix64::new(way << 8 | u64::from(shift)).next();
                    ways.push(Way { old, new: None, used: 0, salt });
                }
                self.tables.insert(i, Table { shift, ways, entries: 0 });
                Some(i)
            }
        }
    }

    /// Where a cluster is: the way and the place.
    fn find(&self, table: usize, cluster: u64, region: u32) -> Option<(usize, (bool, usize))> {
        self.tables[table].ways.iter().enumerate().find_map(|(i, way)| {
            let place = way.place(cluster, region);
            let line = way.line(place);
            (line.present != 0 && line.cluster == cluster && line.region == region)
                .then_some((i, place))
        })
    }

    /// Puts a line into some way, which may move others about. What is left without a place comes back.
    fn settle(&mut self, table: usize, line: Line, not: Option<usize>) -> Option<Line> {
        let (mut line, mut not) = (line, not);
        for moves in 0..MOST_MOVES {
            let count = self.tables[table].ways.len();
            let mut at = self.random.below(count as u64) as usize;
            if not == Some(at) {
                at = (at + 1) % count;
            }
            let way = &mut self.tables[table].ways[at];
            let place = way.place(line.cluster, line.region);
            let there = std::mem::replace(way.line_mut(place), line);
            self.work.moves += u64::from(moves > 0);
            self.moved(table, &line, at);
            if there.present == 0 {
                self.tables[table].ways[at].used += 1;
                return None;
            }
            (line, not) = (there, Some(at));
        }
        Some(line)
    }

    /// Begins to resize a way to so many lines.
    fn begin(&mut self, table: usize, way: usize, lines: u64, memory: &mut dyn Supply) -> bool {
        let Some(part) = Part::new(lines, memory, &mut self.work) else { return false };
        self.work.resizes += 1;
        self.tables[table].ways[way].new = Some((part, 0));
        true
    }

    /// Moves the next line of a way that is resized. What loses its place comes back.
    fn step(&mut self, table: usize, way: usize, memory: &mut dyn Supply) -> Option<Line> {
        let w = &mut self.tables[table].ways[way];
        let Some((_, moved)) = &mut w.new else { return None };
        let line = std::mem::take(&mut w.old.lines[*moved]);
        *moved += 1;
        let done = *moved == w.old.lines.len();
        let mut left = None;
        if line.present != 0 {
            let place = w.place(line.cluster, line.region);
            let there = std::mem::replace(w.line_mut(place), line);
            self.work.moves += 1;
            if there.present != 0 {
                w.used -= 1;
                left = Some(there);
            }
        }
        if done && let Some((part, _)) = w.new.take() {
            let old = std::mem::replace(&mut w.old, part);
            memory.give(old.base, old.bytes());
        }
        match left {
            Some(line) => self.settle(table, line, Some(way)),
            None => None,
        }
    }

    /// Finishes a way's resizing at once.
    fn finish(&mut self, table: usize, memory: &mut dyn Supply) -> Vec<Line> {
        let mut left = Vec::new();
        for way in 0..self.tables[table].ways.len() {
            while self.tables[table].ways[way].new.is_some() {
                left.extend(self.step(table, way, memory));
            }
        }
        left
    }

    /// Finds places for lines that have none; the table grows until there are.
    fn place_all(
        &mut self,
        table: usize,
        lines: Vec<Line>,
        memory: &mut dyn Supply,
    ) -> Result<(), NoMemory> {
        let mut left = lines;
        while let Some(line) = left.pop() {
            let Some(line) = self.settle(table, line, None) else { continue };
            left.push(line);
            left.extend(self.finish(table, memory));
            if !self.grow(table, memory) {
                return Err(NoMemory);
            }
            left.extend(self.finish(table, memory));
        }
        Ok(())
    }

    /// The smallest way begins to double.
    fn grow(&mut self, table: usize, memory: &mut dyn Supply) -> bool {
        let ways = &self.tables[table].ways;
        let smallest = (0..ways.len()).min_by_key(|i| (ways[*i].len(), *i)).unwrap_or(0);
        let lines = 2 * ways[smallest].len();
        self.begin(table, smallest, lines, memory)
    }

    /// After an insertion or removal: what is being resized goes on, and what should be begins.
    fn go_on(&mut self, table: usize, memory: &mut dyn Supply) -> Result<(), NoMemory> {
        let ways = &self.tables[table].ways;
        let resizing = ways.iter().position(|w| w.new.is_some());
        if let Some(way) = resizing {
            // Two lines, so that it ends before the next has to begin.
            let left = [self.step(table, way, memory), self.step(table, way, memory)];
            return self.place_all(table, left.into_iter().flatten().collect(), memory);
        }
        let used: u64 = ways.iter().map(|w| w.used).sum();
        let lines: u64 = ways.iter().map(Way::len).sum();
        if used * 100 > lines * self.config.load {
            // Where there is no memory the table stays until it is full.
            self.grow(table, memory);
        } else if used * 500 < lines * self.config.load {
            let largest = (0..ways.len()).max_by_key(|i| (ways[*i].len(), *i)).unwrap_or(0);
            let lines = ways[largest].len() / 2;
            if lines * CLUSTER >= self.config.entries {
                self.begin(table, largest, lines, memory);
            }
        }
        Ok(())
    }
}

impl Structure for Cuckoo {
    #[inline]
    fn look_up<E>(
        &mut self,
        core: usize,
        key: Key,
        fetch: &mut impl FnMut(u8, &[u64]) -> Result<(), E>,
    ) -> Result<Option<Found>, E> {
        let plan = self.plan(core, key);
        let mut lines = [0; 3 * MOST_WAYS];
        let mut count = 0;
        for table in &self.tables {
            let (wanted, way) = match table.shift {
                12 => (plan.small, 0),
                30 => (plan.huge, plan.way),
                // Of pages of 4 MiB walk tables know nothing.
                22 => (true, 0),
                _ => (plan.large, plan.way),
            };
            if !wanted {
                continue;
            }
            let cluster = key.of_size(table.shift) / CLUSTER;
            for (i, w) in table.ways.iter().enumerate() {
                if (way == 0 || usize::from(way) == i + 1) && count < lines.len() {
                    lines[count] = w.address(w.place(cluster, key.region));
                    count += 1;
                }
            }
        }
        fetch(1, &lines[..count])?;
        let sections = [key.of_size(21) >> 6, key.of_size(30) >> 6];
        for (missing, section) in plan.missing.into_iter().zip(sections) {
            if missing {
                let spread = section.wrapping_add(u64::from(key.region) * 31) % WALK_LINES;
                fetch(BACKGROUND, &[self.walk_base + spread * LINE])?;
            }
        }
        // What walk tables do not tell of is not read, and so not found.
        Ok(self.get(key).filter(|found| plan.reads(found)))
    }

    fn get(&self, key: Key) -> Option<Found> {
        self.tables.iter().enumerate().find_map(|(i, table)| {
            let page = key.of_size(table.shift);
            let (way, place) = self.find(i, page / CLUSTER, key.region)?;
            let within = (page % CLUSTER) as usize;
            let line = table.ways[way].line(place);
            let entry = Entry(line.entries[within]);
            // Table, way, old or new, line, entry.
            let slot = (place.1 << 1 | usize::from(place.0)) << 3 | within;
            let slot = (slot << 2 | way) << 2 | i;
            (line.present >> within & 1 == 1).then_some(Found { entry, shift: table.shift, slot })
        })
    }

    fn put(
        &mut self,
        key: Key,
        shift: u8,
        entry: u64,
        memory: &mut dyn Supply,
    ) -> Result<(), NoMemory> {
        let table = self.table(shift, memory).ok_or(NoMemory)?;
        let (page, region) = (key.of_size(shift), key.region);
        let (cluster, within) = (page / CLUSTER, (page % CLUSTER) as usize);
        self.work.updates += 1;
        if let Some((way, place)) = self.find(table, cluster, region) {
            let line = self.tables[table].ways[way].line_mut(place);
            let new = line.present >> within & 1 == 0;
            line.present |= 1 << within;
            line.entries[within] = entry;
            if new {
                self.tables[table].entries += 1;
                self.count(key, shift, true, way);
            }
            return Ok(());
        }
        let mut line = Line { cluster, region, present: 1 << within, ..Line::default() };
        line.entries[within] = entry;
        self.tables[table].entries += 1;
        self.count(key, shift, true, 0);
        self.place_all(table, vec![line], memory)?;
        self.go_on(table, memory)
    }

    fn remove(&mut self, key: Key, shift: u8, memory: &mut dyn Supply) -> bool {
        let Ok(table) = self.tables.binary_search_by_key(&shift, |t| t.shift) else { return false };
        let page = key.of_size(shift);
        let found = self.find(table, page / CLUSTER, key.region);
        let Some((way, place)) = found else { return false };
        let within = (page % CLUSTER) as usize;
        let line = self.tables[table].ways[way].line_mut(place);
        if line.present >> within & 1 == 0 {
            return false;
        }
        line.present &= !(1 << within);
        line.entries[within] = 0;
        let empty = line.present == 0;
        self.tables[table].ways[way].used -= u64::from(empty);
        self.tables[table].entries -= 1;
        self.work.updates += 1;
        self.count(key, shift, false, way);
        // What finds no place makes the table grow; it is lost where there is no memory for that, which
        // three ways that shrink do not come to.
        let _ = self.go_on(table, memory);
        true
    }

    fn mark(&mut self, found: &Found, bits: u64) {
        let (table, way) = (found.slot & 3, found.slot >> 2 & 3);
        let (within, new, at) = (found.slot >> 4 & 7, found.slot >> 7 & 1 == 1, found.slot >> 8);
        if let Some(way) = self.tables.get_mut(table).and_then(|t| t.ways.get_mut(way)) {
            way.line_mut((new, at)).entries[within] |= bits;
        }
    }

    fn shifts(&self) -> Vec<u8> {
        self.tables.iter().filter(|t| t.entries > 0).map(|t| t.shift).collect()
    }

    fn forget_walks(&mut self, core: usize) {
        if let Some(core) = self.cores.get_mut(core) {
            *core = Held::default();
        }
    }

    fn cycles(&self) -> u64 {
        self.config.cycles
    }

    fn work(&mut self) -> &mut Work {
        &mut self.work
    }

    fn state(&self) -> StructureState {
        let ways = || self.tables.iter().flat_map(|t| &t.ways);
        StructureState {
            bytes: ways().map(Way::bytes).sum::<u64>() + WALK_LINES * LINE,
            places: ways().map(Way::len).sum(),
            used: ways().map(|w| w.used).sum(),
        }
    }
}
