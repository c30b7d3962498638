//! Counters of vCPU threads, and samples made of them.

use crate::process::Vcpu;
use nestwalk_policy::{Mode, Sample};
use std::collections::BTreeMap;
use std::io;
use thiserror::Error;

/// What a counter contributes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Processor time, nanoseconds: the software event `task-clock`.
    Busy,
    /// `instructions:G`.
    Instructions,
    /// `cycles:G`.
    GuestCycles,
    /// `cycles:Hk`; the script's r003c is the same event on Intel's processors.
    HostKernelCycles,
    /// `cycles:Hu`.
    HostUserCycles,
    /// Walk cycles in the guest.
    WalkCycles,
    /// TLB misses in the guest.
    TlbMisses,
}

/// A counter to open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// What it contributes to.
    pub role: Role,
    /// Encoding of a raw event, for walks and misses.
    pub raw: Option<u64>,
    /// Its name, for messages.
    pub name: String,
}

impl Wanted {
    /// A counter that needs no table.
    pub fn generic(role: Role) -> Self {
        let name = match role {
            Role::Busy => "task-clock",
            Role::Instructions => "instructions:G",
            Role::GuestCycles => "cycles:G",
            Role::HostKernelCycles => "cycles:Hk",
            Role::HostUserCycles => "cycles:Hu",
            Role::WalkCycles => "walk cycles",
            Role::TlbMisses => "TLB misses",
        };
        Self { role, raw: None, name: name.to_owned() }
    }
}

/// What a counter shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// The count.
    pub count: u64,
    /// Time that it should have counted, nanoseconds.
    pub enabled_ns: u64,
    /// Time that it did: less if there are more counters than the processor has.
    pub running_ns: u64,
}

/// An open counter.
pub trait OpenCounter {
    /// Reads it.
    ///
    /// # Errors
    /// As the system says.
    fn read(&mut self) -> io::Result<Reading>;
}

/// What opens counters: the system, or a test.
pub trait PerfEvents {
    /// Opens a counter of a thread, counting.
    ///
    /// # Errors
    /// As the system says.
    fn open(&mut self, tid: u32, wanted: &Wanted) -> io::Result<Box<dyn OpenCounter>>;
}

/// Why there is no sample.
#[derive(Debug, Error)]
pub enum CounterError {
    /// A counter cannot be opened.
    #[error("{name} of thread {tid} cannot be counted: {error}")]
    Open {
        /// The counter.
        name: String,
        /// The thread.
        tid: u32,
        /// What is wrong.
        error: io::Error,
    },
    /// A counter cannot be read.
    #[error("{name} of thread {tid} cannot be read any more: {error}")]
    Read {
        /// The counter.
        name: String,
        /// The thread.
        tid: u32,
        /// What is wrong.
        error: io::Error,
    },
    /// A counter did not run.
    #[error(
        "{name} of thread {tid} never ran in the interval: something else uses the processor's \
         counters (another perf, or the NMI watchdog: sysctl kernel.nmi_watchdog=0)"
    )]
    Starved {
        /// The counter.
        name: String,
        /// The thread.
        tid: u32,
    },
}

struct Open {
    counter: Box<dyn OpenCounter>,
    last: Reading,
}

/// The counters of all vCPU threads.
pub(crate) struct VcpuCounters {
    perf: Box<dyn PerfEvents>,
    wanted: Vec<Wanted>,
    /// In the order of `wanted`, by thread.
    open: BTreeMap<u32, Vec<Open>>,
}

impl VcpuCounters {
    pub(crate) fn new(perf: Box<dyn PerfEvents>, wanted: Vec<Wanted>) -> Self {
        Self { perf, wanted, open: BTreeMap::new() }
    }

    /// Opens counters of threads that are new and drops those of threads that have ended.
    pub(crate) fn follow(&mut self, vcpus: &[Vcpu]) -> Result<(), CounterError> {
        self.open.retain(|tid, _| vcpus.iter().any(|v| v.tid == *tid));
        for Vcpu { tid, .. } in vcpus {
            if self.open.contains_key(tid) {
                continue;
            }
            let mut counters = Vec::with_capacity(self.wanted.len());
            for wanted in &self.wanted {
                let name = || wanted.name.clone();
                let mut counter = self
                    .perf
                    .open(*tid, wanted)
                    .map_err(|error| CounterError::Open { name: name(), tid: *tid, error })?;
                let last = counter.read().map_err(|error| CounterError::Read {
                    name: name(),
                    tid: *tid,
                    error,
                })?;
                counters.push(Open { counter, last });
            }
            self.open.insert(*tid, counters);
        }
        Ok(())
    }

    /// What was counted since the last call, by role; roles that are not counted are missing. A thread
    /// with a counter that fails loses all of them: [`follow`](Self::follow) opens them anew, so that
    /// the next interval is one interval for all.
    pub(crate) fn interval(&mut self) -> Result<BTreeMap<Role, u64>, CounterError> {
        let mut totals: BTreeMap<Role, u64> = self.wanted.iter().map(|w| (w.role, 0)).collect();
        let mut failure = None;
        let wanted = &self.wanted;
        self.open.retain(|&tid, counters| {
            let read = read_all(tid, counters, wanted, &mut totals);
            let good = read.is_ok();
            failure = failure.take().or(read.err());
            good
        });
        failure.map_or(Ok(totals), Err)
    }
}

/// Adds the growth of a thread's counters to the totals.
fn read_all(
    tid: u32,
    counters: &mut [Open],
    wanted: &[Wanted],
    totals: &mut BTreeMap<Role, u64>,
) -> Result<(), CounterError> {
    for (open, wanted) in counters.iter_mut().zip(wanted) {
        let name = || wanted.name.clone();
        let now =
            open.counter.read().map_err(|error| CounterError::Read { name: name(), tid, error })?;
        let last = std::mem::replace(&mut open.last, now);
        let Some(count) = scaled(last, now) else {
            return Err(CounterError::Starved { name: name(), tid });
        };
        let total = totals.entry(wanted.role).or_default();
        *total = total.saturating_add(count);
    }
    Ok(())
}

/// The growth between two readings, scaled up where the counter shared its hardware with others. None
/// if it should have counted and never did.
fn scaled(last: Reading, now: Reading) -> Option<u64> {
    let count = now.count.saturating_sub(last.count);
    let enabled = now.enabled_ns.saturating_sub(last.enabled_ns);
    let running = now.running_ns.saturating_sub(last.running_ns);
    if running >= enabled {
        return Some(count);
    }
    let scaled = u128::from(count).checked_mul(enabled.into())?.checked_div(running.into())?;
    Some(u64::try_from(scaled).unwrap_or(u64::MAX))
}

/// Makes a sample of what was counted.
pub(crate) fn sample_of(
    totals: &BTreeMap<Role, u64>,
    time_ns: u64,
    duration_ns: u64,
    mode: Mode,
) -> Sample {
    let get = |role| totals.get(&role).copied();
    Sample {
        time_ns,
        duration_ns,
        busy_ns: get(Role::Busy).unwrap_or(0),
        instructions: get(Role::Instructions).unwrap_or(0),
        guest_cycles: get(Role::GuestCycles).unwrap_or(0),
        host_kernel_cycles: get(Role::HostKernelCycles).unwrap_or(0),
        host_user_cycles: get(Role::HostUserCycles).unwrap_or(0),
        walk_cycles: get(Role::WalkCycles),
        guest_page_faults: None,
        tlb_misses: get(Role::TlbMisses),
        vm_exits: None,
        mode,
    }
}

#[cfg(test)]
mod tests {
    use super::{Reading, scaled};

    #[test]
    fn shared_counters_are_scaled() {
        let r = |count, enabled_ns, running_ns| Reading { count, enabled_ns, running_ns };
        assert_eq!(scaled(r(10, 0, 0), r(110, 50, 50)), Some(100));
        // Ran a quarter of the time: four times as much.
        assert_eq!(scaled(r(0, 100, 100), r(100, 500, 200)), Some(400));
        // The thread did not run at all: nothing to count.
        assert_eq!(scaled(r(5, 7, 7), r(5, 7, 7)), Some(0));
        assert_eq!(scaled(r(5, 7, 7), r(5, 9, 7)), None);
        assert_eq!(scaled(r(0, 0, 0), r(u64::MAX, u64::MAX, 1)), Some(u64::MAX));
    }
}
