//! What a processor's times say of its TLBs and page walks.

pub mod estimate;
pub mod kernel;
pub mod pattern;
pub mod processor;
pub mod profile;
pub mod real;
pub mod runs;
pub mod survey;
pub mod walks;
