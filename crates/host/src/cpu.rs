//! Which processor this is.

use std::fmt;
use std::fs;
use std::path::Path;
use thiserror::Error;

/// A processor as `/proc/cpuinfo` names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// `vendor_id`: `GenuineIntel`, `AuthenticAMD`.
    pub vendor: String,
    /// `cpu family`.
    pub family: u32,
    /// `model`.
    pub model: u32,
    /// `model name`.
    pub name: String,
    /// Whether the flag `hypervisor` is set: this host is a virtual machine itself.
    pub virtual_machine: bool,
}

/// Why the processor is not known.
#[derive(Debug, Error)]
pub enum CpuError {
    /// The file cannot be read.
    #[error("{path}: {error}")]
    Read {
        /// The file.
        path: String,
        /// What is wrong.
        error: std::io::Error,
    },
    /// The file does not say it.
    #[error("{path} does not say `{field}` of the processor: not an x86 processor?")]
    Field {
        /// The file.
        path: String,
        /// What is missing.
        field: &'static str,
    },
}

impl Cpu {
    /// Reads `cpuinfo` below the root of `/proc`; its first processor speaks for all.
    ///
    /// # Errors
    /// If the file cannot be read or is of another architecture.
    pub fn read(proc: &Path) -> Result<Self, CpuError> {
        let file = proc.join("cpuinfo");
        let path = file.display().to_string();
        let text = fs::read_to_string(&file)
            .map_err(|error| CpuError::Read { path: path.clone(), error })?;
        let field = |name: &'static str| {
            text.lines()
                .filter_map(|line| line.split_once(':'))
                .find(|(key, _)| key.trim() == name)
                .map(|(_, value)| value.trim())
                .ok_or_else(|| CpuError::Field { path: path.clone(), field: name })
        };
        let number = |name: &'static str| {
            let text = field(name)?;
            text.parse().map_err(|_| CpuError::Field { path: path.clone(), field: name })
        };
        Ok(Self {
            vendor: field("vendor_id")?.to_owned(),
            family: number("cpu family")?,
            model: number("model")?,
            name: field("model name").unwrap_or("unnamed").to_owned(),
            virtual_machine: field("flags")
                .is_ok_and(|flags| flags.split_whitespace().any(|f| f == "hypervisor")),
        })
    }
}

impl fmt::Display for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} ({} family 0x{:x} model 0x{:x})",
            self.name, self.vendor, self.family, self.model
        )
    }
}
