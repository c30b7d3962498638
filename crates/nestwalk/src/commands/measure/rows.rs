//! Figures of a survey as rows.

use crate::screen::Screen;
use crate::show::headings;
use nestwalk_measure::estimate::{Figure, Geometry, Level};
use nestwalk_measure::kernel::Kernel;
use nestwalk_measure::survey::Survey;
use nestwalk_measure::walks::{Cost, Walks};
use nestwalk_report::bytes;
use nestwalk_report::figure::number;
use serde_json::{Value, json};

/// One figure.
pub struct Row {
    what: String,
    pages: &'static str,
    value: String,
    unit: &'static str,
    source: String,
}

impl Row {
    fn new(what: &str, pages: &'static str, value: String, unit: &'static str, why: &str) -> Self {
        let unit = if value == "unknown" { "" } else { unit };
        Self { what: what.into(), pages, value, unit, source: why.into() }
    }

    /// For programs.
    pub fn json(&self) -> Value {
        json!({
            "figure": self.what,
            "pages": self.pages,
            "value": self.value,
            "unit": self.unit,
            "source": self.source,
        })
    }
}

/// All figures, in order.
pub fn rows(survey: &Survey) -> Vec<Row> {
    let mut rows = vec![Row::new(
        "clock of the core",
        "",
        number(survey.mhz),
        "MHz",
        "a chain of multiplications and exclusive ors",
    )];
    geometry(&mut rows, &survey.small);
    let behind = &survey.within_large.behind;
    rows.push(Row::new("held as pages of", "2 MiB", behind.to_string(), "", behind.why()));
    match &survey.large {
        Figure::Known { value, .. } => geometry(&mut rows, value),
        Figure::Unknown { unknown } => {
            rows.push(Row::new("TLBs", "2 MiB", "unknown".into(), "", unknown));
        }
    }
    let huge = "no hugetlb pages of 1 GiB are asked for: transparent ones do not exist";
    rows.push(Row::new("TLBs", "1 GiB", "unknown".into(), "", huge));
    let code = "safe code cannot be placed on pages of choice";
    rows.push(Row::new("instruction TLBs", "", "unknown".into(), "", code));
    walks(&mut rows, &survey.walks);
    kernel(&mut rows, &survey.kernel);
    rows
}

fn walks(rows: &mut Vec<Row>, walks: &Walks) {
    let mut add = |what: &str, value: String, unit, why: &str| {
        rows.push(Row::new(what, "4 KiB", value, unit, why));
    };
    for cost in walks.by_leaf_bytes.iter().step_by(2) {
        let what = format!("walk over {} of leaf entries", bytes(cost.of));
        add(&what, number(cost.cycles), "cycles", "random pages; the second level hits for some");
    }
    let ends = |costs: &[Cost]| costs.first().copied().zip(costs.last().copied());
    for (costs, of) in [(&walks.by_tables, "page tables"), (&walks.by_directories, "directories")] {
        let Some((few, many)) = ends(costs) else { continue };
        for cost in [few, many] {
            let what = format!("walk among {} {of}", cost.of);
            add(&what, number(cost.cycles), "cycles", "pages of one set of the second level");
        }
    }
    let count = |f: &Figure<u64>| f.to_string();
    let found = &walks.tables_cached;
    add("page tables that walks begin at", count(found), "", found.why());
    let found = &walks.directories_cached;
    add("directories that walks begin at", count(found), "", found.why());
    let saved = &walks.saved_by_large;
    let value = saved.get().map_or("unknown".into(), |v| number(*v));
    add("walk, less by a guest's page of 2 MiB", value, "cycles", saved.why());
    let found = &walks.coalescing;
    add("entries of several pages", found.to_string(), "", found.why());
    add("walks at a time", count(&walks.walkers), "", walks.walkers.why());
    let exposed = walks.exposed.get().map_or("unknown".into(), |v| number(*v));
    add("share of a walk that others do not hide", exposed, "", walks.exposed.why());
}

fn kernel(rows: &mut Vec<Row>, kernel: &Kernel) {
    let mut add = |what: &str, pages, found: &Figure<f64>| {
        let value = found.get().map_or("unknown".into(), |v| number(*v));
        rows.push(Row::new(what, pages, value, "ns", found.why()));
    };
    add("fault of a first load", "4 KiB", &kernel.load_fault_ns);
    add("fault of a first store", "4 KiB", &kernel.store_fault_ns);
    add("fault of a first store", "2 MiB", &kernel.large_fault_ns);
    add("switch to a thread", "", &kernel.thread_switch_ns);
    add("switch to a process", "", &kernel.process_switch_ns);
    for (threads, ns) in &kernel.protect_ns {
        let what = format!("mprotect there and back, beside {threads} threads");
        let how = "with the fault of the store after it";
        rows.push(Row::new(&what, "4 KiB", number(*ns), "ns", how));
    }
    let value = kernel.shootdown_ns.get().map_or("unknown".into(), |v| number(*v));
    let why = kernel.shootdown_ns.why();
    rows.push(Row::new("shootdown of one other processor", "", value, "ns", why));
}

fn geometry(rows: &mut Vec<Row>, g: &Geometry) {
    let mut add = |what: &str, value: String, unit, why: &str| {
        rows.push(Row::new(what, g.pages, value, unit, why));
    };
    for (name, found) in [("first-level data TLB", &g.l1), ("second-level TLB", &g.l2)] {
        let Figure::Known { value: level, .. } = found else {
            add(name, "unknown".into(), "", found.why());
            continue;
        };
        let Level { entries, ways, index, replacement, source } = level;
        add(&format!("{name}: entries"), entries.to_string(), "", source);
        add(&format!("{name}: ways"), ways.to_string(), "", "pages of one set");
        add(&format!("{name}: index"), index.to_string(), "", index.why());
        add(&format!("{name}: replacement"), replacement.to_string(), "", replacement.why());
    }
    let load = "few pages, all data in the first-level cache";
    add("load that hits the first level", number(g.load_cycles), "cycles", load);
    for (name, found) in [
        ("second-level hit, more", &g.l2_hit_cycles),
        ("walk, more than a second-level hit", &g.walk_cycles),
    ] {
        let value = found.get().map_or("unknown".into(), |v| number(*v));
        add(name, value, "cycles", found.why());
    }
}

/// The table for people.
pub fn table(survey: &Survey, screen: Screen) -> String {
    let processor = &survey.processor;
    let (family, model) = processor.family_model;
    let mut out = format!(
        "{} ({}, family {family:#x}, model {model:#x}){}\n\n",
        processor.name,
        processor.vendor,
        if processor.virtual_machine { ", in a virtual machine" } else { "" }
    );
    let mut table = headings::table(&headings::MEASURED);
    for row in rows(survey) {
        table.row(vec![row.what, row.pages.into(), row.value, row.unit.into(), row.source]);
    }
    out += &table.render_within(screen.columns());
    out += "\n\nCPUID says, not believed: ";
    if processor.told.is_empty() {
        out += &format!("nothing: {}\n", processor.note);
        return out;
    }
    out += &format!("{}\n", processor.note);
    for told in &processor.told {
        out += &format!(
            "  level {}, {}, pages of {}: {} entries in {} ways\n",
            told.level,
            told.of,
            told.pages.join(", "),
            told.entries,
            told.ways
        );
    }
    out
}
