//! Other page tables: every structure over big-memory programs and recordings, beside what was
//! published of it. The walk speedups by program are those of SagePTE's artifact
//! (`parse_walk_stats.py`, the paper's own reference numbers, on an Ampere Altra with a TLB of 1,280
//! entries and simulated caches); what each technique's own paper has is told below.

use super::Ended;
use super::programs::{BuiltIn, Program, chosen, each};
use crate::args::ReproduceArgs;
use crate::formats::Found;
use crate::screen::Screen;
use crate::signals::stop_on_signals;
use anyhow::Result;
use nestwalk_hw::{Profile, ServedBy};
use nestwalk_lab::VERSION;
use nestwalk_report::{Align, Table, bytes, count};
use nestwalk_sim::report::results::MachineResult;
use serde::Serialize;
use serde_json::Value;
use std::sync::atomic::AtomicBool;

const PROFILE: &str = "cascade-lake-6252";

const BUILT_IN: &[BuiltIn] = &[
    ("btree", "btree --footprint 4GiB --accesses 5M --warmup 5M"),
    ("graph500", "graph500 --footprint 4GiB --accesses 5M --warmup 5M"),
    ("gups", "gups --footprint 4GiB --accesses 5M --warmup 5M"),
    ("memcached", "kvstore --footprint 4GiB --accesses 5M --warmup 5M"),
    ("xsbench", "xsbench --footprint 4GiB --accesses 5M --warmup 5M"),
    ("redis", "redis"),
    ("bfs", "bfs"),
    ("gcc", "gcc"),
];

/// What is said of a machine: its name; the speedup of walks over nested paging's that each program of
/// SagePTE's table has; what its own paper has; why numbers here may differ.
struct Subject {
    machine: &'static str,
    published: &'static [(&'static str, f64)],
    paper: &'static str,
    why: &'static str,
}

const SUBJECTS: &[Subject] = &[
    Subject { machine: "nested", published: &[], paper: "24 references cold", why: "" },
    Subject {
        machine: "hashed",
        published: &[],
        paper: "run times 6 to 32 % shorter, virtualized (Hash, Don't Cache); 3 references",
        why: "walk caches and a nested TLB, which it does without, reach far in this profile; its references \
              miss caches where neighbours of a radix tree share lines",
    },
    Subject {
        machine: "hashed/kind=vhpt",
        published: &[],
        paper: "up to 5 times the accesses to memory of radix tables with walk caches (Barr et al., ISCA 2010), \
                which Hash, Don't Cache says is this design's and not hashing's; 3 references",
        why: "an entry has 32 bytes, so that a line has two pages where packed clusters have eight; hardware \
              follows chains",
    },
    Subject {
        machine: "hashed/kind=htab",
        published: &[],
        paper: "nothing beside nested paging that we know of; 3 look-ups",
        why: "a group is two lines of 64 bytes, and neighbouring pages lie in neighbouring groups",
    },
    Subject {
        machine: "hashed-nested",
        published: &[],
        paper: "not worse than nested radix tables, sometimes better (Hoang et al.); 9 references cold",
        why: "the nested TLB and walk caches of the profile have most of what it would save",
    },
    Subject {
        machine: "flat-nested",
        published: &[],
        paper: "7 % faster than a 2-D walker with walk cache and nested TLB (ISCA 2012); 9 references cold",
        why: "published are run times of whole programs; the nested TLB and walk caches of the profile have most of \
              what one reference in place of four would save",
    },
    Subject {
        machine: "inverted-shadow",
        published: &[],
        paper: "14 % faster than a 2-D walker with walk cache and nested TLB (ISCA 2012); 1 reference if the guess is right",
        why: "published are run times of whole programs; cycles that a right guess hides are not counted here, and a \
              guess has a reference of its own",
    },
    Subject {
        machine: "flattened",
        published: &[
            ("btree", 1.244),
            ("graph500", 1.585),
            ("gups", 1.281),
            ("memcached", 1.321),
            ("redis", 1.313),
            ("xsbench", 1.223),
        ],
        paper: "4.4 references to 2.8, run times 7.1 % shorter (ASPLOS 2022)",
        why: "published is without a nested TLB, which has half of a walk here; programs are smaller",
    },
    Subject {
        machine: "ecpt",
        published: &[
            ("btree", 1.282),
            ("graph500", 1.772),
            ("gups", 1.304),
            ("memcached", 1.377),
            ("redis", 1.349),
            ("xsbench", 1.290),
        ],
        paper: "1.19 times as fast as nested radix tables (ASPLOS 2022)",
        why: "published is the slowest step of three and 12 cycles, without what parallel lines displace \
              from the caches; here each of 15 lines is simulated, and there is no nested TLB",
    },
    Subject {
        machine: "pvdmt",
        published: &[
            ("btree", 1.297),
            ("graph500", 2.120),
            ("gups", 1.309),
            ("memcached", 1.400),
            ("redis", 1.359),
            ("xsbench", 1.299),
        ],
        paper: "walks 1.58 times as fast, programs 1.20 times (ASPLOS 2024); the column is DMT's, with 3 references",
        why: "a walk has one reference less than DMT's three, and what has no register is walked without \
              walk caches",
    },
    Subject {
        machine: "asap",
        published: &[
            ("btree", 1.181),
            ("graph500", 1.365),
            ("gups", 1.153),
            ("memcached", 1.211),
            ("redis", 1.202),
            ("xsbench", 1.166),
        ],
        paper: "native: walks 25 % shorter on average, 42 % at most, beside another thread of the core (MICRO 2019)",
        why: "published is a formula over a walk's latencies, dimension by dimension; here the guest's entries are \
              on their way while the host's look-ups for them go on, and where walk caches and the nested TLB \
              leave a walk one reference there is nothing to fetch ahead of it",
    },
    Subject {
        machine: "learned",
        published: &[],
        paper: "native: 44 % less translation overhead, programs 2 to 27 % faster (LVM, MICRO 2025)",
        why: "the index is a re-implementation by the abstract's idea, in two dimensions, which are not published",
    },
    Subject {
        machine: "utopia",
        published: &[],
        paper: "native: programs 24 % faster than with radix tables (MICRO 2023)",
        why: "two dimensions are not published; pages on end lie in sets on end, each with a line of tags of its \
              own, where eight entries of a radix table share one, and walk caches and the nested TLB have \
              the rest of a radix walk",
    },
    Subject {
        machine: "pom-tlb",
        published: &[],
        paper: "about 10 % faster on 8 cores, nearly no walks left (ISCA 2017)",
        why: "its memory has no channel of its own, and cold entries are filled by walks of a short run",
    },
    Subject {
        machine: "victima",
        published: &[],
        paper: "programs 28.7 % faster than with nested paging, natively 7.4 %; 20.1 % and 6.2 % faster than with \
                a TLB in memory (MICRO 2023)",
        why: "the second-level cache of the profile is 1 MiB where the paper's is 2 MiB, its replacement is \
              LRU, and a block knows the neighbours that the walk's lines tell, not all eight",
    },
];

/// What the evaluation found.
#[derive(Serialize)]
pub struct Tables {
    version: &'static str,
    profile: String,
    complete: bool,
    rows: Vec<Row>,
}

/// A machine on a program.
#[derive(Serialize)]
struct Row {
    program: String,
    machine: String,
    refs_per_walk: f64,
    /// Percent of these by where they were served.
    served_percent: [f64; ServedBy::COUNT],
    /// Cycles for each second-level miss, those of structures beside walks included, those that guesses
    /// hide not.
    cycles_per_miss: f64,
    /// Cycles of nested paging for each of its misses over that.
    walk_speedup: f64,
    /// Work of guest kernel and VMM for tables, above nested paging's, percent of the ideal run time.
    software_percent: f64,
    overhead_percent: f64,
    table_bytes: u64,
    resizes: u64,
    published_walk_speedup: Option<f64>,
    /// Why it deviates; empty if it is within a tenth, or nothing is published.
    why: &'static str,
}

/// Runs it.
///
/// # Errors
/// A program cannot be run to its end.
pub fn run(args: &ReproduceArgs) -> Result<Ended<Tables>> {
    let profile = args.profile.as_deref().unwrap_or(PROFILE);
    let name = Profile::load(profile)?.name;
    let stop = stop_on_signals();
    let programs = chosen(args, BUILT_IN)?;
    let (rows, stopped) = each(args, profile, &programs, |p| program(args, profile, p, &stop))?;
    let (complete, rows) = (stopped.is_none(), rows.into_iter().flatten().collect());
    Ok((Tables { version: VERSION, profile: name, complete, rows }, stopped))
}

fn program(
    args: &ReproduceArgs,
    profile: &str,
    program: &Program,
    stop: &AtomicBool,
) -> Result<Vec<Row>> {
    let machines: Vec<String> = SUBJECTS.iter().map(|s| s.machine.to_owned()).collect();
    let ran = program.run(args, profile, &machines, None, stop)?;
    let nested = ran.machine(0);
    let rows = SUBJECTS.iter().enumerate().map(|(i, subject)| {
        let m = ran.machine(i);
        let published = subject.published.iter().find(|p| p.0 == program.name).map(|p| p.1);
        let walk_speedup = cycles_per_miss(nested) / cycles_per_miss(m).max(f64::MIN_POSITIVE);
        let off = published.is_none_or(|p| (walk_speedup / p - 1.0).abs() > 0.1);
        let tables = &m.page_table_bytes;
        Row {
            program: program.name.clone(),
            machine: subject.machine.into(),
            refs_per_walk: m.refs_per_walk,
            served_percent: served(m),
            cycles_per_miss: cycles_per_miss(m),
            walk_speedup,
            software_percent: 100.0 * (software(m) - software(nested)) / m.ideal_cycles.max(1.0),
            overhead_percent: m.overhead_percent,
            table_bytes: tables.guest + tables.nested + tables.shadow,
            resizes: m.table_resizes,
            published_walk_speedup: published,
            why: if off { subject.why } else { "" },
        }
    });
    Ok(rows.collect())
}

fn software(m: &MachineResult) -> f64 {
    m.guest_os_cycles + m.vmm_cycles
}

fn cycles_per_miss(m: &MachineResult) -> f64 {
    // What a structure beside the walk has served is no second-level miss of the counter.
    let misses = (m.l2_tlb_misses + m.rewalks + m.assist_hits).max(1);
    // What right guesses hide nobody waits for.
    let walks = m.walk_cycles.saturating_sub(m.hidden_walk_cycles) + m.misprediction_cycles;
    (walks + m.assist_cycles) as f64 / misses as f64
}

fn served(m: &MachineResult) -> [f64; ServedBy::COUNT] {
    let all = m.references.total().max(1) as f64;
    ServedBy::ALL.map(|place| 100.0 * m.references.served_by(place) as f64 / all)
}

impl Found for Tables {
    fn json(&self) -> Result<Value> {
        let mut value = serde_json::to_value(self)?;
        if let Some(all) = value.as_object_mut() {
            let papers = SUBJECTS.iter().map(|s| (s.machine.to_owned(), s.paper.into()));
            all.insert("published".into(), Value::Object(papers.collect()));
        }
        Ok(value)
    }

    fn rows(&self) -> Result<Vec<Value>> {
        self.rows.iter().map(|row| Ok(serde_json::to_value(row)?)).collect()
    }

    fn table(&self, _: Screen) -> String {
        let mut table = Table::new().column("program", Align::Left).column("machine", Align::Left);
        for column in [
            "references\nper walk",
            "served by\nl1/l2/llc/memory %",
            "cycles\nper miss",
            "walk speedup\nover nested",
            "published",
            "software\n%",
            "overhead\n%",
            "tables",
            "resizes",
        ] {
            table = table.column(column, Align::Right);
        }
        let mut last = "";
        for row in &self.rows {
            let program = if row.program == last { "" } else { row.program.as_str() };
            last = row.program.as_str();
            table.row(vec![
                program.to_owned(),
                row.machine.clone(),
                format!("{:.2}", row.refs_per_walk),
                row.served_percent.map(|p| format!("{p:.0}")).join("/"),
                format!("{:.1}", row.cycles_per_miss),
                format!("{:.2}", row.walk_speedup),
                row.published_walk_speedup.map_or("-".into(), |p| format!("{p:.2}")),
                format!("{:.1}", row.software_percent),
                format!("{:.1}", row.overhead_percent),
                bytes(row.table_bytes),
                count(row.resizes),
            ]);
        }
        let mut out = format!(
            "Other page tables. Profile {}, 4 KiB pages. Cycles for each second-level miss; software is the \
             kernel's and the\nVMM's work above nested paging's. Published by program: SagePTE's table, \
             Ampere Altra.\n\n{}\n",
            self.profile,
            table.render()
        );
        for subject in SUBJECTS {
            out += &format!("{}: published {}", subject.machine, subject.paper);
            let off = self.rows.iter().any(|r| r.machine == subject.machine && !r.why.is_empty());
            out += &if off { format!("; here {}.\n", subject.why) } else { ".\n".into() };
        }
        out
    }
}
