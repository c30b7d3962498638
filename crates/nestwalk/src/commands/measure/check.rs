//! `measure --check`: four programs run for real and simulated with a profile, side by side.

use crate::args::{Args, Command};
use crate::formats::{Format, Found};
use crate::progress::{Phase, Phases};
use crate::screen::Screen;
use crate::settings;
use crate::show::headings;
use crate::signals::stop_on_signals;
use anyhow::{Context, Result, anyhow, bail};
use clap::Parser;
use nestwalk_hw::Profile;
use nestwalk_lab::Work;
use nestwalk_measure::processor::Processor;
use nestwalk_measure::runs::{Run, run};
use nestwalk_measure::survey::Effort;
use nestwalk_report::figure::number;
use serde::Serialize;
use serde_json::{Value, json};
use std::io::Write;
use std::sync::atomic::AtomicBool;

/// Memory of each program.
const FOOTPRINT: u64 = 64 << 20;
/// Programs, as sources of `compare`.
const PROGRAMS: [&str; 4] = ["chase", "gups", "stream", "btree"];

/// A program with pages of one size.
#[derive(Serialize)]
struct Row {
    program: &'static str,
    pages: &'static str,
    /// Nanoseconds of an access.
    real_ns: f64,
    real_spread_ns: f64,
    simulated_ns: f64,
    deviation_percent: f64,
    /// Run time with these pages, of that with pages of 2 MiB.
    real_of_large: f64,
    simulated_of_large: f64,
    simulated_of_ideal: f64,
    walks_per_1000_accesses: f64,
    refs_per_walk: f64,
}

/// What was run.
struct Checked {
    profile: String,
    machines: [String; 2],
    rows: Vec<Row>,
}

/// Runs and simulates, and prints both.
pub fn check(file: &str, effort: Effort, format: Format, quiet: bool) -> Result<()> {
    let profile = Profile::load(file).context("--check")?;
    let virtual_machine = Processor::this().virtual_machine;
    // What hosts map guests by is not in a profile: small pages, with which none of a guest's is whole.
    let name = |pages: &str| {
        if virtual_machine { format!("nested:{pages}+4k") } else { format!("native:{pages}") }
    };
    let machines = ["4k", "2m"].map(name);
    let phases = Phases::new(quiet);
    let mut rows = Vec::new();
    let stop = stop_on_signals();
    for program in PROGRAMS {
        phases.begin(Phase::new(format!("{program}, for real")));
        let real = run(program, FOOTPRINT, effort).with_context(|| program.to_owned())?;
        phases.begin(Phase::new(format!("{program}, simulated")));
        let simulated = simulate(program, file, &machines, &stop)?;
        rows.extend(row(program, &profile, &real, &simulated)?);
    }
    drop(phases);
    let found = Checked { profile: file.into(), machines, rows };
    let out = format.render(&found)?;
    std::io::stdout().lock().write_all(out.as_bytes())?;
    Ok(())
}

/// The machines with small and large pages, as results.
fn simulate(
    program: &str,
    profile: &str,
    machines: &[String; 2],
    stop: &AtomicBool,
) -> Result<[Value; 2]> {
    let footprint = FOOTPRINT.to_string();
    let names = machines.join(",");
    let words = [
        "nestwalk",
        "compare",
        program,
        "--footprint",
        &footprint,
        "--accesses",
        "200k",
        "--warmup",
        "200k",
        "--machines",
        &names,
        "--profile",
        profile,
    ];
    let experiment = match Args::try_parse_from(words).map_err(|e| anyhow!("{}", e.kind()))?.command
    {
        Command::Compare(options) => settings::experiment(&options)?,
        _ => bail!("no comparison"),
    };
    let opened =
        settings::lab().open(&experiment, &Work { threads: 1, series: None }, &mut |_| {})?;
    let session = opened.run(stop, &mut |_| {})?.complete()?;
    let of = |name: &String| {
        let machine = session.outcome.machines.iter().find(|m| m.name == *name);
        let machine = machine.ok_or_else(|| anyhow!("{name} is not in the results"))?;
        Ok::<_, anyhow::Error>(serde_json::to_value(machine)?)
    };
    Ok([of(&machines[0])?, of(&machines[1])?])
}

fn row(
    program: &'static str,
    profile: &Profile,
    real: &[Run; 2],
    simulated: &[Value; 2],
) -> Result<Vec<Row>> {
    let of = |value: &Value, key: &str| {
        value[key].as_f64().ok_or_else(|| anyhow!("results have no {key}"))
    };
    let ns = |m: &Value| -> Result<f64> {
        Ok(of(m, "total_cycles")? / of(m, "accesses")? / profile.core.frequency_mhz.value * 1e3)
    };
    let large = (real[1].ns, ns(&simulated[1])?);
    let mut rows = Vec::new();
    for ((real, machine), pages) in real.iter().zip(simulated).zip(["4 KiB", "2 MiB"]) {
        let simulated_ns = ns(machine)?;
        rows.push(Row {
            program,
            pages,
            real_ns: real.ns,
            real_spread_ns: real.spread_ns,
            simulated_ns,
            deviation_percent: 100.0 * (simulated_ns / real.ns - 1.0),
            real_of_large: real.ns / large.0,
            simulated_of_large: simulated_ns / large.1,
            simulated_of_ideal: of(machine, "total_cycles")? / of(machine, "ideal_cycles")?,
            walks_per_1000_accesses: 1e3 * of(machine, "walks")? / of(machine, "accesses")?,
            refs_per_walk: of(machine, "refs_per_walk")?,
        });
    }
    Ok(rows)
}

impl Found for Checked {
    fn json(&self) -> Result<Value> {
        Ok(json!({ "profile": self.profile, "machines": self.machines, "programs": self.rows()? }))
    }

    fn rows(&self) -> Result<Vec<Value>> {
        Ok(self.rows.iter().map(serde_json::to_value).collect::<Result<_, _>>()?)
    }

    fn table(&self, screen: Screen) -> String {
        let mut table = headings::table(&headings::CHECKED);
        for row in &self.rows {
            table.row(vec![
                row.program.into(),
                row.pages.into(),
                format!("{:.2}", row.real_ns),
                format!("{:.2}", row.real_spread_ns),
                format!("{:.2}", row.simulated_ns),
                format!("{:+.0}", row.deviation_percent),
                format!("{:.3}", row.real_of_large),
                format!("{:.3}", row.simulated_of_large),
                format!("{:.3}", row.simulated_of_ideal),
                number(row.walks_per_1000_accesses),
                format!("{:.2}", row.refs_per_walk),
            ]);
        }
        format!(
            "Profile {}, machines {}; 64 MiB of memory, nanoseconds of an access\n\n{}\n",
            self.profile,
            self.machines.join(" and "),
            table.render_within(screen.columns())
        )
    }
}
