//! What happens to a machine beside accesses.

use crate::hardware::Request;
use nestwalk_types::{Gpa, GuestSegment, Invalidation, PageSize, VcpuId};

/// What happens to a machine beside accesses. All of it is off the path of a walk.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// The region of interest begins: counters are zero again.
    RegionOfInterest,
    /// The page of `size` at `at` no longer backs guest memory as it did: the host took it back or
    /// moved it, or (`promoted`) it is one larger page now, where it is. No translation of it may
    /// stay, so that the next use maps what there is.
    HostChanged {
        /// First guest-physical address.
        at: Gpa,
        /// Size of the host's page.
        size: PageSize,
        /// Smaller pages have become this one.
        promoted: bool,
    },
    /// The guest is about to give pages to the VMM, scattered over its memory.
    Ballooning,
    /// The guest has new memory; the host has it already.
    MemoryAdded {
        /// First address.
        start: Gpa,
        /// Length.
        bytes: u64,
    },
    /// The guest loaded CR3.
    LoadCr3 {
        /// On which vCPU.
        vcpu: VcpuId,
        /// The PCID.
        pcid: u16,
        /// Translations of the PCID stay.
        keep: bool,
    },
    /// The guest loaded the registers of its process's segment, or cleared them.
    LoadSegment {
        /// On which vCPU.
        vcpu: VcpuId,
        /// The segment.
        segment: Option<&'a GuestSegment>,
    },
    /// The guest invalidated translations.
    Invalidate {
        /// On which vCPU.
        vcpu: VcpuId,
        /// Which.
        what: Invalidation,
    },
    /// The guest stored to an entry of one of its tables; the store is done.
    TableStore {
        /// By which vCPU.
        vcpu: VcpuId,
        /// Address of the entry.
        at: Gpa,
        /// Its value before.
        old: u64,
        /// Its value now.
        new: u64,
    },
    /// A page of the guest is a table from now on, or its contents were announced again; the guest's
    /// tables have them.
    TableAdded {
        /// By which vCPU.
        vcpu: VcpuId,
        /// The page.
        at: Gpa,
    },
    /// The guest stored to a page that was one of its tables, and no longer is.
    TableRetired {
        /// By which vCPU.
        vcpu: VcpuId,
        /// The page.
        at: Gpa,
    },
    /// The guest kernel wrote a whole page through its own mapping: a fresh page or a fresh table.
    PageWritten {
        /// By which vCPU.
        vcpu: VcpuId,
        /// First address.
        at: Gpa,
        /// How much.
        size: PageSize,
    },
    /// The guest had used this memory before the stream began: the host has pages behind it, and
    /// whatever tables its hypervisor keeps by guest-physical address map them. Nothing of this is
    /// counted.
    Prefault {
        /// First address.
        start: Gpa,
        /// Length.
        bytes: u64,
    },
    /// While updates are deferred ([`super::Platform::deferred`]): an access has missed the TLBs
    /// and is about to walk.
    AccessMissed {
        /// The access.
        request: &'a Request,
    },
    /// The walk after [`super::Handled::RetryOnce`] is over.
    RetryEnded,
    /// The guest ran before the stream began, and this vCPU has loaded its first root: whatever tables
    /// the hypervisor keeps by guest-virtual address map what that address space has used. Nothing of
    /// this is counted.
    WarmStart {
        /// Which vCPU.
        vcpu: VcpuId,
    },
}
