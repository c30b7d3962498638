//! Where a machine has its memory.

use super::size::Size;
use super::{DMA32_END, LOW_RESERVED_BYTES};
use crate::error::MmError;
use nestwalk_types::Address;

const GIB: u64 = 1 << 30;

/// Ranges of RAM, `(first address, bytes)`, of a QEMU `pc` machine with `bytes` of memory.
///
/// All of it lies below 3.5 GiB if it fits there; otherwise 3 GiB do, so that 1 GiB pages fit, and
/// the rest begins at 4 GiB (QEMU, `hw/i386/pc_piix.c`, `pc_init1`, `max_ram_below_4g` and
/// `gigabyte_align`). A VMM has one memslot per range.
pub fn pc_memory_map<O: Address>(bytes: u64) -> Vec<(O, u64)> {
    if bytes < 0xe000_0000 {
        return vec![(O::new(0), bytes)];
    }
    vec![(O::new(0), 3 * GIB), (O::new(DMA32_END), bytes - 3 * GIB)]
}

/// What stays below 4 GiB when the gap for I/O is reclaimed: 256 MiB. Assumed: the kernel's image
/// is
/// there, and memory for devices with 32-bit addresses (64 MiB of bounce buffers in Linux,
/// `IO_TLB_DEFAULT_SIZE`); MICRO 2014 gives no figure that is known here.
pub const LOW_MEMORY_BYTES: u64 = 256 << 20;

/// As [`pc_memory_map`], after memory below the gap for I/O was unplugged, but for `low` bytes, and
/// memory above 4 GiB was extended by as much (MICRO 2014): one range holds nearly everything.
///
/// # Errors
/// There is no more memory than what stays low, or that reaches into the gap.
pub fn reclaimed_memory_map<O: Address>(bytes: u64, low: u64) -> Result<Vec<(O, u64)>, MmError> {
    let wrong = |reason: String| MmError::PhysicalMemory { bytes, reason };
    if low >= bytes {
        let what = "the gap for I/O cannot be reclaimed, because all of it stays below";
        return Err(wrong(format!("{what} ({}); give more memory", Size(low))));
    }
    if low > 3 * GIB || low & 0xfff != 0 || low <= LOW_RESERVED_BYTES {
        let what = "must be whole pages, more than 1 MiB, and end below the gap for I/O at 3 GiB";
        return Err(wrong(format!("what stays low ({}) {what}", Size(low))));
    }
    Ok(vec![(O::new(0), low), (O::new(DMA32_END), bytes - low)])
}
