//! One pass of an experiment: source and machines are set up, driven to the end, and what came of it is
//! given back.

use crate::experiment::{Experiment, in_memory};
use crate::sources::memory::Given;
use crate::{sampling, sources, words};
use anyhow::{Result, anyhow, bail};
use nestwalk_capture::Step;
use nestwalk_mm::{HostPages, PagePolicy};
use nestwalk_report::count;
use nestwalk_sim::compare::spec::MachineSpec;
use nestwalk_sim::compare::{CompareError, Outcome, Plan, Progress, compare};
use nestwalk_sim::schemes::Catalogue;
use nestwalk_sim::{Cut, GuestOutcome};
use nestwalk_types::{Filter, GuestInfo, Source, SourceInfo};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// How the work is done; nothing here changes a result.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    /// Worker threads.
    pub threads: usize,
    /// Counters are kept every so many instructions.
    pub series: Option<u64>,
}

impl Default for Work {
    /// A thread for each core.
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Self { threads, series: None }
    }
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
}

/// Opens the source and plans the machines. `say` hears the steps until then.
///
/// # Errors
/// The source cannot be opened, or a name has no meaning.
pub fn open(
    experiment: &Experiment,
    catalogue: &Catalogue,
    given: Given,
    work: &Work,
    say: &mut dyn FnMut(Step<'_>),
) -> Result<Opened> {
    let mut plan = plan(experiment, catalogue, work.threads)?;
    plan.series = work.series;
    let source = sources::open(experiment, given, say)?;
    let guest = source.info().guest;
    if let (Some(guest), [path]) = (&guest, experiment.sources.as_slice())
        && experiment.has_modelled_guest(catalogue)
    {
        let (tables, format) = (&experiment.page_tables, &experiment.trace_format);
        say(Step::Begins("reading what the recorded guest's processes map"));
        plan.mappings = Some(match tables.is_empty() {
            true => sources::survey(path, guest)?,
            false => {
                let format = sources::trace_format(format)?;
                sources::survey_mapped(&experiment.sources, format, tables, guest)?
            }
        });
    }
    Ok(Opened { plan, source, guest })
}

/// The same with a source of the caller's in place of the experiment's, which speaks of processes.
///
/// # Errors
/// A name has no meaning, or the source is a recorded guest.
pub fn open_with(
    experiment: &Experiment,
    catalogue: &Catalogue,
    work: &Work,
    source: Box<dyn Source>,
) -> Result<Opened> {
    let info = source.info();
    if info.guest.is_some() {
        bail!("{}: a recorded guest; this takes sources that speak of processes", info.name);
    }
    let mut plan = plan(experiment, catalogue, work.threads)?;
    plan.series = work.series;
    Ok(Opened { plan, source: sources::cut(source, experiment), guest: None })
}

/// The machines and their memory.
fn plan(experiment: &Experiment, catalogue: &Catalogue, threads: usize) -> Result<Plan> {
    let e = experiment;
    let machines = e.machines.iter().map(|m| MachineSpec::parse_in(catalogue, m, PagePolicy::Base));
    Ok(Plan {
        machines: machines.collect::<Result<_, _>>()?,
        profile: e.profile.clone(),
        guest_mode: words::mode("guest_paging", &e.guest_paging)?,
        host_mode: words::host_mode("host_paging", &e.host_paging)?,
        vcpus: usize::from(e.vcpus),
        guest_bytes: e.guest_memory,
        host_bytes: e.host_memory,
        low_bytes: e.low_memory,
        guest_swap: e.guest_swap.as_deref().map(words::replacement).transpose()?,
        bad_frames: e.bad_frames()?,
        fragmentation: (
            in_memory(e.guest_fragmentation, &e.guest_free_blocks)?,
            in_memory(e.host_fragmentation, &e.host_free_blocks)?,
        ),
        daemons: e.daemons,
        pcids: e.pcids,
        seed: e.seed,
        verify: e.verify,
        threads,
        mappings: None,
        host_pages: host_pages(e)?,
        series: None,
        contiguity: false,
        contiguity_every: None,
        walk_map: false,
        samples: None,
        sampling: sampling::parse("sample", &e.sample, e.seed)?,
    })
}

/// Where hosts have guest memory, if page tables say it.
fn host_pages(experiment: &Experiment) -> Result<Option<Arc<HostPages>>> {
    let (guest, host) = (&experiment.page_tables, &experiment.host_page_tables);
    match (guest.as_str(), host.as_str()) {
        (_, "") => Ok(None),
        ("", _) => bail!("host_page_tables {host}: is for a trace with page_tables"),
        _ => sources::host_pages(guest, host).map(Some),
    }
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

    /// The plan and the source, for whoever drives several.
    pub(crate) fn into_parts(self) -> (Plan, Box<dyn Source>) {
        (self.plan, self.source)
    }

    /// Results tell which references of walks were served where, by what they read.
    pub fn map_walks(&mut self) {
        self.plan.walk_map = true;
    }

    /// What the source is, as far as it is known now.
    pub fn info(&self) -> SourceInfo {
        self.source.info()
    }

    /// Runs it until its end, or until `stop` is set. `progress` hears now and then how far it is.
    ///
    /// # Errors
    /// The machines cannot be set up. What goes wrong later is in the outcome.
    pub fn run(mut self, stop: &AtomicBool, progress: &mut dyn FnMut(Progress)) -> Result<Session> {
        let outcome = compare(&self.plan, self.source.as_mut(), stop, progress)?;
        let mut info = self.source.info();
        drop(self.source);
        info.approximations.extend(approximations(&self.plan, self.guest.as_ref(), &outcome));
        Ok(Session { info, outcome })
    }
}

impl Session {
    /// The same, if it came to its end and its results can be trusted.
    ///
    /// # Errors
    /// It ended early, the referee found violations, or the source made no access.
    pub fn complete(self) -> Result<Self> {
        match self.ended() {
            Some(error) => Err(error),
            None => Ok(self),
        }
    }

    /// Why the results are not those of all that was asked for, or cannot be trusted; `None` if neither
    /// is so.
    pub fn ended(&self) -> Option<anyhow::Error> {
        let machines = &self.outcome.machines;
        let counted = machines.first().map_or(0, |m| m.accesses);
        let verdicts = || machines.iter().filter_map(|m| m.referee.as_ref());
        let violations: u64 = verdicts().map(|v| v.violations).sum();
        let first = verdicts().flat_map(|v| &v.told).next().cloned().unwrap_or_default();
        let kept = || format!("the results are those of the first {} accesses", count(counted));
        match &self.outcome.error {
            Some(CompareError::Interrupted) => Some(anyhow!("interrupted: {}", kept())),
            Some(error) => Some(anyhow!("{error}").context(format!("ended early; {}", kept()))),
            None if violations > 0 => Some(anyhow!(
                "the referee found {violations} violations: the results cannot be trusted; the first is: \
                 {first}"
            )),
            None if counted == 0 => {
                Some(anyhow!("the source made no access: there is nothing to compare"))
            }
            None => None,
        }
    }
}

/// What the results must name beside the source's own approximations.
fn approximations(plan: &Plan, guest: Option<&GuestInfo>, outcome: &Outcome) -> Vec<String> {
    let mut all: Vec<String> = outcome.sampled.iter().map(sampling::approximation).collect();
    if let Some(guest) = guest {
        let too_fine = plan.profile.too_fine_for(&guest.filter);
        all.extend(too_fine.iter().map(|t| format!("misses are approximate: {t}")));
        let mut others: Vec<&str> = plan
            .machines
            .iter()
            .filter(|m| m.scheme.facts.flushes_by_itself)
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
