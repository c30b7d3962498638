//! vMitosis (Panwar et al.; ASPLOS 2021): GUPS over 64 GiB, natively and in a VM, with its time and its
//! counters, as the artifact's logs have them. The one run that the cost of cycles is fitted to.
//!
//! The fit is repeated from the counts of the run: cycles are linear in the two exposed shares, so every
//! pair of them can be priced without another run. `docs/counters.md` has how, and what it leaves.

use super::Ended;
use super::bars::row;
use super::programs::{BuiltIn, Program, chosen, each};
use crate::args::ReproduceArgs;
use crate::formats::Found;
use crate::screen::Screen;
use crate::signals::stop_on_signals;
use anyhow::Result;
use nestwalk_hw::Profile;
use nestwalk_lab::VERSION;
use nestwalk_report::{Align, Table};
use nestwalk_sim::measure::cost::hideable;
use nestwalk_sim::report::results::MachineResult;
use serde::Serialize;
use serde_json::{Value, json};
use std::sync::atomic::AtomicBool;

const BUILT_IN: &[BuiltIn] =
    &[("gups", "gups:mirror=1 --footprint 64GiB --warmup 6M --accesses 12M")];

const PROFILE: &str = "cascade-lake-6252";

/// Machines, and the runs of the artifact that they are.
const MACHINES: [&str; 4] = ["native:4k", "nested:4k+4k", "native:thp", "nested:thp+thp"];

/// Accesses of one update: two loads and stores of the table and one of the number make two updates.
const ACCESSES_PER_UPDATE: f64 = 3.0;
/// Updates of the published run: 2^30 numbers, two updates each.
const UPDATES: f64 = (1u64 << 31) as f64;

/// A log: `evaluation/reference/data/gups` of the artifact. User mode only.
#[derive(Clone, Copy, Serialize)]
struct Log {
    /// The machine here.
    machine: &'static str,
    /// The run's name there, and its day: page tables of guest and host local, no interference.
    run: &'static str,
    /// `Execution Time (seconds)`.
    seconds: f64,
    /// `cycles:u`.
    cycles: f64,
    /// `dtlb_load_misses.walk_pending:u`, EPT walks left out.
    loads: f64,
    /// `dtlb_store_misses.walk_pending:u`, EPT walks left out.
    stores: f64,
    /// `ept.walk_pending:u`.
    ept: f64,
}

const LOGS: [Log; 4] = [
    Log {
        machine: MACHINES[0],
        run: "L-20200330-103955",
        seconds: 134.0,
        cycles: 272_965_191_817.0,
        loads: 339_819_544_704.0,
        stores: 82_923_946_913.0,
        ept: 0.0,
    },
    Log {
        machine: MACHINES[1],
        run: "LL-20200328-172641",
        seconds: 260.0,
        cycles: 540_968_049_174.0,
        loads: 406_557_544_701.0,
        stores: 50_282_346_815.0,
        ept: 482_582_418_316.0,
    },
    Log {
        machine: MACHINES[2],
        run: "TL-20200404-103727",
        seconds: 66.0,
        cycles: 132_942_059_855.0,
        loads: 61_495_367_098.0,
        stores: 18_941_834_283.0,
        ept: 0.0,
    },
    Log {
        machine: MACHINES[3],
        run: "TLL-20200402-113650",
        seconds: 79.0,
        cycles: 163_201_506_640.0,
        loads: 69_114_381_775.0,
        stores: 16_144_592_070.0,
        ept: 74_663_892_114.0,
    },
];

impl Log {
    fn pending(&self) -> f64 {
        self.loads + self.stores + self.ept
    }
}

/// What a figure is for.
#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Use {
    /// The two shares are fitted to it.
    Fitted,
    /// It was not used.
    Check,
}

/// A number of the log beside its counterpart.
#[derive(Serialize)]
struct Figure {
    what: &'static str,
    unit: &'static str,
    published: f64,
    simulated: f64,
    difference_percent: f64,
    /// How far off it may be, percent. The fit weighs differences by it.
    tolerance_percent: f64,
    of: Use,
}

/// A machine's counts in the terms of the cost model, per update.
#[derive(Clone, Copy)]
struct Counted {
    /// Cycles that depend on neither share.
    fixed: f64,
    /// Latency of data beyond the first level.
    data: f64,
    /// Walks and look-ups of the second-level TLB.
    walks: f64,
    /// Walks alone: what the processor counts as pending.
    pending: f64,
}

impl Counted {
    fn new(m: &MachineResult, profile: &Profile) -> Self {
        let updates = m.accesses as f64 / ACCESSES_PER_UPDATE;
        let core = &profile.core;
        let [data, walks] = hideable(m, profile);
        let exposed = core.data_exposed.value * data + core.walk_exposed.value * walks;
        Self {
            fixed: (m.total_cycles - exposed) / updates,
            data: data / updates,
            walks: walks / updates,
            pending: m.walk_cycles as f64 / updates,
        }
    }
    /// Cycles per update with these shares.
    fn total(&self, shares: Shares) -> f64 {
        self.fixed + shares.data_exposed * self.data + shares.walk_exposed * self.walks
    }
    /// Walk-pending cycles over cycles with these shares.
    fn pending(&self, shares: Shares) -> f64 {
        self.pending / self.total(shares)
    }
}

/// The two shares of latency that delay the program.
#[derive(Clone, Copy, Serialize)]
struct Shares {
    walk_exposed: f64,
    data_exposed: f64,
}

/// What the evaluation found.
#[derive(Serialize)]
pub struct VMitosis {
    version: &'static str,
    profile: String,
    complete: bool,
    programs: Vec<OfProgram>,
    published: [Log; 4],
}

#[derive(Serialize)]
struct OfProgram {
    program: String,
    description: String,
    figures: Vec<Figure>,
    /// The shares of the profile, which the figures are computed with.
    shares: Shares,
    /// The shares, in whole hundredths, that fit best what is fitted.
    fit: Shares,
}

/// Runs it.
///
/// # Errors
/// A program cannot be run to its end.
pub fn run(args: &ReproduceArgs) -> Result<Ended<VMitosis>> {
    let profile = args.profile.as_deref().unwrap_or(PROFILE);
    let name = Profile::load(profile)?.name;
    let stop = stop_on_signals();
    let programs = chosen(args, BUILT_IN)?;
    let (programs, stopped) = each(args, profile, &programs, |p| program(args, profile, p, &stop))?;
    let complete = stopped.is_none();
    Ok((VMitosis { version: VERSION, profile: name, complete, programs, published: LOGS }, stopped))
}

fn program(
    args: &ReproduceArgs,
    profile: &str,
    program: &Program,
    stop: &AtomicBool,
) -> Result<OfProgram> {
    let ran = program.run(args, profile, &MACHINES.map(String::from), None, stop)?;
    let machines = &ran.session.outcome.machines[ran.first..];
    let counted: Vec<Counted> = machines.iter().map(|m| Counted::new(m, &ran.profile)).collect();
    let core = &ran.profile.core;
    let shares =
        Shares { walk_exposed: core.walk_exposed.value, data_exposed: core.data_exposed.value };
    Ok(OfProgram {
        program: program.name.clone(),
        description: ran.session.info.description.clone(),
        figures: figures(&counted, shares),
        shares,
        fit: fit(&counted),
    })
}

/// The log's numbers beside those of the counts, priced with these shares.
fn figures(counted: &[Counted], shares: Shares) -> Vec<Figure> {
    let figure = |what, unit, published: f64, simulated: f64, tolerance_percent, of| Figure {
        what,
        unit,
        published,
        simulated,
        difference_percent: 100.0 * (simulated / published - 1.0),
        tolerance_percent,
        of,
    };
    let [native, nested, native_thp, nested_thp] = counted else { return Vec::new() };
    let [l, ll, tl, tll] = &LOGS;
    let cycles = |log: &Log| log.cycles / UPDATES;
    let share = |log: &Log| log.pending() / log.cycles;
    let over = |a: &Counted, b: &Counted| a.total(shares) / b.total(shares);
    let time = "cycles per update";
    let pending = "walk-pending cycles over cycles";
    let (fitted, check) = (Use::Fitted, Use::Check);
    vec![
        figure("4K native, time", time, cycles(l), native.total(shares), 5.0, fitted),
        figure(
            "4K+4K over 4K, time",
            "ratio",
            ll.seconds / l.seconds,
            over(nested, native),
            5.0,
            fitted,
        ),
        figure("4K native, walks", pending, share(l), native.pending(shares), 15.0, fitted),
        figure("4K+4K nested, walks", pending, share(ll), nested.pending(shares), 15.0, fitted),
        figure(
            "4K+4K over 4K, walks",
            "ratio of walk-pending cycles",
            ll.pending() / l.pending(),
            nested.pending / native.pending,
            15.0,
            check,
        ),
        figure("THP native, time", time, cycles(tl), native_thp.total(shares), 5.0, check),
        figure("THP+THP nested, time", time, cycles(tll), nested_thp.total(shares), 5.0, check),
        figure("THP native, walks", pending, share(tl), native_thp.pending(shares), 15.0, check),
        figure(
            "THP+THP nested, walks",
            pending,
            share(tll),
            nested_thp.pending(shares),
            15.0,
            check,
        ),
    ]
}

/// The pair with the least sum of squares of the fitted differences over their tolerances.
fn fit(counted: &[Counted]) -> Shares {
    let misfit = |shares: Shares| -> f64 {
        let figures = figures(counted, shares);
        let fitted = figures.iter().filter(|f| f.of == Use::Fitted);
        fitted.map(|f| (f.difference_percent / f.tolerance_percent).powi(2)).sum()
    };
    let hundredths = || (0..=100u8).map(|n| f64::from(n) / 100.0);
    let pairs = hundredths().flat_map(|walk_exposed| {
        hundredths().map(move |data_exposed| Shares { walk_exposed, data_exposed })
    });
    let best = pairs.map(|s| (misfit(s), s)).min_by(|a, b| a.0.total_cmp(&b.0));
    best.map_or(Shares { walk_exposed: 0.0, data_exposed: 0.0 }, |b| b.1)
}

impl Found for VMitosis {
    fn json(&self) -> Result<Value> {
        Ok(serde_json::to_value(self)?)
    }

    fn rows(&self) -> Result<Vec<Value>> {
        let mut rows = Vec::new();
        for program in &self.programs {
            for f in &program.figures {
                rows.push(row(json!({ "program": program.program }), f, &[])?);
            }
        }
        Ok(rows)
    }

    fn table(&self, _: Screen) -> String {
        let mut out = format!(
            "vMitosis (ASPLOS 2021, artifact): GUPS over 64 GiB on a Xeon Gold 6252, times and counters of its \
             logs. Profile {}.\nWalk-pending cycles are those of loads, stores and EPT walks together, over \
             both page walkers.\n",
            self.profile
        );
        for program in &self.programs {
            let mut table = Table::new()
                .column(&program.program, Align::Left)
                .column("", Align::Left)
                .column("published", Align::Right)
                .column("simulated", Align::Right)
                .column("difference, %", Align::Right)
                .column("may be, %", Align::Right)
                .column("", Align::Left);
            for f in &program.figures {
                let digits = if f.published < 10.0 { 3 } else { 1 };
                table.row(vec![
                    f.what.into(),
                    f.unit.into(),
                    format!("{:.digits$}", f.published),
                    format!("{:.digits$}", f.simulated),
                    format!("{:+.1}", f.difference_percent),
                    format!("{:.0}", f.tolerance_percent),
                    if f.of == Use::Fitted { "fitted" } else { "check" }.into(),
                ]);
            }
            let (fit, shares) = (program.fit, program.shares);
            out += &format!(
                "\n{}\nbest fit: walk_exposed {:.2}, data_exposed {:.2}; the profile has {} and {}\n",
                table.render(),
                fit.walk_exposed,
                fit.data_exposed,
                shares.walk_exposed,
                shares.data_exposed
            );
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The figures, from the logs' raw counts.
    #[test]
    fn the_logs_have_the_published_shares() {
        let share = |log: &Log| log.pending() / log.cycles;
        assert!((share(&LOGS[0]) - 1.549).abs() < 5e-4);
        assert!((share(&LOGS[1]) - 1.737).abs() < 5e-4);
        for (log, machine) in LOGS.iter().zip(MACHINES) {
            assert_eq!(log.machine, machine);
            // User cycles at the base frequency fill the time.
            let ghz = log.cycles / log.seconds / 1e9;
            assert!((2.0..2.1).contains(&ghz), "{ghz}");
        }
    }

    /// Counts that were made from known shares give these shares back.
    #[test]
    fn the_fit_finds_the_shares_behind_the_log() {
        let truth = Shares { walk_exposed: 0.4, data_exposed: 0.3 };
        // The ratio that is fitted is of seconds, so the cycles are those of these seconds.
        let native = LOGS[0].cycles / UPDATES;
        let made = |log: &Log| {
            let cycles = native * log.seconds / LOGS[0].seconds;
            let pending = cycles * log.pending() / log.cycles;
            let fixed = 2.0;
            let data = (cycles - fixed - truth.walk_exposed * pending) / truth.data_exposed;
            Counted { fixed, data, walks: pending, pending }
        };
        let counted: Vec<Counted> = LOGS.iter().map(made).collect();
        let found = fit(&counted);
        assert!((found.walk_exposed - truth.walk_exposed).abs() < 1e-9, "{}", found.walk_exposed);
        assert!((found.data_exposed - truth.data_exposed).abs() < 1e-9, "{}", found.data_exposed);
        for f in figures(&counted, truth).iter().filter(|f| f.of == Use::Fitted) {
            assert!(f.difference_percent.abs() < 1e-9, "{}", f.what);
        }
    }
}
