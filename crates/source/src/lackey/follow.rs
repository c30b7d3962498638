//! The thread that watches a live program: it takes in new log files, and stops the program while
//! too much is unread.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often the directory is looked at. A program cannot `execve` twice in less: valgrind alone
/// takes about 100 ms to start one.
const TICK: Duration = Duration::from_millis(2);
/// How long processes may take to end once they are killed.
const DEATH: Duration = Duration::from_secs(2);

/// A process of the host. Numbers are reused, so the time of its start (field 22 of
/// `/proc/PID/stat`, proc(5)) belongs to the name; an `execve` keeps both.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct HostProcess {
    pub(crate) pid: u32,
    /// In clock ticks since boot; `None` if it had ended when it was first looked at.
    start: Option<u64>,
}

impl HostProcess {
    fn new(pid: u32) -> Self {
        Self { pid, start: running_since(pid) }
    }
    /// Whether it exists and is not a zombie.
    pub(crate) fn is_alive(self) -> bool {
        self.start.is_some() && running_since(self.pid) == self.start
    }
    fn signal(self, signal: Signal) {
        // Numbers up to 0 name groups.
        let target = i32::try_from(self.pid).ok().filter(|&pid| pid > 0);
        if let Some(target) = target.filter(|_| self.is_alive()) {
            // It may end between the two: then there is nobody to stop.
            let _ = kill(Pid::from_raw(target), signal);
        }
    }
}

/// When the process was started; `None` if there is none or it has ended.
fn running_since(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in brackets may hold anything; state is field 3, the start field 22.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X" | "x") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// Processes that were started with this argument, without those that have ended.
fn started_with(argument: &OsStr) -> Vec<HostProcess> {
    let has = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|&b| b == 0).any(|word| word == argument.as_bytes())
    };
    let pids = fs::read_dir("/proc").into_iter().flatten().filter_map(|entry| {
        let name = entry.ok()?.file_name();
        name.to_str()?.parse().ok()
    });
    pids.filter(has).map(HostProcess::new).filter(|p| p.is_alive()).collect()
}

/// Ends every process that was started with `argument`, and waits until they have ended.
///
/// Valgrind hands its arguments on to the programs that it follows, and a fork keeps them, so one
/// that is unique finds children that have no log yet and those that have lost their parent.
pub(crate) fn end_all(argument: &OsStr) {
    let deadline = Instant::now() + DEATH;
    // Again until none is left: one may have forked before its signal came.
    loop {
        let left = started_with(argument);
        if left.is_empty() || Instant::now() > deadline {
            return;
        }
        left.iter().for_each(|host| host.signal(Signal::SIGKILL));
        std::thread::sleep(TICK);
    }
}

/// A log file that has appeared.
pub(crate) struct Found {
    pub(crate) host: HostProcess,
    /// 1 for a program that was started, 2 and more for a fork.
    pub(crate) sequence: u32,
    pub(crate) file: Arc<File>,
    /// How far it has been read, for the limit.
    pub(crate) consumed: Arc<AtomicU64>,
    /// How long the others were at this time: what happened before.
    pub(crate) lengths: Vec<(u32, u64)>,
}

/// What the thread and the source share.
pub(crate) struct Shared {
    dir: PathBuf,
    limit: u64,
    found: Mutex<Vec<Found>>,
    error: Mutex<Option<String>>,
    stop: AtomicBool,
    /// Scans that were finished: the source waits for one after the last process has ended.
    scans: AtomicU64,
    /// Times the program was stopped because the source was slower.
    pub(crate) stops: AtomicU64,
}

impl Shared {
    pub(crate) fn new(dir: &Path, limit: u64) -> Self {
        Self {
            dir: dir.to_owned(),
            limit,
            found: Mutex::default(),
            error: Mutex::default(),
            stop: AtomicBool::new(false),
            scans: AtomicU64::new(0),
            stops: AtomicU64::new(0),
        }
    }
    /// The files that have appeared since the last call, oldest first.
    pub(crate) fn take(&self) -> Vec<Found> {
        std::mem::take(&mut *self.found.lock().unwrap_or_else(PoisonError::into_inner))
    }
    pub(crate) fn error(&self) -> Option<String> {
        self.error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
    pub(crate) fn scans(&self) -> u64 {
        self.scans.load(Relaxed)
    }
    pub(crate) fn stop(&self) {
        self.stop.store(true, Relaxed);
    }
}

/// Numbers from `PID.SEQUENCE`.
fn parse_name(name: &str) -> Option<(u32, u32)> {
    let (pid, sequence) = name.split_once('.')?;
    Some((pid.parse().ok()?, sequence.parse().ok()?))
}

struct Follower {
    shared: Arc<Shared>,
    known: Vec<(HostProcess, Arc<File>, Arc<AtomicU64>)>,
    stopped: bool,
}

impl Follower {
    /// Takes in new files: opens and unlinks them.
    fn scan(&mut self) -> io::Result<()> {
        let mut names: Vec<(u32, u32, PathBuf)> = Vec::new();
        for entry in fs::read_dir(&self.shared.dir)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|n| n.to_str()).and_then(parse_name);
            if let Some((pid, sequence)) = name {
                names.push((pid, sequence, path));
            }
        }
        // A process that forked and then started a program has written the fork's log first.
        names.sort_by_key(|(pid, sequence, _)| (*pid, u32::MAX - sequence));
        for (pid, sequence, path) in names {
            // Punching holes needs a file that is open for writing.
            let file = Arc::new(OpenOptions::new().read(true).write(true).open(&path)?);
            fs::remove_file(&path)?;
            let length = |f: &File| f.metadata().map_or(0, |m| m.len());
            let lengths = self.known.iter().map(|(p, f, _)| (p.pid, length(f))).collect();
            let consumed = Arc::new(AtomicU64::new(0));
            let host = HostProcess::new(pid);
            self.known.push((host, file.clone(), consumed.clone()));
            let found = Found { host, sequence, file, consumed, lengths };
            self.shared.found.lock().unwrap_or_else(PoisonError::into_inner).push(found);
        }
        Ok(())
    }

    /// Stops the program while more than the limit is unread, until a quarter of it is left.
    fn govern(&mut self) {
        // A log that the source has dropped is done.
        self.known.retain(|(_, _, consumed)| Arc::strong_count(consumed) > 1);
        let unread: u64 = self
            .known
            .iter()
            .map(|(_, f, consumed)| {
                f.metadata().map_or(0, |m| m.len()).saturating_sub(consumed.load(Relaxed))
            })
            .sum();
        let stop = unread > if self.stopped { self.shared.limit / 4 } else { self.shared.limit };
        if stop && !self.stopped {
            self.shared.stops.fetch_add(1, Relaxed);
        }
        if stop || self.stopped {
            // Again at each tick, for processes that were forked in the meantime.
            let signal = if stop { Signal::SIGSTOP } else { Signal::SIGCONT };
            for (host, _, _) in &self.known {
                host.signal(signal);
            }
        }
        self.stopped = stop;
    }
}

/// The body of the thread.
pub(crate) fn follow(shared: Arc<Shared>) {
    let mut follower = Follower { shared: shared.clone(), known: Vec::new(), stopped: false };
    while !shared.stop.load(Relaxed) {
        if let Err(e) = follower.scan() {
            let message = format!("cannot take in the logs in {}: {e}", shared.dir.display());
            *shared.error.lock().unwrap_or_else(PoisonError::into_inner) = Some(message);
            return;
        }
        shared.scans.fetch_add(1, Relaxed);
        follower.govern();
        std::thread::sleep(TICK);
    }
}
