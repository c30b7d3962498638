//! Hardware profiles: data files whose every number names its source.

mod arrays;
mod base;
mod check;
mod clock;
mod describe;

pub use arrays::{EntryCacheProfile, IndexProfile, PcidProfile, TlbProfile, parse_page_size};
pub use base::{ALIASES, BUILT_IN, is_built_in};
pub use clock::Clock;

use crate::energy::EnergyProfile;
use crate::geometry::Geometry;
use nestwalk_tables::Level;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A number and where it comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sourced {
    /// The number, in the unit of its key.
    pub value: f64,
    /// Paper, manual or measurement; or `derived: ...`, or `fitted: ...`.
    pub source: String,
}

/// A table of a profile that has nothing but numbers: a row for each, its key and its meaning.
macro_rules! numbers {
    ($(#[$doc:meta])* $name:ident $table:literal { $($key:ident: $meaning:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $name {
            $(#[doc = $meaning] pub $key: $crate::profile::Sourced,)*
        }
        impl $name {
            /// Key and meaning of each number.
            pub const ROWS: &'static [(&'static str, &'static str)] =
                &[$((stringify!($key), $meaning)),*];
            /// All numbers, with the keys that they have in a profile.
            pub(crate) fn numbers(&self) -> Vec<(&'static str, &$crate::profile::Sourced)> {
                vec![$((concat!($table, ".", stringify!($key)), &self.$key)),*]
            }
        }
    };
}
pub(crate) use numbers;

/// One walk cache or nested TLB.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArrayProfile {
    /// Entries in all.
    pub entries: u32,
    /// Entries per set.
    pub ways: u32,
    /// Where the numbers come from.
    pub source: String,
}

/// Paging-structure caches, named by the entry that they hold. A missing one does not exist.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct WalkCacheProfile {
    /// Entries of page directories: takes a walk to the leaf table.
    pub pde: Option<ArrayProfile>,
    /// Entries of page-directory-pointer tables: takes a walk to the page directory.
    pub pdpte: Option<ArrayProfile>,
    /// Entries of level 4.
    pub pml4e: Option<ArrayProfile>,
    /// Entries of level 5.
    pub pml5e: Option<ArrayProfile>,
}

impl WalkCacheProfile {
    /// The cache that takes a walk to a table of `level`.
    pub const fn to_level(&self, level: Level) -> Option<&ArrayProfile> {
        match level {
            1 => self.pde.as_ref(),
            2 => self.pdpte.as_ref(),
            3 => self.pml4e.as_ref(),
            4 => self.pml5e.as_ref(),
            _ => None,
        }
    }
}

/// One data cache of 64-byte lines.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CacheLevelProfile {
    /// Capacity in KiB.
    pub kib: u32,
    /// Lines per set.
    pub ways: u32,
    /// Load-to-use latency in core cycles.
    pub cycles: u32,
    /// Where the numbers come from.
    pub source: String,
}

/// The cache hierarchy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CacheProfile {
    /// First-level data cache, one per core.
    pub l1d: CacheLevelProfile,
    /// First-level instruction cache, one per core.
    pub l1i: CacheLevelProfile,
    /// Second-level cache, one per core.
    pub l2: CacheLevelProfile,
    /// Last-level cache, shared.
    pub llc: CacheLevelProfile,
    /// Latency of a reference that goes to memory, in core cycles.
    pub memory_cycles: Sourced,
}

numbers! {
    /// The core.
    CoreProfile "core" {
        frequency_mhz: "Nominal frequency in MHz; turns the software costs' times into cycles.";
        base_cpi: "Cycles per instruction of programs when every reference hits the first level.";
        kernel_cpi:
            "The same of a guest kernel's instructions, where the stream shows the kernel at \
             work.";
        cr3_load_cycles:
            "Cycles of a load of CR3, on every machine; what a VMM does for one that exits comes \
             on top.";
        l2_tlb_hit_cycles:
            "Cycles of a look-up of the second-level TLB, which every first-level miss pays, \
             before the walk if it misses.";
        walk_cache_cycles: "Cycles to look the walk caches up, once per walk.";
        nested_tlb_cycles:
            "Cycles to look the nested TLB up, once per guest-physical address that a walk \
             translates, if the processor has one.";
        walk_exposed:
            "Share of the walker's cycles by which the program is delayed, 0 to 1: what \
             out-of-order execution and several walkers do not hide.";
        data_exposed:
            "Share of data references' latency beyond the first level by which the program is \
             delayed.";
        itlb_multihit:
            "1 if it has the erratum iTLB multihit, 0 if not: a fetch may hit two entries of the \
             instruction TLB after a page changed its size.";
        nested_ad_always:
            "1 if nested paging always has accessed and dirty flags, 0 if the hypervisor may \
             leave them off.";
    }
}

numbers! {
    /// Memory of a machine with several sockets, each of which is a node.
    NodesProfile "nodes" {
        remote_cycles:
            "Latency of a reference that the memory of another node serves, in core cycles.";
        loaded_cycles:
            "The same if other programs keep that node's memory busy.";
    }
}

numbers! {
    /// What an interrupt from vCPU to vCPU costs in exits, as far as the processor does not deliver it.
    InterruptProfile "interrupts" {
        sender_exits:
            "Exits of the vCPU that sends it: 1 where the store to the interrupt controller is \
             emulated.";
        receiver_exits:
            "Exits of the running vCPU that receives it: 1 where it is called out of the guest \
             for it.";
    }
}

impl InterruptProfile {
    /// Exits of the sender and of the receiver, whole numbers.
    pub fn exits(&self) -> [u64; 2] {
        [&self.sender_exits, &self.receiver_exits].map(|n| n.value as u64)
    }
}

numbers! {
    /// Registers of direct segments.
    SegmentProfile "segment" {
        check_cycles: "Cycles of one base-bound check that the walker makes.";
        hit_cycles:
            "Cycles of a first-level TLB miss that a segment serves beside the second level.";
        load_cycles:
            "Cycles to load base, limit, offset and filter: at a context switch, or when a VM is \
             entered.";
    }
}

numbers! {
    /// Costs of the software that answers, in nanoseconds (cycles follow from the frequency).
    SoftwareProfile "software" {
        exit_ns: "A VM exit and the entry after it, with KVM's dispatch between.";
        nested_exit_ns:
            "An exit of a VM in a VM that the outer hypervisor hands on to the inner one, and the \
             entry after it, which it makes for that: beyond exit_ns.";
        switcher_exit_ns:
            "An exit from a guest of PVM to its hypervisor by the switcher, and back: beyond exit_ns.";
        shadow_fill_ns:
            "Work of the VMM for a fault that it answers in the shadow tables, beyond the exit: \
             the guest's tables are walked, the host's page is found, an entry is made or \
             changed.";
        shadow_entry_ns:
            "Work per leaf entry of a shadow table beside a fault's own: one filled ahead (a \
             look-up of the host's page and an entry of the reverse map), dropped, or compared \
             with the guest's.";
        shadow_page_ns:
            "Work to make a page of shadow tables and to protect the guest's table that it \
             shadows.";
        emulate_write_ns:
            "Work to decode and emulate a write to a protected table, beyond the exit.";
        inject_fault_ns: "Work to inject a page fault into the guest, beyond the exit.";
        context_exit_ns: "Work of a CR3 load that exits, beyond the exit.";
        invalidate_exit_ns: "Work of an invalidation that exits, beyond the exit.";
        sync_entry_ns: "Work to look at an entry, present or not, in a loop over a table.";
        nested_fill_ns:
            "Work of the VMM for one nested-table entry that was missing, beyond the exit.";
        hypercall_ns:
            "A hypercall of a guest that runs without hardware's help, beyond its operations.";
        hypercall_operation_ns:
            "One operation in such a hypercall: an entry checked and stored, a root, an \
             invalidation.";
        validate_entry_ns: "Check of one entry of a page that becomes a table.";
        fault_bounce_ns:
            "A page fault's way to such a guest's kernel and back, beyond that without a \
             hypervisor.";
        host_fault_ns: "Work of the host kernel to find and map a page for guest RAM.";
        clear_page_ns: "Clearing of 4 KiB of memory.";
        balloon_page_ns: "A page that the guest's balloon driver allocates and the VMM takes back.";
        scan_page_ns: "A kernel's daemon looks at a page: its entry and its descriptor.";
        migrate_page_ns:
            "A kernel's daemon unmaps a page, of any size, and maps it elsewhere, without the \
             copying.";
        collapse_ns:
            "A kernel's daemon makes a large page of small ones, without clearing and copying.";
        shootdown_ns:
            "A kernel interrupts another processor, and waits for it, to have translations \
             removed.";
        interrupt_ns: "Work of an emulated store to the interrupt controller, beyond the exit.";
        remote_flush_ns:
            "A VMM waits for a processor that it calls out of the guest to have its TLBs flushed.";
        lock_handoff_ns:
            "The lock of the shadow tables moves from one processor to another that waits for it.";
        table_entry_ns:
            "Work per entry, or cluster of entries, of a page table that is no tree: it is found and \
             stored, or moved to a larger table.";
        guest_fault_ns:
            "The guest kernel's answer to a page fault, without the clearing of the page.";
        guest_fork_ns: "The guest kernel's fork, without its table writes' exits.";
        guest_exec_ns: "The guest kernel's exec.";
        guest_exit_ns: "The guest kernel's exit of a process.";
        guest_switch_ns: "The guest kernel's context switch.";
    }
}

/// Everything that a machine's cost depends on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Short name, as given to `--profile`.
    pub name: String,
    /// The processor in words.
    pub description: String,
    /// The core.
    pub core: CoreProfile,
    /// First-level data TLBs.
    pub l1d_tlb: Vec<TlbProfile>,
    /// First-level instruction TLBs.
    pub l1i_tlb: Vec<TlbProfile>,
    /// Second-level TLBs; of data alone if there are second-level instruction TLBs.
    pub l2_tlb: Vec<TlbProfile>,
    /// Second-level TLBs of instructions, if they have their own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub l2i_tlb: Vec<TlbProfile>,
    /// What the TLBs do with PCIDs; if it says nothing, all levels hold any number of them.
    #[serde(default, skip_serializing_if = "PcidProfile::is_plain")]
    pub pcid: PcidProfile,
    /// Paging-structure caches for linear and combined mappings, by virtual address.
    pub walk_cache: WalkCacheProfile,
    /// Paging-structure caches of nested tables, by guest-physical address.
    pub nested_walk_cache: WalkCacheProfile,
    /// Entries of page tables above the leaves, guest's and nested, by where they lie in memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entry_cache: Option<EntryCacheProfile>,
    /// Cached guest-physical translations, if the processor has them.
    pub nested_tlb: Option<ArrayProfile>,
    /// Data caches.
    pub caches: CacheProfile,
    /// Memory of other nodes, if its latency is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<NodesProfile>,
    /// Interrupts between vCPUs.
    pub interrupts: InterruptProfile,
    /// Direct segments, for schemes that have them.
    pub segment: SegmentProfile,
    /// Energies of events, and powers.
    pub energy: EnergyProfile,
    /// Software costs.
    pub software: SoftwareProfile,
}

/// What is wrong with a profile.
#[derive(Debug, Error)]
pub enum ProfileError {
    /// No built-in profile and no file of that name.
    #[error("no profile `{name}`; there are: {known}; or give the path of a .toml file")]
    Unknown {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// The file cannot be read.
    #[error("profile {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// Not TOML, or not a profile.
    #[error("profile {path}: {source}")]
    Parse {
        /// The file.
        path: String,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// A base that cannot be.
    #[error("profile {path}: base: {problem}")]
    Base {
        /// The file whose base it is.
        path: String,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// A value that contradicts itself or another.
    #[error("profile {path}: {key}: {problem}")]
    Value {
        /// The file, or the name of a built-in profile.
        path: String,
        /// The key.
        key: String,
        /// What is wrong and what would be right.
        problem: String,
    },
}

impl ArrayProfile {
    /// Geometry, checked when the profile was read.
    pub const fn geometry(&self) -> Geometry {
        Geometry { entries: self.entries, ways: self.ways }
    }
}
impl CacheLevelProfile {
    /// Geometry in lines, checked when the profile was read.
    pub const fn geometry(&self) -> Geometry {
        Geometry { entries: self.kib * 16, ways: self.ways }
    }
}

impl Profile {
    /// All single numbers with their keys: what sensitivity analysis varies.
    pub fn numbers(&self) -> Vec<(&'static str, &Sourced)> {
        let mut numbers = Vec::new();
        numbers.extend(self.core.numbers());
        numbers.push(("caches.memory_cycles", &self.caches.memory_cycles));
        numbers.extend(self.nodes.iter().flat_map(NodesProfile::numbers));
        numbers.extend(self.interrupts.numbers());
        numbers.extend(self.segment.numbers());
        numbers.extend(self.software.numbers());
        numbers.extend(self.energy.numbers());
        numbers
    }
}

#[cfg(test)]
#[path = "profile_tests.rs"]
mod tests;
