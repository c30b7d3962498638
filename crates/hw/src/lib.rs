//! Translation hardware: TLBs, walk caches, data caches, and the profiles that size them.
//!
//! Hardware only reads tables. Nothing here calls an OS or a VMM.

pub mod assoc;
pub mod blocks;
pub mod cache;
pub mod clustered;
pub mod coalesced;
pub mod energy;
pub mod entry_cache;
pub mod escape;
pub mod filter;
pub mod geometry;
pub mod line;
pub mod ordered;
pub mod pcids;
pub mod prediction;
pub mod profile;
pub mod range_tlb;
pub mod replacement;
pub mod runs;
pub mod segment;
pub mod slim;
pub mod tlb;
pub mod walk_cache;

pub use cache::{Caches, HPA_LIMIT, ServedBy};
pub use coalesced::{Coalesced, Shape};
pub use entry_cache::EntryCache;
pub use escape::{EscapeFilter, FilterError, FilterGeometry};
pub use filter::TooFine;
pub use line::Line;
pub use pcids::{Displaced, PcidSlots};
pub use prediction::{PredictionError, PredictionTable, Trained};
pub use profile::{Profile, SoftwareProfile, Sourced};
pub use range_tlb::{Range, RangeTlb, fitting};
pub use replacement::Replacement;
pub use segment::{Segment, SegmentError};
pub use tlb::anchors::Anchor;
pub use tlb::{Asid, Tlb, Translation};
pub use walk_cache::{Pointer, WalkCache};
