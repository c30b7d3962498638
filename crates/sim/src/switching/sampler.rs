//! Samples of a machine: what a policy sees of an interval, from counters and their prices.
//!
//! The policies of `switching` and whoever records samples cut intervals with the same code, so that
//! what is recorded of a machine with its policy's own interval is what the policy saw.

use crate::measure::cost::Cycles;
use crate::measure::counters::Counters;
use nestwalk_hw::Profile;
use nestwalk_policy::{Mode, Sample};

/// Snapshots in an interval of time if instructions take a cycle each. Where they take longer, looks
/// come closer together, each half way to the interval's end as far as the last look can tell.
const LOOKS: f64 = 64.0;

/// Where a sample ends.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Cut {
    /// After so many simulated milliseconds, as a program beside a VM samples it.
    Milliseconds(f64),
    /// After so many instructions: the same intervals on every machine with the same guest.
    Instructions(u64),
}

impl Cut {
    /// Instructions from look to look of a machine with this clock and so many vCPUs.
    fn every(self, profile: &Profile, vcpus: f64) -> u64 {
        match self {
            Self::Milliseconds(_) => (self.cycles(profile, vcpus) / LOOKS).max(1.0) as u64,
            Self::Instructions(every) => every.max(1),
        }
    }

    /// Cycles of all vCPUs before which no sample ends.
    fn cycles(self, profile: &Profile, vcpus: f64) -> f64 {
        match self {
            Self::Milliseconds(ms) => profile.core.clock().of_all(vcpus).cycles_of_ms(ms),
            Self::Instructions(_) => 0.0,
        }
    }
}

/// Makes samples of counters. Time is that of the VM: the cycles of all its vCPUs, over their number
/// and the frequency; all vCPUs of a simulation run all the time.
pub struct Sampler {
    profile: Profile,
    vcpus: f64,
    /// Cycles of all vCPUs in an interval.
    interval: f64,
    every: u64,
    /// Instructions until the next look.
    step: u64,
    /// What was counted when the interval began.
    last: Counters,
    /// The same in cycles.
    last_cycles: f64,
    /// Instructions and cycles at the last look.
    looked: (u64, f64),
    /// Nanoseconds from the region of interest to the interval's beginning.
    time_ns: f64,
}

impl Sampler {
    /// For a machine of so many vCPUs.
    pub fn new(cut: Cut, profile: &Profile, vcpus: usize) -> Self {
        let vcpus = vcpus.max(1) as f64;
        Self {
            interval: cut.cycles(profile, vcpus),
            every: cut.every(profile, vcpus),
            step: cut.every(profile, vcpus),
            profile: profile.clone(),
            vcpus,
            last: Counters::default(),
            last_cycles: 0.0,
            looked: (0, 0.0),
            time_ns: 0.0,
        }
    }

    /// Instructions from look to look at most.
    pub const fn every(&self) -> u64 {
        self.every
    }

    /// When to look again, after a look that was due at `due` and came at `clock`.
    pub fn next(&self, due: u64, clock: u64) -> u64 {
        if self.interval > 0.0 {
            return clock.saturating_add(self.step);
        }
        // Intervals of instructions keep their grid; those that a long run has passed are not made up.
        let passed = (clock - due) / self.every + 1;
        due.saturating_add(passed.saturating_mul(self.every))
    }

    /// The region of interest begins: the counters are zero.
    pub fn region_begins(&mut self) {
        self.last = Counters::default();
        (self.last_cycles, self.time_ns) = (0.0, 0.0);
        (self.looked, self.step) = ((0, 0.0), self.every);
    }

    /// Chooses the next look: half of what is missing of the interval if instructions go on as they
    /// did since the last one.
    fn looked(&mut self, instructions: u64, cycles: f64) {
        let (then, before) = std::mem::replace(&mut self.looked, (instructions, cycles));
        let missing = self.interval - (cycles - self.last_cycles);
        let left = missing.max(self.interval / LOOKS) / 2.0;
        let per_instruction = (cycles - before) / (instructions - then).max(1) as f64;
        let step = left / per_instruction.max(f64::MIN_POSITIVE);
        // A stop of the program may make every instruction take very long; that passes.
        let least = (self.every / LOOKS as u64).max(1);
        self.step = (step as u64).clamp(least, self.every.max(least));
    }

    /// What was counted in the interval, if it is over, of a VM that is in `mode`.
    pub fn sample(&mut self, counters: &Counters, mode: Mode) -> Option<Sample> {
        let total = Cycles::of(counters, &self.profile).total();
        if total - self.last_cycles < self.interval {
            self.looked(counters.instructions, total);
            return None;
        }
        let d = counters.since(&self.last);
        let cycles = Cycles::of(&d, &self.profile);
        let clock = self.profile.core.clock().of_all(self.vcpus);
        let walk_exposed = self.profile.core.walk_exposed.value;
        let from = self.time_ns;
        self.time_ns += clock.ns(cycles.total());
        self.last = counters.clone();
        self.last_cycles = total;
        self.looked(counters.instructions, total);
        let duration_ns = self.time_ns.round() as u64 - from.round() as u64;
        Some(Sample {
            time_ns: self.time_ns.round() as u64,
            duration_ns,
            busy_ns: duration_ns * self.vcpus as u64,
            instructions: d.instructions,
            guest_cycles: (cycles.total() - cycles.vmm).round() as u64,
            host_kernel_cycles: cycles.vmm.round() as u64,
            host_user_cycles: 0,
            // Walkers that work side by side are one cycle with a walk under way, as the processors'
            // events count.
            walk_cycles: Some((d.walk_cycles as f64 * walk_exposed).round() as u64),
            guest_page_faults: Some(d.guest_faults),
            tlb_misses: Some(d.l2_tlb_misses),
            vm_exits: Some(d.exits_total()),
            mode,
        })
    }
}

/// The samples of a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recorded {
    /// In order. What comes after the last whole interval is in none.
    pub samples: Vec<Sample>,
    /// Intervals in whose middle the mode changed: no sample can be of two modes, so they are in none.
    pub mixed: u64,
}

/// Records samples of whatever machine has a paging mode.
pub struct Recorder {
    sampler: Sampler,
    due: u64,
    /// Clock at the interval's beginning.
    began: u64,
    /// The mode since.
    mode: Option<Mode>,
    mixed: bool,
    recorded: Recorded,
}

impl Recorder {
    /// Records from the region of interest on.
    pub fn new(cut: Cut, profile: &Profile, vcpus: usize) -> Self {
        Self {
            sampler: Sampler::new(cut, profile, vcpus),
            due: u64::MAX,
            began: 0,
            mode: None,
            mixed: false,
            recorded: Recorded::default(),
        }
    }

    /// When the next look is due, by the machine's clock.
    #[inline]
    pub const fn due(&self) -> u64 {
        self.due
    }

    /// The region of interest begins.
    pub fn region_begins(&mut self, clock: u64, mode: Option<Mode>) {
        self.sampler.region_begins();
        self.recorded = Recorded::default();
        (self.began, self.mode, self.mixed) = (clock, mode, false);
        self.due = clock.saturating_add(self.sampler.every());
    }

    /// The machine is in this mode now.
    pub fn mode_is(&mut self, clock: u64, mode: Option<Mode>) {
        self.mixed |= mode != self.mode && clock != self.began;
        self.mode = mode;
    }

    /// Snapshots at what was counted.
    pub fn look(&mut self, clock: u64, counters: &Counters, mode: Option<Mode>) {
        self.mode_is(clock, mode);
        let Some(mode) = mode else {
            self.due = self.sampler.next(self.due, clock);
            return;
        };
        if let Some(sample) = self.sampler.sample(counters, mode) {
            if self.mixed {
                self.recorded.mixed += 1;
            } else {
                self.recorded.samples.push(sample);
            }
            (self.began, self.mixed) = (clock, false);
        }
        self.due = self.sampler.next(self.due, clock);
    }

    /// What was recorded; none of a machine without a paging mode.
    pub fn recorded(&self) -> Option<&Recorded> {
        self.mode.map(|_| &self.recorded)
    }
}
