//! Built-in workloads: real algorithms over instrumented memory, each a [`Source`].
//!
//! A workload runs its algorithm and records each access to memory as the compiled program would
//! issue it: in order, at the address of its data structure, with the size of its data type, the
//! instruction's own address, and the instructions retired since the access before. At a footprint
//! of 1 TiB nothing can be stored, so what a data structure holds at first is a pure function of
//! the index, and only what the algorithm writes and reads again is kept: memory grows with what is
//! touched. Each workload's documentation says what is real, what is implicit, and where the
//! algorithm comes from.
//!
//! What all have in common:
//! - One vCPU; processes are numbered from 0.
//! - Instruction fetches are not part of the stream. Instructions per access were counted in the
//!   inner loops as gcc 12.2 compiles them with -O2 for x86-64, or are estimates where a workload
//!   says so.
//! - With [`Populate::Yes`] long-lived memory is made present, array by array, and what the program
//!   does before its main loop (building the hash table, clearing the search tree, the first
//!   shuffle) has been done when the region of interest begins. With [`Populate::No`] all of that
//!   is measured.
//! - An algorithm that ends starts over with another root, another iteration, if more accesses were
//!   asked for. The stream is cut after exactly the number asked for.
//! - `verify=1`, where a workload has it, keeps the values on which no address depends, checks the
//!   result whenever the algorithm ends, and ends the stream with an error if it is wrong. The
//!   stream is the same.

mod data;
mod driver;
mod kinds;
mod layout;
mod recorder;
mod spec;

use nestwalk_types::Source;

pub use kinds::WORKLOADS;
pub use spec::{
    FOOTPRINT_MAX, FOOTPRINT_MIN, Populate, Setting, WorkloadError, WorkloadSpec, open,
};

type Make = fn(&WorkloadSpec, &spec::Options) -> Result<Box<dyn Source>, WorkloadError>;

/// A workload of the list.
pub struct Workload {
    /// The word on the command line.
    pub name: &'static str,
    /// One line on what it does.
    pub summary: &'static str,
    /// Footprint if none is asked for, bytes.
    pub footprint: u64,
    /// What can be set as `name:key=value,key=value`.
    pub settings: &'static [Setting],
    /// Opens it for a specification that was checked.
    make: Make,
}

impl std::fmt::Debug for Workload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Workload").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The setting of workloads whose addresses do not depend on the values they compute.
const VERIFY: Setting = Setting {
    name: "verify",
    summary: "1 keeps the values and checks the result (memory as the real program's)",
    default: 0,
    range: (0, 1),
};

/// The setting of workloads that allocate several large arrays.
const REGION: Setting = Setting {
    name: "region",
    summary: "1 allocates all arrays from one mapping, as an allocator in a primary region does",
    default: 0,
    range: (0, 1),
};

#[cfg(test)]
mod testing {
    use crate::driver::Kernel;
    use crate::recorder::Recorder;
    use nestwalk_types::Batch;

    /// Runs the algorithm to its end and returns the accesses it made.
    pub(crate) fn run_to_end(kernel: &mut impl Kernel) -> u64 {
        let mut m = Recorder::new(u64::MAX);
        let mut batch = Batch::default();
        while kernel.step(&mut m) {
            if m.should_hand_over() {
                m.take_into(&mut batch);
            }
        }
        m.recorded()
    }
}
