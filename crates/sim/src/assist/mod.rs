//! Hardware beside the walk, and its software: registers of segments, ranges and anchors, TLB entries
//! of several pages, TLB blocks in data caches, and page tables of other kinds. The first two stand
//! around a hypervisor or bare metal, and so does the fourth; the third is a family of TLBs.

pub mod blocks;
pub mod coalescing;
mod links;
pub mod ranges;
pub mod segments;
pub mod tables;
