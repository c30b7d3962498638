//! Agile Paging (Gandhi, Hill, Swift; ISCA 2016): figure 5, overhead of the base machine, nested, shadow
//! and agile paging with 4 KiB and 2 MiB pages, and table VI, walks by their length.
//!
//! The paper measures shadow and nested paging on hardware and computes agile paging from counts (its
//! table IV); here agile paging is run like the others. Three of its programs have a counterpart here:
//! memcached and graph500 as built-in workloads, gcc as a recording.

use super::Ended;
use super::bars::{Bar, figure, geometric_mean};
use super::programs::{BuiltIn, Program, chosen, each};
use crate::args::ReproduceArgs;
use crate::formats::Found;
use crate::screen::Screen;
use crate::signals::stop_on_signals;
use anyhow::Result;
use nestwalk_hw::Profile;
use nestwalk_lab::VERSION;
use nestwalk_report::{Align, Table, count};
use nestwalk_sim::report::results::MachineResult;
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

/// Programs that come with nestwalk, and the words of `compare` that name them. The paper's run for
/// minutes, so that how tables came to be weighs nothing; here a warm-up is left out instead.
const BUILT_IN: &[BuiltIn] = &[
    ("memcached", "kvstore --footprint 16GiB --accesses 20M --warmup 20M"),
    ("graph500", "graph500 --footprint 16GiB --accesses 20M --warmup 20M"),
    ("gcc", "gcc"),
    ("gups", "gups --footprint 16GiB --accesses 20M --warmup 20M"),
    ("btree", "btree --footprint 16GiB --accesses 20M --warmup 20M"),
    ("hashjoin", "hashjoin --footprint 16GiB --accesses 20M --warmup 20M"),
    ("compiler", "compiler --footprint 1GiB --accesses 20M --warmup 20M"),
    ("redis", "redis"),
    ("storm", "storm"),
];

const PROFILE: &str = "sandy-bridge-e5-2430";

/// Techniques, by the letters of the figure. The paper's interval is 1 s, of programs that run for
/// minutes; these are some hundredths of a second long, of which an interval of about a millisecond is
/// as small a part. What 1 s comes to is told beside it.
const BARS: [(&str, &str); 4] = [("B", "native"), ("N", "nested"), ("S", "shadow"), ("A", SHORT)];
const SHORT: &str = "agile/interval=2000000";

/// What the paper's choices decide: the interval as published; one of about a millisecond, which ends in
/// programs as short as these; and that where walks of guest tables are writes, as EPT's accessed and
/// dirty flags and AMD's nested paging have it, so that a walked table is a dirty one.
const VARIANTS: [(&str, &str); 3] = [
    ("interval of 1 s", "agile"),
    ("about 1 ms", SHORT),
    ("about 1 ms, eptad=on", "agile/interval=2000000/eptad=on"),
];

/// Page walks and VMM, percent, of B, N, S and A.
type Published = [[f64; 2]; 4];

/// Figure 5, decoded from the paper's drawing: with 4 KiB and with 2 MiB pages. The decoded bars give
/// the text's numbers: N over B 2.5 and S over B 3.1 in the geometric mean with 4 KiB pages, A 2.3 %
/// slower than B.
const FIGURE_5: [(&str, Published, Published); 8] = [
    (
        "memcached",
        [[3.1, 0.0], [19.6, 2.3], [20.4, 14.0], [4.8, 2.2]],
        [[0.7, 0.0], [8.6, 2.0], [5.1, 9.1], [1.3, 2.0]],
    ),
    (
        "canneal",
        [[16.7, 0.0], [36.3, 2.4], [18.6, 5.7], [17.3, 2.4]],
        [[9.9, 0.0], [23.3, 2.0], [10.0, 5.3], [9.9, 2.3]],
    ),
    (
        "astar",
        [[11.7, 0.0], [20.9, 1.3], [12.3, 4.7], [12.0, 1.3]],
        [[8.1, 0.0], [12.7, 1.2], [8.9, 4.4], [8.4, 1.2]],
    ),
    (
        "gcc",
        [[2.4, 0.0], [2.9, 1.0], [3.6, 6.6], [2.6, 1.0]],
        [[0.6, 0.0], [2.1, 0.9], [4.3, 5.2], [1.1, 0.8]],
    ),
    (
        "graph500",
        [[40.7, 0.0], [77.5, 2.5], [41.6, 14.1], [40.7, 2.8]],
        [[16.4, 0.0], [29.4, 2.3], [16.4, 4.5], [16.7, 2.3]],
    ),
    (
        "mcf",
        [[50.3, 0.0], [93.0, 4.2], [50.3, 7.3], [50.6, 3.1]],
        [[24.6, 0.0], [35.6, 5.9], [26.3, 6.8], [26.3, 3.4]],
    ),
    (
        "tigr",
        [[32.2, 0.0], [50.0, 2.3], [32.2, 5.7], [33.1, 2.5]],
        [[7.1, 0.0], [15.3, 2.5], [7.1, 5.7], [7.1, 2.5]],
    ),
    (
        "dedup",
        [[1.4, 0.0], [5.9, 1.4], [16.1, 56.8], [2.0, 2.0]],
        [[0.8, 0.0], [4.8, 2.0], [13.3, 55.7], [1.4, 2.3]],
    ),
];

/// Table VI: walks of 4, 8 and 12 references in percent, none longer, and their average.
const TABLE_VI: [(&str, [f64; 3], f64); 8] = [
    ("memcached", [88.2, 4.5, 7.3], 4.76),
    ("canneal", [94.7, 4.6, 0.7], 4.24),
    ("astar", [92.3, 7.5, 0.2], 4.32),
    ("gcc", [81.6, 11.7, 6.7], 5.00),
    ("graph500", [99.8, 0.2, 0.0], 4.01),
    ("mcf", [99.1, 0.9, 0.0], 4.04),
    ("tigr", [88.3, 7.6, 3.1], 4.51),
    ("dedup", [91.4, 2.2, 6.4], 4.60),
];

/// What the evaluation found.
#[derive(Serialize)]
pub struct Agile {
    version: &'static str,
    profile: String,
    complete: bool,
    programs: Vec<OfProgram>,
}

#[derive(Serialize)]
struct OfProgram {
    program: String,
    description: String,
    instructions: u64,
    /// B, N, S, A with 4 KiB pages.
    pages_4k: Vec<Bar>,
    /// The same with 2 MiB pages.
    pages_2m: Vec<Bar>,
    /// Agile paging with 4 KiB pages: the paper's interval, a short one, that where walks are writes.
    variants: Vec<Variant>,
    /// Agile paging with 4 KiB pages: walks by where they left shadow tables.
    walks_switched: BTreeMap<&'static str, u64>,
    /// Their average length if nothing is cached.
    average_references: f64,
    /// What the paper has for this program.
    #[serde(skip_serializing_if = "Option::is_none")]
    published: Option<OfPaper>,
}

/// A variant of agile paging on a program.
#[derive(Serialize)]
struct Variant {
    #[serde(flatten)]
    bar: Bar,
    /// Guest tables that went nested, and that went back.
    tables_nested: u64,
    tables_shadowed: u64,
    /// Length of a walk with nothing cached.
    average_references: f64,
}

/// The paper's numbers of a program.
#[derive(Serialize)]
struct OfPaper {
    program: &'static str,
    /// Page walks and VMM in percent, of B, N, S and A.
    pages_4k: Published,
    pages_2m: Published,
    /// Walks of 4, 8 and 12 references, percent.
    walks_percent: [f64; 3],
    average_references: f64,
}

impl OfPaper {
    fn of(name: &str) -> Option<Self> {
        let (program, pages_4k, pages_2m) = *FIGURE_5.iter().find(|row| row.0 == name)?;
        let (_, walks_percent, average_references) = *TABLE_VI.iter().find(|row| row.0 == name)?;
        Some(Self { program, pages_4k, pages_2m, walks_percent, average_references })
    }
}

/// Runs it.
///
/// # Errors
/// A program cannot be run to its end.
pub fn run(args: &ReproduceArgs) -> Result<Ended<Agile>> {
    let profile = args.profile.as_deref().unwrap_or(PROFILE);
    let name = Profile::load(profile)?.name;
    let stop = stop_on_signals();
    let programs = chosen(args, BUILT_IN)?;
    let (programs, stopped) = each(args, profile, &programs, |p| program(args, profile, p, &stop))?;
    let complete = stopped.is_none();
    Ok((Agile { version: VERSION, profile: name, complete, programs }, stopped))
}

fn program(
    args: &ReproduceArgs,
    profile: &str,
    program: &Program,
    stop: &AtomicBool,
) -> Result<OfProgram> {
    // A recorded guest is as it was in the one half, and mapped again with large pages in the other.
    let bare = BARS.iter().map(|(_, scheme)| (*scheme).to_owned());
    let large = BARS.iter().map(|(_, scheme)| format!("{scheme}:thp"));
    let others = VARIANTS.iter().filter(|(_, machine)| *machine != SHORT);
    let variants = others.map(|(_, machine)| (*machine).to_owned());
    let machines: Vec<String> = bare.chain(large).chain(variants).collect();
    let ran = program.run(args, profile, &machines, None, stop)?;
    let find = |machine: &str, large: bool| -> Option<&MachineResult> {
        ran.session.outcome.machines.iter().find(|m| {
            let (kind, pages) = m.name.split_once(':').unwrap_or((&m.name, ""));
            kind == machine && pages.starts_with("thp") == large
        })
    };
    let variants = VARIANTS.iter().filter_map(|(what, machine)| {
        let m = find(machine, false)?;
        Some(Variant {
            bar: Bar::new(what, m),
            tables_nested: m.tables_nested,
            tables_shadowed: m.tables_shadowed,
            average_references: m.switched_refs_per_walk,
        })
    });
    let variants = variants.collect();
    let bars = |large: bool| -> Vec<Bar> {
        let all = BARS.iter();
        all.filter_map(|(bar, scheme)| Some(Bar::new(bar, find(scheme, large)?))).collect()
    };
    let agile = find(SHORT, false);
    Ok(OfProgram {
        program: program.name.clone(),
        description: ran.session.info.description.clone(),
        instructions: agile.map_or(0, |m| m.instructions),
        pages_4k: bars(false),
        pages_2m: bars(true),
        variants,
        walks_switched: agile.map(|m| m.walks_switched.clone()).unwrap_or_default(),
        average_references: agile.map_or(0.0, |m| m.switched_refs_per_walk),
        published: OfPaper::of(&program.name),
    })
}

/// Run time of the better of N and S over that of A, in percent, in the geometric mean.
fn gain(bars: impl Iterator<Item = [f64; 4]>) -> Option<f64> {
    let over = |[_, n, s, a]: [f64; 4]| 100.0 * ((100.0 + n.min(s)) / (100.0 + a) - 1.0);
    geometric_mean(bars.map(over))
}

fn totals(bars: &[Bar]) -> Option<[f64; 4]> {
    let totals: Vec<f64> = bars.iter().map(|b| b.total_percent).collect();
    totals.try_into().ok()
}

fn published_totals(bars: &Published) -> [f64; 4] {
    bars.map(|[walk, vmm]| walk + vmm)
}

impl Found for Agile {
    fn json(&self) -> Result<Value> {
        let mut value = serde_json::to_value(self)?;
        if let Some(all) = value.as_object_mut() {
            let names = FIGURE_5.iter().map(|row| row.0);
            let published: Vec<OfPaper> = names.filter_map(OfPaper::of).collect();
            all.insert("published".into(), serde_json::to_value(published)?);
        }
        Ok(value)
    }

    fn rows(&self) -> Result<Vec<Value>> {
        let mut rows = Vec::new();
        for program in &self.programs {
            let halves = [("4k", &program.pages_4k), ("2m", &program.pages_2m)];
            for (i, (pages, bars)) in halves.into_iter().enumerate() {
                for (j, bar) in bars.iter().enumerate() {
                    let paper = program.published.as_ref();
                    let paper = paper.map(|p| [p.pages_4k, p.pages_2m][i][j]);
                    rows.push(json!({
                        "program": program.program,
                        "pages": pages,
                        "bar": bar.bar,
                        "machine": bar.machine,
                        "walk_percent": bar.walk_percent,
                        "vmm_percent": bar.vmm_percent,
                        "total_percent": bar.total_percent,
                        "exits": bar.more.exits,
                        "published_walk_percent": paper.map(|p| p[0]),
                        "published_vmm_percent": paper.map(|p| p[1]),
                    }));
                }
            }
        }
        Ok(rows)
    }

    fn table(&self, _: Screen) -> String {
        let mut out = format!(
            "Agile Paging (ISCA 2016), figure 5 and table VI. Profile {}. Overhead = page walks + VMM, percent \
             of the ideal run time;\nB is the base machine, N nested, S shadow, A agile paging with an interval \
             of about 1 ms. The paper's bars are\ndecoded from its drawing.\n\n",
            self.profile
        );
        let halves = [("Figure 5, 4 KiB pages", 0), ("Figure 5, 2 MiB pages where they fit", 1)];
        for (title, half) in halves {
            let bars: Vec<(&str, Vec<&Bar>)> = self
                .programs
                .iter()
                .map(|p| (p.program.as_str(), [&p.pages_4k, &p.pages_2m][half].iter().collect()))
                .collect();
            out += &figure(title, &bars, |_| String::new());
            out += &published_figure(half);
            let ours =
                self.programs.iter().filter_map(|p| totals([&p.pages_4k, &p.pages_2m][half]));
            let theirs = FIGURE_5.iter().map(|row| published_totals([&row.1, &row.2][half]));
            if let (Some(ours), Some(theirs)) = (gain(ours), gain(theirs)) {
                out += &format!(
                    "the better of N and S takes {ours:.1} % longer than A here, {theirs:.1} % published \
                     (geometric means)\n\n"
                );
            }
        }
        out + &self.table_vi() + &self.table_of_variants()
    }
}

fn published_figure(half: usize) -> String {
    let mut table = Table::new().column("published, %", Align::Left);
    for (bar, _) in BARS {
        table = table.column(bar, Align::Right);
    }
    for row in &FIGURE_5 {
        let mut cells = vec![row.0.to_owned()];
        let bars = [&row.1, &row.2][half];
        cells.extend(bars.iter().map(|[w, v]| format!("{w:.1}+{v:.1} = {:.1}", w + v)));
        table.row(cells);
    }
    table.render() + "\n"
}

impl Agile {
    fn table_of_variants(&self) -> String {
        let mut table =
            Table::new().column("4 KiB pages", Align::Left).column("agile paging", Align::Left);
        for column in
            ["walks %", "VMM %", "total %", "exits", "went nested", "went back", "references"]
        {
            table = table.column(column, Align::Right);
        }
        for program in &self.programs {
            for (i, v) in program.variants.iter().enumerate() {
                table.row(vec![
                    if i == 0 { program.program.clone() } else { String::new() },
                    v.bar.bar.clone(),
                    format!("{:.1}", v.bar.walk_percent),
                    format!("{:.1}", v.bar.vmm_percent),
                    format!("{:.1}", v.bar.total_percent),
                    count(v.bar.more.exits),
                    count(v.tables_nested),
                    count(v.tables_shadowed),
                    format!("{:.2}", v.average_references),
                ]);
            }
        }
        format!(
            "\nThe interval, and what walks of guest tables are. The paper's interval of 1 s does not end in \
             programs this short. With\neptad=on such walks are writes, as EPT's flags have it: a table \
             that the walker finds by the nested tables is dirty once walked.\n\n{}",
            table.render()
        )
    }

    fn table_vi(&self) -> String {
        // The lengths that the published table has beside the average.
        let classes = [
            ("4", "shadow"),
            ("8", "l1"),
            ("12", "l2"),
            ("16", "l3"),
            ("20", "l4"),
            ("24", "nested"),
        ];
        let mut table = Table::new().column("walks by references, %", Align::Left);
        for (length, _) in classes {
            table = table.column(length, Align::Right);
        }
        table = table
            .column("average", Align::Right)
            .column("published 4 / 8 / 12", Align::Right)
            .column("average", Align::Right);
        for program in &self.programs {
            let all: u64 = program.walks_switched.values().sum();
            let mut row = vec![program.program.clone()];
            row.extend(classes.iter().map(|(_, class)| {
                let n = program.walks_switched.get(class).copied().unwrap_or(0);
                format!("{:.1}", 100.0 * n as f64 / all.max(1) as f64)
            }));
            row.push(format!("{:.2}", program.average_references));
            if let Some(p) = &program.published {
                row.push(p.walks_percent.map(|w| format!("{w:.1}")).join(" / "));
                row.push(format!("{:.2}", p.average_references));
            }
            table.row(row);
        }
        format!("Table VI: 4 KiB pages, walk lengths with nothing cached\n\n{}", table.render())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mean(of: impl Fn(&Published) -> f64) -> f64 {
        let sum: f64 = FIGURE_5.iter().map(|row| of(&row.1).ln()).sum();
        (sum / FIGURE_5.len() as f64).exp()
    }

    /// The text of the paper has these means; the bars were read off a drawing.
    #[test]
    fn the_published_bars_agree_with_the_published_text() {
        let total = |p: &Published, i: usize| p[i][0] + p[i][1];
        let nested = mean(|p| total(p, 1) / total(p, 0));
        let shadow = mean(|p| total(p, 2) / total(p, 0));
        let agile = mean(|p| (100.0 + total(p, 3)) / (100.0 + total(p, 0)));
        assert!((nested - 2.5).abs() < 0.05, "{nested}");
        assert!((shadow - 3.1).abs() < 0.1, "{shadow}");
        assert!((agile - 1.023).abs() < 0.001, "{agile}");
    }

    /// Walks that the table leaves out of its three columns are none.
    #[test]
    fn the_published_averages_follow_from_the_shares() {
        for (name, [four, eight, twelve], average) in TABLE_VI {
            let sum = four + eight + twelve;
            let mean = (4.0 * four + 8.0 * eight + 12.0 * twelve) / sum;
            // The row of tigr sums to 99.0 in the paper.
            assert!(
                (mean - average).abs() < if name == "tigr" { 0.2 } else { 0.011 },
                "{name}: {mean}"
            );
        }
    }
}
