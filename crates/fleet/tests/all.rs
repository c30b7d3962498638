//! All tests of this crate that use it from outside, as one program: what each file would instantiate
//! and link for itself takes most of the time that tests take to compile.

mod common;
mod fleet;
mod fleet_hidden;
mod fleet_waits;
mod guest_swap;
mod merging;
mod migration;
mod replacement;
