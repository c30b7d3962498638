//! Live migration of a VM to a host of its own, as QEMU and KVM do it.
//!
//! *Pre-copy*: all pages are sent, then those that were stored to while the last round was sent, until
//! what is left fits the down time at the link's bandwidth (QEMU, `migration_iteration_run`; it looks
//! as soon as less than that is left to send, here a round is sent to its end). *Post-copy*: the VM goes
//! on at once on the other host.
//!
//! Time is the VM's own, and that of the VMs that have its cores between its turns, by the costs of
//! their machines. A page's contents are those at the end of the round before, when it was found dirty:
//! a store while it waits to be sent makes it dirty again. What waits on the swap device is sent, too.

mod contents;
mod plan;

use super::stage::{Stage, tenant};
use contents::Contents;
use nestwalk_hw::Profile;
use nestwalk_sim::machine::DynMachine;
use nestwalk_sim::machine::referee::Verdict;
use nestwalk_sim::measure::cost::Cycles;
use nestwalk_sim::measure::counters::{Counters, ExitReason};
use nestwalk_sim::scheme::MachineError;
use nestwalk_types::{Address, Gpa, GuestBatch};
pub use plan::{
    LATENCY_NS, LINK_BITS, MAX_DOWNTIME_NS, MAX_ROUNDS, MigrationOutcome, MigrationPlan, Mode,
    PAGE_BYTES, Progress, Round,
};
use std::collections::BTreeSet;

/// Where a migration is.
enum State {
    Waiting,
    /// A round is being sent until then; it began with these counters.
    Copying {
        began_ns: f64,
        round_ends_ns: f64,
        at_first: Box<Counters>,
        contents: Contents,
    },
    /// The VM runs on the other host, and these pages are not there yet.
    Fetching {
        began_ns: f64,
        sent_until_ns: f64,
        missing: BTreeSet<u64>,
    },
    Over,
}

/// One migration.
struct Migration {
    plan: MigrationPlan,
    vm: usize,
    /// The machine on the other host, until the VM has moved.
    spare: Option<Box<dyn DynMachine>>,
    state: State,
    outcome: MigrationOutcome,
    /// What the referee had found on the first host.
    verdict: Option<Verdict>,
}

/// The migrations of a stage, and its time.
pub(super) struct Migrations {
    all: Vec<Migration>,
    profile: Profile,
    /// By core, how long it has run, in nanoseconds.
    cores: Vec<f64>,
    /// By VM, cycles that the clock has gone on by.
    cycles: Vec<f64>,
    /// By VM, its time on its own host.
    away: Vec<f64>,
    counting: bool,
}

impl Migrations {
    pub(super) fn new(
        all: Vec<(MigrationPlan, usize, Box<dyn DynMachine>)>,
        profile: &Profile,
        (vms, cores): (usize, usize),
    ) -> Self {
        let migration =
            |(plan, vm, spare): (MigrationPlan, usize, Box<dyn DynMachine>)| Migration {
                outcome: MigrationOutcome {
                    mode: plan.mode.name(),
                    tracking: if plan.mode == Mode::PreCopy { plan.tracking.name() } else { "" },
                    ..MigrationOutcome::default()
                },
                plan,
                vm,
                spare: Some(spare),
                state: State::Waiting,
                verdict: None,
            };
        Self {
            all: all.into_iter().map(migration).collect(),
            profile: profile.clone(),
            cores: vec![0.0; cores],
            cycles: vec![0.0; vms],
            away: vec![0.0; vms],
            counting: false,
        }
    }

    /// What came of the VM's, if it has one.
    pub(super) fn outcome(&self, vm: usize) -> Option<MigrationOutcome> {
        let migration = self.all.iter().find(|m| m.vm == vm)?;
        let mut outcome = migration.outcome.clone();
        if !matches!(migration.state, State::Waiting | State::Over) {
            outcome.progress = Progress::Unfinished;
        }
        Some(outcome)
    }

    /// What the referee has found of it on the host that it has left.
    pub(super) fn verdict(&self, vm: usize) -> Option<&Verdict> {
        self.all.iter().find(|m| m.vm == vm)?.verdict.as_ref()
    }

    /// The VM's time goes on by what it has done. Returns the time, in nanoseconds.
    fn tick(&mut self, stage: &Stage, vm: usize) -> f64 {
        let now = Cycles::of(stage.machines[vm].counters(), &self.profile).total();
        let place = stage.places[vm];
        let clock = self.profile.core.clock().of_all(place.vcpus as f64);
        let ns = clock.ns((now - self.cycles[vm]).max(0.0));
        self.cycles[vm] = now;
        if stage.departed[vm] {
            self.away[vm] += ns;
            return self.away[vm];
        }
        let cores = &mut self.cores[stage.places[vm].cores()];
        let now = cores.iter().copied().fold(0.0, f64::max) + ns;
        cores.fill(now);
        now
    }

    fn counting_begins(&mut self, stage: &Stage) {
        self.counting = true;
        for (vm, machine) in stage.machines.iter().enumerate() {
            self.cycles[vm] = Cycles::of(machine.counters(), &self.profile).total();
        }
    }

    /// The VM has run a slice.
    fn ran(
        &mut self,
        stage: &mut Stage,
        vm: usize,
        slice: &GuestBatch,
    ) -> Result<(), MachineError> {
        if !self.counting {
            return Ok(());
        }
        let Some(which) = self.all.iter().position(|m| m.vm == vm) else { return Ok(()) };
        if matches!(self.all[which].state, State::Over) {
            return Ok(());
        }
        let now = self.tick(stage, vm);
        let was_away = stage.departed[vm];
        let waited = self.all[which].ran(stage, slice, now)?;
        if stage.departed[vm] && !was_away {
            self.away[vm] = now;
        }
        // Others have the cores while it stands still.
        if stage.departed[vm] {
            self.away[vm] += waited;
        }
        Ok(())
    }
}

impl Migration {
    /// The VM has run a slice, and the time is `now`. Returns for how long it stands still.
    fn ran(
        &mut self,
        stage: &mut Stage,
        slice: &GuestBatch,
        now: f64,
    ) -> Result<f64, MachineError> {
        let instructions = stage.machines[self.vm].counters().instructions;
        match &mut self.state {
            State::Waiting if instructions >= self.plan.at => match self.plan.mode {
                Mode::PreCopy => self.begin(stage, now).map(|()| 0.0),
                Mode::PostCopy => self.post_copy(stage, now),
            },
            State::Waiting | State::Over => Ok(0.0),
            State::Copying { contents, round_ends_ns, .. } => {
                contents.ran(slice);
                if self.plan.cancel.is_some_and(|at| instructions >= at) {
                    return self.cancel(stage).map(|()| 0.0);
                }
                if now < *round_ends_ns {
                    return Ok(0.0);
                }
                self.round_ends(stage, now)
            }
            State::Fetching { .. } => self.fetch(stage, now),
        }
    }

    /// Logging begins, and the first round: all pages.
    fn begin(&mut self, stage: &mut Stage, now: f64) -> Result<(), MachineError> {
        let at_first = Box::new(stage.machines[self.vm].counters().clone());
        tenant(&mut stage.machines[self.vm])?.log_stores(Some(self.plan.tracking))?;
        stage.lost(self.vm);
        let pages = self.pages(stage)?;
        let round_ends_ns = now + self.send(pages.len() as u64);
        let contents = Contents::default();
        self.state = State::Copying { began_ns: now, round_ends_ns, at_first, contents };
        Ok(())
    }

    /// Numbers of the VM's pages, in memory and on the swap device.
    fn pages(&self, stage: &mut Stage) -> Result<Vec<u64>, MachineError> {
        let mut pages = BTreeSet::new();
        if let Some(host) = tenant(&mut stage.machines[self.vm])?.host() {
            host.each_page(&mut |gpa, _, bytes| {
                pages.extend(gpa.page_number()..gpa.page_number() + (bytes >> 12));
            });
        }
        if let Some(memory) = stage.host.as_ref().and_then(|h| h.memory.as_ref()) {
            pages.extend(memory.pages_away(self.vm));
        }
        Ok(pages.into_iter().collect())
    }

    /// A round of so many pages. Returns how long it takes.
    fn send(&mut self, pages: u64) -> f64 {
        let ns = self.plan.latency_ns + self.plan.sending_ns(pages);
        self.outcome.rounds.push(Round { pages, ns });
        self.outcome.pages_sent += pages;
        self.outcome.bytes_sent += pages * PAGE_BYTES;
        ns
    }

    /// A round was sent: what was stored to meanwhile is sent next, in one more round or while the VM
    /// stands still.
    fn round_ends(&mut self, stage: &mut Stage, now: f64) -> Result<f64, MachineError> {
        let dirty = tenant(&mut stage.machines[self.vm])?.take_dirty();
        stage.lost(self.vm);
        let pages = dirty.len() as u64;
        let fits = self.plan.latency_ns + self.plan.sending_ns(pages) <= self.plan.max_downtime_ns;
        let last = fits || self.outcome.rounds.len() as u32 >= self.plan.max_rounds;
        let ns = self.send(pages);
        let State::Copying { began_ns, round_ends_ns, at_first, contents } = &mut self.state else {
            return Ok(0.0);
        };
        contents.sent(&dirty);
        *round_ends_ns = now + ns;
        if !last {
            return Ok(0.0);
        }
        self.outcome.total_ns = now + ns - *began_ns;
        self.outcome.down_ns = ns;
        self.outcome.converged = fits;
        self.outcome.lost_pages = contents.lost();
        self.outcome.progress = Progress::Completed;
        let since = stage.machines[self.vm].counters().since(at_first);
        self.outcome.logged(&since);
        let all = self.pages(stage)?;
        self.depart(stage, |host| {
            // The pages are there already; tables and TLBs know none of them.
            all.iter().try_for_each(|page| host.ensure(Gpa::new(page << 12)).map(|_| ()))
        })?;
        self.state = State::Over;
        Ok(ns)
    }

    /// The VM stays. Its large pages are mapped as such again.
    fn cancel(&mut self, stage: &mut Stage) -> Result<(), MachineError> {
        tenant(&mut stage.machines[self.vm])?.log_stores(None)?;
        stage.lost(self.vm);
        if let State::Copying { at_first, .. } = &self.state {
            let since = stage.machines[self.vm].counters().since(at_first);
            self.outcome.logged(&since);
        }
        self.outcome.progress = Progress::Cancelled;
        self.state = State::Over;
        Ok(())
    }

    /// The VM goes on on the other host, where nothing is yet.
    fn post_copy(&mut self, stage: &mut Stage, now: f64) -> Result<f64, MachineError> {
        let missing: BTreeSet<u64> = self.pages(stage)?.into_iter().collect();
        self.depart(stage, |host| {
            host.hear_touches();
            Ok(())
        })?;
        self.outcome.down_ns = self.plan.latency_ns;
        let sent_until_ns = now + self.plan.latency_ns;
        self.state = State::Fetching { began_ns: now, sent_until_ns, missing };
        Ok(self.plan.latency_ns)
    }

    /// What the VM has touched was fetched for it; all else comes in order. Returns how long it waited.
    fn fetch(&mut self, stage: &mut Stage, now: f64) -> Result<f64, MachineError> {
        let mut there = tenant(&mut stage.machines[self.vm])?;
        let touched = there.host().map_or(Vec::new(), |host| host.take_touched());
        let State::Fetching { began_ns, sent_until_ns, missing } = &mut self.state else {
            return Ok(0.0);
        };
        let page_ns = self.plan.sending_ns(1);
        let mut waited = 0.0;
        for (at, size) in touched {
            let first = at.page_number();
            let pages = (first..first + size.base_pages()).filter(|p| missing.remove(p)).count();
            if pages > 0 {
                waited += self.plan.latency_ns + self.plan.sending_ns(pages as u64);
                // The link carries these in the place of others.
                *sent_until_ns += self.plan.sending_ns(pages as u64);
                self.outcome.network_faults += 1;
                self.outcome.pages_sent += pages as u64;
            }
        }
        while *sent_until_ns + page_ns <= now + waited && missing.pop_first().is_some() {
            *sent_until_ns += page_ns;
            self.outcome.pages_sent += 1;
        }
        self.outcome.waited_ns += waited;
        self.outcome.bytes_sent = self.outcome.pages_sent * PAGE_BYTES;
        self.outcome.total_ns = (now + waited).max(*sent_until_ns) - *began_ns;
        if missing.is_empty() {
            self.outcome.total_ns = *sent_until_ns - *began_ns;
            self.outcome.progress = Progress::Completed;
            self.state = State::Over;
        }
        Ok(waited)
    }

    /// The VM leaves its host for one of its own, whose memory is made ready by `prepare`.
    fn depart(
        &mut self,
        stage: &mut Stage,
        prepare: impl FnOnce(&mut nestwalk_mm::HostMemory) -> Result<(), nestwalk_mm::MmError>,
    ) -> Result<(), MachineError> {
        let Some(mut other) = self.spare.take() else { return Ok(()) };
        self.verdict = stage.machines[self.vm].verdict();
        let mut here = tenant(&mut stage.machines[self.vm])?;
        let life = here.take_life();
        if let Some(host) = here.host() {
            host.leave()?;
        }
        let mut there = tenant(&mut other)?;
        if let Some(host) = there.host() {
            prepare(host)?;
        }
        there.give_life(life)?;
        stage.departs(self.vm, other)
    }
}

impl MigrationOutcome {
    fn logged(&mut self, since: &Counters) {
        self.write_protected = since.exits[ExitReason::WriteProtected as usize];
        self.pml_full = since.exits[ExitReason::PmlFull as usize];
    }
}

impl Stage {
    /// A slice has run on the VM: its migration goes on, if it has one.
    pub(super) fn migrate(&mut self, vm: usize, slice: &GuestBatch) -> Result<(), MachineError> {
        self.with_migrations(|all, stage| all.ran(stage, vm, slice)).unwrap_or(Ok(()))
    }

    /// The time goes on by what the VM has done in its turn.
    pub(super) fn turn_took(&mut self, vm: usize) {
        self.with_migrations(|all, stage| {
            if all.counting {
                all.tick(stage, vm);
            }
        });
    }

    pub(super) fn migrations_count(&mut self) {
        self.with_migrations(|all, stage| all.counting_begins(stage));
    }

    fn with_migrations<R>(
        &mut self,
        act: impl FnOnce(&mut Migrations, &mut Self) -> R,
    ) -> Option<R> {
        let mut all = self.migrations.take()?;
        let done = act(&mut all, self);
        self.migrations = Some(all);
        Some(done)
    }
}
