//! VMs of fleets, and the simulator's own tests' guests written by hand.
#![allow(dead_code, reason = "each test file uses a part")]

pub mod fleets;
#[path = "../../../sim/tests/common/mod.rs"]
mod sim;

pub use sim::*;
