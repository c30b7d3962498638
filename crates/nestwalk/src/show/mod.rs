//! Results as tables for people.

pub mod columns;
pub mod headings;

pub use nestwalk_lab::results::{baseline, long, repeats};

use headings::table;
use nestwalk_lab::results::ratio;
use nestwalk_lab::{Outcome, sampling};
use nestwalk_report::{Table, bytes, count};
use nestwalk_sim::report::results::MachineResult;
use std::fmt::Write;

const NONE: &str = "-";

fn per_walk(refs: u64, walks: u64) -> String {
    if refs == 0 { NONE.into() } else { format!("{:.2}", ratio(refs, walks)) }
}

fn or_none(value: u64, text: String) -> String {
    if value == 0 { NONE.into() } else { text }
}

/// A rate per instruction, which a source without instructions does not have.
fn rate(value: f64) -> String {
    if value.is_nan() { NONE.into() } else { format!("{value:.2}") }
}

/// What came before counting, which the table leaves out: a line, empty if nothing did.
pub fn set_up(results: &[MachineResult], populated: bool) -> String {
    let cost = |r: &MachineResult| {
        let faults = count(r.setup_guest_faults);
        format!("{} {:.1} ({faults} page faults)", r.name, r.setup_overhead_percent)
    };
    let costs: Vec<String> =
        results.iter().filter(|r| r.setup_guest_faults > 0).map(cost).collect();
    if costs.is_empty() {
        return String::new();
    }
    let (what, instead) = if populated {
        ("memory was populated before counting", "; --populate no counts it")
    } else {
        ("memory was touched before counting, by the warm-up", "")
    };
    format!(
        "note     {what}: the table has no first touches. They took kernel and hypervisor, in % of the \
         ideal run time: {}{instead}\n",
        costs.join(", ")
    )
}

/// VM exits by reason, a row per machine that has any.
pub fn exits(results: &[MachineResult]) -> Option<Table> {
    let mut reasons: Vec<&str> = Vec::new();
    for r in results {
        reasons.extend(r.vm_exits.keys().filter(|k| !reasons.contains(k)).collect::<Vec<_>>());
    }
    if reasons.is_empty() {
        return None;
    }
    let [first, last] = &headings::EXITS;
    let mut table = Table::new().column(first.title, first.align);
    for reason in &reasons {
        table = table.column(reason, last.align);
    }
    table = table.column(last.title, last.align);
    for r in results.iter().filter(|r| r.vm_exits_total > 0) {
        let mut row = vec![r.name.clone()];
        row.extend(reasons.iter().map(|k| match r.vm_exits.get(k) {
            Some(n) => count(*n),
            None => NONE.into(),
        }));
        let per_1000 = format!("{:.4}", 1000.0 * ratio(r.vm_exits_total, r.instructions));
        row.push(or_none(r.instructions, per_1000));
        table.row(row);
    }
    Some(table)
}

/// Segments, a row per machine that has registers for them.
pub fn segments(results: &[MachineResult]) -> Option<Table> {
    let mut table = table(&headings::SEGMENTS);
    let mut any = false;
    for r in results {
        let Some(s) = &r.segments else { continue };
        any = true;
        table.row(vec![
            r.name.clone(),
            or_none(s.guest.bytes, bytes(s.guest.bytes)),
            or_none(s.vmm.bytes, bytes(s.vmm.bytes)),
            or_none(s.vmm.bytes, format!("{:.1} %", s.vmm_percent)),
            or_none(s.guest.escaped + s.vmm.escaped, count(s.guest.escaped + s.vmm.escaped)),
            or_none(s.guest.reported + s.vmm.reported, count(s.guest.reported + s.vmm.reported)),
            count(r.segment_hits + r.segment_accesses),
            count(r.guest_segment_checks),
            count(r.vmm_segment_checks),
        ]);
    }
    any.then_some(table)
}

/// Contiguity, a row per machine whose hardware makes use of it.
pub fn contiguity(results: &[MachineResult]) -> Option<Table> {
    let mut table = table(&headings::CONTIGUITY);
    let mut any = false;
    let percent = |a: u64, b: u64| or_none(b, format!("{:.1}", 100.0 * ratio(a, b)));
    for r in results {
        let Some(c) = &r.contiguity else { continue };
        any = true;
        let background = c.background_refs.values().sum();
        table.row(vec![
            r.name.clone(),
            count(c.state.guest_runs),
            or_none(c.state.host_runs, count(c.state.host_runs)),
            or_none(r.predictions, count(r.predictions)),
            percent(r.predictions_right, r.predictions),
            or_none(r.predictions, percent(r.hidden_walk_cycles, r.walk_cycles)),
            or_none(r.range_hits, count(r.range_hits)),
            or_none(r.anchor_hits, count(r.anchor_hits)),
            or_none(c.state.anchor_distance, count(c.state.anchor_distance)),
            or_none(background, count(background)),
            or_none(c.state.metadata_bytes, bytes(c.state.metadata_bytes)),
        ]);
    }
    any.then_some(table)
}

/// Energies, a row per machine: picojoules per instruction, and what is above the ideal machine.
pub fn energy(results: &[MachineResult]) -> Option<Table> {
    let mut table = table(&headings::ENERGY);
    for r in results {
        let (e, p) = (&r.energy, &r.energy.parts);
        let each = |nj: f64| match 1000.0 * nj / r.instructions as f64 {
            pj if pj == 0.0 || !pj.is_finite() => NONE.into(),
            pj if pj < 10.0 => format!("{pj:.2}"),
            pj => format!("{pj:.1}"),
        };
        let above = |percent: f64| match r.scheme.as_str() {
            "ideal" => NONE.into(),
            _ => format!("{percent:.1}"),
        };
        table.row(vec![
            r.name.clone(),
            each(p.l1_tlb + p.l2_tlb),
            each(p.walk_caches),
            each(p.nested_tlb),
            each(p.segment_checks + p.escape_filter),
            each(p.walk_references),
            each(e.translation),
            each(p.data),
            each(p.core),
            each(p.vmm),
            each(p.static_power),
            each(e.total),
            above(e.dynamic_overhead_percent),
            above(e.static_overhead_percent),
            above(e.overhead_percent),
        ]);
    }
    table.drop_columns_of(NONE);
    Some(table)
}

/// Contiguity at the end, a row per machine and dimension; empty unless it was asked for.
pub fn coverage(results: &[MachineResult]) -> Option<Table> {
    let mut table = table(&headings::COVERAGE);
    let mut any = false;
    for r in results {
        let Some(c) = &r.coverage else { continue };
        let dimensions =
            [("guest", Some(&c.guest)), ("host", c.host.as_ref()), ("both", c.both.as_ref())];
        for (i, (name, d)) in dimensions.iter().enumerate() {
            let Some(d) = d else { continue };
            any = true;
            let entries = |technique: &str| {
                let found = d.entries.get(technique).and_then(|shares| shares.get(&99));
                found.map_or(NONE.into(), |n| count(*n))
            };
            let mut row = vec![
                if i == 0 { r.name.clone() } else { String::new() },
                (*name).into(),
                bytes(d.pages << 12),
                count(d.runs),
                bytes(d.longest_pages << 12),
            ];
            row.extend(["4k", "2m", "1g", "colt-8", "clustered", "anchors"].map(entries));
            row.push(bytes(d.anchor_distance_pages << 12));
            row.extend(["ranges", "offsets"].map(entries));
            table.row(row);
        }
    }
    any.then_some(table)
}

/// Contiguity at moments of the run, a row for each; empty unless it was asked for.
pub fn coverage_over_time(results: &[MachineResult]) -> Option<Table> {
    let mut table = table(&headings::OVER_TIME);
    let mut any = false;
    for r in results {
        for (i, p) in r.coverage.iter().flat_map(|c| &c.over_time).enumerate() {
            any = true;
            let virtualized = r.coverage.as_ref().is_some_and(|c| c.both.is_some());
            let of_host = |n| if virtualized { count(n) } else { NONE.into() };
            table.row(vec![
                if i == 0 { r.name.clone() } else { String::new() },
                count(p.instructions),
                bytes(p.pages << 12),
                count(p.guest_ranges_99),
                of_host(p.host_ranges_99),
                of_host(p.both_ranges_99),
                count(p.guest_offsets_99),
                of_host(p.both_offsets_99),
            ]);
        }
    }
    table.drop_columns_of(NONE);
    any.then_some(table)
}

/// Estimates with their intervals; none if all was measured.
pub fn sampled(outcome: &Outcome) -> Option<Table> {
    outcome.sampled.as_ref()?;
    let mut table = table(&headings::SAMPLED);
    for (m, halves) in outcome.machines.iter().zip(sampling::half_widths(outcome)) {
        let half = |name: &str| halves.get(name).map_or(NONE.into(), |half| format!("{half:.3}"));
        table.row(vec![
            m.name.clone(),
            format!("{:.3}", m.overhead_percent),
            half("overhead_percent"),
            format!("{:.3}", m.translation_overhead_percent),
            half("translation_overhead_percent"),
            format!("{:.3}", m.l2_tlb_mpki),
            half("l2_tlb_mpki"),
        ]);
    }
    Some(table)
}

/// What the referee found, a line per machine that it watched.
pub fn referee(results: &[MachineResult]) -> String {
    let mut out = String::new();
    for r in results {
        if let Some(verdict) = &r.referee {
            let _ = writeln!(
                out,
                "referee: {}: {} runs checked, {} violations",
                r.name,
                count(verdict.checked),
                count(verdict.violations)
            );
            for line in &verdict.told {
                let _ = writeln!(out, "  {line}");
            }
        }
    }
    if out.is_empty() { out } else { format!("\n{out}") }
}
