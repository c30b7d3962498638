//! How many mappings cover a program: placement policies with and without pressure, alone and beside
//! another process.

use super::super::programs::Program;
use crate::args::ReproduceArgs;
use anyhow::Result;
use nestwalk_hw::Profile;
use nestwalk_sim::GuestOutcome;
use nestwalk_sim::machine::coverage::DimensionResult;
use nestwalk_sim::measure::cost::clearing_ns;
use nestwalk_sim::report::results::MachineResult;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

/// Placement policies, the same in guest and host, and what each is.
pub const POLICIES: [(&str, &str); 5] = [
    ("linux", "Linux's lists"),
    ("ca", "CA paging"),
    ("eager", "eager paging"),
    ("ranger", "Linux's huge pages, moved together by Translation Ranger's daemon"),
    ("ideal", "contiguous memory kept for each mapping"),
];

/// What the program meets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Setup {
    /// Its name in results.
    pub name: &'static str,
    /// What it is.
    pub what: &'static str,
    /// Words of `compare`.
    words: &'static str,
    /// Processes that run it at the same time.
    pub copies: usize,
    /// Memory of all of them together, in times of the program's own.
    times: u64,
}

pub const ALL: [Setup; 3] = [
    Setup { name: "alone", what: "alone, memory fresh", words: "", copies: 1, times: 1 },
    Setup {
        name: "pressure",
        what: "one of 256 blocks of 2 MiB has something that cannot be moved, in guest and host",
        words: "--guest-fragmentation 0.00390625 --host-fragmentation 0.00390625",
        copies: 1,
        times: 1,
    },
    Setup {
        name: "four",
        what: "four at once with twice the memory in all, under the same pressure",
        words: "--guest-fragmentation 0.00390625 --host-fragmentation 0.00390625",
        copies: 4,
        times: 2,
    },
];

impl Setup {
    /// The set-ups of a program. A recording is a whole guest, of which there is one.
    pub fn of(program: &Program) -> impl Iterator<Item = &'static Self> {
        let most = if program.is_recorded() { 1 } else { usize::MAX };
        ALL.iter().filter(move |s| s.copies <= most)
    }
}

/// One policy in one set-up.
#[derive(Serialize)]
pub struct Line {
    pub setup: &'static str,
    pub policy: &'static str,
    pub machine: String,
    /// Entries that cover 80, 90, 99 and 100 % of what the guest maps, by technique; all processes.
    pub guest: BTreeMap<&'static str, BTreeMap<u8, u64>>,
    /// The same of guest-virtual to host-physical memory.
    pub both: BTreeMap<&'static str, BTreeMap<u8, u64>>,
    /// Longest runs of the guest and of both dimensions, bytes.
    pub longest_bytes: [u64; 2],
    /// What programs have mapped, bytes.
    pub mapped_bytes: u64,
    /// Of this, memory that was never used: what allocation in advance costs.
    pub bloat_bytes: u64,
    /// Pages that daemons of the guest and of the host moved.
    pub migrated_pages: u64,
    /// The most 4 KiB pages that one fault or mapping of the guest allocated and cleared, and how long
    /// it took, microseconds.
    pub most_at_once: u64,
    pub most_at_once_us: f64,
}

/// Runs a set-up with every policy in one pass.
pub fn run(
    args: &ReproduceArgs,
    profile: &str,
    program: &Program,
    setup: &'static Setup,
    stop: &AtomicBool,
) -> Result<Vec<Line>> {
    let words = format!("{} {DAEMONS}", setup.words);
    let machines: Vec<String> =
        POLICIES.iter().map(|(p, _)| format!("nested:thp+thp@{p}+{p}")).collect();
    let program = program
        .clone()
        .with(&words)
        .copies(setup.copies)
        .memory(setup.times, setup.copies as u64)
        .at_most(ACCESSES);
    let ran = program.run_and_look(args, profile, &machines, stop)?;
    let guests = &ran.session.outcome.guests;
    let lines = POLICIES.iter().enumerate().map(|(i, (policy, _))| {
        let m = ran.machine(i);
        Line::new(setup, policy, m, guests, &ran.profile)
    });
    Ok(lines.collect())
}

/// The daemon looks at everything each simulated millisecond: runs are short, and its end state is what
/// is compared. Published is a run every 3 or 10 s.
const DAEMONS: &str = "--daemons ranger-interval-ms=1";

/// Accesses after memory was populated: contiguity is what populating made it, but daemons go on.
const ACCESSES: u64 = 2_000_000;

impl Line {
    fn new(
        setup: &'static Setup,
        policy: &'static str,
        m: &MachineResult,
        guests: &[(String, GuestOutcome)],
        profile: &Profile,
    ) -> Self {
        let coverage = m.coverage.clone().unwrap_or_default();
        let both = coverage.both.unwrap_or_default();
        let name = format!("thp@{policy}");
        let guest = guests.iter().find(|g| g.0 == name).and_then(|g| g.1.modelled());
        let placement = guest.map(|g| g.placement).unwrap_or_default();
        let daemons = guest.map(|g| g.daemons).unwrap_or_default();
        let in_host = m.host_placement.unwrap_or_default();
        let longest = |d: &DimensionResult| d.longest_pages << 12;
        Self {
            setup: setup.name,
            policy,
            machine: m.name.clone(),
            longest_bytes: [longest(&coverage.guest), longest(&both)],
            mapped_bytes: coverage.guest.pages << 12,
            guest: coverage.guest.entries,
            both: both.entries,
            bloat_bytes: placement.untouched_bytes
                + placement.set_aside_bytes
                + in_host.untouched_bytes
                + in_host.set_aside_bytes,
            migrated_pages: daemons.migrated
                + daemons.exchanged
                + m.host_pages_migrated
                + m.host_pages_exchanged,
            most_at_once: placement.most_at_once,
            most_at_once_us: clearing_ns(placement.most_at_once, profile) / 1e3,
        }
    }

    /// Entries of a technique that cover 99 % of the footprint in both dimensions.
    pub fn for_99(&self, technique: &str) -> u64 {
        self.both.get(technique).and_then(|e| e.get(&99)).copied().unwrap_or(0)
    }
}
