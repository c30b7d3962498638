//! What the JSON results consist of, beside the fields of a machine, which are
//! [`nestwalk_sim::FIELDS`]: name, unit, meaning.

pub use nestwalk_sim::Field;
use nestwalk_sim::{CONTIGUITY_FIELDS, ExitReason};
use nestwalk_types::OsWork;
use std::sync::LazyLock;

/// The results as a whole.
pub static RESULTS: &[Field] = &[
    ("format_version", "", "grows if a field goes or means something else: docs/formats.md"),
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
    ("verdict", "", "what follows from the counts; null if nothing was counted"),
    (
        "repeats",
        "",
        "with --repeat: numbers over the seeds; `machines` are those of the first seed",
    ),
    (
        "sampling",
        "",
        "with --sample: how the numbers of `machines` were estimated, and how far they can be trusted",
    ),
];

/// The verdict.
pub static VERDICT: &[Field] = &[
    ("sentences", "", "what is fastest and by how much, why, what it depends on"),
    ("baseline", "", "the machine that run times are relative to: the fastest ideal one"),
    (
        "same_work",
        "",
        "every machine made the same accesses; if not, run times are per instruction, and only machines \
         whose accesses and instructions are within 1 % of the baseline's are ranked",
    ),
    ("run_times", "times the baseline's", "by machine; with --repeat the mean"),
    ("fastest", "", "the fastest virtual machine; on bare metal if there is no virtual one"),
    ("next", "", "the fastest of those that take longer by 0.05 % or more; null if none does"),
    ("percent_less", "% of next's run time", "by how much fastest is faster than next, or null"),
    ("difference", "", "of what the difference between two machines consists, or null"),
    ("fastest_by_pages", "", "the fastest machine with each combination of page sizes that occurs"),
    ("populated", "", "memory was touched before counting"),
];

/// The difference between two machines; points are percent of the baseline's run time.
pub static DIFFERENCE: &[Field] = &[
    ("slower", "", "the one"),
    ("faster", "", "the other: fastest, or bare metal if nothing takes longer than fastest"),
    ("points", "points", "what the slower one takes more"),
    ("vmm_points", "points", "of these, the hypervisor's and host kernel's work"),
    ("translation_points", "points", "of these, what is above ideal and not the hypervisor's"),
    ("guest_points", "points", "of these, what the ideal machines with these guests differ by"),
];

/// Several seeds.
pub static REPEATS: &[Field] =
    &[("seeds", "", "the seeds, in order"), ("machines", "", "an object per machine")];

/// A machine over several seeds.
pub static REPEATED: &[Field] = &[
    ("name", "", "the machine"),
    ("run_time", "times the baseline's", "with each seed relative to the baseline with that seed"),
    (
        "fields",
        "",
        "every number of the machine's results; one that a run does not have is 0 there",
    ),
];

/// A number over several seeds.
pub static SPREAD: &[Field] = &[
    ("mean", "", "arithmetic mean"),
    ("deviation", "", "standard deviation of the sample"),
    ("least", "", "the least"),
    ("most", "", "the most"),
];

/// A sampled run.
pub static SAMPLING: &[Field] = &[
    ("units", "count", "stretches that were measured, the whole one at the begin not among them"),
    ("instructions", "count", "instructions of the region of interest"),
    ("measured_instructions", "count", "of these, the ones of stretches that were measured"),
    ("runs", "count", "page runs of the region of interest"),
    ("simulated_runs", "count", "page runs that machines have seen, set-up included"),
    (
        "half_widths",
        "",
        "by machine, half the width of the 95 % confidence interval of each figure that is an estimate",
    ),
];

/// Parts of the results beside guests and machines.
pub static OTHERS: &[(&str, &[Field])] = &[
    ("verdict.", VERDICT),
    ("verdict.difference.", DIFFERENCE),
    ("repeats.", REPEATS),
    ("repeats.machines[].", REPEATED),
    ("repeats.machines[].run_time.", SPREAD),
    ("repeats.machines[].fields.*.", SPREAD),
    ("sampling.", SAMPLING),
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
pub static PARTS: LazyLock<Vec<(&str, &[Field])>> = LazyLock::new(|| {
    vec![
        ("refs_served", SERVED),
        ("vm_exits", &ExitReason::ROWS),
        ("guest_os_work", &OsWork::ROWS),
        ("data_served", SERVED),
        ("fetch_served", SERVED),
        ("energy", nestwalk_sim::ENERGY_FIELDS),
        ("page_table_bytes", PAGE_TABLE_BYTES),
        ("host_placement", nestwalk_sim::PLACEMENT_FIELDS),
        ("segments", SEGMENTS),
        ("segments.guest", SEGMENT),
        ("segments.vmm", SEGMENT),
        ("contiguity", &CONTIGUITY_FIELDS),
        ("contiguity.background_refs", SERVED),
        ("nodes", &nestwalk_sim::NODE_FIELDS),
        ("tables", &nestwalk_sim::TABLE_FIELDS),
        ("tables.guest", nestwalk_sim::STRUCTURE_FIELDS),
        ("tables.host", nestwalk_sim::STRUCTURE_FIELDS),
        ("switching", SWITCHING),
        ("switching.switches[]", SWITCHES),
        ("switching.switches[].sample", SAMPLE),
        ("coverage", nestwalk_sim::COVERAGE_FIELDS),
        ("coverage.guest", nestwalk_sim::DIMENSION_FIELDS),
        ("coverage.host", nestwalk_sim::DIMENSION_FIELDS),
        ("coverage.both", nestwalk_sim::DIMENSION_FIELDS),
        ("coverage.over_time[]", nestwalk_sim::POINT_FIELDS),
        ("walk_map[]", nestwalk_sim::WALK_MAP_FIELDS),
        ("referee", REFEREE),
    ]
});

/// A machine's field, if it is an object, and the objects within it, with their keys.
pub fn parts_of(field: &str) -> impl Iterator<Item = &'static (&'static str, &'static [Field])> {
    PARTS.iter().filter(move |p| p.0.split(['.', '[']).next() == Some(field))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nestwalk_hw::ServedBy;
    use nestwalk_sim::FIELDS;

    #[test]
    fn keys_are_those_that_the_counters_have() {
        let served: Vec<&str> = SERVED.iter().map(|f| f.0).collect();
        assert_eq!(served, ServedBy::NAMES);
        for (field, _) in PARTS.iter() {
            assert!(FIELDS.iter().any(|f| Some(f.0) == field.split(['.', '[']).next()), "{field}");
        }
    }
}
