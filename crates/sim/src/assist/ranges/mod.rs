//! What hardware that uses contiguity has in common: an index of the runs of both dimensions, which
//! follows the tables store by store, the tables of ranges that an OS and a VMM keep, and a scheme
//! around nested paging or bare metal that a unit of such hardware is put into.

mod guest;
mod range_table;
mod scheme;

pub use guest::{GuestRuns, SpaceId, Touched, permissions_of};
pub use range_table::{Node, RangeTable};
pub use scheme::{Base, Contiguous, Runs, Scope, Unit, background, machine};
