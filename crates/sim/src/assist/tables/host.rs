//! The host's side: what translates guest-physical addresses, and the VMM's half of it.

use super::arriving::Arriving;
use super::{AHEAD, BACKGROUND, Key, Structure, StructureState, Supply, Work};
use crate::hardware::walk::{Fault, HostDimension, NestedTables, Purpose};
use crate::hardware::{Hardware, Request};
use crate::hypervisor::largest_leaf;
use crate::hypervisor::nested_mmu::NestedMmu;
use crate::measure::counters::{Counters, Dimension, ExitReason};
use crate::scheme::{MachineError, Platform};
use nestwalk_hw::{Asid, Translation};
use nestwalk_mm::HostMemory;
use nestwalk_tables::{Entry, Mode, Permissions, look_up};
use nestwalk_types::{Address, Gpa, Hpa, PageSize, Protection, VcpuId};

/// The host's dimension of a walk, and the software behind it.
pub trait HostSide: Send {
    /// What the walker asks.
    type Dimension<'a>: HostDimension
    where
        Self: 'a;

    /// What the walker asks.
    fn dimension(&mut self) -> Self::Dimension<'_>;

    /// Answers a violation; `request` is the access that met it, `None` a store of the guest's kernel.
    ///
    /// # Errors
    /// Host memory is exhausted, or the address is no guest memory.
    fn violation(
        &mut self,
        platform: &mut Platform,
        vcpu: VcpuId,
        request: Option<&Request>,
        at: (Gpa, bool),
    ) -> Result<(), MachineError>;

    /// Asks the host for the page of an address and maps it. Returns its size.
    ///
    /// # Errors
    /// As [`HostSide::violation`].
    fn map(&mut self, platform: &mut Platform, gpa: Gpa) -> Result<PageSize, MachineError>;

    /// The page that maps an address: its frame and size.
    fn find(&mut self, gpa: Gpa) -> Option<(Hpa, PageSize)>;

    /// The guest's kernel stores to all of a range: what is not mapped is a violation.
    ///
    /// # Errors
    /// As [`HostSide::violation`].
    fn back(
        &mut self,
        platform: &mut Platform,
        vcpu: VcpuId,
        (start, bytes): (Gpa, u64),
    ) -> Result<(), MachineError> {
        let mut at = start;
        while at < start.offset_by(bytes) {
            if self.find(at).is_none() {
                self.violation(platform, vcpu, None, (at, false))?;
            }
            let size = self.find(at).map_or(PageSize::SIZE_4K, |f| f.1);
            at = at.align_down(size).offset_by(size.bytes());
        }
        Ok(())
    }

    /// The guest has new memory.
    ///
    /// # Errors
    /// There is no room for it in the tables.
    fn hot_added(&self, _start: Gpa, _bytes: u64) -> Result<(), MachineError> {
        Ok(())
    }

    /// The host's page is not there any more: nothing maps it from now on.
    fn host_changed(&mut self, platform: &mut Platform, at: Gpa, size: PageSize);

    /// See [`crate::scheme::Software::take_accessed`]; `None` if entries have no such bits.
    fn take_accessed(&mut self, _at: Gpa, _size: PageSize) -> Option<bool> {
        None
    }

    /// Bytes of its tables, and the structure as it is, if it has one.
    fn state(&self) -> (u64, Option<StructureState>);
}

impl HostSide for NestedMmu {
    type Dimension<'a> = NestedTables<'a>;

    #[inline]
    fn dimension(&mut self) -> NestedTables<'_> {
        self.tables()
    }

    fn violation(
        &mut self,
        platform: &mut Platform,
        vcpu: VcpuId,
        request: Option<&Request>,
        at: (Gpa, bool),
    ) -> Result<(), MachineError> {
        Self::violation(self, platform, vcpu, request, at).map(|_| ())
    }

    fn map(&mut self, platform: &mut Platform, gpa: Gpa) -> Result<PageSize, MachineError> {
        Self::map(self, platform, gpa)
    }

    fn find(&mut self, gpa: Gpa) -> Option<(Hpa, PageSize)> {
        let tables = self.tables();
        let leaf = look_up(tables.memory, tables.mode, tables.root, gpa).ok()?;
        Some((leaf.frame, leaf.size))
    }

    fn hot_added(&self, start: Gpa, bytes: u64) -> Result<(), MachineError> {
        Self::hot_added(self, start, bytes)
    }

    fn host_changed(&mut self, platform: &mut Platform, at: Gpa, size: PageSize) {
        Self::host_changed(self, platform, at, size);
    }

    fn take_accessed(&mut self, at: Gpa, size: PageSize) -> Option<bool> {
        Self::take_accessed(self, at, size)
    }

    fn state(&self) -> (u64, Option<StructureState>) {
        (self.bytes(), None)
    }
}

/// Bare metal: a gPA is an hPA.
#[derive(Default)]
pub struct NoHost;

impl HostDimension for &mut NoHost {
    #[inline(always)]
    fn translate(
        &mut self,
        _hardware: &mut Hardware,
        _counters: &mut Counters,
        _core: usize,
        gpa: Gpa,
        _purpose: Purpose,
    ) -> Result<Translation, Fault> {
        let size = PageSize::SIZE_1G;
        let frame = Hpa::new(gpa.align_down(size).value());
        Ok(Translation::new(frame, size, Permissions::ALL, true, false))
    }
}

impl HostSide for NoHost {
    type Dimension<'a> = &'a mut Self;

    #[inline(always)]
    fn dimension(&mut self) -> &mut Self {
        self
    }
    fn violation(
        &mut self,
        _platform: &mut Platform,
        _vcpu: VcpuId,
        _request: Option<&Request>,
        _at: (Gpa, bool),
    ) -> Result<(), MachineError> {
        Ok(())
    }
    fn map(&mut self, _platform: &mut Platform, _gpa: Gpa) -> Result<PageSize, MachineError> {
        Ok(PageSize::SIZE_1G)
    }
    fn find(&mut self, gpa: Gpa) -> Option<(Hpa, PageSize)> {
        let size = PageSize::SIZE_1G;
        Some((Hpa::new(gpa.align_down(size).value()), size))
    }
    fn host_changed(&mut self, _platform: &mut Platform, _at: Gpa, _size: PageSize) {}
    fn state(&self) -> (u64, Option<StructureState>) {
        (0, None)
    }
}

/// A structure in place of nested tables. Its entries have no accessed and dirty flags, and none is
/// split for `nx_huge_pages`.
pub struct HostTable<S> {
    /// The structure.
    pub structure: S,
    mode: &'static Mode,
}

const fn no_frame() -> MachineError {
    MachineError::NoTableFrame { machine: String::new(), what: "host page table of another kind" }
}

impl<S: Structure> HostTable<S> {
    /// What this makes, over the machine's host, whose radix tables would be of this mode.
    ///
    /// # Errors
    /// There is no host, or no memory.
    pub fn new(
        mode: &'static Mode,
        host: &mut Option<HostMemory>,
        make: impl FnOnce(&mut dyn Supply) -> Option<S>,
    ) -> Result<Self, MachineError> {
        let structure = host.as_mut().and_then(|h| make(h)).ok_or_else(no_frame)?;
        Ok(Self { structure, mode })
    }

    fn count(&mut self, platform: &mut Platform) {
        let Work { updates: _, moves, pages, resizes, refused, copies } =
            std::mem::take(self.structure.work());
        let c = &mut platform.cpu.counters;
        c.nested_table_moves += moves;
        c.nested_table_pages += pages;
        c.table_resizes += resizes;
        c.table_refusals += refused;
        c.nested_table_copies += copies;
    }
}

const fn key(gpa: Gpa) -> Key {
    Key { region: 0, page: gpa.value() >> 12 }
}

impl<S: Structure> HostSide for HostTable<S> {
    type Dimension<'a>
        = HostLookUp<'a, S>
    where
        S: 'a;

    #[inline]
    fn dimension(&mut self) -> HostLookUp<'_, S> {
        HostLookUp { structure: &mut self.structure }
    }

    fn violation(
        &mut self,
        platform: &mut Platform,
        vcpu: VcpuId,
        request: Option<&Request>,
        (gpa, _fetch): (Gpa, bool),
    ) -> Result<(), MachineError> {
        platform.cpu.counters.exit(ExitReason::EptViolation);
        let linear = request.map(|r| (platform.cpu.world.mode, r.gva));
        platform.cpu.hardware.after_ept_violation(vcpu, (self.mode, gpa), linear);
        self.map(platform, gpa)?;
        Ok(())
    }

    fn map(&mut self, platform: &mut Platform, gpa: Gpa) -> Result<PageSize, MachineError> {
        let (host_frame, host_size) = platform.host_page(gpa)?;
        let allowed = platform.host.as_ref().map_or(host_size, HostMemory::largest_page);
        let (level, size) = largest_leaf(self.mode, host_size.min(allowed));
        let frame = host_frame.offset_by(gpa.offset_in(host_size)).align_down(size);
        let entry = Entry::leaf(frame, Protection::ALL, level > 1);
        let Some(host) = &mut platform.host else { return Err(no_frame()) };
        let done = self.structure.put(key(gpa), size.shift() as u8, entry.0, host);
        done.map_err(|_| no_frame())?;
        platform.cpu.counters.nested_fills += 1;
        self.count(platform);
        Ok(size)
    }

    fn find(&mut self, gpa: Gpa) -> Option<(Hpa, PageSize)> {
        let found = self.structure.get(key(gpa))?;
        Some((found.entry.frame(found.size()), found.size()))
    }

    fn host_changed(&mut self, platform: &mut Platform, at: Gpa, size: PageSize) {
        let Some(host) = &mut platform.host else { return };
        let end = at.value().saturating_add(size.bytes());
        for core in 0..platform.cpu.hardware.cores.len() {
            self.structure.forget_walks(core);
        }
        for shift in self.structure.shifts() {
            // The range may begin within a page.
            let mut page = at.value() >> shift << shift;
            while page < end {
                self.structure.remove(key(Gpa::new(page)), shift, host);
                page += 1 << shift;
            }
        }
        self.count(platform);
    }

    fn state(&self) -> (u64, Option<StructureState>) {
        let state = self.structure.state();
        (state.bytes, Some(state))
    }
}

/// Lines that hardware reads at once, at most.
pub(super) const LINES: usize = 32;

/// References to entries of `level`, all at once: they take as long as the longest of them.
#[inline]
pub(super) fn references(
    hardware: &mut Hardware,
    (core, dimension, level, on_behalf): (usize, Dimension, u8, u8),
    lines: impl Iterator<Item = Hpa>,
) {
    let (start, mut longest) = (hardware.tally.cycles, 0);
    for at in lines {
        hardware.tally.cycles = start;
        hardware.reference(core, dimension, (level, on_behalf), at, 0);
        longest = longest.max(hardware.tally.cycles - start);
    }
    hardware.tally.cycles = start + longest;
}

/// References that nothing waits for.
pub(super) fn in_background(
    hardware: &mut Hardware,
    counters: &mut Counters,
    core: usize,
    lines: impl Iterator<Item = Hpa>,
) {
    for at in lines {
        hardware.background(counters, core, at);
    }
}

/// The walker's look-up in a host's structure.
pub struct HostLookUp<'a, S> {
    structure: &'a mut S,
}

impl<S: Structure> HostDimension for HostLookUp<'_, S> {
    #[inline]
    fn translate(
        &mut self,
        hardware: &mut Hardware,
        counters: &mut Counters,
        core: usize,
        gpa: Gpa,
        purpose: Purpose,
    ) -> Result<Translation, Fault> {
        let host = Asid::new(hardware.cores[core].asid.vpid(), 0);
        let Purpose { write, fetch, on_behalf } = purpose;
        if let Some(tlb) = &mut hardware.cores[core].nested_tlb {
            hardware.tally.cycles += hardware.nested_tlb_cycles;
            if let Some(hit) = tlb.look_up(gpa, host)
                && hit.serves(Translation::needs(write, fetch, false))
            {
                counters.nested_tlb_hits += 1;
                return Ok(hit);
            }
        }
        counters.nested_walks += 1;
        hardware.tally.cycles += self.structure.cycles();
        if hardware.is_shown() {
            self.structure.forget_walks(core);
        }
        let mut arriving = Arriving::default();
        let mut fetch_lines = |level: u8, lines: &[u64]| {
            if level & AHEAD != 0 {
                arriving.fetch(hardware, counters, (core, level), lines[0]);
                return Ok(());
            }
            if Arriving::concerns(level) {
                arriving.meet(hardware, (core, Dimension::Nested, level, on_behalf));
                return Ok(());
            }
            let at = lines.iter().map(|at| Hpa::new(*at));
            if level == BACKGROUND {
                in_background(hardware, counters, core, at);
            } else {
                references(hardware, (core, Dimension::Nested, level, on_behalf), at);
            }
            Ok::<(), Fault>(())
        };
        let found = self.structure.look_up(core, key(gpa), &mut fetch_lines)?;
        let found = found.ok_or(Fault::Nested { gpa, fetch })?;
        let (frame, size) = (found.entry.frame(found.size()), found.size());
        let found = Translation::new(frame, size, Permissions::ALL.and(found.entry), true, false);
        if let Some(tlb) = &mut hardware.cores[core].nested_tlb {
            tlb.fill(gpa, host, found);
        }
        Ok(found)
    }
}
