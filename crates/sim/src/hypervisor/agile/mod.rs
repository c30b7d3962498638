//! The hypervisor of agile paging (Gandhi, Hill, Swift, ISCA 2016, section III): guest tables that rest
//! are shadowed and write-protected, those that change are left to nested walks.
//!
//! - *Down.* A store to a shadowed guest table exits. The second within an interval makes the table
//!   nested, with all tables below it: their shadows go, and the entry above becomes a switching entry.
//!   If the table is a root, the root register has the switching bit.
//! - *Back.* At the end of an interval all nested tables go back, or those that were not stored to since
//!   it began, each after the table above it ([`Back`]). Their shadows are built as faults come by.
//! - *Young processes* may begin fully nested and be shadowed once their walks cost much.
//! - The nested tables map whatever a shadow maps: a nested walk may come by at any time.
//! - CR3 loads that the hardware's cache knows do not exit. INVLPG does not exit unless tables may go
//!   out of sync: a shadow that is always in step needs nothing from the VMM when the guest flushes.
//!
//! Dirty bits: there is one for each 4 KiB page that holds a nested guest table, as if nested tables
//! mapped those pages by 4 KiB entries, also where the host has a larger page. Stores of the guest set
//! it. Walks do not, unless `eptad=on`: the paper's policy takes a table that was not stored to since
//! the interval began for clean, so it needs hardware on which reading a guest table is no write. With
//! `eptad=on`, as EPT's flags and AMD's nested paging have it, every guest table that hardware finds by
//! the nested tables becomes dirty when it is walked. A switching entry has its table's host-physical
//! address, so that one is not found by the nested tables and stays clean; those below it do not.
//!
//! Not modelled: the nested tables do not take the permission to store to shadowed guest tables away
//! (each such store exits by its event, whatever mapping the guest kernel makes it through), so large
//! nested entries over such tables are not split.

mod back;
mod config;
#[cfg(test)]
mod tests;

pub use config::{AgileConfig, Back, OPTIONS};

use super::nested_mmu::NestedMmu;
use super::shadow::{PREVIOUS_ROOTS, Rules, ShadowMmu};
use crate::hardware::Request;
use crate::hardware::walk::Fault;
use crate::hardware::walk::agile::{AgileFault, Marked, Start};
use crate::measure::counters::ExitReason;
use crate::scheme::vmm_options::VmmRules;
use crate::scheme::{Handled, MachineError, Platform};
use nestwalk_mm::HostMemory;
use nestwalk_tables::{Mode, look_up};
use nestwalk_types::{Address, ByNumber, Gpa, Hpa, Invalidation, PageSize, VcpuId};
use rustc_hash::{FxHashMap, FxHashSet};
use std::collections::VecDeque;

/// What a VM's tables are made from.
pub struct VmShape {
    /// Paging mode of the guest.
    pub guest_mode: &'static Mode,
    /// Paging mode of nested tables.
    pub nested_mode: &'static Mode,
    /// vCPUs.
    pub vcpus: usize,
    /// Size of guest memory in 4 KiB pages.
    pub guest_pages: u64,
    /// What the VMM does differently.
    pub rules: VmmRules,
    /// Instructions in a second, if each takes the least that it can.
    pub instructions_per_s: u64,
}

/// Stores to one guest table.
#[derive(Clone, Copy)]
struct Stores {
    /// When the first was seen.
    since: u64,
    count: u32,
}

/// The tables of one VM, and who walks which.
pub struct AgileMmu {
    /// Shadow tables of the guest tables that rest.
    pub shadow: ShadowMmu,
    /// The nested tables.
    pub nested: NestedMmu,
    config: AgileConfig,
    /// Root registers by vCPU.
    starts: Vec<Start>,
    /// CR3 values whose shadow root the hardware knows, by vCPU, latest first.
    cr3_cache: Vec<VecDeque<(u64, u16)>>,
    /// Stores seen lately, by guest frame.
    stores: FxHashMap<u64, Stores>,
    /// Guest frames stored to without an exit since the interval began: dirty bits of nested entries.
    dirty: FxHashSet<u64>,
    /// The frame that was put there last; `u64::MAX` for none.
    last_dirty: u64,
    /// Guest tables whose nested entry's dirty bit walks have set, a bit for each guest frame; empty
    /// unless walks do and the policy looks.
    walked: Vec<u64>,
    /// Walks set them.
    marks: bool,
    /// Length of an interval in instructions.
    interval: u64,
    /// Roots that are fully nested still, and since when; of all roots met.
    young: ByNumber<u64>,
    met: FxHashSet<u64>,
    /// When the interval ends.
    due: u64,
    /// Walk cycles when it began.
    walk_cycles: u64,
}

impl AgileMmu {
    /// Tables in which nothing is mapped yet.
    ///
    /// # Errors
    /// There is no host, or no frame for the nested root.
    pub fn new(
        config: AgileConfig,
        shape: &VmShape,
        host: &mut Option<HostMemory>,
    ) -> Result<Self, MachineError> {
        let rules = Rules {
            out_of_sync: config.out_of_sync,
            hardware_ad: config.hardware_ad,
            previous_roots: config.cr3_cache.saturating_sub(1).max(PREVIOUS_ROOTS),
            nx_huge_pages: shape.rules.nx_huge_pages,
            ..Rules::default()
        };
        let shadow = ShadowMmu::new(shape.guest_mode, shape.vcpus, shape.guest_pages);
        let start = if config.start_nested { Start::Nested } else { Start::Shadow };
        let idle = config.writes == 0 && !config.start_nested;
        let interval = config.interval.unwrap_or(shape.instructions_per_s).max(1);
        Ok(Self {
            shadow: shadow.with_rules(rules),
            nested: NestedMmu::new(shape.nested_mode, host, shape.rules)?,
            config,
            starts: vec![start; shape.vcpus],
            cr3_cache: vec![VecDeque::new(); shape.vcpus],
            stores: FxHashMap::default(),
            dirty: FxHashSet::default(),
            last_dirty: u64::MAX,
            walked: Vec::new(),
            marks: shape.rules.ept_ad && config.back == Back::Clean && !idle,
            interval,
            young: ByNumber::new(),
            met: FxHashSet::default(),
            due: if idle { u64::MAX } else { interval },
            walk_cycles: 0,
        })
    }

    /// How it is set up.
    pub const fn config(&self) -> &AgileConfig {
        &self.config
    }

    /// The counters begin anew.
    pub const fn region_begins(&mut self) {
        self.walk_cycles = 0;
    }

    /// What the vCPU's root registers say.
    #[inline]
    pub fn start(&self, vcpu: usize) -> Start {
        self.starts[vcpu]
    }

    /// When the interval ends.
    #[inline]
    pub const fn next_timer(&self) -> u64 {
        self.due
    }

    /// Handles a fault of the walker.
    ///
    /// # Errors
    /// Host memory is exhausted, or the guest maps an address that is no guest memory.
    pub fn handle_fault(
        &mut self,
        platform: &mut Platform,
        request: &Request,
        met: AgileFault,
    ) -> Result<Handled, MachineError> {
        if let Fault::Nested { gpa, fetch } = met.fault {
            self.nested.violation(platform, request.vcpu, Some(request), (gpa, fetch))?;
            return Ok(Handled::Retry);
        }
        if met.nested {
            return Ok(Handled::GuestFault);
        }
        let handled = self.shadow.page_fault(platform, request)?;
        if handled != Handled::GuestFault {
            let world = &platform.cpu.world;
            let found = look_up(&world.guest, world.mode, world.root(request.vcpu), request.gva);
            if let Ok(leaf) = found {
                self.map_nested(platform, leaf.apply(request.gva))?;
            }
        }
        Ok(handled)
    }

    /// Makes sure that the nested tables map `gpa`, in an exit that is under way. Returns the size of
    /// the page.
    fn map_nested(&mut self, platform: &mut Platform, gpa: Gpa) -> Result<PageSize, MachineError> {
        let tables = self.nested.tables();
        match look_up(tables.memory, tables.mode, tables.root, gpa) {
            Ok(leaf) => Ok(leaf.size),
            Err(_) => self.nested.map(platform, gpa),
        }
    }

    /// Maps a range in the nested tables.
    ///
    /// # Errors
    /// Host memory is exhausted, or the range is no guest memory.
    pub fn map_range(
        &mut self,
        platform: &mut Platform,
        start: Gpa,
        bytes: u64,
    ) -> Result<(), MachineError> {
        let end = start.value().saturating_add(bytes);
        let mut at = start;
        while at.value() < end {
            let size = self.map_nested(platform, at)?;
            at = at.align_down(size).offset_by(size.bytes());
        }
        Ok(())
    }

    /// The guest loaded CR3. Where the hardware knows the root, the VMM does not hear of it.
    ///
    /// # Errors
    /// No frame for a root.
    pub fn load_cr3(
        &mut self,
        platform: &mut Platform,
        vcpu: VcpuId,
        pcid: u16,
        keep: bool,
    ) -> Result<(), MachineError> {
        let v = usize::from(vcpu.0);
        let gfn = platform.cpu.world.roots[v].page_number();
        if self.config.start_nested && self.met.insert(gfn) {
            self.young.insert(gfn, platform.instructions);
        }
        let start = self.start_of(platform, gfn)?;
        let cache = &mut self.cr3_cache[v];
        let known = cache.iter().position(|e| *e == (gfn, pcid));
        if let Some(place) = known {
            cache.remove(place);
        }
        cache.push_front((gfn, pcid));
        cache.truncate(self.config.cr3_cache);
        let has_root = start != Start::Shadow || self.shadow.holds_root(v, gfn, pcid);
        // A load that flushes is what brings tables that are out of sync in step.
        if known.is_none() || !has_root || (self.config.out_of_sync && !keep) {
            platform.cpu.counters.exit(ExitReason::Cr3Load);
        }
        self.starts[v] = start;
        if start == Start::Shadow {
            let known = self.shadow.take_up_root(platform, vcpu, pcid, keep)?;
            // As KVM does with tables that may be out of sync: what the guest invalidated in a PCID
            // whose root was not at hand is dropped now.
            if self.config.out_of_sync && !known {
                platform.cpu.hardware.invalidate_vcpu(vcpu);
            }
        }
        platform.cpu.hardware.load_cr3(vcpu, pcid, keep);
        Ok(())
    }

    /// What root registers say for a root.
    fn start_of(&mut self, platform: &mut Platform, gfn: u64) -> Result<Start, MachineError> {
        if self.young.contains(gfn) {
            return Ok(Start::Nested);
        }
        if !self.shadow.nested_tables().contains(gfn) {
            return Ok(Start::Shadow);
        }
        self.shadow.remember_root(gfn);
        let gpa = Gpa::new(gfn << 12);
        let (frame, size) = platform.host_page(gpa)?;
        Ok(Start::Switched(frame.offset_by(gpa.offset_in(size))))
    }

    /// Root registers of all vCPUs after tables moved.
    fn restart(&mut self, platform: &mut Platform) -> Result<(), MachineError> {
        for v in 0..self.starts.len() {
            let root = platform.cpu.world.roots[v];
            if root == Gpa::new(0) {
                continue;
            }
            let start = self.start_of(platform, root.page_number())?;
            let old = std::mem::replace(&mut self.starts[v], start);
            if start == Start::Shadow && old != Start::Shadow {
                let pcid = platform.cpu.hardware.cores[v].pcid;
                self.shadow.take_up_root(platform, VcpuId(v as u8), pcid, true)?;
            }
            if start != old {
                platform.cpu.hardware.invalidate_everywhere();
                // It loads its registers when it enters the guest again.
                let called_out = v != usize::from(platform.vcpu.0);
                platform.cpu.counters.exits[ExitReason::RemoteFlush as usize] +=
                    u64::from(called_out);
            }
        }
        Ok(())
    }

    /// The guest invalidated translations.
    pub fn invalidate(&mut self, platform: &mut Platform, vcpu: VcpuId, what: Invalidation) {
        if self.config.out_of_sync {
            self.shadow.invalidate(platform, vcpu, what);
        }
        // Roots that are nested are none of the shadow's.
        platform.cpu.hardware.invalidate(vcpu, what);
    }

    /// A page of the guest is a table from now on.
    pub fn table_new(&mut self, at: Gpa) {
        let words = (at.page_number() >> 6) as usize + 1;
        if self.marks && self.walked.len() < words {
            self.walked.resize(words, 0);
        }
    }

    /// Shadow tables and where their switching entries lead, and nested tables with the dirty bits that
    /// walks set, for the walker.
    #[inline]
    pub fn tables(&mut self) -> (&mut ShadowMmu, Marked<'_>) {
        (&mut self.shadow, Marked { tables: self.nested.tables(), walked: &mut self.walked })
    }

    /// The guest stored to one of its tables; the mirror has the new entry already.
    ///
    /// # Errors
    /// Host memory is exhausted.
    pub fn table_write(
        &mut self,
        platform: &mut Platform,
        at: Gpa,
        new: u64,
    ) -> Result<(), MachineError> {
        let gfn = at.page_number();
        if !self.shadow.sees_store(gfn) {
            self.set_dirty(gfn);
            return Ok(());
        }
        if self.is_too_many(platform.instructions, gfn) {
            return self.make_nested(platform, gfn);
        }
        self.shadow.table_write(platform, at, new);
        Ok(())
    }

    #[inline]
    fn set_dirty(&mut self, gfn: u64) {
        // Kernels store to the same table many times in a row.
        if gfn != self.last_dirty && self.config.back == Back::Clean && self.due != u64::MAX {
            self.dirty.insert(gfn);
            self.last_dirty = gfn;
        }
    }

    /// A store to a shadowed table was seen. Whether it is one too many.
    fn is_too_many(&mut self, now: u64, gfn: u64) -> bool {
        if self.config.writes == 0 {
            return false;
        }
        let stores = self.stores.entry(gfn).or_insert(Stores { since: now, count: 0 });
        if now - stores.since >= self.interval {
            *stores = Stores { since: now, count: 0 };
        }
        stores.count += 1;
        let too_many = stores.count >= self.config.writes;
        if too_many {
            self.stores.remove(&gfn);
        }
        too_many
    }

    /// The store that made it so exits, too, and dirties the page.
    fn make_nested(&mut self, platform: &mut Platform, gfn: u64) -> Result<(), MachineError> {
        platform.locked_exit(ExitReason::TableWrite);
        if self.shadow.make_nested(platform, gfn)?.is_some() {
            platform.cpu.counters.tables_nested += 1;
            self.map_nested(platform, Gpa::new(gfn << 12))?;
            self.set_dirty(gfn);
            self.restart(platform)?;
        }
        Ok(())
    }

    /// The guest kernel wrote a whole page through its own mapping, which is shadowed or nested as the
    /// address space is that it is in.
    ///
    /// # Errors
    /// Host memory is exhausted, or the address is no guest memory.
    pub fn page_written(
        &mut self,
        platform: &mut Platform,
        vcpu: VcpuId,
        gpa: Gpa,
        size: PageSize,
    ) -> Result<(), MachineError> {
        if self.starts[usize::from(vcpu.0)] == Start::Shadow {
            self.shadow.map_page_for_kernel(platform, gpa, size)?;
            self.map_range(platform, gpa, size.bytes())?;
        } else {
            self.nested.back(platform, vcpu, gpa, size)?;
        }
        let first = gpa.page_number();
        for gfn in self.shadow.shadowed_between(first, first + size.base_pages()) {
            self.overwritten(platform, gfn)?;
        }
        if self.config.back == Back::Clean {
            for gfn in first..first + size.base_pages() {
                if self.shadow.nested_tables().contains(gfn) {
                    self.set_dirty(gfn);
                }
            }
        }
        Ok(())
    }

    /// A shadowed guest frame is overwritten as a whole, store by store.
    fn overwritten(&mut self, platform: &mut Platform, gfn: u64) -> Result<(), MachineError> {
        while self.shadow.sees_store(gfn) {
            if self.is_too_many(platform.instructions, gfn) {
                return self.make_nested(platform, gfn);
            }
            self.shadow.table_write(platform, Gpa::new(gfn << 12), 0);
            if self.config.writes == 0 && !self.config.out_of_sync {
                // Nothing else would end it: neither the policy, nor a table that goes out of sync.
                self.shadow.drop_shadows_of(platform, gfn);
            }
        }
        Ok(())
    }

    /// The guest stored to a page that was one of its tables until it was freed.
    ///
    /// # Errors
    /// Host memory is exhausted.
    pub fn table_reused(&mut self, platform: &mut Platform, gpa: Gpa) -> Result<(), MachineError> {
        self.overwritten(platform, gpa.page_number())
    }

    /// The host took the page of `size` at `at` back: nothing has its frames any more, neither leaves
    /// of shadow and nested tables nor switching entries and root registers.
    ///
    /// # Errors
    /// Host memory is exhausted.
    pub fn host_changed(
        &mut self,
        platform: &mut Platform,
        at: Gpa,
        size: PageSize,
    ) -> Result<(), MachineError> {
        let first = at.page_number();
        for gfn in first..first + size.base_pages() {
            self.shadow.clear_switches(gfn);
        }
        self.shadow.host_changed(at, size);
        self.nested.host_changed(platform, at, size);
        self.restart(platform)?;
        platform.cpu.hardware.invalidate_nested_everywhere();
        Ok(())
    }

    /// The shadow root that the vCPU's hardware walks; 0 if there is none.
    #[inline]
    pub fn shadow_root(&self, vcpu: usize) -> Hpa {
        self.shadow.walk_root(vcpu)
    }
}
