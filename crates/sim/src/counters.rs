//! What is counted, once, with its unit; everything reported is derived from these.

use nestwalk_hw::ServedBy;
use nestwalk_types::{OsWork, VcpuId};
use serde::Serialize;

/// Whose table a walker's reference read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Dimension {
    /// The guest's tables (native: the only ones).
    Guest,
    /// The nested tables.
    Nested,
    /// The shadow tables.
    Shadow,
}

impl Dimension {
    /// Number of variants.
    pub const COUNT: usize = 3;
}

/// References of walks, by dimension and by where they were served.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct References(pub [[u64; ServedBy::COUNT]; Dimension::COUNT]);

impl References {
    /// References to one dimension's tables.
    pub fn of(&self, dimension: Dimension) -> u64 {
        self.0[dimension as usize].iter().sum()
    }
    /// References to all tables.
    pub fn total(&self) -> u64 {
        self.0.iter().flatten().sum()
    }
    /// References that were served by one place.
    pub fn served_by(&self, place: ServedBy) -> u64 {
        self.0.iter().map(|d| d[place as usize]).sum()
    }
    fn since(&self, earlier: &Self) -> Self {
        Self(std::array::from_fn(|d| less(&self.0[d], &earlier.0[d])))
    }
    #[inline]
    pub(crate) fn add(&mut self, other: &Self) {
        for (sums, more) in self.0.iter_mut().zip(&other.0) {
            for (sum, n) in sums.iter_mut().zip(more) {
                *sum += n;
            }
        }
    }
}

/// Counts by vCPU; those of vCPUs that are not there are 0.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PerVcpu(Vec<u64>);

impl PerVcpu {
    /// One more of a vCPU.
    pub fn add(&mut self, vcpu: VcpuId) {
        let index = usize::from(vcpu.0);
        if index >= self.0.len() {
            self.0.resize(index + 1, 0);
        }
        self.0[index] += 1;
    }
    /// Of each vCPU up to the last that has any.
    pub fn each(&self) -> &[u64] {
        &self.0
    }
    /// Of all vCPUs.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }
    fn since(&self, earlier: &Self) -> Self {
        let before = |i: usize| earlier.0.get(i).copied().unwrap_or(0);
        Self(self.0.iter().enumerate().map(|(i, n)| n - before(i)).collect())
    }
}

fn less<const N: usize>(now: &[u64; N], earlier: &[u64; N]) -> [u64; N] {
    std::array::from_fn(|i| now[i] - earlier[i])
}

/// Index of the walks of agile paging that were nested from the guest's CR3 on.
pub const FULLY_NESTED: usize = nestwalk_tables::MAX_LEVELS + 1;

/// Why control passed from the guest to the VMM.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
pub enum ExitReason {
    /// A guest-physical address had no nested entry.
    EptViolation,
    /// Shadow: a fault that belongs to the guest; the VMM injects it.
    TrueFault,
    /// Shadow: the guest maps the page, only the shadow entry was missing.
    HiddenFault,
    /// Shadow: the first store to a clean page, so that the VMM can set the guest's dirty bit.
    DirtyFault,
    /// Shadow: a store to a write-protected guest table, emulated.
    TableWrite,
    /// Shadow: the first store to a leaf guest table, which goes out of sync.
    TableUnsync,
    /// Shadow: a load of CR3.
    Cr3Load,
    /// Shadow: INVLPG or INVPCID.
    Invalidation,
    /// Agile paging: the end of an interval, at which the hypervisor moves guest tables back.
    Interval,
    /// The hypervisor calls the vCPU out of the guest to change its paging mode.
    ModeSwitch,
    /// The VMM calls a vCPU out of the guest because host pages behind it have moved.
    HostMigration,
    /// The VMM calls another running vCPU out of the guest to have its TLBs flushed.
    RemoteFlush,
    /// The guest kernel interrupts another vCPU: the store to the interrupt controller.
    InterruptSent,
    /// The guest kernel interrupts another vCPU, which is called out of the guest for it.
    InterruptReceived,
    /// Direct paging: the hypercall that updates entries of tables.
    MmuUpdate,
    /// Direct paging: the hypercall that makes pages tables, or tables pages, by pin or unpin.
    Pin,
    /// Direct paging: the hypercall that loads a root.
    BasePointer,
    /// Direct paging: the hypercall that invalidates translations.
    TlbFlush,
    /// Direct paging: a page fault that the hypervisor hands on to the guest kernel.
    FaultBounce,
    /// Direct paging: a store to a table through a user mapping, emulated.
    TableEmulation,
}

impl ExitReason {
    /// All reasons in the order of their counters.
    pub const ALL: [Self; 20] = [
        Self::EptViolation,
        Self::TrueFault,
        Self::HiddenFault,
        Self::DirtyFault,
        Self::TableWrite,
        Self::TableUnsync,
        Self::Cr3Load,
        Self::Invalidation,
        Self::Interval,
        Self::ModeSwitch,
        Self::HostMigration,
        Self::RemoteFlush,
        Self::InterruptSent,
        Self::InterruptReceived,
        Self::MmuUpdate,
        Self::Pin,
        Self::BasePointer,
        Self::TlbFlush,
        Self::FaultBounce,
        Self::TableEmulation,
    ];
    /// Key in results.
    pub const fn name(self) -> &'static str {
        match self {
            Self::EptViolation => "ept_violation",
            Self::TrueFault => "true_fault",
            Self::HiddenFault => "hidden_fault",
            Self::DirtyFault => "dirty_fault",
            Self::TableWrite => "table_write",
            Self::TableUnsync => "table_unsync",
            Self::Cr3Load => "cr3_load",
            Self::Invalidation => "invalidation",
            Self::Interval => "interval",
            Self::ModeSwitch => "mode_switch",
            Self::HostMigration => "host_migration",
            Self::RemoteFlush => "remote_flush",
            Self::InterruptSent => "interrupt_sent",
            Self::InterruptReceived => "interrupt_received",
            Self::MmuUpdate => "mmu_update",
            Self::Pin => "pin",
            Self::BasePointer => "base_pointer",
            Self::TlbFlush => "tlb_flush",
            Self::FaultBounce => "fault_bounce",
            Self::TableEmulation => "table_emulation",
        }
    }
    /// A hypercall of a guest that runs without hardware's help: a system call into the hypervisor, and
    /// no exit of the processor's.
    pub const fn is_hypercall(self) -> bool {
        matches!(self, Self::MmuUpdate | Self::Pin | Self::BasePointer | Self::TlbFlush)
    }
    /// A fault that comes to the hypervisor of such a guest.
    pub const fn is_trap(self) -> bool {
        matches!(self, Self::FaultBounce | Self::TableEmulation)
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counts of one machine since its region of interest began.
        #[derive(Clone, PartialEq, Eq, Debug, Default)]
        pub struct Counters {
            $($(#[$doc])* pub $name: u64,)*
            /// References of completed walks.
            pub references: References,
            /// References of walks that ended in a fault.
            pub faulted_references: References,
            /// Data references of the program by where they were served, one per line of a run.
            pub data: [u64; ServedBy::COUNT],
            /// Instruction lines fetched, by where they were served.
            pub fetch: [u64; ServedBy::COUNT],
            /// References that nothing waits for, by where they were served: to range tables and
            /// anchors, and to where wrong guesses led.
            pub background: [u64; ServedBy::COUNT],
            /// VM exits by reason, in the order of [`ExitReason::ALL`].
            pub exits: [u64; ExitReason::ALL.len()],
            /// Agile paging: completed walks by the level of the guest table at which they left the
            /// shadow tables for the guest's; 0 for those that did not. Those in which the guest's
            /// root was translated, too, are in the last.
            pub walks_switched: [u64; FULLY_NESTED + 1],
            /// Guest kernel work by kind, in the order of [`OsWork::ALL`].
            pub os_work: [u64; OsWork::ALL.len()],
            /// How often each vCPU took the lock of the shadow tables, which one holds at a time.
            pub lock_visits: PerVcpu,
        }
        impl Counters {
            /// Names and values of the plain counters, in order.
            pub fn named(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name),)*]
            }
            /// What was counted since `earlier`, a moment of the same machine.
            #[must_use]
            pub fn since(&self, earlier: &Self) -> Self {
                Self {
                    $($name: self.$name - earlier.$name,)*
                    references: self.references.since(&earlier.references),
                    faulted_references: self.faulted_references.since(&earlier.faulted_references),
                    data: less(&self.data, &earlier.data),
                    fetch: less(&self.fetch, &earlier.fetch),
                    background: less(&self.background, &earlier.background),
                    exits: less(&self.exits, &earlier.exits),
                    walks_switched: less(&self.walks_switched, &earlier.walks_switched),
                    os_work: less(&self.os_work, &earlier.os_work),
                    lock_visits: self.lock_visits.since(&earlier.lock_visits),
                }
            }
        }
    };
}

counters! {
    /// Instructions retired.
    instructions,
    /// Of these, the ones of the kernel, where the stream shows the kernel at work.
    kernel_instructions,
    /// Accesses: loads, stores and fetches.
    accesses,
    /// Instruction fetches among the accesses.
    fetches,
    /// Look-ups of the first-level data TLB: one for each access that is no fetch, of a page run all.
    l1d_tlb_lookups,
    /// Look-ups of the first-level instruction TLB: one for each fetch.
    l1i_tlb_lookups,
    /// Accesses that missed the first-level TLB.
    l1_tlb_misses,
    /// Entries put into first-level TLBs: one for each miss, or entry that could not serve.
    l1_tlb_fills,
    /// Of these, the ones that the second level served.
    l2_tlb_hits,
    /// Accesses that missed both levels.
    l2_tlb_misses,
    /// Accesses whose entry was there but could not serve: a store to a clean page, or an entry with
    /// fewer permissions than the table has by now. The walker runs; it is no miss.
    upgrades,
    /// Walks that found a translation: one per second-level miss or upgrade.
    walks,
    /// Walks that ended in a fault of either dimension; each is followed by another walk.
    faulted_walks,
    /// Walks that looked the walk caches up: all but those that segments make flat.
    walk_cache_lookups,
    /// Walks that began at a table that a walk cache pointed to.
    walk_cache_hits,
    /// Entries of tables that walkers looked up where they lie, before they read memory.
    entry_cache_lookups,
    /// Such look-ups that found the entry, and made no reference.
    entry_cache_hits,
    /// Guest-physical look-ups served by the nested TLB.
    nested_tlb_hits,
    /// Guest-physical look-ups that walked the nested tables.
    nested_walks,
    /// Cycles in which the walker was at work, faulted walks included.
    walk_cycles,
    /// TLB entries that are smaller than the guest's page because the host's is.
    splintered,
    /// Coalescing: entries of more than one page that walks put into TLBs.
    coalesced_fills,
    /// Coalescing: pages that these entries covered then.
    coalesced_pages,
    /// Coalescing: accesses that an entry of either level served which the walk of another page had
    /// brought in.
    coalesced_hits,
    /// Coalescing: look-ups of the fully associative buffer of runs, one for each access.
    run_buffer_lookups,
    /// Page faults delivered to the guest kernel.
    guest_faults,
    /// Pages (4 KiB) that the guest kernel cleared.
    pages_cleared,
    /// Entries stored to guest tables.
    table_writes,
    /// Page faults in the host kernel for guest RAM.
    host_faults,
    /// Pages (4 KiB) that the host kernel cleared.
    host_pages_cleared,
    /// Entries that the VMM stored to nested tables, prefetched ones not included.
    nested_fills,
    /// Nested entries filled beside that of a page which is executed, ahead of a violation.
    nested_prefetches,
    /// Entries that the VMM stored to shadow tables, prefetched ones not included.
    shadow_fills,
    /// Flushes of all cores' linear and combined translations that the VMM asked for.
    remote_flushes,
    /// Shadow entries filled ahead of a fault.
    shadow_prefetches,
    /// Leaf entries that went from shadow tables, and so from the reverse map.
    shadow_drops,
    /// Entries looked at while out-of-sync shadow tables were compared with the guest's.
    sync_entries,
    /// Of these, the present ones, whose guest entry was read.
    sync_present,
    /// Shadow table pages made.
    shadow_pages,
    /// Shadow table pages dropped.
    shadow_zaps,
    /// Shadow table pages dropped because of write flooding.
    flood_zaps,
    /// Agile paging: walks repeated in two dimensions to set A and D in the guest's tables, too.
    ad_walks,
    /// Agile paging: guest tables that went from shadow to nested mode, each with all below it.
    tables_nested,
    /// Agile paging: guest tables that went back to shadow mode.
    tables_shadowed,
    /// Agile paging: entries of nested tables whose dirty bit was looked at and cleared.
    dirty_bits_scanned,
    /// CR3 loads of the guest.
    cr3_loads,
    /// Invalidations of the guest.
    invalidations,
    /// Changes of the paging mode.
    mode_switches,
    /// Direct paging: operations in hypercalls: entries, changes of type, roots, invalidations.
    hypercall_operations,
    /// Direct paging: present entries of pages that became tables, each checked once then.
    entries_validated,
    /// Direct paging: entries that the hypervisor did not take as they were asked for.
    updates_refused,
    /// Segments: first-level TLB misses that a segment served beside the second level, by no reference.
    segment_hits,
    /// Segments: accesses that a segment served beside the first level, which was not looked up.
    segment_accesses,
    /// Segments: base-bound checks of a guest-virtual address.
    guest_segment_checks,
    /// Segments: base-bound checks of a guest-physical address by the walker.
    vmm_segment_checks,
    /// Segments: checks that found the address in the segment and its page in the escape filter.
    segment_escapes,
    /// Of these, the ones of pages that nobody had put into the filter.
    false_escapes,
    /// Segments: loads of a guest segment's registers.
    guest_segment_loads,
    /// Segments: loads of the VMM segment's registers, one for each entry into the VM.
    vmm_segment_loads,
    /// Pages (4 KiB) that the host copied to make memory contiguous, or pages large.
    pages_moved,
    /// Self-ballooning: pages (4 KiB) that the guest gave to the VMM for contiguous memory.
    balloon_pages,
    /// SpOT: walks beside which the program went on with a guess.
    predictions,
    /// Of these, the ones that the walk confirmed.
    predictions_right,
    /// Of these, the ones whose walk found another frame.
    predictions_wrong,
    /// Of these, the ones whose walk ended in a fault.
    predictions_squashed,
    /// SpOT: entries put into prediction tables, new offsets of old entries among them.
    prediction_fills,
    /// SpOT: walks that would have filled an entry, had not all of the set been trusted.
    prediction_bypasses,
    /// Cycles of walks that correct guesses hid; among the walk cycles.
    hidden_walk_cycles,
    /// Cycles by which wrong guesses delayed the program beyond the walk.
    misprediction_cycles,
    /// RMM: first-level TLB misses that the range TLB served beside the second level.
    range_hits,
    /// RMM: comparisons with ranges in range TLBs.
    range_checks,
    /// RMM: background walks of range tables, each of which filled the range TLB.
    range_walks,
    /// Anchors: second-level TLB misses that an anchor entry served.
    anchor_hits,
    /// Anchors: look-ups of anchor entries, each after a miss of the regular ones.
    anchor_lookups,
    /// Anchors: anchor entries put into second-level TLBs.
    anchor_fills,
    /// Anchors: changes of the distance of an address space, each with a flush.
    anchor_changes,
    /// Accesses that a structure of the scheme's own served beside or behind the second level, by no
    /// walk, where no counter above is for that structure: of schemes of other crates.
    scheme_hits,
    /// Entries of range tables and anchors that system software stored.
    contiguity_updates,
    /// Daemons of the host: pages (4 KiB) looked at.
    host_pages_scanned,
    /// Daemons of the host: pages, of any size, that were unmapped to be mapped elsewhere.
    host_pages_unmapped,
    /// Daemons of the host: pages (4 KiB) moved to free frames.
    host_pages_migrated,
    /// Daemons of the host: pages (4 KiB) that changed places with others, those included.
    host_pages_exchanged,
    /// Daemons of the host: large pages made of small ones in another place.
    host_collapses,
    /// Daemons of the host: large pages made of small ones where they lay.
    host_joins,
}

impl Counters {
    /// Counts an exit.
    #[inline]
    pub const fn exit(&mut self, reason: ExitReason) {
        self.exits[reason as usize] += 1;
    }
    /// Exits that are hypercalls and traps of a guest without hardware's help.
    pub fn paravirtual_exits(&self) -> u64 {
        let them = ExitReason::ALL.iter().filter(|r| r.is_hypercall() || r.is_trap());
        them.map(|r| self.exits[*r as usize]).sum()
    }
    /// Exits of all reasons.
    pub fn exits_total(&self) -> u64 {
        self.exits.iter().sum()
    }
}
