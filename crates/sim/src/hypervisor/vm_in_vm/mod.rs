//! A VM in a VM: the guest of the stream (L2) runs under a hypervisor (L1) that runs in a VM itself, of
//! the hypervisor that has the hardware (L0).
//!
//! **Three address spaces** follow the guest's virtual one: L2's physical addresses (gPA2), L1's (gPA1),
//! the host's (hPA). The stream's gPA are gPA2. The host's own record, which the referee composes with
//! the guest's tables, stays what it is on every machine: what hPA is behind a gPA2. L1 has a record of
//! its own, a `HostMemory` whose frames are gPA1: its kernel backs L2's memory page by page. What L0's
//! table has for a gPA1 is what the host's record has for the gPA2 that L1 put there; L1's own tables
//! have frames of the host to themselves. So two records and one table always compose to the truth, and
//! nothing is told to the referee. A gPA1 is an `Hpa` to L1's software, and a `Gpa` to L0's.
//!
//! **Three kinds** (PVM, SOSP 2023, has these names, and counts of world switches for a page fault
//! that stores n entries to protected tables):
//!
//! - *EPT on EPT*: L1 keeps nested tables (gPA2 to gPA1). Hardware cannot walk those, so L0 combines
//!   them with its own (gPA1 to hPA) in one table, and protects L1's against stores: `combined`. 2n + 6.
//! - *Shadow on EPT*: L1 keeps shadow tables (gVA to gPA1), hardware walks these and L0's in two
//!   dimensions: `shadowed`. Every exit of L2 goes to L0, which enters L1 instead; when L1 enters L2,
//!   that is an exit again: four switches for what would be two. 4n + 8.
//! - *PVM*: the same tables, but L2 runs deprivileged in L1, and a switcher in both address spaces takes
//!   it from one to the other. L0 sees nothing of it. 2n + 4.
//!
//! **Choices.** L1's pages are as large as the host's policy has them unless `l1=` says otherwise; L0's
//! entries are as large as both records allow. What L1 uses for the first time is an EPT violation of
//! its own, when its kernel clears a page; that of a shadow table counts when hardware walks it first.
//! A frame that held a table and becomes a page of L2 gets other memory of L0 then (in truth it would
//! stay, and so would the count be lower by one violation). L1's other memory, its daemons, and its
//! timer interrupts are left out, as is `nx_huge_pages` of L0 under shadow tables, and of L1 under
//! nested ones. Walks of L1 itself are not simulated: its work has prices. Interrupts between vCPUs of
//! L2 are reflected as all other exits are.

mod combined;
mod options;
mod outer;
mod shadowed;

use self::combined::Combined;
pub use self::options::{EPT_OPTIONS, Options, PVM_OPTIONS, SHADOW_OPTIONS};
use self::outer::Levels;
use self::shadowed::Shadowed;
use crate::hardware::Request;
use crate::hardware::walk::{Fault, Tables, WalkWatch, Watched, walk_2d};
use crate::hardware::world::World;
use crate::machine::{DynMachine, Machine};
use crate::measure::counters::{Dimension, ExitReason};
use crate::scheme::options::OptionTable;
use crate::scheme::{
    Event, Handled, MachineConfig, MachineError, PageTableBytes, Platform, Processor, Report,
    Scheme, Software,
};
use nestwalk_hw::Translation;
use nestwalk_tables::Mode;
use nestwalk_types::{Address, Gpa, PageSize};

/// Which hypervisor L1 is, and how it runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// KVM with nested tables, which L0 combines with its own.
    EptOnEpt,
    /// KVM with shadow tables.
    ShadowOnEpt,
    /// PVM.
    Pvm,
}

/// Exits that are L0's alone: it answers them, and hands none of them on.
const DIRECT: [ExitReason; 8] = [
    ExitReason::OuterViolation,
    ExitReason::InnerTableStore,
    ExitReason::CombinedFill,
    ExitReason::InnerFlush,
    ExitReason::HostMigration,
    ExitReason::Preempted,
    ExitReason::WriteProtected,
    ExitReason::PmlFull,
];

/// Tables that L1 keeps for L2.
enum Inner {
    Nested(Box<Combined>),
    Shadow(Box<Shadowed>),
}

/// A VM in a VM.
pub struct VmInVm {
    kind: Kind,
    levels: Levels,
    inner: Inner,
    /// It is L1 that takes pages back, not L0.
    reclaimed_by_l1: bool,
}

impl VmInVm {
    /// The machine of a kind, with the options of this table.
    ///
    /// # Errors
    /// An option is wrong, or there is no host, or no frame for a root table.
    pub fn machine(
        kind: Kind,
        mut request: MachineConfig,
        table: &OptionTable<Options>,
    ) -> Result<Box<dyn DynMachine>, MachineError> {
        let options = request.options(table)?;
        Ok(Box::new(Machine::new(Self::new(kind, &options, &mut request)?, request)?))
    }

    /// As configured, with empty tables.
    ///
    /// # Errors
    /// As [`VmInVm::machine`].
    pub fn new(
        kind: Kind,
        options: &Options,
        request: &mut MachineConfig,
    ) -> Result<Self, MachineError> {
        let mut levels = Levels::new(options, request)?;
        let inner = match kind {
            Kind::EptOnEpt => {
                Inner::Nested(Box::new(Combined::new(options, &mut levels, request)?))
            }
            Kind::ShadowOnEpt => Inner::Shadow(Box::new(Shadowed::new(None, request)?)),
            Kind::Pvm => Inner::Shadow(Box::new(Shadowed::new(Some(options.pvm), request)?)),
        };
        Ok(Self { kind, levels, inner, reclaimed_by_l1: options.reclaimed_by_l1 })
    }

    /// L1 takes the page of L2 at `at` back: it leaves its tables and its record. What L0 has of it is
    /// for the caller to remove. Returns the first gPA1 of the page and its size; `None` if L1 has
    /// none there.
    ///
    /// # Errors
    /// Memory is exhausted.
    pub fn unmap_in_l1(
        &mut self,
        platform: &mut Platform,
        at: Gpa,
    ) -> Result<Option<(Gpa, PageSize)>, MachineError> {
        let Some((first, frame, size)) = self.levels.page(at) else { return Ok(None) };
        match &mut self.inner {
            Inner::Nested(combined) => {
                combined.unmap_in_l1(&mut self.levels, platform, (first, size))?;
            }
            Inner::Shadow(shadowed) => shadowed.unmap_in_l1(platform, (first, size)),
        }
        self.levels.discard(first)?;
        Ok(Some((frame, size)))
    }

    /// The page of `size` at `at` of L2 no longer backs it: whoever took it, L0 has it in no table. L1's
    /// tables still map it where it was not L1 that took it, as L1 knows nothing of that.
    fn host_changed(
        &mut self,
        platform: &mut Platform,
        (at, size): (Gpa, PageSize),
        by_l1: bool,
    ) -> Result<(), MachineError> {
        self.levels.outer.lived = false;
        let end = at.offset_by(size.bytes());
        let mut gpa = at;
        while gpa < end {
            let Some((first, frame, whole)) = self.levels.page(gpa) else {
                gpa = gpa.offset_by(4096);
                continue;
            };
            let next = first.offset_by(whole.bytes());
            if by_l1 {
                self.unmap_in_l1(platform, gpa)?;
                self.levels.outer.forget(platform, frame, whole.bytes());
                if let Inner::Nested(combined) = &mut self.inner {
                    combined.forget(platform, first, whole.bytes());
                }
            } else {
                let (from, to) = (first.max(at), next.min(end));
                let part = frame.offset_by(from.value() - first.value());
                self.levels.outer.forget(platform, part, to.value() - from.value());
            }
            gpa = next;
        }
        if let Inner::Nested(combined) = &mut self.inner {
            combined.forget(platform, at, size.bytes());
        }
        platform.cpu.hardware.invalidate_nested_everywhere();
        Ok(())
    }

    /// What L1's record found to be larger since it was last looked at, L1's tables no longer map.
    fn promoted_in_l1(&mut self, platform: &mut Platform) -> Result<(), MachineError> {
        for (at, size) in self.levels.take_promoted() {
            match &mut self.inner {
                Inner::Nested(combined) => {
                    combined.unmap_in_l1(&mut self.levels, platform, (at, size))?;
                    combined.forget(platform, at, size.bytes());
                    platform.cpu.hardware.invalidate_nested_everywhere();
                }
                Inner::Shadow(shadowed) => shadowed.unmap_in_l1(platform, (at, size)),
            }
        }
        Ok(())
    }

    /// Which exits L0 handed on, or never saw, follows from their reasons.
    fn account(&self, platform: &mut Platform) {
        let counters = &mut platform.cpu.counters;
        let direct: u64 = DIRECT.iter().map(|reason| counters.exits[*reason as usize]).sum();
        let indirect = counters.exits_total() - direct;
        match self.kind {
            Kind::Pvm => counters.switcher_exits = indirect,
            Kind::EptOnEpt | Kind::ShadowOnEpt => counters.reflected_exits = indirect,
        }
    }
}

impl Scheme for VmInVm {
    #[inline(always)]
    fn looks_up_first(&self) -> bool {
        true
    }

    fn walk<W: WalkWatch>(
        &mut self,
        cpu: &mut Processor,
        request: &Request,
        watch: &mut W,
    ) -> Result<Translation, Fault> {
        let Processor { world, hardware, counters } = cpu;
        let (leaves, watch) = watch.parts();
        match &mut self.inner {
            Inner::Nested(combined) => {
                let mut host = Watched { tables: combined.tables(), watch };
                let mut guest = world.tables(request.vcpu);
                walk_2d(hardware, counters, &mut guest, &mut host, request, leaves)
            }
            Inner::Shadow(shadowed) => {
                let root = shadowed.mmu.walk_root(request.core());
                let (mode, memory) = shadowed.mmu.tables();
                if root.value() == 0 {
                    // L1 has made no root yet.
                    return Err(Fault::Linear { level: mode.levels, protection: false });
                }
                let mut host = Watched { tables: self.levels.outer.tables.tables(), watch };
                let mut tables = Tables { mode, memory, root, dimension: Dimension::Shadow };
                walk_2d(hardware, counters, &mut tables, &mut host, request, leaves)
            }
        }
    }
}

impl Software for VmInVm {
    fn handle_fault(
        &mut self,
        platform: &mut Platform,
        request: &Request,
        fault: Fault,
    ) -> Result<Handled, MachineError> {
        let handled = match (&mut self.inner, fault) {
            (Inner::Nested(_), Fault::Linear { .. }) => return Ok(Handled::GuestFault),
            (Inner::Nested(combined), Fault::Nested { gpa, fetch }) => {
                let levels = &mut self.levels;
                combined.violation(
                    levels,
                    platform,
                    (request.vcpu, Some(request)),
                    (gpa, fetch),
                )?;
                Handled::Retry
            }
            (Inner::Shadow(shadowed), Fault::Linear { .. }) => {
                shadowed.fault(&mut self.levels, platform, request)?
            }
            (Inner::Shadow(shadowed), Fault::Nested { gpa, .. }) => {
                let linear = Some((shadowed.mmu.mode(), request.gva));
                let outer = &mut self.levels.outer;
                let nested = (outer.tables.mode(), gpa);
                platform.cpu.hardware.after_ept_violation(request.vcpu, nested, linear);
                if outer.touch(platform, gpa)? { Handled::Retry } else { Handled::RetryUncounted }
            }
        };
        self.promoted_in_l1(platform)?;
        self.account(platform);
        Ok(handled)
    }

    fn on(&mut self, platform: &mut Platform, event: Event<'_>) -> Result<(), MachineError> {
        match (&mut self.inner, event) {
            (_, Event::HostChanged { at, size, promoted }) => {
                let by_l1 = self.reclaimed_by_l1 && !promoted;
                self.host_changed(platform, (at, size), by_l1)?;
            }
            (_, Event::MemoryAdded { start, bytes }) => self.levels.hot_add(start, bytes)?,
            (Inner::Nested(combined), event) => {
                combined.on(&mut self.levels, platform, event)?;
            }
            (Inner::Shadow(shadowed), event) => {
                shadowed.on(&mut self.levels, platform, event)?;
            }
        }
        self.promoted_in_l1(platform)?;
        self.account(platform);
        Ok(())
    }

    fn walk_mode(&self, world: &World) -> &'static Mode {
        match &self.inner {
            Inner::Nested(_) => world.mode,
            Inner::Shadow(shadowed) => shadowed.mmu.mode(),
        }
    }

    fn report(&self, platform: &Platform, out: &mut Report) {
        let outer = self.levels.outer.tables.bytes();
        // L1's tables, as far as it has used their frames.
        let inner = self.levels.outer.own_bytes();
        let (nested, shadow) = match &self.inner {
            Inner::Nested(combined) => (outer + inner + combined.bytes(), 0),
            Inner::Shadow(_) => (outer, inner),
        };
        out.page_tables = PageTableBytes::of_vm(platform, nested, shadow);
    }
}
