//! How much results depend on what the papers do not say.

use super::super::programs::Program;
use super::{percent, walks_percent};
use crate::args::ReproduceArgs;
use anyhow::Result;
use serde::Serialize;
use std::sync::atomic::AtomicBool;

/// A machine with one parameter set.
#[derive(Serialize)]
pub struct Detail {
    pub program: String,
    pub parameter: &'static str,
    pub value: &'static str,
    pub machine: String,
    /// Everything that is not ideal, percent of the ideal run time.
    pub total_percent: f64,
    /// Of this, walks that the program waits for, and wrong guesses.
    pub walks_percent: f64,
    /// Walks that a right guess hid, percent.
    pub predicted_percent: f64,
    /// Walks after a wrong guess, percent.
    pub mispredicted_percent: f64,
}

/// Parameter, value, machine.
const VALUES: [(&str, &str, &str); 20] = [
    ("spot penalty, cycles", "0", "spot/penalty=0:thp+thp@ca+ca"),
    ("spot penalty, cycles", "20", "spot:thp+thp@ca+ca"),
    ("spot penalty, cycles", "100", "spot/penalty=100:thp+thp@ca+ca"),
    ("spot penalty, cycles", "500", "spot/penalty=500:thp+thp@ca+ca"),
    ("spot entries", "4", "spot/entries=4:thp+thp@ca+ca"),
    ("spot entries", "8", "spot/entries=8:thp+thp@ca+ca"),
    ("spot entries", "16", "spot/entries=16:thp+thp@ca+ca"),
    ("spot entries", "128", "spot/entries=128:thp+thp@ca+ca"),
    ("spot contiguous, pages", "0", "spot/contiguous=0:thp+thp@ca+ca"),
    ("spot contiguous, pages", "4096", "spot/contiguous=4096:thp+thp@ca+ca"),
    ("spot placement", "linux", "spot:thp+thp@linux+linux"),
    ("spot placement", "ca, linux", "spot:thp+thp@ca+linux"),
    ("spot placement", "linux, ca", "spot:thp+thp@linux+ca"),
    ("spot placement", "eager", "spot:thp+thp@eager+eager"),
    ("spot pages", "4k", "spot:4k+4k@ca-4k+ca-4k"),
    ("rmm placement", "linux", "rmm:thp+thp@linux+linux"),
    ("rmm placement", "ca", "rmm:thp+thp@ca+ca"),
    ("anchor distance, pages", "512", "anchor/distance=512:thp+thp@ca+ca"),
    ("anchor distance, pages", "4096", "anchor/distance=4096:thp+thp@ca+ca"),
    ("anchor distance, pages", "auto", "anchor:thp+thp@ca+ca"),
];

/// Accesses of each machine at most, and of the warm-up.
const ACCESSES: u64 = 4_000_000;

/// Runs all of them in one pass.
pub fn run(
    args: &ReproduceArgs,
    profile: &str,
    program: &Program,
    stop: &AtomicBool,
) -> Result<Vec<Detail>> {
    let machines: Vec<String> = VALUES.iter().map(|v| v.2.to_owned()).collect();
    let ran = program.clone().at_most(ACCESSES).run(args, profile, &machines, None, stop)?;
    let rows = VALUES.iter().enumerate().map(|(i, &(parameter, value, _))| {
        let m = ran.machine(i);
        Detail {
            program: program.name.clone(),
            parameter,
            value,
            machine: m.name.clone(),
            total_percent: m.overhead_percent,
            walks_percent: walks_percent(m, &ran.profile),
            predicted_percent: percent(m.predictions_right, m.walks),
            mispredicted_percent: percent(m.predictions_wrong, m.walks),
        }
    });
    Ok(rows.collect())
}
