//! What a scheme is: hardware that walks, and the software that handles its faults.

pub mod build;
mod error;
mod event;
pub mod guard;
pub mod node_options;
pub mod options;
pub mod placing;
mod platform;
mod report;
pub mod vmm_options;

pub use crate::hardware::Processor;
use crate::hardware::Request;
use crate::hardware::walk::{Fault, WalkWatch};
use crate::hardware::world::World;
pub use build::MachineConfig;
pub use error::MachineError;
pub use event::Event;
use nestwalk_hw::Translation;
use nestwalk_policy::Mode as PagingMode;
use nestwalk_tables::Mode;
use nestwalk_types::{Gpa, PageSize, Run};
pub use platform::Platform;
pub use report::{
    ContiguityState, NodesState, PageTableBytes, Report, SegmentInfo, SegmentState, StructureState,
    Switched, SwitchingResult, TableState,
};

/// How software handled a fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Handled {
    /// The access walks again.
    Retry,
    /// The access walks again, and the end of that walk is an [`Event::RetryEnded`]: software has opened
    /// the tables for this access alone.
    RetryOnce,
    /// The access walks again, and the walk that stopped was none: what it met is an artefact of the
    /// model, which real tables would not have had.
    RetryUncounted,
    /// Software did the access itself, by this translation. The walk that stopped counts as complete.
    Emulated(Translation),
    /// The fault is the guest's own and was delivered to it.
    GuestFault,
}

/// The software half of a technique: the hypervisor, or the kernel of bare metal.
///
/// **Order.** A machine takes the stream's events one by one, in the order of the stream, and finishes
/// each before the next. Let `G` be the guest's tables in `platform.cpu.world`, `H` the host's own
/// record of what backs guest memory.
///
/// - An [`Event`] arrives after its effect on `G` and `H`: `G` has the store, `H` no longer has the
///   page. Of a table page, `PageWritten` (if its contents are zeros), then `TableAdded`, then its
///   stores, then `TableRetired`. `LoadCr3` of a root arrives after `TableAdded` of its page;
///   `WarmStart` of a vCPU once, after its first `LoadCr3` of a recording. Every `Prefault` of a
///   recording precedes its accesses.
/// - An access is one look-up, and on a miss [`Scheme::walk`]. A fault goes to
///   [`Software::handle_fault`] at once; [`Handled`] says how the access goes on.
/// - [`Software::timer`] is called between accesses to two pages, never within one.
///
/// **What is owed.** Let `t(a)` be the composition of `G` and `H` at address `a`. When a call of `on`,
/// `handle_fault` or `timer` returns:
///
/// - No structure of any core holds a translation of `a` other than `t(a)`, unless the guest itself has
///   changed `G` since and still owes the invalidation that the architecture asks of it.
/// - A translation allows no access that `G` or `H` forbids, by the same exception.
/// - `handle_fault` has changed something that the walk has met, or says that the fault is the guest's:
///   a retry ends.
///
/// The referee checks the first two at every access. A hook with a body does what bare hardware does;
/// a scheme overrides those where its hypervisor takes part.
pub trait Software: Send {
    /// Handles a fault of the walk.
    ///
    /// # Errors
    /// The machine cannot go on.
    fn handle_fault(
        &mut self,
        platform: &mut Platform,
        request: &Request,
        fault: Fault,
    ) -> Result<Handled, MachineError>;

    /// Hears of an event. The guest's tables in `platform.cpu.world` have its effect already. A wrapper
    /// gives every event to what it wraps.
    ///
    /// # Errors
    /// The machine cannot go on.
    fn on(&mut self, platform: &mut Platform, event: Event<'_>) -> Result<(), MachineError> {
        platform.bare_metal(event)
    }

    /// When [`Software::timer`] is to be called next, by [`Platform::instructions`].
    #[inline]
    fn next_timer(&self) -> u64 {
        u64::MAX
    }

    /// The time of [`Software::next_timer`] has come. The hypervisor may do what it likes at this point
    /// of the program, and moves the time on. It comes between two pages of the program, so that results
    /// do not depend on how the stream is cut into runs.
    ///
    /// # Errors
    /// The machine cannot go on.
    fn timer(&mut self, _platform: &mut Platform) -> Result<(), MachineError> {
        Ok(())
    }

    /// Whether the page of `size` at `at`, which backs guest memory, was used since this was last
    /// asked. It is made known again when it is used next, with the flush that this takes
    /// (`kvm_mmu_notifier_clear_flush_young`). Software that reads no accessed bits takes the page
    /// out of its tables, and answers `false`: the next use asks the host for it, which hears of it.
    ///
    /// # Errors
    /// The machine cannot go on.
    fn take_accessed(
        &mut self,
        platform: &mut Platform,
        at: Gpa,
        size: PageSize,
    ) -> Result<bool, MachineError> {
        self.on(platform, Event::HostChanged { at, size, promoted: false })?;
        Ok(false)
    }

    /// Interrupts between vCPUs go through an interrupt controller that the hypervisor emulates, as far
    /// as the processor does not. Guests of Xen send events by hypercalls instead, and have their TLBs
    /// flushed by the hypervisor.
    fn emulates_interrupts(&self) -> bool {
        true
    }

    /// The paging mode now, for schemes in which it is one of the two between which policies choose.
    fn paging_mode(&self) -> Option<PagingMode> {
        None
    }

    /// Paging mode of the tables that the hardware's first dimension walks: what walk caches of linear
    /// addresses are indexed by.
    fn walk_mode(&self, world: &World) -> &'static Mode {
        world.mode
    }

    /// Reports memory that tables take, and whatever else the scheme has to tell, beside counters.
    fn report(&self, platform: &Platform, out: &mut Report) {
        out.page_tables = PageTableBytes::of_guest(platform);
    }
}

/// A technique of address translation: its hardware, over the [`Software`] behind it.
///
/// Hardware has a [`Processor`] in reach and no [`Platform`]: it reads tables, sets accessed and dirty
/// bits, and returns a fault as data. Nothing that it calls can exit, take memory of the host, or make a
/// table.
///
/// ```compile_fail
/// # use nestwalk_sim::{hypervisor::nested::Nested, scheme::Processor};
/// fn walks(scheme: &mut Nested, reach: &mut Processor, gpa: nestwalk_types::Gpa) {
///     let _ = scheme.mmu.map(reach, gpa);
/// }
/// ```
///
/// With a platform in reach, which software has, the same maps a page:
///
/// ```
/// # use nestwalk_sim::{hypervisor::nested::Nested, scheme::Platform};
/// fn handles(scheme: &mut Nested, reach: &mut Platform, gpa: nestwalk_types::Gpa) {
///     let _ = scheme.mmu.map(reach, gpa);
/// }
/// ```
pub trait Scheme: Software {
    /// Walks for one access; the TLBs have missed. `watch` sees the leaf entries that the walk ends at.
    ///
    /// # Errors
    /// The fault that the access meets.
    fn walk<W: WalkWatch>(
        &mut self,
        cpu: &mut Processor,
        request: &Request,
        watch: &mut W,
    ) -> Result<Translation, Fault>;

    /// Whether every access looks the first-level TLB up: [`Scheme::instead_of_l1`] never answers now,
    /// and counts nothing. Hits are then served by a shorter way; the results are the same.
    #[inline(always)]
    fn looks_up_first(&self) -> bool {
        false
    }

    /// Whether references to memory may wait for others while misses are frequent: latencies of a walk
    /// add up, and nobody asks at once where one was served. The results are the same.
    #[inline(always)]
    fn may_wait(&self) -> bool {
        true
    }

    /// Translates an access in place of the first-level TLB, which is not looked up then.
    #[inline(always)]
    fn instead_of_l1(&mut self, _cpu: &mut Processor, _run: &Run) -> Option<Translation> {
        None
    }

    /// Translates an access that the first-level TLB has missed, in parallel with the second level: an
    /// answer makes that look-up void, goes to the first level, and is no walk. The scheme counts it.
    #[inline(always)]
    fn parallel_to_l2(&mut self, _cpu: &mut Processor, _request: &Request) -> Option<Translation> {
        None
    }

    /// Translates an access on a miss of the second level, before a walk is begun: an answer goes to the
    /// first level, and is no walk and no second-level miss. The scheme counts it.
    #[inline(always)]
    fn on_l2_miss(&mut self, _cpu: &mut Processor, _request: &Request) -> Option<Translation> {
        None
    }

    /// Puts what a walk has found into the second level, which has no entry of the address.
    #[inline(always)]
    fn fill_l2(&mut self, cpu: &mut Processor, request: &Request, found: Translation) {
        let core = &mut cpu.hardware.cores[request.core()];
        core.fill_second_level(request.gva, request.fetch, found);
    }

    /// Prefetches, for the simulator's own speed, what walks for these runs will need, at most
    /// [`crate::hardware::prefetch::GROUP`] of them. Changes no result.
    fn prefetch(&mut self, cpu: &Processor, runs: &[Run], gpas: &[Gpa]) {
        let _ = (cpu, runs, gpas);
    }
}
