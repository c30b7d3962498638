//! What all policies have in common: which samples count at all.

use crate::decision::{Outcome, Reason};
use crate::sample::{Mode, Sample};

/// Keeps track of the mode and of the quiet time, and lets only samples pass that say something
/// about the mode in force. The order of the tests is the published script's.
#[derive(Clone, Debug)]
pub(crate) struct Gate {
    mode: Mode,
    asked: Option<Mode>,
    quiet: u32,
    skip: u32,
    least_load_thousandths: u64,
}

impl Gate {
    /// `skip`: samples of quiet after each switch. `least_load`: processors in use below which a
    /// sample does not count, hundredths.
    pub(crate) fn new(mode: Mode, skip: u32, least_load_hundredths: u64) -> Self {
        let least_load_thousandths = least_load_hundredths.saturating_mul(10);
        Self { mode, asked: None, quiet: 0, skip, least_load_thousandths }
    }

    pub(crate) fn mode(&self) -> Mode {
        self.mode
    }

    /// # Errors
    /// Why the sample does not count.
    pub(crate) fn admit(&mut self, sample: &Sample) -> Result<(), Reason> {
        sample.check().map_err(|error| Reason::Unusable { error })?;
        if self.asked.is_some() {
            return Err(Reason::SwitchUnderWay);
        }
        if sample.mode != self.mode {
            return Err(Reason::ModeDiffers { expected: self.mode, found: sample.mode });
        }
        if self.quiet > 0 {
            self.quiet -= 1;
            return Err(Reason::Quiet { left: self.quiet });
        }
        let load_thousandths = sample.load_thousandths();
        if load_thousandths < self.least_load_thousandths {
            return Err(Reason::Idle { load_thousandths });
        }
        Ok(())
    }

    /// A switch was asked for.
    pub(crate) fn ask(&mut self, mode: Mode) {
        self.asked = Some(mode);
    }

    /// A refused switch has its quiet time, too: what refused it once would do so each second.
    pub(crate) fn switched(&mut self, outcome: Outcome) {
        let asked = self.asked.take();
        match outcome {
            Outcome::Done => self.mode = asked.unwrap_or(self.mode),
            Outcome::Refused => {}
            Outcome::Elsewhere(mode) => self.mode = mode,
        }
        self.quiet = self.skip;
    }
}
