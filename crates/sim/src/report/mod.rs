//! What results say of a machine, derived from counters and from what a scheme reports.

pub mod contiguity;
pub mod nodes;
pub mod placement;
pub mod results;
#[cfg(feature = "schema")]
pub mod schema;
pub mod tables;
