//! A live VM: its counters, its mode, and samples of it.

use crate::Roots;
use crate::actuator::{Actuator, ActuatorError};
use crate::clock::Clock;
use crate::counters::{PerfEvents, VcpuCounters, sample_of};
use crate::events::CustomEvents;
use crate::governor::{SwitchResult, Vm, VmError};
use crate::kvm::VmDirectory;
use crate::probe::{Missing, Probe, find_actuator, guest_faults, no_directory};
use crate::process::{ProcessError, QemuProcess};
use nestwalk_policy::{Counter, Mode, Sample};
use std::path::PathBuf;
use thiserror::Error;

/// What is wanted of a live VM.
#[derive(Clone, Debug)]
pub struct LiveOptions {
    /// Length of an interval, nanoseconds.
    pub interval_ns: u64,
    /// How long a switch may take until it counts as refused, nanoseconds.
    pub settle_ns: u64,
    /// The file that switches the mode, instead of KVM's `PID-FD/pms`.
    pub pms: Option<PathBuf>,
    /// Nothing is to be switched: the mode may then be fixed.
    pub dry_run: bool,
    /// Counters that the policy cannot do without.
    pub needs: Vec<Counter>,
    /// Events instead of the table's.
    pub custom: CustomEvents,
    /// A file with the number of the guest's page faults since it began, which something in the guest
    /// keeps up to date: a number, or the guest's `/proc/vmstat`.
    pub guest_faults: Option<PathBuf>,
}

/// Why a VM cannot be governed.
#[derive(Debug, Error)]
pub enum OpenError {
    /// It is no VM.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// Things are missing.
    #[error("missing on this host:{}", lines(.0))]
    Missing(Vec<Missing>),
}

fn lines(missing: &[Missing]) -> String {
    missing.iter().map(|m| format!("\n  {m}")).collect()
}

/// A live VM.
pub struct LiveVm {
    process: QemuProcess,
    counters: VcpuCounters,
    /// Whether the counters of all vCPUs ran from the beginning of the interval.
    counting: bool,
    actuator: Box<dyn Actuator>,
    directory: Option<VmDirectory>,
    clock: Box<dyn Clock>,
    options: LiveOptions,
    /// Statistics at the end of the last interval: page faults, exits.
    last: [Option<u64>; 2],
    last_ns: u64,
    next_ns: u64,
    mode: Mode,
}

impl LiveVm {
    /// Looks for all that is needed, and begins to count.
    ///
    /// # Errors
    /// If the process is no VM; or everything that is missing, not only the first.
    pub fn open(
        roots: &Roots,
        pid: u32,
        mut perf: Box<dyn PerfEvents>,
        clock: Box<dyn Clock>,
        options: LiveOptions,
    ) -> Result<(Self, Vec<Missing>), OpenError> {
        let process = QemuProcess::open(&roots.proc, pid)?;
        let mut missing = Vec::new();
        let directory = match VmDirectory::find(&roots.kvm, pid) {
            Ok(directory) => directory,
            Err(error) => {
                missing.push(no_directory(&roots.kvm, &error, &options));
                None
            }
        };
        let found = find_actuator(roots, pid, directory.as_ref(), &options, &mut missing);
        let vcpus = process.vcpus()?;
        let Some(first) = vcpus.first() else { return Err(ProcessError::NoVcpus(pid).into()) };
        let probe = Probe { roots, tid: first.tid, options: &options };
        let wanted = probe.counters(perf.as_mut(), &mut missing);
        probe.statistics(directory.as_ref(), &mut missing);
        let Some((actuator, mode)) = found.filter(|_| !missing.iter().any(|m| m.fatal)) else {
            return Err(OpenError::Missing(missing));
        };

        let counters = VcpuCounters::new(perf, wanted);
        let now = clock.now_ns();
        let next_ns = now.saturating_add(options.interval_ns);
        let mut vm = Self {
            process,
            counters,
            counting: true,
            actuator,
            directory,
            clock,
            options,
            last: [None; 2],
            last_ns: now,
            next_ns,
            mode,
        };
        if let Err(error) = vm.counters.follow(&vcpus) {
            let remedy = "try again: it could be counted a moment ago".to_owned();
            let what = "a counter".to_owned();
            missing.push(Missing { what, why: error.to_string(), remedy, fatal: true });
            return Err(OpenError::Missing(missing));
        }
        vm.last = vm.statistics();
        Ok((vm, missing))
    }

    /// Takes something else to tell and change the mode.
    ///
    /// # Errors
    /// If it cannot tell the mode.
    pub fn with_actuator(mut self, actuator: Box<dyn Actuator>) -> Result<Self, String> {
        self.actuator = actuator;
        self.read_mode()?;
        Ok(self)
    }

    /// The mode when it was last read.
    pub fn last_mode(&self) -> Mode {
        self.mode
    }

    /// vCPUs that it has now.
    pub fn vcpus(&self) -> usize {
        self.process.vcpus().map_or(0, |v| v.len())
    }

    /// What tells and changes the mode.
    pub fn actuator(&self) -> String {
        self.actuator.describe()
    }

    /// Page faults and exits since the VM began, as far as somebody counts them.
    fn statistics(&self) -> [Option<u64>; 2] {
        let statistic = |name: &str| self.directory.as_ref()?.statistic(name).ok()?;
        let faults = match &self.options.guest_faults {
            Some(path) => guest_faults(path).ok(),
            // KVM sees a guest's own faults only if it shadows the guest's tables.
            None if self.mode == Mode::Shadow => statistic("pf_guest"),
            None => None,
        };
        let paging = ["pf_fixed", "pf_guest", "invlpg"].map(statistic);
        let exits = match paging {
            [Some(fixed), guest, invlpg] => Some(fixed + guest.unwrap_or(0) + invlpg.unwrap_or(0)),
            _ => statistic("exits"),
        };
        [faults, exits]
    }

    fn read_mode(&mut self) -> Result<Mode, String> {
        self.mode = self.actuator.mode().map_err(|e| e.to_string())?;
        Ok(self.mode)
    }

    /// Reads the mode until it is `to` or the time for it is over.
    fn settle(&mut self, to: Mode) -> SwitchResult {
        const STEP: u64 = 10_000_000;
        let deadline = self.clock.now_ns().saturating_add(self.options.settle_ns);
        loop {
            let mode = self.read_mode();
            if mode == Ok(to) {
                return SwitchResult::Done;
            }
            let now = self.clock.now_ns();
            let waited = now < deadline && self.clock.wait_until(now.saturating_add(STEP));
            if waited {
                continue;
            }
            return match self.read_mode() {
                Ok(mode) if mode == to => SwitchResult::Done,
                Ok(mode) => SwitchResult::Refused(format!(
                    "{} accepted it and still says {mode}",
                    self.actuator.describe()
                )),
                Err(why) => SwitchResult::Unknown(why),
            };
        }
    }
}

impl Vm for LiveVm {
    fn next(&mut self) -> Result<Sample, VmError> {
        if !self.clock.wait_until(self.next_ns) {
            return Err(VmError::Interrupted);
        }
        let now = self.clock.now_ns();
        let step = self.options.interval_ns;
        // An interval that was missed is not made up for.
        self.next_ns = self.next_ns.saturating_add(step).max(now.saturating_add(step / 2));
        let duration = now.saturating_sub(self.last_ns);
        self.last_ns = now;
        if !self.process.alive() {
            return Err(VmError::Gone);
        }
        let totals = self.counters.interval();
        let vcpus = self.process.vcpus().map_err(|e| VmError::Interval(e.to_string()))?;
        if vcpus.is_empty() {
            return Err(VmError::Gone);
        }
        let followed = self.counters.follow(&vcpus);
        let counted = std::mem::replace(&mut self.counting, followed.is_ok());
        let mode = match self.actuator.mode() {
            Ok(mode) => mode,
            Err(ActuatorError::Gone(_)) if !self.process.alive() => return Err(VmError::Gone),
            Err(error) => return Err(VmError::ModeUnknown(error.to_string())),
        };
        self.mode = mode;
        let statistics = self.statistics();
        let last = std::mem::replace(&mut self.last, statistics);
        let totals = totals.map_err(|e| VmError::Interval(e.to_string()))?;
        followed.map_err(|e| VmError::Interval(e.to_string()))?;
        if !counted {
            return Err(VmError::Interval("counters began anew in this interval".into()));
        }

        let mut sample = sample_of(&totals, now, duration, mode);
        let grown = |i: usize| Some(statistics[i]?.saturating_sub(last[i]?));
        sample.guest_page_faults = grown(0);
        sample.vm_exits = grown(1);
        if let (None, Some(cycles), Some(walks)) =
            (sample.walk_cycles, self.options.custom.cycles_per_walk, sample.tlb_misses)
        {
            sample.walk_cycles = Some(walks.saturating_mul(cycles.into()));
        }
        Ok(sample)
    }

    fn mode(&mut self) -> Result<Mode, String> {
        self.read_mode()
    }

    fn switch(&mut self, to: Mode) -> SwitchResult {
        match self.actuator.switch(to) {
            Ok(()) => self.settle(to),
            Err(error) => match self.read_mode() {
                Ok(mode) if mode == to => SwitchResult::Done,
                Ok(_) => SwitchResult::Refused(error.to_string()),
                Err(why) => SwitchResult::Unknown(format!("{error}; {why}")),
            },
        }
    }
}
