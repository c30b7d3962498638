//! Machines: a guest's events drive a scheme's hardware and hypervisor, watched by a referee, and the
//! counts become cycles.
//!
//! One way: events → [`engine`] → [`scheme::Scheme`] (walker, then software) → [`counters`] →
//! [`cost`] and [`energy`].

pub mod ahead;
pub mod build;
pub mod coalescing;
pub mod compare;
pub mod contiguity;
pub mod core_tlbs;
pub mod cost;
pub mod counters;
pub mod coverage;
pub mod daemons;
pub mod energy;
pub mod engine;
pub mod guests;
pub mod hardware;
pub mod lock;
pub mod options;
pub mod placement;
pub mod referee;
pub mod results;
pub mod scheme;
pub mod schemes;
pub mod series;
pub mod spec;
pub mod switching;
pub mod vmm;
pub mod walk;
pub mod world;

pub use compare::{CompareError, Outcome, Plan, Progress, compare};
pub use cost::Cycles;
pub use counters::{Counters, Dimension, ExitReason};
pub use coverage::{
    COVERAGE_FIELDS, CoveragePoint, CoverageResult, DIMENSION_FIELDS, DimensionResult, POINT_FIELDS,
};
pub use daemons::{DAEMON_OPTIONS, DaemonTimes};
pub use energy::{ENERGY_FIELDS, Energy, EnergyResult};
pub use engine::{AnyMachine, Machine};
pub use guests::GuestOutcome;
pub use placement::{PLACEMENT_FIELDS, PlacementResult};
pub use referee::Verdict;
pub use results::{FIELDS, MachineResult};
pub use scheme::{MachineError, PageTableBytes};
pub use schemes::{Build, Catalogue, CatalogueError, Definition, SCHEMES};
pub use series::interval_costs;
pub use spec::{Defaults, DimensionSpec, GuestSpec, MachineSpec, SpecError};
pub use switching::{Cut, Recorded, SAMPLED, Switched, SwitchingResult};
