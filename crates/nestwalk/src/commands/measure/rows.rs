//! Figures of a survey as rows.

use crate::screen::Screen;
use crate::show::headings;
use nestwalk_measure::estimate::{Figure, Geometry, Level};
use nestwalk_measure::survey::Survey;
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
    rows
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
