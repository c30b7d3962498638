//! Why a machine cannot go on.

use nestwalk_mm::MmError;
use nestwalk_types::Gva;
use thiserror::Error;

/// Why a machine cannot go on.
#[derive(Debug, Error, Clone, PartialEq)]
pub enum MachineError {
    /// No host memory for a page or a table.
    #[error("{machine}: {source}")]
    Host {
        /// The machine.
        machine: String,
        /// What was asked of the host.
        source: Box<MmError>,
    },
    /// The host has no frame for a table of the VMM.
    #[error(
        "{machine}: host memory is exhausted: no frame for a {what}; give the host more memory"
    )]
    NoTableFrame {
        /// The machine.
        machine: String,
        /// Which table.
        what: &'static str,
    },
    /// The stream accesses memory that the guest's tables do not map at that time.
    #[error(
        "{machine}: access to {gva:?} on vCPU {vcpu}, which the guest's tables do not allow: \
         the source must carry the page fault and the table writes before the access"
    )]
    NotMapped {
        /// The machine.
        machine: String,
        /// The address.
        gva: Gva,
        /// The vCPU.
        vcpu: u8,
    },
    /// All that a host could take back from its VMs is not enough.
    #[error(
        "host memory of {bytes} bytes is smaller than what cannot be taken back of the VMs on it; give \
         the host {needed} bytes or more, or fewer VMs"
    )]
    HostTooSmall {
        /// What there is.
        bytes: u64,
        /// What would be tried next.
        needed: u64,
    },
    /// A machine that is to share a host is no virtual machine.
    #[error("{machine}: is no virtual machine, so it cannot share a host with others")]
    NoTenant {
        /// The machine.
        machine: String,
    },
    /// A vCPU that the machine does not have.
    #[error("{machine}: event on vCPU {vcpu}, but the machine has {vcpus}; give --vcpus {needed}")]
    NoSuchVcpu {
        /// The machine.
        machine: String,
        /// The vCPU of the event.
        vcpu: u8,
        /// vCPUs of the machine.
        vcpus: usize,
        /// vCPUs that would do.
        needed: usize,
    },
    /// A process-level event came to a machine: it went past the guest.
    #[error("{machine}: a process-level event came to the machine without passing a guest")]
    NotArchitectural {
        /// The machine.
        machine: String,
    },
    /// A policy cannot be made.
    #[error("{machine}: {reason}")]
    Variant {
        /// The machine.
        machine: String,
        /// Why.
        reason: String,
    },
    /// A segment that its registers cannot hold.
    #[error("{machine}: {source}")]
    Segment {
        /// The machine.
        machine: String,
        /// What is wrong.
        source: nestwalk_hw::SegmentError,
    },
    /// A fault that does not go away when it is answered: a bug of the scheme.
    #[error("{machine}: the fault at {gva:?} came back {attempts} times")]
    Stuck {
        /// The machine.
        machine: String,
        /// The address.
        gva: Gva,
        /// How often.
        attempts: u32,
    },
}

impl MachineError {
    /// Of the machine of this name. Parts of a machine do not know it: whoever runs one, or makes one,
    /// names it once.
    #[must_use]
    pub fn of(mut self, name: &str) -> Self {
        match &mut self {
            Self::Host { machine, .. }
            | Self::NoTableFrame { machine, .. }
            | Self::NotMapped { machine, .. }
            | Self::NoSuchVcpu { machine, .. }
            | Self::NotArchitectural { machine }
            | Self::Variant { machine, .. }
            | Self::Segment { machine, .. }
            | Self::NoTenant { machine, .. }
            | Self::Stuck { machine, .. } => name.clone_into(machine),
            Self::HostTooSmall { .. } => {}
        }
        self
    }
}

impl From<MmError> for MachineError {
    fn from(source: MmError) -> Self {
        Self::Host { machine: String::new(), source: Box::new(source) }
    }
}
