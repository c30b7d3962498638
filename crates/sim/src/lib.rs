//! Machines: a guest's events drive a scheme's hardware and hypervisor, watched by a referee, and the
//! counts become cycles.
//!
//! One way: events → [`machine`] → [`scheme::Scheme`] (walker, then software) → [`measure::counters`] →
//! [`measure::cost`] and [`measure::energy`] → [`report`].

pub mod assist;
pub mod compare;
pub mod hardware;
pub mod hypervisor;
pub mod machine;
pub mod measure;
pub mod replacement;
pub mod report;
pub mod scheme;
pub mod schemes;
pub mod switching;

pub use compare::daemons::{DAEMON_OPTIONS, DaemonTimes};
pub use compare::guests::GuestOutcome;
pub use compare::spec::{Defaults, DimensionSpec, GuestSpec, MachineSpec, SpecError};
pub use compare::{CompareError, Outcome, Plan, Progress, compare};
pub use machine::coverage::{
    COVERAGE_FIELDS, CoveragePoint, CoverageResult, DIMENSION_FIELDS, DimensionResult, POINT_FIELDS,
};
pub use machine::referee::Verdict;
pub use machine::{DynMachine, Machine};
pub use measure::cost::Cycles;
pub use measure::counters::{CounterRow, Counters, Dimension, ExitReason};
pub use measure::energy::{ENERGY_FIELDS, Energy, EnergyResult};
pub use measure::series::interval_costs;
pub use measure::walk_map::{WALK_MAP_FIELDS, WalkPlace};
pub use report::contiguity::CONTIGUITY_FIELDS;
pub use report::nodes::NODE_FIELDS;
pub use report::placement::{PLACEMENT_FIELDS, PlacementResult};
pub use report::results::{FIELDS, Field, MachineResult};
pub use report::tables::{STRUCTURE_FIELDS, TABLE_FIELDS, TablesResult};
pub use scheme::{MachineConfig, MachineError, PageTableBytes, Switched, SwitchingResult};
pub use schemes::{Catalogue, CatalogueError, Definition, SCHEMES};
pub use switching::{Cut, Recorded};
