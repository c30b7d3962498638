//! The walkers: one dimension over any tables, and two dimensions. They read tables, set accessed
//! and dirty bits, and return faults as data.

pub mod agile;
mod nested;
pub mod segments;
mod sharing;
pub mod watch;

use crate::hardware::{Hardware, Request};
use crate::measure::counters::{Counters, Dimension};
use nested::translate_seen;
pub use nested::{
    HostDimension, NestedTables, Purpose, Watched, translate_nested, translate_nested_watched,
};
use nestwalk_hw::{Pointer, Translation};
use nestwalk_tables::entry::{ACCESSED, DIRTY, GLOBAL, LARGE};
use nestwalk_tables::{Entry, Level, Mode, Permissions, TableMemory};
use nestwalk_types::{Address, Gpa, Hpa, PageSize};
pub use sharing::ALIKE;
use std::any::TypeId;
pub use watch::{HostWatch, Nobody, WalkWatch, Watch};

/// A walk that could not finish.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// The tables that the guest sees (shadow paging: the shadow of them) do not translate or do not
    /// permit the access.
    Linear {
        /// Level of the entry that was not present or forbade the access.
        level: Level,
        /// It was present: a matter of permission.
        protection: bool,
    },
    /// The nested tables have no entry for a guest-physical address, or it forbids the access.
    Nested {
        /// The address.
        gpa: Gpa,
        /// It was to be fetched from.
        fetch: bool,
    },
}

/// Tables of one dimension and where they are.
pub struct Tables<'a, A> {
    /// Their paging mode.
    pub mode: &'static Mode,
    /// The table pages.
    pub memory: &'a mut TableMemory<A>,
    /// The root table.
    pub root: A,
    /// What references to them are counted as.
    pub dimension: Dimension,
}

/// The leaf of a guest walk.
struct Found<A> {
    frame: A,
    size: PageSize,
    permissions: Permissions,
    dirty: bool,
    global: bool,
}

impl<A: Address> Found<A> {
    /// Of tables whose leaves hold host-physical addresses.
    #[inline]
    fn translation(self) -> Translation {
        let Self { frame, size, permissions, dirty, global } = self;
        Translation::new(Hpa::new(frame.value()), size, permissions, dirty, global)
    }
}

/// Checks and updates a leaf entry as hardware does: permissions first, then A and D.
#[inline]
fn take_leaf<A: Address>(
    memory: &mut TableMemory<A>,
    at: A,
    (entry, level, size): (Entry, Level, PageSize),
    permissions: Permissions,
    request: &Request,
    mut marked: impl FnMut(A, u64),
) -> Result<Found<A>, Fault> {
    if !permissions.allow(request.write, request.fetch, request.user) {
        return Err(Fault::Linear { level, protection: true });
    }
    let wanted = if request.write { ACCESSED | DIRTY } else { ACCESSED };
    if !entry.has(wanted) {
        memory.set_bits(at, wanted);
        marked(at, wanted);
    }
    Ok(Found {
        frame: entry.frame(size),
        size,
        permissions,
        dirty: entry.has(DIRTY) || request.write,
        global: entry.has(GLOBAL),
    })
}

#[inline]
fn is_leaf(mode: &Mode, level: Level, entry: Entry) -> bool {
    level == 1 || (mode.may_be_leaf(level) && entry.has(LARGE))
}

/// Walks tables whose addresses the caches know as they are: bare metal (`A = Gpa`, where a gPA is an
/// hPA) and shadow tables (`A = Hpa`). `watch` sees the leaf entry.
///
/// # Errors
/// The fault that the access meets.
#[inline]
pub fn walk_1d<A: Address>(
    hardware: &mut Hardware,
    counters: &mut Counters,
    tables: &mut Tables<'_, A>,
    request: &Request,
    watch: &mut impl Watch<A>,
) -> Result<Translation, Fault> {
    walk_1d_marking(hardware, counters, tables, request, |_, _| {}, watch)
}

/// As [`walk_1d`]; `marked` hears of every entry in which bits were set, and of the bits.
///
/// # Errors
/// The fault that the access meets.
#[inline]
pub fn walk_1d_marking<A: Address>(
    hardware: &mut Hardware,
    counters: &mut Counters,
    tables: &mut Tables<'_, A>,
    request: &Request,
    mut marked: impl FnMut(A, u64),
    watch: &mut impl Watch<A>,
) -> Result<Translation, Fault> {
    let (mode, core) = (tables.mode, request.core());
    let cached = hardware.cores[core].partial_walk(mode, request.gva);
    counters.walk_cache_lookups += 1;
    counters.walk_cache_hits += u64::from(cached.is_some());
    let root = Hpa::new(tables.root.value());
    let (mut level, mut pointer) = cached.unwrap_or((
        mode.levels,
        Pointer { table: root, home: root.value(), ..Pointer::default() },
    ));
    let mut at = mode.entry_at(A::new(pointer.home), request.gva.value(), level);
    // By the entry's address: a table may be longer than a page.
    let mut held = tables.memory.reopen(pointer.handle, at);
    loop {
        let entry = Entry(tables.memory.entry(held, at, mode.entry_bytes));
        if !(mode.root_in_registers && level == mode.levels) {
            let at = Hpa::new(at.value());
            hardware.reference(core, tables.dimension, (level, 0), at, entry.0);
        }
        if !entry.is_present() {
            return Err(Fault::Linear { level, protection: false });
        }
        let permissions = pointer.permissions.and(entry);
        if is_leaf(mode, level, entry) {
            let size = mode.span(level);
            let leaf = (entry, level, size);
            let found = take_leaf(tables.memory, at, leaf, permissions, request, marked)?;
            if level == 1 {
                watch.leaf(tables.memory, held, at, mode.entry_bytes);
                if hardware.shares_entries {
                    return Ok(found
                        .shared(tables.memory, held, at, mode.entry_bytes)
                        .translation());
                }
            }
            return Ok(found.translation());
        }
        if !entry.has(ACCESSED) {
            tables.memory.set_bits(at, ACCESSED);
            marked(at, ACCESSED);
        }
        let index = mode.index(request.gva.value(), level);
        let table = entry.target::<Hpa>();
        level -= 1;
        at = mode.entry_at(A::new(table.value()), request.gva.value(), level);
        held = tables.memory.child(held, index, at);
        pointer = Pointer { table, home: table.value(), handle: held, permissions, switched: 0 };
        hardware.cores[core].remember_walk(mode, request.gva, level, pointer);
    }
}

/// Walks guest tables in two dimensions: each guest entry is fetched at the host-physical address
/// that the nested tables give, and so is the page at the end. 24 references for 4 on 4 levels with
/// nothing cached, 35 for 5 on 5: `g * h + g + h`. `watch` sees the guest's leaf entry. What the guest's
/// tables hold are guest-physical addresses; where those are shadow tables of a hypervisor that is a
/// guest itself, it takes them for host-physical ones (`A = Hpa`).
///
/// # Errors
/// The fault that the access meets, of either dimension.
#[inline]
pub fn walk_2d<A: Address, H: HostDimension>(
    hardware: &mut Hardware,
    counters: &mut Counters,
    guest: &mut Tables<'_, A>,
    nested: &mut H,
    request: &Request,
    watch: &mut impl Watch<A>,
) -> Result<Translation, Fault> {
    let (mode, core) = (guest.mode, request.core());
    let cached = hardware.cores[core].partial_walk(mode, request.gva);
    counters.walk_cache_lookups += 1;
    counters.walk_cache_hits += u64::from(cached.is_some());
    let start = match cached {
        Some(found) => found,
        None => start_2d(hardware, counters, guest, nested, core)?,
    };
    continue_2d::<true, A, H, _>(hardware, counters, guest, nested, request, (mode, start), watch)
}

/// The guest's root table, at the host-physical address that the nested tables give.
#[inline]
fn start_2d<A: Address, H: HostDimension>(
    hardware: &mut Hardware,
    counters: &mut Counters,
    guest: &Tables<'_, A>,
    nested: &mut H,
    core: usize,
) -> Result<(Level, Pointer), Fault> {
    let (home, level) = (Gpa::new(guest.root.value()), guest.mode.levels);
    // PAE: the four entries were read when CR3 was loaded.
    let table = if guest.mode.root_in_registers {
        Hpa::new(0)
    } else {
        nested.translate(hardware, counters, core, home, Purpose::table(level))?.apply(home)
    };
    let home = home.value();
    Ok((level, Pointer { table, home, ..Pointer::default() }))
}

/// What references to tables of the first of two dimensions count as: the guest's, or a shadow of them.
/// Known when the walker is compiled.
#[inline(always)]
fn first_dimension<A: Address>() -> Dimension {
    if TypeId::of::<A>() == TypeId::of::<Hpa>() { Dimension::Shadow } else { Dimension::Guest }
}

/// A walk in two dimensions from a guest table of some level on. `FILL` puts what it passes into the
/// walk cache, which is indexed by `cached_by`.
#[inline]
fn continue_2d<const FILL: bool, A: Address, H: HostDimension, W: Watch<A>>(
    hardware: &mut Hardware,
    counters: &mut Counters,
    guest: &mut Tables<'_, A>,
    nested: &mut H,
    request: &Request,
    (cached_by, (mut level, mut pointer)): (&Mode, (Level, Pointer)),
    watch: &mut W,
) -> Result<Translation, Fault> {
    let (mode, core) = (guest.mode, request.core());
    let mut at = mode.entry_at(A::new(pointer.home), request.gva.value(), level);
    let mut held = guest.memory.reopen(pointer.handle, at);
    loop {
        let entry = Entry(guest.memory.entry(held, at, mode.entry_bytes));
        if !(mode.root_in_registers && level == mode.levels) {
            let fetched_at = mode.entry_at(pointer.table, request.gva.value(), level);
            hardware.reference(core, first_dimension::<A>(), (level, 0), fetched_at, entry.0);
        }
        if !entry.is_present() {
            return Err(Fault::Linear { level, protection: false });
        }
        let permissions = pointer.permissions.and(entry);
        if is_leaf(mode, level, entry) {
            let size = mode.span(level);
            let leaf = (entry, level, size);
            let found = take_leaf(guest.memory, at, leaf, permissions, request, |_, _| {})?;
            if level == 1 {
                watch.leaf(guest.memory, held, at, mode.entry_bytes);
                if hardware.shares_entries {
                    let found = found.shared(guest.memory, held, at, mode.entry_bytes);
                    return finish_2d(hardware, counters, nested, request, &found);
                }
            }
            return finish_2d(hardware, counters, nested, request, &found);
        }
        if !entry.has(ACCESSED) {
            guest.memory.set_bits(at, ACCESSED);
        }
        let home: Gpa = entry.target();
        let index = mode.index(request.gva.value(), level);
        level -= 1;
        at = mode.entry_at(entry.target(), request.gva.value(), level);
        held = guest.memory.child(held, index, at);
        let table =
            nested.translate(hardware, counters, core, home, Purpose::table(level))?.apply(home);
        let switched = pointer.switched;
        pointer = Pointer { table, home: home.value(), handle: held, permissions, switched };
        if FILL {
            hardware.cores[core].remember_walk(cached_by, request.gva, level, pointer);
        }
    }
}

/// The last host walk, and the combination: the smaller page, what both dimensions permit.
#[inline]
fn finish_2d<A: Address, H: HostDimension>(
    hardware: &mut Hardware,
    counters: &mut Counters,
    nested: &mut H,
    request: &Request,
    found: &Found<A>,
) -> Result<Translation, Fault> {
    let gpa = Gpa::new(found.frame.offset_by(request.gva.offset_in(found.size)).value());
    let purpose = Purpose::page(request.write, request.fetch);
    let host = nested.translate(hardware, counters, request.core(), gpa, purpose)?;
    let size = found.size.min(host.size());
    // The guest's own page, if four of them share an entry.
    let mapped = if found.size == PageSize::SIZE_16K { PageSize::SIZE_4K } else { found.size };
    counters.splintered += u64::from(size < mapped);
    Ok(Translation::new(
        host.apply(gpa).align_down(size),
        size,
        found.permissions.and_also(Permissions { user: true, ..host.permissions() }),
        found.dirty && host.is_dirty(),
        found.global,
    )
    .splinter_of(mapped.max(size)))
}
