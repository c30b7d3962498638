//! The phases of what runs or is read, from what its source says of itself and how far it is.

use super::{Amount, Phase, Phases};
use nestwalk_lab::{Experiment, Opened, Progress, Result, Session, SourceInfo};
use std::borrow::Cow;
use std::cell::RefCell;
use std::sync::atomic::AtomicBool;

/// Of which memory is populated one at a time.
const PAGE_BYTES: u64 = 4096;

/// What comes before the first access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beginning {
    /// Nothing but what set-up asks for.
    Plain,
    /// The tables of a guest as its recording began.
    Tables,
    /// A guest boots, until its command begins.
    Boot,
    /// A guest boots and its command runs, until that marks its region of interest.
    BootToMark,
}

/// What is known beforehand of what runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Course {
    /// What is done once it runs: "running".
    pub what: &'static str,
    /// What comes before.
    pub beginning: Beginning,
    /// Bytes of memory that set-up makes present; 0 for none.
    pub populates: u64,
    /// Accesses that are simulated and not counted; 0 for none.
    pub warmup: u64,
    /// Accesses after which it ends; 0 if its source's end is the end.
    pub limit: u64,
    /// The length of the source, in the unit of its position, if it is known.
    pub total: Option<u64>,
}

impl Course {
    /// What is known of an experiment whose source is open.
    fn of(experiment: &Experiment, info: &SourceInfo) -> Self {
        let beginning = match (&experiment.guest, &info.guest) {
            (Some(live), _) if live.interest => Beginning::BootToMark,
            (Some(_), _) => Beginning::Boot,
            (None, Some(_)) => Beginning::Tables,
            (None, None) => Beginning::Plain,
        };
        let (warmup, limit) = (experiment.warmup, experiment.accesses);
        let populates = info.populates;
        Self { beginning, populates, warmup, limit, ..Self::reading("running", info.total) }
    }

    /// Something that is only read.
    pub const fn reading(what: &'static str, total: Option<u64>) -> Self {
        Self { what, beginning: Beginning::Plain, populates: 0, warmup: 0, limit: 0, total }
    }

    /// The phase that it is in.
    pub(super) fn phase(&self, progress: &Progress) -> Phase {
        match self.beginning {
            Beginning::Boot if !progress.begun => {
                return Phase::new("booting the guest, until its command begins");
            }
            Beginning::BootToMark if !progress.begun => {
                return Phase::new("booting the guest, until its program marks what to look at");
            }
            Beginning::Plain => {}
            _ if progress.accesses == 0 => {
                return Phase::new("building the tables of the guest as it was before");
            }
            _ => {}
        }
        // Memory is populated by a store to each page, where it is not the guest's own doing.
        let pages = self.populates.div_ceil(PAGE_BYTES);
        let done = progress.accesses - progress.accesses.min(pages);
        let touched = progress.accesses.min(pages) * PAGE_BYTES;
        let populated = progress.populated.saturating_add(touched).min(self.populates);
        match progress.before {
            None if populated < self.populates || self.populates > 0 && done + self.warmup == 0 => {
                let amount = Amount::Bytes { done: populated, total: Some(self.populates) };
                Phase::of("populating memory", amount)
            }
            None if self.warmup > 0 => {
                let of = Some((done.min(self.warmup), self.warmup));
                Phase::of("warming up", Amount::Accesses { done, of })
            }
            // Nothing says when what is to be looked at begins.
            None if done > 0 => {
                Phase::of("running up to what is looked at", Amount::Accesses { done, of: None })
            }
            before => {
                let counted = progress.accesses - before.unwrap_or(0).min(progress.accesses);
                let of = self.further(progress.position, counted);
                Phase::of(self.what, Amount::Accesses { done: counted, of })
            }
        }
    }

    /// How far of how much: by the source or by the limit, whichever ends it first.
    fn further(&self, position: u64, counted: u64) -> Option<(u64, u64)> {
        let by_source = self.total.filter(|&total| total > 0).map(|total| (position, total));
        let by_limit = (self.limit > 0).then_some((counted, self.limit));
        let product = |a: u64, b: u64| u128::from(a) * u128::from(b);
        match (by_source, by_limit) {
            (Some(s), Some(l)) => Some(if product(s.0, l.1) > product(l.0, s.1) { s } else { l }),
            (of, None) | (None, of) => of,
        }
    }
}

/// Tells the phases of a [`Course`].
pub struct Meter {
    course: Course,
    phases: Phases,
    what: RefCell<Cow<'static, str>>,
}

impl Meter {
    /// Runs an experiment and tells how far it is.
    ///
    /// # Errors
    /// As [`Opened::run`].
    pub fn run(
        experiment: &Experiment,
        opened: Opened,
        quiet: bool,
        stop: &AtomicBool,
    ) -> Result<Session> {
        let meter = Self::new(Course::of(experiment, &opened.info()), quiet);
        opened.run(stop, &mut |progress| meter.show(progress))
    }

    /// Begins to tell it.
    pub fn new(course: Course, quiet: bool) -> Self {
        let meter = Self { course, phases: Phases::new(quiet), what: RefCell::default() };
        meter.show(Progress::default());
        meter
    }

    /// Something that is only read: what is done, and the length of the source.
    pub fn reading(what: &'static str, total: Option<u64>, quiet: bool) -> Self {
        Self::of_read(Course::reading(what, total), quiet)
    }

    /// As [`Meter::reading`], with all that is known of it.
    pub fn of_read(course: Course, quiet: bool) -> Self {
        let meter = Self { course, phases: Phases::new(quiet), what: RefCell::default() };
        meter.show(Progress::read(0, 0));
        meter
    }

    /// Tells how far it is.
    pub fn show(&self, progress: Progress) {
        if self.phases.are_silent() {
            return;
        }
        let phase = self.course.phase(&progress);
        let mut what = self.what.borrow_mut();
        if *what == phase.what {
            self.phases.at(phase.amount);
        } else {
            what.clone_from(&phase.what);
            self.phases.begin(phase);
        }
    }
}
