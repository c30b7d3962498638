//! The loop that asks a policy after each interval and does what it says. The same loop serves a live
//! VM and a recording.
//!
//! What it guarantees: at any time it knows the VM's mode or says that it does not; a switch counts as
//! made only once the mode was read back; and whatever ends the loop, the last event says in which mode
//! the VM is left.

use nestwalk_policy::{Action, Decision, Mode, Outcome, Policy, Sample};
use serde::Serialize;

/// A VM as the governor sees it.
pub trait Vm {
    /// Waits for the end of the interval and returns what was counted in it.
    ///
    /// # Errors
    /// Says why there is no sample, and whether there may be later ones.
    fn next(&mut self) -> Result<Sample, VmError>;

    /// The mode in force.
    ///
    /// # Errors
    /// Says why it cannot be told.
    fn mode(&mut self) -> Result<Mode, String>;

    /// Changes the mode, and reads it back.
    fn switch(&mut self, to: Mode) -> SwitchResult;
}

/// Why there is no sample.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VmError {
    /// The VM has exited.
    Gone,
    /// The recording is over.
    RecordingEnds,
    /// Somebody wants the governor to stop.
    Interrupted,
    /// This interval could not be counted; the next may be.
    Interval(String),
    /// The mode cannot be told now.
    ModeUnknown(String),
    /// There will be no more samples.
    Fatal(String),
}

/// What came of a switch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SwitchResult {
    /// The mode that was asked for is in force.
    Done,
    /// The old mode is in force, for this reason.
    Refused(String),
    /// The mode in force is not known, for this reason.
    Unknown(String),
}

/// Why the loop ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", content = "why", rename_all = "kebab-case")]
pub enum End {
    /// The VM has exited.
    VmExited,
    /// The recording is over.
    RecordingEnds,
    /// Somebody wanted it.
    Interrupted,
    /// It cannot go on.
    Failed(String),
}

/// What the governor says.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// It begins.
    Started {
        /// The mode in force.
        mode: Mode,
    },
    /// The policy answered.
    Decided {
        /// What was counted.
        sample: Sample,
        /// The answer.
        decision: Decision,
    },
    /// The policy wants a switch, and only advice was asked for.
    Advised {
        /// The mode it wants.
        to: Mode,
        /// The mode in force.
        mode: Mode,
    },
    /// A switch was made and read back.
    Switched {
        /// The mode in force.
        mode: Mode,
    },
    /// A switch was not made.
    Refused {
        /// The mode that was asked for.
        to: Mode,
        /// The mode in force, read back.
        mode: Mode,
        /// Why.
        why: String,
    },
    /// The mode is not known.
    ModeUnknown {
        /// The mode that was asked for last, if that is not answered.
        asked: Option<Mode>,
        /// Why.
        why: String,
    },
    /// The mode is known again.
    ModeKnown {
        /// The mode in force.
        mode: Mode,
    },
    /// Somebody else changed the mode.
    ChangedElsewhere {
        /// From.
        from: Mode,
        /// To, now in force.
        mode: Mode,
    },
    /// An interval was lost.
    NoSample {
        /// Why.
        why: String,
        /// How many in a row.
        in_a_row: u32,
    },
    /// It ends.
    Ended {
        /// Why.
        end: End,
        /// The mode in which the VM is left; none if it is not known or the VM is no more.
        mode: Option<Mode>,
        /// Why the mode is not known.
        unknown: Option<String>,
    },
}

/// What happened in all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Why it ended.
    pub end: End,
    /// The mode in which the VM is left, if it is known and there is a VM.
    pub mode: Option<Mode>,
    /// Samples.
    pub samples: u64,
    /// Intervals that were lost.
    pub lost: u64,
    /// Switches made.
    pub switched: u64,
    /// Switches refused.
    pub refused: u64,
    /// Switches advised.
    pub advised: u64,
}

impl Summary {
    /// Whether nothing went wrong for good: the mode is known, or there is no VM any more.
    pub fn is_good(&self) -> bool {
        match self.end {
            End::VmExited | End::RecordingEnds => true,
            End::Interrupted => self.mode.is_some(),
            End::Failed(_) => false,
        }
    }
}

/// The loop.
#[derive(Clone, Copy, Debug)]
pub struct Governor {
    /// Only say what should be done.
    pub dry_run: bool,
    /// Lost intervals in a row after which it gives up.
    pub patience: u32,
}

impl Default for Governor {
    fn default() -> Self {
        Self { dry_run: false, patience: 5 }
    }
}

/// The state of a run.
struct Run<'a, F> {
    governor: Governor,
    vm: &'a mut dyn Vm,
    policy: &'a mut dyn Policy,
    say: F,
    /// A switch whose outcome is not known.
    asked: Option<Mode>,
    /// Whether the mode is not known.
    unknown: bool,
    failures: u32,
    summary: Summary,
}

impl Governor {
    /// Governs until the VM exits, the recording ends, somebody stops it, or it cannot go on. `say`
    /// hears every event; its error (a reader that has gone) ends the loop, too.
    ///
    /// # Errors
    /// Only those of `say`, after the VM's mode was read once more and offered to `say`.
    pub fn run<E: ToString>(
        self,
        vm: &mut dyn Vm,
        policy: &mut dyn Policy,
        say: impl FnMut(&Event) -> Result<(), E>,
    ) -> Result<Summary, E> {
        let end = End::Interrupted;
        let summary =
            Summary { end, mode: None, samples: 0, lost: 0, switched: 0, refused: 0, advised: 0 };
        let (asked, unknown, failures) = (None, false, 0);
        let mut run = Run { governor: self, vm, policy, say, asked, unknown, failures, summary };
        match run.run() {
            Ok(end) => {
                run.end(end)?;
                Ok(run.summary)
            }
            Err(error) => {
                let _ = run.end(End::Failed(error.to_string()));
                Err(error)
            }
        }
    }
}

impl<E, F: FnMut(&Event) -> Result<(), E>> Run<'_, F> {
    fn run(&mut self) -> Result<End, E> {
        (self.say)(&Event::Started { mode: self.policy.mode() })?;
        loop {
            let sample = match self.vm.next() {
                Ok(sample) => sample,
                Err(error) => match self.without_sample(error)? {
                    None => continue,
                    Some(end) => return Ok(end),
                },
            };
            self.failures = 0;
            self.summary.samples += 1;
            self.learn_mode(sample.mode)?;
            let decision = self.policy.sample(&sample);
            (self.say)(&Event::Decided { sample, decision })?;
            if let Action::Switch(to) = decision.action {
                self.switch(to)?;
            }
        }
    }

    /// The end, if there will be no more samples.
    fn without_sample(&mut self, error: VmError) -> Result<Option<End>, E> {
        let why = match error {
            VmError::Gone => return Ok(Some(End::VmExited)),
            VmError::RecordingEnds => return Ok(Some(End::RecordingEnds)),
            VmError::Interrupted => return Ok(Some(End::Interrupted)),
            VmError::Fatal(why) => return Ok(Some(End::Failed(why))),
            VmError::Interval(why) => why,
            VmError::ModeUnknown(why) => {
                if !self.unknown {
                    self.unknown = true;
                    let asked = self.asked;
                    (self.say)(&Event::ModeUnknown { asked, why: why.clone() })?;
                }
                why
            }
        };
        self.summary.lost += 1;
        self.failures += 1;
        let in_a_row = self.failures;
        (self.say)(&Event::NoSample { why: why.clone(), in_a_row })?;
        Ok((in_a_row >= self.governor.patience)
            .then(|| End::Failed(format!("{in_a_row} intervals in a row were lost: {why}"))))
    }

    /// Compares the mode in force with what the policy believes.
    fn learn_mode(&mut self, mode: Mode) -> Result<(), E> {
        let from = self.policy.mode();
        if self.unknown {
            self.unknown = false;
            (self.say)(&Event::ModeKnown { mode })?;
        }
        match self.asked.take() {
            Some(asked) if asked == mode => {
                self.summary.switched += 1;
                self.policy.switched(Outcome::Done);
            }
            Some(_) => {
                self.summary.refused += 1;
                self.policy.switched(Outcome::Refused);
            }
            None if from != mode => {
                self.policy.switched(Outcome::Elsewhere(mode));
                (self.say)(&Event::ChangedElsewhere { from, mode })?;
            }
            None => {}
        }
        Ok(())
    }

    fn switch(&mut self, to: Mode) -> Result<(), E> {
        let mode = self.policy.mode();
        if self.governor.dry_run {
            self.summary.advised += 1;
            self.policy.switched(Outcome::Refused);
            return (self.say)(&Event::Advised { to, mode });
        }
        match self.vm.switch(to) {
            SwitchResult::Done => {
                self.summary.switched += 1;
                self.policy.switched(Outcome::Done);
                (self.say)(&Event::Switched { mode: to })
            }
            SwitchResult::Refused(why) => {
                self.summary.refused += 1;
                self.policy.switched(Outcome::Refused);
                (self.say)(&Event::Refused { to, mode, why })
            }
            SwitchResult::Unknown(why) => {
                self.asked = Some(to);
                self.unknown = true;
                (self.say)(&Event::ModeUnknown { asked: Some(to), why })
            }
        }
    }

    fn end(&mut self, end: End) -> Result<(), E> {
        let (mode, unknown) = match &end {
            End::VmExited => (None, None),
            _ => match self.vm.mode() {
                Ok(mode) => (Some(mode), None),
                Err(why) => (None, Some(why)),
            },
        };
        self.summary.end = end.clone();
        self.summary.mode = mode;
        (self.say)(&Event::Ended { end, mode, unknown })
    }
}
