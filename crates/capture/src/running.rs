//! A guest that runs: its output as it comes, its exit status, its end.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{At, GuestError};
use crate::guest::Boot;
use crate::plugin::{API_VARIABLE, plugin_api};
use crate::programs;
use crate::qemu::{self, Files, Plugin};
use crate::scratch::Scratch;

/// How often [`Running::wait`] looks at the guest.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// How much of the console an error quotes.
const QUOTED_LINES: usize = 12;

/// How a guest's command ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// The command's exit status; 128 + N if signal N ended it, 126 or 127 if it could not start.
    pub status: u8,
    /// Whether the guest's kernel could start it at all. A shell that finds no program ends with 127,
    /// too, but was started.
    pub started: bool,
    /// From the start of QEMU to its end.
    pub wall: Duration,
    /// Processor time of QEMU, of all its threads; none where `/proc` does not say.
    pub cpu: Option<Duration>,
}

/// A running guest. Dropping it ends the guest and deletes its files.
#[derive(Debug)]
pub struct Running {
    qemu: Child,
    ended: Option<ExitStatus>,
    cpu: Option<Duration>,
    started: Instant,
    wall: Duration,
    output: Option<File>,
    files: Files,
    messages: PathBuf,
    scratch: Scratch,
}

impl Running {
    /// Starts QEMU for `boot`.
    pub(crate) fn start(mut boot: Boot, plugin: Option<&Plugin>) -> Result<Running, GuestError> {
        let messages = boot.scratch.file("qemu.log");
        let log = File::create(&messages).at("create", &messages)?;
        let mut command = Command::new(&boot.guest.qemu);
        command.args(qemu::arguments(&boot.guest, &boot.files, plugin));
        command.stdin(Stdio::null()).stderr(log.try_clone().at("open", &messages)?).stdout(log);
        // Ctrl-C at the terminal is for this process, which then decides what becomes of QEMU.
        command.process_group(0);
        if let Some(plugin) = plugin {
            let api = plugin_api(&boot.guest.qemu, &plugin.path)?;
            command.env(API_VARIABLE, api.to_string());
        }
        let started = Instant::now();
        let qemu = command.spawn().at("start", &boot.guest.qemu)?;
        boot.scratch.guard(Some(qemu.id()));
        Ok(Running {
            qemu,
            ended: None,
            cpu: None,
            started,
            wall: Duration::ZERO,
            output: None,
            files: boot.files,
            messages,
            scratch: boot.scratch,
        })
    }

    /// QEMU's process.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.qemu.id()
    }

    /// Hands on what the command has written since the last call; returns how many bytes.
    ///
    /// # Errors
    /// If the guest's output cannot be read or `sink` does not take it.
    pub fn pass_output(&mut self, sink: &mut dyn Write) -> Result<u64, GuestError> {
        let path = &self.files.output;
        if self.output.is_none() {
            match File::open(path) {
                // QEMU has not come so far.
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(0),
                other => self.output = Some(other.at("read", path)?),
            }
        }
        let bytes = self.output.as_mut().map_or(Ok(0), |file| io::copy(file, sink));
        bytes.at("pass on the command's output from", path)
    }

    /// Whether the guest has ended: `None` while it runs.
    ///
    /// # Errors
    /// If it ended without the command's exit status: the error quotes what QEMU and the guest's
    /// kernel said last.
    pub fn poll(&mut self) -> Result<Option<Outcome>, GuestError> {
        if self.ended.is_none() {
            let stat = ProcessStat::of(self.qemu.id());
            self.cpu = stat.as_ref().map(|stat| stat.cpu).or(self.cpu);
            // A process that is no zombie yet may still use processor time after this look at it.
            if stat.is_some_and(|stat| !stat.is_zombie) {
                return Ok(None);
            }
            self.ended = self.qemu.try_wait().at("wait for", &self.messages)?;
            if self.ended.is_none() {
                return Ok(None);
            }
            self.wall = self.started.elapsed();
            self.scratch.guard(None);
        }
        let status = self.status();
        let status = status.ok_or_else(|| self.died())?;
        let started = !self.report().lines().any(|line| line.as_bytes() == not_started());
        Ok(Some(Outcome { status, started, wall: self.wall, cpu: self.cpu }))
    }

    /// Waits for the guest's end, and hands on the command's output meanwhile.
    ///
    /// # Errors
    /// Those of [`Running::poll`] and [`Running::pass_output`].
    pub fn wait(&mut self, sink: &mut dyn Write) -> Result<Outcome, GuestError> {
        loop {
            let outcome = self.poll();
            // Also what came before an unhappy end.
            self.pass_output(sink)?;
            if let Some(outcome) = outcome? {
                return Ok(outcome);
            }
            thread::sleep(LOOK_EVERY);
        }
    }

    /// The command's exit status, once it has ended; the guest may still be shutting down.
    #[must_use]
    pub fn status(&self) -> Option<u8> {
        let report = self.report();
        // Only what a line's end follows is whole.
        let whole = &report[..=report.rfind('\n')?];
        whole.lines().find_map(|line| line.trim().strip_prefix("status ")?.parse().ok())
    }

    /// What the guest has written to the port for the exit status.
    fn report(&self) -> String {
        fs::read_to_string(&self.files.status).unwrap_or_default()
    }

    /// Ends the guest at once.
    pub fn kill(&mut self) {
        if self.ended.is_none() {
            // Only fails if it has ended.
            let _ = self.qemu.kill();
            self.ended = self.qemu.wait().ok();
            self.wall = self.started.elapsed();
            self.scratch.guard(None);
        }
    }

    /// What the guest's kernel has said so far.
    #[must_use]
    pub fn console(&self) -> String {
        text_of(&self.files.console)
    }

    /// What QEMU and its plugin have said so far.
    #[must_use]
    pub fn messages(&self) -> String {
        text_of(&self.messages)
    }

    fn died(&self) -> GuestError {
        let (messages, console) = (self.messages(), self.console());
        // "[    1.117] Kernel panic - not syncing: Attempted to kill init!"
        let panic =
            console.lines().find_map(|line| line.split_once("Kernel panic - not syncing: "));
        let reason = match self.ended {
            _ if let Some((_, why)) = panic => format!("its kernel panicked ({why})"),
            Some(status) if !status.success() => format!("QEMU ended with {status}"),
            _ => "it was switched off".to_owned(),
        };
        let last = |text: &str| {
            let lines: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).collect();
            lines[lines.len().saturating_sub(QUOTED_LINES)..].join("\n")
        };
        let words = [last(&messages), last(&console)];
        let words: Vec<_> = words.into_iter().filter(|text| !text.is_empty()).collect();
        GuestError::Died { reason, last_words: words.join("\n") }
    }
}

fn not_started() -> &'static [u8] {
    programs::NOT_STARTED.trim_ascii_end()
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

fn text_of(path: &std::path::Path) -> String {
    let mut bytes = Vec::new();
    // Whatever can be read is worth having.
    let _ = File::open(path).and_then(|mut file| file.read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).replace('\r', "")
}

/// What `/proc/PID/stat` says (proc(5)).
struct ProcessStat {
    is_zombie: bool,
    cpu: Duration,
}

impl ProcessStat {
    fn of(pid: u32) -> Option<ProcessStat> {
        /// USER_HZ, which Linux has fixed at 100 on all but a few old architectures.
        const TICK: Duration = Duration::from_millis(10);
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The second field is the program's name, in parentheses, and may have any letter in it.
        let (_, rest) = stat.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let ticks = |field: usize| fields.get(field - 3)?.parse::<u32>().ok();
        let cpu = TICK * (ticks(14)? + ticks(15)?);
        Some(ProcessStat { is_zombie: fields.first() == Some(&"Z"), cpu })
    }
}
