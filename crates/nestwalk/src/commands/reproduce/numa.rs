//! vMitosis (Panwar et al.; ASPLOS 2021): what page tables on another node cost VMs of one node and of
//! all nodes, and what moving and copying them wins back, beside the times of the artifact's logs.

use super::Ended;
use super::programs::{BuiltIn, Program, Ran, chosen, each};
use crate::args::ReproduceArgs;
use crate::formats::Found;
use crate::screen::Screen;
use crate::signals::stop_on_signals;
use anyhow::Result;
use nestwalk_hw::Profile;
use nestwalk_lab::VERSION;
use nestwalk_report::{Align, Table};
use serde::Serialize;
use serde_json::{Value, json};
use std::sync::atomic::AtomicBool;

const PROFILE: &str = "cascade-lake-6252";

/// Programs of the artifact that are had here; of those with many threads, the pattern of their memory.
const BUILT_IN: &[BuiltIn] = &[
    ("gups", "gups:mirror=1 --footprint 64GiB --warmup 6M --accesses 4M"),
    ("btree", "btree --footprint 16GiB --warmup 6M --accesses 4M"),
    ("memcached", "kvstore --footprint 16GiB --warmup 6M --accesses 4M"),
    ("xsbench", "xsbench --footprint 16GiB --warmup 6M --accesses 4M"),
    ("xsbench-wide", "uniform:reads=1 --footprint 16GiB --vcpus 4 --warmup 6M --accesses 4M"),
    ("memcached-wide", "zipf:reads=0.9 --footprint 16GiB --vcpus 4 --warmup 6M --accesses 4M"),
];

/// Where the tables of a run are: its name in the artifact, and the machine. Guest's tables first, then
/// nested ones: local, remote; with interference; moved by vMitosis: nested ones, the guest's, both.
type Place = (&'static str, &'static str);

const THIN: [Place; 10] = [
    ("LL", "nested/nodes=2/data=0/gpt=0/ept=0:4k+4k"),
    ("LR", "nested/nodes=2/data=0/gpt=0/ept=1:4k+4k"),
    ("RL", "nested/nodes=2/data=0/gpt=1/ept=0:4k+4k"),
    ("RR", "nested/nodes=2/data=0/gpt=1/ept=1:4k+4k"),
    ("LRI", "nested/nodes=2/data=0/gpt=0/ept=1/load=1:4k+4k"),
    ("RLI", "nested/nodes=2/data=0/gpt=1/ept=0/load=1:4k+4k"),
    ("RRI", "nested/nodes=2/data=0/gpt=1/ept=1/load=1:4k+4k"),
    ("RRIE", "nested/nodes=2/data=0/gpt=1/ept=1/load=1/migrate=ept/scan=16000000:4k+4k"),
    ("RRIG", "nested/nodes=2/data=0/gpt=1/ept=1/load=1/migrate=gpt/scan=16000000:4k+4k"),
    ("RRIM", "nested/nodes=2/data=0/gpt=1/ept=1/load=1/migrate=both/scan=16000000:4k+4k"),
];

/// Data first touched and interleaved; with copies of both tables.
const WIDE: [Place; 4] = [
    ("F", "nested/nodes=4/pin=spread:4k+4k"),
    ("FM", "nested/nodes=4/pin=spread/copies=both:4k+4k"),
    ("I", "nested/nodes=4/pin=spread/data=interleave:4k+4k"),
    ("IM", "nested/nodes=4/pin=spread/data=interleave/copies=both:4k+4k"),
];

/// Bare metal: the logs that the latencies of remote memory come from.
const NATIVE: [Place; 3] = [
    ("L", "native/nodes=2/data=0/gpt=0:4k"),
    ("R", "native/nodes=2/data=0/gpt=1:4k"),
    ("RI", "native/nodes=2/data=0/gpt=1/load=1:4k"),
];

/// `Execution Time (seconds)` of the artifact's logs, `evaluation/reference/data`, 4 KiB pages: by
/// program, in the order of the places.
struct Log {
    program: &'static str,
    places: &'static [Place],
    seconds: &'static [f64],
}

const LOGS: &[Log] = &[
    Log { program: "gups", places: &NATIVE, seconds: &[134.0, 207.0, 373.0] },
    Log {
        program: "gups",
        places: &THIN,
        seconds: &[260.0, 350.0, 353.0, 437.0, 545.0, 538.0, 792.0, 535.0, 548.0, 255.0],
    },
    Log {
        program: "btree",
        places: &THIN,
        seconds: &[417.0, 533.0, 538.0, 647.0, 732.0, 731.0, 1060.0, 733.0, 730.0, 418.0],
    },
    Log {
        program: "memcached",
        places: &THIN,
        seconds: &[366.0, 463.0, 458.0, 568.0, 620.0, 617.0, 886.0, 625.0, 608.0, 373.0],
    },
    Log {
        program: "xsbench",
        places: &THIN,
        seconds: &[193.0, 219.0, 218.0, 243.0, 274.0, 266.0, 345.0, 274.0, 271.0, 201.0],
    },
    Log { program: "xsbench-wide", places: &WIDE, seconds: &[782.0, 482.0, 474.0, 404.0] },
    Log { program: "memcached-wide", places: &WIDE, seconds: &[600.0, 502.0, 616.0, 497.0] },
];

/// How far a ratio may be off without a reason, percent.
const NEAR: f64 = 10.0;

/// What the evaluation found.
#[derive(Serialize)]
pub struct Numa {
    version: &'static str,
    profile: String,
    complete: bool,
    rows: Vec<Row>,
}

/// A program with its tables in one place.
#[derive(Serialize)]
struct Row {
    program: String,
    place: &'static str,
    machine: String,
    /// Time over that of the first place of the program.
    published: Option<f64>,
    simulated: f64,
    difference_percent: Option<f64>,
    /// Percent of the references of walks that memory of another node served.
    remote_walk_percent: f64,
    /// Cycles of a walk, nothing hidden.
    cycles_per_walk: f64,
    /// Pages of tables that were moved, or filled as copies, while it was counted.
    table_pages: u64,
    /// Bytes of page tables at the end, copies included.
    table_bytes: u64,
    why: &'static str,
}

/// Runs it.
///
/// # Errors
/// A program cannot be run to its end.
pub fn run(args: &ReproduceArgs) -> Result<Ended<Numa>> {
    let profile = args.profile.as_deref().unwrap_or(PROFILE);
    let name = Profile::load(profile)?.name;
    let stop = stop_on_signals();
    let programs = chosen(args, BUILT_IN)?;
    let (rows, stopped) = each(args, profile, &programs, |p| program(args, profile, p, &stop))?;
    let (complete, rows) = (stopped.is_none(), rows.into_iter().flatten().collect());
    Ok((Numa { version: VERSION, profile: name, complete, rows }, stopped))
}

fn program(
    args: &ReproduceArgs,
    profile: &str,
    program: &Program,
    stop: &AtomicBool,
) -> Result<Vec<Row>> {
    // What has no log is a VM of one node.
    let unknown = [Log { program: "", places: &THIN, seconds: &[] }];
    let known: Vec<&Log> = LOGS.iter().filter(|l| l.program == program.name).collect();
    let logs = if known.is_empty() { unknown.iter().collect() } else { known };
    let places: Vec<Place> = logs.iter().flat_map(|l| l.places).copied().collect();
    let machines: Vec<String> = places.iter().map(|p| p.1.to_owned()).collect();
    let ran = program.run(args, profile, &machines, None, stop)?;
    let mut first = 0;
    let mut rows = Vec::new();
    for log in logs {
        rows.extend(of_log(&program.name, log, &ran, first));
        first += log.places.len();
    }
    Ok(rows)
}

fn of_log(program: &str, log: &Log, ran: &Ran, first: usize) -> Vec<Row> {
    let base = ran.machine(first).total_cycles;
    let row = |(i, place): (usize, &Place)| {
        let m = ran.machine(first + i);
        let simulated = m.total_cycles / base.max(1.0);
        let published = log.seconds.get(i).map(|seconds| seconds / log.seconds[0]);
        let difference_percent = published.map(|p| 100.0 * (simulated / p - 1.0));
        let off = difference_percent.is_some_and(|d| d.abs() > NEAR);
        let tables = &m.page_table_bytes;
        let references = (m.references.total() + m.faulted_references.total()).max(1);
        Row {
            program: program.into(),
            place: place.0,
            machine: place.1.into(),
            published,
            simulated,
            difference_percent,
            remote_walk_percent: 100.0 * m.remote_walk_references as f64 / references as f64,
            cycles_per_walk: m.cycles_per_walk,
            table_pages: m.guest_tables_moved
                + m.nested_tables_moved
                + m.guest_copy_pages
                + m.nested_copy_pages,
            table_bytes: tables.guest + tables.nested,
            why: match off {
                true => why(log.places, simulated < published.unwrap_or(0.0), tables.guest > LARGE),
                false => "",
            },
        }
    };
    log.places.iter().enumerate().map(row).collect()
}

/// Bytes of a guest's tables from which on they are far from fitting into the last-level cache.
const LARGE: u64 = 100 << 20;

/// Why a time is off: it is less than published, or more; of a guest with large tables, or not.
fn why(places: &[Place], less: bool, large: bool) -> &'static str {
    match (places.len() == WIDE.len(), less) {
        (true, true) => WIDE_LESS,
        (true, false) => WIDE_MORE,
        (false, true) if large => SHARE,
        (false, true) => THIN_LESS,
        (false, false) => THIN_MORE,
    }
}

const THIN_LESS: &str = "memory is a part of the published, so that more entries of leaf tables are in the \
                         last-level cache, where no node is asked";
const SHARE: &str = "the share of a walk that delays the program is one number here; published, it grows with the walk's \
                     length (of GUPS from 0.41 to 0.50), while cycles of walks agree";
const THIN_MORE: &str = "the run is short: what moving tables takes is a larger part of it";
const WIDE_LESS: &str = "a pattern stands for the program; four vCPUs in turn load no link between nodes, as \
                         192 threads do";
const WIDE_MORE: &str = "a pattern stands for the program, which all vCPUs first touch alike; published threads do it \
                         unevenly, so that one node serves more, and interleaving alone wins";

impl Found for Numa {
    fn json(&self) -> Result<Value> {
        let mut value = serde_json::to_value(self)?;
        if let Some(all) = value.as_object_mut() {
            all.insert(
                "published".into(),
                json!({
                    "thin": "tables in the worst place: 1.8 to 3.1 times the time",
                    "wide": "copies: 1.06 to 1.6 times as fast",
                }),
            );
        }
        Ok(value)
    }

    fn rows(&self) -> Result<Vec<Value>> {
        self.rows.iter().map(|row| Ok(serde_json::to_value(row)?)).collect()
    }

    fn table(&self, _: Screen) -> String {
        let mut table = Table::new().column("program", Align::Left).column("place", Align::Left);
        for column in [
            "published\ntimes",
            "simulated\ntimes",
            "difference\n%",
            "remote\n% of walks' references",
            "cycles\nper walk",
            "table pages\nmoved, copied",
            "tables\nMiB",
        ] {
            table = table.column(column, Align::Right);
        }
        let mut last = "";
        for row in &self.rows {
            let program = if row.program == last { "" } else { row.program.as_str() };
            last = row.program.as_str();
            let known = |n: Option<f64>| n.map_or("-".into(), |n| format!("{n:.2}"));
            table.row(vec![
                program.to_owned(),
                row.place.into(),
                known(row.published),
                format!("{:.2}", row.simulated),
                row.difference_percent.map_or("-".into(), |d| format!("{d:+.0}")),
                format!("{:.0}", row.remote_walk_percent),
                format!("{:.0}", row.cycles_per_walk),
                row.table_pages.to_string(),
                (row.table_bytes >> 20).to_string(),
            ]);
        }
        let mut out = format!(
            "vMitosis (ASPLOS 2021): time over that of the first place of each program. Profile {}.\nGuest's \
             tables, then nested tables: local, remote; I: the remote node is busy; E, G, M: nested tables, \
             the guest's, both move.\nOn all nodes F: data lies where it is first used, I: it is \
             interleaved; M: copies of both tables on each node.\nPublished: 1.8 to 3.1 times in the worst \
             place, and copies 1.06 to 1.6 times as fast.\n\n{}\n",
            self.profile,
            table.render()
        );
        for text in [THIN_LESS, SHARE, THIN_MORE, WIDE_LESS, WIDE_MORE] {
            let of = self.rows.iter().filter(|r| r.why == text);
            let of: Vec<String> = of.map(|r| format!("{} {}", r.program, r.place)).collect();
            if !of.is_empty() {
                out += &format!("{}: {text}.\n", of.join(", "));
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the paper's abstract says follows from the logs.
    #[test]
    fn the_logs_have_the_published_factors() {
        for log in LOGS {
            let seconds = |place: &str| {
                let i = log.places.iter().position(|p| p.0 == place).unwrap();
                log.seconds[i]
            };
            assert_eq!(log.seconds.len(), log.places.len(), "{}", log.program);
            match log.places.len() {
                10 => {
                    let worst = seconds("RRI") / seconds("LL");
                    assert!((1.75..3.15).contains(&worst), "{}: {worst}", log.program);
                    assert!((0.97..1.06).contains(&(seconds("RRIM") / seconds("LL"))));
                }
                4 => {
                    let won = seconds("F") / seconds("FM");
                    assert!((1.06..1.65).contains(&won), "{}: {won}", log.program);
                }
                _ => assert_eq!(log.program, "gups"),
            }
        }
    }
}
