//! The table of the page.

use super::read::{Run, name, number};
use nestwalk_report::figure;
use nestwalk_report::page::{Cell, Sortable};
use serde_json::Value;

/// Title, meaning, and how the number is found.
type Column = (&'static str, &'static str, fn(&Value) -> f64);

const COLUMNS: [Column; 10] = [
    ("run time, %", "of an ideal machine with the same guest", |m| {
        100.0 * number(m, "total_cycles") / number(m, "ideal_cycles")
    }),
    ("translation, %", "walks, TLBs, and data that page tables displace; of ideal", |m| {
        number(m, "translation_overhead_percent")
    }),
    ("VMM, %", "work of hypervisor and host kernel, of ideal", |m| {
        number(m, "vmm_overhead_percent")
    }),
    ("L1 MPKI", "misses of the first-level TLB per 1000 instructions", |m| {
        number(m, "l1_tlb_mpki")
    }),
    ("L2 MPKI", "misses of both levels per 1000 instructions", |m| number(m, "l2_tlb_mpki")),
    ("walks", "page walks that found a translation", |m| number(m, "walks")),
    ("refs/walk", "references of a walk to tables", |m| number(m, "refs_per_walk")),
    ("cycles/walk", "the walker at work, nothing hidden", |m| number(m, "cycles_per_walk")),
    ("exits", "exits to the VMM", |m| number(m, "vm_exits_total")),
    ("tables, MiB", "page tables at the end: guest, nested, shadow, host process", |m| {
        let of = |key| number(&m["page_table_bytes"], key).max(0.0);
        (of("guest") + of("nested") + of("shadow") + of("host")) / 1048576.0
    }),
];

/// A row per machine of all runs.
pub fn table(runs: &[Run]) -> Sortable {
    let several = runs.len() > 1;
    let pair = |title: &str, meaning: &str| (title.to_owned(), meaning.to_owned());
    let mut columns = vec![pair("machine", "scheme:guest pages+host pages")];
    if several {
        columns.insert(0, pair("run", "folder or file of the results"));
    }
    columns.extend(COLUMNS.iter().map(|(title, meaning, _)| pair(title, meaning)));
    let row = |run: &Run, machine: &Value| -> Vec<Cell> {
        let mut cells = vec![(name(machine), None)];
        if several {
            cells.insert(0, (run.label.clone(), None));
        }
        cells.extend(COLUMNS.iter().map(|(_, _, value)| {
            let value = value(machine);
            if value.is_finite() {
                (figure::number(value), Some(value))
            } else {
                (String::new(), None)
            }
        }));
        cells
    };
    let rows = runs.iter().flat_map(|run| run.machines.iter().map(move |m| row(run, m)));
    Sortable { columns, rows: rows.collect() }
}
