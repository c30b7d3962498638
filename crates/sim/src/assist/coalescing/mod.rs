//! TLB entries of several base pages: what a walk learns of the pages beside its own, and how accesses
//! are translated by such TLBs.
//!
//! The walker reads leaf entries by lines of the data cache, so it has those of eight pages in its
//! hands, and makes no further reference to look at them. A page beside the walked one may share its
//! entry if its leaf entry
//!
//! - is present, and has the accessed bit: a processor may not hold a translation whose accessed bit is
//!   clear (SDM vol. 3A, "Accessed and Dirty Flags"), and the kernel owes no invalidation for it;
//! - has the same permissions, memory type, protection key, global and dirty bit: an entry has one of
//!   each for all its pages, so that a store through it never leaves a dirty bit clear.
//!
//! In a virtual machine a walk ends with two lines: the guest's, of pages beside each other in virtual
//! memory, and the nested one, of pages beside the walked one in guest-physical memory. A neighbour is
//! known if both say so: its guest entry is in the one, and the nested entry of where that leads is
//! in the other.
//!
//! ```text
//! guest line    gVA 8..16  →  gPA  40 41 42 43 | 44 90 91 92      walked: gVA 11 → gPA 43
//! nested line   gPA 40..48 →  hPA  70 71 72 73 | 74 75 76 99      gVA 8..13 → hPA 70..75: a run of 5
//! ```
//!
//! A large page of either dimension is contiguous by itself, so the other dimension's line decides
//! alone: of a guest's 2 MiB page that is splintered by 4 KiB host pages, the nested line. If the nested
//! TLB served the last look-up, no nested line was fetched, and nothing is known beside the page.

pub mod clustered;
pub mod colt;
mod lines;
mod tlbs;

pub use lines::{LeafLine, Lines, combine, native_line};
pub use tlbs::CoalescingTlbs;

use crate::hardware::tlbs::TlbFamily;
use crate::hypervisor::bare_metal::Native;
use crate::hypervisor::nested::Nested;
use crate::machine::{DynMachine, Machine};
use crate::scheme::{MachineConfig, MachineError, Scheme};
use nestwalk_hw::{Coalesced, Profile, Shape};

/// TLBs that a scheme of another mechanism can be given, as an option of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum TlbKind {
    /// A page in each entry.
    #[default]
    Plain,
    /// As `colt` has them by default.
    Colt,
    /// As `clustered` has them by default.
    Clustered,
}

impl TlbKind {
    /// Kinds by name.
    pub const NAMES: [(&'static str, Self); 3] =
        [("plain", Self::Plain), ("colt", Self::Colt), ("clustered", Self::Clustered)];

    /// The shape on a processor; `None` is plain.
    pub fn shape(self, profile: &Profile) -> Option<Shape> {
        match self {
            Self::Plain => None,
            Self::Colt => Some(colt::Colt::default().shape()),
            Self::Clustered => Some(clustered::Clustered::default().shape(profile)),
        }
    }
}

/// A machine whose cores have TLBs of this shape, native or nested, as the build has a host or not.
///
/// # Errors
/// The shape does not fit the profile, or the hypervisor cannot be set up.
pub fn machine(
    mut build: MachineConfig,
    shape: Shape,
) -> Result<Box<dyn DynMachine>, MachineError> {
    if build.host.is_some() {
        let scheme = Nested::new(&mut build)?;
        return Ok(Box::new(machine_of::<_, CoalescingTlbs>(scheme, build, shape)?));
    }
    Ok(Box::new(machine_of::<_, CoalescingTlbs>(Native::default(), build, shape)?))
}

/// A machine of any scheme with TLBs of this shape.
///
/// # Errors
/// The shape does not fit the profile.
pub fn machine_of<S: Scheme, T: TlbFamily>(
    scheme: S,
    build: MachineConfig,
    shape: Shape,
) -> Result<Machine<S, T>, MachineError> {
    let coalesced = Coalesced::new(&build.profile, shape)
        .map_err(|reason| MachineError::Variant { machine: build.name.clone(), reason })?;
    let mut machine = Machine::with_tlbs(scheme, build)?;
    // These TLBs have their own way to put pages together.
    machine.platform.cpu.hardware.shares_entries = false;
    for core in &mut machine.platform.cpu.hardware.cores {
        core.coalesced = Some(Box::new(coalesced.clone()));
    }
    Ok(machine)
}
