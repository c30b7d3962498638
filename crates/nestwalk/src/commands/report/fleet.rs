//! Reports of fleets: several VMs on one host, as `compare --vm` wrote them.

use super::Drawn;
use super::read::{self, number};
use anyhow::{Context, Result, anyhow, bail};
use nestwalk_lab::VERSION;
use nestwalk_report::figure::{self, Axis, Figure, Plot};
use nestwalk_report::page::{Cell, Page, Section, Sortable};
use serde_json::Value;
use std::path::PathBuf;

const MIB: f64 = 1_048_576.0;

/// Parts of a VM's overhead: key, and its name in figures.
const PARTS: [(&str, &str); 4] = [
    ("own", "alone"),
    ("tlbs", "shared TLBs"),
    ("caches", "shared caches"),
    ("memory", "scarce memory"),
];

/// Results of one fleet.
struct Fleet {
    label: String,
    notes: Vec<String>,
    host: Value,
    vms: Vec<Value>,
}

/// What is drawn of the results if they are of fleets; `None` if none is.
///
/// # Errors
/// Some are of fleets and others are not, or one of a fleet is not understood.
pub fn drawn(paths: &[PathBuf]) -> Result<Option<Drawn>> {
    let values = paths.iter().map(|path| read::value(path)).collect::<Result<Vec<_>>>()?;
    let is_fleet = |value: &Value| value["vms"].is_array();
    if !values.iter().any(|(_, value)| is_fleet(value)) {
        return Ok(None);
    }
    if let Some((file, _)) = values.iter().find(|(_, value)| !is_fleet(value)) {
        bail!(
            "{}: not of several VMs, as others of these are; make a report of each kind",
            file.display()
        );
    }
    let mut fleets = Vec::new();
    for (file, value) in values {
        let at = file.display().to_string();
        fleets.push(fleet(read::label(&file), value).with_context(|| at)?);
    }
    // Folders of the same name are told apart by their paths.
    for at in 0..fleets.len() {
        if fleets.iter().filter(|f| f.label == fleets[at].label).count() > 1 {
            fleets[at].label = paths[at].display().to_string();
        }
    }
    let labels: Vec<&str> = fleets.iter().map(|f| f.label.as_str()).collect();
    let each: Vec<Vec<Figure>> = fleets.iter().map(figures).collect();
    let named = super::named(&labels, &[], &each);
    Ok(Some(Drawn { runs: fleets.len(), named, page: page(&fleets, each) }))
}

fn fleet(label: String, value: Value) -> Result<Fleet> {
    read::check_version(&value)?;
    let vms = value["vms"].as_array().cloned().unwrap_or_default();
    if vms.is_empty() {
        bail!("no VM in the results");
    }
    for (i, vm) in vms.iter().enumerate() {
        let lacks = |key: &str| anyhow!("VM {} (`{}`): no number `{key}`", i + 1, read::name(vm));
        if !vm["name"].is_string() {
            bail!("VM {}: no `name`", i + 1);
        }
        let keys = ["interference.own", "interference.total", "touched_bytes", "resident_bytes"];
        if let Some(key) = keys.into_iter().find(|key| !number(vm, key).is_finite()) {
            return Err(lacks(key));
        }
    }
    let notes = read::notes(&value);
    Ok(Fleet { label, notes, host: value["host"].clone(), vms })
}

fn bars(id: &str, title: &str, note: &str, axis: &str, parts: &[&str], rows: Rows) -> Figure {
    let parts = parts.iter().map(|part| (*part).to_owned()).collect();
    let plot = Plot::Bars { axis: Axis::new(axis), parts, rows };
    Figure { id: id.into(), title: title.into(), note: note.into(), plot }
}

type Rows = Vec<(String, Vec<f64>)>;

/// `name (machine)` of a VM.
fn called(vm: &Value) -> String {
    let machine = vm["together"]["name"].as_str().unwrap_or_default();
    format!("{} ({machine})", read::name(vm))
}

/// A row per VM, of these numbers.
fn rows(fleet: &Fleet, of: impl Fn(&Value) -> Vec<f64>) -> Rows {
    fleet.vms.iter().map(|vm| (called(vm), of(vm))).collect()
}

fn figures(fleet: &Fleet) -> Vec<Figure> {
    let of = |vm: &Value, key: &str| number(vm, key);
    let overhead =
        rows(fleet, |vm| PARTS.map(|(key, _)| of(vm, &format!("interference.{key}"))).to_vec());
    let mut all = vec![bars(
        "interference",
        "Overhead of each VM, and what neighbours add",
        "Alone is the VM on a host of its own. A neighbour that helps has no bar; the number at the end \
         is the sum all the same.",
        "overhead, % of the ideal run alone",
        &PARTS.map(|(_, name)| name),
        overhead,
    )];
    all.push(bars(
        "memory",
        "Memory",
        "What each VM touched, by where it is at the end.",
        "MiB",
        &["in memory", "taken back"],
        rows(fleet, |vm| {
            let (touched, resident) = (of(vm, "touched_bytes"), of(vm, "resident_bytes"));
            vec![resident / MIB, (touched - resident).max(0.0) / MIB]
        }),
    ));
    let keys = ["nested", "shadow", "host"];
    let tables = rows(fleet, |vm| {
        keys.map(|key| of(vm, &format!("together.page_table_bytes.{key}")) / MIB).to_vec()
    });
    let names = ["nested", "shadow", "host process's"];
    all.push(bars("tables", "Memory of page tables", "At the end.", "MiB", &names, tables));
    let swapping = |key| fleet.vms.iter().any(|vm| number(vm, key) > 0.0);
    if swapping("swap.taken_back") {
        let keys = ["swap.written", "swap.swapped_in"];
        all.push(bars(
            "swapping",
            "Pages to the swap device and back",
            "Pages that are as they were when they came are not written again.",
            "pages",
            &["written", "read"],
            rows(fleet, |vm| keys.map(|key| of(vm, key)).to_vec()),
        ));
    }
    all
}

/// Title, meaning, and how the number is found.
type Column = (&'static str, &'static str, fn(&Value) -> f64);

const COLUMNS: [Column; 13] = [
    ("alone, %", "overhead on a host of its own, % of the ideal run alone", |vm| {
        number(vm, "interference.own")
    }),
    ("TLBs, %", "added by shared TLBs", |vm| number(vm, "interference.tlbs")),
    ("caches, %", "added by shared caches", |vm| number(vm, "interference.caches")),
    ("memory, %", "added by scarce memory", |vm| number(vm, "interference.memory")),
    ("total, %", "overhead in the fleet", |vm| number(vm, "interference.total")),
    ("turns", "turns on a core", |vm| number(vm, "turns")),
    ("touched, MiB", "memory that it used", |vm| number(vm, "touched_bytes") / MIB),
    ("in memory, MiB", "of that, what the host has in memory at the end", |vm| {
        number(vm, "resident_bytes") / MIB
    }),
    ("tables, MiB", "nested, shadow and host tables", |vm| {
        let of = |key: &str| number(&vm["together"]["page_table_bytes"], key).max(0.0);
        (of("nested") + of("shadow") + of("host")) / MIB
    }),
    ("taken back", "pages that the host took back", |vm| number(vm, "swap.taken_back")),
    ("written", "of these, pages that were written", |vm| number(vm, "swap.written")),
    ("came back", "pages that were read again", |vm| number(vm, "swap.swapped_in")),
    ("waited, %", "of the time, waiting for pages; no part of overheads", |vm| {
        number(vm, "waited_percent")
    }),
];

fn table(fleet: &Fleet) -> Sortable {
    let pair = |title: &str, meaning: &str| (title.to_owned(), meaning.to_owned());
    let mut columns = vec![
        pair("VM", "its name"),
        pair("source", "what runs in it"),
        pair("machine", "how it is virtualized"),
    ];
    columns.extend(COLUMNS.iter().map(|(title, meaning, _)| pair(title, meaning)));
    let text = |value: &Value| (value.as_str().unwrap_or_default().to_owned(), None);
    let row = |vm: &Value| -> Vec<Cell> {
        let mut cells = vec![text(&vm["name"]), text(&vm["source"]), text(&vm["together"]["name"])];
        cells.extend(COLUMNS.iter().map(|(_, _, value)| match value(vm) {
            value if value.is_finite() => (figure::number(value), Some(value)),
            _ => (String::new(), None),
        }));
        cells
    };
    Sortable { columns, rows: fleet.vms.iter().map(row).collect() }
}

fn about(fleet: &Fleet) -> Vec<String> {
    let of = |key: &str| number(&fleet.host, key);
    let cores = of("cores");
    let mut notes = vec![format!(
        "A host with {} core{} and {} MiB of memory, of which the VMs touch {} MiB with their tables.",
        figure::number(cores),
        if cores > 1.0 { "s" } else { "" },
        figure::number(of("bytes") / MIB),
        figure::number(of("touched_bytes") / MIB)
    )];
    notes.extend(fleet.notes.iter().map(|note| format!("Note: {note}.")));
    notes
}

fn page(fleets: &[Fleet], each: Vec<Vec<Figure>>) -> Page {
    let section = |(fleet, figures): (&Fleet, Vec<Figure>)| Section {
        title: fleet.label.clone(),
        notes: about(fleet),
        table: Some(table(fleet)),
        figures,
        ..Section::default()
    };
    let title = match fleets {
        [one] => format!("{} VMs on one host", one.vms.len()),
        _ => "Fleets of VMs".into(),
    };
    Page {
        title,
        notes: vec!["A heading sorts the table; it says what it means if pointed at.".into()],
        sections: fleets.iter().zip(each).map(section).collect(),
        made_by: format!("nestwalk {VERSION}"),
    }
}
