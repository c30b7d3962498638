//! Who asks for switches: a policy that sees a sample of each interval, or a schedule.
//!
//! An interval ends with the first look after so many simulated cycles ([`super::sampler`]). Snapshots
//! come after so many instructions ([`crate::scheme::Software::next_timer`]), a part of what is
//! left of an interval, so what a policy costs is pricing the counters some dozens of times per
//! interval, and nothing per access.

use super::options::{Options, Schedule};
use super::sampler::{Cut, Sampler};
use crate::scheme::Platform;
use nestwalk_hw::Profile;
use nestwalk_policy::{Action, Decision, Mode, Outcome, Policy, Sample};

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
    sampler: Sampler,
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
        let (kind, every) = match (&options.schedule, options.policy()?) {
            (Schedule::Policy(_, interval_ms), Some(policy)) => {
                let sampler = Sampler::new(Cut::Milliseconds(*interval_ms), profile, vcpus);
                let every = sampler.every();
                (Kind::Policy(Box::new(Watch { policy, sampler })), every)
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
    pub fn region_begins(&mut self, clock: u64) {
        self.due = clock + self.every;
        match &mut self.kind {
            Kind::Policy(watch) => watch.sampler.region_begins(),
            Kind::Planned { begun, .. } => *begun = true,
            Kind::Alternate => {}
        }
    }

    /// Snapshots at the VM, which is in `mode`.
    pub fn look(&mut self, platform: &Platform, mode: Mode) -> Ask {
        // Snapshots that a long run has passed are not made up for, but schedules keep their grid.
        let passed = (platform.instructions - self.due) / self.every + 1;
        let due = self.due;
        self.due += passed * self.every;
        match &mut self.kind {
            Kind::Alternate => Ask::Scheduled(mode.other()),
            Kind::Planned { begun: false, .. } => Ask::Nothing,
            Kind::Planned { modes, done, .. } => {
                *done = done.saturating_add(passed as usize);
                modes.get(*done).copied().map_or(Ask::Nothing, Ask::Scheduled)
            }
            Kind::Policy(watch) => {
                let sample = watch.sampler.sample(&platform.cpu.counters, mode);
                self.due = watch.sampler.next(due, platform.instructions);
                match sample {
                    None => Ask::Nothing,
                    Some(sample) => Ask::Answered(sample, watch.policy.sample(&sample)),
                }
            }
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
