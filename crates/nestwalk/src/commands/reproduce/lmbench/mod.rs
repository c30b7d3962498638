//! LMbench as PVM (SOSP 2023) has it: rows under EPT and under shadow paging on one machine, beside what
//! the loops behind them take here, and the prices of a profile's `[software]` fitted to the differences
//! of all rows at once. `data/lmbench.toml` has the rows, `samples/lmbench/record` makes the recordings.

mod data;
mod fit;
mod many;
mod show;

use super::Ended;
use super::programs::Program;
use crate::args::ReproduceArgs;
use crate::formats::Found;
use crate::screen::Screen;
use crate::signals::stop_on_signals;
use anyhow::{Result, anyhow, bail};
use data::{Data, Row};
use fit::{Equation, Fit};
use many::Many;
use nestwalk_hw::Profile;
use nestwalk_lab::VERSION;
use nestwalk_sim::measure::cost::kernel_cycles;
use nestwalk_sim::report::results::MachineResult;
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

/// What is replayed: the machine without a hypervisor, under EPT, and under shadow paging.
const MACHINES: [&str; 3] = ["native", "nested", "shadow"];

/// What the evaluation found.
#[derive(Serialize)]
pub struct Lmbench {
    version: &'static str,
    profile: String,
    frequency_mhz: f64,
    source: String,
    rows: Vec<OfRow>,
    many: Vec<Many>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fit: Option<WithCpi>,
}

/// A row: published and simulated, microseconds and counts for one of what it measures.
#[derive(Serialize)]
struct OfRow {
    name: String,
    measures: String,
    fitted: bool,
    cpi: bool,
    published_ept_us: Option<f64>,
    published_shadow_us: Option<f64>,
    native_us: f64,
    nested_us: f64,
    shadow_us: f64,
    published_difference_us: Option<f64>,
    difference_us: f64,
    /// Of the difference, what is not the VMM's.
    other_us: f64,
    error_percent: Option<f64>,
    kernel_instructions: f64,
    /// Nested: microseconds of all but the kernel's instructions.
    nested_other_us: f64,
    /// Shadow paging: exits by reason.
    exits: BTreeMap<String, f64>,
    /// Shadow paging less nested: how often each price is paid.
    work: BTreeMap<String, f64>,
}

/// The prices, and the kernel's cycles per instruction.
#[derive(Serialize)]
struct WithCpi {
    #[serde(flatten)]
    prices: Fit,
    /// Least sum of relative residuals of the EPT column.
    kernel_cpi: f64,
    /// What would meet each row alone.
    kernel_cpi_of_rows: Vec<(String, f64)>,
    /// What the VMM waits for each processor that it calls out, nanoseconds, and the largest relative
    /// residual of the rows with many processes.
    remote_flush_ns: Option<(f64, f64)>,
}

/// Runs it.
///
/// # Errors
/// A recording cannot be run to its end, or an option has no meaning here.
pub fn run(args: &ReproduceArgs) -> Result<Ended<Lmbench>> {
    if args.programs.is_some() || args.recordings.is_some() {
        bail!(
            "reproduce lmbench: its rows need all of its own recordings: leave --programs and \
             --recordings out"
        );
    }
    if args.fit {
        fit::possible()?;
    }
    let data = data::read()?;
    let profile = args.profile.as_deref().unwrap_or(&data.machine.profile);
    let loaded = Profile::load(profile)?;
    let stop = stop_on_signals();
    let mut samples = BTreeMap::new();
    for term in data.row.iter().flat_map(|row| &row.terms) {
        if !samples.contains_key(&term.sample) {
            let sample = Sample::run(args, &data, profile, &term.sample, &stop)?;
            samples.insert(term.sample.clone(), sample);
        }
    }
    let rows: Vec<OfRow> = data.row.iter().map(|row| OfRow::new(row, &samples)).collect();
    let pairs = data.row.iter().zip(&rows);
    let many: Vec<Many> =
        pairs.filter_map(|(row, one)| Many::new(row, one, &samples, &loaded)).collect();
    let fit = args.fit.then(|| with_cpi(&data, &rows, &many, &loaded)).transpose()?;
    let found = Lmbench {
        version: VERSION,
        profile: loaded.name,
        frequency_mhz: data.machine.frequency_mhz.value,
        source: data.machine.source,
        rows,
        many,
        fit,
    };
    Ok((found, None))
}

/// What was counted in one recording, with the machine's microseconds.
struct Sample {
    /// By [`MACHINES`].
    us: [f64; 3],
    /// Of these, the VMM's.
    vmm_us: [f64; 3],
    kernel_instructions: f64,
    /// Nested: microseconds of the kernel's instructions.
    kernel_us: f64,
    exits: BTreeMap<&'static str, u64>,
    /// Nested and shadow.
    work: [BTreeMap<&'static str, u64>; 2],
    /// Shadow paging: visits to the lock of the shadow tables, and microseconds that it is held.
    lock_visits: f64,
    lock_held_us: f64,
    /// Shadow paging: flushes of all cores.
    remote_flushes: f64,
}

/// What a row has of something that its recordings have.
fn sum_of(row: &Row, samples: &BTreeMap<String, Sample>, of: &dyn Fn(&Sample) -> f64) -> f64 {
    row.terms.iter().map(|t| t.times / t.per * of(&samples[&t.sample])).sum()
}

impl Sample {
    fn run(
        args: &ReproduceArgs,
        data: &Data,
        profile: &str,
        name: &str,
        stop: &AtomicBool,
    ) -> Result<Self> {
        let machines = MACHINES.map(String::from);
        let mhz = data.machine.frequency_mhz.value;
        let set = |profile: &mut Profile| profile.core.frequency_mhz.value = mhz;
        let name = format!("lmbench-{name}");
        let program = Program::of(&name, &name);
        let ran = program.run_with(args, profile, &machines, &set, stop)?;
        let mut found = Vec::new();
        for scheme in MACHINES {
            let machine = ran.session.outcome.machines.iter().find(|m| m.scheme == scheme);
            found.push(machine.ok_or_else(|| anyhow!("{name}: no result of {scheme}"))?);
        }
        let [native, nested, shadow] = [found[0], found[1], found[2]];
        let clock = ran.profile.core.clock();
        let us = |of: fn(&MachineResult) -> f64| [native, nested, shadow].map(|m| clock.us(of(m)));
        Ok(Self {
            us: us(|m| m.total_cycles),
            vmm_us: us(|m| m.vmm_cycles),
            kernel_instructions: nested.kernel_instructions as f64,
            kernel_us: clock.us(kernel_cycles(nested, &ran.profile)),
            exits: shadow.vm_exits.clone(),
            work: [nested.vmm_work.clone(), shadow.vmm_work.clone()],
            lock_visits: shadow.lock_visits as f64,
            lock_held_us: clock.us(shadow.lock_held_cycles),
            remote_flushes: shadow.remote_flushes as f64,
        })
    }
}

impl OfRow {
    fn new(row: &Row, samples: &BTreeMap<String, Sample>) -> Self {
        let sum = |of: &dyn Fn(&Sample) -> f64| sum_of(row, samples, of);
        let [native_us, nested_us, shadow_us] = [0, 1, 2].map(|m| sum(&|s| s.us[m]));
        let vmm_us = sum(&|s| s.vmm_us[2] - s.vmm_us[1]);
        let mut exits = BTreeMap::new();
        let mut work = BTreeMap::new();
        for term in &row.terms {
            let sample = &samples[&term.sample];
            let add = |to: &mut BTreeMap<String, f64>, key: &str, times: f64| {
                *to.entry(key.to_owned()).or_default() += times * term.times / term.per;
            };
            sample.exits.iter().for_each(|(key, n)| add(&mut exits, key, *n as f64));
            sample.work[1].iter().for_each(|(key, n)| add(&mut work, key, *n as f64));
            sample.work[0].iter().for_each(|(key, n)| add(&mut work, key, -(*n as f64)));
        }
        // What a term adds and another takes off leaves no more than rounding.
        exits.retain(|_, n| n.abs() > 1e-9);
        work.retain(|_, n| n.abs() > 1e-9);
        let difference_us = shadow_us - nested_us;
        let published = row.difference();
        Self {
            name: row.name.clone(),
            measures: row.measures.clone(),
            fitted: row.fitted,
            cpi: row.fitted && row.cpi,
            published_ept_us: row.ept_us,
            published_shadow_us: row.shadow_us,
            native_us,
            nested_us,
            shadow_us,
            published_difference_us: published,
            difference_us,
            other_us: difference_us - vmm_us,
            error_percent: published.map(|p| 100.0 * (difference_us / p - 1.0)),
            kernel_instructions: sum(&|s| s.kernel_instructions),
            nested_other_us: nested_us - sum(&|s| s.kernel_us),
            exits,
            work,
        }
    }
}

/// Fits prices and the kernel's cycles per instruction.
fn with_cpi(data: &Data, rows: &[OfRow], many: &[Many], software: &Profile) -> Result<WithCpi> {
    let mhz = data.machine.frequency_mhz.value;
    let fitted = rows.iter().filter(|r| r.fitted);
    let equations: Vec<Equation> = fitted
        .filter_map(|row| {
            Some(Equation {
                name: row.name.clone(),
                work: row.work.clone(),
                other_us: row.other_us,
                published_us: row.published_difference_us?,
            })
        })
        .collect();
    let prices = fit::fit(&equations, &data.price)?;
    let of_cpi = rows.iter().filter(|r| r.cpi);
    let ept: Vec<(f64, f64, f64)> = of_cpi
        .clone()
        .filter_map(|row| {
            Some((row.published_ept_us?, row.nested_other_us, row.kernel_instructions / mhz))
        })
        .collect();
    let (kernel_cpi, alone) = fit::least_sum(&ept);
    let names = of_cpi.map(|row| row.name.clone());
    show::known(&prices, software)?;
    Ok(WithCpi {
        prices,
        kernel_cpi,
        kernel_cpi_of_rows: names.zip(alone).collect(),
        remote_flush_ns: many::fit(many),
    })
}

impl Found for Lmbench {
    fn json(&self) -> Result<Value> {
        Ok(serde_json::to_value(self)?)
    }

    fn rows(&self) -> Result<Vec<Value>> {
        self.rows.iter().map(|row| Ok(serde_json::to_value(row)?)).collect()
    }

    fn table(&self, _: Screen) -> String {
        show::table(self)
    }
}
