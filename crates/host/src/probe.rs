//! What a host can count and switch, tried out; and all that is missing, with what to do about it.

use crate::Roots;
use crate::actuator::{Actuator, ModuleParameter, PmsFile};
use crate::counters::{PerfEvents, Role, Wanted};
use crate::cpu::Cpu;
use crate::events::{Microarchitecture, RawEvent, events_of};
use crate::kvm::VmDirectory;
use crate::live::LiveOptions;
use nestwalk_policy::{Counter, Mode};
use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

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

/// A number, or the line `pgfault N` of `/proc/vmstat`.
pub(crate) fn guest_faults(path: &Path) -> io::Result<u64> {
    let text = fs::read_to_string(path)?;
    let line = text.lines().find_map(|l| l.strip_prefix("pgfault ")).unwrap_or(&text);
    line.trim().parse().map_err(|_| {
        let text = "neither a number nor a line `pgfault N`";
        io::Error::new(io::ErrorKind::InvalidData, text)
    })
}

pub(crate) fn no_directory(kvm: &Path, error: &io::Error, options: &LiveOptions) -> Missing {
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
pub(crate) fn find_actuator(
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
pub(crate) struct Probe<'a> {
    pub(crate) roots: &'a Roots,
    /// A vCPU's thread.
    pub(crate) tid: u32,
    pub(crate) options: &'a LiveOptions,
}

impl Probe<'_> {
    fn needs(&self, counter: Counter) -> bool {
        self.options.needs.contains(&counter)
    }

    /// The counters that can be opened.
    pub(crate) fn counters(
        &self,
        perf: &mut dyn PerfEvents,
        missing: &mut Vec<Missing>,
    ) -> Vec<Wanted> {
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
        let wanted = |e: &RawEvent| Wanted { role, raw: Some(e.config), name: e.name.to_owned() };
        events.iter().map(wanted).collect()
    }

    /// What to do about a counter that cannot be opened, by the system's error.
    fn remedy(&self, error: &io::Error, virtual_machine: bool) -> String {
        remedy_of_counters(&self.roots.proc, error, virtual_machine).unwrap_or_else(|| {
            "this processor or kernel does not count it; name raw events with --walk-events and \
             --miss-events"
                .into()
        })
    }

    /// Statistics that the policy needs and nobody keeps.
    pub(crate) fn statistics(&self, directory: Option<&VmDirectory>, missing: &mut Vec<Missing>) {
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

/// What to do about a counter that cannot be opened, by the system's error; none if the processor or
/// kernel does not count it.
pub fn remedy_of_counters(proc: &Path, error: &io::Error, virtual_machine: bool) -> Option<String> {
    const EPERM: i32 = 1;
    const EACCES: i32 = 13;
    const ESRCH: i32 = 3;
    match error.raw_os_error() {
        Some(EPERM | EACCES) => {
            let level = fs::read_to_string(proc.join("sys/kernel/perf_event_paranoid"));
            let level = level.unwrap_or_default();
            Some(format!(
                "kernel.perf_event_paranoid is {}: run as root, give CAP_PERFMON, or \
                 `sysctl kernel.perf_event_paranoid=-1`",
                if level.trim().is_empty() { "not known" } else { level.trim() }
            ))
        }
        Some(ESRCH) => Some("the thread has just ended; try again".into()),
        _ if virtual_machine => Some(
            "this host is a virtual machine without that hardware counter: give it one \
             (QEMU: -cpu host,pmu=on) or use bare metal"
                .into(),
        ),
        _ => None,
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
