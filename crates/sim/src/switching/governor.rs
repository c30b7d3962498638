//! Who asks for switches: a policy that sees a sample of each interval, or a schedule.
//!
//! An interval ends with the first look after so many simulated cycles. Looks come at every so many
//! instructions ([`crate::scheme::Scheme::due`]), a small part of an interval, so what a policy costs
//! is pricing the counters some dozens of times per interval, and nothing per access. Time is that of
//! the VM: the cycles of all its vCPUs, over their number and the frequency; all vCPUs of a simulation
//! run all the time.

use super::options::{Options, Schedule};
use crate::cost::Cycles;
use crate::counters::Counters;
use crate::scheme::Platform;
use nestwalk_hw::Profile;
use nestwalk_policy::{Action, Decision, Mode, Outcome, Policy, Sample};

/// Looks in an interval if an instruction takes a cycle: samples are that much longer than asked for
/// at most.
const LOOKS: f64 = 64.0;

/// What is to be done.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Ask {
    /// Nothing.
    Nothing,
    /// The policy saw a sample and answered.
    Answered(Sample, Decision),
    /// The schedule wants the mode.
    Scheduled(Mode),
}

enum Kind {
    Policy(Box<Watch>),
    Alternate,
    Planned { modes: Vec<Mode>, done: usize, begun: bool },
}

struct Watch {
    policy: Box<dyn Policy>,
    profile: Profile,
    vcpus: f64,
    /// Cycles of all vCPUs in an interval.
    interval: f64,
    /// What was counted when the interval began.
    last: Counters,
    /// The same in cycles.
    last_cycles: f64,
    /// Nanoseconds from the region of interest to the interval's beginning.
    time_ns: f64,
}

/// Asks for switches.
pub struct Governor {
    kind: Kind,
    /// Instructions from look to look.
    every: u64,
    due: u64,
}

impl Governor {
    /// As the options say.
    ///
    /// # Errors
    /// The policy cannot be made.
    pub fn new(options: &Options, profile: &Profile, vcpus: usize) -> Result<Self, String> {
        let vcpus = vcpus.max(1) as f64;
        let (kind, every) = match (&options.schedule, options.policy()?) {
            (Schedule::Policy(_, interval_ms), Some(policy)) => {
                let interval = interval_ms * profile.core.frequency_mhz.value * 1000.0 * vcpus;
                let watch = Watch {
                    policy,
                    profile: profile.clone(),
                    vcpus,
                    interval,
                    last: Counters::default(),
                    last_cycles: 0.0,
                    time_ns: 0.0,
                };
                (Kind::Policy(Box::new(watch)), (interval / LOOKS).max(1.0) as u64)
            }
            (Schedule::Planned(every, modes), _) => {
                (Kind::Planned { modes: modes.clone(), done: 0, begun: false }, *every)
            }
            (Schedule::Alternate(every), _) => (Kind::Alternate, *every),
            (Schedule::Policy(..), None) => return Err("a policy that is none".into()),
        };
        Ok(Self { kind, every, due: every })
    }

    /// Another policy in place of the one of the options, for a machine with options of a policy.
    pub fn set_policy(&mut self, policy: Box<dyn Policy>) {
        if let Kind::Policy(watch) = &mut self.kind {
            watch.policy = policy;
        }
    }

    /// When the next look is due, by the machine's clock.
    #[inline]
    pub const fn due(&self) -> u64 {
        self.due
    }

    /// The region of interest begins: the counters are zero. A policy remembers what it learned.
    pub fn counting_begins(&mut self, clock: u64) {
        self.due = clock + self.every;
        match &mut self.kind {
            Kind::Policy(watch) => {
                watch.last = Counters::default();
                (watch.last_cycles, watch.time_ns) = (0.0, 0.0);
            }
            Kind::Planned { begun, .. } => *begun = true,
            Kind::Alternate => {}
        }
    }

    /// Looks at the VM, which is in `mode`.
    pub fn look(&mut self, platform: &Platform, mode: Mode) -> Ask {
        // Looks that a long run has passed are not made up for, but schedules keep their grid.
        let passed = (platform.clock - self.due) / self.every + 1;
        self.due += passed * self.every;
        match &mut self.kind {
            Kind::Alternate => Ask::Scheduled(mode.other()),
            Kind::Planned { begun: false, .. } => Ask::Nothing,
            Kind::Planned { modes, done, .. } => {
                *done = done.saturating_add(passed as usize);
                modes.get(*done).copied().map_or(Ask::Nothing, Ask::Scheduled)
            }
            Kind::Policy(watch) => match watch.sample(&platform.counters, mode) {
                None => Ask::Nothing,
                Some(sample) => Ask::Answered(sample, watch.policy.sample(&sample)),
            },
        }
    }

    /// What came of the switch that was asked for, or that somebody else made.
    pub fn switched(&mut self, outcome: Outcome) {
        if let Kind::Policy(watch) = &mut self.kind {
            watch.policy.switched(outcome);
        }
    }
}

impl Ask {
    /// The mode that is asked for, if it is another.
    pub fn wanted(&self, now: Mode) -> Option<Mode> {
        let wanted = match self {
            Self::Scheduled(mode) => *mode,
            Self::Answered(_, Decision { action: Action::Switch(mode), .. }) => *mode,
            Self::Nothing | Self::Answered(..) => now,
        };
        (wanted != now).then_some(wanted)
    }
}

impl Watch {
    /// What was counted in the interval, if it is over.
    fn sample(&mut self, counters: &Counters, mode: Mode) -> Option<Sample> {
        let total = Cycles::of(counters, &self.profile).total();
        if total - self.last_cycles < self.interval {
            return None;
        }
        let d = counters.since(&self.last);
        let cycles = Cycles::of(&d, &self.profile);
        let core = &self.profile.core;
        let from = self.time_ns;
        self.time_ns += cycles.total() * 1000.0 / (core.frequency_mhz.value * self.vcpus);
        self.last = counters.clone();
        self.last_cycles = total;
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
            walk_cycles: Some((d.walk_cycles as f64 * core.walk_exposed.value).round() as u64),
            guest_page_faults: Some(d.guest_faults),
            tlb_misses: Some(d.l2_tlb_misses),
            vm_exits: Some(d.exits_total()),
            mode,
        })
    }
}
