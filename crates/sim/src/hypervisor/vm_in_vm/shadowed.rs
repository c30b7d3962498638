//! Shadow tables of a hypervisor that runs in a VM (gVA to gPA1), with KVM's rules: hardware walks them
//! and L0's nested tables in two dimensions.
//!
//! What L1 does for L2 is what a hypervisor with shadow tables does, in its own memory; only how L2
//! comes to it and back is another: by L0, or under PVM by the switcher. A fault that stores n entries
//! to protected tables is 1 fault for L2's kernel, n stores and 1 hidden fault: n + 2 exits of 4
//! switches.
//!
//! **Under KVM**, each INVVPID of L1 is an exit to L0, too; flushes that L1 asks of other vCPUs are
//! one for each.
//!
//! **Under PVM** (Pagetable-based Virtual Machine, its specification and code):
//!
//! - L2's kernel returns from a page fault by a hypercall, and in it L1 makes the shadow entry that
//!   the access needs, so that there is no hidden fault (*prefault*): 1 + n + 1 exits of 2 switches.
//! - L2's PCIDs are PCIDs of the processor: a load of CR3 drops what the guest asks for, not all that L2
//!   has. What the guest invalidates is invalidated in any PCID, at hand or not.
//! - Shadow tables have locks of their own. That nobody waits for them is a choice: how often two
//!   vCPUs meet at one table is not told.
//!
//! As recalled, not read: that the return is by way of L1, as the published count of 2n + 4 asks. Left
//! out: system calls, which the switcher hands from L2's program to its kernel and back without L1,
//! since streams do not show them, and the second shadow of each address space, without the kernel.

use super::options::PvmOptions;
use super::outer::Levels;
use crate::hardware::Request;
use crate::hypervisor::shadow::{Rules, ShadowMmu};
use crate::measure::counters::ExitReason;
use crate::scheme::vmm_options::{VmmKind, VmmRules};
use crate::scheme::{Event, Handled, MachineConfig, MachineError, Platform};
use nestwalk_tables::look_up;
use nestwalk_types::{Address, Gpa, Hpa, Invalidation, PageSize, VcpuId};

/// L1's shadow tables.
pub(super) struct Shadowed {
    pub(super) mmu: ShadowMmu,
    /// It is PVM that keeps them.
    pvm: Option<PvmOptions>,
    /// By vCPU: the page whose fault L2's kernel answers, or has answered last.
    answered: Vec<Option<u64>>,
}

impl Shadowed {
    pub(super) fn new(
        pvm: Option<PvmOptions>,
        request: &MachineConfig,
    ) -> Result<Self, MachineError> {
        let VmmRules { nx_huge_pages, kvm, .. } = request.rules(VmmKind::Shadow)?;
        let rules = Rules { nx_huge_pages, kvm, ..Rules::default() };
        let mmu = ShadowMmu::new(request.guest_mode, request.vcpus, request.guest_bytes >> 12);
        Ok(Self { mmu: mmu.with_rules(rules), pvm, answered: vec![None; request.vcpus] })
    }

    /// L1 works on its shadow tables; its flushes are L0's work, and under PVM nobody waits for a lock.
    fn in_l1<R>(
        &mut self,
        levels: &mut Levels,
        platform: &mut Platform,
        work: impl FnOnce(&mut ShadowMmu, &mut Platform) -> R,
    ) -> R {
        let remote = |platform: &Platform| {
            let counters = &platform.cpu.counters;
            counters.remote_flushes + counters.exits[ExitReason::RemoteFlush as usize]
        };
        let before = remote(platform);
        let locks = self.pvm.is_some_and(|pvm| !pvm.one_lock);
        let visits = locks.then(|| std::mem::take(&mut platform.cpu.counters.lock_visits));
        let mmu = &mut self.mmu;
        let done = levels.in_l1(platform, |platform| work(mmu, platform));
        if let Some(visits) = visits {
            platform.cpu.counters.lock_visits = visits;
        }
        let flushes = remote(platform) - before;
        self.flushed(platform, flushes);
        done
    }

    /// So many INVVPIDs of L1. PVM needs none: L2 has PCIDs of L1's.
    fn flushed(&self, platform: &mut Platform, times: u64) {
        if self.pvm.is_none() {
            platform.cpu.counters.exits[ExitReason::InnerFlush as usize] += times;
        }
    }

    /// A fault of hardware on the shadow tables.
    pub(super) fn fault(
        &mut self,
        levels: &mut Levels,
        platform: &mut Platform,
        request: &Request,
    ) -> Result<Handled, MachineError> {
        let hidden = [ExitReason::HiddenFault, ExitReason::DirtyFault].map(|r| r as usize);
        let before = hidden.map(|r| platform.cpu.counters.exits[r]);
        let handled =
            self.in_l1(levels, platform, |mmu, platform| mmu.page_fault(platform, request))?;
        let world = &platform.cpu.world;
        let leaf = look_up(&world.guest, world.mode, world.root(request.vcpu), request.gva);
        if let Ok(leaf) = leaf {
            let gpa: Gpa = leaf.apply(request.gva);
            levels.claim(platform, gpa, 1)?;
        }
        let Some(pvm) = self.pvm else { return Ok(handled) };
        let page = Some(request.gva.page_number());
        let answered = &mut self.answered[request.core()];
        if handled == Handled::GuestFault {
            *answered = page;
            platform.cpu.counters.exit(ExitReason::FaultReturn);
        } else if *answered == page && !pvm.no_prefault {
            *answered = None;
            // L1 did this when the kernel returned, and the access never faulted.
            let exits = &mut platform.cpu.counters.exits;
            if let Some((r, n)) = hidden.into_iter().zip(before).find(|(r, n)| exits[*r] > *n) {
                exits[r] = n;
                return Ok(Handled::RetryUncounted);
            }
        }
        Ok(handled)
    }

    /// L1 takes a page of L2 out of its tables, and has every core forget it.
    pub(super) fn unmap_in_l1(&mut self, platform: &mut Platform, (at, size): (Gpa, PageSize)) {
        self.mmu.host_changed(at, size);
        platform.cpu.hardware.invalidate_everywhere();
        self.flushed(platform, 1);
    }

    fn load_cr3(
        &mut self,
        levels: &mut Levels,
        platform: &mut Platform,
        (vcpu, pcid, keep): (VcpuId, u16, bool),
    ) -> Result<(), MachineError> {
        platform.cpu.counters.exit(ExitReason::Cr3Load);
        let known = self.in_l1(levels, platform, |mmu, platform| {
            mmu.take_up_root(platform, vcpu, pcid, keep)
        })?;
        platform.cpu.hardware.load_cr3(vcpu, pcid, keep);
        let mapped = self.pvm.is_some_and(|pvm| !pvm.no_pcids);
        if !mapped && (!keep || !known) {
            platform.cpu.hardware.invalidate_vcpu(vcpu);
            self.flushed(platform, 1);
        }
        Ok(())
    }

    fn invalidate(
        &mut self,
        levels: &mut Levels,
        platform: &mut Platform,
        (vcpu, what): (VcpuId, Invalidation),
    ) {
        let core = usize::from(vcpu.0);
        let flushes = match what {
            Invalidation::PageInPcid(_, pcid) => self.mmu.has_at_hand(core, pcid),
            Invalidation::Pcid(pcid) => platform.cpu.hardware.cores[core].pcid == pcid,
            Invalidation::Page(_) | Invalidation::AllButGlobal | Invalidation::All => true,
        };
        self.in_l1(levels, platform, |mmu, platform| mmu.invalidate(platform, vcpu, what));
        self.flushed(platform, u64::from(flushes));
        if self.pvm.is_some_and(|pvm| !pvm.no_pcids) {
            platform.cpu.hardware.invalidate(vcpu, what);
        }
    }

    pub(super) fn on(
        &mut self,
        levels: &mut Levels,
        platform: &mut Platform,
        event: Event<'_>,
    ) -> Result<(), MachineError> {
        match event {
            Event::LoadCr3 { vcpu, pcid, keep } => {
                return self.load_cr3(levels, platform, (vcpu, pcid, keep));
            }
            Event::Invalidate { vcpu, what } => self.invalidate(levels, platform, (vcpu, what)),
            Event::TableStore { at, new, .. } => {
                self.in_l1(levels, platform, |mmu, platform| mmu.table_write(platform, at, new));
            }
            Event::PageWritten { at, size, .. } => {
                self.in_l1(levels, platform, |mmu, platform| mmu.page_written(platform, at, size))?;
                return levels.claim(platform, at, size.bytes());
            }
            Event::TableRetired { at, .. } => {
                self.in_l1(levels, platform, |mmu, platform| mmu.table_reused(platform, at));
            }
            Event::WarmStart { vcpu } => {
                self.in_l1(levels, platform, |mmu, platform| mmu.warm_start(platform, vcpu))?;
                let mut tables: Vec<Hpa> = self.mmu.tables().1.pages().collect();
                tables.sort_unstable();
                for table in tables {
                    levels.outer.touch(platform, Gpa::new(table.value()))?;
                }
            }
            Event::Prefault { start, bytes } => return levels.back(platform, start, bytes),
            Event::RetryEnded => self.mmu.end_emulation(),
            other => return platform.bare_metal(other),
        }
        Ok(())
    }
}
