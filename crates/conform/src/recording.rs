//! A recorded guest's stream as a program of the small guest.
//!
//! The recorded tables stand at their guest-physical addresses, and the small guest's own page has an
//! entry of its own in every root, in the part of the address space that Linux leaves to hypervisors,
//! with tables behind the recorded memory. Then, in the order of the stream:
//!
//! - a store to a table is a store of the whole entry through the recorded kernel's own mapping;
//! - a page that becomes a table gets its contents from the VMM, of which KVM learns nothing: the stores
//!   that the kernel made to it before are in the stream already, as accesses;
//! - the first store to a page that was a table is four stores of 8 bytes, after which the VMM fills the
//!   page, as the kernel does with the rest of it;
//! - a load of CR3 loads it without PCID, INVPCID for an address is INVLPG, and for more a load of the
//!   same CR3;
//! - a fault of the guest is the access that faults;
//! - an access is made if none of its kind (read, store, fetch; kernel, user) was made to the page in
//!   this address space since an entry that leads to it changed (above the leaf table: any entry of
//!   the table), the page was invalidated, or CR3 was loaded. Others hit what these have filled.
//!
//! Stores to pages that are tables are made for the table's own event alone.

use crate::paging::Paging;
use crate::program::{Action, FILL, Image, Own, Program};
use nestwalk_tables::entry::{ACCESSED, DIRTY, LARGE, PRESENT, USER, WRITE};
use nestwalk_tables::{Entry, LONG4, Permissions, TableMemory};
use nestwalk_types::{
    Address, Batch, ByNumber, Control, Gpa, Gva, Invalidation, NumberSet, Run, Source, SourceError,
};
use std::collections::{BTreeMap, BTreeSet};

/// Where the small guest's page is in every recorded address space: Linux leaves this slot of the root
/// to hypervisors.
const OWN_VA: u64 = 0xffff_8000_0000_0000;
const OWN_SLOT: u64 = 256;
/// Frames behind the recorded memory: the page and its three tables, in 2 MiB.
const OWN_PAGES: u64 = 512;
/// Upper half of the root, where the kernel's mappings are.
const KERNEL_SLOTS: std::ops::Range<u64> = 257..512;
/// Stores that overwrite a page that was a table, before the rest of it.
const OVERWRITING: u64 = 4;
const TABLE_FLAGS: u64 = PRESENT | WRITE | USER | ACCESSED;

/// What of the stream is not in the program.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LeftOut {
    /// Accesses of which an earlier one stands for: they find what it has filled.
    pub repeated: u64,
    /// Stores to tables as accesses: the table's own event is there.
    pub table_stores: u64,
    /// Accesses of devices' memory.
    pub devices: u64,
    /// Accesses that the recorded tables do not allow at that time.
    pub not_allowed: u64,
    /// Stores to tables that the kernel's own mapping does not reach.
    pub unreachable: u64,
}

/// A part of a recording as a program.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Part {
    /// What the small guest does.
    pub program: Program,
    /// About how many actions were asked for, at most.
    pub limit: usize,
    /// Runs of the stream that were looked at.
    pub runs: u64,
    /// Events beside accesses that were looked at.
    pub controls: u64,
    /// Instructions of the recorded guest.
    pub instructions: u64,
    /// The recording has no more.
    pub whole: bool,
    /// What is not in it.
    pub left_out: LeftOut,
}

/// A recording cannot be performed.
#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
    /// It cannot be read.
    #[error("{0}")]
    Source(#[from] SourceError),
    /// The simulator cannot go on.
    #[error("{0}")]
    Model(#[from] crate::model::ModelError),
    /// It is of another kind of guest.
    #[error("{name}: {what}")]
    Kind {
        /// The recording.
        name: String,
        /// What is wrong, and what would be right.
        what: String,
    },
}

/// Where the recorded tables lead.
struct Way {
    gpa: u64,
    permissions: Permissions,
    /// The table with the leaf entry, and the entry's number there.
    leaf: (u64, u64),
    /// Tables above.
    upper: [u64; 4],
}

struct Performer {
    bytes: u64,
    guest: TableMemory<Gpa>,
    root: u64,
    /// Where the kernel maps all memory.
    direct_map: Option<u64>,
    program: Program,
    /// Frames of 2 MiB that are used.
    used: NumberSet,
    /// When an access was made last, by address space, page and kind.
    made: ByNumber<u32>,
    /// When an entry of a table above leaf tables changed, by frame.
    upper: ByNumber<u32>,
    /// When a leaf entry changed, by where it is.
    leaves: ByNumber<u32>,
    /// When a page was invalidated.
    pages: ByNumber<u32>,
    loaded: u32,
    now: u32,
    left_out: LeftOut,
}

/// The first part of a recording, of about so many actions.
///
/// # Errors
/// It cannot be read, or is no recording of a guest with one vCPU and four levels of tables.
pub fn part(name: &str, source: &mut dyn Source, limit: usize) -> Result<Part, RecordingError> {
    let kind = |what: &str| RecordingError::Kind { name: name.to_owned(), what: what.to_owned() };
    let info = source.info().guest;
    let info = info.ok_or_else(|| kind("it has no page tables; recordings of guests do"))?;
    if info.vcpus != 1 || info.paging != LONG4.name {
        return Err(kind("the small guest has one vCPU and four levels of tables"));
    }
    let mut performer = Performer::new(name, info.memory_bytes);
    let (mut runs, mut controls, mut instructions) = (0, 0, 0);
    let whole = pieces(source, |before, accesses| {
        before.iter().for_each(|(_, control)| performer.control(control));
        accesses.iter().for_each(|run| performer.run(run));
        controls += before.len() as u64;
        runs += accesses.len() as u64;
        instructions += accesses.iter().map(|run| u64::from(run.instructions)).sum::<u64>();
        performer.program.actions.len() < limit
    })?;
    let left_out = performer.left_out;
    let program = performer.finish().map_err(|what| kind(&what))?;
    Ok(Part { program, limit, runs, controls, instructions, whole, left_out })
}

/// Goes through a stream: events and the accesses after them, until `more` says that it is enough.
/// Whether the stream came to its end.
///
/// # Errors
/// It cannot be read.
pub fn pieces(
    source: &mut dyn Source,
    mut more: impl FnMut(&[(u32, Control)], &[Run]) -> bool,
) -> Result<bool, SourceError> {
    let mut batch = Batch::default();
    while source.next_batch(&mut batch)? {
        for (before, range) in batch.segments() {
            if !more(before, &batch.runs[range]) {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

impl Performer {
    fn new(name: &str, bytes: u64) -> Self {
        let own = Own { va: OWN_VA, gfn: bytes >> 12 };
        let [pdpt, pd, pt] = [1, 2, 3].map(|i| own.gfn + i);
        let memory = BTreeMap::from([
            (pdpt << 12, pd << 12 | TABLE_FLAGS),
            (pd << 12, pt << 12 | TABLE_FLAGS),
            (pt << 12, own.gfn << 12 | TABLE_FLAGS | DIRTY),
        ]);
        let program = Program {
            name: name.to_owned(),
            pages: own.gfn + OWN_PAGES,
            huge: false,
            backed: Vec::new(),
            own,
            tables: BTreeSet::from([pdpt, pd, pt]),
            memory,
            images: Vec::new(),
            root: 0,
            actions: Vec::new(),
        };
        Self {
            bytes,
            guest: TableMemory::new(),
            root: 0,
            direct_map: None,
            program,
            used: NumberSet::new(),
            made: ByNumber::new(),
            upper: ByNumber::new(),
            leaves: ByNumber::new(),
            pages: ByNumber::new(),
            loaded: 0,
            now: 0,
            left_out: LeftOut::default(),
        }
    }

    fn finish(mut self) -> Result<Program, String> {
        if self.program.root == 0 {
            return Err("it loads no root".to_owned());
        }
        self.used.insert(self.program.own.gfn >> 9);
        let mut backed: Vec<(u64, u64)> = Vec::new();
        for first in self.used.iter().map(|large| large << 9) {
            match backed.last_mut() {
                Some((start, count)) if *start + *count == first => *count += 512,
                _ => backed.push((first, 512)),
            }
        }
        self.program.backed = backed;
        Ok(self.program)
    }

    fn has_begun(&self) -> bool {
        self.program.root != 0
    }

    fn act(&mut self, action: Action) {
        self.program.actions.push(action);
        self.now += 1;
    }

    fn walk(&self, gva: u64) -> Option<Way> {
        let mut table = Gpa::new(self.root);
        let mut way = Way { gpa: 0, permissions: Permissions::ALL, leaf: (0, 0), upper: [0; 4] };
        for level in (1..=LONG4.levels).rev() {
            let at = LONG4.entry_at(table, gva, level);
            let entry = Entry(self.guest.read(at, 8)?);
            if !entry.is_present() {
                return None;
            }
            way.permissions = way.permissions.and(entry);
            if level == 1 || entry.has(LARGE) {
                let size = LONG4.span(level);
                let frame: Gpa = entry.frame(size);
                way.gpa = frame.offset_by(Gva::new(gva).offset_in(size)).value();
                way.leaf = (at.page_number(), at.value() >> 3 & 511);
                return Some(way);
            }
            way.upper[usize::from(level) - 1] = at.page_number();
            table = entry.target();
        }
        None
    }

    fn control(&mut self, control: &Control) {
        match control {
            Control::TableAdded { gpa, entries: Some(words), .. } => {
                self.place(gpa.page_number(), Some(words.clone()));
            }
            Control::TableRetired { gpa, .. } => self.overwritten(gpa.value()),
            Control::TableWrite { gpa, value, .. } if self.guest.contains(*gpa) => {
                self.store(gpa.value(), *value);
            }
            Control::LoadCr3 { root, .. } => self.load(root.value()),
            Control::Invalidate { what, .. } if self.has_begun() => match what {
                Invalidation::Page(gva) | Invalidation::PageInPcid(gva, _) => {
                    self.act(Action::Invlpg(gva.value()));
                    self.pages.insert(page_of(gva.value()), self.now);
                }
                Invalidation::Pcid(_) | Invalidation::AllButGlobal | Invalidation::All => {
                    self.act(Action::Cr3(self.root));
                    self.loaded = self.now;
                }
            },
            Control::Fault { gva, code, .. } if self.has_begun() => {
                let action = kind(code.write, code.fetch, code.user).1;
                self.act(action(gva.value()));
            }
            _ => {}
        }
    }

    /// A page has these contents from now on; `None`: it is no table any more.
    fn place(&mut self, gfn: u64, words: Option<Box<[u64; 512]>>) {
        let at = Gpa::new(gfn << 12);
        match &words {
            Some(words) => self.guest.insert(at, Some(words)),
            None => self.guest.remove(at),
        }
        self.used.insert(gfn >> 9);
        if self.has_begun() {
            self.program.images.push(Image { gfn, words });
            self.act(Action::Place(self.program.images.len() - 1));
        } else if let Some(words) = words {
            self.program.tables.insert(gfn);
            let there = words.iter().enumerate().filter(|(_, word)| **word != 0);
            let there = there.map(|(i, word)| (gfn << 12 | (i as u64) << 3, *word));
            self.program.memory.extend(there);
        }
    }

    /// The kernel stores to its memory; `None` if its mapping does not reach there.
    fn put(&mut self, gpa: u64, value: u64) -> Option<()> {
        let va = self.direct_map? + gpa;
        let way = self.walk(va).filter(|w| w.gpa == gpa)?;
        way.permissions.allow(true, false, false).then_some(())?;
        self.act(Action::Put(va, value));
        Some(())
    }

    fn store(&mut self, gpa: u64, value: u64) {
        if self.put(gpa, value).is_none() {
            self.left_out.unreachable += 1;
        }
        self.guest.write(Gpa::new(gpa), 8, value);
        let (gfn, index) = (gpa >> 12, gpa >> 3 & 511);
        self.upper.insert(gfn, self.now);
        self.leaves.insert(gfn << 9 | index, self.now);
    }

    fn overwritten(&mut self, gpa: u64) {
        for i in 0..OVERWRITING {
            self.store((gpa & !0xfff) + 8 * i, FILL);
        }
        self.place(gpa >> 12, None);
    }

    fn load(&mut self, root: u64) {
        self.root = root;
        let at = Gpa::new(root | OWN_SLOT << 3);
        let own = (self.program.own.gfn + 1) << 12 | TABLE_FLAGS;
        if self.guest.read(at, 8) == Some(0)
            && let Some(page) = self.guest.page(Gpa::new(root)).map(|page| page.into_owned())
        {
            let mut words = Box::new(page);
            words[OWN_SLOT as usize] = own;
            self.place(root >> 12, Some(words));
        }
        if self.has_begun() {
            self.act(Action::Cr3(root));
        } else {
            self.program.root = root;
            self.direct_map = self.find_direct_map();
        }
        self.loaded = self.now;
    }

    /// The lowest gibibyte of the kernel's half that begins with frame 0, writable, and has the root.
    fn find_direct_map(&self) -> Option<u64> {
        let starts = KERNEL_SLOTS.flat_map(|slot| (0..512).map(move |i| (slot, i)));
        let mut bases = starts.map(|(slot, i)| 0xffff << 48 | slot << 39 | i << 30);
        let reaches = |base: u64, gpa: u64| self.walk(base + gpa).is_some_and(|w| w.gpa == gpa);
        bases.find(|base| reaches(*base, 0) && reaches(*base, self.root))
    }

    fn run(&mut self, run: &Run) {
        if !self.has_begun() {
            return;
        }
        let (gva, flags) = (run.gva.value(), run.flags);
        let (write, fetch, user) = (flags.is_store(), flags.is_fetch(), !flags.is_kernel());
        let Some(way) = self.walk(gva).filter(|w| w.permissions.allow(write, fetch, user)) else {
            self.left_out.not_allowed += 1;
            return;
        };
        if way.gpa >= self.bytes {
            self.left_out.devices += 1;
            return;
        }
        if write && self.guest.contains(Gpa::new(way.gpa)) {
            self.left_out.table_stores += 1;
            return;
        }
        let (number, action) = kind(write, fetch, user);
        let page = page_of(gva);
        let key = |kind: u64| (self.root >> 12) << 39 | page << 3 | kind;
        if self.made.get(key(number)).is_some_and(|made| *made >= self.changed(&way, page)) {
            self.left_out.repeated += 1;
            return;
        }
        let key = key(number);
        self.used.insert(way.gpa >> 21);
        self.act(action(gva));
        self.made.insert(key, self.now);
    }

    /// When something on the way to a page changed last.
    fn changed(&self, way: &Way, page: u64) -> u32 {
        let (table, index) = way.leaf;
        let leaf = self.leaves.get(table << 9 | index);
        let upper = way.upper.iter().filter_map(|gfn| self.upper.get(*gfn));
        upper.chain(leaf).chain(self.pages.get(page)).fold(self.loaded, |a, b| a.max(*b))
    }
}

/// Number of an address's page, without the bits that repeat the highest.
const fn page_of(gva: u64) -> u64 {
    gva >> 12 & ((1 << 36) - 1)
}

/// Number of an access's kind, and its action.
fn kind(write: bool, fetch: bool, user: bool) -> (u64, fn(u64) -> Action) {
    match (write, fetch, user) {
        (_, true, false) => (0, Action::Fetch),
        (_, true, true) => (1, Action::UserFetch),
        (true, false, false) => (2, Action::Write),
        (true, false, true) => (3, Action::UserWrite),
        (false, false, false) => (4, Action::Read),
        (false, false, true) => (5, Action::UserRead),
    }
}

/// Whether an event is of the small guest's own page or its tables, which no recorded guest has.
#[must_use]
pub fn is_own(event: &str, paging: Paging, own: Own) -> bool {
    let mut words = event.split(' ');
    let (Some(kind), Some(Ok(number))) =
        (words.next(), words.next().map(|w| u64::from_str_radix(w, 16)))
    else {
        return false;
    };
    match kind {
        "fault" if paging == Paging::Shadow => number == own.va,
        "fault" | "accessed" | "dirty" => number >> 12 >= own.gfn,
        _ => number >= own.gfn,
    }
}
