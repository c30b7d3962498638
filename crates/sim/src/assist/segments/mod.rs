//! Direct segments: what can be set, the guest's segments on each core, and virtual machines with a
//! VMM segment, whose host keeps guest memory contiguous.
//!
//! The software here creates the VMM segment when the machine is switched on. Everything that
//! changes segments while the machine runs is a method of [`SegmentedVm`], for whoever decides
//! about it: compaction of the host, self-ballooning, reclaim of the I/O gap.

mod config;
mod guest;
mod vm;
mod vmm_segment;

pub use config::{Check, DS, DUAL, GUEST, SegmentConfig, VMM};
pub use guest::GuestSegments;
pub use vm::SegmentedVm;
