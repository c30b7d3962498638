//! Enhancing and Exploiting Contiguity for Fast Memory Virtualization (Alverti et al.; ISCA 2020): how
//! many mappings cover a program under each placement policy, and what hardware makes of them.
//!
//! The paper takes misses from a kernel that poisons entries, and emulates the hardware on them with a
//! linear model. Here each technique is a machine that is run. What the model of the paper leaves out,
//! hits in the second-level TLB above all, is in the overheads; `walks` is the part that it has.

mod checks;
mod contiguity;
mod details;
mod tables;

use super::Ended;
use super::bars::{Published, percent, row};
use super::programs::{BuiltIn, Program, chosen, each};
use crate::args::ReproduceArgs;
use crate::formats::Found;
use crate::screen::Screen;
use crate::signals::stop_on_signals;
use anyhow::Result;
use checks::{Check, PUBLISHED};
use contiguity::{Line, Setup};
use details::Detail;
use nestwalk_hw::Profile;
use nestwalk_lab::VERSION;
use nestwalk_sim::measure::cost::walk_delay;
use nestwalk_sim::report::results::MachineResult;
use serde::Serialize;
use serde_json::{Value, json};
use std::sync::atomic::AtomicBool;

/// The paper's programs, and the words of `compare` that name them. The paper's have 30 to 167 GB.
const BUILT_IN: &[BuiltIn] = &[
    ("svm", "svm --footprint 16GiB --accesses 10M --warmup 10M"),
    ("pagerank", "pagerank --footprint 16GiB --accesses 10M --warmup 10M"),
    ("hashjoin", "hashjoin --footprint 16GiB --accesses 10M --warmup 10M"),
    ("xsbench", "xsbench --footprint 16GiB --accesses 10M --warmup 10M"),
    ("bt", "bt --footprint 16GiB --accesses 10M --warmup 10M"),
];

const PROFILE: &str = "cascade-lake-6252";

/// Name of a bar, its machine, and what it is.
type Definition = (&'static str, &'static str, &'static str);

/// Bars of the figure. The techniques have CA paging in both dimensions, as the paper's have; CoLT has
/// small pages, which are what it coalesces, and direct segments the memory that they need.
const BARS: [Definition; 13] = [
    ("4K", "native:4k@linux", "bare metal"),
    ("THP", "native:thp@linux", "bare metal"),
    ("CoLT", "native-colt:4k@linux", "bare metal, coalesced entries over Linux's placement"),
    ("RMM", "native-rmm:4k@eager", "bare metal, ranges over eager paging"),
    ("4K+4K", "nested:4k+4k@linux+linux", "nested paging"),
    ("THP+THP", "nested:thp+thp@linux+linux", "nested paging"),
    ("CA+CA", "nested:thp+thp@ca+ca", "nested paging over CA paging"),
    ("SpOT", "spot:thp+thp@ca+ca", "offset prediction"),
    ("vRMM", "rmm:thp+thp@ca+ca", "ranges in two dimensions"),
    ("vHC", "anchor:thp+thp@ca+ca", "anchors in two dimensions (hybrid coalescing)"),
    ("vCoLT", "colt:4k+4k@linux+linux", "coalesced entries in two dimensions"),
    ("vClustered", "clustered:4k+4k@linux+linux", "clustered entries in two dimensions"),
    ("DS", "dual-direct:4k+4k", "direct segments in both dimensions (Dual Direct)"),
];

/// Fields of bars that only predictions have.
const GUESSES: [&str; 3] = ["predicted_percent", "mispredicted_percent", "hidden_percent"];

/// What the evaluation found.
#[derive(Serialize)]
pub struct Isca20 {
    version: &'static str,
    profile: String,
    complete: bool,
    programs: Vec<OfProgram>,
    checks: Vec<Check>,
    /// How much depends on what the papers do not say.
    details: Vec<Detail>,
    published: &'static [Published],
}

#[derive(Serialize)]
struct OfProgram {
    program: String,
    description: String,
    instructions: u64,
    bars: Vec<Bar>,
    /// What coalesced entries save over as little memory as their paper's programs have.
    coalescing: Coalescing,
    /// Mappings that cover it, by set-up and placement policy.
    contiguity: Vec<Line>,
}

/// A machine with its overhead, and the counts behind it.
#[derive(Serialize)]
struct Bar {
    bar: &'static str,
    machine: String,
    /// Everything that is not ideal, percent of the ideal run time.
    total_percent: f64,
    /// Of this, walks that the program waits for, and wrong guesses.
    walks_percent: f64,
    /// The hypervisor, percent of the ideal run time.
    vmm_percent: f64,
    /// Accesses that both levels of TLB missed, and nothing beside them served.
    l2_tlb_misses: u64,
    walks: u64,
    cycles_per_walk: f64,
    /// Walks that a right guess hid, percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    predicted_percent: Option<f64>,
    /// Walks after a wrong guess, percent.
    #[serde(skip_serializing_if = "Option::is_none")]
    mispredicted_percent: Option<f64>,
    /// Cycles of walks that right guesses hid, percent of all cycles of walks.
    #[serde(skip_serializing_if = "Option::is_none")]
    hidden_percent: Option<f64>,
}

/// Second-level misses on bare metal with 4 KiB pages where Linux places them.
#[derive(Serialize)]
struct Coalescing {
    description: String,
    l2_tlb_misses: u64,
    /// With coalesced entries.
    colt_l2_tlb_misses: u64,
    eliminated_percent: f64,
}

impl Coalescing {
    /// The programs of CoLT's paper have hundreds of MiB, those of this evaluation 16 GiB.
    const PART: u64 = 16;

    fn run(
        args: &ReproduceArgs,
        profile: &str,
        program: &Program,
        stop: &AtomicBool,
    ) -> Result<Self> {
        let machines = ["native:4k@linux", "native-colt:4k@linux"].map(String::from);
        let program = program.clone().memory(1, Self::PART);
        let ran = program.run(args, profile, &machines, None, stop)?;
        let found = |name: &str| {
            let all = &ran.session.outcome.machines;
            all.iter().find(|m| m.name == name).map_or(0, |m| m.l2_tlb_misses)
        };
        let [plain, coalesced] = machines.each_ref().map(|name| found(name));
        Ok(Self {
            description: ran.session.info.description.clone(),
            l2_tlb_misses: plain,
            colt_l2_tlb_misses: coalesced,
            eliminated_percent: 100.0 - percent(coalesced, plain),
        })
    }
}

/// Cycles of walks that the program waits for, and of wrong guesses, percent of the ideal run time.
fn walks_percent(m: &MachineResult, profile: &Profile) -> f64 {
    let ideal = m.total_cycles / (1.0 + m.overhead_percent / 100.0);
    if ideal > 0.0 { 100.0 * walk_delay(m, profile) / ideal } else { 0.0 }
}

impl Bar {
    fn new(bar: &'static str, m: &MachineResult, profile: &Profile) -> Self {
        let guesses = m.scheme.ends_with("spot").then_some(m);
        Self {
            bar,
            machine: m.name.clone(),
            total_percent: m.overhead_percent,
            walks_percent: walks_percent(m, profile),
            vmm_percent: m.vmm_overhead_percent,
            l2_tlb_misses: m.l2_tlb_misses,
            walks: m.walks,
            cycles_per_walk: m.cycles_per_walk,
            predicted_percent: guesses.map(|c| percent(c.predictions_right, m.walks)),
            mispredicted_percent: guesses.map(|c| percent(c.predictions_wrong, m.walks)),
            hidden_percent: guesses.map(|c| percent(c.hidden_walk_cycles, m.walk_cycles)),
        }
    }
}

/// Runs it.
///
/// # Errors
/// A program cannot be run to its end.
pub fn run(args: &ReproduceArgs) -> Result<Ended<Isca20>> {
    let profile = args.profile.as_deref().unwrap_or(PROFILE);
    let name = Profile::load(profile)?.name;
    let stop = stop_on_signals();
    let chosen = chosen(args, BUILT_IN)?;
    let (programs, mut stopped) =
        each(args, profile, &chosen, |p| program(args, profile, p, &stop))?;
    let mut details = Vec::new();
    if let Some(first) = chosen.first()
        && stopped.is_none()
    {
        match details::run(args, profile, first, &stop) {
            Ok(rows) => details = rows,
            Err(error) => stopped = Some(error),
        }
    }
    let found = Isca20 {
        version: VERSION,
        profile: name,
        complete: stopped.is_none(),
        checks: checks::of(&programs),
        programs,
        details,
        published: PUBLISHED,
    };
    Ok((found, stopped))
}

fn program(
    args: &ReproduceArgs,
    profile: &str,
    program: &Program,
    stop: &AtomicBool,
) -> Result<OfProgram> {
    let machines: Vec<String> = BARS.iter().map(|b| b.1.to_owned()).collect();
    let ran = program.run(args, profile, &machines, None, stop)?;
    // A control that is asked for stands before the others, not among them.
    let bars = BARS.iter().filter_map(|&(bar, machine, _)| {
        Some(Bar::new(bar, ran.named(machine).next()?, &ran.profile))
    });
    let bars: Vec<Bar> = bars.collect();
    let mut lines = Vec::new();
    for setup in Setup::of(program) {
        lines.extend(contiguity::run(args, profile, program, setup, stop)?);
    }
    Ok(OfProgram {
        coalescing: Coalescing::run(args, profile, program, stop)?,
        program: program.name.clone(),
        description: ran.session.info.description.clone(),
        instructions: ran.session.outcome.machines.first().map_or(0, |m| m.instructions),
        bars,
        contiguity: lines,
    })
}

impl Found for Isca20 {
    fn json(&self) -> Result<Value> {
        Ok(serde_json::to_value(self)?)
    }

    fn rows(&self) -> Result<Vec<Value>> {
        let mut rows = Vec::new();
        for program in &self.programs {
            for bar in &program.bars {
                rows.push(row(json!({ "program": program.program }), bar, &GUESSES)?);
            }
        }
        Ok(rows)
    }

    fn table(&self, _: Screen) -> String {
        tables::all(self)
    }
}
