//! What is read of a process beside its accesses: what it is, its page sizes, counters.

use super::choices::Pages;
use super::live::{lacks, unseen};
use super::model::Model;
use super::show::Report;
use nestwalk_host::{
    Cpu, Missing, PAGE_BYTES, ProcessCounters, ProcessMemory, Roots, Sampling, Snapshot,
    VmDirectory, guest_ram, remedy_of_counters,
};
use nestwalk_lab::{Fragmentation, FreeBlocks};
use nestwalk_report::{bytes, count};
use serde_json::json;
use std::fs;
use std::io::ErrorKind;

/// What could not be counted, by name.
const COUNTERS: &str = "the processor's counters";
/// From this share of memory on a dimension has large pages.
const MOSTLY: f64 = 0.5;

/// What a process is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// A program of this system.
    Program,
    /// A VM of KVM.
    KvmVm,
    /// A VM whose processor QEMU emulates.
    EmulatedVm,
}

/// What was seen.
pub struct Seen {
    pub target: String,
    /// Addresses of the memory that it is about: all, or guest RAM.
    pub ranges: Vec<(u64, u64)>,
    pid: u32,
    kind: Kind,
    /// Whether this system is a VM itself.
    virtual_machine: bool,
    /// Bytes that are there, and that large pages map, of guest RAM if that is known.
    resident: u64,
    large: u64,
    /// Bytes in mappings that cannot have large pages: those of files.
    of_files: u64,
    /// `always`, `madvise` or `never`; empty if it cannot be read.
    setting: String,
    /// Runs of frames, and pages of the longest; none if frames are hidden.
    contiguity: Option<(u64, u64)>,
    /// Exits of the VM so far, if it is one of KVM.
    exits: Option<u64>,
    /// Free memory of this system by the size of blocks.
    pub fragmentation: Fragmentation,
    missing: Vec<Missing>,
}

impl Seen {
    pub fn of(roots: &Roots, process: &ProcessMemory, snapshot: &Snapshot) -> Self {
        let words = process.command_line();
        let mut missing = Vec::new();
        let ram = guest_ram(&words, &snapshot.regions);
        let kvm = process.has_kvm_vm().unwrap_or_else(|error| {
            missing.push(Missing {
                what: "whether it is a VM of KVM".into(),
                why: format!("{}/{}/fd: {error}", roots.proc.display(), process.pid),
                remedy: "it is told by its command line alone; run as root".into(),
                fatal: false,
            });
            false
        });
        let kind = match (kvm, &ram) {
            (true, _) => Kind::KvmVm,
            (false, Err(nestwalk_host::RamError::NotQemu)) => Kind::Program,
            (false, _) => Kind::EmulatedVm,
        };
        // Of a VM the mapping with most of its memory is the guest's, if QEMU does not say which.
        let pieces: Vec<(u64, u64)> = match (&ram, kind) {
            (_, Kind::Program) => vec![(0, u64::MAX)],
            (Ok(ram), _) => ram.iter().map(|p| (p.hva, p.hva + p.bytes)).collect(),
            (Err(_), _) => largest(snapshot).into_iter().collect(),
        };
        let inside = |start: u64| pieces.iter().any(|(from, to)| (*from..*to).contains(&start));
        let regions: Vec<_> = snapshot.regions.iter().filter(|r| inside(r.start)).collect();
        let of_files = regions.iter().filter(|r| r.name.starts_with('/') && !is_memory(&r.name));
        let cpu = Cpu::read(&roots.proc);
        let mut seen = Self {
            target: target(process, kind, &pieces),
            pid: process.pid,
            kind,
            virtual_machine: cpu.is_ok_and(|c| c.virtual_machine),
            resident: regions.iter().map(|r| r.resident()).sum(),
            large: regions.iter().map(|r| r.huge + r.hugetlb).sum(),
            of_files: of_files.map(|r| r.resident()).sum(),
            ranges: pieces.clone(),
            setting: setting(roots),
            contiguity: (!snapshot.frames_hidden).then(|| {
                let longest = snapshot.runs.iter().map(|r| r.pages).max();
                (snapshot.runs.len() as u64, longest.unwrap_or(0))
            }),
            exits: None,
            fragmentation: Fragmentation::default(),
            missing,
        };
        if kind == Kind::KvmVm {
            match exits(roots, seen.pid) {
                Ok(exits) => seen.exits = exits,
                Err(missing) => seen.missing.push(missing),
            }
        }
        seen.read_fragmentation(roots);
        seen
    }

    /// How free memory lies, which decides whether large pages can be had.
    fn read_fragmentation(&mut self, roots: &Roots) {
        let path = roots.proc.join("buddyinfo");
        let text = fs::read_to_string(&path).map_err(|error| error.to_string());
        match text.and_then(|text| FreeBlocks::parse(&text).map_err(|error| error.to_string())) {
            Ok(blocks) => self.fragmentation = Fragmentation::Blocks(blocks),
            Err(why) => self.missing.push(Missing {
                what: "how free memory lies".into(),
                why: format!("{}: {why}", path.display()),
                remedy: "memory is taken for one that is not fragmented".into(),
                fatal: false,
            }),
        }
    }

    /// Whether this system's memory is the guest's of what is modelled.
    pub fn is_guest(&self) -> bool {
        self.kind == Kind::Program
    }

    /// Exits of a VM since [`Seen::of`].
    pub fn tell_exits(&self, roots: &Roots, seconds: f64, report: &mut Report) {
        if let Some(before) = self.exits
            && let Ok(Some(after)) = exits(roots, self.pid)
        {
            let per = after.saturating_sub(before) as f64 / seconds;
            report
                .facts
                .push(("exits", format!("{per:.0} a second, of all kinds, by KVM's statistics")));
            report.seen.insert("exits_per_second".into(), json!(per));
        }
    }

    /// Lines, and numbers for programs.
    pub fn tell(&self, report: &mut Report) {
        let share = 100.0 * self.share();
        let setting = match self.setting.as_str() {
            "" => String::new(),
            word => format!("; transparent_hugepage/enabled says {word}"),
        };
        let there = bytes(self.resident);
        report
            .facts
            .push(("pages", format!("{there} there, {share:.0} % in large pages{setting}")));
        if let Some((runs, longest)) = self.contiguity {
            let longest = bytes(longest * PAGE_BYTES);
            let runs = count(runs);
            report.facts.push(("frames", format!("{runs} contiguous runs, the longest {longest}")));
        }
        let kind = match self.kind {
            Kind::Program => "program",
            Kind::KvmVm => "kvm",
            Kind::EmulatedVm => "emulated",
        };
        let numbers = [
            ("pid", json!(self.pid)),
            ("kind", json!(kind)),
            ("virtual_machine", json!(self.virtual_machine)),
            ("resident_bytes", json!(self.resident)),
            ("large_page_bytes", json!(self.large)),
            ("transparent_hugepage", json!(self.setting)),
            ("contiguous_runs", json!(self.contiguity.map(|c| c.0))),
            ("longest_run_pages", json!(self.contiguity.map(|c| c.1))),
        ];
        report.seen.extend(numbers.map(|(name, value)| (name.to_owned(), value)));
        report.missing.extend(self.missing.clone());
    }

    fn share(&self) -> f64 {
        self.large as f64 / self.resident.max(1) as f64
    }

    /// What page sizes may be today: one dimension is seen, the other is not.
    pub fn today(&self) -> Vec<Pages> {
        let seen = self.share() >= MOSTLY;
        match self.kind {
            Kind::Program => unseen(|host| Pages { guest: seen, host }),
            Kind::KvmVm | Kind::EmulatedVm => unseen(|guest| Pages { guest, host: seen }),
        }
    }

    pub fn assumptions(&self, sampling: &Sampling, model: &Model) -> Vec<String> {
        let mut all = vec![self.dimension()];
        all.push(format!(
            "accesses are those of two stand-ins: in order, each page that was used in a window is visited \
             once in it, at one instruction per cycle; at random, every access goes to any of the {} pages \
             used; what the process really does is between them",
            count(model.used)
        ));
        all.push(sampling.sampler.assumption.to_owned());
        if model.instructions_per_page == 0 {
            all.push(
                "it used next to no processor time while it was sampled: when it works it may need \
                 something else"
                    .into(),
            );
        }
        if self.kind == Kind::KvmVm && !sampling.sampler.sees_guests {
            all.push(
                "this sampler does not see what a guest of KVM uses, only what the VMM itself does: the \
                 answer is of little worth"
                    .into(),
            );
        }
        if model.one_of > 1 {
            all.push(format!(
                "of the memory one 2 MiB block in {} is simulated, which makes TLBs look larger",
                model.one_of
            ));
        }
        let share = self.share();
        if (0.05..0.95).contains(&share) {
            all.push(format!(
                "{:.0} % of the memory is in large pages already, which is taken for {} of it",
                100.0 * share,
                if share >= MOSTLY { "all" } else { "none" }
            ));
        }
        if self.of_files > 0 {
            all.push(format!(
                "all memory can have large pages; {} of files cannot with most file systems",
                bytes(self.of_files)
            ));
        }
        all.push(
            "memory is there: first touches, and work to make large pages, are not counted".into(),
        );
        all
    }

    /// What is taken for the dimension that is not seen.
    fn dimension(&self) -> String {
        match (self.kind, self.virtual_machine) {
            (Kind::Program, true) => {
                "this system is a virtual machine, whose host's pages cannot be seen from inside: ranges are \
                 of both sizes there"
            }
            (Kind::Program, false) => {
                "this system is no virtual machine: the answer is what the program would need in one, whose \
                 host had small or large pages"
            }
            (Kind::KvmVm | Kind::EmulatedVm, _) => {
                "the guest's own page tables are not visible from outside: ranges are of small and of large \
                 pages there, and addresses are guest-physical ones"
            }
        }
        .into()
    }

    /// Which measurement would say more.
    pub fn narrower(&self, report: &Report) -> Vec<String> {
        let mut all = Vec::new();
        if lacks(&report.missing, COUNTERS) {
            all.push(format!(
                "TLB misses per 1000 instructions tell which end of the ranges is true: perf stat -e \
                 instructions,dTLB-load-misses -p {}, where there are counters",
                self.pid
            ));
        }
        if self.kind == Kind::KvmVm {
            all.push(format!(
                "exits by reason tell what shadow paging or first touches cost: perf kvm stat live -p {}, \
                 where there are tracepoints",
                self.pid
            ));
        }
        match self.kind {
            Kind::Program => all.push(
                "a recording of the program has its real accesses: nestwalk advise --guest -- COMMAND".into(),
            ),
            Kind::KvmVm | Kind::EmulatedVm => all.push(
                "the same inside the guest (nestwalk advise PID) sees its page sizes and its programs".into(),
            ),
        }
        all
    }
}

/// Exits of a VM so far, by KVM's statistics in debugfs; none if the kernel does not count them.
fn exits(roots: &Roots, pid: u32) -> Result<Option<u64>, Missing> {
    let why = match VmDirectory::find(&roots.kvm, pid) {
        Ok(Some(directory)) => match directory.statistic("exits") {
            Ok(exits) => return Ok(exits),
            Err(error) => (error.kind(), error.to_string()),
        },
        Ok(None) => (ErrorKind::Other, format!("no folder {pid}-* there")),
        Err(error) => (error.kind(), error.to_string()),
    };
    let remedy = match why.0 {
        ErrorKind::PermissionDenied => {
            "debugfs is root's, and closed where the kernel is locked down"
        }
        ErrorKind::NotFound => {
            "mount debugfs (mount -t debugfs none /sys/kernel/debug), with kvm loaded"
        }
        _ => "the rest is told without them",
    };
    Err(Missing {
        what: "KVM's statistics".into(),
        why: format!("{}: {}", roots.kvm.display(), why.1),
        remedy: remedy.into(),
        fatal: false,
    })
}

/// Memory that looks like a file.
fn is_memory(name: &str) -> bool {
    ["/memfd:", "/dev/shm/", "/dev/zero", "/SYSV", "/anon_hugepage", "/dev/hugepages"]
        .iter()
        .any(|start| name.starts_with(start))
}

fn largest(snapshot: &Snapshot) -> Option<(u64, u64)> {
    let most = snapshot.regions.iter().max_by_key(|r| r.resident())?;
    Some((most.start, most.end))
}

fn target(process: &ProcessMemory, kind: Kind, pieces: &[(u64, u64)]) -> String {
    let (pid, name) = (process.pid, &process.name);
    let ram = bytes(pieces.iter().map(|(from, to)| to - from).sum());
    match kind {
        Kind::Program => format!("process {pid} ({name})"),
        Kind::KvmVm => format!("process {pid} ({name}), a virtual machine of KVM with {ram}"),
        Kind::EmulatedVm => {
            format!("process {pid} ({name}), a virtual machine emulated, with {ram}")
        }
    }
}

/// The word in brackets.
fn setting(roots: &Roots) -> String {
    let path = roots.sys.join("kernel/mm/transparent_hugepage/enabled");
    let text = fs::read_to_string(path).unwrap_or_default();
    let word = text.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    word.map(|(word, _)| word.to_owned()).unwrap_or_default()
}

/// Counters of the process, counting; what is missing is said.
pub fn counters(
    roots: &Roots,
    process: &ProcessMemory,
    missing: &mut Vec<Missing>,
) -> Option<ProcessCounters> {
    match ProcessCounters::open(process) {
        Ok(counters) => Some(counters),
        Err(error) => {
            let virtual_machine = Cpu::read(&roots.proc).is_ok_and(|c| c.virtual_machine);
            let remedy = remedy_of_counters(&roots.proc, &error, virtual_machine);
            missing.push(Missing {
                what: COUNTERS.into(),
                why: format!("perf_event_open: {error}"),
                remedy: remedy.unwrap_or_else(|| "this processor or kernel has none".into()),
                fatal: false,
            });
            None
        }
    }
}

/// What they counted.
pub fn tell_counters(counters: &mut ProcessCounters, report: &mut Report) {
    match counters.read() {
        Ok(counts) if counts.instructions > 0 => {
            let per = 1000.0 * counts.tlb_misses as f64 / counts.instructions as f64;
            let text = format!("{per:.2} loads per 1000 instructions missed the TLBs");
            report.facts.push(("counted", text));
            report.counted = Some(per);
            report.seen.insert("tlb_misses_per_1000_instructions".into(), json!(per));
        }
        Ok(_) => {}
        Err(error) => report.missing.push(Missing {
            what: COUNTERS.into(),
            why: error.to_string(),
            remedy: "the rest is told without them".into(),
            fatal: false,
        }),
    }
}

/// Whether perf could sample addresses, which this does not do by itself.
pub fn memory_samples(roots: &Roots, missing: &mut Vec<Missing>, narrower: &mut Vec<String>) {
    let devices = roots.sys.join("bus/event_source/devices");
    let places = [devices.join("cpu/events/mem-loads"), devices.join("ibs_op")];
    if places.iter().any(|p| p.exists()) {
        narrower.push(
            "this processor samples addresses of loads: perf mem record -p PID, perf script -F \
             comm,pid,tid,time,event,addr,ip > FILE, nestwalk advise FILE"
                .into(),
        );
    } else {
        missing.push(Missing {
            what: "perf's memory samples".into(),
            why: format!("neither cpu/events/mem-loads nor ibs_op in {}", devices.display()),
            remedy: "the processor has none, or the VM that this is does not show them".into(),
            fatal: false,
        });
    }
}
