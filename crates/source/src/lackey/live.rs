//! A live program under valgrind's lackey: its processes, each with its own log, as one stream.

use super::command;
use super::follow::{Found, HostProcess, Shared, end_all, follow};
use super::text::{LackeyStats, Text, chatter};
use crate::decoder::Decode;
use crate::temporary::Folder;
use nestwalk_types::{
    Batch, BatchBuilder, Control, ProcessId, Room, Source, SourceError, SourceInfo, VcpuId,
};
use nix::fcntl::{FallocateFlags, fallocate};
use std::ffi::OsString;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::{Child, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Bytes read from a log at a time, about 4,000 records.
const CHUNK: usize = 64 << 10;
/// Fewer bytes than this may be a line that is not complete yet.
const LINE: usize = 32;
/// Bytes read before their disk space is given back.
const PUNCH: u64 = 4 << 20;
/// How long nothing may come before what there is is handed on, were it nothing: whoever waits for
/// an idle program must be able to stop waiting.
const PATIENCE: Duration = Duration::from_millis(50);

/// How a live program is followed.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// vCPUs that the processes share: process number modulo this. Default 1.
    pub vcpus: u8,
    /// Instructions after which another process that has records gets its turn. Default 100,000.
    pub quantum: u64,
    /// Bytes of log on disk, unread, at which the program is stopped until a quarter is left.
    /// Default 256 MiB.
    pub unread_bytes: u64,
    /// The program to run as valgrind. Default `valgrind`.
    pub valgrind: OsString,
}

impl Default for RunOptions {
    fn default() -> Self {
        Self { vcpus: 1, quantum: 100_000, unread_bytes: 256 << 20, valgrind: "valgrind".into() }
    }
}

/// One log: what one process wrote between two of fork, `execve` and its end.
struct Log {
    host: HostProcess,
    process: ProcessId,
    file: Arc<File>,
    consumed: Arc<AtomicU64>,
    /// Bytes read from the file, and how far holes were punched.
    read: u64,
    punched: u64,
    rest: Vec<u8>,
    text: Text,
    /// What the guest is told before its first record.
    begin: Vec<Control>,
    /// Not before this much of that process's log is used: its parent's past.
    after: Option<(u32, u64)>,
    /// The process has gone on to another log, so this one does not grow any more.
    superseded: bool,
    done: bool,
}

/// A program that runs under `valgrind --tool=lackey --trace-mem=yes --trace-children=yes`.
///
/// Each process is a process of the stream: [`Control::Fork`], [`Control::Exec`] and
/// [`Control::Exit`] stand where its logs begin and end. A child's records come after what its
/// parent had logged when the child's log appeared; apart from that, processes that run at the same
/// time take turns. The program's own output goes to standard error; its input is inherited.
/// While the program is idle, batches are empty. Dropping the source kills the program with all its
/// processes and removes the logs.
pub struct Live {
    name: String,
    child: Child,
    /// Valgrind's argument that no process of another program has.
    log_file: OsString,
    status: Option<ExitStatus>,
    shared: Arc<Shared>,
    follower: Option<JoinHandle<()>>,
    /// Holds the logs until they are seen; removed at the end.
    dir: Folder,
    options: RunOptions,
    logs: Vec<Log>,
    turn: usize,
    turn_instructions: u64,
    /// Process numbers of the host that are in use, and their names here.
    processes: Vec<(u32, ProcessId)>,
    started: u32,
    on_vcpu: Vec<Option<ProcessId>>,
    builder: BatchBuilder,
    stats: LackeyStats,
    used_bytes: u64,
    no_holes: bool,
    /// Scans when the last process was seen to have ended.
    ended_at_scan: Option<u64>,
    end: Option<Result<(), String>>,
}

impl Live {
    pub(super) fn start(command: &[OsString], options: &RunOptions) -> Result<Self, SourceError> {
        let words: Vec<_> = command.iter().map(|w| w.to_string_lossy()).collect();
        let name = format!("lackey: {}", words.join(" "));
        let fail = |message: String| SourceError { source: name.clone(), message };
        let program = command.first().ok_or_else(|| {
            fail("no command given; say for example `--lackey -- gcc -O2 -c file.c`".into())
        })?;
        command::check(program).map_err(&fail)?;
        let dir = Folder::new("nestwalk-lackey-").map_err(|e| {
            fail(format!(
                "no temporary directory in {}: {e}; set TMPDIR to one with room for {} MiB",
                std::env::temp_dir().display(),
                options.unread_bytes >> 20
            ))
        })?;
        let mut log_file = OsString::from("--log-file=");
        // A percent sign in the path would be taken for a format.
        log_file.push(dir.path().to_string_lossy().replace('%', "%%"));
        log_file.push("/%p.%n");
        let child = command::start(&options.valgrind, &log_file, command).map_err(&fail)?;
        let shared = Arc::new(Shared::new(dir.path(), options.unread_bytes.max(1)));
        let follower = {
            let shared = shared.clone();
            std::thread::Builder::new()
                .name("lackey-follower".into())
                .spawn(move || follow(shared))
                .map_err(|e| {
                    end_all(&log_file);
                    fail(format!("cannot start a thread: {e}"))
                })?
        };
        let mut builder = BatchBuilder::new();
        builder.control(Control::RegionOfInterest);
        Ok(Self {
            name,
            child,
            log_file,
            status: None,
            shared,
            follower: Some(follower),
            dir,
            options: options.clone(),
            logs: Vec::new(),
            turn: 0,
            turn_instructions: 0,
            processes: Vec::new(),
            started: 0,
            on_vcpu: vec![None; usize::from(options.vcpus.max(1))],
            builder,
            stats: LackeyStats::default(),
            used_bytes: 0,
            no_holes: false,
            ended_at_scan: None,
            end: None,
        })
    }

    /// What was found so far, over all processes.
    pub fn stats(&self) -> LackeyStats {
        self.logs.iter().fold(self.stats, |sum, log| sum.plus(&log.text.stats))
    }
    /// How the command ended; `None` while it runs.
    pub fn exit_status(&self) -> Option<ExitStatus> {
        self.status
    }
    /// Processes so far.
    pub fn processes(&self) -> u32 {
        self.started
    }
    /// Times the program was stopped because its records were read more slowly than written.
    pub fn stops(&self) -> u64 {
        self.shared.stops.load(Relaxed)
    }

    fn process_of(&self, pid: u32) -> Option<ProcessId> {
        self.processes.iter().find(|p| p.0 == pid).map(|p| p.1)
    }

    /// Makes a stream of a log that has appeared.
    fn adopt(&mut self, found: Found) {
        for old in self.logs.iter_mut().filter(|l| l.host.pid == found.host.pid) {
            old.superseded = true;
        }
        let mut begin = Vec::new();
        let mut after = None;
        let process = match self.process_of(found.host.pid).filter(|_| found.sequence == 1) {
            Some(process) => {
                begin.push(Control::Exec { process });
                process
            }
            None => {
                self.started += 1;
                let process = ProcessId(self.started);
                if let Some(parent_pid) = parent_pid(&found.file)
                    && let Some(parent) = self.process_of(parent_pid)
                {
                    begin.push(Control::Fork { parent, child: process });
                    if found.sequence == 1 {
                        begin.push(Control::Exec { process });
                    }
                    after = found.lengths.iter().rfind(|l| l.0 == parent_pid).copied();
                }
                self.processes.retain(|p| p.0 != found.host.pid);
                self.processes.push((found.host.pid, process));
                process
            }
        };
        let vcpu = VcpuId((process.0 % u32::from(self.options.vcpus.max(1))) as u8);
        self.logs.push(Log {
            host: found.host,
            process,
            file: found.file,
            consumed: found.consumed,
            read: 0,
            punched: 0,
            rest: Vec::with_capacity(CHUNK + 64),
            text: Text::live(vcpu),
            begin,
            after,
            superseded: false,
            done: false,
        });
    }

    /// Whether it must wait: for an older log of the same process, or for its parent's past.
    fn must_wait(&self, index: usize) -> bool {
        let log = &self.logs[index];
        if self.logs[..index].iter().any(|l| l.host.pid == log.host.pid) {
            return true;
        }
        log.after.is_some_and(|(pid, bytes)| {
            self.logs.iter().rfind(|l| l.host.pid == pid).is_some_and(|parent| parent.read < bytes)
        })
    }

    /// Reads a chunk of the log and decodes all of it. `Ok(false)` if there is nothing new.
    fn read(&mut self, index: usize) -> Result<bool, String> {
        let failed = |e: std::io::Error| format!("cannot read a log in a temporary file: {e}");
        let log = &mut self.logs[index];
        // Asked before reading: whoever has ended cannot write after that.
        let grows = !log.superseded && log.host.is_alive();
        // A full batch may have left records undecoded: they come first.
        let before = log.rest.len();
        let mut n = 0;
        if before < CHUNK {
            log.rest.resize(before + CHUNK, 0);
            n = log.file.read_at(&mut log.rest[before..], log.read).map_err(failed)?;
            log.rest.truncate(before + n);
            log.read += n as u64;
            self.used_bytes += n as u64;
            if n == 0 && before < LINE {
                log.done = !grows;
                return Ok(false);
            }
        }
        let vcpu = usize::from(log.text.vcpu.0);
        for control in log.begin.drain(..) {
            self.builder.control(control);
        }
        if self.on_vcpu[vcpu] != Some(log.process) {
            self.builder.control(Control::Switch { vcpu: log.text.vcpu, process: log.process });
            self.on_vcpu[vcpu] = Some(log.process);
        }
        let instructions = log.text.stats.instructions;
        // A turn ends with its last instruction, wherever that is in what was read.
        let room = self.builder.room();
        let left = self.options.quantum.saturating_sub(self.turn_instructions);
        self.builder.set_room(Room { instructions: room.instructions.min(left), ..room });
        let step = log.text.decode(&log.rest, 0, &mut self.builder);
        log.rest.drain(..step.used);
        self.turn_instructions += log.text.stats.instructions - instructions;
        self.give_back(index);
        Ok(n > 0 || step.used > 0)
    }

    /// Gives back the disk space of what was read.
    fn give_back(&mut self, index: usize) {
        let log = &mut self.logs[index];
        log.consumed.store(log.read, Relaxed);
        if log.read - log.punched < PUNCH || self.no_holes {
            return;
        }
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let length = log.read - log.punched;
        let range = i64::try_from(log.punched).ok().zip(i64::try_from(length).ok());
        self.no_holes = range.is_none_or(|(at, bytes)| {
            fallocate(&*log.file, flags, at, bytes).is_err()
        });
        log.punched = log.read;
    }

    /// A log has come to its end.
    fn close(&mut self, index: usize) {
        let mut log = self.logs.remove(index);
        for control in log.begin.drain(..) {
            self.builder.control(control);
        }
        // The last line may be cut where a process was killed; it is counted as "other".
        let _ = log.text.finish(&log.rest, 0, &mut self.builder);
        self.stats = self.stats.plus(&log.text.stats);
        // A further log of the same process means that it has only replaced its program.
        if !self.logs.iter().any(|l| l.process == log.process) {
            self.builder.control(Control::Exit { process: log.process });
            self.on_vcpu.iter_mut().filter(|p| **p == Some(log.process)).for_each(|p| *p = None);
            self.processes.retain(|p| p.1 != log.process);
        }
    }

    /// Lets logs take turns until the batch is full or none has anything new. `true` if anything
    /// happened.
    fn turn(&mut self) -> Result<bool, String> {
        for found in self.shared.take() {
            self.adopt(found);
        }
        if let Some(error) = self.shared.error() {
            return Err(error);
        }
        let mut worked = false;
        for _ in 0..self.logs.len() {
            if self.turn >= self.logs.len() {
                self.turn = 0;
            }
            if !self.must_wait(self.turn) {
                while self.turn_instructions < self.options.quantum && self.read(self.turn)? {
                    worked = true;
                    // A batch may end within a turn.
                    if self.builder.is_full() && self.turn_instructions < self.options.quantum {
                        return Ok(true);
                    }
                }
            }
            self.turn_instructions = 0;
            if self.logs[self.turn].done {
                self.close(self.turn);
                worked = true;
            } else {
                self.turn += 1;
            }
            if self.builder.is_full() {
                return Ok(true);
            }
        }
        Ok(worked)
    }

    /// Whether everything is over: the command has ended, no log is open, and the directory was
    /// looked at twice since, so that no log can have been missed.
    fn is_over(&mut self) -> Result<bool, String> {
        if self.status.is_none() {
            self.status =
                self.child.try_wait().map_err(|e| format!("cannot wait for valgrind: {e}"))?;
        }
        if self.status.is_none() || !self.logs.is_empty() {
            self.ended_at_scan = None;
            return Ok(false);
        }
        let scans = self.shared.scans();
        let since = *self.ended_at_scan.get_or_insert(scans);
        Ok(scans >= since + 2 && self.logs.is_empty())
    }

    fn verdict(&self) -> Result<(), String> {
        if self.stats.records() > 0 {
            return Ok(());
        }
        let status = self.status.map_or_else(String::new, |s| s.to_string());
        Err(format!(
            "valgrind wrote no records ({status}); its message is above on standard error; the \
             command must be a program for this processor, and valgrind 3.14 or later"
        ))
    }

    fn run(&mut self) -> Result<(), String> {
        let mut idle = Instant::now();
        while !self.builder.is_full() && self.end.is_none() {
            if self.turn()? {
                idle = Instant::now();
            } else if self.is_over()? {
                self.end = Some(self.verdict());
            } else if idle.elapsed() > PATIENCE {
                break;
            } else {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        Ok(())
    }
}

impl Source for Live {
    fn info(&self) -> SourceInfo {
        let mut approximations = vec![
            "lackey sees one thread at a time: threads of a process share one vCPU".to_owned(),
            "processes that run at the same time take turns in an order that differs between runs"
                .to_owned(),
        ];
        let status = self.status.map_or_else(|| "still running".to_owned(), |s| s.to_string());
        let failed = self.status.filter(|s| !s.success());
        let failed = failed.map(|s| format!("the traced command failed: {s}"));
        approximations.extend(failed.clone());
        if self.no_holes {
            let dir = self.dir.path().display();
            approximations.push(format!(
                "the file system of {dir} cannot give back what was read; set TMPDIR to another"
            ));
        }
        SourceInfo {
            name: self.name.clone(),
            description: format!("live under valgrind, {} processes, {status}", self.started),
            knows_lines: true,
            knows_pc: true,
            has_fetches: true,
            approximations,
            guest: None,
            total: None,
            populates: 0,
            failed,
        }
    }

    fn next_batch(&mut self, batch: &mut Batch) -> Result<bool, SourceError> {
        if self.end.is_none()
            && let Err(message) = self.run()
        {
            self.end = Some(Err(message));
        }
        self.builder.take_into(batch);
        match &self.end {
            _ if !batch.is_empty() => Ok(true),
            None => Ok(true),
            Some(Ok(())) => Ok(false),
            Some(Err(message)) => {
                Err(SourceError { source: self.name.clone(), message: message.clone() })
            }
        }
    }

    fn set_room(&mut self, room: Room) -> bool {
        self.builder.set_room(room);
        true
    }

    /// Bytes of log used so far.
    fn position(&self) -> u64 {
        self.used_bytes
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        if self.status.is_none() {
            // Errors mean that it has just ended.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        self.shared.stop();
        if let Some(follower) = self.follower.take() {
            let _ = follower.join();
        }
        // Only now may the directory go: a process would make its log anew, or fail and go on.
        end_all(&self.log_file);
    }
}

/// The process number of the parent, from the greeting at the head of a log: with `--log-file`
/// valgrind writes the line `==123== Parent PID: 122`.
fn parent_pid(file: &File) -> Option<u32> {
    let deadline = Instant::now() + Duration::from_secs(1);
    let mut head = vec![0; 8 << 10];
    loop {
        let n = file.read_at(&mut head, 0).ok()?;
        for line in head[..n].split_inclusive(|&b| b == b'\n').filter(|l| l.ends_with(b"\n")) {
            // The greeting has ended.
            chatter(line)?;
            let text = std::str::from_utf8(line).unwrap_or_default().trim_end();
            if let Some((_, pid)) = text.split_once(" Parent PID: ") {
                return pid.parse().ok();
            }
        }
        if n == head.len() || Instant::now() > deadline {
            return None;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
