//! What came of a comparison, for whoever shows it: JSON, rows of a table with fixed columns, and a
//! verdict. The command line and the Python package make theirs here.

pub mod baseline;
pub mod fields;
pub mod long;
pub mod outcome;
pub mod repeats;
pub mod verdict;

use crate::{Experiment, Kind, MachineResult, Outcome, Session, VERSION, kind};
use anyhow::Result;
use baseline::Baseline;
use nestwalk_types::SourceInfo;
use repeats::Repeats;
use serde_json::{Map, Value, json};
use verdict::{About, Verdict};

/// Version of the format of results. It grows if a field goes or means something else, and not if one is
/// new: docs/formats.md.
pub const FORMAT: u64 = 1;

/// `a` of each `b`; 0 if there is no `b`.
pub fn ratio(a: u64, b: u64) -> f64 {
    if b == 0 { 0.0 } else { a as f64 / b as f64 }
}

/// Cycles of a machine above the ideal one with the same guest that are not the hypervisor's.
pub fn translation_cycles(m: &MachineResult) -> f64 {
    m.total_cycles - m.vmm_cycles - m.ideal_cycles
}

/// A comparison that has run.
#[derive(Clone, Copy)]
pub struct Compared<'a> {
    /// What was asked for.
    pub experiment: &'a Experiment,
    /// What the source was.
    pub info: &'a SourceInfo,
    /// What was found.
    pub outcome: &'a Outcome,
    /// To what run times are relative.
    pub base: Option<Baseline<'a>>,
    /// The same with other seeds.
    pub repeats: Option<&'a Repeats>,
}

impl<'a> Compared<'a> {
    /// Of one seed.
    pub fn new(experiment: &'a Experiment, session: &'a Session) -> Self {
        let Session { info, outcome } = session;
        Self { experiment, info, outcome, base: Baseline::of(&outcome.machines), repeats: None }
    }

    /// What follows from the counts; none if there is nothing to decide between.
    pub fn verdict(&self) -> Option<Verdict> {
        let kinds = self.experiment.sources.iter().filter_map(|s| kind(s));
        let about = About {
            base: self.base?,
            machines: &self.outcome.machines,
            repeats: self.repeats,
            random: kinds.into_iter().any(|k| matches!(k, Kind::Workload | Kind::Pattern)),
        };
        about.verdict()
    }

    /// All of it, as documented in [`fields::RESULTS`] and `nestwalk_sim::FIELDS`.
    ///
    /// # Errors
    /// A machine cannot be written as JSON.
    pub fn json(&self) -> Result<Value> {
        let profile = &self.experiment.profile;
        let guests = self.outcome.guests.iter();
        let guests: Map<String, Value> =
            guests.map(|(name, g)| (name.clone(), outcome::json(g, profile))).collect();
        let mut all = json!({
            "format_version": FORMAT,
            "version": VERSION,
            "source": self.info.name,
            "description": self.info.description,
            "approximations": self.info.approximations,
            "profile": self.experiment.profile.name,
            "complete": self.outcome.error.is_none(),
            "error": self.outcome.error.as_ref().map(ToString::to_string),
            "guests": guests,
            "machines": serde_json::to_value(&self.outcome.machines)?,
            "verdict": self.verdict().map(|v| v.json()),
        });
        if let Some(repeats) = self.repeats {
            all["repeats"] = repeats.json();
        }
        if let Some(sampling) = crate::sampling::json(self.outcome) {
            all["sampling"] = sampling;
        }
        Ok(all)
    }
}
