//! One pass of an experiment: source and machines are set up, driven to the end, and what came of it is
//! given back.

use crate::experiment::Experiment;
use crate::progress::{Beginning, Course, Meter, Phase, Phases};
use crate::sources;
use anyhow::Result;
use nestwalk_sim::compare::spec::MachineSpec;
use nestwalk_sim::compare::{Outcome, Plan, compare};
use nestwalk_sim::{Cut, GuestOutcome};
use nestwalk_types::{Filter, GuestInfo, Source, SourceInfo};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// How the work is done; nothing here changes a result.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    /// Worker threads.
    pub threads: usize,
    /// No progress is shown.
    pub quiet: bool,
    /// Counters are kept every so many instructions.
    pub series: Option<u64>,
}

/// What came of it.
pub struct Session {
    /// What the source was, with what of all is approximate.
    pub info: SourceInfo,
    /// What was found, whether it came to its end or not.
    pub outcome: Outcome,
}

/// An experiment that is ready to run.
pub struct Opened {
    plan: Plan,
    source: Box<dyn Source>,
    guest: Option<GuestInfo>,
    /// Of what is told while it runs; what the source says of itself is added then.
    course: Course,
    quiet: bool,
}

/// Opens the source and plans the machines.
///
/// # Errors
/// The source cannot be opened, or a name has no meaning.
pub fn open(experiment: &Experiment, work: &Work) -> Result<Opened> {
    let mut plan = experiment.plan(work.threads)?;
    plan.series = work.series;
    let source = sources::open(experiment, work.quiet)?;
    let guest = source.info().guest;
    if let (Some(guest), [path]) = (&guest, experiment.sources.as_slice())
        && experiment.has_modelled_guest()
    {
        let (tables, format) = (&experiment.page_tables, &experiment.trace_format);
        let phases = Phases::new(work.quiet);
        phases.begin(Phase::new("reading what the recorded guest's processes map"));
        plan.mappings = Some(match tables.is_empty() {
            true => sources::survey(path, guest)?,
            false => {
                let format = sources::trace_format(format)?;
                sources::survey_mapped(&experiment.sources, format, tables, guest)?
            }
        });
    }
    let beginning = match (&experiment.guest, &guest) {
        (Some(live), _) if live.interest => Beginning::BootToMark,
        (Some(_), _) => Beginning::Boot,
        (None, Some(_)) => Beginning::Tables,
        (None, None) => Beginning::Plain,
    };
    let (warmup, limit) = (experiment.warmup, experiment.accesses);
    let course = Course { beginning, warmup, limit, ..Course::reading("running", None) };
    Ok(Opened { plan, source, guest, course, quiet: work.quiet })
}

impl Opened {
    /// The machines.
    pub fn machines(&self) -> &[MachineSpec] {
        &self.plan.machines
    }

    /// Every machine that has samples records them, cut so.
    pub fn record_samples(&mut self, cut: Cut) {
        self.plan.samples = Some(cut);
    }

    /// Results tell what the tables say of contiguity at the end, and every so many instructions.
    pub fn look_at_contiguity(&mut self, every: Option<u64>) {
        self.plan.contiguity = true;
        self.plan.contiguity_every = every;
    }

    /// Runs it until its end, or until `stop` is set.
    ///
    /// # Errors
    /// The machines cannot be set up. What goes wrong later is in the outcome.
    pub fn run(mut self, stop: &AtomicBool) -> Result<Session> {
        let info = self.source.info();
        let course = Course { populates: info.populates, total: info.total, ..self.course };
        let meter = Meter::new(course, self.quiet);
        let outcome = compare(&self.plan, self.source.as_mut(), stop, &mut |p| meter.show(p))?;
        drop(meter);
        let mut info = self.source.info();
        drop(self.source);
        info.approximations.extend(approximations(&self.plan, self.guest.as_ref(), &outcome));
        Ok(Session { info, outcome })
    }
}

/// What the results must name beside the source's own approximations.
fn approximations(plan: &Plan, guest: Option<&GuestInfo>, outcome: &Outcome) -> Vec<String> {
    let mut all = Vec::new();
    if let Some(guest) = guest {
        let too_fine = plan.profile.too_fine_for(&guest.filter);
        all.extend(too_fine.iter().map(|t| format!("misses are approximate: {t}")));
        let mut others: Vec<&str> = plan
            .machines
            .iter()
            .filter(|m| m.scheme.flushes_by_itself)
            .map(|m| m.scheme.name)
            .collect();
        others.dedup();
        if guest.filter != Filter::RUNS && !others.is_empty() {
            all.push(format!(
                "misses of {} are slightly too few: what the recording's filter hides after a flush by \
                 the hypervisor does not miss again; record with --no-filter to see it",
                others.join(", ")
            ));
        }
    }
    if let Some(guest) = guest
        && guest.filter != Filter::RUNS
        && let Some(m) = plan.machines.iter().find(|m| m.has_own_l1_sets())
    {
        all.push(format!(
            "misses of {} are approximate: the sets of its TLBs are not those of the recording's filter, \
             which hides accesses that may miss there; record with --no-filter to see them",
            m.scheme.name
        ));
    }
    if plan.host_pages.is_some() {
        for m in &outcome.machines {
            let placed = m.host_placement.as_ref();
            if let Some(p) = placed.filter(|p| p.placed_elsewhere > 0) {
                all.push(format!(
                    "{}: {} pages of the host are not where its page tables have them, since these frames \
                     were not free",
                    m.name, p.placed_elsewhere
                ));
            }
        }
    }
    for (_, guest) in &outcome.guests {
        if let GuestOutcome::Remapped { approximations, .. } = guest {
            all.extend(
                approximations.iter().filter(|a| !all.contains(a)).cloned().collect::<Vec<_>>(),
            );
        }
    }
    all
}

/// A flag that a signal sets. The second signal ends the program at once: a source may be waiting
/// for something that does not come.
pub fn stop_on_signals() -> Arc<AtomicBool> {
    let stop = Arc::new(AtomicBool::new(false));
    let on_signal = Arc::clone(&stop);
    let handler = move || {
        if on_signal.swap(true, Ordering::Relaxed) {
            crate::tell::tell(format_args!("nestwalk: interrupted twice: ended without results"));
            std::process::exit(2);
        }
    };
    if let Err(error) = ctrlc::set_handler(handler) {
        crate::tell::tell(format_args!("nestwalk: an interruption will lose the results: {error}"));
    }
    stop
}
