//! Which references of walks miss where.

use super::read::{name, number};
use nestwalk_report::figure::{Figure, Plot};
use serde_json::Value;

const TITLE: &str = "references that went beyond the second-level cache, per 1000 walks";
const NOTE: &str = "Each cell is an entry that walks read: a row for each guest table whose place is looked \
                    for, and for the page; the last column is the guest's own entry. What walk caches \
                    always save is empty.";

/// A named row of cells.
type Row = (String, Vec<Option<f64>>);

/// None of a machine whose walks were not mapped, or that never walked.
pub fn walk_map(machine: &Value) -> Option<Figure> {
    let places = machine["walk_map"].as_array().filter(|places| !places.is_empty())?;
    let walks = number(machine, "walks") + number(machine, "faulted_walks").max(0.0);
    let map = Map { places, per: 1000.0 / walks.max(1.0) };
    let (columns, mut rows) =
        if map.dimensions().any(|d| d == "nested") { map.nested() } else { map.flat() };
    rows.retain(|(_, cells)| cells.iter().any(Option::is_some));
    let word = name(machine).replace(|c: char| !c.is_ascii_alphanumeric(), "-");
    Some(Figure {
        id: format!("walk-map-{word}"),
        title: format!("Which references of walks miss: {}", name(machine)),
        note: NOTE.into(),
        plot: Plot::Cells { title: TITLE.into(), columns, rows },
    })
}

struct Map<'a> {
    places: &'a [Value],
    /// From a count to a cell.
    per: f64,
}

impl Map<'_> {
    fn dimensions(&self) -> impl Iterator<Item = &str> {
        self.places.iter().filter_map(|p| p["dimension"].as_str())
    }

    /// The highest number under a key.
    fn most(&self, key: &str, nested: bool) -> u64 {
        let them = self.places.iter().filter(|p| (p["dimension"] == "nested") == nested);
        them.filter_map(|p| p[key].as_u64()).max().unwrap_or(0)
    }

    fn cell(&self, nested: bool, level: u64, guest: u64) -> Option<f64> {
        let place = self.places.iter().find(|p| {
            (p["dimension"] == "nested") == nested
                && p["level"] == level
                && p["on_behalf_of_guest_level"] == guest
        });
        place.map(|p| (number(p, "llc") + number(p, "memory")) * self.per)
    }

    fn nested(&self) -> (Vec<String>, Vec<Row>) {
        let hosts = self.most("level", true);
        let guests = self.most("on_behalf_of_guest_level", true).max(self.most("level", false));
        let mut columns: Vec<String> = (1..=hosts).rev().map(|l| format!("hL{l}")).collect();
        columns.push("entry".into());
        let row = |guest: u64| {
            let mut cells: Vec<_> = (1..=hosts).rev().map(|h| self.cell(true, h, guest)).collect();
            cells.push(self.cell(false, guest, 0));
            (if guest == 0 { "page".into() } else { format!("gL{guest}") }, cells)
        };
        (columns, (0..=guests).rev().map(row).collect())
    }

    /// Walks in one dimension.
    fn flat(&self) -> (Vec<String>, Vec<Row>) {
        let top = self.most("level", false);
        let columns = (1..=top).rev().map(|l| format!("L{l}")).collect();
        let cells = (1..=top).rev().map(|l| self.cell(false, l, 0)).collect();
        (columns, vec![("entry".into(), cells)])
    }
}
