//! What a scheme is: a walker, and the software that answers its faults.

use crate::counters::{Counters, ExitReason};
use crate::hardware::{Hardware, Request};
use crate::switching::SwitchingResult;
use crate::walk::Fault;
use crate::walk::segments::SegmentUnit;
use crate::world::World;
use nestwalk_hw::Translation;
use nestwalk_mm::MmError;
use nestwalk_policy::Mode as PagingMode;
use nestwalk_tables::Mode;
use nestwalk_types::{Address, Gpa, GuestSegment, Gva, Invalidation, PageSize, Run, VcpuId};
use serde::Serialize;
use thiserror::Error;

/// Everything of a machine but its scheme.
pub struct Platform {
    /// The tables of the guest and the memory behind it.
    pub world: World,
    /// TLBs and caches.
    pub hardware: Hardware,
    /// What was counted.
    pub counters: Counters,
    /// Instructions retired since the stream began: time, for whatever happens at intervals. Complete
    /// whenever a hook of the scheme is called but [`Scheme::walk`] and [`Scheme::answer`].
    pub clock: u64,
    /// Ranges (first address, bytes) of guest memory whose host memory software has exchanged since
    /// the engine last looked: what was known of their frames is void.
    pub moved: Vec<(Gpa, u64)>,
    /// The vCPU whose event software deals with.
    pub vcpu: VcpuId,
    /// Exits of the sender and of the receiver of an interrupt from vCPU to vCPU.
    pub interrupt_exits: [u64; 2],
}

impl Platform {
    /// What an event does where no hypervisor takes part.
    ///
    /// # Errors
    /// Host memory is exhausted, or a range is no guest memory.
    pub fn bare_metal(&mut self, event: Event<'_>) -> Result<(), MachineError> {
        match event {
            Event::LoadCr3 { vcpu, pcid, keep } => self.hardware.load_cr3(vcpu, pcid, keep),
            Event::Invalidate { vcpu, what } => self.hardware.invalidate(vcpu, what),
            Event::Prefault { start, bytes } => {
                let end = start.value().saturating_add(bytes);
                let mut at = start;
                while at.value() < end && self.world.host.is_some() {
                    let (_, size) = crate::vmm::host_page(self, at)?;
                    at = at.align_down(size).offset_by(size.bytes());
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The VMM has every core drop its linear and combined translations. Other vCPUs that run are called
    /// out of the guest for it (`kvm_flush_remote_tlbs`).
    pub fn flush_remote(&mut self) {
        self.hardware.invalidate_everywhere();
        self.call_others_out();
    }

    /// As [`Platform::flush_remote`], with the guest-physical translations.
    pub fn flush_remote_nested(&mut self) {
        self.hardware.invalidate_nested_everywhere();
        self.call_others_out();
    }

    /// A vCPU runs from when it has loaded a root.
    fn call_others_out(&mut self) {
        let running = self.world.roots.iter().filter(|root| **root != Gpa::new(0)).count() as u64;
        self.counters.remote_flushes += 1;
        self.counters.exits[ExitReason::RemoteFlush as usize] += running.saturating_sub(1);
    }

    /// An exit whose answer changes shadow tables: one vCPU does that at a time (KVM's `mmu_lock`).
    pub fn locked_exit(&mut self, reason: ExitReason) {
        self.counters.exit(reason);
        self.lock();
    }

    /// The current vCPU takes the lock of the shadow tables.
    pub fn lock(&mut self) {
        self.counters.lock_visits.add(self.vcpu);
    }

    /// The guest's kernel interrupted other vCPUs so many times.
    pub fn interrupted(&mut self, times: u64) {
        let [sent, received] = self.interrupt_exits;
        self.counters.exits[ExitReason::InterruptSent as usize] += times * sent;
        self.counters.exits[ExitReason::InterruptReceived as usize] += times * received;
    }
}

/// How software answered a fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// The access may be tried again.
    Retry,
    /// The fault is the guest's own and was delivered to it.
    GuestFault,
}

/// Why a machine cannot go on.
#[derive(Debug, Error, Clone, PartialEq)]
pub enum MachineError {
    /// No host memory for a page or a table.
    #[error("{machine}: {source}")]
    Host {
        /// The machine.
        machine: String,
        /// What was asked of the host.
        source: Box<MmError>,
    },
    /// The host has no frame for a table of the VMM.
    #[error(
        "{machine}: host memory is exhausted: no frame for a {what}; give the host more memory"
    )]
    NoTableFrame {
        /// The machine.
        machine: String,
        /// Which table.
        what: &'static str,
    },
    /// The stream accesses memory that the guest's tables do not map at that time.
    #[error(
        "{machine}: access to {gva:?} on vCPU {vcpu}, which the guest's tables do not allow: \
         the source must carry the page fault and the table writes before the access"
    )]
    NotMapped {
        /// The machine.
        machine: String,
        /// The address.
        gva: Gva,
        /// The vCPU.
        vcpu: u8,
    },
    /// A vCPU that the machine does not have.
    #[error("{machine}: event on vCPU {vcpu}, but the machine has {vcpus}; give --vcpus {needed}")]
    NoSuchVcpu {
        /// The machine.
        machine: String,
        /// The vCPU of the event.
        vcpu: u8,
        /// vCPUs of the machine.
        vcpus: usize,
        /// vCPUs that would do.
        needed: usize,
    },
    /// A process-level event came to a machine: it went past the guest.
    #[error("{machine}: a process-level event came to the machine without passing a guest")]
    NotArchitectural {
        /// The machine.
        machine: String,
    },
    /// A policy cannot be made.
    #[error("{machine}: {reason}")]
    Variant {
        /// The machine.
        machine: String,
        /// Why.
        reason: String,
    },
    /// A segment that its registers cannot hold.
    #[error("{machine}: {source}")]
    Segment {
        /// The machine.
        machine: String,
        /// What is wrong.
        source: nestwalk_hw::SegmentError,
    },
    /// A fault that does not go away when it is answered: a bug of the scheme.
    #[error("{machine}: the fault at {gva:?} came back {attempts} times")]
    Stuck {
        /// The machine.
        machine: String,
        /// The address.
        gva: Gva,
        /// How often.
        attempts: u32,
    },
}

impl MachineError {
    /// Of the machine of this name. Parts of a machine do not know it: whoever runs one, or makes one,
    /// names it once.
    #[must_use]
    pub fn of(mut self, name: &str) -> Self {
        match &mut self {
            Self::Host { machine, .. }
            | Self::NoTableFrame { machine, .. }
            | Self::NotMapped { machine, .. }
            | Self::NoSuchVcpu { machine, .. }
            | Self::NotArchitectural { machine }
            | Self::Variant { machine, .. }
            | Self::Segment { machine, .. }
            | Self::Stuck { machine, .. } => name.clone_into(machine),
        }
        self
    }
}

impl From<MmError> for MachineError {
    fn from(source: MmError) -> Self {
        Self::Host { machine: String::new(), source: Box::new(source) }
    }
}

/// One segment and its escape filter, as hardware has them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct SegmentInfo {
    /// First address; 0 if there is none.
    pub base: u64,
    /// Length in bytes; 0 if there is none.
    pub bytes: u64,
    /// Pages that were put into the filter.
    pub escaped: u64,
    /// Pages of the segment that the filter reports, false positives included.
    pub reported: u64,
}

impl SegmentInfo {
    /// What a unit has.
    pub fn of<I: Address, O: Address>(unit: &SegmentUnit<I, O>) -> Self {
        let pages = unit.registers().pages();
        let reported = |most| unit.filter().reported(most).count() as u64;
        Self {
            base: unit.registers().base().value(),
            bytes: unit.registers().bytes(),
            escaped: unit.escaped(),
            reported: reported(pages),
        }
    }
}

/// The segments of a machine. Of guest segments the largest that was loaded so far.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
pub struct SegmentState {
    /// The guest's, from gVA to gPA.
    pub guest: SegmentInfo,
    /// The VMM's, from gPA to hPA.
    pub vmm: SegmentInfo,
    /// Guest memory that lies in the VMM's segment, in percent.
    pub vmm_percent: f64,
}

/// Contiguity as a machine's index has it, and what software keeps for its hardware.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct ContiguityState {
    /// Pages of 4 KiB that user mode may access, all address spaces.
    pub guest_pages: u64,
    /// Runs in which they lie.
    pub guest_runs: u64,
    /// Guest-physical pages that nested tables map.
    pub host_pages: u64,
    /// Runs in which they lie.
    pub host_runs: u64,
    /// Bytes of range tables.
    pub metadata_bytes: u64,
    /// Pages from anchor to anchor in the largest address space; 0 without anchors.
    pub anchor_distance: u64,
}

/// Bytes of page tables by owner.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct PageTableBytes {
    /// The guest's own tables.
    pub guest: u64,
    /// Nested tables.
    pub nested: u64,
    /// Shadow tables.
    pub shadow: u64,
    /// The host kernel's tables of the VMM process, for guest RAM.
    pub host: u64,
}

/// What happens to a machine beside accesses. All of it is off the path of a walk.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// The region of interest begins: counters are zero again.
    RegionOfInterest,
    /// The page of `size` at `at` no longer backs guest memory as it did: the host took it back or
    /// moved it, or (`promoted`) it is one larger page now, where it is. No translation of it may
    /// stay, so that the next use maps what there is.
    HostChanged {
        /// First guest-physical address.
        at: Gpa,
        /// Size of the host's page.
        size: PageSize,
        /// Smaller pages have become this one.
        promoted: bool,
    },
    /// The guest is about to give pages to the VMM, scattered over its memory.
    Ballooning,
    /// The guest has new memory; the host has it already.
    MemoryAdded {
        /// First address.
        start: Gpa,
        /// Length.
        bytes: u64,
    },
    /// The guest loaded CR3.
    LoadCr3 {
        /// On which vCPU.
        vcpu: VcpuId,
        /// The PCID.
        pcid: u16,
        /// Translations of the PCID stay.
        keep: bool,
    },
    /// The guest loaded the registers of its process's segment, or cleared them.
    LoadSegment {
        /// On which vCPU.
        vcpu: VcpuId,
        /// The segment.
        segment: Option<&'a GuestSegment>,
    },
    /// The guest invalidated translations.
    Invalidate {
        /// On which vCPU.
        vcpu: VcpuId,
        /// Which.
        what: Invalidation,
    },
    /// The guest stored to an entry of one of its tables; the store is done.
    TableStore {
        /// By which vCPU.
        vcpu: VcpuId,
        /// Address of the entry.
        at: Gpa,
        /// Its value before.
        old: u64,
        /// Its value now.
        new: u64,
    },
    /// A page of the guest is a table from now on, or its contents were announced again; the guest's
    /// tables have them.
    TableAdded {
        /// By which vCPU.
        vcpu: VcpuId,
        /// The page.
        at: Gpa,
    },
    /// The guest stored to a page that was one of its tables, and no longer is.
    TableRetired {
        /// By which vCPU.
        vcpu: VcpuId,
        /// The page.
        at: Gpa,
    },
    /// The guest kernel wrote a whole page through its own mapping: a fresh page or a fresh table.
    PageWritten {
        /// By which vCPU.
        vcpu: VcpuId,
        /// First address.
        at: Gpa,
        /// How much.
        size: PageSize,
    },
    /// The guest had used this memory before the stream began: the host has pages behind it, and
    /// whatever tables its hypervisor keeps by guest-physical address map them. Nothing of this is
    /// counted.
    Prefault {
        /// First address.
        start: Gpa,
        /// Length.
        bytes: u64,
    },
    /// The guest ran before the stream began, and this vCPU has loaded its first root: whatever tables
    /// the hypervisor keeps by guest-virtual address map what that address space has used. Nothing of
    /// this is counted.
    WarmStart {
        /// Which vCPU.
        vcpu: VcpuId,
    },
}

/// A technique of address translation: the hardware that walks, and the hypervisor behind it.
///
/// **Order.** A machine takes the stream's events one by one, in the order of the stream, and finishes
/// each before the next. Let `G` be the guest's tables in `platform.world`, `H` the host's own record of
/// what backs guest memory.
///
/// - An [`Event`] arrives after its effect on `G` and `H`: `G` has the store, `H` no longer has the
///   page. Of a table page, `PageWritten` (if its contents are zeros), then `TableAdded`, then its
///   stores, then `TableRetired`. `LoadCr3` of a root arrives after `TableAdded` of its page;
///   `WarmStart` of a vCPU once, after its first `LoadCr3` of a recording. Every `Prefault` of a
///   recording precedes its accesses.
/// - An access is one look-up, and on a miss [`Scheme::walk`]. A fault goes to [`Scheme::answer`]
///   at once; `Retry` has the same access walk again, `GuestFault` ends it.
/// - [`Scheme::tick`] is called between accesses to two pages, never within one.
///
/// **What is owed.** Let `t(a)` be the composition of `G` and `H` at address `a`. When a call of `on`,
/// `answer` or `tick` returns:
///
/// - No structure of any core holds a translation of `a` other than `t(a)`, unless the guest itself has
///   changed `G` since and still owes the invalidation that the architecture asks of it.
/// - A translation allows no access that `G` or `H` forbids, by the same exception.
/// - `answer` has changed something that the walk has met, or says `GuestFault`: a retry ends.
///
/// The referee checks the first two at every access. A hook with a body does what bare hardware does;
/// a scheme overrides those where its hypervisor takes part.
pub trait Scheme: Send {
    /// Interrupts between vCPUs go through an interrupt controller that the hypervisor emulates, as far
    /// as the processor does not. Guests of Xen send events by hypercalls instead, and have their TLBs
    /// flushed by the hypervisor.
    const EMULATES_INTERRUPTS: bool = true;
    /// Base pages share TLB entries: cores have TLBs of their own for that ([`crate::coalescing`]),
    /// which are looked up in place of the others.
    const COALESCES: bool = false;

    /// Walks for one access; the TLBs have missed. Reads tables and sets accessed and dirty bits,
    /// nothing else: a fault is returned, not answered.
    ///
    /// # Errors
    /// The fault that the access meets.
    fn walk(&mut self, platform: &mut Platform, request: &Request) -> Result<Translation, Fault>;

    /// Translates an access in place of the first-level TLB, which is not looked up then.
    #[inline(always)]
    fn beside_l1(&mut self, _platform: &mut Platform, _run: &Run) -> Option<Translation> {
        None
    }

    /// Translates an access that the first-level TLB has missed, while the second level is looked up: an
    /// answer makes that look-up void, goes to the first level, and is no walk. The scheme counts it.
    #[inline(always)]
    fn beside_l2(&mut self, _platform: &mut Platform, _request: &Request) -> Option<Translation> {
        None
    }

    /// Translates an access that both levels have missed, before a walk is begun: an answer goes to the
    /// first level, and is no walk and no second-level miss. The scheme counts it.
    #[inline(always)]
    fn behind_l2(&mut self, _platform: &mut Platform, _request: &Request) -> Option<Translation> {
        None
    }

    /// Puts what a walk has found into the second level, which has no entry of the address.
    #[inline(always)]
    fn fill_l2(&mut self, platform: &mut Platform, request: &Request, found: Translation) {
        let core = &mut platform.hardware.cores[request.core()];
        core.fill_second_level(request.gva, request.fetch, found);
    }

    /// Reads ahead what walks for these runs will need, at most [`crate::ahead::GROUP`] of them.
    /// Changes nothing but speed.
    fn read_ahead(&mut self, platform: &Platform, runs: &[Run], gpas: &[Gpa]) {
        let _ = (platform, runs, gpas);
    }

    /// Software answers a fault.
    ///
    /// # Errors
    /// The machine cannot go on.
    fn answer(
        &mut self,
        platform: &mut Platform,
        request: &Request,
        fault: Fault,
    ) -> Result<Answer, MachineError>;

    /// When [`Scheme::tick`] is to be called next, by [`Platform::clock`].
    #[inline]
    fn due(&self) -> u64 {
        u64::MAX
    }

    /// The time of [`Scheme::due`] has come. The hypervisor may do what it likes at this point of the
    /// program, and moves the time on. It comes between two pages of the program, so that results do
    /// not depend on how the stream is cut into runs.
    ///
    /// # Errors
    /// The machine cannot go on.
    fn tick(&mut self, _platform: &mut Platform) -> Result<(), MachineError> {
        Ok(())
    }

    /// Software hears of an event. The guest's tables in `platform.world` have its effect already. A
    /// wrapper gives every event to what it wraps.
    ///
    /// # Errors
    /// The machine cannot go on.
    fn on(&mut self, platform: &mut Platform, event: Event<'_>) -> Result<(), MachineError> {
        platform.bare_metal(event)
    }

    /// The paging mode now, for schemes in which it is one of the two between which policies choose.
    fn paging_mode(&self) -> Option<PagingMode> {
        None
    }

    /// What came of a paging mode that changes, for schemes that have one.
    fn switching(&self, _platform: &Platform) -> Option<SwitchingResult> {
        None
    }

    /// What segments there are, for schemes that have any.
    fn segments(&self, _platform: &Platform) -> Option<SegmentState> {
        None
    }

    /// How contiguous memory is, for schemes that follow it.
    fn contiguity(&self, _platform: &Platform) -> Option<ContiguityState> {
        None
    }

    /// Paging mode of the tables that the hardware's first dimension walks: what walk caches of linear
    /// addresses are indexed by.
    fn walk_mode(&self, world: &World) -> &'static Mode {
        world.mode
    }

    /// Memory that tables take.
    fn page_table_bytes(&self, platform: &Platform) -> PageTableBytes {
        PageTableBytes { guest: platform.world.guest.len() * 4096, ..PageTableBytes::default() }
    }
}
