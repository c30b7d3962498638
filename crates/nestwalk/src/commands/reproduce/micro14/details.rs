//! How much results depend on what the paper does not say.

use super::super::programs::Program;
use super::filter::ACCESSES;
use super::{native, over};
use crate::args::ReproduceArgs;
use anyhow::Result;
use nestwalk_hw::Profile;
use serde::Serialize;
use std::sync::atomic::AtomicBool;

/// One program with other values of one parameter each.
#[derive(Serialize)]
pub struct Details {
    pub program: String,
    pub rows: Vec<Row>,
}

/// A machine with one parameter set.
#[derive(Serialize)]
pub struct Row {
    pub parameter: &'static str,
    pub value: String,
    pub bar: &'static str,
    pub machine: String,
    /// Percent of the ideal run time.
    pub total_percent: f64,
    /// Run time over that of bare metal with the same guest pages, percent more.
    pub over_native_percent: f64,
}

/// Machines that a cost concerns.
const HIT: &[(&str, &str)] = &[("DS", "ds:4k"), ("DD", "dual-direct:4k")];
const CHECK: &[(&str, &str)] =
    &[("4K+VD", "vmm-direct:4k"), ("4K+GD", "guest-direct:4k"), ("THP+VD", "vmm-direct:thp")];
/// Options of machines: parameter, value, bar, machine.
const OPTIONS: [(&str, &str, &str, &str); 6] = [
    ("check", "l2", "DS", "ds:4k"),
    ("check", "l1", "DS", "ds/check=l1:4k"),
    ("check", "l2", "DD", "dual-direct:4k"),
    ("check", "l1", "DD", "dual-direct/check=l1:4k"),
    ("entries", "page", "THP+VD", "vmm-direct:thp"),
    ("entries", "4k", "THP+VD", "vmm-direct/entries=4k:thp"),
];

/// Runs each value.
pub fn run(
    args: &ReproduceArgs,
    profile: &str,
    program: &Program,
    stop: &AtomicBool,
) -> Result<Details> {
    let program = program.clone().at_most(ACCESSES);
    let own = Profile::load(profile)?;
    let mut rows = Vec::new();
    let mut run = |parameter: &'static str,
                   bars: &[(&'static str, String, String)],
                   set: &dyn Fn(&mut Profile)| {
        let machines: Vec<String> = bars.iter().map(|b| b.2.clone()).collect();
        let ran = program.run_with(args, profile, &machines, set, stop)?;
        for (i, (bar, value, _)) in bars.iter().enumerate() {
            let m = ran.machine(i);
            rows.push(Row {
                parameter,
                value: value.clone(),
                bar,
                machine: m.name.clone(),
                total_percent: m.overhead_percent,
                over_native_percent: over(m.total_cycles, native(&ran, m)),
            });
        }
        anyhow::Ok(())
    };
    for cycles in [0.0, 1.0, own.core.l2_tlb_hit_cycles.value] {
        let bars: Vec<_> =
            HIT.iter().map(|&(bar, m)| (bar, cycles.to_string(), m.to_owned())).collect();
        run("hit_cycles", &bars, &|p: &mut Profile| p.segment.hit_cycles.value = cycles)?;
    }
    for cycles in [0.0, 1.0, 5.0] {
        let bars: Vec<_> =
            CHECK.iter().map(|&(bar, m)| (bar, cycles.to_string(), m.to_owned())).collect();
        run("check_cycles", &bars, &|p: &mut Profile| p.segment.check_cycles.value = cycles)?;
    }
    for name in ["check", "entries"] {
        let of = OPTIONS.iter().filter(|o| o.0 == name);
        let bars: Vec<_> =
            of.map(|&(_, value, bar, m)| (bar, value.to_owned(), m.to_owned())).collect();
        run(name, &bars, &|_: &mut Profile| ())?;
    }
    Ok(Details { program: program.name, rows })
}
