//! Contiguous runs of mapped memory, and how many entries each technique needs to cover them.
//!
//! ```text
//! MappedRun   page numbers one after the other that map to frame numbers one after the other
//! RunSet      all runs of an address space, each as long as it can be, kept while tables change
//! compose     gVA to gPA and gPA to hPA: the runs of both dimensions together
//! Pieces      what the entries of a technique cover: how many of them for 80, 90, 99, 100 %
//! Histogram   runs by length
//! ```
//!
//! Numbers are of 4 KiB pages everywhere; a mapped 2 MiB or 1 GiB page is a run of 512 or 262144 of
//! them. What a number stands for (gVA, gPA, hPA) is the caller's matter.

mod coverage;
mod histogram;
mod pieces;
mod run;
mod set;

pub use coverage::{
    CLUSTER_PAGES, MAX_DISTANCE, MIN_DISTANCE, PageSizes, Survey, anchors, best_anchors, clustered,
    coalesced, huge_pages, offsets, ranges,
};
pub use histogram::{Bucket, Histogram};
pub use pieces::{Pieces, SHARES};
pub use run::MappedRun;
pub use set::{RunSet, compose};
