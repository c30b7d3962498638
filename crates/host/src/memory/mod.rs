//! The memory of a live process: what is mapped, what of it is resident, and in which frames.
//!
//! Read are `/proc/PID/smaps` (mappings, with what is resident of each, at no cost for what is not),
//! `/proc/PID/pagemap` (8 bytes per page: proc_pid_pagemap(5)) and `/proc/kpageflags` (8 bytes per
//! frame). The kernel shows frame numbers to CAP_SYS_ADMIN only, and `kpageflags` to root; what is
//! not shown is missing from the snapshot, and said.

mod frames;
mod maps;
mod pagemap;
mod ram;

pub use frames::FrameKinds;
pub use maps::{Advice, Region};
pub use ram::{Machine, RamError, RamPiece, guest_ram, host_runs};

use crate::probe::Missing;
use crate::process::started;
use frames::FrameFlags;
use nestwalk_contiguity::RunSet;
use pagemap::{PageMap, Seen};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Bytes of a page.
pub const PAGE_BYTES: u64 = 4096;
/// Mappings of up to so many bytes are read even where nothing is resident: the shared zero page is
/// not counted as resident, and takes entries all the same.
const ALWAYS_READ: u64 = 1 << 30;
/// Mappings of more bytes are left once all that is resident of them has been found.
const SPARSE: u64 = 64 << 30;

/// Why the memory of a process cannot be read at all.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// There is none.
    #[error("there is no process {0}")]
    None(u32),
    /// It is not a program.
    #[error("process {0} ({1}) is a thread of the kernel: it has no memory of its own")]
    KernelThread(u32, String),
    /// It has ended.
    #[error(
        "process {0} ({1}) has ended, and its parent has not asked for its end yet: no memory is left"
    )]
    Zombie(u32, String),
    /// The kernel says no.
    #[error(
        "{path}: {error}; run as root, or as the user to whom process {pid} belongs if nothing in it \
         is privileged"
    )]
    Denied {
        /// The process.
        pid: u32,
        /// The file.
        path: String,
        /// The system's error.
        error: io::Error,
    },
    /// It cannot be read.
    #[error("{path}: {error}")]
    Read {
        /// The file.
        path: String,
        /// What is wrong.
        error: io::Error,
    },
    /// It is not what `/proc` has.
    #[error("{path}, line {line}: `{text}` is no mapping as proc_pid_maps(5) describes it")]
    NoMapping {
        /// The file.
        path: String,
        /// Number of the line, from 1.
        line: usize,
        /// What is there.
        text: String,
    },
}

/// Why a snapshot does not have all of the process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cut {
    /// Its memory went away: it ended, or began another program.
    Gone,
    /// Whoever reads did not want to go on.
    Stopped,
}

/// The memory of a process at a moment; not one moment, if it runs meanwhile.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Mappings, ascending.
    pub regions: Vec<Region>,
    /// Virtual pages to frames, with the permissions of the mapping as tags. If frames are hidden,
    /// resident pages, each to the frame of its own number: what they would be at best.
    pub runs: RunSet,
    /// Whether the kernel did not show the frames.
    pub frames_hidden: bool,
    /// What the frames are, if the kernel shows it.
    pub kinds: Option<FrameKinds>,
    /// What could not be read.
    pub missing: Vec<Missing>,
    /// Whether something was not read to its end.
    pub cut: Option<Cut>,
}

/// A process whose memory is looked at.
#[derive(Clone, Debug)]
pub struct ProcessMemory {
    proc: PathBuf,
    /// Its number.
    pub pid: u32,
    /// Its name, as `comm` has it.
    pub name: String,
    started: u64,
}

impl ProcessMemory {
    /// Looks at a process below the root of `/proc`.
    ///
    /// # Errors
    /// If there is none.
    pub fn open(proc: &Path, pid: u32) -> Result<Self, MemoryError> {
        let started = started(proc, pid).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => MemoryError::None(pid),
            _ => MemoryError::Read { path: format!("{}/{pid}/stat", proc.display()), error },
        })?;
        let name = fs::read(proc.join(pid.to_string()).join("comm")).unwrap_or_default();
        let name = String::from_utf8_lossy(&name).trim_end().to_owned();
        Ok(Self { proc: proc.to_owned(), pid, name, started })
    }

    /// A file below its folder in `/proc`.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.proc.join(self.pid.to_string()).join(name)
    }

    /// Whether it still runs, and is no later process of the same number.
    pub fn alive(&self) -> bool {
        started(&self.proc, self.pid).is_ok_and(|s| s == self.started) && !self.zombie()
    }

    fn stat_field(&self, index: usize) -> Option<String> {
        let text = fs::read(self.file("stat")).ok()?;
        let text = String::from_utf8_lossy(&text).into_owned();
        let (_, after) = text.rsplit_once(')')?;
        after.split_whitespace().nth(index).map(str::to_owned)
    }

    fn zombie(&self) -> bool {
        self.stat_field(0).is_some_and(|state| state == "Z" || state == "X")
    }

    /// The words of its command line; none of a thread of the kernel, or if they cannot be read.
    pub fn command_line(&self) -> Vec<String> {
        let bytes = fs::read(self.file("cmdline")).unwrap_or_default();
        let words = bytes.split(|b| *b == 0).filter(|w| !w.is_empty());
        words.map(|w| String::from_utf8_lossy(w).into_owned()).collect()
    }

    /// Processor time of all its threads so far, that of guests included; in hundredths of a second.
    pub fn processor_seconds(&self) -> Option<f64> {
        let ticks = |index| self.stat_field(index)?.parse::<f64>().ok();
        // USER_HZ of x86.
        Some((ticks(11)? + ticks(12)?) / 100.0)
    }

    /// Whether it has a VM of KVM open.
    ///
    /// # Errors
    /// Its files cannot be listed.
    pub fn has_kvm_vm(&self) -> io::Result<bool> {
        let links = fs::read_dir(self.file("fd"))?.flatten();
        let mut targets = links.filter_map(|entry| fs::read_link(entry.path()).ok());
        Ok(targets.any(|to| to.as_os_str() == "anon_inode:kvm-vm"))
    }

    /// Its mappings.
    ///
    /// # Errors
    /// If they cannot be read, or there are none.
    pub fn regions(&self) -> Result<Vec<Region>, MemoryError> {
        let mut path = self.file("smaps");
        let mut bytes = fs::read(&path);
        if matches!(&bytes, Err(e) if e.kind() == io::ErrorKind::NotFound) {
            // A kernel without CONFIG_PROC_PAGE_MONITOR.
            path = self.file("maps");
            bytes = fs::read(&path);
        }
        let name = || path.display().to_string();
        let bytes = bytes.map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => {
                MemoryError::Denied { pid: self.pid, path: name(), error }
            }
            _ if !self.alive() => MemoryError::None(self.pid),
            _ => MemoryError::Read { path: name(), error },
        })?;
        let regions = maps::parse(&String::from_utf8_lossy(&bytes))
            .map_err(|(line, text)| MemoryError::NoMapping { path: name(), line, text })?;
        if regions.is_empty() {
            // PF_KTHREAD of the kernel's sched.h; field 9 of proc_pid_stat(5).
            let flags: u64 = self.stat_field(6).and_then(|f| f.parse().ok()).unwrap_or(0);
            return Err(if self.zombie() {
                MemoryError::Zombie(self.pid, self.name.clone())
            } else if flags & 0x0020_0000 != 0 {
                MemoryError::KernelThread(self.pid, self.name.clone())
            } else {
                MemoryError::None(self.pid)
            });
        }
        Ok(regions)
    }

    /// Reads it all. `go_on` is told how many bytes of address space were read, of how many, and ends
    /// it by `false`.
    ///
    /// # Errors
    /// If not even the mappings can be read. What else cannot be is in [`Snapshot::missing`].
    pub fn read(&self, go_on: &mut dyn FnMut(u64, u64) -> bool) -> Result<Snapshot, MemoryError> {
        let regions = self.regions()?;
        let mut snapshot = Snapshot { regions, frames_hidden: true, ..Snapshot::default() };
        let path = self.file("pagemap");
        let mut map = match PageMap::open(&path) {
            Ok(map) => map,
            Err(error) => {
                let remedy = "only what smaps says is told; run as root".to_owned();
                snapshot.missing.push(missing("pages that are present", &path, &error, remedy));
                return Ok(snapshot);
            }
        };
        let flags_path = self.proc.join("kpageflags");
        let flags = FrameFlags::open(&flags_path).map_err(|error| {
            let remedy = "run as root: what frames are is the kernel's secret".to_owned();
            missing("kinds of frames", &flags_path, &error, remedy)
        });
        self.read_regions(&mut snapshot, &mut map, go_on);
        snapshot.frames_hidden = map.hidden();
        snapshot.runs = map.into_runs();
        if snapshot.frames_hidden {
            snapshot.missing.push(Missing {
                what: "frame numbers".into(),
                why: format!(
                    "{} shows them to CAP_SYS_ADMIN only (Linux 4.2 and later)",
                    path.display()
                ),
                remedy:
                    "run as root; without them runs are those of addresses, which frames may cut"
                        .into(),
                fatal: false,
            });
            return Ok(snapshot);
        }
        match flags {
            Ok(mut flags) => match flags.kinds(&snapshot.runs) {
                Ok(kinds) => snapshot.kinds = Some(kinds),
                Err(error) => {
                    let remedy = "run as root".to_owned();
                    snapshot.missing.push(missing("kinds of frames", &flags_path, &error, remedy));
                }
            },
            Err(missing) => snapshot.missing.push(missing),
        }
        Ok(snapshot)
    }

    fn read_regions(
        &self,
        snapshot: &mut Snapshot,
        map: &mut PageMap,
        go_on: &mut dyn FnMut(u64, u64) -> bool,
    ) {
        // The kernel's own page at the end of all addresses is nobody's memory.
        let own = |r: &Region| r.start < 1 << 63;
        let worth = |r: &Region| {
            own(r) && (r.bytes() <= ALWAYS_READ || !r.measured || r.resident() + r.swap > 0)
        };
        let total = snapshot.regions.iter().filter(|r| worth(r)).map(Region::bytes).sum();
        let (mut done, mut unread) = (0, 0);
        let regions = &mut snapshot.regions;
        for region in regions.iter_mut() {
            if !worth(region) {
                unread += if own(region) { region.bytes() } else { 0 };
                continue;
            }
            let known = (region.bytes() > SPARSE && region.measured)
                .then(|| (region.resident() + region.swap) / PAGE_BYTES);
            let before = done;
            let mut step = |bytes| go_on(before + bytes, total);
            let seen = map.read(region, known, &mut step);
            done += region.bytes();
            match seen {
                Ok(Seen::All) => {}
                Ok(Seen::Enough(left)) => unread += left,
                Ok(Seen::Stopped) => {
                    snapshot.cut = Some(Cut::Stopped);
                    break;
                }
                Ok(Seen::Gone) => {
                    snapshot.cut = Some(Cut::Gone);
                    break;
                }
                Err(_) if !self.alive() => {
                    snapshot.cut = Some(Cut::Gone);
                    break;
                }
                Err(error) => {
                    let what = format!("pages of {:x}-{:x}", region.start, region.end);
                    let remedy = "the rest is told without them".to_owned();
                    snapshot.missing.push(missing(&what, &self.file("pagemap"), &error, remedy));
                }
            }
        }
        if snapshot.cut.is_none() && !self.alive() {
            snapshot.cut = Some(Cut::Gone);
        }
        if unread > 0 {
            let bytes = unread >> 30;
            snapshot.missing.push(Missing {
                what: format!("pagemap of {bytes} GiB of addresses"),
                why: "smaps says that nothing more is resident there".into(),
                remedy:
                    "pages of the shared zero page there are not told, which smaps does not count"
                        .into(),
                fatal: false,
            });
        }
    }
}

fn missing(what: &str, path: &Path, error: &io::Error, remedy: String) -> Missing {
    let why = format!("{}: {error}", path.display());
    Missing { what: what.to_owned(), why, remedy, fatal: false }
}
