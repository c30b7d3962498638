//! What can go wrong in memory management, and what would be right.

use crate::physical::size::Size;
use crate::space::Access;
use nestwalk_tables::Mode;
use nestwalk_types::{PageSize, Protection};

/// An error of an address space or of physical memory. Addresses are those that the caller gave.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum MmError {
    /// No frame for a page or a table.
    #[error("{space} {address:#x}: no {size} frame is free for it; give more memory")]
    OutOfMemory {
        /// Space of the address: `gVA` or `hVA`.
        space: &'static str,
        /// The address that was to be mapped.
        address: u64,
        /// The smallest size that was tried.
        size: PageSize,
    },
    /// The address is in no VMA.
    #[error("{space} {address:#x}: in no mapping; map the range before it is used")]
    NoMapping {
        /// Space of the address.
        space: &'static str,
        /// The address.
        address: u64,
    },
    /// The VMA forbids the access: a program would get SIGSEGV.
    #[error(
        "{space} {address:#x}: {access} is not allowed by its mapping (write {}, execute {}); \
         map or protect the range with the permission first",
        protection.write, protection.execute
    )]
    Protection {
        /// Space of the address.
        space: &'static str,
        /// The address.
        address: u64,
        /// What was tried.
        access: Access,
        /// What is allowed.
        protection: Protection,
    },
    /// The mode cannot translate the address.
    #[error(
        "{space} {address:#x}: outside of the address space of {} paging, which has {} bits; \
         use a smaller footprint or a mode with more bits", mode.name, mode.address_bits()
    )]
    OutOfRange {
        /// Space of the address.
        space: &'static str,
        /// The first address that is outside.
        address: u64,
        /// The paging mode.
        mode: &'static Mode,
    },
    /// A range is not made of whole pages.
    #[error("{space} {start:#x}, {bytes} bytes: start and length must be multiples of 4096")]
    Unaligned {
        /// Space of the address.
        space: &'static str,
        /// First address.
        start: u64,
        /// Length in bytes.
        bytes: u64,
    },
    /// The mode has no leaf of the policy's size.
    #[error("{} paging has no {size} pages; it has {}", mode.name, sizes(mode))]
    NoSuchSize {
        /// The paging mode.
        mode: &'static Mode,
        /// The size that was asked for.
        size: PageSize,
    },
    /// The physical memory cannot be built.
    #[error("{} of physical memory: {reason}", Size(*bytes))]
    PhysicalMemory {
        /// Size that was asked for.
        bytes: u64,
        /// What is wrong and what would be right.
        reason: String,
    },
    /// The degree of fragmentation is no share.
    #[error("degree of fragmentation {0}: must be from 0 to 1")]
    Fragmentation(f64),
    /// Self-ballooning that cannot be.
    #[error("the balloon must take {}: {reason}", Size(*bytes))]
    Balloon {
        /// Bytes that it must take.
        bytes: u64,
        /// What is wrong and what would be right.
        reason: String,
    },
    /// Numbers of free blocks that cannot be.
    #[error("free blocks: {0}")]
    FreeBlocks(String),
    /// Faulty frames that cannot be.
    #[error("{bad} bad pages: {reason}")]
    BadPages {
        /// How many, or the number of the frame.
        bad: u64,
        /// What is wrong and what would be right.
        reason: String,
    },
    /// A segment that the memory slots do not hold.
    #[error("segment of {bytes} bytes at gPA {gpa:#x}: {reason}")]
    Segment {
        /// First guest-physical address.
        gpa: u64,
        /// Length in bytes.
        bytes: u64,
        /// What is wrong and what would be right.
        reason: String,
    },
    /// An address that no memslot holds.
    #[error("{space} {address:#x}: in no memory slot; the slots hold {slots}")]
    NoSlot {
        /// Space of the address: `gPA`.
        space: &'static str,
        /// The address.
        address: u64,
        /// The slots' ranges.
        slots: String,
    },
}

fn sizes(mode: &Mode) -> String {
    mode.page_sizes().map(PageSize::short).collect::<Vec<_>>().join(", ")
}
