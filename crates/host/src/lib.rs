//! A live Linux host that runs virtual machines under QEMU and KVM: their vCPU threads, their hardware
//! counters, the file that switches their paging mode, and the loop that governs them; and the memory
//! of any process, with the frames behind it.
//!
//! Everything that touches the host stands behind a trait or below a root directory that can be
//! exchanged ([`PerfEvents`], [`Actuator`], [`Clock`], [`Roots`]), so that the whole loop is tested
//! where there is neither KVM nor a hardware counter.

mod accesses;
mod actuator;
mod clock;
mod counters;
mod cpu;
mod events;
mod governor;
mod kvm;
mod live;
mod memory;
mod perf;
mod probe;
mod process;
mod replay;

pub use accesses::{
    Counts, ProcessCounters, SAMPLERS, SamplerKind, Sampling, Touched, Window, sample,
};
pub use actuator::{Actuator, ActuatorError, ModuleParameter, PmsFile};
pub use clock::{Clock, SystemClock};
pub use counters::{CounterError, OpenCounter, PerfEvents, Reading, Role, Wanted};
pub use cpu::{Cpu, CpuError};
pub use events::{CustomEvents, Microarchitecture, RawEvent, TABLE, events_of, parse_raw};
pub use governor::{End, Event, Governor, Summary, SwitchResult, Vm, VmError};
pub use kvm::VmDirectory;
pub use live::{LiveOptions, LiveVm, OpenError};
pub use memory::{
    Advice, Cut, FrameKinds, Machine, MemoryError, PAGE_BYTES, ProcessMemory, RamError, RamPiece,
    Region, Snapshot, guest_ram, host_runs,
};
pub use perf::HostPerf;
pub use probe::{Missing, remedy_of_counters};
pub use process::{ProcessError, QemuProcess, Vcpu, find_vms};
pub use replay::{ReplayVm, TwinVm};

use std::path::PathBuf;

/// Where the host's files are; other places in tests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roots {
    /// `/proc`.
    pub proc: PathBuf,
    /// `/sys`.
    pub sys: PathBuf,
    /// KVM's directory in debugfs.
    pub kvm: PathBuf,
}

impl Default for Roots {
    fn default() -> Self {
        Self { proc: "/proc".into(), sys: "/sys".into(), kvm: "/sys/kernel/debug/kvm".into() }
    }
}
