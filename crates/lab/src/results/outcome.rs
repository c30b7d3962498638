//! What guests did, for the results: as JSON and as lines for people.

use nestwalk_hw::Profile;
use nestwalk_mm::{
    Ballooned, DROP_REASONS, DroppedRun, GuestStats, LevelWrites, ObservedStats, RemapStats,
};
use nestwalk_report::{bytes, count};
use nestwalk_sim::measure::cost::{balloon_ns, compaction_ns, daemons_ns};
use nestwalk_sim::{GuestOutcome, PlacementResult};
use serde_json::{Map, Value, json};

/// Documented in `fields::GUEST`, `fields::REMAPPED` and `fields::OBSERVED`.
pub fn json(outcome: &GuestOutcome, profile: &Profile) -> Value {
    match outcome {
        GuestOutcome::Modelled(stats) => modelled(stats, profile),
        GuestOutcome::Remapped { guest, remap, .. } => {
            let mut value = modelled(guest, profile);
            if let (Some(all), Value::Object(more)) = (value.as_object_mut(), remapped(remap)) {
                all.extend(more);
            }
            value
        }
        GuestOutcome::Observed { stats, examples } => observed(stats, examples),
    }
}

fn modelled(s: &GuestStats, profile: &Profile) -> Value {
    let Ballooned { pages, compaction_pages, .. } = s.balloon;
    let mut value = json!({
        "faults": s.faults,
        "first_touches": s.first_touches,
        "copies": s.copies,
        "reuses": s.reuses,
        "splits": s.splits,
        "fallbacks": s.fallbacks,
        "implicit_mappings": s.implicit_mappings,
        "peak_table_bytes": s.peak_table_bytes,
        "peak_resident_bytes": s.peak_resident_bytes,
        "pages_4k": s.pages_4k,
        "pages_2m": s.pages_2m,
        "pages_4m": s.pages_4m,
        "pages_1g": s.pages_1g,
        "processes": s.processes,
        "primary_bytes": s.primary_bytes,
        "segment_loads": s.segment_loads,
        "placement": PlacementResult::new(&s.placement, profile),
        "balloon_pages": pages,
        "balloon_ms": balloon_ns(pages, profile) / 1e6,
        "hot_added_bytes": s.balloon.added_bytes,
        "longest_run_before": s.balloon.longest_before,
        "longest_run_after": s.balloon.longest_after,
        "compaction_pages": compaction_pages,
        "compaction_ms": compaction_ns(compaction_pages, profile) / 1e6,
        "daemon_runs": s.daemons.runs,
        "daemon_pages_scanned": s.daemons.scanned,
        "daemon_pages_migrated": s.daemons.migrated,
        "daemon_pages_exchanged": s.daemons.exchanged,
        "daemon_pages_stuck": s.daemons.stuck,
        "daemon_collapses": s.daemons.collapsed,
        "daemon_bloat_pages": s.daemons.bloat,
        "daemon_joins": s.daemons.joined,
        "daemon_splits": s.daemons.split,
        "daemon_interrupts": s.daemon_interrupts,
        "daemon_ms": daemons_ns(&s.daemons, s.daemon_interrupts, profile) / 1e6,
    });
    if let Some(swap) = &s.swap {
        value["swap"] = json!({
            "pages_scanned": swap.scanned,
            "taken_back": swap.taken,
            "written": swap.written,
            "swapped_in": swap.came_back,
            "ballooned": swap.ballooned,
        });
    }
    value
}

fn remapped(s: &RemapStats) -> Value {
    json!({
        "recorded_accesses": s.accesses,
        "left_out_accesses": s.left_out,
        "unmapped_accesses": s.unmapped,
        "recorded_processes": s.processes,
        "recorded_forks": s.forks,
    })
}

fn observed(s: &ObservedStats, examples: &[DroppedRun]) -> Value {
    let writes =
        |w: &LevelWrites| json!({ "set": w.set, "cleared": w.cleared, "changed": w.changed });
    let levels: Map<String, Value> = levels(s).map(|(l, w)| (l.to_string(), writes(w))).collect();
    let dropped: Map<String, Value> = DROP_REASONS
        .iter()
        .zip(&s.dropped)
        .map(|(r, d)| (r.name().into(), json!({ "runs": d.runs, "accesses": d.accesses })))
        .collect();
    json!({
        "accesses": s.accesses,
        "kernel_accesses": s.kernel_accesses,
        "faults": s.faults,
        "protection_faults": s.protection_faults,
        "write_faults": s.write_faults,
        "fetch_faults": s.fetch_faults,
        "kernel_faults": s.kernel_faults,
        "table_writes": levels,
        "stray_writes": s.stray_writes,
        "new_tables": s.tables_new,
        "table_bytes": s.tables << 12,
        "peak_table_bytes": s.peak_tables << 12,
        "cr3_loads": s.cr3_loads,
        "cr3_reloads": s.cr3_reloads,
        "invalidations": s.invalidations,
        "processes": s.processes,
        "dropped": dropped,
        "dropped_examples": examples.iter().map(ToString::to_string).collect::<Vec<_>>(),
    })
}

/// Levels with a table, and level 0 if anything was counted there.
fn levels(s: &ObservedStats) -> impl Iterator<Item = (usize, &LevelWrites)> {
    s.table_writes.iter().enumerate().filter(|(level, w)| matches!(level, 1..=4) || w.total() > 0)
}

/// A line for people, and more if something was dropped.
pub fn lines(name: &str, outcome: &GuestOutcome, profile: &Profile) -> String {
    match outcome {
        GuestOutcome::Modelled(stats) => {
            format!(
                "guest    {name}: {}\n{}{}",
                summary(stats),
                ballooned(stats, profile),
                of_daemons(stats, profile)
            )
        }
        GuestOutcome::Remapped { guest, remap, .. } => {
            let share = 100.0 * remap.left_out as f64 / remap.accesses.max(1) as f64;
            format!(
                "guest    {name}: {}; {share:.1} % of the recorded accesses are the kernel's and left \
                 out\n{}",
                summary(guest),
                of_daemons(guest, profile)
            )
        }
        GuestOutcome::Observed { stats, examples } => of_observed(name, stats, examples),
    }
}

fn summary(s: &GuestStats) -> String {
    let swapped = s.swap.map_or(String::new(), |swap| {
        format!(
            ", {} pages swapped ({} written), {} came back",
            count(swap.taken),
            count(swap.written),
            count(swap.came_back)
        )
    });
    format!(
        "{} faults, {} resident at most, {} tables at most{swapped}",
        count(s.faults),
        bytes(s.peak_resident_bytes),
        bytes(s.peak_table_bytes)
    )
}

/// What the kernel's daemons did, if there are any and they ran.
fn of_daemons(s: &GuestStats, profile: &Profile) -> String {
    let d = &s.daemons;
    if d.runs == 0 {
        return String::new();
    }
    format!(
        "daemons  {} runs, {:.1} ms; {} pages moved, {} exchanged, {} stuck; {} large pages made, {} split\n",
        count(d.runs),
        daemons_ns(d, s.daemon_interrupts, profile) / 1e6,
        count(d.migrated),
        count(d.exchanged),
        count(d.stuck),
        count(d.collapsed + d.joined),
        count(d.split)
    )
}

/// What self-ballooning did, if it was needed.
fn ballooned(s: &GuestStats, profile: &Profile) -> String {
    let b = &s.balloon;
    if b.times == 0 {
        return String::new();
    }
    format!(
        "balloon  {} pages for {} of new memory, {:.1} ms; longest free run {} before, {} after; \
         compaction would have moved {} pages, {:.1} ms\n",
        count(b.pages),
        bytes(b.added_bytes),
        balloon_ns(b.pages, profile) / 1e6,
        bytes(b.longest_before),
        bytes(b.longest_after),
        count(b.compaction_pages),
        compaction_ns(b.compaction_pages, profile) / 1e6
    )
}

fn of_observed(name: &str, s: &ObservedStats, examples: &[DroppedRun]) -> String {
    let levels: Vec<String> = levels(s)
        .map(|(level, w)| match level {
            0 => format!("{} elsewhere", count(w.total())),
            level => format!("{} L{level}", count(w.total())),
        })
        .collect();
    let processes = match s.processes {
        0 => String::new(),
        1 => "1 process, ".into(),
        n => format!("{} processes, ", count(n)),
    };
    let mut out = format!(
        "guest    {name}: {} faults, {} stores to tables ({}), {} tables at most, {processes}{:.1} % \
         of accesses by the kernel\n",
        count(s.faults),
        count(s.table_writes_total()),
        levels.join(", "),
        bytes(s.peak_tables << 12),
        100.0 * s.kernel_accesses as f64 / s.accesses.max(1) as f64
    );
    let dropped = s.dropped_total();
    if dropped.runs > 0 {
        let reasons = DROP_REASONS.iter().zip(&s.dropped).filter(|(_, d)| d.runs > 0);
        let reasons: Vec<String> = reasons
            .map(|(r, d)| format!("{} {}", count(d.runs), r.name().replace('_', " ")))
            .collect();
        out += &format!(
            "dropped  {} runs with {} accesses that the tables have no place for: {}\n",
            count(dropped.runs),
            count(dropped.accesses),
            reasons.join(", ")
        );
        for example in examples {
            out += &format!("         {example}\n");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::fields::{Field, GUEST, OBSERVED, REMAPPED};

    fn is_documented(outcome: &GuestOutcome, fields: &[&[Field]]) {
        let value = json(outcome, &Profile::load("cascade-lake-6252").unwrap());
        let mut keys: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
        let mut documented: Vec<&str> = fields.concat().iter().map(|f| f.0).collect();
        keys.sort_unstable();
        documented.sort_unstable();
        assert_eq!(keys, documented);
    }

    #[test]
    fn every_field_of_a_guest_is_documented() {
        let (guest, remap) = (GuestStats::default(), RemapStats::default());
        is_documented(&GuestOutcome::Modelled(guest), &[GUEST]);
        let approximations = Vec::new();
        is_documented(&GuestOutcome::Remapped { guest, remap, approximations }, &[GUEST, REMAPPED]);
        let stats = ObservedStats::default();
        is_documented(&GuestOutcome::Observed { stats, examples: Vec::new() }, &[OBSERVED]);
    }
}
