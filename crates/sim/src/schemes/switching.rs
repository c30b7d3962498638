//! `switching`: shadow and nested paging in turns, while the VM runs.
//!
//! A switch is what the kernel patch of the thesis does (Linux 4.19, `KVM_REQ_PM_SWITCH`): every vCPU is
//! called out of the guest, the tables of the old mode are dropped, the roots freed, the new mode's MMU
//! is set up, and its tables are built as the guest meets what is missing. So a switch has no price of
//! its own but an exit of each vCPU; the rest are the exits and fills that follow. What goes beyond the
//! patch:
//!
//! - Any number of vCPUs. All are out of the guest when tables go and hardware is flushed, and none
//!   goes back before its root is loaded, so no vCPU walks tables of the mode that another has left.
//! - `keep=nested`: nested tables stay while the VM is in shadow mode, and their memory with them. They
//!   depend on the host's mapping alone, and whatever the host takes back is cleared in them at once
//!   (`Event::HostChanged`), so at the next switch they are in step, and what is missing then is
//!   what the host gave or changed meanwhile.
//!   Shadow tables are never kept: in nested mode nobody tells the hypervisor of the guest's stores to
//!   its tables, so every one of them might have changed.
//! - `tlb=carry`: see below.
//!
//! # What TLBs may keep
//!
//! A TLB entry of either mode is the composition gVA → gPA → hPA with the guest's permissions, under the
//! same VPID and PCID, and of either mode it may be as old as the guest's last invalidation: CR3 loads,
//! INVLPG and INVPCID reach the hardware in shadow mode, too, after the hypervisor's part. So an entry
//! may stay unless the new mode relies on something that the old one did not keep up:
//!
//! - *Paging-structure caches* go always: they point into tables of the old mode.
//! - *Guest-physical mappings* (nested TLB, nested paging-structure caches) go if the nested tables do.
//! - *Into shadow mode, entries by which a store needs no walk go.* Shadow mode rests on write
//!   protection: a store to a guest table must exit, and the flush that comes with the protection of a
//!   table is made only if a shadow entry allowed stores, which a carried entry has none of. Likewise
//!   the guest's dirty bit is the hypervisor's business from then on; an entry that is clean or
//!   read-only makes the first store walk, and the walk meets shadow tables. Reads need no exit
//!   in either mode. No processor drops entries by permission: there it takes a flush, and `carry` says
//!   what could be gained at best.
//! - *Into nested mode, entries that are parts of larger guest pages go.* The hypervisor, which splits
//!   large pages in shadow tables, flushes them itself as it zaps the split page; in nested mode it is
//!   the hardware that must find all parts of a page for INVLPG, and shadow entries do not say what they
//!   are part of. One such page and all is flushed. Otherwise entries stay: an entry that allows stores
//!   came when the guest's dirty bit was set, and has no more permissions than the guest's entry.
//! - Global mappings are none in shadow tables, so nothing too global is carried into nested mode; the
//!   other way, global entries stay as long as the guest's own invalidations let them.
//! - A change of the host's mapping flushes everything in either mode, whether tables mapped it or not.

use super::{Definition, Facts};
use crate::ExitReason;
use crate::hardware::Request;
use crate::hardware::walk::{Fault, WalkWatch};
use crate::hardware::world::World;
use crate::hypervisor::nested::Nested;
use crate::hypervisor::nested_mmu::NestedMmu;
use crate::machine::{DynMachine, Machine};
use crate::scheme::MachineConfig;
use crate::scheme::vmm_options::{VmmKind, VmmRules};
use crate::scheme::{
    Event, Handled, MachineError, PageTableBytes, Platform, Processor, Report, Scheme, Software,
};
use crate::schemes::shadow::Shadow;
use crate::switching::governor::{Ask, Governor};
use crate::switching::journal::Journal;
use crate::switching::options::{Options, SwitchingOptions, TlbHandling};
use nestwalk_hw::Translation;
use nestwalk_policy::{Mode as PagingMode, Outcome, Policy, Sample};
use nestwalk_tables::Mode;
use nestwalk_types::{Gpa, PageSize, Run};

/// The catalogue's entry.
pub const DEFINITION: Definition = Definition {
    name: "switching",
    summary: "shadow and nested paging in turns: switching[/POLICY][/KEY=VALUE]...",
    virtualized: true,
    facts: Facts { flushes_by_itself: true, sampled: true, ..Facts::NONE },
    vmm: VmmKind::Nested,
    options: &SwitchingOptions,
    build,
};

fn build(request: MachineConfig) -> Result<Box<dyn DynMachine>, MachineError> {
    let mut request = request;
    let scheme = Switching::new(&mut request)?;
    let prewarmed = scheme.prewarmed;
    let machine = Machine::new(scheme, request)?;
    Ok(Box::new(if prewarmed { machine.prewarmed()? } else { machine }))
}

/// Both modes of a VM, one of them in force.
pub struct Switching {
    mode: PagingMode,
    /// Empty but in shadow mode.
    shadow: Shadow,
    /// In nested mode, and while its tables are kept.
    nested: Option<Nested>,
    nested_mode: &'static Mode,
    rules: VmmRules,
    keep_nested: bool,
    prewarmed: bool,
    tlb: TlbHandling,
    obey: bool,
    governor: Governor,
    journal: Journal,
}

/// Calls the hook of the mode in force. The nested tables are there whenever nested mode is.
macro_rules! in_force {
    ($self:ident, $scheme:ident => $call:expr) => {
        match &mut $self.nested {
            Some($scheme) if $self.mode == PagingMode::Nested => $call,
            _ => {
                let $scheme = &mut $self.shadow;
                $call
            }
        }
    };
}

impl Switching {
    /// Both modes' tables; the nested ones in nested mode, and while they are kept.
    pub const fn halves(&mut self) -> (&mut Shadow, Option<&mut Nested>) {
        (&mut self.shadow, self.nested.as_mut())
    }

    /// In the mode at the start, with the policy or schedule of the variant.
    ///
    /// # Errors
    /// The variant is wrong, or the host has no frame for a root.
    pub fn new(request: &mut MachineConfig) -> Result<Self, MachineError> {
        let wrong = |reason| MachineError::Variant { machine: request.name.clone(), reason };
        let options: Options = request.variant.parse().map_err(wrong)?;
        let governor = Governor::new(&options, &request.profile, request.vcpus).map_err(wrong)?;
        // A VM that has lived for long and keeps its nested tables has been in nested mode before.
        let had_nested = options.prewarmed && options.keep_nested;
        let nested = match options.start {
            PagingMode::Shadow if !had_nested => None,
            _ => Some(Nested::new(request)?),
        };
        Ok(Self {
            mode: options.start,
            shadow: Shadow::new(request)?,
            nested,
            nested_mode: request.nested_mode,
            rules: request.rules(VmmKind::Nested)?,
            keep_nested: options.keep_nested,
            prewarmed: options.prewarmed,
            tlb: options.tlb,
            obey: options.obey,
            governor,
            journal: Journal::new(&request.profile, request.vcpus, options.start),
        })
    }

    /// The mode in force.
    pub const fn mode(&self) -> PagingMode {
        self.mode
    }

    /// Another policy than the catalogue's, for a machine whose options name one.
    pub fn set_policy(&mut self, policy: Box<dyn Policy>) {
        self.governor.set_policy(policy);
    }

    /// Changes the mode at somebody else's request, as a write to the VM's file does. Does nothing if
    /// it is in force.
    ///
    /// # Errors
    /// The host has no frame for a root.
    pub fn switch_to(
        &mut self,
        platform: &mut Platform,
        to: PagingMode,
    ) -> Result<(), MachineError> {
        if to != self.mode {
            self.switch(platform, to, "asked for from outside".into(), None)?;
            self.governor.switched(Outcome::Elsewhere(to));
        }
        Ok(())
    }

    fn switch(
        &mut self,
        platform: &mut Platform,
        to: PagingMode,
        reason: String,
        sample: Option<Sample>,
    ) -> Result<(), MachineError> {
        self.journal.switched(&platform.cpu.counters, self.mode, reason, sample);
        platform.cpu.counters.mode_switches += 1;
        for _ in &platform.cpu.hardware.cores {
            platform.cpu.counters.exit(ExitReason::ModeSwitch);
        }
        match to {
            PagingMode::Nested => self.enter_nested(platform),
            PagingMode::Shadow => self.enter_shadow(platform),
        }
    }

    fn enter_nested(&mut self, platform: &mut Platform) -> Result<(), MachineError> {
        let flush = self.tlb == TlbHandling::Flush || self.shadow.mmu.may_splinter();
        self.shadow.mmu.unload(platform);
        if flush {
            platform.cpu.hardware.invalidate_everywhere();
        }
        if self.nested.is_none() {
            let mmu = NestedMmu::new(self.nested_mode, &mut platform.host, self.rules)?;
            self.nested = Some(Nested::with(mmu));
        }
        forget_walks(platform);
        self.mode = PagingMode::Nested;
        Ok(())
    }

    fn enter_shadow(&mut self, platform: &mut Platform) -> Result<(), MachineError> {
        self.mode = PagingMode::Shadow;
        if !self.keep_nested
            && let Some(nested) = self.nested.take()
        {
            nested.mmu.unload(platform);
        }
        if self.tlb == TlbHandling::Flush {
            platform.cpu.hardware.invalidate_nested_everywhere();
        } else {
            if !self.keep_nested {
                platform.cpu.hardware.forget_nested();
            }
            for core in &mut platform.cpu.hardware.cores {
                core.tlbs().for_each(nestwalk_hw::Tlb::remove_stores);
            }
        }
        forget_walks(platform);
        self.shadow.mmu.load_roots(platform)
    }
}

/// Empties the paging-structure caches that begin at linear addresses.
fn forget_walks(platform: &mut Platform) {
    for core in &mut platform.cpu.hardware.cores {
        core.forget_partial_walks(core.asid.vpid());
    }
}

impl Scheme for Switching {
    #[inline(always)]
    fn looks_up_first(&self) -> bool {
        true
    }

    #[inline]
    fn walk<W: WalkWatch>(
        &mut self,
        cpu: &mut Processor,
        request: &Request,
        watch: &mut W,
    ) -> Result<Translation, Fault> {
        in_force!(self, scheme => scheme.walk(cpu, request, watch))
    }

    fn prefetch(&mut self, cpu: &Processor, runs: &[Run], gpas: &[Gpa]) {
        in_force!(self, scheme => scheme.prefetch(cpu, runs, gpas));
    }
}

impl Software for Switching {
    fn handle_fault(
        &mut self,
        platform: &mut Platform,
        request: &Request,
        fault: Fault,
    ) -> Result<Handled, MachineError> {
        in_force!(self, scheme => scheme.handle_fault(platform, request, fault))
    }

    #[inline]
    fn next_timer(&self) -> u64 {
        self.governor.due()
    }

    fn timer(&mut self, platform: &mut Platform) -> Result<(), MachineError> {
        let ask = self.governor.look(platform, self.mode);
        let wanted = ask.wanted(self.mode);
        let (reason, sample) = match ask {
            Ask::Nothing => return Ok(()),
            Ask::Answered(sample, decision) => {
                self.journal.decided(sample, decision);
                if wanted.is_none() {
                    return Ok(());
                }
                if !self.obey {
                    self.governor.switched(Outcome::Refused);
                    return Ok(());
                }
                (decision.reason.to_string(), Some(sample))
            }
            Ask::Scheduled(_) => ("by schedule".into(), None),
        };
        if let Some(to) = wanted {
            self.switch(platform, to, reason, sample)?;
            self.governor.switched(Outcome::Done);
        }
        Ok(())
    }

    fn paging_mode(&self) -> Option<PagingMode> {
        Some(self.mode)
    }

    fn take_accessed(
        &mut self,
        platform: &mut Platform,
        at: Gpa,
        size: PageSize,
    ) -> Result<bool, MachineError> {
        in_force!(self, scheme => scheme.take_accessed(platform, at, size))
    }

    fn on(&mut self, platform: &mut Platform, event: Event<'_>) -> Result<(), MachineError> {
        match event {
            Event::RegionOfInterest => {
                self.governor.region_begins(platform.instructions);
                self.journal.restart(self.mode);
                Ok(())
            }
            Event::HostChanged { at, size, .. } => {
                self.shadow.mmu.host_changed(at, size);
                if let Some(nested) = &mut self.nested {
                    nested.mmu.host_changed(platform, at, size);
                }
                platform.cpu.hardware.invalidate_nested_everywhere();
                Ok(())
            }
            // Kept nested tables map what is prefaulted in either mode.
            Event::Prefault { .. } => match &mut self.nested {
                Some(nested) => nested.on(platform, event),
                None => self.shadow.on(platform, event),
            },
            other => in_force!(self, scheme => scheme.on(platform, other)),
        }
    }

    fn walk_mode(&self, world: &World) -> &'static Mode {
        match self.mode {
            PagingMode::Shadow => self.shadow.walk_mode(world),
            PagingMode::Nested => world.mode,
        }
    }

    fn report(&self, platform: &Platform, out: &mut Report) {
        let nested = self.nested.as_ref().map_or(0, |n| n.mmu.bytes());
        out.page_tables = PageTableBytes::of_vm(platform, nested, self.shadow.mmu.bytes());
        out.switching = Some(self.journal.result(&platform.cpu.counters, self.mode));
    }
}
