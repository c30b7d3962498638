//! The hypervisor: nested tables built by violations, and shadow tables with KVM's rules, and direct
//! paging with Xen's.

pub mod agile;
pub mod bare_metal;
pub mod direct;
pub mod guest_copies;
pub mod guest_tables;
pub mod nested;
pub mod nested_mmu;
pub mod rmap;
pub mod shadow;
pub mod vm_in_vm;

use nestwalk_tables::{Level, Mode};
use nestwalk_types::PageSize;

/// The largest leaf of `mode` that is not larger than `size`, with its level.
pub fn largest_leaf(mode: &Mode, size: PageSize) -> (Level, PageSize) {
    (1..=mode.levels)
        .rev()
        .filter(|&l| mode.may_be_leaf(l))
        .map(|l| (l, mode.span(l)))
        .find(|(_, s)| *s <= size)
        .unwrap_or((1, PageSize::SIZE_4K))
}
