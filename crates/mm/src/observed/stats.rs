//! What an observed guest counts, what it drops, and why it may not go on.

use nestwalk_tables::MAX_LEVELS;
use nestwalk_types::{Gpa, Gva, Run, VcpuId};
use std::fmt;

/// Stores to the tables of one level, by what they did to the entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LevelWrites {
    /// An entry that was not present became present.
    pub set: u64,
    /// A present entry became not present.
    pub cleared: u64,
    /// A present entry became another one (permissions, accessed and dirty bits, frame), or one that
    /// was not present stayed so.
    pub changed: u64,
}

impl LevelWrites {
    /// All of them.
    pub const fn total(&self) -> u64 {
        self.set + self.cleared + self.changed
    }
    pub(super) const fn count(&mut self, was_present: bool, is_present: bool) {
        match (was_present, is_present) {
            (false, true) => self.set += 1,
            (true, false) => self.cleared += 1,
            _ => self.changed += 1,
        }
    }
    pub(super) const fn add(&mut self, other: &Self) {
        self.set += other.set;
        self.cleared += other.cleared;
        self.changed += other.changed;
    }
}

/// Why a run is not handed on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum DropReason {
    /// The tables have no translation.
    NotMapped,
    /// A store, but an entry on the way forbids stores.
    NotWritable,
    /// A fetch, but an entry on the way forbids fetches.
    NotExecutable,
    /// User mode, but an entry on the way is for supervisors.
    NotUser,
    /// The address is no guest RAM but a device's: no memory of the host is behind it.
    Device,
}

/// Every reason, in the order of [`ObservedStats::dropped`].
pub const DROP_REASONS: [DropReason; 5] = [
    DropReason::NotMapped,
    DropReason::NotWritable,
    DropReason::NotExecutable,
    DropReason::NotUser,
    DropReason::Device,
];

impl DropReason {
    /// Key in results.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotMapped => "not_mapped",
            Self::NotWritable => "not_writable",
            Self::NotExecutable => "not_executable",
            Self::NotUser => "not_user",
            Self::Device => "device",
        }
    }
}

/// How much was dropped for one reason.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Dropped {
    /// Runs.
    pub runs: u64,
    /// Accesses in them.
    pub accesses: u64,
}

/// A run that was dropped: the first few are kept for messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DroppedRun {
    /// Runs of the stream before it.
    pub index: u64,
    /// The run.
    pub run: Run,
    /// Why.
    pub reason: DropReason,
}

impl fmt::Display for DroppedRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { index, run, reason } = self;
        let access = match (run.flags.is_store(), run.flags.is_fetch()) {
            (true, _) => "store to",
            (_, true) => "fetch from",
            _ => "load from",
        };
        let mode = if run.flags.is_kernel() { "kernel" } else { "user" };
        let what = match reason {
            DropReason::NotMapped => "the tables do not map it",
            DropReason::NotWritable => "the tables forbid stores",
            DropReason::NotExecutable => "the tables forbid fetches",
            DropReason::NotUser => "the tables forbid user mode",
            DropReason::Device => "it is a device's",
        };
        let (vcpu, gva, pc) = (run.vcpu.0, run.gva, run.pc.value());
        write!(f, "run {index}: vCPU {vcpu}, {mode} {access} {gva:?} at pc {pc:#x}: {what}")
    }
}

/// What an observed guest has seen and holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ObservedStats {
    /// Runs seen, dropped ones included.
    pub runs: u64,
    /// Accesses seen, dropped ones included.
    pub accesses: u64,
    /// Accesses in kernel mode among them.
    pub kernel_accesses: u64,
    /// Page faults delivered to the guest kernel.
    pub faults: u64,
    /// Of these, the ones for which an entry was present: protection.
    pub protection_faults: u64,
    /// Of these, the ones by a store.
    pub write_faults: u64,
    /// Of these, the ones by a fetch.
    pub fetch_faults: u64,
    /// Of these, the ones met in kernel mode.
    pub kernel_faults: u64,
    /// Stores to tables by the level of the table: 1 is the leaf level; 0 has those to pages that no
    /// table and no CR3 has pointed to since.
    pub table_writes: [LevelWrites; MAX_LEVELS + 1],
    /// Stores that the stream calls stores to a table, to pages that are none: a fault of the stream.
    pub stray_writes: u64,
    /// Pages that became tables.
    pub tables_new: u64,
    /// Table pages now. A table that the kernel freed is one until the stream says that the page is
    /// used for something else.
    pub tables: u64,
    /// Most table pages at a time.
    pub peak_tables: u64,
    /// Loads of CR3.
    pub cr3_loads: u64,
    /// Loads of the root that CR3 had: Linux flushes a TLB so.
    pub cr3_reloads: u64,
    /// INVLPG, INVPCID and changes of CR4.PGE.
    pub invalidations: u64,
    /// Processes that ran, by their numbers in the guest; 0 if the stream does not say.
    pub processes: u64,
    /// Runs that were not handed on, by reason, in the order of [`DROP_REASONS`].
    pub dropped: [Dropped; DROP_REASONS.len()],
}

impl ObservedStats {
    /// Dropped for all reasons.
    pub fn dropped_total(&self) -> Dropped {
        self.dropped.iter().fold(Dropped::default(), |sum, d| Dropped {
            runs: sum.runs + d.runs,
            accesses: sum.accesses + d.accesses,
        })
    }
    /// Stores to tables of all levels.
    pub fn table_writes_total(&self) -> u64 {
        self.table_writes.iter().map(LevelWrites::total).sum()
    }
}

/// Why an observed guest cannot go on. What was processed before is in the output.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ObservedError {
    /// The stream names a paging mode that is not known.
    #[error("the recorded guest has {name} paging; known are {}", modes())]
    NoSuchMode {
        /// The name.
        name: String,
    },
    /// The stream's guest has no vCPU or no memory.
    #[error("the recorded guest has {vcpus} vCPUs and {bytes} bytes of memory; neither may be 0")]
    Empty {
        /// vCPUs.
        vcpus: u8,
        /// Bytes of memory.
        bytes: u64,
    },
    /// An event of a vCPU that the guest does not have.
    #[error("event of vCPU {}, but the recorded guest has {vcpus}", vcpu.0)]
    NoSuchVcpu {
        /// The vCPU.
        vcpu: VcpuId,
        /// How many there are.
        vcpus: usize,
    },
    /// The source says what a process does; a recorded guest has a kernel that answers.
    #[error(
        "control {index} of the batch is {name}, which a source without page tables says; \
         a recorded guest says what its kernel did to its tables"
    )]
    OfProcess {
        /// Index in the batch's controls.
        index: usize,
        /// Name of the control.
        name: &'static str,
    },
    /// An event about memory that the guest does not have.
    #[error(
        "control {index} of the batch is about {bytes} bytes at {gpa:?}; the recorded guest has {memory} \
         bytes of memory, the last below {end:?}"
    )]
    OutsideMemory {
        /// Index in the batch's controls.
        index: usize,
        /// First address.
        gpa: Gpa,
        /// Length in bytes.
        bytes: u64,
        /// Bytes of guest memory.
        memory: u64,
        /// End of guest memory.
        end: Gpa,
    },
    /// No address space was loaded, or the address cannot be translated.
    #[error("vCPU {}: {gva:?} is not mapped", vcpu.0)]
    NotMapped {
        /// The vCPU.
        vcpu: VcpuId,
        /// The address.
        gva: Gva,
    },
}

fn modes() -> String {
    nestwalk_tables::MODES.map(|m| m.name).join(", ")
}
