//! Columns of the tables with a row per machine: the first table, the wide one, and those that are asked
//! for by name.

use super::baseline::Baseline;
use super::headings::{Heading, MACHINE, RELATIVE_TO, number};
use super::repeats::Repeats;
use super::{NONE, or_none, per_walk, rate, ratio};
use crate::fields;
use anyhow::{Result, bail};
use nestwalk_lab::results::translation_cycles;
use nestwalk_report::{Align, Cells, Table, bytes, count, to_cells};
use nestwalk_sim::FIELDS;
use nestwalk_sim::report::results::MachineResult;
use serde_json::Value;

/// From what cells are made.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// To what run times are relative.
    pub base: Option<Baseline<'a>>,
    /// The same with other seeds.
    pub repeats: Option<&'a Repeats>,
}

/// A column: its heading and a cell of it.
pub struct Column {
    /// Its heading.
    pub heading: Heading,
    cell: fn(&Context, &MachineResult) -> String,
}

const fn column(
    title: &'static str,
    from: &'static str,
    meaning: &'static str,
    cell: fn(&Context, &MachineResult) -> String,
) -> Column {
    Column { heading: number(title, from, meaning), cell }
}

/// Of a machine that translates.
fn unless_ideal(m: &MachineResult, text: String) -> String {
    if m.scheme == "ideal" { NONE.into() } else { text }
}

fn per_1000(n: u64, m: &MachineResult) -> String {
    or_none(m.instructions, format!("{:.2}", 1000.0 * ratio(n, m.instructions)))
}

fn share(cycles: f64, m: &MachineResult) -> String {
    if m.total_cycles > 0.0 {
        format!("{:.1}", 100.0 * cycles / m.total_cycles)
    } else {
        NONE.into()
    }
}

/// All tables of a machine and of those below it.
fn table_bytes(m: &MachineResult) -> u64 {
    let t = &m.page_table_bytes;
    t.guest + t.nested + t.shadow + t.host
}

/// The first table.
pub static BRIEF: [Column; 5] = [
    column(
        "run time\n",
        "total_cycles / total_cycles of the baseline",
        "run time as a multiple of that of the machine behind the `/`, one for all rows: the ideal \
         machine, of several the fastest. With --repeat the mean over seeds. Where machines do not make \
         the same accesses, run times are per instruction",
        |to, m| match (to.base, to.repeats) {
            (Some(_), Some(repeats)) => format!("{:.3}", repeats.run_time(&m.name).mean),
            (Some(base), None) => format!("{:.3}", base.run_time(m)),
            (None, _) => NONE.into(),
        },
    ),
    column(
        "walks/1000\ninstr.",
        "1000 * walks / instructions",
        "page walks per thousand instructions; - if instructions are not known",
        |_, m| unless_ideal(m, per_1000(m.walks, m)),
    ),
    column(
        "transl.\n% time",
        "(total_cycles - vmm_cycles - ideal_cycles) / total_cycles",
        "share of the machine's own run time that translation takes: walks, hits of the second-level TLB, \
         and what page tables displace from the data caches",
        |_, m| match m.ideal_cycles > 0.0 {
            true => unless_ideal(m, share(translation_cycles(m), m)),
            false => NONE.into(),
        },
    ),
    column(
        "VMM\n% time",
        "vmm_cycles / total_cycles",
        "share of the machine's own run time that the hypervisor and the host kernel take",
        |_, m| or_none(u64::from(m.vmm_cycles > 0.0), share(m.vmm_cycles, m)),
    ),
    column(
        "table\nmemory",
        "page_table_bytes",
        "memory of page tables at the end: the guest's, nested ones, shadows, the host process's",
        |_, m| or_none(table_bytes(m), bytes(table_bytes(m))),
    ),
];

/// Behind the run time, with `--repeat`.
pub static SPREAD: Column = column(
    "run time\ndeviation",
    "repeats.machines[].run_time.deviation",
    "standard deviation of the run time over the seeds of --repeat",
    |to, m| match to.repeats {
        Some(repeats) => format!("{:.4}", repeats.run_time(&m.name).deviation),
        None => NONE.into(),
    },
);

/// The wide table.
pub static WIDE: [Column; 14] = [
    column(
        "L1 TLB\nMPKI",
        "l1_tlb_mpki",
        "first-level misses per thousand instructions; - if instructions are not known",
        |_, m| unless_ideal(m, rate(m.l1_tlb_mpki)),
    ),
    column(
        "L2 TLB\nMPKI",
        "l2_tlb_mpki",
        "second-level misses per thousand instructions; - if instructions are not known",
        |_, m| unless_ideal(m, rate(m.l2_tlb_mpki)),
    ),
    column("walks", "walks", "page walks that found their translation", |_, m| {
        unless_ideal(m, count(m.walks))
    }),
    column(
        "guest\nrefs/walk",
        "guest_refs / walks",
        "references of a walk to the guest's tables (native: its own)",
        |_, m| per_walk(m.guest_refs, m.walks),
    ),
    column(
        "nested\nrefs/walk",
        "nested_refs / walks",
        "references of a walk to nested tables",
        |_, m| per_walk(m.nested_refs, m.walks),
    ),
    column(
        "shadow\nrefs/walk",
        "shadow_refs / walks",
        "references of a walk to shadow tables",
        |_, m| per_walk(m.shadow_refs, m.walks),
    ),
    column(
        "served by\nL1/L2/LLC/mem %",
        "refs_served",
        "where references of walks were found: first-level, second-level, last-level cache, memory",
        |_, m| {
            let refs: u64 = m.refs_served.values().sum();
            let of = |place: &str| m.refs_served.get(place).copied().unwrap_or(0);
            let share = |place: &str| format!("{:.0}", 100.0 * ratio(of(place), refs));
            or_none(refs, ["l1", "l2", "llc", "memory"].map(share).join("/"))
        },
    ),
    column(
        "cycles\n/walk",
        "cycles_per_walk",
        "cycles of a walk, those that end in a fault included",
        |_, m| or_none(m.walks, format!("{:.0}", m.cycles_per_walk)),
    ),
    column(
        "transl.\novh. %",
        "translation_overhead_percent",
        "what translation adds, in % of the run time of the ideal machine with the same guest: walks, hits \
         of the second-level TLB, and what page tables displace from the data caches",
        |_, m| unless_ideal(m, format!("{:.1}", m.translation_overhead_percent)),
    ),
    column("VM\nexits", "vm_exits_total", "exits to the hypervisor", |_, m| {
        or_none(m.vm_exits_total, count(m.vm_exits_total))
    }),
    column(
        "VMM\novh. %",
        "vmm_overhead_percent",
        "what hypervisor and host kernel add, in % of the ideal machine's run time",
        |_, m| or_none(m.vm_exits_total, format!("{:.1}", m.vmm_overhead_percent)),
    ),
    column(
        "total\novh. %",
        "overhead_percent",
        "both together, in % of the ideal machine's run time",
        |_, m| unless_ideal(m, format!("{:.1}", m.overhead_percent)),
    ),
    column(
        "guest\ntables",
        "page_table_bytes.guest",
        "memory of the guest's page tables",
        |_, m| or_none(m.page_table_bytes.guest, bytes(m.page_table_bytes.guest)),
    ),
    column(
        "host\ntables",
        "page_table_bytes",
        "memory of nested and shadow tables and of the host process's tables",
        |_, m| {
            let host = table_bytes(m) - m.page_table_bytes.guest;
            or_none(host, bytes(host))
        },
    ),
];

fn heading(base: Option<Baseline>, column: &Column) -> String {
    match (column.heading.title, base) {
        ("run time\n", Some(base)) => format!("run time\n{RELATIVE_TO}{}", base.machine.name),
        (title, _) => title.into(),
    }
}

/// A table with these columns.
fn table<'a>(
    columns: impl Iterator<Item = &'a Column> + Clone,
    context: &Context,
    machines: &[MachineResult],
) -> Table {
    let first = Table::new().column(MACHINE.title, MACHINE.align);
    let mut table =
        columns.clone().fold(first, |t, c| t.column(&heading(context.base, c), c.heading.align));
    for m in machines {
        let cells = columns.clone().map(|c| (c.cell)(context, m));
        table.row([m.name.clone()].into_iter().chain(cells).collect());
    }
    table
}

/// The first table.
pub fn brief(context: &Context, machines: &[MachineResult]) -> Table {
    let spread = context.repeats.map(|_| &SPREAD);
    let columns: Vec<&Column> = BRIEF[..1].iter().chain(spread).chain(&BRIEF[1..]).collect();
    table(columns.iter().copied(), context, machines)
}

/// The wide table.
pub fn wide(context: &Context, machines: &[MachineResult]) -> Table {
    let mut table = table(WIDE.iter(), context, machines);
    // That a rate is not known must be seen.
    let unknown = machines.iter().any(|m| m.l1_tlb_mpki.is_nan());
    table.drop_columns_from(if unknown { 3 } else { 0 }, NONE);
    table
}

/// A column that was asked for.
#[derive(Clone)]
pub enum Chosen {
    /// A printed one.
    Printed(&'static Column),
    /// A field of the results, or all fields below it.
    Field(String),
}

/// `L2 TLB\nMPKI` as `l2-tlb-mpki`, however it is typed.
pub fn plain(text: &str) -> String {
    let words = text.split(|c: char| c.is_whitespace() || c == '_' || c == '-');
    words.filter(|w| !w.is_empty()).collect::<Vec<_>>().join("-").to_ascii_lowercase()
}

/// Every column of the tables with a row per machine.
pub fn printed() -> impl Iterator<Item = &'static Column> {
    BRIEF.iter().chain([&SPREAD]).chain(&WIDE)
}

/// Fields whose keys are names of prices and of classes of walks.
const OPEN: [&str; 2] = ["vmm_work", "walks_switched"];

/// Whether results can have such a field.
fn is_field(name: &str) -> bool {
    let Some((first, rest)) = name.split_once('.') else {
        return FIELDS.iter().any(|f| f.0 == name);
    };
    // The longest object that is documented, and of its keys the one that follows.
    let below = |part: &str| name.strip_prefix(part)?.strip_prefix('.');
    let parts = fields::parts_of(first).filter_map(|(p, keys)| Some((p.len(), below(p)?, keys)));
    let longest = parts.max_by_key(|part| part.0);
    let known = longest.is_some_and(|(_, rest, keys)| {
        let (key, further) = rest.split_once('.').unwrap_or((rest, ""));
        // Techniques and shares are names.
        keys.iter().any(|f| f.0 == key) && (further.is_empty() || key == "entries")
    });
    known || OPEN.contains(&first) && !rest.is_empty()
}

/// Reads `--columns`.
///
/// # Errors
/// A name is that of no column; the message lists all.
pub fn choose(names: &str) -> Result<Vec<Chosen>> {
    let names = names.split(',').map(str::trim).filter(|name| !name.is_empty());
    let mut chosen = Vec::new();
    for name in names.filter(|name| plain(name) != MACHINE.title) {
        let of_table = printed().find(|c| plain(c.heading.title) == plain(name));
        chosen.push(match of_table {
            _ if is_field(name) => Chosen::Field(name.into()),
            Some(column) => Chosen::Printed(column),
            None => {
                let titles: Vec<String> = printed().map(|c| plain(c.heading.title)).collect();
                let fields: Vec<&str> = FIELDS.iter().map(|f| f.0).collect();
                bail!(
                    "--columns {name}: there is no such column. Columns of tables: {}. Fields of the \
                     results, and FIELD.KEY of those that have keys (`nestwalk explain results`): {}",
                    titles.join(", "),
                    fields.join(", ")
                )
            }
        });
    }
    if chosen.is_empty() {
        bail!(
            "--columns: names of columns with commas between them are needed, as in walks,vm_exits"
        );
    }
    Ok(chosen)
}

/// The table that was asked for.
pub fn asked(chosen: &[Chosen], context: &Context, machines: &[MachineResult]) -> Table {
    let rows: Vec<Value> = machines.iter().flat_map(serde_json::to_value).collect();
    let cells = to_cells(&rows);
    let mut columns: Vec<(String, Align, Vec<String>)> = vec![(
        MACHINE.title.into(),
        MACHINE.align,
        machines.iter().map(|m| m.name.clone()).collect(),
    )];
    for chosen in chosen {
        match chosen {
            Chosen::Printed(c) => {
                let cells = machines.iter().map(|m| (c.cell)(context, m)).collect();
                columns.push((heading(context.base, c), c.heading.align, cells));
            }
            Chosen::Field(name) => columns.extend(of_field(name, &cells)),
        }
    }
    let titles = columns.iter().map(|(title, align, _)| (title, *align));
    let mut table = titles.fold(Table::new(), |t, (title, align)| t.column(title, align));
    for row in 0..machines.len() {
        table.row(columns.iter().map(|(_, _, cells)| cells[row].clone()).collect());
    }
    table
}

/// The columns of a field: one, or those of all its keys.
fn of_field(name: &str, cells: &Cells) -> Vec<(String, Align, Vec<String>)> {
    let below = format!("{name}.");
    let found = |c: &&String| c.as_str() == name || c.starts_with(&below);
    let mut columns = Vec::new();
    for title in cells.columns.iter().filter(found) {
        let at = cells.columns.iter().position(|c| c == title).unwrap_or_default();
        let texts: Vec<&str> = cells.rows.iter().map(|row| row[at].as_str()).collect();
        let is_number = texts.iter().all(|t| t.is_empty() || t.parse::<f64>().is_ok());
        let align = if is_number { Align::Right } else { Align::Left };
        columns.push((title.replace('.', ".\n"), align, texts.into_iter().map(readable).collect()));
    }
    // No machine has any: that is told, and nothing left out.
    if columns.is_empty() {
        columns.push((name.replace('.', ".\n"), Align::Right, vec![NONE.into(); cells.rows.len()]));
    }
    columns
}

/// A cell of CSV for people.
fn readable(text: &str) -> String {
    match (text, text.parse::<u64>(), text.parse::<f64>()) {
        ("", _, _) => NONE.into(),
        (_, Ok(n), _) => count(n),
        (_, _, Ok(x)) => format!("{x:.3}"),
        _ => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_found_however_they_are_typed() {
        let is_printed = |name: &str, title: &str| {
            let chosen = choose(name).unwrap();
            matches!(chosen.as_slice(), [Chosen::Printed(c)] if c.heading.title == title)
        };
        assert!(
            is_printed("L2 TLB MPKI", "L2 TLB\nMPKI") && is_printed("l2-tlb-mpki", "L2 TLB\nMPKI")
        );
        assert!(is_printed("Run time", "run time\n") && is_printed("vm exits", "VM\nexits"));
        for field in ["l2_tlb_mpki", "vm_exits", "vm_exits.pin", "energy.total", "walks", "scheme"]
        {
            let chosen = choose(field).unwrap();
            assert!(matches!(chosen.as_slice(), [Chosen::Field(f)] if f == field), "{field}");
        }
        assert!(is_field("segments.vmm.bytes") && is_field("vmm_work.exit_ns"));
        assert_eq!(choose("machine, walks,,run-time").unwrap().len(), 2);
    }

    #[test]
    fn a_column_that_is_none_is_answered_with_all() {
        for bad in ["nonsense", "vm_exits.nonsense", "walks.x.y", "energy.", "segments.vmm.x"] {
            let message = choose(bad).err().unwrap_or_else(|| panic!("{bad}")).to_string();
            assert!(message.contains(bad) && message.contains("l2-tlb-mpki"), "{message}");
            assert!(FIELDS.iter().all(|f| message.contains(f.0)), "{message}");
        }
        assert!(choose(" , ").is_err() && choose("machine").is_err());
    }
}
