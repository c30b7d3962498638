//! What a processor's times say of its TLBs and page walks.

pub mod estimate;
pub mod pattern;
pub mod processor;
pub mod real;
pub mod survey;
