//! `doctor`: what is installed, what is missing, and how to get it. It only looks.

use crate::args::DoctorArgs;
use crate::formats::Found;
use crate::screen::Screen;
use anyhow::Result;
use nestwalk_capture::Cache;
use nestwalk_report::{Align, Table};
use serde::Serialize;
use serde_json::{Value, json};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::process::Command;

/// The bit of `CAP_SYS_ADMIN` in a set of capabilities (`linux/capability.h`), without which frame
/// numbers of `/proc/PID/pagemap` are zero.
const SYS_ADMIN: u32 = 21;
/// The highest `kernel.perf_event_paranoid` under which a user counts the kernel's part of his own
/// processes, too (`Documentation/admin-guide/sysctl/kernel.rst`).
const PARANOID_MOST: i64 = 1;

/// Something that is there or not.
#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    ok: bool,
    /// What was found, or why it was not.
    found: String,
    /// What needs it.
    needed_for: &'static str,
    /// The command that gets it; empty if it is there.
    remedy: String,
}

/// `nestwalk doctor`.
///
/// # Errors
/// Standard output cannot be written.
pub fn doctor(args: &DoctorArgs) -> Result<()> {
    let report = Report { checks: checks(&args.root) };
    let text = args.format.render(&report)?;
    std::io::stdout().lock().write_all(text.as_bytes())?;
    Ok(())
}

struct Report {
    checks: Vec<Check>,
}

impl Found for Report {
    fn json(&self) -> Result<Value> {
        Ok(json!({ "version": nestwalk_lab::VERSION, "checks": self.rows()? }))
    }

    fn rows(&self) -> Result<Vec<Value>> {
        Ok(self.checks.iter().map(serde_json::to_value).collect::<Result<_, _>>()?)
    }

    fn table(&self, screen: Screen) -> String {
        let mut table = Table::new()
            .column("", Align::Left)
            .column("piece", Align::Left)
            .column("found; needed for; how to get it", Align::Left);
        for c in &self.checks {
            let remedy = if c.ok { String::new() } else { format!(" -> {}", c.remedy) };
            let state = if c.ok { "ok" } else { "missing" };
            let text = format!("{}; for {}{remedy}", c.found, c.needed_for);
            table.row(vec![state.into(), c.name.into(), text]);
        }
        let line = |line: &str| {
            let styled = match line.strip_prefix("missing") {
                Some(rest) => screen.red("missing") + rest,
                None => match line.strip_prefix("ok ") {
                    Some(rest) => screen.green("ok ") + rest,
                    None => line.into(),
                },
            };
            styled + "\n"
        };
        let text: String = table.render_within(screen.columns()).lines().map(line).collect();
        let missing = self.checks.iter().filter(|c| !c.ok).count();
        let all = self.checks.len();
        text + &format!(
            "\n{} of {all} are there. Recordings, traces and workloads need none of them.\n",
            all - missing
        )
    }
}

/// A check, whose result is what was found or why not.
fn check(
    name: &'static str,
    needed_for: &'static str,
    remedy: &str,
    result: Result<String, String>,
) -> Check {
    let ok = result.is_ok();
    let found = result.unwrap_or_else(|why| why);
    let remedy = if ok { String::new() } else { remedy.into() };
    Check { name, ok, found, needed_for, remedy }
}

fn checks(root: &Path) -> Vec<Check> {
    let mut all = of_guests();
    all.push(check(
        "valgrind",
        "compare --lackey",
        "apt-get install valgrind",
        first_line("valgrind", "--version"),
    ));
    all.push(check(
        "apt",
        "programs and kernels of guests as Debian packages",
        "a Debian or Ubuntu system; elsewhere --rootfs and --kernel name files",
        first_line("apt-get", "--version"),
    ));
    all.push(check(
        "Slurm",
        "sweep --slurm",
        "apt-get install slurm-client, and a cluster's slurm.conf; sweep --shard needs neither",
        first_line("sbatch", "--version"),
    ));
    all.extend(of_host(root));
    all
}

/// What `--guest` and `capture` need.
fn of_guests() -> Vec<Check> {
    const FOR: &str = "compare --guest, capture";
    let text =
        |e: &dyn std::fmt::Display| e.to_string().lines().next().unwrap_or_default().to_owned();
    let version = nestwalk_capture::qemu_version(Path::new("qemu-system-x86_64"));
    let qemu = version.map(|(major, minor)| format!("QEMU {major}.{minor}"));
    let plugin = nestwalk_capture::plugin().map(|path| path.display().to_string());
    let cache = Cache::locate();
    let installed = cache.map(|cache| nestwalk_capture::installed(&cache));
    let (kernel, busybox) = match installed {
        Ok(there) => (
            there
                .kernel
                .map_err(|e| text(&e))
                .map(|k| format!("{}: {}", k.release, k.vmlinux.display())),
            there.busybox.map_err(|e| text(&e)).map(|path| path.display().to_string()),
        ),
        Err(e) => (Err(text(&e)), Err(text(&e))),
    };
    const SETUP: &str = "nestwalk setup";
    vec![
        check(
            "QEMU",
            FOR,
            "scripts/guest, or apt-get install qemu-system-x86 (10.0 or newer)",
            qemu.map_err(|e| text(&e)),
        ),
        check("plugin", FOR, SETUP, plugin.map_err(|e| text(&e))),
        check("guest kernel", FOR, SETUP, kernel),
        check("busybox", FOR, SETUP, busybox),
    ]
}

/// What the running kernel lets this user see.
fn of_host(root: &Path) -> Vec<Check> {
    let at = |path: &str| root.join(path);
    let kvm = at("dev/kvm");
    let opened = OpenOptions::new().read(true).write(true).open(&kvm);
    let kvm_remedy = match opened.as_ref().map_err(std::io::Error::kind) {
        Err(std::io::ErrorKind::PermissionDenied) => "usermod -aG kvm $USER, and log in again",
        _ => "modprobe kvm_intel or kvm_amd; in a VM its host must nest",
    };
    let readable = |path: &str| {
        let path = at(path);
        match std::fs::read_dir(&path) {
            Ok(_) => Ok(path.display().to_string()),
            Err(e) => Err(format!("{}: {e}", path.display())),
        }
    };
    vec![
        check(
            "KVM",
            "govern, and VMs to inspect",
            kvm_remedy,
            opened
                .map(|_| kvm.display().to_string())
                .map_err(|e| format!("{}: {e}", kvm.display())),
        ),
        check(
            "KVM statistics",
            "govern: page faults and exits of VMs",
            "as root: mount -t debugfs none /sys/kernel/debug",
            readable("sys/kernel/debug/kvm"),
        ),
        check(
            "tracefs",
            "events of a live kernel",
            "as root: mount -t tracefs none /sys/kernel/tracing",
            readable("sys/kernel/tracing/events"),
        ),
        check(
            "counters",
            "govern: walks and misses of a processor",
            "a machine, or a VM whose host gives it a PMU (QEMU: -cpu host,pmu=on)",
            readable("sys/bus/event_source/devices/cpu"),
        ),
        paranoid(&at("proc/sys/kernel/perf_event_paranoid")),
        frames(&at("proc/self/status"), &at("proc/self/pagemap")),
    ]
}

/// Whether this user may count the events of VMs.
fn paranoid(path: &Path) -> Check {
    let level = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()));
    let judged = level.and_then(|text| match text.trim().parse::<i64>() {
        Ok(level) if level <= PARANOID_MOST => Ok(format!("kernel.perf_event_paranoid is {level}")),
        Ok(level) => Err(format!("kernel.perf_event_paranoid is {level}")),
        Err(_) => Err(format!("{}: no number", path.display())),
    });
    let remedy = "as root: sysctl kernel.perf_event_paranoid=1";
    check("perf permission", "govern: counting, hypervisor included", remedy, judged)
}

/// Whether frame numbers are shown.
fn frames(status: &Path, pagemap: &Path) -> Check {
    let text = std::fs::read_to_string(status).unwrap_or_default();
    let set = text.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let set = set.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    let judged = match (File::open(pagemap), set) {
        (Err(e), _) => Err(format!("{}: {e}", pagemap.display())),
        (_, None) => Err(format!("{}: no line CapEff", status.display())),
        (_, Some(set)) if set >> SYS_ADMIN & 1 == 0 => Err("no CAP_SYS_ADMIN".into()),
        _ => Ok("CAP_SYS_ADMIN, so frame numbers are shown".into()),
    };
    check(
        "frames",
        "inspect: contiguity of memory",
        "run inspect as root: sudo nestwalk inspect PID",
        judged,
    )
}

/// The first line that a program prints.
fn first_line(program: &str, argument: &str) -> Result<String, String> {
    let output = Command::new(program).arg(argument).stdin(std::process::Stdio::null()).output();
    let output = output.map_err(|e| format!("{program}: {e}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    match text.lines().next() {
        Some(line) if output.status.success() => Ok(line.trim().into()),
        _ => Err(format!("{program} {argument}: {}", output.status)),
    }
}
