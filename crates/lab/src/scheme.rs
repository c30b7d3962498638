//! Everything that a scheme of one's own is written with.
//!
//! A scheme is a type that implements [`Scheme`], whose head says in which order events arrive and what
//! a scheme owes when, and a [`Definition`], by which names of machines find it and which makes a
//! [`Machine`] of it. [`Lab::with_scheme`](crate::Lab::with_scheme) adds it to a lab. A scheme that
//! wraps another one ([`Nested`], [`Native`]) gives it every event and adds its own.
//!
//! `Settings::verify` has the referee compare every access with the tables of guest and host: whoever
//! writes a scheme runs it so first.

pub use nestwalk_hw::{Asid, Caches, HPA_LIMIT, Profile, ServedBy, Tlb, Translation, WalkCache};
pub use nestwalk_mm::{HostMemory, MmError};
pub use nestwalk_sim::hardware::prefetch::LeafHints;
pub use nestwalk_sim::hardware::walk::{
    Fault, HostDimension, NestedTables, Nobody, Purpose, Tables, WalkWatch, Watched,
    translate_nested, walk_1d, walk_2d,
};
pub use nestwalk_sim::hardware::world::World;
pub use nestwalk_sim::hardware::{Core, Hardware, Request};
pub use nestwalk_sim::hypervisor::bare_metal::Native;
pub use nestwalk_sim::hypervisor::nested::Nested;
pub use nestwalk_sim::hypervisor::nested_mmu::NestedMmu;
pub use nestwalk_sim::measure::counters::{Counters, Dimension, ExitReason, References};
pub use nestwalk_sim::scheme::options::{
    NO_OPTIONS, OptionRow, OptionTable, SchemeOptions, number, one_of, whole, word_of,
};
pub use nestwalk_sim::scheme::vmm_options::{VmmKind, VmmRules};
pub use nestwalk_sim::scheme::{
    Event, Handled, MachineConfig, MachineError, PageTableBytes, Platform, Processor, Report,
    Scheme, Software,
};
pub use nestwalk_sim::schemes::{Definition, Facts};
pub use nestwalk_sim::{DynMachine, Machine};
pub use nestwalk_tables::{Entry, Mode, TableMemory};
pub use nestwalk_types::{Address, Gpa, Gva, Hpa, Invalidation, PageSize, Protection, Run, VcpuId};
