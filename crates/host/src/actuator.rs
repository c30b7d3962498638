//! Reading and changing a VM's paging mode.

use nestwalk_policy::Mode;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use thiserror::Error;

/// What can tell a VM's paging mode, and perhaps change it.
pub trait Actuator {
    /// The mode in force.
    ///
    /// # Errors
    /// If it cannot be told.
    fn mode(&mut self) -> Result<Mode, ActuatorError>;

    /// Asks for a mode. Whether it came into force is for [`mode`](Actuator::mode) to say.
    ///
    /// # Errors
    /// If the request was not accepted.
    fn switch(&mut self, to: Mode) -> Result<(), ActuatorError>;

    /// What it is, for messages.
    fn describe(&self) -> String;
}

/// Why a mode cannot be told or changed.
#[derive(Debug, Error)]
pub enum ActuatorError {
    /// The file is gone: so is the VM.
    #[error("{0} is gone")]
    Gone(String),
    /// The file cannot be read.
    #[error("{path} cannot be read: {error}")]
    Read {
        /// The file.
        path: String,
        /// What is wrong.
        error: io::Error,
    },
    /// The file says something else.
    #[error("{path} says `{text}`: {expected} is expected")]
    Text {
        /// The file.
        path: String,
        /// What it says.
        text: String,
        /// What it should say.
        expected: &'static str,
    },
    /// The file does not accept what is written.
    #[error("{path} did not accept {value} ({mode} paging): {error}")]
    Write {
        /// The file.
        path: String,
        /// What was written.
        value: char,
        /// What it means.
        mode: Mode,
        /// What is wrong.
        error: io::Error,
    },
    /// Nothing can change the mode here.
    #[error("{0} holds for all VMs until the module is loaded again")]
    Fixed(String),
}

/// The file of the thesis's kernel patch: 0 is shadow paging, 1 is two-dimensional paging; what is
/// written is asked for (thesis 3.1.4, figure 3.3).
#[derive(Clone, Debug)]
pub struct PmsFile {
    path: PathBuf,
}

impl PmsFile {
    /// The file at this path.
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    fn path(&self) -> String {
        self.path.display().to_string()
    }
}

fn read(path: &Path) -> Result<String, ActuatorError> {
    fs::read_to_string(path).map_err(|error| {
        let path = path.display().to_string();
        match error.kind() {
            io::ErrorKind::NotFound => ActuatorError::Gone(path),
            _ => ActuatorError::Read { path, error },
        }
    })
}

impl Actuator for PmsFile {
    fn mode(&mut self) -> Result<Mode, ActuatorError> {
        let text = read(&self.path)?;
        match text.trim() {
            "0" => Ok(Mode::Shadow),
            "1" => Ok(Mode::Nested),
            other => Err(ActuatorError::Text {
                path: self.path(),
                text: other.chars().take(40).collect(),
                expected: "0 (shadow) or 1 (nested)",
            }),
        }
    }

    fn switch(&mut self, to: Mode) -> Result<(), ActuatorError> {
        let value = if to == Mode::Shadow { '0' } else { '1' };
        // Never created: in a directory that is left over, a new file would change nothing.
        let written = fs::OpenOptions::new()
            .write(true)
            .open(&self.path)
            .and_then(|mut file| file.write_all(format!("{value}\n").as_bytes()));
        written.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => ActuatorError::Gone(self.path()),
            _ => ActuatorError::Write { path: self.path(), value, mode: to, error },
        })
    }

    fn describe(&self) -> String {
        self.path()
    }
}

/// An unpatched kernel: KVM's module parameter says in which mode all VMs are.
#[derive(Clone, Debug)]
pub struct ModuleParameter {
    path: PathBuf,
}

impl ModuleParameter {
    /// `ept` of `kvm_intel` or `npt` of `kvm_amd`, below the root of `/sys`; none if neither is there.
    pub fn find(sys: &Path) -> Option<Self> {
        ["kvm_intel/parameters/ept", "kvm_amd/parameters/npt"]
            .map(|p| sys.join("module").join(p))
            .into_iter()
            .find(|p| p.exists())
            .map(|path| Self { path })
    }
}

impl Actuator for ModuleParameter {
    fn mode(&mut self) -> Result<Mode, ActuatorError> {
        let text = read(&self.path)?;
        match text.trim() {
            "Y" | "1" => Ok(Mode::Nested),
            "N" | "0" => Ok(Mode::Shadow),
            other => Err(ActuatorError::Text {
                path: self.path.display().to_string(),
                text: other.chars().take(40).collect(),
                expected: "Y or N",
            }),
        }
    }

    fn switch(&mut self, _: Mode) -> Result<(), ActuatorError> {
        Err(ActuatorError::Fixed(self.path.display().to_string()))
    }

    fn describe(&self) -> String {
        self.path.display().to_string()
    }
}
