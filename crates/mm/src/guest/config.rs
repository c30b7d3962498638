//! What a modelled guest is made of, what it counts, and what can go wrong with it.

use crate::balloon::Ballooned;
use crate::daemons::{DaemonConfig, DaemonStats};
use crate::error::MmError;
use crate::guest::reclaim::SwapStats;
use crate::physical::bad_frames::BadFrames;
use crate::physical::fragmentation::Fragmentation;
use crate::physical::size::Size;
use crate::placement::{PagePolicy, PlacementKind};
use crate::placement_stats::PlacementStats;
use crate::space::PrimaryConfig;
use nestwalk_tables::Mode;
use nestwalk_types::ProcessId;

/// What a modelled guest is made of.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct GuestConfig {
    /// Paging mode of the guest.
    pub mode: &'static Mode,
    /// Bytes of guest memory, laid out as [`crate::pc_memory_map`] says.
    pub bytes: u64,
    /// The gap for I/O is reclaimed, and so much stays low: [`crate::reclaimed_memory_map`].
    pub low_bytes: Option<u64>,
    /// Page sizes of anonymous memory.
    pub policy: PagePolicy,
    /// Which frame serves a fault.
    pub placement: PlacementKind,
    /// See [`crate::PhysicalMemory::fragment`].
    pub fragmentation: Fragmentation,
    /// Seed of the fragmentation.
    pub seed: u64,
    /// Faulty frames, which are never given out.
    pub bad_frames: BadFrames,
    /// Bytes of the guest kernel's image.
    pub kernel_bytes: u64,
    /// Process-context identifiers are on (CR4.PCIDE).
    pub pcids: bool,
    /// A load from memory that was never written maps the shared zero page, read-only, where a 4 KiB
    /// page would be mapped. Off: it gets a page of its own.
    pub zero_page: bool,
    /// What becomes a primary region, if the placement has one.
    pub primary: PrimaryConfig,
    /// When the kernel's daemons run, if page sizes or placement ask for any.
    pub daemons: DaemonConfig,
}

impl GuestConfig {
    /// The defaults: 4 KiB pages, no fragmentation, PCIDs where the mode has them (IA-32e paging
    /// only: SDM vol. 3A, "Process-Context Identifiers"), no zero page.
    pub fn new(mode: &'static Mode, bytes: u64) -> Self {
        Self {
            mode,
            bytes,
            policy: PagePolicy::Base,
            placement: PlacementKind::default(),
            low_bytes: None,
            fragmentation: Fragmentation::default(),
            seed: 0,
            bad_frames: BadFrames::default(),
            kernel_bytes: crate::host::KERNEL_BYTES,
            pcids: mode.address_bits() > 32,
            zero_page: false,
            primary: PrimaryConfig::default(),
            daemons: DaemonConfig::default(),
        }
    }
}

/// What a modelled guest has done and holds.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct GuestStats {
    /// Page faults delivered.
    pub faults: u64,
    /// Pages mapped for the first time, by a fault or by populating.
    pub first_touches: u64,
    /// Pages copied because they were written while shared.
    pub copies: u64,
    /// Pages made writable because nothing else mapped them any more.
    pub reuses: u64,
    /// Large pages split.
    pub splits: u64,
    /// Times that no block of a wanted page size was free and a smaller size was used.
    pub fallbacks: u64,
    /// Mappings made because an access was outside of every mapping.
    pub implicit_mappings: u64,
    /// Loads of CR3.
    pub cr3_loads: u64,
    /// Invalidations sent to a vCPU: INVLPG, or a load of the same CR3.
    pub invalidations: u64,
    /// Bytes of page tables now.
    pub table_bytes: u64,
    /// Most bytes of page tables at a time.
    pub peak_table_bytes: u64,
    /// Bytes of memory that processes have now, shared pages counted once.
    pub resident_bytes: u64,
    /// Most bytes of memory that processes had at a time.
    pub peak_resident_bytes: u64,
    /// Bytes that firmware, kernel image and fragmentation hold.
    pub pinned_bytes: u64,
    /// Free bytes.
    pub free_bytes: u64,
    /// Leaf entries for 4 KiB pages now, of all processes.
    pub pages_4k: u64,
    /// For 2 MiB pages.
    pub pages_2m: u64,
    /// For 4 MiB pages.
    pub pages_4m: u64,
    /// For 1 GiB pages.
    pub pages_1g: u64,
    /// Processes alive.
    pub processes: u64,
    /// Bytes of primary regions now.
    pub primary_bytes: u64,
    /// Loads of segment registers.
    pub segment_loads: u64,
    /// Self-ballooning, with [`PlacementKind::PrimaryBalloon`].
    pub balloon: Ballooned,
    /// How pages were placed.
    pub placement: PlacementStats,
    /// What the kernel's daemons have done.
    pub daemons: DaemonStats,
    /// Times that they interrupted a vCPU to have translations removed.
    pub daemon_interrupts: u64,
    /// What the kernel swapped, if it does.
    pub swap: Option<SwapStats>,
}

/// Why the modelled guest cannot go on. What was processed before is in the output.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum GuestError {
    /// No frame is free.
    #[error(
        "process {}, gVA {gva:#x}: the guest's {} of memory are used up, {} by processes and {} by \
         page tables; give the guest more memory",
        process.0, Size(*bytes), Size(*resident), Size(*tables)
    )]
    OutOfMemory {
        /// The process that needed it.
        process: ProcessId,
        /// The address that was to be mapped.
        gva: u64,
        /// Size of guest memory.
        bytes: u64,
        /// Bytes that processes hold.
        resident: u64,
        /// Bytes that page tables hold.
        tables: u64,
    },
    /// A process did what its address space does not allow.
    #[error("process {}: {error}", process.0)]
    Process {
        /// The process.
        process: ProcessId,
        /// What was wrong.
        error: MmError,
    },
    /// The guest cannot be built as configured.
    #[error("guest: {0}")]
    Config(MmError),
    /// The source forks a process into itself.
    #[error("process {} forks into itself: the child must have another number", .0.0)]
    ForkOfItself(ProcessId),
    /// The source says what a kernel does; it needs no modelled guest.
    #[error(
        "control {index} of the batch is {name}, which a captured guest says itself; a modelled \
         guest takes runs and the controls of processes only"
    )]
    Architectural {
        /// Index in the batch's controls.
        index: usize,
        /// Name of the control.
        name: &'static str,
    },
}
