//! The walk with direct segments (Basu et al., ISCA 2013; Gandhi et al., MICRO 2014): neither, one
//! or both dimensions of a walk are an addition, access by access, as the segments cover.
//!
//! ```text
//! references with nothing cached, 4-level tables, 4 KiB pages      references  checks
//! guest segment and VMM segment cover       (Dual Direct)               0         1
//! VMM segment covers all guest-physical addresses (VMM Direct)          4         5
//! guest segment covers, nested tables walked (Guest Direct)             4         1
//! no segment covers                                                    24
//! bare metal, segment covers                                            0         1
//! ```
//!
//! A check compares an address with base and limit and looks its page up in the escape filter at
//! the same time. The guest's check, which is one combined check where there is a VMM segment, too,
//! is made when the first-level TLB has missed, beside the second level; the others are the
//! walker's, one for each guest-physical address that it meets: the root, three tables, the page.
//!
//! Data only: a segment permits loads and stores (ISCA 2013), so instruction fetches take no notice
//! of guest segments. A VMM segment is below the guest's permissions and serves everything.

use super::{
    Fault, HostDimension, HostWatch, NestedTables, Purpose, translate_nested, translate_seen,
};
use crate::hardware::Hardware;
use crate::measure::counters::Counters;
use nestwalk_hw::{EscapeFilter, FilterError, FilterGeometry, Segment, SegmentError, Translation};
use nestwalk_tables::Permissions;
use nestwalk_types::{Address, Gpa, Hpa, PageSize};

/// What a check finds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Found<O> {
    /// The address is not in the segment.
    Outside,
    /// It is, but its page escapes to the page tables.
    Escaped {
        /// Software did not put the page into the filter.
        falsely: bool,
    },
    /// It is, and it is there.
    Inside(O),
}

/// The registers of a segment and its escape filter.
pub struct SegmentUnit<I, O> {
    registers: Segment<I, O>,
    filter: EscapeFilter,
    /// What software put into the filter, ascending: to tell false positives.
    put: Vec<u64>,
}

impl<I: Address, O: Address> SegmentUnit<I, O> {
    /// Off, with an empty filter.
    ///
    /// # Errors
    /// A filter that cannot be.
    pub fn new(geometry: FilterGeometry, seed: u64) -> Result<Self, FilterError> {
        let filter = EscapeFilter::new(geometry, seed)?;
        Ok(Self { registers: Segment::OFF, filter, put: Vec::new() })
    }

    /// Loads registers and filter: `bytes` from `base` on are at `target`, but for the pages of
    /// these numbers (address / 4096), ascending.
    ///
    /// # Errors
    /// A segment that cannot be; then it is off.
    pub fn load(
        &mut self,
        (base, bytes, target): (I, u64, O),
        escaped: &[u64],
    ) -> Result<(), SegmentError> {
        self.turn_off();
        self.registers = Segment::new(base, bytes, target)?;
        escaped.iter().for_each(|page| self.filter.insert(*page));
        self.put.extend_from_slice(escaped);
        Ok(())
    }

    /// BASE = LIMIT.
    pub fn turn_off(&mut self) {
        self.registers = Segment::OFF;
        self.filter.clear();
        self.put.clear();
    }

    /// Base, limit, offset.
    pub const fn registers(&self) -> &Segment<I, O> {
        &self.registers
    }
    /// The escape filter.
    pub const fn filter(&self) -> &EscapeFilter {
        &self.filter
    }
    /// The escape filter, for tests of what goes wrong if it is not as the software has it.
    pub const fn filter_mut(&mut self) -> &mut EscapeFilter {
        &mut self.filter
    }
    /// Pages that software put into the filter.
    pub const fn escaped(&self) -> u64 {
        self.put.len() as u64
    }
    /// It covers something.
    pub const fn is_on(&self) -> bool {
        self.registers.bytes() > 0
    }

    /// The check.
    #[inline]
    pub fn look(&self, address: I) -> Found<O> {
        if !self.registers.covers(address) {
            Found::Outside
        } else if self.filter.reports(address.page_number()) {
            Found::Escaped { falsely: self.put.binary_search(&address.page_number()).is_err() }
        } else {
            Found::Inside(self.registers.apply(address))
        }
    }

    /// The largest page around a covered address that one TLB entry may hold: without escaped pages
    /// as far as the segment reaches; with any 4 KiB, since the filter answers for one page at a
    /// time.
    #[inline]
    pub fn page_size(&self, address: I) -> PageSize {
        if !self.filter.is_empty() {
            return PageSize::SIZE_4K;
        }
        [PageSize::SIZE_1G, PageSize::SIZE_4M, PageSize::SIZE_2M]
            .into_iter()
            .find(|size| self.registers.covers_page(address, *size))
            .unwrap_or(PageSize::SIZE_4K)
    }
}

/// Counts what a check has found.
#[inline]
pub fn count_escape<O>(counters: &mut Counters, found: &Found<O>) {
    if let Found::Escaped { falsely } = found {
        counters.segment_escapes += 1;
        counters.false_escapes += u64::from(*falsely);
    }
}

/// How the walker makes TLB entries of segments, and what its checks cost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Walker {
    /// Cycles of a check.
    pub check_cycles: u64,
    /// Entries are as large as the page of the dimension that is walked, where the segment allows
    /// it; otherwise all have 4 KiB.
    pub whole_pages: bool,
}

/// A host dimension that is flattened where the VMM segment covers.
pub struct Flattened<'a, W> {
    /// The nested tables.
    pub nested: NestedTables<'a>,
    /// The VMM segment.
    pub vmm: &'a SegmentUnit<Gpa, Hpa>,
    /// How it is used.
    pub walker: Walker,
    /// Sees how the page of the access is translated: memory behind the segment is contiguous as far as
    /// the segment goes.
    pub watch: &'a mut W,
}

impl<W: HostWatch> HostDimension for Flattened<'_, W> {
    #[inline]
    fn translate(
        &mut self,
        hardware: &mut Hardware,
        counters: &mut Counters,
        core: usize,
        gpa: Gpa,
        purpose: Purpose,
    ) -> Result<Translation, Fault> {
        counters.vmm_segment_checks += 1;
        hardware.tally.cycles += self.walker.check_cycles;
        let found = self.vmm.look(gpa);
        if let Found::Inside(hpa) = found {
            let whole = purpose.on_behalf == 0 && self.walker.whole_pages;
            let size = if whole { self.vmm.page_size(gpa) } else { PageSize::SIZE_4K };
            if W::LOOKS && purpose.on_behalf == 0 {
                self.watch.page(gpa, self.vmm.page_size(gpa));
            }
            let (frame, all) = (hpa.align_down(size), Permissions::ALL);
            return Ok(Translation::new(frame, size, all, true, false));
        }
        count_escape(counters, &found);
        translate_seen(hardware, counters, &mut self.nested, core, (gpa, purpose), self.watch)
    }
}

/// What a segment that ends at a host-physical address gives the first-level TLB: 4 KiB, for loads
/// and stores.
#[inline]
pub fn covered(at: Hpa) -> Translation {
    let permissions = Permissions { write: true, user: true, execute: false };
    Translation::new(at.align_down(PageSize::SIZE_4K), PageSize::SIZE_4K, permissions, true, false)
}

/// The walk of an access whose guest dimension is a segment that led to `gpa`: one nested walk.
///
/// # Errors
/// Nothing is behind the guest-physical address.
#[inline(always)]
pub fn walk_flat_guest<G: Address>(
    hardware: &mut Hardware,
    counters: &mut Counters,
    nested: &mut NestedTables<'_>,
    (core, gva, gpa, purpose): (usize, G, Gpa, Purpose),
    guest: (&SegmentUnit<G, Gpa>, Walker),
) -> Result<Translation, Fault> {
    let host = translate_nested(hardware, counters, nested, core, gpa, purpose)?;
    let (unit, walker) = guest;
    let size = if walker.whole_pages { unit.page_size(gva) } else { PageSize::SIZE_4K };
    let size = size.min(host.size());
    let permissions = Permissions { user: true, execute: false, ..host.permissions() };
    let frame = host.apply(gpa).align_down(size);
    Ok(Translation::new(frame, size, permissions, host.is_dirty(), false))
}
