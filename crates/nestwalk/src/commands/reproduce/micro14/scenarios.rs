//! How contiguous memory comes to be: self-ballooning, the gap for I/O, compaction in the host. Each is
//! a machine before and after, and how large its segments are.

use super::super::programs::Program;
use crate::args::ReproduceArgs;
use anyhow::Result;
use nestwalk_sim::GuestOutcome;
use serde::Serialize;
use std::sync::atomic::AtomicBool;

/// Name, words of `compare`, machine.
type Step = (&'static str, &'static str, &'static str);

const SCENARIOS: [(&str, [Step; 2]); 3] = [
    (
        "self-ballooning",
        [
            ("before", BADLY_FRAGMENTED_GUEST, "dual-direct:4k@primary"),
            ("after", BADLY_FRAGMENTED_GUEST, "dual-direct:4k@primary-balloon"),
        ],
    ),
    (
        "I/O gap reclaimed",
        [("before", WITH_A_GAP, "vmm-direct:4k"), ("after", WITHOUT_A_GAP, "vmm-direct:4k")],
    ),
    (
        "host compaction",
        [
            ("before", BADLY_FRAGMENTED_HOST, "vmm-direct:4k"),
            ("after", BADLY_FRAGMENTED_HOST, "vmm-direct/start=paged/compact=4000:4k"),
        ],
    ),
];

const BADLY_FRAGMENTED_GUEST: &str =
    "gups --footprint 1GiB --guest-memory 4GiB --accesses 2M --guest-fragmentation bad";
const WITH_A_GAP: &str = "gups --footprint 256MiB --guest-memory 16GiB --accesses 1M";
const WITHOUT_A_GAP: &str =
    "gups --footprint 256MiB --guest-memory 16GiB --accesses 1M --io-gap reclaimed";
const BADLY_FRAGMENTED_HOST: &str = "gups --footprint 64MiB --guest-memory 256MiB --host-memory 2GiB \
                                     --accesses 60M --host-fragmentation bad";

/// A machine before or after memory was made contiguous.
#[derive(Serialize)]
pub struct Scenario {
    pub scenario: &'static str,
    pub step: &'static str,
    /// The words of `compare`, without the machine.
    pub command: &'static str,
    pub machine: String,
    /// Bytes of the largest guest segment at the end; 0 if there is none.
    pub guest_segment_bytes: u64,
    /// Bytes of the VMM segment at the end; 0 if there is none.
    pub vmm_segment_bytes: u64,
    /// Guest memory within the VMM segment, percent.
    pub vmm_percent: f64,
    /// Percent of the ideal run time.
    pub total_percent: f64,
    /// Pages of 4 KiB that the balloon pinned.
    pub balloon_pages: u64,
    /// The longest run of free guest frames before, in bytes; 0 where no balloon was at work.
    pub longest_run_before: u64,
}

/// Runs each. Footprints are part of the scenario, whatever the command line says of programs.
///
/// # Errors
/// One cannot be run.
pub fn run(args: &ReproduceArgs, profile: &str, stop: &AtomicBool) -> Result<Vec<Scenario>> {
    let args = ReproduceArgs { footprint: None, ..args.clone() };
    let mut all = Vec::new();
    for (scenario, steps) in SCENARIOS {
        for (step, command, machine) in steps {
            let program = Program::of(scenario, command);
            let ran = program.run(&args, profile, &[machine.into()], None, stop)?;
            let m = ran.machine(0);
            let segments = m.segments.unwrap_or_default();
            let balloon = ran.session.outcome.guests.iter().find_map(|(_, guest)| match guest {
                GuestOutcome::Modelled(stats) if stats.balloon.times > 0 => Some(stats.balloon),
                _ => None,
            });
            let balloon = balloon.unwrap_or_default();
            all.push(Scenario {
                scenario,
                step,
                command,
                machine: m.name.clone(),
                guest_segment_bytes: segments.guest.bytes,
                vmm_segment_bytes: segments.vmm.bytes,
                vmm_percent: segments.vmm_percent,
                total_percent: m.overhead_percent,
                balloon_pages: balloon.pages,
                longest_run_before: balloon.longest_before,
            });
        }
    }
    Ok(all)
}
