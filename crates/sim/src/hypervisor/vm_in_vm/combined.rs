//! EPT on EPT: L1's nested tables (gPA2 to gPA1) and L0's combination of them with its own (gPA2 to
//! hPA), which hardware walks.
//!
//! A page that L2 uses for the first time is a violation that L0 reflects, since L1's tables lack it.
//! L1 stores its entries, tables first, and each store to a table that L0 protects is an exit: L0
//! emulates it. L1 enters L2 again, L2 faults again, and now L0 fills its combination. With n stores
//! that is 4 + 2n + 2 world switches, n + 3 of them exits to L0: L2's two, L1's entry of L2, and the
//! stores.
//!
//! When a table is protected is an option. *Linked*: as soon as it is reachable from L1's root, so that
//! every store exits; what the published count assumes. *Walked*: as KVM's shadow MMU does, when L0's
//! fill goes through it first; a leaf table goes out of step at its first store, and later ones are free
//! until L1's INVEPT. Then a new branch costs one exit, for the entry that links it.
//!
//! L1 takes pages back by clearing entries, with INVEPT after it; L0 drops what it combined of them.

use super::Options;
use super::outer::Levels;
use crate::hardware::Request;
use crate::hardware::walk::NestedTables;
use crate::hypervisor::nested_mmu::NestedMmu;
use crate::measure::counters::ExitReason;
use crate::scheme::vmm_options::{VmmKind, VmmRules};
use crate::scheme::{Event, MachineConfig, MachineError, Platform};
use nestwalk_types::{Address, Gpa, PageSize, VcpuId};
use rustc_hash::FxHashMap;

/// Both tables of EPT on EPT.
pub(super) struct Combined {
    /// L1's, in its own memory.
    inner: NestedMmu,
    /// L0's combination.
    combination: NestedMmu,
    /// Tables of L1 that L0 has in its combination, by page number: whether stores to them exit.
    protected: FxHashMap<u64, bool>,
    lazy: bool,
}

impl Combined {
    pub(super) fn new(
        options: &Options,
        levels: &mut Levels,
        request: &mut MachineConfig,
    ) -> Result<Self, MachineError> {
        let rules = request.rules(VmmKind::Nested)?;
        let plain = VmmRules { nx_huge_pages: false, ..rules };
        let mut inner = NestedMmu::new(request.nested_mode, &mut levels.l1, plain)?;
        inner.keep_journal();
        let combination = NestedMmu::new(request.nested_mode, &mut request.host, rules)?;
        // L0 shadows the root when L1 enters L2 for the first time.
        let protected = FxHashMap::from_iter([(inner.root().page_number(), true)]);
        Ok(Self { inner, combination, protected, lazy: options.lazy })
    }

    /// What hardware walks.
    #[inline]
    pub(super) fn tables(&mut self) -> NestedTables<'_> {
        self.combination.tables()
    }

    /// Bytes of L0's combination.
    pub(super) fn bytes(&self) -> u64 {
        self.combination.bytes()
    }

    /// L2 met an address that the combination does not map, or forbids to fetch from. `request` is the
    /// access that met it; `None` is a store of L2's kernel through its own mapping.
    pub(super) fn violation(
        &mut self,
        levels: &mut Levels,
        platform: &mut Platform,
        (vcpu, request): (VcpuId, Option<&Request>),
        (gpa, fetch): (Gpa, bool),
    ) -> Result<(), MachineError> {
        let linear = request.map(|r| (platform.cpu.world.mode, r.gva));
        let nested = (self.combination.mode(), gpa);
        platform.cpu.hardware.after_ept_violation(vcpu, nested, linear);
        match self.inner.mapped_size(gpa) {
            None => {
                platform.cpu.counters.exit(ExitReason::EptViolation);
                self.map_in_l1(levels, platform, gpa)
            }
            Some(size) => {
                platform.locked_exit(ExitReason::CombinedFill);
                if self.lazy {
                    self.protect_to(gpa);
                }
                self.combination.combine(platform, (gpa, fetch), size)?;
                // To KVM the combination is a shadow of L1's tables: it is filled under that lock.
                let counters = &mut platform.cpu.counters;
                counters.nested_fills -= 1;
                counters.shadow_fills += 1;
                Ok(())
            }
        }
    }

    /// L1 finds a page for an address, and maps it.
    fn map_in_l1(
        &mut self,
        levels: &mut Levels,
        platform: &mut Platform,
        gpa: Gpa,
    ) -> Result<(), MachineError> {
        let size = levels.in_l1(platform, |platform| self.inner.map(platform, gpa))?;
        levels.claim(platform, gpa.align_down(size), size.bytes())?;
        self.stored(levels, platform)
    }

    /// L0's fill goes through these tables of L1: stores to them exit from now on, but to leaf tables
    /// that are out of step.
    fn protect_to(&mut self, gpa: Gpa) {
        for table in self.inner.tables_to(gpa) {
            self.protected.entry(table.page_number()).or_insert(true);
        }
    }

    /// L1 has stored to its tables: its first store to a page is a use of it, and one to a protected
    /// table exits.
    fn stored(&mut self, levels: &mut Levels, platform: &mut Platform) -> Result<(), MachineError> {
        for at in self.inner.take_journal() {
            levels.outer.touch(platform, Gpa::new(at.value()))?;
            let child = self.inner.table_behind(at);
            let Some(exits) = self.protected.get_mut(&at.page_number()) else { continue };
            if !std::mem::replace(exits, !self.lazy || child.is_some()) {
                continue;
            }
            platform.locked_exit(ExitReason::InnerTableStore);
            if let Some(child) = child.filter(|_| !self.lazy) {
                self.protected.insert(child.page_number(), true);
            }
        }
        Ok(())
    }

    /// L1 takes a page of L2 out of its tables, and has every core forget it.
    pub(super) fn unmap_in_l1(
        &mut self,
        levels: &mut Levels,
        platform: &mut Platform,
        (first, size): (Gpa, PageSize),
    ) -> Result<(), MachineError> {
        let inner = &mut self.inner;
        levels.in_l1(platform, |platform| inner.unmap_range(platform, first, size.bytes()));
        self.stored(levels, platform)?;
        platform.cpu.counters.exit(ExitReason::InnerFlush);
        // L0 brings what was out of step in step, and protects it again.
        self.protected.values_mut().for_each(|exits| *exits = true);
        Ok(())
    }

    /// L0 has no entry of this range of gPA2 any more. The caller owes the flush.
    pub(super) fn forget(&mut self, platform: &mut Platform, at: Gpa, bytes: u64) {
        self.combination.unmap_range(platform, at, bytes);
    }

    /// Everything of a range of L2's memory that was used before is in all tables.
    fn backed(
        &mut self,
        levels: &mut Levels,
        platform: &mut Platform,
        (start, bytes): (Gpa, u64),
    ) -> Result<(), MachineError> {
        let end = start.value().saturating_add(bytes);
        let mut at = start;
        while at.value() < end {
            let size = match self.inner.mapped_size(at) {
                Some(size) => size,
                None => {
                    self.map_in_l1(levels, platform, at)?;
                    continue;
                }
            };
            if self.lazy {
                self.protect_to(at);
            }
            let size = self.combination.combine(platform, (at, false), size)?;
            at = at.align_down(size).offset_by(size.bytes());
        }
        Ok(())
    }

    /// L2's kernel writes a whole page: every part of it that is not mapped is met.
    fn written(
        &mut self,
        levels: &mut Levels,
        platform: &mut Platform,
        vcpu: VcpuId,
        (gpa, size): (Gpa, PageSize),
    ) -> Result<(), MachineError> {
        let end = gpa.value() + size.bytes();
        let mut at = gpa;
        while at.value() < end {
            match self.combination.mapped_size(at) {
                Some(page) => at = at.align_down(page).offset_by(page.bytes()),
                None => self.violation(levels, platform, (vcpu, None), (at, false))?,
            }
        }
        Ok(())
    }

    pub(super) fn on(
        &mut self,
        levels: &mut Levels,
        platform: &mut Platform,
        event: Event<'_>,
    ) -> Result<(), MachineError> {
        match event {
            Event::PageWritten { vcpu, at, size } => {
                self.written(levels, platform, vcpu, (at, size))
            }
            Event::Prefault { start, bytes } => self.backed(levels, platform, (start, bytes)),
            other => platform.bare_metal(other),
        }
    }
}
