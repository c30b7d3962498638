//! The report for people.

use super::report::{Dimension, Mapping, Report};
use nestwalk_contiguity::{RunSet, SHARES};
use nestwalk_host::{Advice, PAGE_BYTES};
use nestwalk_report::{Align, Table, bytes, count};

/// Mappings that are shown without `--all`.
const MAPPINGS: usize = 12;
/// Cells of a line of the picture, and lines at most.
const CELLS: u64 = 64;
const LINES: u64 = 6;
/// Widest bars of the histogram, all together.
const BARS: u64 = 36;

/// Shades of the picture, and from which mean length of runs on, bytes.
const SHADES: [(char, u64, &str); 4] = [
    ('\u{2591}', 0, "below 64 KiB"),
    ('\u{2592}', 64 << 10, "below 2 MiB"),
    ('\u{2593}', 2 << 20, "below 64 MiB"),
    ('\u{2588}', 64 << 20, "64 MiB or more"),
];

/// The whole report.
pub fn report(r: &Report, all: bool) -> String {
    let mut out = heading(r);
    out += &mappings(r, all);
    // Of a VM, what the process has beside the guest's RAM is of less interest.
    let shown: Vec<&Dimension> = match r.dimensions.as_slice() {
        [one] => vec![one],
        [_, rest @ ..] => rest.iter().collect(),
        [] => Vec::new(),
    };
    if r.hidden {
        out += "\nFrames are hidden: runs below are of addresses, and entries are what would do at best.\n";
    }
    out += &histogram(&shown);
    out += &pictures(&shown);
    out += &entries(&shown);
    out
}

fn percent(part: u64, whole: u64) -> String {
    format!("{:.1} %", if whole == 0 { 0.0 } else { 100.0 * part as f64 / whole as f64 })
}

fn heading(r: &Report) -> String {
    let resident = r.sum(Mapping::resident);
    let mut out = format!(
        "process {} ({}): {} resident of {} in {} mappings",
        r.pid,
        r.name,
        bytes(resident),
        bytes(r.sum(|m| m.region.bytes())),
        r.mappings.len()
    );
    match r.sum(|m| m.region.swap) {
        0 => out.push('\n'),
        swap => out += &format!("; {} swapped out\n", bytes(swap)),
    }
    let sizes: Vec<String> = r
        .page_sizes()
        .into_iter()
        .map(|(size, b)| format!("{} {} ({})", bytes(size), bytes(b), percent(b, resident)))
        .collect();
    if !sizes.is_empty() {
        out += &format!("page sizes: {}\n", sizes.join(", "));
    }
    if let Some(kinds) = &r.kinds {
        let pages = |pages: u64| bytes(pages * PAGE_BYTES);
        let folios = kinds.folios.iter().enumerate().rev().filter(|(_, pages)| **pages > 0);
        let folios: Vec<String> =
            folios.map(|(o, p)| format!("{} {}", bytes(PAGE_BYTES << o), pages(*p))).collect();
        out += &format!("allocations: {}\n", folios.join(", "));
        let named = [
            ("transparent huge pages", kinds.thp),
            ("hugetlbfs", kinds.hugetlb),
            ("merged (KSM)", kinds.ksm),
            ("the zero page", kinds.zero),
        ];
        let named = named.iter().filter(|(_, n)| *n > 0).map(|(t, n)| format!("{t} {}", pages(*n)));
        let named: Vec<String> = named.collect();
        if !named.is_empty() {
            out += &format!("of these: {}\n", named.join(", "));
        }
    }
    if let Some((name, pid, without)) = &r.guest {
        out += &format!("guest process {pid} ({name})");
        if *without > 0 {
            out += &format!(": {} of it have no frame in the host", bytes(without * PAGE_BYTES));
        }
        out.push('\n');
    }
    out
}

fn mappings(r: &Report, all: bool) -> String {
    let mut shown: Vec<&Mapping> = r.mappings.iter().collect();
    if !all {
        shown.retain(|m| m.resident() > 0);
        shown.sort_by_key(|m| (u64::MAX - m.resident(), m.region.start));
        shown.truncate(MAPPINGS);
    }
    let mut table = Table::new();
    for (title, align) in [
        ("addresses", Align::Left),
        ("", Align::Left),
        ("size", Align::Right),
        ("resident", Align::Right),
        ("in 2 MiB", Align::Right),
        ("hugetlb", Align::Right),
        ("swapped", Align::Right),
        ("runs", Align::Right),
        ("longest", Align::Right),
        ("THP", Align::Left),
        ("what", Align::Left),
    ] {
        table = table.column(title, align);
    }
    let or_none = |n: u64| if n == 0 { "-".to_owned() } else { bytes(n) };
    for m in &shown {
        let g = &m.region;
        let advice = match g.advice {
            Some(Advice::Huge) => "asked for",
            Some(Advice::NoHuge) => "refused",
            None => "-",
        };
        table.row(vec![
            format!("{:x}-{:x}", g.start, g.end),
            g.permissions.clone(),
            bytes(g.bytes()),
            or_none(m.resident()),
            or_none(g.huge),
            or_none(g.hugetlb),
            or_none(g.swap),
            if m.runs == 0 { "-".into() } else { count(m.runs) },
            or_none(m.longest),
            advice.into(),
            if g.name.is_empty() { "(anonymous)".into() } else { g.name.clone() },
        ]);
    }
    table.drop_columns_of("-");
    let rest = r.mappings.len() - shown.len();
    let mut out = format!("\n{}", table.render());
    if rest > 0 {
        let told: u64 = shown.iter().map(|m| m.resident()).sum();
        let left = bytes(r.sum(Mapping::resident) - told);
        out += &format!("and {rest} more mappings with {left} resident (--all shows them)\n");
    }
    out
}

/// `guest (gVA to gPA)`.
fn title(d: &Dimension) -> String {
    format!("{} ({} to {})", d.name, d.spaces[0], d.spaces[1])
}

fn histogram(dimensions: &[&Dimension]) -> String {
    let orders = dimensions.iter().map(|d| d.histogram.buckets.len()).max().unwrap_or(0);
    let bar = BARS / dimensions.len().max(1) as u64;
    let mut table = Table::new().column("runs of", Align::Left);
    for d in dimensions {
        let group = if dimensions.len() > 1 { d.name } else { "" };
        table = table.column(&format!("{group}\nruns"), Align::Right);
        table = table.column("memory", Align::Right).column("", Align::Left);
    }
    let used = |o: usize| {
        dimensions.iter().any(|d| d.histogram.buckets.get(o).is_some_and(|b| b.runs > 0))
    };
    let first = (0..orders).find(|o| used(*o)).unwrap_or(0);
    for order in first..orders {
        let mut row = vec![format!("{} ..", bytes(PAGE_BYTES << order))];
        for d in dimensions {
            let b = d.histogram.buckets.get(order).copied().unwrap_or_default();
            let width = (b.pages * bar).div_ceil(d.runs.pages().max(1)) as usize;
            row.push(if b.runs == 0 { "-".into() } else { count(b.runs) });
            row.push(if b.runs == 0 { "-".into() } else { bytes(b.pages * PAGE_BYTES) });
            row.push("\u{2588}".repeat(width));
        }
        table.row(row);
    }
    format!("\n{}", ungrouped(table.render()))
}

/// A table without the line of groups, if that is empty.
fn ungrouped(text: String) -> String {
    text.strip_prefix('\n').map_or_else(|| text.clone(), str::to_owned)
}

/// Memory in the order of addresses, a character for equally many pages each: how long are the runs in
/// which its pages are?
fn picture(runs: &RunSet) -> String {
    let cell = runs.pages().div_ceil(CELLS * LINES).max(1);
    let mut out = String::new();
    let (mut filled, mut weight, mut cells) = (0, 0u128, 0);
    let mut put = |filled: u64, weight: u128| {
        let mean = (weight / u128::from(filled.max(1))) as u64 * PAGE_BYTES;
        let shade = SHADES.iter().rev().find(|s| mean >= s.1).map_or(SHADES[0].0, |s| s.0);
        out.push_str(if cells % CELLS == 0 { "\n  " } else { "" });
        out.push(shade);
        cells += 1;
    };
    for run in runs.iter() {
        let mut left = run.pages;
        while left > 0 {
            let part = left.min(cell - filled);
            (filled, left) = (filled + part, left - part);
            weight += u128::from(part) * u128::from(run.pages);
            if filled == cell {
                put(filled, weight);
                (filled, weight) = (0, 0);
            }
        }
    }
    if filled > 0 {
        put(filled, weight);
    }
    out
}

fn pictures(dimensions: &[&Dimension]) -> String {
    let mut out = String::new();
    for d in dimensions.iter().filter(|d| !d.runs.is_empty()) {
        let cell = d.runs.pages().div_ceil(CELLS * LINES).max(1);
        out += &format!(
            "\n{}: {} in {} runs, the longest {}; a character is {}, by address{}\n",
            title(d),
            bytes(d.bytes()),
            count(d.runs.len() as u64),
            bytes(d.longest()),
            bytes(cell * PAGE_BYTES),
            picture(&d.runs)
        );
    }
    let legend = SHADES.map(|(shade, _, text)| format!("{shade} {text}"));
    if !out.is_empty() {
        out += &format!("  mean run: {}\n", legend.join("  "));
    }
    out
}

/// What a technique is for people.
fn technique(name: &str, d: &[&Dimension]) -> String {
    let pages = |n: u64| bytes(n * PAGE_BYTES);
    match name {
        "4k" => "4 KiB pages".into(),
        "2m" => "2 MiB pages where aligned".into(),
        "1g" => "1 GiB pages where aligned".into(),
        "colt-4" => "CoLT, 4 pages".into(),
        "colt-8" => "CoLT, 8 pages".into(),
        "clustered" => "clustered, 8 pages".into(),
        "anchors" => {
            let distances: Vec<String> = d.iter().map(|d| pages(d.survey.distance)).collect();
            format!("anchors every {}", distances.join(" / "))
        }
        "ranges" => "ranges (RMM)".into(),
        "offsets" => "offsets (SpOT)".into(),
        other => other.into(),
    }
}

fn entries(dimensions: &[&Dimension]) -> String {
    let Some(first) = dimensions.first() else { return String::new() };
    let mut table = Table::new().column("entries to cover", Align::Left);
    for d in dimensions {
        for (i, percent) in SHARES.iter().enumerate() {
            let group = if dimensions.len() > 1 && i == 0 { d.name } else { "" };
            table = table.column(&format!("{group}\n{percent} %"), Align::Right);
        }
    }
    for (i, (name, _)) in first.survey.techniques.iter().enumerate() {
        let mut row = vec![technique(name, dimensions)];
        for d in dimensions {
            row.extend(d.survey.techniques[i].1.shares().map(count));
        }
        table.row(row);
    }
    format!("\n{}", ungrouped(table.render()))
}
