//! Results as a table for people.

use nestwalk_report::{Align, Table, bytes, count};
use nestwalk_sim::report::results::MachineResult;
use std::fmt::Write;

const NONE: &str = "-";

fn ratio(a: u64, b: u64) -> f64 {
    if b == 0 { 0.0 } else { a as f64 / b as f64 }
}

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

/// The main table: a row per machine.
pub fn machines(results: &[MachineResult]) -> String {
    let right = Align::Right;
    let mut table = Table::new()
        .column("machine", Align::Left)
        .column("L1 TLB\nMPKI", right)
        .column("L2 TLB\nMPKI", right)
        .column("walks", right)
        .column("guest\nrefs/walk", right)
        .column("nested\nrefs/walk", right)
        .column("shadow\nrefs/walk", right)
        .column("served by\nL1/L2/LLC/mem %", right)
        .column("cycles\n/walk", right)
        .column("transl.\novh. %", right)
        .column("VM\nexits", right)
        .column("VMM\novh. %", right)
        .column("total\novh. %", right)
        .column("guest\ntables", right)
        .column("host\ntables", right);
    for r in results {
        let ideal = r.scheme == "ideal";
        let refs: u64 = r.refs_served.values().sum();
        let share = |place: &str| {
            format!("{:.0}", 100.0 * ratio(r.refs_served.get(place).copied().unwrap_or(0), refs))
        };
        let served = ["l1", "l2", "llc", "memory"].map(share).join("/");
        let host = r.page_table_bytes.nested + r.page_table_bytes.shadow + r.page_table_bytes.host;
        let unless_ideal = |text: String| if ideal { NONE.into() } else { text };
        table.row(vec![
            r.name.clone(),
            unless_ideal(rate(r.l1_tlb_mpki)),
            unless_ideal(rate(r.l2_tlb_mpki)),
            unless_ideal(count(r.walks)),
            per_walk(r.guest_refs, r.walks),
            per_walk(r.nested_refs, r.walks),
            per_walk(r.shadow_refs, r.walks),
            or_none(refs, served),
            or_none(r.walks, format!("{:.0}", r.cycles_per_walk)),
            unless_ideal(format!("{:.1}", r.translation_overhead_percent)),
            or_none(r.vm_exits_total, count(r.vm_exits_total)),
            or_none(r.vm_exits_total, format!("{:.1}", r.vmm_overhead_percent)),
            unless_ideal(format!("{:.1}", r.overhead_percent)),
            or_none(r.page_table_bytes.guest, bytes(r.page_table_bytes.guest)),
            or_none(host, bytes(host)),
        ]);
    }
    // That a rate is not known must be seen.
    let unknown = results.iter().any(|r| r.l1_tlb_mpki.is_nan());
    table.drop_columns_from(if unknown { 3 } else { 0 }, NONE);
    table.render()
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
pub fn exits(results: &[MachineResult]) -> String {
    let mut table = Table::new().column("VM exits by reason", Align::Left);
    let mut reasons: Vec<&str> = Vec::new();
    for r in results {
        reasons.extend(r.vm_exits.keys().filter(|k| !reasons.contains(k)).collect::<Vec<_>>());
    }
    if reasons.is_empty() {
        return String::new();
    }
    for reason in &reasons {
        table = table.column(reason, Align::Right);
    }
    table = table.column("per 1000 instructions", Align::Right);
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
    format!("\n{}", table.render())
}

/// Segments, a row per machine that has registers for them.
pub fn segments(results: &[MachineResult]) -> String {
    let mut table = Table::new().column("direct segments", Align::Left);
    for column in
        ["guest", "VMM", "of guest RAM", "escaped", "reported", "hits", "checks gVA", "checks gPA"]
    {
        table = table.column(column, Align::Right);
    }
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
    if any { format!("\n{}", table.render()) } else { String::new() }
}

/// Contiguity, a row per machine whose hardware makes use of it.
pub fn contiguity(results: &[MachineResult]) -> String {
    let mut table = Table::new().column("contiguity", Align::Left);
    for column in [
        "guest\nruns",
        "host\nruns",
        "guesses",
        "right\n%",
        "walk cycles\nhidden %",
        "range\nhits",
        "anchor\nhits",
        "distance",
        "background\nreferences",
        "metadata",
    ] {
        table = table.column(column, Align::Right);
    }
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
    if any { format!("\n{}", table.render()) } else { String::new() }
}

/// Energies, a row per machine: picojoules per instruction, and what is above the ideal machine.
pub fn energy(results: &[MachineResult]) -> String {
    let mut table = Table::new().column("energy\npJ/instruction", Align::Left);
    for column in [
        "TLBs",
        "walk\ncaches",
        "nested\nTLB",
        "segments,\nfilters",
        "walk\nreferences",
        "trans-\nlation",
        "data",
        "core",
        "VMM",
        "static",
        "total",
        "dynamic\novh. %",
        "static\novh. %",
        "total\novh. %",
    ] {
        table = table.column(column, Align::Right);
    }
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
    format!("\n{}", table.render())
}

/// Contiguity at the end, a row per machine and dimension; empty unless it was asked for.
pub fn coverage(results: &[MachineResult]) -> String {
    let right = Align::Right;
    let mut table = Table::new()
        .column("contiguity at the end:\nentries for 99 %", Align::Left)
        .column("dimension", Align::Left)
        .column("memory", right)
        .column("runs", right)
        .column("longest", right);
    for title in ["4 KiB\npages", "2 MiB\naligned", "1 GiB\naligned", "CoLT\n8", "clus-\ntered"] {
        table = table.column(title, right);
    }
    table = table.column("anchors", right).column("every", right);
    table = table.column("ranges", right).column("offsets", right);
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
    if any { format!("\n{}", table.render()) } else { String::new() }
}

/// Contiguity at moments of the run, a row for each; empty unless it was asked for.
pub fn coverage_over_time(results: &[MachineResult]) -> String {
    let mut table = Table::new().column("contiguity over time:\nentries for 99 %", Align::Left);
    for title in [
        "instructions",
        "memory",
        "guest\nranges",
        "host\nranges",
        "both\nranges",
        "guest\noffsets",
        "both\noffsets",
    ] {
        table = table.column(title, Align::Right);
    }
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
    if any { format!("\n{}", table.render()) } else { String::new() }
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
