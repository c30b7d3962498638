//! Temporary files of one guest, deleted also if this process is killed.

use std::fs::{self, DirBuilder};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{self, Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::error::{At, GuestError};

/// Memory that is a file system, and not a disk behind a cache.
const SHARED_MEMORY: &str = "/dev/shm";

/// What the watcher runs: it reads lines from this process, the PID of QEMU or nothing when QEMU
/// has ended, or `done`. If they end without `done`, this process was killed, and the watcher does
/// what it would have done.
const WATCH: &str = r#"trap '' HUP INT TERM
qemu=
while read -r word; do
    [ "$word" = done ] && exit
    qemu=$word
done
[ -n "$qemu" ] && kill -9 "$qemu"
rm -rf "$@""#;

/// Two directories that only this user can enter: one for files, one for memory that is shared.
#[derive(Debug)]
pub(crate) struct Scratch {
    files: PathBuf,
    shared: PathBuf,
    watcher: Option<(Child, ChildStdin)>,
}

impl Scratch {
    /// Makes the directories, with `memory_bytes` in the shared one if that much is free there.
    pub fn new(memory_bytes: u64) -> Result<Scratch, GuestError> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let temporary = std::env::temp_dir();
        let home = Path::new(SHARED_MEMORY);
        let fast = free_bytes(home).is_some_and(|free| free >= memory_bytes);
        let shared_home = if fast { home } else { &temporary };
        // A number that a killed process of the same PID has left is passed over.
        let (files, shared) = loop {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let name = format!("nestwalk-guest-{}-{number}", process::id());
            let files = temporary.join(&name);
            match DirBuilder::new().mode(0o700).create(&files) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
                other => other.at("create", &files)?,
            }
            break (files, shared_home.join(name + "-shared"));
        };
        let mut scratch = Scratch { files, shared, watcher: None };
        DirBuilder::new().mode(0o700).create(&scratch.shared).at("create", &scratch.shared)?;
        scratch.watcher = Some(scratch.watch()?);
        Ok(scratch)
    }

    /// A path for a file.
    pub fn file(&self, name: &str) -> PathBuf {
        self.files.join(name)
    }

    /// The directory for files that are memory.
    pub fn shared(&self) -> &Path {
        &self.shared
    }

    /// Says which QEMU must end with this process; none once it has ended.
    pub fn guard(&mut self, qemu: Option<u32>) {
        if let Some((_, lines)) = &mut self.watcher {
            // Without a watcher only the clean-up after a kill is lost.
            let _ = writeln!(lines, "{}", qemu.map(|pid| pid.to_string()).unwrap_or_default());
        }
    }

    fn watch(&self) -> Result<(Child, ChildStdin), GuestError> {
        let mut command = Command::new("sh");
        command.args(["-c", WATCH, "nestwalk-watch"]).arg(&self.files).arg(&self.shared);
        // In a process group of its own, Ctrl-C at the terminal does not reach it.
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        let mut child = command.spawn().at("start a shell to watch over", &self.files)?;
        let lines = child.stdin.take().ok_or(io::ErrorKind::BrokenPipe.into());
        let lines = lines.at("start a shell to watch over", &self.files)?;
        Ok((child, lines))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Nothing can be done about a failure here, and nothing depends on it.
        let _ = fs::remove_dir_all(&self.files);
        let _ = fs::remove_dir_all(&self.shared);
        if let Some((mut child, mut lines)) = self.watcher.take() {
            let _ = writeln!(lines, "done");
            drop(lines);
            let _ = child.wait();
        }
    }
}

/// Bytes that are free in a directory's file system, as `df` has it.
fn free_bytes(directory: &Path) -> Option<u64> {
    let mut command = Command::new("df");
    command.args(["--output=avail", "--block-size=1"]).arg(directory);
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    String::from_utf8(output.stdout).ok()?.lines().last()?.trim().parse().ok()
}
