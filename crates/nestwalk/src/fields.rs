//! What the JSON results consist of, beside the fields of a machine, which are
//! [`nestwalk_sim::FIELDS`]: name, unit, meaning.

/// A field: name, unit, meaning.
pub type Field = (&'static str, &'static str, &'static str);

/// The results as a whole.
pub static RESULTS: &[Field] = &[
    ("version", "", "the nestwalk that computed the results"),
    ("source", "", "the source as it was asked for"),
    ("description", "", "what the source is, and what was fixed about it"),
    ("approximations", "", "what of the source is not as in the real program, a sentence each"),
    ("profile", "", "name of the hardware profile"),
    ("complete", "", "false if the run ended early; the results are then of the accesses before"),
    ("error", "", "why it ended early, or null"),
    (
        "guests",
        "",
        "by its policies (`4k`), what each modelled guest did, and `observed`, what a recorded one \
         did; set-up and warm-up included",
    ),
    ("machines", "", "an object per machine, controls first"),
];

/// A guest.
pub static GUEST: &[Field] = &[
    ("faults", "count", "page faults delivered"),
    ("first_touches", "count", "pages mapped for the first time, by a fault or by populating"),
    ("copies", "count", "pages copied because they were written while shared"),
    ("reuses", "count", "pages made writable because nothing else mapped them any more"),
    ("splits", "count", "large pages split"),
    ("fallbacks", "count", "times that no block of the wanted page size was free"),
    ("implicit_mappings", "count", "mappings made because an access was outside of every mapping"),
    ("peak_table_bytes", "bytes", "page tables, most at a time"),
    ("peak_resident_bytes", "bytes", "memory of processes, most at a time"),
    ("pages_4k", "count", "leaf entries for 4 KiB pages at the end"),
    ("pages_2m", "count", "leaf entries for 2 MiB pages at the end"),
    ("pages_4m", "count", "leaf entries for 4 MiB pages at the end"),
    ("pages_1g", "count", "leaf entries for 1 GiB pages at the end"),
    ("processes", "count", "processes alive at the end"),
    ("primary_bytes", "bytes", "primary regions at the end, of all processes (placement primary)"),
    ("segment_loads", "count", "loads of segment registers (placement primary)"),
    ("placement", "", "what the guest's placement policy came to"),
    ("balloon_pages", "4 KiB pages", "self-ballooning: free pages that the VMM took"),
    ("balloon_ms", "ms", "what that took: pages * balloon_page_ns"),
    ("hot_added_bytes", "bytes", "self-ballooning: contiguous new memory"),
    ("longest_run_before", "bytes", "self-ballooning: longest run of free frames before"),
    ("longest_run_after", "bytes", "the same afterwards, before the region is set aside"),
    (
        "compaction_pages",
        "4 KiB pages",
        "what compaction would have moved in place of self-ballooning, could all pages be moved",
    ),
    ("compaction_ms", "ms", "what that would have taken: copies, and an exit for each shootdown"),
    ("daemon_runs", "count", "times that khugepaged or Translation Ranger woke up and worked"),
    ("daemon_pages_scanned", "4 KiB pages", "daemons: pages looked at"),
    ("daemon_pages_migrated", "4 KiB pages", "daemons: pages moved to free frames"),
    (
        "daemon_pages_exchanged",
        "4 KiB pages",
        "daemons: pages that changed places with others, those included",
    ),
    (
        "daemon_pages_stuck",
        "4 KiB pages",
        "daemons: pages not in their places that could not be moved, at each look anew",
    ),
    ("daemon_collapses", "count", "daemons: large pages made of small ones in another place"),
    ("daemon_bloat_pages", "4 KiB pages", "of these, pages that were not there before"),
    ("daemon_joins", "count", "daemons: large pages made of small ones where they lay"),
    ("daemon_splits", "count", "daemons: large pages split to be moved"),
    ("daemon_interrupts", "count", "daemons: vCPUs interrupted to have translations removed"),
    (
        "daemon_ms",
        "ms",
        "what all of this took: scan_page_ns, migrate_page_ns, collapse_ns, shootdown_ns, copies",
    ),
];

/// What a modelled guest has more if its processes are those of a recorded guest.
pub static REMAPPED: &[Field] = &[
    ("recorded_accesses", "count", "accesses of the recording"),
    ("left_out_accesses", "count", "of these, to the kernel's half of the addresses: left out"),
    (
        "unmapped_accesses",
        "count",
        "of these, outside of everything that the recorded tables mapped at some time",
    ),
    ("recorded_processes", "count", "user address spaces of the recording in which programs ran"),
    ("recorded_forks", "count", "of these, the ones that began as a copy of another"),
];

/// The observed guest: a recorded one as it was.
pub static OBSERVED: &[Field] = &[
    ("accesses", "count", "accesses, dropped ones included"),
    ("kernel_accesses", "count", "of these, in kernel mode"),
    ("faults", "count", "page faults delivered to the recorded kernel"),
    ("protection_faults", "count", "of these, with an entry present"),
    ("write_faults", "count", "of these, by a store"),
    ("fetch_faults", "count", "of these, by an instruction fetch"),
    ("kernel_faults", "count", "of these, in kernel mode"),
    (
        "table_writes",
        "count",
        "the kernel's stores, by level of the table: 1 is the leaf level, 0 if none is known",
    ),
    ("stray_writes", "count", "stores that the stream calls such, to pages that are no tables"),
    ("new_tables", "count", "pages that became tables"),
    ("table_bytes", "bytes", "page tables at the end, freed ones included until they are reused"),
    ("peak_table_bytes", "bytes", "page tables, most at a time"),
    ("cr3_loads", "count", "loads of CR3"),
    ("cr3_reloads", "count", "of these, of the root that was there: flushes"),
    ("invalidations", "count", "INVLPG and INVPCID, and changes of CR4.PGE"),
    ("processes", "count", "processes that ran, by their numbers in the guest"),
    (
        "dropped",
        "",
        "by reason, runs and accesses that the tables had no place for at that moment, and accesses \
         to devices: they are left out",
    ),
    ("dropped_examples", "", "the first dropped runs of each reason, in words"),
];

/// A level of `table_writes`.
pub static TABLE_WRITES: &[Field] = &[
    ("set", "count", "an entry became present"),
    ("cleared", "count", "a present entry became not present"),
    ("changed", "count", "a present entry became another, or one that was not present stayed so"),
];

/// A reason of `dropped`.
pub static DROPPED: &[Field] =
    &[("runs", "count", "runs of accesses"), ("accesses", "count", "accesses in them")];

/// Kinds of guests, and the fields that they have.
pub static GUESTS: &[(&str, &[Field])] = &[
    ("guests.*.", GUEST),
    ("guests.*.placement.", nestwalk_sim::PLACEMENT_FIELDS),
    ("guests.*.", REMAPPED),
    ("guests.observed.", OBSERVED),
    ("guests.observed.table_writes.*.", TABLE_WRITES),
    ("guests.observed.dropped.*.", DROPPED),
];

/// Keys of a machine's `vm_exits`.
pub static VM_EXITS: &[Field] = &[
    ("ept_violation", "count", "a guest-physical address had no nested entry"),
    ("true_fault", "count", "shadow: a fault that belongs to the guest and is injected"),
    ("hidden_fault", "count", "shadow: the guest maps the page, only the shadow entry was missing"),
    ("dirty_fault", "count", "shadow: first store to a clean page, to set the guest's dirty bit"),
    ("table_write", "count", "shadow: a store to a write-protected guest table, emulated"),
    ("table_unsync", "count", "shadow: first store to a leaf table, which goes out of sync"),
    ("cr3_load", "count", "shadow: a load of CR3"),
    ("invalidation", "count", "shadow: INVLPG or INVPCID"),
    ("interval", "count", "agile: the end of an interval, when tables are looked through"),
    ("mode_switch", "count", "a vCPU called out of the guest because the paging mode changes"),
    ("host_migration", "count", "a vCPU called out of the guest because host pages have moved"),
    (
        "remote_flush",
        "count",
        "another running vCPU called out of the guest to have its TLBs flushed",
    ),
    ("interrupt_sent", "count", "a vCPU's store to the interrupt controller to interrupt another"),
    ("interrupt_received", "count", "a vCPU called out of the guest for an interrupt of another"),
    ("mmu_update", "count", "direct paging: hypercall that updates entries of tables"),
    ("pin", "count", "direct paging: hypercall that makes pages tables, or tables pages"),
    ("base_pointer", "count", "direct paging: hypercall that loads a root"),
    ("tlb_flush", "count", "direct paging: hypercall that invalidates translations"),
    ("fault_bounce", "count", "direct paging: page fault handed on to the guest kernel"),
    ("table_emulation", "count", "direct paging: store to a table by a user mapping, emulated"),
];

/// Keys of a machine's `guest_os_work`.
pub static GUEST_OS_WORK: &[Field] = &[
    ("page_faults", "count", "page faults answered"),
    ("pages_copied", "4 KiB pages", "copied for copy-on-write, or by daemons"),
    ("forks", "count", "processes forked"),
    ("execs", "count", "programs replaced"),
    ("exits", "count", "processes ended"),
    ("context_switches", "count", "switches from one process to another"),
    ("pages_scanned", "4 KiB pages", "daemons: pages looked at"),
    ("pages_migrated", "count", "daemons: pages, of any size, unmapped to be mapped elsewhere"),
    ("collapses", "count", "daemons: large pages made of small ones in another place"),
    ("shootdowns", "count", "daemons: vCPUs interrupted to have translations removed"),
];

/// Keys of `refs_served`, `data_served` and `fetch_served`.
pub static SERVED: &[Field] = &[
    ("l1", "count", "by the first-level cache"),
    ("l2", "count", "by the second-level cache"),
    ("llc", "count", "by the last-level cache"),
    ("memory", "count", "by memory"),
];

/// Keys of a machine's `page_table_bytes`.
pub static PAGE_TABLE_BYTES: &[Field] = &[
    ("guest", "bytes", "the guest's own tables"),
    ("nested", "bytes", "nested tables"),
    ("shadow", "bytes", "shadow tables"),
    ("host", "bytes", "the host kernel's tables of the VMM process, for guest memory"),
];

/// Keys of a machine's `segments`.
pub static SEGMENTS: &[Field] = &[
    ("guest", "", "the largest guest segment that was loaded, as it was then"),
    ("vmm", "", "the VMM's segment at the end"),
    ("vmm_percent", "% of guest memory", "what the VMM's segment covers"),
];

/// Keys of a segment.
pub static SEGMENT: &[Field] = &[
    ("base", "", "first address; 0 if there is none"),
    ("bytes", "bytes", "its length; 0 if there is none"),
    ("escaped", "4 KiB pages", "pages that were put into the escape filter"),
    ("reported", "4 KiB pages", "pages that the filter reports, false positives included"),
];

/// Keys of a machine's `contiguity`.
pub static CONTIGUITY: &[Field] = &[
    ("predictions", "count", "SpOT: walks beside which the program went on with a guess"),
    ("predictions_right", "count", "of these, the ones that the walk confirmed"),
    ("predictions_wrong", "count", "of these, the ones whose walk found another frame"),
    ("predictions_squashed", "count", "of these, the ones whose walk ended in a fault"),
    (
        "prediction_fills",
        "count",
        "SpOT: entries put into prediction tables, new offsets among them",
    ),
    (
        "prediction_bypasses",
        "count",
        "SpOT: walks that filled no entry because all of the set were trusted",
    ),
    ("hidden_walk_cycles", "cycles", "SpOT: of walk_cycles, those that right guesses hid"),
    ("misprediction_cycles", "cycles", "SpOT: delay by wrong guesses beyond their walks"),
    ("range_hits", "count", "RMM: first-level TLB misses that the range TLB served"),
    ("range_checks", "count", "RMM: comparisons with ranges in range TLBs"),
    ("range_walks", "count", "RMM: background walks of range tables"),
    ("anchor_hits", "count", "anchors: misses of regular entries that an anchor entry served"),
    ("anchor_lookups", "count", "anchors: look-ups of anchor entries"),
    ("anchor_fills", "count", "anchors: anchor entries put into second-level TLBs"),
    ("anchor_changes", "count", "anchors: changes of an address space's distance"),
    ("contiguity_updates", "count", "entries of range tables and anchors that software stored"),
    (
        "background_refs",
        "count",
        "references that nothing waited for: to range tables and anchors, and where wrong guesses led",
    ),
    ("guest_pages", "4 KiB pages", "what user mode may access, all address spaces, at the end"),
    ("guest_runs", "count", "runs in which it lies"),
    ("host_pages", "4 KiB pages", "guest memory that nested tables map at the end"),
    ("host_runs", "count", "runs in which it lies"),
    ("metadata_bytes", "bytes", "range tables at the end"),
    (
        "anchor_distance",
        "4 KiB pages",
        "from anchor to anchor in the largest address space; 0 without",
    ),
];

/// Keys of a machine's `switching`.
pub static SWITCHING: &[Field] = &[
    ("start", "", "the mode when the region of interest began"),
    ("shadow_percent", "% of time", "simulated time in shadow mode"),
    ("nested_percent", "% of time", "simulated time in nested mode"),
    ("samples", "count", "intervals that the policy saw"),
    ("switches", "", "the switches, in order"),
];

/// Keys of a switch.
pub static SWITCHES: &[Field] = &[
    ("time_ms", "ms", "simulated time since the region of interest began"),
    ("instructions", "count", "instructions since then"),
    ("mode", "", "the mode from then on: shadow or nested"),
    ("reason", "", "why, in words"),
    ("sample", "", "what the policy saw last; null if there was none"),
];

/// Keys of a sample: an interval as the policy saw it, over all vCPUs.
pub static SAMPLE: &[Field] = &[
    ("time_ns", "ns", "end of the interval, simulated time since the region of interest began"),
    ("duration_ns", "ns", "length of the interval"),
    ("busy_ns", "ns", "processor time of the vCPUs"),
    ("instructions", "count", "instructions retired in the guest"),
    ("guest_cycles", "cycles", "cycles in the guest, walks included"),
    ("host_kernel_cycles", "cycles", "the hypervisor's and the host kernel's work"),
    ("host_user_cycles", "cycles", "none in a simulation"),
    ("walk_cycles", "cycles", "cycles with a page walk under way"),
    ("guest_page_faults", "count", "page faults that the guest kernel handled"),
    ("tlb_misses", "count", "accesses that missed both levels of TLBs"),
    ("vm_exits", "count", "exits to the hypervisor"),
    ("mode", "", "the mode in which the interval passed"),
];

/// Keys of a machine's `referee`.
pub static REFEREE: &[Field] = &[
    ("checked", "count", "runs of accesses checked"),
    ("violations", "count", "wrong addresses, permissions, or sums"),
    ("told", "", "the first violations, in words"),
];

/// Objects within a machine's object, and their keys.
pub static PARTS: &[(&str, &[Field])] = &[
    ("refs_served", SERVED),
    ("vm_exits", VM_EXITS),
    ("guest_os_work", GUEST_OS_WORK),
    ("data_served", SERVED),
    ("fetch_served", SERVED),
    ("energy", nestwalk_sim::ENERGY_FIELDS),
    ("page_table_bytes", PAGE_TABLE_BYTES),
    ("host_placement", nestwalk_sim::PLACEMENT_FIELDS),
    ("segments", SEGMENTS),
    ("segments.guest", SEGMENT),
    ("segments.vmm", SEGMENT),
    ("contiguity", CONTIGUITY),
    ("contiguity.background_refs", SERVED),
    ("switching", SWITCHING),
    ("switching.switches[]", SWITCHES),
    ("switching.switches[].sample", SAMPLE),
    ("coverage", nestwalk_sim::COVERAGE_FIELDS),
    ("coverage.guest", nestwalk_sim::DIMENSION_FIELDS),
    ("coverage.host", nestwalk_sim::DIMENSION_FIELDS),
    ("coverage.both", nestwalk_sim::DIMENSION_FIELDS),
    ("coverage.over_time[]", nestwalk_sim::POINT_FIELDS),
    ("referee", REFEREE),
];

/// A machine's field, if it is an object, and the objects within it, with their keys.
pub fn parts_of(field: &str) -> impl Iterator<Item = &'static (&'static str, &'static [Field])> {
    PARTS.iter().filter(move |p| p.0.split('.').next() == Some(field))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nestwalk_hw::ServedBy;
    use nestwalk_sim::{ExitReason, FIELDS};
    use nestwalk_types::OsWork;

    #[test]
    fn keys_are_those_that_the_counters_have() {
        let names = |fields: &[Field]| fields.iter().map(|f| f.0).collect::<Vec<_>>();
        assert_eq!(names(VM_EXITS), ExitReason::ALL.map(ExitReason::name));
        assert_eq!(names(GUEST_OS_WORK), OsWork::ALL.map(OsWork::name));
        assert_eq!(names(SERVED), ServedBy::NAMES);
        for (field, _) in PARTS {
            assert!(FIELDS.iter().any(|f| Some(f.0) == field.split('.').next()), "{field}");
        }
    }
}
