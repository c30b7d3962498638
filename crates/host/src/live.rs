//! A live VM: what must be there, what is missing and what to do about it, and the samples.

use crate::Roots;
use crate::actuator::{Actuator, ActuatorError, ModuleParameter, PmsFile};
use crate::clock::Clock;
use crate::counters::{PerfEvents, Role, VcpuCounters, Wanted, sample_of};
use crate::cpu::Cpu;
use crate::events::{CustomEvents, Microarchitecture, events_of};
use crate::governor::{SwitchResult, Vm, VmError};
use crate::kvm::VmDirectory;
use crate::process::{ProcessError, QemuProcess};
use nestwalk_policy::{Counter, Mode, Sample};
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
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

/// Something that is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// What.
    pub what: String,
    /// Why.
    pub why: String,
    /// What to do.
    pub remedy: String,
    /// Whether nothing goes without it.
    pub fatal: bool,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.what, self.why, self.remedy)
    }
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

/// A number, or the line `pgfault N` of `/proc/vmstat`.
fn guest_faults(path: &Path) -> io::Result<u64> {
    let text = fs::read_to_string(path)?;
    let line = text.lines().find_map(|l| l.strip_prefix("pgfault ")).unwrap_or(&text);
    line.trim().parse().map_err(|_| {
        let text = "neither a number nor a line `pgfault N`";
        io::Error::new(io::ErrorKind::InvalidData, text)
    })
}

fn no_directory(kvm: &Path, error: &io::Error, options: &LiveOptions) -> Missing {
    let remedy = match error.kind() {
        io::ErrorKind::PermissionDenied => "run as root: debugfs is root's",
        io::ErrorKind::NotFound => {
            "mount debugfs (mount -t debugfs none /sys/kernel/debug) and load kvm"
        }
        _ => "see whether debugfs is mounted and readable",
    };
    Missing {
        what: "KVM's statistics".into(),
        why: format!("{}: {error}", kvm.display()),
        remedy: remedy.into(),
        fatal: options.pms.is_none() && !options.dry_run,
    }
}

/// The file that switches the mode; where only advice is wanted, what tells it.
fn find_actuator(
    roots: &Roots,
    pid: u32,
    directory: Option<&VmDirectory>,
    options: &LiveOptions,
    missing: &mut Vec<Missing>,
) -> Option<(Box<dyn Actuator>, Mode)> {
    let path = options.pms.clone().or_else(|| directory.map(|d| d.file("pms")));
    let there = path.as_ref().is_some_and(|p| p.exists());
    let mut actuator: Box<dyn Actuator> = match path.filter(|_| there) {
        Some(path) => Box::new(PmsFile::new(path)),
        None => {
            let looked = match (&options.pms, directory) {
                (Some(path), _) => format!("{} does not exist", path.display()),
                (None, Some(d)) => format!("{} does not exist", d.file("pms").display()),
                (None, None) => format!("no {}/{pid}-* there", roots.kvm.display()),
            };
            let module = ModuleParameter::find(&roots.sys);
            missing.push(Missing {
                what: "the file that switches the VM's paging mode".into(),
                why: looked,
                remedy: if options.dry_run && module.is_some() {
                    "advice only, with the mode of KVM's module parameter"
                } else {
                    "it takes a kernel with the patch of Runtime-aware Paging Mode Switching \
                     (Linux 4.19.67, github.com/imarmanis/ntua-rpms); name another file with --pms, \
                     or take advice only with --dry-run"
                }
                .into(),
                fatal: !options.dry_run || module.is_none(),
            });
            Box::new(module?)
        }
    };
    match actuator.mode() {
        Ok(mode) => Some((actuator, mode)),
        Err(error) => {
            missing.push(Missing {
                what: "the VM's paging mode".into(),
                why: error.to_string(),
                remedy: "without it nothing can be decided".into(),
                fatal: true,
            });
            None
        }
    }
}

/// Tries what the host can count.
struct Probe<'a> {
    roots: &'a Roots,
    tid: u32,
    options: &'a LiveOptions,
}

impl Probe<'_> {
    fn needs(&self, counter: Counter) -> bool {
        self.options.needs.contains(&counter)
    }

    /// The counters that can be opened.
    fn counters(&self, perf: &mut dyn PerfEvents, missing: &mut Vec<Missing>) -> Vec<Wanted> {
        let cpu = Cpu::read(&self.roots.proc);
        let row = cpu.as_ref().ok().and_then(events_of);
        let virtual_machine = cpu.as_ref().is_ok_and(|c| c.virtual_machine);
        let generic = [
            Role::Busy,
            Role::Instructions,
            Role::GuestCycles,
            Role::HostKernelCycles,
            Role::HostUserCycles,
        ];
        let mut wanted: Vec<(Wanted, bool)> =
            generic.map(|role| (Wanted::generic(role), true)).into();
        for (role, counter) in
            [(Role::WalkCycles, Counter::WalkCycles), (Role::TlbMisses, Counter::TlbMisses)]
        {
            let events = self.events(role, row);
            let estimated =
                role == Role::WalkCycles && self.options.custom.cycles_per_walk.is_some();
            if events.is_empty() && !estimated {
                let unknown = cpu.as_ref().map_or_else(ToString::to_string, ToString::to_string);
                missing.push(no_event(counter, row, &unknown, self.needs(counter)));
            }
            wanted.extend(events.into_iter().map(|w| (w, self.needs(counter))));
        }
        let mut usable = Vec::new();
        for (wanted, needed) in wanted {
            match perf.open(self.tid, &wanted) {
                Ok(_) => usable.push(wanted),
                Err(error) => missing.push(Missing {
                    what: format!("the counter {}", wanted.name),
                    why: error.to_string(),
                    remedy: self.remedy(&error, virtual_machine),
                    fatal: needed,
                }),
            }
        }
        // Half of a sum is no number at all.
        for role in [Role::WalkCycles, Role::TlbMisses] {
            let expected = self.events(role, row).len();
            if usable.iter().filter(|w| w.role == role).count() < expected {
                usable.retain(|w| w.role != role);
            }
        }
        usable
    }

    fn events(&self, role: Role, row: Option<&Microarchitecture>) -> Vec<Wanted> {
        let custom = &self.options.custom;
        let (own, table) = match role {
            Role::WalkCycles => (&custom.walk_cycles, row.map(|r| r.walk_cycles)),
            _ => (&custom.misses, row.map(|r| r.misses)),
        };
        if !own.is_empty() {
            let wanted = |&raw| Wanted { role, raw: Some(raw), name: format!("r{raw:x}:G") };
            return own.iter().map(wanted).collect();
        }
        let mut events = table.unwrap_or_default().to_vec();
        if role == Role::WalkCycles && custom.nested_walks {
            events.extend(row.and_then(|r| r.nested_cycles));
        }
        let wanted =
            |e: &crate::RawEvent| Wanted { role, raw: Some(e.config), name: e.name.to_owned() };
        events.iter().map(wanted).collect()
    }

    /// What to do about a counter that cannot be opened, by the system's error.
    fn remedy(&self, error: &io::Error, virtual_machine: bool) -> String {
        const EPERM: i32 = 1;
        const EACCES: i32 = 13;
        const ESRCH: i32 = 3;
        match error.raw_os_error() {
            Some(EPERM | EACCES) => {
                let file = self.roots.proc.join("sys/kernel/perf_event_paranoid");
                let level = fs::read_to_string(file).unwrap_or_default();
                format!(
                    "kernel.perf_event_paranoid is {}: run as root, give CAP_PERFMON, or \
                     `sysctl kernel.perf_event_paranoid=-1`",
                    if level.trim().is_empty() { "not known" } else { level.trim() }
                )
            }
            Some(ESRCH) => "the vCPU's thread has just ended; try again".into(),
            _ if virtual_machine => {
                "this host is a virtual machine without that hardware counter: \
                                     give it one (QEMU: -cpu host,pmu=on) or use bare metal"
                    .into()
            }
            _ => "this processor or kernel does not count it; name raw events with --walk-events \
                  and --miss-events"
                .into(),
        }
    }

    /// Statistics that the policy needs and nobody keeps.
    fn statistics(&self, directory: Option<&VmDirectory>, missing: &mut Vec<Missing>) {
        if let Some(path) = &self.options.guest_faults {
            if let Err(error) = guest_faults(path) {
                missing.push(Missing {
                    what: "the guest's page faults".into(),
                    why: format!("{}: {error}", path.display()),
                    remedy: "let something in the guest keep its /proc/vmstat there".into(),
                    fatal: true,
                });
            }
        } else if self.needs(Counter::GuestPageFaults) {
            missing.push(Missing {
                what: Counter::GuestPageFaults.to_string(),
                why: "under nested paging they cause no exit, so the host does not see them".into(),
                remedy: "let something in the guest keep its /proc/vmstat in a file and name that \
                         with --guest-faults, or take a policy without them"
                    .into(),
                fatal: true,
            });
        }
        let exits = |d: &VmDirectory| {
            ["pf_fixed", "exits"].iter().any(|n| matches!(d.statistic(n), Ok(Some(_))))
        };
        if self.needs(Counter::VmExits) && !directory.is_some_and(exits) {
            missing.push(Missing {
                what: Counter::VmExits.to_string(),
                why: format!("neither pf_fixed nor exits in {}/PID-FD", self.roots.kvm.display()),
                remedy: "mount debugfs and run as root".into(),
                fatal: true,
            });
        }
    }
}

fn no_event(counter: Counter, row: Option<&Microarchitecture>, cpu: &str, fatal: bool) -> Missing {
    let (why, remedy) = match row {
        Some(row) => (
            format!("{cpu}, {}: {}", row.name, row.note),
            "estimate them with --cycles-per-walk, or take a policy without them",
        ),
        None => (
            format!("no events are known for {cpu}"),
            "name raw events with --walk-events and --miss-events",
        ),
    };
    Missing { what: counter.to_string(), why, remedy: remedy.into(), fatal }
}
