//! The hypervisor: nested tables built by violations, and shadow tables with KVM's rules, and direct
//! paging with Xen's.

pub mod agile;
pub mod contiguous;
pub mod direct;
pub mod nested_mmu;
pub mod options;
pub mod rmap;
pub mod segments;
pub mod shadow;

use crate::scheme::{MachineError, Platform};
use nestwalk_tables::{Level, Mode};
use nestwalk_types::{Gpa, Hpa, PageSize};

/// The host page that holds `gpa`, faulted in if it was not there: its first address and size. The
/// host kernel's work is counted.
///
/// # Errors
/// Host memory is exhausted, or the address is no guest memory.
pub fn host_page(platform: &mut Platform, gpa: Gpa) -> Result<(Hpa, PageSize), MachineError> {
    let Some(host) = &mut platform.host else {
        return Err(MachineError::NoTableFrame {
            machine: String::new(),
            what: "guest without a host",
        });
    };
    let page = host.ensure(gpa)?;
    if page.fresh {
        platform.cpu.counters.host_faults += 1;
        platform.cpu.counters.host_pages_cleared += page.size.base_pages();
    }
    Ok((page.frame, page.size))
}

/// The largest leaf of `mode` that is not larger than `size`, with its level.
pub fn largest_leaf(mode: &Mode, size: PageSize) -> (Level, PageSize) {
    (1..=mode.levels)
        .rev()
        .filter(|&l| mode.may_be_leaf(l))
        .map(|l| (l, mode.span(l)))
        .find(|(_, s)| *s <= size)
        .unwrap_or((1, PageSize::SIZE_4K))
}
