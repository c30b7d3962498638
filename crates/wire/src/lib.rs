//! What the QEMU plugin and the simulator have in common: the records of a guest's events, the filter
//! that keeps most accesses from becoming records, and the rings in shared memory through which they
//! travel.
//!
//! `unsafe` is in [`memory`] alone, where the mapping of a shared file becomes words.

mod filter;
pub mod memory;
mod merge;
mod record;
mod ring;

pub use filter::{AccessFilter, Class, DATA, FETCH, FilterConfig, Look};
pub use merge::{IDLE, Merge, Segment};
pub use record::{IMAGE_RECORDS, Kind, Record};
pub use ring::{BLOCK, Consumer, Layout, Producer, Rings, WireError};

/// Version of the records and rings. The plugin refuses to talk to a simulator of another one.
pub const VERSION: u64 = 2;
