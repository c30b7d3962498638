//! Nested tables: from guest-physical to host-physical addresses.

use super::{Fault, HostWatch, Watch, is_leaf, sharing};
use crate::hardware::Hardware;
use crate::measure::counters::{Counters, Dimension};
use nestwalk_hw::{Asid, Pointer, Translation};
use nestwalk_tables::entry::{ACCESSED, DIRTY};
use nestwalk_tables::{Entry, Handle, Level, Mode, Permissions, TableMemory};
use nestwalk_types::{Gpa, Hpa, PageSize};

/// Why a guest-physical address is translated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Purpose {
    /// The program stores there.
    pub write: bool,
    /// It fetches from there.
    pub fetch: bool,
    /// Level of the guest table that lies there, 0 for the page of the access.
    pub on_behalf: u8,
}

impl Purpose {
    /// The walker reads an entry of a guest table of this level.
    #[inline]
    pub const fn table(level: Level) -> Self {
        Self { write: false, fetch: false, on_behalf: level }
    }
    /// The page of the access.
    #[inline]
    pub const fn page(write: bool, fetch: bool) -> Self {
        Self { write, fetch, on_behalf: 0 }
    }
}

/// The nested tables of a VM.
pub struct NestedTables<'a> {
    /// Their paging mode.
    pub mode: &'static Mode,
    /// The table pages.
    pub memory: &'a mut TableMemory<Hpa>,
    /// The root table (EPT pointer, nCR3).
    pub root: Hpa,
    /// Entries have accessed and dirty flags, which the walker sets; then its accesses to guest tables
    /// are writes (SDM vol. 3C, "Accessed and Dirty Flags for EPT").
    pub ad: bool,
}

/// What translates guest-physical addresses for the walker of the guest's tables.
pub trait HostDimension {
    /// Translates one.
    ///
    /// # Errors
    /// [`Fault::Nested`] if nothing maps it, or what does forbids the access.
    fn translate(
        &mut self,
        hardware: &mut Hardware,
        counters: &mut Counters,
        core: usize,
        gpa: Gpa,
        purpose: Purpose,
    ) -> Result<Translation, Fault>;
}

impl HostDimension for NestedTables<'_> {
    #[inline]
    fn translate(
        &mut self,
        hardware: &mut Hardware,
        counters: &mut Counters,
        core: usize,
        gpa: Gpa,
        purpose: Purpose,
    ) -> Result<Translation, Fault> {
        translate_nested(hardware, counters, self, core, gpa, purpose)
    }
}

/// Nested tables, and who sees how the page of the access is translated.
pub struct Watched<'a, W> {
    /// The tables.
    pub tables: NestedTables<'a>,
    /// Sees the leaf of the page.
    pub watch: &'a mut W,
}

impl<W: HostWatch> HostDimension for Watched<'_, W> {
    #[inline]
    fn translate(
        &mut self,
        hardware: &mut Hardware,
        counters: &mut Counters,
        core: usize,
        gpa: Gpa,
        purpose: Purpose,
    ) -> Result<Translation, Fault> {
        translate_seen(hardware, counters, &mut self.tables, core, (gpa, purpose), self.watch)
    }
}

/// As [`translate_nested`]; `watch` sees the look-up of the page of the access.
#[inline(always)]
pub(super) fn translate_seen<W: HostWatch>(
    hardware: &mut Hardware,
    counters: &mut Counters,
    nested: &mut NestedTables<'_>,
    core: usize,
    (gpa, purpose): (Gpa, Purpose),
    watch: &mut W,
) -> Result<Translation, Fault> {
    if !W::LOOKS || purpose.on_behalf > 0 {
        return translate_nested(hardware, counters, nested, core, gpa, purpose);
    }
    let found = translate_nested_watched(hardware, counters, nested, core, (gpa, purpose), watch)?;
    watch.page(gpa, found.size());
    Ok(found)
}

/// Translates a guest-physical address: nested TLB, nested walk caches, nested tables.
///
/// # Errors
/// [`Fault::Nested`] if no nested entry maps it, or the one that does forbids the access.
#[inline(always)]
pub fn translate_nested(
    hardware: &mut Hardware,
    counters: &mut Counters,
    nested: &mut NestedTables<'_>,
    core: usize,
    gpa: Gpa,
    purpose: Purpose,
) -> Result<Translation, Fault> {
    translate_nested_watched(hardware, counters, nested, core, (gpa, purpose), &mut ())
}

/// As [`translate_nested`]; `watch` is told of the leaf entry, unless the nested TLB has served.
///
/// Tables above leaves allow everything, as hypervisors make them: the leaf alone is asked.
///
/// # Errors
/// As [`translate_nested`].
#[inline]
pub fn translate_nested_watched(
    hardware: &mut Hardware,
    counters: &mut Counters,
    nested: &mut NestedTables<'_>,
    core: usize,
    (gpa, purpose): (Gpa, Purpose),
    watch: &mut impl Watch<Hpa>,
) -> Result<Translation, Fault> {
    let host = Asid::new(hardware.cores[core].asid.vpid(), 0);
    let Purpose { fetch, on_behalf, .. } = purpose;
    let write = purpose.write || (on_behalf > 0 && nested.ad);
    let needs = Translation::needs(write, fetch, false);
    if let Some(tlb) = &mut hardware.cores[core].nested_tlb {
        hardware.tally.cycles += hardware.nested_tlb_cycles;
        if let Some(hit) = tlb.look_up(gpa, host)
            && hit.serves(needs)
        {
            counters.nested_tlb_hits += 1;
            return Ok(hit);
        }
    }
    counters.nested_walks += 1;
    let mode = nested.mode;
    let cached = hardware.cores[core].nested_walk_cache.find(mode, gpa, host);
    let root = nested.root;
    let (mut level, mut table, hint) =
        cached.map_or((mode.levels, root, Handle::default()), |(l, p)| (l, p.table, p.handle));
    let mut at = mode.entry_at(table, gpa.value(), level);
    // By the entry's address: a table may be longer than a page.
    let mut held = nested.memory.reopen(hint, at);
    loop {
        let entry = Entry(nested.memory.entry(held, at, mode.entry_bytes));
        hardware.reference(core, Dimension::Nested, (level, on_behalf), at, entry.0);
        if !entry.is_present() {
            return Err(Fault::Nested { gpa, fetch });
        }
        if is_leaf(mode, level, entry) {
            let found = take_nested_leaf(
                hardware.shares_entries,
                nested,
                (held, at, entry, level),
                (write, fetch),
                watch,
            );
            let found = found.ok_or(Fault::Nested { gpa, fetch })?;
            if let Some(tlb) = &mut hardware.cores[core].nested_tlb {
                tlb.fill(gpa, host, found);
            }
            return Ok(found);
        }
        if nested.ad && !entry.has(ACCESSED) {
            nested.memory.set_bits(at, ACCESSED);
        }
        table = entry.target();
        let index = mode.index(gpa.value(), level);
        level -= 1;
        at = mode.entry_at(table, gpa.value(), level);
        held = nested.memory.child(held, index, at);
        let pointer = Pointer { table, home: table.value(), handle: held, ..Pointer::default() };
        hardware.cores[core].nested_walk_cache.fill_missed(mode, gpa, host, level, pointer);
    }
}

/// Checks a nested leaf, sets its flags, and makes a translation of it; `None` if it forbids the access.
/// `shares`: four pages in order may share an entry.
#[inline(always)]
fn take_nested_leaf(
    shares: bool,
    nested: &mut NestedTables<'_>,
    (held, at, entry, level): (Handle, Hpa, Entry, Level),
    (write, fetch): (bool, bool),
    watch: &mut impl Watch<Hpa>,
) -> Option<Translation> {
    let mode = nested.mode;
    let permissions = Permissions::ALL.and(entry);
    if !permissions.allow(write, fetch, false) {
        return None;
    }
    let wanted = if write { ACCESSED | DIRTY } else { ACCESSED };
    if nested.ad && !entry.has(wanted) {
        nested.memory.set_bits(at, wanted);
    }
    let mut size = mode.span(level);
    if level == 1 {
        watch.leaf(nested.memory, held, at, mode.entry_bytes);
        if shares && sharing::in_order(nested.memory, held, at, mode.entry_bytes, nested.ad) {
            size = PageSize::SIZE_16K;
        }
    }
    // Without flags there is none that a store would have to set.
    let dirty = write || !nested.ad || entry.has(DIRTY);
    Some(Translation::new(entry.frame(size), size, permissions, dirty, false))
}
