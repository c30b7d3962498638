//! Runs points, one after the other or several at a time.

use super::point::{self, Point};
use super::store::Store;
use crate::progress::{Amount, Phase, Phases};
use crate::settings;
use crate::signals::stop_on_signals;
use anyhow::{Result, bail};
use nestwalk_lab::{Session, Work};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Failed points that are told in words.
const TOLD: usize = 5;

/// What became of points.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Points that there are.
    pub points: usize,
    /// Of these, done before, or by another process meanwhile.
    pub before: usize,
    /// Run now.
    pub ran: usize,
    /// Another process is at them.
    pub elsewhere: usize,
    /// What went wrong, by their values.
    pub failed: Vec<(String, String)>,
    /// A signal ended it.
    pub interrupted: bool,
}

/// How points are run.
pub struct How {
    /// Points at a time.
    pub jobs: usize,
    /// Threads of each.
    pub threads: usize,
    /// No progress.
    pub quiet: bool,
}

/// Runs those of the points whose results are not there. One that fails does not keep others from it.
///
/// # Errors
/// The folder of the results cannot be written to.
pub fn run(points: &[&Point], store: &Store, how: &How) -> Result<Tally> {
    let missing: Vec<&Point> = points.iter().copied().filter(|point| !store.has(point)).collect();
    let before = points.len() - missing.len();
    let tally = Mutex::new(Tally { points: points.len(), before, ..Tally::default() });
    let (stop, next) = (stop_on_signals(), AtomicUsize::new(0));
    let phases = Phases::new(how.quiet);
    let amount = |done: usize| Amount::Items { done: done as u64, total: points.len() as u64 };
    phases.begin(Phase::of("running points", amount(before)));
    let at_work = || -> Result<()> {
        while let Some(point) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let became = one(point, store, how, &stop)?;
            let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
            match became {
                Became::Done => tally.ran += 1,
                Became::FoundDone => tally.before += 1,
                Became::Elsewhere => tally.elsewhere += 1,
                Became::Failed(_) if stop.load(Ordering::Relaxed) => {}
                Became::Failed(error) => {
                    tally.failed.push((point::words(&point.values), format!("{error:#}")));
                }
            }
            phases.at(amount(tally.before + tally.ran));
        }
        Ok(())
    };
    let ended: Vec<Result<()>> = std::thread::scope(|scope| {
        let workers: Vec<_> =
            (0..how.jobs.min(missing.len())).map(|_| scope.spawn(at_work)).collect();
        workers.into_iter().filter_map(|worker| worker.join().ok()).collect()
    });
    phases.end();
    let mut tally = tally.into_inner().unwrap_or_else(PoisonError::into_inner);
    tally.interrupted = stop.load(Ordering::Relaxed);
    ended.into_iter().collect::<Result<Vec<()>>>()?;
    Ok(tally)
}

/// What became of a point.
enum Became {
    Done,
    /// Another process did it since this one began.
    FoundDone,
    /// Another process is at it.
    Elsewhere,
    Failed(anyhow::Error),
}

/// Runs a point.
///
/// # Errors
/// Its result could not be written: no other could be.
fn one(point: &Point, store: &Store, how: &How, stop: &AtomicBool) -> Result<Became> {
    let Some(claim) = store.claim(point)? else { return Ok(Became::Elsewhere) };
    // Whoever had the claim before may have done it.
    if store.has(point) {
        store.settle(point);
        return Ok(Became::FoundDone);
    }
    match session(point, how, stop) {
        Ok(session) => store.save(point, &claim, &session).map(|()| Became::Done),
        Err(error) => Ok(Became::Failed(error)),
    }
}

fn session(point: &Point, how: &How, stop: &AtomicBool) -> Result<Session> {
    let work = Work { threads: how.threads, series: None };
    let opened = settings::lab().open(&point.experiment, &work, &mut |_| ())?;
    let session = opened.run(stop, &mut |_| ())?.complete()?;
    match &session.info.failed {
        Some(how) => bail!("{how}"),
        None => Ok(session),
    }
}

impl Tally {
    /// Points whose results are there now.
    pub const fn done(&self) -> usize {
        self.before + self.ran
    }

    /// That something is missing, and why.
    ///
    /// # Errors
    /// It is.
    pub fn complete(&self) -> Result<()> {
        let of = format!("{} of {} points are done", self.done(), self.points);
        let again = "the same command goes on with the rest";
        if self.interrupted {
            bail!("interrupted: {of}; {again}");
        }
        if let Some((values, why)) = self.failed.first() {
            let mut text = format!("{of}, {} failed: {values}: {why}", self.failed.len());
            for (values, why) in self.failed.iter().take(TOLD).skip(1) {
                text += &format!("\n  {values}: {why}");
            }
            if self.failed.len() > TOLD {
                text += &format!("\n  and {} more", self.failed.len() - TOLD);
            }
            bail!("{text}");
        }
        if self.elsewhere > 0 {
            bail!("{of}, {} are run by another process; {again}", self.elsewhere);
        }
        Ok(())
    }
}
