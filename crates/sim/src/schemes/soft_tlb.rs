//! `soft-tlb`: a processor whose TLB software fills (MIPS, SPARC), and a hypervisor that virtualizes it
//! without hardware's help, as Disco (Bugnion et al., SOSP 1997) and KVM/MIPS by trap and emulate
//! (Linux 4.19, `arch/mips/kvm/`) do.
//!
//! No hardware walks. An access that misses the TLB is an exception to the hypervisor:
//!
//! - If its copy of the guest's TLB has the page, it fills the real TLB, and the program goes on
//!   (`kvm_mips_handle_tlbmiss`).
//! - Otherwise it hands the exception on to the guest's refill handler. That loads an entry of each
//!   level of the guest's tables, at guest-physical addresses: the guest's kernel, which does not run
//!   in kernel mode, sees them through the TLB as well, and a miss there is one more exception, which
//!   the hypervisor answers by itself. Then the handler writes the TLB, by an instruction that traps:
//!   the hypervisor translates the frame by its own table, and keeps the entry in its copy, which has
//!   the geometry of the second-level TLB.
//!
//! References of the handler are the guest's dimension, those to the hypervisor's table, one for each
//! frame that it translates, the host's. The processor has no walk caches, whatever the profile.
//!
//! Identifiers of address spaces are the guest's PCIDs. With them a load of a root changes the
//! identifier; without them (`ids=no`) it empties the TLB and the copy.
//!
//! What is x86's here and not MIPS's: tables of x86 and their accessed and dirty flags, which the
//! handler sets; a kernel whose own pages are mapped by its tables.

use super::{Definition, Facts};
use crate::hardware::walk::{Fault, HostDimension, NestedTables, Purpose, WalkWatch, walk_2d};
use crate::hardware::{Hardware, Request};
use crate::hypervisor::nested_mmu::NestedMmu;
use crate::machine::{DynMachine, Machine};
use crate::measure::counters::{Counters, Dimension, ExitReason};
use crate::scheme::options::{OptionRow, OptionTable};
use crate::scheme::vmm_options::{VmmKind, VmmRules};
use crate::scheme::{
    Event, Handled, MachineConfig, MachineError, PageTableBytes, Platform, Processor, Report,
    Scheme, Software,
};
use nestwalk_hw::profile::WalkCacheProfile;
use nestwalk_hw::{Asid, Tlb, Translation};
use nestwalk_tables::{Permissions, look_up};
use nestwalk_types::{Address, Gpa, Gva, Hpa, Invalidation, PageSize, VcpuId};

/// The catalogue's entry.
pub const DEFINITION: Definition = Definition {
    name: "soft-tlb",
    summary: "a TLB that software fills, virtualized by traps and a copy (Disco, KVM/MIPS)",
    virtualized: true,
    facts: Facts { flushes_by_itself: true, ..Facts::NONE },
    vmm: VmmKind::Other,
    options: &OPTIONS,
    build,
};

static OPTIONS: OptionTable<Config> = OptionTable::new(&[
    OptionRow {
        name: "ids",
        values: "yes|no",
        meaning: "TLB entries have identifiers of address spaces (yes)",
        set: |c, value| yes_or_no(value).map(|yes| c.ids = yes),
        get: |c| spelled(c.ids),
    },
    OptionRow {
        name: "copy",
        values: "yes|no",
        meaning: "the hypervisor keeps a copy of the guest's TLB, and looks there first (yes)",
        set: |c, value| yes_or_no(value).map(|yes| c.copy = yes),
        get: |c| spelled(c.copy),
    },
    OptionRow {
        name: "registers",
        values: "patched|trapped",
        meaning: "the handler's accesses to the processor's registers: patched to loads and stores \
                  (KVM_MIPS_DYN_TRANS), or 3 traps a refill: address, and an entry in two halves (patched)",
        set: |c, value| {
            c.trapped = match value {
                "patched" => false,
                "trapped" => true,
                _ => return Err("there are: patched, trapped".into()),
            };
            Ok(())
        },
        get: |c| if c.trapped { "trapped" } else { "patched" }.into(),
    },
]);

fn yes_or_no(value: &str) -> Result<bool, String> {
    match value {
        "yes" => Ok(true),
        "no" => Ok(false),
        _ => Err("there are: yes, no".into()),
    }
}

fn spelled(yes: bool) -> String {
    if yes { "yes" } else { "no" }.into()
}

/// How it is set up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Config {
    ids: bool,
    copy: bool,
    trapped: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { ids: true, copy: true, trapped: false }
    }
}

fn build(request: MachineConfig) -> Result<Box<dyn DynMachine>, MachineError> {
    Ok(Box::new(SoftTlb::machine(request)?))
}

/// Where the guest's kernel sees guest-physical addresses, so that no mapping of the guest's is there:
/// in the hole that Linux with tables of 5 levels leaves to hypervisors
/// (`Documentation/x86/x86_64/mm.rst`); no address of 48 bits is.
const SEGMENT: u64 = 0xff00_0000_0000_0000;

/// What software is to do about the miss that the walk was for.
#[derive(Clone, Copy)]
struct Refill {
    found: Translation,
    /// Misses of the guest kernel's segment on the way.
    segment_misses: u32,
    /// The copy had it.
    copied: bool,
}

/// The hypervisor's table of guest memory, and its copies of the guest's TLBs.
pub struct SoftTlb {
    config: Config,
    /// Guest frame to host frame. Only its leaf entries are used, as those of an array.
    table: NestedMmu,
    /// By vCPU.
    copies: Vec<Tlb>,
    refill: Option<Refill>,
}

impl SoftTlb {
    /// A machine whose processor has no hardware for walks.
    ///
    /// # Errors
    /// As [`SoftTlb::new`].
    pub fn machine(request: MachineConfig) -> Result<Machine<Self>, MachineError> {
        let mut request = request;
        request.profile.walk_cache = WalkCacheProfile::default();
        request.profile.nested_walk_cache = WalkCacheProfile::default();
        request.profile.entry_cache = None;
        request.profile.nested_tlb = None;
        Machine::new(Self::new(&mut request)?, request)
    }

    /// With nothing mapped; frames of the hypervisor's table come from the machine's host.
    ///
    /// # Errors
    /// What is set cannot be, or there is no host.
    pub fn new(request: &mut MachineConfig) -> Result<Self, MachineError> {
        let config = request.options(&OPTIONS)?;
        let table = NestedMmu::new(request.nested_mode, &mut request.host, VmmRules::PLAIN)?;
        let copies = (0..request.vcpus).map(|_| Tlb::new(&request.profile.l2_tlb)).collect();
        Ok(Self { config, table, copies, refill: None })
    }

    fn backed(&mut self, platform: &mut Platform, at: Gpa, bytes: u64) -> Result<(), MachineError> {
        let end = at.value().saturating_add(bytes);
        let mut at = at;
        while at.value() < end {
            let size = self.table.map(platform, at)?;
            at = at.align_down(size).offset_by(size.bytes());
        }
        Ok(())
    }

    /// Empties the copies, as a new VM has them.
    pub fn forget_copies(&mut self) {
        self.copies.iter_mut().for_each(Tlb::flush);
    }

    /// The guest's kernel writes a page through its segment.
    fn written(
        &mut self,
        platform: &mut Platform,
        at: Gpa,
        size: PageSize,
    ) -> Result<(), MachineError> {
        let end = at.value() + size.bytes();
        let mut at = at;
        while at.value() < end {
            if !self.table.maps(at) {
                platform.cpu.counters.exit(ExitReason::TlbSegment);
                self.table.map(platform, at)?;
            }
            at = at.offset_by(PageSize::SIZE_4K.bytes());
        }
        Ok(())
    }

    /// Drops entries of a copy, as hardware does of its TLBs.
    fn invalidate_copy(&mut self, vcpu: VcpuId, asid: Asid, what: Invalidation) {
        let copy = &mut self.copies[usize::from(vcpu.0)];
        match what {
            Invalidation::Page(gva) => _ = copy.invalidate_page(gva, asid, true),
            Invalidation::PageInPcid(gva, pcid) => {
                copy.invalidate_page(gva, asid.with_pcid(pcid), false);
            }
            Invalidation::Pcid(pcid) => copy.invalidate_asid(asid.with_pcid(pcid)),
            Invalidation::AllButGlobal => copy.invalidate_vpid(asid.vpid(), false),
            Invalidation::All => copy.invalidate_vpid(asid.vpid(), true),
        }
    }

    fn invalidate(&mut self, platform: &mut Platform, vcpu: VcpuId, what: Invalidation) {
        let core = &platform.cpu.hardware.cores[usize::from(vcpu.0)];
        let (ids, asid) = (self.config.ids && core.has_pcids(), core.asid);
        // Without identifiers all address spaces have the same.
        let what = match what {
            Invalidation::PageInPcid(gva, _) if !ids => Invalidation::Page(gva),
            Invalidation::Pcid(_) if !ids => Invalidation::AllButGlobal,
            other => other,
        };
        // A page is looked for and written over; else one instruction invalidates all (TLBINVF).
        let page = matches!(what, Invalidation::Page(_) | Invalidation::PageInPcid(..));
        let instructions = if page { 2 } else { 1 };
        platform.cpu.counters.exits[ExitReason::TlbInstruction as usize] += instructions;
        platform.cpu.hardware.invalidate(vcpu, what);
        self.invalidate_copy(vcpu, asid, what);
    }

    fn load_root(&mut self, platform: &mut Platform, vcpu: VcpuId, pcid: u16, keep: bool) {
        let hardware = &mut platform.cpu.hardware;
        let exits = &mut platform.cpu.counters.exits[ExitReason::TlbInstruction as usize];
        *exits += 1;
        if !self.config.ids || !hardware.cores[usize::from(vcpu.0)].has_pcids() {
            *exits += 1;
            hardware.load_cr3(vcpu, 0, false);
            let asid = hardware.cores[usize::from(vcpu.0)].asid;
            return self.invalidate_copy(vcpu, asid, Invalidation::AllButGlobal);
        }
        // A new address space gets a new identifier: nothing is to be dropped, no instruction needed.
        hardware.load_cr3(vcpu, pcid, keep);
        if !keep {
            let asid = hardware.cores[usize::from(vcpu.0)].asid;
            self.copies[usize::from(vcpu.0)].invalidate_asid(asid);
        }
    }

    /// What the refill of a miss has taken, beyond references.
    fn refilled(&mut self, platform: &mut Platform, request: &Request, refill: Refill) {
        let exits = &mut platform.cpu.counters.exits;
        if refill.copied {
            exits[ExitReason::TlbCopy as usize] += 1;
            return;
        }
        exits[ExitReason::TlbRefill as usize] += 1;
        exits[ExitReason::TlbSegment as usize] += u64::from(refill.segment_misses);
        exits[ExitReason::TlbInstruction as usize] += if self.config.trapped { 4 } else { 1 };
        if self.config.copy {
            let core = request.core();
            let asid = platform.cpu.hardware.cores[core].asid;
            self.copies[core].remove(request.gva, asid, true);
            self.copies[core].fill(request.gva, asid, refill.found);
        }
    }
}

/// Guest memory as the guest's refill handler and the hypervisor behind it see it.
struct Memory<'a> {
    table: NestedTables<'a>,
    segment_misses: u32,
}

impl HostDimension for Memory<'_> {
    fn translate(
        &mut self,
        hardware: &mut Hardware,
        _counters: &mut Counters,
        core: usize,
        gpa: Gpa,
        purpose: Purpose,
    ) -> Result<Translation, Fault> {
        let NestedTables { mode, memory, root, .. } = &self.table;
        let leaf = look_up(memory, mode, *root, gpa)
            .map_err(|_| Fault::Nested { gpa, fetch: purpose.fetch })?;
        let found = Translation::new(leaf.frame, leaf.size, Permissions::ALL, true, true);
        let at_segment = Gva::new(SEGMENT + gpa.value());
        if purpose.on_behalf > 0 {
            let shown = hardware.is_shown();
            let core = &mut hardware.cores[core];
            let asid = core.asid;
            match core.second_level(false).look_up(at_segment, asid) {
                Some(_) if shown => {}
                Some(hit) => return Ok(hit),
                None => core.fill_second_level(at_segment, false, found),
            }
            self.segment_misses += 1;
        }
        let at: Hpa = leaf.at;
        hardware.reference(core, Dimension::Nested, (1, purpose.on_behalf), at, leaf.entry.0);
        Ok(found)
    }
}

impl Scheme for SoftTlb {
    #[inline(always)]
    fn looks_up_first(&self) -> bool {
        true
    }

    /// The loads of software, which is here in the place of a walker. What they find is given to the
    /// TLB by [`Software::handle_fault`].
    fn walk<W: WalkWatch>(
        &mut self,
        cpu: &mut Processor,
        request: &Request,
        watch: &mut W,
    ) -> Result<Translation, Fault> {
        self.refill = None;
        let Processor { world, hardware, counters } = cpu;
        let needs = Translation::needs(request.write, request.fetch, request.user);
        let core = request.core();
        let asid = hardware.cores[core].asid;
        let known = self.copies[core].look_up(request.gva, asid).filter(|t| t.serves(needs));
        let copied = self.config.copy && !hardware.is_shown();
        let refill = if let Some(found) = known.filter(|_| copied) {
            Refill { found, segment_misses: 0, copied: true }
        } else {
            let mut memory = Memory { table: self.table.tables(), segment_misses: 0 };
            let mut guest = world.tables(request.vcpu);
            let leaves = watch.parts().0;
            let found = walk_2d(hardware, counters, &mut guest, &mut memory, request, leaves)?;
            Refill { found, segment_misses: memory.segment_misses, copied: false }
        };
        self.refill = Some(refill);
        // The exception that a miss is.
        Err(Fault::Linear { level: 1, protection: false })
    }
}

impl Software for SoftTlb {
    fn handle_fault(
        &mut self,
        platform: &mut Platform,
        request: &Request,
        fault: Fault,
    ) -> Result<Handled, MachineError> {
        if let Some(refill) = self.refill.take() {
            self.refilled(platform, request, refill);
            return Ok(Handled::Emulated(refill.found));
        }
        match fault {
            // The handler finds an entry that is not valid, and its kernel's fault handler goes on.
            Fault::Linear { .. } => {
                platform.cpu.counters.exit(ExitReason::TlbRefill);
                platform.cpu.counters.exit(ExitReason::FaultBounce);
                let core = request.core();
                let asid = platform.cpu.hardware.cores[core].asid;
                self.copies[core].remove(request.gva, asid, true);
                Ok(Handled::GuestFault)
            }
            Fault::Nested { gpa, .. } => {
                self.table.map(platform, gpa)?;
                Ok(Handled::Retry)
            }
        }
    }

    fn on(&mut self, platform: &mut Platform, event: Event<'_>) -> Result<(), MachineError> {
        match event {
            Event::LoadCr3 { vcpu, pcid, keep } => self.load_root(platform, vcpu, pcid, keep),
            Event::Invalidate { vcpu, what } => self.invalidate(platform, vcpu, what),
            Event::PageWritten { at, size, .. } => return self.written(platform, at, size),
            Event::Prefault { start, bytes } => return self.backed(platform, start, bytes),
            Event::MemoryAdded { start, bytes } => return self.table.hot_added(start, bytes),
            Event::HostChanged { at, size, .. } => {
                self.table.host_changed(platform, at, size);
                platform.cpu.hardware.invalidate_everywhere();
                for (copy, core) in self.copies.iter_mut().zip(&platform.cpu.hardware.cores) {
                    copy.invalidate_vpid(core.asid.vpid(), true);
                }
            }
            other => return platform.bare_metal(other),
        }
        Ok(())
    }

    fn report(&self, platform: &Platform, out: &mut Report) {
        out.page_tables = PageTableBytes::of_vm(platform, self.table.bytes(), 0);
    }
}
