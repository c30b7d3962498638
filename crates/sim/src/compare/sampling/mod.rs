//! Long streams: stretches are measured, what lies between is passed over but for what leaves something
//! behind, and results are estimates with confidence intervals.
//!
//! Wunderlich, Wenisch, Falsafi, Hoe: "SMARTS: Accelerating Microarchitecture Simulation via Rigorous
//! Statistical Sampling" (ISCA 2003): units at equal distances, warmed up before each. Their functional
//! warming would cost what detail costs here, where warming is all that a simulation does; `thinner`
//! has what takes its place. Simulation points are those of Sherwood et al. (ASPLOS 2002).

mod estimate;
mod thinner;
mod windows;

pub use estimate::{GROUPS, Sampled, half_width, t_quantile};
pub(crate) use estimate::{Stretches, sampled};
pub(crate) use thinner::{Phase, Thinner, Totals};
pub use windows::{Point, Sampling};
