//! Paging modes that change at run time: what belongs to the scheme [`crate::schemes::switching`].
//!
//! [`options`] reads what a machine of that kind is asked to do, [`governor`] looks at the VM at
//! intervals and asks the policy, [`sampler`] makes what the policy sees of the counters of any machine,
//! [`journal`] keeps what happened.

pub mod governor;
pub mod journal;
pub mod options;
pub mod sampler;

pub use sampler::{Cut, Recorded};
