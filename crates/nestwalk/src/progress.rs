//! Progress on standard error, with rate and time left, if a person may be looking.

use anyhow::Result;
use indicatif::{HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};
use nestwalk_lab::{Opened, Progress, Session};
use nestwalk_types::SourceInfo;
use std::sync::atomic::AtomicBool;

/// A progress line.
pub struct Meter {
    bar: ProgressBar,
    by_position: bool,
}

impl Meter {
    /// Begins to show progress of a source.
    pub fn new(info: &SourceInfo, quiet: bool) -> Self {
        let bar = info.total.map_or_else(ProgressBar::no_length, ProgressBar::new);
        let target = if quiet {
            ProgressDrawTarget::hidden()
        } else {
            ProgressDrawTarget::stderr_with_hz(5)
        };
        bar.set_draw_target(target);
        let template = if info.total.is_some() {
            "{msg} [{wide_bar}] {percent}%, {eta} left"
        } else {
            "{msg} {spinner}"
        };
        let style =
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.set_style(style);
        Self { bar, by_position: info.total.is_some() }
    }

    /// Runs an experiment and shows how far it is.
    ///
    /// # Errors
    /// As [`Opened::run`].
    pub fn run(opened: Opened, quiet: bool, stop: &AtomicBool) -> Result<Session> {
        let meter = Self::new(&opened.info(), quiet);
        let session = opened.run(stop, &mut |progress| meter.show(progress));
        meter.done();
        session
    }

    /// Shows how far it is.
    pub fn show(&self, progress: Progress) {
        if self.bar.is_hidden() {
            return;
        }
        if self.by_position {
            self.bar.set_position(progress.position);
        } else {
            self.bar.tick();
        }
        let rate = progress.accesses as f64 / self.bar.elapsed().as_secs_f64().max(0.001);
        self.bar.set_message(format!(
            "{} accesses at {:.1} M/s",
            HumanCount(progress.accesses),
            rate / 1e6
        ));
    }

    /// Takes the line away.
    pub fn done(&self) {
        self.bar.finish_and_clear();
    }
}
