//! What is counted, and what it costs: counters, cycles, energy, waiting for locks, by intervals.

pub mod cost;
pub mod counters;
pub mod energy;
pub mod limit;
pub mod lock;
pub mod series;
pub mod walk_map;
