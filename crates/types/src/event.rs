//! The one vocabulary of events that every source speaks.
//!
//! Accesses dominate, so they travel as *page runs* ([`Run`]); everything else is a [`Control`] that
//! takes effect before the run at its position. A plain source (a trace, a workload) emits runs and
//! the process-level controls; the modelled guest turns those into the architectural controls
//! (table writes, CR3 loads, invalidations, faults), which a captured guest carries by itself.

use crate::{Gpa, Gva, PageSize};

/// Index of a virtual CPU, from 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct VcpuId(pub u8);

/// A process of the guest, as numbered by the source.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct ProcessId(pub u32);

/// What an access does to memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum AccessKind {
    /// Data read.
    Load,
    /// Data write (a read-modify-write counts as a write).
    Store,
    /// Instruction fetch.
    Fetch,
}

/// Properties of a run, as bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub struct RunFlags(u8);

impl RunFlags {
    /// The first access of the run is a store. A run that begins with a load has no store.
    pub const STORE: Self = Self(1);
    /// Instruction fetches.
    pub const FETCH: Self = Self(2);
    /// Kernel mode (CPL 0).
    pub const KERNEL: Self = Self(4);

    /// The flags of an access in user mode.
    #[inline]
    pub const fn of(kind: AccessKind) -> Self {
        match kind {
            AccessKind::Load => Self(0),
            AccessKind::Store => Self::STORE,
            AccessKind::Fetch => Self::FETCH,
        }
    }
    /// Both sets of flags.
    #[inline]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
    /// These flags if so, and none if not.
    #[inline]
    pub const fn when(self, so: bool) -> Self {
        Self(self.0 * so as u8)
    }
    /// Whether all bits of `other` are set.
    #[inline]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
    /// Whether the run begins with a store.
    #[inline]
    pub const fn is_store(self) -> bool {
        self.contains(Self::STORE)
    }
    /// Whether the run is of instruction fetches.
    #[inline]
    pub const fn is_fetch(self) -> bool {
        self.contains(Self::FETCH)
    }
    /// Whether the run was made in kernel mode.
    #[inline]
    pub const fn is_kernel(self) -> bool {
        self.contains(Self::KERNEL)
    }
    /// The bits: 0 for stores, 1 for fetches, 2 for kernel mode.
    #[inline]
    pub const fn bits(self) -> u8 {
        self.0
    }
    /// [`RunFlags::KERNEL`] as a number if it is set, and 0 if not.
    #[inline]
    pub(crate) const fn kernel_bit(self) -> u64 {
        (self.0 & Self::KERNEL.0) as u64
    }
}

/// Consecutive accesses of one vCPU to one 4 KiB page, 32 bytes.
///
/// Consecutive means: no other data page was accessed in between (for a data run), or no other page
/// was fetched from (for a fetch run). The first access decides everything that a TLB sees; the
/// others hit the entry it left most recently used, so a run is exact for every TLB whose
/// replacement depends on order of use alone. A store after loads begins a new run. Splitting a run
/// never changes a result.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Run {
    /// Address of the first access.
    pub gva: Gva,
    /// Instruction address of the first access; for a fetch run the same as `gva`. 0 if unknown.
    pub pc: Gva,
    /// Which of the page's 64 cache lines were touched, bit i for bytes `64*i..64*i+64`.
    pub lines: u64,
    /// Accesses in the run, at least 1. A host that touches a page again, for what a filtered recording
    /// has counted already, counts 0.
    pub count: u16,
    /// Instructions retired with the run; 0 where another run carries them.
    pub instructions: u16,
    /// The vCPU.
    pub vcpu: VcpuId,
    /// Store, fetch, kernel.
    pub flags: RunFlags,
}

/// Permissions of a mapping. Reading is always allowed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Protection {
    /// Stores are allowed.
    pub write: bool,
    /// Fetches are allowed.
    pub execute: bool,
}

impl Protection {
    /// Read only.
    pub const READ: Self = Self { write: false, execute: false };
    /// Read and write.
    pub const READ_WRITE: Self = Self { write: true, execute: false };
    /// Read and execute.
    pub const READ_EXECUTE: Self = Self { write: false, execute: true };
    /// Everything: what a trace without mappings is given.
    pub const ALL: Self = Self { write: true, execute: true };
}

/// What an invalidation removes (SDM vol. 3A, "Invalidation of TLBs and Paging-Structure Caches").
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Invalidation {
    /// INVLPG: one page in the current PCID, global entries too, and all paging-structure-cache
    /// entries of the current PCID.
    Page(Gva),
    /// INVPCID type 0: one page in the given PCID, except global entries.
    PageInPcid(Gva, u16),
    /// INVPCID type 1: everything tagged with the PCID, except global entries.
    Pcid(u16),
    /// INVPCID type 3: every PCID, except global entries.
    AllButGlobal,
    /// INVPCID type 2, or a change of CR4.PGE: everything, global entries too.
    All,
}

/// Error code of a page fault (SDM vol. 3A, "Page-Fault Exceptions").
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub struct FaultCode {
    /// The page was present: a protection violation.
    pub present: bool,
    /// The access was a write.
    pub write: bool,
    /// The access was made in user mode.
    pub user: bool,
    /// The access was an instruction fetch.
    pub fetch: bool,
}

/// What a guest kernel loads into the registers of a direct segment (BASE, LIMIT, OFFSET) and into the
/// filter beside them: guest-virtual memory that is translated by an addition.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GuestSegment {
    /// First address, a multiple of 4 KiB.
    pub base: Gva,
    /// Length in bytes, a multiple of 4 KiB.
    pub bytes: u64,
    /// Where the first address is.
    pub target: Gpa,
    /// Numbers (gVA / 4096) of the pages in it that escape to the page tables, ascending.
    pub escaped: Vec<u64>,
}

/// Everything that is not an access. Takes effect before the run at its position in the batch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Control {
    // ---- process level: said by plain sources, consumed by the modelled guest ----
    /// The vCPU runs this process from now on. A process that was never mentioned comes into being.
    Switch {
        /// Where.
        vcpu: VcpuId,
        /// Which process.
        process: ProcessId,
    },
    /// mmap of anonymous memory: `start` and `bytes` are multiples of 4 KiB.
    Map {
        /// Whose address space.
        process: ProcessId,
        /// First address.
        start: Gva,
        /// Length in bytes.
        bytes: u64,
        /// Permissions.
        protection: Protection,
    },
    /// Every page of the range that is not there yet is made present and written once, as
    /// `madvise(MADV_POPULATE_WRITE)` does. A source asks for at most [`Control::POPULATE_BYTES`] at
    /// a time, so that the answer fits a batch.
    Populate {
        /// Whose address space.
        process: ProcessId,
        /// First address.
        start: Gva,
        /// Length in bytes.
        bytes: u64,
    },
    /// What was before was set-up: counting begins here. A source says it once at most.
    RegionOfInterest,
    /// munmap of everything in the range.
    Unmap {
        /// Whose address space.
        process: ProcessId,
        /// First address.
        start: Gva,
        /// Length in bytes.
        bytes: u64,
    },
    /// mprotect of everything in the range.
    Protect {
        /// Whose address space.
        process: ProcessId,
        /// First address.
        start: Gva,
        /// Length in bytes.
        bytes: u64,
        /// The new permissions.
        protection: Protection,
    },
    /// fork: `child` gets a copy-on-write copy of `parent`'s memory.
    Fork {
        /// The process that forks.
        parent: ProcessId,
        /// The new process.
        child: ProcessId,
    },
    /// execve: the process loses all mappings.
    Exec {
        /// Which process.
        process: ProcessId,
    },
    /// The process ends and its memory is freed.
    Exit {
        /// Which process.
        process: ProcessId,
    },

    // ---- architectural: said by a captured guest or by the modelled guest ----
    /// MOV to CR3.
    LoadCr3 {
        /// Where.
        vcpu: VcpuId,
        /// Guest-physical address of the root table.
        root: Gpa,
        /// Process-context identifier, 12 bits; 0 when PCIDs are off.
        pcid: u16,
        /// Bit 63 was set: nothing is invalidated.
        keep: bool,
    },
    /// The guest kernel loaded the registers of the process's direct segment: at a context switch, and
    /// when the segment is created, grows, shrinks or goes. Said by modelled guests with primary regions
    /// alone; hardware without the registers ignores it.
    LoadSegment {
        /// Where.
        vcpu: VcpuId,
        /// The segment; `None` turns it off (BASE = LIMIT).
        segment: Option<Box<GuestSegment>>,
    },
    /// Self-ballooning: the guest's balloon driver has given pages to the VMM, and has as much new
    /// contiguous memory above the end of the old. Said by modelled guests alone.
    SelfBallooned {
        /// Given pages: first address and number of 4 KiB pages of each range, ascending.
        pages: Box<[(Gpa, u64)]>,
        /// First address of the new memory.
        start: Gpa,
        /// Its length in bytes.
        bytes: u64,
    },
    /// The guest executed an invalidation on this vCPU (a shootdown is one on each vCPU).
    Invalidate {
        /// Where.
        vcpu: VcpuId,
        /// What is removed.
        what: Invalidation,
    },
    /// A page-table page is in use from now on; `entries` are its contents, `None` if the kernel
    /// cleared it just now by stores that the stream does not show. A captured guest, whose stores are
    /// runs of the stream, always says the contents.
    TableAdded {
        /// The vCPU that allocated it.
        vcpu: VcpuId,
        /// Guest-physical address of the 4 KiB page.
        gpa: Gpa,
        /// Contents when first seen.
        entries: Option<Box<[u64; 512]>>,
    },
    /// The guest kernel stored to a page-table page.
    TableWrite {
        /// The vCPU that stored.
        vcpu: VcpuId,
        /// Guest-physical address of the entry.
        gpa: Gpa,
        /// The whole entry after the store.
        value: u64,
    },
    /// The guest kernel cleared or filled a fresh page through its own mapping before handing it to
    /// a process. A former page-table page is one no more from here on.
    PageCleared {
        /// The vCPU that stored.
        vcpu: VcpuId,
        /// Guest-physical address of the page.
        gpa: Gpa,
        /// Its size.
        size: PageSize,
    },
    /// The guest's kernel has given a page to a device, which reads it from memory: it is swapped. Said
    /// by modelled guests alone.
    WrittenOut {
        /// The vCPU whose kernel did it.
        vcpu: VcpuId,
        /// Guest-physical address of the 4 KiB page.
        gpa: Gpa,
    },
    /// The guest stored to a page that was a table until the kernel took it out of its tables: it is
    /// no table from here on. Said by a captured guest, whose own stores are runs of the stream.
    TableRetired {
        /// The vCPU that stored.
        vcpu: VcpuId,
        /// Guest-physical address of the 4 KiB page.
        gpa: Gpa,
    },
    /// The guest had used this memory before the stream begins, so the host has pages behind it
    /// already. Said by a captured guest, before its first run.
    Prefault {
        /// First guest-physical address, a multiple of 4 KiB.
        start: Gpa,
        /// Length in bytes, a multiple of 4 KiB.
        bytes: u64,
    },
    /// The vCPU runs this process from here on; it says nothing about translation.
    Process {
        /// Where.
        vcpu: VcpuId,
        /// Root table of its address space.
        root: Gpa,
        /// Its number in the guest (Linux, `tgid`).
        id: ProcessId,
        /// Its name in the guest (Linux, `comm`), at most 15 bytes.
        name: Box<str>,
    },
    /// A page fault was delivered to the guest kernel. The access that caused it comes later, after
    /// the kernel's answer.
    Fault {
        /// Where.
        vcpu: VcpuId,
        /// The address.
        gva: Gva,
        /// Why.
        code: FaultCode,
    },
    /// Work of the guest kernel that the access stream does not show, as a number of occurrences of
    /// a named operation; the cost model prices it and every machine pays the same.
    OsWork {
        /// Which operation.
        work: OsWork,
        /// How many.
        count: u32,
    },
}

macro_rules! os_work {
    ($($variant:ident $key:literal $unit:literal $meaning:literal;)*) => {
        /// Operations of the guest kernel that cost time in every machine alike.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
        pub enum OsWork {
            $(#[doc = $meaning] $variant,)*
        }
        impl OsWork {
            /// All kinds, in the order of their counters.
            pub const ALL: [Self; [$($key),*].len()] = [$(Self::$variant),*];
            /// Key in results, unit and meaning of each, in the same order.
            pub const ROWS: [(&'static str, &'static str, &'static str); Self::ALL.len()] =
                [$(($key, $unit, $meaning)),*];
        }
    };
}

// A page's copying is counted apart where daemons move it or make a large page of it.
os_work! {
    PageFault "page_faults" "count" "page faults answered";
    PageCopied "pages_copied" "4 KiB pages" "copied for copy-on-write, or by daemons";
    Fork "forks" "count" "processes forked";
    Exec "execs" "count" "programs replaced";
    Exit "exits" "count" "processes ended";
    ContextSwitch "context_switches" "count" "switches from one process to another";
    PageScanned "pages_scanned" "4 KiB pages" "daemons: pages looked at";
    PageMigrated "pages_migrated" "count"
        "daemons: pages, of any size, unmapped to be mapped elsewhere";
    Collapse "collapses" "count" "daemons: large pages made of small ones in another place";
    Shootdown "shootdowns" "count" "daemons: vCPUs interrupted to have translations removed";
}

impl OsWork {
    /// Key in results.
    pub const fn name(self) -> &'static str {
        Self::ROWS[self.index()].0
    }
    /// Index of the counter in [`OsWork::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }
}

impl Control {
    /// Most bytes that one [`Control::Populate`] may ask for: 16 MiB.
    pub const POPULATE_BYTES: u64 = 16 << 20;
}

const _: () = assert!(size_of::<Run>() == 32);
