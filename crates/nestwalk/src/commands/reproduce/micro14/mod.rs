//! Efficient Memory Virtualization (Gandhi, Basu, Hill, Swift; MICRO 2014): overhead of page sizes,
//! direct segments, VMM Direct, Guest Direct and Dual Direct, and the slowdown by bad pages.
//!
//! The paper counts classes of TLB misses on hardware and turns them into time by a linear model; here
//! each configuration is a machine that is run. Its programs are two groups; those that cannot be had
//! here have the nearest built-in workload in their place, under the workload's own name.

mod checks;
mod details;
mod filter;
mod scenarios;
mod tables;

use super::Ended;
use super::bars::{self, Published, percent, row};
use super::programs::{BuiltIn, Program, Ran, chosen, each};
use crate::args::ReproduceArgs;
use crate::formats::Found;
use crate::screen::Screen;
use crate::signals::stop_on_signals;
use anyhow::Result;
use checks::{Check, PUBLISHED};
use details::Details;
use filter::Plot;
use nestwalk_hw::Profile;
use nestwalk_lab::VERSION;
use nestwalk_sim::report::results::MachineResult;
use scenarios::Scenario;
use serde::Serialize;
use serde_json::{Value, json};
use std::sync::atomic::AtomicBool;

/// Programs, and the words of `compare` that name them. Those with several arrays allocate them from one
/// region, as the paper's programs do for direct segments.
const BUILT_IN: &[BuiltIn] = &[
    ("graph500", "graph500:region=1 --footprint 16GiB --accesses 10M --warmup 10M"),
    ("kvstore", "kvstore:region=1 --footprint 16GiB --accesses 10M --warmup 10M"),
    ("pagerank", "pagerank:region=1 --footprint 16GiB --accesses 10M --warmup 10M"),
    ("gups", "gups --footprint 16GiB --accesses 10M --warmup 10M"),
    ("bt", "bt --footprint 1GiB --accesses 10M --warmup 10M"),
    ("btree", "btree --footprint 1GiB --accesses 10M --warmup 10M"),
    ("compiler", "compiler --footprint 1GiB --accesses 10M --warmup 10M"),
    ("hashjoin", "hashjoin:region=1 --footprint 1GiB --accesses 10M --warmup 10M"),
    ("stream", "stream --footprint 1GiB --accesses 10M --warmup 10M"),
];

/// Group of each built-in program, and what of the paper it is, or stands for.
const PLACES: [(&str, &str, &str); 9] = [
    ("graph500", BIG_MEMORY, "graph500, the same algorithm"),
    ("kvstore", BIG_MEMORY, "memcached, the same data structures"),
    ("pagerank", BIG_MEMORY, "nearest to NPB:CG: a sparse matrix times a vector, over and over"),
    ("gups", BIG_MEMORY, "GUPS, the same algorithm"),
    ("bt", COMPUTE, "nearest to cactusADM and GemsFDTD: sweeps over a grid in three dimensions"),
    ("btree", COMPUTE, "nearest to mcf: pointers are followed"),
    ("compiler", COMPUTE, "nearest to omnetpp: many small allocations that come and go"),
    ("hashjoin", COMPUTE, "nearest to canneal: random places of a large array"),
    ("stream", COMPUTE, "nearest to streamcluster: arrays from one end to the other"),
];

const BIG_MEMORY: &str = "big-memory";
const COMPUTE: &str = "compute";
const RECORDED: &str = "recorded";

const PROFILE: &str = "sandy-bridge-e5-2430";

/// The paper's configurations: bare metal, guest and VMM pages, direct segments, the three new modes.
const CONFIGURATIONS: [(&str, &str); 15] = [
    ("4K", "native:4k"),
    ("2M", "native:2m"),
    ("1G", "native:1g"),
    ("4K+4K", "nested:4k+4k"),
    ("4K+2M", "nested:4k+2m"),
    ("4K+1G", "nested:4k+1g"),
    ("2M+2M", "nested:2m+2m"),
    ("2M+1G", "nested:2m+1g"),
    ("1G+1G", "nested:1g+1g"),
    ("THP+2M", "nested:thp+2m"),
    ("DS", "ds:4k"),
    ("DD", "dual-direct:4k"),
    ("4K+VD", "vmm-direct:4k"),
    ("4K+GD", "guest-direct:4k"),
    ("THP+VD", "vmm-direct:thp"),
];

/// What the evaluation found.
#[derive(Serialize)]
pub struct Micro14 {
    version: &'static str,
    profile: String,
    complete: bool,
    programs: Vec<OfProgram>,
    checks: Vec<Check>,
    /// Slowdown by bad pages, of each program of the big-memory group.
    escape_filter: Vec<Plot>,
    /// How much depends on what the paper does not say; none if there is no such program.
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<Details>,
    /// How contiguous memory comes to be.
    scenarios: Vec<Scenario>,
    published: &'static [Published],
}

#[derive(Serialize)]
struct OfProgram {
    program: String,
    group: &'static str,
    /// Which of the paper's programs it is, or is nearest to.
    stands_for: &'static str,
    description: String,
    instructions: u64,
    bars: Vec<Bar>,
}

/// A configuration with its overhead, and the counts that explain it.
type Bar = bars::Bar<Counts>;

#[derive(Serialize)]
struct Counts {
    /// Run time over that of bare metal with the same guest, percent more.
    over_native_percent: f64,
    l1_tlb_mpki: f64,
    /// First-level misses that the second level served, percent.
    l2_tlb_hits_percent: f64,
    /// First-level misses that a segment served, percent.
    segment_hits_percent: f64,
    walks: u64,
    refs_per_walk: f64,
    cycles_per_walk: f64,
    guest_segment_checks: u64,
    vmm_segment_checks: u64,
    /// Look-ups of guest-physical addresses that no VMM segment served, percent of the walker's checks;
    /// first-level misses that no segment served, where there is a guest segment.
    #[serde(skip_serializing_if = "Option::is_none")]
    outside_percent: Option<f64>,
}

/// Run time over another, percent more.
fn over(cycles: f64, than: f64) -> f64 {
    if than > 0.0 { 100.0 * (cycles / than - 1.0) } else { 0.0 }
}

impl Counts {
    fn new(ran: &Ran, m: &MachineResult) -> Self {
        let looked_up = m.nested_tlb_hits + m.nested_walks;
        let outside = match m.scheme.as_str() {
            "ds" | "dual-direct" => Some(100.0 - percent(m.segment_hits, m.l1_tlb_misses)),
            "vmm-direct" => Some(percent(looked_up, m.vmm_segment_checks)),
            // A walk that the guest's segment serves reads no table of the guest.
            "guest-direct" if m.guest_refs == 0 => Some(0.0),
            _ => None,
        };
        Self {
            over_native_percent: over(m.total_cycles, native(ran, m)),
            l1_tlb_mpki: m.l1_tlb_mpki,
            l2_tlb_hits_percent: percent(m.l2_tlb_hits, m.l1_tlb_misses),
            segment_hits_percent: percent(m.segment_hits, m.l1_tlb_misses),
            walks: m.walks,
            refs_per_walk: m.refs_per_walk,
            cycles_per_walk: m.cycles_per_walk,
            guest_segment_checks: m.guest_segment_checks,
            vmm_segment_checks: m.vmm_segment_checks,
            outside_percent: outside,
        }
    }
}

impl Counts {
    /// They, in words.
    fn why(&self) -> String {
        let per_walk = |n: u64| n as f64 / self.walks.max(1) as f64;
        let mut why = format!(
            "{:.1} first-level misses per 1000 instructions, {:.1} % of them served by the second level, \
             {:.1} % by a segment",
            self.l1_tlb_mpki, self.l2_tlb_hits_percent, self.segment_hits_percent
        );
        if self.walks > 0 {
            why += &format!(
                "; {:.2} references, {:.2} checks of guest-physical addresses and {:.0} cycles per walk",
                self.refs_per_walk,
                per_walk(self.vmm_segment_checks),
                self.cycles_per_walk
            );
        }
        if let Some(outside) = self.outside_percent {
            why += &format!("; {outside:.3} % outside of the segments");
        }
        why
    }
}

/// Cycles of bare metal with the guest pages of this machine: with an ordinary guest, as the paper's
/// native bars, or if none was run with one that has a primary region.
fn native(ran: &Ran, m: &MachineResult) -> f64 {
    let pages = m.name.split_once(':').map_or("", |(_, rest)| rest);
    let pages = pages.split(['+', '@']).next().unwrap_or_default();
    let all = &ran.session.outcome.machines;
    let find = |name: String| all.iter().find(|n| n.name == name);
    let found = find(format!("native:{pages}"));
    let found = found.or_else(|| find(format!("native:{pages}@primary")));
    found.map_or(0.0, |n| n.total_cycles)
}

/// Runs it.
///
/// # Errors
/// A program cannot be run to its end.
pub fn run(args: &ReproduceArgs) -> Result<Ended<Micro14>> {
    let profile = args.profile.as_deref().unwrap_or(PROFILE);
    let name = Profile::load(profile)?.name;
    let stop = stop_on_signals();
    let chosen = chosen(args, BUILT_IN)?;
    let (programs, mut stopped) =
        each(args, profile, &chosen, |p| program(args, profile, p, &stop))?;
    // The worst case of the group, if it is there.
    let big: Vec<&Program> = chosen.iter().filter(|p| place(p).0 == BIG_MEMORY).collect();
    let worst = big.iter().find(|p| p.name == "gups").or(big.first());
    // Whatever is left out once something has stopped the work.
    let mut part = |what: &mut dyn FnMut() -> Result<()>| {
        if stopped.is_none() {
            stopped = what().err();
        }
    };
    let (mut plots, mut details, mut scenarios) = (Vec::new(), None, Vec::new());
    for program in &big {
        part(&mut || {
            plots.push(filter::run(args, profile, program, &stop)?);
            Ok(())
        });
    }
    if let Some(program) = worst {
        part(&mut || {
            details = Some(details::run(args, profile, program, &stop)?);
            Ok(())
        });
    }
    part(&mut || {
        scenarios = scenarios::run(args, profile, &stop)?;
        Ok(())
    });
    let found = Micro14 {
        version: VERSION,
        profile: name,
        complete: stopped.is_none(),
        checks: checks::of(&programs, &plots),
        programs,
        escape_filter: plots,
        details,
        scenarios,
        published: PUBLISHED,
    };
    Ok((found, stopped))
}

/// Group of a program, and what it stands for.
fn place(program: &Program) -> (&'static str, &'static str) {
    if program.is_recorded() {
        return (RECORDED, "none: a recorded guest, its accesses on modelled kernels");
    }
    let found = PLACES.iter().find(|(name, ..)| *name == program.name);
    found.map_or((RECORDED, ""), |&(_, group, stands_for)| (group, stands_for))
}

fn program(
    args: &ReproduceArgs,
    profile: &str,
    program: &Program,
    stop: &AtomicBool,
) -> Result<OfProgram> {
    let machines: Vec<String> = CONFIGURATIONS.iter().map(|(_, m)| (*m).into()).collect();
    let ran = program.run(args, profile, &machines, None, stop)?;
    let all = &ran.session.outcome.machines;
    let bars = CONFIGURATIONS.iter().filter_map(|(bar, machine)| {
        let m = ran.named(machine).next_back()?;
        Some(Bar::with(bar, m, Counts::new(&ran, m)))
    });
    let bars: Vec<Bar> = bars.collect();
    let (group, stands_for) = place(program);
    Ok(OfProgram {
        program: program.name.clone(),
        group,
        stands_for,
        description: ran.session.info.description.clone(),
        instructions: all.first().map_or(0, |m| m.instructions),
        bars,
    })
}

impl Found for Micro14 {
    fn json(&self) -> Result<Value> {
        Ok(serde_json::to_value(self)?)
    }

    fn rows(&self) -> Result<Vec<Value>> {
        let mut rows = Vec::new();
        for program in &self.programs {
            for bar in &program.bars {
                let head = json!({ "program": program.program, "group": program.group });
                rows.push(row(head, bar, &["outside_percent"])?);
            }
        }
        Ok(rows)
    }

    fn table(&self, _: Screen) -> String {
        tables::all(self)
    }
}
