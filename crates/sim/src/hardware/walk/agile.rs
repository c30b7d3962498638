//! The walker of agile paging (Gandhi, Hill, Swift, ISCA 2016, figure 4): shadow tables first, and from
//! the first switching entry on the guest's, in two dimensions.
//!
//! ```text
//! references with nothing cached, 4-level tables and 4 KiB pages:
//! shadow throughout                    4
//! guest tables from level 1 on         8 = 3 +  1 * (1 + 4)
//! guest tables from level 2 on        12
//! guest tables from level 3 on        16
//! from the root, known by its hPA     20
//! from the root, known by its gPA     24 = 20 + 4
//! ```
//!
//! A walk never goes back from guest to shadow tables. Walk caches hold the next table's host-physical
//! address and whether it is a shadow or a guest table, so that they take a walk to either.

use super::{
    Fault, HostDimension, NestedTables, Purpose, Tables, continue_2d, is_leaf, start_2d, take_leaf,
    translate_nested,
};
use crate::hardware::{Hardware, Request};
use crate::measure::counters::{Counters, FULLY_NESTED};
use nestwalk_hw::{Pointer, Translation};
use nestwalk_tables::entry::{ACCESSED, DIRTY};
use nestwalk_tables::{Entry, Handle, Level};
use nestwalk_types::{Address, Gpa, Hpa};

/// Software bit 11 of a shadow entry above the leaves: it points to a guest table, and the rest of the
/// walk is nested (the paper's *switching bit*).
pub const SWITCH: u64 = 1 << 11;

/// Guest-physical addresses of the tables that switching entries point to. Hardware has no use for
/// them; the simulator finds the tables' contents by them, without hashing.
#[derive(Default)]
pub struct Homes {
    /// By [`Handle::index`] of the shadow page, then by entry: the guest frame.
    by_page: Vec<Option<Box<[u64; 512]>>>,
}

impl Homes {
    /// The guest table behind the switching entry `index` of a shadow page.
    #[inline]
    pub fn of(&self, page: Handle, index: u64) -> Gpa {
        let frames = self.by_page.get(page.index()).and_then(Option::as_ref);
        Gpa::new(frames.map_or(0, |f| f[index as usize & 511]) << 12)
    }

    /// The switching entry `index` of a shadow page leads to the guest frame.
    pub fn set(&mut self, page: Handle, index: u64, gfn: u64) {
        if page == Handle::default() {
            return;
        }
        if page.index() >= self.by_page.len() {
            self.by_page.resize_with(page.index() + 1, || None);
        }
        let frames = self.by_page[page.index()].get_or_insert_with(|| Box::new([0; 512]));
        frames[index as usize & 511] = gfn;
    }
}

/// What the root registers say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Start {
    /// `sptr` points to a shadow table.
    Shadow,
    /// `sptr` points to the guest's root table and has the switching bit.
    Switched(Hpa),
    /// `sptr` is `gptr`: the walk is nested, and begins with the translation of the guest's root.
    Nested,
}

/// All tables of a walk.
pub struct AgileTables<'a> {
    /// Shadow tables and their root, if the walk begins there.
    pub shadow: Tables<'a, Hpa>,
    /// Where switching entries lead.
    pub homes: &'a Homes,
    /// The guest's tables.
    pub guest: Tables<'a, Gpa>,
    /// The nested tables.
    pub nested: Marked<'a>,
    /// Where the walk begins.
    pub start: Start,
    /// The walker sets A and D in the guest's tables, too, when it sets them in the shadow's.
    pub hardware_ad: bool,
}

/// Nested tables whose entries of guest tables become dirty as they are walked, where flags are on.
pub struct Marked<'a> {
    /// The tables.
    pub tables: NestedTables<'a>,
    /// A bit for each guest frame that was a table at some time; empty if nobody looks.
    pub walked: &'a mut [u64],
}

impl HostDimension for Marked<'_> {
    #[inline]
    fn translate(
        &mut self,
        hardware: &mut Hardware,
        counters: &mut Counters,
        core: usize,
        gpa: Gpa,
        purpose: Purpose,
    ) -> Result<Translation, Fault> {
        let found = translate_nested(hardware, counters, &mut self.tables, core, gpa, purpose)?;
        let gfn = gpa.page_number();
        if purpose.on_behalf > 0
            && let Some(word) = self.walked.get_mut((gfn >> 6) as usize)
        {
            *word |= 1 << (gfn & 63);
        }
        Ok(found)
    }
}

/// A walk that could not finish.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AgileFault {
    /// What it met.
    pub fault: Fault,
    /// It met it while it walked the guest's own tables, so that a linear fault is the guest's.
    pub nested: bool,
}

/// Where the shadow's part of a walk ends.
enum Reached {
    Page(Translation),
    GuestTable(Level, Pointer),
}

/// Walks for one access.
///
/// # Errors
/// The fault that the access meets.
#[inline]
pub fn walk_agile(
    hardware: &mut Hardware,
    counters: &mut Counters,
    tables: &mut AgileTables<'_>,
    request: &Request,
) -> Result<Translation, AgileFault> {
    let (mode, core) = (tables.shadow.mode, request.core());
    let cached = hardware.cores[core].partial_walk(mode, request.gva);
    counters.walk_cache_lookups += 1;
    counters.walk_cache_hits += u64::from(cached.is_some());
    let in_guest = |fault| AgileFault { fault, nested: true };
    let (mut level, mut pointer) = match cached {
        Some(found) => found,
        None => start(hardware, counters, tables, core).map_err(in_guest)?,
    };
    if pointer.switched == 0 {
        match walk_shadow(hardware, counters, tables, request, (level, pointer))? {
            Reached::Page(translation) => {
                counters.walks_switched[0] += 1;
                return Ok(translation);
            }
            Reached::GuestTable(l, p) => (level, pointer) = (l, p),
        }
    }
    let AgileTables { guest, nested, .. } = tables;
    let start = (mode, (level, pointer));
    let found =
        continue_2d::<true, _, _, _>(hardware, counters, guest, nested, request, start, &mut ());
    if found.is_ok() {
        counters.walks_switched[usize::from(pointer.switched)] += 1;
    }
    found.map_err(in_guest)
}

/// Where a walk begins with nothing cached.
#[inline]
fn start(
    hardware: &mut Hardware,
    counters: &mut Counters,
    tables: &mut AgileTables<'_>,
    core: usize,
) -> Result<(Level, Pointer), Fault> {
    let AgileTables { shadow, guest, nested, .. } = tables;
    match tables.start {
        Start::Shadow => {
            let (table, home) = (shadow.root, shadow.root.value());
            Ok((shadow.mode.levels, Pointer { table, home, ..Pointer::default() }))
        }
        Start::Switched(table) => {
            let (home, switched) = (guest.root.value(), guest.mode.levels);
            Ok((switched, Pointer { table, home, switched, ..Pointer::default() }))
        }
        Start::Nested => {
            let (level, pointer) = start_2d(hardware, counters, guest, nested, core)?;
            Ok((level, Pointer { switched: FULLY_NESTED as u8, ..pointer }))
        }
    }
}

/// The part of a walk in shadow tables.
#[inline]
fn walk_shadow(
    hardware: &mut Hardware,
    counters: &mut Counters,
    tables: &mut AgileTables<'_>,
    request: &Request,
    (mut level, mut pointer): (Level, Pointer),
) -> Result<Reached, AgileFault> {
    let fault = |fault| AgileFault { fault, nested: false };
    let (mode, core) = (tables.shadow.mode, request.core());
    let mut held = tables.shadow.memory.reopen(pointer.handle, Hpa::new(pointer.home));
    loop {
        let at = mode.entry_at(pointer.table, request.gva.value(), level);
        let entry = Entry(tables.shadow.memory.entry(held, at, mode.entry_bytes));
        if !(mode.root_in_registers && level == mode.levels) {
            hardware.reference(core, tables.shadow.dimension, (level, 0), at, entry.0);
        }
        if !entry.is_present() {
            return Err(fault(Fault::Linear { level, protection: false }));
        }
        let permissions = pointer.permissions.and(entry);
        if is_leaf(mode, level, entry) {
            let wanted = if request.write { ACCESSED | DIRTY } else { ACCESSED };
            let allowed = permissions.allow(request.write, request.fetch, request.user);
            if tables.hardware_ad && allowed && !entry.has(wanted) {
                set_guest_bits(hardware, counters, tables, request)?;
            }
            let size = mode.span(level);
            let memory = &mut *tables.shadow.memory;
            let found =
                take_leaf(memory, at, (entry, level, size), permissions, request, |_, _| {});
            let found = found.map(|f| {
                let shares = level == 1 && hardware.shares_entries;
                if shares { f.shared(memory, held, at, mode.entry_bytes) } else { f }
            });
            return found.map(|f| Reached::Page(f.translation())).map_err(fault);
        }
        let (table, index) = (entry.target::<Hpa>(), mode.index(request.gva.value(), level));
        level -= 1;
        let cache = &mut hardware.cores[core];
        if entry.has(SWITCH) {
            let home = tables.homes.of(held, index).value();
            let handle = Handle::default();
            pointer = Pointer { table, home, handle, permissions, switched: level };
            cache.remember_walk(mode, request.gva, level, pointer);
            return Ok(Reached::GuestTable(level, pointer));
        }
        held = tables.shadow.memory.child(held, index, table);
        pointer = Pointer { table, home: table.value(), handle: held, permissions, switched: 0 };
        cache.remember_walk(mode, request.gva, level, pointer);
    }
}

/// The nested walk beside the shadow's, up to 24 references, that sets A and D in the guest's and the
/// nested tables as well (the paper's first hardware option).
#[cold]
fn set_guest_bits(
    hardware: &mut Hardware,
    counters: &mut Counters,
    tables: &mut AgileTables<'_>,
    request: &Request,
) -> Result<(), AgileFault> {
    let AgileTables { guest, nested, .. } = tables;
    counters.ad_walks += 1;
    let start = start_2d(hardware, counters, guest, nested, request.core());
    let start = start.and_then(|start| {
        let start = (guest.mode, start);
        continue_2d::<false, _, _, _>(hardware, counters, guest, nested, request, start, &mut ())
    });
    start.map(|_| ()).map_err(|fault| AgileFault { fault, nested: true })
}
