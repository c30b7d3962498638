//! Processes that run virtual machines, and their vCPU threads.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// A thread that runs a vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Vcpu {
    /// Number of the vCPU.
    pub index: u32,
    /// Number of the thread.
    pub tid: u32,
}

/// A process with vCPU threads.
#[derive(Clone, Debug)]
pub struct QemuProcess {
    root: PathBuf,
    /// Number of the process.
    pub pid: u32,
    /// When it started, in clock ticks since boot: tells it from a later one of the same number.
    started: u64,
}

/// What is wrong with a process.
#[derive(Debug, Error)]
pub enum ProcessError {
    /// There is none.
    #[error("there is no process {0}")]
    None(u32),
    /// It runs no VM.
    #[error(
        "process {0} has no thread named `CPU n/KVM`: not a QEMU that uses KVM, or one without \
         thread names (QEMU's -name NAME,debug-threads=on, which libvirt sets)"
    )]
    NoVcpus(u32),
    /// It cannot be looked at.
    #[error("{path}: {error}")]
    Read {
        /// The file.
        path: String,
        /// What is wrong.
        error: io::Error,
    },
}

/// QEMU names the threads of vCPUs `CPU 0/KVM` and so on.
fn vcpu_index(comm: &str) -> Option<u32> {
    comm.trim_end().strip_prefix("CPU ")?.strip_suffix("/KVM")?.parse().ok()
}

/// Field 22 of `/proc/PID/stat`. The second field may contain spaces and parentheses.
pub(crate) fn started(root: &Path, pid: u32) -> io::Result<u64> {
    let text = fs::read(root.join(pid.to_string()).join("stat"))?;
    // A program may have any bytes as its name.
    let text = String::from_utf8_lossy(&text);
    let after = text.rsplit_once(')').map_or("", |(_, after)| after);
    let field = after.split_whitespace().nth(19).and_then(|f| f.parse().ok());
    field.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no start time"))
}

impl QemuProcess {
    /// Looks at a process below the root of `/proc`.
    ///
    /// # Errors
    /// If there is none, or it has no vCPU threads.
    pub fn open(root: &Path, pid: u32) -> Result<Self, ProcessError> {
        let started = started(root, pid).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => ProcessError::None(pid),
            _ => ProcessError::Read { path: format!("{}/{pid}/stat", root.display()), error },
        })?;
        let process = Self { root: root.to_owned(), pid, started };
        if process.vcpus()?.is_empty() {
            return Err(ProcessError::NoVcpus(pid));
        }
        Ok(process)
    }

    /// Whether it still runs, and is no later process of the same number.
    pub fn alive(&self) -> bool {
        started(&self.root, self.pid).is_ok_and(|s| s == self.started)
    }

    /// Its vCPU threads, by number of the vCPU. None once it has exited.
    ///
    /// # Errors
    /// If its threads cannot be listed.
    pub fn vcpus(&self) -> Result<Vec<Vcpu>, ProcessError> {
        let folder = self.root.join(self.pid.to_string()).join("task");
        let read = |error| ProcessError::Read { path: folder.display().to_string(), error };
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(read(error)),
        };
        let mut vcpus = Vec::new();
        for entry in entries.flatten() {
            let tid = entry.file_name().to_str().and_then(|n| n.parse().ok());
            // A thread may end between the listing and the look at its name.
            let comm = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            if let (Some(tid), Some(index)) = (tid, vcpu_index(&comm)) {
                vcpus.push(Vcpu { index, tid });
            }
        }
        vcpus.sort_unstable();
        Ok(vcpus)
    }
}

/// All processes with vCPU threads, by number.
///
/// # Errors
/// If processes cannot be listed.
pub fn find_vms(root: &Path) -> Result<Vec<QemuProcess>, ProcessError> {
    let read = |error| ProcessError::Read { path: root.display().to_string(), error };
    let mut found = Vec::new();
    for entry in fs::read_dir(root).map_err(read)?.flatten() {
        let pid = entry.file_name().to_str().and_then(|n| n.parse().ok());
        // Processes come and go, and some may not be looked at: they are not ours to govern.
        found.extend(pid.and_then(|pid| QemuProcess::open(root, pid).ok()));
    }
    found.sort_by_key(|p| p.pid);
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::vcpu_index;

    #[test]
    fn threads_of_vcpus_have_names() {
        assert_eq!(vcpu_index("CPU 0/KVM\n"), Some(0));
        assert_eq!(vcpu_index("CPU 17/KVM"), Some(17));
        for other in ["CPU 0/TCG", "qemu-system-x86", "CPU x/KVM", "vnc_worker", "kvm-nx-lpage-re"]
        {
            assert_eq!(vcpu_index(other), None);
        }
    }
}
