//! Which page size and which frame answer a fault: one file per policy, one line each in
//! [`PLACEMENTS`].

mod default;
mod policy;

pub use default::FirstFit;
pub use policy::PagePolicy;
pub(crate) use policy::Sizes;

use crate::physical::PhysicalMemory;
use nestwalk_types::{Address, PageSize};
use std::fmt::Debug;

/// A page that needs a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// First address of the page, in the input space.
    pub page: u64,
    /// Its size; the frame must be aligned to it.
    pub size: PageSize,
    /// First address of the VMA around it.
    pub vma_start: u64,
    /// One past the last address of the VMA.
    pub vma_end: u64,
    /// The page is a copy for copy-on-write.
    pub copy: bool,
}

/// A placement policy: decides which frames an address space gets. One object per address space;
/// called once per fault, never per access.
pub trait Placement<O: Address>: Debug + Send {
    /// Allocates the frame for a page: an aligned free block of the request's size, or `None` if
    /// there is none, whereupon a smaller size is asked for.
    fn place(&mut self, memory: &mut PhysicalMemory<O>, request: &Request) -> Option<O>;
    /// A range was mapped.
    fn mapped(&mut self, start: u64, end: u64) {
        let _ = (start, end);
    }
    /// A range was unmapped; its frames are free.
    fn unmapped(&mut self, start: u64, end: u64) {
        let _ = (start, end);
    }
    /// The policy of a forked child.
    fn forked(&self) -> Box<dyn Placement<O>>;
}

/// The placement policies by name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub enum PlacementKind {
    /// See [`FirstFit`].
    #[default]
    FirstFit,
    /// As [`FirstFit`], but that contiguous frames are set aside for the largest mapping of each
    /// process, a *primary region*: see [`crate::PrimaryConfig`]. A guest's; a host has segments of
    /// its own.
    Primary,
    /// As [`Self::Primary`]; where no run of free frames is long enough, the guest exchanges scattered
    /// free pages for contiguous new memory: self-ballooning (MICRO 2014).
    PrimaryBalloon,
}

/// Every policy, `(name, kind, one line)`, for the command line.
pub const PLACEMENTS: &[(&str, PlacementKind, &str)] = &[
    ("default", PlacementKind::FirstFit, "what the buddy allocator gives: Linux"),
    ("primary", PlacementKind::Primary, "contiguous memory behind each process's largest mapping"),
    (
        "primary-balloon",
        PlacementKind::PrimaryBalloon,
        "as primary, and self-ballooning where free memory is too fragmented",
    ),
];

impl PlacementKind {
    /// The policy of that name.
    pub fn by_name(name: &str) -> Option<Self> {
        PLACEMENTS.iter().find(|p| p.0 == name).map(|p| p.1)
    }
    /// Name on the command line and in results.
    pub fn name(self) -> &'static str {
        PLACEMENTS.iter().find(|p| p.1 == self).map_or("default", |p| p.0)
    }
    /// Whether processes have primary regions.
    pub const fn has_region(self) -> bool {
        matches!(self, Self::Primary | Self::PrimaryBalloon)
    }
    /// The policy of a new address space.
    pub fn build<O: Address>(self) -> Box<dyn Placement<O>> {
        match self {
            Self::FirstFit | Self::Primary | Self::PrimaryBalloon => Box::new(FirstFit),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_policy_has_its_name() {
        for (name, kind, line) in PLACEMENTS {
            assert_eq!((PlacementKind::by_name(name), kind.name()), (Some(*kind), *name));
            assert!(!line.is_empty());
        }
    }
}
