//! The thesis on runtime-aware paging mode switching: figures 4.1 to 4.6, and every other policy.
//!
//! Each program runs twice. The first pass has the static modes, in a VM that has just begun and in
//! one that has lived for long, cut at the same instructions. It says which mode is the worse one,
//! in which, as in section 4.2.2, the second pass begins; and what hindsight would have done. The second
//! pass has the policies, `static-thresholds` with each upper threshold of the range that the thesis
//! tried, and the plans of hindsight, which are run as any policy and not computed.

use super::Ended;
use super::bars::{Bar, figure, geometric_mean, row};
use super::programs::{BuiltIn, Program, Ran, chosen, each};
use super::series::{self, Line};
use super::why::{ModeTimeline, Why};
use crate::args::{KeepArg, LivedArg, ReproduceArgs};
use crate::formats::Found;
use crate::screen::Screen;
use crate::signals::stop_on_signals;
use anyhow::{Result, bail};
use nestwalk_hw::Profile;
use nestwalk_lab::VERSION;
use nestwalk_policy::hindsight;
use nestwalk_report::{Align, Table};
use nestwalk_sim::measure::series::interval_costs;
use nestwalk_sim::switching::options::plan_text;
use serde::Serialize;
use serde_json::{Value, json};
use std::ops::Range;
use std::sync::atomic::AtomicBool;

/// Programs that come with nestwalk, and the words of `compare` that name them. `seasons` changes its
/// behaviour, the others are steady or short.
const BUILT_IN: &[BuiltIn] = &[
    ("seasons", "seasons:length=30000000 --footprint 1GiB --accesses 120M"),
    ("gups", "gups --footprint 1GiB --accesses 20M"),
    ("btree", "btree --footprint 1GiB --accesses 20M"),
    ("kvstore", "kvstore --footprint 1GiB --accesses 20M"),
    ("graph500", "graph500 --footprint 1GiB --accesses 20M"),
    ("compiler", "compiler --footprint 1GiB --accesses 20M"),
    ("forkstorm", "forkstorm --footprint 256MiB --accesses 10M"),
];

/// The thesis's machine is an i5-7600.
const PROFILE: &str = "kaby-lake-i5-7600";
/// Upper thresholds of section 4.2.2, which has 3 to 20.
const HIGHS: [u32; 6] = [3, 6, 9, 12, 15, 20];
/// Costs of a switch, in intervals, for which hindsight plans: what a switch really costs follows from
/// what must be rebuilt after it, so plans of several are run, and the best of them counts.
const SWITCH_COSTS: [f64; 4] = [0.25, 1.0, 4.0, 16.0];

/// Losses against hindsight, in percent, from which on the table says where they come from.
const EXPLAINED: f64 = 5.0;

/// Bars of the first pass, and their machines.
const STATIC: [(&str, &str); 4] = [
    ("shadow", "shadow"),
    ("nested, short-lived VM", "nested"),
    ("nested, long-lived VM", "nested/lived=long"),
    ("agile", "agile"),
];

/// Policies of the second pass but `static-thresholds`, with the parameters of section 4.2.3 for those
/// that are the thesis's own.
const POLICIES: [(&str, &str); 7] = [
    ("dynamic-thresholds", "dynamic-thresholds/high=12/low=3"),
    ("single-metric", "single-metric/high=12/low=3"),
    ("dsp", "dsp"),
    ("aspms", "aspms"),
    ("kvm-window", "kvm-window"),
    ("svm", "svm"),
    ("bandit", "bandit"),
];

/// What the evaluation found.
#[derive(Serialize)]
pub struct Thesis {
    version: &'static str,
    profile: String,
    interval_ms: f64,
    keep: &'static str,
    lived: &'static str,
    complete: bool,
    programs: Vec<OfProgram>,
}

/// Of one program.
#[derive(Serialize)]
struct OfProgram {
    program: String,
    description: String,
    instructions: u64,
    ideal_ms: f64,
    /// The mode at the start of the second pass: the one that costs more.
    start: &'static str,
    best_static: &'static str,
    bars: Vec<Bar>,
    /// The upper threshold of the bar `static-thresholds`.
    best_high: u32,
    /// Bars of all upper thresholds.
    static_thresholds: Vec<Bar>,
    /// Overhead in percent if each interval took what the cheaper mode takes: what there is to gain,
    /// though no bound, since what one mode has built is not there in the other.
    cheaper_mode_percent: f64,
    /// Run time of each policy over that of `hindsight`, and over that of the best static mode.
    against: Vec<Against>,
    series: Vec<Line>,
}

#[derive(Serialize)]
struct Against {
    bar: String,
    hindsight_percent: f64,
    best_static_percent: f64,
    why: Why,
}

/// Runs it.
///
/// # Errors
/// A program cannot be run to its end.
pub fn run(args: &ReproduceArgs) -> Result<Ended<Thesis>> {
    if !(0.001..=10_000.0).contains(&args.interval) {
        bail!("--interval {}: 0.001 to 10000 milliseconds are expected", args.interval);
    }
    let stop = stop_on_signals();
    let profile = args.profile.as_deref().unwrap_or(PROFILE);
    let loaded = Profile::load(profile)?;
    // Instructions may take 20 cycles each where every one misses a TLB. Hindsight should be at least as
    // quick as a policy even then.
    let interval_cycles = loaded.core.clock().cycles_of_ms(args.interval);
    let every = (interval_cycles / 20.0).max(1.0) as u64;
    let settings = Settings { args, profile, every, interval_cycles, stop: &stop };
    let programs = chosen(args, BUILT_IN)?;
    let (programs, stopped) = each(args, profile, &programs, |p| settings.program(p))?;
    let found = Thesis {
        version: VERSION,
        profile: loaded.name,
        interval_ms: args.interval,
        keep: args.keep.word(),
        lived: args.lived.word(),
        complete: stopped.is_none(),
        programs,
    };
    Ok((found, stopped))
}

struct Settings<'a> {
    args: &'a ReproduceArgs,
    profile: &'a str,
    /// Instructions of an interval of hindsight and of series.
    every: u64,
    /// Cycles of a policy's interval.
    interval_cycles: f64,
    stop: &'a AtomicBool,
}

impl Settings<'_> {
    fn run(&self, program: &Program, machines: &[String]) -> Result<Ran> {
        program.run(self.args, self.profile, machines, Some(self.every), self.stop)
    }

    fn switching(&self, policy: &str, start: &str) -> String {
        let (args, keep, lived) = (self.args, self.args.keep.word(), self.args.lived.word());
        let interval = args.interval;
        format!("switching/{policy}/start={start}/keep={keep}/lived={lived}/interval={interval}")
    }

    fn program(&self, program: &Program) -> Result<OfProgram> {
        let machines: Vec<String> = STATIC.iter().map(|(_, m)| (*m).into()).collect();
        let first = self.run(program, &machines)?;
        // The nested machine that the policies' VM would be if it never switched.
        let nested = if self.args.lived == LivedArg::Long { 2 } else { 1 };
        let (shadow_cycles, nested_cycles) =
            (first.machine(0).total_cycles, first.machine(nested).total_cycles);
        let (start, best) = match shadow_cycles > nested_cycles {
            true => ("shadow", nested),
            false => ("nested", 0),
        };
        let (cheaper, plans) = self.plans(&first, nested)?;

        let mut machines: Vec<String> =
            POLICIES.iter().map(|(_, policy)| self.switching(policy, start)).collect();
        for high in HIGHS {
            machines.push(self.switching(&format!("static-thresholds/high={high}/low=3"), start));
        }
        machines.extend(plans);
        let second = self.run(program, &machines)?;

        let statics = STATIC.iter().enumerate();
        let mut bars: Vec<Bar> =
            statics.map(|(i, (bar, _))| Bar::new(bar, first.machine(i))).collect();
        let best_static = bars[best].clone();
        let highs = POLICIES.len();
        let static_thresholds: Vec<Bar> = HIGHS
            .iter()
            .enumerate()
            .map(|(i, high)| Bar::new(&format!("T_high = {high}"), second.machine(highs + i)))
            .collect();
        let lowest = lowest(&static_thresholds);
        bars.push(Bar { bar: "static-thresholds".into(), ..static_thresholds[lowest].clone() });
        for (i, (bar, _)) in POLICIES.iter().enumerate() {
            bars.push(Bar::new(bar, second.machine(i)));
        }
        let plans = highs + HIGHS.len()..machines.len();
        let (hindsight, best_course) = best_plan((&first, best), &second, plans);
        // The order of the bars, which is that of the machines but for the best upper threshold.
        let ran = std::iter::once(highs + lowest).chain(0..highs);
        let against = bars[STATIC.len()..].iter().zip(ran).map(|(bar, i)| Against {
            bar: bar.bar.clone(),
            hindsight_percent: 100.0 * (bar.more.cycles / hindsight.more.cycles - 1.0),
            best_static_percent: 100.0 * (bar.more.cycles / best_static.more.cycles - 1.0),
            why: Why::of(&ModeTimeline::of(&second, i), &best_course),
        });
        let against = against.collect();
        bars.push(hindsight);

        let ideal = first.machine(0).ideal_cycles;
        Ok(OfProgram {
            program: program.name.clone(),
            description: first.session.info.description.clone(),
            instructions: first.machine(0).instructions,
            ideal_ms: first.profile.core.clock().ms(ideal),
            start,
            best_static: if best == 0 { "shadow" } else { "nested" },
            best_high: HIGHS[lowest],
            static_thresholds,
            cheaper_mode_percent: 100.0 * (cheaper / ideal - 1.0),
            bars,
            against,
            series: vec![
                line("shadow", &first, 0),
                line("nested", &first, nested),
                line("dynamic-thresholds", &second, 0),
                line("single-metric", &second, 1),
            ],
        })
    }

    /// Cycles of the cheaper mode of each interval, summed, and machines that follow the plans of
    /// hindsight.
    fn plans(&self, first: &Ran, nested: usize) -> Result<(f64, Vec<String>)> {
        let series = |i: usize| &first.session.outcome.series[first.first + i];
        let mut cheaper = 0.0;
        let mut machines: Vec<String> = Vec::new();
        for cost in SWITCH_COSTS {
            let price = (cost * self.interval_cycles, cost * self.interval_cycles);
            let costs = interval_costs(series(0), series(nested), &first.profile, price);
            cheaper = costs.iter().map(|c| c.shadow.min(c.nested)).sum();
            let plan = hindsight(&costs, None)?;
            let (every, text) = (self.every, plan_text(&plan.modes));
            let (keep, lived) = (self.args.keep.word(), self.args.lived.word());
            let machine = format!("switching/every={every}/plan={text}/keep={keep}/lived={lived}");
            if plan.switches > 0 && !machines.contains(&machine) {
                machines.push(machine);
            }
        }
        Ok((cheaper, machines))
    }
}

/// The bar of the shortest run.
fn lowest(bars: &[Bar]) -> usize {
    let by_cycles =
        |a: &(usize, &Bar), b: &(usize, &Bar)| a.1.more.cycles.total_cmp(&b.1.more.cycles);
    bars.iter().enumerate().min_by(by_cycles).map_or(0, |(i, _)| i)
}

impl KeepArg {
    fn word(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Nested => "nested",
        }
    }
}

impl LivedArg {
    fn word(self) -> &'static str {
        match self {
            Self::Short => "short",
            Self::Long => "long",
        }
    }
}

/// What the thesis says in words; its bars are pictures without numbers.
const PUBLISHED: &str = "\
published (in words; the bars are pictures): overheads from 4 % to over 40 % under either mode; long-lived
VMs cost less; nested paging is the better static mode for gcc, dedup and vips, shadow paging for the
others; dynamic thresholds come near the best static mode or beat it, except for mcf, where a single
metric per mode beats it; in vips and perlbench nothing is ever switched; dedup ends before a switch pays.
";

impl Found for Thesis {
    fn json(&self) -> Result<Value> {
        Ok(serde_json::to_value(self)?)
    }

    fn rows(&self) -> Result<Vec<Value>> {
        let mut rows = Vec::new();
        for program in &self.programs {
            for bar in &program.bars {
                let head = json!({ "program": program.program, "start": program.start });
                rows.push(row(head, bar, &["shadow_percent"])?);
            }
        }
        Ok(rows)
    }

    fn table(&self, _: Screen) -> String {
        let mut out = format!(
            "Runtime-aware paging mode switching, figures 4.1 to 4.6. Profile {}, intervals of {} ms, \
             VMs {}-lived, {} tables kept at a switch.\nOverhead = page walks + VMM, percent of the \
             ideal run time.\n{PUBLISHED}\n",
            self.profile,
            self.interval_ms,
            self.lived,
            if self.keep == "nothing" { "no" } else { "nested" },
        );
        out += &self.figure("4.1: the static modes", &STATIC.map(|s| s.0), |_, _| String::new());
        out += &self.series("4.2", &["shadow", "nested"]);
        out += &self.figure(
            "4.3: static thresholds, with the best T_high of 3 to 20 in parentheses",
            &["static-thresholds"],
            |program, bar| format!(" ({}; {} switches)", program.best_high, bar.more.switches),
        );
        out += &self.figure(
            "4.4 and 4.5: dynamic thresholds, with T_high = 12 at first, beside the static modes, and \
             with a single metric",
            &["shadow", "nested, short-lived VM", "dynamic-thresholds", "single-metric"],
            switches,
        );
        out += &self.series("4.6", &["dynamic-thresholds"]);
        out += &self.figure(
            "Other policies, and hindsight",
            &["dsp", "aspms", "kvm-window", "svm", "bandit", "hindsight"],
            switches,
        );
        out += &self.losses();
        out
    }
}

fn switches(_: &OfProgram, bar: &Bar) -> String {
    if bar.machine.starts_with("switching") {
        format!(" ({})", bar.more.switches)
    } else {
        String::new()
    }
}

impl Thesis {
    fn figure(
        &self,
        title: &str,
        names: &[&str],
        note: impl Fn(&OfProgram, &Bar) -> String,
    ) -> String {
        let rows: Vec<(&str, Vec<&Bar>)> = self
            .programs
            .iter()
            .map(|p| {
                let bars = names.iter().filter_map(|n| p.bars.iter().find(|b| b.bar == *n));
                (p.program.as_str(), bars.collect())
            })
            .collect();
        let of =
            |bar: &Bar| self.programs.iter().find(|p| p.bars.iter().any(|b| std::ptr::eq(b, bar)));
        figure(title, &rows, |bar| of(bar).map_or(String::new(), |p| note(p, bar)))
    }

    /// Over time: of gcc, as in the thesis, or of the first program.
    fn series(&self, figure: &str, bars: &[&str]) -> String {
        let gcc = self.programs.iter().rev().find(|p| p.program == "gcc");
        let Some(program) = gcc.or(self.programs.first()) else { return String::new() };
        let lines: Vec<&Line> = program.series.iter().filter(|l| bars.contains(&&*l.bar)).collect();
        let name = &program.program;
        let title = format!("{figure}: {name} over time, percent of all cycles of each interval");
        format!("{title}\n\n{}\n", series::table(&lines))
    }

    /// How far each policy is from the best that was possible.
    fn losses(&self) -> String {
        let mut table = Table::new()
            .column("run time against hindsight, and against the best static mode, %", Align::Left);
        let Some(first) = self.programs.first() else { return String::new() };
        for against in &first.against {
            table = table.column(&against.bar, Align::Right);
        }
        table = table.column("cheaper mode", Align::Right).column("begins in", Align::Left);
        for program in &self.programs {
            let mut row = vec![program.program.clone()];
            let pair =
                |a: &Against| format!("{:+.1} {:+.1}", a.hindsight_percent, a.best_static_percent);
            row.extend(program.against.iter().map(pair));
            row.push(format!("{:.1}", program.cheaper_mode_percent));
            row.push(program.start.into());
            table.row(row);
        }
        if self.programs.len() > 1 {
            let mut row = vec!["geometric mean".to_owned()];
            for i in 0..first.against.len() {
                let of = |f: fn(&Against) -> f64| {
                    geometric_mean(self.programs.iter().filter_map(|p| p.against.get(i)).map(f))
                };
                let (h, s) = (of(|a| a.hindsight_percent), of(|a| a.best_static_percent));
                row.push(format!("{:+.1} {:+.1}", h.unwrap_or(0.0), s.unwrap_or(0.0)));
            }
            table.row(row);
        }
        let mut out = format!(
            "Losses; `cheaper mode` is the overhead if each interval took what the cheaper mode takes\n\n{}",
            table.render()
        );
        for program in &self.programs {
            for against in program.against.iter().filter(|a| a.hindsight_percent > EXPLAINED) {
                let (name, bar, lost) = (&program.program, &against.bar, against.hindsight_percent);
                out += &format!("{name}, {bar}: {lost:+.1} %: {}\n", against.why);
            }
        }
        out
    }
}

/// The series of one machine of a run.
fn line(bar: &str, ran: &Ran, i: usize) -> Line {
    let ends = &ran.session.outcome.series[ran.first + i];
    Line::new(bar, ends, ran.machine(i), &ran.profile)
}

/// The cheapest of the plans of hindsight, among which the best static mode is one as well.
fn best_plan(
    (first, best): (&Ran, usize),
    second: &Ran,
    plans: Range<usize>,
) -> (Bar, ModeTimeline) {
    let bar = |m| Bar::new("hindsight", m);
    let mut planned: Vec<Bar> = plans.clone().map(|i| bar(second.machine(i))).collect();
    planned.push(bar(first.machine(best)));
    let chosen = lowest(&planned);
    let course = match plans.start + chosen {
        i if i < plans.end => ModeTimeline::of(second, i),
        _ => ModeTimeline::of(first, best),
    };
    (planned.swap_remove(chosen), course)
}
