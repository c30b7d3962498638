//! Memory management for the guest (gVA to gPA) and the host (hVA to hPA) alike, and the modelled
//! guest.
//!
//! ```text
//! Buddy            free 4 KiB frames of one zone, blocks up to 1 GiB
//! PhysicalMemory   zones over a memory map, shared frames, initial fragmentation
//! placement        page sizes (4k, thp, 2m, 4m, 1g) and which frame serves a fault
//! AddressSpace     mappings and page tables: fault, fork, unmap, protect; tells an Observer
//! ModelledGuest    processes on vCPUs: a plain trace in, tables, CR3 loads, invalidations out
//! Remap            a recorded guest's stream in, that of its processes out, for a ModelledGuest
//! ObservedGuest    mirrors the tables of a recorded guest: its stream in, the same with gPAs out
//! HostMemory       guest RAM in the VMM process: gPA to the host page behind it
//! ```
//!
//! Behaviour follows Linux on x86-64, whose functions are named where they are modelled.

mod balloon;
mod daemons;
mod error;
mod guest;
mod host;
mod observed;
mod physical;
mod placement;
mod placement_stats;
mod remap;
mod space;
mod supply;
mod translations;

pub use balloon::{Ballooned, Exchange, HOT_PLUG_BYTES};
pub use daemons::{DaemonConfig, DaemonStats, KhugepagedConfig, RangerConfig};
pub use error::MmError;
pub use guest::{
    DYNAMIC_PCIDS, GuestConfig, GuestError, GuestStats, ModelledGuest, PageChoice, ProcessPage,
    Sink, SwapStats,
};
pub use host::compaction::Compacted;
pub use host::daemons::HostDaemonRun;
pub use host::segment::{HostSegment, SegmentChange, SegmentRequest};
pub use host::{HostConfig, HostMemory, HostPage, KERNEL_BYTES, Slot};
pub use observed::{
    DROP_REASONS, DropReason, Dropped, DroppedRun, LevelWrites, ObservedError, ObservedGuest,
    ObservedStats,
};
pub use physical::bad_frames::BadFrames;
pub use physical::buddy::{Buddy, FreeError, LINUX_MAX_ORDER, MAX_ORDER};
pub use physical::fragmentation::Fragmentation;
pub use physical::free_blocks::{FREE_BLOCKS, FreeBlocks};
pub use physical::runs::Run as FrameRun;
pub use physical::{
    DMA32_END, KERNEL_IMAGE_AT, LOW_MEMORY_BYTES, LOW_RESERVED_BYTES, MAX_PHYSICAL_BYTES,
    PhysicalMemory, pc_memory_map, reclaimed_memory_map,
};
pub use placement::{
    Ca, CaConfig, Eager, FirstFit, HostPages, HugeTlb, Ideal, Linux, Outcome, PLACEMENTS,
    POOL_PERCENT, PagePolicy, Placed, Placement, PlacementKind, PteMagnet, Request, Reserve, TIERS,
    Tiered, Tiers,
};
pub use placement_stats::PlacementStats;
pub use remap::{Mappings, Remap, RemapError, RemapStats, Survey};
pub use space::{
    Access, AddressSpace, Contiguous, Counters, FLUSH_CEILING, Flush, GATHER_PAGES, Mapped, Memory,
    Observer, PrimaryConfig, SpaceConfig, SwapSpace, Unobserved, Vma, VmaSet,
};
