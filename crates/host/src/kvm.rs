//! KVM's directory in debugfs, one per VM: `PID-FD`, with a file for each statistic.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// A VM's directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmDirectory {
    path: PathBuf,
}

impl VmDirectory {
    /// The directory of a process's VM: the last of several, as in the thesis's script.
    ///
    /// # Errors
    /// If the directory of all VMs cannot be read.
    pub fn find(kvm: &Path, pid: u32) -> io::Result<Option<Self>> {
        // With the hyphen: the script's pattern would take the VM of process 123 for that of 12.
        let prefix = format!("{pid}-");
        let mut found: Vec<PathBuf> = fs::read_dir(kvm)?
            .flatten()
            .filter(|e| e.file_name().to_string_lossy().starts_with(&prefix))
            .map(|e| e.path())
            .collect();
        found.sort();
        Ok(found.pop().map(|path| Self { path }))
    }

    /// A file of it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// A statistic: how often something happened since the VM began. None if this kernel does not
    /// count it.
    ///
    /// # Errors
    /// If the file is there and cannot be read, or holds no number.
    pub fn statistic(&self, name: &str) -> io::Result<Option<u64>> {
        match fs::read_to_string(self.file(name)) {
            Ok(text) => text.trim().parse().map(Some).map_err(|_| {
                let text = format!("{}: `{}` is no number", self.file(name).display(), text.trim());
                io::Error::new(io::ErrorKind::InvalidData, text)
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}
