//! What a comparison found, as numbers with names, units and meanings: the counters, and what follows
//! from them, a row each.

use crate::machine::coverage::CoverageResult;
use crate::machine::referee::Verdict;
use crate::measure::cost::{Cycles, host_moving_cycles, locked_cycles, vmm_items};
use crate::measure::counters::{Counters, Dimension, ExitReason, FULLY_NESTED, Section};
use crate::measure::energy::EnergyResult;
use crate::measure::walk_map::WalkPlace;
use crate::report::contiguity::ContiguityResult;
use crate::report::nodes::NodesResult;
use crate::report::placement::PlacementResult;
use crate::report::tables::TablesResult;
use crate::scheme::SwitchingResult;
use crate::scheme::{PageTableBytes, SegmentState};
use nestwalk_hw::{Profile, ServedBy};
use nestwalk_types::OsWork;
use serde::ser::{Serialize, SerializeMap, Serializer};
use std::collections::BTreeMap;
use std::sync::LazyLock;

/// A field of results: name, unit, meaning.
pub type Field = (&'static str, &'static str, &'static str);

/// Numbers by name, without those that are 0.
type Named = BTreeMap<&'static str, u64>;

/// From what a machine's results follow.
struct Basis<'a> {
    c: &'a Counters,
    profile: &'a Profile,
    ideal: Option<&'a Counters>,
    cycles: Cycles,
    ideal_cycles: f64,
    page_table_bytes: PageTableBytes,
}

/// Rows of what follows from counters, each group behind the counter that stands before it in results,
/// and of parts that only some machines have, which are filled in later.
macro_rules! results {
    (
        |$b:ident, $c:ident|
        $(after $after:ident {
            $($name:ident: $type:ty, $unit:literal, $meaning:literal = $value:expr;)*
        })*
        parts { $($part:ident: $of:ty, $what:literal;)* }
    ) => {
        /// Results of one machine; it reads as its counters, too. [`FIELDS`] has all of it in order.
        #[derive(Clone, Debug, PartialEq)]
        pub struct MachineResult {
            /// The machine: scheme:guest pages+host pages.
            pub name: String,
            /// The scheme.
            pub scheme: String,
            /// Everything that was counted.
            pub counters: Counters,
            $($(#[doc = concat!($meaning, " (", $unit, ")")] pub $name: $type,)*)*
            $(#[doc = $what] pub $part: Option<$of>,)*
        }

        impl MachineResult {
            fn of((name, scheme): (&str, &str), $b: &Basis) -> Self {
                let $c = $b.c;
                Self {
                    name: name.into(),
                    scheme: scheme.into(),
                    counters: $c.clone(),
                    $($($name: $value,)*)*
                    $($part: None,)*
                }
            }
        }

        impl Serialize for MachineResult {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let mut map = serializer.serialize_map(None)?;
                map.serialize_entry("name", &self.name)?;
                map.serialize_entry("scheme", &self.scheme)?;
                for (row, value) in self.counters.of(Section::Machine) {
                    map.serialize_entry(row.name, &value)?;
                    match row.name {
                        $(stringify!($after) => {
                            $(map.serialize_entry(stringify!($name), &self.$name)?;)*
                        })*
                        _ => {}
                    }
                }
                $(if let Some(part) = &self.$part {
                    map.serialize_entry(stringify!($part), part)?;
                })*
                map.end()
            }
        }

        #[cfg(feature = "schema")]
        impl schemars::JsonSchema for MachineResult {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                "Machine".into()
            }
            fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
                let mut all = crate::report::schema::Object::default();
                for field in &NAMES {
                    all.always::<String>(generator, field);
                }
                for row in Counters::ROWS.iter().filter(|row| row.section == Section::Machine) {
                    all.always::<u64>(generator, &row.field());
                    match row.name {
                        $(stringify!($after) => {
                            $(all.always::<$type>(generator, &(stringify!($name), $unit, $meaning));)*
                        })*
                        _ => {}
                    }
                }
                $(all.sometimes::<$of>(generator, &(stringify!($part), "", $what));)*
                all.schema()
            }
        }

        /// What follows from counters, behind which counter each group stands.
        const GROUPS: &[(&str, &[Field])] =
            &[$((stringify!($after), &[$((stringify!($name), $unit, $meaning)),*])),*];
        /// Parts that only some machines have.
        const PARTS: &[Field] = &[$((stringify!($part), "", $what)),*];
    };
}

results! {
    |b, c|
    after l2_tlb_misses {
        l1_tlb_mpki: f64, "per 1000 instructions",
            "first-level misses; null if instructions are not known"
            = rate(c.l1_tlb_misses, c);
        l2_tlb_mpki: f64, "per 1000 instructions",
            "second-level misses; null if instructions are not known"
            = rate(c.l2_tlb_misses, c);
    }
    after faulted_walks {
        guest_refs: u64, "count",
            "references of completed walks to guest tables (native: its own tables)"
            = c.references.of(Dimension::Guest);
        nested_refs: u64, "count", "references of completed walks to nested tables"
            = c.references.of(Dimension::Nested);
        shadow_refs: u64, "count", "references of completed walks to shadow tables"
            = c.references.of(Dimension::Shadow);
        refs_per_walk: f64, "count", "references per completed walk, all tables"
            = ratio(c.references.total() as f64, c.walks as f64);
        refs_served: Named, "count",
            "where references of completed walks were served: l1, l2, llc, memory"
            = served(&ServedBy::ALL.map(|place| c.references.served_by(place)));
        faulted_refs: u64, "count", "references of walks that ended in a fault"
            = c.faulted_references.total();
        walks_switched: Named, "count",
            "agile paging: walks by the level of the guest table at which they went from shadow to \
             guest tables; with nothing cached, 4-level tables and 4 KiB pages 4 references for \
             shadow, 8, 12, 16 and 20 for l1 to l4, 24 for nested"
            = some(switched(c).map(|(name, _, n)| (name, n)));
        switched_refs_per_walk: f64, "count",
            "agile paging: average length of those walks with nothing cached, as its paper counts"
            = ratio(
                switched(c).map(|(_, length, n)| (length * n) as f64).sum(),
                c.walks_switched.iter().sum::<u64>() as f64,
            );
    }
    after walk_cycles {
        cycles_per_walk: f64, "cycles", "walk_cycles per walk, faulted ones included"
            = ratio(c.walk_cycles as f64, (c.walks + c.faulted_walks) as f64);
        vm_exits: Named, "count", "exits to the hypervisor by reason"
            = some(ExitReason::ALL.iter().map(|r| (r.name(), c.exits[*r as usize])));
        vm_exits_total: u64, "count", "exits of all reasons" = c.exits_total();
        world_switches: u64, "count",
            "switches between guest and hypervisor, or between hypervisors: two for each exit, four for \
             each that an outer hypervisor reflects"
            = c.world_switches();
        vmm_cycles: f64, "cycles", "the hypervisor's and the host kernel's work" = b.cycles.vmm;
        lock_wait_cycles: f64, "cycles",
            "of these, waiting for the lock of the shadow tables" = b.cycles.lock_wait;
        lock_held_cycles: f64, "cycles", "of vmm_cycles, what is done while that lock is held"
            = locked_cycles(c, b.profile);
        lock_visits: u64, "count", "how often that lock was taken" = c.lock_visits.total();
        vmm_work: Named, "count",
            "how often each price of the profile's `[software]` was paid: vmm_cycles is the sum of \
             times * price"
            = some(vmm_items(c).map(|(price, times)| (price.key, times)));
    }
    after guest_faults {
        guest_os_cycles: f64, "cycles",
            "the guest kernel's work; the same on every machine with this guest"
            = b.cycles.guest_os;
        guest_os_work: Named, "count",
            "the guest kernel's forks, execs, exits, copies and switches, and the work of its daemons"
            = some(OsWork::ALL.iter().map(|w| (w.name(), c.os_work[w.index()])));
    }
    after host_joins {
        host_moving_cycles: f64, "cycles",
            "of vmm_cycles, what moving memory takes the host: looking, copying, calling vCPUs out"
            = host_moving_cycles(c, b.profile);
    }
    after updates_refused {
        data_served: Named, "count",
            "where the program's data references were served, one per line of a page run"
            = served(&c.data);
        fetch_served: Named, "count", "where instruction lines were served" = served(&c.fetch);
        program_cycles: f64, "cycles", "instructions and their exposed data latency"
            = b.cycles.program;
        translation_cycles: f64, "cycles",
            "delay by walks and look-ups of the second-level TLB, after overlap"
            = b.cycles.translation;
        total_cycles: f64, "cycles", "program + guest OS + translation + VMM" = b.cycles.total();
        ideal_cycles: f64, "cycles", "total of the ideal machine with the same guest"
            = b.ideal_cycles;
        translation_overhead_percent: f64, "% of ideal",
            "everything above ideal that is not the VMM's: walks, hits of the second-level TLB, and \
             what page tables displace from the data caches"
            = b.percent(b.cycles.total() - b.cycles.vmm - b.ideal_cycles);
        vmm_overhead_percent: f64, "% of ideal", "vmm_cycles" = b.percent(b.cycles.vmm);
        overhead_percent: f64, "% of ideal", "both together"
            = b.percent(b.cycles.total() - b.ideal_cycles);
        setup_guest_faults: u64, "count",
            "page faults delivered to the guest kernel before counting began: populating, warm-up"
            = 0;
        setup_pages_cleared: u64, "4 KiB pages",
            "memory that the guest kernel cleared before counting began" = 0;
        setup_overhead_percent: f64, "% of ideal",
            "work of guest kernel, hypervisor and host kernel before counting began, which no other \
             number contains"
            = 0.0;
        energy: EnergyResult, "nJ", "dynamic energy by structure, and static energy over the run time"
            = EnergyResult::new(c, b.profile, b.ideal);
        page_table_bytes: PageTableBytes, "bytes",
            "memory of tables at the end: guest, nested, shadow, host process"
            = b.page_table_bytes;
    }
    parts {
        host_placement: PlacementResult,
            "what the host's placement policy came to; absent without a host";
        segments: SegmentState,
            "of schemes with segments: the largest of the guest, the VMM's at the end, what escapes";
        contiguity: ContiguityResult,
            "of schemes that use contiguity: guesses, hits of ranges and anchors, runs, what software \
             keeps";
        tables: TablesResult,
            "of schemes whose tables are of another kind: what software did for them, and how large they \
             are";
        nodes: NodesResult,
            "of machines of several nodes: what memory of other nodes served, and where frames lie";
        switching: SwitchingResult,
            "of schemes whose paging mode changes: time in each mode, and the switches";
        coverage: CoverageResult,
            "with --contiguity: runs of mapped pages at the end, and what covers them";
        walk_map: Vec<WalkPlace>,
            "with --walk-map: references of walks, faulted ones included, by the entry that they read";
        referee: Verdict, "with --verify: runs checked, violations, the first of them";
    }
}

/// What comes before the counters.
const NAMES: [Field; 2] =
    [("name", "", "the machine: scheme:guest pages+host pages"), ("scheme", "", "the scheme")];

/// Every field of [`MachineResult`], in its order.
pub static FIELDS: LazyLock<Vec<Field>> = LazyLock::new(|| {
    let mut fields = NAMES.to_vec();
    for row in Counters::ROWS.iter().filter(|row| row.section == Section::Machine) {
        fields.push(row.field());
        fields.extend(GROUPS.iter().filter(|g| g.0 == row.name).flat_map(|g| g.1));
    }
    fields.extend(PARTS);
    fields
});

impl std::ops::Deref for MachineResult {
    type Target = Counters;
    fn deref(&self) -> &Counters {
        &self.counters
    }
}

impl Basis<'_> {
    fn percent(&self, cycles: f64) -> f64 {
        100.0 * ratio(cycles, self.ideal_cycles)
    }
}

fn ratio(a: f64, b: f64) -> f64 {
    if b == 0.0 { 0.0 } else { a / b }
}

/// A rate per 1000 instructions: of a source that does not know its instructions not a number, which is
/// `null` in JSON and empty in CSV.
fn rate(n: u64, c: &Counters) -> f64 {
    let kilo = c.instructions as f64 / 1000.0;
    if kilo == 0.0 { f64::NAN } else { n as f64 / kilo }
}

fn some(counts: impl Iterator<Item = (&'static str, u64)>) -> Named {
    counts.filter(|(_, n)| *n > 0).collect()
}

/// Counts by where something was served.
pub(crate) fn served(counts: &[u64; ServedBy::COUNT]) -> Named {
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
        names: (&str, &str),
        c: &Counters,
        profile: &Profile,
        ideal: Option<&Counters>,
        page_table_bytes: PageTableBytes,
    ) -> Self {
        let cycles = Cycles::of(c, profile);
        let ideal_cycles = ideal.map_or(0.0, |ideal| Cycles::of(ideal, profile).total());
        Self::of(names, &Basis { c, profile, ideal, cycles, ideal_cycles, page_table_bytes })
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
        let c = Counters::default();
        let mut result =
            MachineResult::new(("n", "s"), &c, &profile, None, PageTableBytes::default());
        let journal = crate::switching::journal::Journal::new(&profile, 1, Mode::Shadow);
        result.switching = Some(journal.result(&c, Mode::Shadow));
        result.segments = Some(SegmentState::default());
        result.contiguity = Some(ContiguityResult::default());
        result.tables = Some(TablesResult::default());
        result.nodes = Some(NodesResult::default());
        result.host_placement = Some(PlacementResult::default());
        result.coverage = Some(CoverageResult::default());
        result.walk_map = Some(Vec::new());
        result.referee = Some(Verdict { checked: 0, violations: 0, told: Vec::new() });
        let text = serde_json::to_string(&result).unwrap();
        let mut from = 0;
        for (name, _, meaning) in FIELDS.iter() {
            let key = format!("\"{name}\":");
            let at = text[from..].find(&key).unwrap_or_else(|| panic!("{name} is not in order"));
            from += at + key.len();
            assert!(!meaning.is_empty());
        }
        let keys = serde_json::to_value(&result).unwrap().as_object().unwrap().len();
        assert_eq!(keys, FIELDS.len());
        // No group stands behind a counter that is not there.
        let counters = Counters::ROWS.iter().filter(|r| r.section == Section::Machine).count();
        let groups: usize = GROUPS.iter().map(|g| g.1.len()).sum();
        assert_eq!(FIELDS.len(), 2 + counters + groups + PARTS.len());
    }
}
