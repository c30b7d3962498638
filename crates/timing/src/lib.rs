//! Loops whose time says what translation costs, and the memory that they go through.
//!
//! All that is timed is here, because this crate is always optimised. Whoever asks decides what the
//! times mean.

pub mod loops;
mod memory;
mod pin;
pub mod programs;

pub use memory::{Pages, Region};
pub use pin::{pin, processors};
