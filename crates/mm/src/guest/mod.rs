//! The modelled guest: a small Linux mm that gives a plain access trace the page tables, CR3 loads
//! and invalidations that a kernel would have made.
//!
//! The protocol is described at [`ModelledGuest`].

mod config;
mod cpu;
mod daemons;
mod emit;
mod process;
mod reclaim;
mod translate;

pub use config::{GuestConfig, GuestError, GuestStats};
pub use cpu::DYNAMIC_PCIDS;
pub use emit::Sink;
pub use reclaim::{PageChoice, ProcessPage, SwapStats};

use crate::daemons::Daemons;
use crate::error::MmError;
use crate::physical::{PhysicalMemory, pc_memory_map, reclaimed_memory_map};
use crate::placement::PlacementKind;
use crate::space::{AddressSpace, Memory, PrimaryConfig, SpaceConfig};
use cpu::Cpu;
use daemons::Clock;
use emit::{Output, Work};
use nestwalk_types::{Batch, ByNumber, Control, Gpa, GuestBatch, Gva, OsWork, ProcessId, VcpuId};
use reclaim::Reclaim;

/// A process: an address space and its identity towards TLBs.
struct Process {
    space: AddressSpace<Gva, Gpa>,
    /// Never used twice (Linux, `mm->context.ctx_id`).
    context: u64,
    /// See [`emit::Emit::generation`].
    generation: u64,
}

/// The modelled guest: in come runs and the controls of processes, out go the same runs with their
/// guest-physical addresses and architectural controls at the positions where they take effect.
///
/// The output alone says everything about the guest's tables: `TableAdded` (a table of zeros from here
/// on), `TableWrite` (one entry), `PageCleared` (its pages are no tables from here on). Accessed and
/// dirty bits that the processor sets later are not said, but are part of later values. Nothing is
/// said when a table is freed: to a VMM it is a table until it is used for something else.
///
/// Whenever a translation is taken away or restricted, the vCPUs that run the process get
/// invalidations at once, and any other vCPU that has run it pays when it switches back, by a CR3
/// load without `keep`. Giving more permission owes nothing, as on x86: a vCPU with an old read-only
/// entry must look at the tables again before it faults.
pub struct ModelledGuest {
    config: GuestConfig,
    space_config: SpaceConfig,
    memory: Memory<Gpa>,
    processes: ByNumber<Process>,
    cpus: Vec<Cpu>,
    /// The vCPU of the latest event: it does the kernel's work for a process that runs nowhere.
    current: VcpuId,
    contexts: u64,
    work: Work,
    stats: GuestStats,
    clock: Clock,
    /// Swapping, if there is any.
    reclaim: Option<Box<Reclaim>>,
}

impl ModelledGuest {
    /// A guest without processes.
    ///
    /// # Errors
    /// A memory size, page size or degree of fragmentation that cannot be.
    pub fn new(config: GuestConfig) -> Result<Self, GuestError> {
        let GuestConfig { mode, policy, placement, .. } = config;
        let balloon = placement == PlacementKind::PrimaryBalloon;
        let primary = placement.has_region().then_some(PrimaryConfig { balloon, ..config.primary });
        let build = || {
            policy.check(mode)?;
            let ranges = match config.low_bytes {
                Some(low) => reclaimed_memory_map(config.bytes, low)?,
                None => pc_memory_map(config.bytes),
            };
            let room = if balloon { config.bytes } else { 0 };
            let mut physical = PhysicalMemory::with_room(&ranges, config.kernel_bytes, room)?;
            physical.fragment(config.fragmentation, config.seed)?;
            physical.mark_bad(&config.bad_frames)?;
            let memory = Memory::new(physical, config.zero_page);
            memory.check(mode)?;
            if balloon && mode.entry_bytes == 4 {
                let reason = "4-byte entries reach 4 GiB, and new memory comes above; take another \
                              placement or mode";
                return Err(MmError::Balloon { bytes: 0, reason: reason.into() });
            }
            Ok(memory)
        };
        Ok(Self {
            config,
            space_config: SpaceConfig { mode, policy, placement, primary },
            memory: build().map_err(GuestError::Config)?,
            processes: ByNumber::new(),
            cpus: Vec::new(),
            current: VcpuId(0),
            contexts: 0,
            work: Work::default(),
            stats: GuestStats::default(),
            clock: Clock::new(Daemons::new(&config.daemons, policy, placement)),
            reclaim: None,
        })
    }

    /// How it was configured.
    pub const fn config(&self) -> &GuestConfig {
        &self.config
    }
    /// Ranges of guest RAM, `(first address, bytes)`: a VMM's memslots.
    pub fn memory_ranges(&self) -> &[(Gpa, u64)] {
        self.memory.physical.ranges()
    }
    /// Guest memory and the tables in it.
    pub const fn memory(&self) -> &Memory<Gpa> {
        &self.memory
    }
    /// The address spaces of living processes, by process.
    pub fn spaces(&self) -> impl Iterator<Item = (ProcessId, &AddressSpace<Gva, Gpa>)> {
        self.processes.iter().map(|(id, p)| (ProcessId(id as u32), &p.space))
    }

    /// What was done and what is held. Looks at every leaf of every process.
    pub fn stats(&self) -> GuestStats {
        let (counters, physical) = (&self.memory.counters, &self.memory.physical);
        let spaces = self.processes.values().map(|p| &p.space);
        let untouched = spaces.map(|s| s.untouched_frames(&self.memory)).sum();
        let [pages_4k, pages_2m, pages_4m, pages_1g] = counters.leaves;
        GuestStats {
            first_touches: counters.first_touches,
            copies: counters.copies,
            reuses: counters.reuses,
            splits: counters.splits,
            fallbacks: counters.fallbacks,
            table_bytes: counters.table_frames << 12,
            peak_table_bytes: counters.peak_table_frames << 12,
            resident_bytes: counters.data_frames << 12,
            peak_resident_bytes: counters.peak_data_frames << 12,
            pinned_bytes: physical.pinned_frames() << 12,
            free_bytes: physical.free_frames() << 12,
            pages_4k,
            pages_2m,
            pages_4m,
            pages_1g,
            processes: self.processes.len() as u64,
            primary_bytes: self.processes.values().map(|p| p.space.region_bytes()).sum(),
            balloon: self.memory.balloon,
            placement: self.memory.placement_stats(untouched),
            daemons: self.clock.daemons.stats,
            swap: self.swap_stats(),
            ..self.stats
        }
    }

    /// Deals with a batch: `output` is replaced by the same runs with their addresses and by
    /// architectural controls.
    ///
    /// The output of a batch that unmaps much is large: 40 bytes per leaf, 10 MiB for each GiB of
    /// 4 KiB pages. See [`ModelledGuest::process_in_parts`].
    ///
    /// # Errors
    /// See [`GuestError`]. What was dealt with before is in `output`.
    pub fn process(&mut self, input: &Batch, output: &mut GuestBatch) -> Result<(), GuestError> {
        self.deal_with(input, &mut Output::new(output, None))
    }

    /// As [`ModelledGuest::process`], but whenever `output` holds 32,768 controls it is given to
    /// `sink` and begun anew, so that memory stays bounded whatever is unmapped. The last part is
    /// left in `output`.
    ///
    /// # Errors
    /// See [`GuestError`].
    pub fn process_in_parts<'a>(
        &mut self,
        input: &Batch,
        output: &'a mut GuestBatch,
        sink: &'a mut Sink<'a>,
    ) -> Result<(), GuestError> {
        self.deal_with(input, &mut Output::new(output, Some(sink)))
    }

    fn deal_with(&mut self, input: &Batch, output: &mut Output<'_>) -> Result<(), GuestError> {
        let mut index = 0;
        let mut result = Ok(());
        for (controls, runs) in input.segments() {
            let runs = &input.runs[runs];
            result = controls.iter().try_for_each(|(_, control)| {
                index += 1;
                self.control(index - 1, control, output)
            });
            if result.is_ok() {
                result = self.translate_on_time(runs, output);
            }
            if result.is_err() {
                break;
            }
            if let Some(last) = runs.last() {
                self.current = last.vcpu;
            }
            if self.reclaim.is_some() {
                self.time_passes(runs);
            }
        }
        self.work.emit(output);
        result
    }

    fn control(
        &mut self,
        index: usize,
        control: &Control,
        output: &mut Output<'_>,
    ) -> Result<(), GuestError> {
        let refused = |name| Err(GuestError::Architectural { index, name });
        match *control {
            Control::Switch { vcpu, process } => self.switch(vcpu, process, output),
            Control::Map { process, start, bytes, protection } => {
                self.change(process, output, |space, memory, emit| {
                    space.map(memory, start, bytes, protection, emit)
                })
            }
            Control::Unmap { process, start, bytes } => {
                self.change(process, output, |space, memory, emit| {
                    space.unmap(memory, start, bytes, emit)
                })
            }
            Control::Protect { process, start, bytes, protection } => {
                self.change(process, output, |space, memory, emit| {
                    space.protect(memory, start, bytes, protection, emit)
                })
            }
            Control::Populate { process, start, bytes } => {
                self.populate(process, start, bytes, output)
            }
            Control::Fork { parent, child } => self.fork(parent, child, output),
            Control::Exec { process } => self.exec(process, output),
            Control::Exit { process } => {
                self.exit(process, output);
                Ok(())
            }
            Control::RegionOfInterest => {
                self.work.emit(output);
                output.control(Control::RegionOfInterest);
                Ok(())
            }
            Control::OsWork { work, count } => {
                self.work.add(work, u64::from(count));
                Ok(())
            }
            Control::LoadCr3 { .. } => refused("a load of CR3"),
            Control::LoadSegment { .. } => refused("a load of segment registers"),
            Control::SelfBallooned { .. } => refused("memory that was exchanged"),
            Control::Invalidate { .. } => refused("an invalidation"),
            Control::TableAdded { .. } => refused("a new table"),
            Control::TableWrite { .. } => refused("a write to a table"),
            Control::PageCleared { .. } => refused("a cleared page"),
            Control::Fault { .. } => refused("a page fault"),
            Control::TableRetired { .. } => refused("a table that was freed"),
            Control::Prefault { .. } => refused("memory that the host has pages for"),
            Control::Process { .. } => refused("a process of a recorded guest"),
            Control::WrittenOut { .. } => refused("a page that goes to a device"),
        }
    }

    fn acting(&self, context: u64) -> VcpuId {
        acting(&self.cpus, self.current, context)
    }

    fn count(&mut self, work: OsWork) {
        self.work.add(work, 1);
    }
}

/// The vCPU that does the kernel's work for a process: the one of the latest event if the process runs
/// there, else the first on which it runs, else the one of the latest event.
fn acting(cpus: &[Cpu], current: VcpuId, context: u64) -> VcpuId {
    let runs = |i: usize| cpus.get(i).is_some_and(|c| c.loaded == context);
    if runs(usize::from(current.0)) {
        return current;
    }
    (0..cpus.len()).find(|&i| runs(i)).map_or(current, |i| VcpuId(i as u8))
}
