//! Which page size and which frame answer a fault: one file per policy, one line each in
//! [`PLACEMENTS`].

mod ca;
mod default;
mod eager;
mod hugetlb;
mod ideal;
mod linux;
mod listed;
mod policy;
mod ptemagnet;
mod reservations;
mod reserve;
mod scattered;
mod tiers;

pub use ca::{Ca, CaConfig};
pub use default::FirstFit;
pub use eager::Eager;
pub use hugetlb::{HugeTlb, POOL_PERCENT};
pub use ideal::Ideal;
pub use linux::Linux;
pub use listed::HostPages;
pub(crate) use listed::Listed;
pub use policy::PagePolicy;
pub(crate) use policy::Sizes;
pub use ptemagnet::PteMagnet;
pub use reserve::Reserve;
use scattered::Scattered;
pub use tiers::{TIERS, Tiered, Tiers};

use crate::physical::PhysicalMemory;
use nestwalk_tables::Mode;
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

/// How a policy came to a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The policy has no place in mind for any page.
    Ordinary,
    /// Where the policy wanted it.
    Target,
    /// The policy's place could not be had, so it chose a new one for this page and what follows.
    Again,
    /// The policy's place could not be had: wherever there was a frame.
    Elsewhere,
}

/// A frame, and how it was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Placed<O> {
    /// First address of the frame.
    pub frame: O,
    /// How it was found.
    pub outcome: Outcome,
}

impl<O> Placed<O> {
    fn new(frame: O, outcome: Outcome) -> Self {
        Self { frame, outcome }
    }
}

/// A placement policy: decides which frames an address space gets. One object per address space;
/// called once per fault and change of mappings, never per access.
pub trait Placement<O: Address>: Debug + Send {
    /// The address space is new: what the policy needs of the memory is prepared, once for all.
    fn attach(&mut self, memory: &mut PhysicalMemory<O>) {
        let _ = memory;
    }
    /// Whether a first touch may get a page of this size, if the page-size policy allows it.
    fn offers(&self, size: PageSize) -> bool {
        let _ = size;
        true
    }
    /// Allocates the frame for a page: an aligned free block of the request's size, or `None` if
    /// there is none, whereupon a smaller size is asked for.
    fn place(&mut self, memory: &mut PhysicalMemory<O>, request: &Request) -> Option<Placed<O>>;
    /// A range was mapped, which was in no mapping before.
    fn mapped(&mut self, memory: &mut PhysicalMemory<O>, start: u64, end: u64) {
        let _ = (memory, start, end);
    }
    /// Pages of a new mapping are made present when it is mapped, before [`Placement::filled`],
    /// as far as the policy has frames for them.
    fn fills(&self) -> bool {
        false
    }
    /// Whether the policy has a frame for the page at this address of the new mapping.
    fn has_frame(&self, page: u64) -> bool {
        let _ = page;
        false
    }
    /// The pages of a new mapping are present.
    fn filled(&mut self, memory: &mut PhysicalMemory<O>) {
        let _ = memory;
    }
    /// The size of the page that the pages around this one, just mapped, may be joined to, since
    /// all of them are in their places. An address space joins them if it finds the same.
    fn complete(&self, memory: &PhysicalMemory<O>, page: u64) -> Option<PageSize> {
        let _ = (memory, page);
        None
    }
    /// A range was unmapped; its frames are free. The end of an address space unmaps everything.
    fn unmapped(&mut self, memory: &mut PhysicalMemory<O>, start: u64, end: u64) {
        let _ = (memory, start, end);
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
    /// See [`Linux`].
    Linux,
    /// See [`Ca`], as in the released kernel.
    Ca,
    /// See [`Ca`], with 4 KiB pages treated as large ones are.
    CaSmall,
    /// See [`Eager`].
    Eager,
    /// See [`Ideal`].
    Ideal,
    /// As [`FirstFit`]; afterwards a daemon moves each mapping's pages together, as Translation Ranger
    /// does: see [`crate::RangerConfig`].
    Ranger,
    /// See [`Reserve`].
    Reserve,
    /// See [`HugeTlb`].
    HugeTlb,
    /// See [`PteMagnet`].
    PteMagnet,
    /// See [`Tiered`].
    Tiered,
    /// Each page at a place of its own, a control.
    Scattered,
    /// As [`FirstFit`], but that contiguous frames are set aside for the largest mapping of each
    /// process, a *primary region*: see [`crate::PrimaryConfig`]. A guest's; a host has segments of
    /// its own.
    Primary,
    /// As [`Self::Primary`]; where no run of free frames is long enough, the guest exchanges
    /// scattered free pages for contiguous new memory: self-ballooning (MICRO 2014).
    PrimaryBalloon,
}

/// Every policy, `(name, kind, one line)`, for the command line.
pub const PLACEMENTS: &[(&str, PlacementKind, &str)] = &[
    ("default", PlacementKind::FirstFit, "the smallest free block that fits, lowest address first"),
    ("linux", PlacementKind::Linux, "Linux's free lists, and lists of single pages per processor"),
    ("ca", PlacementKind::Ca, "CA paging as released: an offset per mapping, next-fit placement"),
    (
        "ca-4k",
        PlacementKind::CaSmall,
        "CA paging that splits and places for 4 KiB pages as well as for large ones",
    ),
    ("eager", PlacementKind::Eager, "RMM: all memory of a mapping at once, in the largest blocks"),
    (
        "ideal",
        PlacementKind::Ideal,
        "contiguous memory kept behind every mapping from its first touch",
    ),
    (
        "ranger",
        PlacementKind::Ranger,
        "Translation Ranger: as default, and a daemon moves pages together",
    ),
    ("reserve", PlacementKind::Reserve, "4 KiB pages in reserved large blocks, joined when full"),
    ("hugetlb", PlacementKind::HugeTlb, "large pages from pools that are filled at the start"),
    (
        "ptemagnet",
        PlacementKind::PteMagnet,
        "PTEMagnet: aligned groups of eight pages in reserved 32 KiB",
    ),
    (
        "tiered",
        PlacementKind::Tiered,
        "Revelator: 4 KiB pages at one of six hashes of their numbers",
    ),
    ("scattered", PlacementKind::Scattered, "each page at a random place: least contiguity"),
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
    /// The policy of a new address space with these page sizes.
    pub fn build<O: Address>(self, pages: PagePolicy, mode: &Mode) -> Box<dyn Placement<O>> {
        match self {
            Self::FirstFit | Self::Ranger | Self::Primary | Self::PrimaryBalloon => {
                Box::new(FirstFit)
            }
            Self::Linux => Box::new(Linux),
            Self::Ca => Box::new(Ca::new(CaConfig::RELEASED)),
            Self::CaSmall => Box::new(Ca::new(CaConfig::SMALL)),
            Self::Eager => Box::new(Eager::new(pages.largest(mode))),
            Self::Ideal => Box::new(Ideal::default()),
            Self::Reserve => Box::new(Reserve::new(pages, mode)),
            Self::HugeTlb => Box::new(HugeTlb::new(pages, mode)),
            Self::PteMagnet => Box::new(PteMagnet::default()),
            Self::Tiered => Box::new(Tiered::default()),
            Self::Scattered => Box::new(Scattered::default()),
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
