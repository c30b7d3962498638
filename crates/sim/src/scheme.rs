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
    #[error("host memory is exhausted: no frame for a {what}; give the host more memory")]
    NoTableFrame {
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
        /// The machine, or whose segment it is.
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

impl From<MmError> for MachineError {
    fn from(source: MmError) -> Self {
        Self::Host { machine: "host".into(), source: Box::new(source) }
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

/// A technique of address translation: the hardware that walks, and the hypervisor behind it.
///
/// The hooks with a body do what bare hardware does; a scheme overrides those where its hypervisor
/// takes part. The guest's tables in `platform.world` are always up to date when a hook is called.
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

    /// The region of interest begins: counters are zero again.
    fn counting_begins(&mut self, _platform: &mut Platform) {}

    /// The host took the page of `size` at `at` back or moved it: it is behind the guest no more, and
    /// nothing of the machine may use it any longer.
    ///
    /// # Errors
    /// The machine cannot go on.
    fn host_changed(
        &mut self,
        _platform: &mut Platform,
        _at: Gpa,
        _size: PageSize,
    ) -> Result<(), MachineError> {
        Ok(())
    }

    /// Pages of the host have become one larger page of `size` at `at`, where they are. As if the
    /// host had taken them back, what maps them is dropped, so that the next use maps the whole
    /// page.
    ///
    /// # Errors
    /// The machine cannot go on.
    fn host_joined(
        &mut self,
        platform: &mut Platform,
        at: Gpa,
        size: PageSize,
    ) -> Result<(), MachineError> {
        self.host_changed(platform, at, size)
    }

    /// The guest is about to give pages to the VMM, scattered over its memory.
    ///
    /// # Errors
    /// The machine cannot go on.
    fn ballooning(&mut self, _platform: &mut Platform) -> Result<(), MachineError> {
        Ok(())
    }

    /// The guest has new memory; the host has it already.
    ///
    /// # Errors
    /// The machine cannot go on.
    fn hot_added(
        &mut self,
        _platform: &mut Platform,
        _start: Gpa,
        _bytes: u64,
    ) -> Result<(), MachineError> {
        Ok(())
    }

    /// The paging mode now, for schemes in which it is one of the two between which policies choose.
    fn paging_mode(&self) -> Option<PagingMode> {
        None
    }

    /// What came of a paging mode that changes, for schemes that have one.
    fn switching(&self, _platform: &Platform) -> Option<SwitchingResult> {
        None
    }

    /// The guest loaded CR3.
    ///
    /// # Errors
    /// The machine cannot go on.
    fn load_cr3(
        &mut self,
        platform: &mut Platform,
        vcpu: VcpuId,
        pcid: u16,
        keep: bool,
    ) -> Result<(), MachineError> {
        platform.hardware.load_cr3(vcpu, pcid, keep);
        Ok(())
    }

    /// The guest loaded the registers of its process's segment.
    ///
    /// # Errors
    /// The segment cannot be, or the machine cannot go on.
    fn load_segment(
        &mut self,
        _platform: &mut Platform,
        _vcpu: VcpuId,
        _segment: Option<&GuestSegment>,
    ) -> Result<(), MachineError> {
        Ok(())
    }

    /// What segments there are, for schemes that have any.
    fn segments(&self, _platform: &Platform) -> Option<SegmentState> {
        None
    }

    /// How contiguous memory is, for schemes that follow it.
    fn contiguity(&self, _platform: &Platform) -> Option<ContiguityState> {
        None
    }

    /// The guest invalidated translations.
    ///
    /// # Errors
    /// The machine cannot go on.
    fn invalidate(
        &mut self,
        platform: &mut Platform,
        vcpu: VcpuId,
        what: Invalidation,
    ) -> Result<(), MachineError> {
        platform.hardware.invalidate(vcpu, what);
        Ok(())
    }

    /// The guest stored `new` over `old` in one of its tables; the store is done.
    ///
    /// # Errors
    /// The machine cannot go on.
    fn table_write(
        &mut self,
        _platform: &mut Platform,
        _vcpu: VcpuId,
        _at: Gpa,
        _old: u64,
        _new: u64,
    ) -> Result<(), MachineError> {
        Ok(())
    }

    /// A page of the guest is a table from now on, or its contents were told again; the guest's tables
    /// have them.
    ///
    /// # Errors
    /// The machine cannot go on.
    fn table_new(
        &mut self,
        _platform: &mut Platform,
        _vcpu: VcpuId,
        _at: Gpa,
    ) -> Result<(), MachineError> {
        Ok(())
    }

    /// The guest kernel wrote a whole page through its own mapping: a fresh page or a fresh table.
    ///
    /// # Errors
    /// The machine cannot go on.
    fn page_written(
        &mut self,
        _platform: &mut Platform,
        _vcpu: VcpuId,
        _at: Gpa,
        _size: PageSize,
    ) -> Result<(), MachineError> {
        Ok(())
    }

    /// The guest stored to a page that was one of its tables, and is none any more.
    ///
    /// # Errors
    /// The machine cannot go on.
    fn table_reused(
        &mut self,
        _platform: &mut Platform,
        _vcpu: VcpuId,
        _at: Gpa,
    ) -> Result<(), MachineError> {
        Ok(())
    }

    /// The guest had used this memory before the stream began: the host has pages behind it, and
    /// whatever tables its hypervisor keeps by guest-physical address map them. Nothing of this is
    /// counted.
    ///
    /// # Errors
    /// Host memory is exhausted, or the range is no guest memory.
    fn backed(
        &mut self,
        platform: &mut Platform,
        start: Gpa,
        bytes: u64,
    ) -> Result<(), MachineError> {
        let end = start.value().saturating_add(bytes);
        let mut at = start;
        while at.value() < end && platform.world.host.is_some() {
            let (_, size) = crate::vmm::host_page(platform, at)?;
            at = at.align_down(size).offset_by(size.bytes());
        }
        Ok(())
    }

    /// The guest ran before the stream began, and this vCPU has loaded its first root: whatever tables
    /// the hypervisor keeps by guest-virtual address map what that address space has used. Nothing of
    /// this is counted.
    ///
    /// # Errors
    /// Host memory is exhausted.
    fn ran_before(&mut self, _platform: &mut Platform, _vcpu: VcpuId) -> Result<(), MachineError> {
        Ok(())
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
