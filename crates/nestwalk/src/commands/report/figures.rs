//! Figures of one run.

use super::read::{Run, name, number};
use nestwalk_report::figure::{Axis, Figure, Plot};
use serde_json::Value;

/// Parts that have a bar of their own; the smallest others share one.
const MOST_PARTS: usize = 9;

/// Where the time of a machine goes, in the order of bars.
const TIME: [&str; 5] = [
    "program and guest kernel",
    "walks and TLBs",
    "VMM",
    "data served farther away",
    "waiting for the VMM's lock",
];

/// All figures that the results have numbers for.
pub fn of(run: &Run) -> Vec<Figure> {
    let mut all = vec![time(run), overhead(run)];
    all.extend([references(run), served(run, "refs_served", true)].into_iter().flatten());
    all.extend([served(run, "data_served", false), misses(run), exits(run)].into_iter().flatten());
    all.extend([tables(run), energy(run)].into_iter().flatten());
    all.extend([modes(run), contiguity(run)].into_iter().flatten());
    all.extend(run.machines.iter().filter_map(super::heat::walk_map));
    all
}

fn figure(id: &str, title: &str, note: &str, plot: Plot) -> Figure {
    Figure { id: id.into(), title: title.into(), note: note.into(), plot }
}

fn strings(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// Machines that translate at all.
fn translating(run: &Run) -> impl Iterator<Item = &Value> {
    run.machines.iter().filter(|m| m["scheme"] != "ideal")
}

fn bars(axis: &str, parts: Vec<String>, rows: Vec<(String, Vec<f64>)>) -> Plot {
    Plot::Bars { axis: Axis::new(axis), parts, rows }
}

/// Bars that show nothing are no figure.
fn some(figure: Figure) -> Option<Figure> {
    let Plot::Bars { rows, .. } = &figure.plot else { return Some(figure) };
    rows.iter().any(|(_, values)| values.iter().any(|v| *v > 0.0)).then_some(figure)
}

/// Cycles of [`TIME`]; their sum is the machine's total.
pub fn cycles(machine: &Value) -> [f64; 5] {
    let of = |key| number(machine, key);
    let lock = of("lock_wait_cycles").max(0.0);
    let program = of("program_cycles") + of("guest_os_cycles");
    // What page tables displace from the data caches is not in the program of `ideal`.
    let displaced = (program - of("ideal_cycles")).max(0.0);
    let displaced = if of("ideal_cycles") > 0.0 { displaced } else { 0.0 };
    [program - displaced, of("translation_cycles"), of("vmm_cycles") - lock, displaced, lock]
}

/// The parts of a machine's time, % of `ideal`; of its own without `ideal`.
fn shares(machine: &Value) -> [f64; 5] {
    let ideal = number(machine, "ideal_cycles");
    let whole = if ideal > 0.0 { ideal } else { number(machine, "total_cycles") };
    cycles(machine).map(|part| if whole > 0.0 { 100.0 * part / whole } else { 0.0 })
}

fn time(run: &Run) -> Figure {
    let rows = run.machines.iter().map(|m| (name(m), shares(m).to_vec())).collect();
    figure(
        "time",
        "Where time goes",
        "Cycles of each machine, relative to an ideal one with the same guest that translates for \
         nothing. Data served farther away is what page tables displace from the caches.",
        bars("run time, % of ideal", strings(&TIME), rows),
    )
}

fn overhead(run: &Run) -> Figure {
    // The first part keeps its place, so that parts have the same colours in both figures.
    let above = |m: &Value| {
        let mut shares = shares(m);
        shares[0] = 0.0;
        (name(m), shares.to_vec())
    };
    figure(
        "overhead",
        "Overhead",
        "The same without what an ideal machine takes, too.",
        bars("overhead, % of ideal", strings(&TIME), translating(run).map(above).collect()),
    )
}

fn references(run: &Run) -> Option<Figure> {
    let keys = ["guest_refs", "nested_refs", "shadow_refs"];
    let row = |m: &Value| {
        let walks = number(m, "walks");
        let per_walk = |key| if walks > 0.0 { number(m, key) / walks } else { 0.0 };
        (name(m), keys.map(per_walk).to_vec())
    };
    let parts = strings(&["guest tables", "nested tables", "shadow tables"]);
    some(figure(
        "references",
        "Length of walks",
        "References of a page walk to entries of tables, on average. Walk caches save the others.",
        bars("references per walk", parts, translating(run).map(row).collect()),
    ))
}

/// Where references were served, in shares.
fn served(run: &Run, key: &str, walks: bool) -> Option<Figure> {
    let places = ["l1", "l2", "llc", "memory"];
    let row = |m: &Value| {
        let counts = places.map(|place| number(&m[key], place));
        let all: f64 = counts.iter().sum();
        (name(m), counts.map(|n| if all > 0.0 { 100.0 * n / all } else { 0.0 }).to_vec())
    };
    let parts = strings(&["first-level cache", "second-level cache", "last-level cache", "memory"]);
    let (id, title, note) = if walks {
        ("walks-served", "Where walks find entries", "References of walks by what served them.")
    } else {
        ("data-served", "Where the program finds data", "Its data references by what served them.")
    };
    let rows = translating(run).map(row).collect();
    some(figure(id, title, note, bars("% of references", parts, rows)))
}

/// A thousand or a million instructions, or accesses where instructions are not known.
fn rate(run: &Run, per: f64) -> (impl Fn(&Value) -> f64, &'static str) {
    let known = run.machines.iter().all(|m| number(m, "instructions") > 0.0);
    let key = if known { "instructions" } else { "accesses" };
    (move |m: &Value| (number(m, key) / per).max(f64::MIN_POSITIVE), key)
}

fn misses(run: &Run) -> Option<Figure> {
    let (per, of) = rate(run, 1000.0);
    let row = |m: &Value| {
        let (all, second) = (number(m, "l1_tlb_misses"), number(m, "l2_tlb_hits"));
        let walked = number(m, "l2_tlb_misses");
        let parts = [walked, second, (all - second - walked).max(0.0)];
        (name(m), parts.map(|n| n / per(m)).to_vec())
    };
    let parts = strings(&["both levels missed", "second level hit", "served beside the TLBs"]);
    some(figure(
        "misses",
        "Misses of the TLBs",
        "Accesses that the first-level TLB had no entry for, by what served them.",
        bars(&format!("misses per 1000 {of}"), parts, translating(run).map(row).collect()),
    ))
}

fn exits(run: &Run) -> Option<Figure> {
    let (per, of) = rate(run, 1e6);
    let mut totals: Vec<(String, f64)> = Vec::new();
    for machine in &run.machines {
        for (reason, n) in machine["vm_exits"].as_object().into_iter().flatten() {
            let n = n.as_f64().unwrap_or(0.0);
            match totals.iter_mut().find(|t| t.0 == *reason) {
                Some(total) => total.1 += n,
                None => totals.push((reason.clone(), n)),
            }
        }
    }
    totals.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let mut parts: Vec<String> = totals.into_iter().map(|t| t.0).take(MOST_PARTS).collect();
    let row = |m: &Value| {
        let count = |reason: &String| m["vm_exits"][reason].as_f64().unwrap_or(0.0);
        let mut counts: Vec<f64> = parts.iter().map(count).collect();
        let rest = number(m, "vm_exits_total") - counts.iter().sum::<f64>();
        counts.push(rest.max(0.0));
        (name(m), counts.into_iter().map(|n| n / per(m)).collect())
    };
    let virtual_ = translating(run).filter(|m| number(m, "page_table_bytes.host") > 0.0);
    let rows = virtual_.map(row).collect();
    parts.push("others".into());
    let parts = parts.into_iter().map(|reason| reason.replace('_', " ")).collect();
    some(figure(
        "exits",
        "Exits to the VMM",
        "By reason; `nestwalk explain vm_exits` tells them.",
        bars(&format!("exits per million {of}"), parts, rows),
    ))
}

fn tables(run: &Run) -> Option<Figure> {
    let keys = ["guest", "nested", "shadow", "host"];
    let row = |m: &Value| {
        (name(m), keys.map(|key| number(&m["page_table_bytes"], key) / 1048576.0).to_vec())
    };
    let parts = strings(&["guest's", "nested", "shadow", "host process's"]);
    some(figure(
        "tables",
        "Memory of page tables",
        "At the end of the run.",
        bars("MiB", parts, translating(run).map(row).collect()),
    ))
}

fn energy(run: &Run) -> Option<Figure> {
    let row = |m: &Value| {
        let of = |key| number(&m["energy"], key);
        let whole = of("ideal_total");
        let parts = [of("core"), of("translation"), of("vmm"), of("data"), of("static")];
        (name(m), parts.map(|part| 100.0 * part / whole).to_vec())
    };
    let parts = strings(&["instructions", "translation", "VMM", "data", "static"]);
    some(figure(
        "energy",
        "Energy",
        "Dynamic energy by cause, and static energy over the run time.",
        bars("% of ideal", parts, run.machines.iter().map(row).collect()),
    ))
}

/// In which paging mode machines were that change it.
fn modes(run: &Run) -> Option<Figure> {
    let index = |mode: &Value| usize::from(mode == "nested");
    let row = |m: &Value| {
        let (mut from, mut mode) = (0.0, index(&m["switching"]["start"]));
        let mut spans = Vec::new();
        for switch in m["switching"]["switches"].as_array().into_iter().flatten() {
            let at = number(switch, "instructions") / 1e6;
            spans.push((from, at, mode));
            (from, mode) = (at, index(&switch["mode"]));
        }
        spans.push((from, number(m, "instructions") / 1e6, mode));
        (name(m), spans)
    };
    let rows: Vec<_> =
        run.machines.iter().filter(|m| m["switching"].is_object()).map(row).collect();
    let axis = Axis::new("million instructions");
    let parts = strings(&["shadow", "nested"]);
    (!rows.is_empty()).then(|| {
        figure(
            "modes",
            "Paging modes over time",
            "When machines changed their mode.",
            Plot::Spans { axis, parts, rows },
        )
    })
}

/// How many ranges cover 99 % of memory, over time.
fn contiguity(run: &Run) -> Option<Figure> {
    let line = |m: &Value| {
        let points = m["coverage"]["over_time"].as_array()?;
        let both = |p: &Value| match number(p, "both_ranges_99") {
            n if n > 0.0 => n,
            _ => number(p, "guest_ranges_99"),
        };
        Some((name(m), points.iter().map(|p| (number(p, "instructions") / 1e6, both(p))).collect()))
    };
    let lines: Vec<_> = run.machines.iter().filter_map(line).collect();
    let (x, y) = (Axis::new("million instructions"), Axis::new("ranges"));
    (!lines.is_empty()).then(|| {
        figure(
            "contiguity",
            "Contiguity over time",
            "Ranges, contiguous in both dimensions, that cover 99 % of the mapped memory.",
            Plot::Lines { x, y, lines },
        )
    })
}
