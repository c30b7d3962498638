//! `measure`: this processor's TLBs and page walks, from time alone.

mod check;
mod rows;

use crate::args::MeasureArgs;
use crate::formats::{self, Found};
use crate::progress::{Amount, Phase, Phases};
use crate::screen::Screen;
use anyhow::{Context, Result};
use nestwalk_hw::Profile;
use nestwalk_measure::estimate::{Curve, Geometry};
use nestwalk_measure::profile::profile;
use nestwalk_measure::survey::{Effort, Survey, survey};
use nestwalk_report::figure::{Axis, Figure, Plot, svg};
use serde_json::Value;
use std::io::Write;
use std::rc::Rc;

/// `nestwalk measure`.
///
/// # Errors
/// The kernel has no memory for it, or a file cannot be written.
pub fn measure(args: &MeasureArgs) -> Result<()> {
    let effort = if args.quick { Effort::Quick } else { Effort::Full };
    if let Some(file) = &args.check {
        return check::check(file, effort, args.format(), args.quiet);
    }
    // Said before minutes of measuring, and not after.
    for (option, file) in [("--svg", &args.svg), ("--write", &args.write)] {
        if let Some(file) = file {
            formats::check_folder(option, file)?;
        }
    }
    let found = Measured { survey: run(effort, args.quiet)? };
    let out = args.format().render(&found)?;
    std::io::stdout().lock().write_all(out.as_bytes())?;
    if let Some(file) = &args.svg {
        formats::write_file("--svg", file, &svg(&found.figure().scene()))?;
    }
    if let Some(file) = &args.write {
        let text = profile_text(&found.survey)?;
        formats::write_file("--write", file, &text)?;
    }
    Ok(())
}

/// The profile of what was measured, as a file that `--profile` takes.
fn profile_text(survey: &Survey) -> Result<String> {
    let written = profile(survey)?;
    let head =
        "# Written by `nestwalk measure`: what it says was measured, all else is its base's.\n";
    let text = head.to_owned() + &toml::to_string(&written)?;
    // What was measured on a strange machine may contradict the base: it is said here, not later.
    Profile::parse("measured", &text).context("what was measured makes no profile")?;
    Ok(text)
}

fn run(effort: Effort, quiet: bool) -> Result<Survey> {
    let phases = Rc::new(Phases::new(quiet));
    let (telling, mut made) = (Rc::clone(&phases), 0);
    let done = move |timings| {
        made += timings;
        telling.at(Amount::Accesses { done: made, of: None });
    };
    let step = |what| phases.begin(Phase::new(what));
    survey(effort, step, Box::new(done)).context("measuring this machine")
}

/// What was measured, to be shown.
struct Measured {
    survey: Survey,
}

impl Measured {
    fn geometries(&self) -> impl Iterator<Item = &Geometry> {
        std::iter::once(&self.survey.small).chain(self.survey.large.get())
    }

    /// Time against pages.
    fn figure(&self) -> Figure {
        let points =
            |curve: &Curve| curve.points.iter().map(|p| (p.pages as f64, p.cycles)).collect();
        let line = |g: &Geometry| (format!("pages of {}", g.pages), points(&g.curve));
        Figure {
            id: "measure".into(),
            title: format!("A load's time against pages: {}", self.survey.processor.name),
            note: "Loads that wait for each other go round pages in a row, all of one frame."
                .into(),
            plot: Plot::Lines {
                x: Axis { doublings: true, ..Axis::new("pages") },
                y: Axis::new("cycles of a load"),
                lines: self.geometries().map(line).collect(),
            },
        }
    }
}

impl Found for Measured {
    fn json(&self) -> Result<Value> {
        Ok(serde_json::to_value(&self.survey)?)
    }

    fn rows(&self) -> Result<Vec<Value>> {
        Ok(rows::rows(&self.survey).iter().map(rows::Row::json).collect())
    }

    fn table(&self, screen: Screen) -> String {
        rows::table(&self.survey, screen)
    }
}
