//! What a comparison found, as numbers with names, units and meanings.

use crate::machine::coverage::CoverageResult;
use crate::machine::referee::Verdict;
use crate::measure::cost::{Cycles, host_moving_cycles, locked_ns, vmm_items};
use crate::measure::counters::{Counters, Dimension, ExitReason, FULLY_NESTED};
use crate::measure::energy::EnergyResult;
use crate::report::contiguity::ContiguityResult;
use crate::report::placement::PlacementResult;
use crate::scheme::SwitchingResult;
use crate::scheme::{PageTableBytes, SegmentState};
use nestwalk_hw::{Profile, ServedBy};
use nestwalk_types::OsWork;
use serde::Serialize;
use std::collections::BTreeMap;

/// Results of one machine. Units and meanings: [`FIELDS`].
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs, reason = "documented in FIELDS, which a test compares with this")]
pub struct MachineResult {
    pub name: String,
    pub scheme: String,
    pub instructions: u64,
    pub kernel_instructions: u64,
    pub accesses: u64,
    pub fetches: u64,
    pub l1d_tlb_lookups: u64,
    pub l1i_tlb_lookups: u64,
    pub l1_tlb_misses: u64,
    pub l1_tlb_fills: u64,
    pub l2_tlb_hits: u64,
    pub l2_tlb_misses: u64,
    pub l1_tlb_mpki: f64,
    pub l2_tlb_mpki: f64,
    pub upgrades: u64,
    pub walks: u64,
    pub faulted_walks: u64,
    pub guest_refs: u64,
    pub nested_refs: u64,
    pub shadow_refs: u64,
    pub refs_per_walk: f64,
    pub refs_served: BTreeMap<&'static str, u64>,
    pub faulted_refs: u64,
    pub walks_switched: BTreeMap<&'static str, u64>,
    pub switched_refs_per_walk: f64,
    pub ad_walks: u64,
    pub walk_cache_lookups: u64,
    pub walk_cache_hits: u64,
    pub entry_cache_lookups: u64,
    pub entry_cache_hits: u64,
    pub nested_tlb_hits: u64,
    pub nested_walks: u64,
    pub splintered: u64,
    pub coalesced_fills: u64,
    pub coalesced_pages: u64,
    pub coalesced_hits: u64,
    pub run_buffer_lookups: u64,
    pub walk_cycles: u64,
    pub cycles_per_walk: f64,
    pub vm_exits: BTreeMap<&'static str, u64>,
    pub vm_exits_total: u64,
    pub vmm_cycles: f64,
    pub lock_wait_cycles: f64,
    pub lock_held_cycles: f64,
    pub lock_visits: u64,
    pub vmm_work: BTreeMap<&'static str, u64>,
    pub guest_faults: u64,
    pub guest_os_cycles: f64,
    pub guest_os_work: BTreeMap<&'static str, u64>,
    pub pages_cleared: u64,
    pub table_writes: u64,
    pub cr3_loads: u64,
    pub invalidations: u64,
    pub mode_switches: u64,
    pub segment_hits: u64,
    pub segment_accesses: u64,
    pub guest_segment_checks: u64,
    pub vmm_segment_checks: u64,
    pub segment_escapes: u64,
    pub false_escapes: u64,
    pub guest_segment_loads: u64,
    pub vmm_segment_loads: u64,
    pub pages_moved: u64,
    pub balloon_pages: u64,
    pub host_pages_scanned: u64,
    pub host_pages_unmapped: u64,
    pub host_pages_migrated: u64,
    pub host_pages_exchanged: u64,
    pub host_collapses: u64,
    pub host_joins: u64,
    pub host_moving_cycles: f64,
    pub host_faults: u64,
    pub host_pages_cleared: u64,
    pub nested_fills: u64,
    pub nested_prefetches: u64,
    pub shadow_fills: u64,
    pub remote_flushes: u64,
    pub shadow_prefetches: u64,
    pub shadow_drops: u64,
    pub sync_entries: u64,
    pub sync_present: u64,
    pub shadow_pages: u64,
    pub shadow_zaps: u64,
    pub flood_zaps: u64,
    pub tables_nested: u64,
    pub tables_shadowed: u64,
    pub dirty_bits_scanned: u64,
    pub hypercall_operations: u64,
    pub entries_validated: u64,
    pub updates_refused: u64,
    pub data_served: BTreeMap<&'static str, u64>,
    pub fetch_served: BTreeMap<&'static str, u64>,
    pub program_cycles: f64,
    pub translation_cycles: f64,
    pub total_cycles: f64,
    pub ideal_cycles: f64,
    pub translation_overhead_percent: f64,
    pub vmm_overhead_percent: f64,
    pub overhead_percent: f64,
    pub setup_guest_faults: u64,
    pub setup_pages_cleared: u64,
    pub setup_overhead_percent: f64,
    pub energy: EnergyResult,
    pub page_table_bytes: PageTableBytes,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_placement: Option<PlacementResult>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub segments: Option<SegmentState>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub contiguity: Option<ContiguityResult>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub switching: Option<SwitchingResult>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub coverage: Option<CoverageResult>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub referee: Option<Verdict>,
}

/// Name, unit and meaning of each field of [`MachineResult`], in its order.
pub static FIELDS: &[(&str, &str, &str)] = &[
    ("name", "", "the machine: scheme:guest pages+host pages"),
    ("scheme", "", "the scheme"),
    ("instructions", "count", "instructions retired in the region of interest"),
    (
        "kernel_instructions",
        "count",
        "of these, the ones of the kernel, where the source shows it at work",
    ),
    ("accesses", "count", "loads, stores and instruction fetches; one across pages counts twice"),
    ("fetches", "count", "instruction fetches among the accesses"),
    ("l1d_tlb_lookups", "count", "look-ups of the first-level data TLB, one for each data access"),
    ("l1i_tlb_lookups", "count", "look-ups of the first-level instruction TLB, one for each fetch"),
    ("l1_tlb_misses", "count", "accesses that missed the first-level TLB"),
    ("l1_tlb_fills", "count", "entries put into first-level TLBs"),
    ("l2_tlb_hits", "count", "of these, the ones that the second level served"),
    ("l2_tlb_misses", "count", "accesses that missed both levels"),
    (
        "l1_tlb_mpki",
        "per 1000 instructions",
        "first-level misses; null if instructions are not known",
    ),
    (
        "l2_tlb_mpki",
        "per 1000 instructions",
        "second-level misses; null if instructions are not known",
    ),
    (
        "upgrades",
        "count",
        "accesses whose TLB entry could not serve (clean page stored to, permission since widened); the walker ran, but it was no miss",
    ),
    ("walks", "count", "walks that found a translation: second-level misses and upgrades"),
    ("faulted_walks", "count", "walks that ended in a fault, each followed by another walk"),
    (
        "guest_refs",
        "count",
        "references of completed walks to guest tables (native: its own tables)",
    ),
    ("nested_refs", "count", "references of completed walks to nested tables"),
    ("shadow_refs", "count", "references of completed walks to shadow tables"),
    ("refs_per_walk", "count", "references per completed walk, all tables"),
    (
        "refs_served",
        "count",
        "where references of completed walks were served: l1, l2, llc, memory",
    ),
    ("faulted_refs", "count", "references of walks that ended in a fault"),
    (
        "walks_switched",
        "count",
        "agile paging: walks by the level of the guest table at which they went from shadow to guest tables; with nothing cached, 4-level tables and 4 KiB pages 4 references for shadow, 8, 12, 16 and 20 for l1 to l4, 24 for nested",
    ),
    (
        "switched_refs_per_walk",
        "count",
        "agile paging: average length of those walks with nothing cached, as its paper counts",
    ),
    ("ad_walks", "count", "agile paging: walks repeated in two dimensions to set A and D"),
    ("walk_cache_lookups", "count", "walks that looked the paging-structure caches up"),
    (
        "walk_cache_hits",
        "count",
        "walks that began at a table that a paging-structure cache pointed to",
    ),
    (
        "entry_cache_lookups",
        "count",
        "entries above the leaves that walkers looked up by their address (AMD's page walk cache)",
    ),
    ("entry_cache_hits", "count", "such look-ups that found the entry and made no reference"),
    ("nested_tlb_hits", "count", "guest-physical look-ups served by the nested TLB"),
    ("nested_walks", "count", "guest-physical look-ups that walked nested tables"),
    (
        "splintered",
        "count",
        "walks whose TLB entry is smaller than the guest's page because the host's is",
    ),
    (
        "coalesced_fills",
        "count",
        "coalescing: entries of more than one page that walks put into TLBs",
    ),
    ("coalesced_pages", "4 KiB pages", "coalescing: pages that these entries covered then"),
    (
        "coalesced_hits",
        "count",
        "coalescing: accesses that an entry of either level served which another page's walk had brought in",
    ),
    (
        "run_buffer_lookups",
        "count",
        "coalescing: look-ups of the fully associative buffer of runs, one for each access",
    ),
    ("walk_cycles", "cycles", "the walker at work, faulted walks included, nothing hidden"),
    ("cycles_per_walk", "cycles", "walk_cycles per walk, faulted ones included"),
    ("vm_exits", "count", "exits to the hypervisor by reason"),
    ("vm_exits_total", "count", "exits of all reasons"),
    ("vmm_cycles", "cycles", "the hypervisor's and the host kernel's work"),
    ("lock_wait_cycles", "cycles", "of these, waiting for the lock of the shadow tables"),
    ("lock_held_cycles", "cycles", "of vmm_cycles, what is done while that lock is held"),
    ("lock_visits", "count", "how often that lock was taken"),
    (
        "vmm_work",
        "count",
        "how often each price of the profile's [software] was paid: vmm_cycles is the sum of times * price",
    ),
    ("guest_faults", "count", "page faults delivered to the guest kernel"),
    (
        "guest_os_cycles",
        "cycles",
        "the guest kernel's work; the same on every machine with this guest",
    ),
    (
        "guest_os_work",
        "count",
        "the guest kernel's forks, execs, exits, copies and switches, and the work of its daemons",
    ),
    ("pages_cleared", "4 KiB pages", "memory that the guest kernel cleared"),
    ("table_writes", "count", "entries that the guest kernel stored to its tables"),
    ("cr3_loads", "count", "loads of CR3"),
    ("invalidations", "count", "INVLPG and INVPCID"),
    ("mode_switches", "count", "changes of the paging mode"),
    (
        "segment_hits",
        "count",
        "segments: first-level TLB misses that a segment served beside the second level, by no reference",
    ),
    (
        "segment_accesses",
        "count",
        "segments, check=l1: accesses that a segment served beside the look-up of the first level",
    ),
    ("guest_segment_checks", "count", "segments: base-bound checks of guest-virtual addresses"),
    (
        "vmm_segment_checks",
        "count",
        "segments: base-bound checks of guest-physical addresses by the walker",
    ),
    (
        "segment_escapes",
        "count",
        "segments: checks inside of the segment whose page the escape filter reported",
    ),
    ("false_escapes", "count", "of these, the ones of pages that had not been put in"),
    ("guest_segment_loads", "count", "segments: loads of the guest segment's registers"),
    (
        "vmm_segment_loads",
        "count",
        "segments: loads of the VMM segment's registers, one for each entry into the VM",
    ),
    (
        "pages_moved",
        "4 KiB pages",
        "pages that the host copied to make memory contiguous, or pages large",
    ),
    (
        "balloon_pages",
        "4 KiB pages",
        "self-ballooning: pages that the guest gave to the VMM for contiguous memory",
    ),
    ("host_pages_scanned", "4 KiB pages", "daemons of the host: pages looked at"),
    (
        "host_pages_unmapped",
        "count",
        "daemons of the host: pages, of any size, unmapped to be mapped elsewhere",
    ),
    ("host_pages_migrated", "4 KiB pages", "daemons of the host: moved to free frames"),
    (
        "host_pages_exchanged",
        "4 KiB pages",
        "daemons of the host: pages that changed places with others, those included",
    ),
    (
        "host_collapses",
        "count",
        "daemons of the host: large pages made of small ones in another place (khugepaged)",
    ),
    (
        "host_joins",
        "count",
        "daemons of the host: large pages made of small ones where they lay (Translation Ranger)",
    ),
    (
        "host_moving_cycles",
        "cycles",
        "of vmm_cycles, what moving memory takes the host: looking, copying, calling vCPUs out",
    ),
    ("host_faults", "count", "page faults of the host kernel for guest RAM"),
    ("host_pages_cleared", "4 KiB pages", "memory that the host kernel cleared"),
    ("nested_fills", "count", "entries stored to nested tables"),
    (
        "nested_prefetches",
        "count",
        "entries stored to nested tables beside one of a page that is executed, ahead of a violation",
    ),
    ("shadow_fills", "count", "entries stored to shadow tables on a fault"),
    ("remote_flushes", "count", "flushes of all cores' translations that the hypervisor asked for"),
    ("shadow_prefetches", "count", "entries stored to shadow tables ahead of a fault"),
    ("shadow_drops", "count", "leaf entries that went from shadow tables"),
    (
        "sync_entries",
        "count",
        "shadow entries looked at while out-of-sync tables were brought in step",
    ),
    ("sync_present", "count", "of these, present ones, compared with the guest's"),
    ("shadow_pages", "count", "shadow table pages made"),
    ("shadow_zaps", "count", "shadow table pages dropped"),
    ("flood_zaps", "count", "of these, the ones dropped because of write flooding"),
    ("tables_nested", "count", "agile paging: guest tables that went nested, with all below each"),
    ("tables_shadowed", "count", "agile paging: guest tables that went back to shadow mode"),
    ("dirty_bits_scanned", "count", "agile paging: dirty bits of nested tables looked at"),
    (
        "hypercall_operations",
        "count",
        "direct paging: entries, changes of type, roots, invalidations in hypercalls",
    ),
    (
        "entries_validated",
        "count",
        "direct paging: present entries of pages that became tables, checked once each",
    ),
    ("updates_refused", "count", "direct paging: entries not taken as they were asked for"),
    (
        "data_served",
        "count",
        "where the program's data references were served, one per line of a page run",
    ),
    ("fetch_served", "count", "where instruction lines were served"),
    ("program_cycles", "cycles", "instructions and their exposed data latency"),
    (
        "translation_cycles",
        "cycles",
        "delay by walks and look-ups of the second-level TLB, after overlap",
    ),
    ("total_cycles", "cycles", "program + guest OS + translation + VMM"),
    ("ideal_cycles", "cycles", "total of the ideal machine with the same guest"),
    (
        "translation_overhead_percent",
        "% of ideal",
        "everything above ideal that is not the VMM's: walks, hits of the second-level TLB, and what page tables displace from the data caches",
    ),
    ("vmm_overhead_percent", "% of ideal", "vmm_cycles"),
    ("overhead_percent", "% of ideal", "both together"),
    (
        "setup_guest_faults",
        "count",
        "page faults delivered to the guest kernel before counting began: populating, warm-up",
    ),
    (
        "setup_pages_cleared",
        "4 KiB pages",
        "memory that the guest kernel cleared before counting began",
    ),
    (
        "setup_overhead_percent",
        "% of ideal",
        "work of guest kernel, hypervisor and host kernel before counting began, which no other number contains",
    ),
    ("energy", "nJ", "dynamic energy by structure, and static energy over the run time"),
    (
        "page_table_bytes",
        "bytes",
        "memory of tables at the end: guest, nested, shadow, host process",
    ),
    ("host_placement", "", "what the host's placement policy came to; absent without a host"),
    (
        "segments",
        "",
        "of schemes with segments: the largest of the guest, the VMM's at the end, what escapes",
    ),
    (
        "contiguity",
        "",
        "of schemes that use contiguity: guesses, hits of ranges and anchors, runs, what software keeps",
    ),
    ("switching", "", "of schemes whose paging mode changes: time in each mode, and the switches"),
    ("coverage", "", "with --contiguity: runs of mapped pages at the end, and what covers them"),
    ("referee", "", "with --verify: runs checked, violations, the first of them"),
];

fn ratio(a: f64, b: f64) -> f64 {
    if b == 0.0 { 0.0 } else { a / b }
}

/// A rate per instruction: of a source that does not know its instructions not a number, which is `null`
/// in JSON and empty in CSV.
fn rate(a: f64, instructions: f64) -> f64 {
    if instructions == 0.0 { f64::NAN } else { a / instructions }
}

fn served(counts: &[u64; ServedBy::COUNT]) -> BTreeMap<&'static str, u64> {
    ServedBy::NAMES.into_iter().zip(counts.iter().copied()).collect()
}

/// Classes of walks of agile paging: name, references with nothing cached, count.
fn switched(c: &Counters) -> impl Iterator<Item = (&'static str, u64, u64)> {
    const NAMES: [&str; FULLY_NESTED + 1] = ["shadow", "l1", "l2", "l3", "l4", "l5", "nested"];
    // Each nested level replaces one reference by one and four; nested from CR3 on, four more for that.
    let length = |class: usize| 4 + 4 * if class == FULLY_NESTED { 5 } else { class as u64 };
    NAMES.iter().enumerate().map(move |(i, name)| (*name, length(i), c.walks_switched[i]))
}

impl MachineResult {
    /// Derives everything from the counters, and from those of the ideal machine with the same guest, if
    /// there is one.
    pub fn new(
        (name, scheme): (&str, &str),
        c: &Counters,
        profile: &Profile,
        ideal: Option<&Counters>,
        page_table_bytes: PageTableBytes,
        referee: Option<Verdict>,
    ) -> Self {
        let cycles = Cycles::of(c, profile);
        let ideal_cycles = ideal.map_or(0.0, |ideal| Cycles::of(ideal, profile).total());
        let kilo = c.instructions as f64 / 1000.0;
        let percent = |x: f64| 100.0 * ratio(x, ideal_cycles);
        let places = [ServedBy::L1, ServedBy::L2, ServedBy::Llc, ServedBy::Memory];
        let exits = ExitReason::ALL.iter().map(|r| (r.name(), c.exits[*r as usize]));
        Self {
            name: name.into(),
            scheme: scheme.into(),
            instructions: c.instructions,
            kernel_instructions: c.kernel_instructions,
            accesses: c.accesses,
            fetches: c.fetches,
            l1d_tlb_lookups: c.l1d_tlb_lookups,
            l1i_tlb_lookups: c.l1i_tlb_lookups,
            l1_tlb_misses: c.l1_tlb_misses,
            l1_tlb_fills: c.l1_tlb_fills,
            l2_tlb_hits: c.l2_tlb_hits,
            l2_tlb_misses: c.l2_tlb_misses,
            l1_tlb_mpki: rate(c.l1_tlb_misses as f64, kilo),
            l2_tlb_mpki: rate(c.l2_tlb_misses as f64, kilo),
            upgrades: c.upgrades,
            walks: c.walks,
            faulted_walks: c.faulted_walks,
            guest_refs: c.references.of(Dimension::Guest),
            nested_refs: c.references.of(Dimension::Nested),
            shadow_refs: c.references.of(Dimension::Shadow),
            refs_per_walk: ratio(c.references.total() as f64, c.walks as f64),
            refs_served: served(&places.map(|p| c.references.served_by(p))),
            faulted_refs: c.faulted_references.total(),
            walks_switched: switched(c).map(|(name, _, n)| (name, n)).filter(|w| w.1 > 0).collect(),
            switched_refs_per_walk: ratio(
                switched(c).map(|(_, length, n)| (length * n) as f64).sum(),
                c.walks_switched.iter().sum::<u64>() as f64,
            ),
            ad_walks: c.ad_walks,
            walk_cache_lookups: c.walk_cache_lookups,
            walk_cache_hits: c.walk_cache_hits,
            entry_cache_lookups: c.entry_cache_lookups,
            entry_cache_hits: c.entry_cache_hits,
            nested_tlb_hits: c.nested_tlb_hits,
            nested_walks: c.nested_walks,
            splintered: c.splintered,
            coalesced_fills: c.coalesced_fills,
            coalesced_pages: c.coalesced_pages,
            coalesced_hits: c.coalesced_hits,
            run_buffer_lookups: c.run_buffer_lookups,
            walk_cycles: c.walk_cycles,
            cycles_per_walk: ratio(c.walk_cycles as f64, (c.walks + c.faulted_walks) as f64),
            vm_exits: exits.filter(|(_, n)| *n > 0).collect(),
            vm_exits_total: c.exits_total(),
            vmm_cycles: cycles.vmm,
            lock_wait_cycles: cycles.lock_wait,
            lock_held_cycles: locked_ns(c, profile) * profile.core.frequency_mhz.value / 1000.0,
            lock_visits: c.lock_visits.total(),
            vmm_work: vmm_items(c, &profile.software)
                .into_iter()
                .filter(|i| i.times > 0)
                .map(|i| (i.price, i.times))
                .collect(),
            guest_faults: c.guest_faults,
            guest_os_cycles: cycles.guest_os,
            guest_os_work: OsWork::ALL
                .iter()
                .map(|w| (w.name(), c.os_work[w.index()]))
                .filter(|(_, n)| *n > 0)
                .collect(),
            pages_cleared: c.pages_cleared,
            table_writes: c.table_writes,
            cr3_loads: c.cr3_loads,
            invalidations: c.invalidations,
            mode_switches: c.mode_switches,
            segment_hits: c.segment_hits,
            segment_accesses: c.segment_accesses,
            guest_segment_checks: c.guest_segment_checks,
            vmm_segment_checks: c.vmm_segment_checks,
            segment_escapes: c.segment_escapes,
            false_escapes: c.false_escapes,
            guest_segment_loads: c.guest_segment_loads,
            vmm_segment_loads: c.vmm_segment_loads,
            pages_moved: c.pages_moved,
            balloon_pages: c.balloon_pages,
            host_pages_scanned: c.host_pages_scanned,
            host_pages_unmapped: c.host_pages_unmapped,
            host_pages_migrated: c.host_pages_migrated,
            host_pages_exchanged: c.host_pages_exchanged,
            host_collapses: c.host_collapses,
            host_joins: c.host_joins,
            host_moving_cycles: host_moving_cycles(c, profile),
            host_faults: c.host_faults,
            host_pages_cleared: c.host_pages_cleared,
            nested_fills: c.nested_fills,
            nested_prefetches: c.nested_prefetches,
            shadow_fills: c.shadow_fills,
            remote_flushes: c.remote_flushes,
            shadow_prefetches: c.shadow_prefetches,
            shadow_drops: c.shadow_drops,
            sync_entries: c.sync_entries,
            sync_present: c.sync_present,
            shadow_pages: c.shadow_pages,
            shadow_zaps: c.shadow_zaps,
            flood_zaps: c.flood_zaps,
            tables_nested: c.tables_nested,
            tables_shadowed: c.tables_shadowed,
            dirty_bits_scanned: c.dirty_bits_scanned,
            hypercall_operations: c.hypercall_operations,
            entries_validated: c.entries_validated,
            updates_refused: c.updates_refused,
            data_served: served(&c.data),
            fetch_served: served(&c.fetch),
            program_cycles: cycles.program,
            translation_cycles: cycles.translation,
            total_cycles: cycles.total(),
            ideal_cycles,
            translation_overhead_percent: percent(cycles.total() - cycles.vmm - ideal_cycles),
            vmm_overhead_percent: percent(cycles.vmm),
            overhead_percent: percent(cycles.total() - ideal_cycles),
            setup_guest_faults: 0,
            setup_pages_cleared: 0,
            setup_overhead_percent: 0.0,
            energy: EnergyResult::new(c, profile, ideal),
            page_table_bytes,
            host_placement: None,
            segments: None,
            contiguity: None,
            switching: None,
            coverage: None,
            referee,
        }
    }

    /// Tells what was done before counting began, by counters that end where the others begin.
    pub fn set_up(&mut self, before: &Counters, profile: &Profile) {
        let cycles = Cycles::of(before, profile);
        self.setup_guest_faults = before.guest_faults;
        self.setup_pages_cleared = before.pages_cleared;
        self.setup_overhead_percent =
            ratio(100.0 * (cycles.guest_os + cycles.vmm), self.ideal_cycles);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nestwalk_policy::Mode;

    #[test]
    fn every_field_is_documented_in_order() {
        let profile = Profile::load("cascade-lake-6252").unwrap();
        let verdict = Verdict { checked: 0, violations: 0, told: Vec::new() };
        let mut result = MachineResult::new(
            ("n", "s"),
            &Counters::default(),
            &profile,
            None,
            PageTableBytes::default(),
            Some(verdict),
        );
        let journal = crate::switching::journal::Journal::new(&profile, 1, Mode::Shadow);
        result.switching = Some(journal.result(&Counters::default(), Mode::Shadow));
        result.segments = Some(SegmentState::default());
        result.contiguity = Some(ContiguityResult::default());
        result.host_placement = Some(PlacementResult::default());
        result.coverage = Some(CoverageResult::default());
        let text = serde_json::to_string(&result).unwrap();
        let mut from = 0;
        for (name, _, meaning) in FIELDS {
            let key = format!("\"{name}\":");
            let at = text[from..].find(&key).unwrap_or_else(|| panic!("{name} is not in order"));
            from += at + key.len();
            assert!(!meaning.is_empty());
        }
        let keys = serde_json::to_value(&result).unwrap().as_object().unwrap().len();
        assert_eq!(keys, FIELDS.len());
    }
}
