//! Experiments as a library: what the command line does, for other programs, and for schemes of their
//! own.
//!
//! ```no_run
//! use nestwalk_lab::{Lab, Settings};
//!
//! # fn main() -> nestwalk_lab::Result<()> {
//! let session = Lab::new().compare(&Settings {
//!     sources: vec!["gups".into()],
//!     machines: "native,shadow,nested".into(),
//!     footprint: Some(1 << 30),
//!     ..Settings::default()
//! })?;
//! for machine in &session.outcome.machines {
//!     println!("{}: {:.1} % above ideal", machine.name, machine.overhead_percent);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! [`Settings`] are what a user asks for, an [`Experiment`] is what it means with nothing left open,
//! [`Opened`] is one whose source is open, and a [`Session`] is what came of it. Each step can be taken
//! alone. [`scheme`] has everything that a scheme of one's own is written with;
//! `examples/own-scheme` in the repository is one.

mod by_name;
mod check;
mod experiment;
mod fleet;
mod guest;
mod merging;
mod migration;
pub mod results;
pub mod sampling;
pub mod scheme;
mod session;
mod settings;
mod sources;
pub mod words;

pub use anyhow::{Error, Result};
pub use by_name::NAMES;
pub use experiment::{Experiment, VERSION};
pub use fleet::{Fleet, VM_KEYS, VmExperiment, VmText, parse_vm};
pub use guest::RealGuest;
pub use merging::{Contents, MERGE_KEYS, MergeExperiment};
pub use migration::{MIGRATION_KEYS, MigrationExperiment};
pub use nestwalk_capture::Step;
pub use nestwalk_fleet::merging::MergingOutcome;
pub use nestwalk_fleet::migration::{Progress as MigrationProgress, Round as MigrationRound};
pub use nestwalk_fleet::{FleetOutcome, FleetProgress};
pub use nestwalk_mm::{Fragmentation, FreeBlocks, PagePolicy};
pub use nestwalk_sim::{
    CompareError, Cut, DaemonTimes, GuestOutcome, MachineResult, Outcome, Progress, Verdict,
};
pub use nestwalk_types::SourceInfo;
pub use session::{Opened, Session, Work};
pub use settings::{PageTablesFile, Settings};
pub use sources::memory::{self, Given};
pub use sources::samples::{LMBENCH, SAMPLES, Sample, by_name as sample};
pub use sources::{Kind, PHASES, kind, trace_format};
/// The hash by which inputs are known.
pub use twox_hash::XxHash64;

use anyhow::Context;
use check::Origin;
use nestwalk_sim::schemes::{Catalogue, Definition};
use std::path::Path;
use std::sync::atomic::AtomicBool;

/// Where experiments are made: the schemes that there are, and how messages are worded.
#[derive(Clone, Debug)]
pub struct Lab {
    catalogue: Catalogue,
    origin: Origin,
    note: fn(&str),
}

impl Default for Lab {
    fn default() -> Self {
        Self::new()
    }
}

impl Lab {
    /// With the schemes that come with nestwalk.
    pub const fn new() -> Self {
        Self { catalogue: Catalogue::new(), origin: Origin::Keys, note: |_| () }
    }

    /// The same with one more scheme, which names of machines may name from now on.
    ///
    /// # Errors
    /// There is a scheme of that name, or it is none that names of machines can have.
    pub fn with_scheme(mut self, scheme: &'static Definition) -> Result<Self> {
        self.catalogue = self.catalogue.with(scheme)?;
        Ok(self)
    }

    /// The same for a command line: messages name what is asked for as an option (`--guest-memory`, and
    /// not `guest_memory`), and `note` gets what a user should know before it runs.
    #[must_use]
    pub const fn for_command_line(mut self, note: fn(&str)) -> Self {
        self.origin = Origin::Arguments;
        self.note = note;
        self
    }

    /// The same with somebody who gets what a user should know before it runs.
    #[must_use]
    pub const fn with_notes(mut self, note: fn(&str)) -> Self {
        self.note = note;
        self
    }

    /// Every scheme, in the order of the catalogue, added ones last.
    pub fn schemes(&self) -> impl Iterator<Item = &'static Definition> {
        self.catalogue.schemes()
    }

    /// The experiment that is asked for.
    ///
    /// # Errors
    /// Something has no meaning, or does not go together with the rest.
    pub fn experiment(&self, settings: &Settings) -> Result<Experiment> {
        settings::resolve(settings, &self.catalogue, self.origin, self.note)
    }

    /// The experiment of a configuration file, as `compare --output` and [`Experiment::to_toml`] make
    /// them.
    ///
    /// # Errors
    /// The file cannot be read, is no experiment, or one of another version.
    pub fn read(&self, path: &Path) -> Result<Experiment> {
        self.read_and_check(path).with_context(|| path.display().to_string())
    }

    fn read_and_check(&self, path: &Path) -> Result<Experiment> {
        let experiment = Experiment::read(path)?;
        self.check(&experiment)?;
        Ok(experiment)
    }

    /// As [`Lab::read`], of the text of a configuration, of which a part may have been set since.
    ///
    /// # Errors
    /// It is no experiment, one of another version, or something in it does not go together.
    pub fn parse(&self, text: &str) -> Result<Experiment> {
        let experiment = Experiment::parse(text)?;
        self.check(&experiment)?;
        Ok(experiment)
    }

    const fn catalogue(&self) -> &Catalogue {
        &self.catalogue
    }

    /// Whether what a configuration says goes together.
    fn check(&self, experiment: &Experiment) -> Result<()> {
        let recorded = match &experiment.guest {
            Some(guest) => Some(guest.info()),
            None => sources::recorded(
                &experiment.sources,
                &experiment.trace_format,
                &experiment.page_tables,
            )?,
        };
        check::experiment(experiment, &self.catalogue, recorded.as_ref(), Origin::Keys)
    }

    /// Opens the source and plans the machines. `say` hears the steps until then: of making a real guest
    /// ready, and of reading what a recorded one maps.
    ///
    /// # Errors
    /// The source cannot be opened, or a name has no meaning.
    pub fn open(
        &self,
        experiment: &Experiment,
        work: &Work,
        say: &mut dyn FnMut(Step<'_>),
    ) -> Result<Opened> {
        self.open_given(experiment, Given::default(), work, say)
    }

    /// The same of an experiment some of whose sources are in memory: `given` has them.
    ///
    /// # Errors
    /// As [`Lab::open`], or one of them is not there.
    pub fn open_given(
        &self,
        experiment: &Experiment,
        given: Given,
        work: &Work,
        say: &mut dyn FnMut(Step<'_>),
    ) -> Result<Opened> {
        session::open(experiment, &self.catalogue, given, work, say)
    }

    /// The same with a source of the caller's own in place of the experiment's: a stream of accesses of
    /// processes. The experiment's sources are only names then; warm-up and accesses hold.
    ///
    /// # Errors
    /// The source is a recorded guest, or a name has no meaning.
    pub fn open_with(
        &self,
        experiment: &Experiment,
        work: &Work,
        source: Box<dyn nestwalk_types::Source>,
    ) -> Result<Opened> {
        session::open_with(experiment, self.catalogue(), work, source)
    }

    /// All of it at once, on all cores: what came of what is asked for, if it came to its end and can be
    /// trusted.
    ///
    /// # Errors
    /// Whatever went wrong.
    pub fn compare(&self, settings: &Settings) -> Result<Session> {
        let opened = self.open(&self.experiment(settings)?, &Work::default(), &mut |_| ())?;
        opened.run(&AtomicBool::new(false), &mut |_| ())?.complete()
    }
}

/// An error and its causes, outermost first. Many errors end with the text of their cause, which is then
/// not said again.
pub fn describe(error: &Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(|c| c.to_string()) {
        let cause = cause.trim_end();
        if !text.ends_with(cause) {
            if !text.is_empty() {
                text += ": ";
            }
            text += cause;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::describe;
    use nestwalk_hw::Profile;

    #[test]
    fn what_an_error_says_of_its_cause_is_not_said_again() {
        let error = anyhow::Error::from(Profile::load("./none.toml").unwrap_err());
        let text = describe(&error.context("--profile"));
        assert_eq!(text.matches("os error 2").count(), 1, "{text}");
        assert!(text.starts_with("--profile: profile ./none.toml: "), "{text}");
        assert_eq!(describe(&anyhow::anyhow!("a").context("b")), "b: a");
    }
}
