//! By which tables the hypervisor maps its guest.

use crate::Answers;
use crate::model::{self, ModelError};
use crate::nested;
use crate::program::Program;
use nestwalk_sim::scheme::vmm_options::KvmVersion;

/// What the hardware walks beside or in place of the guest's tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Paging {
    /// Shadows of the guest's tables (`kvm_amd.npt=0`).
    #[default]
    Shadow,
    /// Nested tables (`kvm_amd.npt=1`).
    Nested,
}

impl Paging {
    /// In words.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Shadow => "shadow",
            Self::Nested => "nested",
        }
    }

    /// Performs a program on the model, with the rules of a KVM version.
    ///
    /// # Errors
    /// The simulator cannot go on; it is said where.
    pub fn perform(self, program: &Program, version: KvmVersion) -> Result<Answers, ModelError> {
        match self {
            Self::Shadow => model::perform(program, version),
            Self::Nested => nested::perform(program, version),
        }
    }
}
