//! Paging modes, page-table entries, and tables in simulated physical memory.
//!
//! A *page* of one address space is translated to a *frame* of the next. Tables hold real entries at
//! real simulated addresses, so that a walker's references can go through a cache model.

pub mod entry;
mod map;
mod memory;
mod mode;
mod modes;
mod sparse;

pub use entry::{Entry, Permissions};
pub use map::{Leaf, MapError, NotMapped, TableOwner, each_leaf, look_up, store};
pub use memory::{Handle, TableMemory};
pub use mode::{
    Architecture, LEGACY32, LONG4, LONG5, Level, MAX_LEVELS, MODES, Mode, PAE, SIE, Stage,
};
pub use modes::{
    ARM, ARM_4K, ARM_4K_52, ARM_4K_IPA40, ARM_4K_IPA43, ARM_4K_IPA48, ARM_16K, ARM_64K, RISCV,
    SV39, SV39X4, SV48, SV48X4, SV57, SV57X4,
};
